//! Traces of the control plane, for a collector that takes OTLP over HTTP, where the configuration names one.
//!
//! ```text
//! change        from the first event that a snapshot has more until the proxy took it
//!   watch       until the snapshot is published: observations
//!   program     the proxy's work: services, writes, error
//!     plan
//!     apply
//! cni           a request of the plugin: verb, container, pod, result, error
//!   decide
//! ```
//! - [`spans`]: spans of `tracing` with the target [`TARGET`], gathered where they end.
//! - [`otlp`]: their form on the wire.
//! - [`export`]: their way to the collector.
//!
//! Nobody waits for a collector: a bounded number of spans waits for it, and those beyond are dropped and counted.
//! Without one, spans are off where they are made. The crates of OpenTelemetry would bring seven packages, the types of
//! metrics among them, a thread, and environment variables that come before the configuration; what is needed of them is
//! a request in JSON.

mod export;
mod otlp;
mod spans;
#[cfg(test)]
mod tests;

pub use export::{Export, Traces};
pub use proxy::TRACE_TARGET as TARGET;
pub use spans::Recorder;

use tokio::sync::mpsc;
use tracing::field::Empty;
use tracing::{Span, info_span};
use tracing_subscriber::filter::{LevelFilter, Targets};

/// Spans that wait for the collector. Each takes some hundred bytes.
const WAITING: usize = 4096;

/// A change on its way to the kernel, from the first event that a snapshot has more.
#[derive(Debug)]
pub struct Way {
    change: Span,
    watch: Span,
}

impl Default for Way {
    /// Nobody's.
    fn default() -> Self {
        Self {
            change: Span::none(),
            watch: Span::none(),
        }
    }
}

impl Way {
    /// Begins now.
    #[must_use]
    pub fn begin() -> Self {
        let change = info_span!(target: TARGET, parent: None, "change");
        let watch = info_span!(target: TARGET, parent: &change, "watch", observations = Empty);
        Self { change, watch }
    }

    /// The snapshot is published, with this many observations. Returns the span of the whole way.
    #[must_use]
    pub fn published(self, observations: u64) -> Span {
        self.watch.record("observations", observations);
        self.change
    }
}

/// Lets spans of traces through, and nothing else.
#[must_use]
pub fn only_traces() -> Targets {
    Targets::new().with_target(TARGET, LevelFilter::INFO)
}

/// What records spans, and what takes them from there to the collector.
#[must_use]
pub fn channel() -> (Recorder, Traces) {
    let (ended, spans) = mpsc::channel(WAITING);
    let recorder = Recorder::new(ended);
    let traces = Traces::new(spans, recorder.dropped());
    (recorder, traces)
}

//! Logs of the agent: to standard error, from a level on that may change while it runs.

use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Comes before every configuration.
const VARIABLE: &str = "CAUSEWAY_LOG";

/// What is logged from now on.
#[derive(Clone)]
pub struct LogLevel(Arc<dyn Fn(&str) + Send + Sync>);

impl LogLevel {
    /// Sets it, in tracing's filter syntax, unless `CAUSEWAY_LOG` says something.
    pub fn set(&self, level: &str) {
        (self.0)(level);
    }

    /// Nobody's.
    #[cfg(test)]
    #[must_use]
    pub fn fixed() -> Self {
        Self(Arc::new(|_| {}))
    }
}

/// Starts them, from this level on unless `CAUSEWAY_LOG` says otherwise.
pub fn start(level: &str, writer: impl for<'w> MakeWriter<'w> + Send + Sync + 'static) -> LogLevel {
    let (filter, handle) = reload::Layer::new(filter(level));
    tracing_subscriber::registry()
        .with(filter)
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(writer)
                .with_ansi(false),
        )
        .init();
    LogLevel(Arc::new(move |level| {
        if let Err(error) = handle.reload(self::filter(level)) {
            tracing::warn!(%error, "the log level cannot be changed");
        }
    }))
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(level))
}

//! How the watches are doing, for health checks and metrics.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{Kind, with_causes};

use super::faults::Rejected;
use super::requests::{Answer, LONGEST_ASKED};

/// How the watch of one kind is doing.
#[derive(Clone, Debug, Default)]
pub struct KindStatus {
    /// Lists that were begun.
    pub lists: u64,
    /// Requests and streams that failed.
    pub errors: u64,
    /// When the server said something last.
    pub heard: Option<Instant>,
    /// The error that it fails with since then, until the server says something again.
    pub failing: Option<Failing>,
}

/// A failure that lasts.
#[derive(Clone, Debug)]
pub struct Failing {
    /// When it began.
    pub since: Instant,
    /// The latest error, with its causes.
    pub error: String,
}

#[derive(Debug, Default)]
struct Inner {
    kinds: BTreeMap<Kind, KindStatus>,
    /// When the server wants to be asked again.
    not_before: BTreeMap<Kind, Instant>,
    rejected: Vec<Rejected>,
    publications: u64,
    /// Whether somebody goes on with changes.
    has_taker: bool,
    /// Of the newest publication, until somebody takes it.
    change: Option<tracing::Span>,
}

/// Shared by the watches that write it and whoever reports it.
#[derive(Clone, Debug, Default)]
pub struct Status {
    inner: Arc<Mutex<Inner>>,
}

impl Status {
    /// One whose changes somebody goes on with: see [`Self::take_change`]. Those of others end when they are published.
    #[must_use]
    pub fn with_taker() -> Self {
        let status = Self::default();
        status.lock().has_taker = true;
        status
    }

    /// The status of each kind that was tried.
    #[must_use]
    pub fn kinds(&self) -> BTreeMap<Kind, KindStatus> {
        self.lock().kinds.clone()
    }

    /// What is in the API at this moment and not used.
    #[must_use]
    pub fn rejected(&self) -> Vec<Rejected> {
        self.lock().rejected.clone()
    }

    /// How many snapshots were published.
    #[must_use]
    pub fn publications(&self) -> u64 {
        self.lock().publications
    }

    pub(super) fn list_began(&self, kind: Kind) {
        self.lock().kinds.entry(kind).or_default().lists += 1;
    }

    /// The server said this to a request about the collection at this path.
    pub(super) fn answered(&self, path: &str, answer: Answer) {
        let kind = match path.rsplit('/').next() {
            Some("services") => Kind::Service,
            Some("endpointslices") => Kind::EndpointSlice,
            Some("nodes") => Kind::Node,
            Some("namespaces") => Kind::Namespace,
            Some("pods") => Kind::Pod,
            Some("servicecidrs") => Kind::ServiceCidr,
            _ => return,
        };
        match answer {
            Answer::Accepted => self.heard(kind),
            Answer::ComeBack(after) => {
                let not_before = Instant::now() + after.min(LONGEST_ASKED);
                self.lock().not_before.insert(kind, not_before);
            }
        }
    }

    /// How long the server still wants to be left alone with this kind.
    pub(super) fn asked_to_wait(&self, kind: Kind) -> Duration {
        let not_before = self.lock().not_before.get(&kind).copied();
        not_before.map_or(Duration::ZERO, |not_before| {
            not_before.saturating_duration_since(Instant::now())
        })
    }

    pub(super) fn heard(&self, kind: Kind) {
        let failed = {
            let mut inner = self.lock();
            let status = inner.kinds.entry(kind).or_default();
            status.heard = Some(Instant::now());
            status.failing.take()
        };
        if let Some(failing) = failed {
            let seconds = failing.since.elapsed().as_secs();
            tracing::info!(?kind, failed_for_s = seconds, "watch works again");
        }
    }

    /// Notes an error; the first of a row is logged.
    pub(super) fn failed(&self, kind: Kind, error: &dyn Error) {
        let text = with_causes(error);
        if self.is_working(kind) {
            tracing::warn!(?kind, error = text, "watch fails, what is known stays in use");
        }
        let mut inner = self.lock();
        let status = inner.kinds.entry(kind).or_default();
        status.errors += 1;
        let since = status
            .failing
            .take()
            .map_or_else(Instant::now, |failing| failing.since);
        status.failing = Some(Failing { since, error: text });
    }

    /// The server said no, which is an answer.
    pub(super) fn denied(&self, kind: Kind) {
        self.heard(kind);
        self.lock().kinds.entry(kind).or_default().errors += 1;
    }

    fn is_working(&self, kind: Kind) -> bool {
        self.lock()
            .kinds
            .get(&kind)
            .is_none_or(|status| status.failing.is_none())
    }

    pub(super) fn set_rejected(&self, rejected: Vec<Rejected>) {
        self.lock().rejected = rejected;
    }

    /// A snapshot is there, to which this change leads.
    pub(super) fn published(&self, change: tracing::Span) {
        let before = {
            let mut inner = self.lock();
            inner.publications += 1;
            if inner.has_taker {
                inner.change.replace(change)
            } else {
                Some(change)
            }
        };
        // A span may end here, which is recorded.
        drop(before);
    }

    /// The span of the newest change, for whoever goes on with it; none when it was taken already.
    #[must_use]
    pub fn take_change(&self) -> tracing::Span {
        let change = self.lock().change.take();
        change.unwrap_or_else(tracing::Span::none)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::registry;

    use super::*;

    #[test]
    fn a_change_that_nobody_goes_on_with_ends_when_it_is_published() {
        tracing::subscriber::with_default(registry(), || {
            let (taken, ended) = (Status::with_taker(), Status::default());
            for status in [&taken, &ended] {
                status.published(tracing::info_span!("change"));
                assert_eq!(status.publications(), 1);
            }
            assert!(!taken.take_change().is_none());
            assert!(taken.take_change().is_none(), "it is taken once");
            assert!(ended.take_change().is_none());
        });
    }
}

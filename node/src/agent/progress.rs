//! How far the proxy has come, for health checks and metrics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::metrics::{Durations, Moment};

/// A change that is not in the kernel after this time makes the node unhealthy: kube-proxy's limit, twice its
/// default `syncPeriod`.
const OVERDUE: Duration = Duration::from_secs(60);

/// Written by the proxy's thread.
#[derive(Debug, Default)]
pub struct ProxyProgress {
    /// How long each sync took.
    pub durations: Durations,
    /// When the last change came in.
    pub queued: Moment,
    /// When the kernel was last as it should be.
    pub synced: Moment,
    /// Syncs and audits that failed.
    pub failures: AtomicU64,
    /// Things that an audit found different from what was programmed.
    pub repairs: AtomicU64,
    /// Verdicts of the socket hook so far, by name.
    verdicts: Mutex<Vec<(&'static str, u64)>>,
    pending_since: Mutex<Option<Instant>>,
}

impl ProxyProgress {
    /// Something is to be done.
    pub fn queue(&self) {
        self.queued.set_now();
        let mut pending = self.pending_since.lock().unwrap_or_else(PoisonError::into_inner);
        pending.get_or_insert_with(Instant::now);
    }

    /// All of it is done.
    pub fn done(&self, took: Duration) {
        self.durations.observe(took);
        self.synced.set_now();
        *self.pending_since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A sync or an audit failed. What a sync was to do is pending since [`Self::queue`]; a repair that waits is no
    /// change that is overdue.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes the verdicts of the socket hook so far.
    pub fn set_verdicts(&self, verdicts: Vec<(&'static str, u64)>) {
        *self.verdicts.lock().unwrap_or_else(PoisonError::into_inner) = verdicts;
    }

    /// Verdicts of the socket hook when they were last read.
    #[must_use]
    pub fn verdicts(&self) -> Vec<(&'static str, u64)> {
        self.verdicts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Whether changes reach the kernel in time.
    #[must_use]
    pub fn in_time(&self) -> bool {
        let pending = *self.pending_since.lock().unwrap_or_else(PoisonError::into_inner);
        pending.is_none_or(|since| since.elapsed() < OVERDUE)
    }
}

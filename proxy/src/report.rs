//! What a sync and an audit did, and what they could not do.

use std::time::Duration;

use model::{Kind, ObjectName};

use crate::{Error, Rejected};

/// What a sync did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Nothing was done, because the first complete lists of these kinds are not in.
    pub waiting_for: Vec<Kind>,
    /// Services whose change is in the kernel.
    pub applied: Vec<ObjectName>,
    /// Parts of the Services looked at that could not be honoured.
    pub rejected: Vec<Rejected>,
    /// Services whose change did not get there. They are tried again by each sync.
    pub failures: Vec<(ObjectName, Error)>,
    /// Failures that are no single Service's. Tried again by each sync.
    pub common_failures: Vec<Error>,
    /// Entries and elements written to the kernel.
    pub writes: u64,
    /// Tracked flows that led to endpoints that are gone, and were forgotten.
    pub stale_flows: usize,
    /// Where the time went.
    pub durations: Durations,
}

/// Where the time of a sync went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// Finding what changed, and planning.
    pub plan: Duration,
    /// Writing to the kernel.
    pub apply: Duration,
}

/// What an audit found.
#[derive(Debug, Default)]
pub struct AuditReport {
    /// Parts of the fixed structure that were missing or differed; they are repaired.
    pub repaired: Vec<String>,
    /// Entries and elements that differed and were written again.
    pub writes: u64,
    /// What could not be repaired; the next audit tries again.
    pub failures: Vec<(Option<ObjectName>, Error)>,
}

impl AuditReport {
    /// Whether the kernel had everything.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.repaired.is_empty() && self.writes == 0 && self.failures.is_empty()
    }
}

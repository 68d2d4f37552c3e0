//! What a sync and an audit did, and what they could not do.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{IpFamily, Kind, ObjectName};

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
    /// Versions of IP of whose rules something is left that nobody asked for; the failure is among the common ones.
    pub unswept: BTreeSet<IpFamily>,
    /// Entries and elements written to the kernel.
    pub writes: u64,
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
    /// How much of that the socket hook's maps took.
    pub sockets: Duration,
}

/// How many rules of iptables there are in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRules {
    /// Version of IP.
    pub family: IpFamily,
    /// `nat`, `filter`.
    pub table: &'static str,
    /// The proxy's rules.
    pub total: u64,
    /// Those of them that the latest change wrote.
    pub written: u64,
}

/// What there is of iptables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IptablesRules {
    /// Each table of each version of IP.
    pub tables: Vec<TableRules>,
    /// How often, by version of IP, a change was refused and all rules were read back and compared.
    pub refused_changes: Vec<(IpFamily, u64)>,
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
    /// Versions of IP of whose rules something is left that nobody asked for; the failure is among the others.
    pub unswept: BTreeSet<IpFamily>,
}

impl AuditReport {
    /// Whether the kernel had everything.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.repaired.is_empty() && self.writes == 0 && self.failures.is_empty()
    }
}

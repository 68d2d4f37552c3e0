//! How far the proxy has come, for health checks and metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use model::{IpFamily, Snapshot};
use proxy::{IptablesRules, NodeContext};
use tokio::sync::watch;

use super::health_check_ports::HealthChecks;
use super::service_proxy::{Changes, FailingServices, Policy, RejectedParts};
use crate::metrics::{Durations, Moment};

/// When the kernel takes no changes for this time the node is unhealthy: kube-proxy's limit, twice its default
/// `syncPeriod`.
pub const OVERDUE: Duration = Duration::from_secs(60);

/// How much a pass of the proxy looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// Everything: the first one, and each audit of everything.
    Full,
    /// What changed.
    Partial,
}

/// Durations of passes.
#[derive(Debug)]
pub struct Passes {
    /// All.
    pub all: Durations,
    /// [`Pass::Full`].
    pub full: Durations,
    /// [`Pass::Partial`].
    pub partial: Durations,
}

/// What is as it is at this moment.
#[derive(Debug, Default)]
pub struct State {
    /// Since when something is to be done. What single Services wait for is not meant: it is theirs alone.
    pending_since: Option<Instant>,
    /// The newest snapshot that came.
    pub queued: Arc<Snapshot>,
    /// The last that is in the kernel but for the Services that fail.
    pub programmed: Arc<Snapshot>,
    /// Ports whose policy Local finds no endpoint on this node.
    pub no_local_endpoints: BTreeMap<(IpFamily, Policy), u64>,
    /// Parts of Services that are not served.
    pub rejected: RejectedParts,
    /// Services that are not in the kernel as they should be.
    pub failing: FailingServices,
    /// What there is of iptables.
    pub iptables: IptablesRules,
    /// What plans are made by; none before the first sync.
    pub context: Option<NodeContext>,
    /// Verdicts of the socket hook when they were last read, by name.
    pub verdicts: Vec<(&'static str, u64)>,
}

impl State {
    /// What changed and is not in the kernel. It is counted for whoever asks: while the first lists come in, that is
    /// all of the cluster with each snapshot.
    #[must_use]
    pub fn pending(&self) -> Changes {
        self.failing.pending(&self.programmed, &self.queued)
    }
}

/// Of one version of IP.
#[derive(Debug)]
pub struct FamilyProgress {
    /// From each change of pods to the sync that brought it into the kernel.
    pub network_programming: Durations,
    /// Looks for tracked flows that lead nowhere. One is for all versions.
    pub forgetting: Durations,
    /// Flows that they found, and that were forgotten.
    pub forgotten_flows: AtomicU64,
    /// Syncs and audits of which something failed at the packet rules.
    pub rules_failures: AtomicU64,
    /// Those of them that could not remove from there what nobody asked for.
    pub cleanup_failures: AtomicU64,
}

impl FamilyProgress {
    fn new() -> Self {
        Self {
            network_programming: Durations::of_network_programming(),
            forgetting: Durations::of_syncs(),
            forgotten_flows: AtomicU64::new(0),
            rules_failures: AtomicU64::new(0),
            cleanup_failures: AtomicU64::new(0),
        }
    }
}

/// Written by the proxy's thread.
#[derive(Debug)]
pub struct ProxyProgress {
    /// Versions of IP that are served. A pass brings all of them into the kernel.
    pub families: BTreeSet<IpFamily>,
    /// How long each pass took.
    pub passes: Passes,
    /// What is measured for each of those versions alone.
    pub by_family: BTreeMap<IpFamily, FamilyProgress>,
    /// When the last change came in.
    pub queued: Moment,
    /// When the kernel was last as it should be, but for single Services that fail.
    pub synced: Moment,
    /// Changes of Services so far.
    pub service_changes: AtomicU64,
    /// Changes of EndpointSlices so far.
    pub slice_changes: AtomicU64,
    /// Sockets of UDP clients that were connected to endpoints that are gone, and were ended.
    pub ended_sockets: AtomicU64,
    /// Syncs, audits and looks for stale flows that failed.
    pub failures: AtomicU64,
    /// Things that an audit found different from what was programmed.
    pub repairs: AtomicU64,
    /// Whether all was in the kernel once, but for single Services that fail.
    pub served: watch::Sender<bool>,
    /// What load balancers shall be told.
    pub health_checks: watch::Sender<Arc<HealthChecks>>,
    state: Mutex<State>,
}

impl Default for ProxyProgress {
    fn default() -> Self {
        Self::new([IpFamily::V4, IpFamily::V6].into())
    }
}

impl ProxyProgress {
    /// Nothing is done yet.
    #[must_use]
    pub fn new(families: BTreeSet<IpFamily>) -> Self {
        let by_family = families.iter();
        Self {
            by_family: by_family.map(|family| (*family, FamilyProgress::new())).collect(),
            families,
            passes: Passes {
                all: Durations::of_syncs(),
                full: Durations::of_syncs(),
                partial: Durations::of_syncs(),
            },
            queued: Moment::default(),
            synced: Moment::default(),
            service_changes: AtomicU64::new(0),
            slice_changes: AtomicU64::new(0),
            ended_sockets: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            repairs: AtomicU64::new(0),
            served: watch::Sender::default(),
            health_checks: watch::Sender::default(),
            state: Mutex::default(),
        }
    }

    /// Something is to be done.
    pub fn queue(&self) {
        self.queued.set_now();
        self.state().pending_since.get_or_insert_with(Instant::now);
    }

    /// All of it is done, but for single Services that fail.
    pub fn done(&self, pass: Pass, took: Duration) {
        self.passed(pass, took);
        self.synced.set_now();
        self.served
            .send_if_modified(|served| !std::mem::replace(served, true));
        self.state().pending_since = None;
    }

    /// A sync could not do what all Services need: it is to be done since then, if not since before.
    pub fn held_up(&self) {
        self.state().pending_since.get_or_insert_with(Instant::now);
    }

    /// A pass over the kernel ended well, without being about a change.
    pub fn passed(&self, pass: Pass, took: Duration) {
        let Passes { all, full, partial } = &self.passes;
        all.observe(took);
        match pass {
            Pass::Full => full.observe(took),
            Pass::Partial => partial.observe(took),
        }
    }

    /// Something of a sync, an audit or a look for stale flows failed. Alone it makes nothing overdue:
    /// [`Self::held_up`] does, and a repair that waits is no change.
    pub fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether changes reach the kernel in time.
    #[must_use]
    pub fn in_time(&self) -> bool {
        self.is_in_time_at(Instant::now())
    }

    /// The same at a moment, if nothing comes in between.
    pub(super) fn is_in_time_at(&self, now: Instant) -> bool {
        let pending = self.state().pending_since;
        pending.is_none_or(|since| now.saturating_duration_since(since) < OVERDUE)
    }

    /// What is as it is at this moment, to be looked at or written.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

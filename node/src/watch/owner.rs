//! The one owner of the snapshot: applies what is observed, and publishes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use model::{Change, Kind, ObjectName, Pools, Snapshot, Text};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Wanted;
use super::events::{Events, Notice, Scope, Subject};
use super::faults::{Rejected, RejectedObjects};
use super::object::{Converted, deletion};
use super::status::Status;
use super::stream::Observed;
use crate::telemetry::Way;

/// At most one publication in this time: a single change is published at once, a burst as one.
pub(super) const PUBLICATION_INTERVAL: Duration = Duration::from_millis(10);

/// Observations that are applied before the clock is looked at again.
const BATCH: usize = 256;

/// The cluster as it is known so far.
pub(super) struct Owner {
    wanted: Wanted,
    snapshot: Snapshot,
    /// What its objects say alike.
    pools: Pools,
    /// Names that the list in progress has named so far. Everything else goes when it is complete.
    listed: BTreeMap<Kind, BTreeSet<ObjectName>>,
    rejected: RejectedObjects,
    events: Events,
}

/// Applies and publishes until the observers are gone.
pub(super) async fn run(
    mut observed: mpsc::Receiver<Observed>,
    wanted: Wanted,
    snapshots: watch::Sender<Arc<Snapshot>>,
    status: Status,
    events: Events,
) {
    let mut owner = Owner::new(wanted, events);
    let mut batch = Vec::with_capacity(BATCH);
    let mut unpublished = false;
    let mut way = Way::default();
    let mut observations = 0_u64;
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            count = observed.recv_many(&mut batch, BATCH) => if count == 0 {
                return;
            },
            () = tokio::time::sleep_until(not_before), if unpublished => {}
        }
        for observation in batch.drain(..) {
            let changes = owner.apply(observation);
            if changes && !unpublished {
                (way, observations) = (Way::begin(), 0);
            }
            unpublished |= changes;
            observations += u64::from(changes);
        }
        if unpublished && Instant::now() >= not_before {
            status.set_rejected(owner.rejected.all());
            status.published(std::mem::take(&mut way).published(observations));
            snapshots.send_replace(Arc::new(owner.snapshot.clone()));
            unpublished = false;
            not_before = Instant::now() + PUBLICATION_INTERVAL;
        }
    }
}

impl Owner {
    pub(super) fn new(wanted: Wanted, events: Events) -> Self {
        Self {
            wanted,
            snapshot: Snapshot::default(),
            pools: Pools::default(),
            listed: BTreeMap::new(),
            rejected: RejectedObjects::default(),
            events,
        }
    }

    /// Applies one observation and returns whether it changed anything that is to be published.
    pub(super) fn apply(&mut self, observed: Observed) -> bool {
        match observed {
            Observed::ListBegins(kind) => {
                self.listed.insert(kind, BTreeSet::new());
                false
            }
            Observed::Object {
                kind,
                name,
                converted,
                rejected,
            } => {
                if let Some(listed) = self.listed.get_mut(&kind) {
                    listed.insert(name.clone());
                }
                let notice = notice(kind, &name, &rejected);
                let faults_changed = self.rejected.update(kind, &name, rejected);
                if let Some(notice) = notice.filter(|_| faults_changed) {
                    self.events.tell(notice);
                }
                let changed = match converted {
                    Converted::Put(mut change) => {
                        (self.wanted.trim)(&mut change);
                        change.pack(&mut self.pools);
                        self.snapshot.apply(*change)
                    }
                    Converted::Irrelevant => self.snapshot.apply(deletion(kind, name)),
                    Converted::Invalid => false,
                };
                changed || faults_changed
            }
            Observed::Gone(kind, name) => {
                let had_faults = self.rejected.forget(kind, &name);
                self.snapshot.apply(deletion(kind, name)) || had_faults
            }
            Observed::ListEnds(kind) => self.sweep(kind),
        }
    }

    /// Removes what the complete list did not name.
    fn sweep(&mut self, kind: Kind) -> bool {
        let Some(listed) = self.listed.remove(&kind) else {
            return false;
        };
        let known = self.names(kind);
        let mut changed = self.snapshot.apply(Change::Synced(kind));
        // Each of these kinds always has a member: `default`, `kubernetes`, this node. A server that lists none has
        // lost its store, and what it lost still runs. Deletions by name are believed.
        let may_be_none = kind == Kind::Pod || self.wanted.selector(kind).is_some();
        if listed.is_empty() && !known.is_empty() && !may_be_none {
            tracing::warn!(
                ?kind,
                known = known.len(),
                "server lists nothing, what is known stays in use"
            );
            return changed;
        }
        for name in known.difference(&listed) {
            changed |= self.snapshot.apply(deletion(kind, name.clone()));
        }
        self.rejected.retain_listed(kind, &listed) || changed
    }

    fn names(&self, kind: Kind) -> BTreeSet<ObjectName> {
        let cluster_scoped = |name: Text| ObjectName::new("", name);
        let snapshot = &self.snapshot;
        match kind {
            Kind::Service => snapshot.services.iter().map(|(name, _)| name.clone()).collect(),
            Kind::EndpointSlice => {
                let slices = snapshot.slices.iter().flat_map(|(_, slices)| slices.iter());
                slices.map(|slice| slice.name.clone()).collect()
            }
            Kind::Node => snapshot
                .nodes
                .iter()
                .map(|(name, _)| cluster_scoped(name.0.clone()))
                .collect(),
            Kind::Namespace => snapshot
                .namespaces
                .iter()
                .map(|(name, _)| cluster_scoped(name.clone()))
                .collect(),
            Kind::ServiceCidr => snapshot
                .service_cidrs
                .iter()
                .map(|(name, _)| cluster_scoped(name.clone()))
                .collect(),
            Kind::Pod => snapshot.pods.iter().map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// What whoever looks at an object shall see of its faults.
fn notice(kind: Kind, object: &ObjectName, rejected: &[Rejected]) -> Option<Notice> {
    let fault = |Rejected { field, reason, .. }: &Rejected| match field.as_str() {
        "" => reason.clone(),
        field => format!("{field}: {reason}"),
    };
    let faults: Vec<_> = rejected.iter().map(fault).collect();
    (!faults.is_empty()).then(|| Notice {
        subject: Subject::Watched(kind),
        object: object.clone(),
        scope: Scope::Everywhere,
        reason: "NotUsed",
        note: format!("not used by the network: {}", faults.join("; ")),
    })
}

//! What a StatefulSet calls for now: one step after the other in the order of the places, or all at once where the set
//! says so (upstream's `StatefulSetControl`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetSpec, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::pods::{Health, health, ordinal, revision};
use crate::pods;
use crate::workload::{nonzero, until};

/// No more pods than this are created at a time, as a ReplicaSet's: a set may ask for two thousand million.
const BURST: usize = 500;

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Places that get a pod, and the name of the revision that it is made of.
    pub create: Vec<(i32, String)>,
    pub delete: Vec<Arc<Pod>>,
    /// Those of `delete` that ended although they should not.
    pub ended: Vec<Arc<Pod>>,
    /// When to look again if nothing changes.
    pub again: Option<Duration>,
}

/// The names of the revision that the set comes from and of the one that it goes to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Revisions<'a> {
    pub current: &'a str,
    pub update: &'a str,
}

/// The places of a set and its pods.
pub(crate) struct Places {
    /// Those that there should be: too many, perhaps, to be written down.
    wanted: Range<i32>,
    /// The pods that are there.
    filled: BTreeMap<i32, Arc<Pod>>,
    /// Pods beyond them, highest first.
    condemned: Vec<Arc<Pod>>,
    min_ready: Duration,
    now: Timestamp,
}

impl Places {
    /// Sorts `pods`, the set's own, into places.
    pub fn new(set: &StatefulSet, pods: &[Arc<Pod>], now: Timestamp) -> Self {
        let spec = set.spec.clone().unwrap_or_default();
        let name = set.metadata.name.as_deref().unwrap_or_default();
        let start = start(&spec);
        let wanted = start..start.saturating_add(spec.replicas.unwrap_or(1).max(0));
        let by_place = pods
            .iter()
            .filter_map(|pod| Some((ordinal(name, pod)?, Arc::clone(pod))));
        let (filled, condemned): (BTreeMap<i32, _>, BTreeMap<i32, _>) =
            by_place.partition(|(place, _)| wanted.contains(place));
        let seconds = spec.min_ready_seconds.unwrap_or(0);
        Self {
            wanted,
            filled,
            condemned: condemned.into_values().rev().collect(),
            min_ready: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
            now,
        }
    }

    fn health(&self, pod: &Pod) -> Health {
        health(pod, self.min_ready, self.now)
    }

    fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.filled.values().chain(&self.condemned)
    }

    /// When the next ready pod will have been ready for long enough.
    pub fn next_available(&self) -> Option<Duration> {
        let moments = self
            .pods()
            .filter_map(|pod| pods::available_from(pod, self.min_ready));
        let next = moments.filter(|at| *at > self.now).min()?;
        Some(until(next, self.now))
    }
}

fn start(spec: &StatefulSetSpec) -> i32 {
    spec.ordinals
        .as_ref()
        .and_then(|ordinals| ordinals.start)
        .unwrap_or(0)
}

/// Which places keep their old revision: all below this number.
fn partition(spec: &StatefulSetSpec) -> i32 {
    let strategy = spec.update_strategy.as_ref();
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    rolling.and_then(|rolling| rolling.partition).unwrap_or(0)
}

fn is_on_delete(spec: &StatefulSetSpec) -> bool {
    let strategy = spec.update_strategy.as_ref();
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete")
}

/// Decides for a set.
pub(crate) fn plan(set: &StatefulSet, places: &Places, revisions: Revisions<'_>) -> Plan {
    let default = StatefulSetSpec::default();
    let spec = set.spec.as_ref().unwrap_or(&default);
    let mut plan = Plan {
        again: places.next_available(),
        ..Plan::default()
    };
    let in_order = spec.pod_management_policy.as_deref() != Some("Parallel");
    let is_over = plan.fill(spec, places, revisions, in_order) && plan.shrink(places, in_order);
    if is_over && !is_on_delete(spec) {
        plan.update(spec, places, revisions);
    }
    plan
}

impl Plan {
    /// Pods for the places that lack one. The answer is whether the next step may be taken.
    fn fill(
        &mut self,
        spec: &StatefulSetSpec,
        places: &Places,
        revisions: Revisions<'_>,
        in_order: bool,
    ) -> bool {
        for place in places.wanted.clone() {
            let Some(pod) = places.filled.get(&place) else {
                // Below the partition a place that lost its pod gets it back as it was.
                let is_kept = !is_on_delete(spec) && place < start(spec).saturating_add(partition(spec));
                let revision = if is_kept {
                    revisions.current
                } else {
                    revisions.update
                };
                self.create.push((place, revision.to_owned()));
                if in_order || self.create.len() == BURST {
                    return false;
                }
                continue;
            };
            match places.health(pod) {
                Health::Ended => {
                    self.delete.push(Arc::clone(pod));
                    self.ended.push(Arc::clone(pod));
                    if in_order {
                        return false;
                    }
                }
                Health::Going | Health::Starting if in_order => return false,
                _ => {}
            }
        }
        true
    }

    /// Pods beyond the last place go, the highest first; in order only while all others are well.
    fn shrink(&mut self, places: &Places, in_order: bool) -> bool {
        let by_place = places.filled.values().chain(places.condemned.iter().rev());
        let unhealthy = by_place.filter(|pod| places.health(pod) != Health::Available);
        let first_unhealthy = unhealthy.map(|pod| &pod.metadata.name).next();
        for pod in &places.condemned {
            let health = places.health(pod);
            if health == Health::Going {
                if in_order {
                    return false;
                }
                continue;
            }
            if in_order && health != Health::Available && first_unhealthy != Some(&pod.metadata.name) {
                return false;
            }
            self.delete.push(Arc::clone(pod));
            if in_order {
                return false;
            }
        }
        true
    }

    /// The highest pod of another revision goes, once all above it are well.
    fn update(&mut self, spec: &StatefulSetSpec, places: &Places, revisions: Revisions<'_>) {
        if !self.create.is_empty() || !self.delete.is_empty() {
            return;
        }
        let least = start(spec).saturating_add(partition(spec));
        for place in places.wanted.clone().rev().take_while(|place| *place >= least) {
            let Some(pod) = places.filled.get(&place) else {
                return;
            };
            let health = places.health(pod);
            if revision(pod) != revisions.update && health != Health::Going {
                self.delete.push(Arc::clone(pod));
                return;
            }
            if health != Health::Available {
                return;
            }
        }
    }
}

/// The status that tells of `places`.
pub(crate) fn status(
    set: &StatefulSet,
    places: &Places,
    revisions: Revisions<'_>,
    collisions: Option<i32>,
) -> StatefulSetStatus {
    let default = StatefulSetSpec::default();
    let spec = set.spec.as_ref().unwrap_or(&default);
    let count = |counts: &dyn Fn(&Pod) -> bool| {
        i32::try_from(places.pods().filter(|pod| counts(pod)).count()).unwrap_or(i32::MAX)
    };
    let of = |name: &str| count(&|pod| revision(pod) == name && pod.metadata.deletion_timestamp.is_none());
    let replicas = count(&|_| true);
    let ready = count(&|pod| pods::phase(pod) == "Running" && pods::is_ready(pod));
    let updated = of(revisions.update);
    // All are of the new revision and well: it is where the set comes from next time.
    let is_complete = !is_on_delete(spec) && updated == replicas && ready == replicas;
    let current = if is_complete {
        revisions.update
    } else {
        revisions.current
    };
    StatefulSetStatus {
        available_replicas: Some(count(&|pod| places.health(pod) == Health::Available)),
        collision_count: collisions,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        current_replicas: nonzero(of(current)),
        current_revision: Some(current.to_owned()),
        observed_generation: set.metadata.generation,
        ready_replicas: nonzero(ready),
        replicas,
        update_revision: Some(revisions.update.to_owned()),
        updated_replicas: nonzero(updated),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

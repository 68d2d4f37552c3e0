//! What a DaemonSet calls for now: pods that are missing, pods that are too many or dead, and if there are neither, the
//! next step of its update.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;

use super::fit::Fit;
use super::places::{Place, Places};
use super::rollout::{self, Limits};
use crate::pods;

/// No more pods than this are created or deleted at a time (upstream's `BurstReplicas`).
const BURST: usize = 250;

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Those of `delete` that have ended although they should not, and their nodes.
    pub ended: Vec<(String, Arc<Pod>)>,
    /// When to look again if nothing changes.
    pub again: Option<Duration>,
}

/// Decides for a DaemonSet. `resting` says how long each node's failed pod still stays, so that one that fails at once
/// is not made anew without a pause.
pub(crate) fn plan(set: &DaemonSet, places: &Places<'_>, resting: &BTreeMap<String, Duration>) -> Plan {
    let limits = Limits::of(set, places.desired());
    let mut plan = Plan::default();
    for (node, place) in &places.nodes {
        plan.keep(node, place, places, limits, resting);
    }
    if plan.create.is_empty() && plan.delete.is_empty() && rollout::is_rolling(set) {
        (plan.create, plan.delete) = rollout::step(places, limits);
    }
    plan.create.truncate(BURST);
    plan.delete.truncate(BURST);
    plan.again = plan.again.into_iter().chain(places.next_available()).min();
    plan
}

impl Plan {
    /// As many pods on one node as belong there (`podsShouldBeOnNode`).
    fn keep(
        &mut self,
        node: &str,
        place: &Place,
        places: &Places<'_>,
        limits: Limits,
        resting: &BTreeMap<String, Duration>,
    ) {
        let staying = place
            .pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        match place.fit {
            Some(Fit::Runs) if place.pods.is_empty() => self.create.push(node.to_owned()),
            Some(Fit::Runs | Fit::Stays) => {
                let (ended, running): (Vec<_>, Vec<_>) =
                    staying.cloned().partition(|pod| pods::is_finished(pod));
                for pod in ended {
                    match resting.get(node).filter(|_| pods::phase(&pod) == "Failed") {
                        Some(rest) => self.again = self.again.into_iter().chain([*rest]).min(),
                        None => {
                            self.delete.push(Arc::clone(&pod));
                            self.ended.push((node.to_owned(), pod));
                        }
                    }
                }
                if limits.surge > 0 {
                    self.delete.extend(excess_of_surge(&running, places));
                } else {
                    self.delete.extend(running.into_iter().skip(1));
                }
            }
            Some(Fit::Leaves) => self.delete.extend(staying.cloned()),
            // Of what is bound to a node that is gone, pod GC takes care.
            None => self
                .delete
                .extend(staying.filter(|pod| pods::node(pod).is_none()).cloned()),
        }
    }
}

/// Beside the oldest pod of the current version the oldest of another may run, until the new one is available or the
/// old one not ready.
fn excess_of_surge(running: &[Arc<Pod>], places: &Places<'_>) -> Vec<Arc<Pod>> {
    if running.len() < 2 {
        return Vec::new();
    }
    let (new, old): (Vec<&Arc<Pod>>, Vec<_>) = running.iter().partition(|pod| places.is_updated(pod));
    let is_over = match (new.first(), old.first()) {
        (Some(new), Some(old)) => !pods::is_ready(old) || places.is_available(new),
        _ => false,
    };
    let excess = new
        .into_iter()
        .skip(1)
        .chain(old.into_iter().skip(usize::from(!is_over)));
    excess.cloned().collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

//! The nodes, and a DaemonSet's pods on each or made for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::fit::{Fit, fit, target};
use crate::workload::until;
use crate::{history, pods};

/// One node as a DaemonSet sees it.
pub(crate) struct Place {
    /// `None` for a node that is gone.
    pub fit: Option<Fit>,
    /// Oldest first, those that are bound before all others.
    pub pods: Vec<Arc<Pod>>,
}

/// All nodes, and all that pods were made for, by name.
pub(crate) struct Places<'a> {
    pub nodes: BTreeMap<String, Place>,
    /// The version that pods should be of.
    pub hash: &'a str,
    pub min_ready: Duration,
    pub now: Timestamp,
}

impl<'a> Places<'a> {
    /// Sorts `pods` onto `nodes`. `spec` is the template's, with its tolerations. A pod that has ended and is being
    /// deleted is no longer there.
    pub fn new(
        set: &DaemonSet,
        spec: &PodSpec,
        nodes: &[Arc<Node>],
        pods: &[Arc<Pod>],
        hash: &'a str,
        now: Timestamp,
    ) -> Self {
        let seconds = set
            .spec
            .as_ref()
            .and_then(|spec| spec.min_ready_seconds)
            .unwrap_or(0);
        let mut places: BTreeMap<String, Place> = nodes
            .iter()
            .map(|node| {
                let place = Place {
                    fit: Some(fit(spec, node)),
                    pods: Vec::new(),
                };
                (node.metadata.name.clone().unwrap_or_default(), place)
            })
            .collect();
        for pod in pods {
            if pods::is_finished(pod) && pod.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let Some(node) = target(pod) else { continue };
            let place = places.entry(node.to_owned()).or_insert_with(|| Place {
                fit: None,
                pods: Vec::new(),
            });
            place.pods.push(Arc::clone(pod));
        }
        for place in places.values_mut() {
            place.pods.sort_by_key(|pod| age_order(pod));
        }
        Self {
            nodes: places,
            hash,
            min_ready: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
            now,
        }
    }

    pub fn is_available(&self, pod: &Pod) -> bool {
        pods::available_from(pod, self.min_ready).is_some_and(|from| from <= self.now)
    }

    pub fn is_updated(&self, pod: &Pod) -> bool {
        history::hash_of(&pod.metadata) == self.hash
    }

    /// How many nodes want a pod.
    pub fn desired(&self) -> i32 {
        count(
            self.nodes
                .values()
                .filter(|place| place.fit == Some(Fit::Runs))
                .count(),
        )
    }

    /// When the next ready pod will have been ready for long enough.
    pub fn next_available(&self) -> Option<Duration> {
        let pods = self.nodes.values().flat_map(|place| &place.pods);
        let moments = pods.filter_map(|pod| pods::available_from(pod, self.min_ready));
        let next = moments.filter(|at| *at > self.now).min()?;
        Some(until(next, self.now))
    }
}

pub(crate) fn count(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

/// Upstream's `podByCreationTimestampAndPhase`.
fn age_order(pod: &Pod) -> (bool, Option<Time>, Option<String>) {
    let meta = &pod.metadata;
    (
        pods::node(pod).is_none(),
        meta.creation_timestamp.clone(),
        meta.name.clone(),
    )
}

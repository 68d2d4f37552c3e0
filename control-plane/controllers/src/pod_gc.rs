//! Pods that nobody else will end: of nodes that are gone for good, told to go before they had a node, and ended ones
//! beyond the number that is kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use model::ObjectName;

use crate::cache::name_of;
use crate::error::{Error, all};
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::{Context, pods};

/// How long a node must be missing: one that is registered anew keeps its pods (upstream's quarantine).
const QUARANTINE: Duration = Duration::from_secs(40);
/// How long ended pods may be too many (upstream's `gcCheckPeriod`).
const CHECK_PERIOD: Duration = Duration::from_secs(20);
const WORKERS: usize = 2;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _nodes = context.caches.nodes.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            if let (Some(node), None) = (&change.old, &change.new) {
                queue.add(Task::Node(name_of(&**node)));
            }
        }
    });
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            let Some(pod) = &change.new else { return };
            if pods::is_finished(pod) {
                queue.add_after(Task::Ended, CHECK_PERIOD);
            }
            match pods::node(pod).map(|node| ObjectName::new("", node)) {
                Some(node) if context.caches.nodes.get(&node).is_none() => queue.add(Task::Node(node)),
                None if is_stranded(pod) => queue.add(Task::Stranded(name_of(&**pod))),
                _ => {}
            }
        }
    });
    let controller = Controller {
        context,
        missing: Mutex::default(),
    };
    drive(&queue, &controller, WORKERS).await;
    Ok(())
}

/// What is looked after.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Task {
    /// The pods of a node that is missing.
    Node(ObjectName),
    /// A pod that was told to go and has no node.
    Stranded(ObjectName),
    /// All pods that have ended.
    Ended,
}

/// No kubelet will ever end it.
fn is_stranded(pod: &Pod) -> bool {
    pods::node(pod).is_none() && pod.metadata.deletion_timestamp.is_some()
}

/// Of the pods that have ended those beyond `kept`: evicted ones first, then the oldest (upstream's
/// `byEvictionAndCreationTimestamp`).
fn surplus(pods: &[Arc<Pod>], kept: usize) -> Vec<Arc<Pod>> {
    let ended = |pod: &&Arc<Pod>| pods::is_finished(pod) && pod.metadata.deletion_timestamp.is_none();
    let mut ended: Vec<Arc<Pod>> = pods.iter().filter(ended).cloned().collect();
    ended.sort_by_cached_key(|pod| {
        let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
        let created = pod.metadata.creation_timestamp.clone();
        (reason != Some("Evicted"), created, pod.metadata.name.clone())
    });
    ended.truncate(ended.len().saturating_sub(kept));
    ended
}

struct Controller {
    context: Arc<Context>,
    /// Since when each node is missed.
    missing: Mutex<BTreeMap<ObjectName, Instant>>,
}

impl Controller {
    /// How long the node has been missed, counting from the first call.
    fn missed_for(&self, node: &ObjectName) -> Duration {
        let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        missing.entry(node.clone()).or_insert_with(Instant::now).elapsed()
    }

    fn found(&self, node: &ObjectName) {
        self.missing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(node);
    }

    async fn look_for(&self, node: &ObjectName) -> Result<Next, Error> {
        let mut lost = self.context.caches.pods.list();
        lost.retain(|pod| pods::node(pod) == Some(&node.name));
        if lost.is_empty() || self.context.caches.nodes.get(node).is_some() {
            self.found(node);
            return Ok(Next::OnChange);
        }
        let missed_for = self.missed_for(node);
        if missed_for < QUARANTINE {
            return Ok(Next::After(QUARANTINE - missed_for));
        }
        if self.context.caches.nodes.fetch(node).await?.is_some() {
            return Ok(Next::OnChange);
        }
        self.delete(&lost, "its node is gone").await
    }

    async fn delete(&self, pods: &[Arc<Pod>], why: &'static str) -> Result<Next, Error> {
        let deletions = pods.iter().map(|pod| {
            tracing::info!(pod = %name_of(&**pod), why, "deleting a pod");
            let at_once = DeleteParams::default().grace_period(0);
            self.context.caches.pods.delete(&**pod, at_once)
        });
        all(futures::future::join_all(deletions).await)?;
        Ok(Next::OnChange)
    }
}

impl Reconcile for Controller {
    type Key = Task;
    const NAME: &'static str = "pod-gc";

    async fn reconcile(&self, task: &Task) -> Result<Next, Error> {
        match task {
            Task::Node(node) => self.look_for(node).await,
            Task::Stranded(name) => {
                let pod = self.context.caches.pods.get(name).filter(|pod| is_stranded(pod));
                let pods: Vec<_> = pod.into_iter().collect();
                self.delete(&pods, "it was told to go and has no node").await
            }
            Task::Ended => {
                let kept = self.context.config.ended_pods;
                let pods = surplus(&self.context.caches.pods.list(), kept);
                self.delete(&pods, "too many have ended").await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Pods as `name:phase`, with `e` behind an evicted one's phase and `t` behind that of one that is being deleted;
    /// older ones first.
    #[track_caller]
    fn check(pods: &str, kept: usize, expected: &[&str]) {
        let pods: Vec<Arc<Pod>> = pods
            .split_whitespace()
            .enumerate()
            .map(|(place, text)| {
                let (name, state) = text.split_once(':').unwrap();
                let created = format!("2026-01-01T00:00:{place:02}Z");
                let pod = json!({
                    "metadata": {
                        "name": name, "creationTimestamp": created,
                        "deletionTimestamp": state.ends_with('t').then_some("2026-01-01T00:01:00Z"),
                    },
                    "status": {
                        "phase": match &state[..1] { "S" => "Succeeded", "F" => "Failed", _ => "Running" },
                        "reason": state.ends_with('e').then_some("Evicted"),
                    },
                });
                Arc::new(serde_json::from_value(pod).unwrap())
            })
            .collect();
        let gone = surplus(&pods, kept);
        let gone: Vec<&str> = gone
            .iter()
            .filter_map(|pod| pod.metadata.name.as_deref())
            .collect();
        assert_eq!(gone, expected);
    }

    #[test]
    fn ended_pods_beyond_the_number_kept_go_oldest_first() {
        check("a:S b:F c:R d:S", 3, &[]);
        check("a:S b:F c:R d:S", 1, &["a", "b"]);
        check("a:S b:F c:Fe d:S", 2, &["c", "a"]);
        check("a:R b:R", 0, &[]);
        check("a:St b:S c:S", 1, &["b"]);
    }
}

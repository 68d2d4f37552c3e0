//! Pods whose node is gone for good: no kubelet will ever end them, so they are deleted here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::api::DeleteParams;
use model::ObjectName;

use crate::cache::name_of;
use crate::error::{Error, all};
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::{Context, pods};

/// How long a node must be missing: one that is registered anew keeps its pods (upstream's quarantine).
const QUARANTINE: Duration = Duration::from_secs(40);
const WORKERS: usize = 2;

/// Runs the controller. Its keys are the names of nodes.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _nodes = context.caches.nodes.subscribe({
        let queue = Arc::clone(&queue);
        move |change| {
            if let (Some(node), None) = (&change.old, &change.new) {
                queue.add(name_of(&**node));
            }
        }
    });
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            let node = change
                .new
                .as_ref()
                .and_then(|pod| pods::node(pod))
                .map(|node| ObjectName::new("", node));
            if let Some(node) = node.filter(|node| context.caches.nodes.get(node).is_none()) {
                queue.add(node);
            }
        }
    });
    drive(
        &queue,
        &Controller {
            context,
            missing: Mutex::default(),
        },
        WORKERS,
    )
    .await;
    Ok(())
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
}

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "pod-gc";

    async fn reconcile(&self, node: &ObjectName) -> Result<Next, Error> {
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
        let deletions = lost.iter().map(|pod| {
            tracing::info!(pod = %name_of(&**pod), node = %node.name, "deleting a pod whose node is gone");
            self.context
                .caches
                .pods
                .delete(&**pod, DeleteParams::default().grace_period(0))
        });
        all(futures::future::join_all(deletions).await)?;
        Ok(Next::OnChange)
    }
}

//! Nodes that stop answering, or say that something is wrong with them.
//!
//! A kubelet renews its Lease every ten seconds. When it has not done so for the grace period, its node's
//! conditions become Unknown, its pods not ready, so that Services leave them, and the node is tainted. How
//! long it was silent is measured from when the last renewal was *seen* here: clocks of different machines
//! are never compared.

mod eviction;
mod judgement;
mod subnets;
mod zones;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use model::ObjectName;
use serde_json::json;

use crate::cache::{Change, name_of};
use crate::error::{Error, all};
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::{Context, pods};
use judgement::Judgement;
use zones::{Eviction, Pace};

pub(crate) use eviction::run as run_eviction;
pub(crate) use judgement::condition;
pub(crate) use subnets::run as run_subnets;

const COMPONENT: &str = "node-controller";
/// How many nodes are worked on at a time.
const WORKERS: usize = 8;

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let heard = Arc::new(Heard::default());
    let _leases = context.caches.leases.subscribe({
        let heard = Arc::clone(&heard);
        move |change| heard.note_lease(change)
    });
    let _nodes = context.caches.nodes.subscribe({
        let (queue, heard, context) = (Arc::clone(&queue), Arc::clone(&heard), Arc::clone(&context));
        move |change| {
            heard.note_node(change);
            change
                .states()
                .take(1)
                .for_each(|node| queue.add(name_of(&**node)));
            // Whether one node's pods may be driven off depends on how many others are silent.
            let readiness = [&change.old, &change.new].map(|node| node.as_ref().map(|node| is_ready(node)));
            if readiness[0] != readiness[1] {
                let nodes = context.caches.nodes.list();
                let silent = nodes.iter().filter(|node| !is_ready(node));
                silent.for_each(|node| queue.add(name_of(&**node)));
            }
        }
    });
    let controller = Controller {
        context,
        heard,
        pace: Pace::default(),
    };
    drive(&queue, &controller, WORKERS).await;
    Ok(())
}

fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready.status == "True")
}

/// When each node was last heard of.
#[derive(Default)]
struct Heard(Mutex<HashMap<String, Sign>>);

#[derive(Default)]
struct Sign {
    renewed: Option<MicroTime>,
    heartbeat: Option<Time>,
    at: Option<Instant>,
}

impl Heard {
    fn note_lease(&self, change: &Change<Lease>) {
        let Some(lease) = &change.new else { return };
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        self.note(&name_of(&**lease).name, |sign| {
            let is_news = sign.renewed != renewed;
            sign.renewed = renewed;
            is_news
        });
    }

    fn note_node(&self, change: &Change<Node>) {
        let name = change
            .states()
            .next()
            .map(|node| name_of(&**node).name)
            .unwrap_or_default();
        let Some(node) = &change.new else {
            self.0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&*name);
            return;
        };
        let heartbeat =
            judgement::condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
        self.note(&name, |sign| {
            let is_news = sign.heartbeat != heartbeat;
            sign.heartbeat = heartbeat;
            is_news
        });
    }

    fn note(&self, node: &str, is_news: impl FnOnce(&mut Sign) -> bool) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sign = heard.entry(node.to_owned()).or_default();
        if is_news(sign) || sign.at.is_none() {
            sign.at = Some(Instant::now());
        }
    }

    fn last(&self, node: &str) -> Option<Instant> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(node)
            .and_then(|sign| sign.at)
    }
}

struct Controller {
    context: Arc<Context>,
    heard: Arc<Heard>,
    pace: Pace,
}

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "node-lifecycle";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(node) = self.context.caches.nodes.get(key) else {
            return Ok(Next::OnChange);
        };
        let silent_for = self
            .heard
            .last(&key.name)
            .map(|at| at.elapsed())
            .unwrap_or_default();
        let grace = self.context.config.node_grace;
        let (zone, now) = (zones::zone_of(&node), Timestamp::now());
        let nodes = self.context.caches.nodes.list();
        let eviction = zones::eviction(&zone, nodes.iter().map(|node| &**node));
        let judgement = judgement::judge(&node, silent_for, grace, eviction, now);
        let turn = match eviction {
            Eviction::Paced(pause) if judgement.drives_off(&node) => {
                self.pace.take(&zone, pause, Instant::now())
            }
            _ => Ok(()),
        };
        match turn {
            Ok(()) => self.apply(&node, judgement).await,
            Err(wait) => {
                let judgement = judgement::judge(&node, silent_for, grace, Eviction::Held, now);
                self.apply(&node, judgement).await?;
                Ok(Next::After(wait))
            }
        }
    }
}

impl Controller {
    async fn apply(&self, node: &Node, judgement: Judgement) -> Result<Next, Error> {
        let Judgement {
            conditions,
            taints,
            is_lost,
            again,
        } = judgement;
        let cache = &self.context.caches.nodes;
        let mut version = node.metadata.resource_version.clone();
        if !conditions.is_empty() {
            tracing::info!(node = %name_of(node).name, "node fell silent");
            let message = format!("Node {} status is now: NodeNotReady", name_of(node).name);
            self.context
                .recorder
                .normal(COMPONENT, node, "NodeNotReady", message);
            let patch = json!({
                "metadata": { "uid": node.metadata.uid, "resourceVersion": version },
                "status": { "conditions": conditions },
            });
            version.clone_from(
                &cache
                    .merge_status(&name_of(node), patch)
                    .await?
                    .metadata
                    .resource_version,
            );
        }
        if let Some(taints) = taints {
            // An empty list would stay, where upstream has none.
            let taints = Some(taints).filter(|taints| !taints.is_empty());
            let patch = json!({
                "metadata": { "uid": node.metadata.uid, "resourceVersion": version },
                "spec": { "taints": taints },
            });
            cache.merge(&name_of(node), patch).await?;
        }
        if is_lost {
            self.mark_pods_not_ready(&name_of(node).name).await?;
        }
        Ok(again.map_or(Next::OnChange, Next::After))
    }

    /// Nobody else can say that the pods of a silent node do not answer. Its kubelet, when it is back, says
    /// what is.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), Error> {
        let pods = self.context.caches.pods.list();
        let ready = pods
            .iter()
            .filter(|pod| pods::node(pod) == Some(node) && pods::is_ready(pod));
        let patches = ready.map(async |pod: &Arc<Pod>| {
            let patch = json!({
                "metadata": { "uid": pod.metadata.uid },
                "status": { "conditions": [{
                    "type": "Ready", "status": "False", "lastTransitionTime": Time(Timestamp::now()),
                }] },
            });
            match self
                .context
                .caches
                .pods
                .merge_status(&name_of(&**pod), patch)
                .await
            {
                Err(error) if !error.is_not_found() => Err(error),
                _ => Ok(()),
            }
        });
        all(futures::future::join_all(patches).await).map(drop)
    }
}

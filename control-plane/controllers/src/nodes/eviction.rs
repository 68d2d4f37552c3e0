//! Pods leave nodes with NoExecute taints: at once, or after the time for which they tolerate the taint.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use kube::api::DeleteParams;
use model::ObjectName;

use crate::cache::name_of;
use crate::error::Error;
use crate::queue::{Next, Queue, Reconcile, drive};
use crate::taints::{NO_EXECUTE, NOT_READY, UNREACHABLE, tolerates};
use crate::{Context, pods};

const COMPONENT: &str = "taint-eviction-controller";
const WORKERS: usize = 8;
/// How long a pod stays on a node that is lost or not ready, unless it says otherwise. Upstream's API server
/// writes this toleration into every pod (admission plugin DefaultTolerationSeconds); here it holds for pods
/// without, too.
const DEFAULT_TOLERATION: Duration = Duration::from_secs(300);

/// Runs the controller.
pub(crate) async fn run(context: Arc<Context>) -> Result<(), Error> {
    let queue = Queue::new();
    let _pods = context.caches.pods.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            let Some(pod) = &change.new else { return };
            let is_bound_now = change
                .old
                .as_ref()
                .is_none_or(|old| pods::node(old) != pods::node(pod));
            if is_bound_now && !reasons(&context, pod).is_empty() {
                queue.add(name_of(&**pod));
            }
        }
    });
    let _nodes = context.caches.nodes.subscribe({
        let (queue, context) = (Arc::clone(&queue), Arc::clone(&context));
        move |change| {
            let Some(node) = &change.new else { return };
            if change.old.as_ref().map(|old| evicting(old)) == Some(evicting(node))
                || evicting(node).is_empty()
            {
                return;
            }
            let name = node.metadata.name.as_deref();
            let pods = context.caches.pods.list();
            pods.iter()
                .filter(|pod| pods::node(pod) == name)
                .for_each(|pod| queue.add(name_of(&**pod)));
        }
    });
    drive(&queue, &Controller(context), WORKERS).await;
    Ok(())
}

fn evicting(node: &Node) -> Vec<Taint> {
    let taints = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    taints
        .into_iter()
        .filter(|taint| taint.effect == NO_EXECUTE)
        .collect()
}

/// The taints that may drive this pod away.
fn reasons(context: &Context, pod: &Pod) -> Vec<Taint> {
    let node = pods::node(pod).and_then(|node| context.caches.nodes.get(&ObjectName::new("", node)));
    node.map(|node| evicting(&node)).unwrap_or_default()
}

/// When a pod has to leave a node with these taints; `None`: never.
pub(crate) fn leaves_at(pod: &Pod, taints: &[Taint], now: Timestamp) -> Option<Timestamp> {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    let leave = taints.iter().filter_map(|taint| {
        let stay = patience(tolerations, taint)?;
        let since = taint.time_added.as_ref().map_or(now, |added| added.0);
        // A toleration without end is none that a clock could reach.
        since.checked_add(stay).ok()
    });
    leave.min()
}

/// How long a pod bears one taint; `None` for ever.
fn patience(tolerations: &[Toleration], taint: &Taint) -> Option<Duration> {
    let covering: Vec<_> = tolerations
        .iter()
        .filter(|toleration| tolerates(toleration, taint))
        .collect();
    if covering.is_empty() {
        let by_default = taint.key == NOT_READY || taint.key == UNREACHABLE;
        return Some(if by_default {
            DEFAULT_TOLERATION
        } else {
            Duration::ZERO
        });
    }
    let limits = covering
        .iter()
        .filter_map(|toleration| toleration.toleration_seconds);
    limits
        .map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
        .min()
}

struct Controller(Arc<Context>);

impl Reconcile for Controller {
    type Key = ObjectName;
    const NAME: &'static str = "taint-eviction";

    async fn reconcile(&self, key: &ObjectName) -> Result<Next, Error> {
        let Some(pod) = self.0.caches.pods.get(key) else {
            return Ok(Next::OnChange);
        };
        if pods::is_finished(&pod) || pod.metadata.deletion_timestamp.is_some() {
            return Ok(Next::OnChange);
        }
        let now = Timestamp::now();
        let Some(at) = leaves_at(&pod, &reasons(&self.0, &pod), now) else {
            return Ok(Next::OnChange);
        };
        if at > now {
            return Ok(Next::After(at.duration_since(now).unsigned_abs()));
        }
        self.0.recorder.normal(
            COMPONENT,
            &*pod,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {key}"),
        );
        self.0.caches.pods.delete(&*pod, DeleteParams::default()).await?;
        Ok(Next::OnChange)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(key: &str, tolerations: Value, expected_secs: Option<i64>) {
        let pod = serde_json::from_value(json!({ "spec": { "containers": [], "tolerations": tolerations } }))
            .unwrap();
        let added = "2026-01-01T00:00:00Z";
        let taint = json!({ "key": key, "effect": "NoExecute", "timeAdded": added });
        let taints = [serde_json::from_value(taint).unwrap()];
        let start: Timestamp = added.parse().unwrap();
        let stay = leaves_at(&pod, &taints, start).map(|at| at.duration_since(start).as_secs());
        assert_eq!(stay, expected_secs);
    }

    #[test]
    fn pods_leave_when_their_patience_ends() {
        check("mine", json!([]), Some(0));
        check("mine", json!([{ "key": "mine", "operator": "Exists" }]), None);
        check(
            "mine",
            json!([{ "key": "mine", "operator": "Exists", "tolerationSeconds": 7 }]),
            Some(7),
        );
        check(
            "mine",
            json!([{ "operator": "Exists", "effect": "NoSchedule" }]),
            Some(0),
        );
        check(UNREACHABLE, json!([]), Some(300));
        check(
            NOT_READY,
            json!([{ "key": NOT_READY, "operator": "Exists", "tolerationSeconds": 20 }]),
            Some(20),
        );
        check(NOT_READY, json!([{ "operator": "Exists" }]), None);
    }
}

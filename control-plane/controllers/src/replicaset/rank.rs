//! Which pods go first when there are too many: upstream's `ActivePodsWithRanks`.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::pods;

/// An annotation by which users say how dear a pod is (KEP-2255). Absent or malformed: 0.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Smaller goes first. The order of the fields is the order of the criteria.
///
/// Times count by powers of two, so that of two pods of about the same age either may go (KEP-2185). Upstream
/// then takes the uid at once; here the later criteria come before it, because otherwise the order is not
/// transitive.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    is_bound: bool,
    phase: u8,
    is_ready: bool,
    deletion_cost: i32,
    relatives_on_node: Reverse<usize>,
    readiness_age: i64,
    restarts: Reverse<(i32, i32)>,
    age: i64,
    uid: String,
}

/// All of `pods`, the first victim first.
pub(crate) fn victims_first(pods: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Vec<Arc<Pod>> {
    let mut per_node: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in related {
        if let Some(node) = pods::node(pod) {
            *per_node.entry(node).or_default() += 1;
        }
    }
    let mut pods = pods.to_vec();
    pods.sort_by_cached_key(|pod| rank(pod, &per_node, now));
    pods
}

fn rank(pod: &Pod, per_node: &BTreeMap<&str, usize>, now: Timestamp) -> Rank {
    let node = pods::node(pod);
    let is_ready = pods::is_ready(pod);
    Rank {
        is_bound: node.is_some(),
        phase: match pods::phase(pod) {
            "Running" => 2,
            "Unknown" => 1,
            _ => 0,
        },
        is_ready,
        deletion_cost: deletion_cost(pod),
        relatives_on_node: Reverse(node.and_then(|node| per_node.get(node)).copied().unwrap_or(0)),
        readiness_age: if is_ready {
            magnitude(pods::ready_since(pod), now)
        } else {
            0
        },
        restarts: Reverse(restarts(pod)),
        age: magnitude(pod.metadata.creation_timestamp.as_ref().map(|time| time.0), now),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let annotation = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(DELETION_COST));
    annotation.and_then(|cost| cost.parse().ok()).unwrap_or(0)
}

/// The binary logarithm of the time since `then`; less for the future, least for no time at all.
fn magnitude(then: Option<Timestamp>, now: Timestamp) -> i64 {
    let Some(then) = then else { return -2 };
    let nanoseconds = u128::try_from(now.as_nanosecond() - then.as_nanosecond()).unwrap_or(0);
    nanoseconds.checked_ilog2().map_or(-1, i64::from)
}

/// The most restarts of any container, and of any sidecar.
fn restarts(pod: &Pod) -> (i32, i32) {
    let most = |statuses: Option<&Vec<ContainerStatus>>| {
        statuses
            .into_iter()
            .flatten()
            .map(|status| status.restart_count)
            .max()
            .unwrap_or(0)
    };
    let status = pod.status.as_ref();
    (
        most(status.and_then(|status| status.container_statuses.as_ref())),
        most(status.and_then(|status| status.init_container_statuses.as_ref())),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(name: &str, edits: &[(&str, Value)]) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": { "name": name, "uid": name, "creationTimestamp": "2026-01-01T00:00:00Z", "annotations": {} },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": {
                "phase": "Running",
                "conditions": [{ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "containerStatuses": [{ "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 0 }],
            },
        });
        for (path, value) in edits {
            *pod.pointer_mut(path).unwrap() = value.clone();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[track_caller]
    fn goes_first(why: &str, victim: &[(&str, Value)], survivor: &[(&str, Value)]) {
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        // The names are such that the uid alone would choose the wrong one.
        let (victim, survivor) = (pod("z", victim), pod("a", survivor));
        for pods in [
            [victim.clone(), survivor.clone()],
            [survivor.clone(), victim.clone()],
        ] {
            let relatives = [pod("r", &[("/spec/nodeName", json!("crowded"))])];
            let related: Vec<_> = pods.iter().chain(&relatives).cloned().collect();
            assert_eq!(
                victims_first(&pods, &related, now),
                [victim.clone(), survivor.clone()],
                "{why}"
            );
        }
    }

    #[test]
    fn victims_are_chosen_by_upstreams_criteria_in_upstreams_order() {
        let node = "/spec/nodeName";
        let phase = "/status/phase";
        let ready = "/status/conditions/0/status";
        let since = "/status/conditions/0/lastTransitionTime";
        let restarts = "/status/containerStatuses/0/restartCount";
        let created = "/metadata/creationTimestamp";
        let annotations = "/metadata/annotations";
        let dear = |cost: &str| json!({ DELETION_COST: cost });

        goes_first("not bound", &[(node, json!(""))], &[(phase, json!("Pending"))]);
        goes_first(
            "pending",
            &[(phase, json!("Pending"))],
            &[(ready, json!("False"))],
        );
        goes_first("unknown before running", &[(phase, json!("Unknown"))], &[]);
        goes_first(
            "not ready",
            &[(ready, json!("False"))],
            &[(annotations, dear("-5"))],
        );
        goes_first("cheap", &[(annotations, dear("-5"))], &[(node, json!("crowded"))]);
        goes_first(
            "malformed cost is none",
            &[],
            &[(annotations, dear("5")), (restarts, json!(9))],
        );
        goes_first(
            "crowded node",
            &[(node, json!("crowded"))],
            &[(since, json!("2026-01-01T23:59:00Z"))],
        );
        goes_first(
            "ready for less",
            &[(since, json!("2026-01-01T23:59:00Z"))],
            &[(restarts, json!(9))],
        );
        goes_first(
            "restarted more",
            &[(restarts, json!(9))],
            &[(created, json!("2026-01-01T23:59:00Z"))],
        );
        goes_first("younger", &[(created, json!("2026-01-01T23:59:00Z"))], &[]);
    }
}

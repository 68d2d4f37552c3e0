//! A DaemonSet's next step, and the status beside it, as rows.
//!
//! A node is written `name`, with `!` behind it where a taint keeps new pods away, and `x` where one drives all away. A pod is `v1@n1` with a state behind it: `?` not ready, `~` ready for less than
//! `minReadySeconds`, `t` being deleted, `f` failed, `s` succeeded, `u` not bound yet.

use super::super::fit::tolerating;
use super::super::status::status;
use super::*;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T01:00:00Z";

fn node(name: &str) -> Arc<Node> {
    let bare = name.trim_end_matches(['!', 'x']);
    let effect = match name.strip_prefix(bare) {
        Some("!") => Some("NoSchedule"),
        Some("x") => Some("NoExecute"),
        _ => None,
    };
    let taints: Vec<Value> = effect
        .into_iter()
        .map(|effect| json!({ "key": "k", "effect": effect }))
        .collect();
    let node = json!({ "metadata": { "name": bare }, "spec": { "taints": taints } });
    Arc::new(serde_json::from_value(node).unwrap())
}

/// The place in the row is the pod's age: earlier is older.
fn pod(place: usize, text: &str) -> Arc<Pod> {
    let (version, rest) = text.split_once('@').unwrap();
    let node = rest.trim_end_matches(['?', '~', 't', 'f', 's', 'u']);
    let state = &rest[node.len()..];
    let phase = match state {
        "f" => "Failed",
        "s" => "Succeeded",
        "u" => "Pending",
        _ => "Running",
    };
    let ready = if matches!(state, "" | "~" | "t") {
        "True"
    } else {
        "False"
    };
    let since = if state == "~" {
        "2026-01-01T00:59:55Z"
    } else {
        "2026-01-01T00:00:00Z"
    };
    let field = json!({ "key": "metadata.name", "operator": "In", "values": [node] });
    let affinity = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{ "matchFields": [field] }],
    } } });
    let pod = json!({
        "metadata": {
            "name": text, "labels": { "controller-revision-hash": version },
            "creationTimestamp": format!("2026-01-01T00:00:{place:02}Z"),
            "deletionTimestamp": (state == "t").then_some(NOW),
        },
        "spec": { "containers": [], "affinity": affinity, "nodeName": (state != "u").then_some(node) },
        "status": {
            "phase": phase, "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": since }],
        },
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

struct Row {
    set: DaemonSet,
    nodes: Vec<Arc<Node>>,
    pods: Vec<Arc<Pod>>,
    resting: BTreeMap<String, Duration>,
}

impl Row {
    fn new(strategy: Value, nodes: &str, pods: &str) -> Self {
        let set = json!({
            "metadata": { "name": "ds", "generation": 3 },
            "spec": { "minReadySeconds": 10, "selector": {}, "template": {}, "updateStrategy": strategy },
        });
        Self {
            set: serde_json::from_value(set).unwrap(),
            nodes: nodes.split_whitespace().map(node).collect(),
            pods: pods
                .split_whitespace()
                .enumerate()
                .map(|(place, text)| pod(place, text))
                .collect(),
            resting: BTreeMap::new(),
        }
    }

    fn places(&self) -> Places<'static> {
        let spec = tolerating(serde_json::from_value(json!({ "containers": [] })).unwrap());
        let now: Timestamp = NOW.parse().unwrap();
        Places::new(&self.set, &spec, &self.nodes, &self.pods, "v2", now)
    }

    fn plan(&self) -> Plan {
        plan(&self.set, &self.places(), &self.resting)
    }
}

/// `expected`: `+node` for a pod that is created, `-pod` for one that is deleted.
#[track_caller]
fn check_by(strategy: Value, nodes: &str, pods: &str, expected: &str) {
    let plan = Row::new(strategy, nodes, pods).plan();
    let created = plan.create.iter().map(|node| format!("+{node}"));
    let deleted = plan
        .delete
        .iter()
        .map(|pod| format!("-{}", pod.metadata.name.as_deref().unwrap()));
    let found: Vec<String> = created.chain(deleted).collect();
    assert_eq!(found.join(" "), expected, "{pods} on {nodes}");
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({ "type": "RollingUpdate", "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } })
}

#[track_caller]
fn check(nodes: &str, pods: &str, expected: &str) {
    check_by(rolling(json!(0), json!(1)), nodes, pods, expected);
}

#[test]
fn every_node_that_fits_gets_one_pod() {
    check("", "", "");
    check("n1 n2 n3", "", "+n1 +n2 +n3");
    check("n1 n2 n3", "v2@n2", "+n1 +n3");
    check("n1 n2!", "v2@n1", "");
    check("n1 n2x", "v2@n1", "");
    check("n1", "v2@n1u", "");
    check("n1", "v2@n1?", "");
}

#[test]
fn a_node_gets_its_next_pod_when_the_last_one_is_gone() {
    check("n1", "v2@n1t", "");
    check("n1 n2", "v1@n1t v2@n2", "");
}

#[test]
fn of_several_pods_on_a_node_the_oldest_stays() {
    check("n1", "v2@n1 v2@n1?", "-v2@n1?");
    check("n1", "v1@n1 v2@n1 v2@n1?", "-v2@n1 -v2@n1?");
    check("n1", "v2@n1u v2@n1", "-v2@n1u");
    check("n1", "v2@n1t v2@n1", "");
}

#[test]
fn pods_that_ended_are_replaced() {
    check("n1 n2", "v2@n1f v2@n2", "-v2@n1f");
    check("n1 n2", "v2@n1s v2@n2", "-v2@n1s");
    check("n1", "v2@n1f v2@n1", "-v2@n1f");
}

#[test]
fn a_failed_pod_stays_while_its_node_rests() {
    let mut row = Row::new(json!({}), "n1 n2", "v2@n1f v2@n2s");
    row.resting = BTreeMap::from([
        ("n1".to_owned(), Duration::from_secs(7)),
        ("n2".to_owned(), Duration::from_secs(9)),
    ]);
    let plan = row.plan();
    assert_eq!(plan.again, Some(Duration::from_secs(7)));
    // One that succeeded is no failure.
    let ended: Vec<_> = plan.ended.iter().map(|(node, _)| node.as_str()).collect();
    assert_eq!((ended, plan.delete.len()), (vec!["n2"], 1));
}

#[test]
fn taints_drive_pods_away_or_only_keep_them_off() {
    check("n1!", "v2@n1", "");
    check("n1x", "v2@n1", "-v2@n1");
    check("n1x", "v2@n1t", "");
    check("n1x", "v2@n1f", "-v2@n1f");
    check("n1!", "v2@n1 v2@n1?", "-v2@n1?");
}

#[test]
fn of_a_node_that_is_gone_only_pods_that_never_got_there_go() {
    check("n1", "v2@n1 v2@n9u", "-v2@n9u");
    check("n1", "v2@n1 v2@n9", "");
}

#[test]
fn old_pods_go_as_far_as_unavailability_allows() {
    check("n1 n2 n3", "v1@n1 v1@n2 v1@n3", "-v1@n1");
    check("n1 n2 n3", "v2@n1 v1@n2 v1@n3", "-v1@n2");
    check("n1 n2 n3", "v2@n1? v1@n2 v1@n3", "");
    check("n1 n2 n3", "v2@n1~ v1@n2 v1@n3", "");
    check("n1 n2 n3", "v1@n1t v1@n2 v1@n3", "");
    check("n1 n2 n3", "v2@n1 v2@n2 v2@n3", "");
    // The old pod does not work: nothing is lost by its going, whatever else is unavailable.
    check("n1 n2 n3", "v1@n1? v1@n2 v1@n3", "-v1@n1?");
    check("n1 n2 n3", "v2@n1? v1@n2? v1@n3", "-v1@n2?");
    check("n1 n2 n3", "v1@n1? v1@n2? v1@n3", "-v1@n1? -v1@n2?");
    check("n1 n2 n3", "v1@n1~ v1@n2 v1@n3", "-v1@n1~");
}

#[test]
fn missing_pods_come_before_the_update_goes_on() {
    check("n1 n2 n3", "v1@n1 v1@n2", "+n3");
    check("n1 n2 n3", "v1@n1 v1@n2 v1@n3f", "-v1@n3f");
}

#[test]
fn unavailability_is_a_number_or_a_share_rounded_up() {
    let by = |unavailable: Value, expected: &str| {
        check_by(
            rolling(json!(0), unavailable),
            "n1 n2 n3",
            "v1@n1 v1@n2 v1@n3",
            expected,
        );
    };
    by(json!(2), "-v1@n1 -v1@n2");
    by(json!("34%"), "-v1@n1 -v1@n2");
    by(json!("33%"), "-v1@n1");
    by(json!("100%"), "-v1@n1 -v1@n2 -v1@n3");
    // Neither surge nor unavailability: upstream's default.
    by(json!(0), "-v1@n1");
    check_by(json!({}), "n1 n2", "v1@n1 v1@n2", "-v1@n1");
}

#[test]
fn on_delete_waits_for_somebody_to_delete() {
    let on_delete = || json!({ "type": "OnDelete" });
    check_by(on_delete(), "n1 n2", "v1@n1 v1@n2?", "");
    check_by(on_delete(), "n1 n2", "v1@n1", "+n2");
}

#[track_caller]
fn check_surge(nodes: &str, pods: &str, expected: &str) {
    check_by(rolling(json!(1), json!(0)), nodes, pods, expected);
}

#[test]
fn with_surge_a_new_pod_comes_before_the_old_one_goes() {
    check_surge("n1 n2", "v1@n1 v1@n2", "+n1");
    check_surge("n1 n2", "v1@n1 v1@n2 v2@n1?", "");
    check_surge("n1 n2", "v1@n1 v1@n2 v2@n1~", "");
    check_surge("n1 n2", "v1@n1 v1@n2 v2@n1", "-v1@n1");
    check_surge("n1 n2", "v2@n1 v1@n2", "+n2");
    check_surge("n1 n2", "v2@n1 v2@n2", "");
    // The old one does not work: it is not waited for, and costs no surge.
    check_surge("n1 n2", "v1@n1? v1@n2", "+n1 +n2");
    check_surge("n1", "v1@n1? v2@n1?", "-v1@n1?");
    check_surge("n1", "v1@n1 v1@n1 v2@n1? v2@n1?", "-v2@n1? -v1@n1");
    check_by(
        rolling(json!("50%"), json!(0)),
        "n1 n2 n3",
        "v1@n1 v1@n2 v1@n3",
        "+n1 +n2",
    );
}

#[test]
fn with_surge_a_pod_on_a_node_that_takes_no_other_goes_when_it_can_be_spared() {
    check_surge("n1! n2", "v1@n1 v2@n2", "-v1@n1");
    check_surge("n1! n2", "v1@n1 v2@n2?", "");
    check_surge("n1! n2", "v1@n1? v2@n2?", "-v1@n1?");
}

/// Desired, current, ready, updated, available, unavailable, misscheduled.
#[track_caller]
fn check_status(nodes: &str, pods: &str, expected: [i32; 7]) {
    let row = Row::new(json!({}), nodes, pods);
    let status = status(&row.set, &row.places(), Some(2));
    let or_none = |number: Option<i32>| {
        assert_ne!(number, Some(0), "zero is left out");
        number.unwrap_or(0)
    };
    let found = [
        status.desired_number_scheduled,
        status.current_number_scheduled,
        status.number_ready,
        or_none(status.updated_number_scheduled),
        or_none(status.number_available),
        or_none(status.number_unavailable),
        status.number_misscheduled,
    ];
    assert_eq!(found, expected, "{pods} on {nodes}");
    assert_eq!(
        (status.observed_generation, status.collision_count),
        (Some(3), Some(2))
    );
}

#[test]
fn the_status_counts_nodes_and_their_oldest_pods() {
    check_status("", "", [0; 7]);
    check_status("n1 n2", "", [2, 0, 0, 0, 0, 2, 0]);
    check_status("n1 n2", "v2@n1 v1@n2", [2, 2, 2, 1, 2, 0, 0]);
    check_status("n1 n2", "v2@n1? v2@n2~", [2, 2, 1, 2, 0, 2, 0]);
    check_status("n1 n2!", "v2@n1 v2@n2", [1, 1, 1, 1, 1, 0, 1]);
    check_status("n1 n2x", "v2@n1 v2@n2", [1, 1, 1, 1, 1, 0, 1]);
    check_status("n1", "v1@n1 v2@n1", [1, 1, 1, 0, 1, 0, 0]);
    check_status("n1", "v2@n1 v2@n9", [1, 1, 1, 1, 1, 0, 0]);
}

#[test]
fn a_pod_that_becomes_available_by_time_alone_is_waited_for() {
    let again = Row::new(json!({}), "n1 n2", "v2@n1~ v2@n2").plan().again;
    assert_eq!(again, Some(Duration::from_millis(5010)));
}

//! A StatefulSet's next step, and the status beside it, as rows.
//!
//! A pod is `0v1`: its place and its revision, with a state behind it: `?` not ready, `~` ready for less than
//! `minReadySeconds`, `t` being deleted, `f` failed.

use super::*;
use serde_json::{Value, json};

const NOW: &str = "2026-01-01T01:00:00Z";
const REVISIONS: Revisions<'static> = Revisions {
    current: "v1",
    update: "v2",
};

fn set(edit: Value) -> StatefulSet {
    let mut spec = json!({
        "replicas": 3, "minReadySeconds": 10, "podManagementPolicy": "OrderedReady", "selector": {}, "template": {},
        "serviceName": "web", "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } },
    });
    spec.as_object_mut()
        .unwrap()
        .extend(edit.as_object().unwrap().clone());
    let set = json!({ "metadata": { "name": "web", "generation": 4 }, "spec": spec });
    serde_json::from_value(set).unwrap()
}

fn pod(text: &str) -> Arc<Pod> {
    let (place, rest) = text.split_once('v').unwrap();
    let state = rest.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let version = &rest[..rest.len() - state.len()];
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
    let pod = json!({
        "metadata": {
            "name": format!("web-{place}"), "labels": { "controller-revision-hash": format!("v{version}") },
            "deletionTimestamp": (state == "t").then_some(NOW),
        },
        "status": {
            "phase": if state == "f" { "Failed" } else { "Running" },
            "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": since }],
        },
    });
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn places(set: &StatefulSet, text: &str) -> Places {
    let pods: Vec<_> = text.split_whitespace().map(pod).collect();
    Places::new(set, &pods, NOW.parse().unwrap())
}

/// `expected`: `+0v2` for a pod that is created, `-0` for one that is deleted.
#[track_caller]
fn check(edit: Value, before: &str, expected: &str) {
    let set = set(edit);
    let plan = plan(&set, &places(&set, before), REVISIONS);
    let created = plan
        .create
        .iter()
        .map(|(place, revision)| format!("+{place}{revision}"));
    let deleted = plan
        .delete
        .iter()
        .map(|pod| format!("-{}", ordinal("web", pod).unwrap()));
    let found: Vec<String> = created.chain(deleted).collect();
    assert_eq!(found.join(" "), expected, "{before}");
}

fn none() -> Value {
    json!({})
}

fn parallel() -> Value {
    json!({ "podManagementPolicy": "Parallel" })
}

/// 500 at a time, and memory for no more: every place of the largest set would be 32 GiB.
#[test]
fn a_set_of_any_size_is_filled_in_bursts() {
    let with = |policy: &str, start: i32| json!({ "replicas": i32::MAX, "podManagementPolicy": policy, "ordinals": { "start": start } });
    check(with("OrderedReady", 0), "0v2", "+1v2");
    check(with("OrderedReady", i32::MAX - 1), "", "+2147483646v2");
    let burst = |places: std::ops::Range<i32>| {
        let created: Vec<String> = places.map(|place| format!("+{place}v2")).collect();
        created.join(" ")
    };
    check(with("Parallel", 0), "", &burst(0..500));
    check(with("Parallel", 7), "7v2 8v2", &burst(9..509));
    // A place that is filled lies above all that are created.
    check(with("Parallel", 0), "2000000000v1", &burst(0..500));
}

#[test]
fn pods_come_one_after_the_other() {
    check(none(), "", "+0v2");
    check(none(), "0v2?", "");
    check(none(), "0v2~", "");
    check(none(), "0v2", "+1v2");
    check(none(), "0v2 1v2", "+2v2");
    check(none(), "0v2 1v2 2v2", "");
    check(none(), "0v2 2v2", "+1v2");
    check(none(), "0v2? 2v2", "");
    check(none(), "0v2t 1v2 2v2", "");
    check(json!({ "replicas": 0 }), "", "");
    check(json!({ "ordinals": { "start": 5 } }), "5v2", "+6v2");
}

#[test]
fn where_the_set_says_so_they_come_all_at_once() {
    check(parallel(), "", "+0v2 +1v2 +2v2");
    check(parallel(), "1v2?", "+0v2 +2v2");
    check(parallel(), "0v2f 1v2t", "+2v2 -0");
}

#[test]
fn a_pod_that_ended_is_replaced_in_its_place() {
    check(none(), "0v2 1v2f 2v2", "-1");
    check(none(), "0v2f", "-0");
    check(none(), "0v2? 1v2f", "");
}

#[test]
fn pods_beyond_the_last_place_go_from_the_top() {
    let one = || json!({ "replicas": 1 });
    check(one(), "0v2 1v2 2v2", "-2");
    check(one(), "0v2 1v2 2v2t", "");
    check(one(), "0v2 1v2", "-1");
    // While another one is not well nothing more is taken away, but it may be that one.
    check(one(), "0v2? 1v2 2v2", "");
    check(one(), "0v2 1v2? 2v2", "-2");
    check(one(), "0v2 1v2 2v2?", "-2");
    check(one(), "0v2 1v2? 2v2?", "");
    check(
        json!({ "replicas": 1, "podManagementPolicy": "Parallel" }),
        "0v2? 1v2? 2v2",
        "-2 -1",
    );
    check(
        json!({ "replicas": 2, "ordinals": { "start": 1 } }),
        "0v2 1v2 2v2",
        "-0",
    );
}

#[test]
fn updates_go_from_the_top_one_at_a_time() {
    check(none(), "0v1 1v1 2v1", "-2");
    check(none(), "0v1 1v1 2v1t", "");
    check(none(), "0v1 1v1 2v2?", "");
    check(none(), "0v1 1v1 2v2~", "");
    check(none(), "0v1 1v1 2v2", "-1");
    check(none(), "0v1 1v2 2v2", "-0");
    check(none(), "0v1 1v1", "+2v2");
    check(parallel(), "0v1 1v1 2v1", "-2");
    check(parallel(), "0v1? 1v1 2v2", "-1");
    check(
        json!({ "updateStrategy": { "type": "OnDelete" } }),
        "0v1 1v1 2v1",
        "",
    );
    check(
        json!({ "updateStrategy": { "type": "OnDelete" } }),
        "0v1 1v1",
        "+2v2",
    );
}

#[test]
fn places_below_the_partition_keep_their_revision() {
    let from = |partition: i32| json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": partition } } });
    check(from(2), "0v1 1v1 2v1", "-2");
    check(from(2), "0v1 1v1 2v2", "");
    check(from(2), "0v1 2v2", "+1v1");
    check(from(1), "0v1 2v2", "+1v2");
    check(from(9), "0v1 1v1 2v1", "");
}

/// Replicas, ready, current, updated, available, and the current revision.
#[track_caller]
fn check_status(before: &str, expected: ([i32; 5], &str)) {
    let set = set(none());
    let status = status(&set, &places(&set, before), REVISIONS, None);
    let counts = [
        status.replicas,
        status.ready_replicas.unwrap_or(0),
        status.current_replicas.unwrap_or(0),
        status.updated_replicas.unwrap_or(0),
        status.available_replicas.unwrap_or(0),
    ];
    assert_eq!(
        (counts, status.current_revision.as_deref()),
        (expected.0, Some(expected.1)),
        "{before}"
    );
    assert_eq!(
        (status.observed_generation, status.update_revision.as_deref()),
        (Some(4), Some("v2"))
    );
}

#[test]
fn the_status_counts_pods_by_revision_and_the_update_ends_when_all_are_new_and_ready() {
    check_status("0v1 1v1 2v1", ([3, 3, 3, 0, 3], "v1"));
    check_status("0v1 1v1 2v2~", ([3, 3, 2, 1, 2], "v1"));
    check_status("0v1 1v1t 2v2?", ([3, 2, 1, 1, 1], "v1"));
    check_status("0v2 1v2 2v2?", ([3, 2, 0, 3, 2], "v1"));
    check_status("0v2 1v2 2v2", ([3, 3, 3, 3, 3], "v2"));
}

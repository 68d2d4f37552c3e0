//! Columns of Pods.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, age, or_none, since, text, wide};
use crate::object::{self, Fields};

/// Pods.
pub const POD: &[Column] = &[
    text("Name"),
    text("Ready"),
    text("Status"),
    text("Restarts"),
    text("Age"),
    wide("IP"),
    wide("Node"),
    wide("Nominated Node"),
    wide("Readiness Gates"),
];

/// Cells under [`POD`].
pub fn pod(object: &Value, now: Timestamp) -> Vec<Value> {
    let statuses = object.list("status.containerStatuses");
    let ready = statuses.iter().filter(|status| status.flag("ready")).count();
    vec![
        object::name(object).into(),
        format!("{ready}/{}", object.list("spec.containers").len()).into(),
        pod_status(object).into(),
        restarts(object, now).into(),
        age(object, now),
        or_none(pod_ip(object)),
        or_none(object.text("spec.nodeName")),
        or_none(object.text("status.nominatedNodeName")),
        readiness_gates(object),
    ]
}

fn pod_ip(pod: &Value) -> &str {
    let first = pod.list("status.podIPs").first().map_or("", |one| one.text("ip"));
    if first.is_empty() {
        pod.text("status.podIP")
    } else {
        first
    }
}

/// The one word that tells what a Pod is doing (`printPod`).
fn pod_status(pod: &Value) -> String {
    let mut reason = match pod.text("status.reason") {
        "" => pod.text("status.phase").to_owned(),
        told => told.to_owned(),
    };
    let gated = pod
        .list("status.conditions")
        .iter()
        .any(|one| one.text("type") == "PodScheduled" && one.text("reason") == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".to_owned();
    }
    match init_status(pod) {
        Some(initializing) => reason = initializing,
        None => reason = container_status(pod, reason),
    }
    if !object::is_terminating(pod) {
        return reason;
    }
    match pod.text("status.reason") {
        "NodeLost" => "Unknown".to_owned(),
        _ if crate::resources::pod_is_finished(pod) => reason,
        _ => "Terminating".to_owned(),
    }
}

/// `Init:1/2`, `Init:Error`: the first init container that has not succeeded decides.
fn init_status(pod: &Value) -> Option<String> {
    let statuses = pod.list("status.initContainerStatuses");
    let total = pod.list("spec.initContainers").len();
    for (index, status) in statuses.iter().enumerate() {
        let terminated = status.at("state.terminated");
        let waiting = status.text("state.waiting.reason");
        if terminated.is_object() && terminated.int("exitCode") == Some(0) {
            continue;
        }
        let restartable = pod
            .list("spec.initContainers")
            .get(index)
            .is_some_and(|one| one.text("restartPolicy") == "Always");
        if restartable && status.flag("started") {
            continue;
        }
        if terminated.is_object() {
            return Some(format!("Init:{}", ended(terminated)));
        }
        if !matches!(waiting, "" | "PodInitializing") {
            return Some(format!("Init:{waiting}"));
        }
        return Some(format!("Init:{index}/{total}"));
    }
    None
}

fn container_status(pod: &Value, phase: String) -> String {
    let mut reason = phase;
    let mut any_running = false;
    for status in pod.list("status.containerStatuses").iter().rev() {
        let waiting = status.text("state.waiting.reason");
        let terminated = status.at("state.terminated");
        if !waiting.is_empty() {
            reason = waiting.to_owned();
        } else if terminated.is_object() {
            reason = ended(terminated);
        } else if status.flag("ready") && status.at("state.running").is_object() {
            any_running = true;
        }
    }
    if reason == "Completed" && any_running {
        let ready = pod
            .list("status.conditions")
            .iter()
            .any(|one| one.text("type") == "Ready" && one.text("status") == "True");
        reason = if ready { "Running" } else { "NotReady" }.to_owned();
    }
    reason
}

fn ended(terminated: &Value) -> String {
    match (terminated.text("reason"), terminated.int("signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", terminated.int("exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn restarts(pod: &Value, now: Timestamp) -> String {
    let statuses = pod.list("status.containerStatuses");
    let count: i64 = statuses
        .iter()
        .map(|status| status.int("restartCount").unwrap_or(0))
        .sum();
    let last = statuses
        .iter()
        .map(|status| status.text("lastState.terminated.finishedAt"))
        .max()
        .unwrap_or_default();
    if count == 0 || last.is_empty() {
        count.to_string()
    } else {
        format!("{count} ({} ago)", since(last, now))
    }
}

fn readiness_gates(pod: &Value) -> Value {
    let gates = pod.list("spec.readinessGates");
    let holds = |kind: &str| {
        pod.list("status.conditions")
            .iter()
            .any(|one| one.text("type") == kind && one.text("status") == "True")
    };
    let met = gates
        .iter()
        .filter(|gate| holds(gate.text("conditionType")))
        .count();
    or_none(if gates.is_empty() {
        String::new()
    } else {
        format!("{met}/{}", gates.len())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_pod(pod: Value, expected: &str) {
        assert_eq!(pod_status(&pod), expected);
    }

    #[test]
    fn the_status_of_a_pod_is_its_most_telling_reason() {
        let waiting = |reason: &str| json!({ "state": { "waiting": { "reason": reason } } });
        check_pod(json!({ "status": { "phase": "Pending" } }), "Pending");
        check_pod(
            json!({ "status": { "phase": "Pending", "containerStatuses": [waiting("ContainerCreating")] } }),
            "ContainerCreating",
        );
        check_pod(
            json!({ "status": { "phase": "Running", "containerStatuses": [waiting("CrashLoopBackOff")] } }),
            "CrashLoopBackOff",
        );
        check_pod(
            json!({
                "spec": { "initContainers": [{}, {}] },
                "status": { "phase": "Pending", "initContainerStatuses": [{ "state": { "running": {} } }] },
            }),
            "Init:0/2",
        );
        check_pod(
            json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" }, "status": { "phase": "Running" } }),
            "Terminating",
        );
        check_pod(
            json!({ "status": { "phase": "Succeeded", "containerStatuses": [
                { "state": { "terminated": { "reason": "Completed", "exitCode": 0 } } },
            ] } }),
            "Completed",
        );
    }
}

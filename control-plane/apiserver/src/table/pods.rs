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
    vec![
        object::name(object).into(),
        ready(object).into(),
        pod_status(object).into(),
        restarts(object, now).into(),
        age(object, now),
        or_none(pod_ip(object)),
        or_none(object.text("spec.nodeName")),
        or_none(object.text("status.nominatedNodeName")),
        readiness_gates(object),
    ]
}

/// Ready containers of all that run for good: the main ones and the sidecars.
fn ready(pod: &Value) -> String {
    let sidecars = pod
        .list("spec.initContainers")
        .iter()
        .filter(|one| is_sidecar(one))
        .count();
    let statuses = pod.list("status.containerStatuses").iter();
    let ready = statuses
        .chain(sidecar_statuses(pod))
        .filter(|status| status.flag("ready"));
    format!(
        "{}/{}",
        ready.count(),
        pod.list("spec.containers").len() + sidecars
    )
}

fn is_sidecar(container: &Value) -> bool {
    container.text("restartPolicy") == "Always"
}

fn sidecar_statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    let is_of_sidecar = |status: &&Value| {
        let mut containers = pod.list("spec.initContainers").iter();
        containers.any(|one| is_sidecar(one) && one.text("name") == status.text("name"))
    };
    pod.list("status.initContainerStatuses")
        .iter()
        .filter(is_of_sidecar)
}

fn is_initialized(pod: &Value) -> bool {
    pod.list("status.conditions")
        .iter()
        .any(|one| one.text("type") == "Initialized" && one.text("status") == "True")
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
    if let Some(initializing) = init_status(pod) {
        reason = initializing;
        // A sidecar that is down does not take the pod back to its beginning.
        if is_initialized(pod) {
            reason = container_status(pod, reason);
        }
    } else {
        reason = container_status(pod, reason);
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
        let restartable = pod.list("spec.initContainers").get(index).is_some_and(is_sidecar);
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
    let all: Vec<&Value> = if init_status(pod).is_some() && !is_initialized(pod) {
        pod.list("status.initContainerStatuses").iter().collect()
    } else {
        let main = pod.list("status.containerStatuses").iter();
        sidecar_statuses(pod).chain(main).collect()
    };
    let statuses = all.iter();
    let count: i64 = statuses
        .clone()
        .map(|status| status.int("restartCount").unwrap_or(0))
        .sum();
    let last = statuses
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
    fn sidecars_count_among_the_containers_of_a_pod() {
        let now = Timestamp::UNIX_EPOCH;
        let cells = |init: Value, initialized: &str, main: Value| {
            let pod = json!({
                "spec": { "initContainers": [{ "name": "s", "restartPolicy": "Always" }, { "name": "i" }],
                          "containers": [{ "name": "c" }] },
                "status": { "phase": "Running", "initContainerStatuses": init, "containerStatuses": [main],
                            "conditions": [{ "type": "Initialized", "status": initialized }] },
            });
            let cells = super::pod(&pod, now);
            let text = |index: usize| {
                cells
                    .get(index)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            [text(1), text(2), text(3)]
        };
        let running = |name: &str, restarts: i64| {
            json!({ "name": name, "started": true, "ready": true, "restartCount": restarts,
                    "state": { "running": {} } })
        };
        let ended = |name: &str, code: i64, restarts: i64| {
            json!({ "name": name, "restartCount": restarts,
                    "state": { "terminated": { "exitCode": code, "reason": "Error" } } })
        };
        let waiting = json!({ "name": "c", "state": { "waiting": { "reason": "PodInitializing" } } });
        for (init, initialized, main, expected) in [
            (
                json!([running("s", 1), ended("i", 1, 3)]),
                "False",
                waiting,
                ["1/2", "Init:Error", "4"],
            ),
            (
                json!([running("s", 1), ended("i", 0, 3)]),
                "True",
                running("c", 2),
                ["2/2", "Running", "3"],
            ),
            (
                json!([ended("s", 1, 1), ended("i", 0, 0)]),
                "True",
                running("c", 0),
                ["1/2", "Init:Error", "1"],
            ),
        ] {
            assert_eq!(cells(init, initialized, main), expected.map(str::to_owned));
        }
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

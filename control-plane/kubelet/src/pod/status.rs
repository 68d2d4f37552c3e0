//! The pod's status from what was observed: a pure function, called after every change.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::decide::{RestartPolicy, Role, restarts};

/// What is told of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedContainer {
    /// Its name.
    pub name: String,
    /// What it is in the pod.
    pub role: Role,
    /// Image reference and id.
    pub image: String,
    /// Id of the image; empty before it is known.
    pub image_id: String,
    /// Container id, `causeway://…`.
    pub container_id: Option<String>,
    /// Where it is.
    pub state: ObservedState,
    /// How the one before it ended.
    pub last: Option<ContainerStateTerminated>,
    /// How many there were before this one.
    pub restart_count: u32,
    /// It runs, and its startup probe has succeeded or there is none.
    pub started: bool,
    /// It runs, and its readiness probe has succeeded or there is none; an init container: it has ended well.
    pub ready: bool,
}

/// Where a container is.
#[derive(Clone, Debug, PartialEq)]
pub enum ObservedState {
    /// Waiting, with reason and message.
    Waiting(String, Option<String>),
    /// Running since.
    Running(Timestamp),
    /// Ended.
    Terminated(ContainerStateTerminated),
}

/// What is told of a pod.
#[derive(Clone, Debug, PartialEq)]
pub struct ObservedPod {
    /// Its init containers, then its main ones, in the order of the specification.
    pub containers: Vec<ObservedContainer>,
    /// Its sandbox is there.
    pub sandbox: bool,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
    /// The node's addresses.
    pub host_ips: Vec<IpAddr>,
    /// When this kubelet took it.
    pub start_time: Timestamp,
    /// It has been ended, whatever its containers did.
    pub end: Option<End>,
}

/// Why a pod was ended, whatever its containers did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// In a word: `status.reason`.
    pub reason: String,
    /// In a sentence.
    pub message: String,
}

impl End {
    /// What an earlier kubelet told.
    pub fn told(status: &PodStatus) -> Option<Self> {
        let failed = status.phase.as_deref() == Some("Failed");
        let reason = status.reason.clone().filter(|_| failed)?;
        Some(Self {
            reason,
            message: status.message.clone().unwrap_or_default(),
        })
    }
}

impl ObservedPod {
    fn of_role(&self, wanted: impl Fn(Role) -> bool) -> impl Iterator<Item = &ObservedContainer> {
        self.containers
            .iter()
            .filter(move |container| wanted(container.role))
    }

    /// A main container has been started once (`HasAnyRegularContainerStarted`).
    fn has_run(&self) -> bool {
        self.of_role(|role| role == Role::Main)
            .any(|container| container.state.is_past_start() || container.last.is_some())
    }
}

impl ObservedState {
    fn is_past_start(&self) -> bool {
        !matches!(self, Self::Waiting(..))
    }
}

/// The status. Times of conditions that did not change are kept from `previous`.
pub fn pod_status(pod: &Pod, observed: &ObservedPod, previous: &PodStatus, now: Timestamp) -> PodStatus {
    let phase = phase(pod, observed);
    let conditions = conditions(pod, observed, &phase)
        .into_iter()
        .map(|condition| keep_time(condition, previous, now))
        .collect();
    let ips: Vec<String> = observed.ips.iter().map(IpAddr::to_string).collect();
    let host_ips = observed.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() });
    let host_ips: Vec<HostIP> = host_ips.collect();
    let main = observed.of_role(|role| role == Role::Main);
    let end = observed.end.clone();
    let (reason, message) = end.map(|end| (end.reason, end.message)).unzip();
    let init: Vec<ContainerStatus> = observed
        .of_role(|role| role != Role::Main)
        .map(container_status)
        .collect();
    PodStatus {
        phase: Some(phase),
        conditions: Some(conditions),
        init_container_statuses: (!init.is_empty()).then_some(init),
        container_statuses: Some(main.map(container_status).collect()),
        host_ip: host_ips.first().map(|first| first.ip.clone()),
        host_ips: Some(host_ips),
        pod_ip: ips.first().cloned(),
        pod_ips: (!ips.is_empty()).then(|| ips.into_iter().map(|ip| PodIP { ip }).collect()),
        start_time: Some(Time(observed.start_time)),
        observed_generation: pod.metadata.generation,
        reason,
        message,
        qos_class: previous.qos_class.clone(),
        ..PodStatus::default()
    }
}

/// Whether the API calls the pod ready where it was told unready, or the other way round, although it knows the
/// containers as they were told: that is no earlier state but the node controller's word while this node was silent.
pub fn is_overruled(told: &PodStatus, stored: &PodStatus) -> bool {
    let containers = |status: &PodStatus| -> Vec<(String, bool, Option<String>)> {
        let statuses = status.container_statuses.iter().flatten();
        statuses
            .map(|one| (one.name.clone(), one.ready, one.container_id.clone()))
            .collect()
    };
    let ready = |status: &PodStatus| {
        let mut conditions = status.conditions.iter().flatten();
        conditions
            .find(|condition| condition.type_ == "Ready")
            .map(|condition| condition.status.clone())
    };
    containers(told) == containers(stored) && ready(told) != ready(stored)
}

/// The restart policy of a pod; `Always` where it says nothing.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
        Some("Never") => RestartPolicy::Never,
        Some("OnFailure") => RestartPolicy::OnFailure,
        _ => RestartPolicy::Always,
    }
}

/// `getPhase` of `pkg/kubelet`: Pending until the init containers are through and every main container has started
/// once, then Running until all main ones have ended for good and no sidecar runs any more.
fn phase(pod: &Pod, observed: &ObservedPod) -> String {
    let policy = restart_policy(pod);
    let code = |container: &ObservedContainer| match &container.state {
        ObservedState::Terminated(end) => Some(end.exit_code),
        ObservedState::Waiting(..) => container.last.as_ref().map(|end| end.exit_code),
        ObservedState::Running(_) => None,
    };
    let is_running = |c: &ObservedContainer| matches!(c.state, ObservedState::Running(_));
    let never_ran = |c: &ObservedContainer| !is_running(c) && code(c).is_none();
    let ended_for_good = |c: &ObservedContainer| matches!(&c.state, ObservedState::Terminated(end) if !restarts(policy, end.exit_code));
    let deleted = pod.metadata.deletion_timestamp.is_some();
    let is_terminated = |c: &ObservedContainer| matches!(c.state, ObservedState::Terminated(_));
    let main: Vec<&ObservedContainer> = observed.of_role(|role| role == Role::Main).collect();
    let sidecar_runs = observed.of_role(|role| role == Role::Sidecar).any(is_running);
    let has_failed = |c: &ObservedContainer| code(c).is_some_and(|code| code != 0);
    let init_failed = policy == RestartPolicy::Never
        && !observed.has_run()
        && observed.of_role(|role| role == Role::Init).any(has_failed);
    let pending = main.is_empty() || main.iter().any(|container| never_ran(container));
    let ended = main.iter().all(|container| ended_for_good(container))
        || (deleted && main.iter().all(|container| is_terminated(container)));
    let is_over = observed.end.is_some() && !observed.containers.iter().any(is_running);
    let phase = if init_failed || is_over {
        "Failed"
    } else if pending || (!observed.has_run() && !uninitialized(observed).is_empty()) {
        "Pending"
    } else if !ended || sidecar_runs {
        "Running"
    } else if main.iter().all(|container| code(container) == Some(0)) {
        "Succeeded"
    } else {
        "Failed"
    };
    phase.to_owned()
}

/// The init containers that are not through.
fn uninitialized(observed: &ObservedPod) -> Vec<&str> {
    let is_through = |container: &&ObservedContainer| match container.role {
        Role::Init => container.ready,
        Role::Sidecar => container.started,
        Role::Main => true,
    };
    let held = observed
        .containers
        .iter()
        .filter(|container| !is_through(container));
    held.map(|container| container.name.as_str()).collect()
}

/// What the condition `Initialized` says (`GeneratePodInitializedCondition`): the reason, the message, whether it holds.
fn initialized(observed: &ObservedPod, phase: &str) -> (Option<(String, Option<String>)>, bool) {
    let held = uninitialized(observed);
    if phase == "Succeeded" {
        let has_init = observed.of_role(|role| role != Role::Main).next().is_some();
        return (has_init.then(|| ("PodCompleted".to_owned(), None)), true);
    }
    if held.is_empty() || observed.has_run() {
        return (None, true);
    }
    let message = format!("containers with incomplete status: [{}]", held.join(" "));
    (
        Some(("ContainersNotInitialized".to_owned(), Some(message))),
        false,
    )
}

fn conditions(pod: &Pod, observed: &ObservedPod, phase: &str) -> Vec<PodCondition> {
    let unready: Vec<&str> = observed
        .of_role(|role| role != Role::Init)
        .filter(|c| !c.ready)
        .map(|c| c.name.as_str())
        .collect();
    let not_ready = match phase {
        "Succeeded" => Some(("PodCompleted".to_owned(), None)),
        "Failed" => Some(("PodFailed".to_owned(), None)),
        _ if unready.is_empty() => None,
        _ => {
            let message = format!("containers with unready status: [{}]", unready.join(" "));
            Some(("ContainersNotReady".to_owned(), Some(message)))
        }
    };
    let gates = unmet_gates(pod);
    let ready = match &not_ready {
        None if !gates.is_empty() => {
            let message = format!("the readiness gates are not met: [{}]", gates.join(" "));
            Some(("ReadinessGatesNotReady".to_owned(), Some(message)))
        }
        other => other.clone(),
    };
    let (not_initialized, is_initialized) = initialized(observed, phase);
    let generation = pod.metadata.generation;
    let condition = |type_: &str, failure: Option<(String, Option<String>)>, holds: bool| {
        let (reason, message) = failure.unzip();
        PodCondition {
            type_: type_.to_owned(),
            status: if holds { "True" } else { "False" }.to_owned(),
            reason,
            message: message.flatten(),
            observed_generation: generation,
            ..PodCondition::default()
        }
    };
    vec![
        condition("PodReadyToStartContainers", None, observed.sandbox),
        condition("Initialized", not_initialized, is_initialized),
        condition("Ready", ready.clone(), ready.is_none()),
        condition("ContainersReady", not_ready.clone(), not_ready.is_none()),
    ]
}

fn unmet_gates(pod: &Pod) -> Vec<&str> {
    let gates = pod
        .spec
        .iter()
        .flat_map(|spec| spec.readiness_gates.iter().flatten());
    let met = |wanted: &str| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .any(|c| c.type_ == wanted && c.status == "True")
    };
    gates
        .map(|gate| gate.condition_type.as_str())
        .filter(|gate| !met(gate))
        .collect()
}

fn keep_time(mut condition: PodCondition, previous: &PodStatus, now: Timestamp) -> PodCondition {
    let before = previous
        .conditions
        .iter()
        .flatten()
        .find(|known| known.type_ == condition.type_);
    condition.last_transition_time = before
        .filter(|known| known.status == condition.status)
        .and_then(|known| known.last_transition_time.clone())
        .or_else(|| Some(whole_seconds(now)));
    condition
}

/// Times in the API have whole seconds; one with a fraction would look changed after each read.
pub fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

fn container_status(container: &ObservedContainer) -> ContainerStatus {
    let mut state = ContainerState::default();
    match &container.state {
        ObservedState::Waiting(reason, message) => {
            state.waiting = Some(ContainerStateWaiting {
                reason: Some(reason.clone()),
                message: message.clone(),
            });
        }
        ObservedState::Running(since) => {
            state.running = Some(ContainerStateRunning {
                started_at: Some(whole_seconds(*since)),
            });
        }
        ObservedState::Terminated(end) => state.terminated = Some(end.clone()),
    }
    ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone(),
        image_id: container.image_id.clone(),
        container_id: container.container_id.clone(),
        state: Some(state),
        last_state: Some(ContainerState {
            terminated: container.last.clone(),
            ..ContainerState::default()
        }),
        restart_count: i32::try_from(container.restart_count).unwrap_or(i32::MAX),
        started: Some(container.started),
        ready: container.ready,
        ..ContainerStatus::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(policy: &str) -> Pod {
        let value = json!({"metadata": {"name": "p"}, "spec": {"containers": [], "restartPolicy": policy}});
        serde_json::from_value(value).expect("a valid pod")
    }

    fn ended(code: i32) -> ContainerStateTerminated {
        ContainerStateTerminated {
            exit_code: code,
            ..ContainerStateTerminated::default()
        }
    }

    fn observed(containers: Vec<(ObservedState, Option<i32>)>) -> ObservedPod {
        let containers = containers
            .into_iter()
            .zip(["a", "b"])
            .map(|((state, last), name)| ObservedContainer {
                name: name.to_owned(),
                role: Role::Main,
                image: "i".to_owned(),
                image_id: String::new(),
                container_id: None,
                ready: matches!(state, ObservedState::Running(_)),
                started: true,
                state,
                last: last.map(ended),
                restart_count: 0,
            });
        ObservedPod {
            containers: containers.collect(),
            sandbox: true,
            ips: Vec::new(),
            host_ips: vec!["172.30.0.11".parse().expect("an address")],
            start_time: Timestamp::UNIX_EPOCH,
            end: None,
        }
    }

    #[test]
    fn a_pod_that_was_ended_has_failed_when_nothing_of_it_runs() {
        let end = End {
            reason: "DeadlineExceeded".to_owned(),
            message: "too long".to_owned(),
        };
        let told = |state| {
            let observed = ObservedPod {
                end: Some(end.clone()),
                ..observed(vec![(state, None)])
            };
            pod_status(
                &pod("Always"),
                &observed,
                &PodStatus::default(),
                Timestamp::UNIX_EPOCH,
            )
        };
        let running = told(ObservedState::Running(Timestamp::UNIX_EPOCH));
        assert_eq!(running.phase.as_deref(), Some("Running"));
        assert_eq!(End::told(&running), None);
        for state in [
            ObservedState::Terminated(ended(0)),
            ObservedState::Waiting(String::new(), None),
        ] {
            assert_eq!(End::told(&told(state)), Some(end.clone()));
        }
    }

    /// With an init container and a sidecar in these states before it.
    fn with_init(pod: ObservedPod, init: ObservedState, sidecar: ObservedState) -> ObservedPod {
        let mut containers = observed(vec![(init, None), (sidecar, None)]).containers;
        for (container, (name, role)) in containers
            .iter_mut()
            .zip([("init", Role::Init), ("sidecar", Role::Sidecar)])
        {
            let has_ended_well =
                matches!(&container.state, ObservedState::Terminated(end) if end.exit_code == 0);
            container.name = name.to_owned();
            container.role = role;
            container.started = matches!(container.state, ObservedState::Running(_));
            container.ready = if role == Role::Init {
                has_ended_well
            } else {
                container.started
            };
        }
        containers.extend(pod.containers);
        ObservedPod { containers, ..pod }
    }

    #[test]
    fn the_phase_follows_the_containers() {
        let waiting = || (ObservedState::Waiting("ContainerCreating".to_owned(), None), None);
        let crash_loop = || {
            (
                ObservedState::Waiting("CrashLoopBackOff".to_owned(), None),
                Some(1),
            )
        };
        let running = || (ObservedState::Running(Timestamp::UNIX_EPOCH), None);
        let exited = |code| (ObservedState::Terminated(ended(code)), None);
        for (policy, containers, expected) in [
            ("Always", vec![waiting()], "Pending"),
            ("Always", vec![running(), waiting()], "Pending"),
            ("Always", vec![running(), running()], "Running"),
            ("Always", vec![exited(0)], "Running"),
            ("Always", vec![crash_loop()], "Running"),
            ("OnFailure", vec![exited(0)], "Succeeded"),
            ("OnFailure", vec![exited(1)], "Running"),
            ("Never", vec![exited(1)], "Failed"),
            ("Never", vec![exited(0), exited(1)], "Failed"),
            ("Never", vec![exited(0), running()], "Running"),
        ] {
            assert_eq!(
                phase(&pod(policy), &observed(containers.clone())),
                expected,
                "{policy} {containers:?}"
            );
        }
    }

    #[test]
    fn init_containers_come_before_the_phase_of_the_main_ones() {
        let waiting = || ObservedState::Waiting("PodInitializing".to_owned(), None);
        let running = || ObservedState::Running(Timestamp::UNIX_EPOCH);
        let exited = |code| ObservedState::Terminated(ended(code));
        let incomplete = |names: &str| {
            Some((
                "ContainersNotInitialized".to_owned(),
                Some(format!("containers with incomplete status: [{names}]")),
            ))
        };
        for (policy, init, sidecar, main, expected, condition) in [
            (
                "Always",
                running(),
                waiting(),
                waiting(),
                "Pending",
                (incomplete("init sidecar"), false),
            ),
            (
                "Always",
                exited(1),
                waiting(),
                waiting(),
                "Pending",
                (incomplete("init sidecar"), false),
            ),
            (
                "Never",
                exited(1),
                waiting(),
                waiting(),
                "Failed",
                (incomplete("init sidecar"), false),
            ),
            (
                "Never",
                exited(0),
                waiting(),
                waiting(),
                "Pending",
                (incomplete("sidecar"), false),
            ),
            ("Never", exited(0), running(), waiting(), "Pending", (None, true)),
            ("Never", exited(0), running(), running(), "Running", (None, true)),
            ("Never", exited(0), running(), exited(0), "Running", (None, true)),
            ("Always", exited(0), waiting(), running(), "Running", (None, true)),
            (
                "Never",
                exited(0),
                exited(137),
                exited(0),
                "Succeeded",
                (Some(("PodCompleted".to_owned(), None)), true),
            ),
            ("Never", exited(0), exited(0), exited(1), "Failed", (None, true)),
        ] {
            let observed = with_init(observed(vec![(main, None)]), init, sidecar);
            let seen = phase(&pod(policy), &observed);
            assert_eq!(
                (seen.as_str(), initialized(&observed, &seen)),
                (expected, condition),
                "{policy} {observed:?}"
            );
        }
    }

    #[test]
    fn the_node_controllers_word_is_told_from_an_earlier_state() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let running = observed(vec![(ObservedState::Running(at(1)), None)]);
        let told = pod_status(&pod("Always"), &running, &PodStatus::default(), at(10));
        let mut overruled = told.clone();
        let mut conditions = overruled.conditions.iter_mut().flatten();
        let ready = conditions.find(|c| c.type_ == "Ready").expect("always there");
        ready.status = if ready.status == "True" { "False" } else { "True" }.to_owned();
        let mut unready = running;
        unready.containers[0].ready ^= true;
        let earlier = pod_status(&pod("Always"), &unready, &PodStatus::default(), at(5));
        for (stored, expected) in [
            (&told, false),
            (&overruled, true),
            (&earlier, false),
            (&PodStatus::default(), false),
        ] {
            assert_eq!(is_overruled(&told, stored), expected, "{stored:?}");
        }
    }

    #[test]
    fn a_condition_keeps_its_time_until_it_changes() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let running = observed(vec![(ObservedState::Running(at(1)), None)]);
        let first = pod_status(&pod("Always"), &running, &PodStatus::default(), at(10));
        assert_eq!(pod_status(&pod("Always"), &running, &first, at(20)), first);
        let mut unready = running;
        unready.containers[0].ready = false;
        let later = pod_status(&pod("Always"), &unready, &first, at(30));
        let ready = later
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == "Ready")
            .expect("always there");
        assert_eq!(ready.last_transition_time, Some(Time(at(30))));
        assert_eq!(
            ready.message.as_deref(),
            Some("containers with unready status: [a]")
        );
    }
}

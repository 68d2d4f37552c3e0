//! One container's place in its pod: the container of now, how the one before it ended, what holds back the next.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Definition, ContainerStateTerminated, ContainerStatus, LifecycleHandler, Pod,
};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::decide::{Backoff, Hold, Phase, RestartPolicy, Role, restarts};
use super::probe::{self, Check, ProbeKind, ProbeState, Timing};
use super::status::{ObservedContainer, ObservedState};
use super::worker::{Message, terminated};
use crate::events::{EventType, Recorder};
use crate::process::Signal;
use crate::runtime::{Container, Runtime};
use crate::shim::state::Exit;

/// A postStart hook may take as long as it wants; it ends with its container.
const UNLIMITED: Duration = Duration::from_secs(i32::MAX as u64);

/// But a server that says nothing for so long never will: without this the container would never be started.
const HTTP_HOOK_LIMIT: Duration = Duration::from_secs(600);

/// Exit code of a container that could not be started (`StartError`).
const START_ERROR_CODE: i32 = 128;

/// Why a container waits whose image could not be pulled more than once.
pub const BACKING_OFF: &str = "ImagePullBackOff";
/// Why a container waits that init containers have to make way for.
pub const INITIALIZING: &str = "PodInitializing";

/// A program needs a moment until it listens: a check before that would fail and cost a whole period. Kubernetes' own
/// first check comes at any time of its first period.
const FIRST_CHECK_DELAY: Duration = Duration::from_millis(100);

/// Why a container did not start, and how it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no image.
    Image {
        /// Why not.
        trouble: ImageTrouble,
        /// The same in a sentence.
        message: String,
    },
    /// Its image has to be pulled first.
    Unpulled,
    /// Its definition cannot be followed (`CreateContainerConfigError`).
    Config(String),
    /// The runtime refused it (`StartError`).
    Start(String),
}

/// Why there is no image (`pkg/kubelet/images/types.go`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageTrouble {
    /// What the pod says is no name of an image.
    BadName,
    /// It is not there, and `imagePullPolicy` is `Never`.
    NeverPulled,
    /// It had to be pulled, and could not be.
    NotPulled,
}

impl ImageTrouble {
    /// The reason that the API tells.
    pub fn reason(self) -> &'static str {
        match self {
            Self::BadName => "InvalidImageName",
            Self::NeverPulled => "ErrImageNeverPull",
            Self::NotPulled => "ErrImagePull",
        }
    }
}

/// The place of one container.
pub struct Slot {
    /// Its name.
    pub name: String,
    /// What it is in the pod.
    pub role: Role,
    /// The number of the next attempt.
    pub attempt: u32,
    /// The container of now, running or ended.
    pub current: Option<Current>,
    /// What holds back the next start.
    pub backoff: Backoff,
    /// Its image has been pulled for the next start.
    pub pulled: bool,
    pull: Option<AbortOnDropHandle<()>>,
    last: Option<ContainerStateTerminated>,
    waiting: Option<(String, Option<String>)>,
    known: Option<ContainerStatus>,
}

/// A container and what watches it.
pub struct Current {
    /// The container.
    pub container: Container,
    /// Where it is.
    pub phase: Phase,
    /// Its postStart hook has failed.
    pub hook_failed: bool,
    hook_runs: bool,
    image_id: String,
    end: Option<ContainerStateTerminated>,
    results: BTreeMap<ProbeKind, bool>,
    probed: Vec<ProbeKind>,
    started: Arc<watch::Sender<bool>>,
    tasks: Vec<JoinHandle<()>>,
}

/// What the tasks of a container are given.
#[derive(Clone)]
pub struct Surroundings {
    /// The pod's address, for questions over the network.
    pub ip: IpAddr,
    /// The pod.
    pub pod: Pod,
    /// The node's containers, for commands in this one.
    pub runtime: Runtime,
    /// For what fails.
    pub events: Recorder,
    /// The worker.
    pub outbox: mpsc::Sender<Message>,
}

/// A container's id in the API.
pub fn container_id(id: &str) -> String {
    format!("causeway://{id}")
}

impl Slot {
    /// A place of a pod that may have had containers before (`known` is its status in the API).
    pub fn new(name: &str, role: Role, known: Option<&ContainerStatus>) -> Self {
        let had_one = known.is_some_and(|status| status.container_id.is_some());
        let restarts = known
            .and_then(|status| u32::try_from(status.restart_count).ok())
            .unwrap_or(0);
        let last = |status: &ContainerStatus| {
            let now = status.state.as_ref().and_then(|state| state.terminated.clone());
            now.or_else(|| {
                status
                    .last_state
                    .as_ref()
                    .and_then(|state| state.terminated.clone())
            })
        };
        Self {
            name: name.to_owned(),
            role,
            attempt: restarts + u32::from(had_one),
            current: None,
            backoff: Backoff::default(),
            pulled: false,
            pull: None,
            last: known.and_then(last),
            waiting: None,
            known: known.cloned(),
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        match (&self.current, &self.last, &self.waiting) {
            (Some(current), ..) => current.phase,
            (None, Some(end), None) if self.attempt > 0 => Phase::Exited { code: end.exit_code },
            _ => Phase::Waiting,
        }
    }

    /// Whether it runs and has passed its startup probe, or has none.
    pub fn has_started(&self) -> bool {
        let current = self.current.as_ref();
        current.is_some_and(|current| matches!(current.phase, Phase::Running { .. }) && current.has_started())
    }

    /// What it waits for, or makes others wait for; `has_hook`: it has a postStart hook.
    pub fn hold(&self, has_hook: bool) -> Hold {
        let hooked = self.current.as_ref().is_some_and(|current| current.hook_runs);
        match (&self.pull, hooked && self.is_live()) {
            (Some(_), _) => Hold::Pull,
            (None, true) => Hold::Hook,
            (None, false) if has_hook => Hold::HookDue,
            (None, false) => Hold::None,
        }
    }

    /// A task pulls its image from now on.
    pub fn pull(&mut self, task: JoinHandle<()>) {
        self.pull = Some(AbortOnDropHandle::new(task));
    }

    /// The task has ended; its image is there, or it has to be tried again later.
    pub fn pull_ended(&mut self, pulled: bool) {
        self.pull = None;
        self.pulled = pulled;
    }

    /// What it did in a sandbox that is gone has to be done again; returns the container that did it.
    pub fn begin_again(&mut self) -> Option<Current> {
        let previous = self.current.take();
        if let Some(end) = previous.as_ref().and_then(|previous| previous.end.clone()) {
            self.last = Some(end);
        }
        self.waiting = Some((INITIALIZING.to_owned(), None));
        previous
    }

    /// Whether its image is to be pulled again later.
    pub fn is_backing_off_pull(&self) -> bool {
        let waiting = self.waiting.as_ref();
        waiting.is_some_and(|(reason, _)| reason == BACKING_OFF)
    }

    /// Whether a process of it runs.
    pub fn is_live(&self) -> bool {
        matches!(self.phase(), Phase::Running { .. } | Phase::Stopping { .. })
    }

    /// Whether the container of now has this id.
    pub fn is(&self, id: &str) -> bool {
        self.current
            .as_ref()
            .is_some_and(|current| current.container.request.id == id)
    }

    /// A new container has started; returns the one before it.
    pub fn replace(&mut self, container: Container) -> Option<Current> {
        self.attempt = container.request.attempt + 1;
        self.waiting = None;
        let image_id = container.request.image_id.clone();
        let previous = self.current.replace(Current::new(container, image_id));
        if let Some(end) = previous.as_ref().and_then(|previous| previous.end.clone()) {
            self.last = Some(end);
        }
        previous
    }

    /// The container of now has ended.
    pub fn ended(&mut self, exit: &Exit) {
        let Some(current) = &mut self.current else { return };
        let worked = exit
            .finished_at
            .duration_since(current.container.started.started_at);
        current.ended(exit);
        self.backoff
            .failed(exit.finished_at, Duration::try_from(worked).unwrap_or_default());
    }

    /// A start from `image` failed; returns the container before it, when it is not needed any more.
    pub fn start_failed(&mut self, trouble: Trouble, image: &str, now: Timestamp) -> Option<Current> {
        match trouble {
            Trouble::Image { trouble, message } => {
                let told = self.waiting.as_ref().map(|(reason, _)| reason.as_str());
                let pull_failed = ImageTrouble::NotPulled.reason();
                let is_backing_off = told.is_some_and(|told| told == pull_failed || told == BACKING_OFF);
                self.waiting = Some(if trouble == ImageTrouble::NotPulled && is_backing_off {
                    let text = format!("Back-off pulling image \"{image}\": ErrImagePull: {message}");
                    (BACKING_OFF.to_owned(), Some(text))
                } else {
                    (trouble.reason().to_owned(), Some(message))
                });
                self.backoff.failed_pull(now);
                None
            }
            Trouble::Unpulled => None,
            Trouble::Config(message) => {
                self.waiting = Some(("CreateContainerConfigError".to_owned(), Some(message)));
                self.backoff.failed_briefly(now);
                None
            }
            Trouble::Start(message) => {
                self.waiting = None;
                self.last = Some(ContainerStateTerminated {
                    exit_code: START_ERROR_CODE,
                    reason: Some("StartError".to_owned()),
                    message: Some(message),
                    finished_at: Some(super::status::whole_seconds(now)),
                    ..ContainerStateTerminated::default()
                });
                self.attempt += 1;
                self.backoff.failed(now, Duration::ZERO);
                self.current.take()
            }
        }
    }

    /// What is told of it; `pod` is the pod's full name for messages, `before` why it waits before its first start.
    pub fn observed(
        &self,
        image: String,
        policy: RestartPolicy,
        pod: &str,
        before: &str,
    ) -> ObservedContainer {
        let policy = self.role.restart_policy(policy);
        let current = self.current.as_ref();
        let state = match (current.and_then(|c| c.end.clone()), current, &self.waiting) {
            (_, _, Some((reason, message))) => ObservedState::Waiting(reason.clone(), message.clone()),
            (Some(end), ..) => self.ended_state(end, policy, pod),
            // Kubernetes tells of it when its hook is through.
            (None, Some(current), _) if current.hook_runs => ObservedState::Waiting(before.to_owned(), None),
            (None, Some(current), _) => ObservedState::Running(current.container.started.started_at),
            (None, None, None) => match self.last.clone().filter(|_| self.attempt > 0) {
                Some(end) => self.ended_state(end, policy, pod),
                None => ObservedState::Waiting(before.to_owned(), None),
            },
        };
        let is_running = matches!(state, ObservedState::Running(_));
        let is_ready = match (self.role, &state) {
            (Role::Init, ObservedState::Terminated(end)) => end.exit_code == 0,
            (Role::Init, _) => false,
            _ => is_running && current.is_some_and(Current::is_ready),
        };
        // While it waits for its next start, the last end is the one of the container of now.
        let last = match &state {
            ObservedState::Waiting(..) => current.and_then(|c| c.end.clone()).or_else(|| self.last.clone()),
            _ => self.last.clone().filter(|_| current.is_some()),
        };
        ObservedContainer {
            name: self.name.clone(),
            role: self.role,
            image,
            image_id: current.map(|c| c.image_id.clone()).unwrap_or_default(),
            container_id: current.map(|c| container_id(&c.container.request.id)),
            last,
            restart_count: self.attempt.saturating_sub(1),
            started: is_running && current.is_some_and(Current::has_started),
            ready: is_ready,
            state,
        }
    }

    /// Ended for good, or waiting for its back-off.
    fn ended_state(&self, end: ContainerStateTerminated, policy: RestartPolicy, pod: &str) -> ObservedState {
        let delay = self.backoff.delay();
        if delay.is_zero() || !restarts(policy, end.exit_code) {
            return ObservedState::Terminated(end);
        }
        let message = format!(
            "back-off {}s restarting failed container={} pod={pod}",
            delay.as_secs(),
            self.name
        );
        ObservedState::Waiting("CrashLoopBackOff".to_owned(), Some(message))
    }

    /// What the API knew of this container before this kubelet started, when it is the same one.
    pub fn known_results(&self) -> Option<(bool, bool)> {
        let (known, current) = (self.known.as_ref()?, self.current.as_ref()?);
        let same = known.container_id.as_deref() == Some(&container_id(&current.container.request.id));
        same.then(|| (known.started.unwrap_or(false), known.ready))
    }
}

impl Current {
    /// A container that runs.
    pub fn new(container: Container, image_id: String) -> Self {
        Self {
            container,
            phase: Phase::Running { unhealthy: false },
            hook_failed: false,
            hook_runs: false,
            image_id,
            end: None,
            results: BTreeMap::new(),
            probed: Vec::new(),
            started: Arc::new(watch::Sender::new(false)),
            tasks: Vec::new(),
        }
    }

    /// It has ended.
    pub fn ended(&mut self, exit: &Exit) {
        self.phase = Phase::Exited { code: exit.code };
        self.end = Some(terminated(&self.container, exit));
        self.stop_probes();
    }

    /// A probe reached its threshold.
    pub fn probed(&mut self, kind: ProbeKind, success: bool) {
        self.results.insert(kind, success);
        if kind == ProbeKind::Startup && success {
            self.started.send_replace(true);
        }
        if !success && kind != ProbeKind::Readiness && matches!(self.phase, Phase::Running { .. }) {
            self.phase = Phase::Running { unhealthy: true };
        }
    }

    fn has_started(&self) -> bool {
        !self.hook_runs && !self.probed.contains(&ProbeKind::Startup)
            || self.results.get(&ProbeKind::Startup) == Some(&true)
    }

    fn is_ready(&self) -> bool {
        let readiness = self.results.get(&ProbeKind::Readiness) == Some(&true);
        self.has_started() && (!self.probed.contains(&ProbeKind::Readiness) || readiness)
    }

    /// Takes over what was known of its probes before the kubelet was restarted, so that a restart of the kubelet does
    /// not take a healthy pod out of its Services.
    pub fn trust(&mut self, started: bool, ready: bool) {
        self.results.insert(ProbeKind::Startup, started);
        self.results.insert(ProbeKind::Readiness, ready);
        self.started.send_replace(started);
    }

    /// Waits for its end.
    pub fn watch(&self, around: &Surroundings) {
        let (container, ended) = (self.container.clone(), around.outbox.clone());
        // Not among the tasks that are stopped: it ends by itself, with the container.
        tokio::spawn(async move {
            let exit = container.ended().await;
            let _ = ended.send(Message::Ended(container.request.id, exit)).await;
        });
    }

    /// Runs its postStart hook, and its probes behind it. `hook` = it has just been started.
    pub fn begin(&mut self, definition: &Definition, hook: bool, around: &Surroundings) {
        let lifecycle = definition.lifecycle.as_ref().filter(|_| hook);
        let Some(hook) = lifecycle.and_then(|lifecycle| lifecycle.post_start.clone()) else {
            return self.probe(definition, around);
        };
        self.hook_runs = true;
        let (definition, around) = (definition.clone(), around.clone());
        let id = self.container.request.id.clone();
        self.tasks.push(tokio::spawn(async move {
            let outcome = run_hook(&hook, &definition, &id, UNLIMITED, &around).await;
            if let Err(text) = &outcome {
                tracing::debug!(container = definition.name, text, "postStart hook failed");
            }
            let _ = around
                .outbox
                .send(Message::PostStarted(id, outcome.is_ok()))
                .await;
        }));
    }

    /// The postStart hook is through. One that failed costs the container (`FailedPostStartHook`); its text may hold
    /// what is nobody's business and stays in the log.
    pub fn hook_ended(&mut self, success: bool, definition: &Definition, around: &Surroundings) {
        self.hook_runs = false;
        if success {
            return self.probe(definition, around);
        }
        let text = "PostStartHook failed".to_owned();
        around.warn(&definition.name, "FailedPostStartHook", text);
        if matches!(self.phase, Phase::Running { .. }) {
            self.hook_failed = true;
            self.phase = Phase::Running { unhealthy: true };
        }
    }

    fn probe(&mut self, definition: &Definition, around: &Surroundings) {
        for kind in [ProbeKind::Startup, ProbeKind::Readiness, ProbeKind::Liveness] {
            let Some(definition_of_probe) = kind.of(definition) else {
                continue;
            };
            self.probed.push(kind);
            let check = match Check::of(definition_of_probe, definition, around.ip) {
                Ok(check) => check,
                Err(text) => {
                    let text = format!("{} probe not run: {text}", kind.name());
                    around.warn(&definition.name, "ProbeError", text);
                    continue;
                }
            };
            let prober = Prober {
                kind,
                check,
                timing: Timing::of(definition_of_probe),
                container_id: self.container.request.id.clone(),
                container_name: definition.name.clone(),
                started_at: self.container.started.started_at,
                started: self.started.subscribe(),
                around: around.clone(),
            };
            self.tasks.push(tokio::spawn(prober.run()));
        }
        if !self.probed.contains(&ProbeKind::Startup) {
            self.started.send_replace(true);
        }
    }

    /// preStop hook, SIGTERM; SIGKILL is the worker's when the grace is over.
    pub fn stop(&mut self, definition: &Definition, grace: Duration, around: Surroundings) {
        self.phase = Phase::Stopping {
            kill_at: Some(Timestamp::now() + grace),
        };
        let hook = definition
            .lifecycle
            .as_ref()
            .and_then(|lifecycle| lifecycle.pre_stop.clone());
        let Some(hook) = hook.filter(|_| !grace.is_zero()) else {
            self.container.signal(Signal::TERM);
            return;
        };
        let (definition, id) = (definition.clone(), self.container.request.id.clone());
        self.tasks.push(tokio::spawn(async move {
            let run = run_hook(&hook, &definition, &id, grace, &around);
            let outcome = tokio::time::timeout(grace, run).await;
            if let Err(text) =
                outcome.unwrap_or_else(|_| Err("it took longer than the grace period".to_owned()))
            {
                let text = format!("PreStopHook failed: {text}");
                around.warn(&definition.name, "FailedPreStopHook", text);
            }
            let _ = around.outbox.send(Message::PreStopped(id)).await;
        }));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.phase = Phase::Stopping { kill_at: None };
        self.container.signal(Signal::KILL);
    }

    fn stop_probes(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        self.stop_probes();
    }
}

/// The task of one probe of one container.
struct Prober {
    kind: ProbeKind,
    check: Check,
    timing: Timing,
    container_id: String,
    container_name: String,
    started_at: Timestamp,
    started: watch::Receiver<bool>,
    around: Surroundings,
}

impl Surroundings {
    fn warn(&self, container: &str, reason: &'static str, text: String) {
        self.events
            .container(&self.pod, container, EventType::Warning, reason, text);
    }
}

impl Prober {
    async fn run(mut self) {
        let first = self.started_at + self.timing.initial_delay.max(FIRST_CHECK_DELAY);
        let wait = Duration::try_from(Timestamp::now().duration_until(first)).unwrap_or_default();
        tokio::time::sleep(wait).await;
        if self.kind != ProbeKind::Startup && self.started.wait_for(|started| *started).await.is_err() {
            return;
        }
        let mut state = ProbeState::new(self.timing);
        let mut told = None;
        let mut ticks = tokio::time::interval(self.timing.period);
        loop {
            ticks.tick().await;
            let (timeout, runtime) = (self.timing.timeout, &self.around.runtime);
            let outcome = self.check.run(timeout, runtime, &self.container_id).await;
            if let Err(text) = &outcome {
                let text = format!("{} probe failed: {text}", self.kind.name());
                self.around.warn(&self.container_name, "Unhealthy", text);
            }
            let result = state.record(outcome.is_ok());
            if result.is_some() && result != told {
                told = result;
                let success = outcome.is_ok();
                let message = Message::Probed(self.container_id.clone(), self.kind, success);
                let is_last =
                    self.kind == ProbeKind::Startup || (self.kind == ProbeKind::Liveness && !success);
                if self.around.outbox.send(message).await.is_err() || is_last {
                    return;
                }
            }
        }
    }
}

async fn run_hook(
    hook: &LifecycleHandler,
    definition: &Definition,
    container_id: &str,
    limit: Duration,
    around: &Surroundings,
) -> Result<(), String> {
    if let Some(sleep) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.max(0).unsigned_abs())).await;
        return Ok(());
    }
    if let Some(exec) = &hook.exec {
        let command = exec.command.as_deref().unwrap_or_default();
        return probe::run_inside(&around.runtime, container_id, command, limit).await;
    }
    let Some(http) = &hook.http_get else {
        return Err("it asks for nothing that this kubelet knows".to_owned());
    };
    let port = probe::resolve_port(&http.port, definition)?;
    let host = match http.host.as_deref() {
        None | Some("") => around.ip,
        Some(host) => host
            .parse()
            .map_err(|_| format!("host {host:?} is not an address"))?,
    };
    let address = SocketAddr::new(host, port);
    let path = format!(
        "/{}",
        http.path.as_deref().unwrap_or_default().trim_start_matches('/')
    );
    let limit = limit.min(HTTP_HOOK_LIMIT);
    let asked = async {
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        let answered = probe::get(stream, address.to_string(), &path, &[]).await;
        answered.map(drop).map_err(|error| error.to_string())
    };
    let silent = |_| format!("no answer within {} s", limit.as_secs());
    tokio::time::timeout(limit, asked).await.map_err(silent)?
}

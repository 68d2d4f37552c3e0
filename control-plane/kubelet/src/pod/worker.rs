//! One pod's worker: a task that owns everything that runs for the pod. It asks [`decide`] what to do, does it, tells
//! the result, and waits for the next message.

mod adopt;
mod ends;
mod prepare;
mod pulls;
mod shared_processes;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Definition, ContainerStateTerminated, Pod, PodStatus, Service,
};
use kube::api::Api;
use kube::runtime::reflector::Store;
use tokio::sync::{mpsc, watch};

use super::decide::{Action, Backoff, ContainerView, Hold, Phase, PodView, Role, decide, restarts};
use super::env::{self, ConfigError, EnvContext, Sources};
use super::etc_files;
use super::publish::{Publication, publish_all};
use super::slot::{BACKING_OFF, Current, INITIALIZING, Slot, Surroundings, Trouble};
use super::status::{End, ObservedPod, ObservedState, is_overruled, pod_status, restart_policy};
use super::volumes::{self, DiskLimit, Mounted};
use crate::board::{Board, ContainerLogs, Entry};
use crate::cgroup::Cgroup;
use crate::config::Config;
use crate::disk::{self, DiskError, OnPath};
use crate::events::{EventType, Recorder};
use crate::images::ImageStore;
use crate::logs::{LogOptions, LogReader};
use crate::pod::probe::ProbeKind;
use crate::process::Signal;
use crate::runtime::{Container, Runtime};
use crate::sandbox::Sandbox;
use crate::shim::state::{ContainerRequest, Exit};

/// Grace of a pod that was deleted by force: its object is gone, nobody waits for it.
const FORCED_GRACE: Duration = Duration::from_secs(2);
/// `terminationGracePeriodSeconds` where the pod says nothing.
const DEFAULT_GRACE: i64 = 30;
/// Grace of a pod that has filled the disk (`immediateEvictionGracePeriodSeconds`).
const EVICTION_GRACE: Duration = Duration::from_secs(1);
/// How often volumes with a limit are measured (`evictionMonitoringPeriod`).
const DISK_PERIOD: Duration = Duration::from_secs(10);
/// The API bounds no grace, but a time so far away that no calendar has it cannot be waited for.
const LONGEST_GRACE: Duration = Duration::from_secs(i32::MAX as u64);

/// What all workers of a node share.
pub struct NodeContext {
    /// Settings.
    pub config: Config,
    /// The API.
    pub client: kube::Client,
    /// Containers.
    pub runtime: Runtime,
    /// Images.
    pub images: ImageStore,
    /// Events.
    pub events: Recorder,
    /// All Services.
    pub services: Store<Service>,
    /// What the kubelet's own API tells.
    pub board: Board,
    /// The kubelet's own `oom_score_adj`.
    pub own_oom_score: i32,
    /// The kubelet's own capabilities, a bit for each number.
    pub own_capabilities: u64,
    /// Held by who pulls an image.
    pub pulls: tokio::sync::Mutex<()>,
}

/// What a worker is told.
#[derive(Debug)]
pub enum Message {
    /// The pod changed.
    Pod(Box<Pod>),
    /// The pod's object is gone.
    Gone,
    /// A container ended.
    Ended(String, Exit),
    /// A probe of a container reached its threshold, with the text of its last failure.
    Probed(String, ProbeKind, bool),
    /// A container's preStop hook is through.
    PreStopped(String),
    /// A container's postStart hook is through, well or not.
    PostStarted(String, bool),
    /// The image of the container of this name was pulled, or could not be; why not.
    Pulled(String, Result<(), String>),
    /// The volumes that may hold only so much were measured; the first that holds more.
    Measured(Option<DiskLimit>),
}

/// The worker.
pub struct Worker {
    pub(super) node: Arc<NodeContext>,
    pub(super) pod: Pod,
    gone: bool,
    /// It had ended before this kubelet knew it, and keeps the status that it has.
    refused: bool,
    end: Option<End>,
    /// When volumes are measured next; `None` = they are right now.
    disk_look_at: Option<Timestamp>,
    pub(super) sandbox: Option<Sandbox>,
    prepared: bool,
    /// A main container has been started in this sandbox.
    initialized: bool,
    /// When the pod began to end.
    ending_since: Option<Timestamp>,
    preparing: Backoff,
    pub(super) mounted: Mounted,
    slots: Vec<Slot>,
    /// Process 1 of the PID namespace that the pod's containers share.
    pub(super) pauser: Option<Container>,
    start_time: Timestamp,
    status: PodStatus,
    inbox: mpsc::Receiver<Message>,
    pub(super) outbox: mpsc::Sender<Message>,
    publication: watch::Sender<Publication>,
}

impl Worker {
    /// Starts the worker of a pod, with what an earlier kubelet left of it.
    pub fn spawn(
        node: Arc<NodeContext>,
        pod: Pod,
        adopted: Vec<Container>,
    ) -> (mpsc::Sender<Message>, tokio::task::JoinHandle<()>) {
        let (outbox, inbox) = mpsc::channel(64);
        let publication = watch::Sender::new(Publication::default());
        let api: Api<Pod> = Api::namespaced(
            node.client.clone(),
            pod.metadata.namespace.as_deref().unwrap_or("default"),
        );
        let name = pod.metadata.name.clone().unwrap_or_default();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let publisher = tokio::spawn(publish_all(api, name, uid, publication.subscribe()));
        let status = pod.status.clone().unwrap_or_default();
        let start_time = status
            .start_time
            .as_ref()
            .map_or_else(Timestamp::now, |time| time.0);
        let worker = Self {
            refused: false,
            end: End::told(&status),
            disk_look_at: Some(Timestamp::now() + DISK_PERIOD),
            pauser: None,
            node,
            gone: false,
            sandbox: None,
            prepared: false,
            initialized: false,
            ending_since: None,
            preparing: Backoff::default(),
            mounted: Mounted::default(),
            slots: Vec::new(),
            start_time,
            status,
            inbox,
            outbox: outbox.clone(),
            publication,
            pod,
        };
        let task = tokio::spawn(async move {
            worker.run(adopted).await;
            let _ = publisher.await;
        });
        (outbox, task)
    }

    async fn run(mut self, adopted: Vec<Container>) {
        self.adopt(adopted).await;
        self.check_sysctls();
        loop {
            self.check_deadline();
            let decision = decide(&self.view(), Timestamp::now());
            let acted = !decision.actions.is_empty();
            for action in decision.actions {
                if action == Action::Release {
                    self.release().await;
                    return;
                }
                self.perform(action).await;
                self.publish();
            }
            if acted {
                self.take_pending();
                continue;
            }
            self.publish();
            let limits = self.may_be_ended() && !self.mounted.limits.is_empty();
            let wake_at = [
                decision.wake_at,
                self.mounted.refresh_at,
                self.deadline().filter(|_| self.may_be_ended()),
                self.disk_look_at.filter(|_| limits),
            ];
            let wake_at = wake_at.into_iter().flatten().min();
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message),
                    // The kubelet ends; the containers stay.
                    None => return,
                },
                () = sleep_until(wake_at) => {
                    self.refresh_if_due().await;
                    self.look_at_disk();
                }
            }
        }
    }

    fn view(&self) -> PodView {
        let containers = self.slots.iter().map(|slot| ContainerView {
            name: slot.name.clone(),
            role: slot.role,
            phase: slot.phase(),
            started: slot.has_started(),
            hold: self.hold(slot),
            not_before: slot.backoff.not_before(),
        });
        PodView {
            restart_policy: restart_policy(&self.pod),
            deleting: self.is_deleting(),
            refused: self.refused,
            over: self.end.is_some(),
            sandbox: self.sandbox.is_some(),
            prepared: self.prepared,
            sandbox_not_before: self.preparing.not_before(),
            initialized: self.initialized,
            containers: containers.collect(),
        }
    }

    async fn perform(&mut self, action: Action) {
        tracing::debug!(pod = self.name(), ?action, "pod step");
        match action {
            Action::Prepare => self.prepare().await,
            Action::Start(name) => self.start(&name).await,
            Action::Stop(name) => self.stop(&name),
            Action::Kill(name) => self.kill(&name),
            Action::RemoveSandbox => self.remove_sandbox().await,
            Action::Release => {}
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => {
                self.pod = *pod;
                self.shorten_grace();
                if self
                    .pod
                    .status
                    .as_ref()
                    .is_some_and(|stored| is_overruled(&self.status, stored))
                {
                    self.publication
                        .send_modify(|publication| publication.overruled += 1);
                }
            }
            Message::Gone => {
                self.gone = true;
                self.publication
                    .send_modify(|publication| publication.gone = true);
                self.shorten_grace();
            }
            Message::Ended(id, exit) => self.container_ended(&id, &exit),
            Message::Probed(id, kind, success) => {
                if let Some(current) = self.current_by_id(&id) {
                    current.probed(kind, success);
                }
            }
            Message::PostStarted(id, success) => self.hook_ended(&id, success),
            Message::Pulled(name, outcome) => self.pull_ended(&name, outcome),
            Message::Measured(exceeded) => self.disk_measured(exceeded),
            Message::PreStopped(id) => {
                if let Some(current) = self.current_by_id(&id) {
                    current.container.signal(Signal::TERM);
                }
            }
        }
    }

    fn hold(&self, slot: &Slot) -> Hold {
        let definition = roles(&self.pod).find(|(definition, _)| definition.name == slot.name);
        let lifecycle = definition.and_then(|(definition, _)| definition.lifecycle.as_ref());
        slot.hold(lifecycle.is_some_and(|lifecycle| lifecycle.post_start.is_some()))
    }

    fn hook_ended(&mut self, id: &str, success: bool) {
        let name = self
            .current_by_id(id)
            .map(|current| current.container.request.container.clone());
        let Some(definition) = name.and_then(|name| self.definition(&name)) else {
            return;
        };
        let around = self.surroundings();
        if let Some(current) = self.current_by_id(id) {
            current.hook_ended(success, &definition, &around);
        }
    }

    fn take_pending(&mut self) {
        while let Ok(message) = self.inbox.try_recv() {
            self.take(message);
        }
    }

    fn current_by_id(&mut self, id: &str) -> Option<&mut Current> {
        let current = self.slots.iter_mut().filter_map(|slot| slot.current.as_mut());
        current
            .into_iter()
            .find(|current| current.container.request.id == id)
    }

    async fn start(&mut self, name: &str) {
        let Some(index) = self.slots.iter().position(|slot| slot.name == name) else {
            return;
        };
        let Some(definition) = self.definition(name) else {
            return;
        };
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let (attempt, pulled) = (slot.attempt, std::mem::take(&mut slot.pulled));
        let outcome = match self.share_processes().await {
            Ok(()) => self.start_container(&definition, attempt, pulled).await,
            Err(error) => Err(error),
        };
        if outcome.as_ref().err() == Some(&Trouble::Unpulled) {
            return self.begin_pull(index, &definition);
        }
        self.started(index, &definition, outcome);
    }

    /// What came of starting a container.
    fn started(&mut self, index: usize, definition: &Definition, outcome: Result<Container, Trouble>) {
        let name = definition.name.as_str();
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let started = outcome.is_ok();
        self.initialized |= started && slot.role == Role::Main;
        let previous = match outcome {
            Ok(container) => slot.replace(container),
            Err(trouble) => {
                let image = definition.image.as_deref().unwrap_or_default();
                let previous = slot.start_failed(trouble, image, Timestamp::now());
                if slot.is_backing_off_pull() {
                    let (events, pod) = (&self.node.events, &self.pod);
                    let text = format!("Back-off pulling image \"{image}\"");
                    events.container(pod, name, EventType::Normal, "BackOff", text);
                    let text = format!("Error: {BACKING_OFF}");
                    events.container(pod, name, EventType::Warning, "Failed", text);
                }
                previous
            }
        };
        if let Some(previous) = previous {
            self.node
                .runtime
                .forget(&previous.container.request)
                .unwrap_or_else(log_leftover);
        }
        if started {
            self.watch_container(index, true);
        }
    }

    /// `fresh` = it has just been started.
    fn watch_container(&mut self, index: usize, fresh: bool) {
        let Some(name) = self.slots.get(index).map(|slot| slot.name.clone()) else {
            return;
        };
        let Some(definition) = self.definition(&name) else {
            return;
        };
        let around = self.surroundings();
        if let Some(current) = self.slots.get_mut(index).and_then(|slot| slot.current.as_mut()) {
            current.watch(&around);
            current.begin(&definition, fresh, &around);
        }
    }

    fn surroundings(&self) -> Surroundings {
        Surroundings {
            ip: self.ips().first().copied().unwrap_or(self.node.config.node_ip),
            pod: self.pod.clone(),
            runtime: self.node.runtime.clone(),
            events: self.node.events.clone(),
            outbox: self.outbox.clone(),
        }
    }

    fn container_ended(&mut self, id: &str, exit: &Exit) {
        let slot = self.slots.iter_mut().find(|slot| slot.is(id));
        let Some(slot) = slot else { return };
        slot.ended(exit);
        let policy = slot.role.restart_policy(restart_policy(&self.pod));
        let (name, waits) = (slot.name.clone(), !slot.backoff.delay().is_zero());
        if waits && !self.is_deleting() && restarts(policy, exit.code) {
            let text = format!(
                "Back-off restarting failed container {name} in pod {}",
                self.full_name()
            );
            self.node
                .events
                .container(&self.pod, &name, EventType::Warning, "BackOff", text);
        }
    }

    /// `name_namespace(uid)`, as Kubernetes writes it in such messages.
    fn full_name(&self) -> String {
        let namespace = self.pod.metadata.namespace.as_deref().unwrap_or_default();
        format!("{}_{namespace}({})", self.name(), self.uid())
    }

    fn stop(&mut self, name: &str) {
        let deleting = self.is_deleting();
        let unhealthy =
            |slot: &Slot| slot.name == name && slot.phase() == (Phase::Running { unhealthy: true });
        let unhealthy = !deleting && self.slots.iter().any(unhealthy);
        let grace = if unhealthy {
            self.grace()
        } else {
            self.grace_left()
        };
        let Some(definition) = self.definition(name) else {
            return;
        };
        let around = self.surroundings();
        let current = self
            .slots
            .iter_mut()
            .find(|slot| slot.name == name)
            .and_then(|slot| slot.current.as_mut());
        let Some(current) = current else { return };
        let text = if current.hook_failed && unhealthy {
            "FailedPostStartHook".to_owned()
        } else if unhealthy {
            format!("Container {name} failed liveness probe, will be restarted")
        } else {
            format!("Stopping container {name}")
        };
        around
            .events
            .container(&around.pod, name, EventType::Normal, "Killing", text);
        current.stop(&definition, grace, around);
    }

    fn kill(&mut self, name: &str) {
        let current = self
            .slots
            .iter_mut()
            .find(|slot| slot.name == name)
            .and_then(|slot| slot.current.as_mut());
        if let Some(current) = current {
            current.kill();
        }
    }

    /// Nothing runs any more: the rest on disk goes, then the object.
    async fn release(&mut self) {
        for current in self.slots.iter_mut().filter_map(|slot| slot.current.take()) {
            let destroyed = self.node.runtime.destroy_aside(&current.container.request).await;
            destroyed.unwrap_or_else(log_leftover);
        }
        self.end_pauser().await;
        let config = &self.node.config;
        let uid = self.uid();
        remove_pod_files(config, &self.pod).unwrap_or_else(log_leftover);
        self.node.board.remove(&uid);
        if !self.gone {
            self.publication
                .send_modify(|publication| publication.released = true);
        }
    }

    fn publish(&mut self) {
        let has_init = self.slots.iter().any(|slot| slot.role != Role::Main);
        let before = if has_init {
            INITIALIZING
        } else {
            "ContainerCreating"
        };
        let (policy, full_name) = (restart_policy(&self.pod), self.full_name());
        let containers = self.slots.iter().map(|slot| {
            let image = self
                .definition(&slot.name)
                .and_then(|definition| definition.image);
            slot.observed(image.unwrap_or_default(), policy, &full_name, before)
        });
        let observed = ObservedPod {
            containers: containers.collect(),
            sandbox: self.sandbox.is_some(),
            ips: self.ips(),
            host_ips: self.node.config.node_ips(),
            start_time: self.start_time,
            end: self.end.clone(),
        };
        if self.refused {
            return;
        }
        let status = pod_status(&self.pod, &observed, &self.status, Timestamp::now());
        let mut pod = self.pod.clone();
        pod.status = Some(status.clone());
        let told = self.slots.iter().zip(&observed.containers);
        let containers = told.map(|(slot, observed)| {
            let logs = ContainerLogs {
                directory: self.log_dir().join(&slot.name),
                attempt: slot
                    .current
                    .as_ref()
                    .map(|current| current.container.request.attempt),
                id: slot
                    .current
                    .as_ref()
                    .map(|current| current.container.request.id.clone()),
                running: slot.is_live(),
                waiting: match &observed.state {
                    ObservedState::Waiting(reason, _) => reason.clone(),
                    _ => String::new(),
                },
            };
            (slot.name.clone(), logs)
        });
        self.node.board.post(
            &self.uid(),
            Entry {
                pod,
                containers: containers.collect(),
            },
        );
        self.status = status.clone();
        self.publication.send_if_modified(|publication| {
            let changed = publication.status.as_ref() != Some(&status);
            publication.status = Some(status);
            changed
        });
    }

    fn is_deleting(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    fn grace(&self) -> Duration {
        if self.gone {
            FORCED_GRACE
        } else if self.end.as_ref().is_some_and(|end| end.reason == ends::EVICTED) {
            EVICTION_GRACE
        } else {
            termination_grace(&self.pod)
        }
    }

    /// What is left of the grace since the pod began to end. A sidecar whose turn comes late gets the least that
    /// Kubernetes gives any container (`minimumGracePeriodInSeconds`), unless the whole grace is shorter.
    fn grace_left(&mut self) -> Duration {
        let (now, grace) = (Timestamp::now(), self.grace());
        let since = *self.ending_since.get_or_insert(now);
        let spent = Duration::try_from(now.duration_since(since)).unwrap_or_default();
        grace.saturating_sub(spent).max(FORCED_GRACE.min(grace))
    }

    /// A second deletion may allow less time than the first.
    fn shorten_grace(&mut self) {
        if !self.is_deleting() {
            return;
        }
        let latest = Timestamp::now() + self.grace();
        for current in self.slots.iter_mut().filter_map(|slot| slot.current.as_mut()) {
            if let Phase::Stopping { kill_at: Some(at) } = &mut current.phase {
                *at = (*at).min(latest);
            }
        }
    }

    pub(super) fn definition(&self, name: &str) -> Option<Definition> {
        roles(&self.pod)
            .map(|(definition, _)| definition)
            .find(|definition| definition.name == name)
            .cloned()
    }

    pub(super) fn env_context<'a>(
        &'a self,
        ips: &'a [IpAddr],
        services: &'a [Service],
        sources: &'a Sources,
    ) -> EnvContext<'a> {
        EnvContext {
            pod: &self.pod,
            pod_ips: ips,
            host_ips: self.node.config.node_ips(),
            services,
            sources,
            allocatable: crate::node::capacity(&self.node.config),
        }
    }

    pub(super) fn ips(&self) -> Vec<IpAddr> {
        self.sandbox
            .as_ref()
            .map(|sandbox| sandbox.addresses(&self.node.config))
            .unwrap_or_default()
    }

    pub(super) fn is_on_host_network(&self) -> bool {
        self.pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false)
    }

    pub(super) fn hostname(&self) -> String {
        if self.is_on_host_network() {
            self.node.config.node_name.clone()
        } else {
            etc_files::hostname(&self.pod)
        }
    }

    pub(super) fn etc_dir(&self) -> PathBuf {
        self.node.config.pod_dir(&self.uid()).join("etc")
    }

    pub(super) fn log_dir(&self) -> PathBuf {
        pod_log_dir(&self.node.config, &self.pod)
    }

    pub(super) fn uid(&self) -> String {
        self.pod.metadata.uid.clone().unwrap_or_default()
    }

    fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }
}

/// ConfigMaps and Secrets that a container's environment names.
pub(super) async fn sources(
    client: &kube::Client,
    namespace: &str,
    container: &Definition,
) -> Result<Sources, ConfigError> {
    let failed =
        |error: kube::Error| ConfigError(format!("failed to read what the environment names: {error}"));
    let (config_maps, secrets) = env::references(container);
    let mut sources = Sources::default();
    for name in config_maps {
        if let Some(object) = Api::namespaced(client.clone(), namespace)
            .get_opt(&name)
            .await
            .map_err(failed)?
        {
            sources.config_maps.insert(name, volumes::config_map_data(object));
        }
    }
    for name in secrets {
        if let Some(object) = Api::namespaced(client.clone(), namespace)
            .get_opt(&name)
            .await
            .map_err(failed)?
        {
            sources.secrets.insert(name, volumes::secret_data(object));
        }
    }
    Ok(sources)
}

/// The containers of a pod in the order in which they start, each with what it is.
fn roles(pod: &Pod) -> impl Iterator<Item = (&Definition, Role)> {
    let init = pod
        .spec
        .iter()
        .flat_map(|spec| spec.init_containers.iter().flatten());
    let init = init.map(|definition| match definition.restart_policy.as_deref() {
        Some("Always") => (definition, Role::Sidecar),
        _ => (definition, Role::Init),
    });
    let main = pod.spec.iter().flat_map(|spec| &spec.containers);
    init.chain(main.map(|definition| (definition, Role::Main)))
}

/// Removes what is on disk and in cgroups of a pod that does not run any more.
pub fn remove_pod_files(config: &Config, pod: &Pod) -> Result<(), DiskError> {
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let directory = config.pod_dir(uid);
    let volumes = volumes::remove_all(&directory.join("volumes"));
    let shared = crate::sandbox::remove_shared(&directory);
    let cgroup = Cgroup::at(&config.pods_cgroup().join(uid)).and_then(|cgroup| cgroup.remove());
    let logs = disk::remove_tree(&pod_log_dir(config, pod));
    volumes
        .and(shared)
        .and(cgroup)
        .and(logs)
        .and(disk::remove_tree(&directory))
}

fn pod_log_dir(config: &Config, pod: &Pod) -> PathBuf {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    config.pod_log_dir(
        &text(&pod.metadata.namespace),
        &text(&pod.metadata.name),
        &text(&pod.metadata.uid),
    )
}

pub(super) fn log_leftover(error: DiskError) {
    tracing::warn!(%error, "something of a pod is left");
}

async fn sleep_until(at: Option<Timestamp>) {
    match at {
        Some(at) => {
            let left = Timestamp::now().duration_until(at);
            tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
        }
        None => std::future::pending().await,
    }
}

/// Reads a container's termination message, at most 4096 bytes (`MaxContainerTerminationMessageLength`).
pub(super) fn termination_message(path: &std::path::Path) -> Option<String> {
    use std::io::Read as _;
    let file = fs::File::open(path).on("open", path).ok()?;
    let mut text = Vec::new();
    file.take(4096).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    (!text.is_empty()).then_some(text)
}

/// What stands for a termination message that a container did not write, where its pod asks for that
/// (`terminationMessagePolicy: FallbackToLogsOnError`): at most 80 lines and 2048 bytes
/// (`MaxContainerTerminationMessageLogLines`, `…LogLength`).
fn end_of_log(request: &ContainerRequest) -> Option<String> {
    if !request.falls_back_to_log {
        return None;
    }
    let options = LogOptions {
        tail_lines: Some(80),
        ..LogOptions::default()
    };
    let mut log = LogReader::open(&request.log, &options, Timestamp::now()).ok()?;
    let text = log.read_available().ok()?;
    let tail = text.get(text.len().saturating_sub(2048)..).unwrap_or_default();
    Some(String::from_utf8_lossy(tail).into_owned()).filter(|text| !text.is_empty())
}

/// The grace that a pod's deletion or its specification gives, at most [`LONGEST_GRACE`].
fn termination_grace(pod: &Pod) -> Duration {
    let of_spec = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = pod
        .metadata
        .deletion_grace_period_seconds
        .or(of_spec)
        .unwrap_or(DEFAULT_GRACE);
    Duration::from_secs(seconds.max(0).unsigned_abs()).min(LONGEST_GRACE)
}

/// A container's end as the API tells it.
pub(super) fn terminated(container: &Container, exit: &Exit) -> ContainerStateTerminated {
    let reason = match (exit.oom_killed, exit.code) {
        (true, _) => "OOMKilled",
        (false, 0) => "Completed",
        _ => "Error",
    };
    ContainerStateTerminated {
        container_id: Some(super::slot::container_id(&container.request.id)),
        exit_code: exit.code,
        signal: exit.signal,
        reason: Some(reason.to_owned()),
        message: termination_message(&container.request.termination_log)
            .or_else(|| end_of_log(&container.request).filter(|_| exit.code != 0)),
        started_at: Some(super::status::whole_seconds(container.started.started_at)),
        finished_at: Some(super::status::whole_seconds(exit.finished_at)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_grace_ends_at_a_time_that_the_calendar_has() {
        for (deletion, spec, expected_s) in [
            (json!(null), json!(null), 30),
            (json!(null), json!(5), 5),
            (json!(1), json!(5), 1),
            (json!(-1), json!(5), 0),
            (json!(null), json!(i64::MAX), 2_147_483_647),
            (json!(i64::MAX), json!(5), 2_147_483_647),
        ] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": { "deletionGracePeriodSeconds": deletion },
                "spec": { "containers": [], "terminationGracePeriodSeconds": spec },
            }))
            .expect("a valid pod");
            let grace = termination_grace(&pod);
            assert_eq!(grace, Duration::from_secs(expected_s), "{pod:?}");
            let ends_at = Timestamp::now().checked_add(grace);
            assert!(ends_at.is_ok(), "{ends_at:?}");
        }
    }
}

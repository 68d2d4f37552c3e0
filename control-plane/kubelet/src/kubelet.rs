//! Putting the parts together: one worker per pod of this node, fed by the watch; orphans removed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event, watcher};
use kube::runtime::{WatchStreamExt, reflector};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::Config;
use crate::disk::{self, DiskError};
use crate::events::Recorder;
use crate::images::ImageStore;
use crate::network_ready::watch_network;
use crate::node::NodeKeeper;
use crate::pod::worker::{Message, NodeContext, Worker, remove_pod_files};
use crate::process::Signal;
use crate::runtime::{Container, Runtime};
use crate::sandbox::Sandbox;
use crate::server::{self, ServerError};
use crate::streams::Streaming;

/// Why the kubelet cannot run.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// The state directory or the CNI directory.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The kubeconfig.
    #[error("kubeconfig {}: {reason}", path.display())]
    Kubeconfig {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Port 10250.
    #[error(transparent)]
    Server(#[from] ServerError),
}

/// Runs a node's pods until the shutdown; containers go on running after it.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), KubeletError> {
    // Whoever else in this process has installed one has installed the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = connect(&config).await?;
    run_with(config, client, shutdown).await
}

/// As [`run`], with a client that is there already instead of the configuration's kubeconfig.
pub async fn run_with(
    config: Config,
    client: kube::Client,
    shutdown: CancellationToken,
) -> Result<(), KubeletError> {
    for private in [
        &config.state_dir.join("pods"),
        &config.state_dir.join("containers"),
    ] {
        disk::make_private_dir(private)?;
    }
    let (events, event_writer) = Recorder::start(client.clone(), config.node_name.clone());
    let images = ImageStore::open(&config.state_dir.join("images"))?;
    let runtime = Runtime::open(&config.shim, &config.state_dir.join("containers"))?;
    let adopted = runtime.adopt()?;
    let board = Board::default();
    let (network_sender, network) = watch::channel(false);
    let services = watch_services(&client, &shutdown);
    let keeper = NodeKeeper {
        config: config.clone(),
        client: client.clone(),
        images: images.clone(),
        events: events.clone(),
        network,
    };
    let own_oom_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let stop = shutdown.child_token();
    let _stop_all = stop.clone().drop_guard();
    let streaming = Streaming {
        config: Arc::new(config.clone()),
        board: board.clone(),
        runtime: runtime.clone(),
        shutdown: stop.clone(),
    };
    let context = Arc::new(NodeContext {
        config: config.clone(),
        client: client.clone(),
        runtime,
        images,
        events,
        services,
        board,
        own_oom_score: own_oom_score.trim().parse().unwrap_or(0),
        own_capabilities: own_capabilities(),
        pulls: tokio::sync::Mutex::new(()),
    });
    let keeper = tokio::spawn(keeper.run(stop.clone()));
    let pods = tokio::spawn(Pods::new(context, adopted).run(stop.clone()));
    let network = watch_network(config.cni_conf_dir.clone(), network_sender, stop.clone());
    tokio::select! {
        outcome = network => outcome?,
        outcome = server::serve(&config, streaming) => outcome?,
        () = shutdown.cancelled() => {}
    }
    stop.cancel();
    let _ = tokio::join!(keeper, pods);
    event_writer.abort();
    Ok(())
}

/// `CapPrm` of proc_pid_status(5); all where it cannot be read.
fn own_capabilities() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapPrm:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(u64::MAX)
}

async fn connect(config: &Config) -> Result<kube::Client, KubeletError> {
    let failed = |reason: String| KubeletError::Kubeconfig {
        path: config.kubeconfig.clone(),
        reason,
    };
    let file = Kubeconfig::read_from(&config.kubeconfig).map_err(|error| failed(error.to_string()))?;
    let client = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| failed(error.to_string()))?;
    kube::Client::try_from(client).map_err(|error| failed(error.to_string()))
}

/// Services for the variables of containers.
fn watch_services(client: &kube::Client, shutdown: &CancellationToken) -> reflector::Store<Service> {
    let (store, writer) = reflector::store();
    let stream = watcher(Api::<Service>::all(client.clone()), watcher::Config::default()).default_backoff();
    let stream = reflector::reflector(writer, stream);
    let shutdown = shutdown.clone();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream.take_until(shutdown.cancelled_owned()));
        while let Some(event) = stream.next().await {
            if let Err(error) = event {
                tracing::warn!(%error, "watch of services failed, trying again");
            }
        }
    });
    store
}

struct Handle {
    inbox: mpsc::Sender<Message>,
    task: JoinHandle<()>,
    namespace: String,
    name: String,
}

/// All workers, and what an earlier kubelet left for pods that were not seen yet.
struct Pods {
    node: Arc<NodeContext>,
    workers: HashMap<String, Handle>,
    adopted: BTreeMap<String, Vec<Container>>,
    listed: BTreeSet<String>,
    orphans: Orphans,
}

/// What an earlier kubelet left of pods that are gone.
#[derive(PartialEq)]
enum Orphans {
    /// Who is gone is not known before the first list.
    Unknown,
    /// Some could not be removed yet.
    Left,
    Removed,
}

/// Pause before orphans that could not be removed are tried again.
const ORPHANS_RETRY: Duration = Duration::from_secs(1);

impl Pods {
    fn new(node: Arc<NodeContext>, adopted: Vec<Container>) -> Self {
        let mut by_pod: BTreeMap<String, Vec<Container>> = BTreeMap::new();
        for container in adopted {
            by_pod
                .entry(container.request.pod_uid.clone())
                .or_default()
                .push(container);
        }
        Self {
            node,
            workers: HashMap::new(),
            adopted: by_pod,
            listed: BTreeSet::new(),
            orphans: Orphans::Unknown,
        }
    }

    async fn run(mut self, shutdown: CancellationToken) {
        if self.node.services.wait_until_ready().await.is_err() {
            return;
        }
        let selector = format!("spec.nodeName={}", self.node.config.node_name);
        let api: Api<Pod> = Api::all(self.node.client.clone());
        let stream = watcher(api, watcher::Config::default().fields(&selector)).default_backoff();
        let mut stream = std::pin::pin!(stream);
        let mut retry = tokio::time::interval(ORPHANS_RETRY);
        loop {
            tokio::select! {
                event = next_or_shutdown(&mut stream, &shutdown) => match event {
                    Some(Ok(event)) => self.take(event).await,
                    Some(Err(error)) => tracing::warn!(%error, "watch of pods failed, trying again"),
                    None => break,
                },
                _ = retry.tick(), if self.orphans == Orphans::Left => {
                    self.remove_orphans().await;
                }
            }
        }
        // Dropping the inboxes ends the workers; their containers go on.
        for handle in self.workers.into_values() {
            drop(handle.inbox);
            handle.task.abort();
        }
    }

    async fn take(&mut self, event: Event<Pod>) {
        self.workers.retain(|_, handle| !handle.task.is_finished());
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(pod) => {
                self.listed.extend(pod.metadata.uid.clone());
                self.apply(pod).await;
            }
            Event::InitDone => self.check_unlisted().await,
            Event::Apply(pod) => self.apply(pod).await,
            Event::Delete(pod) => {
                if let Some(handle) = self.workers.get(pod.metadata.uid.as_deref().unwrap_or_default()) {
                    let _ = handle.inbox.send(Message::Gone).await;
                }
            }
        }
    }

    async fn apply(&mut self, pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else {
            return;
        };
        if let Some(handle) = self.workers.get(&uid) {
            let _ = handle.inbox.send(Message::Pod(Box::new(pod))).await;
            return;
        }
        let adopted = self.adopted.remove(&uid).unwrap_or_default();
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (namespace, name) = (text(&pod.metadata.namespace), text(&pod.metadata.name));
        let (inbox, task) = Worker::spawn(Arc::clone(&self.node), pod, adopted);
        self.workers.insert(
            uid,
            Handle {
                inbox,
                task,
                namespace,
                name,
            },
        );
    }

    /// A list may be short for reasons of the server: a pod that it lacks is asked for by its name before anything of
    /// it is ended.
    async fn check_unlisted(&mut self) {
        for (uid, handle) in &self.workers {
            if !self.listed.contains(uid) && self.is_gone(&handle.namespace, &handle.name, uid).await {
                let _ = handle.inbox.send(Message::Gone).await;
            }
        }
        if self.orphans != Orphans::Removed {
            self.remove_orphans().await;
        }
    }

    /// Only a clear answer counts: the name is free, or belongs to another pod.
    async fn is_gone(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let api: Api<Pod> = Api::namespaced(self.node.client.clone(), namespace);
        match api.get_opt(name).await {
            Ok(found) => found.is_none_or(|pod| pod.metadata.uid.as_deref() != Some(uid)),
            Err(error) => {
                tracing::warn!(%error, name, "pod not checked, it stays");
                false
            }
        }
    }

    async fn remove_orphans(&mut self) {
        self.orphans = Orphans::Removed;
        let on_disk = fs::read_dir(self.node.config.state_dir.join("pods"))
            .into_iter()
            .flatten()
            .flatten();
        let on_disk = on_disk.filter_map(|entry| entry.file_name().into_string().ok());
        let uids: BTreeSet<String> = on_disk.chain(self.adopted.keys().cloned()).collect();
        for uid in uids.into_iter().filter(|uid| !self.workers.contains_key(uid)) {
            let containers = self.adopted.remove(&uid).unwrap_or_default();
            let removed = remove_orphan(&self.node, &uid, &containers, self).await;
            if let Err(error) = &removed {
                tracing::warn!(%error, uid, "remains of a pod not removed");
            }
            if !removed.unwrap_or_default() {
                self.orphans = Orphans::Left;
                self.adopted.insert(uid, containers);
            }
        }
    }
}

async fn remove_orphan(
    node: &NodeContext,
    uid: &str,
    containers: &[Container],
    pods: &Pods,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let sandbox = Sandbox::load(&node.config, uid)?;
    let named = containers
        .first()
        .map(|c| (c.request.pod_namespace.clone(), c.request.pod_name.clone()));
    let named = named.or_else(|| sandbox.as_ref().map(|s| (s.namespace.clone(), s.name.clone())));
    if let Some((namespace, name)) = &named
        && !pods.is_gone(namespace, name, uid).await
    {
        return Ok(false);
    }
    tracing::info!(
        uid,
        containers = containers.len(),
        "removing what is left of a pod"
    );
    for container in containers {
        container.signal(Signal::KILL);
        node.runtime.destroy_aside(&container.request).await?;
    }
    if let Some(sandbox) = &sandbox {
        sandbox.destroy(&node.config).await?;
    }
    let (namespace, name) = named.unwrap_or_default();
    let mut pod = Pod::default();
    pod.metadata.namespace = Some(namespace);
    pod.metadata.name = Some(name);
    pod.metadata.uid = Some(uid.to_owned());
    remove_pod_files(&node.config, &pod)?;
    Ok(true)
}

async fn next_or_shutdown<S>(
    stream: &mut S,
    shutdown: &CancellationToken,
) -> Option<watcher::Result<Event<Pod>>>
where
    S: Stream<Item = watcher::Result<Event<Pod>>> + Unpin,
{
    tokio::select! {
        () = shutdown.cancelled() => None,
        event = stream.try_next() => match event {
            Ok(event) => event.map(Ok),
            Err(error) => Some(Err(error)),
        },
    }
}

//! The Node object and its Lease: registration, heartbeats, conditions.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::events::{EventType, Recorder};
use crate::images::ImageStore;
use crate::pod::status::whole_seconds;

/// What `kubectl get nodes` shows as the version: the API level that the cluster speaks.
pub const KUBELET_VERSION: &str = "v1.33.0+causeway";
const RUNTIME_VERSION: &str = concat!("causeway://", env!("CARGO_PKG_VERSION"));
/// Kubernetes' own times: the lease every 10 s, valid for 40 s; the status when it changes, else every 5 min.
const LEASE_PERIOD: Duration = Duration::from_secs(10);
const LEASE_SECONDS: i32 = 40;
/// After a longer silence than this the node controller may have called the node unknown.
const SILENCE: Duration = Duration::from_secs(20);
const STATUS_PERIOD: Duration = Duration::from_secs(300);
const LEASE_NAMESPACE: &str = "kube-node-lease";
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// Keeps the Node object of this machine.
pub struct NodeKeeper {
    /// Settings.
    pub config: Config,
    /// The API.
    pub client: kube::Client,
    /// Images of this node.
    pub images: ImageStore,
    /// Events.
    pub events: Recorder,
    /// Whether the pod network is ready.
    pub network: watch::Receiver<bool>,
}

impl NodeKeeper {
    /// Registers the node and keeps it alive until the shutdown.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut retry = RETRY.0;
        let mut node = loop {
            match in_time(self.register()).await {
                Ok(node) => break node,
                Err(error) => tracing::warn!(error, "node not registered, trying again"),
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(retry) => retry = (retry * 2).min(RETRY.1),
            }
        };
        tracing::info!(node = self.config.node_name, "node registered");
        self.events
            .node(&node, EventType::Normal, "Starting", "Starting kubelet.");
        let mut leases = tokio::time::interval(LEASE_PERIOD);
        leases.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewed = Instant::now();
        let mut statuses = tokio::time::interval(STATUS_PERIOD);
        let mut status_due = true;
        loop {
            if status_due {
                match in_time(self.write_status(&node)).await {
                    Ok(written) => {
                        node = written;
                        status_due = false;
                    }
                    Err(error) => tracing::warn!(error, "node status not written, trying again"),
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                _ = leases.tick() => match in_time(self.renew_lease(&node)).await {
                    Ok(()) => {
                        let told = node.status.as_ref().and_then(|status| status.images.as_ref());
                        status_due |= renewed.elapsed() > SILENCE || told != Some(&self.image_list());
                        renewed = Instant::now();
                    }
                    Err(error) => tracing::warn!(error, "node lease not renewed"),
                },
                _ = statuses.tick() => status_due = true,
                changed = self.network.changed() => {
                    if changed.is_err() { return }
                    status_due = true;
                }
                () = tokio::time::sleep(RETRY.1), if status_due => {}
            }
        }
    }

    /// Creates the Node, or puts our labels on the one that is there: what others wrote on it stays.
    async fn register(&self) -> kube::Result<Node> {
        let api: Api<Node> = Api::all(self.client.clone());
        let name = &self.config.node_name;
        let labels = self.labels();
        let node = Node {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(labels.clone()),
                ..ObjectMeta::default()
            },
            status: Some(self.status(None)),
            ..Node::default()
        };
        match api.create(&PostParams::default(), &node).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let patch = Patch::Merge(json!({ "metadata": { "labels": labels } }));
                api.patch(name, &PatchParams::default(), &patch).await
            }
            outcome => outcome,
        }
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let own = [
            ("kubernetes.io/hostname", self.config.node_name.as_str()),
            ("kubernetes.io/arch", go_architecture()),
            ("kubernetes.io/os", "linux"),
        ];
        let own = own.map(|(key, value)| (key.to_owned(), value.to_owned()));
        own.into_iter().chain(self.config.node_labels.clone()).collect()
    }

    async fn write_status(&self, known: &Node) -> kube::Result<Node> {
        let api: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Strategic(status_patch(&self.status(known.status.as_ref())));
        api.patch_status(&self.config.node_name, &PatchParams::default(), &patch)
            .await
    }

    fn status(&self, known: Option<&NodeStatus>) -> NodeStatus {
        let capacity = capacity(&self.config);
        let own = self.config.node_ips().into_iter();
        let addresses = own
            .map(|ip| address("InternalIP", ip.to_string()))
            .chain([address("Hostname", self.config.node_name.clone())]);
        NodeStatus {
            addresses: Some(addresses.collect()),
            allocatable: Some(capacity.clone()),
            capacity: Some(capacity),
            conditions: Some(conditions(*self.network.borrow(), known)),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint {
                    port: i32::from(self.config.port),
                }),
            }),
            node_info: Some(system_info()),
            images: Some(self.image_list()),
            ..NodeStatus::default()
        }
    }

    fn image_list(&self) -> Vec<ContainerImage> {
        let images = self.images.list().unwrap_or_default().into_iter();
        images
            .map(|image| ContainerImage {
                names: Some(image.names),
                size_bytes: i64::try_from(image.size_bytes).ok(),
            })
            .collect()
    }

    async fn renew_lease(&self, node: &Node) -> kube::Result<()> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let name = &self.config.node_name;
        let spec = LeaseSpec {
            holder_identity: Some(name.clone()),
            lease_duration_seconds: Some(LEASE_SECONDS),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        };
        let patch = Patch::Merge(json!({ "spec": spec }));
        match api.patch(name, &PatchParams::default(), &patch).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let owner = OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Node".to_owned(),
                    name: name.clone(),
                    uid: node.metadata.uid.clone().unwrap_or_default(),
                    ..OwnerReference::default()
                };
                let metadata = ObjectMeta {
                    name: Some(name.clone()),
                    namespace: Some(LEASE_NAMESPACE.to_owned()),
                    owner_references: Some(vec![owner]),
                    ..ObjectMeta::default()
                };
                let lease = Lease {
                    metadata,
                    spec: Some(spec),
                };
                api.create(&PostParams::default(), &lease).await.map(drop)
            }
            outcome => outcome.map(drop),
        }
    }
}

/// An answer that does not come is a failure like any other: the next attempt must not wait behind it.
async fn in_time<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(LEASE_PERIOD, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {} s", LEASE_PERIOD.as_secs())),
    }
}

/// A strategic merge patch to this status. Addresses are merged by their types: of two InternalIPs, one for each
/// version of IP, the second one would be written over the first, so the list is replaced as a whole.
fn status_patch(status: &NodeStatus) -> Value {
    let mut patch = json!({ "status": status });
    if let Some(addresses) = patch["status"]["addresses"].as_array_mut() {
        addresses.push(json!({ "$patch": "replace" }));
    }
    patch
}

fn address(type_: &str, address: String) -> NodeAddress {
    NodeAddress {
        address,
        type_: type_.to_owned(),
    }
}

/// The conditions; the time of a transition is kept while the status stays.
fn conditions(network: bool, known: Option<&NodeStatus>) -> Vec<NodeCondition> {
    const NO_NETWORK: &str = "container runtime network not ready: NetworkReady=false \
                              reason:NetworkPluginNotReady message:Network plugin returns error: \
                              cni plugin not initialized";
    let ready = if network {
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status")
    } else {
        ("Ready", "False", "KubeletNotReady", NO_NETWORK)
    };
    let rows = [
        (
            "MemoryPressure",
            "False",
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
        (
            "DiskPressure",
            "False",
            "KubeletHasNoDiskPressure",
            "kubelet has no disk pressure",
        ),
        (
            "PIDPressure",
            "False",
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ),
        ready,
    ];
    let now = whole_seconds(Timestamp::now());
    rows.into_iter()
        .map(|(type_, status, reason, message)| {
            let before = known
                .and_then(|known| known.conditions.as_ref())
                .and_then(|list| list.iter().find(|c| c.type_ == type_ && c.status == status))
                .and_then(|condition| condition.last_transition_time.clone());
            NodeCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: Some(now.clone()),
                last_transition_time: Some(before.unwrap_or_else(|| now.clone())),
            }
        })
        .collect()
}

/// What the node has. Nodes that share a machine each report all of it: their cgroups do not divide it.
pub(crate) fn capacity(config: &Config) -> BTreeMap<String, Quantity> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .unwrap_or("0");
    let storage =
        nix::sys::statvfs::statvfs(&config.state_dir).map_or(0, |disk| disk.blocks() * disk.fragment_size());
    BTreeMap::from([
        ("cpu".to_owned(), Quantity(cpus.to_string())),
        ("memory".to_owned(), Quantity(format!("{memory}Ki"))),
        (
            "ephemeral-storage".to_owned(),
            Quantity(format!("{}Ki", storage / 1024)),
        ),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
    ])
}

fn system_info() -> NodeSystemInfo {
    let read = |path: &str| {
        fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let release = read("/etc/os-release");
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    NodeSystemInfo {
        architecture: go_architecture().to_owned(),
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: RUNTIME_VERSION.to_owned(),
        kernel_version: read("/proc/sys/kernel/osrelease"),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: read("/etc/machine-id"),
        operating_system: "linux".to_owned(),
        os_image: pretty.unwrap_or("Linux").trim_matches('"').to_owned(),
        system_uuid: read("/sys/class/dmi/id/product_uuid"),
        ..NodeSystemInfo::default()
    }
}

/// The machine's architecture in Go's words, which the labels of Kubernetes use.
pub(crate) fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_node_survive_a_merge_by_type() {
        let both = ["172.30.0.11", "fd00:172:30::b"].map(|ip| address("InternalIP", ip.to_owned()));
        let status = NodeStatus {
            addresses: Some(both.to_vec()),
            ..NodeStatus::default()
        };
        let wanted = json!([
            { "address": "172.30.0.11", "type": "InternalIP" },
            { "address": "fd00:172:30::b", "type": "InternalIP" },
            { "$patch": "replace" },
        ]);
        assert_eq!(status_patch(&status)["status"]["addresses"], wanted);
    }
}

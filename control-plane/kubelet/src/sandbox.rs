//! A pod's sandbox: its network namespace, attached by CNI, and the IPC namespace of its containers. Written to disk before each step, so that whatever a
//! killed kubelet left can be undone by the next one.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use netlink::{Kernel, LinkChange, Namespace, Netlink};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};

use crate::cni::{Attachment, Bandwidth, CniError, NetworkConfig, PortMapping};
use crate::config::Config;
use crate::disk::{self, DiskError, OnPath};
use crate::oci::SharedIpc;
use crate::pod::quantity;

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Files.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The network namespace.
    #[error("network namespace: {0}")]
    Namespace(#[from] netlink::Error),
    /// The network.
    #[error("failed to setup network for sandbox: {0}")]
    Network(#[from] CniError),
    /// An annotation of the pod.
    #[error("annotation {name}: {value:?} is not a quantity from 1k to 1P")]
    Bandwidth {
        /// Its name.
        name: &'static str,
        /// What it says.
        value: String,
    },
    /// A helper thread was lost.
    #[error("interrupted")]
    Interrupted,
}

/// A pod's sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sandbox {
    /// Its id, what CNI calls the container id.
    pub id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// Uid of the pod.
    pub uid: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// Name of the network namespace below `/run/netns`; `None` = the node's own (`hostNetwork`).
    pub netns: Option<String>,
    /// What CNI was told and answered.
    pub attachment: Option<Attachment>,
    /// Its containers share an IPC namespace and `/dev/shm`. Not in sandboxes of older kubelets.
    #[serde(default)]
    pub shares_ipc: bool,
}

impl Sandbox {
    /// Makes the sandbox of a pod. When that fails nothing is left.
    pub async fn create(config: &Config, pod: &Pod) -> Result<Self, SandboxError> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let host_network = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.host_network)
            .unwrap_or(false);
        let id = uuid::Uuid::new_v4();
        let mut sandbox = Self {
            id: id.simple().to_string(),
            namespace: text(&pod.metadata.namespace),
            name: text(&pod.metadata.name),
            uid: text(&pod.metadata.uid),
            created_at: Timestamp::now(),
            netns: (!host_network).then(|| format!("cni-{id}")),
            attachment: None,
            shares_ipc: true,
        };
        disk::make_dir(&config.pod_dir(&sandbox.uid))?;
        let directory = config.pod_dir(&sandbox.uid);
        let shared = tokio::task::spawn_blocking(move || make_shared(&directory)).await;
        shared.map_err(|_| SandboxError::Interrupted)??;
        if let Err(error) = sandbox.attach(config, pod).await {
            if let Err(undo) = sandbox.destroy(config).await {
                tracing::warn!(error = %undo, pod = sandbox.name, "failed sandbox not undone");
            }
            return Err(error);
        }
        Ok(sandbox)
    }

    async fn attach(&mut self, config: &Config, pod: &Pod) -> Result<(), SandboxError> {
        let Some(netns) = self.netns.clone() else {
            return self.save(config);
        };
        let network = NetworkConfig::first_in(&config.cni_conf_dir)?.ok_or(CniError::NotConfigured)?;
        let mut attachment = Attachment {
            config: network,
            container_id: self.id.clone(),
            netns: netns_path(&netns),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                self.namespace, self.name, self.id, self.uid
            ),
            ports: port_mappings(pod),
            bandwidth: bandwidth(pod)?,
            result: None,
        };
        self.attachment = Some(attachment.clone());
        self.save(config)?;
        tokio::task::spawn_blocking(move || make_namespace(&netns))
            .await
            .map_err(|_| SandboxError::Interrupted)??;
        attachment.add(&config.cni_bin_dirs).await?;
        self.attachment = Some(attachment);
        self.save(config)
    }

    /// The sandbox that an earlier kubelet made for a pod.
    pub fn load(config: &Config, uid: &str) -> Result<Option<Self>, DiskError> {
        disk::read_json(&Self::file(config, uid))
    }

    /// Whether its namespaces are still there: they are not after the machine was started anew.
    pub fn is_whole(&self, config: &Config) -> bool {
        if self.ipc(config).is_some_and(|ipc| !is_namespace(&ipc.namespace)) {
            return false;
        }
        let attached = self
            .attachment
            .as_ref()
            .is_some_and(|attachment| attachment.result.is_some());
        self.netns
            .as_ref()
            .is_none_or(|name| attached && Namespace::named(name).is_ok())
    }

    /// CNI DEL, then the namespace. Only after every container has ended. It may be called again after a failure.
    pub async fn destroy(&self, config: &Config) -> Result<(), SandboxError> {
        if let Some(attachment) = &self.attachment {
            attachment.del(&config.cni_bin_dirs).await?;
        }
        self.forget_namespace()?;
        remove_shared(&config.pod_dir(&self.uid))?;
        let file = Self::file(config, &self.uid);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Ok(Err(error).on("remove", &file)?),
            _ => Ok(()),
        }
    }

    /// Removes the network namespace, without CNI.
    pub fn forget_namespace(&self) -> Result<(), SandboxError> {
        match self.netns.as_deref().map(Namespace::delete) {
            Some(Err(error)) if !error.is_absent() => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Its addresses; those of the node for `hostNetwork`.
    pub fn addresses(&self, config: &Config) -> Vec<IpAddr> {
        match (&self.netns, &self.attachment) {
            (None, _) => config.node_ips(),
            (_, Some(attachment)) => attachment.addresses(),
            _ => Vec::new(),
        }
    }

    /// The network namespace for a container.
    pub fn netns_path(&self) -> Option<PathBuf> {
        self.netns.as_deref().map(netns_path)
    }

    /// What its containers share besides the network.
    pub fn ipc(&self, config: &Config) -> Option<SharedIpc> {
        let directory = config.pod_dir(&self.uid);
        self.shares_ipc.then(|| SharedIpc {
            namespace: directory.join(IPC),
            shm: directory.join(SHM),
        })
    }

    fn save(&self, config: &Config) -> Result<(), SandboxError> {
        Ok(disk::write_json(&Self::file(config, &self.uid), self)?)
    }

    fn file(config: &Config, uid: &str) -> PathBuf {
        config.pod_dir(uid).join("sandbox.json")
    }
}

/// Where a pod's IPC namespace and `/dev/shm` are kept, in its directory.
const IPC: &str = "ipc";
const SHM: &str = "shm";

/// A new IPC namespace, which a mount keeps, and memory for `/dev/shm` (64 MiB, as every runtime gives).
fn make_shared(directory: &Path) -> Result<(), DiskError> {
    let (ipc, shm) = (directory.join(IPC), directory.join(SHM));
    remove_shared(directory)?;
    fs::write(&ipc, b"").on("create", &ipc)?;
    let pin = ipc.clone();
    // On a thread of its own, which ends with its namespace unless a mount keeps that.
    let made = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWIPC)?;
        let own = Path::new("/proc/thread-self/ns/ipc");
        mount(Some(own), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>)
    });
    let made = made.join().unwrap_or(Err(nix::Error::EINTR));
    made.on("make an IPC namespace at", &ipc)?;
    disk::make_dir(&shm)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let options = Some("mode=1777,size=65536k");
    mount(Some("shm"), &shm, Some("tmpfs"), flags, options).on("mount memory at", &shm)
}

/// Lets go of what the containers of a pod shared; absence is success.
pub fn remove_shared(pod_dir: &Path) -> Result<(), DiskError> {
    let (ipc, shm) = (pod_dir.join(IPC), pod_dir.join(SHM));
    for place in [&ipc, &shm] {
        // EINVAL says that nothing is mounted there.
        let _ = umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
    }
    let removed = match fs::remove_file(&ipc) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).on("remove", &ipc),
        _ => Ok(()),
    };
    removed.and(disk::remove_tree(&shm))
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

fn netns_path(name: &str) -> PathBuf {
    Path::new(netlink::netns::PIN_DIRECTORY).join(name)
}

/// Makes the namespace with its loopback up, which the runtime owes its pods.
fn make_namespace(name: &str) -> Result<(), netlink::Error> {
    let namespace = Namespace::create(name)?;
    let mut kernel = Netlink::open_in(&namespace)?;
    if let Some(loopback) = kernel.link_named("lo")? {
        kernel.change_link(
            loopback.index,
            &LinkChange {
                up: Some(true),
                ..LinkChange::default()
            },
        )?;
    }
    Ok(())
}

/// What containerd gives (`toCNIBandWidth`), in bits.
const BURST: u64 = u32::MAX as u64;

/// The limits that the pod's annotations ask for, in bits in a second, within Kubernetes' bounds
/// (`k8s.io/kubernetes/pkg/util/bandwidth`, `ExtractPodBandwidthResources`).
fn bandwidth(pod: &Pod) -> Result<Option<Bandwidth>, SandboxError> {
    let rate = |name: &'static str| {
        let annotations = pod.metadata.annotations.as_ref();
        let Some(value) = annotations.and_then(|annotations| annotations.get(name)) else {
            return Ok(0);
        };
        let rate = quantity::whole(value).and_then(|rate| u64::try_from(rate).ok());
        let within = rate.filter(|rate| (1_000..=1_000_000_000_000_000).contains(rate));
        within.ok_or_else(|| SandboxError::Bandwidth {
            name,
            value: value.clone(),
        })
    };
    let burst = |rate| if rate == 0 { 0 } else { BURST };
    let ingress_rate = rate("kubernetes.io/ingress-bandwidth")?;
    let egress_rate = rate("kubernetes.io/egress-bandwidth")?;
    let bandwidth = Bandwidth {
        ingress_rate,
        ingress_burst: burst(ingress_rate),
        egress_rate,
        egress_burst: burst(egress_rate),
    };
    Ok(Some(bandwidth).filter(|bandwidth| *bandwidth != Bandwidth::default()))
}

fn port_mappings(pod: &Pod) -> Vec<PortMapping> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            Some(PortMapping {
                host_port: u16::try_from(port.host_port?).ok().filter(|port| *port != 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                host_ip: port.host_ip.clone().unwrap_or_default(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn annotations_ask_for_bandwidth_within_the_bounds_of_kubernetes() {
        let read = |annotations: serde_json::Value| {
            let pod = json!({"metadata": {"name": "p", "annotations": annotations}});
            bandwidth(&serde_json::from_value(pod).expect("a pod")).map_err(|error| error.to_string())
        };
        assert_eq!(read(json!(null)), Ok(None));
        for (text, rate) in [("20M", 20_000_000), ("1k", 1_000), ("1P", 1_000_000_000_000_000)] {
            let wanted = Bandwidth {
                egress_rate: rate,
                egress_burst: 4_294_967_295,
                ..Bandwidth::default()
            };
            assert_eq!(
                read(json!({"kubernetes.io/egress-bandwidth": text})),
                Ok(Some(wanted))
            );
        }
        for text in ["999", "1.1P", "fast", "-1M", ""] {
            let told = format!(
                "annotation kubernetes.io/ingress-bandwidth: {text:?} is not a quantity from 1k to 1P"
            );
            assert_eq!(read(json!({"kubernetes.io/ingress-bandwidth": text})), Err(told));
        }
    }
}

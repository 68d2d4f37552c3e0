//! The kubelet's settings.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Settings of one kubelet, as written in its YAML file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Name of the Node object.
    pub node_name: String,
    /// Credentials and address of the API server.
    pub kubeconfig: PathBuf,
    /// Everything that this kubelet keeps.
    pub state_dir: PathBuf,
    /// The node's address, `InternalIP`, and where port 10250 listens.
    pub node_ip: IpAddr,
    /// The node's address of the other version of IP. Default none.
    #[serde(default)]
    pub secondary_node_ip: Option<IpAddr>,
    /// Name servers of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    /// Domain of Services. Default `cluster.local`.
    #[serde(default = "cluster_domain")]
    pub cluster_domain: String,
    /// Where CNI configurations appear. Default `/etc/cni/net.d`.
    #[serde(default = "cni_conf_dir")]
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are. Default `/opt/cni/bin`.
    #[serde(default = "cni_bin_dirs")]
    pub cni_bin_dirs: Vec<PathBuf>,
    /// The node's cgroup v2 directory; pods go to `pods/` below it.
    pub cgroup: PathBuf,
    /// The program `causeway-shim`.
    pub shim: PathBuf,
    /// Certificate of port 10250, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key: PathBuf,
    /// The authority that signs those who may connect to port 10250, PEM.
    pub client_ca: PathBuf,
    /// Port of the kubelet's own API. Default 10250.
    #[serde(default = "port")]
    pub port: u16,
    /// Most pods on this node. Default 110.
    #[serde(default = "max_pods")]
    pub max_pods: u32,
    /// The resolver configuration that pods inherit. Default `/etc/resolv.conf`.
    #[serde(default = "resolv_conf")]
    pub resolv_conf: PathBuf,
    /// More labels of the Node object. Default none.
    #[serde(default)]
    pub node_labels: BTreeMap<String, String>,
}

impl Config {
    /// All addresses of the node: those of pods on the host's network.
    pub(crate) fn node_ips(&self) -> Vec<IpAddr> {
        [Some(self.node_ip), self.secondary_node_ip]
            .into_iter()
            .flatten()
            .collect()
    }

    /// cgroup v2 directory of all pods.
    pub(crate) fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.join("pods")
    }

    /// What is kept of a pod: sandbox, `/etc` files, volumes.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.state_dir.join("pods").join(uid)
    }

    /// Logs of a pod, laid out as `/var/log/pods` is.
    pub(crate) fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.state_dir
            .join("log/pods")
            .join(format!("{namespace}_{name}_{uid}"))
    }
}

fn cluster_domain() -> String {
    "cluster.local".to_owned()
}

fn cni_conf_dir() -> PathBuf {
    PathBuf::from("/etc/cni/net.d")
}

fn cni_bin_dirs() -> Vec<PathBuf> {
    vec![PathBuf::from("/opt/cni/bin")]
}

fn port() -> u16 {
    10250
}

fn max_pods() -> u32 {
    110
}

fn resolv_conf() -> PathBuf {
    PathBuf::from("/etc/resolv.conf")
}

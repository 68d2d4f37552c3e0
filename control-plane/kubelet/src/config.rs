//! The kubelet's settings.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

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
    /// What this node has for itself on a machine that it shares with others: a `hostPath` at or below a key is taken
    /// from below the value. Default none: the node is the machine.
    #[serde(default)]
    pub own_places: BTreeMap<PathBuf, PathBuf>,
}

impl Config {
    /// All addresses of the node: those of pods on the host's network.
    pub(crate) fn node_ips(&self) -> Vec<IpAddr> {
        [Some(self.node_ip), self.secondary_node_ip]
            .into_iter()
            .flatten()
            .collect()
    }

    /// Where a path of the node is on this machine. Of two keys that hold it the longer one counts.
    pub(crate) fn on_machine(&self, path: &Path) -> PathBuf {
        let own = self.own_places.iter().rev().find_map(|(place, there)| {
            let below = path.strip_prefix(place).ok()?;
            Some(there.join(below))
        });
        own.unwrap_or_else(|| path.to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_the_nodes_own_is_found_with_all_below_it() {
        let config = serde_json::json!({
            "nodeName": "n", "kubeconfig": "", "stateDir": "", "nodeIp": "192.0.2.1", "clusterDns": [], "cgroup": "",
            "shim": "", "cert": "", "key": "", "clientCa": "",
            "ownPlaces": {"/opt/cni": "/nodes/n/cni", "/opt/cni/bin": "/programs"},
        });
        let config: Config = serde_json::from_value(config).expect("a configuration");
        for (path, there) in [
            ("/opt/cni", "/nodes/n/cni"),
            ("/opt/cni/", "/nodes/n/cni"),
            ("/opt/cni/net.d/a", "/nodes/n/cni/net.d/a"),
            ("/opt/cni/bin", "/programs"),
            ("/opt/cni/bin/x", "/programs/x"),
            ("/opt/cni-other", "/opt/cni-other"),
            ("/opt", "/opt"),
        ] {
            assert_eq!(config.on_machine(Path::new(path)), PathBuf::from(there), "{path}");
        }
    }
}

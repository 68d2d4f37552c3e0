//! The agent's configuration file.
//!
//! YAML, nested, every key checked: an unknown one is an error, not a silent default. [`load`] reads it once into
//! typed values; [`Config::to_yaml`] echoes it with every default filled in (`causeway node config print`).

mod duration;
pub mod here;
mod live;
#[cfg(test)]
mod live_tests;
mod logging;
mod node;
mod proxy;
mod sections;
mod telemetry;
#[cfg(test)]
mod tests;
mod vpc_eni;
pub mod which;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use model::NodeName;
use serde::{Deserialize, Serialize};

pub use logging::{LogFormat, LogLevel, Logging};
pub use node::Node;
pub use proxy::{Conntrack, Datapath, DetectLocalMode, IptablesVariant, NodePortAddresses, Proxy};
pub use sections::{Cni, Dns, Etcd, Kubernetes, LeasesIn, Network, NetworkPolicies};
pub use telemetry::Telemetry;
pub use vpc_eni::VpcEni;

/// Everything that the agent is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// This node's name, as in its Node object. Default: the host name in lower case, as kubelet's is. The option
    /// `--node-name` and the environment's `NODE_NAME` come first, so that one file can serve all nodes.
    #[serde(default = "host_name")]
    pub node_name: NodeName,
    /// The Kubernetes API server. Default: the service account of the pod that the agent runs in.
    #[serde(default)]
    pub kubernetes: Kubernetes,
    /// What the agent does to this node's own object.
    #[serde(default)]
    pub node: Node,
    /// The pod network. Default: absent, and then the agent makes none and serves no CNI plugin: the node's pods
    /// are connected by something else, and only Services are the agent's.
    pub network: Option<Network>,
    /// Pods with addresses of an AWS VPC, in place of `network`. Default: absent.
    pub vpc_eni: Option<VpcEni>,
    /// The service proxy.
    #[serde(default)]
    pub proxy: Proxy,
    /// What the agent does for the DNS server on the same node.
    #[serde(default)]
    pub dns: Dns,
    /// Where the container runtime meets the agent. Without effect where `network` and `vpcEni` are absent.
    #[serde(default)]
    pub cni: Cni,
    /// What must outlive the agent: the log of pod addresses. Its socket for `causeway doctor` is there too.
    /// Default: `/var/lib/causeway/node`.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Where `/healthz`, `/livez` and `/readyz` are served. Default: `0.0.0.0:10256`, kube-proxy's, which load balancers ask.
    #[serde(default = "default_health_bind")]
    pub health_bind: SocketAddr,
    /// Where `/metrics` and `/proxyMode` are served. Default: `127.0.0.1:10249`, kube-proxy's.
    #[serde(default = "default_metrics_bind")]
    pub metrics_bind: SocketAddr,
    /// What the log looks like.
    #[serde(default)]
    pub logging: Logging,
    /// Who is told how long things took.
    #[serde(default)]
    pub telemetry: Telemetry,
}

fn host_name() -> NodeName {
    let name = nix::unistd::gethostname().unwrap_or_default();
    NodeName(name.to_string_lossy().to_lowercase().into())
}

fn default_state_dir() -> PathBuf {
    "/var/lib/causeway/node".into()
}

fn default_health_bind() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 10_256).into()
}

fn default_metrics_bind() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, 10_249).into()
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Not YAML, or not these keys and types.
    #[error("{path}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What and where.
        reason: String,
    },
    /// Values that make no sense, each on a line.
    #[error("{path}: {}", problems.join(&format!("\n{}: ", path.display())))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Key and reason of each.
        problems: Vec<String>,
    },
}

/// Reads and checks the file at `path`. `node_name` replaces what the file says.
///
/// # Errors
/// [`ConfigError`] tells every problem, not only the first.
pub fn load(path: &Path, node_name: Option<&str>) -> Result<Config, ConfigError> {
    parse(path, &read(path)?, node_name)
}

/// The text of the file at `path`.
///
/// # Errors
/// [`ConfigError::Read`].
pub fn read(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Reads and checks a text, which errors say is at `path`. `node_name` replaces what it says.
///
/// # Errors
/// [`ConfigError`] tells every problem, not only the first.
pub fn parse(path: &Path, text: &str, node_name: Option<&str>) -> Result<Config, ConfigError> {
    let parsed = serde_yaml_ng::from_str::<Config>(text);
    let mut config = parsed.map_err(|error| ConfigError::Parse {
        path: path.to_owned(),
        reason: without_quotation(&error.to_string()),
    })?;
    if let Some(name) = node_name {
        config.node_name = name.into();
    }
    let problems = config.problems();
    if problems.is_empty() {
        return Ok(config);
    }
    Err(ConfigError::Invalid {
        path: path.to_owned(),
        problems,
    })
}

/// The node that a text says it is for itself; `None` where it is for any.
#[must_use]
pub fn node_of(text: &str) -> Option<String> {
    let text: serde_yaml_ng::Value = serde_yaml_ng::from_str(text).ok()?;
    text.get("nodeName")?.as_str().map(str::to_owned)
}

/// What the parser says without the string that it quotes: that is the whole file where the file is no map, and a secret
/// where one stands in the wrong place.
fn without_quotation(reason: &str) -> String {
    const BEFORE: &str = "invalid type: string \"";
    let Some((before, quoted)) = reason.split_once(BEFORE) else {
        return reason.to_owned();
    };
    let mut is_escaped = false;
    let end = quoted.find(|character| {
        let ends = character == '"' && !is_escaped;
        is_escaped = character == '\\' && !is_escaped;
        ends
    });
    let behind = end.and_then(|end| quoted.get(end + 1..)).unwrap_or_default();
    format!("{before}invalid type: a string{behind}")
}

impl Config {
    /// The configuration as it is in effect, defaults included.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        serde_yaml_ng::to_string(self).expect("invariant: every key is a string")
    }

    /// Addresses of all pods of the cluster, where they are known.
    #[must_use]
    pub fn pod_networks(&self) -> Vec<IpNetwork> {
        match (self.proxy.pod_networks.as_slice(), &self.network) {
            ([], Some(network)) => network.pod_networks(),
            (networks, _) => networks.to_vec(),
        }
    }

    /// Whether pods are connected by our CNI plugin.
    #[must_use]
    pub fn connects_pods(&self) -> bool {
        self.gives_addresses() && self.cni.enabled.unwrap_or(true)
    }

    /// Whether pods have their addresses of this agent.
    #[must_use]
    pub fn gives_addresses(&self) -> bool {
        self.network.is_some() || self.vpc_eni.is_some()
    }

    /// Components that do not go together, or are all off.
    fn wrong_components(&self) -> Option<&'static str> {
        let is_proxy = self.proxy.datapath != Datapath::None;
        if self.network.is_some() && self.vpc_eni.is_some() {
            return Some("vpcEni: stands beside network; pods have their addresses of one of them");
        }
        if self.cni.enabled == Some(true) && !self.gives_addresses() {
            return Some("cni.enabled: needs the section network, which gives pods their addresses");
        }
        (!is_proxy && !self.gives_addresses() && !self.dns.enabled).then_some(
            "proxy.datapath: is none, and network and dns.enabled are off too: there is nothing for an agent to do",
        )
    }

    /// Whether pods are to be told by networks that nobody named.
    fn lacks_pod_networks(&self) -> bool {
        self.proxy.datapath != Datapath::None
            && self.proxy.detect_local_mode == DetectLocalMode::ClusterCidr
            && self.pod_networks().is_empty()
    }

    /// What types alone do not say.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.node_name.0.is_empty() {
            problems.push("nodeName: is empty".to_owned());
        } else if !node::is_dns_subdomain(&self.node_name.0) {
            problems.push(format!(
                "nodeName: {:?} is not a Node's name: labels of a-z, 0-9 and - with dots between",
                self.node_name.0
            ));
        }
        let paths = [
            ("stateDir", &self.state_dir),
            ("proxy.pinDir", &self.proxy.pin_dir),
            ("dns.feedSocket", &self.dns.feed_socket),
            ("cni.socket", &self.cni.socket),
            ("cni.confDir", &self.cni.conf_dir),
        ];
        problems.extend(
            paths
                .into_iter()
                .filter_map(|(key, path)| relative_path(key, path)),
        );
        if self.health_bind == self.metrics_bind {
            problems.push(format!(
                "metricsBind: {} is healthBind already",
                self.metrics_bind
            ));
        }
        if self.lacks_pod_networks() {
            problems.push(match self.vpc_eni {
                Some(_) => "proxy.detectLocalMode: with vpcEni there are no networks of pods alone; pods are told by \
                            their devices: InterfaceNamePrefix, and interfaceNamePrefix: eni"
                    .to_owned(),
                None => "proxy.podNetworks: is needed where network.config is absent".to_owned(),
            });
        }
        problems.extend(self.wrong_components().map(str::to_owned));
        problems.extend(self.kubernetes.problems());
        problems.extend(self.node.problems());
        problems.extend(self.proxy.problems());
        problems.extend(self.dns.problems());
        problems.extend(self.telemetry.problems());
        problems.extend(self.network.iter().flat_map(Network::problems));
        problems.extend(self.vpc_eni.iter().flat_map(VpcEni::problems));
        problems
    }
}

/// Sockets and pins are looked for by other processes, whose working directory is another.
fn relative_path(key: &str, path: &Path) -> Option<String> {
    (!path.is_absolute()).then(|| format!("{key}: {} is not an absolute path", path.display()))
}

//! The sections of the configuration, but for `proxy`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use overlay::flannel::NetworkConfig;
use serde::{Deserialize, Serialize};

use super::relative_path;

/// The Kubernetes API server. Rights that are needed there: `list` and `watch` Services, EndpointSlices, Nodes and
/// Namespaces; ServiceCIDRs (`networking.k8s.io`), without which packets to ClusterIPs that no Service has leave the
/// node; and `create` and `patch` Events, without which there are none on objects that are not served (part `events` on
/// `/healthz`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// A kubeconfig file; read again, with the certificates that it names, when one of them changed and the server
    /// cannot be reached with what they said. Default: the pod's service account, likewise.
    pub kubeconfig: Option<PathBuf>,
    /// Replaces the server's host. Needed where the server is otherwise named by a Service address, which nobody
    /// serves before the agent does. Default: as the kubeconfig or the pod's environment says.
    pub service_host: Option<String>,
    /// Replaces the server's port. Default: likewise.
    pub service_port: Option<u16>,
}

impl Kubernetes {
    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(host) = &self.service_host
            && (host.is_empty() || host.contains(['/', ' ', '@']))
        {
            problems.push(format!(
                "kubernetes.serviceHost: {host:?} is not a host name or address"
            ));
        }
        if self.service_port == Some(0) {
            problems.push("kubernetes.servicePort: 0 is not a port number".to_owned());
        }
        problems
    }
}

/// How packets travel between nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// VXLAN (RFC 7348), over any IP network.
    #[default]
    Vxlan,
    /// Plain routes, between nodes on one link.
    HostGw,
}

/// Where leases are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LeasesIn {
    /// In an etcd.
    #[default]
    Etcd,
    /// In Node objects.
    Kubernetes,
}

/// The pod network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// `vxlan` or `host-gw`: the backend of `config`, where that names none. A network's configuration that is in
    /// etcd already decides for all its nodes. Default: as `config` says, else `vxlan`.
    pub mode: Option<Mode>,
    /// `etcd` or `kubernetes`: where it is kept which node has which subnet. In etcd each node takes a free one, in
    /// flannel's keys. In Kubernetes they are the Nodes' `spec.podCIDRs`, which the cluster gives out
    /// (`kube-controller-manager --allocate-node-cidrs`), with flannel's annotations; that needs the right to `patch`
    /// `nodes/status`, and the node's condition NetworkUnavailable is set to False. Default: `etcd`.
    #[serde(default)]
    pub leases: LeasesIn,
    /// The etcd of leases and the network's configuration. Needed with leases in etcd.
    pub etcd: Option<Etcd>,
    /// The device whose address the other nodes send to. Default: that of the default route.
    pub interface: Option<String>,
    /// The address that the other nodes send to. Default: the interface's first.
    pub public_ip: Option<Ipv4Addr>,
    /// The same for IPv6, where the network's configuration has it. Default: the interface's first that is not
    /// link-local.
    pub public_ip_v6: Option<Ipv6Addr>,
    /// flannel's network configuration (`Network`, `SubnetLen`, `Backend`, …), written to etcd if none is there;
    /// one that is there is never changed. Needed with leases in Kubernetes. Default: absent: wait until somebody wrote
    /// one.
    pub config: Option<serde_json::Value>,
    /// Where the node's subnet is told to others, and read back at start to claim the same one again.
    /// Default: `/run/flannel/subnet.env`.
    #[serde(default = "default_subnet_env")]
    pub subnet_env: PathBuf,
    /// Whether packets are dropped that a pod sends from an address that is not its own, or to the tunnel's port, and
    /// those that come through the tunnel from an address that is not the sending node's. Default: true.
    #[serde(default = "default_anti_spoofing")]
    pub anti_spoofing: bool,
    /// Whether TCP connections between pods, of this node and through VXLAN, pass by its network stack, connection
    /// tracking included: less latency and CPU. With another `proxy.datapath` than `ebpf`, where anybody else's
    /// netfilter rules for forwarded packets are on the node, or Linux is older than 6.6, all packets take the stack
    /// regardless. Its maps are pinned in `proxy.pinDir`. Default: true.
    #[serde(default = "default_fast_path")]
    pub fast_path: bool,
    /// `report` or `ignore`: NetworkPolicies, which the agent does not enforce, have an Event each, are counted in
    /// `causeway_networkpolicies_not_enforced`, and found by `causeway doctor`, or are left to whoever enforces them.
    /// To report them needs the right to `list` and `watch` them. Default: `report`.
    #[serde(default)]
    pub network_policies: NetworkPolicies,
}

/// What is done about NetworkPolicies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkPolicies {
    /// Whoever looks is told that they are not enforced.
    #[default]
    Report,
    /// Something else enforces them.
    Ignore,
}

fn default_anti_spoofing() -> bool {
    true
}

fn default_fast_path() -> bool {
    true
}

fn default_subnet_env() -> PathBuf {
    "/run/flannel/subnet.env".into()
}

impl Network {
    /// `Network` and `IPv6Network` in `config`, those that are there.
    pub(super) fn pod_networks(&self) -> Vec<IpNetwork> {
        let keys = ["Network", "IPv6Network"].into_iter();
        keys.filter_map(|key| self.network_of(key)).collect()
    }

    fn network_of(&self, key: &str) -> Option<IpNetwork> {
        self.config.as_ref()?.get(key)?.as_str()?.parse().ok()
    }

    /// `config` as it is written to etcd. flannel takes one without a backend for `udp`; ours is what `mode` says.
    pub fn flannel_config(&self) -> Option<serde_json::Value> {
        let mut config = self.config.clone()?;
        if let serde_json::Value::Object(fields) = &mut config {
            let backend = || serde_json::json!({ "Type": self.mode.unwrap_or_default() });
            fields.entry("Backend").or_insert_with(backend);
        }
        Some(config)
    }

    fn mode_conflict(&self) -> Option<String> {
        let named = serde_json::to_value(self.mode?).ok()?;
        let backend = self.config.as_ref()?.get("Backend")?.get("Type")?;
        (*backend != named)
            .then(|| format!("network.mode: is {named}, but network.config has backend {backend}"))
    }

    pub(super) fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.etcd.iter().flat_map(Etcd::problems).collect();
        match self.leases {
            LeasesIn::Etcd if self.etcd.is_none() => {
                problems.push("network.etcd: is needed with leases in etcd".to_owned());
            }
            LeasesIn::Kubernetes if self.config.is_none() => {
                problems.push("network.config: is needed with leases in Kubernetes".to_owned());
            }
            LeasesIn::Etcd | LeasesIn::Kubernetes => {}
        }
        problems.extend(relative_path("network.subnetEnv", &self.subnet_env));
        problems.extend(self.mode_conflict());
        // IFNAMSIZ, with the closing zero byte.
        if let Some(interface) = &self.interface
            && (interface.is_empty() || interface.len() > 15)
        {
            problems.push(format!("network.interface: {interface:?} is not a device's name"));
        }
        let read = self
            .flannel_config()
            .map(|config| NetworkConfig::parse(&config.to_string()));
        if let Some(Err(error)) = read {
            problems.push(format!("network.config: {error}"));
        }
        problems
    }
}

/// An etcd, real or bundled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Etcd {
    /// URLs of its members, `http://` or `https://`. At least one.
    pub endpoints: Vec<String>,
    /// What its keys begin with. Default: `/coreos.com/network`, flannel's.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// File with the certificate of its authority. Default: absent; needed for `https`.
    pub ca: Option<PathBuf>,
    /// File with our certificate. Default: absent: none is shown. Goes with `key`.
    pub cert: Option<PathBuf>,
    /// File with our private key.
    pub key: Option<PathBuf>,
    /// The user of an etcd with users and roles. Default: absent: who we are is said by the certificate, or not asked.
    /// Goes with `passwordFile`.
    pub username: Option<String>,
    /// File with the user's password, without the white space around it.
    pub password_file: Option<PathBuf>,
}

fn default_prefix() -> String {
    "/coreos.com/network".to_owned()
}

impl Etcd {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.endpoints.is_empty() {
            problems.push("network.etcd.endpoints: is empty".to_owned());
        }
        let is_url = |text: &str| {
            let scheme = text.strip_prefix("http://").or(text.strip_prefix("https://"));
            scheme.is_some_and(|rest| !rest.is_empty())
        };
        let bad = self
            .endpoints
            .iter()
            .enumerate()
            .filter(|(_, endpoint)| !is_url(endpoint));
        problems.extend(bad.map(|(index, endpoint)| {
            format!("network.etcd.endpoints[{index}]: {endpoint:?} is not a URL like https://192.0.2.1:2379")
        }));
        let encrypted = self
            .endpoints
            .iter()
            .any(|endpoint| endpoint.starts_with("https://"));
        if encrypted && self.ca.is_none() {
            problems.push("network.etcd.ca: is needed for https".to_owned());
        }
        if self.cert.is_some() != self.key.is_some() {
            problems.push("network.etcd: cert and key go together".to_owned());
        }
        if self.username.is_some() != self.password_file.is_some() {
            problems.push("network.etcd: username and passwordFile go together".to_owned());
        }
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') {
            let prefix = &self.prefix;
            problems.push(format!(
                "network.etcd.prefix: {prefix:?} is not like /coreos.com/network"
            ));
        }
        problems
    }
}

/// What the agent does for the DNS server on the same node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    /// Whether the agent feeds a DNS server. False: there is no socket, and no address. Default: true.
    #[serde(default = "default_dns_enabled")]
    pub enabled: bool,
    /// An address that the agent gives to the node's `lo`, for the DNS server to listen on that gets the cluster's
    /// state from it. As long as that says that it answers there the address is no Service's; else it leads to the
    /// endpoints of the Service whose ClusterIP it is. Default: absent: none.
    pub address: Option<IpAddr>,
    /// The socket on which the DNS server gets the cluster's state. Default: `/run/causeway/dns.sock`.
    #[serde(default = "default_feed_socket")]
    pub feed_socket: PathBuf,
}

fn default_dns_enabled() -> bool {
    true
}

fn default_feed_socket() -> PathBuf {
    "/run/causeway/dns.sock".into()
}

impl Default for Dns {
    fn default() -> Self {
        Self {
            enabled: default_dns_enabled(),
            address: None,
            feed_socket: default_feed_socket(),
        }
    }
}

impl Dns {
    pub(super) fn problems(&self) -> Vec<String> {
        let problem = |address: IpAddr| match address {
            _ if !self.enabled => {
                Some("dns.address: has no server on the node where dns.enabled is false".to_owned())
            }
            address if address.is_unspecified() || address.is_multicast() => {
                Some(format!("dns.address: {address} is not the address of one host"))
            }
            _ => None,
        };
        self.address.and_then(problem).into_iter().collect()
    }
}

/// Where the container runtime meets the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cni {
    /// Whether pods are connected by the plugin `causeway-cni`: its socket is served and its conflist written. False
    /// leaves them to another plugin, which may learn the node's subnet from `network.subnetEnv`, as flannel's does; a
    /// conflist of ours is removed. Default: true where there is a `network`, without which there are no addresses.
    pub enabled: Option<bool>,
    /// The socket on which the plugin `causeway-cni` asks. Default: `/run/causeway/cni.sock`.
    #[serde(default = "default_cni_socket")]
    pub socket: PathBuf,
    /// Where `10-causeway.conflist` is written once pods can be connected. Default: `/etc/cni/net.d`.
    #[serde(default = "default_conf_dir")]
    pub conf_dir: PathBuf,
}

fn default_cni_socket() -> PathBuf {
    "/run/causeway/cni.sock".into()
}

fn default_conf_dir() -> PathBuf {
    "/etc/cni/net.d".into()
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            enabled: None,
            socket: default_cni_socket(),
            conf_dir: default_conf_dir(),
        }
    }
}

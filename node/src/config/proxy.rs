//! The section `proxy`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{duration, relative_path};

/// What programs the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Datapath {
    /// Socket load balancing on cgroup hooks, with the nftables rules under it for what has no socket here.
    #[default]
    Ebpf,
    /// nftables rules alone.
    Nftables,
    /// kube-proxy's chains of iptables, for kernels without nftables and for who wants their names. Node ports on
    /// loopback are not served, and thousands of Services are slow to change.
    Iptables,
    /// No proxy: Services are somebody else's.
    None,
}

impl Datapath {
    /// The name that the configuration and `/proxyMode` have for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ebpf => "ebpf",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables",
            Self::None => "none",
        }
    }
}

/// Which of the kernel's two interfaces iptables speaks to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IptablesVariant {
    /// The one that the host uses already.
    #[default]
    Auto,
    /// x_tables, by `iptables-legacy`.
    Legacy,
    /// nf_tables, by `iptables-nft`.
    Nft,
}

/// How packets from pods are told from others. The words are kube-proxy's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DetectLocalMode {
    /// By a source address in `podNetworks`.
    #[default]
    #[serde(rename = "ClusterCIDR")]
    ClusterCidr,
    /// By a source address in this node's part of them: `spec.podCIDRs` of its Node object.
    #[serde(rename = "NodeCIDR")]
    NodeCidr,
    /// By coming in through the bridge `bridgeInterface`.
    BridgeInterface,
    /// By coming in through a device whose name begins with `interfaceNamePrefix`.
    InterfaceNamePrefix,
    /// Not at all: nobody is masqueraded at ClusterIPs unless `masqueradeAll` says so.
    None,
}

/// On which of the node's addresses node ports and health check ports are served. In the file: a list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(into = "Vec<String>")]
pub enum NodePortAddresses {
    /// `[all]`.
    #[default]
    All,
    /// `[primary]`: the first InternalIP of each version of IP.
    Primary,
    /// Those within these networks: `[192.0.2.0/24, "2001:db8::/32"]`.
    Networks(BTreeSet<IpNetwork>),
}

impl<'de> Deserialize<'de> for NodePortAddresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(AddressTexts)
    }
}

/// An error that arises here is told with its place in the file.
struct AddressTexts;

impl<'de> Visitor<'de> for AddressTexts {
    type Value = NodePortAddresses;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[all], [primary], or a list of networks")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<NodePortAddresses, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element()? {
            texts.push(text);
        }
        NodePortAddresses::parse(&texts).map_err(A::Error::custom)
    }
}

impl NodePortAddresses {
    fn parse(texts: &[String]) -> Result<Self, String> {
        let network = |text: &String| text.parse().map(without_host_bits).ok();
        match texts {
            [text] if text == "all" => Ok(Self::All),
            [text] if text == "primary" => Ok(Self::Primary),
            [] => Err("is empty".to_owned()),
            texts => match texts.iter().find(|text| network(text).is_none()) {
                Some(bad) => Err(format!(
                    "{bad:?} is not a network like 192.0.2.0/24, nor alone and one of `all`, `primary`"
                )),
                None => Ok(Self::Networks(texts.iter().filter_map(network).collect())),
            },
        }
    }
}

impl From<NodePortAddresses> for Vec<String> {
    fn from(addresses: NodePortAddresses) -> Self {
        match addresses {
            NodePortAddresses::All => vec!["all".to_owned()],
            NodePortAddresses::Primary => vec!["primary".to_owned()],
            NodePortAddresses::Networks(networks) => networks.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Limits of connection tracking, which every flow to a Service goes through. The defaults are kube-proxy's. They are
/// set when the agent starts and put back when somebody changed them; one that cannot be set is told in the log and on
/// `/healthz` (part `sysctls`), and stops nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Conntrack {
    /// Flows that may be tracked for each CPU, at most 1048576 in all: `nf_conntrack_max` is raised to that, and never
    /// lowered. Default: 32768. 0: it is left as it is.
    #[serde(default = "default_max_per_core")]
    pub max_per_core: u32,
    /// The least to which `nf_conntrack_max` is raised, whatever the number of CPUs. Default: 131072. Without effect
    /// where `maxPerCore` is 0.
    #[serde(default = "default_min")]
    pub min: u32,
    /// How long a TCP connection is remembered that is idle (`nf_conntrack_tcp_timeout_established`). Default: `24h`.
    /// `0s`: it is left as it is.
    #[serde(default = "default_established", with = "duration")]
    pub tcp_established_timeout: Duration,
    /// How long one is remembered whose client closed its half (`nf_conntrack_tcp_timeout_close_wait`). Default: `1h`.
    /// `0s`: it is left as it is.
    #[serde(default = "default_close_wait", with = "duration")]
    pub tcp_close_wait_timeout: Duration,
    /// Whether packets outside of a TCP connection's window still belong to it (`nf_conntrack_tcp_be_liberal`).
    /// Default: `false`: it is left as it is.
    #[serde(default)]
    pub tcp_be_liberal: bool,
    /// How long a UDP flow is remembered that was not answered (`nf_conntrack_udp_timeout`). Default: `0s`: it is left
    /// as it is.
    #[serde(default, with = "duration")]
    pub udp_timeout: Duration,
    /// How long one is remembered that went both ways (`nf_conntrack_udp_timeout_stream`). Default: `0s`: it is left as
    /// it is.
    #[serde(default, with = "duration")]
    pub udp_stream_timeout: Duration,
}

fn default_max_per_core() -> u32 {
    32_768
}

fn default_min() -> u32 {
    131_072
}

fn default_established() -> Duration {
    Duration::from_secs(86_400)
}

fn default_close_wait() -> Duration {
    Duration::from_secs(3600)
}

impl Default for Conntrack {
    fn default() -> Self {
        Self {
            max_per_core: default_max_per_core(),
            min: default_min(),
            tcp_established_timeout: default_established(),
            tcp_close_wait_timeout: default_close_wait(),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}

/// The service proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Proxy {
    /// `ebpf`, `nftables`, `iptables` or `none`. What `ebpf` or `nftables` left in the kernel goes when another works;
    /// chains of `iptables` stay, since by their names they may be kube-proxy's; `causeway node cleanup` removes them
    /// where this is `iptables`. Default: `ebpf`.
    #[serde(default)]
    pub datapath: Datapath,
    /// Which iptables: `auto` (the one that the host uses already: rules of both are in force at once), `legacy` or
    /// `nft`. Default: `auto`. Without effect but for `datapath: iptables`.
    #[serde(default)]
    pub iptables_variant: IptablesVariant,
    /// The cgroup v2 directory whose sockets are balanced: every pod and process of the node stands below it.
    /// Default: the root of the cgroup v2 mount.
    pub cgroup: Option<PathBuf>,
    /// Where on a bpffs maps and links are pinned, so that they outlive the agent.
    /// Default: `/sys/fs/bpf/causeway`.
    #[serde(default = "default_pin_dir")]
    pub pin_dir: PathBuf,
    /// How packets from pods are told from others: `ClusterCIDR`, `NodeCIDR`, `BridgeInterface`, `InterfaceNamePrefix`
    /// or `None`. What comes to a ClusterIP from elsewhere gets the node's address as its source. Default:
    /// `ClusterCIDR`.
    #[serde(default)]
    pub detect_local_mode: DetectLocalMode,
    /// Addresses of all pods of the cluster, a network for each version of IP that they have; one alone need not be a
    /// list, and `podNetwork` is another name of this key. Used by `detectLocalMode: ClusterCIDR` alone. Default:
    /// `Network` and `IPv6Network` in `network.config`; needed where that is absent.
    #[serde(default, alias = "podNetwork", deserialize_with = "one_or_more")]
    pub pod_networks: Vec<IpNetwork>,
    /// The bridge of `detectLocalMode: BridgeInterface`, needed there and without effect elsewhere. Default: absent.
    pub bridge_interface: Option<String>,
    /// What the names of the pods' devices begin with, for `detectLocalMode: InterfaceNamePrefix`, needed there and
    /// without effect elsewhere. At most 15 bytes, with `datapath: iptables` 14. Default: absent.
    pub interface_name_prefix: Option<String>,
    /// Whether everyone, pods included, gets the node's address as its source at ClusterIPs. Default: `false`.
    #[serde(default)]
    pub masquerade_all: bool,
    /// Whether `spec.externalIPs` of Services are served. Whoever may write a Service could take over any address with
    /// it (CVE-2020-8554). Default: `false`.
    #[serde(default, rename = "externalIPs")]
    pub external_ips: bool,
    /// On which of the node's addresses node ports and health check ports are served: `[all]`, `[primary]` (the first
    /// InternalIP of each version of IP), or a list of networks that hold those addresses. Default: `[all]`.
    #[serde(default)]
    pub node_port_addresses: NodePortAddresses,
    /// At least so much time from one pass over what changed to the next: a change that comes alone is programmed at
    /// once, those that come soon after it together. Default: `10ms`. `0s`: no pause.
    #[serde(default = "default_min_sync_period", with = "duration")]
    pub min_sync_period: Duration,
    /// Limits of connection tracking.
    #[serde(default)]
    pub conntrack: Conntrack,
}

fn default_pin_dir() -> PathBuf {
    "/sys/fs/bpf/causeway".into()
}

fn default_min_sync_period() -> Duration {
    Duration::from_millis(10)
}

impl Default for Proxy {
    fn default() -> Self {
        Self {
            datapath: Datapath::default(),
            iptables_variant: IptablesVariant::default(),
            cgroup: None,
            pin_dir: default_pin_dir(),
            detect_local_mode: DetectLocalMode::default(),
            pod_networks: Vec::new(),
            bridge_interface: None,
            interface_name_prefix: None,
            masquerade_all: false,
            external_ips: false,
            node_port_addresses: NodePortAddresses::default(),
            min_sync_period: default_min_sync_period(),
            conntrack: Conntrack::default(),
        }
    }
}

impl Proxy {
    /// What types alone do not say.
    pub(super) fn problems(&self) -> Vec<String> {
        let cgroup = self.cgroup.as_deref();
        let mut problems: Vec<_> = cgroup
            .and_then(|path| relative_path("proxy.cgroup", path))
            .into_iter()
            .collect();
        problems.extend(match self.detect_local_mode {
            DetectLocalMode::BridgeInterface => {
                let name = self.bridge_interface.as_deref();
                device_problem("bridgeInterface", name, LONGEST_NAME)
            }
            DetectLocalMode::InterfaceNamePrefix => {
                let longest = match self.datapath {
                    // iptables writes a beginning with a `+` after it, in the same 16 bytes.
                    Datapath::Iptables => LONGEST_NAME - 1,
                    Datapath::Ebpf | Datapath::Nftables | Datapath::None => LONGEST_NAME,
                };
                let prefix = self.interface_name_prefix.as_deref();
                device_problem("interfaceNamePrefix", prefix, longest)
            }
            DetectLocalMode::ClusterCidr | DetectLocalMode::NodeCidr | DetectLocalMode::None => None,
        });
        problems
    }
}

/// Of a device's name, in bytes: `IFNAMSIZ` without the zero byte at the end.
const LONGEST_NAME: usize = 15;

/// What is wrong with the name of a device, or its beginning, that pods are told by.
fn device_problem(key: &str, name: Option<&str>, longest: usize) -> Option<String> {
    match name {
        None => Some(format!("proxy.{key}: is needed for this detectLocalMode")),
        Some(name) if name.is_empty() || name.contains(is_no_part_of_a_name) => {
            Some(format!("proxy.{key}: {name:?} is not a device's name"))
        }
        Some(name) if name.len() > longest => {
            Some(format!("proxy.{key}: {name:?} is longer than {longest} bytes"))
        }
        Some(_) => None,
    }
}

/// What no device's name has (the kernel's `dev_valid_name`), and what would be no part of it in a line for
/// `iptables-restore`.
fn is_no_part_of_a_name(letter: char) -> bool {
    letter.is_whitespace() || letter.is_control() || matches!(letter, '/' | '+' | '\'' | '"' | '`')
}

/// Networks of which one may be written alone.
fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNetwork>, D::Error> {
    deserializer.deserialize_any(Networks)
}

/// An error that arises here is told with its place in the file.
struct Networks;

impl<'de> Visitor<'de> for Networks {
    type Value = Vec<IpNetwork>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a network like 10.244.0.0/16, or a list of such")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<IpNetwork>, E> {
        let network = text.parse().map(|network| vec![without_host_bits(network)]);
        network.map_err(|_| E::custom(format_args!("{text:?} is not a network like 10.244.0.0/16")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<IpNetwork>, A::Error> {
        let mut networks = Vec::new();
        while let Some(network) = list.next_element()? {
            networks.push(without_host_bits(network));
        }
        Ok(networks)
    }
}

/// The network alone, where an address in it was written.
fn without_host_bits(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix())
        .expect("invariant: the prefix length is that of a network of the same family")
}

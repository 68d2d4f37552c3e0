//! What a proxy is told, and the context that follows from it and from the Node object.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;
use model::{IpFamily, Node, NodeName};

use crate::datapath::iptables::Variant;
use crate::plan::{LocalTraffic, NodeContext, NodePortAddresses};

/// Which renderers are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatapathKind {
    /// The socket hook, with the packet rules under it.
    Ebpf {
        /// The node's cgroup v2 directory: everything that runs on the node is in it or below it.
        cgroup: PathBuf,
        /// Directory on a BPF file system, for example `/sys/fs/bpf/causeway`; made if absent.
        pin_dir: PathBuf,
    },
    /// The packet rules alone.
    Nftables,
    /// kube-proxy's chains, for kernels without nftables and for who wants their names.
    Iptables {
        /// Which of the two iptables.
        variant: Variant,
    },
}

/// How packets from pods are told from others (kube-proxy's `--detect-local-mode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Not at all.
    Off,
    /// By the cluster's pod networks, for example `10.244.0.0/16`.
    ClusterCidr(BTreeSet<IpNetwork>),
    /// By this node's part of them, `spec.podCIDRs` of its Node object.
    NodeCidr,
    /// By the bridge that they come in by.
    BridgeInterface(String),
    /// By the beginning of their device's name, for example `veth`.
    InterfaceNamePrefix(String),
}

/// What plans are made by, next to the objects of the cluster. [`crate::Proxy::set_settings`] changes it while a proxy
/// runs, but for the node and the versions of IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Name of the Node object.
    pub node: NodeName,
    /// This node's addresses, in case its Node object does not tell them yet.
    pub node_addresses: Vec<IpAddr>,
    /// Versions of IP that are served.
    pub families: BTreeSet<IpFamily>,
    /// Who is a pod.
    pub detect_local: DetectLocal,
    /// Whether everyone is masqueraded at ClusterIPs. Default: no.
    pub masquerade_all: bool,
    /// Whether `externalIPs` are served. Default: no, since whoever may write a Service could take over any address
    /// (CVE-2020-8554).
    pub external_addresses: bool,
    /// On which addresses node ports are served. Default: all.
    pub node_port_addresses: NodePortAddresses,
    /// ClusterIPs at which this node has a DNS server; they get no frontend while it answers.
    pub local_dns: BTreeSet<IpAddr>,
}

impl Settings {
    /// The defaults for a node in a cluster with these pod networks.
    #[must_use]
    pub fn new(node: NodeName, pod_networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self {
            node,
            node_addresses: Vec::new(),
            families: BTreeSet::from([IpFamily::V4, IpFamily::V6]),
            detect_local: DetectLocal::ClusterCidr(pod_networks.into_iter().collect()),
            masquerade_all: false,
            external_addresses: false,
            node_port_addresses: NodePortAddresses::All,
            local_dns: BTreeSet::new(),
        }
    }

    /// What plans are made for, as far as the Node object is known: without networks of Services, and as if the node's
    /// DNS server answered. The proxy puts both in.
    #[must_use]
    pub fn context(&self, node: Option<&Node>) -> NodeContext {
        let internal = node.map_or(&[][..], |node| &node.internal_addresses);
        let external = node.map_or(&[][..], |node| &node.external_addresses);
        let mut addresses = Vec::new();
        for address in internal.iter().chain(external).chain(&self.node_addresses) {
            if !addresses.contains(address) {
                addresses.push(*address);
            }
        }
        NodeContext {
            name: self.node.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            addresses,
            families: self.families.clone(),
            local_traffic: match &self.detect_local {
                DetectLocal::Off => LocalTraffic::Unknown,
                DetectLocal::ClusterCidr(networks) => LocalTraffic::Networks(networks.clone()),
                DetectLocal::NodeCidr => {
                    let networks = node.map_or(&[][..], |node| &node.pod_cidrs);
                    LocalTraffic::Networks(networks.iter().copied().collect())
                }
                DetectLocal::BridgeInterface(name) => LocalTraffic::Interface(name.clone()),
                DetectLocal::InterfaceNamePrefix(prefix) => LocalTraffic::InterfacePrefix(prefix.clone()),
            },
            masquerade_all: self.masquerade_all,
            external_addresses: self.external_addresses,
            node_port_addresses: self.node_port_addresses.clone(),
            service_networks: BTreeSet::new(),
            local_dns: self.local_dns.clone(),
            dns_answers: true,
        }
    }
}

/// What a proxy must know to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What it does.
    pub settings: Settings,
    /// By which renderers.
    pub datapath: DatapathKind,
}

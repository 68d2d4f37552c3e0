//! What a plan knows of the node that it is for.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{IpFamily, Node, NodeName, Text};
use serde::{Deserialize, Serialize};

use super::Masquerade;

/// What a plan knows of the node that it is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeContext {
    /// The node's name: endpoints with it are local.
    pub name: NodeName,
    /// Its zone, for endpoints that are hinted to zones.
    pub zone: Option<Text>,
    /// Its own addresses, the primary one of each family first.
    pub addresses: Vec<IpAddr>,
    /// Versions of IP that are served.
    pub families: BTreeSet<IpFamily>,
    /// How packets from pods are told from others.
    pub local_traffic: LocalTraffic,
    /// Everyone is masqueraded at ClusterIPs (kube-proxy's `--masquerade-all`).
    pub masquerade_all: bool,
    /// Whether `externalIPs` are served.
    pub external_addresses: bool,
    /// On which addresses node ports are served.
    pub node_port_addresses: NodePortAddresses,
    /// Networks of ClusterIPs. What is sent to an address of theirs that no Service has is dropped, and served by the
    /// client's next attempt if a Service is just about to have it. Empty where they are not known.
    pub service_networks: BTreeSet<IpNetwork>,
    /// ClusterIPs at which this node has a DNS server: they get no frontend, since packets to them must not be
    /// translated.
    pub local_dns: BTreeSet<IpAddr>,
    /// Whether it answers there. While it does not, the addresses of a Service that has endpoints lead to these.
    pub dns_answers: bool,
}

/// How packets from pods are told from others (kube-proxy's `--detect-local-mode`). Everyone who is no pod is
/// masqueraded at ClusterIPs, so that answers come back through this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalTraffic {
    /// They are not: nobody is masqueraded at ClusterIPs, and no client has a pod's short cut.
    Unknown,
    /// By source address: the cluster's pod network (`ClusterCIDR`), or this node's part of it (`NodeCIDR`).
    Networks(BTreeSet<IpNetwork>),
    /// By the device that they come in by (`BridgeInterface`).
    Interface(String),
    /// By the beginning of that device's name (`InterfaceNamePrefix`).
    InterfacePrefix(String),
}

/// On which of the node's addresses node ports are served (kube-proxy's `--nodeport-addresses`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodePortAddresses {
    /// All.
    #[default]
    All,
    /// The first InternalIP of each family.
    Primary,
    /// Those within these networks; all of a family that has no network here.
    Networks(BTreeSet<IpNetwork>),
}

impl NodeContext {
    /// A node that serves both families on all addresses, tells pods by their network, and nothing else.
    #[must_use]
    pub fn new(name: NodeName, pod_networks: impl IntoIterator<Item = IpNetwork>) -> Self {
        Self {
            name,
            zone: None,
            addresses: Vec::new(),
            families: BTreeSet::from([IpFamily::V4, IpFamily::V6]),
            local_traffic: LocalTraffic::Networks(pod_networks.into_iter().collect()),
            masquerade_all: false,
            external_addresses: false,
            node_port_addresses: NodePortAddresses::All,
            service_networks: BTreeSet::new(),
            local_dns: BTreeSet::new(),
            dns_answers: true,
        }
    }

    /// Networks of that family from which packets are pods'.
    pub fn pod_networks(&self, family: IpFamily) -> impl Iterator<Item = IpNetwork> {
        let networks = match &self.local_traffic {
            LocalTraffic::Networks(networks) => Some(networks),
            LocalTraffic::Unknown | LocalTraffic::Interface(_) | LocalTraffic::InterfacePrefix(_) => None,
        };
        networks
            .into_iter()
            .flatten()
            .copied()
            .filter(move |network| family_of(network) == family)
    }

    /// Networks of that family on whose addresses of this node node ports are served.
    #[must_use]
    pub fn node_port_networks(&self, family: IpFamily) -> BTreeSet<IpNetwork> {
        let of_family = |network: &IpNetwork| family_of(network) == family;
        match &self.node_port_addresses {
            NodePortAddresses::All => BTreeSet::from([everything(family)]),
            NodePortAddresses::Primary => self
                .addresses
                .iter()
                .map(|address| IpNetwork::from(*address))
                .find(of_family)
                .into_iter()
                .collect(),
            // Networks of the one family say nothing of the other (`pkg/proxy/util/nodeport_addresses.go`).
            NodePortAddresses::Networks(networks) if !networks.iter().any(of_family) => {
                BTreeSet::from([everything(family)])
            }
            NodePortAddresses::Networks(networks) => networks.iter().copied().filter(of_family).collect(),
        }
    }

    /// Networks of ClusterIPs of that family.
    pub fn service_networks(&self, family: IpFamily) -> impl Iterator<Item = IpNetwork> {
        let networks = self.service_networks.iter().copied();
        networks.filter(move |network| family_of(network) == family)
    }

    /// Whether node ports are served on an address, if a node has it.
    #[must_use]
    pub fn serves_node_ports_on(&self, address: IpAddr) -> bool {
        self.node_port_networks(address.into())
            .iter()
            .any(|network| network.contains(address))
    }

    /// Addresses on which another node serves node ports, if it is told what this one is told.
    #[must_use]
    pub fn node_port_addresses_of(&self, node: &Node) -> Vec<IpAddr> {
        let internal = || node.internal_addresses.iter().copied();
        let all = internal().chain(node.external_addresses.iter().copied());
        match &self.node_port_addresses {
            NodePortAddresses::All => all.collect(),
            NodePortAddresses::Networks(_) => all
                .filter(|address| self.serves_node_ports_on(*address))
                .collect(),
            NodePortAddresses::Primary => {
                let first = [internal().find(IpAddr::is_ipv4), internal().find(IpAddr::is_ipv6)];
                first.into_iter().flatten().collect()
            }
        }
    }

    /// Who is masqueraded at ClusterIPs of that family.
    pub(super) fn masquerade(&self, family: IpFamily) -> Masquerade {
        if self.masquerade_all {
            Masquerade::Everyone
        } else if self.tells_pods(family) {
            Masquerade::OutsidePods
        } else {
            Masquerade::Nobody
        }
    }

    /// Whether packets of pods can be told from others.
    #[must_use]
    pub fn tells_pods(&self, family: IpFamily) -> bool {
        match &self.local_traffic {
            LocalTraffic::Unknown => false,
            LocalTraffic::Networks(_) => self.pod_networks(family).next().is_some(),
            LocalTraffic::Interface(_) | LocalTraffic::InterfacePrefix(_) => true,
        }
    }
}

pub(super) fn family_of(network: &IpNetwork) -> IpFamily {
    network.network().into()
}

/// All addresses of a family.
fn everything(family: IpFamily) -> IpNetwork {
    let any: IpAddr = match family {
        IpFamily::V4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpFamily::V6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(any, 0).expect("invariant: 0 is a prefix length of both families")
}

//! What a node does with the traffic of one Service.
//!
//! Everything is decided here, once: datapaths only render. A plan depends on nothing but its arguments, so that the
//! same cluster gives the same plan on every run, whatever the order in which objects arrived.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use model::service::PROXY_LABELS;
use model::{
    EndpointSlice, IpFamily, NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort,
    SessionAffinity, TrafficPolicy,
};

mod endpoints;

/// Endpoints in one list; the rest is left out (a slot's number has 15 bits).
pub const MAX_ENDPOINTS: usize = (1 << 15) - 1;

/// What a plan knows of the node that it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeContext {
    /// The node's name: endpoints with it are local.
    pub name: NodeName,
    /// Addresses of all pods; traffic to ClusterIPs from anywhere else is masqueraded.
    pub pod_network: IpNetwork,
    /// A ClusterIP that this node answers itself: it gets no frontend, since packets to it must not be translated.
    pub local_dns: Option<IpAddr>,
}

/// A Service with its EndpointSlices.
#[derive(Clone, Debug)]
pub struct ServiceView<'a> {
    /// The Service.
    pub service: &'a Service,
    /// Its slices, in any order.
    pub slices: Vec<&'a EndpointSlice>,
}

/// Where traffic is taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey {
    /// The address.
    pub address: FrontendAddress,
    /// The port there.
    pub port: NonZeroU16,
    /// The protocol.
    pub protocol: Protocol,
}

/// The address of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    /// An address of the Service's own.
    Service(IpAddr),
    /// Every address of the node: a node port.
    EveryNodeAddress(IpFamily),
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            port,
            protocol,
        } = self;
        match address {
            FrontendAddress::Service(IpAddr::V6(address)) => write!(f, "[{address}]:{port}/{protocol}"),
            FrontendAddress::Service(address) => write!(f, "{address}:{port}/{protocol}"),
            FrontendAddress::EveryNodeAddress(_) => write!(f, "node port {port}/{protocol}"),
        }
    }
}

/// What happens to a new connection to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// No endpoint anywhere: refused, so that the client learns at once.
    Refuse,
    /// Endpoints exist, but policy Local forbids them here: dropped, since the Service is not gone.
    Drop,
    /// To any endpoint of a list.
    Spread {
        /// Which list.
        list: List,
        /// Whose source address is replaced by the node's.
        masquerade: Masquerade,
    },
    /// `externalTrafficPolicy: Local`. From pods: any endpoint. From this node: any endpoint, masqueraded. From
    /// outside: only endpoints of this node, with the client's address kept; dropped when there is none.
    Split,
}

/// Which of a port's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// [`PortPlan::cluster`].
    Cluster,
    /// [`PortPlan::local`].
    Local,
}

/// Whose source address is replaced by the node's, so that answers come back through it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Masquerade {
    /// Everyone's: traffic to a node port may leave through another node than it came in.
    Always,
    /// Of clients outside the pod network, the node itself included.
    OutsidePods,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The port there.
    pub port: NonZeroU16,
}

/// A port of a Service: the key of its plan. Name and protocol together name it, so that a Service may have one port
/// number for TCP and UDP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Name of the port; empty when it is the only one.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
}

/// The plan for one port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// Where traffic is taken from, and what becomes of it.
    pub frontends: BTreeMap<FrontendKey, Action>,
    /// Endpoints for cluster-wide traffic, sorted.
    pub cluster: Vec<Target>,
    /// Endpoints of this node for node-local traffic, sorted. Not always a part of `cluster`: each list falls back to
    /// terminating endpoints on its own (KEP-1669).
    pub local: Vec<Target>,
    /// Endpoints of either list that are on this node: they may meet their own Service.
    pub on_this_node: BTreeSet<Target>,
    /// All endpoints that still serve, whatever the policy: established flows to them are left alone.
    pub serving: BTreeSet<Target>,
}

/// The plan for one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// By port.
    pub ports: BTreeMap<PortKey, PortPlan>,
}

impl ServicePlan {
    /// All frontends of all ports.
    pub fn frontends(&self) -> impl Iterator<Item = &FrontendKey> {
        self.ports.values().flat_map(|port| port.frontends.keys())
    }

    /// Whether it takes no traffic at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.frontends().next().is_none()
    }

    /// Both plans in one, for when it is not known which of them is in force: this one wins where they meet.
    #[must_use]
    pub fn or(mut self, other: Self) -> Self {
        for (key, port) in other.ports {
            let mine = self.ports.entry(key).or_default();
            mine.on_this_node.extend(port.on_this_node);
            mine.serving.extend(port.serving);
            for (key, action) in port.frontends {
                mine.frontends.entry(key).or_insert(action);
            }
        }
        self
    }

    /// The plan without the frontends that fail the test.
    #[must_use]
    pub fn retain(mut self, mut wanted: impl FnMut(&FrontendKey) -> bool) -> Self {
        for port in self.ports.values_mut() {
            port.frontends.retain(|key, _| wanted(key));
        }
        self
    }
}

/// A part of an object that could not be honoured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejected {
    /// The Service.
    pub service: ObjectName,
    /// Why.
    pub reason: Reason,
}

/// Why a part of an object was left out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// The datapath has no such feature.
    #[error("{0} is not supported; the rest of the Service works")]
    Unsupported(Feature),
    /// A ClusterIP that no Service can have.
    #[error("{0} cannot be the address of a Service")]
    BadAddress(IpAddr),
    /// An endpoint's address that no pod can have (API validation forbids it too).
    #[error("{0} cannot be the address of an endpoint")]
    BadEndpoint(IpAddr),
    /// More endpoints than one list holds.
    #[error("only {MAX_ENDPOINTS} of {0} endpoints are used")]
    TooManyEndpoints(usize),
    /// Two ports of the Service want the same frontend.
    #[error("{0} is taken by another port of the Service")]
    DuplicateFrontend(FrontendKey),
    /// Another Service has the frontend.
    #[error("{frontend} is taken by {owner}")]
    Taken {
        /// The frontend.
        frontend: FrontendKey,
        /// Who has it.
        owner: ObjectName,
    },
}

/// What a Service may ask for and this proxy does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// IPv6 ClusterIPs.
    Ipv6,
    /// `sessionAffinity: ClientIP`: connections are spread instead.
    SessionAffinity,
    /// `externalIPs`.
    ExternalAddresses,
    /// `status.loadBalancer` addresses.
    LoadBalancer,
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipv6 => "IPv6",
            Self::SessionAffinity => "session affinity",
            Self::ExternalAddresses => "externalIPs",
            Self::LoadBalancer => "load balancer addresses",
        })
    }
}

/// Decides what this node does with a Service's traffic. What cannot be honoured is left out and listed.
#[must_use]
pub fn plan_service(view: &ServiceView<'_>, node: &NodeContext) -> (ServicePlan, Vec<Rejected>) {
    let service = view.service;
    let mut reasons = BTreeSet::new();
    let addresses = match &service.kind {
        ServiceKind::ClusterIp { addresses } if is_ours(service) => addresses.as_slice(),
        ServiceKind::ClusterIp { .. } | ServiceKind::Headless | ServiceKind::ExternalName(_) => &[],
    };
    if addresses.is_empty() {
        return (ServicePlan::default(), Vec::new());
    }
    reasons.extend(unsupported(service).map(Reason::Unsupported));
    let addresses = usable_addresses(addresses, &mut reasons);
    let mut plan = ServicePlan::default();
    let mut seen = BTreeSet::new();
    for port in &service.ports {
        let mut port_plan = endpoints::choose(port, &view.slices, node, &mut reasons);
        let wanted = frontends(service, port, &addresses, &port_plan, node);
        for (key, action) in wanted {
            if seen.insert(key) {
                port_plan.frontends.insert(key, action);
            } else {
                reasons.insert(Reason::DuplicateFrontend(key));
            }
        }
        let key = PortKey {
            name: port.name.clone(),
            protocol: port.protocol,
        };
        plan.ports.entry(key).or_insert(port_plan);
    }
    let rejected = reasons.into_iter().map(|reason| Rejected {
        service: service.name.clone(),
        reason,
    });
    (plan, rejected.collect())
}

fn is_ours(service: &Service) -> bool {
    !PROXY_LABELS
        .iter()
        .any(|label| service.proxy_labels.contains_key(*label))
}

fn unsupported(service: &Service) -> impl Iterator<Item = Feature> {
    let affinity = service.affinity != SessionAffinity::None;
    let external = !service.external_addresses.is_empty();
    let balanced = service.load_balancer.iter().any(|ingress| !ingress.proxied);
    [
        affinity.then_some(Feature::SessionAffinity),
        external.then_some(Feature::ExternalAddresses),
        balanced.then_some(Feature::LoadBalancer),
    ]
    .into_iter()
    .flatten()
}

fn usable_addresses(addresses: &[IpAddr], reasons: &mut BTreeSet<Reason>) -> BTreeSet<IpAddr> {
    let mut usable = BTreeSet::new();
    for address in addresses {
        if address.is_ipv6() {
            reasons.insert(Reason::Unsupported(Feature::Ipv6));
        } else if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            reasons.insert(Reason::BadAddress(*address));
        } else {
            usable.insert(*address);
        }
    }
    usable
}

fn frontends(
    service: &Service,
    port: &ServicePort,
    addresses: &BTreeSet<IpAddr>,
    endpoints: &PortPlan,
    node: &NodeContext,
) -> Vec<(FrontendKey, Action)> {
    let protocol = port.protocol;
    let mut frontends = Vec::new();
    for address in addresses
        .iter()
        .filter(|address| node.local_dns != Some(**address))
    {
        let key = FrontendKey {
            address: FrontendAddress::Service(*address),
            port: port.port,
            protocol,
        };
        frontends.push((key, cluster_ip_action(service.internal_policy, endpoints)));
    }
    let families: BTreeSet<_> = addresses.iter().map(|address| IpFamily::from(*address)).collect();
    for (node_port, family) in port
        .node_port
        .iter()
        .flat_map(|port| families.iter().map(move |f| (*port, *f)))
    {
        let address = FrontendAddress::EveryNodeAddress(family);
        let key = FrontendKey {
            address,
            port: node_port,
            protocol,
        };
        frontends.push((key, node_port_action(service.external_policy, endpoints)));
    }
    frontends
}

fn cluster_ip_action(policy: TrafficPolicy, endpoints: &PortPlan) -> Action {
    let masquerade = Masquerade::OutsidePods;
    match policy {
        _ if endpoints.cluster.is_empty() => Action::Refuse,
        TrafficPolicy::Cluster => Action::Spread {
            list: List::Cluster,
            masquerade,
        },
        TrafficPolicy::Local if endpoints.local.is_empty() => Action::Drop,
        TrafficPolicy::Local => Action::Spread {
            list: List::Local,
            masquerade,
        },
    }
}

/// Policy Cluster masquerades even pods and even local endpoints, as kube-proxy does: clients see one behaviour.
fn node_port_action(policy: TrafficPolicy, endpoints: &PortPlan) -> Action {
    match policy {
        _ if endpoints.cluster.is_empty() => Action::Refuse,
        TrafficPolicy::Cluster => Action::Spread {
            list: List::Cluster,
            masquerade: Masquerade::Always,
        },
        TrafficPolicy::Local => Action::Split,
    }
}

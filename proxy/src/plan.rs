//! What a node does with the traffic of one Service.
//!
//! Everything is decided here, once: datapaths only render. A plan depends on nothing but its arguments, so that the
//! same cluster gives the same plan on every run, whatever the order in which objects arrived.
//!
//! Tour:
//! - [`NodeContext`] is what a plan knows of its node; [`ServiceView`] what it knows of the Service.
//! - [`ServicePlan`] has a [`PortPlan`] for each port and family: [`Frontend`]s, and lists of [`Target`]s.
//! - [`Rejected`] lists what could not be honoured.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnetwork::IpNetwork;
use litemap::LiteMap;
use model::service::PROXY_LABELS;
use model::{EndpointSlice, IpFamily, Protocol, Service, ServiceKind, SessionAffinity, Text, TrafficPolicy};

mod addresses;
mod context;
mod endpoints;
mod rejected;
mod shared_set;

pub use context::{LocalTraffic, NodeContext, NodePortAddresses};
pub use rejected::{Reason, Rejected};
pub use shared_set::SharedSet;

use addresses::{Addresses, Owner};
use endpoints::Listed;

/// Endpoints in one list; the rest is left out (a slot's number has 15 bits).
pub const MAX_ENDPOINTS: usize = (1 << 15) - 1;

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

impl FrontendKey {
    /// The version of IP that it takes.
    #[must_use]
    pub fn family(&self) -> IpFamily {
        match self.address {
            FrontendAddress::Service(address) => address.into(),
            FrontendAddress::EveryNodeAddress(family) => family,
        }
    }
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

/// What a frontend does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// What becomes of a new connection.
    pub action: Action,
    /// Whose connections those are.
    pub admits: Admits,
}

/// Which clients a frontend serves. Others' packets are dropped, whatever the action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Admits {
    /// Anybody.
    Everyone,
    /// Those of [`PortPlan::sources`].
    Sources,
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
    /// Nobody's.
    Nobody,
    /// Of clients that are no pods, the node itself included.
    OutsidePods,
    /// Everyone's: traffic to a node port may leave through another node than it came in.
    Everyone,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The port there.
    pub port: NonZeroU16,
}

/// A port of a Service in one version of IP: the key of its plan. Name and protocol together name the port, so that a
/// Service may have one port number for TCP and UDP.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortKey {
    /// Version of IP: a dual-stack Service has a plan for each.
    pub family: IpFamily,
    /// Name of the port; empty when it is the only one.
    pub name: Text,
    /// Protocol.
    pub protocol: Protocol,
}

/// The plan for one port of a Service in one version of IP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortPlan {
    /// Where traffic is taken from, and what becomes of it.
    pub frontends: LiteMap<FrontendKey, Frontend>,
    /// Endpoints for cluster-wide traffic.
    pub cluster: SharedSet<Target>,
    /// Endpoints of this node for node-local traffic. Not always a part of `cluster`: each list falls back to
    /// terminating endpoints on its own (KEP-1669), and topology narrows only the other.
    pub local: SharedSet<Target>,
    /// A client keeps its endpoint, over all frontends of the port, until it made no new connection for that long.
    pub affinity: Option<Duration>,
    /// Who may use frontends of [`Admits::Sources`].
    pub sources: SharedSet<IpNetwork>,
    /// Endpoints of either list that are on this node: they may meet their own Service.
    pub on_this_node: SharedSet<Target>,
    /// All endpoints that still serve, whatever the policy: established flows to them are left alone.
    pub serving: SharedSet<Target>,
}

impl PortPlan {
    /// The endpoints of a list.
    #[must_use]
    pub fn list(&self, list: List) -> &[Target] {
        match list {
            List::Cluster => &self.cluster,
            List::Local => &self.local,
        }
    }
}

/// Where load balancers ask whether this node has endpoints (`healthCheckNodePort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HealthCheck {
    /// The port on the node's addresses.
    pub port: NonZeroU16,
    /// Endpoints on this node that are ready, by address. Those that terminate do not count although they may still
    /// take traffic: the balancer shall send it elsewhere.
    pub ready_here: usize,
}

/// The plan for one Service. Its maps are sorted vectors: most have one entry, and there are two for each Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    /// By port and family.
    pub ports: LiteMap<PortKey, PortPlan>,
    /// The Service's ClusterIPs: a port of them that it does not have is refused.
    pub cluster_ips: SharedSet<IpAddr>,
    /// For load balancers.
    pub health: Option<HealthCheck>,
}

impl ServicePlan {
    /// All frontends of all ports.
    pub fn frontends(&self) -> impl Iterator<Item = &FrontendKey> {
        self.ports.values().flat_map(|port| port.frontends.keys())
    }

    /// Whether a frontend is at its own ClusterIP.
    #[must_use]
    pub fn is_cluster_ip(&self, key: &FrontendKey) -> bool {
        match &key.address {
            FrontendAddress::Service(address) => self.cluster_ips.contains(address),
            FrontendAddress::EveryNodeAddress(_) => false,
        }
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
            mine.on_this_node = mine.on_this_node.union(&port.on_this_node);
            mine.serving = mine.serving.union(&port.serving);
            mine.sources = mine.sources.union(&port.sources);
            for (key, frontend) in port.frontends {
                mine.frontends.entry(key).or_insert(frontend);
            }
        }
        self.cluster_ips = self.cluster_ips.union(&other.cluster_ips);
        self.health = self.health.or(other.health);
        self
    }

    /// The plan without the frontends that fail the test.
    #[must_use]
    pub fn retain(mut self, mut wanted: impl FnMut(&FrontendKey) -> bool) -> Self {
        for (_, port) in self.ports.iter_mut() {
            port.frontends.retain(|key, _| wanted(key));
        }
        self
    }
}

/// Decides what this node does with a Service's traffic. What cannot be honoured is left out and listed.
#[must_use]
pub fn plan_service(view: &ServiceView<'_>, node: &NodeContext) -> (ServicePlan, Vec<Rejected>) {
    let service = view.service;
    let cluster_ips = match &service.kind {
        ServiceKind::ClusterIp { addresses } if is_ours(service) => &addresses[..],
        ServiceKind::ClusterIp { .. } | ServiceKind::Headless | ServiceKind::ExternalName(_) => &[],
    };
    if cluster_ips.is_empty() {
        return (ServicePlan::default(), Vec::new());
    }
    let mut reasons = BTreeSet::new();
    let addresses = Addresses::of(view, cluster_ips, node, &mut reasons);
    let silent = addresses.silent();
    let listed = Listed {
        slices: &view.slices,
        silent: &silent,
    };
    // Of the size that they get: there are tens of thousands of them, of one entry each.
    let ports = addresses.families().count() * service.ports.len();
    let mut plan = ServicePlan {
        ports: LiteMap::with_capacity(ports),
        cluster_ips: addresses.cluster_ips().collect(),
        health: health_check(view, cluster_ips, node),
    };
    let mut taken = BTreeSet::new();
    for (family, port) in addresses
        .families()
        .flat_map(|family| service.ports.iter().map(move |port| (family, port)))
    {
        let key = PortKey {
            family,
            name: port.name.clone(),
            protocol: port.protocol,
        };
        let mut port_plan = endpoints::choose(port, family, &listed, node, &mut reasons);
        port_plan.affinity = match service.affinity {
            SessionAffinity::None => None,
            SessionAffinity::ClientIp { timeout } => Some(timeout),
        };
        port_plan.sources = addresses.sources(family);
        let frontends: Vec<_> = addresses.frontends(family, port).collect();
        port_plan.frontends = LiteMap::with_capacity(frontends.len());
        for (owner, address, number) in frontends {
            let key = FrontendKey {
                address,
                port: number,
                protocol: port.protocol,
            };
            // An address that is the Service's in two ways is served in the stricter one, which comes first.
            if port_plan.frontends.contains_key(&key) {
                continue;
            }
            if taken.insert(key) {
                let frontend = frontend(owner, service, &port_plan, family, node);
                port_plan.frontends.insert(key, frontend);
            } else {
                reasons.insert(Reason::DuplicateFrontend(key));
            }
        }
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

fn frontend(
    owner: Owner,
    service: &Service,
    endpoints: &PortPlan,
    family: IpFamily,
    node: &NodeContext,
) -> Frontend {
    let action = match owner {
        Owner::ClusterIp => cluster_ip_action(service.internal_policy, endpoints, node.masquerade(family)),
        Owner::LoadBalancer | Owner::External | Owner::NodePort => {
            external_action(service.external_policy, endpoints)
        }
    };
    // Node ports and externalIPs are never filtered, since kube-proxy does not.
    let admits = match owner {
        Owner::LoadBalancer if !endpoints.sources.is_empty() => Admits::Sources,
        _ => Admits::Everyone,
    };
    Frontend { action, admits }
}

fn cluster_ip_action(policy: TrafficPolicy, endpoints: &PortPlan, masquerade: Masquerade) -> Action {
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
fn external_action(policy: TrafficPolicy, endpoints: &PortPlan) -> Action {
    match policy {
        _ if endpoints.cluster.is_empty() => Action::Refuse,
        TrafficPolicy::Cluster => Action::Spread {
            list: List::Cluster,
            masquerade: Masquerade::Everyone,
        },
        TrafficPolicy::Local => Action::Split,
    }
}

/// The API gives a health check port only to type LoadBalancer with external policy Local. Endpoints count once,
/// whatever the number of ports: in the family of the first ClusterIP, since a dual-stack pod has two addresses.
fn health_check(view: &ServiceView<'_>, cluster_ips: &[IpAddr], node: &NodeContext) -> Option<HealthCheck> {
    let port = view
        .service
        .health_check_node_port
        .filter(|_| view.service.external_policy == TrafficPolicy::Local)?;
    let family = IpFamily::from(*cluster_ips.first()?);
    let endpoints = view
        .slices
        .iter()
        .filter(|slice| slice.family == family)
        .flat_map(|slice| &slice.endpoints);
    let ready: BTreeSet<_> = endpoints
        .filter(|endpoint| endpoint.conditions().ready && endpoint.node() == Some(&node.name))
        .map(|endpoint| endpoint.address)
        .collect();
    Some(HealthCheck {
        port,
        ready_here: ready.len(),
    })
}

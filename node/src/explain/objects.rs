//! Engine A: what the cluster's objects make of a packet, by the plans that the agent programs by.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{
    EndpointRef, EndpointSlice, IpFamily, MacAddr, Mtu, NodeName, ObjectName, Protocol, Service, ServicePort,
    SessionAffinity, Snapshot, TrafficPolicy,
};
use overlay::plan::{Plan, Remote};
use proxy::plan::{
    Action, Chosen, Frontend, FrontendKey, LeftOut, List, MAX_ENDPOINTS, NodeContext, PortKey, PortPlan,
    Standing, Target, standings,
};
use proxy::verdict::{Because, Decision, Packet, Verdict, decide};
use proxy::{ServiceView, plan_service, plans_of};

use super::PodHere;
use super::names::{addresses_of, endpoint_text, port_text as service_port_text};
use super::vpc::Leaving;

/// Endpoints that are told one by one.
const LISTED: usize = 20;

/// What the objects say of a packet's destination.
#[derive(Clone, Debug)]
pub struct Intent {
    /// Whose frontend it is.
    pub owner: Option<Owner>,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// The same in words, and why.
    pub lines: Vec<String>,
    /// Why it fails, where it does.
    pub failure: Option<String>,
}

/// A Service's frontend.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The Service.
    pub service: ObjectName,
    /// Its port.
    pub port_key: PortKey,
    /// The frontend.
    pub key: FrontendKey,
    /// The plan of that port.
    pub port: PortPlan,
    /// What the frontend does.
    pub frontend: Frontend,
}

/// What this node does with a packet, by the objects.
#[must_use]
pub fn intent(snapshot: &Snapshot, context: &NodeContext, packet: &Packet) -> Intent {
    let plans = plans_of(snapshot, context);
    let Decision {
        owner,
        verdict,
        because,
    } = decide(&plans, context, packet);
    let owner = owner.and_then(|(service, port_key, key)| {
        let port = plans.get(&service)?.ports.get(&port_key)?.clone();
        Some(Owner {
            frontend: *port.frontends.get(&key)?,
            service,
            port_key,
            key,
            port,
        })
    });
    let mut lines = vec![verdict_text(&verdict, &because, packet)];
    if let Some(owner) = &owner
        && let Some(service) = snapshot.services.get(&owner.service)
    {
        lines.push(port_text(service, owner));
        let list = match because {
            Because::Endpoints(list) => list,
            _ => List::Cluster,
        };
        lines.extend(endpoint_lines(snapshot, service, &owner.port_key, list, context));
    }
    let looked_at = Looked {
        snapshot,
        context,
        packet,
    };
    let failure = looked_at.failure(owner.as_ref(), &verdict, &because);
    Intent {
        owner,
        verdict,
        lines,
        failure,
    }
}

/// What this node's socket hook makes of a packet to a node port at another node's address, and whose that is: it serves
/// node ports of all nodes. None: it is none of these, or the hook leaves it to that node, since a policy keeps its
/// traffic there.
#[must_use]
pub fn by_hook(snapshot: &Snapshot, context: &NodeContext, packet: &Packet) -> Option<(NodeName, Intent)> {
    let to = packet.destination;
    if packet.protocol == Protocol::Sctp || context.addresses.contains(&to) {
        return None;
    }
    let mut others = snapshot.nodes.iter().filter(|(name, _)| **name != context.name);
    let (name, _) = others.find(|(_, node)| context.node_port_addresses_of(node).contains(&to))?;
    let mut own = context.addresses.iter().copied();
    let own = own.find(|own| own.is_ipv4() == to.is_ipv4() && context.serves_node_ports_on(*own))?;
    let here = Packet {
        destination: own,
        ..packet.clone()
    };
    let intent = intent(snapshot, context, &here);
    let is_taken = intent
        .owner
        .as_ref()
        .is_some_and(|owner| owner.frontend.action != Action::Split);
    is_taken.then(|| (name.clone(), intent))
}

/// What a failure is told of.
struct Looked<'a> {
    snapshot: &'a Snapshot,
    context: &'a NodeContext,
    packet: &'a Packet,
}

impl Looked<'_> {
    fn failure(&self, owner: Option<&Owner>, verdict: &Verdict, because: &Because) -> Option<String> {
        let Packet {
            source, destination, ..
        } = self.packet;
        let service = owner.map(|owner| owner.service.to_string()).unwrap_or_default();
        Some(match (because, verdict) {
            (_, Verdict::Forward { .. }) => return None,
            (Because::NoSuchPort(service), _) => format!("refused: {}", self.missing_port(service)),
            (Because::NobodysClusterIp(network), _) => format!(
                "dropped: {destination} is an address for Services ({network}), and no Service has it"
            ),
            (Because::NotAdmitted, _) => format!(
                "dropped: Service {service} admits the clients of its loadBalancerSourceRanges alone, and {source} is \
                 none of them"
            ),
            (Because::Endpoints(List::Cluster), _) => {
                format!("refused: Service {service} has no endpoint that takes connections")
            }
            (Because::Endpoints(List::Local), _) => format!(
                "dropped: Service {service} has no endpoint on this node that takes connections, and its traffic \
                 policy is Local"
            ),
            (Because::OwnDns, _) if self.context.dns_answers => return None,
            (Because::OwnDns, _) => format!(
                "{destination} is for this node's own DNS server, which does not answer, and no endpoint serves in its \
                 place"
            ),
            (Because::NoService, _) => return self.not_served(),
        })
    }

    /// Why nothing is translated at an address that is a Service's.
    fn not_served(&self) -> Option<String> {
        let (name, service) = service_at(self.snapshot, self.packet.destination)?;
        let Packet {
            destination,
            port,
            protocol,
            ..
        } = self.packet;
        let has_port = |found: &ServicePort| (found.port, found.protocol) == (*port, *protocol);
        if !service.ports.iter().any(has_port) {
            return Some(self.missing_port(name));
        }
        let view = ServiceView {
            service,
            slices: self.snapshot.slices_of(name).collect(),
        };
        let (_, rejected) = plan_service(&view, self.context);
        let reasons: Vec<_> = rejected
            .iter()
            .map(|rejected| rejected.reason.to_string())
            .collect();
        let because = match reasons.as_slice() {
            [] => String::new(),
            reasons => format!(": {}", reasons.join("; ")),
        };
        Some(format!(
            "Service {name} has {destination}, and this node does not serve it there{because}"
        ))
    }

    fn missing_port(&self, name: &ObjectName) -> String {
        let Packet { port, protocol, .. } = self.packet;
        let service = self.snapshot.services.get(name);
        let ports = service.into_iter().flat_map(|service| service.ports.iter());
        let ports: Vec<_> = ports.map(|port| service_port_text(name, port)).collect();
        let has = match ports.as_slice() {
            [] => "none at all".to_owned(),
            ports => ports.join(", "),
        };
        format!("Service {name} has no port {port}/{protocol}; it has {has}")
    }
}

/// The Service that has an address of its own, where packets are for this node to catch.
fn service_at(snapshot: &Snapshot, address: IpAddr) -> Option<(&ObjectName, &Service)> {
    let mut services = snapshot.services.iter();
    let found = services.find(|(_, service)| {
        let mut balanced = service.load_balancer.iter();
        let is_proxied = balanced.any(|ingress| ingress.proxied && ingress.address == address);
        addresses_of(service).any(|own| own == address) && !is_proxied
    });
    found.map(|(name, service)| (name, &**service))
}

fn verdict_text(verdict: &Verdict, because: &Because, packet: &Packet) -> String {
    let destination = endpoint_text(packet.destination, Some(packet.port));
    match verdict {
        Verdict::Pass if *because == Because::OwnDns => {
            format!("{destination} is this node's own DNS server: it answers here, and nothing is translated")
        }
        Verdict::Pass => format!("{destination} is no Service's: it goes there unchanged"),
        Verdict::Refuse => format!("{destination} is refused"),
        Verdict::Drop => format!("{destination} is dropped"),
        Verdict::Forward { to, masquerade } => {
            let source = if *masquerade {
                "as from this node's address"
            } else {
                "its source is kept"
            };
            format!("to {}, {source}", targets_text(to.iter()))
        }
    }
}

/// Where a packet goes that the plan would send as from this node's address, if it became one before the socket hook
/// translates.
#[must_use]
pub fn text_by_hook(to: &[Target]) -> String {
    format!(
        "to {}, its source is kept: the socket hook translates before there is a packet",
        targets_text(to.iter())
    )
}

/// The only one, or how many there are.
pub fn targets_text<'a>(targets: impl ExactSizeIterator<Item = &'a Target> + Clone) -> String {
    let mut first = targets.clone();
    match (targets.len(), first.next()) {
        (1, Some(only)) => target_text(only),
        (count, _) => format!("one of {count} endpoints"),
    }
}

fn port_text(service: &Service, owner: &Owner) -> String {
    let name = match &*owner.port_key.name {
        "" => String::new(),
        name => format!(" port {name}"),
    };
    let policy = |policy| match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    };
    let affinity = match service.affinity {
        SessionAffinity::None => "none".to_owned(),
        SessionAffinity::ClientIp { timeout } => {
            format!("a client keeps its endpoint for {} s", timeout.as_secs())
        }
    };
    format!(
        "Service {}{name}, frontend {}; policies: internal {}, external {}; affinity: {affinity}",
        owner.service,
        owner.key,
        policy(service.internal_policy),
        policy(service.external_policy),
    )
}

/// Each endpoint that the slices list for the port: whether it is chosen, and why.
fn endpoint_lines(
    snapshot: &Snapshot,
    service: &Service,
    key: &PortKey,
    list: List,
    context: &NodeContext,
) -> Vec<String> {
    let view = ServiceView {
        service,
        slices: snapshot.slices_of(&service.name).collect(),
    };
    let standings = standings(&view, key, list, context);
    let mut lines: Vec<_> = standings
        .iter()
        .take(LISTED)
        .map(|standing| {
            let whose = whose(standing.endpoint, &standing.slice.name);
            let reason = reason(standing, context);
            format!("  {:<21} {whose}: {reason}", target_text(&standing.target))
        })
        .collect();
    match standings.len().saturating_sub(LISTED) {
        0 => {}
        more => lines.push(format!("  and {more} more")),
    }
    if lines.is_empty() {
        lines.push(none_listed(&view.slices, service, key));
    }
    lines
}

fn none_listed(slices: &[&EndpointSlice], service: &Service, key: &PortKey) -> String {
    let filled = slices.iter().filter(|slice| !slice.endpoints.is_empty());
    let of_family: Vec<_> = filled.filter(|slice| slice.family == key.family).collect();
    let ports = of_family.iter().flat_map(|slice| slice.ports.iter());
    let others: Vec<_> = ports
        .map(|port| format!("{:?}/{}", &*port.name, port.protocol))
        .collect();
    if others.is_empty() {
        return format!("  no EndpointSlice of Service {} has an endpoint", service.name);
    }
    format!(
        "  endpoints are listed for other ports than {:?}/{}: {}",
        &*key.name,
        key.protocol,
        others.join(", ")
    )
}

fn whose(endpoint: EndpointRef<'_>, slice: &ObjectName) -> String {
    let pod = match endpoint.pod {
        Some(pod) => format!("pod {}/{pod}", slice.namespace),
        None => format!("of EndpointSlice {slice}"),
    };
    match endpoint.node() {
        Some(node) => format!("{pod} on {node}"),
        None => pod,
    }
}

/// What the plan made of an endpoint, and why.
fn reason(standing: &Standing<'_>, context: &NodeContext) -> String {
    let left_out = match standing.outcome {
        Ok(Chosen::Ready) => return "chosen, ready".to_owned(),
        Ok(Chosen::Terminating) => {
            return "chosen: it ends and still serves, and none is ready".to_owned();
        }
        Err(left_out) => left_out,
    };
    let why = match left_out {
        LeftOut::NotReady => "not ready".to_owned(),
        LeftOut::Terminating { serving: true } => "it ends, and others are ready".to_owned(),
        LeftOut::Terminating { serving: false } => "it ends and serves no more".to_owned(),
        LeftOut::NotHere => "it is not on this node, and the traffic policy is Local".to_owned(),
        LeftOut::HintedToOtherNode => format!(
            "its topology hints are for {}, and this is {}",
            joined(standing.endpoint.hinted_nodes()),
            context.name
        ),
        LeftOut::HintedToOtherZone => format!(
            "its topology hints are for zone {}, and this node is in {}",
            joined(standing.endpoint.hinted_zones()),
            context.zone.as_deref().unwrap_or("none")
        ),
        LeftOut::BadAddress => "no endpoint can have this address".to_owned(),
        LeftOut::Silent => {
            "it is this node's own DNS server, which does not answer at this moment".to_owned()
        }
        LeftOut::Superseded => "another entry lists the same address and port, and counts".to_owned(),
        LeftOut::NoRoom => format!("only {MAX_ENDPOINTS} endpoints are used"),
    };
    format!("not chosen: {why}")
}

fn joined<T: ToString>(names: impl IntoIterator<Item = T>) -> String {
    let names: Vec<_> = names.into_iter().map(|name| name.to_string()).collect();
    names.join(", ")
}

/// An endpoint with its port.
#[must_use]
pub fn target_text(target: &Target) -> String {
    endpoint_text(target.address, Some(target.port))
}

/// How an address is to be reached from this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// A pod of this node, behind its device.
    Pod {
        /// The device on the node's side.
        device: String,
        /// The MAC address of the pod's own.
        mac: Option<MacAddr>,
        /// MTU of both.
        mtu: Option<Mtu>,
    },
    /// A pod of another node, through the tunnel.
    Tunnel {
        /// The tunnel's device.
        device: String,
        /// Its MTU.
        mtu: Mtu,
        /// The other node's subnet.
        subnet: IpNetwork,
        /// The other tunnel end's inner address.
        vtep: IpAddr,
        /// Its MAC address.
        mac: MacAddr,
        /// The other node.
        public_ip: IpAddr,
    },
    /// A pod of another node, by a route to that.
    Gateway {
        /// The other node's subnet.
        subnet: IpNetwork,
        /// The other node.
        public_ip: IpAddr,
    },
    /// Out of the node, for what a pod sends that has an address of a VPC.
    Vpc(Leaving),
    /// This node's own address.
    Here,
    /// Of this node's subnet, and no pod's.
    NoPod {
        /// This node's subnet.
        subnet: IpNetwork,
    },
    /// Of the pod network, and in no node's subnet.
    NoLease {
        /// The pod network.
        network: IpNetwork,
    },
    /// The node's other routes decide.
    Elsewhere,
    /// What there should be is not known.
    Unknown,
}

/// How this node reaches an address, by its pods and the leases of the others.
#[must_use]
pub fn way(address: IpAddr, own: &[IpAddr], pods: &[PodHere], plan: Option<&Plan>) -> Way {
    if let Some(pod) = pods.iter().find(|pod| pod.addresses.contains(&address)) {
        return Way::Pod {
            device: pod.device.clone(),
            mac: pod.mac,
            mtu: plan.map(|plan| plan.pod_mtu),
        };
    }
    if own.contains(&address) {
        return Way::Here;
    }
    let Some(half) = plan.and_then(|plan| plan.halves.get(IpFamily::from(address))) else {
        return Way::Elsewhere;
    };
    let remote = half.remotes.iter().find(|(subnet, _)| subnet.contains(address));
    match (remote, &half.device) {
        (Some((subnet, Remote::Gateway { public_ip })), _) => Way::Gateway {
            subnet: *subnet,
            public_ip: *public_ip,
        },
        (Some((subnet, Remote::Tunnel { vtep, mac, public_ip })), Some(device)) => Way::Tunnel {
            device: device.name.clone(),
            mtu: device.mtu,
            subnet: *subnet,
            vtep: *vtep,
            mac: *mac,
            public_ip: *public_ip,
        },
        (None, _) if half.subnet.contains(address) => Way::NoPod { subnet: half.subnet },
        (None, _) if half.network.contains(address) => Way::NoLease {
            network: half.network,
        },
        (Some((_, Remote::Tunnel { .. })), None) | (None, _) => Way::Elsewhere,
    }
}

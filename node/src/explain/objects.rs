//! Engine A: what the cluster's objects make of a packet, by the plans that the agent programs by.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{
    Conditions, EndpointRef, EndpointSlice, IpFamily, MacAddr, Mtu, ObjectName, Service, SessionAffinity,
    Snapshot, TrafficPolicy,
};
use overlay::plan::{Plan, Remote};
use proxy::plan::{Frontend, FrontendKey, NodeContext, PortKey, PortPlan, Target};
use proxy::plans_of;
use proxy::verdict::{Decision, Packet, Verdict, decide};

use super::PodHere;
use super::names::endpoint_text;

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
    let Decision { owner, verdict } = decide(&plans, context, packet);
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
    let mut lines = vec![verdict_text(&verdict, packet)];
    if let Some(owner) = &owner
        && let Some(service) = snapshot.services.get(&owner.service)
    {
        lines.push(port_text(service, owner));
        let slices: Vec<_> = snapshot.slices_of(&owner.service).collect();
        lines.extend(endpoint_lines(
            &slices,
            service,
            &owner.port_key,
            &verdict,
            context,
        ));
    }
    Intent {
        owner,
        verdict,
        lines,
    }
}

fn verdict_text(verdict: &Verdict, packet: &Packet) -> String {
    let destination = endpoint_text(packet.destination, Some(packet.port));
    match verdict {
        Verdict::Pass => format!("{destination} is no Service's: it goes there unchanged"),
        Verdict::Refuse => format!("{destination} is refused"),
        Verdict::Drop => format!("{destination} is dropped"),
        Verdict::Forward { to, masquerade } => {
            let source = if *masquerade {
                "as from this node's address"
            } else {
                "its source is kept"
            };
            match to.as_slice() {
                [only] => format!("to {}, {source}", target_text(only)),
                several => format!("to one of {} endpoints, {source}", several.len()),
            }
        }
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
    slices: &[&EndpointSlice],
    service: &Service,
    key: &PortKey,
    verdict: &Verdict,
    context: &NodeContext,
) -> Vec<String> {
    let chosen: &[Target] = match verdict {
        Verdict::Forward { to, .. } => to,
        Verdict::Pass | Verdict::Refuse | Verdict::Drop => &[],
    };
    let mut lines = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == key.family) {
        let ports = slice.ports.iter();
        let ports = ports.filter(|port| port.name == key.name && port.protocol == key.protocol);
        for port in ports {
            for endpoint in &slice.endpoints {
                let target = Target {
                    address: endpoint.address,
                    port: port.port,
                };
                let reason = reason(endpoint, chosen.contains(&target), context);
                let whose = whose(endpoint, &slice.name);
                lines.push(format!("  {:<21} {whose}: {reason}", target_text(&target)));
            }
        }
    }
    if lines.is_empty() {
        lines.push(none_listed(slices, service, key));
    }
    let more = lines.len().saturating_sub(LISTED);
    lines.truncate(LISTED);
    if more > 0 {
        lines.push(format!("  and {more} more"));
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

/// Why the plan took an endpoint, or did not: the plan decides, the conditions say it.
fn reason(endpoint: EndpointRef<'_>, is_chosen: bool, context: &NodeContext) -> &'static str {
    let Conditions {
        ready,
        serving,
        terminating,
    } = endpoint.conditions();
    let is_here = endpoint.node() == Some(&context.name);
    match (is_chosen, ready) {
        (true, true) => "chosen, ready",
        (true, false) => "chosen: it ends and still serves, and none is ready",
        (false, false) if terminating && serving => "not chosen: it ends, and others are ready",
        (false, false) if terminating => "not chosen: it ends and serves no more",
        (false, false) => "not chosen: not ready",
        (false, true)
            if !is_here && endpoint.hinted_zones().is_empty() && endpoint.hinted_nodes().is_empty() =>
        {
            "not chosen: the policy keeps to this node's endpoints"
        }
        (false, true) => "not chosen: hints, policy or the verdict above lead elsewhere",
    }
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
    /// This node's own address.
    Here,
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
        (Some((_, Remote::Tunnel { .. })), None) | (None, _) => Way::Elsewhere,
    }
}

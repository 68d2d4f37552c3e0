//! What the plans of all Services make of one packet, without a kernel.
//!
//! The same walk as the packet rules', in words: the oracle that datapaths are compared with, and what can be told of
//! a packet that nobody has sent.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName, Protocol};

use crate::plan::{
    Action, Admits, Frontend, FrontendAddress, FrontendKey, List, LocalTraffic, Masquerade, NodeContext,
    PortKey, PortPlan, ServicePlan, Target,
};

/// The first packet of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source address.
    pub source: IpAddr,
    /// The device that it came in by; none for a packet that this node made.
    pub device: Option<String>,
    /// Destination address.
    pub destination: IpAddr,
    /// Destination port.
    pub port: NonZeroU16,
    /// Protocol.
    pub protocol: Protocol,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is no Service's: it goes on unchanged.
    Pass,
    /// The client is told that nobody is there.
    Refuse,
    /// Nothing comes back.
    Drop,
    /// One of these endpoints gets it.
    Forward {
        /// The endpoints, sorted, never none.
        to: Vec<Target>,
        /// Whether they see this node's address as the client's. A client that is sent to itself is masqueraded in
        /// any case.
        masquerade: bool,
    },
}

/// What this node does with a packet, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The frontend that the packet meets: its Service, the Service's port and the frontend itself. None: it meets none.
    pub owner: Option<(ObjectName, PortKey, FrontendKey)>,
    /// What becomes of the packet.
    pub verdict: Verdict,
    /// What it follows from.
    pub because: Because,
}

/// What a [`Verdict`] follows from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Because {
    /// The destination is nothing of a Service.
    NoService,
    /// It is an address of this node's own DNS server.
    OwnDns,
    /// It is the Service's ClusterIP, at a port that the Service does not have.
    NoSuchPort(ObjectName),
    /// It lies in this network of ClusterIPs, and no Service has it.
    NobodysClusterIp(IpNetwork),
    /// The Service admits other clients alone.
    NotAdmitted,
    /// The endpoints of this list, be it empty.
    Endpoints(List),
}

/// What this node does with the packet.
#[must_use]
pub fn decide(
    plans: &BTreeMap<ObjectName, Arc<ServicePlan>>,
    node: &NodeContext,
    packet: &Packet,
) -> Decision {
    let key = |address| FrontendKey {
        address,
        port: packet.port,
        protocol: packet.protocol,
    };
    let nobodys = |verdict, because| Decision {
        owner: None,
        verdict,
        because,
    };
    let by_address = key(FrontendAddress::Service(packet.destination));
    if let Some(decision) = at_frontend(plans, node, packet, &by_address) {
        return decision;
    }
    let mut of_cluster_ip = plans.iter();
    let of_cluster_ip = of_cluster_ip.find(|(_, plan)| plan.cluster_ips.contains(&packet.destination));
    if let Some((service, _)) = of_cluster_ip {
        return nobodys(Verdict::Refuse, Because::NoSuchPort(service.clone()));
    }
    let serves =
        node.addresses.contains(&packet.destination) && node.serves_node_ports_on(packet.destination);
    let family = IpFamily::from(packet.destination);
    let by_node_port = key(FrontendAddress::EveryNodeAddress(family));
    if let Some(decision) = serves
        .then(|| at_frontend(plans, node, packet, &by_node_port))
        .flatten()
    {
        return decision;
    }
    if node.local_dns.contains(&packet.destination) {
        return nobodys(Verdict::Pass, Because::OwnDns);
    }
    let mut networks = node.service_networks(family);
    let network = networks.find(|network| network.contains(packet.destination));
    match network.filter(|_| !node.addresses.contains(&packet.destination)) {
        Some(network) => nobodys(Verdict::Drop, Because::NobodysClusterIp(network)),
        None => nobodys(Verdict::Pass, Because::NoService),
    }
}

/// The owner of a frontend is as in [`crate::Claims`].
fn at_frontend(
    plans: &BTreeMap<ObjectName, Arc<ServicePlan>>,
    node: &NodeContext,
    packet: &Packet,
    key: &FrontendKey,
) -> Option<Decision> {
    let (own, foreign): (Vec<_>, Vec<_>) = plans.iter().partition(|(_, plan)| plan.is_cluster_ip(key));
    own.into_iter().chain(foreign).find_map(|(service, plan)| {
        let mut ports = plan.ports.iter();
        let (port_key, port, frontend) =
            ports.find_map(|(port_key, port)| Some((port_key, port, port.frontends.get(key)?)))?;
        let (verdict, because) = by_plan(port, *frontend, node, packet);
        Some(Decision {
            owner: Some((service.clone(), port_key.clone(), *key)),
            verdict,
            because,
        })
    })
}

fn by_plan(port: &PortPlan, frontend: Frontend, node: &NodeContext, packet: &Packet) -> (Verdict, Because) {
    let admitted = match frontend.admits {
        Admits::Everyone => true,
        Admits::Sources => port.sources.iter().any(|network| network.contains(packet.source)),
    };
    if !admitted {
        return (Verdict::Drop, Because::NotAdmitted);
    }
    let forward = |list, masquerade| {
        let to = port.list(list).to_vec();
        (Verdict::Forward { to, masquerade }, Because::Endpoints(list))
    };
    match frontend.action {
        Action::Refuse => (Verdict::Refuse, Because::Endpoints(List::Cluster)),
        Action::Drop => (Verdict::Drop, Because::Endpoints(List::Local)),
        Action::Spread { list, masquerade } => {
            let masquerade = match masquerade {
                Masquerade::Nobody => false,
                Masquerade::OutsidePods => !node.is_pod(packet),
                Masquerade::Everyone => true,
            };
            forward(list, masquerade)
        }
        Action::Split if node.is_pod(packet) => forward(List::Cluster, false),
        Action::Split if node.addresses.contains(&packet.source) => forward(List::Cluster, true),
        Action::Split if port.local.is_empty() => (Verdict::Drop, Because::Endpoints(List::Local)),
        Action::Split => forward(List::Local, false),
    }
}

impl NodeContext {
    /// Whether a packet is a pod's.
    #[must_use]
    pub fn is_pod(&self, packet: &Packet) -> bool {
        let device = packet.device.as_deref();
        match &self.local_traffic {
            LocalTraffic::Unknown => false,
            LocalTraffic::Networks(networks) => {
                networks.iter().any(|network| network.contains(packet.source))
            }
            LocalTraffic::Interface(name) => device == Some(name.as_str()),
            LocalTraffic::InterfacePrefix(prefix) => {
                device.is_some_and(|device| device.starts_with(prefix.as_str()))
            }
        }
    }
}

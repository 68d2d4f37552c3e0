//! What an end names, with everybody who may get what is sent there.
//!
//! [`crate::explain::names`] knows what is meant; this adds a Service's endpoints, since packets bear their addresses where
//! the socket hook translates.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use model::{EndpointSlice, NodeName, ObjectName, Protocol, Service, ServicePort, Snapshot};
use overlay::plan::{Half, Plan, Remote};
use proxy::plan::NodeContext;
use proxy::verdict::Packet;
use serde::{Deserialize, Serialize};

use crate::explain::Facts;
use crate::explain::names::{
    Known, Name, NameError, Place, Subject, addresses_of, meant_ports, no_such_port, port_text, protocol_of,
};
use crate::explain::objects::{by_hook, intent};

/// What an end names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Located {
    /// A kind and a name.
    pub name: String,
    /// Its addresses; none of a headless Service.
    pub addresses: Vec<IpAddr>,
    /// Of a node: the addresses of its tunnel's devices, which are what it sends to pods of other nodes from.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub tunnel: Vec<IpAddr>,
    /// The port, where one is meant.
    pub port: Option<NonZeroU16>,
    /// The protocol, where name or port tell.
    pub protocol: Option<Protocol>,
    /// The node that it is on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub node: Option<NodeName>,
    /// The Service that answers there, where one does.
    pub service: Option<Behind>,
}

/// Who is behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// For example `svc/default/web:80`.
    pub name: String,
    /// Its endpoints that serve, of the ports that are meant.
    pub endpoints: Vec<SocketAddr>,
    /// The ports that are meant, each in the form that names it alone. None: the Service has no such port.
    pub meant: Vec<String>,
    /// All ports of the Service.
    pub ports: Vec<String>,
}

/// What an end names.
///
/// # Errors
/// When it is nothing, or several things.
pub(super) fn locate(name: &str, facts: &Facts) -> Result<Located, NameError> {
    let known = Known {
        snapshot: Some(&facts.snapshot),
        pods: &facts.pods,
        former: Some(&facts.former),
    };
    let name = known.object(Name::parse(name)?)?;
    if let Subject::Service(service) = &name.subject {
        let place = Name {
            port: None,
            protocol: None,
            ..name.clone()
        };
        let service = known.service(&place, service)?;
        let located = of_service(&name, service, &facts.snapshot)?;
        // A headless one is its endpoints.
        let behind = located.service.iter().flat_map(|behind| &behind.endpoints);
        let is_nobody = located.addresses.is_empty() && behind.count() == 0;
        return match is_nobody {
            true => Err(known.no_address(service)),
            false => Ok(located),
        };
    }
    // Only a Service's port depends on the protocol.
    let protocol = protocol_of(&name);
    let place = known.place(&Name {
        protocol: None,
        ..name.clone()
    })?;
    let asked = protocol.is_some() || name.protocol.is_none();
    let service = facts.context.as_ref().filter(|_| asked);
    let service = service.and_then(|context| {
        at_address(
            &facts.snapshot,
            context,
            &place,
            protocol,
            facts.pin_dir.is_some(),
        )
    });
    let tunnel = match (&name.subject, &facts.network) {
        (Subject::Node(node), Some(plan)) => {
            let is_own = facts.node == NodeName::from(node.as_str());
            tunnel(plan, is_own, &place.addresses)
        }
        _ => Vec::new(),
    };
    let Place {
        name,
        addresses,
        port,
        protocol: _,
        node,
    } = place;
    Ok(Located {
        name,
        addresses,
        tunnel,
        port,
        protocol,
        node,
        service,
    })
}

/// The addresses of a node's tunnel devices.
fn tunnel(plan: &Plan, is_own: bool, node: &[IpAddr]) -> Vec<IpAddr> {
    let of_half = |half: &Half| -> Vec<IpAddr> {
        if is_own {
            return half.device.iter().map(|device| device.address).collect();
        }
        let remotes = half.remotes.values();
        let vtep = |remote: &Remote| match remote {
            Remote::Tunnel { vtep, public_ip, .. } => node.contains(public_ip).then_some(*vtep),
            Remote::Gateway { .. } => None,
        };
        remotes.filter_map(vtep).collect()
    };
    plan.halves.values().flat_map(of_half).collect()
}

/// A Service that was named, with the ports that are meant: all where the name has none.
fn of_service(name: &Name, service: &Service, snapshot: &Snapshot) -> Result<Located, NameError> {
    let addresses = addresses_of(service).collect();
    let located = Located {
        name: format!("Service {}", service.name),
        addresses,
        tunnel: Vec::new(),
        port: name.number(),
        protocol: protocol_of(name),
        node: None,
        service: None,
    };
    if name.protocol.is_some() && located.protocol.is_none() {
        // No Service balances it: it goes to the Service's own address.
        return Ok(located);
    }
    let meant = meant_ports(name, service, located.protocol);
    if meant.is_empty() && name.port.is_some() && name.number().is_none() {
        return Err(no_such_port(name, service));
    }
    let same = |of: fn(&ServicePort) -> u32| meant.windows(2).all(|two| of(two[0]) == of(two[1]));
    let first = meant.first();
    let port = first
        .filter(|_| same(|port| port.port.get().into()))
        .map(|port| port.port);
    let protocol = first.filter(|_| same(|port| port.protocol.number().into()));
    let endpoints = meant.iter();
    let endpoints = endpoints
        .flat_map(|port| serving(snapshot, &service.name, &port.name, port.protocol))
        .collect();
    Ok(Located {
        port: name.number().or(port),
        protocol: located.protocol.or(protocol.map(|port| port.protocol)),
        service: Some(behind(service, name.number().or(port), endpoints, &meant)),
        ..located
    })
}

/// Who is behind an address and port that are some Service's: its own, or a node's with its node port; of another node's
/// where a hook (`has_hook`) takes those, too.
fn at_address(
    snapshot: &Snapshot,
    context: &NodeContext,
    place: &Place,
    protocol: Option<Protocol>,
    has_hook: bool,
) -> Option<Behind> {
    let port = place.port?;
    let mut found = None;
    let mut endpoints = Vec::new();
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
    for protocol in protocols.filter(|one| protocol.is_none_or(|wanted| wanted == *one)) {
        for address in &place.addresses {
            let packet = Packet {
                source: *address,
                device: None,
                destination: *address,
                port,
                protocol,
            };
            let here = intent(snapshot, context, &packet).owner;
            let by_hook = || by_hook(snapshot, context, &packet)?.1.owner;
            let Some(owner) = here.or_else(|| by_hook().filter(|_| has_hook)) else {
                continue;
            };
            endpoints.extend(serving(snapshot, &owner.service, &owner.port_key.name, protocol));
            found = Some(owner);
        }
    }
    let owner = found?;
    let service = snapshot.services.get(&owner.service)?;
    let meant = service
        .ports
        .iter()
        .filter(|port| *port.name == *owner.port_key.name);
    Some(behind(service, Some(port), endpoints, &meant.collect::<Vec<_>>()))
}

fn behind(
    service: &Service,
    port: Option<NonZeroU16>,
    mut endpoints: Vec<SocketAddr>,
    meant: &[&ServicePort],
) -> Behind {
    endpoints.sort_unstable();
    endpoints.dedup();
    let name = &service.name;
    Behind {
        name: match port {
            Some(port) => format!("svc/{name}:{port}"),
            None => format!("svc/{name}"),
        },
        endpoints,
        meant: meant.iter().map(|port| port_text(name, port)).collect(),
        ports: service.ports.iter().map(|port| port_text(name, port)).collect(),
    }
}

/// The endpoints of a port that take connections, or still have some.
fn serving(snapshot: &Snapshot, service: &ObjectName, port: &str, protocol: Protocol) -> Vec<SocketAddr> {
    let of_slice = |slice: &EndpointSlice| -> Vec<SocketAddr> {
        let ports = slice.ports.iter();
        let ports = ports.filter(|found| *found.name == *port && found.protocol == protocol);
        let serving = |port: NonZeroU16| {
            let endpoints = slice.endpoints.iter();
            let endpoints =
                endpoints.filter(|endpoint| endpoint.conditions().ready || endpoint.conditions().serving);
            endpoints.map(move |endpoint| SocketAddr::new(endpoint.address, port.get()))
        };
        ports.flat_map(|port| serving(port.port)).collect()
    };
    snapshot.slices_of(service).flat_map(of_slice).collect()
}

#[cfg(test)]
pub(super) mod tests;

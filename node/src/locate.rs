//! What an end names, with everybody who may get what is sent there: an agent is asked, for commands that look at packets.
//!
//! [`crate::explain::names`] knows what is meant; this adds a Service's endpoints, since packets bear their addresses where
//! the socket hook translates.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use model::{EndpointSlice, NodeName, ObjectName, Protocol, Snapshot};
use overlay::plan::{Half, Plan, Remote};
use proxy::plan::NodeContext;
use proxy::verdict::Packet;
use serde::{Deserialize, Serialize};

use crate::explain::Facts;
use crate::explain::names::{Known, Name, NameError, Place, Subject};
use crate::explain::objects::intent;

/// What to ask the agent there.
pub const PATH: &str = "/locate";

/// What somebody wants to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// An end, as [`crate::ends::Name`] reads it.
    pub name: String,
}

/// What an agent says to a [`Question`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is known.
    Located(Located),
    /// It names nothing, or several things; for people.
    NotUnderstood(String),
}

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
    /// The port.
    pub port: Option<NonZeroU16>,
    /// The protocol, where name or port tell.
    pub protocol: Option<Protocol>,
    /// The Service that answers there, where one does.
    pub service: Option<Behind>,
}

/// Who is behind a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Behind {
    /// For example `svc/default/web:80`.
    pub name: String,
    /// Its endpoints that serve.
    pub endpoints: Vec<SocketAddr>,
}

/// What an end names.
///
/// # Errors
/// When it names nothing, or several things.
pub fn locate(name: &str, facts: &Facts) -> Result<Located, NameError> {
    let name = Name::parse(name)?;
    let known = Known {
        snapshot: Some(&facts.snapshot),
        pods: &facts.pods,
        former: Some(&facts.former),
    };
    let place = known.place(&name)?;
    let service = match &name.subject {
        Subject::Service(service) => place
            .port
            .map(|port| named(&facts.snapshot, service, &place, port)),
        _ => facts
            .context
            .as_ref()
            .and_then(|context| at_address(&facts.snapshot, context, &place)),
    };
    let tunnel = match (&name.subject, &facts.network) {
        (Subject::Node(node), Some(plan)) => tunnel(
            plan,
            facts.node == NodeName::from(node.as_str()),
            &place.addresses,
        ),
        _ => Vec::new(),
    };
    let Place {
        name,
        addresses,
        port,
        protocol,
        node: _,
    } = place;
    Ok(Located {
        name,
        addresses,
        tunnel,
        port,
        protocol,
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

/// Who is behind a port of a Service that was named.
fn named(snapshot: &Snapshot, service: &ObjectName, place: &Place, port: NonZeroU16) -> Behind {
    let mut endpoints = Vec::new();
    let object = snapshot.services.get(service);
    let ports = object.into_iter().flat_map(|object| object.ports.iter());
    let meant = ports.filter(|found| {
        found.port == port && place.protocol.is_none_or(|protocol| protocol == found.protocol)
    });
    for port in meant {
        endpoints.extend(serving(snapshot, service, &port.name, port.protocol));
    }
    behind(service, port, endpoints)
}

/// Who is behind an address and port that are some Service's: its own, or a node's with its node port.
fn at_address(snapshot: &Snapshot, context: &NodeContext, place: &Place) -> Option<Behind> {
    let port = place.port?;
    let mut service = None;
    let mut endpoints = Vec::new();
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    for protocol in protocols {
        if place.protocol.is_some_and(|wanted| wanted != protocol) {
            continue;
        }
        for address in &place.addresses {
            let packet = Packet {
                source: *address,
                device: None,
                destination: *address,
                port,
                protocol,
            };
            let Some(owner) = intent(snapshot, context, &packet).owner else {
                continue;
            };
            endpoints.extend(serving(snapshot, &owner.service, &owner.port_key.name, protocol));
            service = Some(owner.service);
        }
    }
    service.map(|service| behind(&service, port, endpoints))
}

fn behind(service: &ObjectName, port: NonZeroU16, mut endpoints: Vec<SocketAddr>) -> Behind {
    endpoints.sort_unstable();
    endpoints.dedup();
    Behind {
        name: format!("svc/{service}:{port}"),
        endpoints,
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
mod tests;

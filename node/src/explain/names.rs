//! What an end names, of what an agent knows: a pod, a Service and its port, a node, an address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use model::{NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort, Snapshot};

use super::PodHere;
use crate::ends::{FormError, NAMESPACE, Port};
pub use crate::ends::{Name, Subject};

/// How many candidates and suggestions are listed.
const LISTED: usize = 8;

/// Why a name names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no form that is known.
    #[error(transparent)]
    Form(#[from] FormError),
    /// There is none.
    #[error("there is no {what} {name}{}", Suggested(.nearest))]
    Unknown {
        /// For example `Service`.
        what: &'static str,
        /// As it was written.
        name: String,
        /// The nearest that there are.
        nearest: Vec<String>,
    },
    /// There are several.
    #[error("{name} may be {}", .candidates.join(" or "))]
    Ambiguous {
        /// As it was written.
        name: String,
        /// Each in a form that names it alone.
        candidates: Vec<String>,
    },
    /// It needs what is not known here.
    #[error("{name} cannot be looked up: {reason}")]
    NotHere {
        /// As it was written.
        name: String,
        /// What is missing.
        reason: String,
    },
}

struct Suggested<'a>(&'a [String]);

impl fmt::Display for Suggested<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => Ok(()),
            nearest => write!(f, " (did you mean {}?)", nearest.join(" or ")),
        }
    }
}

/// What names are looked up in.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The cluster; none where no agent tells.
    pub snapshot: Option<&'a Snapshot>,
    /// This node's pods.
    pub pods: &'a [PodHere],
}

/// What a name names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// A kind and a name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// The node that it is on.
    pub node: Option<NodeName>,
    /// The port.
    pub port: Option<NonZeroU16>,
    /// The protocol, where name or port tell.
    pub protocol: Option<Protocol>,
}

impl Known<'_> {
    /// What a name names. Names that a resolver knows are not asked for here.
    ///
    /// # Errors
    /// When it is nothing, or several things.
    pub fn place(&self, name: &Name) -> Result<Place, NameError> {
        let place = match &name.subject {
            Subject::Pod(pod) => self.one(name, "pod", pod, &self.pods())?,
            Subject::Service(service) => {
                let found = self.one(name, "Service", service, &self.services(name)?)?;
                return port_of(name, found);
            }
            Subject::Node(node) => self.node(name, node)?,
            Subject::Address(address) => self.at(*address),
            Subject::Dns(_) => return Err(not_here(name, "no resolver was asked")),
            Subject::Any => {
                return Err(not_here(
                    name,
                    "one packet is explained, between two who are named",
                ));
            }
        };
        Ok(Place {
            port: name.number(),
            protocol: protocol(name)?,
            ..place
        })
    }

    /// What has an address, whatever it is.
    #[must_use]
    pub fn at(&self, address: IpAddr) -> Place {
        let place = |name: String, node| Place {
            name,
            addresses: vec![address],
            node,
            port: None,
            protocol: None,
        };
        let pods = self.pods();
        // Pods of the host network have their node's address.
        let mut nodes = self
            .snapshot
            .into_iter()
            .flat_map(|snapshot| snapshot.nodes.iter());
        let node = nodes.find(|(_, node)| node.internal_addresses.contains(&address));
        if let Some((name, _)) = node {
            return place(format!("node {name}"), Some(name.clone()));
        }
        if let Some((name, pod)) = pods.iter().find(|(_, pod)| pod.addresses.contains(&address)) {
            return place(format!("pod {name}"), pod.node.clone());
        }
        let mut services = self
            .snapshot
            .into_iter()
            .flat_map(|snapshot| snapshot.services.iter());
        match services.find(|(_, service)| addresses_of(service).any(|own| own == address)) {
            Some((name, _)) => place(format!("Service {name}"), None),
            None => place("address".to_owned(), None),
        }
    }

    /// Pods that are known: this node's, and others as endpoints of Services.
    fn pods(&self) -> BTreeMap<ObjectName, Place> {
        let mut pods: BTreeMap<ObjectName, Place> = BTreeMap::new();
        let slices = self
            .snapshot
            .into_iter()
            .flat_map(|snapshot| snapshot.slices.iter());
        for slice in slices.flat_map(|(_, slices)| slices.iter()) {
            for endpoint in &slice.endpoints {
                let Some(pod) = endpoint.pod else { continue };
                let name = ObjectName::new(slice.name.namespace.clone(), pod);
                let place = entry(&mut pods, &name, endpoint.node().cloned());
                if !place.addresses.contains(&endpoint.address) {
                    place.addresses.push(endpoint.address);
                }
            }
        }
        for here in self.pods {
            let Some(name) = &here.name else { continue };
            let place = entry(&mut pods, name, Some(here.node.clone()));
            place.addresses.clone_from(&here.addresses);
        }
        pods
    }

    fn services(&self, name: &Name) -> Result<BTreeMap<ObjectName, &Service>, NameError> {
        let snapshot = self.snapshot.ok_or_else(|| no_agent(name))?;
        let services = snapshot.services.iter();
        Ok(services
            .map(|(name, service)| (name.clone(), &**service))
            .collect())
    }

    fn node(&self, name: &Name, node: &str) -> Result<Place, NameError> {
        let snapshot = self.snapshot.ok_or_else(|| no_agent(name))?;
        let found = snapshot.nodes.get(&NodeName::from(node));
        let Some(found) = found else {
            return Err(NameError::Unknown {
                what: "node",
                name: node.to_owned(),
                nearest: nearest_nodes(node, snapshot.nodes.iter().map(|(name, _)| name)),
            });
        };
        Ok(Place {
            name: format!("node {}", found.name),
            addresses: found.internal_addresses.clone(),
            node: Some(found.name.clone()),
            port: None,
            protocol: None,
        })
    }

    /// The one of that name.
    fn one<T: Clone>(
        &self,
        written: &Name,
        what: &'static str,
        name: &ObjectName,
        all: &BTreeMap<ObjectName, T>,
    ) -> Result<T, NameError> {
        match all.get(name) {
            Some(found) => Ok(found.clone()),
            None if self.snapshot.is_none() => Err(no_agent(written)),
            None => Err(NameError::Unknown {
                what,
                name: name.to_string(),
                nearest: nearest_objects(name, all.keys(), if what == "pod" { "pod" } else { "svc" }),
            }),
        }
    }
}

fn entry<'a>(
    pods: &'a mut BTreeMap<ObjectName, Place>,
    name: &ObjectName,
    node: Option<NodeName>,
) -> &'a mut Place {
    pods.entry(name.clone()).or_insert_with(|| Place {
        name: format!("pod {name}"),
        addresses: Vec::new(),
        node,
        port: None,
        protocol: None,
    })
}

fn no_agent(name: &Name) -> NameError {
    not_here(
        name,
        "no agent of this node answers, and only it knows names: give an address",
    )
}

fn not_here(name: &Name, reason: &str) -> NameError {
    NameError::NotHere {
        name: name.subject.to_string(),
        reason: reason.to_owned(),
    }
}

/// All addresses that are a Service's own.
pub fn addresses_of(service: &Service) -> impl Iterator<Item = IpAddr> {
    let cluster_ips = match &service.kind {
        ServiceKind::ClusterIp { addresses } => &addresses[..],
        ServiceKind::Headless | ServiceKind::ExternalName(_) => &[],
    };
    let balanced = service.load_balancer.iter().map(|ingress| ingress.address);
    cluster_ips
        .iter()
        .copied()
        .chain(service.external_addresses.iter().copied())
        .chain(balanced)
}

/// The protocol that was written: one of those that Services have.
fn protocol(name: &Name) -> Result<Option<Protocol>, NameError> {
    let Some(written) = name.protocol else {
        return Ok(None);
    };
    let mut known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
    let found = known.find(|protocol| protocol.number() == written.0);
    let unknown = || not_here(name, "only tcp, udp and sctp are explained");
    found.map(Some).ok_or_else(unknown)
}

/// A Service with the port that the name means: the only one where it does not say.
fn port_of(name: &Name, service: &Service) -> Result<Place, NameError> {
    let object = &service.name;
    let protocol = protocol(name)?;
    let same_protocol = |port: &&ServicePort| protocol.is_none_or(|protocol| protocol == port.protocol);
    let is_meant = |port: &&ServicePort| match &name.port {
        None => true,
        Some(Port::Number(number)) => port.port == *number,
        Some(Port::Name(wanted)) => *port.name == **wanted,
    };
    let ports = || service.ports.iter().filter(same_protocol);
    let meant: Vec<_> = ports().filter(is_meant).collect();
    let place = |port: Option<&ServicePort>, number| Place {
        name: format!("Service {object}"),
        addresses: addresses_of(service).collect(),
        node: None,
        port: number,
        protocol: port.map(|port| port.protocol).or(protocol),
    };
    match meant.as_slice() {
        [port] => Ok(place(Some(port), Some(port.port))),
        // That nothing is served there is the answer.
        [] if name.number().is_some() => Ok(place(None, name.number())),
        [] => Err(NameError::Unknown {
            what: "port of",
            name: name.to_string(),
            nearest: ports().map(|port| port_text(object, port)).collect(),
        }),
        several => Err(NameError::Ambiguous {
            name: name.to_string(),
            candidates: several.iter().map(|port| port_text(object, port)).collect(),
        }),
    }
}

fn port_text(service: &ObjectName, port: &ServicePort) -> String {
    let protocol = port.protocol.to_string().to_lowercase();
    format!("svc/{service}:{}/{protocol}", port.port)
}

/// Those objects whose names differ the least, in the form that is typed: others' namespaces where its own has none.
fn nearest_objects<'a>(
    wanted: &ObjectName,
    all: impl Iterator<Item = &'a ObjectName>,
    kind: &str,
) -> Vec<String> {
    let near: BTreeSet<_> = all
        .filter_map(|found| {
            let spaces = edits(&wanted.namespace, &found.namespace);
            Some((spaces > 0, distance(&wanted.name, &found.name)?, spaces, found))
        })
        .collect();
    let are_elsewhere = near.first().is_some_and(|(is_elsewhere, ..)| *is_elsewhere);
    near.into_iter()
        .filter(|(is_elsewhere, ..)| *is_elsewhere == are_elsewhere)
        .take(LISTED)
        .map(|(.., found)| match &*found.namespace {
            NAMESPACE => format!("{kind}/{}", found.name),
            _ => format!("{kind}/{found}"),
        })
        .collect()
}

/// Those nodes whose names differ the least, in the form that is typed.
fn nearest_nodes<'a>(wanted: &str, all: impl Iterator<Item = &'a NodeName>) -> Vec<String> {
    let near: BTreeSet<_> = all
        .filter_map(|found| Some((distance(wanted, &found.0)?, found)))
        .collect();
    near.into_iter()
        .take(LISTED)
        .map(|(_, found)| format!("node/{found}"))
        .collect()
}

/// In how much two names differ; none where nobody takes one for the other.
fn distance(wanted: &str, name: &str) -> Option<usize> {
    let distance = edits(wanted, name);
    let is_near = distance <= 1 + wanted.len() / 3;
    (is_near || name.contains(wanted) || wanted.contains(name)).then_some(distance)
}

/// How many characters must be put in, left out or changed to make one text the other (Levenshtein's distance).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (above, a) in from.chars().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        for (cell, b) in row.iter_mut().skip(1).zip(to.chars()) {
            let change = diagonal + usize::from(a != b);
            diagonal = *cell;
            left = change.min(left + 1).min(diagonal + 1);
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = above + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

/// An address with its port, where there is one.
#[must_use]
pub fn endpoint_text(address: IpAddr, port: Option<NonZeroU16>) -> String {
    match port {
        Some(port) => SocketAddr::new(address, port.get()).to_string(),
        None => address.to_string(),
    }
}

#[cfg(test)]
mod tests;

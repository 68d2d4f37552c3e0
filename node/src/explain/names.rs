//! What an end names, of what an agent knows: a pod, a Service and its port, a node, an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use model::{EndpointRef, NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort, Snapshot};

use super::PodHere;
use crate::ends::nearest::{LISTED, Suggested, nearest_nodes, nearest_objects, typed};
use crate::ends::{FormError, NAMESPACE, Port};
pub use crate::ends::{Name, Subject};

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
    /// No such pod is known.
    #[error(
        "no pod {name} is known to this node's agent, which knows its own, and others that are endpoints of Services{}",
        Suggested(.nearest)
    )]
    UnknownPod {
        /// As it was written.
        name: ObjectName,
        /// The nearest that it knows.
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
    /// It is there, and has no address.
    #[error("{name} has no address: {reason}")]
    NoAddress {
        /// A kind and a name.
        name: String,
        /// Why, and what to ask for in its place.
        reason: String,
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

/// What names are looked up in.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The cluster; none where no agent tells.
    pub snapshot: Option<&'a Snapshot>,
    /// This node's pods.
    pub pods: &'a [PodHere],
    /// Whose addresses were that are nobody's any more, and until when.
    pub former: Option<&'a BTreeMap<IpAddr, String>>,
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
        let name = &self.object(name.clone())?;
        let place = match &name.subject {
            Subject::Pod(pod) => self.pod(name, pod)?,
            Subject::Service(service) => return port_of(name, self.service(name, service)?),
            Subject::Node(node) => self.node(name, node)?,
            Subject::Address(address) => self.at(*address),
            Subject::Dns(host) => return Err(self.no_object(name, host)),
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

    /// The same with a kind, where a word without one names an object: `NAME`, or `NAME.NAMESPACE`. What names none is left
    /// to a resolver.
    ///
    /// # Errors
    /// When several objects bear the name.
    pub fn object(&self, name: Name) -> Result<Name, NameError> {
        let Subject::Dns(host) = &name.subject else {
            return Ok(name);
        };
        let mut found = Vec::new();
        if let Some(object) = object_named(host) {
            let has_service = |snapshot: &Snapshot| snapshot.services.get(&object).is_some();
            if self.pods().contains_key(&object) {
                found.push(Subject::Pod(object.clone()));
            }
            if self.snapshot.is_some_and(has_service) {
                found.push(Subject::Service(object));
            }
        }
        let has_node = |snapshot: &Snapshot| snapshot.nodes.get(&NodeName::from(host.as_str())).is_some();
        if self.snapshot.is_some_and(has_node) {
            found.push(Subject::Node(host.clone()));
        }
        match found.as_slice() {
            [] => Ok(name),
            [subject] => Ok(Name {
                subject: subject.clone(),
                ..name
            }),
            several => Err(NameError::Ambiguous {
                name: host.clone(),
                candidates: several.iter().map(Subject::to_string).collect(),
            }),
        }
    }

    /// What to say of a word that names no object.
    pub fn no_object(&self, name: &Name, host: &str) -> NameError {
        let (Some(snapshot), Some(object)) = (self.snapshot, object_named(host)) else {
            return not_here(name, "no resolver was asked");
        };
        let services = snapshot.services.iter().map(|(name, _)| name);
        let mut nearest = nearest_objects(&object, self.pods().keys(), "pod");
        nearest.extend(nearest_objects(&object, services, "svc"));
        nearest.extend(nearest_nodes(host, snapshot.nodes.iter().map(|(name, _)| name)));
        nearest.truncate(LISTED);
        if nearest.is_empty() && host.contains('.') {
            return not_here(name, "no resolver was asked");
        }
        NameError::Unknown {
            what: "pod, Service or node",
            name: host.to_owned(),
            nearest,
        }
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
            None => {
                let former = self.former.and_then(|former| former.get(&address));
                let name = former.map(|former| format!("address of {former}"));
                place(name.unwrap_or_else(|| "address".to_owned()), None)
            }
        }
    }

    /// Where a packet can be sent by a name: with an address, and a port where it is a Service's.
    ///
    /// # Errors
    /// When it is nothing, several things, or has no address.
    pub fn destination(&self, name: &Name) -> Result<Place, NameError> {
        let name = &self.object(name.clone())?;
        match &name.subject {
            Subject::Service(service) => {
                let found = self.snapshot.and_then(|snapshot| snapshot.services.get(service));
                match found.filter(|found| addresses_of(found).next().is_none()) {
                    Some(found) => Err(self.no_address(found)),
                    None => self.place(name),
                }
            }
            Subject::Address(address) => match self.service_at(*address, name) {
                Some(service) => Ok(Place {
                    addresses: vec![*address],
                    ..port_of(name, service)?
                }),
                None => self.place(name),
            },
            _ => self.place(name),
        }
    }

    /// The Service that has an address; where several share it, the one with the port that is meant. None where it is a
    /// pod's or a node's.
    pub fn service_at(&self, address: IpAddr, name: &Name) -> Option<&Service> {
        let at = self.at(address);
        let services = self.snapshot?.services.iter().map(|(_, service)| &**service);
        let have_it = services.filter(|service| addresses_of(service).any(|own| own == address));
        let have_it: Vec<_> = have_it.filter(|_| at.node.is_none()).collect();
        let has_port =
            |service: &&&Service| service.ports.iter().any(|port| Some(port.port) == name.number());
        have_it.iter().find(has_port).or(have_it.first()).copied()
    }

    /// That a Service has no address of its own.
    pub fn no_address(&self, service: &Service) -> NameError {
        NameError::NoAddress {
            name: format!("Service {}", service.name),
            reason: self.instead_of(service),
        }
    }

    /// Why a Service has no address, and what somebody may ask for in its place.
    fn instead_of(&self, service: &Service) -> String {
        match &service.kind {
            ServiceKind::ExternalName(host) => format!("it is another name of {host}; ask for that"),
            ServiceKind::Headless => {
                let endpoints = self.endpoints_of(&service.name);
                match endpoints.as_slice() {
                    [] => "it is headless, and no EndpointSlice lists an endpoint of it".to_owned(),
                    endpoints => format!(
                        "it is headless, and clients go to its endpoints; ask for {}",
                        endpoints.join(" or ")
                    ),
                }
            }
            ServiceKind::ClusterIp { .. } => "the API has given it none".to_owned(),
        }
    }

    /// The first endpoints of a Service, each in a form that can be asked for.
    fn endpoints_of(&self, service: &ObjectName) -> Vec<String> {
        let slices = self
            .snapshot
            .into_iter()
            .flat_map(|snapshot| snapshot.slices_of(service));
        let endpoints = slices.flat_map(|slice| {
            let ports: Vec<_> = slice.ports.iter().collect();
            let asked = move |endpoint: EndpointRef<'_>| {
                let pod = endpoint.pod;
                let pod = pod.map(|pod| typed("pod", &ObjectName::new(slice.name.namespace.clone(), pod)));
                match ports.first() {
                    None => vec![pod.unwrap_or_else(|| endpoint.address.to_string())],
                    Some(_) => ports
                        .iter()
                        .map(|port| {
                            let protocol = port.protocol.to_string().to_lowercase();
                            let at = match &pod {
                                Some(pod) => format!("{pod}:{}", port.port),
                                None => endpoint_text(endpoint.address, Some(port.port)),
                            };
                            format!("{at}/{protocol}")
                        })
                        .collect(),
                }
            };
            slice.endpoints.iter().flat_map(asked).collect::<Vec<_>>()
        });
        let endpoints: BTreeSet<_> = endpoints.collect();
        endpoints.into_iter().take(LISTED).collect()
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

    fn pod(&self, written: &Name, pod: &ObjectName) -> Result<Place, NameError> {
        let pods = self.pods();
        match pods.get(pod) {
            Some(found) => Ok(found.clone()),
            None if self.snapshot.is_none() => Err(no_agent(written)),
            None => Err(NameError::UnknownPod {
                name: pod.clone(),
                nearest: nearest_objects(pod, pods.keys(), "pod"),
            }),
        }
    }

    /// The Service of that name.
    ///
    /// # Errors
    /// When there is none, or nobody knows.
    pub fn service(&self, written: &Name, service: &ObjectName) -> Result<&Service, NameError> {
        let snapshot = self.snapshot.ok_or_else(|| no_agent(written))?;
        let found = snapshot.services.get(service);
        found.map(|found| &**found).ok_or_else(|| NameError::Unknown {
            what: "Service",
            name: service.to_string(),
            nearest: nearest_objects(service, snapshot.services.iter().map(|(name, _)| name), "svc"),
        })
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
        "no agent of this node answers, and only it knows Services, nodes and pods of others: give an address",
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

/// `NAME`, of the usual namespace, or `NAME.NAMESPACE`.
fn object_named(host: &str) -> Option<ObjectName> {
    match host.split('.').collect::<Vec<_>>().as_slice() {
        [name] => Some(ObjectName::new(NAMESPACE, *name)),
        [name, namespace] => Some(ObjectName::new(*namespace, *name)),
        _ => None,
    }
}

/// The protocol that was written, where it is one of those that Services have.
pub fn protocol_of(name: &Name) -> Option<Protocol> {
    let written = name.protocol?;
    let mut known = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter();
    known.find(|protocol| protocol.number() == written.0)
}

/// The same; another one is refused.
fn protocol(name: &Name) -> Result<Option<Protocol>, NameError> {
    match (name.protocol, protocol_of(name)) {
        (Some(_), None) => Err(not_here(name, "only tcp, udp and sctp are explained")),
        (_, found) => Ok(found),
    }
}

/// The ports of a Service that a name means: all where it has none.
pub fn meant_ports<'a>(
    name: &Name,
    service: &'a Service,
    protocol: Option<Protocol>,
) -> Vec<&'a ServicePort> {
    let is_meant = |port: &&ServicePort| match &name.port {
        None => true,
        Some(Port::Number(number)) => port.port == *number,
        Some(Port::Name(wanted)) => *port.name == **wanted,
    };
    let ports = service.ports.iter();
    let ports = ports.filter(|port| protocol.is_none_or(|protocol| protocol == port.protocol));
    ports.filter(is_meant).collect()
}

/// What to say where a Service has no port of that name.
pub fn no_such_port(name: &Name, service: &Service) -> NameError {
    let ports = service.ports.iter();
    NameError::Unknown {
        what: "port of",
        name: name.to_string(),
        nearest: ports.map(|port| port_text(&service.name, port)).collect(),
    }
}

/// A Service with the port that the name means: the only one where it does not say.
fn port_of(name: &Name, service: &Service) -> Result<Place, NameError> {
    let object = &service.name;
    let protocol = protocol(name)?;
    let meant = meant_ports(name, service, protocol);
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
        [] => Err(no_such_port(name, service)),
        several => Err(NameError::Ambiguous {
            name: name.to_string(),
            candidates: several.iter().map(|port| port_text(object, port)).collect(),
        }),
    }
}

/// A Service's port, in the form that is typed.
pub fn port_text(service: &ObjectName, port: &ServicePort) -> String {
    let protocol = port.protocol.to_string().to_lowercase();
    format!("{}:{}/{protocol}", typed("svc", service), port.port)
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

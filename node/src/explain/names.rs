//! Names as people write them, and what they name: `pod/a`, `pod/ns/a`, `svc/ns/b:80`, `node/n`, an address, a DNS name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use model::{NodeName, ObjectName, Protocol, Service, ServiceKind, ServicePort, Snapshot};

use super::PodHere;

/// How many candidates and suggestions are listed.
const LISTED: usize = 8;

/// Why a name names nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has no form that is known.
    #[error("{0:?} is no pod/NAME, pod/NAMESPACE/NAME, svc/NAME:PORT, node/NAME, address or DNS name")]
    Form(String),
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

/// A name, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// As it was written, without port and protocol.
    pub text: String,
    /// What it may name.
    pub subject: Subject,
    /// The port, by number or name.
    pub port: Option<String>,
    /// The protocol, where it was written.
    pub protocol: Option<Protocol>,
}

/// What a name speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A pod.
    Pod { namespace: Option<String>, name: String },
    /// A Service.
    Service { namespace: Option<String>, name: String },
    /// A node.
    Node(String),
    /// An address.
    Address(IpAddr),
    /// A name that a resolver knows.
    Dns(String),
}

impl Name {
    /// Takes a name apart.
    ///
    /// # Errors
    /// When it has no form that is known.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Form(text.to_owned());
        let (rest, protocol) = split_protocol(text.trim());
        let (place, port) = split_port(rest);
        if place.is_empty() || place.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let words: Vec<&str> = place.split('/').collect();
        if words.iter().any(|word| word.is_empty()) {
            return Err(wrong());
        }
        let object = |namespace: Option<&str>, name: &str| (namespace.map(str::to_owned), name.to_owned());
        let subject = match words.as_slice() {
            ["pod" | "pods", name] => pod(object(None, name)),
            ["pod" | "pods", namespace, name] => pod(object(Some(namespace), name)),
            ["svc" | "service" | "services", name] => service(object(None, name)),
            ["svc" | "service" | "services", namespace, name] => service(object(Some(namespace), name)),
            ["node" | "nodes", name] => Subject::Node((*name).to_owned()),
            [name] => match name.parse() {
                Ok(address) => Subject::Address(address),
                Err(_) if name.contains('.') || *name == "localhost" => dns(name),
                Err(_) => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        Ok(Self {
            text: place.to_owned(),
            subject,
            port: port.map(str::to_owned),
            protocol,
        })
    }
}

fn pod((namespace, name): (Option<String>, String)) -> Subject {
    Subject::Pod { namespace, name }
}

fn service((namespace, name): (Option<String>, String)) -> Subject {
    Subject::Service { namespace, name }
}

/// `NAME.NAMESPACE.svc`, with or without the cluster's domain, is a Service.
fn dns(name: &str) -> Subject {
    let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
    match labels.as_slice() {
        [name, namespace, "svc", ..] => service((Some((*namespace).to_owned()), (*name).to_owned())),
        _ => Subject::Dns(name.to_owned()),
    }
}

/// `/tcp` and its like at the end, which no object's name can be mistaken for behind a port.
fn split_protocol(text: &str) -> (&str, Option<Protocol>) {
    let Some((rest, last)) = text.rsplit_once('/') else {
        return (text, None);
    };
    let protocol = match last.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return (text, None),
    };
    // `pod/udp` is a pod.
    let names_object = !rest.contains('/') && !rest.contains(':') && rest.parse::<IpAddr>().is_err();
    if names_object && !rest.contains('.') {
        return (text, None);
    }
    (rest, Some(protocol))
}

/// `:80` or `:http` at the end; an address of IPv6 with a port stands in brackets.
fn split_port(text: &str) -> (&str, Option<&str>) {
    if let Some(rest) = text.strip_prefix('[')
        && let Some((address, port)) = rest.split_once(']')
    {
        return (address, port.strip_prefix(':'));
    }
    match text.rsplit_once(':') {
        Some((place, port)) if !place.contains(':') => (place, Some(port)),
        _ => (text, None),
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
        match &name.subject {
            Subject::Pod { namespace, name: pod } => {
                let found = self.one(name, "pod", namespace.as_deref(), pod, &self.pods())?;
                with_number(name, found)
            }
            Subject::Service {
                namespace,
                name: service,
            } => {
                let services = self.services(name)?;
                let found = self.one(name, "Service", namespace.as_deref(), service, &services)?;
                port_of(name, found)
            }
            Subject::Node(node) => with_number(name, self.node(name, node)?),
            Subject::Address(address) => with_number(name, self.at(*address)),
            Subject::Dns(text) => Err(NameError::NotHere {
                name: text.clone(),
                reason: "no resolver was asked".to_owned(),
            }),
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
                let Some(pod) = &endpoint.pod else { continue };
                let name = ObjectName::new(slice.name.namespace.clone(), &**pod);
                let place = entry(&mut pods, &name, endpoint.node.clone());
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
            let names = snapshot.nodes.iter().map(|(name, _)| name.to_string());
            return Err(NameError::Unknown {
                what: "node",
                name: node.to_owned(),
                nearest: nearest(node, names, "node/"),
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

    /// The one of that name, in whichever namespace where none is given.
    fn one<T: Clone>(
        &self,
        written: &Name,
        what: &'static str,
        namespace: Option<&str>,
        name: &str,
        all: &BTreeMap<ObjectName, T>,
    ) -> Result<T, NameError> {
        let matches = |found: &ObjectName| {
            *found.name == *name && namespace.is_none_or(|namespace| *found.namespace == *namespace)
        };
        let found: Vec<_> = all.iter().filter(|(found, _)| matches(found)).collect();
        let prefix = if what == "pod" { "pod/" } else { "svc/" };
        match found.as_slice() {
            [(_, only)] => Ok((*only).clone()),
            [] if self.snapshot.is_none() => Err(no_agent(written)),
            [] => {
                let wanted = namespace.map_or_else(|| name.to_owned(), |space| format!("{space}/{name}"));
                let names = all.keys().map(|found| match namespace {
                    Some(_) => found.to_string(),
                    None => found.name.to_string(),
                });
                Err(NameError::Unknown {
                    what,
                    nearest: nearest(&wanted, names, prefix),
                    name: wanted,
                })
            }
            several => Err(NameError::Ambiguous {
                name: written.text.clone(),
                candidates: several
                    .iter()
                    .map(|(name, _)| format!("{prefix}{name}"))
                    .collect(),
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
    NameError::NotHere {
        name: name.text.clone(),
        reason: "no agent of this node answers, and only it knows names: give an address".to_owned(),
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

/// With the number that the name has behind its colon, if it has one.
fn with_number(name: &Name, place: Place) -> Result<Place, NameError> {
    let port = match &name.port {
        None => None,
        Some(text) => Some(
            text.parse()
                .map_err(|_| NameError::Form(format!("{}:{text}", name.text)))?,
        ),
    };
    Ok(Place {
        port,
        protocol: name.protocol,
        ..place
    })
}

/// A Service with the port that the name means: the only one where it does not say.
fn port_of(name: &Name, service: &Service) -> Result<Place, NameError> {
    let object = &service.name;
    let same_protocol = |port: &&ServicePort| name.protocol.is_none_or(|protocol| protocol == port.protocol);
    let is_meant = |port: &&ServicePort| {
        let wanted = name.port.as_deref();
        wanted.is_none_or(|wanted| *port.name == *wanted || port.port.to_string() == wanted)
    };
    let ports = || service.ports.iter().filter(same_protocol);
    let meant: Vec<_> = ports().filter(is_meant).collect();
    let place = |port: Option<&ServicePort>, number| Place {
        name: format!("Service {object}"),
        addresses: addresses_of(service).collect(),
        node: None,
        port: number,
        protocol: port.map(|port| port.protocol).or(name.protocol),
    };
    let number: Option<NonZeroU16> = name.port.as_ref().and_then(|port| port.parse().ok());
    match meant.as_slice() {
        [port] => Ok(place(Some(port), Some(port.port))),
        // That nothing is served there is the answer.
        [] if number.is_some() => Ok(place(None, number)),
        [] => Err(NameError::Unknown {
            what: "port of",
            name: format!("svc/{object}:{}", name.port.as_deref().unwrap_or_default()),
            nearest: ports().map(|port| port_text(object, port)).collect(),
        }),
        several => Err(NameError::Ambiguous {
            name: name.text.clone(),
            candidates: several.iter().map(|port| port_text(object, port)).collect(),
        }),
    }
}

fn port_text(service: &ObjectName, port: &ServicePort) -> String {
    let protocol = port.protocol.to_string().to_lowercase();
    format!("svc/{service}:{}/{protocol}", port.port)
}

/// Those of `names` that differ from `wanted` the least, in the form that is typed.
fn nearest(wanted: &str, names: impl Iterator<Item = String>, prefix: &str) -> Vec<String> {
    let name = wanted.rsplit('/').next().unwrap_or(wanted);
    let most = 1 + name.len() / 3;
    let distance = |name: &String| {
        let within = name.contains(wanted) || wanted.contains(name.as_str());
        let distance = edits(wanted, name);
        (distance <= most || within).then_some(distance)
    };
    let near: BTreeSet<_> = names.filter_map(|name| Some((distance(&name)?, name))).collect();
    near.into_iter()
        .take(LISTED)
        .map(|(_, name)| format!("{prefix}{name}"))
        .collect()
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

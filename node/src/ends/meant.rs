//! Whom an end means: looked up in the books of this machine's agents, by the agents themselves, and by the node's resolver.
//! Every command that looks at packets asks here.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::num::NonZeroU16;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use model::{NodeName, ObjectName};
use trace::Names;
use trace::hop::Protocol;
use trace::namespaces::Found;

use super::agents::{Agents, NotLocated};
use super::pods::Pods;
use super::{Name, Subject};
use crate::names::{Behind, Located};

/// Where names are looked up.
#[derive(Debug, Default)]
pub struct Resolver {
    /// The agents of this machine.
    pub agents: Agents,
    /// What they have written down.
    pub pods: Pods,
}

/// Whom an end means. Without an address and a Service it is anybody, or nobody.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Meant {
    /// The addresses.
    pub addresses: Vec<IpAddr>,
    /// Of a node: the addresses of its tunnel's devices.
    pub tunnel: Vec<IpAddr>,
    /// The port, where one is meant.
    pub port: Option<NonZeroU16>,
    /// The protocol, where one was written, or the Service's port tells.
    pub protocol: Option<Protocol>,
    /// The node that it is on, where an agent says it.
    pub node: Option<NodeName>,
    /// The Service that is there.
    pub service: Option<Behind>,
}

impl Resolver {
    /// By the agents with these configurations; where none is named, those that are usual.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn read(configs: &[PathBuf]) -> anyhow::Result<Self> {
        let agents = Agents::read(configs)?;
        let pods = Pods::read(&agents)?;
        Ok(Self { agents, pods })
    }

    /// Whom an end means.
    ///
    /// # Errors
    /// When it is nobody that is known, or several.
    pub fn meant(&self, name: &Name) -> anyhow::Result<Meant> {
        let at = |addresses: Vec<IpAddr>| Meant {
            addresses,
            tunnel: Vec::new(),
            port: name.number(),
            protocol: name.protocol,
            node: None,
            service: None,
        };
        match &name.subject {
            Subject::Any => Ok(at(Vec::new())),
            Subject::Pod(pod) => match self.pods.addresses(pod)? {
                Some(addresses) => Ok(at(addresses)),
                None => match self.agents.locate(name) {
                    Ok(located) => Ok(found(name, located)),
                    Err(why) => Err(anyhow!(self.pods.unknown(pod, &why))),
                },
            },
            Subject::Service(_) | Subject::Node(_) => {
                let located = self.agents.locate(name);
                Ok(found(
                    name,
                    located.map_err(|why| anyhow!("{}: {why}", name.subject))?,
                ))
            }
            Subject::Address(address) => match name.number() {
                None => Ok(at(vec![*address])),
                Some(port) => match self.agents.locate(name) {
                    Ok(located) => Ok(found(name, located)),
                    // That nobody knows the address is no fault.
                    Err(_) => Ok(Meant {
                        service: self
                            .agents
                            .pinned(SocketAddr::new(*address, port.get()), name.protocol),
                        ..at(vec![*address])
                    }),
                },
            },
            Subject::Dns(host) => match (self.agents.locate(name), self.in_books(host)) {
                (Ok(located), _) => Ok(found(name, located)),
                (Err(NotLocated::Silent(_) | NotLocated::NoAgent), Some(addresses)) => Ok(at(addresses)),
                (Err(why), _) => resolved(host)
                    .map(at)
                    .with_context(|| format!("{host} is no DNS name of this machine's resolver, and {why}")),
            },
        }
    }

    /// What network namespaces are called.
    #[must_use]
    pub fn names(&self, namespaces: &[Found]) -> Names {
        self.pods.names(namespaces)
    }

    /// The addresses of a pod that goes by a word without a kind.
    fn in_books(&self, word: &str) -> Option<Vec<IpAddr>> {
        let pod = ObjectName::new(super::NAMESPACE, word);
        self.pods.addresses(&pod).ok().flatten()
    }
}

impl Meant {
    /// All that packets are sent to: the addresses, with the port where one is meant, and a Service's endpoints.
    #[must_use]
    pub fn targets(&self) -> Vec<(IpAddr, Option<u16>)> {
        let port = self.port.map(NonZeroU16::get);
        let own = self.addresses.iter().map(|address| (*address, port));
        let endpoints = self.service.iter().flat_map(|service| &service.endpoints);
        own.chain(endpoints.map(|endpoint| (endpoint.ip(), Some(endpoint.port()))))
            .collect()
    }

    /// What to say of a port that the Service does not have; none where it has it.
    #[must_use]
    pub fn lacks_port(&self) -> Option<String> {
        let service = self.service.as_ref()?;
        let lacks = service.meant.is_empty() && !service.ports.is_empty();
        lacks.then(|| {
            format!(
                "{}: the Service has {} alone",
                service.name,
                service.ports.join(" and ")
            )
        })
    }
}

fn found(name: &Name, located: Located) -> Meant {
    let Located {
        name: _,
        addresses,
        tunnel,
        port,
        protocol,
        node,
        service,
    } = located;
    Meant {
        addresses,
        tunnel,
        port,
        protocol: name
            .protocol
            .or(protocol.map(|protocol| Protocol(protocol.number()))),
        node,
        service,
    }
}

fn resolved(host: &str) -> std::io::Result<Vec<IpAddr>> {
    let found = (host, 0).to_socket_addrs()?;
    let addresses: BTreeSet<IpAddr> = found.map(|address| address.ip()).collect();
    Ok(addresses.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_to_a_service_are_those_to_its_address_and_to_its_endpoints() {
        let name = Name::parse("svc/web:http").expect("a name");
        let behind = |meant: &[&str]| Behind {
            name: "svc/default/web:80".to_owned(),
            endpoints: vec!["10.244.1.5:8080".parse().expect("an endpoint")],
            meant: meant.iter().map(ToString::to_string).collect(),
            ports: vec!["svc/web:80/tcp".to_owned(), "svc/web:81/tcp".to_owned()],
        };
        let located = |meant: &[&str]| Located {
            name: "Service default/web".to_owned(),
            addresses: vec![[10, 96, 0, 7].into()],
            tunnel: Vec::new(),
            port: NonZeroU16::new(80),
            protocol: Some(model::Protocol::Tcp),
            node: None,
            service: Some(behind(meant)),
        };
        let meant = found(&name, located(&["svc/web:80/tcp"]));
        let at = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let expected = [(at("10.96.0.7"), Some(80)), (at("10.244.1.5"), Some(8080))];
        assert_eq!(meant.targets(), expected);
        assert_eq!((meant.protocol, meant.lacks_port()), (Some(Protocol::TCP), None));
        let lacks = found(&name, located(&[])).lacks_port();
        let expected = "svc/default/web:80: the Service has svc/web:80/tcp and svc/web:81/tcp alone";
        assert_eq!(lacks.as_deref(), Some(expected));
    }

    #[test]
    fn a_word_is_a_pod_of_this_machine_where_no_agent_answers() {
        let resolver = Resolver {
            agents: Agents::default(),
            pods: Pods::of(&[("default/client", "node-1", "10.244.1.2")]),
        };
        let meant = resolver
            .meant(&Name::parse("client:80").expect("a name"))
            .expect("a pod");
        assert_eq!(meant.targets(), [([10, 244, 1, 2].into(), Some(80))]);
    }
}

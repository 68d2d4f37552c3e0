//! Whose packets are meant by both ends.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::num::NonZeroU16;

use anyhow::{Context, anyhow, bail, ensure};
use trace::hop::Protocol;
use trace::namespaces::Found;
use trace::{Filter, Service};

use super::agents::{Agents, NotLocated};
use super::pods::Pods;
use crate::ends::{Ends, Name, Subject};
use crate::locate::{Behind, Located};

/// What is looked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Whose packets these are.
    pub(super) filter: Filter,
    /// The Service that they are sent to, where they are sent to one.
    pub(super) service: Option<Service>,
    /// Whether the sender's kernel chooses the address for each way: a node has several.
    pub(super) is_of_node: bool,
    /// Inode number of that node's network namespace, where it is of this machine.
    pub(super) netns: Option<u32>,
}

/// Whom the destination speaks of.
#[derive(Debug, Default)]
struct Destination {
    addresses: Vec<IpAddr>,
    port: Option<NonZeroU16>,
    protocol: Option<Protocol>,
    service: Option<Service>,
}

/// Whose packets these are. A node that is among these namespaces sends from all of the addresses that it has there.
pub(super) fn wanted(
    ends: &Ends,
    pods: &Pods,
    agents: &Agents,
    namespaces: &[Found],
) -> anyhow::Result<Wanted> {
    let Ends { source, destination } = ends;
    let Destination {
        addresses,
        port,
        protocol,
        service,
    } = self::destination(destination, pods, agents)?;
    let Sender {
        addresses: sources,
        is_of_node,
        netns,
    } = sender(source, pods, agents, namespaces)?;
    let port = port.map(NonZeroU16::get);
    ensure!(
        port.is_none() || protocol.is_none_or(Protocol::has_ports),
        "{destination}: only TCP and UDP have ports that can be followed"
    );
    let endpoints = service.iter().flat_map(|service| &service.endpoints);
    let endpoints = endpoints.map(|endpoint| (endpoint.ip(), Some(endpoint.port())));
    let mut targets: Vec<_> = addresses.into_iter().map(|address| (address, port)).collect();
    targets.extend(endpoints);
    let is_nobody = targets.is_empty() && destination.subject != Subject::Any;
    ensure!(!is_nobody, "{destination} has neither an address nor an endpoint");
    ensure!(
        !sources.is_empty() || !targets.is_empty(),
        "one of the ends must be somebody: all packets of a machine are too many"
    );
    ensure!(
        port.is_none() || !targets.is_empty(),
        "a port needs an address before it"
    );
    Ok(Wanted {
        filter: Filter {
            sources,
            targets,
            protocol,
            ..Filter::default()
        },
        service,
        is_of_node,
        netns,
    })
}

fn destination(name: &Name, pods: &Pods, agents: &Agents) -> anyhow::Result<Destination> {
    let written = Destination {
        addresses: Vec::new(),
        port: name.number(),
        protocol: name.protocol,
        service: None,
    };
    match &name.subject {
        Subject::Service(_) | Subject::Node(_) => {
            let located = agents
                .locate(name)
                .map_err(|why| anyhow!("{}: {why}", name.subject))?;
            Ok(found(name, located))
        }
        Subject::Address(address) => {
            let Some(port) = written.port else {
                return Ok(Destination {
                    addresses: vec![*address],
                    ..written
                });
            };
            match agents.locate(name) {
                Ok(located) => Ok(found(name, located)),
                // That nobody knows the address is no fault.
                Err(_) => Ok(Destination {
                    addresses: vec![*address],
                    service: agents.pinned(SocketAddr::new(*address, port.get()), name.protocol),
                    ..written
                }),
            }
        }
        subject => Ok(Destination {
            addresses: addresses(subject, pods, agents)?,
            ..written
        }),
    }
}

fn found(name: &Name, located: Located) -> Destination {
    let Located {
        name: _,
        addresses,
        tunnel: _,
        port,
        protocol,
        service,
    } = located;
    let frontends = || {
        let with_port = |port: NonZeroU16| {
            let addresses = addresses.iter();
            addresses.map(move |address| SocketAddr::new(*address, port.get()))
        };
        port.into_iter().flat_map(with_port).collect()
    };
    let service = service.map(|Behind { name, endpoints }| Service {
        name,
        frontends: frontends(),
        endpoints,
    });
    Destination {
        service,
        addresses,
        port,
        protocol: name
            .protocol
            .or(protocol.map(|protocol| Protocol(protocol.number()))),
    }
}

/// Who sends.
#[derive(Debug, Default)]
struct Sender {
    /// None: anybody.
    addresses: Vec<IpAddr>,
    is_of_node: bool,
    netns: Option<u32>,
}

fn sender(subject: &Subject, pods: &Pods, agents: &Agents, namespaces: &[Found]) -> anyhow::Result<Sender> {
    let addresses = match subject {
        Subject::Service(_) => {
            bail!(
                "{subject} sends nothing itself: name a pod behind it, or turn the ends around for its replies"
            )
        }
        Subject::Node(_) => {
            let located = located(subject, agents).map_err(|why| anyhow!("{subject}: {why}"))?;
            [located.addresses, located.tunnel].concat()
        }
        subject => addresses(subject, pods, agents)?,
    };
    // Who names an address means that one.
    let of_node = match subject {
        Subject::Node(_) | Subject::Pod(_) => namespaces.iter().find(|found| {
            let is_own = |address: &IpAddr| found.addresses.contains(address);
            addresses.iter().any(is_own) && agents.is_in(found.inode)
        }),
        _ => None,
    };
    let is_of_node = of_node.is_some() || matches!(subject, Subject::Node(_));
    let netns = of_node.map(|found| found.inode);
    let more = of_node
        .into_iter()
        .flat_map(|found| own_addresses(found, namespaces));
    let mut all: Vec<IpAddr> = addresses.into_iter().chain(more).collect();
    all.sort_unstable();
    all.dedup();
    Ok(Sender {
        addresses: all,
        is_of_node,
        netns,
    })
}

/// What packets of a namespace may come from, and of no other one: link-local addresses are not routed, and some each node
/// has, as that of its DNS server.
fn own_addresses<'a>(found: &'a Found, namespaces: &'a [Found]) -> impl Iterator<Item = IpAddr> + 'a {
    let is_routed = |address: &IpAddr| match address {
        IpAddr::V4(_) => true,
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    };
    let is_anothers = |address: &IpAddr| {
        let mut others = namespaces.iter().filter(|other| other.inode != found.inode);
        others.any(|other| other.addresses.contains(address))
    };
    let own = found.addresses.iter().copied();
    own.filter(move |address| is_routed(address) && !is_anothers(address))
}

fn located(subject: &Subject, agents: &Agents) -> Result<Located, NotLocated> {
    agents.locate(&Name {
        subject: subject.clone(),
        port: None,
        protocol: None,
    })
}

/// None: anybody.
fn addresses(subject: &Subject, pods: &Pods, agents: &Agents) -> anyhow::Result<Vec<IpAddr>> {
    let by_agent = || located(subject, agents).map(|located| located.addresses);
    match subject {
        Subject::Any => Ok(Vec::new()),
        Subject::Address(address) => Ok(vec![*address]),
        Subject::Pod(name) => match pods.addresses(name)? {
            Some(addresses) => Ok(addresses),
            None => by_agent().map_err(|why| anyhow!(pods.unknown(name, &why))),
        },
        Subject::Service(_) | Subject::Node(_) => by_agent().map_err(|why| anyhow!("{subject}: {why}")),
        Subject::Dns(name) => {
            let found = (name.as_str(), 0).to_socket_addrs();
            let found = found.with_context(|| format!("find the address of host {name}"))?;
            let mut addresses: Vec<IpAddr> = found.map(|address| address.ip()).collect();
            addresses.sort_unstable();
            addresses.dedup();
            Ok(addresses)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> anyhow::Result<Filter> {
        let ends = Ends::parse(&[text.to_owned()])?;
        Ok(wanted(
            &ends,
            &Pods::of(&[("shop/client", "node-1", "10.244.1.2")]),
            &Agents::default(),
            &[],
        )?
        .filter)
    }

    #[test]
    fn both_ends_are_a_filter() {
        let address = |text: &str| -> IpAddr { text.parse().expect("an address") };
        let expected = Filter {
            sources: vec![address("10.0.0.1")],
            targets: vec![(address("fd00::1"), Some(53))],
            protocol: Some(Protocol::UDP),
            ..Filter::default()
        };
        assert_eq!(of("10.0.0.1 [fd00::1]:53/udp").expect("a filter"), expected);
        let from_anybody = Filter {
            sources: Vec::new(),
            ..expected.clone()
        };
        assert_eq!(of("any [fd00::1]:53/udp").expect("a filter"), from_anybody);
        let from_pod = Filter {
            sources: vec![address("10.244.1.2")],
            ..expected
        };
        assert_eq!(
            of("pod/shop/client [fd00::1]:53/udp").expect("a filter"),
            from_pod
        );
    }

    #[test]
    fn a_node_sends_from_all_of_its_addresses_but_from_none_that_others_have_too() {
        let found = |inode, addresses: &[&str]| Found {
            inode,
            namespace: netlink::Namespace::open("/proc/self/ns/net").expect("the own one"),
            addresses: addresses
                .iter()
                .map(|address| address.parse().expect("an address"))
                .collect(),
        };
        let own = ["172.30.0.11", "10.96.0.10", "10.244.1.0", "fd00::b", "fe80::1"];
        let namespaces = [
            found(1, &own),
            found(2, &["172.30.0.12", "10.96.0.10", "10.244.2.0"]),
        ];
        let addresses = own_addresses(&namespaces[0], &namespaces);
        let addresses: Vec<String> = addresses.map(|address| address.to_string()).collect();
        assert_eq!(addresses, ["172.30.0.11", "10.244.1.0", "fd00::b"]);
    }

    #[test]
    fn packets_to_a_service_are_those_to_its_address_and_to_its_endpoints() {
        let name = Name::parse("svc/web:http").expect("a name");
        let located = Located {
            name: "Service default/web".to_owned(),
            addresses: vec![[10, 96, 0, 7].into()],
            tunnel: Vec::new(),
            port: NonZeroU16::new(80),
            protocol: Some(model::Protocol::Tcp),
            service: Some(Behind {
                name: "svc/default/web:80".to_owned(),
                endpoints: vec!["10.244.1.5:8080".parse().expect("an endpoint")],
            }),
        };
        let Destination {
            addresses,
            port,
            protocol,
            service,
        } = found(&name, located);
        assert_eq!((addresses.len(), port), (1, NonZeroU16::new(80)));
        assert_eq!(protocol, Some(Protocol::TCP));
        let expected = Service {
            name: "svc/default/web:80".to_owned(),
            frontends: vec!["10.96.0.7:80".parse().expect("a frontend")],
            endpoints: vec!["10.244.1.5:8080".parse().expect("an endpoint")],
        };
        assert_eq!(service, Some(expected));
    }

    #[test]
    fn what_cannot_be_followed_is_refused_with_what_can() {
        let rows = [
            ("any any", "all packets of a machine are too many"),
            ("10.0.0.1 any:80", "a port needs an address before it"),
            ("any 10.0.0.1:80/sctp", "only TCP and UDP have ports"),
            ("any svc/shop/web:http", "svc/shop/web: this machine has no agent"),
            ("svc/shop/web 10.0.0.1", "svc/shop/web sends nothing itself"),
            ("node/n 10.0.0.1", "node/n: this machine has no agent"),
            ("any pod/a", "pod/default/a: this machine has no agent"),
            ("any 10.0.0.1:0", "is no port"),
        ];
        for (text, part) in rows {
            let error = of(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

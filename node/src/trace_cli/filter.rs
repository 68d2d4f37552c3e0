//! Whose packets are meant by both ends.

use std::net::{IpAddr, SocketAddr};

use anyhow::{bail, ensure};
use trace::hop::Protocol;
use trace::namespaces::Found;
use trace::{Filter, Service};

use crate::ends::meant::{Meant, Resolver};
use crate::ends::{Ends, Name, Subject};
use crate::logs::tell;

/// What is looked for.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose packets these are.
    pub filter: Filter,
    /// The Service that they are sent to, where they are sent to one.
    pub service: Option<Service>,
    /// Whether the sender's kernel chooses the address for each way: a node has several.
    pub is_of_node: bool,
    /// Inode number of that node's network namespace, where it is of this machine.
    pub netns: Option<u32>,
}

/// How many ports of a Service may be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ports {
    /// One, which the Service need not have: what becomes of packets to it is the question.
    One,
    /// All that the Service has and the name means.
    All,
}

/// Whose packets these are. A node that is among these namespaces sends from all of the addresses that it has there.
///
/// # Errors
/// When an end is not known, or cannot be followed.
pub fn wanted(
    ends: &Ends,
    resolver: &Resolver,
    ports: Ports,
    namespaces: &[Found],
) -> anyhow::Result<Wanted> {
    let Ends { source, destination } = ends;
    let meant = resolver.meant(destination)?;
    has_ports(destination, &meant, ports)?;
    let Sender {
        addresses: sources,
        is_of_node,
        netns,
    } = sender(source, resolver, namespaces)?;
    let (port, protocol) = (meant.port, meant.protocol);
    ensure!(
        port.is_none() || protocol.is_none_or(Protocol::has_ports),
        "{destination}: only TCP and UDP have ports that can be followed"
    );
    let targets = meant.targets();
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
        service: service(meant),
        is_of_node,
        netns,
    })
}

/// Whether the Service has the port that is meant, and only one where that is asked for.
fn has_ports(name: &Name, meant: &Meant, ports: Ports) -> anyhow::Result<()> {
    let several = meant.service.iter().find(|service| service.meant.len() > 1);
    match (ports, meant.lacks_port(), several) {
        (Ports::All, Some(lacks), _) => bail!(lacks),
        (Ports::One, Some(lacks), _) => tell(format_args!("warning: {lacks}")),
        (Ports::One, None, Some(service)) => bail!("{name} may be {}", service.meant.join(" or ")),
        (Ports::All, None, _) | (Ports::One, None, None) => {}
    }
    Ok(())
}

fn service(meant: Meant) -> Option<Service> {
    let Meant {
        addresses,
        tunnel: _,
        port,
        service,
        protocol: _,
        node: _,
    } = meant;
    let service = service?;
    let frontends = port.into_iter().flat_map(|port| {
        let addresses = addresses.iter();
        addresses.map(move |address| SocketAddr::new(*address, port.get()))
    });
    Some(Service {
        frontends: frontends.collect(),
        name: service.name,
        endpoints: service.endpoints,
    })
}

/// Who sends.
#[derive(Debug, Default)]
struct Sender {
    /// None: anybody.
    addresses: Vec<IpAddr>,
    is_of_node: bool,
    netns: Option<u32>,
}

fn sender(subject: &Subject, resolver: &Resolver, namespaces: &[Found]) -> anyhow::Result<Sender> {
    let name = Name {
        subject: subject.clone(),
        port: None,
        protocol: None,
    };
    let meant = match subject {
        Subject::Service(_) => None,
        _ => Some(resolver.meant(&name)?).filter(|meant| meant.service.is_none()),
    };
    let Some(meant) = meant else {
        bail!("{subject} sends nothing itself: name a pod behind it, or turn the ends around for its replies")
    };
    let addresses = [meant.addresses, meant.tunnel].concat();
    // Who names an address means that one.
    let of_node = match subject {
        Subject::Address(_) | Subject::Any => None,
        _ => namespaces.iter().find(|found| {
            let is_own = |address: &IpAddr| found.addresses.contains(address);
            addresses.iter().any(is_own) && resolver.agents.is_in(found.inode)
        }),
    };
    let own = of_node
        .into_iter()
        .flat_map(|found| own_addresses(found, namespaces));
    let mut all: Vec<IpAddr> = addresses.into_iter().chain(own).collect();
    all.sort_unstable();
    all.dedup();
    Ok(Sender {
        addresses: all,
        is_of_node: of_node.is_some() || matches!(subject, Subject::Node(_)),
        netns: of_node.map(|found| found.inode),
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::ends::NAMESPACE;
    use crate::ends::pods::Pods;
    use crate::names::Behind;

    fn of(text: &str) -> anyhow::Result<Filter> {
        let ends = Ends::parse(NAMESPACE, &[text.to_owned()])?;
        let resolver = Resolver {
            pods: Pods::of(&[("shop/client", "node-1", "10.244.1.2")]),
            ..Resolver::default()
        };
        Ok(wanted(&ends, &resolver, Ports::One, &[])?.filter)
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
            entering: String::new(),
            path: "/proc/self/ns/net".into(),
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
    fn a_port_is_one_that_the_service_has_and_the_only_one_where_one_is_followed() {
        let behind = |meant: &[&str]| Behind {
            name: "svc/default/web".to_owned(),
            endpoints: vec!["10.244.1.5:8080".parse().expect("an endpoint")],
            meant: meant.iter().map(ToString::to_string).collect(),
            ports: vec!["svc/web:80/tcp".to_owned(), "svc/web:81/tcp".to_owned()],
        };
        let name = Name::parse("svc/web").expect("a name");
        let told = |ports, meant: &[&str]| {
            let meant = Meant {
                addresses: vec![[10, 96, 0, 7].into()],
                tunnel: Vec::new(),
                port: NonZeroU16::new(80),
                protocol: None,
                node: None,
                service: Some(behind(meant)),
            };
            let told = has_ports(&name, &meant, ports);
            told.map(|()| service(meant).expect("a Service").frontends)
                .map_err(|error| error.to_string())
        };
        let both = ["svc/web:80/tcp", "svc/web:81/tcp"];
        let frontends = vec!["10.96.0.7:80".parse().expect("a frontend")];
        assert_eq!(told(Ports::One, &both[..1]), Ok(frontends.clone()));
        assert_eq!(told(Ports::All, &both), Ok(frontends.clone()));
        assert_eq!(told(Ports::One, &[]), Ok(frontends));
        let several = "svc/default/web may be svc/web:80/tcp or svc/web:81/tcp".to_owned();
        assert_eq!(told(Ports::One, &both), Err(several));
        let lacks = "svc/default/web: the Service has svc/web:80/tcp and svc/web:81/tcp alone".to_owned();
        assert_eq!(told(Ports::All, &[]), Err(lacks));
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
            (
                "any pod/a",
                "no agent of this machine has connected a pod default/a",
            ),
            ("any 10.0.0.1:0", "is no port"),
        ];
        for (text, part) in rows {
            let error = of(text).expect_err(text).to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}

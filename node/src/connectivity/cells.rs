//! What is tried: who asks whom, by which address, and with packets of which size. Pure.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::objects::{HTTP_PORT, SERVICE_PORT, UDP_PORT};

/// How one is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// A pod asks a pod at its own address.
    PodToPod,
    /// A pod asks a Service at its ClusterIP.
    PodToClusterIp,
    /// A pod asks a Service at a port of the pod's own node.
    PodToNodePort,
    /// A pod asks a Service at a port of the node where the server is.
    PodToOtherNodePort,
    /// A pod asks a Service by its name.
    PodToName,
    /// A pod asks a headless Service by its name, which leads to the server itself.
    PodToHeadless,
    /// A process of the node's own network asks a pod at its own address.
    NodeToPod,
    /// A process of the node's own network asks a Service at its ClusterIP.
    NodeToClusterIp,
    /// A pod opens a connection to the API server at its ClusterIP.
    PodToApiServer,
    /// A pod opens a connection to somebody that the user named.
    PodToExternal,
}

impl Path {
    /// In the order in which they are shown.
    pub const ALL: [Self; 10] = [
        Self::PodToPod,
        Self::PodToClusterIp,
        Self::PodToNodePort,
        Self::PodToOtherNodePort,
        Self::PodToName,
        Self::PodToHeadless,
        Self::NodeToPod,
        Self::NodeToClusterIp,
        Self::PodToApiServer,
        Self::PodToExternal,
    ];

    /// Whether a process of the node's own network asks.
    #[must_use]
    pub const fn is_of_node(self) -> bool {
        matches!(self, Self::NodeToPod | Self::NodeToClusterIp)
    }

    /// Whether the cluster has no say in where the server is.
    #[must_use]
    pub const fn is_elsewhere(self) -> bool {
        matches!(self, Self::PodToApiServer | Self::PodToExternal)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PodToPod => "pod -> pod",
            Self::PodToClusterIp => "pod -> ClusterIP",
            Self::PodToNodePort => "pod -> NodePort, own node",
            Self::PodToOtherNodePort => "pod -> NodePort, other node",
            Self::PodToName => "pod -> name",
            Self::PodToHeadless => "pod -> headless name",
            Self::NodeToPod => "node -> pod",
            Self::NodeToClusterIp => "node -> ClusterIP",
            Self::PodToApiServer => "pod -> API server",
            Self::PodToExternal => "pod -> external",
        })
    }
}

/// Where the server is, seen from who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the same node.
    SameNode,
    /// On another node.
    OtherNode,
    /// Wherever it is.
    Anywhere,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SameNode => "same node",
            Self::OtherNode => "another node",
            Self::Anywhere => "anywhere",
        })
    }
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Family {
    /// Version 4.
    #[serde(rename = "IPv4")]
    V4,
    /// Version 6.
    #[serde(rename = "IPv6")]
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// That of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// By what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// A small request.
    Tcp,
    /// A small datagram.
    Udp,
    /// Segments as large as they become, which no router may cut up.
    TcpLarge,
    /// A datagram as large as the MTU, which no router may cut up.
    UdpLarge,
    /// A connection alone.
    Connect,
}

impl Transport {
    /// Of a server that echoes, in the order in which they are shown.
    pub const OF_SERVERS: [Self; 4] = [Self::Tcp, Self::Udp, Self::TcpLarge, Self::UdpLarge];

    /// As the image's program calls it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::TcpLarge => "tcp+large",
            Self::UdpLarge => "udp+large",
            Self::Connect => "connect",
        }
    }

    /// Whether its packets are UDP's.
    #[must_use]
    pub const fn is_udp(self) -> bool {
        matches!(self, Self::Udp | Self::UdpLarge)
    }

    /// Whether a server's name comes back.
    const fn tells_the_server(self) -> bool {
        matches!(self, Self::Tcp | Self::Udp)
    }
}

/// A node with what stands on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The node's name.
    pub node: String,
    /// The node's own addresses.
    pub addresses: Vec<IpAddr>,
    /// The client's addresses.
    pub client: Vec<IpAddr>,
    /// The server's name.
    pub server: String,
    /// The server's addresses.
    pub server_addresses: Vec<IpAddr>,
    /// The server's Service of each version of IP, where the cluster has it.
    pub services: BTreeMap<Family, ServiceSite>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSite {
    /// Its ClusterIP.
    pub cluster_ip: IpAddr,
    /// Its node ports, of TCP and of UDP.
    pub node_ports: (u16, u16),
    /// Its name, as pods know it.
    pub name: String,
    /// The name of the headless one beside it.
    pub headless: String,
}

/// One attempt of the matrix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    /// How.
    pub path: Path,
    /// Where to.
    pub place: Place,
    /// By which version of IP.
    pub family: Family,
    /// By what.
    pub transport: Transport,
    /// Number of the node that asks.
    pub from: usize,
    /// Number of the server's node, where the cluster has a say in it.
    pub to: Option<usize>,
    /// `HOST:PORT`, as the image's program reads it.
    pub target: String,
    /// The pod that has to answer, where an answer tells which did.
    pub server: Option<String>,
    /// Under which addresses packets may be seen: as they are sent, and as they arrive.
    pub seen_at: Vec<SocketAddr>,
}

impl Cell {
    /// As the image's program reads it.
    #[must_use]
    pub fn probe(&self) -> String {
        format!("{}:{}", self.transport.word(), self.target)
    }
}

/// All of what is tried. `api_server`: addresses of the Service `kubernetes`; `external`: who the user named besides.
#[must_use]
pub fn cells(sites: &[Site], api_server: &[SocketAddr], external: &[Target]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for (from, client) in sites.iter().enumerate() {
        for (to, server) in sites.iter().enumerate() {
            let place = if from == to {
                Place::SameNode
            } else {
                Place::OtherNode
            };
            for family in Family::ALL {
                for path in Path::ALL {
                    for transport in Transport::OF_SERVERS {
                        cells.extend(cell(
                            (from, client),
                            (to, server),
                            (path, place, family, transport),
                        ));
                    }
                }
            }
        }
        let elsewhere = api_server
            .iter()
            .map(|address| (Path::PodToApiServer, Target::Address(*address)))
            .chain(
                external
                    .iter()
                    .map(|target| (Path::PodToExternal, target.clone())),
            );
        cells.extend(elsewhere.filter_map(|(path, target)| connection(from, client, path, &target)));
    }
    cells
}

/// Somebody who is no pod of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// By address.
    Address(SocketAddr),
    /// By name and port.
    Name(String),
}

fn connection(from: usize, client: &Site, path: Path, target: &Target) -> Option<Cell> {
    let (family, seen_at) = match target {
        Target::Address(address) => (Family::of(address.ip()), vec![*address]),
        // Whatever the name has.
        Target::Name(_) => (Family::of(*client.client.first()?), Vec::new()),
    };
    of_family(&client.client, family)?;
    Some(Cell {
        path,
        place: Place::Anywhere,
        family,
        transport: Transport::Connect,
        from,
        to: None,
        target: match target {
            Target::Address(address) => address.to_string(),
            Target::Name(name) => name.clone(),
        },
        server: None,
        seen_at,
    })
}

fn cell(
    (from, client): (usize, &Site),
    (to, server): (usize, &Site),
    (path, place, family, transport): (Path, Place, Family, Transport),
) -> Option<Cell> {
    let asks = if path.is_of_node() {
        &client.addresses
    } else {
        &client.client
    };
    of_family(asks, family)?;
    let server_ip = of_family(&server.server_addresses, family)?;
    let server_port = if transport.is_udp() { UDP_PORT } else { HTTP_PORT };
    let at_server = SocketAddr::new(server_ip, server_port);
    let service = server.services.get(&family);
    let node_port = |service: &ServiceSite, site: &Site| {
        let (tcp, udp) = service.node_ports;
        let port = if transport.is_udp() { udp } else { tcp };
        Some(SocketAddr::new(of_family(&site.addresses, family)?, port))
    };
    let is_small = transport.tells_the_server();
    let (target, asked) = match path {
        Path::PodToPod | Path::NodeToPod => (at_server.to_string(), at_server),
        Path::PodToClusterIp | Path::NodeToClusterIp => {
            let address = SocketAddr::new(service?.cluster_ip, SERVICE_PORT);
            (address.to_string(), address)
        }
        Path::PodToNodePort => {
            let address = node_port(service?, client)?;
            (address.to_string(), address)
        }
        // On one node it is the own one.
        Path::PodToOtherNodePort if place == Place::OtherNode => {
            let address = node_port(service?, server)?;
            (address.to_string(), address)
        }
        // What a name leads to is tried with large packets by its address.
        Path::PodToName if is_small => {
            let service = service?;
            let address = SocketAddr::new(service.cluster_ip, SERVICE_PORT);
            (format!("{}:{SERVICE_PORT}", service.name), address)
        }
        Path::PodToHeadless if is_small => (format!("{}:{server_port}", service?.headless), at_server),
        _ => return None,
    };
    let mut seen_at = vec![asked];
    if at_server != asked {
        seen_at.push(at_server);
    }
    Some(Cell {
        path,
        place,
        family,
        transport,
        from,
        to: Some(to),
        target,
        server: is_small.then(|| server.server.clone()),
        seen_at,
    })
}

/// The first address of that version of IP.
#[must_use]
pub fn of_family(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    addresses
        .iter()
        .copied()
        .find(|address| Family::of(*address) == family)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A site whose numbers follow from its own.
    pub fn site(number: u8, has_v6: bool) -> Site {
        let addresses = |v4: String, v6: String| {
            let texts = [Some(v4), has_v6.then_some(v6)];
            let texts = texts.into_iter().flatten();
            texts
                .map(|text| text.parse().expect("an address"))
                .collect::<Vec<IpAddr>>()
        };
        let cluster_ips = addresses(format!("10.96.0.{number}"), format!("fd00:96::{number}"));
        let services = cluster_ips.into_iter().map(|cluster_ip| {
            let family = Family::of(cluster_ip);
            let name = format!("server-{number}-{}", family.to_string().to_lowercase());
            let service = ServiceSite {
                cluster_ip,
                node_ports: (30000 + u16::from(number), 31000 + u16::from(number)),
                headless: format!("{name}-headless.ns.svc"),
                name: format!("{name}.ns.svc"),
            };
            (family, service)
        });
        Site {
            node: format!("node-{number}"),
            addresses: addresses(format!("172.30.0.{number}"), format!("fd00:30::{number}")),
            client: addresses(format!("10.244.{number}.2"), format!("fd00:244:{number}::2")),
            server: format!("server-{number}"),
            server_addresses: addresses(format!("10.244.{number}.3"), format!("fd00:244:{number}::3")),
            services: services.collect(),
        }
    }

    fn probes(cells: &[Cell], from: usize, path: Path) -> Vec<String> {
        let wanted = cells.iter().filter(|cell| cell.from == from && cell.path == path);
        wanted.map(Cell::probe).collect()
    }

    #[test]
    fn each_path_is_tried_to_the_own_and_to_the_other_node() {
        let sites = [site(1, false), site(2, false)];
        let api = ["10.96.0.1:443".parse().expect("an address")];
        let all = cells(&sites, &api, &[Target::Name("example.test:80".to_owned())]);
        let of = |path| probes(&all, 0, path);
        let four = |tcp: &str, udp: &str| {
            [("tcp", tcp), ("udp", udp), ("tcp+large", tcp), ("udp+large", udp)]
                .map(|(kind, target)| format!("{kind}:{target}"))
        };
        let two = |tcp: &str, udp: &str| [format!("tcp:{tcp}"), format!("udp:{udp}")];
        let pods = [
            four("10.244.1.3:8080", "10.244.1.3:8081"),
            four("10.244.2.3:8080", "10.244.2.3:8081"),
        ];
        let services = [
            four("10.96.0.1:80", "10.96.0.1:80"),
            four("10.96.0.2:80", "10.96.0.2:80"),
        ];
        assert_eq!(of(Path::PodToPod), pods.concat());
        assert_eq!(of(Path::NodeToPod), pods.concat());
        assert_eq!(of(Path::PodToClusterIp), services.concat());
        assert_eq!(of(Path::NodeToClusterIp), services.concat());
        assert_eq!(
            of(Path::PodToNodePort),
            [
                four("172.30.0.1:30001", "172.30.0.1:31001"),
                four("172.30.0.1:30002", "172.30.0.1:31002")
            ]
            .concat()
        );
        assert_eq!(
            of(Path::PodToOtherNodePort),
            four("172.30.0.2:30002", "172.30.0.2:31002")
        );
        assert_eq!(
            of(Path::PodToName),
            [1, 2]
                .map(|number| two(
                    &format!("server-{number}-ipv4.ns.svc:80"),
                    &format!("server-{number}-ipv4.ns.svc:80")
                ))
                .concat()
        );
        assert_eq!(
            of(Path::PodToHeadless),
            [1, 2]
                .map(|number| two(
                    &format!("server-{number}-ipv4-headless.ns.svc:8080"),
                    &format!("server-{number}-ipv4-headless.ns.svc:8081")
                ))
                .concat()
        );
        assert_eq!(of(Path::PodToApiServer), ["connect:10.96.0.1:443"]);
        assert_eq!(of(Path::PodToExternal), ["connect:example.test:80"]);
        assert_eq!(all.iter().filter(|cell| cell.from == 0).count() * 2, all.len());
    }

    #[test]
    fn a_version_of_ip_that_only_some_have_is_tried_where_they_have_it() {
        let mut half = site(2, true);
        half.services.remove(&Family::V6);
        half.addresses.truncate(1);
        let sites = [site(1, true), half];
        let all = cells(&sites, &[], &[]);
        let v6: Vec<_> = all.iter().filter(|cell| cell.family == Family::V6).collect();
        let of = |from, path| {
            v6.iter()
                .filter(|cell| (cell.from, cell.path) == (from, path))
                .count()
        };
        // Pods have it everywhere, the second server no Service, and the second node no address.
        assert_eq!([of(0, Path::PodToPod), of(1, Path::PodToPod)], [8, 8]);
        assert_eq!([of(0, Path::PodToClusterIp), of(1, Path::PodToClusterIp)], [4, 4]);
        assert_eq!([of(0, Path::PodToNodePort), of(1, Path::PodToNodePort)], [4, 0]);
        assert_eq!([of(0, Path::NodeToPod), of(1, Path::NodeToPod)], [8, 0]);
        assert_eq!(of(1, Path::PodToOtherNodePort), 4);
    }

    #[test]
    fn small_answers_tell_who_has_to_answer_and_packets_are_looked_for_under_both_addresses() {
        let all = cells(&[site(1, false)], &[], &[]);
        let small = all
            .iter()
            .find(|cell| cell.path == Path::PodToClusterIp)
            .expect("one");
        assert_eq!(small.server.as_deref(), Some("server-1"));
        let seen = ["10.96.0.1:80", "10.244.1.3:8080"].map(|text| text.parse().expect("an address"));
        assert_eq!(small.seen_at, seen);
        let large = all
            .iter()
            .find(|cell| cell.transport == Transport::UdpLarge)
            .expect("one");
        assert_eq!(large.server, None);
        assert!(
            all.iter().all(|cell| cell.place == Place::SameNode),
            "there is one node"
        );
    }
}

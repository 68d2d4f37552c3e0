//! The one Service of the tests and its surroundings in the cluster, written short.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use model::service::LoadBalancerIngress;
use model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Extras, IpFamily, Kind, Node, ObjectName,
    Protocol, Service, ServiceCidr, ServiceKind, ServicePort, Snapshot,
};
use proxy::Settings;

/// An address in each version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pair {
    /// The second has its network in the first half and the number of the host in the last group.
    const fn new(v4: [u8; 4], network: u64, host: u16) -> Self {
        Self {
            v4: Ipv4Addr::new(v4[0], v4[1], v4[2], v4[3]),
            v6: Ipv6Addr::from_bits((network as u128) << 64 | host as u128),
        }
    }

    pub const fn of(self, family: IpFamily) -> IpAddr {
        match family {
            IpFamily::V4 => IpAddr::V4(self.v4),
            IpFamily::V6 => IpAddr::V6(self.v6),
        }
    }

    pub fn both(self) -> [IpAddr; 2] {
        FAMILIES.map(|family| self.of(family))
    }
}

pub const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

/// The Service's address.
pub const VIP: Pair = Pair::new([10, 96, 0, 10], 0xfd00_0096_0000_0000, 0x10);
/// Its load balancer's address.
pub const BALANCER: Pair = Pair::new([192, 0, 2, 10], 0x2001_0db8_0002_0000, 0x10);
/// Its external address.
pub const EXTERNAL: Pair = Pair::new([198, 51, 100, 10], 0x2001_0db8_0051_0000, 0x10);
/// The node's primary address.
pub const NODE: Pair = Pair::new([172, 30, 77, 11], 0xfd00_0077_0000_0000, 0x11);
/// Its other one, an ExternalIP.
pub const SECOND: Pair = Pair::new([172, 30, 78, 11], 0xfd00_0078_0000_0000, 0x11);
/// Another node's address.
pub const OTHER_NODE: Pair = Pair::new([172, 30, 78, 12], 0xfd00_0078_0000_0000, 0x12);
/// A machine outside the cluster.
pub const OUTSIDE: Pair = Pair::new([172, 30, 77, 50], 0xfd00_0077_0000_0000, 0x50);
/// One of another network.
pub const STRANGER: Pair = Pair::new([172, 30, 79, 66], 0xfd00_0079_0000_0000, 0x66);
/// A pod of the node that is no endpoint.
pub const POD: Pair = Pair::new([10, 244, 3, 2], 0xfd00_0244_0003_0000, 2);
const POD_GATEWAY: Pair = Pair::new([10, 244, 3, 1], 0xfd00_0244_0003_0000, 1);

/// A pod that may be an endpoint. Each has a network of its own with the node's side of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server {
    pub name: &'static str,
    pub address: Pair,
    /// The node's address towards it.
    pub gateway: Pair,
    pub node: &'static str,
}

impl Server {
    const fn new(name: &'static str, number: u8, node: &'static str) -> Self {
        let network = 0xfd00_0244_0000_0000 | (number as u64) << 16;
        Self {
            name,
            address: Pair::new([10, 244, number, 2], network, 2),
            gateway: Pair::new([10, 244, number, 1], network, 1),
            node,
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        let name = name.trim_end_matches("-admin");
        SERVERS.into_iter().find(|server| server.name == name)
    }
}

pub const SERVERS: [Server; 4] = [
    Server::new("near", 1, THIS_NODE),
    Server::new("far", 2, "node-2"),
    Server::new("near2", 4, THIS_NODE),
    Server::new("far2", 5, "node-2"),
];

/// The link of the pod that is no endpoint.
pub const POD_LINK: (Pair, Pair) = (POD, POD_GATEWAY);

/// Port and node port of the Service's TCP.
pub const TCP: (u16, u16) = (80, 30080);
/// Of its UDP.
pub const UDP: (u16, u16) = (53, 30053);
/// Of its SCTP, where it has that.
pub const SCTP: (u16, u16) = (90, 30090);
/// Of its second TCP port, where it has one.
pub const ADMIN: (u16, u16) = (8000, 30800);
/// Where endpoints listen.
pub const TARGET_PORT: u16 = 8080;
/// Where they listen for the second TCP port.
pub const ADMIN_TARGET_PORT: u16 = 9090;
/// The node under test.
pub const THIS_NODE: &str = "node-1";
/// Its zone.
pub const THIS_ZONE: &str = "a";

/// An endpoint of the Service.
#[derive(Clone, Copy, Debug)]
pub struct EndpointAt {
    server: Server,
    conditions: Conditions,
    zones: &'static [&'static str],
    nodes: &'static [&'static str],
    families: &'static [IpFamily],
}

pub const NEAR: EndpointAt = EndpointAt::ready(SERVERS[0]);
pub const FAR: EndpointAt = EndpointAt::ready(SERVERS[1]);
pub const NEAR2: EndpointAt = EndpointAt::ready(SERVERS[2]);
pub const FAR2: EndpointAt = EndpointAt::ready(SERVERS[3]);

impl EndpointAt {
    const fn ready(server: Server) -> Self {
        Self {
            server,
            conditions: Conditions::READY,
            zones: &[],
            nodes: &[],
            families: &FAMILIES,
        }
    }

    const fn conditions(self, ready: bool, serving: bool, terminating: bool) -> Self {
        let conditions = Conditions {
            ready,
            serving,
            terminating,
        };
        Self { conditions, ..self }
    }

    /// Does not serve.
    pub const fn unready(self) -> Self {
        self.conditions(false, false, false)
    }

    /// Its pod is being deleted and still serves.
    pub const fn leaving(self) -> Self {
        self.conditions(false, true, true)
    }

    /// Its pod is being deleted and serves no more.
    pub const fn gone(self) -> Self {
        self.conditions(false, false, true)
    }

    pub const fn zones(self, zones: &'static [&'static str]) -> Self {
        Self { zones, ..self }
    }

    pub const fn nodes(self, nodes: &'static [&'static str]) -> Self {
        Self { nodes, ..self }
    }

    pub const fn v4_only(self) -> Self {
        Self {
            families: &[IpFamily::V4],
            ..self
        }
    }

    fn in_slice(&self, family: IpFamily) -> Endpoint {
        Endpoint {
            address: self.server.address.of(family),
            conditions: self.conditions,
            node: Some(self.server.node.into()),
            zone: None,
            pod: None,
            extras: Extras::hints(
                self.zones.iter().map(|zone| (*zone).into()).collect(),
                self.nodes.iter().map(|node| (*node).into()).collect(),
            ),
        }
    }
}

/// What the cluster and the node look like.
#[derive(Clone, Debug)]
pub struct State {
    pub endpoints: Vec<EndpointAt>,
    /// What is special about the Service.
    pub service: Vec<fn(&mut Service)>,
    /// About the Node object.
    pub node: Vec<fn(&mut Node)>,
    /// About what the proxy is told.
    pub settings: Vec<fn(&mut Settings)>,
    /// The cluster's networks of ClusterIPs, as far as they are known.
    pub service_networks: Vec<IpNetwork>,
}

impl State {
    /// A Service of both families with TCP and UDP, node ports, and nothing special.
    pub fn new(endpoints: impl Into<Vec<EndpointAt>>) -> Self {
        Self {
            endpoints: endpoints.into(),
            service: Vec::new(),
            node: Vec::new(),
            settings: Vec::new(),
            service_networks: Vec::new(),
        }
    }

    /// The snapshot in which nothing else exists.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = empty();
        snapshot.apply(Change::Node(self.this_node()));
        snapshot.apply(Change::Service(self.service()));
        for family in FAMILIES {
            snapshot.apply(Change::EndpointSlice(self.slice(family)));
        }
        snapshot.apply(Change::ServiceCidr(ServiceCidr {
            name: "kubernetes".into(),
            networks: self.service_networks.iter().copied().collect(),
        }));
        snapshot
    }

    pub fn service(&self) -> Service {
        let mut service = service();
        for edit in &self.service {
            edit(&mut service);
        }
        service
    }

    pub fn this_node(&self) -> Node {
        let mut node = this_node();
        for edit in &self.node {
            edit(&mut node);
        }
        node
    }

    pub fn settings(&self) -> Settings {
        let mut settings = settings();
        for edit in &self.settings {
            edit(&mut settings);
        }
        settings
    }

    /// Has every port that any Service of the tests has: an additional one is nobody's.
    pub fn slice(&self, family: IpFamily) -> EndpointSlice {
        let of_family = self.endpoints.iter().filter(|at| at.families.contains(&family));
        let port = |name: String, protocol, number| EndpointPort {
            name: name.into(),
            protocol,
            port: port_number(number),
        };
        let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
        let mut ports: Vec<_> = protocols
            .map(|protocol| port(protocol.to_string(), protocol, TARGET_PORT))
            .into();
        ports.push(port("admin".to_owned(), Protocol::Tcp, ADMIN_TARGET_PORT));
        EndpointSlice {
            name: ObjectName::new("default", format!("web-{family:?}").to_lowercase()),
            service: "web".into(),
            family,
            endpoints: of_family.map(|at| at.in_slice(family)).collect(),
            ports: ports.into(),
            last_change: None,
        }
    }
}

/// A snapshot with complete lists, two nodes, and nothing else in them.
pub fn empty() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        snapshot.apply(Change::Synced(kind));
    }
    snapshot.apply(Change::Node(this_node()));
    snapshot.apply(Change::Node(Node {
        internal_addresses: OTHER_NODE.both().into(),
        zone: Some("b".into()),
        ..Node::new("node-2")
    }));
    snapshot
}

/// What the proxy is told.
pub fn settings() -> Settings {
    let pods = ["10.244.0.0/16", "fd00:244::/32"].map(|network| network.parse().expect("a network"));
    Settings::new(THIS_NODE.into(), pods)
}

fn this_node() -> Node {
    let networks = ["10.244.1.0/24", "10.244.3.0/24", "10.244.4.0/24"];
    let networks_v6 = ["fd00:244:1::/48", "fd00:244:3::/48", "fd00:244:4::/48"];
    let networks = networks.into_iter().chain(networks_v6);
    Node {
        internal_addresses: NODE.both().into(),
        external_addresses: SECOND.both().into(),
        pod_cidrs: networks
            .map(|network| network.parse().expect("a network"))
            .collect(),
        zone: Some(THIS_ZONE.into()),
        ..Node::new(THIS_NODE)
    }
}

fn service() -> Service {
    let kind = ServiceKind::ClusterIp {
        addresses: VIP.both().into(),
    };
    Service {
        ports: [port("TCP", Protocol::Tcp, TCP), port("UDP", Protocol::Udp, UDP)].into(),
        ..Service::new(ObjectName::new("default", "web"), kind)
    }
}

/// A port of a Service. Its name joins with the endpoints' ports.
pub fn port(name: &str, protocol: Protocol, (port, node_port): (u16, u16)) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port: port_number(port),
        node_port: Some(port_number(node_port)),
        app_protocol: None,
    }
}

/// Gives it a load balancer that leaves translation to the nodes.
pub fn with_balancer(service: &mut Service) {
    let ingress = |address| LoadBalancerIngress {
        address,
        proxied: false,
    };
    service.load_balancer = BALANCER.both().map(ingress).into();
}

/// Gives it external addresses.
pub fn with_external_addresses(service: &mut Service) {
    service.external_addresses = EXTERNAL.both().into();
}

pub fn with_sctp(service: &mut Service) {
    service.ports.push(port("SCTP", Protocol::Sctp, SCTP));
}

pub fn port_number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("not zero")
}

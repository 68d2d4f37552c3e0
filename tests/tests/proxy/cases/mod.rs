//! What must become of a packet, whatever renders the plan.
//!
//! The table is made of scenes: a state of the cluster with the rules that show in it, each with its rows. `trap N` is
//! a rule of kube-proxy's code that is easy to get wrong (`pkg/proxy`), named by where it is decided.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::{IpFamily, Node, Service};
use proxy::Settings;

use super::cluster::{
    ADMIN, BALANCER, EXTERNAL, EndpointAt, FAMILIES, NODE, OTHER_NODE, OUTSIDE, POD, Pair, SCTP, SECOND,
    SERVERS, STRANGER, Server, State, TCP, UDP, VIP,
};

mod affinity;
mod balancers;
mod cluster_ips;
mod kinds;
mod masquerade;
mod node_ports;
mod policies;
mod termination;
mod topology;

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum From {
    /// A machine beyond the node.
    Outside,
    /// Another one, in another network.
    Stranger,
    /// A pod of this node that is no endpoint.
    Pod,
    /// The first endpoint on this node.
    Near,
    /// The first endpoint on another node.
    Far,
    /// The node itself.
    Node,
}

impl From {
    pub const ALL: [Self; 6] = [
        Self::Outside,
        Self::Stranger,
        Self::Pod,
        Self::Near,
        Self::Far,
        Self::Node,
    ];

    pub const fn address(self) -> Pair {
        match self {
            Self::Outside => OUTSIDE,
            Self::Stranger => STRANGER,
            Self::Pod => POD,
            Self::Near => SERVERS[0].address,
            Self::Far => SERVERS[1].address,
            Self::Node => NODE,
        }
    }

    /// The device of the node by which its packets come in.
    pub const fn device(self) -> Option<&'static str> {
        match self {
            Self::Outside => Some("outside"),
            Self::Stranger => Some("stranger"),
            Self::Pod => Some("pod"),
            Self::Near => Some("near"),
            Self::Far => Some("far"),
            Self::Node => None,
        }
    }
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The Service's address and port.
    Vip,
    /// The Service's address and a port that it does not have.
    VipOtherPort,
    /// The Service's address and the number of its TCP port, whatever the protocol.
    VipTcpNumber,
    /// The Service's address and its second TCP port.
    VipAdmin,
    /// The node's address and the node port.
    NodePort,
    /// The node's address and the number of the TCP node port, whatever the protocol.
    NodePortTcpNumber,
    /// The node's address and the second node port.
    NodePortAdmin,
    /// The node's other address and the node port.
    SecondNodeAddress,
    /// The loopback address and the node port. The pod, and it alone, listens there.
    LoopbackNodePort,
    /// The node's address and a port that is no Service's.
    NodeOtherPort,
    /// Another node's address and the node port.
    RemoteNodePort,
    /// The load balancer's address and the Service's port.
    BalancerIp,
    /// The load balancer's address and a port that the Service does not have.
    BalancerOtherPort,
    /// The external address and the Service's port.
    ExternalIp,
    /// The external address and a port that the Service does not have.
    ExternalOtherPort,
    /// [`Self::Vip`] and [`Self::NodePort`] in turn.
    VipAndNodePort,
    /// [`Self::Vip`], [`Self::BalancerIp`] and [`Self::ExternalIp`] in turn.
    VipBalancerAndExternalIp,
}

impl To {
    /// The addresses, which are taken in turn.
    pub fn addresses(self, how: How, family: IpFamily) -> Vec<SocketAddr> {
        let (port, node_port) = match how {
            How::Tcp => TCP,
            How::Udp | How::UdpUnconnected => UDP,
            How::Sctp => SCTP,
        };
        let loopback = Pair {
            v4: Ipv4Addr::LOCALHOST,
            v6: Ipv6Addr::LOCALHOST,
        };
        let (address, port) = match self {
            Self::Vip => (VIP, port),
            Self::VipOtherPort => (VIP, port + 1),
            Self::VipTcpNumber => (VIP, TCP.0),
            Self::VipAdmin => (VIP, ADMIN.0),
            Self::NodePort => (NODE, node_port),
            Self::NodePortTcpNumber => (NODE, TCP.1),
            Self::NodePortAdmin => (NODE, ADMIN.1),
            Self::SecondNodeAddress => (SECOND, node_port),
            Self::LoopbackNodePort => (loopback, node_port),
            Self::NodeOtherPort => (NODE, node_port + 1),
            Self::RemoteNodePort => (OTHER_NODE, node_port),
            Self::BalancerIp => (BALANCER, port),
            Self::BalancerOtherPort => (BALANCER, port + 1),
            Self::ExternalIp => (EXTERNAL, port),
            Self::ExternalOtherPort => (EXTERNAL, port + 1),
            Self::VipAndNodePort => return in_turn(&[Self::Vip, Self::NodePort], how, family),
            Self::VipBalancerAndExternalIp => {
                return in_turn(&[Self::Vip, Self::BalancerIp, Self::ExternalIp], how, family);
            }
        };
        vec![SocketAddr::new(address.of(family), port)]
    }
}

fn in_turn(all: &[To], how: How, family: IpFamily) -> Vec<SocketAddr> {
    all.iter().flat_map(|to| to.addresses(how, family)).collect()
}

/// How it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Tcp,
    Udp,
    /// Without `connect()`.
    UdpUnconnected,
    /// By raw sockets, of which the socket hook sees nothing.
    Sctp,
}

/// The affinity of clients that [leave](Becomes::Leaves), and their pause: kernels count it in whole seconds.
pub const SHORT: Duration = Duration::from_secs(1);
pub const LONGER_THAN_SHORT: Duration = Duration::from_millis(2100);

/// What becomes of it. Servers are named in one text, with a space between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// Each of these servers answers some connections, nobody else does, and they see this client.
    Answer(&'static str, Sees),
    /// One of these servers answers all connections.
    Keeps(&'static str, Sees),
    /// A client that pauses for longer than [`SHORT`] gets another of these servers sooner or later.
    Leaves(&'static str, Sees),
    /// The client is told that nobody is there.
    Refused,
    /// Nothing comes back.
    Silence,
}

impl Becomes {
    pub fn servers(self) -> Vec<&'static str> {
        match self {
            Self::Answer(servers, _) | Self::Keeps(servers, _) | Self::Leaves(servers, _) => {
                servers.split(' ').collect()
            }
            Self::Refused | Self::Silence => Vec::new(),
        }
    }

    /// Connections that are enough: one of N servers stays unseen less than once in a billion times.
    pub fn attempts(self) -> usize {
        match (self, self.servers().len()) {
            (Self::Refused | Self::Silence, _) => 1,
            (Self::Keeps(..), _) => 12,
            (Self::Leaves(..), _) => 32,
            (Self::Answer(..), 1) => 2,
            (Self::Answer(..), servers) => 32 * (servers - 1),
        }
    }
}

/// Which address the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// The client's own.
    Client,
    /// The node's on the way to the server: the client was masqueraded.
    Node,
    /// Either of them.
    Either,
    /// A loopback address: the client's own machine is asked.
    Loopback,
}

impl Sees {
    /// Whether a server may see an address.
    pub fn fits(self, from: From, server: &str, seen: IpAddr) -> bool {
        let family = seen.into();
        match self {
            Self::Client if from == From::Node && server == BEYOND => {
                [NODE, SECOND].iter().any(|own| own.of(family) == seen)
            }
            Self::Client => from.address().of(family) == seen,
            Self::Node => Server::named(server).is_some_and(|server| server.gateway.of(family) == seen),
            Self::Either => [Self::Client, Self::Node]
                .iter()
                .any(|sees| sees.fits(from, server, seen)),
            Self::Loopback => seen.is_loopback(),
        }
    }
}

/// Who answers what the node does not translate.
pub const BEYOND: &str = "beyond";

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct PacketCase {
    /// What it shows.
    pub rule: &'static str,
    pub from: From,
    pub how: How,
    pub to: To,
    /// In which versions of IP.
    pub families: &'static [IpFamily],
    /// Under the packet rules alone.
    pub packets: Becomes,
    /// With the socket hook, where that differs.
    pub hook: Option<Becomes>,
}

const fn row(from: From, how: How, to: To, packets: Becomes) -> PacketCase {
    PacketCase {
        rule: "",
        from,
        how,
        to,
        families: &FAMILIES,
        packets,
        hook: None,
    }
}

impl PacketCase {
    const fn hook(self, becomes: Becomes) -> Self {
        Self {
            hook: Some(becomes),
            ..self
        }
    }

    const fn v4(self) -> Self {
        Self {
            families: &[IpFamily::V4],
            ..self
        }
    }

    const fn v6(self) -> Self {
        Self {
            families: &[IpFamily::V6],
            ..self
        }
    }
}

/// A state of the cluster and what must become of packets in it.
#[derive(Clone, Debug)]
pub struct Scene {
    pub name: &'static str,
    pub state: State,
    pub cases: Vec<PacketCase>,
}

impl Scene {
    fn new(name: &'static str, endpoints: impl Into<Vec<EndpointAt>>) -> Self {
        Self {
            name,
            state: State::new(endpoints),
            cases: Vec::new(),
        }
    }

    fn service(mut self, edit: fn(&mut Service)) -> Self {
        self.state.service.push(edit);
        self
    }

    fn node(mut self, edit: fn(&mut Node)) -> Self {
        self.state.node.push(edit);
        self
    }

    fn settings(mut self, edit: fn(&mut Settings)) -> Self {
        self.state.settings.push(edit);
        self
    }

    fn service_networks(mut self, networks: &[&str]) -> Self {
        let networks = networks
            .iter()
            .map(|network| network.parse::<IpNetwork>().expect("a network"));
        self.state.service_networks.extend(networks);
        self
    }

    fn rule(mut self, rule: &'static str, cases: impl IntoIterator<Item = PacketCase>) -> Self {
        self.cases
            .extend(cases.into_iter().map(|case| PacketCase { rule, ..case }));
        self
    }
}

/// The table.
pub fn scenes() -> Vec<Scene> {
    [
        cluster_ips::scenes(),
        node_ports::scenes(),
        balancers::scenes(),
        policies::scenes(),
        termination::scenes(),
        topology::scenes(),
        affinity::scenes(),
        masquerade::scenes(),
        kinds::scenes(),
    ]
    .concat()
}

/// What becomes of a packet that the node leaves alone.
pub fn untouched(case: &PacketCase) -> Becomes {
    match case.to {
        To::LoopbackNodePort if case.from == From::Pod => Becomes::Answer("pod", Sees::Loopback),
        To::LoopbackNodePort
        | To::NodePort
        | To::NodePortTcpNumber
        | To::NodePortAdmin
        | To::SecondNodeAddress
        | To::NodeOtherPort => Becomes::Refused,
        To::Vip
        | To::VipOtherPort
        | To::VipTcpNumber
        | To::VipAdmin
        | To::RemoteNodePort
        | To::BalancerIp
        | To::BalancerOtherPort
        | To::ExternalIp
        | To::ExternalOtherPort
        | To::VipAndNodePort
        | To::VipBalancerAndExternalIp => Becomes::Answer(BEYOND, Sees::Client),
    }
}

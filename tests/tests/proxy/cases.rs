//! What must become of a packet, whatever renders the plan.

use std::net::{Ipv4Addr, SocketAddr};

use model::{Conditions, TrafficPolicy};

use super::cluster::{LEAVING, READY, State, TCP, THIS_NODE, UDP, UNREADY, VIP};
use super::node::{FAR, NEAR, NODE};

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// A machine beyond the node.
    Outside,
    /// A pod of this node that is no endpoint.
    Pod,
    /// The endpoint on this node.
    Near,
    /// The endpoint on another node.
    Far,
    /// The node itself.
    Node,
}

/// Where it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// The Service's address and port.
    Vip,
    /// The Service's address and a port that it does not have.
    VipOtherPort,
    /// The node's address and the node port.
    NodePort,
    /// 127.0.0.1 and the node port. The pod, and it alone, listens there.
    LoopbackNodePort,
    /// The node's address and a port that is no Service's.
    NodeOtherPort,
}

/// How it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Tcp,
    Udp,
    /// Without `connect()`.
    UdpUnconnected,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Becomes {
    /// One of these servers answers and sees this client.
    Answer(&'static [&'static str], Sees),
    /// The client is told that nobody is there.
    Refused,
    /// Nothing comes back.
    Silence,
}

/// Which address the server sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sees {
    /// The client's own.
    Client,
    /// One of the node's.
    Node,
    /// 127.0.0.1: the client's own machine is asked.
    Loopback,
}

/// A row.
#[derive(Clone, Copy, Debug)]
pub struct PacketCase {
    pub state: &'static str,
    pub from: From,
    pub how: How,
    pub to: To,
    /// Under the packet rules alone.
    pub packets: Becomes,
    /// With the socket hook, where that differs.
    pub hook: Option<Becomes>,
}

impl PacketCase {
    pub fn destination(&self) -> SocketAddr {
        let (port, node_port) = if self.how == How::Tcp { TCP } else { UDP };
        match self.to {
            To::Vip => (VIP, port),
            To::VipOtherPort => (VIP, port + 1),
            To::NodePort => (NODE, node_port),
            To::LoopbackNodePort => (Ipv4Addr::LOCALHOST, node_port),
            To::NodeOtherPort => (NODE, node_port + 1),
        }
        .into()
    }
}

const EITHER: &[&str] = &["near", "far"];
const ONLY_NEAR: &[&str] = &["near"];
const ONLY_FAR: &[&str] = &["far"];
const ONLY_POD: &[&str] = &["pod"];

/// Cluster states by name.
pub fn states() -> Vec<(&'static str, State)> {
    use TrafficPolicy::{Cluster, Local};
    let near = |conditions: Conditions| (NEAR, THIS_NODE, conditions);
    let far = |conditions: Conditions| (FAR, "node-2", conditions);
    let state = |endpoints: &[_], internal, external| State {
        endpoints: endpoints.to_vec(),
        internal,
        external,
    };
    vec![
        ("both", state(&[near(READY), far(READY)], Cluster, Cluster)),
        ("near", state(&[near(READY)], Cluster, Cluster)),
        ("far", state(&[far(READY)], Cluster, Cluster)),
        ("none", state(&[], Cluster, Cluster)),
        ("unready", state(&[near(UNREADY), far(UNREADY)], Cluster, Cluster)),
        (
            "near leaves",
            state(&[near(LEAVING), far(READY)], Cluster, Cluster),
        ),
        (
            "all leave",
            state(&[near(LEAVING), far(UNREADY)], Cluster, Cluster),
        ),
        (
            "internal local, both",
            state(&[near(READY), far(READY)], Local, Cluster),
        ),
        ("internal local, far", state(&[far(READY)], Local, Cluster)),
        (
            "external local, both",
            state(&[near(READY), far(READY)], Cluster, Local),
        ),
        ("external local, far", state(&[far(READY)], Cluster, Local)),
        (
            "external local, near leaves",
            state(&[near(LEAVING), far(READY)], Cluster, Local),
        ),
        ("external local, none", state(&[], Cluster, Local)),
    ]
}

/// The table.
pub const CASES: &[PacketCase] = &[
    // An address of the Service: spread over all endpoints; pods keep their address, everyone else is masqueraded.
    case("both", From::Pod, How::Tcp, To::Vip, answer(EITHER, Sees::Client)),
    case("both", From::Pod, How::Udp, To::Vip, answer(EITHER, Sees::Client)),
    case(
        "both",
        From::Pod,
        How::UdpUnconnected,
        To::Vip,
        answer(EITHER, Sees::Client),
    ),
    case(
        "near",
        From::Far,
        How::Tcp,
        To::Vip,
        answer(ONLY_NEAR, Sees::Client),
    ),
    case("both", From::Node, How::Tcp, To::Vip, answer(EITHER, Sees::Node)),
    case("both", From::Node, How::Udp, To::Vip, answer(EITHER, Sees::Node)),
    case(
        "both",
        From::Outside,
        How::Tcp,
        To::Vip,
        answer(EITHER, Sees::Node),
    ),
    case(
        "both",
        From::Outside,
        How::Udp,
        To::Vip,
        answer(EITHER, Sees::Node),
    ),
    // A port that the Service does not have.
    case("both", From::Pod, How::Tcp, To::VipOtherPort, Becomes::Refused),
    case("both", From::Pod, How::Udp, To::VipOtherPort, Becomes::Refused),
    case(
        "both",
        From::Outside,
        How::Tcp,
        To::VipOtherPort,
        Becomes::Refused,
    ),
    case("both", From::Node, How::Tcp, To::VipOtherPort, Becomes::Refused),
    // A node port, policy Cluster: everyone is masqueraded; the hook has no packet to masquerade.
    case(
        "both",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(EITHER, Sees::Node),
    ),
    case(
        "both",
        From::Outside,
        How::Udp,
        To::NodePort,
        answer(EITHER, Sees::Node),
    ),
    case(
        "both",
        From::Pod,
        How::Tcp,
        To::NodePort,
        answer(EITHER, Sees::Node),
    )
    .hook(answer(EITHER, Sees::Client)),
    case(
        "both",
        From::Pod,
        How::Udp,
        To::NodePort,
        answer(EITHER, Sees::Node),
    )
    .hook(answer(EITHER, Sees::Client)),
    case(
        "both",
        From::Pod,
        How::UdpUnconnected,
        To::NodePort,
        answer(EITHER, Sees::Node),
    ),
    case(
        "both",
        From::Node,
        How::Tcp,
        To::NodePort,
        answer(EITHER, Sees::Node),
    ),
    case(
        "far",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(ONLY_FAR, Sees::Node),
    ),
    case(
        "near",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(ONLY_NEAR, Sees::Node),
    ),
    case(
        "both",
        From::Outside,
        How::Tcp,
        To::NodeOtherPort,
        Becomes::Refused,
    ),
    // On loopback only the hook serves it.
    case(
        "both",
        From::Node,
        How::Tcp,
        To::LoopbackNodePort,
        Becomes::Refused,
    )
    .hook(answer(EITHER, Sees::Node)),
    case(
        "both",
        From::Node,
        How::Udp,
        To::LoopbackNodePort,
        Becomes::Refused,
    )
    .hook(answer(EITHER, Sees::Node)),
    // A pod's loopback is the pod's own, whatever the Service's state.
    case(
        "both",
        From::Pod,
        How::Tcp,
        To::LoopbackNodePort,
        answer(ONLY_POD, Sees::Loopback),
    ),
    case(
        "both",
        From::Pod,
        How::Udp,
        To::LoopbackNodePort,
        answer(ONLY_POD, Sees::Loopback),
    ),
    case(
        "both",
        From::Pod,
        How::UdpUnconnected,
        To::LoopbackNodePort,
        answer(ONLY_POD, Sees::Loopback),
    ),
    case(
        "none",
        From::Pod,
        How::Tcp,
        To::LoopbackNodePort,
        answer(ONLY_POD, Sees::Loopback),
    ),
    case(
        "both",
        From::Near,
        How::Tcp,
        To::LoopbackNodePort,
        Becomes::Refused,
    ),
    case(
        "both",
        From::Near,
        How::Udp,
        To::LoopbackNodePort,
        Becomes::Refused,
    ),
    // An endpoint that is sent to itself.
    case(
        "near",
        From::Near,
        How::Tcp,
        To::Vip,
        answer(ONLY_NEAR, Sees::Node),
    )
    .hook(answer(ONLY_NEAR, Sees::Client)),
    case(
        "near",
        From::Near,
        How::Udp,
        To::Vip,
        answer(ONLY_NEAR, Sees::Node),
    )
    .hook(answer(ONLY_NEAR, Sees::Client)),
    case(
        "near",
        From::Near,
        How::UdpUnconnected,
        To::Vip,
        answer(ONLY_NEAR, Sees::Node),
    ),
    case(
        "near",
        From::Near,
        How::Tcp,
        To::NodePort,
        answer(ONLY_NEAR, Sees::Node),
    )
    .hook(answer(ONLY_NEAR, Sees::Client)),
    // No endpoint at all: the client learns at once.
    case("none", From::Pod, How::Tcp, To::Vip, Becomes::Refused),
    case("none", From::Pod, How::Udp, To::Vip, Becomes::Refused),
    case("none", From::Node, How::Tcp, To::Vip, Becomes::Refused),
    case("none", From::Outside, How::Tcp, To::Vip, Becomes::Refused),
    case("none", From::Outside, How::Tcp, To::NodePort, Becomes::Refused),
    case("none", From::Outside, How::Udp, To::NodePort, Becomes::Refused),
    case("none", From::Pod, How::Tcp, To::NodePort, Becomes::Refused),
    case("unready", From::Pod, How::Tcp, To::Vip, Becomes::Refused),
    // KEP-1669: endpoints that terminate take traffic only while no other does.
    case(
        "near leaves",
        From::Pod,
        How::Tcp,
        To::Vip,
        answer(ONLY_FAR, Sees::Client),
    ),
    case(
        "all leave",
        From::Pod,
        How::Tcp,
        To::Vip,
        answer(ONLY_NEAR, Sees::Client),
    ),
    case(
        "all leave",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(ONLY_NEAR, Sees::Node),
    ),
    // internalTrafficPolicy Local: endpoints of this node, or silence; node ports are another matter.
    case(
        "internal local, both",
        From::Pod,
        How::Tcp,
        To::Vip,
        answer(ONLY_NEAR, Sees::Client),
    ),
    case(
        "internal local, both",
        From::Node,
        How::Tcp,
        To::Vip,
        answer(ONLY_NEAR, Sees::Node),
    ),
    case(
        "internal local, both",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(EITHER, Sees::Node),
    ),
    case(
        "internal local, far",
        From::Pod,
        How::Tcp,
        To::Vip,
        Becomes::Silence,
    ),
    case(
        "internal local, far",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(ONLY_FAR, Sees::Node),
    ),
    // externalTrafficPolicy Local: from outside only endpoints of this node, which see the client.
    case(
        "external local, both",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(ONLY_NEAR, Sees::Client),
    ),
    case(
        "external local, both",
        From::Outside,
        How::Udp,
        To::NodePort,
        answer(ONLY_NEAR, Sees::Client),
    ),
    case(
        "external local, both",
        From::Pod,
        How::Tcp,
        To::NodePort,
        answer(EITHER, Sees::Client),
    ),
    case(
        "external local, both",
        From::Node,
        How::Tcp,
        To::NodePort,
        answer(EITHER, Sees::Node),
    ),
    case(
        "external local, both",
        From::Pod,
        How::Tcp,
        To::Vip,
        answer(EITHER, Sees::Client),
    ),
    case(
        "external local, far",
        From::Outside,
        How::Tcp,
        To::NodePort,
        Becomes::Silence,
    ),
    case(
        "external local, far",
        From::Pod,
        How::Tcp,
        To::NodePort,
        answer(ONLY_FAR, Sees::Client),
    ),
    case(
        "external local, far",
        From::Node,
        How::Tcp,
        To::NodePort,
        answer(ONLY_FAR, Sees::Node),
    ),
    case(
        "external local, near leaves",
        From::Outside,
        How::Tcp,
        To::NodePort,
        answer(ONLY_NEAR, Sees::Client),
    ),
    case(
        "external local, near leaves",
        From::Pod,
        How::Tcp,
        To::NodePort,
        answer(ONLY_FAR, Sees::Client),
    ),
    case(
        "external local, none",
        From::Outside,
        How::Tcp,
        To::NodePort,
        Becomes::Refused,
    ),
];

const fn case(state: &'static str, from: From, how: How, to: To, packets: Becomes) -> PacketCase {
    PacketCase {
        state,
        from,
        how,
        to,
        packets,
        hook: None,
    }
}

const fn answer(by: &'static [&'static str], sees: Sees) -> Becomes {
    Becomes::Answer(by, sees)
}

impl PacketCase {
    const fn hook(self, becomes: Becomes) -> Self {
        Self {
            hook: Some(becomes),
            ..self
        }
    }
}

//! The maps by which a packet of one pod finds another, on the same node or through the tunnel to another node, without
//! the node's network stack.
//!
//! ```text
//! written by the host side
//! PODS       address of a pod of this node       → its device on the node's side, its MAC addresses, its MTU
//! REMOTES    subnet of another node              → that node, and the tunnel to it                  LPM
//! TUNNELS    version of IP                       → what arrives for this node's end of the tunnel, and what it sends
//! written by the programs
//! POD_FLOWS  both ends of a TCP connection       → who opened it, and how far it has come       LRU
//! POD_LEASE  0                                   → until when connections may begin
//! ```
//! The host side renews the lease while it sees to it that nobody's rules are passed by: when it is gone, connections
//! begin in the stack.
//!
//! A connection is in `POD_FLOWS` when its SYN was addressed to a pod. Only those may pass by the network stack. What
//! the packet rules translate is addressed to a Service, and its answers must meet the connection tracking that knows
//! of it; so must what began before the program was there. An entry that is forgotten costs a connection its short
//! way, and nothing else: the stack takes up what it sees in the middle.

use crate::net::{Ip, Port};

/// Version of the layouts in this module; part of the pin directory's name.
pub const LAYOUT: u32 = 4;

/// The mark of a packet that nobody sent: a test run's (`BPF_PROG_TEST_RUN`), which asks what would become of such a one.
/// Nothing is counted or noted then. The mark of the answer is the index of the device that the packet would go to; where the
/// stack would get it, or nobody, the index of the counter that says why.
///
/// No pod can send one: a packet loses its mark between network namespaces (`skb_scrub_packet`).
pub const ASKED: u32 = 0x6361_7761;

/// How many bits an address has in a key of `REMOTES`: those of IPv4 are mapped.
pub const ADDRESS_BITS: u32 = 128;

/// Value of `PODS`, and a part of that of `REMOTES`: the next hop. `[ifindex:4][mtu:4][there:6][here:6] = 20 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Hop {
    /// Index of the device: the pod's on the node's side, or the tunnel's.
    pub ifindex: u32,
    /// The largest packet that the other end takes, in bytes from the IP header on.
    pub mtu: u32,
    /// MAC address of the other end: of the device in the pod, or of the other node's tunnel device.
    pub there: [u8; 6],
    /// MAC address of this end: of that device.
    pub here: [u8; 6],
}

/// Value of `REMOTES`. `[hop:20][node:16 be][underlay:4][neighbour:16 be][hops:4] = 60 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Remote {
    /// The way there: this node's tunnel device, and the other's.
    pub hop: Hop,
    /// The other node's address on the underlay: nobody else sends in the name of the subnet.
    pub node: Ip,
    /// Index of the underlay's device, where packets may be wrapped without the tunnel's. 0: they may not.
    pub underlay: u32,
    /// Who on the underlay's link leads to it: itself, or a router. [`Ip::ANY`]: the routes say it of each packet.
    pub neighbour: Ip,
    /// How many hops wrapped packets may go: below 256.
    pub hops: u32,
}

/// Value of `TUNNELS`: what of the underlay's packets is for a tunnel's device, and what that sends there.
/// `[ifindex:4][local:16 be][vni:4 be][port:2 be][mac:6][first_port:2][ports:2] = 36 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Tunnel {
    /// Index of the device. 0: there is none.
    pub ifindex: u32,
    /// This node's address on the underlay.
    pub local: Ip,
    /// The network identifier as it lies in the header, one byte before the word's end.
    pub vni: u32,
    /// UDP port.
    pub port: Port,
    /// MAC address of the device.
    pub mac: [u8; 6],
    /// The first UDP port that it sends from.
    pub first_port: u16,
    /// How many they are.
    pub ports: u16,
}

impl Tunnel {
    /// Key of IPv4's in `TUNNELS`.
    pub const V4: u32 = 0;
    /// Key of IPv6's.
    pub const V6: u32 = 1;
    /// How many there are.
    pub const COUNT: u32 = 2;

    /// A network identifier as it lies in the header (RFC 7348 §5).
    #[must_use]
    pub const fn vni(identifier: u32) -> u32 {
        (identifier << 8).to_be()
    }

    /// The port that packets of a connection with this hash leave from: the device's choice, so that a connection has
    /// one port, whoever wraps its packets (`udp_flow_src_port` in include/net/udp.h).
    #[must_use]
    #[inline(always)]
    pub const fn source_port(&self, hash: u32) -> Port {
        let hash = hash ^ hash << 16;
        let ahead = (hash as u64 * self.ports as u64) >> 32;
        Port::new(self.first_port.wrapping_add(ahead as u16))
    }
}

/// Key of `POD_FLOWS`, the same for both directions: the address that is smaller by its last different word comes first.
/// `[first:16 be][second:16 be][first_port:2 be][second_port:2 be] = 36 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodFlowKey {
    /// The smaller address, its words as the machine reads them.
    pub first: Ip,
    /// The other.
    pub second: Ip,
    /// Port at the first address.
    pub first_port: Port,
    /// Port at the second address.
    pub second_port: Port,
}

impl PodFlowKey {
    /// The key of packets between two addresses. `None` where nothing tells the directions apart: they are one.
    #[must_use]
    #[inline(always)]
    pub const fn new(source: Ip, source_port: Port, destination: Ip, destination_port: Port) -> Option<Self> {
        let Some(is_smaller) = is_smaller(source, destination) else {
            return None;
        };
        Some(if is_smaller {
            Self {
                first: source,
                second: destination,
                first_port: source_port,
                second_port: destination_port,
            }
        } else {
            Self {
                first: destination,
                second: source,
                first_port: destination_port,
                second_port: source_port,
            }
        })
    }
}

/// Whether the last word in which they differ is smaller in the first. `None`: they are one address.
#[inline(always)]
pub(crate) const fn is_smaller(Ip(one): Ip, Ip(other): Ip) -> Option<bool> {
    // Unrolled: most addresses differ in the last word, and programs are read by a verifier.
    let (a, b) = if one[3] != other[3] {
        (one[3], other[3])
    } else if one[2] != other[2] {
        (one[2], other[2])
    } else if one[1] != other[1] {
        (one[1], other[1])
    } else {
        (one[0], other[0])
    };
    if a == b { None } else { Some(a < b) }
}

/// Value of `POD_FLOWS`. `[opener:4][answerer:4][state:4] = 12 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct PodFlow {
    /// Index of the device by which the SYN came in: a pod's, or the tunnel's.
    pub opener: u32,
    /// Index of the device by which it left.
    pub answerer: u32,
    /// [`PodFlow::OPENING`] or [`PodFlow::OPEN`].
    pub state: u32,
}

impl PodFlow {
    /// A SYN went by, and no answer to it yet.
    pub const OPENING: u32 = 0;
    /// The SYN was answered.
    pub const OPEN: u32 = 1;
}

/// Index of a counter in `POD_STATS`: what became of a packet that a pod sent, or that came through the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct PodCounter(pub u32);

impl PodCounter {
    /// Given to the other pod.
    pub const GIVEN: Self = Self(0);
    /// To the stack: not TCP, or a fragment, or with options or extension headers.
    pub const OTHER_PACKET: Self = Self(1);
    /// To the stack: to no pod of this node, nor to another node's subnet.
    pub const NO_POD: Self = Self(2);
    /// To the stack: the connection did not begin here with a SYN from pod to pod.
    pub const OTHER_FLOW: Self = Self(3);
    /// To the stack, which knows what to do about it: a SYN from an address, or in a frame from a MAC address, that is
    /// not the pod's, or from an address that is not behind the tunnel.
    pub const OTHER_SOURCE: Self = Self(4);
    /// To the stack, which tells the sender: larger than the other pod takes.
    pub const TOO_BIG: Self = Self(5);
    /// To the stack, which tells the sender: on its last hop.
    pub const LAST_HOP: Self = Self(6);
    /// To the stack: a SYN after the host side has not been seen for a while.
    pub const NO_LEASE: Self = Self(7);

    /// Sent to the other pod's node by the tunnel's device.
    pub const SENT: Self = Self(8);
    /// Taken out of its wrapping at the underlay's device, and given to the pod.
    pub const UNWRAPPED: Self = Self(9);

    /// Wrapped, and handed to the underlay's device for the other pod's node. Whether it left is that device's to say,
    /// and its neighbours'.
    pub const WRAPPED: Self = Self(10);
    /// Dropped: there was no memory to write the wrapping.
    pub const UNWRITTEN: Self = Self(11);

    /// How many there are.
    pub const COUNT: u32 = 12;

    /// Counters and their names in metrics, by index.
    pub const NAMES: [&'static str; Self::COUNT as usize] = [
        "given",
        "other_packet",
        "no_pod",
        "other_flow",
        "other_source",
        "too_big",
        "last_hop",
        "no_lease",
        "sent",
        "unwrapped",
        "wrapped",
        "unwritten",
    ];
}

const _: () = assert!(size_of::<Hop>() == 20);
const _: () = assert!(size_of::<Remote>() == 60);
const _: () = assert!(size_of::<Tunnel>() == 36);
const _: () = assert!(size_of::<PodFlowKey>() == 36);
const _: () = assert!(size_of::<PodFlow>() == 12);

#[cfg(not(target_arch = "bpf"))]
crate::plain_old_data!(Hop, Remote, Tunnel, PodFlowKey, PodFlow);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn ip(text: &str) -> Ip {
        Ip::from(text.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn both_directions_of_a_connection_have_one_key_and_no_other_connection_has_it() {
        let pairs = [
            ("10.244.1.2", "10.244.1.3"),
            ("10.244.1.2", "10.244.2.2"),
            ("fd00::2", "fd00::3"),
            ("fd00:0:0:1::2", "fd00:0:0:2::2"),
            ("fd00:1::2", "fd00:2::2"),
            ("fd01::2", "fd02::2"),
            ("fd00::1:0:2", "fd00::2:0:2"),
        ];
        for (a, b) in pairs {
            let there = PodFlowKey::new(ip(a), Port::new(40000), ip(b), Port::new(80));
            let back = PodFlowKey::new(ip(b), Port::new(80), ip(a), Port::new(40000));
            assert!(there.is_some());
            assert_eq!(there, back);
            let swapped = PodFlowKey::new(ip(a), Port::new(80), ip(b), Port::new(40000));
            assert_ne!(there, swapped);
        }
        let own = PodFlowKey::new(ip("10.244.1.2"), Port::new(1), ip("10.244.1.2"), Port::new(2));
        assert_eq!(own, None);
    }
}

//! What the programs that follow packets are told when they are loaded, and what they tell then. They live as long as
//! the process that loaded them: nothing here is pinned, and nothing here is part of [`crate::LAYOUT`].
//!
//! ```text
//! written by the host side, before the programs are loaded
//! OFFSETS     where the kernel's structures have their fields      global
//! FILTER      whose packets are followed                           global
//! SOURCES     who the one end may be, where it has many addresses   hash
//! TARGETS     who the other end may be                             hash
//! written by the programs
//! TRACKED     address of an sk_buff  → which packet it carries    LRU
//! LEARNED     both ends of a flow    → it is a followed one, under another name (NAT)    LRU
//! PRESENT     whether all programs are attached (the host side), whether TRACKED and LEARNED ever had an entry
//! EVENTS      what was seen                                       ring
//! LOST        events that found no room in the ring, by kind
//! MISSED      tracepoints met while their program ran already, by kind
//! ```

use crate::net::{Ip, Port};
use crate::pods::is_smaller;

/// Where the running kernel's structures have their fields, in bytes. The programs carry no relocations: the host side
/// reads it from the kernel's own type information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    /// `sk_buff.dev`.
    pub skb_dev: u32,
    /// `sk_buff.sk`.
    pub skb_sk: u32,
    /// `sk_buff.protocol`.
    pub skb_protocol: u32,
    /// `sk_buff.network_header`.
    pub skb_network_header: u32,
    /// `sk_buff.tail`.
    pub skb_tail: u32,
    /// `sk_buff.head`.
    pub skb_head: u32,
    /// `sk_buff.data`.
    pub skb_data: u32,
    /// `sk_buff._nfct`; [`Offsets::ABSENT`] in kernels without connection tracking.
    pub skb_nfct: u32,
    /// `net_device.name`.
    pub dev_name: u32,
    /// `net_device.nd_net`.
    pub dev_net: u32,
    /// `sock.__sk_common.skc_net`.
    pub sock_net: u32,
    /// `net.ns.inum`.
    pub net_inum: u32,
    /// `sk_buff.len`.
    pub skb_len: u32,
    /// `net_device.ifindex`.
    pub dev_ifindex: u32,
    /// The tuple of the original direction in `nf_conn`.
    pub conn_original: u32,
    /// The tuple of the reply direction in `nf_conn`.
    pub conn_reply: u32,
    /// `nf_conn.status`.
    pub conn_status: u32,
    /// `sock.__sk_common.skc_cookie`.
    pub sock_cookie: u32,
    /// `sk_buff.skb_iif`.
    pub skb_iif: u32,
    /// `net_device.adj_list.upper`.
    pub dev_upper: u32,
}

impl Offsets {
    /// The kernel has no such field.
    pub const ABSENT: u32 = u32::MAX;
}

/// Whose packets are followed, in both directions.
/// `[sources:2*16 be][targets:2*16 be][protocol:4][any source:4][any target:4][ports:4][vxlan ports:2*2 be]
/// [source port:2 be][pad:2] = 88 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Filter {
    /// The addresses of the one end, where it has one or two: a packet of nobody's is told by them without a look into
    /// `SOURCES`. Unused ones repeat the first. [`Ip::ANY`]: it has more, or is anybody.
    pub sources: [Ip; 2],
    /// The same of the other end and `TARGETS`.
    pub targets: [Ip; 2],
    /// Protocol of layer 4; 0: any.
    pub protocol: u32,
    /// 1: the one end is anybody. 0: it is in `sources`, or in `SOURCES`.
    pub any_source: u32,
    /// 1: the other end is anybody. 0: it is in `TARGETS`.
    pub any_target: u32,
    /// Bits: [`Filter::NAMED`] and [`Filter::EVERY`].
    pub ports: u32,
    /// UDP ports at which packets are unwrapped; 0: none.
    pub vxlan_ports: [Port; 2],
    /// The port of the one end; 0: any.
    pub source_port: Port,
    /// Zero.
    pub pad: u16,
}

impl Filter {
    /// Some of `TARGETS` are one port of an address.
    pub const NAMED: u32 = 1 << 0;
    /// Some of `TARGETS` are every port of an address.
    pub const EVERY: u32 = 1 << 1;
}

/// Key of `TARGETS`. `[address:16 be][port:4] = 20 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Target {
    /// The address.
    pub address: Ip,
    /// Its port, as it lies in packets; 0: every port.
    pub port: u32,
}

impl Target {
    /// A port at an address; `None`: every port.
    #[must_use]
    pub const fn new(address: Ip, port: Option<Port>) -> Self {
        let port = match port {
            Some(Port(port)) => port as u32,
            None => 0,
        };
        Self { address, port }
    }
}

/// Who sends to whom. `[source:16 be][destination:16 be][source_port:2 be][destination_port:2 be][protocol:4] = 40 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Flow {
    /// The sender.
    pub source: Ip,
    /// The receiver.
    pub destination: Ip,
    /// The sender's port; 0 where the protocol has none.
    pub source_port: Port,
    /// The receiver's port.
    pub destination_port: Port,
    /// Protocol of layer 4; 0: there is no flow.
    pub protocol: u32,
}

impl Flow {
    /// The same flow for both directions: the smaller end first.
    #[must_use]
    #[inline(always)]
    pub const fn canonical(self) -> Self {
        let in_order = match is_smaller(self.source, self.destination) {
            Some(smaller) => smaller,
            None => self.source_port.0 <= self.destination_port.0,
        };
        if in_order { self } else { self.reversed() }
    }

    /// The other direction.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// What stays the same in a packet on its way, whoever translates or wraps it. `4 * 4 = 16 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Fingerprint {
    /// Identification of IPv4; 0 of IPv6.
    pub id: u32,
    /// TCP: sequence number. ICMP: identifier and sequence. UDP: the first four bytes that it carries. In network order.
    pub first: u32,
    /// TCP: acknowledgement. UDP: the next four bytes. In network order.
    pub second: u32,
    /// Protocol of layer 4.
    pub protocol: u32,
}

/// What an IP header and the header behind it say.
/// `[flow:40][fingerprint:16][length:4][tcp flags:1][ttl:1][icmp type:1][icmp code:1] = 64 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// Who sends to whom. Protocol 0: there is no such header.
    pub flow: Flow,
    /// What stays the same.
    pub fingerprint: Fingerprint,
    /// Length of the packet from this header on, in bytes, as it says itself.
    pub length: u32,
    /// TCP's flags (RFC 9293 §3.1).
    pub tcp_flags: u8,
    /// Hops that are left.
    pub ttl: u8,
    /// ICMP's type.
    pub icmp_type: u8,
    /// ICMP's code.
    pub icmp_code: u8,
}

/// Value of `TRACKED`. `[packet:8][fingerprint:16] = 24 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tracked {
    /// When the packet was seen first: its name.
    pub packet: u64,
    /// Tells a packet from the next one in the same memory.
    pub fingerprint: Fingerprint,
}

/// Keys of `PRESENT`.
#[derive(Clone, Copy, Debug)]
pub struct Presence;

impl Presence {
    /// `TRACKED` had an entry.
    pub const TRACKED: u32 = 0;
    /// `LEARNED` had an entry.
    pub const LEARNED: u32 = 1;
    /// Every program is attached: until then none looks.
    pub const ALL_ATTACHED: u32 = 2;
    /// How many keys there are.
    pub const COUNT: u32 = 3;
}

/// What was seen of a packet.
/// `[4*8][flows:2*40][headers:2*64][3*4][device:16][kind:4] = 272 bytes`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// When, in nanoseconds since boot without suspend (`CLOCK_MONOTONIC`).
    pub time: u64,
    /// The packet's name: when it was seen first.
    pub packet: u64,
    /// Where in the kernel a packet ended; 0 elsewhere.
    pub location: u64,
    /// Address of the `nf_conn` that the packet belongs to; 0: none.
    pub conntrack: u64,
    /// That connection as it began; of an error by ICMP that is in none, the flow of the packet that it quotes. Protocol 0:
    /// none.
    pub original: Flow,
    /// That connection as it is answered.
    pub reply: Flow,
    /// The outermost headers.
    pub outer: Header,
    /// The headers inside VXLAN.
    pub inner: Header,
    /// VXLAN's network identifier.
    pub vni: u32,
    /// `enum skb_drop_reason`.
    pub reason: u32,
    /// Inode number of the network namespace; 0: not known.
    pub netns: u32,
    /// The device's name, zeroes behind it; zeroes alone: no device.
    pub device: [u8; 16],
    /// [`Event::SENT`] and so on.
    pub kind: u32,
}

impl Event {
    /// Handed to a device (`net_dev_start_xmit`).
    pub const SENT: u32 = 0;
    /// Came from a device (`netif_receive_skb`).
    pub const RECEIVED: u32 = 1;
    /// Dropped (`kfree_skb`).
    pub const DROPPED: u32 = 2;
    /// Ended as it should (`consume_skb`).
    pub const CONSUMED: u32 = 3;
    /// How many kinds there are.
    pub const KINDS: u32 = 4;

    /// The headers of the packet itself, whatever it is wrapped in.
    #[must_use]
    #[inline(always)]
    pub const fn innermost(&self) -> &Header {
        if self.inner.flow.protocol == 0 {
            &self.outer
        } else {
            &self.inner
        }
    }
}

const _: () = assert!(size_of::<Offsets>() == 80);
const _: () = assert!(size_of::<Filter>() == 88);
const _: () = assert!(size_of::<Target>() == 20);
const _: () = assert!(size_of::<Flow>() == 40);
const _: () = assert!(size_of::<Fingerprint>() == 16);
const _: () = assert!(size_of::<Header>() == 64);
const _: () = assert!(size_of::<Tracked>() == 24);
const _: () = assert!(size_of::<Event>() == 272);

#[cfg(not(target_arch = "bpf"))]
crate::plain_old_data!(Offsets, Filter, Target, Flow, Fingerprint, Header, Tracked, Event);

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn both_directions_have_one_canonical_flow() {
        let flow = |source: &str, source_port, destination: &str, destination_port| Flow {
            source: source.parse::<IpAddr>().expect("an address").into(),
            destination: destination.parse::<IpAddr>().expect("an address").into(),
            source_port: Port::new(source_port),
            destination_port: Port::new(destination_port),
            protocol: 6,
        };
        let rows = [
            flow("10.244.1.2", 40000, "10.244.1.3", 80),
            flow("10.244.1.3", 80, "10.244.0.2", 40000),
            flow("10.244.1.2", 40000, "10.244.1.2", 80),
            flow("fd00:1::2", 40000, "fd00:2::2", 80),
        ];
        for row in rows {
            assert_eq!(row.canonical(), row.reversed().canonical());
            assert_eq!(row.reversed().reversed(), row);
        }
    }
}

//! Who sends to whom. A packet passes many devices on its way; it is counted where a socket sends it, and where it comes to
//! the namespace that has its receiver's address.
//!
//! Walk: a socket sends → `net_dev_start_xmit` at the first device, where the packet still has its socket → counted as
//! sent → veths, bridges, tunnels, where a rule may translate it: that is noted → `netif_receive_skb` at the first device of
//! the receiver's namespace → counted as received.
//!
//! Devices stand on others: a bridge on its ports, a VLAN on an uplink, that on the members of a bond. A packet meets each
//! of them, and is counted at the first. Where it is sent that is told by the flow, since a packet may be cut up on the way
//! down; where it comes from, by what it says of the device before. What stands on a bond or carries a VLAN gives its
//! packets itself (`another_round` in net/core/dev.c).

use core::ffi::c_void;

use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_common::tally::{FlowCount, Local, Total};
use ebpf_common::trace::{Flow, Header};

use crate::count::{add, count, entry, now};
use crate::drops::{ACK, NO_HEADER, SYN};
use crate::headers::{self, TCP, V4_TYPE, V6_TYPE};
use crate::kernel::{self, Bytes, Skb};
use crate::tunnel;

#[map]
static FLOWS: LruHashMap<Flow, FlowCount> = LruHashMap::with_max_entries(65536, 0);
#[map]
static NATS: LruHashMap<Flow, Flow> = LruHashMap::with_max_entries(16384, 0);
#[map]
static LOCAL: HashMap<Local, u32> = HashMap::with_max_entries(16384, 0);

/// `LOOPBACK_IFINDEX`, of every namespace.
const LOOPBACK: u32 = 1;

/// How long a packet waits between two devices of which one stands on the other, in nanoseconds, at the most: a flow that
/// was sent by none meanwhile has found another way.
const IN_BETWEEN: u64 = 1_000_000_000;

/// `ETH_P_8021Q` and `ETH_P_8021AD` in network order: a VLAN's tag stands before the network's header.
const VLAN_TYPES: [u16; 2] = [0x8100_u16.to_be(), 0x88a8_u16.to_be()];

/// A VLAN's tag. `[priority and number:2 be][ethertype:2 be] = 4 bytes`.
const TAG: u64 = 4;

/// A packet is handed to a device: `(skb, dev)`.
#[btf_tracepoint]
pub fn net_dev_start_xmit(ctx: BtfTracePointContext) {
    let skb = Skb::new(ctx.arg(0));
    let ethertype = skb.protocol();
    if ethertype != V4_TYPE && ethertype != V6_TYPE {
        return;
    }
    let conntrack = skb.conntrack();
    if conntrack != 0 && kernel::is_translated(conntrack) {
        note(conntrack);
    }
    let socket = skb.socket();
    if socket == 0 {
        return;
    }
    let device: *const c_void = ctx.arg(1);
    let (ifindex, netns) = kernel::place(device as u64);
    // A tunnel's device may be in another namespace than the socket.
    if ifindex == LOOPBACK || netns != kernel::netns_of_socket(socket) {
        return;
    }
    let Some(header) = header(skb.from_network_header(), ethertype) else {
        return;
    };
    let now = now();
    if let Some(flow) = flow(&header, now) {
        // SAFETY: the verifier has checked the bounds; what stands here is the same whoever writes it.
        unsafe {
            if was_sent_above(flow, device as u64, ifindex, now) {
                return;
            }
            add(&raw mut (*flow).sent_packets, 1);
            add(&raw mut (*flow).sent_bytes, header.length.into());
            (&raw mut (*flow).sender).write_volatile(netns);
            (&raw mut (*flow).sent_by).write_volatile(ifindex);
            if (*flow).cookie == 0 {
                (&raw mut (*flow).cookie).write_volatile(kernel::cookie(socket));
            }
            grown(flow, &header, now);
        }
    }
    count(Total::FLOWS);
}

/// Whether the packet was counted at a device that stands on this one.
///
/// # Safety
/// The flow is a map's value.
#[inline(always)]
unsafe fn was_sent_above(flow: *const FlowCount, device: u64, ifindex: u32, now: u64) -> bool {
    // SAFETY: the caller's.
    let (sent_by, last) = unsafe {
        (
            (&raw const (*flow).sent_by).read_volatile(),
            (&raw const (*flow).last).read_volatile(),
        )
    };
    sent_by != 0 && sent_by != ifindex && now < last + IN_BETWEEN && kernel::carries_others(device)
}

/// A device gave a packet: `(skb)`.
#[btf_tracepoint]
pub fn netif_receive_skb(ctx: BtfTracePointContext) {
    let skb = Skb::new(ctx.arg(0));
    let (mut ethertype, mut bytes) = (skb.protocol(), skb.from_data());
    if VLAN_TYPES.contains(&ethertype) {
        ethertype = kernel::read(bytes.start, 2);
        bytes.start += TAG;
    }
    if ethertype != V4_TYPE && ethertype != V6_TYPE {
        return;
    }
    let (ifindex, netns) = kernel::place(skb.device());
    if ifindex == LOOPBACK {
        return;
    }
    let Some(header) = header(bytes, ethertype) else {
        return;
    };
    let here = Local {
        netns,
        address: header.flow.destination,
    };
    if LOCAL.get_ptr(here).is_none() {
        return;
    }
    let now = now();
    if let Some(flow) = flow(&header, now) {
        let came_by = skb.came_by();
        // SAFETY: as above.
        unsafe {
            // A bridge gives what its port gave.
            let received_by = (&raw const (*flow).received_by).read_volatile();
            if came_by != 0 && came_by != ifindex && came_by == received_by {
                return;
            }
            add(&raw mut (*flow).received_packets, 1);
            add(&raw mut (*flow).received_bytes, header.length.into());
            (&raw mut (*flow).receiver).write_volatile(netns);
            (&raw mut (*flow).received_by).write_volatile(ifindex);
            grown(flow, &header, now);
        }
    }
    count(Total::FLOWS);
}

/// The headers of a packet that is counted: what carries others is not.
#[inline(always)]
fn header(bytes: Bytes, ethertype: u16) -> Option<Header> {
    let mut header = NO_HEADER;
    headers::parse(bytes, ethertype, &mut header);
    (header.flow.protocol != 0 && !tunnel::is_of_one(&header)).then_some(header)
}

/// The flow's count.
#[inline(always)]
fn flow(header: &Header, now: u64) -> Option<*mut FlowCount> {
    let new = || FlowCount {
        sent_packets: 0,
        sent_bytes: 0,
        received_packets: 0,
        received_bytes: 0,
        first: now,
        last: now,
        cookie: 0,
        sender: 0,
        receiver: 0,
        tcp_flags: 0,
        sent_by: 0,
        received_by: 0,
        pad: 0,
    };
    entry(&FLOWS, &header.flow, new)
}

/// Notes what the packet tells of all of the flow.
///
/// # Safety
/// The flow is a map's value.
#[inline(always)]
unsafe fn grown(flow: *mut FlowCount, header: &Header, now: u64) {
    let mut flags = u32::from(header.tcp_flags);
    if header.flow.protocol == u32::from(TCP) && header.tcp_flags & (SYN | ACK) == SYN {
        flags |= FlowCount::OPENS;
    }
    // SAFETY: the caller's. A flag that two CPUs add at once may be lost until the next packet.
    unsafe {
        (&raw mut (*flow).last).write_volatile(now);
        let before = (&raw const (*flow).tcp_flags).read_volatile();
        if before | flags != before {
            (&raw mut (*flow).tcp_flags).write_volatile(before | flags);
        }
    }
}

/// Notes how a connection is translated.
#[inline(always)]
fn note(conntrack: u64) {
    let (original, reply) = kernel::flows(conntrack);
    let translated = reply.reversed();
    // SAFETY: the verifier has checked the bounds. Whoever writes it meanwhile writes a translation of the same flow.
    let is_known = NATS
        .get_ptr(original)
        .is_some_and(|known| unsafe { *known } == translated);
    if !is_known {
        // A full map forgets the oldest. The same names may be given to another connection, to somebody else.
        let _ = NATS.insert(original, translated, 0);
    }
}

//! Who sends to whom. A packet passes many devices on its way; it is counted where a socket sends it, and where it comes to
//! the namespace that has its receiver's address.
//!
//! Walk: a socket sends → `net_dev_start_xmit` at the first device, where the packet still has its socket → counted as
//! sent → veths, bridges, tunnels, where a rule may translate it: that is noted → `netif_receive_skb` at a device of the
//! receiver's namespace → counted as received. Devices that stand on others there, as bonds, bridges and VLANs do, have it
//! counted at each.

use core::ffi::c_void;

use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{HashMap, LruHashMap};
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_common::net::Port;
use ebpf_common::tally::{FlowCount, Local, Total};
use ebpf_common::trace::{Flow, Header};

use crate::count::{add, count, entry, now};
use crate::drops::{ACK, NO_HEADER, SYN};
use crate::headers::{self, TCP, UDP, V4_TYPE, V6_TYPE};
use crate::kernel::{self, Bytes, Skb};

#[map]
static FLOWS: LruHashMap<Flow, FlowCount> = LruHashMap::with_max_entries(65536, 0);
#[map]
static NATS: LruHashMap<Flow, Flow> = LruHashMap::with_max_entries(16384, 0);
#[map]
static LOCAL: HashMap<Local, u32> = HashMap::with_max_entries(16384, 0);

/// Set by the loader.
#[unsafe(no_mangle)]
static TUNNELS: [Port; 2] = [Port(0); 2];

/// `LOOPBACK_IFINDEX`, of every namespace.
const LOOPBACK: u32 = 1;

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
    if let Some(flow) = grown(&header) {
        // SAFETY: the verifier has checked the bounds; what stands here is the same whoever writes it.
        unsafe {
            add(&raw mut (*flow).sent_packets, 1);
            add(&raw mut (*flow).sent_bytes, header.length.into());
            (&raw mut (*flow).sender).write_volatile(netns);
            if (*flow).cookie == 0 {
                (&raw mut (*flow).cookie).write_volatile(kernel::cookie(socket));
            }
        }
    }
    count(Total::FLOWS);
}

/// A device gave a packet: `(skb)`.
#[btf_tracepoint]
pub fn netif_receive_skb(ctx: BtfTracePointContext) {
    let skb = Skb::new(ctx.arg(0));
    let ethertype = skb.protocol();
    if ethertype != V4_TYPE && ethertype != V6_TYPE {
        return;
    }
    let (ifindex, netns) = kernel::place(skb.device());
    if ifindex == LOOPBACK {
        return;
    }
    let Some(header) = header(skb.from_data(), ethertype) else {
        return;
    };
    let here = Local {
        netns,
        address: header.flow.destination,
    };
    if LOCAL.get_ptr(here).is_none() {
        return;
    }
    if let Some(flow) = grown(&header) {
        // SAFETY: as above.
        unsafe {
            add(&raw mut (*flow).received_packets, 1);
            add(&raw mut (*flow).received_bytes, header.length.into());
            (&raw mut (*flow).receiver).write_volatile(netns);
        }
    }
    count(Total::FLOWS);
}

/// The headers of a packet that is counted: what carries others is not.
#[inline(always)]
fn header(bytes: Bytes, ethertype: u16) -> Option<Header> {
    let mut header = NO_HEADER;
    headers::parse(bytes, ethertype, &mut header);
    if header.flow.protocol == 0 {
        return None;
    }
    let port = header.flow.destination_port.0;
    // SAFETY: the global is there as long as the program. Volatile: what it holds is not known when this is compiled.
    let [first, second] = unsafe { core::ptr::read_volatile(&raw const TUNNELS) };
    let is_tunnel =
        header.flow.protocol == u32::from(UDP) && port != 0 && (port == first.0 || port == second.0);
    (!is_tunnel).then_some(header)
}

/// The flow's count, with what the packet tells of all of it.
#[inline(always)]
fn grown(header: &Header) -> Option<*mut FlowCount> {
    let now = now();
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
        pad: 0,
    };
    let flow = entry(&FLOWS, &header.flow, new)?;
    let mut flags = u32::from(header.tcp_flags);
    if header.flow.protocol == u32::from(TCP) && header.tcp_flags & (SYN | ACK) == SYN {
        flags |= FlowCount::OPENS;
    }
    // SAFETY: the verifier has checked the bounds. A flag that two CPUs add at once may be lost until the next packet.
    unsafe {
        (&raw mut (*flow).last).write_volatile(now);
        let before = (&raw const (*flow).tcp_flags).read_volatile();
        if before | flags != before {
            (&raw mut (*flow).tcp_flags).write_volatile(before | flags);
        }
    }
    Some(flow)
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

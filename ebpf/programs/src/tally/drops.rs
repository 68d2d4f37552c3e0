//! Where packets are dropped, by whom they were and why.

use core::ffi::c_void;

use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::LruHashMap;
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_common::net::Port;
use ebpf_common::tally::{DropCount, DropKey, Total};
use ebpf_common::trace::{Fingerprint, Header};

use crate::count::{add, count, entry, now};
use crate::headers::{self, NO_FLOW, TCP, V4_TYPE, V6_TYPE};
use crate::kernel::{self, Device, Skb};
use crate::tunnel;

#[map]
static DROPS: LruHashMap<DropKey, DropCount> = LruHashMap::with_max_entries(16384, 0);

/// Set by the loader.
#[unsafe(no_mangle)]
static BY_FLOW: u32 = 0;

/// Bits of TCP's flags (RFC 9293 §3.1).
pub const SYN: u8 = 1 << 1;
pub const ACK: u8 = 1 << 4;

/// Namespaces have no smaller inode numbers: the first of each kind one a little below 0xf000_0000, all others those above
/// (`PROC_*_INIT_INO` and `PROC_DYNAMIC_FIRST`, include/linux/proc_ns.h and fs/proc).
const FIRST_NETNS: u32 = 0xefff_ff00;

/// A packet is dropped: `(skb, location, reason, socket)`.
#[btf_tracepoint]
pub fn kfree_skb(ctx: BtfTracePointContext) {
    let socket: *const c_void = ctx.arg(3);
    tally(&ctx, socket as u64);
}

/// The same before Linux 6.11: `(skb, location, reason)`. The host side loads the one that fits.
#[btf_tracepoint(function = "kfree_skb")]
pub fn kfree_skb_bare(ctx: BtfTracePointContext) {
    tally(&ctx, 0);
}

#[inline(always)]
fn tally(ctx: &BtfTracePointContext, socket: u64) {
    let skb = Skb::new(ctx.arg(0));
    let location: *const c_void = ctx.arg(1);
    let ethertype = skb.protocol();
    let mut header = NO_HEADER;
    let bytes = skb.from_network_header();
    let transport = headers::parse(bytes, ethertype, &mut header);
    let (mut ethertype, mut wrapped) = (ethertype, 0);
    // Who misses it is who sent what is within.
    if let Some(inner) = tunnel::inside(bytes, transport, &header) {
        header = inner;
        wrapped = 1;
        ethertype = if header.flow.source.is_v4() {
            V4_TYPE
        } else {
            V6_TYPE
        };
    }
    let device = device(skb, socket);
    // SAFETY: the global is there as long as the program. Volatile: what it holds is not known when this is compiled.
    let by_flow = unsafe { core::ptr::read_volatile(&raw const BY_FLOW) };
    let is_first = header.flow.protocol == u32::from(TCP) && header.tcp_flags & (SYN | ACK) == SYN;
    let key = DropKey {
        location: location as u64,
        source: header.flow.source,
        destination: header.flow.destination,
        netns: device.netns,
        ifindex: device.ifindex,
        reason: ctx.arg(2),
        source_port: if by_flow == 0 {
            Port(0)
        } else {
            header.flow.source_port
        },
        destination_port: header.flow.destination_port,
        ethertype,
        protocol: header.flow.protocol as u8,
        opens: is_first.into(),
        wrapped,
    };
    // What the layers have taken off is part of the packet.
    let bytes = match header.length {
        0 => skb.length(),
        length => length,
    };
    let now = now();
    let new = || DropCount {
        packets: 0,
        bytes: 0,
        first: now,
        last: now,
        device: device.name,
    };
    if let Some(found) = entry(&DROPS, &key, new) {
        // SAFETY: the verifier has checked the bounds; `add` and this store are the only writers of these words.
        unsafe {
            add(&raw mut (*found).packets, 1);
            add(&raw mut (*found).bytes, bytes.into());
            (&raw mut (*found).last).write_volatile(now);
        }
    }
    count(Total::DROPS);
}

pub const NO_HEADER: Header = Header {
    flow: NO_FLOW,
    fingerprint: Fingerprint {
        id: 0,
        first: 0,
        second: 0,
        protocol: 0,
    },
    length: 0,
    tcp_flags: 0,
    ttl: 0,
    icmp_type: 0,
    icmp_code: 0,
};

/// The device that the packet is at. What a socket has had has other things there: then the namespace is the socket's,
/// that of the receiver where it is told, else the sender's.
#[inline(always)]
fn device(skb: Skb, socket: u64) -> Device {
    let address = skb.device();
    if address != 0 {
        let device = kernel::device(address);
        if device.netns >= FIRST_NETNS {
            return device;
        }
    }
    let netns = match kernel::netns_of_socket(socket) {
        0 => skb.socket_netns(),
        netns => netns,
    };
    Device {
        name: [0; 16],
        ifindex: 0,
        netns,
    }
}

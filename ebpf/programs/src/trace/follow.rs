//! The tracepoints, and which packets are followed.

use core::ffi::c_void;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::{btf_tracepoint, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf};
use aya_ebpf::programs::BtfTracePointContext;
use ebpf_common::net::{Ip, Port};
use ebpf_common::trace::{Event, Filter, Flow, Header, Presence, Target, Tracked};

use crate::headers::{self, ICMP, ICMP_V6, NO_FLOW, UDP, V4_TYPE, V6_TYPE, is_same};
use crate::kernel::{self, Bytes, Skb};

/// An end with more addresses than [`Filter::sources`] has room for: a node has one for each of its devices.
#[map]
static SOURCES: HashMap<Ip, u32> = HashMap::with_max_entries(1024, 0);
#[map]
static TARGETS: HashMap<Target, u32> = HashMap::with_max_entries(1024, 0);
#[map]
static TRACKED: LruHashMap<u64, Tracked> = LruHashMap::with_max_entries(4096, 0);
#[map]
static LEARNED: LruHashMap<Flow, u32> = LruHashMap::with_max_entries(1024, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Whether a map ever had an entry, and whether the programs look at all: an array's is read without a call, and most
/// traces find nobody for long.
#[map]
static PRESENT: Array<u32> = Array::with_max_entries(Presence::COUNT, 0);

#[map]
static LOST: PerCpuArray<u64> = PerCpuArray::with_max_entries(Event::KINDS, 0);

/// How often a program met its tracepoint while it ran on that CPU already, by kind.
#[map]
static MISSED: PerCpuArray<u64> = PerCpuArray::with_max_entries(Event::KINDS, 0);

/// Whether a program runs on this CPU, by kind. The kernel looks itself only since Linux 6.2 (`__bpf_trace_run`,
/// kernel/trace/bpf_trace.c); before, an interrupt enters a program again that is half way through.
#[map]
static BUSY: PerCpuArray<u32> = PerCpuArray::with_max_entries(Event::KINDS, 0);

/// Where a program writes an event: it is larger than its stack. [`BUSY`] keeps a program from being in it twice on a CPU;
/// others may interrupt it, so each has its own.
#[map]
static DRAFTS: PerCpuArray<Event> = PerCpuArray::with_max_entries(Event::KINDS, 0);

/// Set by the loader.
#[unsafe(no_mangle)]
static FILTER: Filter = Filter {
    sources: [Ip::ANY; 2],
    targets: [Ip::ANY; 2],
    protocol: 0,
    any_source: 0,
    any_target: 0,
    ports: 0,
    vxlan_ports: [Port(0); 2],
    source_port: Port(0),
    pad: 0,
};

/// One of the filter's fields.
macro_rules! filter {
    ($($field:tt)+) => {
        // SAFETY: the global is there as long as the program. Volatile: what it holds is not known when this is compiled.
        unsafe { core::ptr::read_volatile(&raw const FILTER.$($field)+) }
    };
}

/// What a tracepoint tells beside the packet.
struct Seen {
    kind: u32,
    bytes: Bytes,
    location: u64,
    reason: u32,
}

/// A packet is handed to a device: `(skb, dev)`.
#[btf_tracepoint]
pub fn net_dev_start_xmit(ctx: BtfTracePointContext) {
    let skb = skb(&ctx);
    observe(skb, Seen::by_device(Event::SENT, skb.from_network_header()));
}

/// A device gave a packet: `(skb)`.
#[btf_tracepoint]
pub fn netif_receive_skb(ctx: BtfTracePointContext) {
    let skb = skb(&ctx);
    observe(skb, Seen::by_device(Event::RECEIVED, skb.from_data()));
}

/// A packet is dropped: `(skb, location, reason)`.
#[btf_tracepoint]
pub fn kfree_skb(ctx: BtfTracePointContext) {
    let skb = skb(&ctx);
    let seen = Seen {
        kind: Event::DROPPED,
        bytes: skb.from_network_header(),
        location: ctx.arg::<*const c_void>(1) as u64,
        reason: ctx.arg(2),
    };
    observe(skb, seen);
    if is_present(Presence::TRACKED) {
        forget(skb.address());
    }
}

/// A packet has ended as it should: `(skb, location)`.
#[btf_tracepoint]
pub fn consume_skb(ctx: BtfTracePointContext) {
    consume(skb(&ctx), ctx.arg::<*const c_void>(1) as u64);
}

/// The same before Linux 6.3: `(skb)`. The host side loads the one that fits.
#[btf_tracepoint(function = "consume_skb")]
pub fn consume_skb_bare(ctx: BtfTracePointContext) {
    consume(skb(&ctx), 0);
}

/// Most that end are no packets of the network.
#[inline(always)]
fn consume(skb: Skb, location: u64) {
    let address = skb.address();
    if !is_tracked(address) {
        return;
    }
    let seen = Seen {
        kind: Event::CONSUMED,
        bytes: skb.from_network_header(),
        location,
        reason: 0,
    };
    observe(skb, seen);
    forget(address);
}

impl Seen {
    #[inline(always)]
    fn by_device(kind: u32, bytes: Bytes) -> Self {
        Self {
            kind,
            bytes,
            location: 0,
            reason: 0,
        }
    }
}

#[inline(always)]
fn skb(ctx: &BtfTracePointContext) -> Skb {
    Skb::new(ctx.arg(0))
}

#[inline(always)]
fn observe(skb: Skb, seen: Seen) {
    let ethertype = skb.protocol();
    if (ethertype != V4_TYPE && ethertype != V6_TYPE) || !may_be_followed(skb, ethertype, &seen) {
        return;
    }
    let Some(busy) = BUSY.get_ptr_mut(seen.kind) else {
        return;
    };
    // SAFETY: the verifier has checked the bounds; the slot is this CPU's, and who interrupts in between leaves 0.
    if unsafe { core::ptr::read_volatile(busy) } != 0 {
        count(&MISSED, seen.kind);
        return;
    }
    // SAFETY: as above. The helpers called by `tell` keep its accesses to the draft between these two.
    unsafe { core::ptr::write_volatile(busy, 1) };
    tell(skb, ethertype, &seen);
    // SAFETY: as above.
    unsafe { core::ptr::write_volatile(busy, 0) };
}

/// Whether it is worth reading all of a packet's headers: what costs the least, and tells most packets that are nobody's,
/// comes first.
#[inline(always)]
fn may_be_followed(skb: Skb, ethertype: u16, seen: &Seen) -> bool {
    // Half of the programs would tell half of the way.
    if !is_present(Presence::ALL_ATTACHED) {
        return false;
    }
    if is_tracked(skb.address()) || is_present(Presence::LEARNED) {
        return true;
    }
    let Some(ends) = headers::ends(seen.bytes, ethertype) else {
        return false;
    };
    if (is_source(ends.source) && may_be_target(ends.destination))
        || (is_source(ends.destination) && may_be_target(ends.source))
    {
        return true;
    }
    // Its wrapping has other addresses.
    if ends.next == UDP && filter!(vxlan_ports[0]).0 != 0 {
        return true;
    }
    // So has what a router says of a packet, and a packet that was translated before it was seen first.
    if ends.next == ICMP || ends.next == ICMP_V6 {
        return true;
    }
    let conntrack = skb.conntrack();
    conntrack != 0 && kernel::is_translated(conntrack)
}

#[inline(always)]
fn tell(skb: Skb, ethertype: u16, seen: &Seen) {
    let Some(draft) = DRAFTS.get_ptr_mut(seen.kind) else {
        return;
    };
    // SAFETY: the verifier has checked the bounds; nobody else writes here while this program runs.
    let event = unsafe { &mut *draft };
    event.vni = 0;
    event.inner.flow.protocol = 0;
    let transport = headers::parse(seen.bytes, ethertype, &mut event.outer);
    if event.outer.flow.protocol == 0 {
        return;
    }
    if is_vxlan(&event.outer) && transport != 0 {
        event.vni = headers::unwrap(seen.bytes, transport, &mut event.inner);
    }
    event.conntrack = skb.conntrack();
    (event.original, event.reply) = match event.conntrack {
        0 if transport != 0 && headers::is_icmp_error(&event.outer) => {
            let quoted = headers::quoted(seen.bytes, transport, ethertype);
            (quoted, quoted.reversed())
        }
        0 => (NO_FLOW, NO_FLOW),
        conntrack => kernel::flows(conntrack),
    };
    event.time = now();
    let Some(packet) = followed(skb, seen, event) else {
        return;
    };
    event.packet = packet;
    // Without NAT there are no other names.
    if has_connection(event) && kernel::is_translated(event.conntrack) {
        learn(event.original);
        learn(event.reply);
        learn(event.outer.flow);
    }
    complete(skb, seen, event);
    report(event);
}

/// The packet's name, if it is followed.
#[inline(always)]
fn followed(skb: Skb, seen: &Seen, event: &Event) -> Option<u64> {
    let address = skb.address();
    let fingerprint = event.innermost().fingerprint;
    // SAFETY: the value is copied at once; a writer in between would be another packet in the same memory, which the
    // fingerprint tells apart.
    if let Some(tracked) = unsafe { TRACKED.get(address) } {
        if is_same(&tracked.fingerprint, &fingerprint) {
            return Some(tracked.packet);
        }
        forget(address);
    }
    if seen.kind == Event::CONSUMED || !is_wanted(event) {
        return None;
    }
    let tracked = Tracked {
        packet: event.time,
        fingerprint,
    };
    // A full map forgets the oldest; whatever fails, the next hop has another name.
    if TRACKED.insert(address, tracked, 0).is_ok() {
        set_present(Presence::TRACKED);
    }
    Some(event.time)
}

/// Whether the filter names this packet, or the connection that it belongs to.
#[inline(always)]
fn is_wanted(event: &Event) -> bool {
    let is_wrapped = event.inner.flow.protocol != 0;
    let flow = event.innermost().flow;
    // The verifier goes through each comparison again: no more of them than are needed.
    let other = if is_wrapped {
        event.outer.flow
    } else {
        event.original
    };
    matches(&flow) || is_learned(&flow) || matches(&other) || (!is_wrapped && matches(&event.reply))
}

/// Whether the connection is the packet's own: that of a wrapped one is its wrapping's.
#[inline(always)]
fn has_connection(event: &Event) -> bool {
    event.conntrack != 0 && event.inner.flow.protocol == 0
}

#[inline(always)]
fn matches(flow: &Flow) -> bool {
    let protocol = filter!(protocol);
    if flow.protocol == 0 || (protocol != 0 && protocol != flow.protocol) {
        return false;
    }
    (is_from(flow.source, flow.source_port) && is_target(flow.destination, flow.destination_port))
        || (is_from(flow.destination, flow.destination_port) && is_target(flow.source, flow.source_port))
}

#[inline(always)]
fn is_from(address: Ip, port: Port) -> bool {
    let wanted = filter!(source_port).0;
    (wanted == 0 || wanted == port.0) && is_source(address)
}

#[inline(always)]
fn is_source(address: Ip) -> bool {
    if filter!(any_source) != 0 {
        return true;
    }
    let first = filter!(sources[0]);
    if is_equal(first, Ip::ANY) {
        return SOURCES.get_ptr(address).is_some();
    }
    is_equal(first, address) || is_equal(filter!(sources[1]), address)
}

/// Word by word: the compiler's own comparison is a call that there is none for here.
#[inline(always)]
fn is_equal(Ip(one): Ip, Ip(other): Ip) -> bool {
    one[3] == other[3] && one[2] == other[2] && one[1] == other[1] && one[0] == other[0]
}

/// By its address alone. Many addresses are told from others in [`TARGETS`], with the port.
#[inline(always)]
fn may_be_target(address: Ip) -> bool {
    let first = filter!(targets[0]);
    is_equal(first, Ip::ANY) || is_equal(first, address) || is_equal(filter!(targets[1]), address)
}

#[inline(always)]
fn is_target(address: Ip, port: Port) -> bool {
    if filter!(any_target) != 0 {
        return true;
    }
    let is_there = |port| TARGETS.get_ptr(Target::new(address, port)).is_some();
    let ports = filter!(ports);
    (ports & Filter::NAMED != 0 && is_there(Some(port))) || (ports & Filter::EVERY != 0 && is_there(None))
}

#[inline(always)]
fn is_learned(flow: &Flow) -> bool {
    is_present(Presence::LEARNED) && LEARNED.get_ptr(flow.canonical()).is_some()
}

#[inline(always)]
fn is_tracked(address: u64) -> bool {
    is_present(Presence::TRACKED) && TRACKED.get_ptr(address).is_some()
}

#[inline(always)]
fn is_present(map: u32) -> bool {
    PRESENT.get(map).is_some_and(|present| *present != 0)
}

#[inline(always)]
fn set_present(map: u32) {
    if let Some(present) = PRESENT.get_ptr_mut(map) {
        // SAFETY: the verifier has checked the bounds, and nobody writes anything else.
        unsafe { *present = 1 };
    }
}

/// Remembers another name of a followed flow.
#[inline(always)]
fn learn(flow: Flow) {
    if flow.protocol != 0 && LEARNED.insert(flow.canonical(), 1, 0).is_ok() {
        set_present(Presence::LEARNED);
    }
}

/// Writes the rest of the event.
#[inline(always)]
fn complete(skb: Skb, seen: &Seen, event: &mut Event) {
    event.kind = seen.kind;
    event.location = seen.location;
    event.reason = seen.reason;
    event.netns = 0;
    event.device = [0; 16];
    // What has been given to a socket has other things where the device was (`dev_scratch`).
    if seen.kind == Event::CONSUMED {
        return;
    }
    let (device, socket) = skb.device_and_socket();
    if device == 0 {
        event.netns = kernel::netns_of_socket(socket);
        return;
    }
    let device = kernel::device(device);
    event.device = device.name;
    event.netns = device.netns;
}

#[inline(always)]
fn report(event: &Event) {
    if EVENTS.output::<Event>(event, 0).is_err() {
        count(&LOST, event.kind);
    }
}

#[inline(always)]
fn count(counter: &PerCpuArray<u64>, kind: u32) {
    if let Some(counter) = counter.get_ptr_mut(kind) {
        // SAFETY: the verifier has checked the bounds; the slot is this CPU's and this program's.
        unsafe { *counter = (*counter).wrapping_add(1) };
    }
}

#[inline(always)]
fn is_vxlan(header: &Header) -> bool {
    let port = header.flow.destination_port.0;
    let [first, second] = [filter!(vxlan_ports[0]).0, filter!(vxlan_ports[1]).0];
    header.flow.protocol == u32::from(UDP) && port != 0 && (port == first || port == second)
}

#[inline(always)]
fn forget(address: u64) {
    // Gone already is as good.
    let _ = TRACKED.remove(address);
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes nothing.
    unsafe { bpf_ktime_get_ns() }
}

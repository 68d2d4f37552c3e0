//! What a pod sent to another pod, and what came through the tunnel for a pod of this node.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use ebpf_common::net::Ip;
use ebpf_common::pods::{ADDRESS_BITS, ASKED, Hop, PodCounter, PodFlow, PodFlowKey, Remote, Tunnel};

use crate::packet::{Header, Room, Says, Segment, V4, V6, Wrapping, device, mark, protocol, set_mark};

#[map]
static PODS: HashMap<Ip, Hop> = HashMap::pinned(1024, 0);
#[map]
static REMOTES: LpmTrie<Ip, Remote> = LpmTrie::pinned(1024, 0);
#[map]
static TUNNELS: Array<Tunnel> = Array::pinned(Tunnel::COUNT, 0);
#[map]
static POD_FLOWS: LruHashMap<PodFlowKey, PodFlow> = LruHashMap::pinned(1024, 0);
#[map]
static POD_LEASE: Array<u64> = Array::pinned(1, 0);
#[map]
static POD_STATS: PerCpuArray<u64> = PerCpuArray::pinned(PodCounter::COUNT, 0);

/// tcx ingress of the node's end of a pod's veth.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    forward::<Pod>(&ctx)
}

/// tcx ingress of the tunnel's device: the packet is unwrapped. Who may send what through the tunnel was looked at by
/// `overlay::guard`, which sees the outer packet, where `antiSpoofing` is on.
#[classifier]
pub fn from_tunnel(ctx: TcContext) -> i32 {
    forward::<Nodes>(&ctx)
}

/// tcx ingress of the underlay's device: what the tunnel's device and [`from_tunnel`] would make of the packet, at once.
/// Whatever is not surely that goes to the stack, and by it to the tunnel's device.
#[classifier]
pub fn from_underlay(ctx: TcContext) -> i32 {
    let hop = match protocol(&ctx) {
        V4::ETHERTYPE => unwrap::<V4>(&ctx),
        V6::ETHERTYPE => unwrap::<V6>(&ctx),
        _ => None,
    };
    match hop {
        Some(hop) => {
            count(PodCounter::UNWRAPPED);
            // SAFETY: as in `send`.
            unsafe { bpf_redirect_peer(hop.ifindex, 0) as i32 }
        }
        None => TC_ACT_UNSPEC,
    }
}

/// The pod that the packet, unwrapped and addressed to it, goes to.
#[inline(always)]
fn unwrap<H: Header>(ctx: &TcContext) -> Option<Hop> {
    let tunnel = TUNNELS.get(H::TUNNEL).filter(|tunnel| tunnel.ifindex != 0)?;
    let mut room = Room::uninit();
    let (node, segment) = Wrapping::<H>::read(ctx, tunnel, &mut room)?;
    // Nobody sends in another node's name.
    let (source, _) = segment.ip.addresses();
    if remote(source)?.node != node {
        return None;
    }
    let bytes = Wrapping::<H>::packet_bytes(ctx);
    let (hop, _) = next_hop::<Nodes, H>(ctx, segment, tunnel.ifindex, bytes).ok()?;
    // Unwrapped and not addressed anew it is what the stack takes for this node's to forward, which it is.
    (Wrapping::<H>::take_off(ctx) && segment.forward(ctx, &hop)).then_some(hop)
}

/// Where packets come from.
trait Origin {
    /// The next hop to an address, and how it is reached.
    fn next(destination: Ip) -> Option<(Hop, By)>;
    /// Whether an address sends by that device, in frames from that MAC address.
    fn sends(source: Ip, device: u32, mac: &[u8; 6]) -> bool;
}

/// How the next hop is reached.
enum By {
    /// In the namespace of the pod.
    Peer,
    /// By sending to its node, through the tunnel. An element that is replaced meanwhile is freed after this program
    /// (RCU).
    Tunnel(&'static Remote),
}

struct Pod;

impl Origin for Pod {
    #[inline(always)]
    fn next(destination: Ip) -> Option<(Hop, By)> {
        // SAFETY: copied out at once; elements of a preallocated map are never freed.
        if let Some(pod) = unsafe { PODS.get(destination) } {
            return Some((*pod, By::Peer));
        }
        let remote = remote(destination)?;
        Some((remote.hop, By::Tunnel(remote)))
    }

    #[inline(always)]
    fn sends(source: Ip, device: u32, mac: &[u8; 6]) -> bool {
        // SAFETY: as above.
        unsafe { PODS.get(source) }.is_some_and(|pod| pod.ifindex == device && pod.there == *mac)
    }
}

struct Nodes;

impl Origin for Nodes {
    /// Another node's packet to a third node is none of this one's.
    #[inline(always)]
    fn next(destination: Ip) -> Option<(Hop, By)> {
        // SAFETY: as above.
        unsafe { PODS.get(destination) }.map(|pod| (*pod, By::Peer))
    }

    /// Whose frame it is in means nothing: who sent the packet around it was looked at.
    #[inline(always)]
    fn sends(source: Ip, device: u32, _mac: &[u8; 6]) -> bool {
        remote(source).is_some_and(|remote| remote.hop.ifindex == device)
    }
}

/// The node whose subnet an address is of.
#[inline(always)]
fn remote(address: Ip) -> Option<&'static Remote> {
    REMOTES.get(Key::new(ADDRESS_BITS, address))
}

#[inline(always)]
fn forward<O: Origin>(ctx: &TcContext) -> i32 {
    let result = match protocol(ctx) {
        V4::ETHERTYPE => try_forward::<O, V4>(ctx),
        V6::ETHERTYPE => try_forward::<O, V6>(ctx),
        _ => Err(PodCounter::OTHER_PACKET),
    };
    result.unwrap_or_else(|reason| {
        tell(ctx, reason, reason.0);
        TC_ACT_UNSPEC
    })
}

/// The result of the program that sends the packet on; or why the stack gets it, unchanged.
#[inline(always)]
fn try_forward<O: Origin, H: Header>(ctx: &TcContext) -> Result<i32, PodCounter> {
    let mut room = Room::uninit();
    let segment = Segment::<H>::read(ctx, &mut room).ok_or(PodCounter::OTHER_PACKET)?;
    let bytes = segment.packet_bytes(ctx);
    let (to, by) = next_hop::<O, H>(ctx, segment, device(ctx), bytes)?;
    if let By::Tunnel(remote) = by
        && let Some(result) = wrap(ctx, segment, remote)
    {
        return Ok(result);
    }
    if !segment.forward(ctx, &to) {
        return Err(PodCounter::OTHER_PACKET);
    }
    // SAFETY: plain helper calls; they note where the packet goes, and their result is the program's.
    Ok(match by {
        By::Peer => {
            tell(ctx, PodCounter::GIVEN, to.ifindex);
            unsafe { bpf_redirect_peer(to.ifindex, 0) as i32 }
        }
        By::Tunnel(_) => {
            tell(ctx, PodCounter::SENT, to.ifindex);
            unsafe { bpf_redirect(to.ifindex, 0) as i32 }
        }
    })
}

/// Sends the packet to a node by the underlay's device, wrapped as the tunnel's device would. `None`: that shall do it.
#[inline(always)]
fn wrap<H: Header>(ctx: &TcContext, segment: &mut Segment<H>, to: &Remote) -> Option<i32> {
    if to.underlay == 0 {
        return None;
    }
    let tunnel = TUNNELS.get(H::TUNNEL)?;
    if !Wrapping::put_around(ctx, segment, tunnel, to)? {
        tell(ctx, PodCounter::UNWRITTEN, PodCounter::UNWRITTEN.0);
        return Some(TC_ACT_SHOT);
    }
    tell(ctx, PodCounter::WRAPPED, to.underlay);
    let mut neighbour = H::neighbour(to.neighbour);
    // When nobody follows the routes any more, they are asked here.
    let (named, bytes) = if to.neighbour == Ip::ANY || !is_kept() {
        (core::ptr::null_mut(), 0)
    } else {
        (&raw mut neighbour, size_of_val(&neighbour) as i32)
    };
    // SAFETY: as in `try_forward`; the name is copied.
    Some(unsafe { bpf_redirect_neigh(to.underlay, named, bytes, 0) as i32 })
}

/// Whether the host side has been seen lately.
#[inline(always)]
fn is_kept() -> bool {
    // SAFETY: a plain helper call without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    POD_LEASE.get(0).is_some_and(|until| *until >= now)
}

/// Where a packet of so many bytes goes that came by a device.
#[inline(always)]
fn next_hop<O: Origin, H: Header>(
    ctx: &TcContext,
    segment: &Segment<H>,
    from: u32,
    bytes: u32,
) -> Result<(Hop, By), PodCounter> {
    let (source, destination) = segment.ip.addresses();
    let (to, by) = O::next(destination).ok_or(PodCounter::NO_POD)?;
    if bytes > to.mtu {
        return Err(PodCounter::TOO_BIG);
    }
    if segment.ip.hops_left() <= 1 {
        return Err(PodCounter::LAST_HOP);
    }
    let (source_port, destination_port) = segment.tcp.ports();
    let key = PodFlowKey::new(source, source_port, destination, destination_port);
    let key = key.ok_or(PodCounter::OTHER_FLOW)?;
    let path = Path { from, to: to.ifindex };
    match segment.tcp.says() {
        Says::Open => open::<O>(ctx, &key, source, segment.sender(), path)?,
        says => follow(&key, path, says)?,
    }
    Ok((to, by))
}

/// Indices of the devices by which it comes and goes.
#[derive(Clone, Copy)]
struct Path {
    from: u32,
    to: u32,
}

/// A connection begins: from here on it may pass by the stack.
#[inline(always)]
fn open<O: Origin>(
    ctx: &TcContext,
    key: &PodFlowKey,
    source: Ip,
    mac: &[u8; 6],
    path: Path,
) -> Result<(), PodCounter> {
    if !O::sends(source, path.from, mac) {
        return Err(PodCounter::OTHER_SOURCE);
    }
    if !is_kept() {
        return Err(PodCounter::NO_LEASE);
    }
    if mark(ctx) == ASKED {
        return Ok(());
    }
    let flow = PodFlow {
        opener: path.from,
        answerer: path.to,
        state: PodFlow::OPENING,
    };
    // Without memory for it the connection goes through the stack, from its first packet on.
    POD_FLOWS.insert(key, flow, 0).map_err(|_| PodCounter::OTHER_FLOW)
}

/// A connection goes on, the short way if it began so, between the same two devices.
///
/// An answer to a SYN that did not come by here last is the answer to another one: ports are used again, and the
/// packet rules may have led a SYN to a Service to the same pod. The entry of the former connection goes, and the
/// stack takes this one. What another pod sends in a connection's name changes nothing.
#[inline(always)]
fn follow(key: &PodFlowKey, path: Path, says: Says) -> Result<(), PodCounter> {
    let flow = POD_FLOWS.get_ptr_mut(key).ok_or(PodCounter::OTHER_FLOW)?;
    // SAFETY: the verifier has checked that the element is there. The kernel may hand it to another connection
    // meanwhile, whose own answer then goes through the stack; the packet still goes to the pod that it is for.
    let PodFlow {
        opener,
        answerer,
        state,
    } = unsafe { *flow };
    let there = (path.from, path.to) == (opener, answerer);
    let back = (path.from, path.to) == (answerer, opener);
    if !there && !back {
        return Err(PodCounter::OTHER_FLOW);
    }
    match says {
        Says::Answer if back && state == PodFlow::OPENING => {
            // SAFETY: as above; one aligned word.
            unsafe { (*flow).state = PodFlow::OPEN };
            Ok(())
        }
        Says::Answer => {
            // It may be gone by now, which is as good; likewise below.
            let _ = POD_FLOWS.remove(key);
            Err(PodCounter::OTHER_FLOW)
        }
        Says::Reset => {
            let _ = POD_FLOWS.remove(key);
            Ok(())
        }
        Says::Open | Says::Data => Ok(()),
    }
}

/// Counts what became of a packet; where somebody only asks, tells that ([`ASKED`]).
#[inline(always)]
fn tell(ctx: &TcContext, counter: PodCounter, asked: u32) {
    if mark(ctx) == ASKED {
        set_mark(ctx, asked);
    } else {
        count(counter);
    }
}

/// Adds one to a counter of this CPU.
#[inline(always)]
fn count(counter: PodCounter) {
    if let Some(value) = POD_STATS.get_ptr_mut(counter.0) {
        // SAFETY: the verifier has checked the bounds; the slot belongs to this CPU, and tc programs run in softirq
        // context, where none interrupts another.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

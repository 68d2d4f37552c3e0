//! What a pod sent to another pod of this node.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::helpers::{bpf_ktime_get_boot_ns, bpf_redirect_peer};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray};
use aya_ebpf::programs::TcContext;
use ebpf_common::net::Ip;
use ebpf_common::pods::{Pod, PodCounter, PodFlow, PodFlowKey};

use crate::packet::{Header, Says, Segment, V4, V6, device, protocol};

#[map]
static PODS: HashMap<Ip, Pod> = HashMap::pinned(1024, 0);
#[map]
static POD_FLOWS: LruHashMap<PodFlowKey, PodFlow> = LruHashMap::pinned(1024, 0);
#[map]
static POD_LEASE: Array<u64> = Array::pinned(1, 0);
#[map]
static POD_STATS: PerCpuArray<u64> = PerCpuArray::pinned(PodCounter::COUNT, 0);

/// tcx ingress of the node's end of a pod's veth.
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    let result = match protocol(&ctx) {
        V4::ETHERTYPE => try_from_pod::<V4>(&ctx),
        V6::ETHERTYPE => try_from_pod::<V6>(&ctx),
        _ => Err(PodCounter::OTHER_PACKET),
    };
    match result {
        Ok(pod) => {
            count(PodCounter::GIVEN);
            // SAFETY: a plain helper call; it notes where the packet goes, and its result is this program's.
            unsafe { bpf_redirect_peer(pod.ifindex, 0) as i32 }
        }
        Err(reason) => {
            count(reason);
            TC_ACT_UNSPEC
        }
    }
}

/// The pod that the packet, already addressed to it, goes to; or why the stack gets it, unchanged.
#[inline(always)]
fn try_from_pod<H: Header>(ctx: &TcContext) -> Result<Pod, PodCounter> {
    let mut segment = Segment::<H>::read(ctx).ok_or(PodCounter::OTHER_PACKET)?;
    let (source, destination) = segment.ip.addresses();
    // SAFETY: copied out at once; elements of a preallocated map are never freed.
    let to = *unsafe { PODS.get(destination) }.ok_or(PodCounter::NO_POD)?;
    if segment.packet_bytes(ctx) > to.mtu {
        return Err(PodCounter::TOO_BIG);
    }
    if segment.ip.hops_left() <= 1 {
        return Err(PodCounter::LAST_HOP);
    }
    let (source_port, destination_port) = segment.tcp.ports();
    let key = PodFlowKey::new(source, source_port, destination, destination_port);
    let key = key.ok_or(PodCounter::OTHER_FLOW)?;
    let path = Path {
        from: device(ctx),
        to: to.ifindex,
    };
    match segment.tcp.says() {
        Says::Open => open(&key, source, path)?,
        says => follow(&key, path, says)?,
    }
    if segment.forward(ctx, &to) {
        Ok(to)
    } else {
        Err(PodCounter::OTHER_PACKET)
    }
}

/// Indices of the devices of both pods.
#[derive(Clone, Copy)]
struct Path {
    from: u32,
    to: u32,
}

/// A connection begins: from here on it may pass by the stack.
#[inline(always)]
fn open(key: &PodFlowKey, source: Ip, path: Path) -> Result<(), PodCounter> {
    // SAFETY: as in `try_from_pod`.
    let from = unsafe { PODS.get(source) }.ok_or(PodCounter::OTHER_SOURCE)?;
    if from.ifindex != path.from {
        return Err(PodCounter::OTHER_SOURCE);
    }
    // SAFETY: a plain helper call without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if POD_LEASE.get(0).is_none_or(|until| *until < now) {
        return Err(PodCounter::NO_LEASE);
    }
    let flow = PodFlow {
        opener: path.from,
        answerer: path.to,
        state: PodFlow::OPENING,
    };
    // Without memory for it the connection goes through the stack, from its first packet on.
    POD_FLOWS.insert(key, flow, 0).map_err(|_| PodCounter::OTHER_FLOW)
}

/// A connection goes on, the short way if it began so, between the same two pods.
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

/// Adds one to a counter of this CPU.
#[inline(always)]
fn count(counter: PodCounter) {
    if let Some(value) = POD_STATS.get_ptr_mut(counter.0) {
        // SAFETY: the verifier has checked the bounds; the slot belongs to this CPU, and tc programs run in softirq
        // context, where none interrupts another.
        unsafe { *value = (*value).wrapping_add(1) };
    }
}

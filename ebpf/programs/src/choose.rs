//! Which Service a destination is, and which of its endpoints a call gets.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_boot_ns, bpf_set_retval};
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::net::Ip;
use ebpf_common::service::{
    Affinity, AffinityKey, Frontend, FrontendKey, MemberKey, Membership, NodeAddress, SlotKey, flags,
};
use ebpf_common::stats::Counter;

use crate::context::{Address, netns, protocol};
use crate::maps::{AFFINITY, ENDPOINTS, FRONTENDS, MEMBERS, NODE_NETNS, NODES, SLOTS, count};

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const ECONNREFUSED: i32 = 111;
const NS_PER_SECOND: u64 = 1_000_000_000;

/// What becomes of a call that is not refused.
pub enum Action {
    /// Goes to an endpoint, which the context now names, for the reason that the counter names.
    Translate(Counter),
    /// Goes on unchanged, for the reason that the counter names.
    Pass(Counter),
}

/// Why a call fails; each has its counter.
pub enum Drop {
    /// The Service has no endpoint: the same errno as a reset gives.
    Refused,
}

/// Counts the verdict and returns it in the kernel's words.
#[inline(always)]
pub fn verdict(result: &Result<Action, Drop>) -> i32 {
    match result {
        Ok(Action::Translate(reason) | Action::Pass(reason)) => {
            count(*reason);
            1
        }
        Err(Drop::Refused) => {
            count(Counter::REFUSED);
            // SAFETY: a plain helper call; the kernel takes any errno (`bpf_set_retval`, kernel/bpf/cgroup.c).
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            0
        }
    }
}

/// An endpoint for a call.
pub struct Choice {
    pub id: u32,
    pub endpoint: Address,
    /// Why this one.
    pub reason: Counter,
}

/// The Service of the destination: by its own address, else by node port on a node address or the node's loopback.
/// None for the reason that the counter names.
#[inline(always)]
pub fn find_frontend(ctx: &SockAddrContext, to: Address) -> Result<Frontend, Counter> {
    let proto = protocol(ctx);
    if proto != IPPROTO_TCP && proto != IPPROTO_UDP {
        return Err(Counter::OTHER_PROTOCOL);
    }
    let mut key = FrontendKey {
        addr: to.ip,
        port: to.port,
        proto: proto as u8,
        kind: FrontendKey::ADDRESS,
    };
    // SAFETY: the value is copied out at once; a map without preallocation frees elements after an RCU grace period.
    if let Some(frontend) = unsafe { FRONTENDS.get(key) } {
        return Ok(*frontend);
    }
    key.addr = Ip::ANY;
    key.kind = if to.ip.is_v4() {
        FrontendKey::NODE_PORT4
    } else {
        FrontendKey::NODE_PORT6
    };
    // SAFETY: as above.
    let Some(frontend) = (unsafe { FRONTENDS.get(key) }).copied() else {
        return Err(Counter::NOT_A_SERVICE);
    };
    if to.ip.is_loopback() {
        let of_node = NODE_NETNS.get(0) == Some(&netns(ctx));
        return if of_node {
            Ok(frontend)
        } else {
            Err(Counter::NOT_A_SERVICE)
        };
    }
    // SAFETY: as above.
    let Some(node) = (unsafe { NODES.get(to.ip) }).copied() else {
        return Err(Counter::NOT_A_SERVICE);
    };
    if frontend.flags & flags::THIS_NODE_ONLY != 0 && node.flags & NodeAddress::THIS_NODE == 0 {
        return Err(Counter::OTHER_NODE_DECIDES);
    }
    Ok(frontend)
}

/// An endpoint for a new connection: the one that the client stays with, else any of the list.
#[inline(always)]
pub fn choose(ctx: &SockAddrContext, frontend: &Frontend, wanted: Address) -> Result<Choice, Counter> {
    let list = List::of(frontend);
    if list.count == 0 {
        return Err(Counter::NO_LOCAL_ENDPOINT);
    }
    if frontend.affinity_seconds == 0 {
        return pick(frontend, &list, wanted);
    }
    let client = AffinityKey {
        service: frontend.service,
        pad: 0,
        client: netns(ctx).0,
    };
    // SAFETY: a plain helper call without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    if let Some(choice) = kept_by_client(&client, now, frontend, &list, wanted) {
        return Ok(choice);
    }
    let choice = pick(frontend, &list, wanted)?;
    let affinity = Affinity {
        endpoint: choice.id,
        pad: 0,
        last_ns: now,
    };
    // Without memory for it the connection is spread like any other; the next one tries again.
    let _ = AFFINITY.insert(client, affinity, 0);
    Ok(choice)
}

/// The endpoint of that id, if it is one of the Service in that way and of the family that was asked for.
#[inline(always)]
pub fn member(frontend: &Frontend, id: u32, bit: u32, wanted: Address) -> Option<Address> {
    let key = MemberKey {
        service: frontend.service,
        endpoint: id,
    };
    // SAFETY: copied out at once, as in `find_frontend`.
    let membership = *unsafe { MEMBERS.get(key) }?;
    if membership.0 & bit == 0 {
        return None;
    }
    endpoint(id, wanted)
}

/// The list that a frontend spreads its connections over.
struct List {
    count: u16,
    base: u16,
    bit: u32,
}

impl List {
    #[inline(always)]
    fn of(frontend: &Frontend) -> Self {
        if frontend.flags & flags::LOCAL_ONLY != 0 {
            Self {
                count: frontend.local,
                base: SlotKey::LOCAL,
                bit: Membership::IN_LOCAL,
            }
        } else {
            Self {
                count: frontend.cluster,
                base: 0,
                bit: Membership::IN_CLUSTER,
            }
        }
    }
}

#[inline(always)]
fn kept_by_client(
    client: &AffinityKey,
    now: u64,
    frontend: &Frontend,
    list: &List,
    wanted: Address,
) -> Option<Choice> {
    let affinity = AFFINITY.get_ptr_mut(client)?;
    // SAFETY: the verifier has checked that the element is there; it may turn into another client's meanwhile, which
    // `member` guards against.
    let Affinity {
        endpoint, last_ns, ..
    } = unsafe { *affinity };
    // A call on another CPU may have refreshed it after `now`.
    if last_ns + u64::from(frontend.affinity_seconds) * NS_PER_SECOND <= now {
        return None;
    }
    let address = member(frontend, endpoint, list.bit, wanted)?;
    // SAFETY: as above; one aligned word.
    unsafe { (*affinity).last_ns = now };
    Some(Choice {
        id: endpoint,
        endpoint: address,
        reason: Counter::AFFINITY_KEPT,
    })
}

#[inline(always)]
fn pick(frontend: &Frontend, list: &List, wanted: Address) -> Result<Choice, Counter> {
    // SAFETY: a plain helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let key = SlotKey {
        service: frontend.service,
        revision: frontend.revision,
        slot: (random % u32::from(list.count)) as u16 | list.base,
    };
    // SAFETY: copied out at once, as in `find_frontend`.
    let Some(id) = (unsafe { SLOTS.get(key) }).copied() else {
        return Err(Counter::SLOT_MISSING);
    };
    let Some(endpoint) = endpoint(id, wanted) else {
        return Err(Counter::SLOT_MISSING);
    };
    Ok(Choice {
        id,
        endpoint,
        reason: Counter::TRANSLATED,
    })
}

#[inline(always)]
fn endpoint(id: u32, wanted: Address) -> Option<Address> {
    // SAFETY: copied out at once, as in `find_frontend`.
    let endpoint = *unsafe { ENDPOINTS.get(id) }?;
    // An element may be recycled while it is copied; its own id tells.
    let whole = endpoint.id == id && endpoint.addr.is_v4() == wanted.ip.is_v4();
    whole.then_some(Address {
        ip: endpoint.addr,
        port: endpoint.port,
    })
}

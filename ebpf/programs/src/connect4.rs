//! `connect()` of an IPv4 socket: the destination is rewritten before a packet exists, so that traffic inside the
//! cluster costs nothing per packet and needs no connection tracking.
//!
//! Walk: application calls `connect(VIP:port)` → `inet_stream_connect` → `BPF_CGROUP_RUN_PROG_INET4_CONNECT` → this
//! program → route lookup and SYN already carry the endpoint's address. A raw socket, a kernel client or a process
//! outside the cgroup does not come by here: the packet rules translate those.

use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_set_retval};
use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::net::{Ip4, Port};
use ebpf_common::service::{Endpoint4, Frontend, FrontendKey4, NodeAddress, SlotKey, flags};
use ebpf_common::stats::Counter;

use crate::context::{Address4, netns, protocol};
use crate::maps::{ENDPOINTS4, FRONTENDS4, NODE_NETNS, NODES4, SLOTS, count};
use crate::peer4;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;
const ECONNREFUSED: i32 = 111;

/// What becomes of a call; each has its counter.
enum Action {
    /// Goes to an endpoint, which the context now names.
    Translate,
    /// Goes on unchanged, for the reason that the counter names.
    Pass(Counter),
}

/// Why a call fails; each has its counter.
enum Drop {
    /// The Service has no endpoint: the same errno as a reset gives.
    Refused,
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    match try_connect4(&ctx) {
        Ok(Action::Translate) => count(Counter::TRANSLATED),
        Ok(Action::Pass(reason)) => {
            peer4::forget(&ctx);
            count(reason);
        }
        Err(Drop::Refused) => {
            count(Counter::REFUSED);
            // SAFETY: a plain helper call; the kernel takes any errno (`bpf_set_retval`, kernel/bpf/cgroup.c).
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            return 0;
        }
    }
    1
}

#[inline(always)]
fn try_connect4(ctx: &SockAddrContext) -> Result<Action, Drop> {
    let wanted = Address4::of(ctx);
    let destination = Destination {
        addr: wanted.addr,
        port: wanted.port,
        proto: protocol(ctx),
    };
    if destination.proto != IPPROTO_TCP && destination.proto != IPPROTO_UDP {
        return Ok(Action::Pass(Counter::OTHER_PROTOCOL));
    }
    let frontend = match find_frontend(ctx, &destination) {
        Ok(frontend) => frontend,
        Err(reason) => return Ok(Action::Pass(reason)),
    };
    if frontend.flags & flags::REFUSE != 0 {
        return Err(Drop::Refused);
    }
    let (count, list) = if frontend.flags & flags::LOCAL_ONLY != 0 {
        (frontend.local, SlotKey::LOCAL)
    } else {
        (frontend.cluster, 0)
    };
    if count == 0 {
        return Ok(Action::Pass(Counter::NO_LOCAL_ENDPOINT));
    }
    // SAFETY: a plain helper call without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    let slot = (random % u32::from(count)) as u16 | list;
    let Some(endpoint) = endpoint_in(&frontend, slot) else {
        return Ok(Action::Pass(Counter::SLOT_MISSING));
    };
    let endpoint = Address4 {
        addr: endpoint.addr,
        port: endpoint.port,
    };
    endpoint.write(ctx);
    peer4::remember(ctx, wanted, endpoint);
    Ok(Action::Translate)
}

/// Where the application wants to go.
struct Destination {
    addr: Ip4,
    port: Port,
    proto: u32,
}

impl Destination {
    #[inline(always)]
    fn key(&self, addr: Ip4, kind: u8) -> FrontendKey4 {
        FrontendKey4 {
            addr,
            port: self.port,
            proto: self.proto as u8,
            kind,
        }
    }
}

/// The Service of the destination: by its own address, else by node port on a node address or the node's loopback.
#[inline(always)]
fn find_frontend(ctx: &SockAddrContext, to: &Destination) -> Result<Frontend, Counter> {
    // SAFETY: the value is copied out at once; a map without preallocation frees elements after an RCU grace period.
    if let Some(frontend) = unsafe { FRONTENDS4.get(to.key(to.addr, FrontendKey4::ADDRESS)) } {
        return Ok(*frontend);
    }
    // SAFETY: as above.
    let node_port = unsafe { FRONTENDS4.get(to.key(Ip4::ANY, FrontendKey4::NODE_PORT)) };
    let Some(frontend) = node_port.copied() else {
        return Err(Counter::NOT_A_SERVICE);
    };
    if to.addr.is_loopback() {
        let of_node = NODE_NETNS.get(0) == Some(&netns(ctx));
        return if of_node {
            Ok(frontend)
        } else {
            Err(Counter::NOT_A_SERVICE)
        };
    }
    // SAFETY: as above.
    let Some(node) = (unsafe { NODES4.get(to.addr) }).copied() else {
        return Err(Counter::NOT_A_SERVICE);
    };
    if frontend.flags & flags::THIS_NODE_ONLY != 0 && node.flags & NodeAddress::THIS_NODE == 0 {
        return Err(Counter::OTHER_NODE_DECIDES);
    }
    Ok(frontend)
}

#[inline(always)]
fn endpoint_in(frontend: &Frontend, slot: u16) -> Option<Endpoint4> {
    let key = SlotKey {
        service: frontend.service,
        revision: frontend.revision,
        slot,
    };
    // SAFETY: copied out at once, as in `find_frontend`.
    let id = *unsafe { SLOTS.get(key) }?;
    // SAFETY: as above.
    let endpoint = *unsafe { ENDPOINTS4.get(id) }?;
    // An element may be recycled while it is copied; its own id tells.
    (endpoint.id == id).then_some(endpoint)
}

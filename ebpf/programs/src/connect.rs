//! `connect()`: the destination is rewritten before a packet exists, so that traffic inside the cluster costs nothing
//! per packet and needs no connection tracking.
//!
//! Walk: application calls `connect(VIP:port)` → `inet_stream_connect` → `BPF_CGROUP_RUN_PROG_INET4_CONNECT` (or
//! `INET6`) → this program → route lookup and SYN already carry the endpoint's address. A raw socket, a kernel client
//! or a process outside the cgroup does not come by here: the packet rules translate those.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::service::flags;

use crate::choose::{Action, Drop, choose, find_frontend, verdict};
use crate::context::{Address, Family, V4, V6, protocol, socket};
use crate::peer;

const IPPROTO_UDP: u32 = 17;

#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<V4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<V6>(&ctx)
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let result = try_connect::<F>(ctx);
    if let Ok(Action::Pass(_)) = result {
        peer::forget(ctx);
        if protocol(ctx) == IPPROTO_UDP {
            peer::forget_reply(&peer::of_socket(socket(ctx), Address::of::<F>(ctx)));
        }
    }
    verdict(&result)
}

#[inline(always)]
fn try_connect<F: Family>(ctx: &SockAddrContext) -> Result<Action, Drop> {
    let wanted = Address::of::<F>(ctx);
    let frontend = match find_frontend(ctx, wanted) {
        Ok(frontend) => frontend,
        Err(reason) => return Ok(Action::Pass(reason)),
    };
    if frontend.flags & flags::REFUSE != 0 {
        return Err(Drop::Refused);
    }
    let choice = match choose(ctx, &frontend, wanted) {
        Ok(choice) => choice,
        Err(reason) => return Ok(Action::Pass(reason)),
    };
    choice.endpoint.write::<F>(ctx);
    peer::remember(ctx, wanted, choice.endpoint);
    // By this the host finds clients of an endpoint that is gone: nothing else tells a connected UDP client.
    if protocol(ctx) == IPPROTO_UDP {
        peer::remember_reply(socket(ctx), wanted, choice.endpoint);
    }
    Ok(Action::Translate(choice.reason))
}

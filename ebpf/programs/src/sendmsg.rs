//! `sendto()` and `sendmsg()` of UDP with an address. Each datagram comes by here, and the datagrams of one socket to
//! one address are a flow: it stays with its endpoint while that serves, as it does when connection tracking
//! translates.
//!
//! Walk: application calls `sendto(VIP:port)` → `udp_sendmsg` → `BPF_CGROUP_RUN_PROG_UDP4_SENDMSG` (or `UDP6`) → this
//! program → route lookup and datagram carry the endpoint's address. The answer: endpoint → socket → `udp_recvmsg` →
//! the program of `recvmsg`, which shows the Service's address again.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::service::{Flow, Frontend, Membership, SocketPeer, flags};
use ebpf_common::stats::Counter;

use crate::choose::{Action, Choice, Drop, choose, find_frontend, member, verdict};
use crate::context::{Address, Family, V4, V6, socket};
use crate::maps::FLOWS;
use crate::peer;

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<V4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<V6>(&ctx)
}

#[inline(always)]
fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let wanted = Address::of::<F>(ctx);
    let flow = peer::of_socket(socket(ctx), wanted);
    let result = try_sendmsg::<F>(ctx, wanted, &flow);
    if let Ok(Action::Pass(_)) = result {
        peer::forget_reply(&flow);
    }
    verdict(&result)
}

#[inline(always)]
fn try_sendmsg<F: Family>(ctx: &SockAddrContext, wanted: Address, flow: &SocketPeer) -> Result<Action, Drop> {
    let frontend = match find_frontend(ctx, wanted) {
        Ok(frontend) => frontend,
        Err(reason) => return Ok(Action::Pass(reason)),
    };
    // A socket of IPv6 that is connected to a mapped address names its peer's address with each datagram
    // (`udpv6_sendmsg`, net/ipv6/udp.c). An endpoint may have the address of a frontend, such as its own node port.
    if peer::is_endpoint_of(ctx, wanted) {
        return Ok(Action::Pass(Counter::NOT_A_SERVICE));
    }
    if frontend.flags & flags::REFUSE != 0 {
        return Err(Drop::Refused);
    }
    let choice = match kept_by_flow(flow, &frontend, wanted) {
        Some(choice) => choice,
        None => match choose(ctx, &frontend, wanted) {
            Ok(choice) => {
                let endpoint = Flow {
                    endpoint: choice.id,
                    service: frontend.service,
                };
                // Without memory for it the next datagram is spread anew.
                let _ = FLOWS.insert(flow, endpoint, 0);
                choice
            }
            Err(reason) => return Ok(Action::Pass(reason)),
        },
    };
    choice.endpoint.write::<F>(ctx);
    peer::remember_reply(flow.socket, wanted, choice.endpoint);
    Ok(Action::Translate(choice.reason))
}

#[inline(always)]
fn kept_by_flow(flow: &SocketPeer, frontend: &Frontend, wanted: Address) -> Option<Choice> {
    // SAFETY: copied out at once; the element may turn into another flow's meanwhile, which `member` guards against.
    let kept = *unsafe { FLOWS.get(flow) }?;
    if kept.service != frontend.service {
        return None;
    }
    Some(Choice {
        id: kept.endpoint,
        endpoint: member(frontend, kept.endpoint, Membership::SERVING, wanted)?,
        reason: Counter::FLOW_KEPT,
    })
}

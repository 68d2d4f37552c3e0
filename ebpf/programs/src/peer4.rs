//! A socket that was sent to an endpoint still talks to the Service, as far as its application can see: the peer's
//! name and the source of received datagrams are the Service's address. Resolvers insist on it: an answer that comes
//! from another address than was asked is thrown away.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::net::{Ip4, Port};
use ebpf_common::service::Translated4;

use crate::context::Address4;
use crate::maps::SOCKETS4;

/// `getpeername()`.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_service(&ctx);
    1
}

/// `recvfrom()` and `recvmsg()` of UDP.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_service(&ctx);
    1
}

/// Notes, with the socket, where it wanted to go and where it went.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, service: Address4, endpoint: Address4) {
    let mut value = Translated4 {
        service_addr: service.addr,
        endpoint_addr: endpoint.addr,
        service_port: service.port,
        endpoint_port: endpoint.port,
        pad: 0,
    };
    // SAFETY: the context's socket is alive for the call.
    let stored = unsafe { SOCKETS4.get_or_insert_ptr_mut(ctx, Some(&mut value)) };
    if !stored.is_null() {
        // SAFETY: checked for null; the storage lives as long as the socket. A socket that connects anew has an older
        // value, which is replaced here.
        unsafe { *stored = value };
    }
}

/// The socket goes to something that is no Service: what was noted before no longer holds.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext) {
    // SAFETY: as in `remember`.
    let stored = unsafe { SOCKETS4.get_ptr_mut(ctx) };
    if !stored.is_null() {
        // SAFETY: as in `remember`.
        unsafe {
            *stored = Translated4 {
                service_addr: Ip4::ANY,
                endpoint_addr: Ip4::ANY,
                service_port: Port(0),
                endpoint_port: Port(0),
                pad: 0,
            }
        };
    }
}

#[inline(always)]
fn show_service(ctx: &SockAddrContext) {
    // SAFETY: as in `remember`.
    let stored = unsafe { SOCKETS4.get_ptr_mut(ctx) };
    if stored.is_null() {
        return;
    }
    // SAFETY: checked for null; as in `remember`.
    let value = unsafe { *stored };
    let endpoint = Address4 {
        addr: value.endpoint_addr,
        port: value.endpoint_port,
    };
    if value.service_addr != Ip4::ANY && Address4::of(ctx) == endpoint {
        let service = Address4 {
            addr: value.service_addr,
            port: value.service_port,
        };
        service.write(ctx);
    }
}

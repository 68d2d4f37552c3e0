//! A socket that was sent to an endpoint still talks to the Service, as far as its application can see: the peer's
//! name and the source of received datagrams are the Service's address. Resolvers insist on it: an answer that comes
//! from another address than was asked is thrown away.
//!
//! Where a socket has sent to two Services that share an endpoint, nothing tells their answers apart: the one that was
//! sent to last is shown.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::net::Ip;
use ebpf_common::service::{Reply, SocketPeer, Translated};

use crate::context::{Address, Family, V4, V6, is_connected, socket};
use crate::maps::{REPLIES, SOCKETS};

/// `getpeername()`.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    show_peer::<V4>(&ctx)
}

/// `getpeername()`.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    show_peer::<V6>(&ctx)
}

/// `recvfrom()` and `recvmsg()` of UDP.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    show_source::<V4>(&ctx)
}

/// `recvfrom()` and `recvmsg()` of UDP.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    show_source::<V6>(&ctx)
}

#[inline(always)]
fn show_peer<F: Family>(ctx: &SockAddrContext) -> i32 {
    if let Some(service) = service_of_connection(ctx, Address::of::<F>(ctx)) {
        service.write::<F>(ctx);
    }
    1
}

#[inline(always)]
fn show_source<F: Family>(ctx: &SockAddrContext) -> i32 {
    let source = Address::of::<F>(ctx);
    let connection = if is_connected(ctx) {
        service_of_connection(ctx, source)
    } else {
        None
    };
    // Asked for connected sockets too: reading keeps the entry, by which the host finds them when their endpoint leaves.
    let datagram = service_of_datagram(ctx, source);
    if let Some(service) = connection.or(datagram) {
        service.write::<F>(ctx);
    }
    1
}

/// Notes, with a socket that connects, where it wanted to go and where it went.
#[inline(always)]
pub fn remember(ctx: &SockAddrContext, service: Address, endpoint: Address) {
    let mut value = Translated {
        service_addr: service.ip,
        endpoint_addr: endpoint.ip,
        service_port: service.port,
        endpoint_port: endpoint.port,
    };
    // SAFETY: the context's socket is alive for the call.
    let stored = unsafe { SOCKETS.get_or_insert_ptr_mut(ctx, Some(&mut value)) };
    if !stored.is_null() {
        // SAFETY: checked for null; the storage lives as long as the socket. A socket that connects anew has an older
        // value, which is replaced here.
        unsafe { *stored = value };
    }
}

/// The socket connects to something that is no Service: what was noted before no longer holds.
#[inline(always)]
pub fn forget(ctx: &SockAddrContext) {
    // SAFETY: as in `remember`.
    let stored = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if !stored.is_null() {
        // SAFETY: as in `remember`.
        unsafe { *stored = Translated::NOT };
    }
}

/// Whether the socket is connected to a Service, and this is the endpoint that it got.
#[inline(always)]
pub fn is_endpoint_of(ctx: &SockAddrContext, address: Address) -> bool {
    is_connected(ctx) && service_of_connection(ctx, address).is_some()
}

/// The key of what is noted for a socket and an address on the other side.
#[inline(always)]
pub fn of_socket(socket: u64, address: Address) -> SocketPeer {
    SocketPeer {
        socket,
        addr: address.ip,
        port: address.port,
        pad: [0; 3],
    }
}

/// Notes that the socket sends to the Service when it gets an answer from the endpoint.
#[inline(always)]
pub fn remember_reply(socket: u64, service: Address, endpoint: Address) {
    let key = of_socket(socket, endpoint);
    let reply = Reply {
        addr: service.ip,
        port: service.port,
        pad: 0,
    };
    // Most datagrams follow one that noted the same, and reading is what keeps an entry in an LRU map.
    // SAFETY: copied out at once.
    if unsafe { REPLIES.get(key) }.copied() != Some(reply) {
        // Without memory for it the application sees the endpoint's address.
        let _ = REPLIES.insert(key, reply, 0);
    }
}

/// The socket sends there itself: answers from there are from there.
#[inline(always)]
pub fn forget_reply(peer: &SocketPeer) {
    // Looking takes no lock.
    if REPLIES.get_ptr(peer).is_some() {
        // It may be gone by now, which is as good.
        let _ = REPLIES.remove(peer);
    }
}

#[inline(always)]
fn service_of_connection(ctx: &SockAddrContext, endpoint: Address) -> Option<Address> {
    // SAFETY: as in `remember`.
    let stored = unsafe { SOCKETS.get_ptr_mut(ctx) };
    if stored.is_null() {
        return None;
    }
    // SAFETY: checked for null; as in `remember`.
    let value = unsafe { *stored };
    let sent_to = Address {
        ip: value.endpoint_addr,
        port: value.endpoint_port,
    };
    let shown = value.service_addr != Ip::ANY && sent_to == endpoint;
    shown.then_some(Address {
        ip: value.service_addr,
        port: value.service_port,
    })
}

#[inline(always)]
fn service_of_datagram(ctx: &SockAddrContext, endpoint: Address) -> Option<Address> {
    // SAFETY: copied out at once.
    let reply = *unsafe { REPLIES.get(of_socket(socket(ctx), endpoint)) }?;
    Some(Address {
        ip: reply.addr,
        port: reply.port,
    })
}

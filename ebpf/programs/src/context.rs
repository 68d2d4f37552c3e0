//! The socket address in a program's context.
//!
//! The kernel has hooks for each family: by the address that a call names, not by the socket, so that a socket of
//! IPv6 comes to the IPv4 hook of `sendmsg` when it sends to a mapped address (`udpv6_sendmsg`, net/ipv6/udp.c), and
//! to the IPv6 hook of `connect` when it connects to one. A program may touch only the fields of its family.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::net::{Ip, Port};
use ebpf_common::service::NetnsCookie;

/// Linux `TCP_ESTABLISHED`: also the state of a connected UDP socket.
const ESTABLISHED: u32 = 1;

/// An address and port of either family.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub ip: Ip,
    pub port: Port,
}

impl Address {
    /// What the context names.
    #[inline(always)]
    pub fn of<F: Family>(ctx: &SockAddrContext) -> Self {
        let raw: *const bpf_sock_addr = ctx.sock_addr;
        // SAFETY: the context pointer is valid for the whole call; the verifier rewrites each load. It is volatile so
        // that LLVM does not narrow it: the field may only be read as a whole word.
        let port = unsafe { core::ptr::read_volatile(&raw const (*raw).user_port) };
        Self {
            ip: F::ip(ctx),
            port: Port(port as u16),
        }
    }

    /// Makes the context name it. It must be of the family that the context named before: a mapped address for one of
    /// IPv6 is none (`udpv6_sendmsg` refuses that).
    #[inline(always)]
    pub fn write<F: Family>(self, ctx: &SockAddrContext) {
        let raw: *mut bpf_sock_addr = ctx.sock_addr;
        F::set_ip(ctx, self.ip);
        // SAFETY: the context is ours for the call, and programs of these types may write the field as a whole word.
        unsafe { core::ptr::write_volatile(&raw mut (*raw).user_port, u32::from(self.port.0)) };
    }
}

/// Which fields of the context are the address.
pub trait Family {
    /// Reads them.
    fn ip(ctx: &SockAddrContext) -> Ip;
    /// Writes them.
    fn set_ip(ctx: &SockAddrContext, ip: Ip);
}

/// Programs of the IPv4 hooks.
pub enum V4 {}

impl Family for V4 {
    #[inline(always)]
    fn ip(ctx: &SockAddrContext) -> Ip {
        let raw: *const bpf_sock_addr = ctx.sock_addr;
        // SAFETY: as in `Address::of`.
        Ip::v4(unsafe { core::ptr::read_volatile(&raw const (*raw).user_ip4) })
    }

    #[inline(always)]
    fn set_ip(ctx: &SockAddrContext, ip: Ip) {
        let raw: *mut bpf_sock_addr = ctx.sock_addr;
        // SAFETY: as in `Address::write`.
        unsafe { core::ptr::write_volatile(&raw mut (*raw).user_ip4, ip.last_word()) };
    }
}

/// Programs of the IPv6 hooks.
pub enum V6 {}

impl Family for V6 {
    #[inline(always)]
    fn ip(ctx: &SockAddrContext) -> Ip {
        let raw: *const bpf_sock_addr = ctx.sock_addr;
        // SAFETY: as in `Address::of`; each word by itself, as the kernel serves them.
        let word = |index: usize| unsafe { core::ptr::read_volatile(&raw const (*raw).user_ip6[index]) };
        Ip([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn set_ip(ctx: &SockAddrContext, ip: Ip) {
        let raw: *mut bpf_sock_addr = ctx.sock_addr;
        let [first, second, third, last] = ip.0;
        let write = |index: usize, word: u32| {
            // SAFETY: as in `Address::write`.
            unsafe { core::ptr::write_volatile(&raw mut (*raw).user_ip6[index], word) };
        };
        write(0, first);
        write(1, second);
        write(2, third);
        write(3, last);
    }
}

/// The protocol of the socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    let raw: *const bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as in `Address::of`.
    unsafe { core::ptr::read_volatile(&raw const (*raw).protocol) }
}

/// Whether the socket has a peer. A UDP socket may be connected, and disconnected again without any hook.
#[inline(always)]
pub fn is_connected(ctx: &SockAddrContext) -> bool {
    // SAFETY: as in `Address::of`.
    let socket: *const bpf_sock = unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk };
    // SAFETY: the context's socket is there for the call, never null in these program types.
    unsafe { core::ptr::read_volatile(&raw const (*socket).state) == ESTABLISHED }
}

/// The network namespace of the socket, which need not be that of the calling process.
#[inline(always)]
pub fn netns(ctx: &SockAddrContext) -> NetnsCookie {
    // SAFETY: the helper takes this program type's context (Linux 5.7); without one it would name the initial namespace.
    NetnsCookie(unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) })
}

/// The socket's name that is never given to another.
#[inline(always)]
pub fn socket(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes this program type's context.
    unsafe { bpf_get_socket_cookie(ctx.sock_addr.cast()) }
}

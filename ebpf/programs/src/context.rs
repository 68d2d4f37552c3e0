//! The socket address in a program's context.

use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_get_netns_cookie;
use aya_ebpf::programs::SockAddrContext;
use ebpf_common::net::{Ip4, Port};
use ebpf_common::service::NetnsCookie;

/// An IPv4 address and port.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Address4 {
    pub addr: Ip4,
    pub port: Port,
}

impl Address4 {
    /// What the context holds.
    #[inline(always)]
    pub fn of(ctx: &SockAddrContext) -> Self {
        let raw: *const bpf_sock_addr = ctx.sock_addr;
        // SAFETY: the context pointer is valid for the whole call; the verifier rewrites each of these loads. They are
        // volatile so that LLVM does not narrow them: `user_port` may only be read as a whole word.
        let addr = unsafe { core::ptr::read_volatile(&raw const (*raw).user_ip4) };
        // SAFETY: as above.
        let port = unsafe { core::ptr::read_volatile(&raw const (*raw).user_port) };
        Self {
            addr: Ip4(addr),
            port: Port(port as u16),
        }
    }

    /// Puts it into the context.
    #[inline(always)]
    pub fn write(self, ctx: &SockAddrContext) {
        let raw: *mut bpf_sock_addr = ctx.sock_addr;
        // SAFETY: the context is ours for the call, and programs of these types may write both fields, the port only
        // as a whole word.
        unsafe { core::ptr::write_volatile(&raw mut (*raw).user_ip4, self.addr.0) };
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*raw).user_port, u32::from(self.port.0)) };
    }
}

/// The protocol of the socket.
#[inline(always)]
pub fn protocol(ctx: &SockAddrContext) -> u32 {
    let raw: *const bpf_sock_addr = ctx.sock_addr;
    // SAFETY: as in `Address4::of`.
    unsafe { core::ptr::read_volatile(&raw const (*raw).protocol) }
}

/// The network namespace of the socket, which need not be that of the calling process.
#[inline(always)]
pub fn netns(ctx: &SockAddrContext) -> NetnsCookie {
    // SAFETY: the helper takes this program type's context (Linux 5.7); without one it would name the initial namespace.
    NetnsCookie(unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) })
}

//! The programs between pods. An object of its own, so that who wants it need not have the socket hook. Compiled like the
//! programs at `connect()`; on the host this is an empty program.
//!
//! Walk: a pod's TCP segment leaves its namespace by the veth → tcx at the node's end of it → [`hops::from_pod`] → the
//! segment continues in the other pod's namespace, in the same softirq (`skb_do_redirect` with `BPF_F_PEER`,
//! net/core/filter.c); or it is wrapped there, and leaves by the underlay's device. On the other node
//! [`hops::from_underlay`] unwraps it → the pod's namespace. Where somebody has rules for packets of the nodes, and for
//! what will be cut up, the tunnel's devices wrap and unwrap it → tcx there → [`hops::from_tunnel`] → the pod's
//! namespace. Routing, netfilter with its connection tracking,
//! and the second veth's queue are passed by; the MAC addresses and the TTL are what the stack would have made of them.
//! Whatever is not surely a connection from pod to pod goes to the stack as if there were no program.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod hops;
#[cfg(target_arch = "bpf")]
mod packet;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel refuses helpers marked `gpl_only` to this license; none of those used here is.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

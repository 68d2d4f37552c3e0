//! The BPF programs. Compiled for `bpfel-unknown-none` by the build script of the crate `ebpf`; on the host this is
//! an empty program, so that whole-workspace checks work.
//!
//! Each hook has a program for each family ([`context`] says why), which is a name for one body:
//! - [`connect`] and [`sendmsg`] hide a Service: they send to an endpoint.
//! - [`peer`] (`getpeername`, `recvmsg`) shows it: what comes from the endpoint comes from the Service.
//! - [`choose`] finds the Service and picks the endpoint.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod choose;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod peer;
#[cfg(target_arch = "bpf")]
mod sendmsg;

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

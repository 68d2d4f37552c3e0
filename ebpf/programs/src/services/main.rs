//! Tells to which Services sockets were connected: the socket hook writes that into each of them, where nobody outside of
//! the kernel can read it. Attached by `causeway flows` for as long as it runs. Compiled like the programs at `connect()`;
//! on the host this is an empty program.
//!
//! Walk: `connect()` → the hook chooses an endpoint and writes it into the socket (`SOCKETS`) → TCP's state changes, which
//! is a tracepoint → what the hook wrote is kept by the socket's cookie, which packets tell too.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod connected;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// As with the programs that follow packets: the kernel's structures are shown to no other license.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

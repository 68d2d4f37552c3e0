//! The programs that count packets where they pass: attached by `causeway drops` and `causeway flows` for as long as they run. They read packets
//! as those that follow them do, by the same code; nothing of a packet goes to the host side, which reads the counts when
//! it wants them. Compiled like the programs at `connect()`; on the host this is an empty program.
//!
//! Walk: a tracepoint → [`drops`] makes a key of what the packet's headers, its device and the kernel's reason say → the
//! count of that key grows, by one step that no other CPU can be in between of.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

#[cfg(target_arch = "bpf")]
mod count;
#[cfg(target_arch = "bpf")]
mod drops;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "those that follow packets need more of it")]
#[path = "../trace/headers.rs"]
mod headers;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "those that follow packets need more of it")]
#[path = "../trace/kernel.rs"]
mod kernel;
#[cfg(target_arch = "bpf")]
mod tunnel;

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

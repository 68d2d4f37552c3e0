//! The programs that follow packets: attached by `causeway trace` for as long as it runs, to tracepoints that every packet
//! of the machine passes. Compiled like the programs at `connect()`; on the host this is an empty program.
//!
//! Walk: a tracepoint → [`follow`] looks whether the `sk_buff` carries a packet that is followed already, or one that the
//! filter names → what its headers, its device and its connection say goes into the ring. A packet keeps its `sk_buff`
//! through veths, encapsulation and namespaces, until the tracepoint that ends it. Some ends have none (TCP frees what
//! was read in silence), so an address alone is not believed: [`headers`] makes a fingerprint that neither NAT nor
//! encapsulation changes.
//!
//! For all that is not followed this costs one read of the IP header and a comparison of its addresses, where the filter
//! has addresses; a read of UDP's header and of what it wraps besides.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod follow;
#[cfg(target_arch = "bpf")]
mod headers;
#[cfg(target_arch = "bpf")]
#[expect(dead_code, reason = "those that count packets need more of it")]
mod kernel;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel shows its structures only to programs under a license that it takes for the GPL's
/// (`check_ptr_to_btf_access`, kernel/bpf/verifier.c). This object is offered under the MIT license and version 2 of the
/// GPL too.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

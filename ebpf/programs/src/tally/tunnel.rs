//! Packets of tunnels, which carry others.

use ebpf_common::net::Port;
use ebpf_common::trace::Header;

use crate::drops::NO_HEADER;
use crate::headers::{self, UDP};
use crate::kernel::Bytes;

/// Set by the loader.
#[unsafe(no_mangle)]
static TUNNELS: [Port; 2] = [Port(0); 2];

/// Whether these headers are a tunnel's.
#[inline(always)]
pub fn is_of_one(header: &Header) -> bool {
    let port = header.flow.destination_port.0;
    // SAFETY: the global is there as long as the program. Volatile: what it holds is not known when this is compiled.
    let [first, second] = unsafe { core::ptr::read_volatile(&raw const TUNNELS) };
    header.flow.protocol == u32::from(UDP) && port != 0 && (port == first.0 || port == second.0)
}

/// The headers of the packet within, where a tunnel's UDP header begins at `transport`; `None` where that is no IP, or not
/// in the first piece.
#[inline(always)]
pub fn inside(bytes: Bytes, transport: u64, outer: &Header) -> Option<Header> {
    if transport == 0 || !is_of_one(outer) {
        return None;
    }
    let mut inner = NO_HEADER;
    headers::unwrap(bytes, transport, &mut inner);
    (inner.flow.protocol != 0).then_some(inner)
}

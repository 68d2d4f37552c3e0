//! What the BPF programs and the host side must agree on to the byte: map keys, values and counters.
//!
//! Rules of this crate: `repr(C)`, every padding byte is a field that is zero, sizes are asserted, no `bool`, `enum`,
//! `Option` or `usize` crosses the border. Addresses and ports are in network order, in types that say so. A change of
//! any layout here is a new [`LAYOUT`], hence a new pin directory. A map that is only added is none: programs that do
//! not know it run on beside it, and the first program that does makes it. A map's values only grow at their end, where
//! zero means what was before, so that a version that is older or newer takes the entries over; a change of another
//! kind is a map of another name.
//!
//! Tour:
//! - [`net`]: [`net::Ip`] of either family and [`net::Port`], in network order.
//! - [`service`]: [`service::FrontendKey`] → [`service::Frontend`] → [`service::SlotKey`] → [`service::Endpoint`], and
//!   what the programs note of sockets and clients.
//! - [`stats`]: what the programs count.
//! - [`pods`]: maps and counters of the program between pods, with a layout version of their own.
//! - [`trace`]: what the programs that follow packets are told, and what they tell. Nothing of it is pinned.
//! - [`tally`]: the same of the programs that count packets.

#![cfg_attr(target_arch = "bpf", no_std)]

pub mod net;
pub mod pods;
pub mod service;
pub mod stats;
pub mod tally;
pub mod trace;

/// Version of every layout in this crate; part of the pin directory's name, so that maps of another layout are told
/// apart: an agent takes over from them what its own has too.
pub const LAYOUT: u32 = 2;

/// The first layout since which values only grow at their end.
pub const GROWS_SINCE: u32 = 2;

/// Lets aya move values of these types to and from the kernel as bytes.
#[cfg(not(target_arch = "bpf"))]
macro_rules! plain_old_data {
    ($($name:ty),+ $(,)?) => {
        $(
            // SAFETY: repr(C) integers only, no implicit padding (asserted by size), every bit pattern is valid.
            unsafe impl aya::Pod for $name {}
        )+
    };
}
#[cfg(not(target_arch = "bpf"))]
pub(crate) use plain_old_data;

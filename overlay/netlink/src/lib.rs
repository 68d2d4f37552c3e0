//! Typed kernel sockets, synchronous: no async runtime, so that a CNI plugin and a thread inside a namespace can use
//! them as they are.
//!
//! Tour:
//! - [`Netlink`] is one rtnetlink socket; it stays in the network namespace it was opened in
//!   ([`Netlink::open`], [`Netlink::open_in`]) whatever thread uses it later.
//! - [`link`], [`address`], [`route`], [`neighbour`] are what it reads and writes: plain values, comparable, so that
//!   desired and actual state can be diffed.
//! - [`qdisc`] limits what leaves through a device.
//! - [`path`] tells whether large packets arrive.
//! - [`xfrm`] tells whether there is IPsec.
//! - [`Kernel`] is the seam: [`Netlink`] is the real one, [`FakeKernel`] keeps state in memory and fails on demand.
//! - [`Events`] tells what changes in a namespace; losing events is an event ([`Event::Overrun`]).
//! - [`nft`] speaks nftables: typed rules and sets, transactions, read-back, repair; [`conntrack`] lists and forgets
//!   tracked connections; [`sock_diag`] finds connected UDP sockets and ends them.
//! - [`netns`] makes, pins, opens and enters network namespaces; [`sysctl`] reads and writes `/proc/sys` in them.
//!
//! Dumps ask for strict checking (`NETLINK_GET_STRICT_CHK`), so that the kernel filters, and are repeated when the
//! kernel marks them as inconsistent (`NLM_F_DUMP_INTR`).

pub mod address;
pub mod conntrack;
pub mod error;
pub mod events;
pub mod fake;
pub mod kernel;
pub mod link;
pub mod neighbour;
pub mod netns;
mod nfnetlink;
pub mod nft;
pub mod path;
pub mod qdisc;
pub mod route;
pub mod rule;
pub mod sock_diag;
mod socket;
pub mod sysctl;
pub mod xfrm;

pub use address::Address;
pub use error::{AbsentIsFine, Cause, Error, Operation, Result};
pub use events::{Event, Events, Group};
pub use fake::FakeKernel;
pub use kernel::{Kernel, Netlink};
pub use link::{Link, LinkChange, LinkKind, NewLink, NewLinkKind, VethPeer, Vxlan};
pub use neighbour::{Forwarding, Neighbour};
pub use netns::Namespace;
pub use qdisc::{RootQdisc, TokenBucket};
pub use route::{Found, Lookup, Route, RouteFilter, RouteKind, Scope, Way};

/// An Ethernet address.
pub type Mac = [u8; 6];

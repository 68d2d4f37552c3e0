//! The maps by which a connection to a Service finds an endpoint.
//!
//! ```text
//! FRONTENDS4  (address, port, protocol)  → service id, revision, counts, flags
//! SLOTS       (service, revision, slot)  → endpoint id
//! ENDPOINTS4  endpoint id                → address, port
//! NODES4      address of any node        → flags
//! NODE_NETNS  0                          → cookie of the node's network namespace
//! SOCKETS4    socket                     → the Service's address that it asked for, and what it got
//! ```
//! An update writes the slots of the next revision first and then the frontend, whose value is replaced as a whole:
//! a reader sees the old list or the new one, never a mixture. (An in-place overwrite lets it see the count of one
//! and the slots of the other.)

use crate::net::{Ip4, Port};

/// Key of `FRONTENDS4`. `[addr:4 be][port:2 be][proto:1][kind:1] = 8 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FrontendKey4 {
    /// The Service's address; [`Ip4::ANY`] for [`FrontendKey4::NODE_PORT`].
    pub addr: Ip4,
    /// The Service's port, or its node port.
    pub port: Port,
    /// IP protocol number.
    pub proto: u8,
    /// [`FrontendKey4::ADDRESS`] or [`FrontendKey4::NODE_PORT`].
    pub kind: u8,
}

impl FrontendKey4 {
    /// The frontend has an address of its own.
    pub const ADDRESS: u8 = 0;
    /// The frontend is a port of every node address.
    pub const NODE_PORT: u8 = 1;
}

/// Value of `FRONTENDS4`.
/// `[service:4][revision:2][flags:2][cluster:2][local:2][affinity_seconds:4] = 16 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Frontend {
    /// Which slots belong to it. One id for all frontends of one port of one Service.
    pub service: u32,
    /// Which generation of slots is valid. Wraps.
    pub revision: u16,
    /// Bits of [`flags`].
    pub flags: u16,
    /// How many slots the list for cluster-wide traffic has.
    pub cluster: u16,
    /// How many slots the list for node-local traffic has.
    pub local: u16,
    /// Session affinity in seconds; 0 = none.
    pub affinity_seconds: u32,
}

/// Bits of [`Frontend::flags`].
pub mod flags {
    /// No endpoint anywhere: a connection is refused (`ECONNREFUSED`).
    pub const REFUSE: u16 = 1 << 0;
    /// Pick from the local list. When it is empty the hook leaves the connection to the packet rules, which drop it:
    /// endpoints elsewhere exist, so that a client must not be told that the service is gone.
    pub const LOCAL_ONLY: u16 = 1 << 1;
    /// Outside traffic has policy Local: only this node's own addresses may be translated here, since another node
    /// picks from its own endpoints.
    pub const THIS_NODE_ONLY: u16 = 1 << 2;
}

/// Key of `SLOTS`. `[service:4][revision:2][slot:2] = 8 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SlotKey {
    /// [`Frontend::service`].
    pub service: u32,
    /// [`Frontend::revision`].
    pub revision: u16,
    /// Position in the list, with [`SlotKey::LOCAL`] set for the local list.
    pub slot: u16,
}

impl SlotKey {
    /// Marks a slot of the local list.
    pub const LOCAL: u16 = 1 << 15;
    /// Endpoints that one list can hold.
    pub const MAX_SLOTS: u16 = Self::LOCAL;
}

/// Value of `ENDPOINTS4`. `[addr:4 be][port:2 be][proto:1][flags:1][id:4][pad:4] = 16 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Endpoint4 {
    /// Where the connection goes.
    pub addr: Ip4,
    /// Port there.
    pub port: Port,
    /// IP protocol number.
    pub proto: u8,
    /// Zero; for facts about the endpoint that a program needs.
    pub flags: u8,
    /// The key under which it lies, so that a program can tell that an entry was recycled while it read it.
    pub id: u32,
    /// Zero.
    pub pad: u32,
}

/// Value of `NODES4`. `[flags:4] = 4 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct NodeAddress {
    /// Bits: [`NodeAddress::THIS_NODE`].
    pub flags: u32,
}

impl NodeAddress {
    /// The address is one of this node.
    pub const THIS_NODE: u32 = 1 << 0;
}

/// Value of `NODE_NETNS`, whose loopback alone is a node address: a pod's loopback is the pod's own.
/// `[cookie:8] = 8 bytes`, in the machine's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct NetnsCookie(pub u64);

impl NetnsCookie {
    /// No namespace's: the kernel counts from 1 (`gen_cookie_next`, include/linux/cookie.h). No socket is in it, so that
    /// node ports on loopback are not served.
    pub const NONE: Self = Self(0);
}

/// Value of `SOCKETS4`, kept with each socket that was sent to an endpoint.
/// `[service_addr:4 be][endpoint_addr:4 be][service_port:2 be][endpoint_port:2 be][pad:4] = 16 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Translated4 {
    /// The address that the application connected to; [`Ip4::ANY`] when the socket was connected anew to something
    /// that is no Service.
    pub service_addr: Ip4,
    /// The address that it was sent to.
    pub endpoint_addr: Ip4,
    /// The port that the application connected to.
    pub service_port: Port,
    /// The port that it was sent to.
    pub endpoint_port: Port,
    /// Zero.
    pub pad: u32,
}

const _: () = assert!(size_of::<FrontendKey4>() == 8);
const _: () = assert!(size_of::<Frontend>() == 16);
const _: () = assert!(size_of::<SlotKey>() == 8);
const _: () = assert!(size_of::<Endpoint4>() == 16);
const _: () = assert!(size_of::<NodeAddress>() == 4);
const _: () = assert!(size_of::<NetnsCookie>() == 8);
const _: () = assert!(size_of::<Translated4>() == 16);

#[cfg(not(target_arch = "bpf"))]
crate::plain_old_data!(
    FrontendKey4,
    Frontend,
    SlotKey,
    Endpoint4,
    NodeAddress,
    NetnsCookie,
    Translated4
);

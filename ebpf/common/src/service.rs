//! The maps by which a connection to a Service finds an endpoint.
//!
//! ```text
//! written by the host side                                                                        lives
//! FRONTENDS   (address, port, protocol)       → service id, revision, counts, flags, affinity
//! SLOTS       (service, revision, slot)       → endpoint id
//! ENDPOINTS   endpoint id                     → address, port
//! MEMBERS     (service, endpoint)             → which lists it is in, and whether it serves
//! NODES       address of any node             → flags
//! NODE_NETNS  0                               → cookie of the node's network namespace
//! written by the programs
//! SOCKETS     connected socket                → the Service's address, and what it got           with the socket
//! AFFINITY    (service, client)               → endpoint id, when it was last connected to       LRU
//! FLOWS       (socket, Service's address)     → endpoint id that its datagrams go to             LRU
//! REPLIES     (UDP socket, endpoint's address) → the Service's address to show for it            LRU
//! ```
//! Both families share them, with addresses of 16 bytes ([`Ip`]): a socket of IPv6 that names an IPv4 Service in the
//! mapped form finds what a socket of IPv4 finds.
//!
//! An update writes the slots of the next revision first and then the frontend, whose value is replaced as a whole:
//! a reader sees the old list or the new one, never a mixture. (An in-place overwrite lets it see the count of one
//! and the slots of the other.)
//!
//! The kernel may hand an LRU element to another key while a program reads it. So what `AFFINITY` and `FLOWS` say is
//! believed only as far as `MEMBERS` confirms it.

use crate::net::{Ip, Port};

/// Key of `FRONTENDS`. `[addr:16 be][port:2 be][proto:1][kind:1] = 20 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct FrontendKey {
    /// The Service's address; [`Ip::ANY`] for node ports.
    pub addr: Ip,
    /// The Service's port, or its node port.
    pub port: Port,
    /// IP protocol number.
    pub proto: u8,
    /// [`FrontendKey::ADDRESS`], [`FrontendKey::NODE_PORT4`] or [`FrontendKey::NODE_PORT6`].
    pub kind: u8,
}

impl FrontendKey {
    /// The frontend has an address of its own.
    pub const ADDRESS: u8 = 0;
    /// The frontend is a port of every IPv4 address of a node.
    pub const NODE_PORT4: u8 = 1;
    /// The frontend is a port of every IPv6 address of a node.
    pub const NODE_PORT6: u8 = 2;
}

/// Value of `FRONTENDS`.
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
    /// How long a client stays with its endpoint after its last new connection, in seconds; 0 = no affinity.
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

/// Value of `ENDPOINTS`. `[addr:16 be][port:2 be][proto:1][flags:1][id:4] = 24 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Endpoint {
    /// Where the connection goes.
    pub addr: Ip,
    /// Port there.
    pub port: Port,
    /// IP protocol number.
    pub proto: u8,
    /// Zero; for facts about the endpoint that a program needs.
    pub flags: u8,
    /// The key under which it lies, so that a program can tell that an entry was recycled while it read it.
    pub id: u32,
}

/// Key of `MEMBERS`. `[service:4][endpoint:4] = 8 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct MemberKey {
    /// [`Frontend::service`].
    pub service: u32,
    /// [`Endpoint::id`].
    pub endpoint: u32,
}

/// Value of `MEMBERS`: whether a client may stay with an endpoint that it already has. Kept for Services with session
/// affinity, and for those of UDP. `[bits:4] = 4 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Membership(pub u32);

impl Membership {
    /// The endpoint is in the list for cluster-wide traffic.
    pub const IN_CLUSTER: u32 = 1 << 0;
    /// The endpoint is in the list for node-local traffic.
    pub const IN_LOCAL: u32 = 1 << 1;
    /// The endpoint still serves, whether it takes new connections or not: datagrams of a flow that goes there go on
    /// to it.
    pub const SERVING: u32 = 1 << 2;
}

/// Value of `NODES`. `[flags:4] = 4 bytes`.
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

/// Value of `SOCKETS`, kept with each connected socket that was sent to an endpoint.
/// `[service_addr:16 be][endpoint_addr:16 be][service_port:2 be][endpoint_port:2 be] = 36 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Translated {
    /// The address that the application connected to; [`Ip::ANY`] when the socket was connected anew to something
    /// that is no Service.
    pub service_addr: Ip,
    /// The address that it was sent to.
    pub endpoint_addr: Ip,
    /// The port that the application connected to.
    pub service_port: Port,
    /// The port that it was sent to.
    pub endpoint_port: Port,
}

impl Translated {
    /// The socket goes to no Service.
    pub const NOT: Self = Self {
        service_addr: Ip::ANY,
        endpoint_addr: Ip::ANY,
        service_port: Port(0),
        endpoint_port: Port(0),
    };
}

/// Key of `AFFINITY`. `[service:4][pad:4][client:8] = 16 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct AffinityKey {
    /// [`Frontend::service`]: all frontends of a port share their clients' affinity.
    pub service: u32,
    /// Zero.
    pub pad: u32,
    /// The client: cookie of its network namespace. A pod has one, whatever its addresses.
    pub client: u64,
}

/// Value of `AFFINITY`. `[endpoint:4][pad:4][last_ns:8] = 16 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Affinity {
    /// [`Endpoint::id`].
    pub endpoint: u32,
    /// Zero.
    pub pad: u32,
    /// When the client's last new connection was, in nanoseconds since boot, suspend included.
    pub last_ns: u64,
}

/// Key of `FLOWS` and `REPLIES`. `[socket:8][addr:16 be][port:2 be][pad:6] = 32 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct SocketPeer {
    /// Cookie of the socket; none is ever given twice.
    pub socket: u64,
    /// The other side's address: the Service's in `FLOWS`, the endpoint's in `REPLIES`.
    pub addr: Ip,
    /// Its port.
    pub port: Port,
    /// Zero.
    pub pad: [u16; 3],
}

/// Value of `FLOWS`. `[endpoint:4][service:4] = 8 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Flow {
    /// [`Endpoint::id`].
    pub endpoint: u32,
    /// [`Frontend::service`] of the Service that had the address then.
    pub service: u32,
}

/// Value of `REPLIES`. `[addr:16 be][port:2 be][pad:2] = 20 bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(C)]
pub struct Reply {
    /// The Service's address.
    pub addr: Ip,
    /// Its port.
    pub port: Port,
    /// Zero.
    pub pad: u16,
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<Frontend>() == 16);
const _: () = assert!(size_of::<SlotKey>() == 8);
const _: () = assert!(size_of::<Endpoint>() == 24);
const _: () = assert!(size_of::<MemberKey>() == 8);
const _: () = assert!(size_of::<Membership>() == 4);
const _: () = assert!(size_of::<NodeAddress>() == 4);
const _: () = assert!(size_of::<NetnsCookie>() == 8);
const _: () = assert!(size_of::<Translated>() == 36);
const _: () = assert!(size_of::<AffinityKey>() == 16);
const _: () = assert!(size_of::<Affinity>() == 16);
const _: () = assert!(size_of::<SocketPeer>() == 32);
const _: () = assert!(size_of::<Flow>() == 8);
const _: () = assert!(size_of::<Reply>() == 20);

#[cfg(not(target_arch = "bpf"))]
crate::plain_old_data!(
    FrontendKey,
    Frontend,
    SlotKey,
    Endpoint,
    MemberKey,
    Membership,
    NodeAddress,
    NetnsCookie,
    Translated,
    AffinityKey,
    Affinity,
    SocketPeer,
    Flow,
    Reply,
);

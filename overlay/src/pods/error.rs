//! Why pods are not served.

use std::io;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Instant;

use ipnetwork::IpNetwork;
use model::Protocol;

use super::addresses::AttachmentKey;

/// Why a pod was not served.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// This node has no subnet or block yet: try again.
    #[error("this node has no addresses for pods yet: {reason}")]
    NotReady {
        /// What it waits for.
        reason: String,
    },
    /// Every address of the subnet is in use.
    #[error("no free address in {subnet}: {used} in use")]
    Exhausted {
        /// The node's subnet.
        subnet: IpNetwork,
        /// How many interfaces have an address.
        used: usize,
    },
    /// A pool has no address for it yet: there may be one later ([`Turn`](super::Turn)).
    #[error("no address now: {waiting_for}")]
    NoneNow {
        /// What there is, and what it waits for.
        waiting_for: String,
        /// When the next address will have cooled down, where one cools down.
        next_cool: Option<Instant>,
    },
    /// Every address of a pool is in use, and no more are to come.
    #[error("no free address: {used} in use, and no more to come: {reason}")]
    NoneComing {
        /// How many interfaces have an address.
        used: usize,
        /// Why there are no more.
        reason: String,
    },
    /// The interface was deleted before there was an address for it.
    #[error("interface {} of container {} was deleted while it waited for an address", .0.ifname, .0.container_id)]
    Dismissed(AttachmentKey),
    /// The kernel does not lead its packets by the way that its address asks for: try again.
    #[error("the kernel does not lead the pod's packets: {reason}")]
    NotLed {
        /// What it waits for.
        reason: String,
    },
    /// This node has no pool of blocks.
    #[error("this node's addresses are not in blocks")]
    NoPool,
    /// An address that was asked for is not of this node's subnet, or is the node's own.
    #[error("address {address} cannot be given here: this node gives addresses of {}", .subnets.join(" and "))]
    NotOfThisNode {
        /// What was asked for.
        address: IpAddr,
        /// What there is.
        subnets: Vec<String>,
    },
    /// Another interface has an address that was asked for.
    #[error("address {0} is in use")]
    InUse(IpAddr),
    /// Another interface has a port of the node that was asked for: until it goes.
    #[error("host port {port}/{protocol} is container {holder}'s")]
    PortInUse {
        /// The port.
        port: NonZeroU16,
        /// Its protocol.
        protocol: Protocol,
        /// The container that has it.
        holder: String,
    },
    /// The interface was never added, or was removed.
    #[error("interface {} of container {} is not known", .0.ifname, .0.container_id)]
    Unknown(AttachmentKey),
    /// The log could not be written: nothing was given or taken.
    #[error("write {}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A device that is left over could not be removed.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
}

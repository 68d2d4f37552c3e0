//! Neighbours (which MAC address an IP address has on a link) and forwarding entries (behind which tunnel end, or
//! bridge port, a MAC address lives: the FDB).

use std::fmt;
use std::net::IpAddr;

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteType;
use serde::{Deserialize, Serialize};

use crate::Mac;
use crate::address::family;

/// An IP address's MAC address on a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Neighbour {
    /// Index of the device.
    pub link: u32,
    /// The neighbour's IP address.
    pub address: IpAddr,
    /// Its MAC address; `None` while the kernel is still asking.
    pub mac: Option<Mac>,
    /// Set by hand: never asked for, never aged (`NUD_PERMANENT`).
    pub permanent: bool,
}

impl Neighbour {
    /// An entry set by hand.
    #[must_use]
    pub const fn permanent(link: u32, address: IpAddr, mac: Mac) -> Self {
        Self {
            link,
            address,
            mac: Some(mac),
            permanent: true,
        }
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on link {}", self.address, self.link)
    }
}

/// A forwarding entry of a device itself (`bridge fdb … self`), as VXLAN devices have them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Forwarding {
    /// Index of the VXLAN device.
    pub link: u32,
    /// The MAC address of the inner frame.
    pub mac: Mac,
    /// The tunnel end that it is sent to.
    pub destination: IpAddr,
    /// Set by hand: never aged.
    pub permanent: bool,
}

impl Forwarding {
    /// An entry set by hand.
    #[must_use]
    pub const fn permanent(link: u32, mac: Mac, destination: IpAddr) -> Self {
        Self {
            link,
            mac,
            destination,
            permanent: true,
        }
    }
}

impl fmt::Display for Forwarding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, octet) in self.mac.iter().enumerate() {
            write!(f, "{}{octet:02x}", if place == 0 { "" } else { ":" })?;
        }
        write!(f, " to {} on link {}", self.destination, self.link)
    }
}

/// What a neighbour message speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Neighbour(Neighbour),
    Forwarding(Forwarding),
}

/// Lists the neighbours, or with `AF_BRIDGE` the forwarding entries, of one device or of all.
pub(crate) fn encode_filter(family: AddressFamily, link: Option<u32>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family;
    match (family, link) {
        // rtnl_valid_fdb_dump: the device stands in the header …
        (AddressFamily::Bridge, Some(link)) => message.header.ifindex = link,
        // … and neigh_valid_dump_req wants it as an attribute.
        (_, Some(link)) => message.attributes.push(NeighbourAttribute::IfIndex(link)),
        (_, None) => {}
    }
    message
}

pub(crate) fn encode(neighbour: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(neighbour.address);
    message.header.ifindex = neighbour.link;
    message.header.state = if neighbour.permanent {
        NeighbourState::Permanent
    } else {
        NeighbourState::Reachable
    };
    message.header.kind = RouteType::Unicast;
    message
        .attributes
        .push(NeighbourAttribute::Destination(neighbour.address.into()));
    message.attributes.extend(
        neighbour
            .mac
            .map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())),
    );
    message
}

pub(crate) fn encode_forwarding(entry: &Forwarding) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = entry.link;
    message.header.state = if entry.permanent {
        NeighbourState::Permanent
    } else {
        NeighbourState::Reachable
    };
    message.header.flags = NeighbourFlags::Own;
    message
        .attributes
        .push(NeighbourAttribute::LinkLayerAddress(entry.mac.to_vec()));
    message
        .attributes
        .push(NeighbourAttribute::Destination(entry.destination.into()));
    message
}

/// `None` for what has no address yet, or is neither kind of entry (bridge ports without a tunnel end).
pub(crate) fn decode(message: NeighbourMessage) -> Option<Entry> {
    let header = message.header;
    let mut mac = None;
    let mut address = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes).ok(),
            NeighbourAttribute::Destination(destination) => address = ip(destination),
            _ => {}
        }
    }
    let address = address?;
    let permanent = matches!(header.state, NeighbourState::Permanent);
    match header.family {
        AddressFamily::Inet | AddressFamily::Inet6 => Some(Entry::Neighbour(Neighbour {
            link: header.ifindex,
            address,
            mac,
            permanent,
        })),
        AddressFamily::Bridge => Some(Entry::Forwarding(Forwarding {
            link: header.ifindex,
            mac: mac?,
            destination: address,
            permanent,
        })),
        _ => None,
    }
}

fn ip(address: NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(address) => Some(address.into()),
        NeighbourAddress::Inet6(address) => Some(address.into()),
        // In AF_BRIDGE messages the decoder leaves the tunnel end as bytes: 4 or 16 of them.
        NeighbourAddress::Other(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
            16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
            _ => None,
        },
        _ => None,
    }
}

//! Addresses of devices.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use serde::{Deserialize, Serialize};

use crate::route::Scope;

/// An address of a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Address {
    /// Index of the device.
    pub link: u32,
    /// The address and its prefix; the kernel routes a prefix shorter than a host's to the device.
    pub network: IpNetwork,
    /// How far the address is valid.
    pub scope: Scope,
    /// IPv6: skip duplicate address detection (`IFA_F_NODAD`). Only written, reads as false.
    pub no_dad: bool,
    /// IPv6: temporary (RFC 8981), deprecated, or not found to be unique, at least not yet. Only read.
    pub passing: bool,
}

impl Address {
    /// A globally valid address.
    #[must_use]
    pub const fn global(link: u32, network: IpNetwork) -> Self {
        Self {
            link,
            network,
            scope: Scope::Universe,
            no_dad: false,
            passing: false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on link {}", self.network, self.link)
    }
}

pub(crate) fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

pub(crate) fn decode(message: &AddressMessage) -> Option<Address> {
    let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(wanted);
    // On a point-to-point device IFA_ADDRESS is the other end; IFA_LOCAL is ours wherever it is given.
    let address = find(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    })
    .or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })?;
    Some(Address {
        link: message.header.index,
        network: IpNetwork::new(address, message.header.prefix_len).ok()?,
        scope: Scope::from(u8::from(message.header.scope)),
        no_dad: false,
        passing: address.is_ipv6() && flags(message).intersects(PASSING),
    })
}

const PASSING: AddressFlags = AddressFlags::Secondary
    .union(AddressFlags::Dadfailed)
    .union(AddressFlags::Deprecated)
    .union(AddressFlags::Tentative);

/// The message's header has room for eight of them.
fn flags(message: &AddressMessage) -> AddressFlags {
    let all = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Flags(flags) => Some(*flags),
        _ => None,
    });
    all.unwrap_or(AddressFlags::empty())
}

pub(crate) fn encode(address: &Address) -> AddressMessage {
    let ip = address.network.ip();
    let mut message = AddressMessage::default();
    message.header.family = family(ip);
    message.header.prefix_len = address.network.prefix();
    message.header.scope = AddressScope::from(u8::from(address.scope));
    message.header.index = address.link;
    message.attributes.push(AddressAttribute::Local(ip));
    message.attributes.push(AddressAttribute::Address(ip));
    message
        .attributes
        .extend(broadcast(address.network).map(AddressAttribute::Broadcast));
    if address.no_dad {
        message.attributes.push(AddressAttribute::Flags(
            netlink_packet_route::address::AddressFlags::Nodad,
        ));
    }
    message
}

/// IPv4 subnets of more than two addresses have a broadcast address (RFC 3021).
fn broadcast(network: IpNetwork) -> Option<Ipv4Addr> {
    match network {
        IpNetwork::V4(v4) if v4.prefix() <= 30 => Some(v4.broadcast()),
        _ => None,
    }
}

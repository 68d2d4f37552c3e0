//! Routes.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::Nla;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
};
use serde::{Deserialize, Serialize};

use crate::address::family;
use crate::rule::TABLE_LOCAL;

/// The number of a nexthop object (`linux/rtnetlink.h`).
const RTA_NH_ID: u16 = 30;

/// The main routing table.
pub const TABLE_MAIN: u32 = 254;

/// How far an address or a destination is away (`rtnetlink(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Scope {
    /// Anywhere.
    Universe,
    /// On the link.
    Link,
    /// On this host.
    Host,
    /// Another of the kernel's numbers.
    Other(u8),
}

impl From<u8> for Scope {
    fn from(scope: u8) -> Self {
        match scope {
            0 => Self::Universe,
            253 => Self::Link,
            254 => Self::Host,
            other => Self::Other(other),
        }
    }
}

impl From<Scope> for u8 {
    fn from(scope: Scope) -> Self {
        match scope {
            Scope::Universe => 0,
            Scope::Link => 253,
            Scope::Host => 254,
            Scope::Other(other) => other,
        }
    }
}

/// What happens to packets that a route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RouteKind {
    /// They are forwarded.
    Unicast,
    /// They are for this host.
    Local,
    /// They are dropped in silence.
    Blackhole,
    /// They are refused with "host unreachable".
    Unreachable,
    /// Another of the kernel's numbers.
    Other(u8),
}

impl From<u8> for RouteKind {
    fn from(kind: u8) -> Self {
        match kind {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            other => Self::Other(other),
        }
    }
}

impl From<RouteKind> for u8 {
    fn from(kind: RouteKind) -> Self {
        match kind {
            RouteKind::Unicast => 1,
            RouteKind::Local => 2,
            RouteKind::Blackhole => 6,
            RouteKind::Unreachable => 7,
            RouteKind::Other(other) => other,
        }
    }
}

/// A route. The kernel's key is destination, table and metric (and for IPv4 the type of service, which is not used).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Route {
    /// Destination.
    pub destination: IpNetwork,
    /// Next hop.
    pub gateway: Option<IpAddr>,
    /// Index of the device it leaves through.
    pub link: Option<u32>,
    /// Preferred source address of packets that this host sends.
    pub source: Option<IpAddr>,
    /// Who made it: the owner's mark (`rtm_protocol`).
    pub protocol: u8,
    /// How far the destination is.
    pub scope: Scope,
    /// Routing table.
    pub table: u32,
    /// Its priority, lower wins. 0 for IPv4's best; IPv6 reads 1024 where 0 was written.
    pub metric: u32,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
    /// What happens to the packets.
    pub kind: RouteKind,
}

impl Route {
    /// A route through a device, in the main table, as the kernel tells it afterwards.
    #[must_use]
    pub const fn on_link(destination: IpNetwork, link: u32, protocol: u8) -> Self {
        Self {
            destination,
            gateway: None,
            link: Some(link),
            source: None,
            protocol,
            // Routes of IPv6 have no scope.
            scope: match destination {
                IpNetwork::V4(_) => Scope::Link,
                IpNetwork::V6(_) => Scope::Universe,
            },
            table: TABLE_MAIN,
            metric: Self::usual_metric(destination),
            onlink: false,
            kind: RouteKind::Unicast,
        }
    }

    /// The metric of a route for which none was asked: `IP6_RT_PRIO_USER` for IPv6.
    #[must_use]
    pub const fn usual_metric(destination: IpNetwork) -> u32 {
        match destination {
            IpNetwork::V4(_) => 0,
            IpNetwork::V6(_) => 1024,
        }
    }

    /// A route through a gateway, in the main table.
    #[must_use]
    pub const fn via(destination: IpNetwork, gateway: IpAddr, link: u32, protocol: u8) -> Self {
        Self {
            gateway: Some(gateway),
            scope: Scope::Universe,
            ..Self::on_link(destination, link, protocol)
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => write!(f, "local ")?,
            RouteKind::Blackhole => write!(f, "blackhole ")?,
            RouteKind::Unreachable => write!(f, "unreachable ")?,
            RouteKind::Other(number) => write!(f, "type {number} ")?,
        }
        write!(f, "{}", self.destination)?;
        if let Some(gateway) = self.gateway {
            write!(f, " via {gateway}")?;
        }
        if let Some(link) = self.link {
            write!(f, " link {link}")?;
        }
        write!(f, " table {} protocol {}", self.table, self.protocol)
    }
}

/// A packet whose route is asked for (`ip route get … from … iif … mark … fibmatch`). Nothing is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Where it goes.
    pub destination: IpAddr,
    /// Where it comes from; needed with `device`.
    pub source: Option<IpAddr>,
    /// Index of the device that it came in by. None for a packet of this host.
    pub device: Option<u32>,
    /// Its mark; 0 is none.
    pub mark: u32,
}

/// What the routing tables make of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It takes this route, as the table has it.
    Route(Route),
    /// It takes one that is not told as a [`Route`]: with several next hops, or of another kind.
    Other,
    /// The kernel does not pass it on, for this reason: `ENETUNREACH` where no route leads there, `EXDEV` where the
    /// source is not routed back by the device (`rp_filter`), `EINVAL` for a blackhole or a martian source.
    Refused(nix::errno::Errno),
}

/// How packets leave for an address by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// Who on the link gets them: the address itself, or a gateway. `None`: not always the same one.
    pub neighbour: Option<IpAddr>,
    /// The largest packet that passes, in bytes, where a route says it, or a router said it lately.
    pub mtu: Option<u32>,
    /// How many hops packets may go, where a route says it.
    pub hops: Option<u32>,
}

/// Which routes to list; the kernel does the filtering. `None` = any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteFilter {
    /// Made by this owner.
    pub protocol: Option<u8>,
    /// In this table.
    pub table: Option<u32>,
    /// Leaving through this device.
    pub link: Option<u32>,
}

impl RouteFilter {
    /// Everything that an owner made, in any table.
    #[must_use]
    pub const fn made_by(protocol: u8) -> Self {
        Self {
            protocol: Some(protocol),
            table: None,
            link: None,
        }
    }

    /// Whether a route passes; the kernel's own filter, for [`crate::FakeKernel`] and for events.
    #[must_use]
    pub fn admits(&self, route: &Route) -> bool {
        self.protocol.is_none_or(|protocol| protocol == route.protocol)
            && self.table.is_none_or(|table| table == route.table)
            && self.link.is_none_or(|link| Some(link) == route.link)
    }
}

pub(crate) fn encode_filter(filter: &RouteFilter, family: AddressFamily) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.protocol = RouteProtocol::from(filter.protocol.unwrap_or(0));
    message.attributes.extend(filter.table.map(RouteAttribute::Table));
    message.attributes.extend(filter.link.map(RouteAttribute::Oif));
    message
}

/// The question "which route does a packet to this address take" (`ip route get`).
pub(crate) fn encode_lookup(address: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(address);
    message.header.destination_prefix_length = bits(address);
    message
        .attributes
        .push(RouteAttribute::Destination(address.into()));
    message
}

/// The same of a packet from an address that leaves by a device. As the routing table has the route
/// (`ip route get fibmatch`), where it may have several next hops; else as it was chosen for this packet, with what
/// routers said since.
pub(crate) fn encode_lookup_from(
    source: IpAddr,
    address: IpAddr,
    link: u32,
    as_in_table: bool,
) -> RouteMessage {
    let mut message = encode_lookup(address);
    message.header.source_prefix_length = bits(source);
    if as_in_table {
        message.header.flags = RouteFlags::FibMatch;
    }
    message.attributes.push(RouteAttribute::Source(source.into()));
    message.attributes.push(RouteAttribute::Oif(link));
    message
}

/// The question of a [`Lookup`], to be answered with the route that the table has.
pub(crate) fn encode_packet(packet: &Lookup) -> RouteMessage {
    let mut message = encode_lookup(packet.destination);
    message.header.flags = match packet.destination {
        // Which otherwise tells any table as `main`.
        IpAddr::V4(_) => RouteFlags::FibMatch | RouteFlags::LookupTable,
        IpAddr::V6(_) => RouteFlags::FibMatch,
    };
    if let Some(source) = packet.source {
        message.header.source_prefix_length = bits(source);
        message.attributes.push(RouteAttribute::Source(source.into()));
    }
    message.attributes.extend(packet.device.map(RouteAttribute::Iif));
    if packet.mark != 0 {
        message.attributes.push(RouteAttribute::Mark(packet.mark));
    }
    message
}

const fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Who on the link the packets of a route to an address go to. `None`: not always the same one, or one of another
/// version of IP.
pub(crate) fn neighbour(message: &RouteMessage, address: IpAddr) -> Option<IpAddr> {
    let mut neighbour = Some(address);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(gateway) => neighbour = ip(gateway.clone()),
            RouteAttribute::MultiPath(_) | RouteAttribute::Via(_) => return None,
            // By `nexthop_compat_mode` the kernel may say no more of it than its number.
            RouteAttribute::Other(other) if other.kind() == RTA_NH_ID => return None,
            _ => {}
        }
    }
    neighbour
}

/// Whether packets leave by a device.
pub(crate) fn leaves_by(message: &RouteMessage, link: u32) -> bool {
    let is_link =
        |attribute: &RouteAttribute| matches!(attribute, RouteAttribute::Oif(index) if *index == link);
    message.header.kind == RouteType::Unicast && message.attributes.iter().any(is_link)
}

/// What a route says of the packets that take it.
pub(crate) fn metric(message: &RouteMessage, read: fn(&RouteMetric) -> Option<u32>) -> Option<u32> {
    let metrics = message.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Metrics(metrics) => Some(metrics),
        _ => None,
    });
    metrics.flatten().find_map(read)
}

pub(crate) fn encode(route: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let header = &mut message.header;
    header.address_family = family(route.destination.ip());
    header.destination_prefix_length = route.destination.prefix();
    header.table = u8::try_from(route.table).unwrap_or(0);
    header.protocol = RouteProtocol::from(route.protocol);
    header.scope = RouteScope::from(u8::from(route.scope));
    header.kind = RouteType::from(u8::from(route.kind));
    if route.onlink {
        header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Destination(route.destination.network().into()));
    attributes.push(RouteAttribute::Table(route.table));
    attributes.extend(
        route
            .gateway
            .map(|gateway| RouteAttribute::Gateway(gateway.into())),
    );
    attributes.extend(route.link.map(RouteAttribute::Oif));
    attributes.extend(
        route
            .source
            .map(|source| RouteAttribute::PrefSource(source.into())),
    );
    if route.metric != 0 {
        attributes.push(RouteAttribute::Priority(route.metric));
    }
    message
}

/// An answer of IPv4's, with the table that the route is in. As long as nobody adds rules, its tables `local` and `main` are
/// one, and a route of either is told as one of `main` (`fib_get_table`).
pub(crate) fn usual_table(mut route: Route) -> Route {
    /// Of `linux/rtnetlink.h`.
    const BROADCAST: RouteKind = RouteKind::Other(3);
    let is_of_local = matches!(route.kind, RouteKind::Local | BROADCAST);
    if route.destination.is_ipv4() && is_of_local && route.table == TABLE_MAIN {
        route.table = TABLE_LOCAL;
    }
    route
}

/// `None` for what is not a route of ours to reason about: cached clones, multipath, other families.
pub(crate) fn decode(message: RouteMessage) -> Option<Route> {
    let header = message.header;
    if header.flags.contains(RouteFlags::Cloned) {
        return None;
    }
    let unspecified: IpAddr = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut destination = unspecified;
    let mut route = Route {
        destination: IpNetwork::from(unspecified),
        gateway: None,
        link: None,
        source: None,
        protocol: u8::from(header.protocol),
        scope: Scope::from(u8::from(header.scope)),
        table: u32::from(header.table),
        metric: 0,
        onlink: header.flags.contains(RouteFlags::Onlink),
        kind: RouteKind::from(u8::from(header.kind)),
    };
    for attribute in message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Oif(index) => route.link = Some(index),
            RouteAttribute::Priority(metric) => route.metric = metric,
            RouteAttribute::Table(table) => route.table = table,
            RouteAttribute::MultiPath(_) => return None,
            _ => {}
        }
    }
    route.destination = IpNetwork::new(destination, header.destination_prefix_length).ok()?;
    Some(route)
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(address.into()),
        RouteAddress::Inet6(address) => Some(address.into()),
        _ => None,
    }
}

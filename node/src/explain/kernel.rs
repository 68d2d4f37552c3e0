//! Engine B: what is programmed for a packet's way, read back. Nothing is sent and nothing is changed.

use std::net::IpAddr;

use netlink::{Forwarding, Found, Link, LinkKind, Lookup, Neighbour, RouteKind};

use super::witness::{Seen, Witness};

/// A packet, and where the routing tables send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routed {
    /// The packet.
    pub packet: Lookup,
    /// The name of the device that it came in by.
    pub arrives_by: Option<String>,
    /// What the routing tables make of it.
    pub found: Found,
    /// The device that it leaves by.
    pub link: Option<Link>,
}

impl Routed {
    /// The device that it leaves this network namespace by; none where it stays, though routes to addresses of one's own
    /// name the device that has them.
    #[must_use]
    pub fn leaves_by(&self) -> Option<&Link> {
        let stays = matches!(&self.found, Found::Route(route) if route.kind != RouteKind::Unicast);
        self.link.as_ref().filter(|link| !stays && !link.loopback)
    }
}

/// What the kernel has for one packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// Where the routing tables send it.
    pub routed: Routed,
    /// Who is next on that device.
    pub next: Option<IpAddr>,
    /// The entry for it.
    pub neighbour: Option<Neighbour>,
    /// Where the tunnel's device sends what is for that MAC address.
    pub forwarding: Option<Forwarding>,
    /// How wrapped packets leave for there.
    pub underlay: Option<Routed>,
}

/// Looks a packet's way up.
///
/// # Errors
/// When it is not known.
pub fn look(kernel: &mut dyn Witness, packet: Lookup) -> Seen<Sight> {
    let mut sight = Sight {
        routed: route(kernel, packet)?,
        next: None,
        neighbour: None,
        forwarding: None,
        underlay: None,
    };
    let Routed {
        packet,
        found: Found::Route(found),
        link: Some(link),
        ..
    } = &sight.routed
    else {
        return Ok(sight);
    };
    // What is for this host meets nobody on a link.
    if found.kind != RouteKind::Unicast {
        return Ok(sight);
    }
    let next = found.gateway.unwrap_or(packet.destination);
    sight.next = Some(next);
    let neighbours = kernel.neighbours(link.index)?;
    sight.neighbour = neighbours.into_iter().find(|neighbour| neighbour.address == next);
    let is_tunnel = matches!(link.kind, LinkKind::Vxlan(_));
    let mac = sight.neighbour.as_ref().and_then(|neighbour| neighbour.mac);
    if let (true, Some(mac)) = (is_tunnel, mac) {
        let entries = kernel.forwarding(link.index)?;
        sight.forwarding = entries.into_iter().find(|entry| entry.mac == mac);
    }
    if let Some(entry) = &sight.forwarding {
        sight.underlay = Some(wrapped(kernel, entry.destination)?);
    }
    Ok(sight)
}

/// How packets leave that are wrapped for a node.
///
/// # Errors
/// When it is not known.
pub fn wrapped(kernel: &mut dyn Witness, node: IpAddr) -> Seen<Routed> {
    let outer = Lookup {
        destination: node,
        source: None,
        device: None,
        mark: 0,
    };
    route(kernel, outer)
}

fn route(kernel: &mut dyn Witness, packet: Lookup) -> Seen<Routed> {
    let found = kernel.look_up(&packet)?;
    let mut link_at = |index| kernel.link_at(index);
    let arrives_by = packet.device.map(&mut link_at).transpose()?.flatten();
    let leaves_by = match &found {
        Found::Route(route) => route.link,
        Found::Other | Found::Refused(_) => None,
    };
    let link = leaves_by.map(link_at).transpose()?.flatten();
    Ok(Routed {
        packet,
        arrives_by: arrives_by.map(|link| link.name),
        found,
        link,
    })
}

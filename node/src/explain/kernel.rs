//! Engine B: what is programmed for a packet's way, read back. Nothing is sent and nothing is changed.

use std::net::IpAddr;

use netlink::{Forwarding, Found, Kernel, Link, LinkKind, Lookup, Neighbour, Netlink, RouteKind};

/// What the kernel has for one packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    /// The packet.
    pub packet: Lookup,
    /// The name of the device that it came in by.
    pub arrives_by: Option<String>,
    /// What the routing tables make of it.
    pub found: Found,
    /// The device that it leaves by.
    pub link: Option<Link>,
    /// Who is next on that device.
    pub next: Option<IpAddr>,
    /// The entry for it.
    pub neighbour: Option<Neighbour>,
    /// Where the tunnel's device sends what is for that MAC address.
    pub forwarding: Option<Forwarding>,
    /// How wrapped packets leave for there.
    pub underlay: Option<Box<Sight>>,
}

/// Looks a packet's way up.
///
/// # Errors
/// When the kernel does not answer.
pub fn look(kernel: &mut Netlink, packet: Lookup) -> netlink::Result<Sight> {
    let found = kernel.look_up(&packet)?;
    let arrives_by = match packet.device {
        Some(index) => kernel.link_at(index)?.map(|link| link.name),
        None => None,
    };
    let mut sight = Sight {
        packet,
        arrives_by,
        found,
        link: None,
        next: None,
        neighbour: None,
        forwarding: None,
        underlay: None,
    };
    let Found::Route(route) = &sight.found else {
        return Ok(sight);
    };
    let Some(index) = route.link else {
        return Ok(sight);
    };
    sight.link = kernel.link_at(index)?;
    // What is for this host meets nobody on a link.
    if route.kind != RouteKind::Unicast {
        return Ok(sight);
    }
    let next = route.gateway.unwrap_or(packet.destination);
    sight.next = Some(next);
    let neighbours = kernel.neighbours(Some(index))?;
    sight.neighbour = neighbours.into_iter().find(|neighbour| neighbour.address == next);
    let is_tunnel = sight
        .link
        .as_ref()
        .is_some_and(|link| matches!(link.kind, LinkKind::Vxlan(_)));
    let mac = sight.neighbour.as_ref().and_then(|neighbour| neighbour.mac);
    if let (true, Some(mac)) = (is_tunnel, mac) {
        let entries = kernel.forwarding(index)?;
        sight.forwarding = entries.into_iter().find(|entry| entry.mac == mac);
    }
    if let Some(entry) = &sight.forwarding {
        let wrapped = Lookup {
            destination: entry.destination,
            source: None,
            device: None,
            mark: 0,
        };
        sight.underlay = Some(Box::new(look(kernel, wrapped)?));
    }
    Ok(sight)
}

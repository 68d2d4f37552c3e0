//! The trips of a packet, of what it is wrapped in, and of its answer, through this node: what rules of others see.

use std::collections::BTreeMap;
use std::net::IpAddr;

use model::Protocol;
use netlink::nft::ruleset::walk::Device;
use netlink::{Found, Link, LinkKind};
use proxy::plan::Target;
use proxy::programmed::LayerKind;

use super::asked::Ends;
use super::kernel::Sight;
use super::rules::Trip;
use super::walk::Origin;

/// What is asked for.
pub(super) struct Asked {
    source: IpAddr,
    destination: IpAddr,
    port: Option<u16>,
    protocol: Protocol,
    /// The port of each endpoint.
    ports: BTreeMap<IpAddr, u16>,
}

/// Both ways.
pub(super) struct Trips {
    pub(super) there: Vec<Trip>,
    pub(super) back: Vec<Trip>,
}

/// One target of the packet.
#[derive(Clone, Copy)]
pub(super) struct Turn<'a> {
    /// Its address.
    pub(super) target: IpAddr,
    /// Whether it sees this node's address as the source.
    pub(super) is_masqueraded: bool,
    /// Who made it the destination.
    pub(super) translated_by: Option<LayerKind>,
    /// Whether the fast path takes the packet.
    pub(super) is_passed: bool,
    /// This node's addresses.
    pub(super) own: &'a [IpAddr],
}

impl Asked {
    pub(super) fn of(ends: &Ends) -> Self {
        Self {
            source: ends.source.address,
            destination: ends.destination.address,
            port: ends.port.map(u16::from),
            protocol: ends.protocol,
            ports: BTreeMap::new(),
        }
    }

    /// Notes where else it may go.
    pub(super) fn targets(&mut self, targets: &[Target]) {
        for target in targets {
            self.ports.entry(target.address).or_insert(target.port.get());
        }
    }

    /// The port at one of them.
    pub(super) fn port_at(&self, target: IpAddr) -> Option<u16> {
        self.ports.get(&target).copied().or(self.port)
    }

    /// The packet's trips to one target, and its answer's. Where the fast path takes it, only what it is wrapped in
    /// meets rules.
    pub(super) fn trips(&self, origin: &Origin, there: &Sight, turn: &Turn<'_>) -> Trips {
        let Turn {
            target,
            is_masqueraded,
            translated_by,
            is_passed,
            own,
        } = *turn;
        let mut trips = Trips {
            there: Vec::new(),
            back: Vec::new(),
        };
        let is_known = origin.device.is_some() || own.contains(&self.source);
        if !matches!(there.routed.found, Found::Route(_)) || !is_known {
            return trips;
        }
        let port = self.port_at(target);
        let leaves_by = there.routed.leaves_by().map(device);
        let comes_by = origin.device.as_ref().map(|(index, name)| Device {
            index: *index,
            name: name.clone(),
        });
        if !is_passed {
            let is_translated = translated_by == Some(LayerKind::PacketRules);
            let asked = self
                .port
                .filter(|_| is_translated)
                .map(|port| (self.destination, port));
            let packet = Trip {
                source: self.source,
                source_port: None,
                destination: target,
                destination_port: port,
                asked,
                protocol: self.protocol,
                is_reply: false,
                is_masqueraded,
                comes_by: comes_by.clone(),
                leaves_by: leaves_by.clone(),
            };
            trips.back.push(Trip {
                source: target,
                source_port: port,
                destination: self.source,
                destination_port: None,
                is_reply: true,
                comes_by: leaves_by.clone(),
                leaves_by: comes_by,
                ..packet
            });
            trips.there.push(packet);
        }
        let Some((underlay, link)) = there.underlay.as_ref().and_then(|outer| {
            let link = outer.link.as_ref()?;
            Some((outer.packet.destination, link))
        }) else {
            return trips;
        };
        let tunnel = there.routed.link.as_ref().map(|link| &link.kind);
        let Some(LinkKind::Vxlan(tunnel)) = tunnel else {
            return trips;
        };
        let Some(local) = tunnel.local else { return trips };
        let wrapped = Trip {
            source: local,
            source_port: None,
            destination: underlay,
            destination_port: Some(tunnel.port),
            asked: None,
            protocol: Protocol::Udp,
            is_reply: false,
            is_masqueraded: false,
            comes_by: None,
            leaves_by: Some(device(link)),
        };
        trips.back.insert(
            0,
            Trip {
                source: underlay,
                destination: local,
                comes_by: wrapped.leaves_by.clone(),
                leaves_by: None,
                ..wrapped
            },
        );
        trips.there.push(wrapped);
        trips
    }
}

fn device(link: &Link) -> Device {
    Device {
        index: link.index,
        name: link.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use netlink::{Lookup, Route};
    use proxy::programmed::Client;

    use super::super::kernel::Routed;
    use super::super::tests::link;
    use super::*;

    #[test]
    fn an_answer_knows_what_packet_rules_made_of_the_packet() {
        let pod: IpAddr = [10, 244, 1, 5].into();
        let service: IpAddr = [10, 96, 0, 10].into();
        let target: IpAddr = [10, 244, 2, 6].into();
        let link = link(2, "eth0", 1500, LinkKind::Physical);
        let there = Sight {
            routed: Routed {
                packet: Lookup {
                    destination: target,
                    source: Some(pod),
                    device: Some(4),
                    mark: 0,
                },
                arrives_by: Some("pod".to_owned()),
                found: Found::Route(Route::on_link(target.into(), 2, 0)),
                link: Some(link),
            },
            next: None,
            neighbour: None,
            forwarding: None,
            underlay: None,
        };
        let origin = Origin {
            device: Some((4, "pod".to_owned())),
            client: Client::PodHere,
        };
        let asked = Asked {
            source: pod,
            destination: service,
            port: Some(53),
            protocol: Protocol::Udp,
            ports: [(target, 5353)].into(),
        };
        for (translated_by, expected) in [
            (Some(LayerKind::PacketRules), Some((service, 53))),
            (Some(LayerKind::SocketHook), None),
            (None, None),
        ] {
            let turn = Turn {
                target,
                is_masqueraded: false,
                translated_by,
                is_passed: false,
                own: &[],
            };
            let Trips { there, back } = asked.trips(&origin, &there, &turn);
            let asked = [&there, &back].map(|trips| trips.iter().map(|trip| trip.asked).collect::<Vec<_>>());
            assert_eq!(asked, [vec![expected], vec![expected]]);
        }
    }
}

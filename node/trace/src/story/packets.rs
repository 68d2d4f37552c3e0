//! Which hops are of one packet, and which packets of one connection.

use std::collections::{BTreeMap, BTreeSet};

use crate::hop::{Flow, Hop, HopKind, Protocol};
use crate::session::Filter;

/// Hops by packet, each in the order of time, the packets in that of their first hops.
pub(super) fn packets(hops: &[Hop]) -> Vec<Vec<Hop>> {
    let mut sorted: Vec<&Hop> = hops.iter().collect();
    sorted.sort_by_key(|hop| hop.at_ns);
    let mut packets: Vec<Vec<Hop>> = Vec::new();
    let (mut by_name, mut by_fingerprint) = (BTreeMap::new(), BTreeMap::new());
    for hop in sorted {
        let known = by_name
            .get(&hop.packet)
            .or(by_fingerprint.get(&hop.fingerprint()));
        let known: Option<usize> = known.copied();
        let own = known.and_then(|at| Some((at, packets.get_mut(at)?)));
        let at = match own {
            Some((at, packet)) if !passes_again(packet, hop) && !goes_back(&*packet, hop) => {
                packet.push(hop.clone());
                at
            }
            _ => {
                packets.push(vec![hop.clone()]);
                packets.len() - 1
            }
        };
        by_name.insert(hop.packet, at);
        by_fingerprint.insert(hop.fingerprint(), at);
    }
    packets
}

/// Whether a hop is where another copy of the packet has been: a retransmission that is the same to the byte.
fn passes_again(packet: &[Hop], hop: &Hop) -> bool {
    packet.iter().any(|earlier| {
        earlier.packet != hop.packet
            && matches!(hop.kind, HopKind::Sent | HopKind::Received)
            && (earlier.netns, &earlier.device, &earlier.kind) == (hop.netns, &hop.device, &hop.kind)
    })
}

/// Whether a connection may begin with this: what comes in its middle tells less of it.
pub(super) fn begins(hop: &Hop) -> bool {
    hop.header.flow.protocol != Protocol::TCP || hop.header.what == "SYN"
}

/// Whether a hop goes the other way than the packet: a datagram that is answered by the same bytes.
pub(super) fn goes_back<'h>(packet: impl IntoIterator<Item = &'h Hop>, hop: &Hop) -> bool {
    let back = hop.header.flow.reversed();
    let mut earlier = packet.into_iter();
    back != hop.header.flow && earlier.any(|earlier| earlier.header.flow == back)
}

/// The number of each packet's connection: packets are of one if they share a flow, under any name that NAT gives it.
pub(super) fn connections(packets: &[Vec<Hop>]) -> BTreeMap<usize, usize> {
    let mut by_flow: BTreeMap<Flow, usize> = BTreeMap::new();
    let mut connections: BTreeMap<usize, usize> = BTreeMap::new();
    for (number, packet) in packets.iter().enumerate() {
        let flows: BTreeSet<Flow> = packet.iter().flat_map(flows).map(Flow::canonical).collect();
        let met: BTreeSet<usize> = flows
            .iter()
            .filter_map(|flow| by_flow.get(flow).copied())
            .collect();
        let own = met.first().copied().unwrap_or(number);
        if met.len() > 1 {
            let all = by_flow.values_mut().chain(connections.values_mut());
            all.filter(|other| met.contains(other))
                .for_each(|other| *other = own);
        }
        by_flow.extend(flows.into_iter().map(|flow| (flow, own)));
        connections.insert(number, own);
    }
    connections
}

/// What the packet's flow is called here.
pub(super) fn flows(hop: &Hop) -> impl Iterator<Item = Flow> {
    let tracked = hop
        .connection
        .map(|connection| [connection.original, connection.reply]);
    [hop.header.flow].into_iter().chain(tracked.into_iter().flatten())
}

/// Whether a packet goes from the filter's sources to its targets.
pub(super) fn is_request(filter: &Filter, packet: &[Hop]) -> bool {
    let goes = |flow: &Flow| {
        let (source, destination) = (flow.source.ip(), flow.destination);
        let is_target = |(address, port): &(std::net::IpAddr, Option<u16>)| {
            *address == destination.ip() && port.is_none_or(|port| port == destination.port())
        };
        (filter.sources.is_empty() || filter.sources.contains(&source))
            && filter.source_port.is_none_or(|port| port == flow.source.port())
            && (filter.targets.is_empty() || filter.targets.iter().any(is_target))
    };
    let Some(first) = packet.first() else { return false };
    let is_answer = first.header.what == "SYN,ACK" || first.header.what == "echo reply";
    let tracked = first
        .connection
        .filter(|connection| connection.began_with(&first.header.flow));
    let is_named = goes(&first.header.flow) || tracked.is_some_and(|connection| goes(&connection.original));
    is_named && !is_answer
}

/// Whether a packet goes to who sent the request.
pub(super) fn is_reply(packet: &[Hop], request: &Hop) -> bool {
    let client = request.header.flow.source;
    let is_error = |flow: &Flow| flow.protocol != request.header.flow.protocol;
    packet.iter().any(|hop| {
        let flow = &hop.header.flow;
        if is_error(flow) {
            flow.destination.ip() == client.ip()
        } else {
            flow.destination == client
        }
    })
}

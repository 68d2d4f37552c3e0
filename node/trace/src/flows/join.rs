//! Both ends' views of a connection, its translation and its drops become one.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

use ebpf::abi::net::Ip;
use ebpf::abi::service::Translated;
use ebpf::abi::tally::{DropCount, DropKey, FlowCount};
use ebpf::abi::trace::Flow as RawFlow;

use super::{Amount, Lost, Passed};
use crate::drops::{Clock, is_ordinary, kind};
use crate::hop::{Flow, Protocol};
use crate::places::Places;
use crate::session::VXLAN_PORTS;

/// What the kernel has counted.
pub(super) struct Counted<'a> {
    /// All of it, since each began.
    pub flows: &'a [(RawFlow, FlowCount)],
    /// What grew, by what it grew.
    pub grown: &'a [(RawFlow, FlowCount)],
    /// What was dropped meanwhile.
    pub dropped: &'a [(DropKey, DropCount)],
    /// Connections as they began, and as they go on.
    pub nats: &'a [(RawFlow, RawFlow)],
    /// To whom the socket hook sent sockets, by their cookies.
    pub connected: &'a HashMap<u64, Translated>,
}

/// What grew, under its real ends.
pub(super) fn join(counted: &Counted<'_>, clock: Clock, places: &mut Places) -> Vec<Passed> {
    let mut ends = RealEnds::new(counted.nats);
    let mut known: HashMap<RawFlow, Direction> = HashMap::new();
    for (flow, count) in counted.flows {
        let real = ends.of(*flow);
        known.entry(real).or_default().add(count);
        ends.connected(real, counted.connected.get(&count.cookie));
    }
    let ends = ends;
    let mut joined: BTreeMap<RawFlow, Passed> = BTreeMap::new();
    for (flow, count) in counted.grown {
        let real = ends.of(*flow);
        if let Some(passed) = entry(&mut joined, real, &ends, &known, clock) {
            add(passed, count, clock);
        }
    }
    for (key, count) in counted.dropped {
        let kind = kind(key, count, places);
        // What it carries could not be read.
        let is_tunnel = key.wrapped == 0
            && key.protocol == Protocol::UDP.0
            && VXLAN_PORTS.contains(&key.destination_port.number());
        if kind.protocol.is_none() || is_tunnel || is_ordinary(&kind) {
            continue;
        }
        let lost = Lost {
            amount: Amount {
                packets: count.packets,
                bytes: count.bytes,
            },
            reason: kind.reason,
            place: kind.place,
            netns: key.netns,
            was_sent: key.ifindex != 0 || kind.wrapped,
            last: clock.at(count.last),
        };
        let first = clock.at(count.first);
        if let Some(passed) = entry(&mut joined, ends.of(flow_of(key)), &ends, &known, clock) {
            if passed.sent == Amount::default()
                && passed.received == Amount::default()
                && passed.drops.is_empty()
            {
                (passed.first, passed.last) = (first, lost.last);
            }
            passed.drops.push(lost);
        }
    }
    joined.into_values().collect()
}

/// All that is known of one direction of a connection since it began.
#[derive(Clone, Copy, Debug, Default)]
struct Direction {
    first: u64,
    opens: bool,
}

impl Direction {
    fn add(&mut self, count: &FlowCount) {
        if self.first == 0 || count.first < self.first {
            self.first = count.first;
        }
        self.opens |= count.tcp_flags & FlowCount::OPENS != 0;
    }
}

/// Who really sends and receives, by what packets say on their way.
struct RealEnds {
    real: HashMap<RawFlow, RawFlow>,
    /// By the real ends of who began: as it addressed the other.
    services: HashMap<RawFlow, RawFlow>,
}

impl RealEnds {
    fn new(nats: &[(RawFlow, RawFlow)]) -> Self {
        let mut ends = Self {
            real: HashMap::new(),
            services: HashMap::new(),
        };
        for (original, translated) in nats {
            let real = RawFlow {
                source: original.source,
                source_port: original.source_port,
                ..*translated
            };
            for name in [original, translated] {
                ends.real.insert(*name, real);
                ends.real.insert(name.reversed(), real.reversed());
            }
            ends.services.insert(real, *original);
        }
        ends
    }

    /// Notes to whom a socket of this flow was connected by the hook, before there was a packet.
    fn connected(&mut self, began: RawFlow, translated: Option<&Translated>) {
        let Some(translated) = translated else { return };
        let to = (translated.endpoint_addr, translated.endpoint_port);
        if to == (began.destination, began.destination_port) {
            self.services.entry(began).or_insert(RawFlow {
                destination: translated.service_addr,
                destination_port: translated.service_port,
                ..began
            });
        }
    }

    fn of(&self, flow: RawFlow) -> RawFlow {
        self.real.get(&flow).copied().unwrap_or(flow)
    }

    /// What the one that began calls the other, where that is not its own address.
    fn service(&self, began: &RawFlow) -> Option<std::net::SocketAddr> {
        let original = self.services.get(began)?;
        let is_same =
            (original.destination, original.destination_port) == (began.destination, began.destination_port);
        let flow = Flow::of(original)?;
        (!is_same).then_some(flow.destination)
    }
}

fn entry<'a>(
    joined: &'a mut BTreeMap<RawFlow, Passed>,
    real: RawFlow,
    ends: &RealEnds,
    known: &HashMap<RawFlow, Direction>,
    clock: Clock,
) -> Option<&'a mut Passed> {
    let passed = match joined.entry(real) {
        Entry::Occupied(there) => there.into_mut(),
        Entry::Vacant(place) => place.insert(begin(&real, ends, known, clock)?),
    };
    if let Some(last) = known.get(&real) {
        passed.first = passed.first.min(clock.at(last.first));
    }
    Some(passed)
}

/// A direction of which nothing is told yet.
fn begin(
    real: &RawFlow,
    ends: &RealEnds,
    known: &HashMap<RawFlow, Direction>,
    clock: Clock,
) -> Option<Passed> {
    let is_reply = is_reply(real, ends, known);
    let began = if is_reply { real.reversed() } else { *real };
    let first = clock.at(known.get(real).map_or(0, |direction| direction.first));
    Some(Passed {
        flow: Flow::of(real)?,
        service: ends.service(&began),
        is_reply,
        sent: Amount::default(),
        received: Amount::default(),
        first,
        last: first,
        sender: 0,
        receiver: 0,
        tcp_flags: 0,
        drops: Vec::new(),
    })
}

/// Whether a direction goes to who began: by TCP's first packet, by connection tracking, by who was seen first, and where
/// only one was seen by the ports, of which that of who serves is the smaller one.
fn is_reply(real: &RawFlow, ends: &RealEnds, known: &HashMap<RawFlow, Direction>) -> bool {
    let other = real.reversed();
    if ends.services.contains_key(real) || ends.services.contains_key(&other) {
        return ends.services.contains_key(&other);
    }
    let opens = |flow| {
        known
            .get(flow)
            .is_some_and(|direction: &Direction| direction.opens)
    };
    let by_ports = real.source_port.number() < real.destination_port.number();
    match (known.get(real), known.get(&other)) {
        _ if opens(real) || opens(&other) => opens(&other),
        (Some(own), Some(theirs)) if real.protocol != u32::from(Protocol::TCP.0) => theirs.first < own.first,
        _ => by_ports,
    }
}

fn add(passed: &mut Passed, count: &FlowCount, clock: Clock) {
    passed.last = passed.last.max(clock.at(count.last));
    passed.sent.packets += count.sent_packets;
    passed.sent.bytes += count.sent_bytes;
    passed.received.packets += count.received_packets;
    passed.received.bytes += count.received_bytes;
    let [own, theirs] = [count.sender, count.receiver];
    passed.sender = if own == 0 { passed.sender } else { own };
    passed.receiver = if theirs == 0 { passed.receiver } else { theirs };
    passed.tcp_flags |= (count.tcp_flags & 0xff) as u8;
}

fn flow_of(key: &DropKey) -> RawFlow {
    debug_assert!(key.source != Ip::ANY || key.destination != Ip::ANY);
    RawFlow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        protocol: key.protocol.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use ebpf::abi::net::Port;

    use super::*;

    const CLIENT: &str = "10.1.0.5:40000";
    const SERVICE: &str = "10.96.0.10:80";
    const SERVER: &str = "10.2.0.5:8080";
    const NODE: &str = "172.30.0.11:61000";

    fn at(text: &str) -> (Ip, Port) {
        let at: SocketAddr = text.parse().expect("an address");
        (at.ip().into(), Port::new(at.port()))
    }

    fn flow(source: &str, destination: &str) -> RawFlow {
        let (source, source_port) = at(source);
        let (destination, destination_port) = at(destination);
        RawFlow {
            source,
            destination,
            source_port,
            destination_port,
            protocol: 6,
        }
    }

    fn sent(packets: u64, first: u64, tcp_flags: u32) -> FlowCount {
        FlowCount {
            sent_packets: packets,
            sent_bytes: packets * 100,
            first,
            last: first + 1,
            cookie: 7,
            sender: 1,
            tcp_flags,
            ..FlowCount::default()
        }
    }

    fn received(packets: u64, first: u64) -> FlowCount {
        FlowCount {
            received_packets: packets,
            received_bytes: packets * 100,
            first,
            last: first + 1,
            receiver: 2,
            ..FlowCount::default()
        }
    }

    /// One line for each direction: real ends, the Service, packets where they were sent and received.
    #[track_caller]
    fn check(
        flows: &[(RawFlow, FlowCount)],
        nats: &[(RawFlow, RawFlow)],
        connected: &[(u64, Translated)],
        expected: &[&str],
    ) {
        let counted = Counted {
            flows,
            grown: flows,
            dropped: &[],
            nats,
            connected: &connected.iter().copied().collect(),
        };
        let joined = join(&counted, Clock::now(), &mut Places::default());
        let line = |passed: &Passed| {
            let arrow = if passed.is_reply { "answers" } else { "asks" };
            let service = passed
                .service
                .map_or_else(String::new, |service| format!(" as {service}"));
            let Flow {
                source, destination, ..
            } = passed.flow;
            let (sent, received) = (passed.sent.packets, passed.received.packets);
            format!("{source} {arrow} {destination}{service}: {sent} {received}")
        };
        let mut told: Vec<String> = joined.iter().map(line).collect();
        told.sort();
        assert_eq!(told, expected);
    }

    #[test]
    fn both_ends_views_of_a_translated_connection_are_one_flow_each_way() {
        let flows = [
            (flow(CLIENT, SERVICE), sent(5, 1, FlowCount::OPENS)),
            (flow(CLIENT, SERVER), received(4, 2)),
            (flow(SERVER, CLIENT), sent(3, 3, 0)),
            (flow(SERVICE, CLIENT), received(2, 4)),
        ];
        let nats = [(flow(CLIENT, SERVICE), flow(CLIENT, SERVER))];
        let expected = [
            "10.1.0.5:40000 asks 10.2.0.5:8080 as 10.96.0.10:80: 5 4",
            "10.2.0.5:8080 answers 10.1.0.5:40000 as 10.96.0.10:80: 3 2",
        ];
        check(&flows, &nats, &[], &expected);
    }

    #[test]
    fn a_sender_behind_masquerading_is_told_and_not_the_node() {
        let flows = [
            (flow(CLIENT, SERVER), sent(5, 1, 0)),
            (flow(NODE, SERVER), received(5, 2)),
            (flow(SERVER, NODE), sent(3, 3, 0)),
        ];
        let nats = [(flow(CLIENT, SERVER), flow(NODE, SERVER))];
        let expected = [
            "10.1.0.5:40000 asks 10.2.0.5:8080: 5 5",
            "10.2.0.5:8080 answers 10.1.0.5:40000: 3 0",
        ];
        check(&flows, &nats, &[], &expected);
    }

    #[test]
    fn a_socket_that_the_hook_sent_to_an_endpoint_tells_its_service() {
        let flows = [
            (flow(CLIENT, SERVER), sent(5, 1, FlowCount::OPENS)),
            (
                flow(SERVER, CLIENT),
                FlowCount {
                    cookie: 8,
                    ..sent(3, 2, 0)
                },
            ),
        ];
        let ((service_addr, service_port), (endpoint_addr, endpoint_port)) = (at(SERVICE), at(SERVER));
        let translated = Translated {
            service_addr,
            endpoint_addr,
            service_port,
            endpoint_port,
        };
        let expected = [
            "10.1.0.5:40000 asks 10.2.0.5:8080 as 10.96.0.10:80: 5 0",
            "10.2.0.5:8080 answers 10.1.0.5:40000 as 10.96.0.10:80: 3 0",
        ];
        check(&flows, &[], &[(7, translated)], &expected);
        // The socket has gone elsewhere since.
        let elsewhere = Translated {
            endpoint_port: Port::new(1),
            ..translated
        };
        let expected = [
            "10.1.0.5:40000 asks 10.2.0.5:8080: 5 0",
            "10.2.0.5:8080 answers 10.1.0.5:40000: 3 0",
        ];
        check(&flows, &[], &[(7, elsewhere)], &expected);
    }

    #[test]
    fn who_began_is_told_by_what_is_known() {
        // Who opened it, though it was seen later.
        let flows = [
            (flow(SERVER, CLIENT), sent(1, 1, 0)),
            (flow(CLIENT, SERVER), sent(1, 2, FlowCount::OPENS)),
        ];
        let expected = [
            "10.1.0.5:40000 asks 10.2.0.5:8080: 1 0",
            "10.2.0.5:8080 answers 10.1.0.5:40000: 1 0",
        ];
        check(&flows, &[], &[], &expected);
        // From the middle, by the ports: also where one direction alone is seen.
        check(&[(flow(SERVER, CLIENT), sent(1, 1, 0))], &[], &[], &expected[1..]);
        // UDP by who was first.
        let udp = |flow: RawFlow| RawFlow { protocol: 17, ..flow };
        let flows = [
            (udp(flow(SERVER, CLIENT)), sent(1, 1, 0)),
            (udp(flow(CLIENT, SERVER)), sent(1, 2, 0)),
        ];
        let expected = [
            "10.1.0.5:40000 answers 10.2.0.5:8080: 1 0",
            "10.2.0.5:8080 asks 10.1.0.5:40000: 1 0",
        ];
        check(&flows, &[], &[], &expected);
    }
}

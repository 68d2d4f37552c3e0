//! Both ends' views of a connection, its translation and its drops become one.

use std::collections::{BTreeMap, HashMap};

use ebpf::abi::net::Ip;
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
}

/// What grew, under its real ends.
pub(super) fn join(counted: &Counted<'_>, clock: Clock, places: &mut Places) -> Vec<Passed> {
    let ends = RealEnds::new(counted.nats);
    let mut known: HashMap<RawFlow, Direction> = HashMap::new();
    for (flow, count) in counted.flows {
        known.entry(ends.of(*flow)).or_default().add(count);
    }
    let mut joined: BTreeMap<RawFlow, Passed> = BTreeMap::new();
    for (flow, count) in counted.grown {
        let real = ends.of(*flow);
        if let Some(passed) = entry(&mut joined, real, &ends, &known, clock) {
            add(passed, count, clock);
        }
    }
    for (key, count) in counted.dropped {
        let kind = kind(key, count, places);
        let is_tunnel =
            key.protocol == Protocol::UDP.0 && VXLAN_PORTS.contains(&key.destination_port.number());
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
            was_sent: key.ifindex != 0,
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
    if !joined.contains_key(&real) {
        let is_reply = is_reply(&real, ends, known);
        let began = if is_reply { real.reversed() } else { real };
        let first = known.get(&real).map_or(0, |direction| direction.first);
        let passed = Passed {
            flow: Flow::of(&real)?,
            service: ends.service(&began),
            is_reply,
            sent: Amount::default(),
            received: Amount::default(),
            first: clock.at(first),
            last: clock.at(first),
            sender: 0,
            receiver: 0,
            cookie: 0,
            tcp_flags: 0,
            drops: Vec::new(),
        };
        joined.insert(real, passed);
    }
    let passed = joined.get_mut(&real)?;
    if let Some(last) = known.get(&real) {
        passed.first = passed.first.min(clock.at(last.first));
    }
    Some(passed)
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
    passed.cookie = passed.cookie.max(count.cookie);
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

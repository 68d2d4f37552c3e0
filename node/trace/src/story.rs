//! What hops mean: which are of one packet, which packets of one connection, and what became of it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::cause::{self, Cause, Scene};
use crate::hop::{Flow, Hop, HopKind, Protocol};
use crate::places::{self, Names};
use crate::service::{Choice, Service};
use crate::session::Filter;

/// The kernel's reasons where a socket was closed before it was read.
const CLOSED_UNREAD: [&str; 2] = ["QUEUE_PURGE", "SOCKET_CLOSE"];

/// What became of the first connection that the filter names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Story {
    /// What became of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Its first packet as it was sent; of a probe that was not seen what was asked for.
    pub flow: Option<Flow>,
    /// Whether a probe was sent for it.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub is_probe: bool,
    /// Why no packet of a probe was seen.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<Cause>,
    /// Time from the request's first hop to the reply's last, in nanoseconds.
    pub round_trip_ns: Option<u64>,
    /// Packets in the order in which they were seen first.
    pub packets: Vec<Packet>,
    /// Other connections that were seen too.
    pub other_connections: usize,
    /// The Service that it goes to, where one was named.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<Choice>,
    /// Whether places in the kernel have no names, since its symbols cannot be read (CAP_SYSLOG, `kptr_restrict`). Drops
    /// are judged by their reasons alone then.
    #[serde(default)]
    pub lacks_symbols: bool,
    /// What was not seen.
    #[serde(flatten)]
    pub gaps: Gaps,
}

/// What a session did not see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gaps {
    /// Events that were lost: where it is not 0, a hop that is missing says nothing.
    pub lost_events: u64,
    /// Packets of the whole machine that were not looked at, since one was just being looked at on that CPU. Most are
    /// nobody's that is followed.
    #[serde(default)]
    pub missed_events: u64,
}

/// A packet on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Packet {
    /// Whether it goes to who sent the first one.
    pub is_reply: bool,
    /// Where it was seen, in order.
    pub hops: Vec<Step>,
}

/// A hop of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Time since the story's first hop, in nanoseconds.
    pub after_ns: u64,
    /// What the network namespace is called.
    pub at: String,
    /// What runs a command there, as [`Names::entering`] has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entering: Option<String>,
    /// What was seen.
    #[serde(flatten)]
    pub hop: Hop,
    /// What it means that it was dropped, or that it left.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<Cause>,
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Verdict {
    /// No packet was seen.
    NothingSeen,
    /// A reply came back to where the first packet was seen first.
    Answered,
    /// What came back is a refusal: RST, or an error by ICMP.
    Refused,
    /// Somebody has had it, and did not answer.
    Delivered,
    /// The first packet was handed to a device, and nothing on this machine had it from there: what became of it another
    /// machine may know.
    Left,
    /// Nobody dropped it, and nobody answered: where it was seen last is where to look.
    Unanswered,
    /// A packet was dropped, and none after it came through in its place.
    Dropped {
        /// Whether it was a reply.
        is_reply: bool,
    },
}

impl Verdict {
    /// Whether something is wrong with it. Of what left this machine that is not known.
    #[must_use]
    pub const fn is_wrong(self) -> bool {
        !matches!(self, Self::Answered | Self::Delivered | Self::Left)
    }
}

impl Story {
    /// Makes a story of what a session saw with this filter, in any order.
    #[must_use]
    pub fn new(filter: &Filter, hops: &[Hop], names: &Names, gaps: Gaps) -> Self {
        let packets = packets(hops);
        let connections = connections(&packets);
        let mut requests = (0..)
            .zip(&packets)
            .filter(|(_, packet)| is_request(filter, packet));
        let first = requests.clone().map(|(at, _)| at).next();
        let begun = requests.find(|(_, packet)| packet.first().is_some_and(begins));
        let request = begun.map(|(at, _)| at).or(first);
        let Some((request, first)) = request.and_then(|at| Some((at, packets.get(at)?.first()?))) else {
            return Self::empty(gaps);
        };
        let own: Vec<&Vec<Hop>> = packets
            .iter()
            .enumerate()
            .filter(|(at, _)| connections.get(at) == connections.get(&request))
            .map(|(_, packet)| packet)
            .collect();
        let start = own
            .iter()
            .filter_map(|packet| packet.first())
            .map(|hop| hop.at_ns);
        let start = start.min().unwrap_or(first.at_ns);
        let told: Vec<Packet> = own
            .iter()
            .map(|packet| Packet::new(packet, first, start, names))
            .collect();
        let arrived = told.iter().find_map(|packet| packet.arrival(&told, first));
        Self {
            verdict: verdict(&told, first),
            flow: Some(first.header.flow),
            is_probe: false,
            cause: None,
            round_trip_ns: arrived.map(|at_ns| at_ns.saturating_sub(first.at_ns)),
            packets: told,
            other_connections: connections.values().collect::<BTreeSet<_>>().len() - 1,
            service: None,
            lacks_symbols: packets.iter().flatten().any(is_bare),
            gaps,
        }
    }

    fn empty(gaps: Gaps) -> Self {
        Self {
            verdict: Verdict::NothingSeen,
            flow: None,
            is_probe: false,
            cause: None,
            round_trip_ns: None,
            packets: Vec::new(),
            other_connections: 0,
            service: None,
            lacks_symbols: false,
            gaps,
        }
    }

    /// The step at which a packet was dropped, where the verdict is that or a refusal.
    #[must_use]
    pub fn drop(&self) -> Option<&Step> {
        let wanted = match self.verdict {
            Verdict::Dropped { is_reply } => is_reply,
            Verdict::Refused => false,
            _ => return None,
        };
        let mut packets = self.packets.iter().filter(|packet| packet.is_reply == wanted);
        packets.find_map(Packet::dropped)
    }

    /// Where the first packet left this machine, where the verdict is that.
    #[must_use]
    pub fn left(&self) -> Option<&Step> {
        let mut requests = self.packets.iter().filter(|packet| !packet.is_reply);
        let first = requests.next().filter(|_| self.verdict == Verdict::Left)?;
        first.departure()
    }

    /// The packet that says that the connection is not wanted, where it was first seen.
    #[must_use]
    pub fn refusal(&self) -> Option<&Step> {
        let mut packets = self.packets.iter();
        let refusal = packets.find(|packet| packet.is_reply && packet.refuses())?;
        refusal.hops.first().filter(|_| self.verdict == Verdict::Refused)
    }

    /// Where a packet was seen last that nobody dropped and nobody took.
    #[must_use]
    pub fn stuck(&self) -> Option<&Step> {
        let last = self.last_step(true).or_else(|| self.last_step(false))?;
        let is_under_way = matches!(last.hop.kind, HopKind::Sent | HopKind::Received);
        (self.verdict == Verdict::Unanswered && is_under_way).then_some(last)
    }

    /// It is that of a probe. Where no packet of it was seen, it was sent all the same, or its socket was refused.
    #[must_use]
    pub fn of_probe(mut self, flow: Flow, is_refused: bool) -> Self {
        self.is_probe = true;
        if self.verdict == Verdict::NothingSeen {
            self.flow = Some(flow);
            if is_refused {
                self.verdict = Verdict::Refused;
            }
        }
        self
    }

    /// Asks why no packet of a probe was seen, where that is so.
    pub fn explain_unseen(&mut self, cause: impl FnOnce() -> Option<Cause>) {
        if self.packets.is_empty() {
            self.cause = cause();
        }
    }

    /// Asks for the cause of what the verdict says of a packet: where it was dropped, where it left, or where it was seen
    /// last. The kernel's words stay where nobody knows better.
    pub fn explain_end(&mut self, cause: impl FnOnce(&Step, &Packet) -> Option<Cause>) {
        let end = self.drop().or_else(|| self.left()).or_else(|| self.stuck());
        let Some(end) = end.cloned() else {
            return;
        };
        let mut packets = self.packets.iter_mut();
        let Some(packet) = packets.find(|packet| packet.hops.contains(&end)) else {
            return;
        };
        let Some(cause) = cause(&end, packet) else { return };
        let step = packet.hops.iter_mut().find(|step| **step == end);
        step.into_iter().for_each(|step| step.cause = Some(cause.clone()));
    }

    /// Says which endpoint of a Service the packets went to.
    #[must_use]
    pub fn to_service(mut self, service: &Service) -> Self {
        self.service = Some(service.choice(&self.packets));
        self
    }

    /// Where the first packet, or the first reply, was seen last.
    #[must_use]
    pub fn last_step(&self, is_reply: bool) -> Option<&Step> {
        let mut packets = self.packets.iter();
        packets.find(|packet| packet.is_reply == is_reply)?.hops.last()
    }

    /// Whether it has the connection's beginning.
    fn begins(&self) -> bool {
        let requests = self.packets.iter().filter(|packet| !packet.is_reply);
        let mut first_hops = requests.filter_map(|packet| packet.hops.first());
        first_hops.any(|step| begins(&step.hop))
    }

    /// Whether nothing more need come: a reply to how a connection begins did, or a refusal and what it is for. Of one
    /// that was there already, another one may tell more.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match self.verdict {
            Verdict::Answered => self.begins(),
            Verdict::Refused => self.drop().is_some(),
            _ => false,
        }
    }
}

impl Step {
    /// A command that tells of the network namespace, as it runs from here.
    #[must_use]
    pub fn command(&self, command: &str) -> String {
        places::command_at(command, self.entering.as_deref(), &self.at)
    }

    /// What causes are told of.
    #[must_use]
    pub fn scene(&self) -> Scene<'_> {
        Scene::of(&self.hop, &self.at, self.entering.as_deref())
    }
}

impl Packet {
    fn new(hops: &[Hop], request: &Hop, start: u64, names: &Names) -> Self {
        // A copy that somebody let go of, since the packet went on as another one, is none of its ends.
        let went_on = |at: usize| hops.len() > at + 1;
        let is_copy =
            |(at, hop): &(usize, &Hop)| matches!(hop.kind, HopKind::Consumed { .. }) && went_on(*at);
        let kept = hops.iter().enumerate().filter(|numbered| !is_copy(numbered));
        let steps = kept.map(|(_, hop)| Step {
            after_ns: hop.at_ns.saturating_sub(start),
            at: names.of_netns(hop.netns),
            entering: names.entering.get(&hop.netns).cloned(),
            cause: None,
            hop: hop.clone(),
        });
        let steps = steps.map(|step| Step {
            cause: match &step.hop.kind {
                HopKind::Dropped { reason, place } => cause::of(reason, place, &step.scene()),
                _ => None,
            },
            ..step
        });
        Self {
            is_reply: is_reply(hops, request),
            hops: steps.collect(),
        }
    }

    /// Where it was dropped, if no copy of it went on. What a socket had already is not dropped.
    #[must_use]
    pub fn dropped(&self) -> Option<&Step> {
        let last = self.hops.last()?;
        match &last.hop.kind {
            HopKind::Dropped { reason, .. } if !CLOSED_UNREAD.contains(&reason.as_str()) => Some(last),
            _ => None,
        }
    }

    /// When a reply had come to who sent the request, in nanoseconds of its node: it was seen there, or it was
    /// acknowledged. What programs redirect into a namespace (`bpf_redirect_peer`) passes no tracepoint there.
    fn arrival(&self, packets: &[Self], request: &Hop) -> Option<u64> {
        let seen = self.came_back_to(request).map(|step| step.hop.at_ns);
        let acknowledged = || {
            let is_tcp = request.header.flow.protocol == Protocol::TCP;
            let mut requests = packets.iter().filter(|packet| !packet.is_reply);
            let by = requests.find(|packet| is_tcp && self.is_reply && self.is_acknowledged_by(packet))?;
            Some(by.hops.first()?.hop.at_ns)
        };
        seen.or_else(acknowledged)
    }

    /// Where a reply came to the place that the request was seen at first.
    fn came_back_to(&self, request: &Hop) -> Option<&Step> {
        let is_there = |step: &&Step| {
            let hop = &step.hop;
            hop.netns == request.netns
                && hop.device == request.device
                && matches!(hop.kind, HopKind::Sent | HopKind::Received)
        };
        self.hops.iter().filter(|_| self.is_reply).find(is_there)
    }

    /// The last device that had it, if it was handed to that one and came out of none.
    fn departure(&self) -> Option<&Step> {
        let mut steps = self.hops.iter().rev();
        let last = steps.find(|step| matches!(step.hop.kind, HopKind::Sent | HopKind::Received))?;
        (last.hop.kind == HopKind::Sent && self.dropped().is_none()).then_some(last)
    }

    /// Whether it only ends a connection: it says so, or its socket was closed already.
    pub(crate) fn ends_connection(&self) -> bool {
        let first = self.hops.first();
        let says_so = first.is_some_and(|step| {
            let what = &step.hop.header.what;
            what.contains("FIN") || what.contains("RST")
        });
        let is_unwanted = self.hops.last().is_some_and(|step| match &step.hop.kind {
            HopKind::Dropped { reason, .. } => {
                CLOSED_UNREAD.contains(&reason.as_str()) || is_by_receiver(step)
            }
            _ => false,
        });
        says_so || is_unwanted
    }

    /// Whether somebody has had it. A bridge passes packets on, and lets go of what it has copied.
    fn is_consumed(&self) -> bool {
        let last = self.hops.last();
        last.is_some_and(|step| match &step.hop.kind {
            HopKind::Consumed { place } => !place.starts_with("br_"),
            _ => false,
        })
    }

    /// Whether it is the first packet of a connection of TCP.
    fn asks_for_connection(&self) -> bool {
        let header = self.hops.first().map(|step| &step.hop.header);
        header.is_some_and(|header| header.flow.protocol == Protocol::TCP && header.what == "SYN")
    }

    /// Whether this reply says that the connection is not wanted.
    pub(crate) fn refuses(&self) -> bool {
        let header = self.hops.first().map(|step| &step.hop.header);
        header.is_some_and(|header| match header.flow.protocol {
            Protocol::TCP => header.what.contains("RST"),
            Protocol::ICMP | Protocol::ICMP_V6 => !header.what.starts_with("echo"),
            _ => false,
        })
    }

    /// Whether a reply says that this packet has arrived, or one in its place.
    fn is_acknowledged_by(&self, reply: &Self) -> bool {
        let headers = self.hops.first().zip(reply.hops.first());
        headers.is_some_and(|(own, other)| match own.hop.header.flow.protocol {
            Protocol::TCP => {
                let ahead = other
                    .hop
                    .header
                    .acknowledgement
                    .wrapping_sub(own.hop.header.sequence);
                // RFC 9293 §3.4: numbers are compared in a window of half of them.
                other.hop.header.what.contains("ACK") && (1..1 << 31).contains(&ahead)
            }
            _ => other.hop.at_ns > own.hop.at_ns,
        })
    }
}

fn verdict(packets: &[Packet], request: &Hop) -> Verdict {
    let arrived = |packet: &&Packet| packet.arrival(packets, request).is_some();
    // Nobody acknowledges a refusal.
    let refused = |packet: &&Packet| packet.is_reply && packet.refuses() && packet.dropped().is_none();
    let reply = packets.iter().find(arrived).or(packets.iter().find(refused));
    let Some(reply) = reply else {
        return unanswered(packets);
    };
    if reply.refuses() {
        return Verdict::Refused;
    }
    let is_lost = |packet: &&Packet| {
        packet.dropped().is_some_and(|step| !is_by_receiver(step))
            && !packets
                .iter()
                .filter(|other| other.is_reply != packet.is_reply)
                .any(|other| packet.is_acknowledged_by(other))
    };
    match packets.iter().find(is_lost) {
        Some(packet) => Verdict::Dropped {
            is_reply: packet.is_reply,
        },
        None => Verdict::Answered,
    }
}

fn unanswered(packets: &[Packet]) -> Verdict {
    let dropped = |is_reply| {
        let mut of_kind = packets.iter().filter(|packet| packet.is_reply == is_reply);
        of_kind.any(|packet| packet.dropped().is_some())
    };
    if dropped(true) {
        Verdict::Dropped { is_reply: true }
    } else if dropped(false) {
        Verdict::Dropped { is_reply: false }
    } else {
        without_reply(packets)
    }
}

/// What became of the requests that nobody dropped.
fn without_reply(packets: &[Packet]) -> Verdict {
    let mut requests = packets.iter().filter(|packet| !packet.is_reply);
    let has_reply = packets.iter().any(|packet| packet.is_reply);
    let first_left = requests
        .clone()
        .next()
        .is_some_and(|first| first.departure().is_some());
    let is_taken = |packet: &&Packet| packet.is_consumed() && packet.departure().is_none();
    if let Some(taken) = requests.find(is_taken) {
        // Who has taken the opening of a connection always says something, if it can.
        if !has_reply && taken.asks_for_connection() {
            Verdict::Unanswered
        } else {
            Verdict::Delivered
        }
    } else if first_left && !has_reply {
        Verdict::Left
    } else {
        Verdict::Unanswered
    }
}

/// Whether TCP itself had no use for a packet of a connection that works: what is old, or behind its end. Where the place
/// has no name, the reasons are taken for its own that its functions give (net/ipv4/tcp_input.c, tcp_ipv4.c).
fn is_by_receiver(step: &Step) -> bool {
    let HopKind::Dropped { reason, place } = &step.hop.kind else {
        return false;
    };
    if !places::is_bare(place) {
        return place.starts_with("tcp_");
    }
    let is_own = ["NOT_SPECIFIED", "NO_SOCKET", "SOCKET_", "TCP_", "PROTO_MEM"]
        .iter()
        .any(|own| reason.starts_with(own));
    is_own && step.hop.header.flow.protocol == Protocol::TCP
}

fn is_bare(hop: &Hop) -> bool {
    match &hop.kind {
        HopKind::Dropped { place, .. } | HopKind::Consumed { place } => places::is_bare(place),
        HopKind::Sent | HopKind::Received => false,
    }
}

/// Hops by packet, each in the order of time, the packets in that of their first hops.
fn packets(hops: &[Hop]) -> Vec<Vec<Hop>> {
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
            Some((at, packet)) if !passes_again(packet, hop) && !goes_back(packet, hop) => {
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
fn begins(hop: &Hop) -> bool {
    hop.header.flow.protocol != Protocol::TCP || hop.header.what == "SYN"
}

/// Whether a hop goes the other way than the packet: a datagram that is answered by the same bytes.
fn goes_back(packet: &[Hop], hop: &Hop) -> bool {
    let back = hop.header.flow.reversed();
    back != hop.header.flow && packet.iter().any(|earlier| earlier.header.flow == back)
}

/// The number of each packet's connection: packets are of one if they share a flow, under any name that NAT gives it.
fn connections(packets: &[Vec<Hop>]) -> BTreeMap<usize, usize> {
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
fn flows(hop: &Hop) -> impl Iterator<Item = Flow> {
    let tracked = hop
        .connection
        .map(|connection| [connection.original, connection.reply]);
    [hop.header.flow].into_iter().chain(tracked.into_iter().flatten())
}

/// Whether a packet goes from the filter's sources to its targets.
fn is_request(filter: &Filter, packet: &[Hop]) -> bool {
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
fn is_reply(packet: &[Hop], request: &Hop) -> bool {
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

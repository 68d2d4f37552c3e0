//! What hops mean: which are of one packet, which packets of one connection, and what became of it.
//!
//! - [`packets`]: which hops are of one packet, and which packets of one connection.
//! - [`packet`]: what the hops of one say.
//! - [`verdict`]: what became of the connection.
//! - [`joined`]: one story of what several machines saw.

mod joined;
mod packet;
mod packets;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::hop::{Flow, Hop, HopKind};
use crate::places::{self, Names};
use crate::service::{Choice, Service};
use crate::session::Filter;
pub use packet::{Packet, Step};

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
    /// Where a packet went that no machine had from there, in a story of several: the verdict says which one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub gone: Option<Gone>,
    /// The machines of a story of several; none of one.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub nodes: Vec<Witness>,
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

/// Where a packet went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// The node that it left.
    pub from: String,
    /// The address on the wire that it was sent to: of a tunnel's other end, where it is wrapped.
    pub towards: IpAddr,
    /// The node that has this address and saw nothing; none where no node that was asked has it, or would have seen it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub to: Option<String>,
}

/// A machine of a story of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Witness {
    /// Its name.
    pub node: String,
    /// How many hops of the story it saw.
    pub hops: usize,
    /// What it did not see.
    #[serde(flatten)]
    pub gaps: Gaps,
    /// Why what it saw is not known, or not all of it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub missing: Option<String>,
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
    /// A packet left one machine for another one, which saw nothing of it. Only a story of several tells.
    Lost {
        /// Whether it was a reply.
        is_reply: bool,
    },
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
        let at = |hop: &Hop| (names.of_netns(hop.netns), names.entering.get(&hop.netns).cloned());
        Self::of(filter, &packets::packets(hops), at, gaps)
    }

    /// The same of hops that are packets already, in the order in which they were seen first. `at`: what a hop's network
    /// namespace is called, and what enters it.
    fn of(
        filter: &Filter,
        packets: &[Vec<Hop>],
        at: impl Fn(&Hop) -> (String, Option<String>),
        gaps: Gaps,
    ) -> Self {
        let connections = packets::connections(packets);
        let mut requests = (0..)
            .zip(packets)
            .filter(|(_, packet)| packets::is_request(filter, packet));
        let first = requests.clone().map(|(at, _)| at).next();
        let begun = requests.find(|(_, packet)| packet.first().is_some_and(packets::begins));
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
        let mut starts: BTreeMap<&str, u64> = BTreeMap::new();
        for hop in own.iter().copied().flatten() {
            let start = starts.entry(&hop.node).or_insert(hop.at_ns);
            *start = hop.at_ns.min(*start);
        }
        let step = |hop: &Hop| {
            let start = starts.get(hop.node.as_str()).copied().unwrap_or(hop.at_ns);
            Step::new(hop, start, at(hop))
        };
        let told: Vec<Packet> = own
            .iter()
            .map(|packet| Packet::new(packet, packets::is_reply(packet, first), step))
            .collect();
        let arrived = told.iter().find_map(|packet| packet.arrival(&told, first));
        let arrived = arrived.filter(|step| step.hop.node == first.node);
        Self {
            verdict: verdict::verdict(&told, first),
            flow: Some(first.header.flow),
            round_trip_ns: arrived.map(|step| step.hop.at_ns.saturating_sub(first.at_ns)),
            other_connections: connections.values().collect::<BTreeSet<_>>().len() - 1,
            lacks_symbols: packets.iter().flatten().any(is_bare),
            packets: told,
            ..Self::empty(gaps)
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
            gone: None,
            nodes: Vec::new(),
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

    /// Where the first packet left this machine, or was seen last before it was lost between two, where the verdict is that.
    #[must_use]
    pub fn left(&self) -> Option<&Step> {
        let is_reply = match self.verdict {
            Verdict::Left => false,
            Verdict::Lost { is_reply } => is_reply,
            _ => return None,
        };
        self.departure(is_reply)
    }

    /// Where the first request, or the first reply, was seen last, if a device had it there and none after it.
    fn departure(&self, is_reply: bool) -> Option<&Step> {
        let mut packets = self.packets.iter();
        packets.find(|packet| packet.is_reply == is_reply)?.departure()
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
        first_hops.any(|step| packets::begins(&step.hop))
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

fn is_bare(hop: &Hop) -> bool {
    match &hop.kind {
        HopKind::Dropped { place, .. } | HopKind::Consumed { place } => places::is_bare(place),
        HopKind::Sent | HopKind::Received => false,
    }
}

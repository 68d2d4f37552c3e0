//! A packet on its way, and what its hops say of it.

use serde::{Deserialize, Serialize};

use crate::cause::{self, Cause, Scene};
use crate::hop::{Hop, HopKind, Protocol};
use crate::places;

/// The kernel's reasons where a socket was closed before it was read.
const CLOSED_UNREAD: [&str; 2] = ["QUEUE_PURGE", "SOCKET_CLOSE"];

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
    /// Time since the story's first hop of the same node, in nanoseconds: clocks of nodes are not compared.
    pub after_ns: u64,
    /// What the network namespace is called.
    pub at: String,
    /// What runs a command there, as [`Names::entering`](crate::Names::entering) has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entering: Option<String>,
    /// What was seen.
    #[serde(flatten)]
    pub hop: Hop,
    /// What it means that it was dropped, or that it left.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<Cause>,
}

impl Step {
    /// Of a hop in a namespace with a name and what enters it, where the story's first hop of the node was at `start`.
    pub(super) fn new(hop: &Hop, start: u64, (at, entering): (String, Option<String>)) -> Self {
        let step = Self {
            after_ns: hop.at_ns.saturating_sub(start),
            at,
            entering,
            cause: None,
            hop: hop.clone(),
        };
        Self {
            cause: match &step.hop.kind {
                HopKind::Dropped { reason, place } => cause::of(reason, place, &step.scene()),
                _ => None,
            },
            ..step
        }
    }

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
    /// Of these hops, in order.
    pub(super) fn new(hops: &[Hop], is_reply: bool, step: impl Fn(&Hop) -> Step) -> Self {
        // A copy that somebody let go of, since the packet went on as another one, is none of its ends.
        let went_on = |at: usize| hops.len() > at + 1;
        let is_copy =
            |(at, hop): &(usize, &Hop)| matches!(hop.kind, HopKind::Consumed { .. }) && went_on(*at);
        let kept = hops.iter().enumerate().filter(|numbered| !is_copy(numbered));
        Self {
            is_reply,
            hops: kept.map(|(_, hop)| step(hop)).collect(),
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

    /// Where a reply had come to who sent the request: it was seen there, or it was acknowledged from there. What programs
    /// redirect into a namespace (`bpf_redirect_peer`) passes no tracepoint there.
    pub(super) fn arrival<'p>(&'p self, packets: &'p [Self], request: &Hop) -> Option<&'p Step> {
        let acknowledged = || {
            let is_tcp = request.header.flow.protocol == Protocol::TCP;
            let mut requests = packets.iter().filter(|packet| !packet.is_reply);
            let by = requests.find(|packet| is_tcp && self.is_reply && self.is_acknowledged_by(packet))?;
            by.hops.first()
        };
        self.came_back_to(request).or_else(acknowledged)
    }

    /// Where a reply came to the place that the request was seen at first.
    fn came_back_to(&self, request: &Hop) -> Option<&Step> {
        let is_there = |step: &&Step| {
            let hop = &step.hop;
            (&hop.node, hop.netns) == (&request.node, request.netns)
                && hop.device == request.device
                && matches!(hop.kind, HopKind::Sent | HopKind::Received)
        };
        self.hops.iter().filter(|_| self.is_reply).find(is_there)
    }

    /// The last device that had it, if it was handed to that one and came out of none.
    pub(super) fn departure(&self) -> Option<&Step> {
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
    pub(super) fn is_consumed(&self) -> bool {
        let last = self.hops.last();
        last.is_some_and(|step| match &step.hop.kind {
            HopKind::Consumed { place } => !place.starts_with("br_"),
            _ => false,
        })
    }

    /// Whether it is the first packet of a connection of TCP.
    pub(super) fn asks_for_connection(&self) -> bool {
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

    /// Whether a packet of TCP from the other end says that this one has arrived, or one in its place.
    pub(super) fn is_acknowledged_by(&self, reply: &Self) -> bool {
        let headers = self.hops.first().zip(reply.hops.first());
        headers.is_some_and(|(own, other)| {
            let (own, other) = (&own.hop.header, &other.hop.header);
            let ahead = other.acknowledgement.wrapping_sub(own.sequence);
            // RFC 9293 §3.4: numbers are compared in a window of half of them.
            other.what.contains("ACK") && (1..1 << 31).contains(&ahead)
        })
    }

    /// Whether it says the same as another one.
    pub(super) fn repeats(&self, other: &Self) -> bool {
        let headers = self.hops.first().zip(other.hops.first());
        self.is_reply == other.is_reply
            && headers.is_some_and(|(own, other)| {
                let (own, other) = (&own.hop.header, &other.hop.header);
                (&own.what, own.sequence) == (&other.what, other.sequence)
            })
    }

    /// Whether it is of TCP.
    pub(super) fn is_tcp(&self) -> bool {
        let first = self.hops.first();
        first.is_some_and(|step| step.hop.header.flow.protocol == Protocol::TCP)
    }
}

/// Whether TCP itself had no use for a packet of a connection that works: what is old, or behind its end. Where the place
/// has no name, the reasons are taken for its own that its functions give (net/ipv4/tcp_input.c, tcp_ipv4.c).
pub(super) fn is_by_receiver(step: &Step) -> bool {
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

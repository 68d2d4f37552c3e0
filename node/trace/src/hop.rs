//! What was seen of a packet at one place.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ebpf::abi::trace::{Event, Fingerprint, Flow as RawFlow, Header as RawHeader};
use serde::{Deserialize, Serialize};

use crate::places::Places;

/// What was seen of a packet at one place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// When, in nanoseconds since boot without suspend (`CLOCK_MONOTONIC`) of the node.
    pub at_ns: u64,
    /// The packet, as long as it stays in the same memory: when it was seen first.
    pub packet: u64,
    /// The node's name.
    pub node: String,
    /// Inode number of the network namespace; 0: not known.
    pub netns: u32,
    /// The device; empty where the packet is at none.
    pub device: String,
    /// What happened.
    #[serde(flatten)]
    pub kind: HopKind,
    /// The packet's own headers.
    pub header: Header,
    /// What it is wrapped in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wrapping: Option<Wrapping>,
    /// The connection that the kernel tracks it in; of an error by ICMP that it does not track, that of the packet which the
    /// error quotes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connection: Option<Connection>,
}

/// What happened to a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum HopKind {
    /// It was handed to a device.
    Sent,
    /// It came from a device.
    Received,
    /// It was dropped.
    Dropped {
        /// The kernel's name for why (`enum skb_drop_reason`), without its prefix.
        reason: String,
        /// The kernel's function that dropped it; an address where functions have no names.
        place: String,
    },
    /// It ended as it should: a socket or a device has had it.
    Consumed {
        /// The kernel's function that ended it.
        place: String,
    },
}

/// Who sends to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Flow {
    /// The sender; port 0 where the protocol has none.
    pub source: SocketAddr,
    /// The receiver.
    pub destination: SocketAddr,
    /// Protocol of layer 4.
    pub protocol: Protocol,
}

/// A protocol of layer 4, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Protocol(pub u8);

impl Protocol {
    /// TCP.
    pub const TCP: Self = Self(6);
    /// UDP.
    pub const UDP: Self = Self(17);
    /// ICMP of IPv4.
    pub const ICMP: Self = Self(1);
    /// ICMP of IPv6.
    pub const ICMP_V6: Self = Self(58);
    /// SCTP.
    pub const SCTP: Self = Self(132);

    const NAMES: [(Self, &'static str); 5] = [
        (Self::TCP, "tcp"),
        (Self::UDP, "udp"),
        (Self::ICMP, "icmp"),
        (Self::ICMP_V6, "icmpv6"),
        (Self::SCTP, "sctp"),
    ];

    /// The protocol of that name or number.
    #[must_use]
    pub fn named(text: &str) -> Option<Self> {
        let text = text.to_ascii_lowercase();
        let known = Self::NAMES.into_iter().find(|(_, name)| *name == text);
        known
            .map(|(protocol, _)| protocol)
            .or_else(|| text.parse().ok().map(Self))
    }

    /// Whether its packets have ports.
    #[must_use]
    pub const fn has_ports(self) -> bool {
        matches!(self, Self::TCP | Self::UDP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.into_iter().find(|(protocol, _)| protocol == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl From<Protocol> for String {
    fn from(protocol: Protocol) -> Self {
        protocol.to_string()
    }
}

impl TryFrom<String> for Protocol {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::named(&text).ok_or_else(|| format!("no protocol is called {text}"))
    }
}

/// What the headers of a packet say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Who sends to whom.
    #[serde(flatten)]
    pub flow: Flow,
    /// What the packet is: TCP's flags, ICMP's type and code; empty for others.
    pub what: String,
    /// Identification of IPv4; 0 of IPv6.
    pub ip_id: u32,
    /// TCP: sequence number. ICMP: identifier and sequence. UDP: the first four bytes that it carries.
    pub sequence: u32,
    /// TCP: acknowledgement. UDP: the next four bytes.
    pub acknowledgement: u32,
    /// Length in bytes from the IP header on.
    pub length: u32,
    /// Hops that are left.
    pub ttl: u8,
}

/// VXLAN around a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrapping {
    /// The network identifier.
    pub vni: u32,
    /// The outer headers.
    #[serde(flatten)]
    pub flow: Flow,
}

/// A connection as the kernel tracks it. Where the second is not the first reversed, there is NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// As it began.
    pub original: Flow,
    /// As it is answered.
    pub reply: Flow,
}

impl Connection {
    /// Whether addresses or ports are translated.
    #[must_use]
    pub fn is_translated(&self) -> bool {
        self.original != self.reply.reversed()
    }

    /// Whether a packet with these ends goes the way that it began: each of them may be translated already, or not yet.
    #[must_use]
    pub fn began_with(&self, flow: &Flow) -> bool {
        [self.original.source, self.reply.destination].contains(&flow.source)
            && [self.original.destination, self.reply.source].contains(&flow.destination)
    }
}

impl Flow {
    /// The other direction.
    #[must_use]
    pub const fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            protocol: self.protocol,
        }
    }

    /// The same for both directions.
    #[must_use]
    pub fn canonical(self) -> Self {
        self.min(self.reversed())
    }

    pub(crate) fn of(raw: &RawFlow) -> Option<Self> {
        let protocol = Protocol(
            u8::try_from(raw.protocol)
                .ok()
                .filter(|protocol| *protocol != 0)?,
        );
        let end = |address, port| SocketAddr::new(IpAddr::from(address), port);
        // Connection tracking keeps ICMP's identifier, type and code in the place of ports.
        let port = |port: ebpf::abi::net::Port| if protocol.has_ports() { port.number() } else { 0 };
        Some(Self {
            source: end(raw.source, port(raw.source_port)),
            destination: end(raw.destination, port(raw.destination_port)),
            protocol,
        })
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.protocol.has_ports() {
            write!(f, "{} -> {}", self.source, self.destination)
        } else {
            write!(f, "{} -> {}", self.source.ip(), self.destination.ip())
        }
    }
}

impl Header {
    fn of(raw: &RawHeader) -> Option<Self> {
        let flow = Flow::of(&raw.flow)?;
        let Fingerprint {
            id, first, second, ..
        } = raw.fingerprint;
        Some(Self {
            flow,
            what: match flow.protocol {
                Protocol::TCP => tcp_flags(raw.tcp_flags),
                Protocol::ICMP => icmp_type(raw.icmp_type, raw.icmp_code),
                Protocol::ICMP_V6 => icmp_v6_type(raw.icmp_type, raw.icmp_code),
                _ => String::new(),
            },
            ip_id: id,
            sequence: u32::from_be(first),
            acknowledgement: u32::from_be(second),
            length: raw.length,
            ttl: raw.ttl,
        })
    }
}

impl Hop {
    /// What an event says; `None` where it has no headers.
    pub(crate) fn of(event: &Event, node: &str, places: &mut Places) -> Option<Self> {
        let header = Header::of(event.innermost())?;
        let wrapping = Header::of(&event.inner).and_then(|_| Flow::of(&event.outer.flow));
        let (original, reply) = (Flow::of(&event.original), Flow::of(&event.reply));
        let connection = original.zip(reply);
        let name = event.device.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Self {
            at_ns: event.time,
            packet: event.packet,
            node: node.to_owned(),
            netns: event.netns,
            device: String::from_utf8_lossy(name).into_owned(),
            kind: match event.kind {
                Event::SENT => HopKind::Sent,
                Event::RECEIVED => HopKind::Received,
                Event::DROPPED => HopKind::Dropped {
                    reason: places.reason(event.reason),
                    place: places.function(event.location),
                },
                _ => HopKind::Consumed {
                    place: places.function(event.location),
                },
            },
            header,
            wrapping: wrapping.map(|flow| Wrapping { vni: event.vni, flow }),
            // The connection of a wrapped packet is that of its wrapping.
            connection: connection
                .filter(|_| wrapping.is_none())
                .map(|(original, reply)| Connection { original, reply }),
        })
    }

    /// What stays the same in a packet on its way, whoever translates or wraps it.
    #[must_use]
    pub fn fingerprint(&self) -> impl Ord + '_ {
        let Header {
            flow,
            what,
            ip_id,
            sequence,
            acknowledgement,
            ..
        } = &self.header;
        (flow.protocol, *ip_id, *sequence, *acknowledgement, what.as_str())
    }
}

/// The flags that are set (RFC 9293 §3.1).
#[must_use]
pub fn tcp_flags(flags: u8) -> String {
    const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
    let set = (0..)
        .zip(NAMES)
        .filter(|(bit, _)| flags & 1 << bit != 0)
        .map(|(_, name)| name);
    set.collect::<Vec<_>>().join(",")
}

/// RFC 792.
fn icmp_type(kind: u8, code: u8) -> String {
    match (kind, code) {
        (0, _) => "echo reply".to_owned(),
        (8, _) => "echo request".to_owned(),
        (3, 0) => "network unreachable".to_owned(),
        (3, 1) => "host unreachable".to_owned(),
        (3, 2) => "protocol unreachable".to_owned(),
        (3, 3) => "port unreachable".to_owned(),
        (3, 4) => "fragmentation needed".to_owned(),
        (3, 9 | 10 | 13) => "administratively prohibited".to_owned(),
        (11, _) => "time exceeded".to_owned(),
        (kind, code) => format!("type {kind} code {code}"),
    }
}

/// RFC 4443.
fn icmp_v6_type(kind: u8, code: u8) -> String {
    match (kind, code) {
        (128, _) => "echo request".to_owned(),
        (129, _) => "echo reply".to_owned(),
        (1, 0) => "no route".to_owned(),
        (1, 1 | 5 | 6) => "administratively prohibited".to_owned(),
        (1, 3) => "address unreachable".to_owned(),
        (1, 4) => "port unreachable".to_owned(),
        (2, _) => "packet too big".to_owned(),
        (3, _) => "time exceeded".to_owned(),
        (kind, code) => format!("type {kind} code {code}"),
    }
}

//! Connection tracking: listing flows and deleting single ones, and how full its table is.
//!
//! Sources: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`, `net/netfilter/nf_conntrack_netlink.c`.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::nfnetlink::{self, Message, attribute, body, flag};
use crate::nft::Family;
use crate::sysctl;

/// `NFNL_SUBSYS_CTNETLINK`.
const SUBSYSTEM: u16 = 1;
const GET: u16 = SUBSYSTEM << 8 | 1;
const DELETE: u16 = SUBSYSTEM << 8 | 2;
/// `AF_UNSPEC`.
const EVERY_FAMILY: u8 = 0;
const ATTEMPTS: usize = 10;

/// Source and destination of the packets of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
}

/// A tracked flow of a protocol with ports (TCP, UDP, SCTP and the like).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// As the first packet was sent.
    pub original: Tuple,
    /// As answers are expected, translation included: after destination NAT its source is the endpoint.
    pub reply: Tuple,
    /// Whether a packet of an answer was seen.
    pub answered: bool,
    /// The kernel's attributes that name exactly this flow (tuple, zone, id), for its deletion.
    identity: Vec<(u16, Vec<u8>)>,
}

/// What is read of a flow first, so that the rest need not be where it is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// IP protocol number.
    pub protocol: u8,
    /// Whether a packet of an answer was seen.
    pub answered: bool,
}

/// How full the table of a network namespace is. What does not fit is dropped, unless an entry goes for it that was not
/// answered (`early_drop`, net/netfilter/nf_conntrack_core.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Connections that it has.
    pub tracked: u64,
    /// Connections that it may have.
    pub most: u64,
}

impl Usage {
    /// That of the calling thread's network namespace. None where nothing is tracked, or there is no bound.
    #[must_use]
    pub fn read() -> Option<Self> {
        let number = |name: &str| {
            let text = sysctl::read(&format!("net/netfilter/nf_conntrack_{name}")).ok()?;
            text.parse().ok()
        };
        let (tracked, most) = (number("count")?, number("max")?);
        (most != 0).then_some(Self { tracked, most })
    }

    /// Whether there is no room for another one.
    #[must_use]
    pub const fn is_full(self) -> bool {
        self.tracked >= self.most
    }

    /// Whether so many hundredths of it, or more, are taken.
    #[must_use]
    pub const fn has_reached(self, percent: u64) -> bool {
        self.tracked.saturating_mul(100) >= self.most.saturating_mul(percent)
    }
}

/// Why conntrack did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("open a netfilter socket")]
    Open(#[source] io::Error),
    /// The list could not be read.
    #[error("list tracked connections")]
    List(#[source] io::Error),
    /// A flow could not be deleted.
    #[error("delete the tracked connection to {}", .flow.original.destination)]
    Delete {
        /// The flow.
        flow: Box<Flow>,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// A connection to conntrack in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Conntrack {
    socket: nfnetlink::Socket,
}

impl Conntrack {
    /// Opens a connection.
    pub fn open() -> Result<Self, Error> {
        let socket = nfnetlink::Socket::open(0).map_err(Error::Open)?;
        Ok(Self { socket })
    }

    /// The flows, IPv4 and IPv6, for which both are true. The kernel walks through all that it tracks, which takes some
    /// milliseconds even where that is little. Its own filter of dumps is not used: what does not match fills no
    /// answer, so that it walks through everything at once, and no packet passes on that CPU meanwhile (60 ms with
    /// 200,000 flows, where the answers of a whole dump take 0.3 ms each).
    pub fn flows(
        &mut self,
        is_worth_reading: impl Fn(Glance) -> bool,
        is_wanted: impl Fn(&Flow) -> bool,
    ) -> Result<Vec<Flow>, Error> {
        let request = Message::new(GET, flag::DUMP, EVERY_FAMILY, 0);
        let mut attempt = 0;
        loop {
            let mut flows = Vec::new();
            attempt += 1;
            let result = self.socket.dump(&request, |_, payload| {
                let payload = body(payload);
                if Glance::decode(payload).is_some_and(&is_worth_reading) {
                    flows.extend(Flow::decode(payload).filter(&is_wanted));
                }
                Ok(())
            });
            match result {
                Ok(()) => return Ok(flows),
                Err(error) if error.kind() == io::ErrorKind::Interrupted && attempt < ATTEMPTS => {}
                Err(error) => return Err(Error::List(error)),
            }
        }
    }

    /// Forgets a flow: its next packet is a new connection. One that is gone already is fine.
    pub fn delete(&mut self, flow: &Flow) -> Result<(), Error> {
        let family = Family::of(flow.original.destination.ip());
        let mut request = Message::new(DELETE, flag::ACK, family as u8, 0);
        for (kind, value) in &flow.identity {
            let nested = if *kind == TUPLE_ORIGINAL { NESTED } else { 0 };
            request.bytes(*kind | nested, value);
        }
        match self.socket.request(&request) {
            Err(source) if source.raw_os_error() != Some(libc::ENOENT) => Err(Error::Delete {
                flow: Box::new(flow.clone()),
                source,
            }),
            _ => Ok(()),
        }
    }
}

impl Glance {
    fn decode(payload: &[u8]) -> Option<Self> {
        let proto = attribute(attribute(payload, TUPLE_ORIGINAL)?, TUPLE_PROTO)?;
        Some(Self {
            protocol: *attribute(proto, PROTO_NUMBER)?.first()?,
            answered: attribute(payload, STATUS).and_then(nfnetlink::be32)? & SEEN_REPLY != 0,
        })
    }
}

impl Flow {
    fn decode(payload: &[u8]) -> Option<Self> {
        let identity = [TUPLE_ORIGINAL, ZONE, ID]
            .into_iter()
            .filter_map(|kind| Some((kind, attribute(payload, kind)?.to_vec())));
        Some(Self {
            original: Tuple::decode(attribute(payload, TUPLE_ORIGINAL)?)?,
            reply: Tuple::decode(attribute(payload, TUPLE_REPLY)?)?,
            answered: Glance::decode(payload)?.answered,
            identity: identity.collect(),
        })
    }
}

impl Tuple {
    fn decode(tuple: &[u8]) -> Option<Self> {
        let ip = attribute(tuple, TUPLE_IP)?;
        let proto = attribute(tuple, TUPLE_PROTO)?;
        let address = |v4, v6| match attribute(ip, v4) {
            Some(octets) => octets.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
            None => attribute(ip, v6)?
                .first_chunk::<16>()
                .map(|octets| IpAddr::from(*octets)),
        };
        let port = |kind| {
            attribute(proto, kind)?
                .first_chunk()
                .map(|bytes| u16::from_be_bytes(*bytes))
        };
        Some(Self {
            source: SocketAddr::new(address(IP_V4_SOURCE, IP_V6_SOURCE)?, port(PROTO_SOURCE_PORT)?),
            destination: SocketAddr::new(
                address(IP_V4_DESTINATION, IP_V6_DESTINATION)?,
                port(PROTO_DESTINATION_PORT)?,
            ),
            protocol: *attribute(proto, PROTO_NUMBER)?.first()?,
        })
    }
}

const NESTED: u16 = 1 << 15;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// `IPS_SEEN_REPLY`.
const SEEN_REPLY: u32 = 1 << 1;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_DESTINATION: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_DESTINATION: u16 = 4;
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE_PORT: u16 = 2;
const PROTO_DESTINATION_PORT: u16 = 3;

//! Packets that the kernel drops, as the programs of `causeway trace` see them: with its reason and its place.
//!
//! These programs tell headers, and no bytes. The bytes are those of the same packet at the device that it met last.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use netlink::conntrack::Usage;
use trace::cause::{self, Scene};
use trace::hop::Header;
use trace::namespaces::Found;
use trace::{Filter, Hop, HopKind, Names, Session};

use super::dissect::Headers;

/// What an Ethernet header adds to a packet's length.
const ETHERNET: u32 = 14;

/// Drops that are told before packets are looked at again.
const AT_ONCE: usize = 1024;

/// How long it is known how full a table of connections is.
const HOLDS: Duration = Duration::from_secs(1);

/// Follows what is dropped.
pub struct Drops {
    session: Session,
    names: Names,
    namespaces: Vec<Found>,
    tables: Tables,
    /// From the clock of the kernel's events to that of packets.
    offset: Duration,
    told: u64,
}

/// How full tables of connections were, by network namespace, when that was looked up last.
#[derive(Debug, Default)]
struct Tables(HashMap<u32, (Instant, Option<Usage>)>);

impl Tables {
    /// That of a namespace, as `read` has it, at most once in [`HOLDS`].
    fn usage(&mut self, netns: u32, now: Instant, read: impl FnOnce() -> Option<Usage>) -> Option<Usage> {
        match self.0.get(&netns) {
            Some((at, usage)) if now.duration_since(*at) < HOLDS => *usage,
            _ => {
                let usage = read();
                self.0.insert(netns, (now, usage));
                usage
            }
        }
    }
}

/// A packet that was dropped.
pub struct Dropped {
    /// When, since 1970.
    pub at: Duration,
    /// With its own Ethernet header; none where it met no device before.
    pub bytes: Vec<u8>,
    /// How long it is.
    pub length: u32,
    /// By whom and why.
    pub why: String,
}

impl Drops {
    /// From here on. `names`: of these network namespaces.
    ///
    /// # Errors
    /// When the kernel's programs cannot be attached.
    pub fn start(filter: &Filter, names: Names, namespaces: Vec<Found>) -> anyhow::Result<Self> {
        let session = Session::start(filter, "this machine").context("look for drops")?;
        Ok(Self {
            session,
            names,
            namespaces,
            tables: Tables::default(),
            offset: ebpf::packet_socket::offset_of_events()?,
            told: 0,
        })
    }

    /// What was dropped since it was asked last, or a part of it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn next(&mut self) -> io::Result<Vec<Hop>> {
        let mut dropped = Vec::new();
        while dropped.len() < AT_ONCE
            && let Some(hop) = self.session.next_hop(Instant::now()).map_err(io::Error::other)?
        {
            if matches!(hop.kind, HopKind::Dropped { .. }) {
                dropped.push(hop);
            }
        }
        Ok(dropped)
    }

    /// What is told of one. `captured`: packets that were seen at devices before, the newest last.
    pub fn tell(&mut self, hop: &Hop, captured: &VecDeque<(Headers, Vec<u8>)>) -> Dropped {
        self.told += 1;
        let at = self.names.of_netns(hop.netns);
        let mut why = format!("DROPPED at {at} {}", hop.device).trim_end().to_owned();
        if let HopKind::Dropped { reason, place } = &hop.kind {
            why.push_str(&format!(": {reason} in {place}"));
            let scene = Scene::of(hop, &at, None);
            let read = || trace::namespaces::tracked(&self.namespaces, hop.netns);
            let tables = &mut self.tables;
            let tracked = || tables.usage(hop.netns, Instant::now(), read);
            let is_new = hop.connection.is_none();
            let full = is_new.then(|| cause::of_full_table(reason, place, &scene, tracked));
            let full = full.flatten();
            if let Some(cause) = full.or_else(|| cause::of(reason, place, &scene)) {
                why.push_str(&format!(" ({})", cause.means));
            }
        }
        Dropped {
            at: self.offset + Duration::from_nanos(hop.at_ns),
            bytes: bytes_of(hop, captured).unwrap_or_default().to_vec(),
            length: hop.header.length + ETHERNET,
            why: format!("{why}: {}  {}", hop.header.flow, hop.header.flow.protocol),
        }
    }

    /// How many were told.
    #[must_use]
    pub const fn told(&self) -> u64 {
        self.told
    }

    /// Events that were lost.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn lost(&self) -> anyhow::Result<u64> {
        let gaps = self.session.gaps().context("read how many drops were lost")?;
        Ok(gaps.lost_events)
    }
}

/// The same packet where it was seen last.
fn bytes_of<'c>(hop: &Hop, captured: &'c VecDeque<(Headers, Vec<u8>)>) -> Option<&'c [u8]> {
    let found = captured
        .iter()
        .rev()
        .find(|(headers, _)| is_same(&hop.header, headers));
    found.and_then(|(headers, bytes)| bytes.get(headers.ethernet..))
}

fn is_same(header: &Header, headers: &Headers) -> bool {
    header.flow.protocol == headers.flow.protocol
        && header.ip_id == headers.ip_id
        && (header.sequence, header.acknowledgement) == headers.numbers
        && (header.flow.source, header.flow.destination) == (headers.flow.source, headers.flow.destination)
}

#[cfg(test)]
mod tests {
    use trace::hop::{Flow, Protocol};

    use super::super::dissect;
    use super::super::frames::Packet;
    use super::*;

    #[test]
    fn a_table_is_looked_at_once_a_second_by_namespace() {
        let mut tables = Tables::default();
        let began = Instant::now();
        let mut read = |netns, millis, tracked| {
            let now = began + Duration::from_millis(millis);
            let usage = tables.usage(netns, now, || Some(Usage { tracked, most: 9 }));
            usage.expect("it is tracked").tracked
        };
        assert_eq!(read(1, 0, 5), 5);
        assert_eq!(read(1, 999, 6), 5);
        assert_eq!(read(2, 999, 7), 7);
        assert_eq!(read(1, 1000, 8), 8);
    }

    #[test]
    fn a_dropped_packet_has_the_bytes_of_the_same_packet_that_was_seen_last() {
        let frames = [
            Packet::tcp("10.1.0.5:4000", "10.2.0.5:80").frame(),
            Packet::tcp("10.1.0.5:4001", "10.2.0.5:80").frame(),
        ];
        let captured = frames
            .iter()
            .map(|frame| (dissect::headers(frame).expect("headers"), frame.clone()));
        let captured: VecDeque<_> = captured.collect();
        let hop = |source: &str, sequence| Hop {
            at_ns: 1,
            packet: 1,
            node: "machine".to_owned(),
            netns: 1,
            device: "eth0".to_owned(),
            kind: HopKind::Sent,
            header: Header {
                flow: Flow {
                    source: source.parse().expect("an end"),
                    destination: "10.2.0.5:80".parse().expect("an end"),
                    protocol: Protocol::TCP,
                },
                what: "SYN".to_owned(),
                ip_id: 9,
                sequence,
                acknowledgement: 0,
                length: 40,
                ttl: 64,
            },
            wrapping: None,
            connection: None,
        };
        assert_eq!(
            bytes_of(&hop("10.1.0.5:4001", 7), &captured),
            Some(frames[1].as_slice())
        );
        assert_eq!(bytes_of(&hop("10.1.0.5:4001", 8), &captured), None);
        assert_eq!(bytes_of(&hop("10.1.0.5:4002", 7), &captured), None);
    }
}

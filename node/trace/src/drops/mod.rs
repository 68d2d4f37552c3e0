//! Packets that this machine drops, counted in the kernel by who they were and why they were dropped.
//!
//! - [`Session`] counts; [`Session::read`] tells what was dropped since it was asked before.
//! - [`Dropped`] is a kind of drops with how many there were.
//! - [`Report`] is what people are told; [`render`] writes it.

mod ordinary;
pub mod render;

use std::net::IpAddr;
use std::time::Duration;

use ebpf::abi::net::{Ip, Port};
use ebpf::abi::tally::{DropCount, DropKey, Total};
use ebpf::kernel_types::KernelTypes;
use ebpf::probe::since_boot;
use ebpf::tally::Tally;
use jiff::{SignedDuration, Timestamp};
use netlink::conntrack::Usage;
use serde::Serialize;

use crate::cause::{self, Cause, Scene};
use crate::hop::Protocol;
use crate::ledger;
use crate::places::{self, Names, Places};
use crate::session::{TraceError, VXLAN_PORTS};

pub(crate) use ordinary::is_ordinary;

/// What packets that are dropped alike have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Kind {
    /// The kernel's name for why (`enum skb_drop_reason`), without its prefix.
    pub reason: String,
    /// The kernel's function that dropped them; an address where functions have no names.
    pub place: String,
    /// Inode number of the network namespace; 0: not known.
    pub netns: u32,
    /// The device; empty where they were at none.
    pub device: String,
    /// What the link layer says that they carry; 0: they come from no link (unix and netlink sockets).
    pub ethertype: u16,
    /// Protocol of layer 4, of IP packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Whether they are the first of a TCP connection.
    pub opens: bool,
    /// Whether they were within packets of VXLAN, whose are the place and the reason.
    pub wrapped: bool,
    /// The sender, of IP packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<IpAddr>,
    /// The sender's port, where it is told apart by that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// The receiver.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpAddr>,
    /// The receiver's port, where the protocol has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
}

/// Packets that were dropped alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dropped {
    /// How many packets.
    pub packets: u64,
    /// How many bytes they had, from the IP header on where they have one.
    pub bytes: u64,
    /// When the first was dropped.
    #[serde(serialize_with = "text")]
    pub first: Timestamp,
    /// When the last was.
    #[serde(serialize_with = "text")]
    pub last: Timestamp,
    /// What the network namespace is called.
    pub at: String,
    /// Whose the sender's address is, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_pod: Option<String>,
    /// Whose the receiver's address is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_pod: Option<String>,
    /// What they have in common.
    #[serde(flatten)]
    pub kind: Kind,
    /// What it means that they were dropped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Whether they are part of normal traffic: nobody misses them.
    pub ordinary: bool,
}

/// What was not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Uncounted {
    /// Packets whose count was forgotten before it was read: there were more kinds of drops than the map has room for.
    pub forgotten: u64,
    /// Drops that the kernel did not count, since one was just being counted on that CPU. They may have been anybody's.
    pub missed: u64,
}

/// What was dropped in some time.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// This machine.
    pub node: String,
    /// When it began to count.
    #[serde(serialize_with = "text")]
    pub began: Timestamp,
    /// How long it counted, in milliseconds.
    pub millis: u128,
    /// What was dropped, the most first.
    pub drops: Vec<Dropped>,
    /// Packets that are not told, since their drops are part of normal traffic.
    pub ordinary_packets: u64,
    /// Whether places in the kernel have no names, since its symbols cannot be read (CAP_SYSLOG, `kptr_restrict`).
    pub lacks_symbols: bool,
    /// What was not counted.
    #[serde(flatten)]
    pub uncounted: Uncounted,
}

/// The attached program, and the names of what it tells.
#[derive(Debug)]
pub struct Session {
    tally: Tally,
    places: Places,
    ledger: ledger::Drops,
    uncounted: Uncounted,
}

impl Session {
    /// Attaches the program. Every drop of the machine is counted from here on until this is dropped. Needs root, and
    /// Linux 5.17 or newer with BTF.
    ///
    /// # Errors
    /// When the kernel lacks something, or this process the right.
    pub fn start() -> Result<Self, TraceError> {
        let types = KernelTypes::read()?;
        Ok(Self {
            places: Places::read(&types)?,
            tally: Tally::of_drops(&types, VXLAN_PORTS.map(Port::new))?,
            ledger: ledger::Drops::new(),
            uncounted: Uncounted::default(),
        })
    }

    /// What was dropped since it was read before, without names of pods, in an order that stays.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn read(&mut self) -> Result<Vec<Dropped>, TraceError> {
        self.uncounted.missed = self.tally.left_out()?;
        self.take()
    }

    /// Ends the counting, and tells what is left.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn stop(&mut self) -> Result<Vec<Dropped>, TraceError> {
        self.uncounted.missed = self.tally.left_out()?;
        self.tally.stop()?;
        self.take()
    }

    fn take(&mut self) -> Result<Vec<Dropped>, TraceError> {
        // In this order: what comes in between is no loss.
        let counted = self.tally.total(Total::DROPS)?;
        let grown = self.ledger.take(self.tally.drops()?);
        self.uncounted.forgotten = self.ledger.forgotten(counted);
        let clock = Clock::now();
        let mut dropped: Vec<Dropped> = grown
            .iter()
            .map(|(key, count)| dropped(key, count, clock, &mut self.places))
            .collect();
        dropped.sort_by(|one, other| (other.packets, &one.kind).cmp(&(one.packets, &other.kind)));
        Ok(dropped)
    }

    /// What was not counted since the start, as of the last reading.
    #[must_use]
    pub fn uncounted(&self) -> Uncounted {
        self.uncounted
    }
}

impl Dropped {
    /// Says whose it is, and what it means that it was dropped there. `tracked` looks how full the table of connections of a
    /// network namespace is, where that matters.
    pub fn name(&mut self, names: &Names, tracked: impl FnOnce(u32) -> Option<Usage>) {
        let Kind {
            netns,
            reason,
            place,
            device,
            source,
            destination,
            ..
        } = &self.kind;
        self.at = names.of_netns(*netns);
        let scene = Scene {
            device,
            sender: *source,
            receiver: *destination,
            at: &self.at,
            entering: names.entering.get(netns).map(String::as_str),
        };
        let full = cause::of_full_table(reason, place, &scene, || tracked(*netns));
        self.cause = full.or_else(|| cause::of(reason, place, &scene));
        let pod = |address: Option<IpAddr>| names.pods.get(&address?).cloned();
        self.source_pod = pod(self.kind.source);
        self.destination_pod = pod(self.kind.destination);
    }
}

impl Report {
    /// What is wrong in what was dropped; with `all` also what is part of normal traffic.
    #[must_use]
    pub fn new(node: &str, began: Timestamp, dropped: Vec<Dropped>, all: bool, uncounted: Uncounted) -> Self {
        let lacks_symbols = dropped.iter().any(|dropped| places::is_bare(&dropped.kind.place));
        let (drops, ordinary): (Vec<_>, Vec<_>) =
            dropped.into_iter().partition(|dropped| all || !dropped.ordinary);
        Self {
            node: node.to_owned(),
            began,
            millis: Timestamp::now().duration_since(began).as_millis().unsigned_abs(),
            ordinary_packets: ordinary.iter().map(|dropped| dropped.packets).sum(),
            drops,
            lacks_symbols,
            uncounted,
        }
    }
}

/// What the kernel's clock says, in the time of people.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    booted: Timestamp,
}

impl Clock {
    pub(crate) fn now() -> Self {
        let now = Timestamp::now();
        let booted = SignedDuration::try_from(since_boot()).ok();
        let booted = booted.and_then(|since| now.checked_sub(since).ok());
        Self {
            booted: booted.unwrap_or(now),
        }
    }

    pub(crate) fn at(self, nanos: u64) -> Timestamp {
        let since = SignedDuration::try_from(Duration::from_nanos(nanos)).ok();
        let at = since.and_then(|since| self.booted.checked_add(since).ok());
        at.unwrap_or(self.booted)
    }
}

fn dropped(key: &DropKey, count: &DropCount, clock: Clock, places: &mut Places) -> Dropped {
    let kind = kind(key, count, places);
    Dropped {
        packets: count.packets,
        bytes: count.bytes,
        first: clock.at(count.first),
        last: clock.at(count.last),
        at: String::new(),
        source_pod: None,
        destination_pod: None,
        cause: None,
        ordinary: is_ordinary(&kind),
        kind,
    }
}

pub(crate) fn kind(key: &DropKey, count: &DropCount, places: &mut Places) -> Kind {
    let name = count.device.split(|byte| *byte == 0).next().unwrap_or_default();
    let is_ip = key.source != Ip::ANY || key.destination != Ip::ANY;
    let has_ports = Protocol(key.protocol).has_ports();
    let port = |port: Port| (has_ports && port.0 != 0).then(|| port.number());
    Kind {
        reason: places.reason(key.reason),
        place: places.function(key.location),
        netns: key.netns,
        device: String::from_utf8_lossy(name).into_owned(),
        ethertype: u16::from_be(key.ethertype),
        protocol: is_ip.then_some(Protocol(key.protocol)),
        opens: key.opens != 0,
        wrapped: key.wrapped != 0,
        source: is_ip.then(|| key.source.into()),
        source_port: port(key.source_port),
        destination: is_ip.then(|| key.destination.into()),
        destination_port: port(key.destination_port),
    }
}

pub(crate) fn text<S: serde::Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(at)
}

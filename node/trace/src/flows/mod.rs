//! Who sends to whom on this machine, counted in the kernel by connection and direction.
//!
//! - [`Session`] counts; [`Session::read`] tells what passed since it was asked before.
//! - [`Passed`] is one direction of a connection with how much passed, under its real ends whatever NAT does on the way.
//! - [`record`] is the form of it that Hubble's readers know; [`render`] writes it.

mod join;
pub mod record;
pub mod render;

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use ebpf::abi::net::Port;
use ebpf::abi::tally::{FlowCount, Local, Total};
use ebpf::abi::trace::Flow as RawFlow;
use ebpf::connected::Connected;
use ebpf::kernel_types::KernelTypes;
use ebpf::tally::Tally;
use jiff::Timestamp;

use crate::drops::{Clock, Uncounted};
use crate::hop::Flow;
use crate::ledger::{self, Ledger};
use crate::namespaces::Found;
use crate::places::Places;
use crate::session::{TraceError, VXLAN_PORTS};

/// One direction of a connection, with what passed in some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Who really sends, and who really receives.
    pub flow: Flow,
    /// The other end as the one that began knows it, where NAT or the socket hook gave it another: a Service's address.
    pub service: Option<std::net::SocketAddr>,
    /// Whether it goes to who began.
    pub is_reply: bool,
    /// Packets where they were sent; 0 where that is no socket of this machine.
    pub sent: Amount,
    /// Packets where they were received; 0 where that is no namespace of this machine.
    pub received: Amount,
    /// When the first was seen.
    pub first: Timestamp,
    /// When the last was.
    pub last: Timestamp,
    /// Inode number of the sender's network namespace; 0: not known.
    pub sender: u32,
    /// Inode number of the receiver's.
    pub receiver: u32,
    /// TCP's flags that were seen in all of it (RFC 9293 §3.1).
    pub tcp_flags: u8,
    /// What was dropped of it.
    pub drops: Vec<Lost>,
}

/// So much of something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Packets as the kernel hands them on: of TCP they may be larger than a frame.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

/// Packets that were dropped alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// How many.
    pub amount: Amount,
    /// The kernel's name for why, without its prefix.
    pub reason: String,
    /// The kernel's function that dropped them.
    pub place: String,
    /// Inode number of the network namespace where it was; 0: not known.
    pub netns: u32,
    /// Whether they had come to a device: those that had not were never sent.
    pub was_sent: bool,
    /// When the last was dropped.
    pub last: Timestamp,
}

/// The attached programs, and the names of what they tell.
#[derive(Debug)]
pub struct Session {
    tally: Tally,
    places: Places,
    flows: Ledger<RawFlow, FlowCount>,
    drops: ledger::Drops,
    local: BTreeSet<Local>,
    uncounted: Uncounted,
    types: KernelTypes,
    hooks: Vec<Connected>,
}

impl Session {
    /// Attaches the programs. Packets that these namespaces send and receive are counted from here on until this is
    /// dropped. Needs root, and Linux 5.17 or newer with BTF.
    ///
    /// # Errors
    /// When the kernel lacks something, or this process the right.
    pub fn start(namespaces: &[Found]) -> Result<Self, TraceError> {
        let types = KernelTypes::read()?;
        let tunnels = VXLAN_PORTS.map(Port::new);
        let local = local(namespaces);
        Ok(Self {
            places: Places::read(&types)?,
            tally: Tally::of_flows(&types, tunnels, local.iter().copied())?,
            flows: Ledger::new(),
            drops: Ledger::new(),
            local,
            uncounted: Uncounted::default(),
            types,
            hooks: Vec::new(),
        })
    }

    /// Has the Services told that a socket hook sends sockets to from here on, whose map of them is at `sockets`
    /// ([`ebpf::connected::pinned`]).
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn look_into(&mut self, sockets: &Path) -> Result<(), TraceError> {
        self.hooks.push(Connected::start(&self.types, sockets)?);
        Ok(())
    }

    /// Tells the programs which addresses namespaces have now.
    ///
    /// # Errors
    /// When the kernel does not take them.
    pub fn look_at(&mut self, namespaces: &[Found]) -> Result<(), TraceError> {
        let local = local(namespaces);
        self.tally.set_local(
            local.difference(&self.local).copied(),
            self.local.difference(&local).copied(),
        )?;
        self.local = local;
        Ok(())
    }

    /// What passed since it was read before, in the order of its ends.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn read(&mut self) -> Result<Vec<Passed>, TraceError> {
        self.uncounted.missed = self.tally.left_out()?;
        self.take()
    }

    /// Ends the counting, and tells what is left.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn stop(&mut self) -> Result<Vec<Passed>, TraceError> {
        self.uncounted.missed = self.tally.left_out()?;
        self.tally.stop()?;
        self.take()
    }

    fn take(&mut self) -> Result<Vec<Passed>, TraceError> {
        // In this order: what comes in between is no loss.
        let counted = [self.tally.total(Total::FLOWS)?, self.tally.total(Total::DROPS)?];
        let (flows, drops) = (self.tally.flows()?, self.tally.drops()?);
        let nats = self.tally.nats()?;
        let mut connected = HashMap::new();
        for hook in &self.hooks {
            connected.extend(hook.services()?);
        }
        let grown = self.flows.take(flows.clone());
        let dropped = self.drops.take(drops);
        self.uncounted.forgotten = self.flows.forgotten(counted[0]) + self.drops.forgotten(counted[1]);
        Ok(join::join(
            &join::Counted {
                flows: &flows,
                grown: &grown,
                dropped: &dropped,
                nats: &nats,
                connected: &connected,
            },
            Clock::now(),
            &mut self.places,
        ))
    }

    /// What was not counted since the start, as of the last reading: packets of flows, and drops.
    #[must_use]
    pub fn uncounted(&self) -> Uncounted {
        self.uncounted
    }
}

fn local(namespaces: &[Found]) -> BTreeSet<Local> {
    let of_one = |found: &Found| {
        let netns = found.inode;
        let local = move |address: &std::net::IpAddr| Local {
            netns,
            address: (*address).into(),
        };
        found.addresses.iter().map(local).collect::<Vec<_>>()
    };
    namespaces.iter().flat_map(of_one).collect()
}

impl Passed {
    /// How much was handed on: what was sent or received, whichever tells more, without what was dropped after that.
    #[must_use]
    pub fn forwarded(&self) -> Amount {
        let seen = if self.sent.packets >= self.received.packets {
            self.sent
        } else {
            self.received
        };
        let lost = self.drops.iter().filter(|lost| lost.was_sent);
        lost.fold(seen, |left, lost| Amount {
            packets: left.packets.saturating_sub(lost.amount.packets),
            bytes: left.bytes.saturating_sub(lost.amount.bytes),
        })
    }
}

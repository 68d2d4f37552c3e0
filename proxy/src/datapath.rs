//! Rendering plans into the kernel.
//!
//! A datapath keeps a mirror of what it owns there, writes only what differs, and decides nothing. Two renderers share
//! the work: [`sockets`] translates at `connect()`, [`packets`] is always complete under it, for everything that does
//! not come by the hook (other machines, raw sockets, the kernel's own clients, SCTP).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName};
use netlink::conntrack::Conntrack;

use crate::Error;
use crate::plan::{FrontendKey, NodeContext, ServicePlan};
use crate::report::IptablesRules;
use crate::stale::{Forgotten, StaleFlows};

pub mod fake;
pub mod iptables;
pub mod packets;
pub mod sockets;

use packets::Packets;
use sockets::Sockets;

/// A Service whose plan changed.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// The Service.
    pub service: &'a ObjectName,
    /// What was asked for before, failed attempts included.
    pub old: &'a ServicePlan,
    /// What is wanted now.
    pub new: &'a ServicePlan,
}

/// What became of a list of changes.
#[derive(Debug, Default)]
pub struct Applied {
    /// Entries and elements written to the kernel.
    pub writes: u64,
    /// Services whose change did not get there; their order says nothing.
    pub failures: Vec<(ObjectName, Error)>,
    /// The kernel's state was found damaged on the way: everything must be applied again.
    pub damaged: bool,
    /// How long the socket hook's maps took of it.
    pub in_sockets: Duration,
}

impl Applied {
    /// Adds what became of the same changes in another layer.
    fn add(&mut self, other: Self) {
        self.writes += other.writes;
        self.failures.extend(other.failures);
        self.damaged |= other.damaged;
        self.in_sockets += other.in_sockets;
    }

    /// The same, where all failures are of the rules of this version of IP.
    fn of(mut self, family: IpFamily) -> Self {
        let failures = self.failures.into_iter();
        self.failures = failures
            .map(|(service, error)| (service, error.of(family)))
            .collect();
        self
    }
}

/// What was removed for being nobody's.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Entries and elements removed.
    pub writes: u64,
    /// Frontends among them.
    pub frontends: BTreeSet<FrontendKey>,
    /// The kernel's state was found damaged on the way: everything must be applied again.
    pub damaged: bool,
}

/// Whose address a node address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeRole {
    /// This node's.
    ThisNode,
    /// Another node's.
    OtherNode,
}

/// The addresses of all nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// By address.
    pub roles: BTreeMap<IpAddr, NodeRole>,
    /// Whether the list of nodes is complete; until then no address is taken away.
    pub complete: bool,
}

/// Something that makes plans happen.
pub trait Datapath: Send + Sync + std::fmt::Debug {
    /// Applies changes. What works is kept, and every failure is returned with its Service; a change that failed may
    /// be given again, with the same or a newer plan.
    fn apply(&mut self, changes: &[Change<'_>]) -> Applied;

    /// Lets the next `apply` try what was refused as a whole and is too much for a try at every change.
    fn try_again(&mut self) {}

    /// Removes everything that belongs to no wanted frontend.
    fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error>;

    /// Tells what is new about this node; returns how much was written.
    fn set_context(&mut self, context: &NodeContext) -> Result<u64, Error>;

    /// Tells on which addresses nodes serve node ports; returns how much was written.
    fn set_nodes(&mut self, nodes: &NodeAddresses) -> Result<u64, Error>;

    /// Repairs the fixed part (attachments, pins, chains) and returns what was repaired.
    fn repair(&mut self) -> Result<Vec<String>, Error>;

    /// Repairs the fixed part and reads the rest back, so that the next `apply` sees what the kernel has.
    fn reread(&mut self) -> Result<Vec<String>, Error>;

    /// Ends what leads clients nowhere (tracked flows, connected UDP sockets).
    fn forget_flows(&mut self, stale: &StaleFlows) -> Result<Forgotten, Error>;

    /// Verdicts so far, by name.
    fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error>;

    /// What there is of iptables: nothing elsewhere.
    fn iptables(&self) -> IptablesRules {
        IptablesRules::default()
    }
}

/// Changes from which on the layers are written side by side: for fewer a thread costs more than it saves.
const MANY: usize = 256;

/// The kernel: packet rules for each version of IP, and the socket hook above them where it is asked for.
#[derive(Debug)]
pub struct Kernel {
    /// The complete layer.
    pub packets: Vec<Packets>,
    /// The fast layer.
    pub sockets: Option<Sockets<ebpf::SocketHook>>,
    /// Connection tracking, of both versions of IP.
    pub conntrack: Conntrack,
}

impl Kernel {
    /// Without the fast layer there is nothing to do there.
    fn with_sockets<T: Default>(
        &mut self,
        work: impl FnOnce(&mut Sockets<ebpf::SocketHook>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.sockets.as_mut().map_or_else(|| Ok(T::default()), work)
    }

    /// Does the same for each version of IP; all of it before the first failure is told.
    fn each_family<T>(
        &mut self,
        mut work: impl FnMut(&mut Packets) -> Result<T, Error>,
    ) -> Result<Vec<T>, Error> {
        let work = |packets: &mut Packets| work(packets).map_err(|error| error.of(packets.family()));
        let results: Vec<_> = self.packets.iter_mut().map(work).collect();
        results.into_iter().collect()
    }
}

/// A layer that fails stops no work on the other: results are looked at when both are done.
impl Datapath for Kernel {
    fn apply(&mut self, changes: &[Change<'_>]) -> Applied {
        let packets = self.packets.iter_mut();
        let of_packets = || {
            let mut applied = Applied::default();
            packets.for_each(|packets| applied.add(packets.apply(changes).of(packets.family())));
            applied
        };
        let sockets = self.sockets.as_mut();
        let of_sockets = || sockets.map_or_else(Applied::default, |sockets| sockets.apply(changes));
        let [mut applied, upper] = if changes.len() < MANY {
            [of_packets(), of_sockets()]
        } else {
            side_by_side(of_packets, of_sockets)
        };
        applied.add(upper);
        applied
    }

    fn try_again(&mut self) {
        self.packets.iter_mut().for_each(Packets::try_again);
    }

    fn sweep(&mut self, wanted: &dyn Fn(&FrontendKey) -> bool) -> Result<Swept, Error> {
        let lower = self.each_family(|packets| packets.sweep(wanted));
        let upper = self.with_sockets(|sockets| sockets.sweep(wanted));
        let mut swept = upper?;
        for lower in lower? {
            swept.writes += lower.writes;
            swept.frontends.extend(lower.frontends);
            swept.damaged |= lower.damaged;
        }
        Ok(swept)
    }

    fn set_context(&mut self, context: &NodeContext) -> Result<u64, Error> {
        let writes = self.each_family(|packets| packets.set_context(context))?;
        packets::remove_unserved(context)?;
        Ok(writes.into_iter().sum())
    }

    fn set_nodes(&mut self, nodes: &NodeAddresses) -> Result<u64, Error> {
        // The packet rules ask the routing table which addresses are this node's.
        self.with_sockets(|sockets| sockets.set_nodes(nodes))
    }

    fn repair(&mut self) -> Result<Vec<String>, Error> {
        let lower = self.each_family(Packets::repair);
        let upper = self.with_sockets(Sockets::repair);
        Ok([lower?.concat(), upper?].concat())
    }

    fn reread(&mut self) -> Result<Vec<String>, Error> {
        let lower = self.each_family(Packets::reread);
        let upper = self.with_sockets(Sockets::reread);
        Ok([lower?.concat(), upper?].concat())
    }

    fn forget_flows(&mut self, stale: &StaleFlows) -> Result<Forgotten, Error> {
        let flows = stale.forget_in(&mut self.conntrack);
        let sockets = self.with_sockets(|sockets| sockets.forget_flows(stale));
        Ok(Forgotten {
            sockets: sockets? as u64,
            ..flows?
        })
    }

    fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        self.sockets.as_ref().map_or(Ok(Vec::new()), Sockets::counters)
    }
}

/// Does both at the same time, one of them on this thread.
fn side_by_side<T: Send>(here: impl FnOnce() -> T, there: impl FnOnce() -> T + Send) -> [T; 2] {
    std::thread::scope(|scope| {
        let there = scope.spawn(there);
        let here = here();
        [here, there.join().unwrap_or_else(|panic| resume_unwind(panic))]
    })
}

/// Addresses by which a node reaches itself.
fn loopback(family: IpFamily) -> IpNetwork {
    let network = match family {
        IpFamily::V4 => "127.0.0.0/8",
        IpFamily::V6 => "::1/128",
    };
    network.parse().expect("invariant: a network")
}

//! Rules of others that a packet meets: what they do with it, as far as they are understood.
//!
//! A rule that is not understood is no obstacle and no permission: it is counted, and told where it stands.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use model::{Protocol, with_causes};
use netlink::nft::ruleset::walk::{Carried, Device, End, Met, Packet, Place, follow};
use netlink::nft::ruleset::{Base, EGRESS, INGRESS, Part, Ruleset};
use netlink::nft::{self, Nft};
use overlay::fast_path::{is_ours, legacy_tables};
use serde::{Deserialize, Serialize};

use super::look::Vantage;
use super::{Entry, Stage, Step};

/// `enum nf_inet_hooks`, as nft names them, and that at which packets leave a device.
const HOOKS: [&str; 7] = [
    "prerouting",
    "input",
    "forward",
    "output",
    "postrouting",
    "ingress",
    "egress",
];
const PREROUTING: u32 = 0;
const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

/// The device by which a node sends to itself (`LOOPBACK_IFINDEX`).
const LOOPBACK: (u32, &str) = (1, "lo");

/// From this priority on a connection is known (`NF_IP_PRI_CONNTRACK`), and behind that of destination NAT, which is
/// ours too, a packet to a Service goes to its endpoint (`NF_IP_PRI_NAT_DST`).
const CONNTRACK: i32 = -200;
const DESTINATION_NAT: i32 = -100;
/// From this priority on a packet has the source that NAT gives it (`NF_IP_PRI_NAT_SRC`).
const SOURCE_NAT: i32 = 100;

/// State of a connection as rules see it: one bit.
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 2;
const NEW: u32 = 8;

/// Rules that are named of each chain.
const NAMED: usize = 5;

/// Rules of others in a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Others {
    /// Those at the hooks, those of devices among them.
    pub rules: Ruleset,
    /// Chains of devices, by family, table and name, whose rules an older recording does not have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of_devices: Vec<(String, String, String)>,
    /// Tables of legacy iptables, whose rules are not read.
    pub legacy: Vec<String>,
}

impl Others {
    /// Reads them in the network namespace of the calling thread.
    ///
    /// # Errors
    /// When they cannot be listed; for people.
    pub fn read() -> Result<Self, String> {
        let read = Nft::open().and_then(|mut nft| nft.ruleset(|table| !is_ours(table)));
        let mut rules = read.map_err(|error: nft::Error| with_causes(&error))?;
        // No packet meets them.
        rules.bases.retain(|base| !is_of_no_device(base));
        Ok(Self {
            rules,
            of_devices: Vec::new(),
            legacy: legacy_tables()?,
        })
    }

    /// Lines for those that nobody here reads.
    #[must_use]
    pub fn unread(&self, vantage: &Vantage) -> Vec<String> {
        let of_devices = self.of_devices.iter();
        let of_devices =
            of_devices.map(|(family, table, chain)| (family.as_str(), table.as_str(), chain.as_str()));
        // An older recording does not tell whose those are.
        let bases = self.rules.bases.iter();
        let of_no_device = bases
            .filter(|base| is_of_no_device(base) && self.acts(base))
            .map(|Base { name, .. }| (name.family.word(), name.table.as_str(), name.chain.as_str()));
        let of_devices = of_devices.chain(of_no_device).map(|(family, table, chain)| {
            format!(
                "chain {family} {table} {chain} is somebody else's and may drop or change it; its rules are not \
                 evaluated: {}",
                vantage.chain(family, table, chain)
            )
        });
        let legacy = self.legacy.iter();
        let legacy =
            legacy.map(|table| format!("legacy iptables has a table {table}: its rules are not evaluated"));
        of_devices.chain(legacy).collect()
    }

    /// Whether a chain does more than look.
    fn acts(&self, base: &Base) -> bool {
        let mut rules = self.rules.rules.get(&base.name).into_iter().flatten();
        base.drops || rules.any(|rule| rule.parts.iter().any(|part| !only_looks(part)))
    }
}

const fn only_looks(part: &Part) -> bool {
    matches!(
        part,
        Part::Passive
            | Part::Meta { .. }
            | Part::Conntrack { .. }
            | Part::Payload { .. }
            | Part::Compare { .. }
            | Part::Range { .. }
            | Part::Bitwise { .. }
            | Part::Immediate { .. }
    )
}

/// Whether a chain at a hook of devices is of none.
const fn is_of_no_device(base: &Base) -> bool {
    matches!(base.hook, INGRESS | EGRESS) && base.devices.is_empty()
}

/// A packet's way through this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trip {
    /// Where it comes from.
    pub source: IpAddr,
    /// Its port, where that is known.
    pub source_port: Option<u16>,
    /// Where it goes.
    pub destination: IpAddr,
    /// The port there, where that is known.
    pub destination_port: Option<u16>,
    /// Where it, or what it answers, went before our rules sent that on.
    pub asked: Option<(IpAddr, u16)>,
    /// Its protocol.
    pub protocol: Protocol,
    /// Whether it answers a packet that went the other way.
    pub is_reply: bool,
    /// Whether its source, or that of what it answers, is another one behind this node.
    pub is_masqueraded: bool,
    /// The device that it comes by; none: this node sends it.
    pub comes_by: Option<Device>,
    /// The device that it leaves by; none: it is for this node.
    pub leaves_by: Option<Device>,
}

impl Trip {
    /// Hooks that it passes, in order.
    fn hooks(&self) -> &'static [u32] {
        match (&self.comes_by, &self.leaves_by) {
            (Some(_), Some(_)) => &[INGRESS, PREROUTING, FORWARD, POSTROUTING, EGRESS],
            (Some(_), None) => &[INGRESS, PREROUTING, INPUT],
            (None, Some(_)) => &[OUTPUT, POSTROUTING, EGRESS],
            (None, None) => &[OUTPUT, POSTROUTING, PREROUTING, INPUT],
        }
    }

    /// Whether this node sends it to itself.
    const fn is_to_itself(&self) -> bool {
        self.comes_by.is_none() && self.leaves_by.is_none()
    }

    /// What it is when it comes to a chain; none where it meets no such chain, or it is not known what it is there.
    fn at(&self, base: &Base) -> Option<Packet> {
        // What comes by loopback has its connection still (`nf_conntrack_in`), and is translated already.
        let is_back = self.is_to_itself() && matches!(base.hook, PREROUTING | INPUT);
        if base.is_nat && (self.is_reply || is_back) {
            return None;
        }
        let of_device = match base.hook {
            INGRESS => self.comes_by.as_ref(),
            EGRESS => self.leaves_by.as_ref(),
            _ => None,
        };
        if matches!(base.hook, INGRESS | EGRESS) && !of_device.is_some_and(|device| base.is_of(&device.name))
        {
            return None;
        }
        let is_first = matches!(base.hook, INGRESS | PREROUTING | OUTPUT) && !is_back;
        let is_early = is_first && (base.hook == INGRESS || base.priority <= DESTINATION_NAT);
        if is_early && self.is_reply && self.is_masqueraded {
            return None;
        }
        let (destination, port) = match self.asked {
            Some((address, port)) if is_early && !self.is_reply => (address, Some(port)),
            _ => (self.destination, self.destination_port),
        };
        let is_tracked = base.hook != INGRESS && (!is_first || base.priority > CONNTRACK);
        let is_last = matches!(base.hook, POSTROUTING | INPUT) && base.priority >= SOURCE_NAT;
        let is_behind = is_back || base.hook == EGRESS || is_last;
        // Behind the translation of sources an answer has the one that was asked: other rules may have been told of its
        // first packet, where it is not known to be ours.
        let (source, source_port) = match self.asked {
            Some((address, port)) if self.is_reply && is_behind => (Some(address), Some(port)),
            _ => {
                let has_new_source = is_behind && self.is_masqueraded || is_back && self.is_reply;
                ((!has_new_source).then_some(self.source), self.source_port)
            }
        };
        let (comes_by, leaves_by) = if self.is_to_itself() {
            let loopback = Device {
                index: LOOPBACK.0,
                name: LOOPBACK.1.to_owned(),
            };
            (Some(loopback.clone()), Some(loopback))
        } else {
            (self.comes_by.clone(), self.leaves_by.clone())
        };
        let (comes_by, leaves_by) = match base.hook {
            INGRESS | PREROUTING | INPUT => (comes_by, Some(Device::default())),
            FORWARD => (comes_by, leaves_by),
            // What goes elsewhere only behind that is routed anew then.
            OUTPUT if is_early && self.asked.is_some() && !self.is_reply => (Some(Device::default()), None),
            OUTPUT | EGRESS => (Some(Device::default()), leaves_by),
            // Whether rules see there where it came from depends on the kernel.
            _ => (None, leaves_by),
        };
        Some(Packet {
            source,
            destination,
            protocol: self.protocol.number(),
            source_port,
            destination_port: port,
            state: Some(match (is_tracked, self.is_reply) {
                (false, _) => INVALID,
                (true, true) => ESTABLISHED,
                (true, false) => NEW,
            }),
            is_reply: self.is_reply,
            comes_by,
            leaves_by,
        })
    }

    pub(super) fn about(&self) -> String {
        let end = |address, port: Option<u16>| match port {
            Some(port) => SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        };
        format!(
            "{} -> {}/{}",
            end(self.source, self.source_port),
            end(self.destination, self.destination_port),
            self.protocol
        )
    }
}

/// What rules of others make of a packet; none where it meets none.
#[must_use]
pub fn step(ruleset: &Ruleset, trip: &Trip, vantage: &Vantage) -> Option<Step> {
    let mut step = Step::new(Stage::Rules, trip.about());
    let mark = (!trip.is_masqueraded).then_some(0);
    let mut carried = Carried::new(mark, trip.asked.is_some() || trip.is_masqueraded);
    for hook in trip.hooks() {
        let met = follow(ruleset, *hook, &mut carried, |base| trip.at(base));
        let is_over = met.iter().any(|met| is_certain_stop(&met.end));
        for met in met.iter().filter(|met| met.rules > 0 || met.end != End::Passes) {
            tell(&mut step, met, vantage);
        }
        if is_over {
            break;
        }
    }
    (!step.kernel.is_empty()).then_some(step)
}

/// Lines for the end of an explanation: what was not evaluated, once for each chain.
#[must_use]
pub fn unevaluated<'a>(steps: impl Iterator<Item = &'a Step>) -> Vec<String> {
    let mut chains = BTreeMap::new();
    for entry in steps
        .filter(|step| step.stage == Stage::Rules)
        .flat_map(|step| &step.kernel)
    {
        let value = entry.value.as_deref().unwrap_or_default();
        if let Some((_, unknown)) = value.split_once(UNEVALUATED) {
            chains.entry(&entry.place).or_insert_with(|| unknown.to_owned());
        }
    }
    let line = |(chain, unknown): (&String, String)| {
        format!("it passes rules of others that were not evaluated, in {chain}: {unknown}")
    };
    chains.into_iter().map(line).collect()
}

/// Before the rules of a chain that were not evaluated.
const UNEVALUATED: &str = "; not evaluated: ";

const fn is_certain_stop(end: &End) -> bool {
    matches!(end, End::Stopped { is_certain: true, .. })
}

fn tell(step: &mut Step, met: &Met, vantage: &Vantage) {
    let name = &met.base.name;
    let place = format!("chain {name}");
    let hook = usize::try_from(met.base.hook)
        .ok()
        .and_then(|hook| HOOKS.get(hook));
    let hook = hook.copied().unwrap_or("another hook");
    let by = |by: &Place| match by {
        Place::Rule(chain, handle) if chain == name => format!("rule handle {handle}"),
        Place::Rule(chain, handle) => format!("rule handle {handle} of chain {chain}"),
        Place::Policy(_) => "its policy".to_owned(),
    };
    let mut value = match &met.end {
        End::Passes => "lets it pass".to_owned(),
        End::Stopped {
            by: place,
            is_rejected,
            ..
        } => {
            let what = if *is_rejected { "rejects" } else { "drops" };
            format!("{what} it by {}", by(place))
        }
        End::Translated(place) => format!("translates it by {}", by(place)),
    };
    let mut unknown: Vec<String> = met
        .unknown
        .iter()
        .take(NAMED)
        .map(|(chain, handle)| {
            if chain == name {
                format!("handle {handle}")
            } else {
                format!("handle {handle} of chain {chain}")
            }
        })
        .collect();
    if met.unknown.len() > NAMED {
        unknown.push(format!("{} more", met.unknown.len() - NAMED));
    }
    let unknown = unknown.join(", ");
    if !unknown.is_empty() {
        value += UNEVALUATED;
        value += &unknown;
    }
    match &met.end {
        End::Stopped { by: place, is_rejected, is_certain } => {
            let what = if *is_rejected { "rejected" } else { "dropped" };
            let line = format!("{what} by somebody else's rules: {} of chain {name}, at hook {hook}", by(place));
            if *is_certain {
                step.problems.push(line);
            } else {
                let earlier = if unknown.is_empty() { "of chains that it meets earlier" } else { &unknown };
                step.unknown.push(format!("{line}, unless rules before that, which were not evaluated or translate it, let it pass: {earlier}"));
            }
        }
        End::Translated(place) if matches!(met.base.hook, PREROUTING | OUTPUT) => step.unknown.push(format!(
            "somebody else's {} of chain {name}, at hook {hook}, sends it elsewhere; what else is told here is as if it did not",
            by(place)
        )),
        End::Translated(_) | End::Passes => {}
    }
    let command = vantage.chain(name.family.word(), &name.table, &name.chain);
    if !step.look.contains(&command) {
        step.look.push(command);
    }
    step.kernel
        .push(Entry::new(place, format!("hook {hook}"), Some(value)));
}

#[cfg(test)]
mod tests;

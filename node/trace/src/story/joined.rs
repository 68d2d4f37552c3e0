//! One story of what several machines saw. Pure.
//!
//! Clocks of machines differ: what each of them saw is in the order of its own clock alone. A packet is known on all of
//! them by what neither NAT nor encapsulation changes ([`Hop::fingerprint`]), and goes from one to the next as its TTL
//! says, which each router makes less. From packets that two machines saw follows how far apart their clocks are at the
//! least and at the most: that is for the order of packets which only one of them saw, and for nothing else.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Gaps, Gone, Packet, Step, Story, Verdict, Witness, packets};
use crate::hop::{Flow, Hop, HopKind};
use crate::part::{Attached, MOST_HOPS, Part, Seen, Within};
use crate::session::Filter;

/// A packet on a machine, from where it came there to where it left or ended.
#[derive(Debug)]
struct Stay<'p> {
    /// Number of the part.
    part: usize,
    hops: Vec<&'p Hop>,
}

impl<'p> Stay<'p> {
    /// The last device that had it there. Network cards let go of what they have sent later than that.
    fn left(&self) -> Option<&'p Hop> {
        self.hops.iter().rev().find(|hop| is_at_device(hop)).copied()
    }
}

/// A machine that followed packets.
struct Present<'p> {
    part: &'p Part,
    attached: &'p Attached,
    hops: Vec<Hop>,
}

impl Story {
    /// One story of these parts; the first of those that followed packets says which connection: it should be the
    /// sender's. `None`: no machine followed packets.
    #[must_use]
    pub fn joined(parts: &[Part]) -> Option<Self> {
        let present = present(parts);
        let first = present.first()?;
        let names = present.iter().flat_map(|present| {
            let seen = present.part.hops.iter();
            seen.map(|seen| ((&*present.part.node, seen.hop.netns), seen))
        });
        let names: BTreeMap<(&str, u32), &Seen> = names.collect();
        let at = |hop: &Hop| match names.get(&(hop.node.as_str(), hop.netns)) {
            Some(seen) => (seen.at.clone(), seen.entering.clone()),
            None => (String::new(), None),
        };
        let stories = present.iter().filter_map(|present| present.part.story.as_ref());
        let gaps = stories.map(|story| story.gaps);
        let all = gaps.fold(Gaps::default(), |all, gaps| Gaps {
            lost_events: all.lost_events + gaps.lost_events,
            missed_events: all.missed_events + gaps.missed_events,
        });
        let mut story = Self::of(&first.attached.filter, &woven(&present), at, all);
        let mut services = present
            .iter()
            .filter_map(|present| present.attached.service.as_ref());
        if let Some(service) = services.next() {
            story = story.to_service(service);
        }
        story.take_over(&present);
        story.nodes = parts.iter().map(|part| witness(part, &story)).collect();
        story.say_where_it_went(&present);
        Some(story)
    }

    /// What a machine alone knows: whether it sent a probe and what that was told, and why packets ended there.
    fn take_over(&mut self, present: &[Present<'_>]) {
        let stories = || {
            present
                .iter()
                .filter_map(|present| Some((present, present.part.story.as_ref()?)))
        };
        if let Some((_, own)) = stories().find(|(_, story)| story.is_probe) {
            self.is_probe = true;
            if self.packets.is_empty() {
                self.flow = own.flow;
                self.verdict = own.verdict;
                self.cause.clone_from(&own.cause);
            }
        }
        for (present, own) in stories() {
            let known = own.packets.iter().flat_map(|packet| &packet.hops);
            for (known, cause) in known.filter_map(|step| Some((step, step.cause.as_ref()?))) {
                let steps = self.packets.iter_mut().flat_map(|packet| &mut packet.hops);
                let same =
                    |step: &&mut Step| step.hop.node == present.part.node && is_same(&step.hop, &known.hop);
                steps
                    .filter(same)
                    .for_each(|step| step.cause = Some(cause.clone()));
            }
        }
    }

    /// Where the packet went that the verdict is about, if it left a machine and no other had it: lost it is only where
    /// the machine that it was sent to would have seen it, and the one that it left knows no reason why it does not come and
    /// lost no event.
    fn say_where_it_went(&mut self, present: &[Present<'_>]) {
        let has_reply = self.packets.iter().any(|packet| packet.is_reply);
        let is_reply = match self.verdict {
            Verdict::Left => false,
            // Whoever took the request sent the reply: that one is on its way back.
            Verdict::Delivered | Verdict::Unanswered if has_reply => true,
            _ => return,
        };
        let Some(step) = self.departure(is_reply) else {
            return;
        };
        let hop = &step.hop;
        let towards = on_the_wire(hop).destination.ip();
        let is_whole = |node: &str| {
            let mut own = self.nodes.iter().filter(|witness| witness.node == node);
            own.any(|witness| witness.missing.is_none() && witness.gaps.lost_events == 0)
        };
        let mut others = present.iter().filter(|other| other.part.node != hop.node);
        let to = others.find(|other| {
            step.cause.is_none()
                && other.attached.addresses.contains(&towards)
                && would_see(&other.attached.filter, hop)
                // What it does not know of may have ended it where it was seen last.
                && [&hop.node, &other.part.node].into_iter().all(|node| is_whole(node))
        });
        self.gone = Some(Gone {
            from: hop.node.clone(),
            towards,
            to: to.map(|to| to.part.node.clone()),
        });
        if to.is_some() {
            self.verdict = Verdict::Lost { is_reply };
        }
    }
}

/// Those that followed packets, each with the hops that are its own, in the order of its clock.
fn present(parts: &[Part]) -> Vec<Present<'_>> {
    let followed = || {
        parts
            .iter()
            .filter_map(|part| Some((part, part.attached.as_ref()?)))
    };
    let present = followed().map(|(part, attached)| {
        let others =
            followed().filter(|(_, other)| !other.kernel.is_empty() && other.kernel == attached.kernel);
        let is_alone = others.count() < 2;
        let mut seen: Vec<&Seen> = part.hops.iter().collect();
        seen.sort_by_key(|seen| seen.hop.at_ns);
        // Machines that are one see all packets of each other.
        let mut within = Within::new(&attached.namespaces);
        let own = seen.into_iter().filter(|seen| is_alone || within.has(&seen.hop));
        let hops = own.map(|seen| Hop {
            node: part.node.clone(),
            ..seen.hop.clone()
        });
        Present {
            part,
            attached,
            hops: hops.collect(),
        }
    });
    present.collect()
}

/// The packets of all of them, each with its hops in the order of its way, in the order in which they began.
fn woven(present: &[Present<'_>]) -> Vec<Vec<Hop>> {
    let of_each: Vec<Vec<Vec<Hop>>> = present
        .iter()
        .map(|present| packets::packets(&present.hops))
        .collect();
    let mut woven: Vec<Vec<Stay<'_>>> = Vec::new();
    for (part, own) in (0..).zip(&of_each) {
        for packet in own {
            let stays = stays(part, packet);
            match woven.iter_mut().find(|other| is_of_one(other, part, packet)) {
                Some(other) => other.extend(stays),
                None => woven.push(stays),
            }
        }
    }
    for packet in &mut woven {
        // Who sends it has not received it. Nobody but a router lets it go on, and each of these makes its TTL less.
        packet.sort_by_key(|stay| {
            let first = stay.hops.first();
            let is_received = first.is_some_and(|hop| hop.kind == HopKind::Received);
            (is_received, Reverse(first.map(|hop| hop.header.ttl)))
        });
    }
    let clocks = clocks(&woven, present.len());
    woven.sort_by_key(|packet| {
        let stay = packet.first();
        let at = stay.and_then(|stay| Some((stay.part, stay.hops.first()?.at_ns)));
        at.map(|(part, at)| match clocks.get(part).copied().flatten() {
            Some(behind) => (false, i128::from(at) + behind),
            None => (true, i128::from(at)),
        })
    });
    let whole = woven.into_iter().map(|stays| {
        let hops = stays.into_iter().flat_map(|stay| stay.hops);
        hops.cloned().collect()
    });
    whole.collect()
}

/// Takes a packet of a machine apart where it left and came back: what a device sent and then received itself was away.
fn stays(part: usize, packet: &[Hop]) -> Vec<Stay<'_>> {
    let mut stays: Vec<Stay<'_>> = Vec::new();
    for hop in packet {
        let is_end = !is_at_device(hop);
        let had_it = |stay: &Stay<'_>| stay.hops.iter().any(|other| other.packet == hop.packet);
        // Who lets go of a copy may do it when another one is back already.
        let at = stays.iter().rposition(|stay| is_end && had_it(stay));
        let stay = match at {
            Some(at) => stays.get_mut(at),
            None => stays.last_mut(),
        };
        match stay {
            Some(stay) if !stay.left().is_some_and(|before| came_back(before, hop)) => stay.hops.push(hop),
            _ => stays.push(Stay {
                part,
                hops: vec![hop],
            }),
        }
    }
    stays
}

fn is_at_device(hop: &Hop) -> bool {
    matches!(hop.kind, HopKind::Sent | HopKind::Received)
}

fn came_back(before: &Hop, hop: &Hop) -> bool {
    (&before.kind, &hop.kind) == (&HopKind::Sent, &HopKind::Received)
        && (before.netns, &before.device) == (hop.netns, &hop.device)
        && hop.device != "lo"
}

/// Whether a packet of a machine is one that others saw, and that it did not see before in a copy.
fn is_of_one(others: &[Stay<'_>], part: usize, packet: &[Hop]) -> bool {
    let (Some(first), Some(hop)) = (others.first().and_then(|stay| stay.hops.first()), packet.first()) else {
        return false;
    };
    let seen = || others.iter().flat_map(|stay| &stay.hops).copied();
    let is_known = || {
        let flows: BTreeSet<Flow> = seen().flat_map(packets::flows).map(Flow::canonical).collect();
        let mut own = packet.iter().flat_map(packets::flows).map(Flow::canonical);
        own.any(|flow| flows.contains(&flow))
    };
    others.iter().all(|stay| stay.part != part)
        && first.fingerprint() == hop.fingerprint()
        && is_known()
        && !packets::goes_back(seen(), hop)
}

/// What is to be added to the clock of each machine, so that causes come before what they bring about; of the first one
/// that saw something nothing. `None`: it saw no packet that leads from one that is known.
fn clocks(woven: &[Vec<Stay<'_>>], parts: usize) -> Vec<Option<i128>> {
    let mut clocks: Vec<Option<i128>> = vec![None; parts];
    let base = woven.iter().flatten().map(|stay| stay.part).min();
    if let Some(clock) = base.and_then(|base| clocks.get_mut(base)) {
        *clock = Some(0);
    }
    for _ in 1..parts {
        for part in 0..parts {
            if clocks.get(part) == Some(&None) {
                let found = clock(woven, part, &clocks);
                clocks.get_mut(part).into_iter().for_each(|clock| *clock = found);
            }
        }
    }
    clocks
}

/// In the middle between what those packets say that it had from others, and those that others had from it.
fn clock(woven: &[Vec<Stay<'_>>], part: usize, clocks: &[Option<i128>]) -> Option<i128> {
    let known = |stay: &Stay<'_>| clocks.get(stay.part).copied().flatten();
    let (mut least, mut most) = (None, None);
    for (before, after) in woven
        .iter()
        .flat_map(|packet| packet.iter().zip(packet.iter().skip(1)))
    {
        let (Some(sent), Some(received)) = (before.left(), after.hops.first()) else {
            continue;
        };
        let apart = i128::from(sent.at_ns) - i128::from(received.at_ns);
        if after.part == part
            && let Some(clock) = known(before)
        {
            least = least.max(Some(clock + apart));
        }
        if before.part == part
            && let Some(clock) = known(after)
        {
            let new = clock - apart;
            most = Some(most.map_or(new, |most: i128| most.min(new)));
        }
    }
    match (least, most) {
        (Some(least), Some(most)) => Some(least.midpoint(most)),
        (one, None) | (None, one) => one,
    }
}

/// The same hop, as two documents tell it.
fn is_same(one: &Hop, other: &Hop) -> bool {
    (one.at_ns, one.packet, one.netns, &one.device, &one.kind)
        == (other.at_ns, other.packet, other.netns, &other.device, &other.kind)
}

/// Who sends to whom where others see it: a tunnel's ends, where it is wrapped.
fn on_the_wire(hop: &Hop) -> Flow {
    hop.wrapping.map_or(hop.header.flow, |wrapping| wrapping.flow)
}

/// Whether who looks with this filter sees a packet that left another machine like this.
fn would_see(filter: &Filter, hop: &Hop) -> bool {
    let flow = hop.header.flow;
    let is_unwrapped = hop
        .wrapping
        .is_none_or(|wrapping| filter.vxlan_ports.contains(&wrapping.flow.destination.port()));
    let goes = |flow: Flow| {
        let is_target = |(address, port): &(IpAddr, Option<u16>)| {
            *address == flow.destination.ip() && port.is_none_or(|port| port == flow.destination.port())
        };
        (filter.sources.is_empty() || filter.sources.contains(&flow.source.ip()))
            && filter.source_port.is_none_or(|port| port == flow.source.port())
            && (filter.targets.is_empty() || filter.targets.iter().any(is_target))
            && filter.protocol.is_none_or(|protocol| protocol == flow.protocol)
    };
    is_unwrapped && (goes(flow) || goes(flow.reversed()))
}

fn witness(part: &Part, story: &Story) -> Witness {
    let own = |packet: &Packet| {
        let hops = packet.hops.iter();
        hops.filter(|step| step.hop.node == part.node).count()
    };
    let cut = || {
        let is_cut = part.hops.len() >= MOST_HOPS;
        is_cut.then(|| format!("it saw {MOST_HOPS} hops, and looked no longer"))
    };
    let untold = || {
        let is_untold = part.attached.is_some() && part.story.is_none();
        is_untold.then(|| "it did not tell what it saw at the end".to_owned())
    };
    let absent = || {
        part.attached
            .is_none()
            .then(|| "it did not follow packets".to_owned())
    };
    Witness {
        node: part.node.clone(),
        hops: story.packets.iter().map(own).sum(),
        gaps: part.story.as_ref().map(|story| story.gaps).unwrap_or_default(),
        missing: part.missing.clone().or_else(cut).or_else(untold).or_else(absent),
    }
}

//! A story for people, and for programs.

use std::fmt::Write as _;

use crate::cause::{self, Cause, Scene};
use crate::hop::{Flow, Hop, HopKind, Protocol};
use crate::story::{Gone, Packet, Step, Story, Verdict};

/// Packets that are told hop by hop; of the others there is a line each.
const IN_FULL: usize = 2;

/// Lines of later packets, at the most.
const LATER: usize = 10;

/// The story as JSON, with a line's end.
#[must_use]
pub fn json(story: &Story) -> String {
    format!("{:#}\n", serde_json::json!(story))
}

/// The story in words: the verdict first, then packets hop by hop, then what went wrong and what to look at. Where nothing
/// did, it ends before the connection does: how that is closed is told by [`full_text`].
#[must_use]
pub fn text(story: &Story) -> String {
    told(story, LATER, is_closing(story))
}

/// The same with all packets, also those that close a connection that worked.
#[must_use]
pub fn full_text(story: &Story) -> String {
    told(story, usize::MAX, |_| false)
}

/// The verdict and what to look at, without the packets.
#[must_use]
pub fn brief(story: &Story) -> Vec<String> {
    let mut lines = vec![headline(story)];
    lines.extend(conclusions(story));
    if story.gaps.lost_events > 0 {
        lines.extend(notes(story));
    }
    lines
}

fn told(story: &Story, most: usize, is_hidden: impl Fn(&Packet) -> bool) -> String {
    let mut text = String::new();
    line(&mut text, &headline(story));
    if let Some(choice) = &story.service {
        line(&mut text, &choice.to_string());
    }
    let (full, later) = in_full(story);
    for packet in &full {
        line(&mut text, "");
        packet_lines(&mut text, packet, is_of_several(story));
    }
    let (hidden, later): (Vec<_>, Vec<_>) = later.into_iter().partition(|packet| is_hidden(packet));
    let more = later.len().saturating_sub(most);
    let mut lines: Vec<String> = later
        .iter()
        .take(most)
        .map(|packet| summary(packet, story))
        .collect();
    lines.extend((more > 0).then(|| format!("and {more} packets more")));
    lines.extend((!hidden.is_empty()).then(|| {
        format!(
            "and {} packets that close the connection (--verbose shows them)",
            hidden.len()
        )
    }));
    for lines in [lines, notes(story), conclusions(story)] {
        if !lines.is_empty() {
            line(&mut text, "");
        }
        for told in lines {
            line(&mut text, &told);
        }
    }
    text
}

/// Whether a packet only closes a connection that worked: what ends it, and what comes after that and carries nothing.
fn is_closing(story: &Story) -> impl Fn(&Packet) -> bool + '_ {
    let works = matches!(story.verdict, Verdict::Answered | Verdict::Delivered);
    let at = |packet: &Packet| story.packets.iter().position(|other| other == packet);
    let end = story
        .packets
        .iter()
        .position(Packet::ends_connection)
        .filter(|_| works);
    move |packet| {
        let is_bare = packet
            .hops
            .first()
            .is_some_and(|step| step.hop.header.what == "ACK");
        end.is_some_and(|end| packet.ends_connection() || (is_bare && at(packet) >= Some(end)))
    }
}

fn line(text: &mut String, line: &str) {
    let _infallible = writeln!(text, "{}", line.trim_end());
}

/// The first request, and the reply that answers it; where a packet was dropped, that one too.
fn in_full(story: &Story) -> (Vec<&Packet>, Vec<&Packet>) {
    let first = story.packets.iter().position(|packet| !packet.is_reply);
    let reply = story.packets.iter().position(|packet| packet.is_reply);
    let dropped = story.drop().and_then(|step| {
        let holds = |packet: &Packet| packet.hops.iter().any(|other| other == step);
        story.packets.iter().position(holds)
    });
    let chosen: std::collections::BTreeSet<usize> = [first, reply, dropped]
        .into_iter()
        .flatten()
        .take(IN_FULL + 1)
        .collect();
    let (full, later): (Vec<_>, Vec<_>) = story
        .packets
        .iter()
        .enumerate()
        .partition(|(at, _)| chosen.contains(at));
    let strip = |packets: Vec<(usize, _)>| packets.into_iter().map(|(_, packet)| packet).collect();
    (strip(full), strip(later))
}

/// Whether the story is of several machines: places are told with their nodes then.
fn is_of_several(story: &Story) -> bool {
    !story.nodes.is_empty()
}

fn headline(story: &Story) -> String {
    let verdict = match story.verdict {
        Verdict::NothingSeen => "NOTHING SEEN",
        Verdict::Answered => "ANSWERED",
        Verdict::Refused => "REFUSED",
        Verdict::Delivered => "DELIVERED, no reply seen",
        Verdict::Left if is_of_several(story) => "LEFT",
        Verdict::Left => "LEFT THIS MACHINE",
        Verdict::Lost { is_reply: false } => "LOST",
        Verdict::Lost { is_reply: true } => "REPLY LOST",
        Verdict::Unanswered => "NO REPLY",
        Verdict::Dropped { is_reply: false } => "DROPPED",
        Verdict::Dropped { is_reply: true } => "REPLY DROPPED",
    };
    let Some(flow) = story.flow else {
        return format!("TRACE  verdict: {verdict}");
    };
    let end = match (story.drop(), story.left(), &story.gone) {
        (Some(step), ..) if story.verdict != Verdict::Refused => format!(" at {}", place(step, story)),
        (
            _,
            Some(_),
            Some(Gone {
                from, to: Some(to), ..
            }),
        ) => format!(" BETWEEN {from} and {to}"),
        (_, Some(step), Some(gone)) => {
            format!(" by {} to {}, no reply seen", place(step, story), gone.towards)
        }
        (_, Some(step), None) => format!(" by {}, no reply seen", place(step, story)),
        _ => String::new(),
    };
    let mut headline = format!("TRACE  {flow}/{}  verdict: {verdict}{end}", flow.protocol);
    if let Some(round_trip) = story.round_trip_ns {
        let _infallible = write!(headline, "  round trip {}", micros(round_trip));
    }
    headline
}

fn packet_lines(text: &mut String, packet: &Packet, with_nodes: bool) {
    let Some(first) = packet.hops.first() else { return };
    let direction = if packet.is_reply { "reply" } else { "request" };
    let header = &first.hop.header;
    line(
        text,
        &format!(
            "{direction}  {}{}, {} bytes",
            header.flow.protocol,
            named(&header.what),
            header.length
        ),
    );
    let width = |of: fn(&Step) -> &str| {
        let widths = packet.hops.iter().map(|step| of(step).chars().count());
        widths.max().unwrap_or(0)
    };
    let widths = Widths {
        node: with_nodes.then(|| width(|step| &step.hop.node)),
        place: width(|step| &step.at),
        device: width(|step| &step.hop.device),
    };
    let mut before: Option<&Hop> = None;
    for step in &packet.hops {
        line(text, &step_line(step, before, &widths));
        before = Some(&step.hop);
    }
}

/// Of the columns of a packet's hops.
struct Widths {
    /// None: there is no such column.
    node: Option<usize>,
    place: usize,
    device: usize,
}

fn named(what: &str) -> String {
    if what.is_empty() {
        String::new()
    } else {
        format!(" {what}")
    }
}

fn step_line(step: &Step, before: Option<&Hop>, widths: &Widths) -> String {
    let Step {
        after_ns, at, hop, ..
    } = step;
    let Widths { node, place, device } = widths;
    let kind = match &hop.kind {
        HopKind::Sent => "sent",
        HopKind::Received => "received",
        HopKind::Dropped { .. } => "DROPPED",
        HopKind::Consumed { .. } => "taken",
    };
    let after = format!("+{}", micros(*after_ns));
    let node = node.map_or_else(String::new, |width| format!("{:<width$}  ", hop.node));
    format!(
        "  {after:>12}  {node}{at:<place$}  {:<device$}  {kind:<8}  {}",
        hop.device,
        details(hop, before)
    )
}

/// What is new at this hop.
fn details(hop: &Hop, before: Option<&Hop>) -> String {
    let mut parts = Vec::new();
    let flow = hop.header.flow;
    if before.is_none_or(|before| before.header.flow != flow) {
        parts.push(flow.to_string());
    }
    if let Some(before) = before.filter(|before| before.header.flow != flow) {
        parts.push(translation(before.header.flow, flow));
    }
    match (hop.wrapping, before.and_then(|before| before.wrapping)) {
        (Some(wrapping), before) if before != Some(wrapping) => {
            parts.push(format!("in VXLAN {} {}", wrapping.vni, wrapping.flow));
        }
        (None, Some(_)) => parts.push("unwrapped".to_owned()),
        _ => {}
    }
    match &hop.kind {
        HopKind::Dropped { reason, place } => parts.push(format!("{reason} in {place}")),
        HopKind::Consumed { place } => parts.push(format!("by {place}")),
        HopKind::Sent | HopKind::Received => {}
    }
    parts.join("  ")
}

fn translation(before: Flow, after: Flow) -> String {
    match (
        before.source != after.source,
        before.destination != after.destination,
    ) {
        (true, false) => "(source NAT)",
        (false, true) => "(destination NAT)",
        _ => "(source and destination NAT)",
    }
    .to_owned()
}

/// One line for a packet.
fn summary(packet: &Packet, story: &Story) -> String {
    let (Some(first), Some(last)) = (packet.hops.first(), packet.hops.last()) else {
        return String::new();
    };
    let direction = if packet.is_reply { "reply" } else { "request" };
    let header = &first.hop.header;
    // Whose time it is.
    let node = match is_of_several(story) {
        true => format!("{}  ", first.hop.node),
        false => String::new(),
    };
    let end = match &last.hop.kind {
        HopKind::Dropped {
            reason,
            place: function,
        } => {
            format!("DROPPED at {}: {reason} in {function}", place(last, story))
        }
        HopKind::Consumed { .. } => format!("taken after {}", place_before_end(packet, story)),
        HopKind::Sent | HopKind::Received => format!("last seen at {}", place(last, story)),
    };
    format!(
        "{:>14}  {node}{direction:<7}  {}{}, {} bytes: {}, {end}",
        format!("+{}", micros(first.after_ns)),
        header.flow.protocol,
        named(&header.what),
        header.length,
        match packet.hops.len() {
            1 => "1 hop".to_owned(),
            hops => format!("{hops} hops"),
        },
    )
}

/// Where a packet was before somebody took it.
fn place_before_end(packet: &Packet, story: &Story) -> String {
    let at_device = packet.hops.iter().rev().find(|step| !step.hop.device.is_empty());
    at_device.map_or_else(String::new, |step| place(step, story))
}

/// What limits what was seen.
fn notes(story: &Story) -> Vec<String> {
    let mut notes = Vec::new();
    let missing = story
        .nodes
        .iter()
        .filter_map(|witness| Some((witness, witness.missing.as_ref()?)));
    notes.extend(missing.map(|(witness, why)| format!("MISSING: what {} saw: {why}", witness.node)));
    if is_of_several(story) {
        notes.push("times are since each node's first sight: clocks of nodes are not compared".to_owned());
    }
    if story.other_connections > 0 {
        notes.push(format!("{} other connections were seen", story.other_connections));
    }
    notes.push(match story.gaps.lost_events {
        0 => "0 events lost".to_owned(),
        lost => format!("INCOMPLETE: {lost} events lost; a hop that is missing says nothing"),
    });
    if story.lacks_symbols {
        notes.push(
            "the kernel's symbols cannot be read (CAP_SYSLOG, sysctl kernel.kptr_restrict): places are numbers, and \
             drops are judged by their reasons alone"
                .to_owned(),
        );
    }
    if story.gaps.missed_events > 0 {
        notes.push(format!(
            "{} packets of this machine, whoever's, were not looked at: a hop may be missing",
            story.gaps.missed_events
        ));
    }
    notes
}

/// What went wrong, and what to look at.
fn conclusions(story: &Story) -> Vec<String> {
    let (request, reply) = (story.last_step(false), story.last_step(true));
    match (story.verdict, reply.or(request)) {
        (Verdict::Dropped { .. }, _) => story
            .drop()
            .map(|step| dropped_lines(step, story))
            .unwrap_or_default(),
        (Verdict::Refused, _) => refused_lines(story),
        (Verdict::Left | Verdict::Lost { .. }, _) => story
            .left()
            .map(|step| left_lines(step, story))
            .unwrap_or_default(),
        (Verdict::Unanswered, Some(step)) => {
            let what = if reply.is_some() {
                "there was a reply, which nobody dropped, and which did not come back"
            } else {
                "nobody dropped it, and nobody answered"
            };
            let mut lines = vec![format!("{what}: it was seen last at {}", place(step, story))];
            lines.extend(
                step.cause
                    .iter()
                    .flat_map(|cause| cause_lines(cause, step, story)),
            );
            lines
        }
        (Verdict::NothingSeen, _) if story.is_probe => {
            let mut lines = vec!["a probe was sent, and no device had a packet of it".to_owned()];
            lines.extend(story.cause.iter().flat_map(bare_cause_lines));
            lines
        }
        (Verdict::NothingSeen, _) => {
            let mut lines =
                vec!["no packet of this kind was seen: nobody sent one while it was looked for".to_owned()];
            lines.extend(story.service.is_none().then(|| {
                "a Service's address is translated before a packet exists, where the socket hook does it: name the \
                 Service, or its endpoint"
                    .to_owned()
            }));
            lines
        }
        (Verdict::Answered | Verdict::Delivered | Verdict::Unanswered, _) => Vec::new(),
    }
}

fn dropped_lines(step: &Step, story: &Story) -> Vec<String> {
    let HopKind::Dropped {
        reason,
        place: function,
    } = &step.hop.kind
    else {
        return Vec::new();
    };
    let mut lines = vec![format!(
        "DROPPED at {}: {reason} in {function}",
        place(step, story)
    )];
    match &step.cause {
        Some(cause) => lines.extend(cause_lines(cause, step, story)),
        None => lines.push("means:   not known; the kernel's function is where it ended".to_owned()),
    }
    lines
}

/// Who refused it, and why.
fn refused_lines(story: &Story) -> Vec<String> {
    let Some(refusal) = story.refusal() else {
        let mut lines = vec!["REFUSED before there was a packet: its socket was told so".to_owned()];
        lines.extend(story.cause.iter().flat_map(bare_cause_lines));
        return lines;
    };
    let header = &refusal.hop.header;
    let mut lines = vec![format!(
        "REFUSED by {} at {}: {} {}",
        header.flow.source.ip(),
        place(refusal, story),
        header.flow.protocol,
        header.what
    )];
    let refuser = header.flow.source.ip().to_string();
    let scene = match refusal.hop.kind {
        // It was seen where it was made.
        HopKind::Sent => refusal.scene(),
        _ => Scene {
            at: &refuser,
            entering: None,
            ..refusal.scene()
        },
    };
    let said = cause::of_refusal(header.flow.protocol, &header.what, &scene);
    match story.drop() {
        // The answer says more than the place in the kernel does.
        Some(dropped) if is_without_reason(dropped) && header.flow.protocol != Protocol::TCP => {
            lines.extend(dropped_lines(dropped, story).into_iter().take(1));
            lines.extend(said.iter().flat_map(|cause| cause_lines(cause, refusal, story)));
        }
        Some(dropped) => lines.extend(dropped_lines(dropped, story)),
        // Who refused it is not here, or needed no rule for it.
        None => lines.extend(said.iter().flat_map(|cause| cause_lines(cause, refusal, story))),
    }
    lines
}

fn is_without_reason(step: &Step) -> bool {
    matches!(&step.hop.kind, HopKind::Dropped { reason, .. } if reason == "NOT_SPECIFIED")
}

fn left_lines(step: &Step, story: &Story) -> Vec<String> {
    let mut lines = vec![left_line(step, story)];
    if let Some(cause) = &step.cause {
        lines.extend(cause_lines(cause, step, story));
        return lines;
    }
    let to = story.gone.as_ref().and_then(|gone| gone.to.as_ref());
    lines.push(match (to, step.hop.wrapping) {
        (Some(to), Some(wrapping)) => format!(
            "look at: what is between {} and {to}: firewalls and security groups for UDP port {}",
            step.hop.node,
            wrapping.flow.destination.port()
        ),
        (Some(to), None) => format!(
            "look at: what is between {} and {to}: firewalls and security groups, routes for {}",
            step.hop.node,
            step.hop.header.flow.destination.ip()
        ),
        (None, Some(wrapping)) => {
            let other = wrapping.flow.destination.ip();
            format!("look at: the same trace on the machine that has {other}")
        }
        (None, None) => {
            let route = format!("ip route get {}", step.hop.header.flow.destination.ip());
            let route = format!("look at: {}{}", step.command(&route), where_to(step, story));
            return [
                lines,
                vec![route, "look at: what is behind that device".to_owned()],
            ]
            .concat();
        }
    });
    lines
}

fn left_line(step: &Step, story: &Story) -> String {
    let place = place_on(step);
    let what = match story.verdict {
        Verdict::Lost { is_reply: true } => "REPLY LOST",
        _ => "LOST",
    };
    match &story.gone {
        Some(Gone {
            from,
            towards,
            to: Some(to),
        }) => {
            format!(
                "{what} BETWEEN {from} and {to}: it left {from} by {place} to {towards}, and {to} saw nothing of it"
            )
        }
        Some(Gone { from, towards, .. }) => {
            format!(
                "LEFT {from} by {place} to {towards}: no node that was asked received the packet from there"
            )
        }
        None => format!("LEFT THIS MACHINE by {place}: nothing on it received the packet from there"),
    }
}

/// Why it ended at this step, and what to look at.
fn cause_lines(cause: &Cause, step: &Step, story: &Story) -> Vec<String> {
    let mut lines = bare_cause_lines(cause);
    let looks = lines.iter_mut().skip(1);
    looks.for_each(|look| look.push_str(&where_to(step, story)));
    lines
}

/// On which of several nodes a command tells something.
fn where_to(step: &Step, story: &Story) -> String {
    match is_of_several(story) {
        true => format!("  # on {}", step.hop.node),
        false => String::new(),
    }
}

fn bare_cause_lines(cause: &Cause) -> Vec<String> {
    let means = format!("means:   {}", cause.means);
    let look = cause.look.iter().map(|look| format!("look at: {look}"));
    [means].into_iter().chain(look).collect()
}

/// The node where there are several, the namespace, and the device where there is one.
fn place(step: &Step, story: &Story) -> String {
    match is_of_several(story) {
        true => format!("{} {}", step.hop.node, place_on(step)),
        false => place_on(step),
    }
}

/// The same on its node.
fn place_on(step: &Step) -> String {
    [step.at.as_str(), &step.hop.device]
        .join(" ")
        .trim_end()
        .to_owned()
}

/// Nanoseconds as microseconds.
fn micros(nanos: u64) -> String {
    format!("{}.{} us", nanos / 1000, nanos % 1000 / 100)
}

//! What was dropped, for people and for programs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use serde_json::json;

use super::{Dropped, Kind, Report, Uncounted};
use crate::hop::Protocol;

/// How many commands a way of dropping has, at the most: it may be the same at many places.
const LOOKS: usize = 8;

/// The report as JSON, with a line's end.
#[must_use]
pub fn json(report: &Report) -> String {
    format!("{:#}\n", json!(report))
}

/// A line of JSON for each kind of drops, and a last one for what was not told.
#[must_use]
pub fn lines(report: &Report) -> String {
    let mut text = lines_of(&report.drops);
    let mut rest = json!(report);
    if let Some(rest) = rest.as_object_mut() {
        rest.remove("drops");
    }
    line(&mut text, &rest.to_string());
    text
}

/// A line of JSON for each kind of drops.
#[must_use]
pub fn lines_of(drops: &[Dropped]) -> String {
    drops
        .iter()
        .map(|dropped| format!("{}\n", json!(dropped)))
        .collect()
}

/// The report in words: what was dropped, then what that means.
#[must_use]
pub fn text(report: &Report) -> String {
    let packets: u64 = report.drops.iter().map(|dropped| dropped.packets).sum();
    let (seconds, tenths) = (report.millis / 1000, report.millis % 1000 / 100);
    let mut text = format!(
        "DROPS  {seconds}.{tenths} s of {}: {packets} packets\n",
        report.node
    );
    if !report.drops.is_empty() {
        line(&mut text, "");
        table(&mut text, report);
        line(&mut text, "");
        for (what, Meaning { means, look }) in meanings(&report.drops) {
            line(&mut text, &what);
            for means in means {
                line(&mut text, &format!("  means:   {means}"));
            }
            for look in look.iter().take(LOOKS) {
                line(&mut text, &format!("  look at: {look}"));
            }
            if let more @ 1.. = look.len().saturating_sub(LOOKS) {
                line(&mut text, &format!("  and {more} more: -o json has all"));
            }
        }
    }
    line(&mut text, "");
    text.push_str(&notes(report));
    text
}

/// A line for each kind of drops, as they come.
#[must_use]
pub fn text_of(drops: &[Dropped]) -> String {
    let of_one = |dropped: &Dropped| {
        let Row {
            packets,
            at,
            device,
            why,
            what,
            ..
        } = Row::of(dropped);
        let at = [at.as_str(), device.as_str()].join(" ");
        let means = dropped.cause.as_ref();
        let means = means.map_or_else(String::new, |cause| format!(": {}", cause.means));
        format!(
            "{}  {packets} at {}  {why}  {what}{means}\n",
            dropped.last.strftime("%H:%M:%S"),
            at.trim_end()
        )
    };
    drops.iter().map(of_one).collect()
}

/// What was not counted, in words; nothing where all was.
fn incomplete(uncounted: Uncounted) -> Vec<String> {
    let Uncounted { forgotten, missed } = uncounted;
    let mut notes = Vec::new();
    if forgotten > 0 {
        notes.push(format!(
            "INCOMPLETE: {forgotten} packets more were dropped in other ways, which there was no room to remember"
        ));
    }
    if missed > 0 {
        notes.push(format!(
            "INCOMPLETE: {missed} drops were not counted, since another was just being counted on that CPU"
        ));
    }
    notes
}

fn line(text: &mut String, line: &str) {
    let _infallible = writeln!(text, "{}", line.trim_end());
}

/// A line of the table.
struct Row {
    packets: String,
    bytes: String,
    when: String,
    at: String,
    device: String,
    why: String,
    what: String,
}

impl Row {
    fn of(dropped: &Dropped) -> Self {
        let (from, to) = (
            dropped.first.strftime("%H:%M:%S").to_string(),
            dropped.last.strftime("%H:%M:%S").to_string(),
        );
        let Kind {
            device,
            reason,
            place,
            ..
        } = &dropped.kind;
        Self {
            packets: dropped.packets.to_string(),
            bytes: dropped.bytes.to_string(),
            when: if from == to { from } else { format!("{from}-{to}") },
            at: dropped.at.clone(),
            device: device.clone(),
            why: format!("{reason} in {place}"),
            what: what(dropped),
        }
    }

    fn heading() -> Self {
        let [packets, bytes, when, at, device, why, what] =
            ["PACKETS", "BYTES", "WHEN (UTC)", "AT", "DEVICE", "WHY", "WHAT"].map(str::to_owned);
        Self {
            packets,
            bytes,
            when,
            at,
            device,
            why,
            what,
        }
    }
}

fn table(text: &mut String, report: &Report) {
    let rows: Vec<Row> = std::iter::once(Row::heading())
        .chain(report.drops.iter().map(Row::of))
        .collect();
    let width = |cell: fn(&Row) -> &str| {
        rows.iter()
            .map(|row| cell(row).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (packets, bytes) = (width(|row| &row.packets), width(|row| &row.bytes));
    let (when, at) = (width(|row| &row.when), width(|row| &row.at));
    let (device, why) = (width(|row| &row.device), width(|row| &row.why));
    for row in &rows {
        line(
            text,
            &format!(
                "{:>packets$}  {:>bytes$}  {:<when$}  {:<at$}  {:<device$}  {:<why$}  {}",
                row.packets, row.bytes, row.when, row.at, row.device, row.why, row.what
            ),
        );
    }
}

/// Who sent what to whom.
fn what(dropped: &Dropped) -> String {
    let kind = &dropped.kind;
    let (Some(protocol), Some(source), Some(destination)) = (kind.protocol, kind.source, kind.destination)
    else {
        return match kind.ethertype {
            0 => "of a unix or netlink socket".to_owned(),
            0x0806 => "arp".to_owned(),
            0x0800 | 0x86dd => "an IP packet whose headers are not whole".to_owned(),
            ethertype => format!("ethertype {ethertype:#06x}"),
        };
    };
    let first = if kind.opens { " SYN" } else { "" };
    let wrapped = if kind.wrapped { " (within VXLAN)" } else { "" };
    format!(
        "{protocol}{first}  {} -> {}{wrapped}",
        end(source, kind.source_port, protocol, dropped.source_pod.as_deref()),
        end(
            destination,
            kind.destination_port,
            protocol,
            dropped.destination_pod.as_deref()
        ),
    )
}

fn end(address: IpAddr, port: Option<u16>, protocol: Protocol, pod: Option<&str>) -> String {
    let address = match port {
        Some(port) if protocol.has_ports() => SocketAddr::new(address, port).to_string(),
        _ => address.to_string(),
    };
    match pod {
        Some(pod) => format!("{pod} {address}"),
        None => address,
    }
}

/// What a way of dropping means wherever it was, and what to look at there: each once, in the order of the drops.
#[derive(Debug, Default)]
struct Meaning<'a> {
    means: Vec<&'a str>,
    look: Vec<&'a str>,
}

/// What each way of dropping means.
fn meanings(drops: &[Dropped]) -> BTreeMap<String, Meaning<'_>> {
    let mut all: BTreeMap<String, Meaning<'_>> = BTreeMap::new();
    let mut told = BTreeSet::new();
    for dropped in drops {
        let Some(cause) = &dropped.cause else { continue };
        let way = format!("{} in {}", dropped.kind.reason, dropped.kind.place);
        let meaning = all.entry(way.clone()).or_default();
        if told.insert((way.clone(), cause.means.as_str())) {
            meaning.means.push(&cause.means);
        }
        let look = cause.look.iter().map(String::as_str);
        meaning
            .look
            .extend(look.filter(|look| told.insert((way.clone(), look))));
    }
    all
}

/// What was not told, a line each.
#[must_use]
pub fn notes(report: &Report) -> String {
    let mut notes = Vec::new();
    if report.ordinary_packets > 0 {
        notes.push(format!(
            "{} more that are part of normal traffic: --all",
            report.ordinary_packets
        ));
    }
    if report.lacks_symbols {
        notes.push(
            "the kernel's symbols cannot be read (CAP_SYSLOG, sysctl kernel.kptr_restrict): places are numbers, and \
             drops are judged by their reasons alone"
                .to_owned(),
        );
    }
    let incomplete = incomplete(report.uncounted);
    if incomplete.is_empty() {
        notes.push("every drop was counted".to_owned());
    }
    notes.extend(incomplete);
    notes.into_iter().map(|note| note + "\n").collect()
}

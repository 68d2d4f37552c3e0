//! Flows, for people and for programs.

use std::fmt::Write as _;

use serde_json::json;

use super::record::{End, Layer4, Object, Record, Verdict};
use crate::drops::Uncounted;
use crate::hop::Protocol;

/// Records as a list in JSON, with what was not counted, and a line's end.
#[must_use]
pub fn json(records: &[Record], uncounted: Uncounted) -> String {
    format!("{:#}\n", json!({ "flows": records, "uncounted": uncounted }))
}

/// A line of JSON for each record.
#[must_use]
pub fn lines(records: &[Record]) -> String {
    records
        .iter()
        .map(|record| format!("{}\n", json!(record)))
        .collect()
}

/// What was not counted, as a line of JSON, in Hubble's words for it.
#[must_use]
pub fn lost_line(node: &str, uncounted: Uncounted) -> String {
    let lost = uncounted.forgotten + uncounted.missed;
    format!(
        "{}\n",
        json!({ "lost_events": { "source": "HUBBLE_RING_BUFFER", "num_events_lost": lost }, "node_name": node })
    )
}

/// A line for each record.
#[must_use]
pub fn text(records: &[Record]) -> String {
    let mut text = String::new();
    for record in records {
        line(&mut text, &one(record));
    }
    text
}

/// What was not counted, in words.
#[must_use]
pub fn notes(uncounted: Uncounted) -> String {
    let Uncounted { forgotten, missed } = uncounted;
    match (forgotten, missed) {
        (0, 0) => "every packet was counted\n".to_owned(),
        (0, missed) => format!(
            "INCOMPLETE: {missed} packets were not counted, since another was just being counted on that CPU\n"
        ),
        (forgotten, missed) => format!(
            "INCOMPLETE: {forgotten} packets of further flows, which there was no room to remember, and {missed} that were not \
             counted\n"
        ),
    }
}

fn line(text: &mut String, line: &str) {
    let _infallible = writeln!(text, "{}", line.trim_end());
}

fn one(record: &Record) -> String {
    let Record {
        time,
        verdict,
        ip,
        l4,
        source,
        destination,
        packets,
        bytes,
        ..
    } = record;
    let (protocol, ports) = ports(l4);
    let arrow = if record.is_reply { "<-" } else { "->" };
    let (from, to) = (
        place(source, &ip.source.to_string(), ports.map(|(port, _)| port)),
        place(
            destination,
            &ip.destination.to_string(),
            ports.map(|(_, port)| port),
        ),
    );
    // A reply stands as its request does: who began on the left.
    let ends = if record.is_reply {
        format!("{to} {arrow} {from}")
    } else {
        format!("{from} {arrow} {to}")
    };
    let mut line = format!("{}  {protocol}  {ends}", time.strftime("%H:%M:%S"));
    match (&record.destination_service, record.service_address) {
        (Some(Object { name, namespace }), Some(address)) => {
            let _infallible = write!(line, " as svc/{namespace}/{name} {address}");
        }
        (Some(Object { name, namespace }), None) => {
            let _infallible = write!(line, " as svc/{namespace}/{name}");
        }
        (None, Some(address)) => {
            let _infallible = write!(line, " as {address}");
        }
        (None, None) => {}
    }
    let amount = format!("{packets} packets {bytes} bytes");
    let _infallible = match verdict {
        Verdict::Forwarded => write!(line, "  FORWARDED  {amount}"),
        Verdict::Dropped => write!(
            line,
            "  DROPPED  {amount}  {} in {} at {}",
            record.drop_reason_desc.as_deref().unwrap_or_default(),
            record.drop_place.as_deref().unwrap_or_default(),
            record.drop_netns.as_deref().unwrap_or_default()
        ),
    };
    if matches!(l4, Layer4::Tcp { .. }) {
        let _infallible = write!(line, "  ({})", record.summary);
    }
    line
}

fn ports(l4: &Layer4) -> (Protocol, Option<(u16, u16)>) {
    match l4 {
        Layer4::Tcp {
            source_port,
            destination_port,
            ..
        } => (Protocol::TCP, Some((*source_port, *destination_port))),
        Layer4::Udp {
            source_port,
            destination_port,
        } => (Protocol::UDP, Some((*source_port, *destination_port))),
        Layer4::IcmpV4 {} => (Protocol::ICMP, None),
        Layer4::IcmpV6 {} => (Protocol::ICMP_V6, None),
        Layer4::Sctp {} => (Protocol::SCTP, None),
        Layer4::Other(number) => (Protocol(*number), None),
    }
}

fn place(end: &End, address: &str, port: Option<u16>) -> String {
    let address = match port {
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
        None => address.to_owned(),
    };
    match (&end.namespace, &end.pod_name, &end.netns) {
        (Some(namespace), Some(pod), _) => format!("pod/{namespace}/{pod} {address}"),
        (_, _, Some(netns)) => format!("{netns} {address}"),
        _ => address,
    }
}

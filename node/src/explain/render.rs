//! An explanation for people, and for programs.

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::{Conclusion, End, Explanation, Stage, Step};
use crate::cli::Output;
use crate::logs::printable;

/// Entries of one step that are shown to people.
const ENTRIES: usize = 16;

/// In the form that was asked for.
#[must_use]
pub fn render(explanation: &Explanation, output: Output) -> String {
    match output {
        Output::Text => text(explanation),
        Output::Json => format!("{:#}\n", serde_json::json!(explanation)),
    }
}

fn text(explanation: &Explanation) -> String {
    let Explanation {
        node,
        source,
        destination,
        protocol,
        forward,
        reverse,
        conclusion,
        sentence,
        notes,
    } = explanation;
    let verdict = match conclusion {
        Conclusion::Works => "WORKS",
        Conclusion::Fails => "FAILS",
        Conclusion::CouldNotTell => "UNKNOWN",
    };
    let mut text = String::new();
    let (from, to) = (end(source), end(destination));
    line(
        &mut text,
        &format!("EXPLAIN {from} -> {to}/{protocol}: {verdict}: {sentence}"),
    );
    match node {
        Some(node) => line(&mut text, &format!("as {node} sees it; no packet is sent")),
        None => line(
            &mut text,
            "no agent answers: only what the kernel has is told, and not what it should have",
        ),
    }
    for (way, steps) in [("forward", forward), ("reverse", reverse)] {
        if steps.is_empty() {
            continue;
        }
        line(&mut text, way);
        for step in steps {
            write_step(&mut text, step);
        }
    }
    for note in notes {
        line(&mut text, &format!("note: {note}"));
    }
    text
}

/// What others wrote must not drive the terminal.
fn line(text: &mut String, content: &str) {
    let _infallible = writeln!(text, "{}", printable(content));
}

fn end(end: &End) -> String {
    let address = match end.port {
        Some(port) => SocketAddr::new(end.address, port).to_string(),
        None => end.address.to_string(),
    };
    let node = end
        .node
        .as_ref()
        .map(|node| format!(" on {node}"))
        .unwrap_or_default();
    match end.name.as_str() {
        "address" => address,
        name => printable(&format!("{name}{node} ({address})")),
    }
}

const fn title(stage: Stage) -> &'static str {
    match stage {
        Stage::Service => "SERVICE",
        Stage::FastPath => "FAST PATH",
        Stage::Tracking => "TRACKING",
        Stage::Route => "ROUTE",
        Stage::Translation => "SNAT",
        Stage::Link => "LINK",
        Stage::Neighbour => "NEIGHBOUR",
        Stage::Forwarding => "FDB",
        Stage::Underlay => "UNDERLAY",
        Stage::Rules => "RULES",
    }
}

fn write_step(text: &mut String, step: &Step) {
    line(text, &format!("  {:<9} {}", title(step.stage), step.about));
    for object in &step.objects {
        line(text, &format!("    objects  {object}"));
    }
    for entry in step.kernel.iter().take(ENTRIES) {
        let value = entry.value.as_deref().unwrap_or("ABSENT");
        line(
            text,
            &format!("    kernel   {} [{}] {value}", entry.place, entry.key),
        );
    }
    if let more @ 1.. = step.kernel.len().saturating_sub(ENTRIES) {
        line(
            text,
            &format!("    kernel   and {more} entries more: -o json has all"),
        );
    }
    for (mark, lines) in [
        ("PROBLEM", &step.problems),
        ("DIFFERS", &step.differences),
        ("UNKNOWN", &step.unknown),
    ] {
        for content in lines {
            line(text, &format!("    {mark}  {content}"));
        }
    }
    let is_in_doubt = [&step.problems, &step.differences, &step.unknown]
        .iter()
        .any(|lines| !lines.is_empty());
    for command in step.look.iter().filter(|_| is_in_doubt) {
        line(text, &format!("    look at: {command}"));
    }
}

//! `causeway trace`: follows a packet and its reply through this machine, by the crate `trace`.
//!
//! Names of pods are those that agents of this machine have written down (`overlay::pods`); nobody need answer for that.

mod filter;
mod inject;
pub mod known;
pub mod pods;

use std::time::{Duration, Instant};

use anyhow::Context;
use trace::{Filter, Gaps, Hop, Names, Session, Story, Verdict};

use crate::cli::{Output, TraceArgs};
use crate::logs::printable;
use filter::filter;
use pods::Pods;

/// How long a connection is followed that is not answered: no TCP tries again sooner (RFC 6298 §2.1).
const SETTLE: Duration = Duration::from_secs(1);

/// More is not looked at: the story is of one connection.
const MOST_HOPS: usize = 5000;

/// What was seen.
#[derive(Debug)]
pub struct Followed {
    story: Story,
}

/// What that means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Packets arrive.
    Good,
    /// They do not, or are not answered.
    Wrong,
    /// It cannot be told.
    Nothing,
}

impl Followed {
    /// The story in the form that was asked for.
    #[must_use]
    pub fn render(&self, output: Output) -> String {
        match output {
            // A pod that may name its devices, or a file of `ip netns`, must not drive the terminal.
            Output::Text => {
                let text = trace::render::text(&self.story);
                text.lines().map(|line| printable(line) + "\n").collect()
            }
            Output::Json => trace::render::json(&self.story),
        }
    }

    /// What the story means.
    #[must_use]
    pub fn finding(&self) -> Finding {
        match self.story.verdict {
            Verdict::NothingSeen => Finding::Nothing,
            // What was lost may have been the reply.
            Verdict::Unanswered if self.story.gaps.lost_events > 0 => Finding::Nothing,
            verdict if verdict.is_wrong() => Finding::Wrong,
            _ => Finding::Good,
        }
    }
}

/// Follows the next packet from one end to the other, or one that is sent for it.
///
/// # Errors
/// When an end is not known, or packets cannot be followed or sent.
pub fn follow(args: &TraceArgs) -> anyhow::Result<Followed> {
    let pods = Pods::read(&args.config)?;
    let filter = filter(&args.ends.parse()?, &pods)?;
    let namespaces = trace::namespaces::of_this_machine();
    let probe = args
        .inject
        .then(|| inject::Probe::new(&filter, args.netns.as_deref(), &namespaces))
        .transpose()?;
    let mut session = Session::start(&filter, &host_name())?;
    let attached_in = session.attached_in();
    let sent = probe.map(|probe| std::thread::spawn(move || probe.send()));
    let (hops, gaps) = collect(args, &filter, &mut session)?;
    let detaching = Instant::now();
    drop(session);
    if args.verbose {
        let detached_in = detaching.elapsed().as_millis();
        eprintln!(
            "attached in {} ms, detached in {detached_in} ms",
            attached_in.as_millis()
        );
    }
    if let Some(sent) = sent {
        let sent = sent
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        sent.context("send a packet")?;
    }
    let names = pods.names(&namespaces);
    Ok(Followed {
        story: Story::new(&filter, &hops, &names, gaps),
    })
}

/// What is seen until it is enough, and what was not.
fn collect(args: &TraceArgs, filter: &Filter, session: &mut Session) -> anyhow::Result<(Vec<Hop>, Gaps)> {
    let mut hops = Vec::new();
    let mut deadline = Instant::now() + args.timeout;
    while hops.len() < MOST_HOPS
        && let Some(hop) = session.next_hop(deadline)?
    {
        if hops.is_empty() {
            deadline = Instant::now() + args.follow.unwrap_or(SETTLE);
        }
        hops.push(hop);
        // What has been seen already belongs to it.
        while hops.len() < MOST_HOPS
            && let Some(hop) = session.next_hop(Instant::now())?
        {
            hops.push(hop);
        }
        if args.follow.is_none()
            && Story::new(filter, &hops, &Names::default(), Gaps::default()).is_complete()
        {
            break;
        }
    }
    Ok((hops, session.gaps()?))
}

/// What this machine calls itself.
#[must_use]
pub fn host_name() -> String {
    let name = nix::unistd::gethostname();
    name.map_or_else(
        |_| "this machine".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

/// A time as on command lines: `500ms`, `30s`, `2m`.
///
/// # Errors
/// When it is none.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| format!("{text} is no time: 500ms, 30s or 2m is one"))?;
    let millis = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        unit => return Err(format!("{unit:?} is no unit of time: ms, s or m is one")),
    };
    let millis = number.checked_mul(millis).filter(|millis| *millis <= 86_400_000);
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text} is longer than a day"))
}

#[cfg(test)]
mod tests {
    use trace::HopKind;
    use trace::hop::{Flow, Header, Protocol};

    use super::*;

    #[test]
    fn a_devices_name_drives_no_terminal() {
        let flow = Flow {
            source: "10.244.1.5:40000".parse().expect("an address"),
            destination: "10.244.1.6:8080".parse().expect("an address"),
            protocol: Protocol::TCP,
        };
        let hop = Hop {
            at_ns: 1,
            packet: 1,
            node: "machine".to_owned(),
            netns: 1,
            device: "\u{1b}[2J".to_owned(),
            kind: HopKind::Sent,
            header: Header {
                flow,
                what: "SYN".to_owned(),
                ip_id: 1,
                sequence: 1,
                acknowledgement: 0,
                length: 60,
                ttl: 64,
            },
            wrapping: None,
            connection: None,
        };
        let filter = Filter {
            targets: vec![(flow.destination.ip(), Some(flow.destination.port()))],
            ..Filter::default()
        };
        let story = Story::new(&filter, &[hop], &Names::default(), Gaps::default());
        let told = trace::render::text(&story);
        let text = Followed { story }.render(Output::Text);
        assert_eq!(text, told.replace('\u{1b}', "\u{fffd}"));
        assert!(text.contains("\u{fffd}[2J"), "{text}");
    }

    #[test]
    fn only_events_that_were_lost_make_an_unanswered_connection_one_that_cannot_be_told() {
        let finding = |lost_events, missed_events| {
            let mut story = Story::new(&Filter::default(), &[], &Names::default(), Gaps::default());
            story.verdict = Verdict::Unanswered;
            story.gaps = Gaps {
                lost_events,
                missed_events,
            };
            Followed { story }.finding()
        };
        let rows = [
            (0, 0, Finding::Wrong),
            (0, 7, Finding::Wrong),
            (1, 0, Finding::Nothing),
        ];
        for (lost, missed, wanted) in rows {
            assert_eq!(finding(lost, missed), wanted, "{lost} lost, {missed} missed");
        }
    }

    #[test]
    fn times_have_units() {
        let rows = [("500ms", 500), ("30s", 30_000), ("2m", 120_000)];
        for (text, millis) in rows {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)));
        }
        for text in ["30", "s", "3h", "-1s", "1.5s", "", "99999999999m", "2000m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}

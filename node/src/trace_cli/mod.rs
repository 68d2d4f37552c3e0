//! `causeway trace`: follows a packet and its reply through this machine, by the crate `trace`.
//!
//! - [`filter`]: whose packets both ends mean.
//! - [`inject`]: a packet that is sent to be followed.
//! - [`standing`]: the cgroup that it is sent from.
//! - [`interrupt`]: Ctrl-C ends the looking, not the telling.
//! - [`telling`]: its own part of a story of several machines, as it comes.
//! - [`ending`]: why a packet ended where it did, beyond the kernel's words.
//! - [`window`]: what commands have in common that count for a time.

mod ending;
pub mod filter;
mod inject;
mod interrupt;
mod standing;
mod telling;
pub mod window;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use trace::part::{Line, MOST_HOPS};
use trace::{Filter, Gaps, Hop, Names, Session, Story, Verdict};

use crate::cli::{Stream, TraceArgs};
use crate::ends::Name;
use crate::ends::meant::Resolver;
use crate::logs::tell;
use ending::Machine;
use filter::{Ports, Wanted, wanted};
use inject::{Probe, Said, Sender, Sending};
use interrupt::Interrupt;
use telling::Telling;

/// How long a connection is followed that is not answered: no TCP tries again sooner (RFC 6298 §2.1).
const SETTLE: Duration = Duration::from_secs(1);

/// How long after a socket was told that it is refused its packet is looked for: where there was one it is there already.
const REFUSED: Duration = Duration::from_millis(100);

/// What was seen.
#[derive(Debug)]
pub struct Followed {
    story: Story,
    /// Whether all of it is told.
    in_full: bool,
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
    pub fn render(&self, output: Stream) -> String {
        match output {
            Stream::Text => text(&self.story, self.in_full),
            Stream::Json => trace::render::json(&self.story),
            Stream::Ndjson => Line::Story(Box::new(self.story.clone())).text(),
        }
    }

    /// What the story means.
    #[must_use]
    pub fn finding(&self) -> Finding {
        finding(&self.story)
    }
}

/// A story for people: with all packets, or with those that matter.
#[must_use]
pub fn text(story: &Story, in_full: bool) -> String {
    window::safe(&match in_full {
        true => trace::render::full_text(story),
        false => trace::render::text(story),
    })
}

/// What a story means.
#[must_use]
pub fn finding(story: &Story) -> Finding {
    match story.verdict {
        Verdict::NothingSeen if story.cause.is_some() => Finding::Wrong,
        Verdict::NothingSeen => Finding::Nothing,
        // What became of it another machine may know; but not where it took the wrong way.
        Verdict::Left => match story.left().and_then(|step| step.cause.as_ref()) {
            Some(_) => Finding::Wrong,
            None => Finding::Nothing,
        },
        // What was lost may have been the reply.
        Verdict::Unanswered if story.gaps.lost_events > 0 => Finding::Nothing,
        verdict if verdict.is_wrong() => Finding::Wrong,
        _ => Finding::Good,
    }
}

/// Follows the next packet from one end to the other, or one that is sent for it. SIGINT and SIGTERM end that early. What
/// is told before the end is told by `show`, which says whether anybody reads it.
///
/// # Errors
/// When an end is not known, or packets cannot be followed or sent.
pub fn follow(args: &TraceArgs, show: impl Fn(&str) -> bool) -> anyhow::Result<Followed> {
    let resolver = Resolver::read(&args.config)?;
    let namespaces = trace::namespaces::of_this_machine();
    let own = telling::own_namespaces(&resolver, &namespaces);
    let Wanted {
        mut filter,
        service,
        is_of_node,
        netns,
    } = wanted(&args.ends.parse()?, &resolver, Ports::One, &namespaces)?;
    let homes = resolver.pods.homes(&namespaces);
    let sender = Sender {
        is_of_node,
        home: netns.or_else(|| {
            filter
                .sources
                .iter()
                .find_map(|source| homes.get(source).copied())
        }),
        netns: args.netns.as_deref(),
        hooked: match netns {
            Some(netns) => resolver.agents.hooked_in(netns),
            None => {
                let node = resolver.pods.node_of(&filter.sources);
                node.and_then(|node| resolver.agents.hooked(node))
            }
        },
    };
    let probe = args
        .inject
        .then(|| Probe::new(&filter, &sender, &namespaces))
        .transpose()?;
    let sent = probe.as_ref().map(|probe| (probe.flow(), probe.netns()));
    // Others of the same kind may be under way.
    filter.source_port = sent.map(|(flow, _)| flow.source.port());
    also_from(&mut filter, args, &resolver);
    let names = resolver.names(&namespaces);
    let interrupt = Interrupt::hold()?;
    let session = Session::start(&filter, &host_name())?;
    let attached_in = session.attached_in();
    let mut telling = Telling::new(args, &own, &names, &show);
    telling.attached(&filter, service.as_ref(), &namespaces);
    let mut watch = Watch {
        session,
        interrupt,
        sending: probe.map(Probe::start).transpose()?,
    };
    if !args.inject && args.output != Stream::Ndjson {
        tell("following packets: Ctrl-C ends it, and tells what was seen");
    }
    let Seen { hops, gaps, said } = watch.collect(args, &filter, &mut telling)?;
    let detaching = Instant::now();
    drop(watch);
    if args.verbose {
        let detached_in = detaching.elapsed().as_millis();
        tell(format_args!(
            "attached in {} ms, detached in {detached_in} ms",
            attached_in.as_millis()
        ));
    }
    let mut story = Story::new(&filter, &hops, &names, gaps);
    if let Some(service) = &service {
        story = story.to_service(service);
    }
    let machine = Machine {
        agents: &resolver.agents,
        pods: &resolver.pods,
        namespaces: &namespaces,
    };
    if let Some((flow, netns)) = sent {
        story = story.of_probe(flow, said.is_some());
        story.explain_unseen(|| machine.unseen(flow, netns, said.as_ref(), service.as_ref()));
    }
    story.explain_end(|step, packet| machine.cause(step, packet));
    machine.explain_silence(&mut story);
    Ok(Followed {
        story,
        in_full: args.verbose,
    })
}

/// Adds those whose addresses may stand in the place of the sender's.
fn also_from(filter: &mut Filter, args: &TraceArgs, resolver: &Resolver) {
    for end in &args.also_from {
        let meant = Name::parse_in(&args.ends.namespace, end).map_err(Into::into);
        match meant.and_then(|name| resolver.meant(&name)) {
            // Anybody is looked for already.
            Ok(_) if filter.sources.is_empty() => {}
            Ok(meant) => filter.sources.extend([meant.addresses, meant.tunnel].concat()),
            Err(error) => tell(format_args!(
                "warning: packets from {end} are not followed: {error:#}"
            )),
        }
    }
}

/// What is looked at, and what ends the looking.
struct Watch {
    session: Session,
    interrupt: Interrupt,
    /// The probe, until it is known how it ended.
    sending: Option<Sending>,
}

/// What came of looking.
struct Seen {
    hops: Vec<Hop>,
    gaps: Gaps,
    said: Said,
}

impl Watch {
    /// What is seen until it is enough, and what was not.
    fn collect(
        &mut self,
        args: &TraceArgs,
        filter: &Filter,
        telling: &mut Telling<'_>,
    ) -> anyhow::Result<Seen> {
        let (mut hops, mut said) = (Vec::new(), None);
        let mut deadline = Instant::now() + args.timeout;
        let mut ended_at = None;
        loop {
            // Before the ring is read: what was seen until then is there.
            let (now, is_interrupted) = (Instant::now(), self.interrupt.came());
            let ended = self.sending.take_if(|sending| sending.has_ended());
            let seen = hops.len();
            // What has been seen already belongs to it, whatever the time.
            let next = || Ok(self.session.next_hop(Instant::now())?);
            let is_all = read(next, |hop| telling.takes(hop), &mut hops)?;
            // What is lost while this thinks about what it has is nothing that it looks for.
            let gaps = self.session.gaps()?;
            if seen == 0 && !hops.is_empty() {
                deadline = Instant::now() + args.duration.unwrap_or(SETTLE);
            }
            match ended.map(Sending::finish) {
                Some(Ok(told)) => said = told,
                // Where something was seen, that tells more.
                Some(Err(error)) if hops.is_empty() => return Err(error),
                Some(Err(_)) | None => {}
            }
            if self.sending.is_none() && args.inject && hops.is_empty() {
                // What it sent is on its way, or there is nothing.
                let patience = if said.is_some() { REFUSED } else { SETTLE };
                deadline = deadline.min(*ended_at.get_or_insert_with(Instant::now) + patience);
            }
            let is_told = args.duration.is_none()
                && hops.len() > seen
                && Story::new(filter, &hops, &Names::default(), gaps).is_complete();
            if is_told
                || hops.len() >= MOST_HOPS
                || now >= deadline
                || is_interrupted
                || !telling.has_reader()
            {
                return Ok(Seen { hops, gaps, said });
            }
            if is_all {
                self.wait(deadline)?;
            }
        }
    }

    /// Waits until there is something to be read, a probe has ended, or a signal came; but not beyond `deadline`.
    fn wait(&self, deadline: Instant) -> anyhow::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        // A partial millisecond is waited for too.
        let left = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let sources = [Some(self.session.as_fd()), Some(self.interrupt.as_fd())]
            .into_iter()
            .chain([self.sending.as_ref().map(AsFd::as_fd)]);
        let mut sources: Vec<PollFd<'_>> = sources
            .flatten()
            .map(|source| PollFd::new(source, PollFlags::POLLIN))
            .collect();
        match poll(&mut sources, left) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("wait for packets"),
        }
    }
}

/// Reads hops, and keeps those that are taken; so many at the most, and so many in all. Returns whether there was none left.
fn read(
    mut next: impl FnMut() -> anyhow::Result<Option<Hop>>,
    mut takes: impl FnMut(&Hop) -> bool,
    hops: &mut Vec<Hop>,
) -> anyhow::Result<bool> {
    // Of a machine's others there may always be one more.
    for _ in 0..MOST_HOPS {
        if hops.len() >= MOST_HOPS {
            break;
        }
        let Some(hop) = next()? else { return Ok(true) };
        if takes(&hop) {
            hops.push(hop);
        }
    }
    Ok(false)
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
        "" => {
            return Err(format!(
                "{text} has no unit: {text}ms, {text}s or {text}m is a time"
            ));
        }
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

    fn hop(device: &str) -> Hop {
        let flow = Flow {
            source: "10.244.1.5:40000".parse().expect("an address"),
            destination: "10.244.1.6:8080".parse().expect("an address"),
            protocol: Protocol::TCP,
        };
        Hop {
            at_ns: 1,
            packet: 1,
            node: "machine".to_owned(),
            netns: 1,
            device: device.to_owned(),
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
        }
    }

    #[test]
    fn reading_ends_though_others_send_for_ever() {
        // Which hops are taken, how many are kept of those that come without end, and whether all were read.
        let rows = [
            (false, None, 0, false),
            (true, None, MOST_HOPS, false),
            (true, Some(3), 3, true),
        ];
        for (is_taken, there_are, kept, is_all) in rows {
            let (mut hops, mut came) = (Vec::new(), 0);
            let next = || {
                came += 1;
                assert!(came <= 2 * MOST_HOPS, "it does not end");
                Ok(there_are.is_none_or(|all| came <= all).then(|| hop("eth0")))
            };
            let told = read(next, |_| is_taken, &mut hops).expect("hops");
            assert_eq!((hops.len(), told), (kept, is_all));
        }
    }

    #[test]
    fn a_devices_name_drives_no_terminal() {
        let hop = hop("\u{1b}[2J");
        let flow = hop.header.flow;
        let filter = Filter {
            targets: vec![(flow.destination.ip(), Some(flow.destination.port()))],
            ..Filter::default()
        };
        let story = Story::new(&filter, &[hop], &Names::default(), Gaps::default());
        let told = trace::render::text(&story);
        let text = Followed {
            story,
            in_full: false,
        }
        .render(Stream::Text);
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
            Followed {
                story,
                in_full: false,
            }
            .finding()
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
        let told = duration("5").expect_err("it has no unit");
        assert_eq!(told, "5 has no unit: 5ms, 5s or 5m is a time");
    }
}

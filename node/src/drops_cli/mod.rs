//! `causeway drops`: what this machine drops, counted in the kernel by the crate `trace`.
//!
//! Names of pods are those that agents of this machine have written down, or tell, as for `causeway trace`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use tokio::task::block_in_place;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use trace::drops::{Dropped, Report, Session, Uncounted, render};

use crate::cli::{DropsArgs, Stream};
use crate::ends::Subject;
use crate::ends::known::Known;
use crate::ends::meant::Resolver;
use crate::trace_cli::window::{safe, until};
use crate::trace_cli::{Finding, host_name};

/// How long it is counted where nobody says.
const USUAL: Duration = Duration::from_secs(10);

/// How often it is told what was dropped.
const EVERY: Duration = Duration::from_secs(1);

/// Whose drops are told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whose {
    /// Everybody's.
    Everybodys,
    /// Those of pods of a namespace.
    Namespace(String),
    /// Those of a pod.
    Pod(String),
}

impl Whose {
    fn of(args: &DropsArgs, resolver: &Resolver) -> anyhow::Result<Self> {
        let DropsArgs { namespace, pod, .. } = args;
        match (pod, namespace) {
            (None, None) => Ok(Self::Everybodys),
            (None, Some(namespace)) => {
                resolver.pods.need_namespace(namespace)?;
                Ok(Self::Namespace(format!("pod/{namespace}/")))
            }
            (Some(pod), namespace) => {
                let name = args.pod()?.with_context(|| format!("--pod {pod}"))?;
                let is_there = |namespace: &String| match &name.subject {
                    Subject::Pod(object) => *object.namespace == **namespace,
                    _ => false,
                };
                ensure!(
                    namespace.as_ref().is_none_or(is_there),
                    "--pod {pod} is not in the namespace of --namespace"
                );
                // Only who is known may have lost packets.
                resolver.meant(&name)?;
                Ok(Self::Pod(name.subject.to_string()))
            }
        }
    }

    /// Whether drops are theirs: in their network namespace, or of packets from them or to them.
    fn has(&self, dropped: &Dropped) -> bool {
        let ends = [&dropped.source_pod, &dropped.destination_pod];
        let mut names = ends
            .into_iter()
            .flatten()
            .chain([&dropped.at])
            .map(String::as_str);
        match self {
            Self::Everybodys => true,
            Self::Namespace(prefix) => names.any(|name| name.starts_with(prefix.as_str())),
            Self::Pod(pod) => names.any(|name| name == pod),
        }
    }
}

/// Says whose they are, and what it means that they were dropped; looks again where somebody is not known. It enters
/// network namespaces and waits for agents.
fn name(known: &mut Known, dropped: &mut [Dropped]) {
    if !dropped.iter().all(|dropped| known.has_netns(dropped.kind.netns)) {
        known.look_again();
    }
    let ends = dropped
        .iter()
        .flat_map(|dropped| [dropped.kind.source, dropped.kind.destination]);
    known.ask(ends.flatten());
    let names = known.names();
    let mut looked = BTreeMap::new();
    let mut tracked = |netns: u32| {
        let namespaces = known.namespaces();
        *looked
            .entry(netns)
            .or_insert_with(|| trace::namespaces::tracked(namespaces, netns))
    };
    for dropped in dropped {
        dropped.name(&names, &mut tracked);
    }
}

/// Counts for as long as was asked, or until it is told to end, and tells by `show`, which says whether anybody reads.
///
/// # Errors
/// When a pod is not known, or drops cannot be counted.
pub async fn watch(
    args: &DropsArgs,
    shutdown: CancellationToken,
    mut show: impl FnMut(&str) -> bool,
) -> anyhow::Result<Finding> {
    ensure!(
        !(args.follow && matches!(args.output, Stream::Json)),
        "--follow has no end that JSON could have: -o ndjson is a line for each kind of drops"
    );
    let mut known = Known::read(&args.config)?;
    let whose = block_in_place(|| Whose::of(args, known.resolver()))?;
    let mut session = Session::start()?;
    let began = Timestamp::now();
    let end = args.duration.or((!args.follow).then_some(USUAL));
    let end = end.map(|duration| Instant::now() + duration);
    let mut told = Told::default();
    if args.follow {
        let mut seconds = interval_at(Instant::now() + EVERY, EVERY);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                _ = seconds.tick() => {}
                () = until(end) => break,
                () = shutdown.cancelled() => break,
            }
            let mut dropped = session.read()?;
            block_in_place(|| name(&mut known, &mut dropped));
            if !told.tell(args, &whose, dropped, &mut show) {
                return Ok(told.finding(session.uncounted()));
            }
        }
    } else {
        tokio::select! {
            () = until(end) => {}
            () = shutdown.cancelled() => {}
        }
    }
    let mut dropped = session.stop()?;
    let uncounted = session.uncounted();
    block_in_place(|| {
        known.look_again();
        name(&mut known, &mut dropped);
    });
    if args.follow {
        told.tell(args, &whose, dropped, &mut show);
        show(&told.end(args.output, began, uncounted));
        return Ok(told.finding(uncounted));
    }
    dropped.retain(|dropped| whose.has(dropped));
    let report = Report::new(&host_name(), began, dropped, args.all, uncounted);
    told.missed = report.drops.iter().filter(|dropped| !dropped.ordinary).count();
    show(&form(args.output, &report));
    Ok(told.finding(uncounted))
}

/// What was told second by second.
#[derive(Debug, Default)]
struct Told {
    /// Kinds of drops that somebody misses.
    missed: usize,
    ordinary_packets: u64,
}

impl Told {
    /// Tells what was dropped in a second. Returns whether anybody reads it.
    fn tell(
        &mut self,
        args: &DropsArgs,
        whose: &Whose,
        mut dropped: Vec<Dropped>,
        show: &mut impl FnMut(&str) -> bool,
    ) -> bool {
        dropped.retain(|dropped| whose.has(dropped));
        self.missed += dropped.iter().filter(|dropped| !dropped.ordinary).count();
        let is_told = |dropped: &Dropped| args.all || !dropped.ordinary;
        let (drops, ordinary): (Vec<_>, Vec<_>) = dropped.into_iter().partition(is_told);
        self.ordinary_packets += ordinary.iter().map(|dropped| dropped.packets).sum::<u64>();
        drops.is_empty()
            || show(&match args.output {
                Stream::Text => safe(&render::text_of(&drops)),
                Stream::Json | Stream::Ndjson => render::lines_of(&drops),
            })
    }

    /// What is told at the end.
    fn end(&self, output: Stream, began: Timestamp, uncounted: Uncounted) -> String {
        let report = Report {
            ordinary_packets: self.ordinary_packets,
            ..Report::new(&host_name(), began, Vec::new(), true, uncounted)
        };
        match output {
            Stream::Text => safe(&render::notes(&report)),
            Stream::Json | Stream::Ndjson => render::lines(&report),
        }
    }

    fn finding(&self, uncounted: Uncounted) -> Finding {
        match (self.missed, uncounted == Uncounted::default()) {
            (0, true) => Finding::Good,
            // What was not counted may have been what was asked for.
            (0, false) => Finding::Nothing,
            _ => Finding::Wrong,
        }
    }
}

fn form(output: Stream, report: &Report) -> String {
    match output {
        Stream::Text => safe(&render::text(report)),
        Stream::Json => render::json(report),
        Stream::Ndjson => render::lines(report),
    }
}

#[cfg(test)]
mod tests;

//! `causeway flows`: who sends to whom on this machine, counted in the kernel by the crate `trace`.
//!
//! Pods of this machine have the names that its agents have written down; Services, and pods of other nodes, those that
//! agents tell when packets were seen that are theirs.

mod hooks;
mod whose;

use std::net::IpAddr;
use std::time::Duration;

use anyhow::ensure;
use tokio::task::block_in_place;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_util::sync::CancellationToken;
use trace::drops::Uncounted;
use trace::flows::record::{self, Record, Verdict};
use trace::flows::{Passed, Session, render};

use crate::cli::{FlowsArgs, Stream};
use crate::ends::known::Known;
use crate::ends::meant::Resolver;
use crate::logs::tell;
use crate::trace_cli::window::{safe, until};
use crate::trace_cli::{Finding, host_name};
use whose::Whose;

/// How long it is counted where nobody says.
const USUAL: Duration = Duration::from_secs(10);

/// How often it is told what passed, and looked which namespaces and addresses there are.
const EVERY: Duration = Duration::from_secs(1);

/// How often it is looked whom the ends mean: pods come and go.
const WHOSE_EVERY: Duration = Duration::from_secs(10);

/// Counts for as long as was asked, or until it is told to end, and tells by `show`, which says whether anybody reads.
///
/// # Errors
/// When an end is not known, or flows cannot be counted.
pub async fn watch(
    args: &FlowsArgs,
    shutdown: CancellationToken,
    mut show: impl FnMut(&str) -> bool,
) -> anyhow::Result<Finding> {
    ensure!(
        !(args.follow && matches!(args.output, Stream::Json)),
        "--follow has no end that JSON could have: -o ndjson is a line for each flow"
    );
    let mut known = Known::read(&args.config)?;
    let mut teller = Teller {
        whose: block_in_place(|| Whose::new(args, known.resolver()))?,
        node: host_name(),
        output: args.output,
    };
    if let Some(note) = args
        .of_namespace()
        .and_then(|namespace| without_pods(namespace, known.resolver()))
    {
        tell(note);
    }
    let mut session = Session::start(known.namespaces())?;
    for sockets in hooks::sockets(&args.config)? {
        if let Err(error) = session.look_into(&sockets) {
            tell(format_args!(
                "warning: Services that the socket hook translates are not told: {error:#}"
            ));
        }
    }
    let end = args.duration.or((!args.follow).then_some(USUAL));
    let end = end.map(|duration| Instant::now() + duration);
    let mut finding = Finding::Good;
    let mut seconds = interval_at(Instant::now() + EVERY, EVERY);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut told = Uncounted::default();
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            _ = seconds.tick() => {}
            () = until(end) => break,
            () = shutdown.cancelled() => break,
        }
        known.look_again();
        session.look_at(known.namespaces())?;
        if !args.follow {
            continue;
        }
        if looked.elapsed() >= WHOSE_EVERY {
            looked = Instant::now();
            // Who is gone is meant as long as nobody else is known by the name.
            if let Ok(whose) = block_in_place(|| Whose::new(args, known.resolver())) {
                teller.whose = whose;
            }
        }
        let records = teller.records(session.read()?, &mut known);
        worse(&mut finding, &records);
        let is_read = records.is_empty() || show(&teller.some(&records));
        let uncounted = session.uncounted();
        // Never silent, and not each second anew.
        let is_new = uncounted != told && uncounted != Uncounted::default();
        told = uncounted;
        if !is_read || (is_new && !show(&teller.lost(uncounted))) {
            return Ok(finding);
        }
    }
    let passed = session.stop()?;
    known.look_again();
    let records = teller.records(passed, &mut known);
    worse(&mut finding, &records);
    let uncounted = session.uncounted();
    match args.output {
        Stream::Json => show(&render::json(&records, uncounted)),
        Stream::Text | Stream::Ndjson => show(&(teller.some(&records) + &teller.lost(uncounted))),
    };
    Ok(finding)
}

/// What is to be said of a namespace that this machine has no pod of: it may be misspelt.
fn without_pods(namespace: &str, resolver: &Resolver) -> Option<String> {
    (!resolver.pods.has_namespace(namespace)).then(|| {
        format!(
            "note: no pod of namespace {namespace} on this machine's nodes: flows to its Services, and to its pods elsewhere, \
             are told"
        )
    })
}

/// All that may have a name.
fn addresses(passed: &Passed) -> impl Iterator<Item = IpAddr> + use<> {
    let ends = [passed.flow.source, passed.flow.destination].into_iter();
    ends.chain(passed.service).map(|at| at.ip())
}

fn worse(finding: &mut Finding, records: &[Record]) {
    if records.iter().any(|record| record.verdict == Verdict::Dropped) {
        *finding = Finding::Wrong;
    }
}

/// Makes records of what passed, and tells them.
struct Teller {
    whose: Whose,
    node: String,
    output: Stream,
}

impl Teller {
    fn records(&self, mut passed: Vec<Passed>, known: &mut Known) -> Vec<Record> {
        passed.retain(|passed| self.whose.has(passed));
        block_in_place(|| known.ask(passed.iter().flat_map(addresses)));
        let names = known.names();
        let service = |at, protocol| known.service(at, protocol);
        let mut records: Vec<Record> = passed
            .iter()
            .flat_map(|passed| record::of(passed, &self.node, &names, service))
            .filter(|record| self.whose.has_record(record))
            .collect();
        records.sort_by_key(|record| record.time);
        records
    }

    fn some(&self, records: &[Record]) -> String {
        match self.output {
            Stream::Text => safe(&render::text(records)),
            Stream::Json | Stream::Ndjson => render::lines(records),
        }
    }

    /// What was not counted.
    fn lost(&self, uncounted: Uncounted) -> String {
        match self.output {
            Stream::Text => render::notes(uncounted),
            Stream::Json | Stream::Ndjson => render::lost_line(&self.node, uncounted),
        }
    }
}

#[cfg(test)]
mod tests;

//! `causeway bench`: what is measured, where it goes, and what is said of it.

use std::path::PathBuf;

use anyhow::Context;
use bench::compare::{Changed, compare};
use bench::judge::Verdict;
use bench::load::Operation;
use bench::results::Results;
use bench::session::{Session, write_report};
use bench::table::table;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::cli::{BenchArgs, CompareArgs, ReportArgs};
use crate::logs;

/// What a run came to.
pub struct Measured {
    /// For people.
    pub text: String,
    /// Whether it ended by itself.
    pub is_whole: bool,
}

/// Measures until all is measured, or until shutdown: then with what there is.
///
/// # Errors
/// When something cannot be built, or the files cannot be written.
pub fn run(args: &BenchArgs, shutdown: &CancellationToken) -> anyhow::Result<Measured> {
    let now = Timestamp::now();
    let operations = match args.experiments.as_slice() {
        [] => Operation::ALL.to_vec(),
        some => some.to_vec(),
    };
    let directory = args
        .out
        .clone()
        .unwrap_or_else(|| PathBuf::from(format!("causeway-bench-{}", now.strftime("%Y%m%dT%H%M%SZ"))));
    let program = std::env::current_exe().context("find this program")?;
    let session = Session {
        operations,
        rounds: args.rounds as usize,
        begun: format!("{now:.0}"),
        command: std::env::args_os()
            .map(|word| word.to_string_lossy().into_owned())
            .collect(),
        worker: vec![
            program.display().to_string(),
            "bench".to_owned(),
            "worker".to_owned(),
        ],
        directory,
    };
    session.claim()?;
    let results = session.run(&|| shutdown.is_cancelled(), |line| logs::tell(line))?;
    let mut text = table(&results);
    text.push_str(&format!(
        "{}\n",
        session.directory.join(bench::session::REPORT).display()
    ));
    Ok(Measured {
        text,
        is_whole: results.finished,
    })
}

/// What changed between two runs, and whether something takes more.
///
/// # Errors
/// When one of them cannot be read.
pub fn compared(args: &CompareArgs) -> anyhow::Result<(String, bool)> {
    let (before, after) = (Results::read(&args.before)?, Results::read(&args.after)?);
    let (changed, lacking) = compare(&before, &after);
    let mut text = String::new();
    for results in [(&args.before, &before), (&args.after, &after)] {
        if !results.1.finished {
            text.push_str(&format!(
                "{} is of a run that was interrupted\n",
                results.0.display()
            ));
        }
    }
    for line in lacking {
        text.push_str(&format!("{line}\n"));
    }
    for change in &changed {
        text.push_str(&told(change));
    }
    let takes_more = changed.iter().any(|change| change.verdict == Verdict::More);
    Ok((text, takes_more))
}

fn told(change: &Changed) -> String {
    let Changed {
        experiment,
        arm,
        metric,
        ratio,
        verdict,
    } = change;
    let word = match verdict {
        Verdict::Less => "takes less",
        Verdict::More => "TAKES MORE",
        Verdict::Same => "as before",
    };
    format!(
        "{experiment:<8} {arm:<18} {:<4} {word:<10} {:.3} ({:.3} to {:.3})\n",
        metric.name(),
        ratio.middle,
        ratio.low,
        ratio.high
    )
}

/// Writes the page of a run that was measured before.
///
/// # Errors
/// When its results cannot be read, or the page cannot be written.
pub fn report(args: &ReportArgs) -> anyhow::Result<()> {
    write_report(&Results::read(&args.results)?, &args.output)
}

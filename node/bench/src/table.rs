//! Results on a terminal.

use std::fmt::{self, Write as _};

use crate::judge::Verdict;
use crate::results::{Experiment, Metric, Results};
use crate::stats::{Estimate, estimate};

/// All of a run.
#[must_use]
pub fn table(results: &Results) -> String {
    let mut text = String::new();
    let written = results
        .experiments
        .iter()
        .try_for_each(|experiment| write_experiment(&mut text, experiment));
    written
        .and_then(|()| write_end(&mut text, results))
        .expect("invariant: text takes all");
    text
}

fn write_experiment(text: &mut String, experiment: &Experiment) -> fmt::Result {
    let Some(base) = experiment.arms.first() else {
        return Ok(());
    };
    writeln!(text, "{}: {}", experiment.name, experiment.about)?;
    write!(text, "  {:<18}", "microseconds")?;
    for metric in Metric::ALL {
        write!(text, " {:>8}  {:<26}", metric.name(), format!("/ {}", base.name))?;
    }
    writeln!(text)?;
    for arm in &experiment.arms {
        write!(text, "  {:<18}", arm.name)?;
        for metric in Metric::ALL {
            let of_arm = arm.samples.get(&metric).and_then(|samples| estimate(samples));
            let middle = of_arm.map_or_else(|| "-".to_owned(), |found| format!("{:.2}", found.middle));
            let judged = experiment
                .judged(arm, base, metric)
                .filter(|_| arm.name != base.name);
            let told = judged.map_or_else(String::new, |judged| {
                let mark = match judged.verdict {
                    _ if !metric.is_headline() => " ",
                    Verdict::Less => "<",
                    Verdict::More => ">",
                    Verdict::Same => "=",
                };
                format!("{mark} {}", interval(&judged.ratio))
            });
            write!(text, " {middle:>8}  {told:<26}")?;
        }
        writeln!(text)?;
    }
    for absent in &experiment.absent {
        writeln!(text, "  {:<18} LEFT OUT: {}", absent.arm, absent.why)?;
    }
    let noisy = experiment.noisy();
    if !noisy.is_empty() {
        let (noisy, rounds) = (noisy.len(), experiment.rounds.len());
        writeln!(
            text,
            "  {noisy} of {rounds} rounds were noisy: others wanted the processors"
        )?;
    }
    writeln!(text)
}

fn interval(ratio: &Estimate) -> String {
    format!("{:.3} ({:.3} to {:.3})", ratio.middle, ratio.low, ratio.high)
}

fn write_end(text: &mut String, results: &Results) -> fmt::Result {
    writeln!(
        text,
        "< takes less, > takes more, = no difference beyond chance and the pair of equal arms (95 %); p99 is shown and not \
         judged"
    )?;
    if results.finished {
        return Ok(());
    }
    writeln!(
        text,
        "PARTIAL: the run was interrupted; these are the rounds that it had"
    )
}

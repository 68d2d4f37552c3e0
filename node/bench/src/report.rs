//! A report that needs nothing but a browser: one file of HTML with drawings in it, without scripts.

mod drawing;

use std::fmt::{self, Write as _};

use crate::judge::{Judged, Verdict};
use crate::results::{Arm, Experiment, Metric, Results};
use crate::stats::estimate;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --faint: #6b7484; --line: #d9dee7; --paper: #fff; --less: #0a7d4f;
        --more: #b3261e; --same: #4d5a6f; --dot: #4a7bd0 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf1; --faint: #97a1b2; --line: #333c4a; --paper: #14181f;
        --less: #4cc38a; --more: #ff8a80; --same: #aab4c4; --dot: #7ba6f0 } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 56rem;
       margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.2rem; margin-top: 2.5rem }
p, dd, figcaption { color: var(--faint) } figure { margin: 1rem 0; overflow-x: auto }
svg { width: 100%; min-width: 26rem; height: auto; font: 12px system-ui, sans-serif; fill: var(--ink) }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { text-align: right; padding: .25rem .75rem; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem } dd { margin: 0 }
.less { color: var(--less) } .more { color: var(--more) } .same { color: var(--same) }
.partial { border: 1px solid var(--more); padding: .5rem 1rem }
";

/// The whole page.
#[must_use]
pub fn page(results: &Results) -> String {
    let mut page = String::new();
    write_page(&mut page, results).expect("invariant: text takes all");
    page
}

fn write_page(page: &mut String, results: &Results) -> fmt::Result {
    writeln!(
        page,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>causeway bench, {}</title>\n<style>{STYLE}</style></head><body>\n<h1>causeway bench</h1>",
        escaped(&results.begun)
    )?;
    if !results.finished {
        writeln!(
            page,
            "<p class=\"partial\">Partial: the run was interrupted. These are the rounds that it had.</p>"
        )?;
    }
    writeln!(
        page,
        "<p>One machine, without a network card: what lies between two ends is the kernel's work. Ratios hold elsewhere, \
         microseconds do not. Each arm is measured in every round, forwards and backwards; a difference is claimed where 95 % \
         intervals leave out 1 and the pair of equal arms does not explain it.</p>"
    )?;
    write_losses(page, results)?;
    for experiment in &results.experiments {
        write_experiment(page, experiment)?;
    }
    writeln!(page, "<h2>Where</h2>\n<dl>")?;
    let begun = ("begun".to_owned(), results.begun.clone());
    let command = ("command".to_owned(), results.command.join(" "));
    for (name, words) in [begun, command]
        .iter()
        .chain(&results.machine.clone().into_iter().collect::<Vec<_>>())
    {
        writeln!(page, "<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(words))?;
    }
    writeln!(page, "</dl>\n</body></html>")
}

/// Where an arm of ours takes more than one of somebody else's.
fn write_losses(page: &mut String, results: &Results) -> fmt::Result {
    writeln!(page, "<h2>Where we lose</h2>")?;
    let (mut lost, mut others) = (Vec::new(), 0);
    for experiment in &results.experiments {
        let ours = || experiment.arms.iter().filter(|arm| arm.ours);
        let theirs = experiment.arms.iter().filter(|arm| arm.peer);
        for (our, their) in theirs.flat_map(|their| ours().map(move |our| (our, their))) {
            others += 1;
            for metric in [Metric::P50, Metric::Cpu] {
                let judged = experiment.judged(our, their, metric);
                let more = judged.filter(|judged| judged.verdict == Verdict::More);
                lost.extend(more.map(|judged| (experiment, our, their, metric, judged)));
            }
        }
    }
    if others == 0 {
        return writeln!(
            page,
            "<p>No peer was measured beside us: nothing can be said of that.</p>"
        );
    }
    if lost.is_empty() {
        return writeln!(page, "<p>Nowhere in this run, beyond noise.</p>");
    }
    writeln!(page, "<ul>")?;
    for (experiment, our, their, metric, judged) in lost {
        writeln!(
            page,
            "<li>{}: {} takes <span class=\"more\">{:.1} % more</span> {} than {}</li>",
            escaped(&experiment.name),
            escaped(&our.name),
            (judged.ratio.middle - 1.0) * 100.0,
            metric.name(),
            escaped(&their.name)
        )?;
    }
    writeln!(page, "</ul>")
}

fn write_experiment(page: &mut String, experiment: &Experiment) -> fmt::Result {
    let Some(base) = experiment.arms.first() else {
        return Ok(());
    };
    writeln!(
        page,
        "<h2>{}</h2>\n<p>{}. {} rounds.</p>",
        escaped(&experiment.name),
        escaped(&experiment.about),
        experiment.rounds.len()
    )?;
    for metric in [Metric::P50, Metric::Cpu] {
        if let Some(drawn) = drawing::ratios(experiment, base, metric) {
            writeln!(
                page,
                "<figure>{drawn}<figcaption>{} of an operation, as ratio to {}. A dot is a round, the bar is the interval of \
                 the median; shaded is what the pair of equal arms reaches.</figcaption></figure>",
                metric.name(),
                escaped(&base.name)
            )?;
        }
    }
    writeln!(page, "<div class=\"scroll\"><table><tr><th>microseconds</th>")?;
    for metric in Metric::ALL {
        write!(
            page,
            "<th>{}</th><th>/ {}</th>",
            metric.name(),
            escaped(&base.name)
        )?;
    }
    writeln!(page, "</tr>")?;
    for arm in &experiment.arms {
        write_row(page, experiment, arm, base)?;
    }
    writeln!(page, "</table></div>")?;
    for absent in &experiment.absent {
        writeln!(
            page,
            "<p>Left out: {}: {}</p>",
            escaped(&absent.arm),
            escaped(&absent.why)
        )?;
    }
    let noisy = experiment.noisy().len();
    if noisy > 0 {
        let rounds = if noisy == 1 { "round was" } else { "rounds were" };
        writeln!(
            page,
            "<p>{noisy} {rounds} noisy: others wanted the processors.</p>"
        )?;
    }
    Ok(())
}

fn write_row(page: &mut String, experiment: &Experiment, arm: &Arm, base: &Arm) -> fmt::Result {
    write!(
        page,
        "<tr><td title=\"{}\">{}</td>",
        escaped(&arm.about),
        escaped(&arm.name)
    )?;
    for metric in Metric::ALL {
        let of_arm = arm.samples.get(&metric).and_then(|samples| estimate(samples));
        match of_arm {
            Some(found) => write!(page, "<td>{:.2}</td>", found.middle)?,
            None => write!(page, "<td>–</td>")?,
        }
        let judged = experiment
            .judged(arm, base, metric)
            .filter(|_| arm.name != base.name);
        match judged {
            Some(Judged { ratio, verdict }) => write!(
                page,
                "<td class=\"{}\">{:.3} ({:.3}–{:.3})</td>",
                class(verdict, metric),
                ratio.middle,
                ratio.low,
                ratio.high
            )?,
            None => write!(page, "<td></td>")?,
        }
    }
    writeln!(page, "</tr>")
}

const fn class(verdict: Verdict, metric: Metric) -> &'static str {
    match verdict {
        _ if !metric.is_headline() => "same",
        Verdict::Less => "less",
        Verdict::More => "more",
        Verdict::Same => "same",
    }
}

/// Text that is no markup.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            other => safe.push(other),
        }
    }
    safe
}

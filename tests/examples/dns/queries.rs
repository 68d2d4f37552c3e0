//! CPU time per query, and queries per second.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::seq::IndexedRandom as _;
use tests::rr::interval;

use crate::load::dnsperf;
use crate::objects;
use crate::print_goal;
use crate::servers::{Bench, Server};

pub const SERVICES: u32 = 10_000;
/// Names that an upstream is asked for.
pub const OTHERS: u32 = 1_000;
/// Questions in a file, which dnsperf begins anew when it is through.
const QUESTIONS: usize = 100_000;
/// Clients and threads of dnsperf, and questions that wait for an answer at once.
const CLIENTS: [&str; 6] = ["-c", "8", "-T", "2", "-q", "300"];
const TICK_MICROS: f64 = 10_000.0;

/// What a server needed in one run.
#[derive(Clone, Copy)]
struct Run {
    micros_per_query: f64,
    per_second: f64,
}

pub fn measure(rounds: usize, seconds: u32) -> Result<()> {
    let bench = Bench::new(SERVICES, 1)?;
    let ours = bench.ours("")?;
    let (knot, unbound) = (bench.knot(SERVICES)?, bench.unbound(SERVICES)?);
    let cluster = questions(&bench, "cluster", (0..SERVICES).map(objects::name))?;
    let others: Vec<String> = (0..OTHERS).map(other).collect();
    let other = questions(&bench, "other", others.iter().cloned())?;

    let arms: Vec<(&str, &Server)> = [("causeway", &ours), ("again", &ours)]
        .into_iter()
        .chain(knot.iter().chain(&unbound).map(|peer| (peer.name, peer)))
        .collect();
    println!("\nnames of the cluster, {rounds} rounds of 2 x {seconds} s");
    let measured = run(&bench, &arms, &cluster, rounds, seconds)?;
    let figures = print(&arms, &measured);
    print_goal(
        "CPU per query",
        &format!("{:.2} µs", figures.micros),
        "4.5 µs or less",
    );
    for (peer, goal) in [("knot", "1.0 or less"), ("unbound", "0.7 or less")] {
        if let Some(ratio) = figures.ratio_to(peer) {
            print_goal(&format!("CPU / {peer}'s"), &format!("{ratio:.3}"), goal);
        }
    }
    if let Some(ratio) = figures.speed_to("knot") {
        print_goal("queries/s / knot's", &format!("{ratio:.3}"), "0.95 or more");
    }

    let arms: Vec<(&str, &Server)> = arms.into_iter().filter(|(name, _)| *name != "knot").collect();
    for (_, server) in &arms {
        // Each name once, so that the cache has all of them.
        let all = write(&bench, "each", &others)?;
        dnsperf(&bench.host, server.address, &all, &["-n", "1", "-q", "50"])?;
    }
    let asked = bench.upstream.asked();
    println!("\nforwarded names, from the cache, {rounds} rounds of 2 x {seconds} s");
    let measured = run(&bench, &arms, &other, rounds, seconds)?;
    let figures = print(&arms, &measured);
    if let Some(ratio) = figures.ratio_to("unbound") {
        print_goal("CPU / unbound's", &format!("{ratio:.3}"), "1.0 or less");
    }
    println!(
        "the upstream was asked {} times more",
        bench.upstream.asked() - asked
    );
    Ok(())
}

pub fn other(number: u32) -> String {
    format!("host-{number}.example.com")
}

/// Questions for the addresses of these names, in a random order.
pub fn questions(bench: &Bench, file: &str, names: impl Iterator<Item = String>) -> Result<PathBuf> {
    let names: Vec<String> = names.collect();
    let mut random = rand::rng();
    let chosen: Option<Vec<String>> = (0..QUESTIONS)
        .map(|_| names.choose(&mut random).cloned())
        .collect();
    write(bench, file, &chosen.context("there are names")?)
}

pub fn write(bench: &Bench, file: &str, names: &[String]) -> Result<PathBuf> {
    let mut text = String::new();
    for name in names {
        writeln!(text, "{name} A")?;
    }
    Ok(bench.directory.write(file, &text))
}

/// All rounds, each with what every arm needed: the mean of its two runs.
fn run(
    bench: &Bench,
    arms: &[(&str, &Server)],
    questions: &Path,
    rounds: usize,
    seconds: u32,
) -> Result<Vec<Vec<Run>>> {
    let mut all = Vec::new();
    for _ in 0..rounds {
        let mut runs: Vec<Vec<Run>> = vec![Vec::new(); arms.len()];
        for index in (0..arms.len()).chain((0..arms.len()).rev()) {
            let (Some(runs), Some((_, server))) = (runs.get_mut(index), arms.get(index)) else {
                continue;
            };
            runs.push(run_once(bench, server, questions, seconds)?);
        }
        all.push(runs.iter().map(|runs| mean(runs)).collect());
    }
    Ok(all)
}

fn run_once(bench: &Bench, server: &Server, questions: &Path, seconds: u32) -> Result<Run> {
    let before = server.holdings()?.cpu_ticks;
    let length = seconds.to_string();
    let arguments = [&CLIENTS[..], &["-l", &length]].concat();
    let counted = dnsperf(&bench.host, server.address, questions, &arguments)?;
    let ticks = server.holdings()?.cpu_ticks - before;
    Ok(Run {
        micros_per_query: ticks as f64 * TICK_MICROS / counted.completed as f64,
        per_second: counted.per_second,
    })
}

fn mean(runs: &[Run]) -> Run {
    let of = |figure: fn(&Run) -> f64| runs.iter().map(figure).sum::<f64>() / runs.len() as f64;
    Run {
        micros_per_query: of(|run| run.micros_per_query),
        per_second: of(|run| run.per_second),
    }
}

/// Medians of ours, and of ours to each peer's.
struct Figures {
    micros: f64,
    /// By peer: CPU time, queries per second.
    ratios: Vec<(String, f64, f64)>,
}

impl Figures {
    fn ratio_to(&self, peer: &str) -> Option<f64> {
        let found = self.ratios.iter().find(|(name, ..)| name == peer);
        found.map(|(_, cpu, _)| *cpu)
    }

    fn speed_to(&self, peer: &str) -> Option<f64> {
        let found = self.ratios.iter().find(|(name, ..)| name == peer);
        found.map(|(.., speed)| *speed)
    }
}

fn print(arms: &[(&str, &Server)], rounds: &[Vec<Run>]) -> Figures {
    let mut figures = Figures {
        micros: 0.0,
        ratios: Vec::new(),
    };
    for (index, (name, _)) in arms.iter().enumerate() {
        let of = |figure: fn(&Run, &Run) -> f64| {
            let pairs = rounds
                .iter()
                .filter_map(|round| round.first().zip(round.get(index)));
            sorted(pairs.map(|(ours, theirs)| figure(ours, theirs)))
        };
        let cpu = middle(&of(|_, theirs| theirs.micros_per_query));
        let speed = middle(&of(|_, theirs| theirs.per_second));
        let ratios = of(|ours, theirs| ours.micros_per_query / theirs.micros_per_query);
        let (low, high) = interval(ratios.len());
        println!(
            "  {name:<10} {cpu:>6.2} µs   ours / its {:.3}  (95 %: {:.3} to {:.3})   {speed:>9.0} queries/s",
            middle(&ratios),
            ratios.get(low).copied().unwrap_or_default(),
            ratios.get(high).copied().unwrap_or_default(),
        );
        if index == 0 {
            figures.micros = cpu;
        }
        let speed = middle(&of(|ours, theirs| ours.per_second / theirs.per_second));
        figures.ratios.push(((*name).to_owned(), middle(&ratios), speed));
    }
    figures
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn middle(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

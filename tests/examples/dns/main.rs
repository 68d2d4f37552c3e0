//! What a DNS query costs: `causeway dns` as it is built beside this program, and Debian's knot and unbound, in turns
//! on the same cores, asked by dnsperf.
//!
//! ```text
//! dns [--rounds N] [--seconds N] [PART…]      default: 7 rounds of 4 seconds, all parts
//!
//! queries    with 10,000 Services: CPU time of the server per query, by its own accounting, and queries/s; names of
//!            the cluster (knot and unbound have them as static data), then names that an upstream was asked for once
//! created    from a Service at the API server to the first answer with its address
//! memory     resident with 10,000 Services, with 147,600 endpoints, and the most of it while these are listed again
//! reload     50,000 queries/s while the Corefile stays, then while it changes: how many are lost, and how many an
//!            upstream is asked again
//! ```
//! Our server has kubeadm's Corefile, with metrics and all. A round takes every server forwards and backwards; `again`
//! is our own in its own turn: what the machine's noise alone makes of it. Figures are medians of rounds, ratios
//! medians of each round's with their 95 % interval. Queries/s are as noisy as the machine: dnsperf shares its cores.
//!
//! Root; everything is in a network namespace of its own. `setup.sh bench` gets dnsperf, knot and unbound; a peer that
//! is missing is told and left out. Build with `cargo build --release -p node`, run with
//! `cargo run --release -p tests --example dns`.

mod created;
mod load;
mod memory;
mod objects;
mod queries;
mod reload;
mod servers;
mod upstream;

use anyhow::{Context, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let options = Options::parse(&arguments)?;
    for part in &options.parts {
        match part.as_str() {
            "queries" => queries::measure(options.rounds, options.seconds)?,
            "created" => created::measure()?,
            "memory" => memory::measure()?,
            "reload" => reload::measure()?,
            other => bail!("{other}: queries, created, memory or reload"),
        }
    }
    Ok(())
}

struct Options {
    rounds: usize,
    seconds: u32,
    parts: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self {
            rounds: 7,
            seconds: 4,
            parts: Vec::new(),
        };
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            let mut number = || words.next().context("a number is missing");
            match word.as_str() {
                "--rounds" => options.rounds = number()?.parse()?,
                "--seconds" => options.seconds = number()?.parse()?,
                part => options.parts.push(part.to_owned()),
            }
        }
        if options.parts.is_empty() {
            options.parts = ["queries", "created", "memory", "reload"]
                .map(str::to_owned)
                .to_vec();
        }
        Ok(options)
    }
}

/// A figure beside its goal.
fn print_goal(what: &str, figure: &str, goal: &str) {
    println!("{what:<34} {figure:>26}   goal {goal}");
}

//! How long a pod's network takes: CNI ADD and DEL by `causeway-cni` with its agent as they are built beside this
//! program, and by Debian's bridge and ptp with host-local, one after the other in turns on the same machine.
//!
//! ```text
//! cni [--pods N]     default 200
//!
//! one        one runtime, one pod after the other
//! eight      eight runtimes at once, which share the pods
//! hundred    a hundred pods asked for at the same moment
//! ```
//! Each figure is for one call of the plugin from start to end, in milliseconds: middle, 99 of 100, slowest. Root; nodes
//! and pods are network namespaces. Build with `cargo build --release -p node -p cni-plugin`, run with
//! `cargo run --release -p tests --example cni`.

#[path = "../tests/cni/subject.rs"]
#[expect(dead_code, reason = "the tests use more of it")]
mod subject;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::topology::Host;

use subject::Subject;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let pods = match (arguments.next().as_deref(), arguments.next()) {
        (None, _) => 200,
        (Some("--pods"), Some(number)) => number.parse().context("--pods takes a number")?,
        _ => anyhow::bail!("usage: cni [--pods N]"),
    };
    println!(
        "{:<14} {:<8} {:>30} {:>30}",
        "", "", "ADD p50 p99 max", "DEL p50 p99 max"
    );
    for subject in Subject::all("CNI figures") {
        for (name, pods, at_once) in [("one", pods, 1), ("eight", pods, 8), ("hundred", 100, 100)] {
            let (add, del) = measure(&subject, pods, at_once)?;
            println!(
                "{:<14} {name:<8} {:>30} {:>30}",
                subject.name,
                told(add),
                told(del)
            );
        }
    }
    Ok(())
}

/// Times of all ADDs, then of all DELs.
fn measure(subject: &Subject, pods: usize, at_once: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let hosts: Vec<Host> = (0..pods).map(|_| Host::new("pod")).collect::<Result<_>>()?;
    let hosts: Vec<(usize, &Host)> = hosts.iter().enumerate().collect();
    let run = |verb: &'static str| -> Vec<Duration> {
        std::thread::scope(|scope| {
            let chunks = hosts.chunks(pods.div_ceil(at_once));
            let runtimes: Vec<_> = chunks
                .map(|chunk| {
                    scope.spawn(move || {
                        let one = |(number, host): &(usize, &Host)| {
                            let began = Instant::now();
                            let ran = subject.call(verb, &format!("c{number}"), &host.path()).run();
                            assert!(ran.success, "{verb}: {ran:?}");
                            began.elapsed()
                        };
                        chunk.iter().map(one).collect::<Vec<_>>()
                    })
                })
                .collect();
            runtimes
                .into_iter()
                .flat_map(|runtime| runtime.join().expect("every call succeeds"))
                .collect()
        })
    };
    Ok((run("ADD"), run("DEL")))
}

fn told(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len() - 1));
    let millis = |time: Option<&Duration>| time.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    format!(
        "{:.1} {:.1} {:.1}",
        millis(at(50)),
        millis(at(99)),
        millis(times.last())
    )
}

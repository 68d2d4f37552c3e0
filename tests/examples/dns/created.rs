//! From a Service at the API server to the first answer with its address.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::load::Asker;
use crate::objects;
use crate::print_goal;
use crate::queries::SERVICES;
use crate::servers::Bench;

const CREATED: u32 = 500;
const PATIENCE: Duration = Duration::from_secs(10);

pub fn measure() -> Result<()> {
    let bench = Bench::new(SERVICES, 1)?;
    let ours = bench.ours("")?;
    let asker = bench.host.run(|| Asker::new(ours.address))??;
    let mut times = Vec::new();
    for number in SERVICES..SERVICES + CREATED {
        let name = objects::name(number);
        ensure!(
            asker.ask(&name)?.is_none(),
            "{name} is there before it is created"
        );
        let began = Instant::now();
        bench.api.put(objects::service(number));
        while asker.ask(&name)? != Some(objects::address(number)) {
            ensure!(began.elapsed() < PATIENCE, "{name} is not there");
        }
        times.push(began.elapsed());
    }
    times.sort_unstable();
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .context("many times")
    };
    println!("\n{CREATED} Services created beside {SERVICES}, one after the other");
    let figure = format!("p50 {:.1?}  p99 {:.1?}", at(50)?, at(99)?);
    print_goal("created to answered", &figure, "p99 100 ms");
    Ok(())
}

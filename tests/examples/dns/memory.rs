//! Resident memory, idle and while everything is listed again.

use std::time::Duration;

use anyhow::Result;
use tests::ledger::forget_peak;
use tests::wait;

use crate::load::ask;
use crate::objects;
use crate::print_goal;
use crate::queries::SERVICES;
use crate::servers::{Bench, Server};

/// Of these a cluster was measured with other servers.
const MANY: (u32, u32) = (8_200, 18);
/// A server that was let alone for so long is idle.
const IDLE: Duration = Duration::from_secs(5);
const DEADLINE: Duration = Duration::from_secs(120);

pub fn measure() -> Result<()> {
    println!("\nmemory, after {IDLE:?} without a change");
    let bench = Bench::new(SERVICES, 1)?;
    let ours = settled(&bench, SERVICES)?;
    let figure = format!("{:.1} MB", megabytes(ours.holdings()?.resident_kib));
    print_goal(&format!("{SERVICES} Services"), &figure, "30 MB");
    drop(ours);

    let (services, endpoints) = MANY;
    let bench = Bench::new(services, endpoints)?;
    let ours = settled(&bench, services)?;
    let steady = ours.holdings()?.resident_kib;
    let figure = format!("{:.1} MB", megabytes(steady));
    print_goal(&format!("{} endpoints", services * endpoints), &figure, "60 MB");
    forget_peak(ours.process.pid())?;
    list_again(&bench, &ours, services);
    let peak = ours.holdings()?.peak_kib;
    let figure = format!(
        "{:.1} MB, {:.2} times",
        megabytes(peak),
        peak as f64 / steady as f64
    );
    print_goal("the most at a relist", &figure, "1.25 times");
    Ok(())
}

/// Ours, once it knows all Services and is idle.
fn settled(bench: &Bench, services: u32) -> Result<Server> {
    let ours = bench.ours("")?;
    await_service(bench, &ours, services - 1);
    std::thread::sleep(IDLE);
    Ok(ours)
}

#[track_caller]
fn await_service(bench: &Bench, server: &Server, number: u32) {
    let name = objects::name(number);
    wait::until_value(
        &format!("{name} is known"),
        DEADLINE,
        || ask(&bench.host, server.address, &name),
        |found| *found == Some(objects::address(number)),
    );
}

/// Makes it list everything, and waits until it has and follows again.
#[track_caller]
fn list_again(bench: &Bench, server: &Server, services: u32) {
    let lists = || {
        let requests = bench.api.requests();
        let lists = requests
            .iter()
            .filter(|request| request.contains("sendInitialEvents"));
        lists.count()
    };
    let before = lists();
    bench.api.compact();
    wait::until_value("every kind is listed again", DEADLINE, lists, |now| {
        *now >= before + 3
    });
    // What comes behind a list tells that it has been taken.
    bench.api.put(objects::service(services));
    await_service(bench, server, services);
    std::thread::sleep(IDLE);
}

/// As they are sold, of a thousand each.
fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1.024 / 1000.0
}

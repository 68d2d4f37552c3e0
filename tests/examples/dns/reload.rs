//! 50,000 queries per second while the Corefile changes.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tests::wait;

use crate::load::{Counted, ask, dnsperf, parse, start};
use crate::objects;
use crate::print_goal;
use crate::queries::{OTHERS, SERVICES, other, questions, write};
use crate::servers::{Bench, Server};

const LENGTH: Duration = Duration::from_secs(30);
const DEADLINE: Duration = Duration::from_secs(20);
/// Told by the Corefile that is in force.
const NAME: &str = "generation.example";

pub fn measure() -> Result<()> {
    let bench = Bench::new(SERVICES, 1)?;
    let ours = bench.ours(&generation(0))?;
    let others: Vec<String> = (0..OTHERS).map(other).collect();
    let each = write(&bench, "each", &others)?;
    dnsperf(&bench.host, ours.address, &each, &["-n", "1", "-q", "50"])?;
    // As many names of the cluster as of others.
    let names = (0..OTHERS).map(objects::name).chain(others);
    let mixed = questions(&bench, "mixed", names)?;

    println!("\n50,000 queries/s for {LENGTH:?}; sockets that have no room, and the machine, lose some, too");
    for changes in [false, true] {
        let (asked, before) = (bench.upstream.asked(), overflows(&bench)?);
        let (counted, reloads) = load(&bench, &ours, &mixed, changes)?;
        let figure = format!(
            "{} of {}, {} by sockets",
            counted.lost,
            counted.completed + counted.lost,
            overflows(&bench)? - before
        );
        print_goal(&format!("{reloads} reloads: lost"), &figure, "0");
        let again = bench.upstream.asked() - asked;
        print_goal("asked of the upstream again", &again.to_string(), "0");
    }
    Ok(())
}

/// Asks for [`LENGTH`], and changes the Corefile meanwhile, or does not. How often it did.
fn load(bench: &Bench, ours: &Server, questions: &Path, changes: bool) -> Result<(Counted, u8)> {
    let length = LENGTH.as_secs().to_string();
    let arguments = [
        "-c", "8", "-T", "2", "-q", "5000", "-Q", "50000", "-t", "5", "-l", &length,
    ];
    let began = Instant::now();
    let mut load = start(&bench.host, ours.address, questions, &arguments)?;
    let mut reloads = 0;
    // The last change is made early enough to be seen under load.
    while changes && began.elapsed() + Duration::from_secs(5) < LENGTH {
        reloads += 1;
        let _ = bench.write_corefile(&generation(reloads));
        wait::until_value(
            "the new Corefile is in force",
            DEADLINE,
            || ask(&bench.host, ours.address, NAME),
            |found| *found == Some(address(reloads)),
        );
    }
    load.await_end(LENGTH + DEADLINE);
    Ok((parse(&load.output())?, reloads))
}

/// Datagrams for which a socket of the host had no room: `RcvbufErrors` of `/proc/net/snmp`.
fn overflows(bench: &Bench) -> Result<u64> {
    let text = bench
        .host
        .run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("Udp: "));
    let (names, values) = lines.next().zip(lines.next()).context("UDP's counters")?;
    let pairs = names.split(' ').zip(values.split(' '));
    let found = pairs.into_iter().find(|(name, _)| *name == "RcvbufErrors");
    Ok(found.context("RcvbufErrors")?.1.parse()?)
}

fn generation(number: u8) -> String {
    let address = address(number);
    format!("hosts /none/such {{\n        {address} {NAME}\n        fallthrough\n    }}")
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

//! 50,000 queries per second while the Corefile changes.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::wait;

use crate::load::{ask, dnsperf, parse, start};
use crate::objects;
use crate::print_goal;
use crate::queries::{OTHERS, SERVICES, other, questions, write};
use crate::servers::Bench;

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
    let asked = bench.upstream.asked();
    // As many names of the cluster as of others.
    let names = (0..OTHERS).map(objects::name).chain(others);
    let mixed = questions(&bench, "mixed", names)?;

    let length = LENGTH.as_secs().to_string();
    let arguments = [
        "-c", "8", "-T", "2", "-q", "5000", "-Q", "50000", "-t", "5", "-l", &length,
    ];
    let began = Instant::now();
    let mut load = start(&bench.host, ours.address, &mixed, &arguments)?;
    let mut reloads = 0;
    // The last change is made early enough to be seen under load.
    while began.elapsed() + Duration::from_secs(5) < LENGTH {
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
    let counted = parse(&load.output())?;
    println!(
        "\n{reloads} reloads within {LENGTH:?} at {:.0} queries/s",
        counted.per_second
    );
    print_goal(
        &format!("lost, of {}", counted.completed),
        &counted.lost.to_string(),
        "0",
    );
    let again = bench.upstream.asked() - asked;
    print_goal("asked of the upstream again", &again.to_string(), "0");
    Ok(())
}

fn generation(number: u8) -> String {
    let address = address(number);
    format!("hosts /none/such {{\n        {address} {NAME}\n        fallthrough\n    }}")
}

fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

//! What it costs others that packets are followed: request-response and new connections between two pods, without a trace
//! and with one of another pod's packets attached, in the same run.
//!
//! ```text
//! cost [--cycles N]
//!
//! alone    client pod ── node ── server pod, nobody looks
//! again    the same once more: what the machine's noise alone makes of it
//! beside   the same while a trace of two other addresses and a port is attached
//! ```
//! Also printed: how long it took to attach and to detach, as medians. Root; everything is in network namespaces of its
//! own. How it is measured: `tests::rr`.

use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tests::rr::{Arm, BLOCK, Worker, client, compare, serve};
use tests::topology::{Host, pod};
use trace::{Filter, Session};

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 215, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 215, 2, 2);
const PORT: u16 = 8080;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let cycles = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["client", address] => return client(address.parse()?),
        [] => 60,
        ["--cycles", cycles] => cycles.parse()?,
        _ => bail!("usage: cost [--cycles N]"),
    };
    println!("{cycles} cycles of {BLOCK} requests");
    let node = Host::new("cost")?;
    node.set("net/ipv4/ip_forward", "1")?;
    let from = pod(&node, "client", CLIENT)?;
    let to = pod(&node, "server", SERVER)?;
    let listener = to.run(|| TcpListener::bind((SERVER, PORT)))??;
    std::thread::spawn(move || serve(&listener));
    let worker = || Worker::start(&from.place(), (SERVER, PORT).into());
    let (mut alone, mut again) = (worker()?, worker()?);
    let mut beside = Beside {
        worker: worker()?,
        filter: Filter {
            sources: vec![[10, 215, 3, 2].into()],
            targets: vec![([10, 215, 4, 2].into(), Some(PORT))],
            ..Filter::default()
        },
        attached: Vec::new(),
        detached: Vec::new(),
    };
    let mut arms: [(&str, &mut dyn Arm); 3] = [
        ("alone", &mut alone),
        ("again", &mut again),
        ("beside", &mut beside),
    ];
    compare(&mut arms, cycles)?;
    let [attached, detached] = [&mut beside.attached, &mut beside.detached].map(|times| median(times));
    println!(
        "attached in {} ms, detached in {} ms",
        attached.as_millis(),
        detached.as_millis()
    );
    Ok(())
}

/// A client that measures while somebody else's packets are followed.
struct Beside {
    worker: Worker,
    filter: Filter,
    /// How long it took to attach, each time.
    attached: Vec<Duration>,
    /// How long it took to detach.
    detached: Vec<Duration>,
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

impl Arm for Beside {
    fn block(&mut self, what: &str) -> Result<f64> {
        let session = Session::start(&self.filter, "machine").context("follow packets")?;
        self.attached.push(session.attached_in());
        let measured = self.worker.block(what);
        let detaching = Instant::now();
        drop(session);
        self.detached.push(detaching.elapsed());
        measured
    }
}

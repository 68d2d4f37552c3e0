//! What `causeway trace` costs, and how soon it answers: the program as people run it, beside traffic of others.
//!
//! ```text
//! cargo build --release --locked --bin causeway && cargo run --release --locked -p tests --example trace -- [--cycles N]
//!
//! alone    client pod ── node ── server pod, nobody looks
//! again    the same once more: what the machine's noise alone makes of it
//! beside   the same while a trace of another pair of pods runs
//! ```
//! Ratios are of medians of blocks, paired and interleaved (`tests::rr`). Also printed, as medians and longest times of so
//! many traces: how long it took to attach and to detach, and how long after a connection began the trace of it had told its
//! story and ended: of one that is answered, and of one that a rule drops. Root; everything is in network namespaces of its
//! own.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::rr::{Arm, BLOCK, Worker, client, compare, serve};
use tests::topology::{Host, pod};
use tests::traced::Following;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 215, 1, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 215, 2, 2);
const PORT: u16 = 8080;
/// Where a rule drops what comes.
const DROPPED: u16 = 8081;
/// Whom the trace beside the traffic looks for, and does not see.
const OTHERS: [&str; 2] = ["10.215.3.2", "10.215.4.2:8080/tcp"];

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let cycles = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["client", address] => return client(address.parse()?),
        [] => 60,
        ["--cycles", cycles] => cycles.parse()?,
        _ => bail!("usage: trace [--cycles N]"),
    };
    println!("{cycles} cycles of {BLOCK} requests");
    let node = Host::new("cost")?;
    node.set("net/ipv4/ip_forward", "1")?;
    let from = pod(&node, "client", CLIENT)?;
    let to = pod(&node, "server", SERVER)?;
    for rule in [
        "add table ip guard",
        "add chain ip guard passing { type filter hook forward priority 0; }",
        &format!("add rule ip guard passing tcp dport {DROPPED} drop"),
    ] {
        let added = node.command("nft", &[rule])?;
        ensure!(added.status.success(), "nft {rule}: {}", added.stderr);
    }
    let listener = to.run(|| TcpListener::bind((SERVER, PORT)))??;
    std::thread::spawn(move || serve(&listener));
    let worker = || Worker::start(&from.place(), (SERVER, PORT).into());
    let (mut alone, mut again) = (worker()?, worker()?);
    let mut beside = Beside {
        worker: worker()?,
        attached: Vec::new(),
        detached: Vec::new(),
    };
    let mut arms: [(&str, &mut dyn Arm); 3] = [
        ("alone", &mut alone),
        ("again", &mut again),
        ("beside", &mut beside),
    ];
    compare(&mut arms, cycles)?;
    print("attached in", &mut beside.attached);
    print("detached in", &mut beside.detached);
    for (what, port, code) in [("answered", PORT, 0), ("dropped", DROPPED, 1)] {
        let mut times = Vec::new();
        for _ in 0..cycles {
            times.push(answer(&from, (SERVER, port).into(), code)?);
        }
        print(
            &format!("of a connection that is {what}, told within"),
            &mut times,
        );
    }
    Ok(())
}

/// How long after a connection began the trace of it had ended.
fn answer(from: &Host, to: SocketAddr, code: i32) -> Result<Duration> {
    let following = Following::start(&[&CLIENT.to_string(), &format!("{to}/tcp")]);
    let began = Instant::now();
    std::thread::scope(|scope| {
        // Whether it comes about is the trace's to tell.
        scope.spawn(|| from.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(500)).map(drop)));
        let told = following.end();
        let took = began.elapsed();
        ensure!(told.status.code() == Some(code), "{told:?}");
        Ok(took)
    })
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let middle = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    println!(
        "{what} {} ms, {} ms at the most",
        middle.as_millis(),
        longest.as_millis()
    );
}

/// A client that measures while somebody else's packets are followed.
struct Beside {
    worker: Worker,
    attached: Vec<Duration>,
    detached: Vec<Duration>,
}

impl Arm for Beside {
    fn block(&mut self, what: &str) -> Result<f64> {
        let following = Following::start(&[&OTHERS[..], &["--timeout", "10m", "--verbose"]].concat());
        let measured = self.worker.block(what);
        let process = Pid::from_raw(following.child.id().cast_signed());
        kill(process, Signal::SIGINT).context("end the trace")?;
        let told = following.end();
        // `attached in 90 ms, detached in 0 ms`
        let line = told.stderr.lines().find(|line| line.starts_with("attached in "));
        let line = line.with_context(|| format!("{told:?}"))?;
        let mut times = line.split_whitespace().filter_map(|word| word.parse().ok());
        let mut next = || times.next().map(Duration::from_millis).context(line.to_owned());
        self.attached.push(next()?);
        self.detached.push(next()?);
        measured
    }
}

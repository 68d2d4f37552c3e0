//! Load: workers are processes of their own, each on one processor, which are told by lines what to do.
//!
//! ```text
//! serve ADDRESS --udp?   answers bytes with bytes;   line `cpu`        ─► nanoseconds of processor time so far
//! ask ADDRESS CGROUP?    measures;                   line `tcp-rr 500` ─► a Block, as JSON
//! ```
//! Client and server are on the same processor: what lies between them is the kernel's work for one packet after the
//! other, and neither waits for another processor to wake.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use netlink::Namespace;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt::Linger};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::results::Metric;
use crate::stats::quantile;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What one operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// A byte there and back, over a connection that lasts.
    TcpRr,
    /// A new connection, a byte there and back, and its end by a reset.
    TcpCrr,
    /// A datagram there and back.
    UdpRr,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TcpRr, Self::TcpCrr, Self::UdpRr];

    /// How many make a block: some tens of milliseconds.
    #[must_use]
    pub const fn block(self) -> usize {
        match self {
            Self::TcpRr | Self::UdpRr => 2_000,
            Self::TcpCrr => 500,
        }
    }

    /// What it is, in a sentence.
    #[must_use]
    pub const fn about(self) -> &'static str {
        match self {
            Self::TcpRr => "a byte there and back over a TCP connection that lasts",
            Self::TcpCrr => "a TCP connection, a byte there and back, and a reset",
            Self::UdpRr => "a datagram of one byte there and back",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TcpRr => "tcp-rr",
            Self::TcpCrr => "tcp-crr",
            Self::UdpRr => "udp-rr",
        })
    }
}

impl FromStr for Operation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = Self::ALL.into_iter();
        all.find(|operation| operation.to_string() == text)
            .ok_or_else(|| format!("{text:?} is none of tcp-rr, tcp-crr, udp-rr"))
    }
}

/// What a block of operations took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// See [`Metric::P01`].
    pub p01: f64,
    /// See [`Metric::P50`].
    pub p50: f64,
    /// See [`Metric::P99`].
    pub p99: f64,
    /// Processor time of one operation.
    pub cpu: f64,
}

impl Block {
    /// One of its figures.
    #[must_use]
    pub const fn get(&self, metric: Metric) -> f64 {
        match metric {
            Metric::P01 => self.p01,
            Metric::P50 => self.p50,
            Metric::P99 => self.p99,
            Metric::Cpu => self.cpu,
        }
    }
}

/// A worker that somebody started.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one in a namespace: `program` with its arguments is one that calls [`work`].
    ///
    /// # Errors
    /// When it cannot be started, or is not ready.
    pub fn start(namespace: &Namespace, program: &[String], arguments: &[&str]) -> Result<Self> {
        let (name, first) = program.split_first().context("invariant: a program has a name")?;
        let mut command = Command::new(name);
        command
            .args(first)
            .args(arguments)
            // Ctrl-C is for who measures: it ends the workers when they have answered.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = namespace.run(|| command.spawn())?.context("start a worker")?;
        let mut worker = Self {
            input: child.stdin.take().context("invariant: piped")?,
            output: BufReader::new(child.stdout.take().context("invariant: piped")?),
            child,
        };
        let ready = worker.hear()?;
        ensure!(ready == "ready", "a worker says {ready:?}");
        Ok(worker)
    }

    /// Tells it a line, and hears what comes of it.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&mut self, line: &str) -> Result<String> {
        writeln!(self.input, "{line}").context("a worker ended")?;
        self.hear()
    }

    fn hear(&mut self) -> Result<String> {
        let mut line = String::new();
        let length = self.output.read_line(&mut line)?;
        ensure!(length > 0, "a worker ended");
        Ok(line.trim_end().to_owned())
    }

    /// Processor time of a server so far.
    ///
    /// # Errors
    /// When it has ended.
    pub fn cpu(&mut self) -> Result<Duration> {
        Ok(Duration::from_nanos(self.tell("cpu")?.parse()?))
    }

    /// Has a client measure a block.
    ///
    /// # Errors
    /// When it has ended, or the server did not answer.
    pub fn measure(&mut self, operation: Operation, count: usize) -> Result<Block> {
        let said = self.tell(&format!("{operation} {count}"))?;
        serde_json::from_str(&said).with_context(|| format!("a worker says {said:?}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a worker does, until nobody tells it anything more.
///
/// # Errors
/// When the arguments are not its, or a server does not answer.
pub fn work(arguments: &[String]) -> Result<()> {
    pin()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", address] => serve_tcp(address.parse()?),
        ["serve", address, "--udp"] => serve_udp(address.parse()?),
        ["ask", address] => ask(address.parse()?),
        ["ask", address, cgroup] => {
            // Programs of the socket hook see who is in it.
            std::fs::write(Path::new(cgroup).join("cgroup.procs"), "0").context("enter the cgroup")?;
            ask(address.parse()?)
        }
        _ => bail!("a worker is told `serve ADDRESS [--udp]` or `ask ADDRESS [CGROUP]`"),
    }
}

/// Onto the first processor that this process may have.
fn pin() -> Result<()> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    let mut all = 0..CpuSet::count();
    let first = all.find(|number| allowed.is_set(*number).unwrap_or(false));
    let mut processors = CpuSet::new();
    processors.set(first.context("a process has a processor")?)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &processors)?)
}

/// All threads of this process.
fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// Answers on other threads; this one tells what they cost.
fn serve_tcp(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address)?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // One client, one connection at a time: a thread for each would be most of what a new connection costs.
            let _ended = answer(stream);
        }
    });
    tell_cpu()
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn serve_udp(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    std::thread::spawn(move || {
        let mut byte = [0];
        while let Ok((length, from)) = socket.recv_from(&mut byte) {
            let _ = socket.send_to(byte.get(..length).unwrap_or_default(), from);
        }
    });
    tell_cpu()
}

fn tell_cpu() -> Result<()> {
    println!("ready");
    for line in std::io::stdin().lines() {
        ensure!(line? == "cpu", "a server is asked for `cpu` alone");
        println!("{}", cpu()?.as_nanos());
    }
    Ok(())
}

fn ask(to: SocketAddr) -> Result<()> {
    println!("ready");
    for line in std::io::stdin().lines() {
        let line = line?;
        let (operation, count) = line.split_once(' ').context("an operation and how many")?;
        let operation: Operation = operation.parse().map_err(anyhow::Error::msg)?;
        let block = measure(to, operation, count.parse()?)?;
        println!("{}", serde_json::to_string(&block)?);
    }
    Ok(())
}

/// Measures a block. A tenth as many go before, which nobody counts.
fn measure(to: SocketAddr, operation: Operation, count: usize) -> Result<Block> {
    let mut once = operate(to, operation)?;
    for _ in 0..count / 10 {
        once()?;
    }
    let mut took = Vec::with_capacity(count);
    let before = cpu()?;
    for _ in 0..count {
        took.push(once()?.as_secs_f64() * 1e6);
    }
    let cpu = (cpu()? - before).as_secs_f64() * 1e6 / count as f64;
    let share = |share| quantile(&took, share).context("an empty block");
    Ok(Block {
        p01: share(0.01)?,
        p50: share(0.5)?,
        p99: share(0.99)?,
        cpu,
    })
}

/// What does one operation, and says how long it took.
fn operate(to: SocketAddr, operation: Operation) -> Result<Box<dyn FnMut() -> Result<Duration>>> {
    Ok(match operation {
        Operation::TcpRr => {
            let mut stream = open(to)?;
            Box::new(move || timed(|| exchange(&mut stream)))
        }
        Operation::TcpCrr => Box::new(move || {
            let mut stream = None;
            let took = timed(|| exchange(stream.insert(open(to)?)));
            // A reset in place of TIME_WAIT: ports must last for all blocks.
            let reset = nix::libc::linger {
                l_onoff: 1,
                l_linger: 0,
            };
            setsockopt(&stream.context("invariant: it was opened")?, Linger, &reset)?;
            took
        }),
        Operation::UdpRr => {
            let socket = UdpSocket::bind(("0.0.0.0", 0))?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            Box::new(move || {
                timed(|| {
                    let mut byte = [7];
                    socket.send(&byte)?;
                    socket.recv(&mut byte)?;
                    Ok(())
                })
            })
        }
    })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(())
}

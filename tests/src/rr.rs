//! Request and response of one byte, over a connection that lasts (`rr`) and over a new one for each (`crr`), between arms
//! that are compared in one run.
//!
//! Each cycle runs all arms forwards and backwards, a block of requests each; what is printed is the median over cycles of
//! the ratio of the blocks' medians to those of the first arm, with the 95 % interval of that median (order statistics).
//! Clients are processes of their own: the program's, called as `PROGRAM client ADDRESS`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::process::{Place, command};

/// Requests in a block.
pub const BLOCK: usize = 1500;

/// What is measured a block of requests at a time.
pub trait Arm {
    /// The median of a block, `rr` or `crr`, in nanoseconds.
    ///
    /// # Errors
    /// When its client ends.
    fn block(&mut self, what: &str) -> Result<f64>;
}

/// Measures the arms against the first of them, in so many cycles, and prints what came of it.
///
/// # Errors
/// When a client ends.
pub fn compare<A: Arm + ?Sized>(arms: &mut [(&str, &mut A)], cycles: usize) -> Result<()> {
    for what in ["rr", "crr"] {
        let mut measured = Vec::new();
        for _ in 0..cycles {
            let mut sums = vec![0.0; arms.len()];
            for index in (0..arms.len()).chain((0..arms.len()).rev()) {
                sums[index] += arms[index].1.block(what)?;
            }
            measured.push(sums);
        }
        let names: Vec<&str> = arms.iter().map(|(name, _)| *name).collect();
        print(what, &names, &measured);
    }
    Ok(())
}

fn print(what: &str, names: &[&str], cycles: &[Vec<f64>]) {
    let first = names.first().copied().unwrap_or_default();
    for (index, name) in names.iter().enumerate() {
        let mut medians: Vec<f64> = cycles.iter().map(|sums| sums[index] / 2000.0).collect();
        medians.sort_by(f64::total_cmp);
        let mut ratios: Vec<f64> = cycles.iter().map(|sums| sums[index] / sums[0]).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = interval(ratios.len());
        let middle = cycles.len() / 2;
        println!(
            "{what:<4} {name:<10} p50 {:>6.2} µs   / {first} {:.4}  (95 %: {:.4} to {:.4})",
            medians[middle], ratios[middle], ratios[low], ratios[high]
        );
    }
}

/// Ranks between which the median of the population lies in 95 of 100 cases (normal approximation of the binomial).
#[must_use]
pub fn interval(count: usize) -> (usize, usize) {
    let half = 0.98 * (count as f64).sqrt();
    let middle = count as f64 / 2.0;
    let low = (middle - half).floor().max(0.0) as usize;
    let high = ((middle + half).ceil() as usize).min(count.saturating_sub(1));
    (low, high)
}

/// Answers each byte with a byte, on the second core.
pub fn serve(listener: &TcpListener) {
    let _ = pin(1); // a machine with one core measures, too
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            let mut stream = stream;
            let _ = pin(1);
            let _ = stream.set_nodelay(true);
            let mut byte = [0];
            while let Ok(1) = stream.read(&mut byte) {
                if stream.write_all(&byte).is_err() {
                    return;
                }
            }
        });
    }
}

fn pin(cpu: usize) -> nix::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &cpus)
}

/// A client in a process of its own, which measures a block when it is told to.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one in a place, towards a server.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(place: &Place, to: SocketAddr) -> Result<Self> {
        let program = std::env::current_exe()?;
        let mut command: Command = command(place, program);
        command
            .args(["client", &to.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let namespace = place.namespace.as_ref().context("a namespace")?;
        let mut child = namespace.run(|| command.spawn())??;
        Ok(Self {
            input: child.stdin.take().context("piped")?,
            output: BufReader::new(child.stdout.take().context("piped")?),
            child,
        })
    }
}

impl Arm for Worker {
    fn block(&mut self, what: &str) -> Result<f64> {
        writeln!(self.input, "{what}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.trim()
            .parse()
            .with_context(|| format!("the client printed {line:?}"))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill(); // ended already
        let _ = self.child.wait();
    }
}

/// What a client does, on the first core: a block for each line, `rr` or `crr`.
///
/// # Errors
/// When the server does not answer.
pub fn client(to: SocketAddr) -> Result<()> {
    let _ = pin(0);
    let mut kept = open(to)?;
    for line in std::io::stdin().lines() {
        let mut samples = Vec::with_capacity(BLOCK);
        for _ in 0..BLOCK {
            let started = Instant::now();
            match line.as_deref().unwrap_or_default() {
                "rr" => exchange(&mut kept)?,
                "crr" => {
                    let mut stream = open(to)?;
                    exchange(&mut stream)?;
                    samples.push(started.elapsed());
                    // A reset instead of TIME_WAIT: ports must last for all blocks.
                    nix::sys::socket::setsockopt(
                        &stream,
                        nix::sys::socket::sockopt::Linger,
                        &nix::libc::linger {
                            l_onoff: 1,
                            l_linger: 0,
                        },
                    )?;
                    continue;
                }
                other => bail!("{other:?} is neither rr nor crr"),
            }
            samples.push(started.elapsed());
        }
        samples.sort_unstable();
        println!("{}", samples[samples.len() / 2].as_nanos());
    }
    Ok(())
}

fn open(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [7];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte)?;
    Ok(())
}

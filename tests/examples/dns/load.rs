//! Questions: one, and as many as dnsperf sends.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::probe::queries;
use tests::process::{Output, Process, command, run_in};
use tests::topology::Host;

const PATIENCE: Duration = Duration::from_secs(1);

/// What dnsperf counted.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    pub completed: u64,
    pub lost: u64,
    pub per_second: f64,
}

/// Where dnsperf takes its questions from, one `NAME TYPE` in each line.
pub fn dnsperf(host: &Host, server: SocketAddr, questions: &Path, arguments: &[&str]) -> Result<Counted> {
    let mut dnsperf = prepare(host, server, questions, arguments);
    counted(&run_in(&host.place(), &mut dnsperf, b"").context("dnsperf is missing: ./setup.sh bench")?)
}

/// The same, beside what goes on here. [`Process::await_end`] tells its end, [`parse`] reads what it printed.
pub fn start(host: &Host, server: SocketAddr, questions: &Path, arguments: &[&str]) -> Result<Process> {
    Process::spawn(&host.place(), &mut prepare(host, server, questions, arguments))
        .context("dnsperf is missing: ./setup.sh bench")
}

fn prepare(host: &Host, server: SocketAddr, questions: &Path, arguments: &[&str]) -> std::process::Command {
    let mut dnsperf = command(&host.place(), "dnsperf");
    dnsperf
        .args([
            "-s",
            &server.ip().to_string(),
            "-p",
            &server.port().to_string(),
            "-d",
        ])
        .arg(questions)
        .args(arguments);
    dnsperf
}

fn counted(output: &Output) -> Result<Counted> {
    ensure!(output.status.success(), "dnsperf: {}", output.stderr);
    parse(&output.stdout)
}

/// Reads dnsperf's statistics. Any other code than NOERROR is a mistake of the measurement.
pub fn parse(text: &str) -> Result<Counted> {
    let number = |label: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(label));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.with_context(|| format!("no {label} in {text}"))?.parse()?)
    };
    let codes = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Response codes:"));
    let codes = codes.with_context(|| format!("no codes in {text}"))?.trim();
    ensure!(codes.starts_with("NOERROR") && !codes.contains(','), "{codes}");
    Ok(Counted {
        completed: number("Queries completed:")? as u64,
        lost: number("Queries lost:")? as u64,
        per_second: number("Queries per second:")?,
    })
}

/// The one address of a name; None where there is none, or no answer.
pub fn ask(host: &Host, server: SocketAddr, name: &str) -> Option<Ipv4Addr> {
    let asker = host.run(|| Asker::new(server)).ok()?.ok()?;
    asker.ask(name).ok().flatten()
}

/// A socket towards a server.
pub struct Asker(UdpSocket);

impl Asker {
    pub fn new(server: SocketAddr) -> std::io::Result<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(server)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self(socket))
    }

    /// The one address of a name, where the answer has one.
    pub fn ask(&self, name: &str) -> std::io::Result<Option<Ipv4Addr>> {
        let query = queries::query(7, name);
        self.0.send(&query)?;
        let mut answer = [0; 4096];
        let length = self.0.recv(&mut answer)?;
        Ok(queries::address(&query, answer.get(..length).unwrap_or_default()).ok())
    }
}

//! Traffic that goes on while faults are made, and counts what it loses.
//!
//! - [`serve`]: answers on TCP and UDP with the question's number and the own address.
//! - [`Flows`]: long-lived TCP connections that exchange numbers; broken by a reset, a wrong number, or silence.
//! - [`Attempts`]: new TCP connections, UDP requests of one socket, or DNS queries, so many in each second, each with
//!   its outcome.
//!
//! ```text
//! question  [number:8 be]                  answer  [number:8 be][server's address, IPv4 mapped:16]
//! ```
//! Clients are processes ([`run`] is their `main`), so that they can be in a node's cgroup.

pub mod queries;

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::cluster::programs;
use crate::process::{Place, Process, command};
use crate::topology::Host;
use crate::wait;

/// Later is lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// Between two lines of a client with many flows.
const TELL: Duration = Duration::from_millis(50);

const START: Duration = Duration::from_secs(20);

const QUESTION: usize = 8;
const ANSWER: usize = 24;

/// Answers on TCP and UDP until the test process ends.
///
/// # Errors
/// When the address is taken or not there.
pub fn serve(host: &Host, at: SocketAddr) -> Result<()> {
    let listener = host
        .run(|| TcpListener::bind(at))?
        .with_context(|| format!("listen on {at}"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // The client may be gone, and that is its matter.
            thread::spawn(move || converse(stream, at.ip()));
        }
    });
    let socket = host
        .run(|| UdpSocket::bind(at))?
        .with_context(|| format!("bind {at}"))?;
    thread::spawn(move || {
        let mut question = [0; 65_536];
        while let Ok((_, client)) = socket.recv_from(&mut question) {
            let number = question.first_chunk().copied().unwrap_or_default();
            let _ = socket.send_to(&answer(number, at.ip()), client); // likewise
        }
    });
    Ok(())
}

fn converse(mut stream: TcpStream, own: IpAddr) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut question = [0; QUESTION];
    loop {
        stream.read_exact(&mut question)?;
        stream.write_all(&answer(question, own))?;
    }
}

fn answer(question: [u8; QUESTION], own: IpAddr) -> [u8; ANSWER] {
    let mut answer = [0; ANSWER];
    let own = match own {
        IpAddr::V4(own) => own.to_ipv6_mapped(),
        IpAddr::V6(own) => own,
    };
    answer[..QUESTION].copy_from_slice(&question);
    answer[QUESTION..].copy_from_slice(&own.octets());
    answer
}

/// Microseconds since 1970: attempts are told by it, and it is the same in all processes.
#[must_use]
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The right answer, by this server; of a DNS query, this address.
    Answer(IpAddr),
    /// A reset, or ICMP saying that nobody is there.
    Refused,
    /// Nothing within a second.
    Silent,
    /// Something else.
    Error(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(server) => write!(f, "answer {server}"),
            Self::Refused => write!(f, "refused"),
            Self::Silent => write!(f, "silent"),
            Self::Error(text) => write!(f, "error {text}"),
        }
    }
}

impl FromStr for Outcome {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.split_once(' ') {
            None if text == "refused" => Self::Refused,
            None if text == "silent" => Self::Silent,
            Some(("answer", server)) => Self::Answer(server.parse()?),
            Some(("error", text)) => Self::Error(text.to_owned()),
            _ => bail!("not an outcome: {text:?}"),
        })
    }
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// By [`now`].
    pub began: u64,
    /// Until the outcome.
    pub took: Duration,
    /// What became of it.
    pub outcome: Outcome,
}

impl Attempt {
    /// The server that answered.
    #[must_use]
    pub fn server(&self) -> Option<IpAddr> {
        match self.outcome {
            Outcome::Answer(server) => Some(server),
            _ => None,
        }
    }
}

/// How attempts are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection for each.
    Connections,
    /// UDP from one socket for all.
    Requests,
    /// UDP from a connected socket for each, which is told of a refusal.
    ConnectedRequests,
}

impl Kind {
    const ALL: [(Self, &'static str); 3] = [
        (Self::Connections, "connections"),
        (Self::Requests, "requests"),
        (Self::ConnectedRequests, "connected-requests"),
    ];

    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(kind, _)| *kind == self);
        found.expect("invariant: all kinds are there").1
    }
}

/// Attempts that go on until it is dropped.
#[derive(Debug)]
pub struct Attempts(Process);

impl Attempts {
    /// Begins, and waits for the first outcome.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn start(place: &Place, kind: Kind, to: SocketAddr, per_second: u32) -> Result<Self> {
        Self::begin(place, &[kind.name(), &to.to_string(), &per_second.to_string()])
    }

    /// The same with queries to a DNS server for the one IPv4 address of a name, each from a socket of its own.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn start_queries(place: &Place, name: &str, to: SocketAddr, per_second: u32) -> Result<Self> {
        Self::begin(
            place,
            &["queries", &to.to_string(), &per_second.to_string(), name],
        )
    }

    fn begin(place: &Place, arguments: &[&str]) -> Result<Self> {
        let mut command = command(place, programs().join("probe"));
        command.args(arguments);
        let attempts = Self(Process::spawn(place, &mut command)?.quiet());
        attempts.await_more(1);
        Ok(attempts)
    }

    /// All that have an outcome.
    ///
    /// # Panics
    /// When the client says something else than attempts.
    #[must_use]
    pub fn all(&self) -> Vec<Attempt> {
        let output = self.0.output();
        let attempts = output
            .lines()
            .map(|line| parse_attempt(line).expect("the probe tells attempts"));
        attempts.collect()
    }

    /// Those that began at or after a moment.
    #[must_use]
    pub fn since(&self, moment: u64) -> Vec<Attempt> {
        let mut attempts = self.all();
        attempts.retain(|attempt| attempt.began >= moment);
        attempts
    }

    /// Those without an answer.
    #[must_use]
    pub fn lost(&self) -> Vec<Attempt> {
        let mut attempts = self.all();
        attempts.retain(|attempt| attempt.server().is_none());
        attempts
    }

    /// Waits for so many more outcomes, of attempts that begin from now on.
    #[track_caller]
    pub fn await_more(&self, count: usize) {
        let moment = now();
        wait::until_value(
            "more attempts",
            START,
            || self.since(moment).len(),
            |seen| *seen >= count,
        );
    }

    /// Waits for an attempt that begins from now on and ends so, and returns it.
    #[track_caller]
    pub fn await_outcome(&self, what: &str, timeout: Duration, wanted: impl Fn(&Attempt) -> bool) -> Attempt {
        let moment = now();
        wait::until(what, timeout, || {
            let attempts = self.since(moment);
            attempts
                .iter()
                .find(|attempt| wanted(attempt))
                .cloned()
                .ok_or(attempts.last().cloned())
        })
    }
}

fn parse_attempt(line: &str) -> Result<Attempt> {
    let mut words = line.splitn(3, ' ');
    let mut word = || words.next().with_context(|| format!("not an attempt: {line:?}"));
    Ok(Attempt {
        began: word()?.parse()?,
        took: Duration::from_micros(word()?.parse()?),
        outcome: word()?.parse()?,
    })
}

/// What became of flows so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowCounts {
    /// Connected, and not broken.
    pub open: u64,
    /// Numbers that came back.
    pub exchanged: u64,
    /// Ended by anything but us.
    pub broken: u64,
    /// The longest time that a number was away.
    pub longest: Duration,
}

/// Long-lived flows that go on until it is dropped.
#[derive(Debug)]
pub struct Flows(Process);

impl Flows {
    /// Connects so many, and waits until all exchange numbers.
    ///
    /// # Errors
    /// When the client cannot be started.
    pub fn start(place: &Place, to: SocketAddr, count: u32, per_second: u32) -> Result<Self> {
        let mut command = command(place, programs().join("probe"));
        command.args([
            "flows",
            &to.to_string(),
            &count.to_string(),
            &per_second.to_string(),
        ]);
        let flows = Self(Process::spawn(place, &mut command)?.quiet());
        wait::until_value(
            "all flows are open",
            START,
            || flows.counts(),
            |counts| counts.open == u64::from(count) && counts.exchanged >= counts.open,
        );
        Ok(flows)
    }

    /// As told last.
    #[must_use]
    pub fn counts(&self) -> FlowCounts {
        let output = self.0.output();
        let last = output.lines().rev().find_map(|line| line.strip_prefix("counts "));
        let numbers = last.map(|line| {
            line.split(' ')
                .filter_map(|word| word.parse().ok())
                .collect::<Vec<_>>()
        });
        match numbers.as_deref() {
            Some(&[open, exchanged, broken, longest]) => FlowCounts {
                open,
                exchanged,
                broken,
                longest: Duration::from_micros(longest),
            },
            _ => FlowCounts::default(),
        }
    }

    /// Why flows broke, one line each.
    #[must_use]
    pub fn breaks(&self) -> Vec<String> {
        let output = self.0.output();
        output
            .lines()
            .filter(|line| line.starts_with("broken "))
            .map(str::to_owned)
            .collect()
    }

    /// Waits for so many more exchanges.
    #[track_caller]
    pub fn await_more(&self, count: u64) {
        let before = self.counts().exchanged;
        wait::until_value(
            "more exchanges",
            START,
            || self.counts().exchanged,
            |seen| *seen >= before + count,
        );
    }
}

/// The client: `connections|requests|connected-requests TO PER-SECOND`, `queries TO PER-SECOND NAME`, or `flows TO COUNT
/// PER-SECOND`. Ends only when it is killed.
///
/// # Errors
/// When it is asked for something else.
pub fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["flows", to, count, per_second] => {
            run_flows(to.parse()?, count.parse()?, interval(per_second)?);
            Ok(())
        }
        ["queries", to, per_second, name] => {
            run_queries(to.parse()?, interval(per_second)?, name);
            Ok(())
        }
        [kind, to, per_second] => {
            let kind = Kind::ALL
                .iter()
                .find(|(_, name)| name == kind)
                .context("what kind?")?;
            run_attempts(kind.0, to.parse()?, interval(per_second)?)
        }
        _ => bail!("not KIND TO …: {words:?}"),
    }
}

fn interval(per_second: &str) -> Result<Duration> {
    Ok(Duration::from_secs(1) / per_second.parse::<u32>()?.max(1))
}

fn run_attempts(kind: Kind, to: SocketAddr, interval: Duration) -> Result<()> {
    let socket = UdpSocket::bind((unspecified(to), 0))?;
    at_pace(interval, |number| {
        if kind == Kind::Requests {
            tell_attempt(|| request(&socket, to, number));
        } else {
            // One that waits for its outcome delays no other.
            thread::spawn(move || {
                tell_attempt(|| match kind {
                    Kind::Connections => connection(to, number),
                    Kind::Requests | Kind::ConnectedRequests => connected_request(to, number),
                })
            });
        }
    });
    Ok(())
}

fn run_queries(to: SocketAddr, interval: Duration, name: &str) {
    at_pace(interval, |number| {
        let name = name.to_owned();
        thread::spawn(move || tell_attempt(|| query(to, number, &name)));
    });
}

fn at_pace(interval: Duration, mut begin: impl FnMut(u64)) {
    let mut next = Instant::now();
    for number in 0.. {
        begin(number);
        next = (next + interval).max(Instant::now());
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn unspecified(to: SocketAddr) -> IpAddr {
    match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn tell_attempt(attempt: impl FnOnce() -> std::io::Result<IpAddr>) {
    let (began, start) = (now(), Instant::now());
    let outcome = match attempt() {
        Ok(server) => Outcome::Answer(server),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silent,
            _ => Outcome::Error(error.to_string()),
        },
    };
    println!("{began} {} {outcome}", start.elapsed().as_micros());
}

fn connection(to: SocketAddr, number: u64) -> std::io::Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    exchange(&mut stream, number)
}

fn exchange(stream: &mut TcpStream, number: u64) -> std::io::Result<IpAddr> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&number.to_be_bytes())?;
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer)?;
    read_answer(&answer, number).ok_or_else(|| std::io::Error::other("another number came back"))
}

/// Takes the answer to this number, and no late one.
fn request(socket: &UdpSocket, to: SocketAddr, number: u64) -> std::io::Result<IpAddr> {
    let deadline = Instant::now() + PATIENCE;
    socket.send_to(&number.to_be_bytes(), to)?;
    let mut answer = [0; ANSWER];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        let (_, from) = socket.recv_from(&mut answer)?;
        match read_answer(&answer, number) {
            Some(_) if from != to => return Err(std::io::Error::other(format!("an answer from {from}"))),
            Some(server) => return Ok(server),
            None => {}
        }
    }
}

fn connected_request(to: SocketAddr, number: u64) -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((unspecified(to), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&number.to_be_bytes())?;
    let mut answer = [0; ANSWER];
    socket.recv(&mut answer)?;
    read_answer(&answer, number).ok_or_else(|| std::io::Error::other("another number came back"))
}

fn query(to: SocketAddr, number: u64, name: &str) -> std::io::Result<IpAddr> {
    let socket = UdpSocket::bind((unspecified(to), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let [.., high, low] = number.to_be_bytes();
    let query = queries::query(u16::from_be_bytes([high, low]), name);
    socket.send(&query)?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer)?;
    let address = queries::address(&query, &answer[..length]).map_err(std::io::Error::other)?;
    Ok(address.into())
}

fn read_answer(answer: &[u8; ANSWER], number: u64) -> Option<IpAddr> {
    let (echoed, server) = answer.split_first_chunk::<QUESTION>()?;
    let server = Ipv6Addr::from(*server.first_chunk::<16>()?);
    (*echoed == number.to_be_bytes()).then(|| server.to_canonical())
}

#[derive(Default)]
struct Tally {
    open: AtomicU64,
    exchanged: AtomicU64,
    broken: AtomicU64,
    longest_micros: AtomicU64,
}

fn run_flows(to: SocketAddr, count: u32, interval: Duration) {
    let tally = Arc::new(Tally::default());
    for number in 0..count {
        let tally = tally.clone();
        thread::spawn(move || {
            // Apart from each other, as real clients are.
            thread::sleep(interval * number / count);
            let reason = keep_flow(to, interval, &tally);
            tally.broken.fetch_add(1, Ordering::Relaxed);
            println!("broken {number} at {}: {reason}", now());
        });
    }
    loop {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (open, broken) = (read(&tally.open), read(&tally.broken));
        let open = open.saturating_sub(broken);
        println!(
            "counts {open} {} {broken} {}",
            read(&tally.exchanged),
            read(&tally.longest_micros)
        );
        thread::sleep(TELL);
    }
}

/// Returns why the flow broke.
fn keep_flow(to: SocketAddr, interval: Duration, tally: &Tally) -> std::io::Error {
    let keep = || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_nodelay(true)?;
        tally.open.fetch_add(1, Ordering::Relaxed);
        for number in 0.. {
            let start = Instant::now();
            exchange(&mut stream, number)?;
            let took = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
            tally.longest_micros.fetch_max(took, Ordering::Relaxed);
            tally.exchanged.fetch_add(1, Ordering::Relaxed);
            thread::sleep(interval.saturating_sub(start.elapsed()));
        }
        Ok(())
    };
    let Err(error) = keep() else {
        unreachable!("it exchanges numbers until it breaks")
    };
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_read_as_they_are_told() {
        let server: IpAddr = "fd00::1".parse().expect("an address");
        for outcome in [
            Outcome::Answer(server),
            Outcome::Refused,
            Outcome::Silent,
            Outcome::Error("no route to host".to_owned()),
        ] {
            let expected = Attempt {
                began: 7,
                took: Duration::from_micros(9),
                outcome: outcome.clone(),
            };
            assert_eq!(parse_attempt(&format!("7 9 {outcome}")).expect("told"), expected);
        }
        assert!(parse_attempt("7 9 lost").is_err());
    }

    #[test]
    fn an_answer_counts_for_its_own_question_only() {
        let own: IpAddr = "10.244.1.5".parse().expect("an address");
        let answer = answer(7_u64.to_be_bytes(), own);
        assert_eq!(read_answer(&answer, 7), Some(own));
        assert_eq!(read_answer(&answer, 8), None);
    }
}

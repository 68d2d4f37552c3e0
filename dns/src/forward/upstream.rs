//! One upstream: asking it, and knowing whether it is worth asking.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};

use super::connection::{Connections, Tls};
use super::question::{Dialect, Judgement, Outgoing, Question};
use super::{HealthCheck, Options, Target};
use crate::metrics::Histogram;
use crate::question::{Query, query_packet, rtype};

const FLAG_TC: u8 = 0x02;
/// More than an upstream sends that was told 1232 bytes, or nothing.
const UDP_BUFFER: usize = 4096;
/// The longest that a health check waits.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Why an upstream gave no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nothing came in time.
    #[error("no answer within the time limit")]
    Timeout,
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[source] Arc<io::Error>),
    /// What came over TCP was no answer to the question.
    #[error("the answer does not belong to the question")]
    Mismatch,
}

impl From<io::Error> for ExchangeError {
    fn from(error: io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// A name server that questions are sent on to.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// How long its answers took.
    pub durations: Histogram,
    /// Failed health checks.
    pub failed_checks: AtomicU64,
    connections: Connections,
    /// It was never seen to refuse an OPT record.
    knows_edns: AtomicBool,
    /// It was never seen to change the case of a name.
    keeps_case: AtomicBool,
    fails: AtomicU32,
    checking: AtomicBool,
    looping: AtomicBool,
}

impl Upstream {
    pub(super) fn new(target: &Target, options: &Options) -> Self {
        let tls: Option<&Tls> = target.over_tls.then_some(&options.tls);
        Self {
            address: target.address,
            durations: Histogram::default(),
            failed_checks: AtomicU64::new(0),
            connections: Connections::new(target.address, tls, options.expire),
            knows_edns: AtomicBool::new(true),
            keeps_case: AtomicBool::new(true),
            fails: AtomicU32::new(0),
            checking: AtomicBool::new(false),
            looping: AtomicBool::new(false),
        }
    }

    /// Whether so many checks failed that others are asked first.
    #[must_use]
    pub fn is_down(&self, max_fails: u32) -> bool {
        max_fails > 0 && self.fails.load(Ordering::Relaxed) > max_fails
    }

    /// Whether it was seen to send our own queries back.
    #[must_use]
    pub fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }

    /// Notes that it sends our own queries back, and returns whether that is news.
    pub fn mark_looping(&self) -> bool {
        !self.looping.swap(true, Ordering::Relaxed)
    }

    /// Questions over streams that found an idle one, and those that needed a new one.
    #[must_use]
    pub fn stream_counts(&self) -> (u64, u64) {
        let Connections { reused, opened, .. } = &self.connections;
        (reused.load(Ordering::Relaxed), opened.load(Ordering::Relaxed))
    }

    /// `tcp`, or `tcp-tls` where everything goes by TLS; as metrics tell it.
    #[must_use]
    pub fn stream_protocol(&self) -> &'static str {
        if self.connections.is_tls() {
            "tcp-tls"
        } else {
            "tcp"
        }
    }

    /// Asks. A truncated answer is asked for again by TCP, so that the client gets all of it where it has the room.
    pub(super) async fn exchange(
        &self,
        question: &Question,
        until: Instant,
    ) -> Result<Vec<u8>, ExchangeError> {
        let started = Instant::now();
        let response = self.ask(question, until).await?;
        self.durations.record(started.elapsed());
        self.fails.store(0, Ordering::Relaxed);
        Ok(response)
    }

    /// Asks as it is known to like it, and where it shows that it does not, in a plainer way.
    async fn ask(&self, question: &Question, until: Instant) -> Result<Vec<u8>, ExchangeError> {
        let mut dialect = Dialect {
            edns: self.knows_edns.load(Ordering::Relaxed),
            mixed_case: self.keeps_case.load(Ordering::Relaxed),
        };
        loop {
            let sent = question.packet(dialect);
            let response = self.ask_with(&sent, question.by_tcp, until).await?;
            match sent.judge(&response) {
                Judgement::NoEdns => dialect.edns = false,
                Judgement::OtherCase if dialect.mixed_case => dialect.mixed_case = false,
                Judgement::True | Judgement::OtherCase => {
                    self.knows_edns.fetch_and(dialect.edns, Ordering::Relaxed);
                    self.keeps_case.fetch_and(dialect.mixed_case, Ordering::Relaxed);
                    return Ok(sent.without_opt(response));
                }
                Judgement::Foreign => return Err(ExchangeError::Mismatch),
            }
        }
    }

    async fn ask_with(
        &self,
        sent: &Outgoing,
        by_tcp: bool,
        until: Instant,
    ) -> Result<Vec<u8>, ExchangeError> {
        if by_tcp || self.connections.is_tls() {
            return self.ask_by_stream(sent, until).await;
        }
        let response = self.ask_by_udp(sent, until).await?;
        if response[2] & FLAG_TC != 0 {
            // A part of the answer is better than none.
            return Ok(self.ask_by_stream(sent, until).await.unwrap_or(response));
        }
        Ok(response)
    }

    async fn ask_by_udp(&self, sent: &Outgoing, until: Instant) -> Result<Vec<u8>, ExchangeError> {
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.address).await?;
        socket.send(&sent.packet).await?;
        let mut buffer = vec![0; UDP_BUFFER];
        loop {
            let received = timeout_at(until, socket.recv(&mut buffer)).await;
            let length = received.map_err(|_| ExchangeError::Timeout)??;
            if sent.judge(&buffer[..length]) != Judgement::Foreign {
                return Ok(buffer[..length].to_vec());
            }
        }
    }

    async fn ask_by_stream(&self, sent: &Outgoing, until: Instant) -> Result<Vec<u8>, ExchangeError> {
        let response = timeout_at(until, self.connections.exchange(&sent.packet)).await;
        let response = response.map_err(|_| ExchangeError::Timeout)??;
        match sent.judge(&response) {
            Judgement::Foreign => Err(ExchangeError::Mismatch),
            _ => Ok(response),
        }
    }

    /// Whether the caller is the one to check this upstream now.
    pub(super) fn begin_check(&self) -> bool {
        !self.checking.swap(true, Ordering::Relaxed)
    }

    /// Asks for the servers of a zone until there is an answer, whatever it says.
    pub(super) async fn check_until_healthy(&self, check: &HealthCheck, by_tcp: bool) {
        let mut packet = query_packet(0, check.domain.wire(), rtype::NS);
        packet[2] = u8::from(check.recursion_desired);
        let Ok(query) = Query::parse(&packet) else { return };
        let question = Question::of(&query, by_tcp);
        while self.ask(&question, Instant::now() + CHECK_TIMEOUT).await.is_err() {
            let fails = self.fails.load(Ordering::Relaxed).saturating_add(1);
            self.fails.store(fails, Ordering::Relaxed);
            self.failed_checks.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(check.interval).await;
        }
        self.fails.store(0, Ordering::Relaxed);
        self.checking.store(false, Ordering::Relaxed);
    }

    /// Sends one question and does not wait for its answer.
    pub(crate) async fn send_probe(&self, name: &[u8]) {
        let packet = query_packet(rand::random(), name, rtype::HINFO);
        if let Ok(query) = Query::parse(&packet) {
            let plain = Dialect {
                edns: false,
                mixed_case: false,
            };
            let sent = Question::of(&query, false).packet(plain);
            let ask = self.ask_with(&sent, false, Instant::now() + CHECK_TIMEOUT);
            // Only its arrival back here matters.
            let _ = timeout(CHECK_TIMEOUT, ask).await;
        }
    }
}

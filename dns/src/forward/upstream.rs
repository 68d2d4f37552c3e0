//! One upstream: asking it, and knowing whether it is worth asking.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use crate::metrics::Histogram;
use crate::question::{HEADER, Query, query_packet, rtype};

const FLAG_QR: u8 = 0x80;
const FLAG_TC: u8 = 0x02;
/// The longest that a health check waits.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// Why an upstream gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Nothing came in time.
    #[error("no answer within the time limit")]
    Timeout,
    /// The socket failed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// What came over TCP was no answer to the question.
    #[error("the answer does not belong to the question")]
    Mismatch,
}

/// A name server that questions are sent on to.
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    /// How long its answers took.
    pub durations: Histogram,
    /// Failed health checks.
    pub failed_checks: AtomicU64,
    fails: AtomicU32,
    checking: AtomicBool,
    looping: AtomicBool,
}

impl Upstream {
    pub(super) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            durations: Histogram::default(),
            failed_checks: AtomicU64::new(0),
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

    /// Asks. A truncated answer is asked for again by TCP, so that the client gets all of it where it has the room.
    pub(super) async fn exchange(
        &self,
        query: &Query<'_>,
        by_tcp: bool,
        until: Instant,
    ) -> Result<Vec<u8>, ExchangeError> {
        let started = Instant::now();
        let response = self.ask(query, by_tcp, until).await?;
        self.durations.record(started.elapsed());
        self.fails.store(0, Ordering::Relaxed);
        Ok(response)
    }

    async fn ask(&self, query: &Query<'_>, by_tcp: bool, until: Instant) -> Result<Vec<u8>, ExchangeError> {
        if by_tcp {
            return self.ask_by_tcp(query, until).await;
        }
        let response = self.ask_by_udp(query, until).await?;
        if response[2] & FLAG_TC != 0 {
            // A part of the answer is better than none.
            return Ok(self.ask_by_tcp(query, until).await.unwrap_or(response));
        }
        Ok(response)
    }

    async fn ask_by_udp(&self, query: &Query<'_>, until: Instant) -> Result<Vec<u8>, ExchangeError> {
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.address).await?;
        let packet = under_new_id(query);
        socket.send(&packet).await?;
        let mut buffer = vec![0; 65_535];
        loop {
            let received = timeout_at(until, socket.recv(&mut buffer)).await;
            let length = received.map_err(|_| ExchangeError::Timeout)??;
            if answers(&buffer[..length], &packet, query) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }

    async fn ask_by_tcp(&self, query: &Query<'_>, until: Instant) -> Result<Vec<u8>, ExchangeError> {
        let packet = under_new_id(query);
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let mut framed = Vec::with_capacity(packet.len() + 2);
            framed.extend_from_slice(&(packet.len() as u16).to_be_bytes());
            framed.extend_from_slice(&packet);
            stream.write_all(&framed).await?;
            let mut response = vec![0; usize::from(stream.read_u16().await?)];
            stream.read_exact(&mut response).await?;
            Ok::<_, io::Error>(response)
        };
        let response = timeout_at(until, exchange)
            .await
            .map_err(|_| ExchangeError::Timeout)??;
        if answers(&response, &packet, query) {
            Ok(response)
        } else {
            Err(ExchangeError::Mismatch)
        }
    }

    /// Whether the caller is the one to check this upstream now.
    pub(super) fn begin_check(&self) -> bool {
        !self.checking.swap(true, Ordering::Relaxed)
    }

    /// Asks `. NS` until there is an answer, whatever it says.
    pub(super) async fn check_until_healthy(&self, interval: Duration, by_tcp: bool) {
        let packet = query_packet(0, b"\0", rtype::NS);
        let Ok(query) = Query::parse(&packet) else { return };
        loop {
            if self
                .ask(&query, by_tcp, Instant::now() + CHECK_TIMEOUT)
                .await
                .is_ok()
            {
                break;
            }
            let fails = self.fails.load(Ordering::Relaxed).saturating_add(1);
            self.fails.store(fails, Ordering::Relaxed);
            self.failed_checks.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(interval).await;
        }
        self.fails.store(0, Ordering::Relaxed);
        self.checking.store(false, Ordering::Relaxed);
    }

    /// Sends one question and does not wait for its answer.
    pub(crate) async fn send_probe(&self, name: &[u8]) {
        let packet = query_packet(rand::random(), name, rtype::HINFO);
        if let Ok(query) = Query::parse(&packet) {
            let ask = self.ask_by_udp(&query, Instant::now() + CHECK_TIMEOUT);
            // Only its arrival back here matters.
            let _ = timeout(CHECK_TIMEOUT, ask).await;
        }
    }
}

fn under_new_id(query: &Query<'_>) -> Vec<u8> {
    let mut packet = query.packet().to_vec();
    packet[..2].copy_from_slice(&rand::random::<[u8; 2]>());
    packet
}

/// Whether a packet is a response to what was sent: id, QR, opcode, and the one question, in whatever case.
fn answers(response: &[u8], sent: &[u8], query: &Query<'_>) -> bool {
    let (Some(header), Some(question)) = (response.get(..HEADER), response.get(HEADER..query.question_end))
    else {
        return false;
    };
    let name_length = query.name().len();
    header[..2] == sent[..2]
        && header[2] & FLAG_QR != 0
        && header[2] & 0x78 == sent[2] & 0x78
        && header[4..6] == [0, 1]
        && question[..name_length].eq_ignore_ascii_case(query.name())
        && question[name_length..] == sent[HEADER + name_length..query.question_end]
}

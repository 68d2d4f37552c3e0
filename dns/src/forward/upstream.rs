//! One upstream: asking it, and knowing whether it is worth asking.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::connection::{Connections, Tls};
use super::latency::Latency;
use super::question::{Dialect, Judgement, Outgoing, Question};
use super::{HealthCheck, Options, Target};
use crate::answer::code_of;
use crate::metrics::Histogram;
use crate::question::{Query, flag, flags_of, query_packet, rcode, rtype};

/// More than an upstream sends that was told 1232 bytes, or nothing.
const UDP_BUFFER: usize = 4096;
/// The longest that a health check waits.
const CHECK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the true answer is waited for after one with the name in another case, which may be forged.
const TRUE_CASE_WAIT: Duration = Duration::from_millis(100);
/// How long a habit is believed before it is tried again.
const HABIT_LASTS: Duration = Duration::from_secs(600);

/// How many codes a response can have without EDNS.
pub(super) const CODES: usize = 16;

/// What came in, and what it is.
type Answered = Result<(Vec<u8>, Judgement), ExchangeError>;

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
    /// How long its answers took, by their codes.
    pub(super) durations: [Histogram; CODES],
    /// Failed health checks.
    pub failed_checks: AtomicU64,
    latency: Latency,
    connections: Connections,
    /// It refuses an OPT record.
    knows_no_edns: Habit,
    /// It changes the case of a name.
    changes_case: Habit,
    /// Checks that failed, in a row.
    fails: AtomicU32,
    checking: AtomicBool,
    looping: AtomicBool,
    /// Our own queries that it sent back.
    sent_back: AtomicU64,
}

/// What an upstream was seen to do, and is believed to do for a while: it may be another program by then.
#[derive(Debug, Default)]
struct Habit(Mutex<Option<Instant>>);

impl Habit {
    fn note(&self, now: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn is_believed(&self, now: Instant) -> bool {
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.is_some_and(|seen| now.saturating_duration_since(seen) < HABIT_LASTS)
    }
}

impl Upstream {
    pub(super) fn new(target: &Target, options: &Options) -> Self {
        let tls: Option<&Tls> = target.over_tls.then_some(&options.tls);
        Self {
            address: target.address,
            durations: Default::default(),
            failed_checks: AtomicU64::new(0),
            latency: Latency::default(),
            connections: Connections::new(target.address, tls, options.expire),
            knows_no_edns: Habit::default(),
            changes_case: Habit::default(),
            fails: AtomicU32::new(0),
            checking: AtomicBool::new(false),
            looping: AtomicBool::new(false),
            sent_back: AtomicU64::new(0),
        }
    }

    /// Whether so many checks failed that others are asked first.
    #[must_use]
    pub fn is_down(&self, max_fails: u32) -> bool {
        max_fails > 0 && self.fails.load(Ordering::Relaxed) > max_fails
    }

    /// Whether its last check failed.
    pub(super) fn is_suspect(&self) -> bool {
        self.fails.load(Ordering::Relaxed) > 0
    }

    /// Whether it was seen to send our own queries back.
    #[must_use]
    pub fn is_looping(&self) -> bool {
        self.looping.load(Ordering::Relaxed)
    }

    pub(super) fn forget_loop(&self) {
        self.looping.store(false, Ordering::Relaxed);
    }

    /// Notes that it sends our own queries back, and returns whether that is news.
    pub fn mark_looping(&self) -> bool {
        self.sent_back.fetch_add(1, Ordering::Relaxed);
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

    /// Whether a question goes to it by UDP at first.
    pub(super) fn is_asked_by_udp(&self, question: &Question) -> bool {
        !question.by_tcp && !self.connections.is_tls()
    }

    /// How long its answer is waited for before somebody else is asked as well.
    pub(super) fn patience(&self) -> Duration {
        self.latency.patience()
    }

    /// Notes how long it had no answer when somebody else's came.
    pub(super) fn note_waited(&self, waited: Duration) {
        self.latency.note(waited);
    }

    /// Asks. A truncated answer is asked for again by TCP, so that the client gets all of it where it has the room.
    pub(super) async fn exchange(
        &self,
        question: &Question,
        until: Instant,
    ) -> Result<Vec<u8>, ExchangeError> {
        let started = Instant::now();
        let response = self.ask(question, until).await?;
        let took = started.elapsed();
        self.durations[usize::from(code_of(&response))].record(took);
        self.latency.note(took);
        self.fails.store(0, Ordering::Relaxed);
        Ok(response)
    }

    /// Asks as it is known to like it. One that refuses EDNS is asked without; where the name comes back in another
    /// case twice, under different ports and ids, it is the upstream that changes it and no forger.
    async fn ask(&self, question: &Question, until: Instant) -> Result<Vec<u8>, ExchangeError> {
        let now = Instant::now();
        let mut dialect = Dialect {
            edns: !self.knows_no_edns.is_believed(now),
            mixed_case: !self.changes_case.is_believed(now),
        };
        let (mut refused, mut changed) = (false, false);
        loop {
            let sent = question.packet(dialect);
            let (response, judgement) = self
                .ask_with(&sent, self.is_asked_by_udp(question), until)
                .await?;
            match judgement {
                Judgement::NoEdns => (dialect.edns, refused) = (false, true),
                Judgement::OtherCase if !changed => changed = true,
                _ => {
                    if judgement == Judgement::OtherCase {
                        self.changes_case.note(now);
                    }
                    // It was not EDNS that it refused where it refuses the same question without.
                    if refused && !is_refusal(code_of(&response)) {
                        self.knows_no_edns.note(now);
                    }
                    return Ok(sent.without_opt(response));
                }
            }
        }
    }

    async fn ask_with(&self, sent: &Outgoing, by_udp: bool, until: Instant) -> Answered {
        if !by_udp {
            return self.ask_by_stream(sent, until).await;
        }
        let answered = self.ask_by_udp(sent, until).await?;
        if flags_of(&answered.0) & flag::TC != 0 {
            // A part of the answer is better than none.
            return Ok(self.ask_by_stream(sent, until).await.unwrap_or(answered));
        }
        Ok(answered)
    }

    async fn ask_by_udp(&self, sent: &Outgoing, until: Instant) -> Answered {
        let any: SocketAddr = match self.address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.address).await?;
        socket.send(&sent.packet).await?;
        let mut buffer = vec![0; UDP_BUFFER];
        let (mut until, mut other_case) = (until, None);
        loop {
            let Ok(received) = timeout_at(until, socket.recv(&mut buffer)).await else {
                return other_case.ok_or(ExchangeError::Timeout);
            };
            let response = &buffer[..received?];
            match sent.judge(response) {
                Judgement::Foreign => {}
                // Forged, it comes before the true one.
                Judgement::OtherCase if other_case.is_some() => {}
                Judgement::OtherCase => {
                    other_case = Some((response.to_vec(), Judgement::OtherCase));
                    until = until.min(Instant::now() + TRUE_CASE_WAIT);
                }
                judgement => return Ok((response.to_vec(), judgement)),
            }
        }
    }

    async fn ask_by_stream(&self, sent: &Outgoing, until: Instant) -> Answered {
        let exchange = self
            .connections
            .exchange(&sent.packet, |response| sent.judge(response));
        let exchanged = timeout_at(until, exchange).await;
        match exchanged.map_err(|_| ExchangeError::Timeout)?? {
            (_, Judgement::Foreign) => Err(ExchangeError::Mismatch),
            // Nobody guesses into a stream.
            (response, Judgement::OtherCase) => Ok((response, Judgement::True)),
            answered => Ok(answered),
        }
    }

    /// Whether the caller is the one to check this upstream now.
    pub(super) fn begin_check(&self) -> bool {
        !self.checking.swap(true, Ordering::Relaxed)
    }

    /// Asks for the servers of a zone. Any answer is good, whatever it says.
    async fn answers_check(&self, check: &HealthCheck, by_tcp: bool) -> bool {
        let mut packet = query_packet(0, check.domain.wire(), rtype::NS);
        packet[2] = u8::from(check.recursion_desired);
        let Ok(query) = Query::parse(&packet) else {
            return true;
        };
        let question = Question::of(&query, by_tcp);
        let is_healthy = self.ask(&question, Instant::now() + CHECK_TIMEOUT).await.is_ok();
        if is_healthy {
            self.fails.store(0, Ordering::Relaxed);
        } else {
            let fails = self.fails.load(Ordering::Relaxed).saturating_add(1);
            self.fails.store(fails, Ordering::Relaxed);
            self.failed_checks.fetch_add(1, Ordering::Relaxed);
        }
        is_healthy
    }

    /// Sends a question that nobody else sends. Where it is answered and did not come in here meanwhile, the upstream
    /// does not lead back: that is returned, and may be asked again.
    pub(crate) async fn is_cleared_by_probe(&self, name: &[u8]) -> bool {
        let packet = query_packet(rand::random(), name, rtype::HINFO);
        let Ok(query) = Query::parse(&packet) else {
            return false;
        };
        let plain = Dialect {
            edns: false,
            mixed_case: false,
        };
        let before = self.sent_back.load(Ordering::Relaxed);
        let question = Question::of(&query, false);
        let (sent, until) = (question.packet(plain), Instant::now() + CHECK_TIMEOUT);
        let answered = self.ask_with(&sent, self.is_asked_by_udp(&question), until).await;
        let is_clear = answered.is_ok() && self.sent_back.load(Ordering::Relaxed) == before;
        if is_clear && self.looping.swap(false, Ordering::Relaxed) {
            tracing::info!(
                upstream = %self.address,
                "upstream does not send our queries back here any more and is asked again"
            );
        }
        is_clear
    }
}

fn is_refusal(code: u16) -> bool {
    matches!(code, rcode::FORMERR | rcode::NOTIMP)
}

/// Checks an upstream until it answers, or until no configuration names it any more.
pub(super) async fn check_until_healthy(upstream: Weak<Upstream>, check: HealthCheck, by_tcp: bool) {
    loop {
        let Some(checked) = upstream.upgrade() else {
            return;
        };
        let is_healthy = checked.answers_check(&check, by_tcp).await;
        drop(checked);
        // One that is slow now and then is not checked more often either.
        tokio::time::sleep(check.interval).await;
        if is_healthy {
            break;
        }
    }
    if let Some(upstream) = upstream.upgrade() {
        upstream.checking.store(false, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_habit_is_believed_for_a_while_and_again_when_it_is_seen_again() {
        let (habit, seen) = (Habit::default(), Instant::now());
        assert!(!habit.is_believed(seen));
        habit.note(seen);
        let end = seen + HABIT_LASTS;
        assert_eq!(
            [end - Duration::from_secs(1), end].map(|now| habit.is_believed(now)),
            [true, false]
        );
        habit.note(end);
        assert!(habit.is_believed(end));
    }
}

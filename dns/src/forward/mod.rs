//! The `forward` plugin: questions that this server does not answer go to upstreams.
//!
//! ```text
//! clients ─► one flight per question ─► upstream 1 ─┬─► the first good answer ─► every client, as it asked
//!                                       upstream 2 ─┘   (asked as well when 1 fails, or takes longer than PATIENCE)
//! ```
//! What is sent and what is believed: `question`. Over which socket or stream: `upstream`, `connection`.

mod connection;
mod question;
pub mod resolv_conf;
mod upstream;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::{Instant, sleep_until};

use crate::answer::{code_of, put_client_opt};
use crate::name::Name;
use crate::question::{HEADER, Query, rcode};
pub use connection::{Tls, TlsError};
use question::Question;
pub use upstream::{ExchangeError, Upstream};

/// No query is worked on for longer, as in CoreDNS.
const OVERALL: Duration = Duration::from_secs(5);
/// How long an upstream may take before the next one is asked as well.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often the list of upstreams is gone through.
const ROUNDS: usize = 2;

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The names that are forwarded.
    pub from: Vec<Name>,
    /// Names within them that are not.
    pub except: Vec<Name>,
    /// The upstreams.
    pub to: Vec<Target>,
    /// Which upstream is asked first. Default: any.
    pub policy: Policy,
    /// How many failed health checks in a row take an upstream out; 0 = none ever is. Default 2.
    pub max_fails: u32,
    /// The most queries under way; what is beyond is refused. Default: no limit.
    pub max_concurrent: Option<usize>,
    /// How long an idle connection is kept. Default 10 s.
    pub expire: Duration,
    /// Upstreams are asked by TCP.
    pub force_tcp: bool,
    /// Upstreams are asked by UDP even where the client came by TCP.
    pub prefer_udp: bool,
    /// How an upstream that failed is checked.
    pub health_check: HealthCheck,
    /// How upstreams behind `tls://` are talked to.
    pub tls: Tls,
}

/// One upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it listens.
    pub address: SocketAddr,
    /// `tls://`: everything goes by TLS.
    pub over_tls: bool,
}

impl From<SocketAddr> for Target {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            over_tls: false,
        }
    }
}

/// How an upstream that failed is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// How often. Default 500 ms.
    pub interval: Duration,
    /// Whether the check asks for recursion. Default: it does.
    pub recursion_desired: bool,
    /// The zone whose servers are asked for. Default: the root.
    pub domain: Name,
}

/// Which upstream is asked first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Any.
    #[default]
    Random,
    /// The next one.
    RoundRobin,
    /// The first of the list that is healthy.
    Sequential,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            from: vec![Name::root()],
            except: Vec::new(),
            to: Vec::new(),
            policy: Policy::default(),
            max_fails: 2,
            max_concurrent: None,
            expire: Duration::from_secs(10),
            force_tcp: false,
            prefer_udp: false,
            health_check: HealthCheck {
                interval: Duration::from_millis(500),
                recursion_desired: true,
                domain: Name::root(),
            },
            tls: Tls::default(),
        }
    }
}

/// Why a query could not be forwarded.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The option `max_concurrent`.
    #[error("{limit} queries are under way, the most that max_concurrent allows")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// There is nobody to ask.
    #[error("no upstream: the list of name servers is empty, or all of them lead back here")]
    NoUpstream,
    /// The last upstream's failure.
    #[error("no upstream answered; the last one was {upstream}")]
    Unanswered {
        /// The upstream.
        upstream: SocketAddr,
        /// What went wrong there.
        #[source]
        source: ExchangeError,
    },
}

/// An answer that clients wait for together.
type Flight = BoxFuture<'static, Result<Arc<[u8]>, Failure>>;

/// Forwards to a list of upstreams.
pub struct Forward {
    options: Options,
    upstreams: Vec<Arc<Upstream>>,
    next: AtomicUsize,
    under_way: AtomicUsize,
    flights: Mutex<HashMap<Question, WeakShared<Flight>>>,
    /// Queries refused because of `max_concurrent`.
    pub rejected: AtomicU64,
    /// Times that every upstream was out and one was asked nevertheless.
    pub all_down: AtomicU64,
}

impl Forward {
    /// Makes the plugin.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let upstreams = options
            .to
            .iter()
            .map(|target| Arc::new(Upstream::new(target, &options)))
            .collect();
        Self {
            options,
            upstreams,
            next: AtomicUsize::new(rand::random_range(0..1024)),
            under_way: AtomicUsize::new(0),
            flights: Mutex::default(),
            rejected: AtomicU64::new(0),
            all_down: AtomicU64::new(0),
        }
    }

    /// The options.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The upstreams, in the file's order.
    #[must_use]
    pub fn upstreams(&self) -> &[Arc<Upstream>] {
        &self.upstreams
    }

    /// Whether queries for this name are forwarded.
    #[must_use]
    pub fn covers(&self, query: &Query<'_>) -> bool {
        query.is_within(&self.options.from) && !query.is_within(&self.options.except)
    }

    /// Asks the upstreams, and returns a response that carries the client's id, question and OPT record. Clients that
    /// ask the same wait for the same answer. `by_tcp`: the client came by TCP.
    ///
    /// # Errors
    /// When nobody answered in time. A SERVFAIL or REFUSED is an answer only when no other upstream had a better one.
    pub async fn exchange(self: &Arc<Self>, query: &Query<'_>, by_tcp: bool) -> Result<Vec<u8>, Failure> {
        let _guard = self.enter()?;
        let by_tcp = self.options.force_tcp || (by_tcp && !self.options.prefer_udp);
        let flight = self.flight(Question::of(query, by_tcp));
        let response = flight.await?;
        Ok(as_the_client_asked(&response, query))
    }

    /// The flight that answers a question: one that is under way, or a new one.
    fn flight(self: &Arc<Self>, question: Question) -> Shared<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&question).and_then(WeakShared::upgrade) {
            return flight;
        }
        let landing = Landing {
            forward: Arc::clone(self),
            question: question.clone(),
        };
        let flight = async move { landing.forward.ask(&landing.question).await };
        let flight = flight.boxed().shared();
        flights.extend(flight.downgrade().map(|weak| (question, weak)));
        flight
    }

    /// Asks the upstreams in their order. The next one is asked when one fails, and beside one that takes long, so
    /// that a dead one costs [`PATIENCE`] and not its own timeout.
    async fn ask(&self, question: &Question) -> Result<Arc<[u8]>, Failure> {
        let order = self.order();
        let deadline = Instant::now() + OVERALL;
        let mut plan = order.iter().cycle().take(order.len() * ROUNDS).enumerate();
        let mut attempts = FuturesUnordered::new();
        let (mut servfail, mut failure) = (None, Failure::NoUpstream);
        loop {
            // Where one would not help, the others are asked, but nobody twice.
            let next = plan
                .next()
                .filter(|(index, _)| servfail.is_none() || *index < order.len());
            if let Some((_, upstream)) = next {
                attempts.push(async move { (upstream, upstream.exchange(question, deadline).await) });
            } else if attempts.is_empty() {
                break;
            }
            let patience = match next {
                Some(_) => deadline.min(Instant::now() + PATIENCE),
                None => deadline,
            };
            let ended = tokio::select! {
                ended = attempts.next() => ended,
                () = sleep_until(patience) => None,
            };
            match (ended, next) {
                (Some((_, Ok(response))), _) if is_no_help(&response) => servfail = Some(response),
                (Some((_, Ok(response))), _) => return Ok(response.into()),
                (Some((upstream, Err(source))), _) => {
                    self.note_failure(upstream);
                    failure = Failure::Unanswered {
                        upstream: upstream.address,
                        source,
                    };
                }
                // Slow, or dead: a check will tell.
                (None, Some((_, upstream))) => self.note_failure(upstream),
                (None, None) => {}
            }
        }
        servfail.map(Arc::from).ok_or(failure)
    }

    fn enter(&self) -> Result<UnderWay<'_>, Failure> {
        let guard = UnderWay(&self.under_way);
        let before = self.under_way.fetch_add(1, Ordering::Relaxed);
        match self.options.max_concurrent {
            Some(limit) if before >= limit => {
                self.rejected.fetch_add(1, Ordering::Relaxed);
                Err(Failure::TooMany { limit })
            }
            _ => Ok(guard),
        }
    }

    /// The upstreams in the order in which they are asked: by policy, those that are down last. One that leads back
    /// here is never asked.
    fn order(&self) -> Vec<Arc<Upstream>> {
        let usable = self.upstreams.iter().filter(|upstream| !upstream.is_looping());
        let mut order: Vec<_> = usable.cloned().collect();
        let count = order.len().max(1);
        order.rotate_left(match self.options.policy {
            Policy::Sequential => 0,
            Policy::RoundRobin => self.next.fetch_add(1, Ordering::Relaxed) % count,
            Policy::Random => rand::random_range(0..count),
        });
        let is_down = |upstream: &Arc<Upstream>| upstream.is_down(self.options.max_fails);
        if !order.is_empty() && order.iter().all(is_down) {
            self.all_down.fetch_add(1, Ordering::Relaxed);
        }
        order.sort_by_key(is_down);
        order
    }

    /// Has an upstream that failed checked until it answers.
    fn note_failure(&self, upstream: &Arc<Upstream>) {
        if self.options.max_fails > 0 && upstream.begin_check() {
            let (upstream, check) = (Arc::clone(upstream), self.options.health_check.clone());
            let by_tcp = self.options.force_tcp;
            tokio::spawn(async move { upstream.check_until_healthy(&check, by_tcp).await });
        }
    }
}

/// Counts a query for as long as it is worked on.
struct UnderWay<'f>(&'f AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes a flight off the list when it ends, or when nobody waits for it any more.
struct Landing {
    forward: Arc<Forward>,
    question: Question,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let flights = self.forward.flights.lock();
        flights
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.question);
    }
}

/// Whether an answer says that its upstream cannot, or will not, say anything of the name.
fn is_no_help(response: &[u8]) -> bool {
    matches!(code_of(response), rcode::SERVFAIL | rcode::REFUSED)
}

/// Puts the client's id, RD, the case of its question and its OPT record in.
fn as_the_client_asked(response: &[u8], query: &Query<'_>) -> Vec<u8> {
    let (mut out, head) = (response.to_vec(), query.head());
    out[..2].copy_from_slice(&head[..2]);
    out[2] = out[2] & !1 | head[2] & 1;
    if let Some(question) = out.get_mut(HEADER..query.question_end) {
        question.copy_from_slice(&head[HEADER..]);
    }
    put_client_opt(&mut out, query);
    out
}

#[cfg(test)]
pub(crate) mod fake_upstream;
#[cfg(test)]
mod tests;

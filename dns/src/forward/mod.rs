//! The `forward` plugin: questions that this server does not answer go to upstreams.
//!
//! The client's own packet is sent on under a new random id from a new socket, so under a new random port: a forger
//! has to guess both, and the question. What does not match is dropped while the true answer is awaited.

pub mod resolv_conf;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::answer::code_of;
use crate::name::Name;
use crate::question::{HEADER, Query, rcode};
pub use upstream::{ExchangeError, Upstream};

/// No query is worked on for longer, as in CoreDNS.
const OVERALL: Duration = Duration::from_secs(5);
/// How long one upstream may take while there is another one to ask, and when there is none.
const TRY: Duration = Duration::from_secs(1);
const ONLY_TRY: Duration = Duration::from_secs(2);
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
    pub to: Vec<SocketAddr>,
    /// Which upstream is asked first. Default: any.
    pub policy: Policy,
    /// How many failed health checks in a row take an upstream out; 0 = none ever is. Default 2.
    pub max_fails: u32,
    /// The most queries under way; what is beyond is refused. Default: no limit.
    pub max_concurrent: Option<usize>,
    /// How long an idle connection is kept. Default 10 s. (Connections are not reused yet, so that none gets idle.)
    pub expire: Duration,
    /// Upstreams are asked by TCP.
    pub force_tcp: bool,
    /// Upstreams are asked by UDP even where the client came by TCP.
    pub prefer_udp: bool,
    /// How often an upstream that failed is checked. Default 500 ms.
    pub health_check: Duration,
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
            health_check: Duration::from_millis(500),
        }
    }
}

/// Why a query could not be forwarded.
#[derive(Debug, thiserror::Error)]
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

/// Forwards to a list of upstreams.
pub struct Forward {
    options: Options,
    upstreams: Vec<Arc<Upstream>>,
    next: AtomicUsize,
    under_way: AtomicUsize,
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
            .map(|address| Arc::new(Upstream::new(*address)))
            .collect();
        Self {
            options,
            upstreams,
            next: AtomicUsize::new(rand::random_range(0..1024)),
            under_way: AtomicUsize::new(0),
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

    /// Asks the upstreams in turn, and returns a response that carries the client's id and question. `by_tcp`: the
    /// client came by TCP.
    ///
    /// # Errors
    /// When nobody answered in time. A SERVFAIL is an answer only when no other upstream had a better one.
    pub async fn exchange(&self, query: &Query<'_>, by_tcp: bool) -> Result<Vec<u8>, Failure> {
        let _guard = self.enter()?;
        let by_tcp = self.options.force_tcp || (by_tcp && !self.options.prefer_udp);
        let deadline = Instant::now() + OVERALL;
        let order = self.order();
        let per_try = if order.len() > 1 { TRY } else { ONLY_TRY };
        let mut failure = Failure::NoUpstream;
        for _ in 0..ROUNDS {
            let mut servfail = None;
            for upstream in &order {
                let until = deadline.min(Instant::now() + per_try);
                match upstream.exchange(query, by_tcp, until).await {
                    Ok(response) if code_of(&response) == rcode::SERVFAIL => servfail = Some(response),
                    Ok(response) => return Ok(as_the_client_asked(response, query)),
                    Err(source) => {
                        self.note_failure(upstream);
                        failure = Failure::Unanswered {
                            upstream: upstream.address,
                            source,
                        };
                    }
                }
            }
            if let Some(response) = servfail {
                return Ok(as_the_client_asked(response, query));
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(failure)
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
    fn order(&self) -> Vec<&Arc<Upstream>> {
        let mut order: Vec<_> = self
            .upstreams
            .iter()
            .filter(|upstream| !upstream.is_looping())
            .collect();
        let count = order.len().max(1);
        order.rotate_left(match self.options.policy {
            Policy::Sequential => 0,
            Policy::RoundRobin => self.next.fetch_add(1, Ordering::Relaxed) % count,
            Policy::Random => rand::random_range(0..count),
        });
        let is_down = |upstream: &&Arc<Upstream>| upstream.is_down(self.options.max_fails);
        if !order.is_empty() && order.iter().all(is_down) {
            self.all_down.fetch_add(1, Ordering::Relaxed);
        }
        order.sort_by_key(is_down);
        order
    }

    /// Has an upstream that failed checked until it answers.
    fn note_failure(&self, upstream: &Arc<Upstream>) {
        if self.options.max_fails > 0 && upstream.begin_check() {
            let (upstream, interval) = (Arc::clone(upstream), self.options.health_check);
            let by_tcp = self.options.force_tcp;
            tokio::spawn(async move { upstream.check_until_healthy(interval, by_tcp).await });
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

/// Puts the client's id and the case of its question back.
fn as_the_client_asked(mut response: Vec<u8>, query: &Query<'_>) -> Vec<u8> {
    let head = query.head();
    response[..2].copy_from_slice(&head[..2]);
    if let Some(question) = response.get_mut(HEADER..query.question_end) {
        question.copy_from_slice(&head[HEADER..]);
    }
    response
}

#[cfg(test)]
pub(crate) mod fake_upstream;
#[cfg(test)]
mod tests;

//! The `forward` plugin: questions that this server does not answer go to upstreams.
//!
//! ```text
//! clients ─► one flight per question ─► upstream 1 ─┬─► the first good answer ─► every client, as it asked
//!                                       upstream 2 ─┘   (asked as well when 1 fails, or takes longer than usual)
//! ```
//! Who may have how many questions under way: `gate`. Which upstream is asked when: `race`, and what is usual:
//! `latency`. What is sent and what is believed: `question`. Over which socket or stream: `upstream`, `connection`.

mod bailiwick;
mod connection;
mod gate;
mod latency;
mod metrics;
mod question;
mod race;
pub mod resolv_conf;
mod upstream;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};

use crate::answer::adopt;
use crate::name::Name;
use crate::question::Query;
pub use connection::{Tls, TlsError};
pub(crate) use connection::{certificates, private_key, trusted};
use gate::{Gate, Place};
pub use metrics::write_metrics;
use question::Question;
use race::Race;
use upstream::{CODES, check_until_healthy};
pub use upstream::{ExchangeError, Upstream};

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
    /// The most queries under way; what is beyond is refused, and of one client what is beyond its share. Default: as
    /// many as all forwarders together may have.
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
    /// The option `max_concurrent`, or the limit of all forwarders.
    #[error("too many queries are under way: this client has its share of {limit}")]
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

impl Failure {
    fn unanswered(upstream: &Upstream, source: ExchangeError) -> Self {
        Self::Unanswered {
            upstream: upstream.address,
            source,
        }
    }
}

/// An answer that clients wait for together.
type Flight = BoxFuture<'static, Result<Arc<[u8]>, Failure>>;

/// Forwards to a list of upstreams.
pub struct Forward {
    options: Options,
    upstreams: Vec<Arc<Upstream>>,
    next: AtomicUsize,
    gate: Option<Gate>,
    flights: Mutex<HashMap<Question, WeakShared<Flight>>>,
    /// Queries refused because too many were under way.
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
            gate: options.max_concurrent.map(Gate::new),
            options,
            upstreams,
            next: AtomicUsize::new(rand::random_range(0..1024)),
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
    /// ask the same wait for the same answer. `client`: who asks; `None` = this server, for its cache. `by_tcp`: the
    /// client came by TCP.
    ///
    /// # Errors
    /// When nobody answered in time, or too much is under way. A SERVFAIL or REFUSED is an answer only when no
    /// other upstream had a better one.
    pub async fn exchange(
        self: &Arc<Self>,
        query: &Query<'_>,
        client: Option<IpAddr>,
        by_tcp: bool,
    ) -> Result<Vec<u8>, Failure> {
        let _places = self.enter(client)?;
        let by_tcp = self.options.force_tcp || (by_tcp && !self.options.prefer_udp);
        let flight = self.flight(Question::of(query, by_tcp));
        let response = flight.await?;
        let mut answer = response.to_vec();
        adopt(&mut answer, query);
        Ok(answer)
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
        let flight = async move {
            let order = landing.forward.order();
            Race::new(&landing.forward, &landing.question, &order).run().await
        };
        let flight = flight.boxed().shared();
        flights.extend(flight.downgrade().map(|weak| (question, weak)));
        flight
    }

    /// A place among all queries, and one among those of this plugin where it has a limit of its own.
    fn enter(&self, client: Option<IpAddr>) -> Result<(Place<'_>, Option<Place<'_>>), Failure> {
        let client = client.map(|client| client.to_canonical());
        let own = self
            .gate
            .as_ref()
            .map(|gate| self.place(gate, client))
            .transpose()?;
        Ok((self.place(gate::of_all(), client)?, own))
    }

    fn place<'g>(&self, gate: &'g Gate, client: Option<IpAddr>) -> Result<Place<'g>, Failure> {
        gate.enter(client).ok_or_else(|| {
            self.rejected.fetch_add(1, Ordering::Relaxed);
            Failure::TooMany { limit: gate.limit }
        })
    }

    /// Lets upstreams that led back here be asked again, now that nobody looks for loops.
    pub fn forget_loops(&self) {
        for upstream in &self.upstreams {
            upstream.forget_loop();
        }
    }

    /// The upstreams in the order in which they are asked: by policy, then those that failed their last check, then
    /// those that are down. One that leads back here is not asked.
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
        order.sort_by_key(|upstream| (is_down(upstream), upstream.is_suspect()));
        order
    }

    /// Has an upstream that failed checked until it answers.
    fn note_failure(&self, upstream: &Arc<Upstream>) {
        if self.options.max_fails > 0 && upstream.begin_check() {
            let (upstream, check) = (Arc::downgrade(upstream), self.options.health_check.clone());
            tokio::spawn(check_until_healthy(upstream, check, self.options.force_tcp));
        }
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

/// What a client gets of a packet that came in for its question, where it is believed. The id, which nobody guesses,
/// is put right.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn believed(mut response: Vec<u8>, query: &Query<'_>) -> Option<Vec<u8>> {
    let dialect = question::Dialect {
        edns: true,
        mixed_case: false,
    };
    let sent = Question::of(query, false).packet(dialect);
    response.get_mut(..2)?.copy_from_slice(&sent.packet[..2]);
    let judgement = sent.judge(&response);
    let is_believed = matches!(
        judgement,
        question::Judgement::True | question::Judgement::OtherCase
    );
    is_believed.then(|| {
        let mut answer = sent.without_opt(response);
        adopt(&mut answer, query);
        answer
    })
}

#[cfg(test)]
pub(crate) mod fake_upstream;
#[cfg(test)]
mod tests;

//! A query's way: which server block serves its name, which of the block's plugins answers it.
//!
//! ```text
//! packet ─► question ─► longest zone ─► bufsize, ratelimit, acl, rewrite ─► plugins ─┐
//! answer ◄─ log ◄─ loadbalance, minimal ◄─ rewrite ◄────────────────────────────────┘
//!
//! plugins:  any ─► template ─► hosts ─► kubernetes ─► aaaa ─► cache ─► loop ─► forward ─► whoami ─► SERVFAIL
//!                                       (table)               (hit)            └► has to wait for an upstream
//! ```
//! The order is CoreDNS's but for `rewrite`, which acts before `any`, and for `cache`, which stands behind `kubernetes`:
//! cluster names are answered from the watched state and are never cached. What needs no waiting is answered in place;
//! the rest is answered by the same walk, which then may wait.

pub mod autopath;
mod block;
mod lookup;
mod loop_probe;
mod trim;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::answer::{code_of, code_only, header_only};
use crate::explain::{self, OwnAddresses};
use crate::kubernetes::Shape;
use crate::metrics::{Answerer, Event, Shard, Transport};
use crate::name::Name;
use crate::question::{CLASS_IN, Query, Refusal, rcode};
use crate::xorshift::Xorshift;
use block::Passage;
pub use block::{Block, Plugin};
use lookup::{Begun, Lookup};
pub use loop_probe::LoopProbe;

const MAX_TCP: usize = 65_535;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Address and port.
    pub address: SocketAddr,
    /// How the question came.
    pub transport: Transport,
}

/// A packet that came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'p> {
    /// Its bytes.
    pub packet: &'p [u8],
    /// Who sent it.
    pub client: Client,
    /// When it was read: its duration begins here.
    pub at: Instant,
}

/// What answering in place came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is written.
    Reply,
    /// The packet gets no answer.
    Silence,
    /// The answer has to be waited for: ask [`Server::answer`], and tell it what was found already.
    Later(Option<Denial>),
}

/// An answer that denies the name, while the client's search path may lead to one that exists.
#[derive(Debug, PartialEq, Eq)]
pub struct Denial {
    answerer: Answerer,
    answer: Vec<u8>,
}

/// A zone that a port serves.
pub struct Route {
    /// The zone.
    pub zone: Name,
    /// What answers for it.
    pub block: Arc<Block>,
    /// Its place in the metrics' list of zones.
    pub counters: usize,
}

/// Everything that one listening address serves.
pub struct Server {
    /// Longest zone first.
    routes: Vec<Route>,
    /// The place in the metrics' list for names that no zone holds.
    unserved: usize,
    /// Whose clients are told why.
    own: OwnAddresses,
}

/// What a thread needs to answer.
pub struct Worker {
    /// Its counters.
    pub shard: Arc<Shard>,
    random: Xorshift,
}

impl Worker {
    /// A worker that counts in `shard`.
    #[must_use]
    pub fn new(shard: Arc<Shard>) -> Self {
        Self {
            shard,
            random: Xorshift::new(rand::random()),
        }
    }

    /// Which address comes first needs no secret.
    fn next_rotation(&mut self) -> usize {
        (self.random.next() >> 33) as usize
    }
}

/// A query that has a route, or why there is none.
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation per query")]
enum Admission<'s, 'p> {
    Query(Query<'p>, &'s Route),
    /// An answer is written already.
    Refused(u16, u16),
    Silence,
}

impl Server {
    /// Serves these zones.
    #[must_use]
    pub fn new(mut routes: Vec<Route>, unserved: usize) -> Self {
        routes.sort_by_key(|route| std::cmp::Reverse(route.zone.label_count()));
        Self {
            routes,
            unserved,
            own: OwnAddresses::default(),
        }
    }

    /// The zones, the longest first.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Answers in place where that needs no waiting.
    pub fn answer_now(&self, arrived: Arrived<'_>, worker: &mut Worker, out: &mut Vec<u8>) -> Outcome {
        let Arrived { packet, client, at } = arrived;
        let (query, route) = match self.admit(packet, out) {
            Admission::Query(query, route) => (query, route),
            Admission::Refused(qtype, code) => {
                let event = arrived.event(self.unserved, qtype, Answerer::Server, out);
                worker.shard.count(&Event { code, ..event });
                return Outcome::Reply;
            }
            Admission::Silence => {
                worker.shard.ignored.fetch_add(1, Ordering::Relaxed);
                return Outcome::Silence;
            }
        };
        let block = &*route.block;
        let is_told_why = query.asks_why() && self.own.include(client.address, at);
        let answerer = match block.gate(&query, client, at, out) {
            Passage::Silence => return Outcome::Silence,
            Passage::Answered(answerer) => answerer,
            Passage::Open if is_told_why => return Outcome::Later(None),
            Passage::Open => match begin_in_place(block, &query, client, worker, out) {
                Ok(answerer) => answerer,
                Err(denial) => return Outcome::Later(denial),
            },
        };
        route.note(&query, arrived, answerer, out, &worker.shard);
        if is_told_why {
            explain::tell(block, &query, None, client, answerer, out);
        }
        Outcome::Reply
    }

    /// Answers, however long it takes, what [`Server::answer_now`] let in, of which `denial` is the beginning. `None` =
    /// the packet gets no answer.
    pub async fn answer(
        &self,
        arrived: Arrived<'_>,
        denial: Option<Denial>,
        shard: &Shard,
    ) -> Option<Vec<u8>> {
        let Arrived { packet, client, at } = arrived;
        let plain = explain::asked(packet).filter(|_| self.own.include(client.address, at));
        let packet = plain.as_deref().unwrap_or(packet);
        let mut out = Vec::with_capacity(512);
        let (query, route) = match self.admit(packet, &mut out) {
            Admission::Query(query, route) => (query, route),
            Admission::Refused(..) => return Some(out),
            Admission::Silence => return None,
        };
        let block = &*route.block;
        let shape = Shape {
            limit: limit(&query, client.transport),
            rotation: if block.load_balance {
                rand::random::<u16>().into()
            } else {
                0
            },
        };
        let mut lookup = Lookup::new(self, client, &query);
        let first = match denial {
            Some(Denial { answerer, answer }) => {
                out = answer;
                answerer
            }
            None => lookup.resolve(block, &query, shape, &mut out).await,
        };
        let found = lookup.go_along_path(block, &query, shape, &mut out).await;
        let (answerer, along) = found.map_or((first, None), |(answerer, asked)| (answerer, Some(asked)));
        block.trim(&query, answerer, shape.rotation, &mut out);
        route.note(&query, Arrived { packet, ..arrived }, answerer, &out, shard);
        if plain.is_some() {
            let along = along.as_deref().and_then(|packet| Query::parse(packet).ok());
            explain::tell(block, &query, along.as_ref(), client, answerer, &mut out);
        }
        Some(out)
    }

    /// Reads a packet and finds who serves its name; writes the answer itself where nobody does.
    fn admit<'s, 'p>(&'s self, packet: &'p [u8], out: &mut Vec<u8>) -> Admission<'s, 'p> {
        let mut query = match Query::parse(packet) {
            Ok(query) => query,
            Err(Refusal::Silence) => return Admission::Silence,
            Err(Refusal::Header(code)) => {
                header_only(out, packet, code);
                return Admission::Refused(0, code);
            }
        };
        let route = self
            .routes
            .iter()
            .find(|route| query.labels_before(&route.zone).is_some());
        let code = match route {
            _ if query.edns.is_some_and(|edns| edns.version != 0) => rcode::BADVERS,
            _ if query.qclass != CLASS_IN => rcode::REFUSED,
            None => rcode::REFUSED,
            Some(route) => {
                query.clamp_udp_size(route.block.bufsize);
                return Admission::Query(query, route);
            }
        };
        code_only(out, &query, code);
        Admission::Refused(query.qtype, code)
    }
}

impl Route {
    /// Counts a query that is answered, and logs it.
    fn note(&self, query: &Query<'_>, arrived: Arrived<'_>, answerer: Answerer, out: &[u8], shard: &Shard) {
        let event = arrived.event(self.counters, query.qtype, answerer, out);
        shard.count(&event);
        self.block.log_answer(query, arrived.client, out, &event);
    }
}

impl<'p> Arrived<'p> {
    /// A packet that has just been read.
    #[must_use]
    pub fn now(packet: &'p [u8], client: Client) -> Self {
        Self {
            packet,
            client,
            at: Instant::now(),
        }
    }

    /// What happened to it, where `out` is its answer.
    fn event(&self, zone: usize, qtype: u16, answerer: Answerer, out: &[u8]) -> Event {
        Event {
            zone,
            transport: self.client.transport,
            is_v6: self.client.address.is_ipv6(),
            qtype,
            code: code_of(out),
            answerer,
            duration: self.at.elapsed(),
            bytes: (self.packet.len(), out.len()),
        }
    }
}

/// Answers where that needs no waiting and is the end of the client's search path; else gives back what was found.
fn begin_in_place(
    block: &Block,
    query: &Query<'_>,
    client: Client,
    worker: &mut Worker,
    out: &mut Vec<u8>,
) -> Result<Answerer, Option<Denial>> {
    let rotation = if block.load_balance {
        worker.next_rotation()
    } else {
        0
    };
    let limit = limit(query, client.transport);
    let shape = Shape { limit, rotation };
    let Begun::Answered(answerer) = lookup::begin(block, query, client, shape, out) else {
        return Err(None);
    };
    if code_of(out) == rcode::NXDOMAIN && block.completed(query, client).is_some() {
        let answer = out.clone();
        return Err(Some(Denial { answerer, answer }));
    }
    block.trim(query, answerer, rotation, out);
    Ok(answerer)
}

/// The longest answer that the client takes, in bytes.
pub(crate) fn limit(query: &Query<'_>, transport: Transport) -> usize {
    match transport {
        Transport::Udp => query.udp_limit(),
        Transport::Tcp => MAX_TCP,
    }
}

#[cfg(test)]
mod tests;

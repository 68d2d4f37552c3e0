//! A query's way: which server block serves its name, which of the block's plugins answers it.
//!
//! ```text
//! packet ─► question ─► longest zone ─► bufsize, ratelimit, acl, rewrite ─► plugins ─┐
//! answer ◄─ log ◄─ loadbalance, minimal ◄─ rewrite ◄────────────────────────────────┘
//!
//! plugins:  any ─► template ─► hosts ─► kubernetes ─► cache ─► loop ─► forward ─► whoami ─► SERVFAIL
//!                                       (table)       (hit)            └► has to wait for an upstream
//! ```
//! The order is CoreDNS's but for `rewrite`, which acts before `any`, and for `cache`, which stands behind `kubernetes`:
//! cluster names are answered from the watched state and are never cached. What needs no waiting is answered in place;
//! the rest is answered by the same walk, which then may wait.

pub mod autopath;
mod block;
mod loop_probe;
mod trim;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::answer::{
    Owner, Section, Writer, code_of, code_only, fit, followed_answers, header_only, hide_ad,
};
use crate::explain;
use crate::kubernetes::Shape;
use crate::metrics::{Answerer, Event, Shard, Transport};
use crate::name::Name;
use crate::question::{CLASS_IN, Query, Refusal, query_packet, rcode, rtype};
use crate::reply::Reply;
use crate::rewrite::with_question;
pub use block::{Block, Plugin};
use block::{Gate, Walk};
pub use loop_probe::LoopProbe;

/// The longest chain of aliases that is followed, as in CoreDNS.
const MAX_ALIASES: usize = 10;
const MAX_TCP: usize = 65_535;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    /// Address and port.
    pub address: SocketAddr,
    /// How the question came.
    pub transport: Transport,
}

/// What answering in place came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The answer is written.
    Reply,
    /// The packet gets no answer.
    Silence,
    /// The answer has to be waited for: ask [`Server::answer`].
    Later,
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
}

/// What a thread needs to answer.
pub struct Worker {
    /// Its counters.
    pub shard: Arc<Shard>,
    random: u64,
}

impl Worker {
    /// A worker that counts in `shard`.
    #[must_use]
    pub fn new(shard: Arc<Shard>) -> Self {
        Self {
            shard,
            random: rand::random::<u64>() | 1,
        }
    }

    /// Xorshift: which address comes first needs no secret.
    fn next_random(&mut self) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 33) as usize
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
        Self { routes, unserved }
    }

    /// The zones, the longest first.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Answers in place where that needs no waiting.
    pub fn answer_now(
        &self,
        packet: &[u8],
        client: Client,
        worker: &mut Worker,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let started = Instant::now();
        let (query, route) = match self.admit(packet, out) {
            Admission::Query(query, route) => (query, route),
            Admission::Refused(qtype, code) => {
                let bytes = (packet.len(), out.len());
                let event = Self::event(
                    self.unserved,
                    client,
                    qtype,
                    code,
                    Answerer::Server,
                    started,
                    bytes,
                );
                worker.shard.count(&event);
                return Outcome::Reply;
            }
            Admission::Silence => {
                worker.shard.ignored.fetch_add(1, Ordering::Relaxed);
                return Outcome::Silence;
            }
        };
        let block = &*route.block;
        let answerer = match block.gate(&query, client, started, out) {
            Gate::Silence => return Outcome::Silence,
            Gate::Answered(answerer) => answerer,
            Gate::Open if query.asks_why() => return Outcome::Later,
            Gate::Open => {
                let rotation = if block.load_balance {
                    worker.next_random()
                } else {
                    0
                };
                let limit = limit(&query, client.transport);
                let shape = Shape { limit, rotation };
                let Some(answerer) = walk_in_place(block, &query, client, shape, out) else {
                    return Outcome::Later;
                };
                if code_of(out) == rcode::NXDOMAIN && block.autopath_for(&query).is_some() {
                    return Outcome::Later;
                }
                block.trim(&query, answerer, rotation, out);
                answerer
            }
        };
        let event = Self::event(
            route.counters,
            client,
            query.qtype,
            code_of(out),
            answerer,
            started,
            (packet.len(), out.len()),
        );
        worker.shard.count(&event);
        block.log_answer(&query, client, out, &event);
        if query.asks_why() {
            explain::tell(block, &query, None, client, answerer, out);
        }
        Outcome::Reply
    }

    /// Answers, however long it takes, what [`Server::answer_now`] let in, which was asked when it `started`. `None` =
    /// the packet gets no answer.
    pub async fn answer(
        &self,
        packet: &[u8],
        client: Client,
        started: Instant,
        shard: &Shard,
    ) -> Option<Vec<u8>> {
        let plain = explain::asked(packet);
        let packet = plain.as_deref().unwrap_or(packet);
        let mut out = Vec::with_capacity(512);
        let (query, route) = match self.admit(packet, &mut out) {
            Admission::Query(query, route) => (query, route),
            Admission::Refused(..) => return Some(out),
            Admission::Silence => return None,
        };
        let limit = limit(&query, client.transport);
        let (answerer, along) = self
            .resolve_along_path(&query, route, client, limit, &mut out)
            .await;
        route
            .block
            .trim(&query, answerer, rand::random::<u16>().into(), &mut out);
        let event = Self::event(
            route.counters,
            client,
            query.qtype,
            code_of(&out),
            answerer,
            started,
            (packet.len(), out.len()),
        );
        shard.count(&event);
        route.block.log_answer(&query, client, &out, &event);
        if plain.is_some() {
            let along = along.as_deref().and_then(|packet| Query::parse(packet).ok());
            explain::tell(&route.block, &query, along.as_ref(), client, answerer, &mut out);
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
                if let Some(size) = route.block.bufsize {
                    query.clamp_udp_size(size);
                }
                return Admission::Query(query, route);
            }
        };
        code_only(out, &query, code);
        Admission::Refused(query.qtype, code)
    }

    /// Answers along the client's search path, where `autopath` knows it; tells the query that was answered in the
    /// place of the client's, too.
    async fn resolve_along_path(
        &self,
        query: &Query<'_>,
        route: &Route,
        client: Client,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> (Answerer, Option<Vec<u8>>) {
        let mut followed = vec![Name::from_lower_wire(query.name())];
        let first = self
            .resolve(query, route, client, limit, &mut followed, out)
            .await;
        let Some(autopath) = route.block.autopath_for(query) else {
            return (first, None);
        };
        if code_of(out) != rcode::NXDOMAIN {
            return (first, None);
        }
        for name in autopath.others(query) {
            let packet = with_question(query, name.wire(), query.qtype);
            let Ok(inner) = Query::parse(&packet) else {
                continue;
            };
            let (mut found, mut followed) = (Vec::new(), vec![name.clone()]);
            let answerer = self
                .resolve(&inner, route, client, MAX_TCP, &mut followed, &mut found)
                .await;
            if code_of(&found) != rcode::NXDOMAIN
                && let Some(mut reply) = Reply::read(&found, &inner)
            {
                autopath.note_found();
                reply.put_alias(query.name(), name.wire());
                reply.write(query, limit, out);
                return (answerer, Some(packet));
            }
        }
        (first, None)
    }

    /// Answers through the rules of `rewrite`.
    async fn resolve(
        &self,
        query: &Query<'_>,
        route: &Route,
        client: Client,
        limit: usize,
        followed: &mut Vec<Name>,
        out: &mut Vec<u8>,
    ) -> Answerer {
        let rewritten = match route.block.rewrite(query, out) {
            None => {
                return self
                    .resolve_as_is(query, route, client, limit, followed, out)
                    .await;
            }
            Some(Err(answerer)) => return answerer,
            Some(Ok(rewritten)) => rewritten,
        };
        let Ok(inner) = Query::parse(&rewritten.packet) else {
            code_only(out, query, rcode::SERVFAIL);
            return Answerer::Server;
        };
        let answerer = self
            .resolve_as_is(&inner, route, client, MAX_TCP, followed, out)
            .await;
        rewritten.restore(query, limit, out);
        answerer
    }

    async fn resolve_as_is(
        &self,
        query: &Query<'_>,
        route: &Route,
        client: Client,
        limit: usize,
        followed: &mut Vec<Name>,
        out: &mut Vec<u8>,
    ) -> Answerer {
        let block = &*route.block;
        let shape = Shape { limit, rotation: 0 };
        match block.walk(query, client, shape, out) {
            Walk::Answered(answerer) => answerer,
            Walk::Forward(forward, cache) => {
                if let Some(cache) = cache {
                    cache.note_miss(query);
                }
                let by_tcp = client.transport == Transport::Tcp;
                let exchanged = forward.exchange(query, Some(client.address.ip()), by_tcp).await;
                let failed = exchanged
                    .as_ref()
                    .map_or(true, |answer| code_of(answer) == rcode::SERVFAIL);
                if failed && cache.is_some_and(|cache| cache.answer_stale(query, limit, Instant::now(), out))
                {
                    return Answerer::Cache;
                }
                match exchanged {
                    Ok(response) => {
                        *out = response;
                        if let Some(cache) = cache {
                            cache.store(query, out, Instant::now());
                        }
                        hide_ad(out, query);
                        fit(out, query, limit);
                    }
                    Err(failure) => block.answer_failure(query, &failure, out),
                }
                Answerer::Forward
            }
            Walk::Alias(target, ttl, answerer) => {
                let behind = self.look_up(&target, query.qtype, client, followed).await;
                let mut writer = Writer::start(out, query, limit);
                writer.name(Section::Answer, Owner::QUESTION, rtype::CNAME, ttl, target.wire());
                for record in followed_answers(&behind) {
                    let owner = Owner::Literal(&record.owner);
                    let fits = writer.record(Section::Answer, owner, record.rtype, record.ttl, |out| {
                        out.extend_from_slice(&record.data);
                    });
                    if !fits {
                        break;
                    }
                }
                writer.finish(rcode::NOERROR, true);
                answerer
            }
        }
    }

    /// Looks a name up through the whole server. Empty when that fails, or when it would go round in circles: the names
    /// in `followed` are being looked up.
    async fn look_up(&self, target: &Name, qtype: u16, client: Client, followed: &mut Vec<Name>) -> Vec<u8> {
        let mut out = Vec::new();
        if followed.contains(target) || followed.len() > MAX_ALIASES {
            return out;
        }
        followed.push(target.clone());
        let packet = query_packet(rand::random(), target.wire(), qtype);
        if let Admission::Query(query, route) = self.admit(&packet, &mut out) {
            // Recursion in an async function needs a box.
            Box::pin(self.resolve(&query, route, client, MAX_TCP, followed, &mut out)).await;
        }
        out
    }

    fn event(
        zone: usize,
        client: Client,
        qtype: u16,
        code: u16,
        answerer: Answerer,
        started: Instant,
        bytes: (usize, usize),
    ) -> Event {
        Event {
            zone,
            transport: client.transport,
            is_v6: matches!(client.address, SocketAddr::V6(_)),
            qtype,
            code,
            answerer,
            duration: started.elapsed(),
            bytes,
        }
    }
}

/// Answers where that needs no waiting, through the rules of `rewrite`.
fn walk_in_place(
    block: &Block,
    query: &Query<'_>,
    client: Client,
    shape: Shape,
    out: &mut Vec<u8>,
) -> Option<Answerer> {
    let walk = match block.rewrite(query, out) {
        None => block.walk(query, client, shape, out),
        Some(Err(answerer)) => Walk::Answered(answerer),
        Some(Ok(rewritten)) => {
            let inner = Query::parse(&rewritten.packet).ok()?;
            let whole = Shape {
                limit: MAX_TCP,
                ..shape
            };
            let walk = block.walk(&inner, client, whole, out);
            if matches!(walk, Walk::Answered(_)) {
                rewritten.restore(query, shape.limit, out);
            }
            walk
        }
    };
    match walk {
        Walk::Answered(answerer) => Some(answerer),
        Walk::Forward(..) | Walk::Alias(..) => None,
    }
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

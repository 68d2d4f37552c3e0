//! A query's way: which server block serves its name, which of the block's plugins answers it.
//!
//! ```text
//! packet ─► question ─► longest zone ─► kubernetes ─► cache ─► loop ─► forward ─► whoami ─► SERVFAIL
//!                                        (table)               (hit)               └► has to wait for an upstream
//! ```
//! The order is CoreDNS's but for `cache`, which stands behind `kubernetes`: cluster names are answered from the
//! watched state and are never cached. What needs no waiting is answered in place; the rest is
//! answered by the same walk, which then may wait.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::answer::{Owner, Section, Writer, code_of, code_only, fit, followed_answers, header_only};
use crate::cache::Cache;
use crate::corefile::{Log, ServerBlock};
use crate::explain;
use crate::feed::Source;
use crate::forward::{Failure, Forward};
use crate::kubernetes::{self, Shape, Verdict};
use crate::metrics::{Answerer, Event, Shard, Transport};
use crate::name::Name;
use crate::question::{CLASS_IN, Query, Refusal, query_packet, rcode, rtype};

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

/// One step of the chain.
pub enum Plugin {
    /// Answers from the cluster's state.
    Kubernetes(Box<kubernetes::Options>, Arc<Source>),
    /// Answers with what upstreams said before.
    Cache(Arc<Cache>),
    /// Finds upstreams that send our queries back.
    Loop(Arc<LoopProbe>),
    /// Asks upstreams.
    Forward(Arc<Forward>),
    /// Tells the client its own address.
    Whoami,
}

/// A server block, ready to answer.
pub struct Block {
    label: String,
    plugins: Vec<Plugin>,
    load_balance: bool,
    errors: bool,
    log: Option<Log>,
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

/// Where a walk along the plugins ended.
enum Walk<'s> {
    Answered(Answerer),
    /// An upstream has to be asked; what it says may be cached.
    Forward(&'s Forward, Option<&'s Cache>),
    /// The answer is an alias for this name, with that TTL.
    Alias(Name, u32),
}

/// A query that has a route, or why there is none.
#[expect(clippy::large_enum_variant, reason = "a box would be an allocation per query")]
enum Admission<'s, 'p> {
    Query(Query<'p>, &'s Route),
    /// An answer is written already.
    Refused(u16, u16),
    Silence,
}

impl Block {
    /// Puts the plugins of a server block in their order.
    #[must_use]
    pub fn new(
        config: &ServerBlock,
        source: Option<Arc<Source>>,
        loop_probe: Option<Arc<LoopProbe>>,
    ) -> Self {
        let mut plugins = Vec::new();
        if let (Some(options), Some(source)) = (&config.kubernetes, source) {
            plugins.push(Plugin::Kubernetes(Box::new(options.clone()), source));
        }
        plugins.extend(
            config
                .cache
                .clone()
                .map(|options| Plugin::Cache(Arc::new(Cache::new(options)))),
        );
        plugins.extend(loop_probe.map(Plugin::Loop));
        let forwards = config.forward.iter().cloned();
        plugins.extend(forwards.map(|options| Plugin::Forward(Arc::new(Forward::new(options)))));
        if config.whoami {
            plugins.push(Plugin::Whoami);
        }
        let zones = config.keys.iter().map(|key| format!("{}:{}", key.zone, key.port));
        Self {
            label: zones.collect::<Vec<_>>().join(" "),
            plugins,
            load_balance: config.load_balance,
            errors: config.errors,
            log: config.log,
        }
    }

    /// Its zones and ports, as the Corefile says them.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The block's plugins, in order.
    #[must_use]
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    fn walk<'s>(&'s self, query: &Query<'_>, client: Client, shape: Shape, out: &mut Vec<u8>) -> Walk<'s> {
        let mut cache = None;
        for plugin in &self.plugins {
            match plugin {
                Plugin::Kubernetes(options, source) => {
                    match options.answer(&source.table.load(), query, shape, out) {
                        Verdict::Answered => return Walk::Answered(Answerer::Kubernetes),
                        Verdict::Follow(target) => return Walk::Alias(target, options.ttl),
                        Verdict::NotOurs => {}
                    }
                }
                Plugin::Cache(found) => {
                    if found.answer(query, shape.limit, Instant::now(), out) {
                        return Walk::Answered(Answerer::Cache);
                    }
                    cache = Some(&**found);
                }
                Plugin::Loop(probe) => {
                    if probe.recognizes(query) {
                        code_only(out, query, rcode::SERVFAIL);
                        return Walk::Answered(Answerer::Server);
                    }
                }
                Plugin::Forward(forward) if forward.covers(query) => return Walk::Forward(forward, cache),
                Plugin::Forward(_) => {}
                Plugin::Whoami => {
                    whoami(query, client, shape, out);
                    return Walk::Answered(Answerer::Whoami);
                }
            }
        }
        code_only(out, query, rcode::SERVFAIL);
        Walk::Answered(Answerer::Server)
    }

    /// The query log and the error log; both are off the path of a block that asks for neither.
    fn log_answer(&self, query: &Query<'_>, client: Client, out: &[u8], event: &Event) {
        let Some(log) = self.log else { return };
        let answers = out.get(6..8).is_some_and(|count| count != [0, 0]);
        let wanted = match event.code {
            rcode::NOERROR if answers => log.success,
            rcode::NOERROR | rcode::NXDOMAIN => log.denial,
            _ => log.error,
        };
        if wanted {
            tracing::info!(
                client = %client.address,
                id = query.id(),
                name = %Name::from_lower_wire(query.name()),
                qtype = query.qtype,
                transport = ?client.transport,
                code = event.code,
                bytes = out.len(),
                micros = event.duration.as_micros() as u64,
                "query answered"
            );
        }
    }
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
                let event = self.event(self.unserved, client, qtype, code, Answerer::Server, started);
                worker.shard.count(&event);
                return Outcome::Reply;
            }
            Admission::Silence => {
                worker.shard.ignored.fetch_add(1, Ordering::Relaxed);
                return Outcome::Silence;
            }
        };
        if query.edns.is_some_and(|edns| edns.explain) {
            return Outcome::Later;
        }
        let rotation = if route.block.load_balance {
            worker.next_random()
        } else {
            0
        };
        let shape = Shape {
            limit: limit(&query, client.transport),
            rotation,
        };
        let Walk::Answered(answerer) = route.block.walk(&query, client, shape, out) else {
            return Outcome::Later;
        };
        let event = self.event(
            route.counters,
            client,
            query.qtype,
            code_of(out),
            answerer,
            started,
        );
        worker.shard.count(&event);
        route.block.log_answer(&query, client, out, &event);
        Outcome::Reply
    }

    /// Answers, however long it takes. `None` = the packet gets no answer.
    pub async fn answer(&self, packet: &[u8], client: Client, shard: &Shard) -> Option<Vec<u8>> {
        let started = Instant::now();
        let plain = explain::asked(packet);
        let packet = plain.as_deref().unwrap_or(packet);
        let mut out = Vec::with_capacity(512);
        let (query, route) = match self.admit(packet, &mut out) {
            Admission::Query(query, route) => (query, route),
            Admission::Refused(..) => return Some(out),
            Admission::Silence => return None,
        };
        let limit = limit(&query, client.transport);
        let mut followed = vec![Name::from_lower_wire(query.name())];
        let answerer = self
            .resolve(&query, route, client, limit, &mut followed, &mut out)
            .await;
        let event = self.event(
            route.counters,
            client,
            query.qtype,
            code_of(&out),
            answerer,
            started,
        );
        shard.count(&event);
        route.block.log_answer(&query, client, &out, &event);
        if plain.is_some() {
            explain::tell(&route.block, &query, client, answerer, limit, &mut out);
        }
        Some(out)
    }

    /// Reads a packet and finds who serves its name; writes the answer itself where nobody does.
    fn admit<'s, 'p>(&'s self, packet: &'p [u8], out: &mut Vec<u8>) -> Admission<'s, 'p> {
        let query = match Query::parse(packet) {
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
            Some(route) => return Admission::Query(query, route),
        };
        code_only(out, &query, code);
        Admission::Refused(query.qtype, code)
    }

    async fn resolve(
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
                match forward.exchange(query, client.transport == Transport::Tcp).await {
                    Ok(response) => {
                        if let Some(cache) = cache {
                            cache.store(query, &response, Instant::now());
                        }
                        *out = response;
                        fit(out, query, limit);
                    }
                    Err(failure) => answer_failure(block, query, &failure, out),
                }
                Answerer::Forward
            }
            Walk::Alias(target, ttl) => {
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
                Answerer::Kubernetes
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
        &self,
        zone: usize,
        client: Client,
        qtype: u16,
        code: u16,
        answerer: Answerer,
        started: Instant,
    ) -> Event {
        Event {
            zone,
            transport: client.transport,
            is_v6: matches!(client.address, SocketAddr::V6(_)),
            qtype,
            code,
            answerer,
            duration: started.elapsed(),
        }
    }
}

fn limit(query: &Query<'_>, transport: Transport) -> usize {
    match transport {
        Transport::Udp => query.udp_limit(),
        Transport::Tcp => MAX_TCP,
    }
}

fn answer_failure(block: &Block, query: &Query<'_>, failure: &Failure, out: &mut Vec<u8>) {
    if block.errors {
        let name = Name::from_lower_wire(query.name());
        tracing::warn!(%name, qtype = query.qtype, error = %model::with_causes(failure), "query not forwarded");
    }
    let code = match failure {
        Failure::TooMany { .. } => rcode::REFUSED,
        Failure::NoUpstream | Failure::Unanswered { .. } => rcode::SERVFAIL,
    };
    code_only(out, query, code);
}

/// CoreDNS's `whoami`: the client's address and port in the additional section.
fn whoami(query: &Query<'_>, client: Client, shape: Shape, out: &mut Vec<u8>) {
    let mut writer = Writer::start(out, query, shape.limit);
    let address: IpAddr = client.address.ip().to_canonical();
    writer.address(Section::Additional, Owner::QUESTION, address, 0);
    let label: &[u8] = match client.transport {
        Transport::Udp => b"\x04_udp",
        Transport::Tcp => b"\x04_tcp",
    };
    let owner = [label, query.name()].concat();
    writer.record(
        Section::Additional,
        Owner::Literal(&owner),
        rtype::SRV,
        0,
        |out| {
            out.extend_from_slice(&[0, 0, 0, 0]);
            out.extend_from_slice(&client.address.port().to_be_bytes());
            out.push(0);
        },
    );
    writer.finish(rcode::NOERROR, true);
}

/// Finds upstreams that lead back here: each is sent a name that nobody else knows, and the one whose name comes in
/// is taken out. CoreDNS ends the whole process instead.
pub struct LoopProbe {
    /// `INDEX.SECRET.ZONE`: the secret's label.
    secret: Vec<u8>,
    forwards: std::sync::OnceLock<Vec<Arc<Forward>>>,
}

impl LoopProbe {
    /// A probe with a new secret.
    #[must_use]
    pub fn new() -> Self {
        let secret = format!("{:016x}", rand::random::<u64>()).into_bytes();
        Self {
            secret,
            forwards: std::sync::OnceLock::new(),
        }
    }

    /// Sends every upstream its name. A query that comes in later is recognised whenever it comes.
    pub async fn send(&self, forwards: Vec<Arc<Forward>>, zone: &Name) {
        let forwards = self.forwards.get_or_init(|| forwards);
        for (index, upstream) in forwards
            .iter()
            .flat_map(|forward| forward.upstreams())
            .enumerate()
        {
            let label = index.to_string().into_bytes();
            let name = crate::answer::join(&[&label, &self.secret], zone);
            upstream.send_probe(&name).await;
        }
    }

    fn recognizes(&self, query: &Query<'_>) -> bool {
        if query.qtype != rtype::HINFO || query.label_count() < 2 || query.label(1) != self.secret {
            return false;
        }
        let index = std::str::from_utf8(query.label(0))
            .ok()
            .and_then(|label| label.parse::<usize>().ok());
        let forwards = self.forwards.get().into_iter().flatten();
        let upstream = forwards
            .flat_map(|forward| forward.upstreams())
            .nth(index.unwrap_or(usize::MAX));
        if let Some(upstream) = upstream
            && upstream.mark_looping()
        {
            tracing::error!(upstream = %upstream.address, "upstream sends our queries back here and is taken out");
        }
        true
    }
}

impl Default for LoopProbe {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;

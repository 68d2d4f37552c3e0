//! A question's way to its answer: through `rewrite`, along a block's plugins, and on to where an alias leads.
//!
//! [`begin`] does what needs no waiting, whoever calls; [`Lookup`] waits for the rest.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::block::{Block, Wait, Walk};
use super::{Admission, Client, MAX_TCP, Server};
use crate::answer::{Owner, Section, Writer, code_of, code_only, fit, followed_answers, hide_ad};
use crate::cache::Cache;
use crate::forward::Forward;
use crate::kubernetes::Shape;
use crate::metrics::{Answerer, Transport};
use crate::name::Name;
use crate::question::{Query, query_packet, rcode, rtype};
use crate::reply::Reply;
use crate::rewrite::{Rewritten, with_question};

/// The longest chain of aliases that is followed, as in CoreDNS.
const MAX_ALIASES: usize = 10;
/// What is looked up inside the server is cut and put in order with the client's own answer.
const WHOLE: Shape = Shape {
    limit: MAX_TCP,
    rotation: 0,
};

/// How far a question came without waiting.
pub(super) enum Begun<'s> {
    Answered(Answerer),
    /// The query that waits may be another one than the client's.
    Waits(Wait<'s>, Option<Rewritten<'s>>),
}

/// Answers where that needs no waiting, through the rules of `rewrite`.
pub(super) fn begin<'s>(
    block: &'s Block,
    query: &Query<'_>,
    client: Client,
    shape: Shape,
    out: &mut Vec<u8>,
) -> Begun<'s> {
    let rewritten = match block.rewrite(query, out) {
        None => {
            return match block.walk(query, client, shape, out) {
                Walk::Answered(answerer) => Begun::Answered(answerer),
                Walk::Waits(wait) => Begun::Waits(wait, None),
            };
        }
        Some(Err(answerer)) => return Begun::Answered(answerer),
        Some(Ok(rewritten)) => rewritten,
    };
    let Ok(inner) = Query::parse(&rewritten.packet) else {
        code_only(out, query, rcode::SERVFAIL);
        return Begun::Answered(Answerer::Server);
    };
    let uncut = Shape {
        limit: MAX_TCP,
        ..shape
    };
    match block.walk(&inner, client, uncut, out) {
        Walk::Answered(answerer) => {
            rewritten.restore(query, shape.limit, out);
            Begun::Answered(answerer)
        }
        Walk::Waits(wait) => Begun::Waits(wait, Some(rewritten)),
    }
}

/// One client's question, and what it leads to.
pub(super) struct Lookup<'s> {
    server: &'s Server,
    client: Client,
    /// The names that are being looked up, one because of the other.
    followed: Vec<Name>,
}

impl<'s> Lookup<'s> {
    pub(super) fn new(server: &'s Server, client: Client, query: &Query<'_>) -> Self {
        Self {
            server,
            client,
            followed: vec![Name::from_lower_wire(query.name())],
        }
    }

    /// Where `out` denies the name: answers along the client's search path, where `autopath` knows it. Gives who
    /// answered, and the query that was answered in the place of the client's.
    pub(super) async fn go_along_path(
        self,
        block: &'s Block,
        query: &Query<'_>,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Option<(Answerer, Vec<u8>)> {
        if code_of(out) != rcode::NXDOMAIN {
            return None;
        }
        let completed = block.completed(query, self.client)?;
        for name in completed.others(query) {
            let packet = with_question(query, name.wire(), query.qtype);
            let Ok(inner) = Query::parse(&packet) else {
                continue;
            };
            if !block.allows(&inner, self.client) {
                continue;
            }
            let mut found = Vec::new();
            let answerer = Self::new(self.server, self.client, &inner)
                .resolve(block, &inner, WHOLE, &mut found)
                .await;
            if code_of(&found) != rcode::NXDOMAIN
                && let Some(mut reply) = Reply::read(&found, &inner)
            {
                completed.autopath.note_found();
                reply.put_alias(query.name(), name.wire());
                reply.write(query, shape.limit, out);
                return Some((answerer, packet));
            }
        }
        None
    }

    /// Answers through the rules of `rewrite`.
    pub(super) async fn resolve(
        &mut self,
        block: &'s Block,
        query: &Query<'_>,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Answerer {
        let (wait, rewritten) = match begin(block, query, self.client, shape, out) {
            Begun::Answered(answerer) => return answerer,
            Begun::Waits(wait, None) => return self.finish(wait, block, query, shape.limit, out).await,
            Begun::Waits(wait, Some(rewritten)) => (wait, rewritten),
        };
        let Ok(inner) = Query::parse(&rewritten.packet) else {
            code_only(out, query, rcode::SERVFAIL);
            return Answerer::Server;
        };
        let answerer = self.finish(wait, block, &inner, MAX_TCP, out).await;
        rewritten.restore(query, shape.limit, out);
        answerer
    }

    async fn finish(
        &mut self,
        wait: Wait<'s>,
        block: &Block,
        query: &Query<'_>,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Answerer {
        match wait {
            Wait::Forward(forward, cache) => {
                self.ask_upstreams(forward, cache, block, query, limit, out).await
            }
            Wait::Alias {
                target,
                ttl,
                template,
            } => {
                let behind = self.look_up(&target, query.qtype).await;
                put_alias(query, &target, ttl, &behind, limit, out);
                match template {
                    Some(template) => {
                        template.matched.fetch_add(1, Ordering::Relaxed);
                        Answerer::Template
                    }
                    None => Answerer::Kubernetes,
                }
            }
        }
    }

    async fn ask_upstreams(
        &self,
        forward: &Arc<Forward>,
        cache: Option<&Cache>,
        block: &Block,
        query: &Query<'_>,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Answerer {
        if let Some(cache) = cache {
            cache.note_miss(query);
        }
        let by_tcp = self.client.transport == Transport::Tcp;
        let asker = Some(self.client.address.ip());
        let exchanged = forward.exchange(query, asker, by_tcp).await;
        let failed = exchanged
            .as_ref()
            .map_or(true, |answer| code_of(answer) == rcode::SERVFAIL);
        if failed && cache.is_some_and(|cache| cache.answer_stale(query, limit, Instant::now(), out)) {
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

    /// Looks a name up through the whole server, as far as `acl` lets the client. Empty when that fails, or when it
    /// would go round in circles.
    async fn look_up(&mut self, target: &Name, qtype: u16) -> Vec<u8> {
        let mut out = Vec::new();
        if self.followed.contains(target) || self.followed.len() > MAX_ALIASES {
            return out;
        }
        self.followed.push(target.clone());
        let packet = query_packet(rand::random(), target.wire(), qtype);
        let server = self.server;
        if let Admission::Query(query, route) = server.admit(&packet, &mut out)
            && route.block.allows(&query, self.client)
        {
            // Recursion in an async function needs a box.
            Box::pin(self.resolve(&route.block, &query, WHOLE, &mut out)).await;
        }
        out
    }
}

/// The answer that is an alias, and behind it what was found for its target.
fn put_alias(query: &Query<'_>, target: &Name, ttl: u32, behind: &[u8], limit: usize, out: &mut Vec<u8>) {
    let mut writer = Writer::start(out, query, limit);
    writer.name(Section::Answer, Owner::QUESTION, rtype::CNAME, ttl, target.wire());
    for record in followed_answers(behind) {
        let owner = writer.owner(&record.owner);
        let fits = writer.record(Section::Answer, owner, record.rtype, record.ttl, |out| {
            out.extend_from_slice(&record.data);
        });
        if !fits {
            break;
        }
    }
    writer.finish(rcode::NOERROR, true);
}

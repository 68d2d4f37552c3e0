//! A server block: what it does with a query, plugin by plugin, and with the answer on its way back.

use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use tokio::runtime::Handle;

use super::autopath::{Autopath, Completed};
use super::loop_probe::LoopProbe;
use super::{Client, trim};
use crate::aaaa;
use crate::acl::{self, Action};
use crate::answer::{Owner, Section, Writer, code_only};
use crate::cache::{Cache, Found};
use crate::corefile::{DEFAULT_BUFSIZE, Key, ServerBlock};
use crate::error_log::ErrorLog;
use crate::feed::Source;
use crate::forward::{Failure, Forward};
use crate::hosts::{self, Hosts};
use crate::kubernetes::{self, Shape, Verdict};
use crate::metrics::{Answerer, Event, Transport, ZoneLabel};
use crate::name::{MAX_NAME, Name};
use crate::query_log;
use crate::question::{Query, rcode, rtype};
use crate::rate_limit::RateLimit;
use crate::rewrite::{self, Rewritten};
use crate::template::{self, Templates};

/// RFC 8482 §4.2 leaves the TTL to the server; this is CoreDNS's.
const ANY_TTL: u32 = 8482;

/// One step of the chain.
pub enum Plugin {
    /// Answers queries for every type at once.
    Any,
    /// Answers made of the question.
    Template(Arc<Templates>),
    /// Answers from a file.
    Hosts(Arc<Hosts>),
    /// Answers from the cluster's state.
    Kubernetes(Box<kubernetes::Options>, Arc<Source>),
    /// Denies that names outside have IPv6 addresses.
    Aaaa(aaaa::Off),
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
    /// The first zone and port of its heading, as metrics tell them.
    label: ZoneLabel,
    /// All of its zones and ports.
    heading: String,
    /// What the Corefile calls its plugins.
    names: Vec<&'static str>,
    plugins: Vec<Plugin>,
    rate_limit: Option<Arc<RateLimit>>,
    acl: Option<Arc<acl::Acl>>,
    rewrites: Vec<rewrite::Rule>,
    autopath: Option<Arc<Autopath>>,
    /// No client is sent more over UDP.
    pub(super) bufsize: u16,
    pub(super) load_balance: bool,
    minimal: bool,
    /// Where answers are asked for again while serving threads go on.
    runtime: Option<Handle>,
    errors: Option<Arc<ErrorLog>>,
    log: Vec<query_log::Rule>,
}

/// What becomes of a query before any plugin may answer it.
pub(super) enum Passage {
    Open,
    /// The answer is written.
    Answered(Answerer),
    Silence,
}

/// Where a walk along the plugins ended.
pub(super) enum Walk<'s> {
    Answered(Answerer),
    Waits(Wait<'s>),
}

/// What has to be found out before there is an answer.
pub(super) enum Wait<'s> {
    /// An upstream has to be asked; what it says may be cached.
    Forward(&'s Arc<Forward>, Option<&'s Cache>),
    /// The answer is an alias, whose target has to be looked up. It is a template's, or the cluster's.
    Alias {
        target: Name,
        ttl: u32,
        template: Option<&'s Templates>,
    },
}

impl Plugin {
    /// The cache, where it is one.
    #[must_use]
    pub fn as_cache(&self) -> Option<&Arc<Cache>> {
        match self {
            Self::Cache(cache) => Some(cache),
            _ => None,
        }
    }

    /// The forwarder, where it is one.
    #[must_use]
    pub fn as_forward(&self) -> Option<&Arc<Forward>> {
        match self {
            Self::Forward(forward) => Some(forward),
            _ => None,
        }
    }

    /// The hosts, where it is them.
    #[must_use]
    pub fn as_hosts(&self) -> Option<&Arc<Hosts>> {
        match self {
            Self::Hosts(hosts) => Some(hosts),
            _ => None,
        }
    }

    /// The template, where it is one.
    #[must_use]
    pub fn as_template(&self) -> Option<&Arc<Templates>> {
        match self {
            Self::Template(template) => Some(template),
            _ => None,
        }
    }
}

impl Block {
    /// Puts the plugins of a server block in their order.
    #[must_use]
    pub fn new(
        config: &ServerBlock,
        source: Option<Arc<Source>>,
        loop_probe: Option<Arc<LoopProbe>>,
    ) -> Self {
        Self::succeeding(None, config, source, loop_probe)
    }

    /// The same for a block that comes in the place of another one: what is configured as it was stays as it is, with
    /// its entries, connections and counts.
    #[must_use]
    pub fn succeeding(
        old: Option<&Self>,
        config: &ServerBlock,
        source: Option<Arc<Source>>,
        loop_probe: Option<Arc<LoopProbe>>,
    ) -> Self {
        let zones = config.keys.iter().map(Key::to_string);
        Self {
            label: ZoneLabel::of(config.keys.first()),
            heading: zones.collect::<Vec<_>>().join(" "),
            names: config.plugins(),
            plugins: plugins(old, config, source, loop_probe),
            rate_limit: config.rate_limit.as_ref().map(|options| {
                let old = old.and_then(|old| old.rate_limit.clone());
                let same = |limit: &RateLimit| limit.options() == options;
                kept_or(old, same, || RateLimit::new(options.clone()))
            }),
            acl: (!config.acl.is_empty()).then(|| {
                let old = old.and_then(|old| old.acl.clone());
                let same = |gate: &acl::Acl| gate.options() == config.acl;
                kept_or(old, same, || acl::Acl::new(config.acl.clone()))
            }),
            rewrites: config.rewrites.clone(),
            autopath: config.autopath.as_ref().map(|options| {
                let old = old.and_then(|old| old.autopath.clone());
                let same = |autopath: &Autopath| autopath.options() == options;
                kept_or(old, same, || Autopath::new(options.clone()))
            }),
            bufsize: config.bufsize.unwrap_or(DEFAULT_BUFSIZE),
            load_balance: config.load_balance,
            minimal: config.minimal,
            runtime: Handle::try_current().ok(),
            errors: config
                .errors
                .then(|| Arc::new(ErrorLog::new(config.consolidations.clone()))),
            log: config.log.clone(),
        }
    }

    /// Everything in it that has work of its own, until it is no more.
    pub(crate) async fn background(&self) {
        let hosts = self.plugins.iter().filter_map(Plugin::as_hosts);
        let hosts = join_all(hosts.map(|hosts| Arc::clone(hosts).follow()));
        let errors = join_all(self.errors.iter().map(|errors| errors.follow()));
        tokio::join!(hosts, errors);
    }

    /// The block's plugins that answer, in order.
    #[must_use]
    pub fn plugins(&self) -> &[Plugin] {
        &self.plugins
    }

    /// Its zones and ports, as the Corefile says them.
    #[must_use]
    pub fn heading(&self) -> &str {
        &self.heading
    }

    /// The query that its plugins see in the place of this one, where `rewrite` makes another one of it.
    #[must_use]
    pub fn asked_instead(&self, query: &Query<'_>) -> Option<Vec<u8>> {
        let rewritten = rewrite::rewrite(&self.rewrites, query)?;
        Some(rewritten.ok()?.packet)
    }

    /// `server`, `zone` and `view`, for metrics of its plugins.
    #[must_use]
    pub fn labels(&self) -> String {
        self.label.to_string()
    }

    /// The same for its cache, whose metrics say `zones`.
    #[must_use]
    pub fn cache_labels(&self) -> String {
        let ZoneLabel { server, zone } = &self.label;
        format!("server=\"{server}\",zones=\"{zone}\",view=\"\"")
    }

    /// What the Corefile calls its plugins.
    #[must_use]
    pub fn names(&self) -> &[&'static str] {
        &self.names
    }

    /// Its `autopath`.
    #[must_use]
    pub fn autopath(&self) -> Option<&Autopath> {
        self.autopath.as_deref()
    }

    /// The query's name, where its client completed it and `autopath` knows how it goes on.
    pub(super) fn completed(&self, query: &Query<'_>, client: Client) -> Option<Completed<'_>> {
        let cluster = self.plugins.iter().find_map(|plugin| match plugin {
            Plugin::Kubernetes(options, source) => Some((&**options, &**source)),
            _ => None,
        });
        self.autopath()?.completed(query, client.address.ip(), cluster)
    }

    /// Its `ratelimit`.
    #[must_use]
    pub fn rate_limit(&self) -> Option<&RateLimit> {
        self.rate_limit.as_deref()
    }

    /// Its `acl`.
    #[must_use]
    pub fn acl(&self) -> Option<&acl::Acl> {
        self.acl.as_deref()
    }

    /// Asks `ratelimit` and `acl`, which look at the client and never at the name's records.
    pub(super) fn gate(&self, query: &Query<'_>, client: Client, now: Instant, out: &mut Vec<u8>) -> Passage {
        let address = client.address.ip();
        let limited = self.rate_limit.as_ref();
        if limited.is_some_and(|limit| !limit.admits(address, now)) {
            if client.transport == Transport::Udp {
                // The address may be forged: an answer would go to somebody who did not ask.
                return Passage::Silence;
            }
            code_only(out, query, rcode::REFUSED);
            return Passage::Answered(Answerer::RateLimit);
        }
        let action = self.acl.as_ref().map(|acl| acl.decide(query, address));
        match action {
            None | Some(Action::Allow) => return Passage::Open,
            Some(Action::Drop) => return Passage::Silence,
            Some(Action::Block) => code_only(out, query, rcode::REFUSED),
            Some(Action::Filter) => code_only(out, query, rcode::NOERROR),
        }
        Passage::Answered(Answerer::Acl)
    }

    /// Whether `acl` lets a client ask what the server asks itself in its place.
    pub(super) fn allows(&self, query: &Query<'_>, client: Client) -> bool {
        let action = self
            .acl
            .as_ref()
            .map(|acl| acl.decide(query, client.address.ip()));
        matches!(action, None | Some(Action::Allow))
    }

    pub(super) fn walk<'s>(
        &'s self,
        query: &Query<'_>,
        client: Client,
        shape: Shape,
        out: &mut Vec<u8>,
    ) -> Walk<'s> {
        let mut cache = None;
        for plugin in &self.plugins {
            match plugin {
                Plugin::Any if query.qtype == rtype::ANY => {
                    refuse_any(query, shape, out);
                    return Walk::Answered(Answerer::Any);
                }
                Plugin::Any => {}
                Plugin::Template(template) => match template.answer(query, client.address.ip(), shape, out) {
                    template::Verdict::Answered => return Walk::Answered(Answerer::Template),
                    template::Verdict::Follow(target, ttl) => {
                        return Walk::Waits(Wait::Alias {
                            target,
                            ttl,
                            template: Some(template),
                        });
                    }
                    template::Verdict::Failed(error) => {
                        self.report(query, &error);
                        return Walk::Answered(Answerer::Template);
                    }
                    template::Verdict::NotOurs => {}
                },
                Plugin::Hosts(hosts) => {
                    if hosts.answer(query, shape, out) == hosts::Verdict::Answered {
                        return Walk::Answered(Answerer::Hosts);
                    }
                }
                Plugin::Kubernetes(options, source) => {
                    match options.answer(&source.table.load(), query, shape, out) {
                        Verdict::Answered => return Walk::Answered(Answerer::Kubernetes),
                        Verdict::Follow(target) => {
                            return Walk::Waits(Wait::Alias {
                                target,
                                ttl: options.ttl,
                                template: None,
                            });
                        }
                        Verdict::NotOurs => {}
                    }
                }
                Plugin::Aaaa(off) => {
                    if off.answer(query, shape.limit, out) {
                        return Walk::Answered(Answerer::Aaaa);
                    }
                }
                Plugin::Cache(kept) => match kept.answer(query, shape.limit, Instant::now(), out) {
                    Found::Nothing => cache = Some(&**kept),
                    Found::Fresh => return Walk::Answered(Answerer::Cache),
                    Found::Aging => {
                        self.refresh(query, kept);
                        return Walk::Answered(Answerer::Cache);
                    }
                },
                Plugin::Loop(probe) => {
                    if probe.recognizes(query) {
                        code_only(out, query, rcode::SERVFAIL);
                        return Walk::Answered(Answerer::Server);
                    }
                }
                Plugin::Forward(forward) if forward.covers(query) => {
                    return Walk::Waits(Wait::Forward(forward, cache));
                }
                Plugin::Forward(_) => {}
                Plugin::Whoami => {
                    note_miss(cache, query);
                    whoami(query, client, shape, out);
                    return Walk::Answered(Answerer::Whoami);
                }
            }
        }
        note_miss(cache, query);
        code_only(out, query, rcode::SERVFAIL);
        Walk::Answered(Answerer::Server)
    }

    /// Asks for an answer again that the client has already.
    fn refresh(&self, query: &Query<'_>, cache: &Arc<Cache>) {
        let mut forwards = self.plugins.iter().filter_map(Plugin::as_forward);
        let forward = forwards.find(|forward| forward.covers(query));
        let (Some(forward), Some(runtime)) = (forward.cloned(), &self.runtime) else {
            return;
        };
        let (cache, packet) = (Arc::clone(cache), query.packet().to_vec());
        runtime.spawn(async move {
            let Ok(query) = Query::parse(&packet) else { return };
            match forward.exchange(&query, None, false).await {
                Ok(mut response) => cache.store(&query, &mut response, Instant::now()),
                Err(error) => tracing::debug!(error = %model::with_causes(&error), "entry not refreshed"),
            }
        });
    }

    /// What `minimal` and `loadbalance` do to a whole answer.
    pub(crate) fn trim(&self, query: &Query<'_>, answerer: Answerer, rotation: usize, out: &mut Vec<u8>) {
        if self.minimal {
            trim::keep_answers(out, query);
        }
        // The cluster's own addresses come in a new order already.
        let is_rotated =
            || answerer == Answerer::Kubernetes && !trim::begins_with_alias(out, query.question_end);
        if self.load_balance && !is_rotated() {
            trim::rotate_addresses(out, query.question_end, rotation);
        }
    }

    /// The query that the plugins see instead. `None` = the same; where the rules lead to no name, SERVFAIL is
    /// written.
    pub(super) fn rewrite<'r>(
        &'r self,
        query: &Query<'_>,
        out: &mut Vec<u8>,
    ) -> Option<Result<Rewritten<'r>, Answerer>> {
        let rewritten = rewrite::rewrite(&self.rewrites, query)?;
        Some(rewritten.map_err(|error| {
            self.report(query, &error);
            code_only(out, query, rcode::SERVFAIL);
            Answerer::Server
        }))
    }

    fn report(&self, query: &Query<'_>, error: &dyn Error) {
        if let Some(errors) = &self.errors {
            errors.report(query, error);
        }
    }

    pub(super) fn answer_failure(&self, query: &Query<'_>, failure: &Failure, out: &mut Vec<u8>) {
        self.report(query, failure);
        let code = match failure {
            Failure::TooMany { .. } => rcode::REFUSED,
            Failure::NoUpstream | Failure::Unanswered { .. } => rcode::SERVFAIL,
        };
        code_only(out, query, code);
    }

    /// The query log; off the path of a block that does not ask for it.
    pub(super) fn log_answer(&self, query: &Query<'_>, client: Client, out: &[u8], event: &Event) {
        if !self.log.is_empty() {
            query_log::log(&self.log, query, client, out, event);
        }
    }
}

/// The plugins of a server block, in their order; those of `old` that are configured as before.
fn plugins(
    old: Option<&Block>,
    config: &ServerBlock,
    source: Option<Arc<Source>>,
    loop_probe: Option<Arc<LoopProbe>>,
) -> Vec<Plugin> {
    let old: &[Plugin] = old.map_or(&[], |old| &old.plugins);
    let mut plugins = Vec::new();
    plugins.extend(config.any.then_some(Plugin::Any));
    plugins.extend(config.templates.iter().map(|options| {
        let old = find(old, Plugin::as_template, |template| template.options() == options);
        Plugin::Template(old.unwrap_or_else(|| Arc::new(Templates::new(options.clone()))))
    }));
    plugins.extend(config.hosts.iter().map(|options| {
        let old = find(old, Plugin::as_hosts, |hosts| hosts.options() == options);
        Plugin::Hosts(old.unwrap_or_else(|| Arc::new(Hosts::new(options.clone()))))
    }));
    let kubernetes = config.kubernetes.clone().zip(source);
    plugins.extend(kubernetes.map(|(options, source)| Plugin::Kubernetes(Box::new(options), source)));
    plugins.extend(config.no_aaaa.clone().map(Plugin::Aaaa));
    plugins.extend(config.cache.iter().map(|options| {
        let old = find(old, Plugin::as_cache, |cache| cache.options() == options);
        Plugin::Cache(old.unwrap_or_else(|| Arc::new(Cache::new(options.clone()))))
    }));
    plugins.extend(loop_probe.map(Plugin::Loop));
    plugins.extend(config.forward.iter().map(|options| {
        let old = find(old, Plugin::as_forward, |forward| forward.options() == options);
        let forward = old.unwrap_or_else(|| Arc::new(Forward::new(options.clone())));
        if !config.detect_loops {
            forward.forget_loops();
        }
        Plugin::Forward(forward)
    }));
    plugins.extend(config.whoami.then_some(Plugin::Whoami));
    plugins
}

/// The plugin of a kind that is as wanted.
fn find<T>(
    plugins: &[Plugin],
    as_kind: impl Fn(&Plugin) -> Option<&Arc<T>>,
    is_same: impl Fn(&T) -> bool,
) -> Option<Arc<T>> {
    let mut kinds = plugins.iter().filter_map(as_kind);
    kinds.find(|plugin| is_same(plugin)).cloned()
}

/// What there was, where it is as wanted.
fn kept_or<T>(old: Option<Arc<T>>, is_same: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> Arc<T> {
    old.filter(|old| is_same(old)).unwrap_or_else(|| Arc::new(new()))
}

/// RFC 8482 §4.2: one HINFO record instead of everything.
fn refuse_any(query: &Query<'_>, shape: Shape, out: &mut Vec<u8>) {
    let mut writer = Writer::start(out, query, shape.limit);
    writer.record(Section::Answer, Owner::QUESTION, rtype::HINFO, ANY_TTL, |out| {
        for text in [&b"ANY obsoleted"[..], b"See RFC 8482"] {
            out.push(text.len() as u8);
            out.extend_from_slice(text);
        }
    });
    writer.finish(rcode::NOERROR, true);
}

/// Counts a query for which the cache had nothing, and that is answered without upstreams.
fn note_miss(cache: Option<&Cache>, query: &Query<'_>) {
    if let Some(cache) = cache {
        cache.note_miss(query);
    }
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
    // What gets too long is no name.
    if owner.len() <= MAX_NAME {
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
    }
    writer.finish(rcode::NOERROR, true);
}

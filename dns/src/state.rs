//! What the endpoints tell of a running server.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::acl::Action;
use crate::cache::Counts;
use crate::chain::{Block, Plugin};
use crate::feed::Source;
use crate::forward;
use crate::hosts::Hosts;
use crate::http::{Endpoints, SelfChecks};
use crate::log_queue;
use crate::metrics::{Exposition, Registry};
use crate::mnemonic::type_name;
use crate::process;
use crate::question::rtype;
use crate::serve::drops::{self, Inode};
use crate::template::Templates;

/// Everything that can be asked about.
pub struct State {
    /// Counters of the serving threads.
    pub registry: Registry,
    /// Times that a Corefile changed and was refused.
    pub refused_reloads: AtomicU64,
    /// Requests for the own health page.
    pub self_checks: SelfChecks,
    /// Datagrams that sockets lost that are closed by now.
    pub lost_before: AtomicU64,
    ending: AtomicBool,
    current: ArcSwap<Current>,
}

/// What changes with the configuration.
#[derive(Clone, Default)]
struct Current {
    blocks: Vec<Arc<Block>>,
    /// The feeds, by what they follow.
    sources: Vec<(String, Arc<Source>)>,
    endpoints: BTreeMap<SocketAddr, Endpoints>,
    sockets: BTreeSet<Inode>,
}

impl State {
    /// The state of a server without configuration.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            refused_reloads: AtomicU64::new(0),
            self_checks: SelfChecks::default(),
            lost_before: AtomicU64::new(0),
            ending: AtomicBool::new(false),
            current: ArcSwap::default(),
        }
    }

    /// Tells of another configuration from now on: its blocks, its feeds by what they follow, what is told at which
    /// address.
    pub fn set(
        &self,
        blocks: Vec<Arc<Block>>,
        sources: Vec<(String, Arc<Source>)>,
        endpoints: BTreeMap<SocketAddr, Endpoints>,
    ) {
        let sockets = self.current.load().sockets.clone();
        self.current.store(Arc::new(Current {
            blocks,
            sources,
            endpoints,
            sockets,
        }));
    }

    /// Tells of the losses of these UDP sockets from now on.
    pub fn set_sockets(&self, sockets: BTreeSet<Inode>) {
        let current = self.current.load();
        self.current.store(Arc::new(Current {
            sockets,
            ..Current::clone(&current)
        }));
    }

    /// Notes that the server was told to end.
    pub fn note_ending(&self) {
        self.ending.store(true, Ordering::Relaxed);
    }

    /// Whether the server was told to end: it answers, and shall be asked no more.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Whether every feed has delivered, now or before a restart, everything that answers depend on.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let current = self.current.load();
        current.sources.iter().all(|(_, source)| source.is_synced())
    }

    /// What is told at an address, as the Corefile writes it.
    #[must_use]
    pub fn endpoints(&self, address: &SocketAddr) -> Endpoints {
        let current = self.current.load();
        current.endpoints.get(address).copied().unwrap_or_default()
    }

    /// All metrics.
    #[must_use]
    pub fn metrics(&self) -> String {
        let mut text = Exposition::default();
        text.family(
            "coredns_build_info",
            "gauge",
            "A metric with a constant '1' value labeled by version.",
        );
        let labels = format!(
            "version=\"{}\",revision=\"\",goversion=\"\"",
            env!("CARGO_PKG_VERSION")
        );
        text.sample("coredns_build_info", &labels, 1.0);
        self.registry.write(&mut text);
        let name = "coredns_reload_failed_total";
        text.family(
            name,
            "counter",
            "Counter of the number of failed reload attempts.",
        );
        text.sample(name, "", self.refused_reloads.load(Ordering::Relaxed) as f64);
        let name = "causeway_dns_log_lines_dropped_total";
        text.family(
            name,
            "counter",
            "Lines of the log that standard error was too slow for.",
        );
        text.sample(name, "", log_queue::dropped() as f64);
        self.write_self_checks(&mut text);
        self.write_losses(&mut text);
        self.current.load().write(&mut text);
        for metric in process::metrics() {
            text.family(metric.name, metric.kind, metric.help);
            text.sample(metric.name, "", metric.value);
        }
        text.text
    }
}

impl State {
    fn write_self_checks(&self, text: &mut Exposition) {
        let name = "coredns_health_request_duration_seconds";
        text.family(
            name,
            "histogram",
            "Histogram of the time (in seconds) each request took.",
        );
        text.durations(name, "", &self.self_checks.durations);
        let name = "coredns_health_request_failures_total";
        text.family(name, "counter", "The number of times the health check failed.");
        text.sample(name, "", self.self_checks.failures.load(Ordering::Relaxed) as f64);
    }

    fn write_losses(&self, text: &mut Exposition) {
        let before = self.lost_before.load(Ordering::Relaxed);
        let lost = before + drops::dropped(&self.current.load().sockets);
        let name = "causeway_dns_receive_drops_total";
        text.family(
            name,
            "counter",
            "Datagrams that the kernel dropped because the buffer of a socket was full.",
        );
        text.sample(name, "", lost as f64);
    }
}

impl Current {
    fn write(&self, text: &mut Exposition) {
        let name = "coredns_plugin_enabled";
        text.family(
            name,
            "gauge",
            "A metric that indicates whether a plugin is enabled on per server and zone basis.",
        );
        for block in &self.blocks {
            for plugin in block.names() {
                text.sample(name, &format!("{},name=\"{plugin}\"", block.labels()), 1.0);
            }
        }
        forward::write_metrics(self.plugins().filter_map(Plugin::as_forward), text);
        self.write_caches(text);
        self.write_gates(text);
        self.write_hosts(text);
        self.write_templates(text);
        self.write_feeds(text);
    }

    fn plugins(&self) -> impl Iterator<Item = &Plugin> {
        self.blocks.iter().flat_map(|block| block.plugins())
    }

    fn write_caches(&self, text: &mut Exposition) {
        let caches: Vec<(&Arc<Block>, Counts)> = self
            .blocks
            .iter()
            .filter_map(|block| Some((block, block.plugins().iter().find_map(Plugin::as_cache)?.counts())))
            .collect();
        type Halves = fn(&Counts) -> [u64; 2];
        let by_half: [(&str, &str, &str, Halves); 4] = [
            (
                "coredns_cache_entries",
                "gauge",
                "The number of elements in the cache.",
                |counts| counts.entries,
            ),
            (
                "causeway_dns_cache_bytes",
                "gauge",
                "Bytes that the elements in the cache take.",
                |counts| counts.bytes,
            ),
            (
                "coredns_cache_hits_total",
                "counter",
                "The count of cache hits.",
                |counts| counts.hits,
            ),
            (
                "coredns_cache_evictions_total",
                "counter",
                "The count of cache evictions.",
                |counts| counts.evictions,
            ),
        ];
        for (name, kind, help, value) in by_half {
            text.family(name, kind, help);
            for (block, counts) in &caches {
                for (half, value) in ["success", "denial"].iter().zip(value(counts)) {
                    text.sample(
                        name,
                        &format!("{},type=\"{half}\"", block.cache_labels()),
                        value as f64,
                    );
                }
            }
        }
        type Whole = fn(&Counts) -> u64;
        let whole: [(&str, &str, Whole); 4] = [
            (
                "coredns_cache_requests_total",
                "The count of cache requests.",
                |counts| counts.requests,
            ),
            (
                "coredns_cache_misses_total",
                "The count of cache misses.",
                |counts| counts.requests - counts.hits.iter().sum::<u64>(),
            ),
            (
                "coredns_cache_prefetch_total",
                "The number of times the cache has prefetched a cached item.",
                |counts| counts.prefetches,
            ),
            (
                "coredns_cache_served_stale_total",
                "The number of requests served from stale cache entries.",
                |counts| counts.served_stale,
            ),
        ];
        for (name, help, value) in whole {
            text.family(name, "counter", help);
            for (block, counts) in &caches {
                text.sample(name, &block.cache_labels(), value(counts) as f64);
            }
        }
    }

    fn write_gates(&self, text: &mut Exposition) {
        for (name, help, action) in [
            (
                "coredns_acl_blocked_requests_total",
                "Counter of DNS requests being blocked.",
                Action::Block,
            ),
            (
                "coredns_acl_filtered_requests_total",
                "Counter of DNS requests being filtered.",
                Action::Filter,
            ),
            (
                "coredns_acl_allowed_requests_total",
                "Counter of DNS requests being allowed.",
                Action::Allow,
            ),
            (
                "coredns_acl_dropped_requests_total",
                "Counter of DNS requests being dropped.",
                Action::Drop,
            ),
        ] {
            let gates = || self.blocks.iter().filter_map(|block| Some((block, block.acl()?)));
            if gates().next().is_some() {
                text.family(name, "counter", help);
            }
            for (block, gate) in gates() {
                text.sample(name, &block.labels(), gate.count(action) as f64);
            }
        }
        let name = "coredns_autopath_success_total";
        text.family(name, "counter", "Counter of requests that did autopath.");
        for block in &self.blocks {
            if let Some(autopath) = block.autopath() {
                let found = autopath.found.load(Ordering::Relaxed);
                text.sample(name, &block.labels(), found as f64);
            }
        }
        let name = "causeway_dns_rate_limited_total";
        text.family(name, "counter", "Queries of clients over their rate.");
        for block in &self.blocks {
            if let Some(limit) = block.rate_limit() {
                text.sample(
                    name,
                    &block.labels(),
                    limit.limited.load(Ordering::Relaxed) as f64,
                );
            }
        }
    }

    fn write_hosts(&self, text: &mut Exposition) {
        type Value = fn(&Hosts) -> f64;
        let values: [(&str, &str, &str, Value); 3] = [
            (
                "coredns_hosts_entries",
                "gauge",
                "The combined number of entries in hosts and Corefile.",
                |hosts| hosts.entry_count() as f64,
            ),
            (
                "coredns_hosts_reload_timestamp_seconds",
                "gauge",
                "The timestamp of the last reload of hosts file.",
                |hosts| hosts.loaded_at() as f64,
            ),
            (
                "causeway_dns_hosts_failed_total",
                "counter",
                "Times that the hosts file could not be read.",
                |hosts| hosts.failed.load(Ordering::Relaxed) as f64,
            ),
        ];
        for (name, kind, help, value) in values {
            text.family(name, kind, help);
            for block in &self.blocks {
                for hosts in block.plugins().iter().filter_map(Plugin::as_hosts) {
                    text.sample(name, &block.labels(), value(hosts));
                }
            }
        }
    }

    fn write_templates(&self, text: &mut Exposition) {
        type Value = fn(&Templates) -> &AtomicU64;
        let counters: [(&str, &str, Value); 2] = [
            (
                "coredns_template_matches_total",
                "Counter of template regex matches.",
                |template| &template.matched,
            ),
            (
                "coredns_template_rr_failures_total",
                "Counter of mis-templated RRs.",
                |template| &template.failed,
            ),
        ];
        for (name, help, value) in counters {
            text.family(name, "counter", help);
            for block in &self.blocks {
                let templates = block.plugins().iter().filter_map(Plugin::as_template);
                // Two templates of one block for one type are one series.
                let mut totals = BTreeMap::new();
                for template in templates {
                    let qtype = template.options().qtype.unwrap_or(rtype::ANY);
                    *totals.entry(qtype).or_insert(0) += value(template).load(Ordering::Relaxed);
                }
                for (qtype, total) in totals {
                    let labels = format!("{},class=\"IN\",type=\"{}\"", block.labels(), type_name(qtype));
                    text.sample(name, &labels, total as f64);
                }
            }
        }
    }

    fn write_feeds(&self, text: &mut Exposition) {
        type Value = fn(&Source) -> Option<f64>;
        let gauges: [(&str, &str, Value); 4] = [
            (
                "causeway_dns_feed_connected",
                "Whether the agent's feed is connected and complete.",
                |source| Some(f64::from(u8::from(source.is_connected()))),
            ),
            (
                "causeway_dns_snapshot_age_seconds",
                "Time since the snapshot was last known to be current; 0 while connected.",
                |source| source.age().map(|age| age.as_secs_f64()),
            ),
            (
                "causeway_dns_services",
                "Services that the table holds.",
                |source| Some(source.table.load().service_count() as f64),
            ),
            (
                "causeway_dns_tables_published",
                "Tables that were made of the feed's changes.",
                |source| Some(source.published.load(Ordering::Relaxed) as f64),
            ),
        ];
        let name = "coredns_kubernetes_dns_programming_duration_seconds";
        text.family(
            name,
            "histogram",
            "Histogram of the time (in seconds) it took to program a dns instance.",
        );
        let programming = self.sources.iter().map(|(_, source)| &source.programming);
        text.histograms(name, "service_kind=\"headless_with_selector\"", programming);
        for (name, help, value) in gauges {
            text.family(name, "gauge", help);
            for (socket, source) in &self.sources {
                if let Some(value) = value(source) {
                    text.sample(name, &format!("feed=\"{socket}\""), value);
                }
            }
        }
    }
}

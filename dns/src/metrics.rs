//! Counters under CoreDNS's names, and the text that Prometheus reads.
//!
//! Each serving thread counts in a [`Shard`] of its own, so that no two write to the same memory; a scrape adds the
//! shards up.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::corefile::Key;
use crate::name::Name;
use crate::question::rcode;

/// Types that are counted by name; the last place is for all others.
const TYPES: [(u16, &str); 16] = [
    (1, "A"),
    (28, "AAAA"),
    (33, "SRV"),
    (12, "PTR"),
    (5, "CNAME"),
    (16, "TXT"),
    (2, "NS"),
    (6, "SOA"),
    (15, "MX"),
    (65, "HTTPS"),
    (64, "SVCB"),
    (43, "DS"),
    (48, "DNSKEY"),
    (46, "RRSIG"),
    (47, "NSEC"),
    (50, "NSEC3"),
];
const RCODES: [(u16, &str); 7] = [
    (rcode::NOERROR, "NOERROR"),
    (rcode::FORMERR, "FORMERR"),
    (rcode::SERVFAIL, "SERVFAIL"),
    (rcode::NXDOMAIN, "NXDOMAIN"),
    (rcode::NOTIMP, "NOTIMP"),
    (rcode::REFUSED, "REFUSED"),
    (rcode::BADVERS, "BADVERS"),
];
/// Zones that are counted, of all configurations that a process has seen.
pub const MAX_ZONES: usize = 1024;
const BUCKETS: usize = 16;
const FIRST_BUCKET_NANOS: u64 = 250_000;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram.
    Udp,
    /// A stream.
    Tcp,
}

/// Who answered, as the label `plugin` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// The server itself, for what reached no plugin.
    Server,
    /// `kubernetes`.
    Kubernetes,
    /// `cache`.
    Cache,
    /// `forward`.
    Forward,
    /// `whoami`.
    Whoami,
    /// `any`.
    Any,
    /// `acl`.
    Acl,
    /// `ratelimit`.
    RateLimit,
    /// `template`.
    Template,
    /// `hosts`.
    Hosts,
    /// `aaaa`.
    Aaaa,
}

impl Answerer {
    /// The plugin's name; empty for the server itself.
    #[must_use]
    pub fn name(self) -> &'static str {
        ANSWERERS[self as usize]
    }
}

const ANSWERERS: [&str; 11] = [
    "",
    "kubernetes",
    "cache",
    "forward",
    "whoami",
    "any",
    "acl",
    "ratelimit",
    "template",
    "hosts",
    "aaaa",
];

/// A histogram of durations with CoreDNS's buckets: 0.25 ms doubled 15 times.
#[derive(Debug, Default)]
pub struct Histogram {
    /// The last place counts what is longer than every bucket.
    buckets: [AtomicU64; BUCKETS + 1],
    sum_nanos: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        let nanos = duration.as_nanos() as u64;
        let bucket = (0..BUCKETS)
            .find(|bucket| nanos <= FIRST_BUCKET_NANOS << bucket)
            .unwrap_or(BUCKETS);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn add_to(&self, total: &mut HistogramTotal) {
        for (sum, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
        total.sum_nanos += self.sum_nanos.load(Ordering::Relaxed);
    }
}

#[derive(Default)]
struct HistogramTotal {
    buckets: [u64; BUCKETS + 1],
    sum_nanos: u64,
}

/// What happened to one query.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// The zone's place in the list that the [`Registry`] was made of.
    pub zone: usize,
    /// How it came.
    pub transport: Transport,
    /// The client's address is IPv6.
    pub is_v6: bool,
    /// Type asked for.
    pub qtype: u16,
    /// Code of the answer.
    pub code: u16,
    /// Who answered.
    pub answerer: Answerer,
    /// How long it took.
    pub duration: Duration,
}

#[derive(Debug, Default)]
struct ZoneCounters {
    /// By transport, family and type.
    requests: [[[AtomicU64; TYPES.len() + 1]; 2]; 2],
    /// By code and answerer.
    responses: [[AtomicU64; ANSWERERS.len()]; RCODES.len() + 1],
    durations: Histogram,
}

/// One thread's counters.
#[derive(Debug)]
pub struct Shard {
    /// By the zone's place in the [`Registry`]; made when the first query is counted.
    zones: Box<[OnceLock<Box<ZoneCounters>>]>,
    /// Queries that were dropped because too many wait for an upstream.
    pub overflow: AtomicU64,
    /// Packets that got no answer on purpose.
    pub ignored: AtomicU64,
    /// Queries that made their thread panic; it goes on with the next one.
    pub panics: AtomicU64,
}

impl Shard {
    fn zone(&self, index: usize) -> Option<&ZoneCounters> {
        self.zones.get(index)?.get().map(|zone| &**zone)
    }

    /// Counts a query.
    pub fn count(&self, event: &Event) {
        let Some(zone) = self.zones.get(event.zone) else {
            return;
        };
        let zone = zone.get_or_init(Box::default);
        let kind = TYPES
            .iter()
            .position(|(number, _)| *number == event.qtype)
            .unwrap_or(TYPES.len());
        let code = RCODES
            .iter()
            .position(|(number, _)| *number == event.code)
            .unwrap_or(RCODES.len());
        let transport = usize::from(event.transport == Transport::Tcp);
        zone.requests[transport][usize::from(event.is_v6)][kind].fetch_add(1, Ordering::Relaxed);
        zone.responses[code][event.answerer as usize].fetch_add(1, Ordering::Relaxed);
        zone.durations.record(event.duration);
    }
}

/// A zone and the server that it is served by, for labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneLabel {
    /// `dns://:53`.
    pub server: String,
    /// `cluster.local.`; `dropped` for names that no server block serves.
    pub zone: String,
}

/// All shards, and the labels of their zones. Zones come with configurations and never go, as series do.
#[derive(Debug)]
pub struct Registry {
    labels: Mutex<Vec<ZoneLabel>>,
    shards: Mutex<Vec<Arc<Shard>>>,
}

impl Registry {
    /// A registry for these zones.
    #[must_use]
    pub fn new(labels: Vec<ZoneLabel>) -> Self {
        Self {
            labels: Mutex::new(labels),
            shards: Mutex::default(),
        }
    }

    /// The place of a zone, which gets one where it has none. More than [`MAX_ZONES`] are not counted.
    #[must_use]
    pub fn zone(&self, label: ZoneLabel) -> usize {
        let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
        let known = labels.iter().position(|known| *known == label);
        known.unwrap_or_else(|| {
            labels.push(label);
            labels.len() - 1
        })
    }

    /// Counters for one more thread.
    #[must_use]
    pub fn shard(&self) -> Arc<Shard> {
        let shard = Arc::new(Shard {
            zones: (0..MAX_ZONES).map(|_| OnceLock::new()).collect(),
            overflow: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            panics: AtomicU64::new(0),
        });
        self.shards
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&shard));
        shard
    }

    /// Writes every counter of the serving threads.
    pub fn write(&self, text: &mut Exposition) {
        let shards = self.shards.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner).clone();
        write_requests(&labels, &shards, text);
        write_responses(&labels, &shards, text);
        let name = "coredns_dns_request_duration_seconds";
        text.family(
            name,
            "histogram",
            "Histogram of the time (in seconds) each request took per zone.",
        );
        for (index, label) in labels.iter().enumerate() {
            let mut total = HistogramTotal::default();
            for zone in shards.iter().filter_map(|shard| shard.zone(index)) {
                zone.durations.add_to(&mut total);
            }
            text.histogram(name, &label.to_string(), &total);
        }
        for (name, help, value) in [
            (
                "coredns_panics_total",
                "A metrics that counts the number of panics.",
                sum(&shards, |shard| &shard.panics),
            ),
            (
                "causeway_dns_overflow_total",
                "Queries dropped because too many wait for an upstream.",
                sum(&shards, |shard| &shard.overflow),
            ),
            (
                "causeway_dns_ignored_total",
                "Packets that got no answer because they are no queries.",
                sum(&shards, |shard| &shard.ignored),
            ),
        ] {
            text.family(name, "counter", help);
            text.sample(name, "", value as f64);
        }
    }
}

fn write_requests(labels: &[ZoneLabel], shards: &[Arc<Shard>], text: &mut Exposition) {
    let name = "coredns_dns_requests_total";
    text.family(
        name,
        "counter",
        "Counter of DNS requests made per zone, protocol and family.",
    );
    for (index, label) in labels.iter().enumerate() {
        for (transport, proto) in ["udp", "tcp"].into_iter().enumerate() {
            for (family, family_name) in ["1", "2"].into_iter().enumerate() {
                let kinds = TYPES.iter().map(|(_, name)| *name).chain(["other"]).enumerate();
                for (kind, kind_name) in kinds {
                    let value = zone_sum(shards, index, |zone| &zone.requests[transport][family][kind]);
                    let labels = format!(
                        "{},proto=\"{proto}\",family=\"{family_name}\",type=\"{kind_name}\"",
                        label
                    );
                    text.nonzero(name, &labels, value);
                }
            }
        }
    }
}

fn write_responses(labels: &[ZoneLabel], shards: &[Arc<Shard>], text: &mut Exposition) {
    let name = "coredns_dns_responses_total";
    text.family(name, "counter", "Counter of response status codes.");
    for (index, label) in labels.iter().enumerate() {
        for (code, code_name) in RCODES.iter().map(|(_, name)| *name).chain(["other"]).enumerate() {
            for (answerer, plugin) in ANSWERERS.iter().enumerate() {
                let value = zone_sum(shards, index, |zone| &zone.responses[code][answerer]);
                let labels = format!("{label},rcode=\"{code_name}\",plugin=\"{plugin}\"");
                text.nonzero(name, &labels, value);
            }
        }
    }
}

impl ZoneLabel {
    /// The label of a zone of a server block; of the root at port 53 where there is none.
    #[must_use]
    pub fn of(key: Option<&Key>) -> Self {
        let (port, zone) = key.map_or((53, Name::root()), |key| (key.port, key.zone.clone()));
        Self {
            server: format!("dns://:{port}"),
            zone: zone.to_string(),
        }
    }
}

impl fmt::Display for ZoneLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server=\"{}\",zone=\"{}\",view=\"\"", self.server, self.zone)
    }
}

fn zone_sum(shards: &[Arc<Shard>], zone: usize, counter: impl Fn(&ZoneCounters) -> &AtomicU64) -> u64 {
    let zones = shards.iter().filter_map(|shard| shard.zone(zone));
    zones.map(|zone| counter(zone).load(Ordering::Relaxed)).sum()
}

fn sum(shards: &[Arc<Shard>], counter: impl Fn(&Shard) -> &AtomicU64) -> u64 {
    shards
        .iter()
        .map(|shard| counter(shard).load(Ordering::Relaxed))
        .sum()
}

/// The text format of Prometheus, version 0.0.4.
#[derive(Debug, Default)]
pub struct Exposition {
    /// What was written so far.
    pub text: String,
}

impl Exposition {
    /// Begins a metric.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One value; `labels` without braces.
    pub fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        let _ = writeln!(self.text, "{name}{open}{labels}{close} {value}");
    }

    fn nonzero(&mut self, name: &str, labels: &str, value: u64) {
        if value > 0 {
            self.sample(name, labels, value as f64);
        }
    }

    /// One histogram under `labels`, which are not empty.
    pub fn durations(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let mut total = HistogramTotal::default();
        histogram.add_to(&mut total);
        self.histogram(name, labels, &total);
    }

    fn histogram(&mut self, name: &str, labels: &str, total: &HistogramTotal) {
        let mut count = 0;
        for (bucket, value) in total.buckets.iter().enumerate() {
            count += value;
            let bound = match bucket {
                BUCKETS => "+Inf".to_owned(),
                bucket => ((FIRST_BUCKET_NANOS << bucket) as f64 / 1e9).to_string(),
            };
            self.sample(
                &format!("{name}_bucket"),
                &format!("{labels},le=\"{bound}\""),
                count as f64,
            );
        }
        self.sample(&format!("{name}_sum"), labels, total.sum_nanos as f64 / 1e9);
        self.sample(&format!("{name}_count"), labels, count as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_add_up_under_corednss_names() {
        let label = ZoneLabel {
            server: "dns://:53".to_owned(),
            zone: "cluster.local.".to_owned(),
        };
        let registry = Registry::new(vec![label]);
        let event = Event {
            zone: 0,
            transport: Transport::Udp,
            is_v6: false,
            qtype: 1,
            code: rcode::NXDOMAIN,
            answerer: Answerer::Kubernetes,
            duration: Duration::from_micros(300),
        };
        registry.shard().count(&event);
        let second = registry.shard();
        second.count(&event);
        second.count(&Event {
            transport: Transport::Tcp,
            is_v6: true,
            qtype: 999,
            ..event
        });
        let mut exposition = Exposition::default();
        registry.write(&mut exposition);
        let zone = r#"server="dns://:53",zone="cluster.local.",view="""#;
        for expected in [
            format!("coredns_dns_requests_total{{{zone},proto=\"udp\",family=\"1\",type=\"A\"}} 2"),
            format!("coredns_dns_requests_total{{{zone},proto=\"tcp\",family=\"2\",type=\"other\"}} 1"),
            format!("coredns_dns_responses_total{{{zone},rcode=\"NXDOMAIN\",plugin=\"kubernetes\"}} 3"),
            format!("coredns_dns_request_duration_seconds_bucket{{{zone},le=\"0.00025\"}} 0"),
            format!("coredns_dns_request_duration_seconds_bucket{{{zone},le=\"0.0005\"}} 3"),
            format!("coredns_dns_request_duration_seconds_count{{{zone}}} 3"),
        ] {
            assert!(
                exposition.text.lines().any(|line| line == expected),
                "{expected}\n{}",
                exposition.text
            );
        }
    }
}

//! Counters under CoreDNS's names, and the text that Prometheus reads.
//!
//! Each serving thread counts in a [`Shard`] of its own, so that no two write to the same memory; a scrape adds the
//! shards up.

use std::fmt::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::corefile::{Key, Scheme};
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
/// The most bounds that a scale has.
const MAX_BOUNDS: usize = 20;

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

/// Where a histogram's buckets end, and how many of its numbers make one of what is shown.
#[derive(Debug)]
pub struct Scale {
    bounds: &'static [u64],
    per_shown: f64,
}

/// What queries and upstreams take, in nanoseconds: 0.25 ms doubled 15 times, as CoreDNS's.
static DURATIONS: Scale = Scale {
    bounds: &doubled::<16>(250_000),
    per_shown: 1e9,
};
/// What few and coarse questions take: CoreDNS's `SlimTimeBuckets`.
static SLIM_DURATIONS: Scale = Scale {
    bounds: &[250_000, 2_500_000, 25_000_000, 250_000_000, 2_500_000_000],
    per_shown: 1e9,
};
/// How long changes of the cluster take to be answered: 1 ms doubled 19 times, as CoreDNS's.
static CHANGES: Scale = Scale {
    bounds: &doubled::<20>(1_000_000),
    per_shown: 1e9,
};
/// Bytes of a packet: CoreDNS's.
static SIZES: Scale = Scale {
    bounds: &[
        0, 100, 200, 300, 400, 511, 1023, 2047, 4095, 8291, 16_000, 32_000, 48_000, 64_000,
    ],
    per_shown: 1.0,
};

const fn doubled<const BOUNDS: usize>(first: u64) -> [u64; BOUNDS] {
    let mut bounds = [0; BOUNDS];
    let mut bound = 0;
    while bound < BOUNDS {
        bounds[bound] = first << bound;
        bound += 1;
    }
    bounds
}

/// How many numbers lie below each bound of a scale. Default: durations of queries.
#[derive(Debug)]
pub struct Histogram {
    scale: &'static Scale,
    /// Behind those of the scale's bounds, one for what is beyond all of them.
    buckets: [AtomicU64; MAX_BOUNDS + 1],
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::of(&DURATIONS)
    }
}

impl Histogram {
    fn of(scale: &'static Scale) -> Self {
        Self {
            scale,
            buckets: Default::default(),
            sum: AtomicU64::new(0),
        }
    }

    /// A histogram of durations that few buckets are enough for.
    #[must_use]
    pub fn slim() -> Self {
        Self::of(&SLIM_DURATIONS)
    }

    /// A histogram of how long changes of the cluster take.
    #[must_use]
    pub fn of_changes() -> Self {
        Self::of(&CHANGES)
    }

    /// Counts one duration.
    pub fn record(&self, duration: Duration) {
        self.add(duration.as_nanos() as u64);
    }

    fn add(&self, number: u64) {
        let bounds = self.scale.bounds;
        let bucket = bounds.iter().position(|bound| number <= *bound);
        self.buckets[bucket.unwrap_or(bounds.len())].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(number, Ordering::Relaxed);
    }

    fn add_to(&self, total: &mut HistogramTotal) {
        total.scale = Some(self.scale);
        for (sum, bucket) in total.buckets.iter_mut().zip(&self.buckets) {
            *sum += bucket.load(Ordering::Relaxed);
        }
        total.sum += self.sum.load(Ordering::Relaxed);
    }
}

/// Histograms of one scale, added up.
#[derive(Default)]
struct HistogramTotal {
    scale: Option<&'static Scale>,
    buckets: [u64; MAX_BOUNDS + 1],
    sum: u64,
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
    /// How many bytes were asked with, and answered with.
    pub bytes: (usize, usize),
}

#[derive(Debug)]
struct ZoneCounters {
    /// By transport, family and type.
    requests: [[[AtomicU64; TYPES.len() + 1]; 2]; 2],
    /// By code and answerer.
    responses: [[AtomicU64; ANSWERERS.len()]; RCODES.len() + 1],
    durations: Histogram,
    /// By transport.
    request_sizes: [Histogram; 2],
    response_sizes: [Histogram; 2],
}

impl Default for ZoneCounters {
    fn default() -> Self {
        let sizes = || [Histogram::of(&SIZES), Histogram::of(&SIZES)];
        Self {
            requests: Default::default(),
            responses: Default::default(),
            durations: Histogram::default(),
            request_sizes: sizes(),
            response_sizes: sizes(),
        }
    }
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
    /// Connections that were closed because their client has its share.
    pub refused_connections: AtomicU64,
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
        let (asked, answered) = event.bytes;
        zone.request_sizes[transport].add(asked as u64);
        zone.response_sizes[transport].add(answered as u64);
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
            refused_connections: AtomicU64::new(0),
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
        write_durations(&labels, &shards, text);
        write_sizes(&labels, &shards, text);
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
            (
                "causeway_dns_refused_connections_total",
                "Connections closed because their client has its share of them.",
                sum(&shards, |shard| &shard.refused_connections),
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

fn write_durations(labels: &[ZoneLabel], shards: &[Arc<Shard>], text: &mut Exposition) {
    let name = "coredns_dns_request_duration_seconds";
    text.family(
        name,
        "histogram",
        "Histogram of the time (in seconds) each request took per zone.",
    );
    for (index, label) in labels.iter().enumerate() {
        let zones = shards.iter().filter_map(|shard| shard.zone(index));
        text.histograms(name, &label.to_string(), zones.map(|zone| &zone.durations));
    }
}

fn write_sizes(labels: &[ZoneLabel], shards: &[Arc<Shard>], text: &mut Exposition) {
    type Sizes = fn(&ZoneCounters) -> &[Histogram; 2];
    let families: [(&str, &str, Sizes); 2] = [
        (
            "coredns_dns_request_size_bytes",
            "Size of the request in bytes, per zone and protocol.",
            |zone| &zone.request_sizes,
        ),
        (
            "coredns_dns_response_size_bytes",
            "Size of the response in bytes, per zone and protocol.",
            |zone| &zone.response_sizes,
        ),
    ];
    for (name, help, sizes) in families {
        text.family(name, "histogram", help);
        for (index, label) in labels.iter().enumerate() {
            for (transport, proto) in ["udp", "tcp"].into_iter().enumerate() {
                let zones = shards.iter().filter_map(|shard| shard.zone(index));
                let labels = format!("{label},proto=\"{proto}\"");
                text.histograms(name, &labels, zones.map(|zone| &sizes(zone)[transport]));
            }
        }
    }
}

impl ZoneLabel {
    /// The label of a zone of a server block; of the root at port 53 where there is none.
    #[must_use]
    pub fn of(key: Option<&Key>) -> Self {
        let (scheme, port, zone) = key.map_or((Scheme::Dns, 53, Name::root()), |key| {
            (key.scheme, key.port, key.zone.clone())
        });
        Self {
            server: format!("{}://:{port}", scheme.name()),
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

    /// One histogram under `labels`.
    pub fn durations(&mut self, name: &str, labels: &str, histogram: &Histogram) {
        let mut total = HistogramTotal::default();
        histogram.add_to(&mut total);
        self.histogram(name, labels, &total);
    }

    /// The sum of histograms of one scale; nothing where nothing was counted.
    pub fn histograms<'h>(
        &mut self,
        name: &str,
        labels: &str,
        histograms: impl Iterator<Item = &'h Histogram>,
    ) {
        let mut total = HistogramTotal::default();
        histograms.for_each(|histogram| histogram.add_to(&mut total));
        if total.buckets.iter().any(|count| *count > 0) {
            self.histogram(name, labels, &total);
        }
    }

    fn histogram(&mut self, name: &str, labels: &str, total: &HistogramTotal) {
        let Some(Scale { bounds, per_shown }) = total.scale else {
            return;
        };
        let comma = if labels.is_empty() { "" } else { "," };
        let bucket_name = format!("{name}_bucket");
        let mut count = 0;
        for (bucket, value) in total.buckets[..=bounds.len()].iter().enumerate() {
            count += value;
            let bound = bounds.get(bucket).map(|bound| *bound as f64 / per_shown);
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            let labels = format!("{labels}{comma}le=\"{bound}\"");
            self.sample(&bucket_name, &labels, count as f64);
        }
        self.sample(&format!("{name}_sum"), labels, total.sum as f64 / per_shown);
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
            bytes: (40, 600),
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
            format!("coredns_dns_request_size_bytes_bucket{{{zone},proto=\"udp\",le=\"0\"}} 0"),
            format!("coredns_dns_request_size_bytes_bucket{{{zone},proto=\"udp\",le=\"100\"}} 2"),
            format!("coredns_dns_request_size_bytes_sum{{{zone},proto=\"udp\"}} 80"),
            format!("coredns_dns_response_size_bytes_bucket{{{zone},proto=\"tcp\",le=\"511\"}} 0"),
            format!("coredns_dns_response_size_bytes_bucket{{{zone},proto=\"tcp\",le=\"1023\"}} 1"),
            format!("coredns_dns_response_size_bytes_bucket{{{zone},proto=\"tcp\",le=\"64000\"}} 1"),
            format!("coredns_dns_response_size_bytes_bucket{{{zone},proto=\"tcp\",le=\"+Inf\"}} 1"),
        ] {
            assert!(
                exposition.text.lines().any(|line| line == expected),
                "{expected}\n{}",
                exposition.text
            );
        }
    }
}

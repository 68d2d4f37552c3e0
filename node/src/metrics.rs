//! Metrics in Prometheus' text form. Names that kube-proxy has mean what they mean there.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper limits of a histogram of syncs, in seconds: 1 ms doubled up to 16 s, kube-proxy's.
const SYNC_LIMITS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// How long something took, each time.
#[derive(Debug)]
pub struct Durations {
    /// Upper limits, in seconds.
    limits: Vec<f64>,
    /// Durations up to each limit, and not up to the one before; the last beyond all limits.
    counts: Vec<AtomicU64>,
    total_micros: AtomicU64,
}

/// Upper limits of a histogram of requests, in seconds: client-go's.
const REQUEST_LIMITS: [f64; 12] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];

impl Durations {
    /// For requests to the API server.
    #[must_use]
    pub fn of_requests() -> Self {
        Self::with_limits(REQUEST_LIMITS.to_vec())
    }

    /// For what takes milliseconds to seconds.
    #[must_use]
    pub fn of_syncs() -> Self {
        Self::with_limits(SYNC_LIMITS.to_vec())
    }

    /// For what takes up to minutes; kube-proxy's limits for network programming: 0.25 s and 0.5 s, each second of the
    /// first minute, then every 5 s up to two minutes, and every 30 s up to five.
    #[must_use]
    pub fn of_network_programming() -> Self {
        let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
        let limits = [0.25, 0.5].into_iter().chain(seconds.map(f64::from));
        Self::with_limits(limits.collect())
    }

    fn with_limits(limits: Vec<f64>) -> Self {
        Self {
            counts: (0..=limits.len()).map(|_| AtomicU64::new(0)).collect(),
            limits,
            total_micros: AtomicU64::new(0),
        }
    }

    /// Takes one.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let slot = self.limits.partition_point(|limit| *limit < seconds);
        if let Some(count) = self.counts.get(slot) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.total_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

/// A moment, or never.
#[derive(Debug, Default)]
pub struct Moment {
    unix_millis: AtomicU64,
}

impl Moment {
    /// Sets it to now.
    pub fn set_now(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        self.unix_millis.store(millis, Ordering::Relaxed);
    }

    /// Seconds since 1970, 0 for never.
    #[must_use]
    pub fn unix_seconds(&self) -> f64 {
        Duration::from_millis(self.unix_millis.load(Ordering::Relaxed)).as_secs_f64()
    }
}

/// Counters of one family by their labels.
#[derive(Debug, Default)]
pub struct Counters {
    by_labels: Mutex<BTreeMap<String, u64>>,
}

impl Counters {
    /// Adds one to the counter with these labels, written `{a="b"}`; see [`labels`].
    pub fn add(&self, labels: String) {
        let mut counters = self.by_labels.lock().unwrap_or_else(PoisonError::into_inner);
        *counters.entry(labels).or_default() += 1;
    }
}

/// Labels in text form: `{kind="Service"}`, empty for none.
#[must_use]
pub fn labels(pairs: &[(&str, &str)]) -> String {
    if pairs.is_empty() {
        return String::new();
    }
    let escaped = |value: &str| {
        value
            .replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    format!("{{{}}}", pairs.join(","))
}

/// A page of metrics that is being written.
#[derive(Debug, Default)]
pub struct Page {
    text: String,
}

impl Page {
    /// A family of counters; each sample has labels and a value.
    pub fn counters(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, u64)>) {
        self.head(name, "counter", help);
        for (labels, value) in samples {
            self.line(format_args!("{name}{labels} {value}"));
        }
    }

    /// A family of counters that counts itself.
    pub fn counted(&mut self, name: &str, help: &str, counters: &Counters) {
        let samples = counters
            .by_labels
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.counters(name, help, samples);
    }

    /// A family of gauges.
    pub fn gauges(&mut self, name: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        self.head(name, "gauge", help);
        for (labels, value) in samples {
            self.line(format_args!("{name}{labels} {value}"));
        }
    }

    /// What this process takes of the machine.
    pub fn process(&mut self) {
        for metric in dns::process::metrics() {
            self.head(metric.name, metric.kind, metric.help);
            self.line(format_args!("{} {}", metric.name, metric.value));
        }
    }

    /// A family of histograms of durations, in seconds; each has labels.
    pub fn durations<'a>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl IntoIterator<Item = (Vec<(&'a str, &'a str)>, &'a Durations)>,
    ) {
        self.head(name, "histogram", help);
        for (pairs, durations) in histograms {
            let mut count = 0;
            let limits = durations.limits.iter().map(ToString::to_string);
            for (limit, slot) in limits.chain(["+Inf".to_owned()]).zip(&durations.counts) {
                count += slot.load(Ordering::Relaxed);
                let labels = labels(&[pairs.as_slice(), &[("le", &limit)]].concat());
                self.line(format_args!("{name}_bucket{labels} {count}"));
            }
            let labels = labels(&pairs);
            let total = Duration::from_micros(durations.total_micros.load(Ordering::Relaxed));
            self.line(format_args!("{name}_sum{labels} {}", total.as_secs_f64()));
            self.line(format_args!("{name}_count{labels} {count}"));
        }
    }

    /// The page.
    #[must_use]
    pub fn into_text(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.text, "{line}").expect("invariant: writing to a String does not fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_prometheus_text() {
        let durations = Durations::of_syncs();
        durations.observe(Duration::from_micros(1500));
        durations.observe(Duration::from_secs(60));
        let counters = Counters::default();
        counters.add(labels(&[("code", "200")]));
        counters.add(labels(&[("code", "200")]));
        let mut page = Page::default();
        page.counted("c_total", "Counts.", &counters);
        page.gauges(
            "g",
            "Goes.",
            [(labels(&[("name", "a\"b\\c\nd")]), 1.5), (labels(&[]), 2.0)],
        );
        page.durations("d", "Takes.", [(vec![("of", "a")], &durations)]);
        let text = page.into_text();
        let expected_start = "# HELP c_total Counts.\n# TYPE c_total counter\nc_total{code=\"200\"} 2\n\
                              # HELP g Goes.\n# TYPE g gauge\ng{name=\"a\\\"b\\\\c\\nd\"} 1.5\ng 2\n\
                              # HELP d Takes.\n# TYPE d histogram\n\
                              d_bucket{of=\"a\",le=\"0.001\"} 0\nd_bucket{of=\"a\",le=\"0.002\"} 1\n";
        assert!(text.starts_with(expected_start), "{text}");
        let expected_end = "d_bucket{of=\"a\",le=\"16.384\"} 1\nd_bucket{of=\"a\",le=\"+Inf\"} 2\n\
                            d_sum{of=\"a\"} 60.0015\nd_count{of=\"a\"} 2\n";
        assert!(text.ends_with(expected_end), "{text}");
    }

    #[test]
    fn network_programming_is_counted_in_kube_proxys_buckets() {
        let durations = Durations::of_network_programming();
        let limits = &durations.limits;
        assert_eq!(limits.len(), 2 + 59 + 12 + 7);
        assert_eq!(limits.get(..4), Some(&[0.25, 0.5, 1.0, 2.0][..]));
        assert_eq!(limits.get(59..63), Some(&[58.0, 59.0, 60.0, 65.0][..]));
        assert_eq!(
            limits.get(72..),
            Some(&[115.0, 120.0, 150.0, 180.0, 210.0, 240.0, 270.0, 300.0][..])
        );
        assert!(limits.is_sorted());
        // A limit is part of its bucket.
        for (millis, slot) in [(0, 0), (250, 0), (251, 1), (300_000, 79), (300_001, 80)] {
            durations.observe(Duration::from_millis(millis));
            let count = durations
                .counts
                .get(slot)
                .map(|count| count.swap(0, Ordering::Relaxed));
            assert!(
                count.is_some_and(|count| count > 0),
                "{millis} ms is not in bucket {slot}"
            );
        }
    }
}

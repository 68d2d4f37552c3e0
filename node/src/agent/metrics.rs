//! Metrics in Prometheus' text form. Names that kube-proxy has mean what they mean there.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper limits of a duration histogram, in seconds: 1 ms doubled fifteen times, kube-proxy's.
const LIMITS: [f64; 15] = [
    0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192, 16.384,
];

/// How long something took, each time.
#[derive(Debug, Default)]
pub struct Durations {
    /// Durations up to each limit, and not up to the one before.
    counts: [AtomicU64; LIMITS.len() + 1],
    total_micros: AtomicU64,
}

impl Durations {
    /// Takes one.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let slot = LIMITS
            .iter()
            .position(|limit| seconds <= *limit)
            .unwrap_or(LIMITS.len());
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

    /// One histogram of durations, in seconds.
    pub fn durations(&mut self, name: &str, help: &str, durations: &Durations) {
        self.head(name, "histogram", help);
        let mut count = 0;
        let limits = LIMITS.iter().map(ToString::to_string).chain(["+Inf".to_owned()]);
        for (limit, slot) in limits.zip(&durations.counts) {
            count += slot.load(Ordering::Relaxed);
            self.line(format_args!("{name}_bucket{{le=\"{limit}\"}} {count}"));
        }
        let total = Duration::from_micros(durations.total_micros.load(Ordering::Relaxed));
        self.line(format_args!("{name}_sum {}", total.as_secs_f64()));
        self.line(format_args!("{name}_count {count}"));
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
        let durations = Durations::default();
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
        page.durations("d", "Takes.", &durations);
        let text = page.into_text();
        let expected_start = "# HELP c_total Counts.\n# TYPE c_total counter\nc_total{code=\"200\"} 2\n\
                              # HELP g Goes.\n# TYPE g gauge\ng{name=\"a\\\"b\\\\c\\nd\"} 1.5\ng 2\n\
                              # HELP d Takes.\n# TYPE d histogram\n\
                              d_bucket{le=\"0.001\"} 0\nd_bucket{le=\"0.002\"} 1\n";
        assert!(text.starts_with(expected_start), "{text}");
        assert!(
            text.ends_with("d_bucket{le=\"16.384\"} 1\nd_bucket{le=\"+Inf\"} 2\nd_sum 60.0015\nd_count 2\n"),
            "{text}"
        );
    }
}

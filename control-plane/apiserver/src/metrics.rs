//! What nodes and pods use, for `kubectl top` (`metrics.k8s.io/v1beta1`, as metrics-server serves it): looks at the
//! kubelets' `/metrics/resource`, the last two of each node, and the rates between them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::object;

/// Group and version.
pub const GROUP_VERSION: (&str, &str) = ("metrics.k8s.io", "v1beta1");

/// How often the kubelets are asked: what metrics-server's own manifest says (`--metric-resolution`).
pub const PERIOD: Duration = Duration::from_secs(15);

/// A container younger than this tells no rate yet (metrics-server's `freshContainerMinMetricsResolution`).
const YOUNGEST: f64 = 10.0;

/// CPU time and memory of something at a time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Sample {
    /// Seconds since 1970.
    at_s: f64,
    cpu_s: f64,
    memory_bytes: f64,
    /// Seconds since 1970; 0 = not known.
    started_s: f64,
}

/// A rate of CPU time, and the memory at its end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Used {
    /// Thousandths of a millionth of a CPU.
    nanocores: u64,
    /// Working set.
    memory_bytes: u64,
    /// Seconds since 1970.
    at_s: f64,
    window_s: f64,
}

/// Namespace, pod, container.
type Container = (String, String, String);

/// One answer of a kubelet.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Look {
    node: Sample,
    containers: BTreeMap<Container, Sample>,
}

/// The last two answers of one kubelet.
#[derive(Debug, Clone, PartialEq, Default)]
struct Looks {
    before: Option<Look>,
    latest: Look,
}

/// Of all nodes that answered when they were asked last.
#[derive(Debug)]
pub struct Figures {
    nodes: watch::Sender<BTreeMap<String, Looks>>,
}

impl Default for Figures {
    fn default() -> Self {
        Figures {
            nodes: watch::Sender::new(BTreeMap::new()),
        }
    }
}

impl Figures {
    /// Takes the answers of one round; whoever did not answer is forgotten.
    pub fn take(&self, answers: BTreeMap<String, Look>) {
        self.nodes.send_modify(|nodes| {
            let known = std::mem::take(nodes);
            *nodes = answers
                .into_iter()
                .map(|(name, latest)| {
                    let before = known.get(&name).map(|looks| looks.latest.clone());
                    (name, Looks { before, latest })
                })
                .collect();
        });
    }

    /// What a node uses.
    pub fn node(&self, name: &str) -> Option<Used> {
        let nodes = self.nodes.borrow();
        let looks = nodes.get(name)?;
        used(&looks.latest.node, Some(&looks.before.as_ref()?.node))
    }

    /// What a pod's containers use, by their names; nothing while one of them has no rate yet.
    pub fn pod(&self, node: &str, namespace: &str, name: &str) -> Option<BTreeMap<String, Used>> {
        let nodes = self.nodes.borrow();
        let looks = nodes.get(node)?;
        let first = (namespace.to_owned(), name.to_owned(), String::new());
        let of_pod = looks.latest.containers.range(first..);
        let of_pod =
            of_pod.take_while(|((in_namespace, pod, _), _)| in_namespace == namespace && pod == name);
        let containers: Option<BTreeMap<String, Used>> = of_pod
            .map(|(key, sample)| {
                let before = looks
                    .before
                    .as_ref()
                    .and_then(|before| before.containers.get(key));
                Some((key.2.clone(), used(sample, before)?))
            })
            .collect();
        containers.filter(|containers| !containers.is_empty())
    }
}

/// The rate since the sample before; since its start where there is none and it started lately.
fn used(sample: &Sample, before: Option<&Sample>) -> Option<Used> {
    let since_start = || {
        let age = sample.at_s - sample.started_s;
        let fresh = (YOUNGEST..=PERIOD.as_secs_f64()).contains(&age);
        fresh.then_some((sample.started_s, 0.0))
    };
    let continued = before.filter(|before| before.cpu_s <= sample.cpu_s && before.at_s < sample.at_s);
    let (from_s, cpu_s) = match continued {
        Some(before) => (before.at_s, before.cpu_s),
        None => since_start()?,
    };
    let window_s = sample.at_s - from_s;
    Some(Used {
        nanocores: ((sample.cpu_s - cpu_s) / window_s * 1e9).round() as u64,
        memory_bytes: sample.memory_bytes as u64,
        at_s: sample.at_s,
        window_s,
    })
}

impl Used {
    fn usage(&self) -> Value {
        json!({
            "cpu": format!("{}n", self.nanocores),
            "memory": format!("{}Ki", self.memory_bytes / 1024),
        })
    }

    fn time(&self) -> Value {
        object::time(Timestamp::from_second(self.at_s as i64).unwrap_or_default())
    }
}

/// `NodeMetrics`.
pub fn node_metrics(node: &Value, used: &Used, now: Timestamp) -> Value {
    json!({
        "kind": "NodeMetrics", "apiVersion": object::api_version(GROUP_VERSION.0, GROUP_VERSION.1),
        "metadata": metadata(node, now), "timestamp": used.time(), "window": window(used), "usage": used.usage(),
    })
}

/// `PodMetrics`; time and window are those of the container that was looked at first.
pub fn pod_metrics(pod: &Value, containers: &BTreeMap<String, Used>, now: Timestamp) -> Option<Value> {
    let first = containers.values().min_by(|a, b| a.at_s.total_cmp(&b.at_s))?;
    let usage = containers
        .iter()
        .map(|(name, used)| json!({ "name": name, "usage": used.usage() }));
    Some(json!({
        "kind": "PodMetrics", "apiVersion": object::api_version(GROUP_VERSION.0, GROUP_VERSION.1),
        "metadata": metadata(pod, now), "timestamp": first.time(), "window": window(first),
        "containers": usage.collect::<Vec<_>>(),
    }))
}

fn metadata(of: &Value, now: Timestamp) -> Value {
    let mut metadata = json!({ "name": object::name(of), "creationTimestamp": object::time(now) });
    for field in ["namespace", "labels"] {
        object::copy_field(&of["metadata"], &mut metadata, field);
    }
    metadata
}

/// As Go writes a duration.
fn window(used: &Used) -> Value {
    format!("{:.3}s", used.window_s).into()
}

/// Reads a kubelet's answer, of which only some lines matter. A line that cannot be read is passed over.
pub fn parse(text: &str) -> Look {
    let mut look = Look::default();
    for row in text.lines().filter_map(Row::parse) {
        let (sample, what) = match row.name.split_once('_') {
            Some(("node", what)) => (&mut look.node, what),
            Some(("container", what)) => {
                let key = (row.label("namespace"), row.label("pod"), row.label("container"));
                (look.containers.entry(key).or_default(), what)
            }
            _ => continue,
        };
        match what {
            "cpu_usage_seconds_total" => (sample.cpu_s, sample.at_s) = (row.value, row.at_s),
            "memory_working_set_bytes" => sample.memory_bytes = row.value,
            "start_time_seconds" => sample.started_s = row.value,
            _ => {}
        }
    }
    // Without a count of CPU time there is no rate.
    look.containers.retain(|_, sample| sample.at_s > 0.0);
    look
}

/// `name{label="value",…} value milliseconds` (Prometheus' text format). Values of labels here are names of objects,
/// which have neither quotes nor commas.
struct Row<'a> {
    name: &'a str,
    labels: &'a str,
    value: f64,
    at_s: f64,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (head, rest) = match line.split_once('}') {
            Some(parts) => parts,
            None => line.split_once(' ')?,
        };
        let (name, labels) = head.split_once('{').unwrap_or((head, ""));
        let mut numbers = rest.split_whitespace();
        let value: f64 = numbers.next()?.parse().ok()?;
        let millis: f64 = numbers.next()?.parse().ok()?;
        let sound = !name.starts_with('#') && value.is_finite() && value >= 0.0 && millis.is_finite();
        sound.then_some(Row {
            name,
            labels,
            value,
            at_s: millis / 1000.0,
        })
    }

    fn label(&self, name: &str) -> String {
        let mut labels = self.labels.split(',').filter_map(|label| label.split_once('='));
        let value = labels.find(|(key, _)| *key == name).map(|(_, value)| value);
        value.unwrap_or_default().trim_matches('"').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "# HELP node_cpu_usage_seconds_total [STABLE] x\n\
        container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"} 1.5 100000\n\
        container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"p\"} 2.048e+03 100000\n\
        container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"p\"} 88 100000\n\
        container_memory_working_set_bytes{container=\"d\",namespace=\"ns\",pod=\"p\"} 1 100000\n\
        node_cpu_usage_seconds_total 10 100000\nnode_memory_working_set_bytes 4096 100000\n\
        node_cpu_usage_seconds_total NaN 100000\nnode_memory_working_set_bytes\nbroken} x\n";

    fn one(name: &str, look: Look) -> BTreeMap<String, Look> {
        BTreeMap::from([(name.to_owned(), look)])
    }

    #[test]
    fn lines_that_can_be_read_become_samples() {
        let sample = |cpu_s, memory_bytes, started_s| Sample {
            at_s: 100.0,
            cpu_s,
            memory_bytes,
            started_s,
        };
        let key = ("ns".to_owned(), "p".to_owned(), "c".to_owned());
        let expected = Look {
            node: sample(10.0, 4096.0, 0.0),
            containers: BTreeMap::from([(key, sample(1.5, 2048.0, 88.0))]),
        };
        assert_eq!(parse(BOTH), expected);
    }

    #[test]
    fn a_rate_takes_two_looks_or_a_start_a_moment_ago() {
        let at = |at_s, cpu_s| Sample {
            at_s,
            cpu_s,
            memory_bytes: 1024.0,
            started_s: 88.0,
        };
        for (sample, before, expected) in [
            (at(100.0, 1.5), Some(at(90.0, 0.5)), Some((100_000_000, 10.0))),
            // Counted anew, and not younger than a period.
            (at(110.0, 1.0), Some(at(100.0, 1.5)), None),
            (at(100.0, 1.2), Some(at(90.0, 1.5)), Some((100_000_000, 12.0))),
            (at(100.0, 1.2), None, Some((100_000_000, 12.0))),
            (at(97.0, 1.2), None, None),
            (at(104.0, 1.2), None, None),
            (at(100.0, 1.5), Some(at(100.0, 1.5)), Some((125_000_000, 12.0))),
        ] {
            let seen = used(&sample, before.as_ref()).map(|used| (used.nanocores, used.window_s));
            assert_eq!(seen, expected, "{sample:?} {before:?}");
        }
    }

    #[test]
    fn a_node_that_is_away_is_left_out_until_it_was_looked_at_twice() {
        let figures = Figures::default();
        let look = |at_s: f64, cpu_s: f64| {
            let mut look = parse(BOTH);
            look.node = Sample {
                at_s,
                cpu_s,
                ..look.node
            };
            one("n", look)
        };
        let mut seen = Vec::new();
        for answers in [
            look(100.0, 1.0),
            look(110.0, 3.0),
            BTreeMap::new(),
            look(130.0, 4.0),
            look(140.0, 4.5),
        ] {
            figures.take(answers);
            seen.push(figures.node("n").map(|used| used.nanocores));
        }
        assert_eq!(seen, [None, Some(200_000_000), None, None, Some(50_000_000)]);
        assert_eq!(figures.pod("n", "ns", "other"), None);
        assert_eq!(figures.pod("other", "ns", "p"), None);
    }

    #[test]
    fn objects_are_those_of_metrics_server() {
        let figures = Figures::default();
        figures.take(one("n", parse(BOTH)));
        let containers = figures.pod("n", "ns", "p").expect("it started a moment ago");
        let pod =
            json!({ "metadata": { "name": "p", "namespace": "ns", "uid": "u", "labels": { "a": "b" } } });
        let expected = json!({
            "kind": "PodMetrics", "apiVersion": "metrics.k8s.io/v1beta1",
            "metadata": {
                "name": "p", "namespace": "ns", "labels": { "a": "b" }, "creationTimestamp": "1970-01-01T00:03:20Z",
            },
            "timestamp": "1970-01-01T00:01:40Z", "window": "12.000s",
            "containers": [{ "name": "c", "usage": { "cpu": "125000000n", "memory": "2Ki" } }],
        });
        let now = Timestamp::from_second(200).expect("in range");
        assert_eq!(pod_metrics(&pod, &containers, now), Some(expected));
    }
}

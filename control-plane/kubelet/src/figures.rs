//! What the node, its pods and their containers use of CPU and memory, read from their cgroups when somebody asks:
//! `/metrics/resource` as Prometheus reads it, `/stats/summary` as JSON, under upstream's names.
//!
//! cgroups count CPU time; a rate takes two looks. The look before the one that is asked for is kept, and is at least
//! [`SHORTEST_WINDOW`] old.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::get;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use serde_json::{Value, json};

use crate::board::Board;
use crate::cgroup::{Cgroup, Usage};
use crate::config::Config;
use crate::disk::DiskError;

/// cAdvisor's `--housekeeping-interval`: over less time a rate says little.
const SHORTEST_WINDOW: Duration = Duration::from_secs(10);

/// A container that runs.
#[derive(Clone, Debug, PartialEq)]
struct ContainerLook {
    name: String,
    started_at: Option<Timestamp>,
    usage: Usage,
}

/// A pod of which something runs.
#[derive(Clone, Debug, PartialEq)]
struct PodLook {
    namespace: String,
    name: String,
    uid: String,
    started_at: Option<Timestamp>,
    /// Of all its containers, also those that have ended.
    usage: Usage,
    containers: Vec<ContainerLook>,
}

/// All that was read at a time.
#[derive(Clone, Debug, PartialEq)]
struct Look {
    at: Timestamp,
    node: Usage,
    pods: Vec<PodLook>,
}

/// Looks that are remembered for rates.
#[derive(Debug, Default)]
struct Memory {
    before: Option<Arc<Look>>,
    latest: Option<Arc<Look>>,
}

impl Memory {
    /// Takes a look, and says which earlier one rates are to be taken from.
    fn take(&mut self, look: &Arc<Look>) -> Option<Arc<Look>> {
        let age =
            |known: &Arc<Look>| Duration::try_from(look.at.duration_since(known.at)).unwrap_or_default();
        if self
            .latest
            .as_ref()
            .is_none_or(|latest| age(latest) >= SHORTEST_WINDOW)
        {
            self.before = self.latest.replace(Arc::clone(look));
        }
        self.before.clone()
    }
}

/// The figures of one node.
#[derive(Clone, Debug)]
pub struct Figures {
    config: Arc<Config>,
    board: Board,
    memory: Arc<Mutex<Memory>>,
}

impl Figures {
    /// Of the pods on the board.
    pub fn new(config: Arc<Config>, board: Board) -> Self {
        Self {
            config,
            board,
            memory: Arc::default(),
        }
    }

    /// A look and the one before it. Reads files: not for a thread that must not block.
    fn look(&self) -> Result<(Arc<Look>, Option<Arc<Look>>), DiskError> {
        let node = Cgroup::at(&self.config.cgroup)?;
        let mut pods = Vec::new();
        for entry in self.board.subscribe().borrow().values() {
            let uid = entry.pod.metadata.uid.clone().unwrap_or_default();
            let cgroup = Cgroup::at(&self.config.pods_cgroup().join(&uid))?;
            let running = entry.containers.iter().filter(|(_, logs)| logs.running);
            let containers = running.filter_map(|(name, _)| {
                Some(ContainerLook {
                    name: name.clone(),
                    started_at: started_at(&entry.pod, name),
                    usage: cgroup.child(name).usage()?,
                })
            });
            let containers: Vec<ContainerLook> = containers.collect();
            if let Some(usage) = cgroup.usage().filter(|_| !containers.is_empty()) {
                pods.push(PodLook {
                    namespace: entry.pod.metadata.namespace.clone().unwrap_or_default(),
                    name: entry.pod.metadata.name.clone().unwrap_or_default(),
                    uid,
                    started_at: entry
                        .pod
                        .status
                        .as_ref()
                        .and_then(|status| Some(status.start_time.as_ref()?.0)),
                    usage,
                    containers,
                });
            }
        }
        let look = Arc::new(Look {
            at: Timestamp::now(),
            node: of_node(&node),
            pods,
        });
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let before = memory.take(&look);
        Ok((look, before))
    }

    async fn look_aside(&self) -> Result<(Arc<Look>, Option<Arc<Look>>), Response> {
        let own = self.clone();
        let look = tokio::task::spawn_blocking(move || own.look()).await;
        let failed = |text: String| (StatusCode::INTERNAL_SERVER_ERROR, text + "\n").into_response();
        match look {
            Ok(Ok(look)) => Ok(look),
            Ok(Err(error)) => Err(failed(format!("{error}: {}", error.source))),
            Err(lost) => Err(failed(lost.to_string())),
        }
    }
}

/// Nodes that share a machine are told apart by their cgroups. In v1 the node's own processes stand in none of it.
fn of_node(cgroup: &Cgroup) -> Usage {
    let mut usage = cgroup.usage().unwrap_or_default();
    if cgroup.counts_memory_in_v1() {
        let own = cgroup.child("system").anonymous_bytes();
        usage.memory_bytes += own;
        usage.working_set_bytes += own;
    }
    usage
}

fn started_at(pod: &Pod, container: &str) -> Option<Timestamp> {
    let status = pod.status.as_ref()?;
    let mut all = status
        .init_container_statuses
        .iter()
        .chain(&status.container_statuses)
        .flatten();
    let of_it = |status: &&ContainerStatus| status.name == container;
    let running = all.find(of_it)?.state.as_ref()?.running.as_ref()?;
    running.started_at.as_ref().map(|time| time.0)
}

/// `/metrics/resource` and `/stats/summary`.
pub fn router(figures: Figures) -> Router {
    Router::new()
        .route("/metrics/resource", get(resource_metrics))
        .route("/stats/summary", get(summary))
        .with_state(figures)
}

async fn resource_metrics(State(figures): State<Figures>) -> Result<Response, Response> {
    let (look, _) = figures.look_aside().await?;
    let headers = [("content-type", "text/plain; version=0.0.4; charset=utf-8")];
    Ok((headers, exposition(&look)).into_response())
}

async fn summary(State(figures): State<Figures>) -> Result<Json<Value>, Response> {
    let (look, before) = figures.look_aside().await?;
    Ok(Json(summary_of(&look, before.as_deref(), &figures.config)))
}

/// `pkg/kubelet/metrics/collectors/resource_metrics.go`.
fn exposition(look: &Look) -> String {
    let of_pod = |pod: &PodLook| format!("namespace=\"{}\",pod=\"{}\"", pod.namespace, pod.name);
    let pods = look
        .pods
        .iter()
        .map(|pod| (format!("{{{}}}", of_pod(pod)), &pod.usage));
    let containers: Vec<(String, &ContainerLook)> = look
        .pods
        .iter()
        .flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
        .map(|(pod, container)| {
            let labels = format!("{{container=\"{}\",{}}}", container.name, of_pod(pod));
            (labels, container)
        })
        .collect();
    let used = containers
        .iter()
        .map(|(labels, one)| (labels.clone(), &one.usage));
    let families = [
        &usage_families("container", used.collect())[..],
        &[start_family(&containers)],
        &usage_families("node", vec![(String::new(), &look.node)]),
        &usage_families("pod", pods.collect()),
    ];
    let millis = look.at.as_millisecond();
    let mut text = String::new();
    for Family {
        name,
        kind,
        help,
        rows,
    } in families.into_iter().flatten()
    {
        let _ = writeln!(text, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
        for (labels, value) in rows {
            let _ = writeln!(text, "{name}{labels} {value} {millis}");
        }
    }
    text.push_str("# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n");
    text.push_str("# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n");
    text
}

/// A figure of some objects: their labels, and what it is.
struct Family {
    name: String,
    kind: &'static str,
    help: String,
    rows: Vec<(String, String)>,
}

/// What objects of a kind use.
fn usage_families(of: &str, used: Vec<(String, &Usage)>) -> [Family; 2] {
    let rows = |value: fn(&Usage) -> String| {
        used.iter()
            .map(|(labels, usage)| (labels.clone(), value(usage)))
            .collect()
    };
    [
        Family {
            name: format!("{of}_cpu_usage_seconds_total"),
            kind: "counter",
            help: format!("Cumulative cpu time consumed by the {of} in core-seconds"),
            rows: rows(|usage| format!("{:.6}", usage.cpu.as_secs_f64())),
        },
        Family {
            name: format!("{of}_memory_working_set_bytes"),
            kind: "gauge",
            help: format!("Current working set of the {of} in bytes"),
            rows: rows(|usage| usage.working_set_bytes.to_string()),
        },
    ]
}

fn start_family(containers: &[(String, &ContainerLook)]) -> Family {
    let seconds = |at: Timestamp| format!("{:.3}", at.as_millisecond() as f64 / 1000.0);
    let rows = containers
        .iter()
        .filter_map(|(labels, one)| Some((labels.clone(), seconds(one.started_at?))));
    Family {
        name: "container_start_time_seconds".to_owned(),
        kind: "gauge",
        help: "Start time of the container since unix epoch in seconds".to_owned(),
        rows: rows.collect(),
    }
}

/// `Summary` of `k8s.io/kubelet/pkg/apis/stats/v1alpha1`, as far as cgroups tell it.
fn summary_of(look: &Look, before: Option<&Look>, config: &Config) -> Value {
    let cgroup = |pod: &PodLook, container: &str| -> PathBuf { Path::new(&pod.uid).join(container) };
    let mut known: BTreeMap<PathBuf, Duration> = BTreeMap::new();
    for pod in before.iter().flat_map(|before| &before.pods) {
        known.insert(cgroup(pod, ""), pod.usage.cpu);
        known.extend(
            pod.containers
                .iter()
                .map(|one| (cgroup(pod, &one.name), one.usage.cpu)),
        );
    }
    let window =
        before.map(|before| Duration::try_from(look.at.duration_since(before.at)).unwrap_or_default());
    let stats = |usage: &Usage, known: Option<Duration>| {
        let spent = known.and_then(|known| usage.cpu.checked_sub(known));
        let rate = spent.zip(window).filter(|(_, window)| !window.is_zero());
        let rate = rate.map(|(spent, window)| (spent.as_secs_f64() / window.as_secs_f64() * 1e9) as u64);
        let total = u64::try_from(usage.cpu.as_nanos()).unwrap_or(u64::MAX);
        let mut cpu = json!({ "time": look.at, "usageCoreNanoSeconds": total });
        if let Some(rate) = rate {
            cpu["usageNanoCores"] = rate.into();
        }
        let memory = json!({
            "time": look.at, "usageBytes": usage.memory_bytes, "workingSetBytes": usage.working_set_bytes,
        });
        (cpu, memory)
    };
    let pods = look.pods.iter().map(|pod| {
        let containers = pod.containers.iter().map(|container| {
            let (cpu, memory) = stats(&container.usage, known.get(&cgroup(pod, &container.name)).copied());
            json!({ "name": container.name, "startTime": container.started_at, "cpu": cpu, "memory": memory })
        });
        let (cpu, memory) = stats(&pod.usage, known.get(&cgroup(pod, "")).copied());
        json!({
            "podRef": { "name": pod.name, "namespace": pod.namespace, "uid": pod.uid },
            "startTime": pod.started_at, "containers": containers.collect::<Vec<_>>(), "cpu": cpu, "memory": memory,
        })
    });
    let pods: Vec<Value> = pods.collect();
    let (cpu, memory) = stats(&look.node, before.map(|before| before.node.cpu));
    json!({ "node": { "nodeName": config.node_name, "cpu": cpu, "memory": memory }, "pods": pods })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    fn usage(cpu_ms: u64) -> Usage {
        Usage {
            cpu: Duration::from_millis(cpu_ms),
            memory_bytes: 3000,
            working_set_bytes: 2000,
        }
    }

    fn look(seconds: i64, cpu_ms: u64) -> Look {
        let container = ContainerLook {
            name: "c".to_owned(),
            started_at: Some(at(50)),
            usage: usage(cpu_ms),
        };
        let pod = PodLook {
            namespace: "ns".to_owned(),
            name: "p".to_owned(),
            uid: "u".to_owned(),
            started_at: Some(at(49)),
            usage: usage(cpu_ms + 1),
            containers: vec![container],
        };
        Look {
            at: at(seconds),
            node: usage(cpu_ms + 2),
            pods: vec![pod],
        }
    }

    #[test]
    fn every_figure_is_exposed_with_its_time() {
        let text = exposition(&look(100, 1500));
        let rows: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "container_cpu_usage_seconds_total{container=\"c\",namespace=\"ns\",pod=\"p\"} 1.500000 100000",
            "container_memory_working_set_bytes{container=\"c\",namespace=\"ns\",pod=\"p\"} 2000 100000",
            "container_start_time_seconds{container=\"c\",namespace=\"ns\",pod=\"p\"} 50.000 100000",
            "node_cpu_usage_seconds_total 1.502000 100000",
            "node_memory_working_set_bytes 2000 100000",
            "pod_cpu_usage_seconds_total{namespace=\"ns\",pod=\"p\"} 1.501000 100000",
            "pod_memory_working_set_bytes{namespace=\"ns\",pod=\"p\"} 2000 100000",
            "resource_scrape_error 0",
        ];
        assert_eq!(rows, expected);
    }

    #[test]
    fn rates_are_taken_from_a_look_that_is_old_enough() {
        let mut memory = Memory::default();
        let mut told = |seconds| {
            let before = memory.take(&Arc::new(look(seconds, 0)));
            before.map(|before| before.at.as_second())
        };
        let seen = [told(0), told(5), told(10), told(15), told(20), told(29), told(60)];
        assert_eq!(seen, [None, None, Some(0), Some(0), Some(10), Some(10), Some(20)]);
    }

    #[test]
    fn the_rate_is_the_time_between_two_looks() {
        let config: Config = serde_json::from_value(json!({
            "nodeName": "n", "kubeconfig": "", "stateDir": "", "nodeIp": "192.0.2.1", "clusterDns": [], "cgroup": "",
            "shim": "", "cert": "", "key": "", "clientCa": "",
        }))
        .expect("a configuration");
        let rate = |before: Option<Look>| {
            let summary = summary_of(&look(110, 1500), before.as_ref(), &config);
            let cpu = |value: &Value| value["cpu"]["usageNanoCores"].as_u64();
            [
                cpu(&summary["node"]),
                cpu(&summary["pods"][0]),
                cpu(&summary["pods"][0]["containers"][0]),
            ]
        };
        assert_eq!(rate(None), [None; 3]);
        assert_eq!(rate(Some(look(100, 500))), [Some(100_000_000); 3]);
        // A cgroup that was made anew counts from nothing.
        assert_eq!(rate(Some(look(100, 1600))), [None; 3]);
    }
}

//! What the agent tells of itself: `/healthz` and `/livez`, `/metrics` and `/proxyMode`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dns::http;
use model::{NodeName, Snapshot};
use overlay::fast_path;
use overlay::plan::Plan;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use super::cni::Requests;
use super::config_file::ConfigStatus;
use super::dns_feed::Readers;
use super::first_sync::FirstSync;
use super::history::History;
use super::pod_network::Pods;
use super::progress::ProxyProgress;
use super::proxy_metrics;
use super::supervisor::{Health, Part, Parts};
use super::sysctls::Sysctls;
use super::vpc_eni::{self, Heard};
use crate::backoff::Backoff;
use crate::config::{Config, Datapath};
use crate::doctor::ways;
use crate::metrics::{Counters, Page, labels};
use crate::telemetry::Traces;
use crate::watch::{self, NetworkPolicies};

/// Delays before an address that cannot be had is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// Everything that reports are made of.
#[derive(Clone)]
pub struct Sources {
    /// What the agent is told, now.
    pub config: Receiver<Arc<Config>>,
    /// How far it follows its file.
    pub config_status: Arc<ConfigStatus>,
    /// This node.
    pub node: NodeName,
    /// How the parts are doing.
    pub parts: Parts,
    /// What is known of the cluster.
    pub snapshots: Receiver<Arc<Snapshot>>,
    /// Whose addresses were that are nobody's any more.
    pub history: History,
    /// How the watches are doing.
    pub watches: watch::Status,
    /// Requests to the API server.
    pub api_calls: watch::Calls,
    /// Spans for a collector, where there is one.
    pub traces: Option<Traces>,
    /// What programs the kernel.
    pub datapath: Datapath,
    /// NetworkPolicies, which nobody enforces; absent where something else does.
    pub policies: Option<NetworkPolicies>,
    /// How far the proxy has come; absent where there is none.
    pub proxy: Option<Arc<ProxyProgress>>,
    /// This node's pods; absent where there is no pod network.
    pub pods: Option<Pods>,
    /// What the kernel shall have for the pod network.
    pub network: Receiver<Option<Arc<Plan>>>,
    /// How packets between pods pass through this node.
    pub fast_path: Receiver<fast_path::State>,
    /// How the addresses of a VPC stand, and their ways; absent where pods have others.
    pub vpc_eni: Option<Heard>,
    /// Where the fast path's counters are pinned.
    pub pin_dir: PathBuf,
    /// Readers of the DNS feed.
    pub feed_readers: Readers,
    /// Whether one of them answers at the cluster's DNS address; absent where the node has none.
    pub dns_answers: Option<Receiver<bool>>,
    /// Requests of the CNI plugin by command and result.
    pub cni_requests: Arc<Requests>,
    /// Versions of IP in which a route led out of this node since the agent began.
    pub led_outside: Arc<ways::LedOut>,
    /// To whom large packets arrived lately.
    pub proven_ways: Arc<ways::Proven>,
    /// Kernel settings that the agent keeps; absent where it keeps none.
    pub sysctls: Option<Sysctls>,
    /// Kernel settings that somebody changed and that were set again, by name.
    pub sysctl_repairs: Arc<Counters>,
    /// Has the proxy look at everything that it programmed.
    pub proxy_audits: Arc<Notify>,
    /// Answers of the health checks by check and code.
    pub checks: Arc<Checks>,
    /// What has to be in the kernel before the agent is ready.
    pub first_sync: FirstSync,
}

/// Answers are what they say they are.
const NOSNIFF: [(header::HeaderName, &str); 1] = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")];

/// How often the health checks gave which code.
#[derive(Debug, Default)]
pub struct Checks {
    healthz: Counters,
    livez: Counters,
}

/// Serves the health checks until shutdown.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_health(sources: Sources, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(sources.clone());
    serve(|config| config.health_bind, &sources, router, part, shutdown).await
}

/// Serves the metrics until shutdown.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_metrics(sources: Sources, part: Part, shutdown: CancellationToken) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/proxyMode", get(proxy_mode))
        .with_state(sources.clone());
    serve(|config| config.metrics_bind, &sources, router, part, shutdown).await
}

/// Serves at the address that the configuration says, and at another as soon as it says another that can be had.
async fn serve(
    address_of: impl Fn(&Config) -> SocketAddr,
    sources: &Sources,
    router: Router,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut config = sources.config.clone();
    let mut address = address_of(&config.borrow_and_update());
    let mut listener = http::bind(address, &[])?;
    loop {
        part.works();
        (address, listener) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            () = http::serve(listener, router.clone()) => return Ok(()),
            next = next_listener(&mut config, &address_of, address, &part) => next,
        };
    }
}

/// Bound while the one at `served` still answers, which goes on where the next address cannot be had.
async fn next_listener(
    config: &mut Receiver<Arc<Config>>,
    address_of: impl Fn(&Config) -> SocketAddr,
    served: SocketAddr,
    part: &Part,
) -> (SocketAddr, TcpListener) {
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        let wanted = address_of(&config.borrow_and_update());
        if wanted == served {
            part.works();
        } else {
            match http::bind(wanted, &[served]) {
                Ok(listener) => return (wanted, listener),
                Err(error) => part.fails(&format!(
                    "{}; {served} goes on to answer",
                    model::with_causes(&error)
                )),
            }
        }
        tokio::select! {
            Ok(()) = config.changed() => backoff.reset(),
            () = tokio::time::sleep(backoff.next_delay()), if wanted != served => {}
            else => std::future::pending().await,
        }
    }
}

/// For load balancers: 200 while changes reach the kernel in time and the node is not going away (KEP-3836).
async fn healthz(State(sources): State<Sources>) -> Response {
    let eligible = sources.node_eligible();
    let code = code(eligible && sources.proxy_in_time());
    sources.checks.healthz.add(labels(&[("code", code.as_str())]));
    let body = axum::Json(sources.health(eligible));
    (code, NOSNIFF, body).into_response()
}

/// For whoever restarts the agent: 200 while changes reach the kernel in time. A node that is going away, or a part
/// that waits for something outside, is no reason to restart.
async fn livez(State(sources): State<Sources>) -> Response {
    let code = code(sources.proxy_in_time());
    sources.checks.livez.add(labels(&[("code", code.as_str())]));
    let body = axum::Json(sources.health(sources.node_eligible()));
    (code, NOSNIFF, body).into_response()
}

/// For whoever replaces agents one after the other: 200 once all that it is configured to serve was in the kernel, and
/// while changes reach it in time.
async fn readyz(State(sources): State<Sources>) -> Response {
    let code = code(sources.first_sync.has_happened() && sources.proxy_in_time());
    let body = axum::Json(sources.health(sources.node_eligible()));
    (code, NOSNIFF, body).into_response()
}

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

/// Which datapath runs: `ebpf`, `nftables` or `iptables`. Not found where there is no proxy.
async fn proxy_mode(State(sources): State<Sources>) -> Response {
    match sources.datapath {
        Datapath::None => StatusCode::NOT_FOUND.into_response(),
        datapath => (NOSNIFF, datapath.name()).into_response(),
    }
}

async fn metrics(State(sources): State<Sources>) -> Response {
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        sources.metrics_page(),
    )
        .into_response()
}

impl Sources {
    /// What a collector gets.
    pub(super) fn metrics_page(&self) -> String {
        let mut page = Page::default();
        self.proxy_metrics(&mut page);
        self.fast_path_metrics(&mut page);
        self.vpc_metrics(&mut page);
        self.watch_metrics(&mut page);
        self.telemetry_metrics(&mut page);
        self.part_metrics(&mut page);
        self.config_status.write(&mut page);
        page.process();
        page.into_text()
    }

    /// What the health checks say.
    pub(super) fn status(&self) -> Value {
        self.health(self.node_eligible())
    }

    fn proxy_in_time(&self) -> bool {
        self.proxy.as_ref().is_none_or(|proxy| proxy.in_time())
    }

    fn node_eligible(&self) -> bool {
        let snapshot = self.snapshots.borrow();
        snapshot.nodes.get(&self.node).is_none_or(|node| !node.draining)
    }

    /// kube-proxy's fields, and how parts and watches are doing. `lastUpdated` is recent as long as all is well:
    /// whoever looks for a proxy that hangs by its age shall find none where nothing changed.
    fn health(&self, eligible: bool) -> Value {
        let now = jiff::Timestamp::now();
        let updated = self.synced().filter(|_| !self.proxy_in_time()).unwrap_or(now);
        let parts = self.parts.all().into_iter().map(|(name, part)| {
            let mut status = match part.health {
                Health::Starting => json!({"state": "starting"}),
                Health::Working => json!({"state": "working"}),
                Health::Failing { since, error } => {
                    json!({"state": "failing", "seconds": since.elapsed().as_secs(), "error": error})
                }
            };
            status["restarts"] = part.restarts.into();
            (name.to_owned(), status)
        });
        let watches = self.watches.kinds().into_iter().map(|(kind, status)| {
            let status = match status.failing {
                None => json!({"state": "working"}),
                Some(failing) => json!({
                    "state": "failing", "seconds": failing.since.elapsed().as_secs(), "error": failing.error,
                }),
            };
            (kind.name().to_owned(), status)
        });
        json!({
            "lastUpdated": updated.to_string(), "currentTime": now.to_string(), "nodeEligible": eligible,
            "status": self.family_status(),
            "fastPath": self.fast_path_status(),
            "parts": parts.collect::<serde_json::Map<_, _>>(),
            "watches": watches.collect::<serde_json::Map<_, _>>(),
        })
    }

    /// When the kernel was last as it should be.
    fn synced(&self) -> Option<jiff::Timestamp> {
        let seconds = self.proxy.as_ref()?.synced.unix_seconds();
        let moment = jiff::Timestamp::from_millisecond((seconds * 1000.0) as i64).ok();
        moment.filter(|_| seconds > 0.0)
    }

    /// Each version of IP once it is served; one pass brings all of them into the kernel.
    fn family_status(&self) -> Value {
        let (Some(proxy), Some(synced)) = (&self.proxy, self.synced()) else {
            return json!({});
        };
        let status = json!({"lastUpdated": synced.to_string(), "healthy": proxy.in_time()});
        let families = proxy.families.iter();
        families
            .map(|family| (family.name().to_owned(), status.clone()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// How packets between pods pass through this node, and why not by the fast path where it is refused.
    fn fast_path_status(&self) -> Value {
        let state = self.fast_path.borrow().clone();
        match &state {
            fast_path::State::Refused(reason) => json!({"state": state.name(), "reason": reason}),
            fast_path::State::Off | fast_path::State::On => json!({"state": state.name()}),
        }
    }

    fn fast_path_metrics(&self, page: &mut Page) {
        let state = self.fast_path.borrow().clone();
        let states = [
            fast_path::State::Off,
            fast_path::State::On,
            fast_path::State::Refused(String::new()),
        ];
        page.gauges(
            "causeway_fast_path",
            "1 for the way that packets between pods take on this node: the fast path, or the network stack.",
            states.map(|possible| {
                let name = possible.name();
                (labels(&[("state", name)]), bit(name == state.name()))
            }),
        );
        match ebpf::fast_path::counters(&self.pin_dir) {
            Ok(counters) => page.counters(
                "causeway_fast_path_packets_total",
                "Packets from pods and from the tunnel: given to a pod of this node, sent through the tunnel, or why they went through the network stack.",
                counters
                    .into_iter()
                    .flatten()
                    .map(|(verdict, count)| (labels(&[("verdict", verdict)]), count)),
            ),
            Err(error) => tracing::debug!(
                error = model::with_causes(&error),
                "the fast path's counters cannot be read"
            ),
        }
    }

    fn proxy_metrics(&self, page: &mut Page) {
        if let Some(proxy) = &self.proxy {
            proxy_metrics::write(proxy, self.datapath, page);
        }
        let checks = &self.checks;
        page.counted(
            "kubeproxy_proxy_healthz_total",
            "Answers of /healthz by code.",
            &checks.healthz,
        );
        page.counted(
            "kubeproxy_proxy_livez_total",
            "Answers of /livez by code.",
            &checks.livez,
        );
    }

    fn telemetry_metrics(&self, page: &mut Page) {
        if let Some(traces) = &self.traces {
            page.counters(
                "causeway_trace_spans_dropped_total",
                "Spans that no collector took.",
                [(String::new(), traces.dropped())],
            );
        }
    }

    fn watch_metrics(&self, page: &mut Page) {
        self.api_calls.write(page);
        let kinds: Vec<_> = self.watches.kinds().into_iter().collect();
        let of_kind = |kind: &model::Kind| labels(&[("kind", kind.name())]);
        page.counters(
            "causeway_watch_lists_total",
            "Lists that were begun.",
            kinds.iter().map(|(kind, status)| (of_kind(kind), status.lists)),
        );
        page.counters(
            "causeway_watch_errors_total",
            "Lists and watches that failed.",
            kinds.iter().map(|(kind, status)| (of_kind(kind), status.errors)),
        );
        page.gauges(
            "causeway_watch_failing",
            "1 while the API server cannot be heard.",
            kinds
                .iter()
                .map(|(kind, status)| (of_kind(kind), bit(status.failing.is_some()))),
        );
        let rejected = self.watches.rejected();
        let count = |kind: model::Kind| rejected.iter().filter(|fault| fault.kind == kind).count();
        page.gauges(
            "causeway_watch_rejected",
            "Parts of objects in the API that are invalid and not used.",
            watch::KINDS
                .iter()
                .map(|kind| (of_kind(kind), count(*kind) as f64)),
        );
        if let Some(policies) = self.policies.as_ref().and_then(NetworkPolicies::known) {
            page.gauges(
                "causeway_networkpolicies_not_enforced",
                "NetworkPolicies of the cluster, of which none is enforced by this node's agent.",
                [(String::new(), policies.len() as f64)],
            );
        }
        page.counters(
            "causeway_snapshots_total",
            "Snapshots of the cluster that were published to the other parts.",
            [(String::new(), self.watches.publications())],
        );
    }

    fn vpc_metrics(&self, page: &mut Page) {
        let Some(heard) = &self.vpc_eni else {
            return;
        };
        let status = heard.status.borrow().clone();
        let pods = self.pods.as_ref().and_then(|pods| pods.opened());
        let census = pods.and_then(|pods| pods.census());
        vpc_eni::metrics::write(&status, census.as_ref(), &self.cni_requests, page);
    }

    fn part_metrics(&self, page: &mut Page) {
        let parts: Vec<_> = self.parts.all().into_iter().collect();
        page.gauges(
            "causeway_part_working",
            "1 while a part of the agent works.",
            parts.iter().map(|(name, part)| {
                (
                    labels(&[("part", name)]),
                    bit(matches!(part.health, Health::Working)),
                )
            }),
        );
        page.counters(
            "causeway_part_restarts_total",
            "How often a part failed and was started again.",
            parts
                .iter()
                .map(|(name, part)| (labels(&[("part", name)]), part.restarts)),
        );
        page.gauges(
            "causeway_dns_feed_readers",
            "DNS servers that are connected.",
            [(String::new(), self.feed_readers.load(Ordering::Relaxed) as f64)],
        );
        if let Some(answers) = &self.dns_answers {
            page.gauges(
                "causeway_dns_answers",
                "Whether a DNS server of this node answers at the cluster's DNS address; otherwise its Service's endpoints do.",
                [(String::new(), bit(*answers.borrow()))],
            );
        }
        page.counted(
            "causeway_cni_requests_total",
            "Requests of the CNI plugin by command and result.",
            self.cni_requests.answered(),
        );
        page.counted(
            "causeway_sysctl_repairs_total",
            "Kernel settings that somebody changed and that were set again, by name.",
            &self.sysctl_repairs,
        );
    }
}

fn bit(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests;

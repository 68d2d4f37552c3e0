//! What the agent tells of itself: `/healthz`, `/livez` and `/metrics`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use model::{NodeName, Snapshot};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use super::dns_feed::Readers;
use super::metrics::{Counters, Page, labels};
use super::progress::ProxyProgress;
use super::supervisor::{Health, Part, Parts};
use crate::watch;

/// Everything that reports are made of.
#[derive(Clone)]
pub struct Sources {
    /// This node.
    pub node: NodeName,
    /// How the parts are doing.
    pub parts: Parts,
    /// What is known of the cluster.
    pub snapshots: Receiver<Arc<Snapshot>>,
    /// How the watches are doing.
    pub watches: watch::Status,
    /// How far the proxy has come; absent where there is none.
    pub proxy: Option<Arc<ProxyProgress>>,
    /// Readers of the DNS feed.
    pub feed_readers: Readers,
    /// Requests of the CNI plugin by command and result.
    pub cni_requests: Arc<Counters>,
    /// Answers of the health checks by check and code.
    pub checks: Arc<Checks>,
}

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
pub async fn serve_health(
    address: SocketAddr,
    sources: Sources,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new()
        .route("/healthz", get(healthz))
        .route("/livez", get(livez))
        .with_state(sources);
    serve(address, router, part, shutdown).await
}

/// Serves the metrics until shutdown.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve_metrics(
    address: SocketAddr,
    sources: Sources,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let router = Router::new().route("/metrics", get(metrics)).with_state(sources);
    serve(address, router, part, shutdown).await
}

async fn serve(
    address: SocketAddr,
    router: Router,
    part: Part,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address}"))?;
    part.works();
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned());
    serving.await.context("serve HTTP")
}

/// For load balancers: 200 while changes reach the kernel in time and the node is not going away (KEP-3836).
async fn healthz(State(sources): State<Sources>) -> Response {
    let eligible = sources.node_eligible();
    let code = code(eligible && sources.proxy_in_time());
    sources.checks.healthz.add(labels(&[("code", code.as_str())]));
    (code, axum::Json(sources.health(eligible))).into_response()
}

/// For whoever restarts the agent: 200 while changes reach the kernel in time. A node that is going away, or a part
/// that waits for something outside, is no reason to restart.
async fn livez(State(sources): State<Sources>) -> Response {
    let code = code(sources.proxy_in_time());
    sources.checks.livez.add(labels(&[("code", code.as_str())]));
    (code, axum::Json(sources.health(sources.node_eligible()))).into_response()
}

fn code(good: bool) -> StatusCode {
    if good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn metrics(State(sources): State<Sources>) -> Response {
    let mut page = Page::default();
    sources.proxy_metrics(&mut page);
    sources.watch_metrics(&mut page);
    sources.part_metrics(&mut page);
    (
        [(header::CONTENT_TYPE, "text/plain; version=0.0.4")],
        page.into_text(),
    )
        .into_response()
}

impl Sources {
    fn proxy_in_time(&self) -> bool {
        self.proxy.as_ref().is_none_or(|proxy| proxy.in_time())
    }

    fn node_eligible(&self) -> bool {
        let snapshot = self.snapshots.borrow();
        snapshot.nodes.get(&self.node).is_none_or(|node| !node.draining)
    }

    fn health(&self, eligible: bool) -> Value {
        let now = jiff::Timestamp::now();
        let updated = self.proxy.as_ref().map_or(now, |proxy| {
            jiff::Timestamp::from_second(proxy.synced.unix_seconds() as i64).unwrap_or(now)
        });
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
            (format!("{kind:?}"), status)
        });
        json!({
            "lastUpdated": updated.to_string(), "currentTime": now.to_string(), "nodeEligible": eligible,
            "parts": parts.collect::<serde_json::Map<_, _>>(),
            "watches": watches.collect::<serde_json::Map<_, _>>(),
        })
    }

    fn proxy_metrics(&self, page: &mut Page) {
        if let Some(proxy) = &self.proxy {
            page.durations(
                "kubeproxy_sync_proxy_rules_duration_seconds",
                "How long it took to bring a change into the kernel.",
                &proxy.durations,
            );
            page.gauges(
                "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
                "When the kernel was last as it should be, in seconds since 1970.",
                [(String::new(), proxy.synced.unix_seconds())],
            );
            page.gauges(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When the last change came in, in seconds since 1970.",
                [(String::new(), proxy.queued.unix_seconds())],
            );
            page.counters(
                "causeway_proxy_failures_total",
                "Syncs and audits that failed.",
                [(String::new(), proxy.failures.load(Ordering::Relaxed))],
            );
            page.counters(
                "causeway_proxy_repairs_total",
                "What audits found different from what was programmed, and repaired.",
                [(String::new(), proxy.repairs.load(Ordering::Relaxed))],
            );
        }
        let verdicts = self.proxy.iter().flat_map(|proxy| proxy.verdicts());
        page.counters(
            "causeway_hook_verdicts_total",
            "What the socket hook decided, by verdict; read every 10 s.",
            verdicts.map(|(verdict, count)| (labels(&[("verdict", verdict)]), count)),
        );
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

    fn watch_metrics(&self, page: &mut Page) {
        let kinds: Vec<_> = self.watches.kinds().into_iter().collect();
        let of_kind = |kind: &model::Kind| labels(&[("kind", &format!("{kind:?}"))]);
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
        page.counters(
            "causeway_snapshots_total",
            "Snapshots of the cluster that were published to the other parts.",
            [(String::new(), self.watches.publications())],
        );
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
        page.counted(
            "causeway_cni_requests_total",
            "Requests of the CNI plugin by command and result.",
            &self.cni_requests,
        );
    }
}

fn bit(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

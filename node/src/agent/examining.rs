//! The agent looks at everything, for `causeway doctor`: what it knows to be wrong, and where the kernel is not what its
//! plans say.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use model::{ObjectName, with_causes};
use netlink::Netlink;
use overlay::audit::{lower_in_pod, mend_pod_devices};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use super::report::Sources;
use crate::doctor::{finding, network, services, surroundings};
use crate::findings::{Finding, Order, Report};

/// A change that is on its way to the kernel differs for a moment: a difference counts only if two looks see it, with
/// this time between.
const BETWEEN_LOOKS: Duration = Duration::from_millis(700);

/// How long repairs are waited for.
const REPAIRED_WITHIN: Duration = Duration::from_secs(5);

/// Looks, and repairs where it shall.
///
/// # Errors
/// When the thread that looks ends without an answer.
pub async fn examine(
    State(sources): State<Sources>,
    Json(order): Json<Order>,
) -> Result<Json<Report>, StatusCode> {
    let mut differences = sources.lasting_differences().await?;
    let mut repaired = Vec::new();
    if order.fix && !differences.is_empty() {
        sources.repair().await?;
        let left = sources.await_repairs().await?;
        repaired = differences;
        repaired.retain(|finding| !is_among(finding, &left));
        differences = left;
    }
    let mut findings = sources.findings();
    findings.extend(differences);
    let state_dir = sources.config.borrow().state_dir.clone();
    findings.extend(blocking(move || surroundings::look(&state_dir)).await?);
    findings.sort_by_key(|finding| finding.severity);
    Ok(Json(Report {
        node: sources.node.to_string(),
        findings,
        repaired,
    }))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StatusCode> {
    spawn_blocking(work)
        .await
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// Whether the same is told of the same object; the evidence may have changed meanwhile.
fn is_among(finding: &Finding, others: &[Finding]) -> bool {
    let is_same = |other: &Finding| (&other.id, &other.object) == (&finding.id, &finding.object);
    others.iter().any(is_same)
}

impl Sources {
    /// Where the kernel is not what plans say, seen twice.
    async fn lasting_differences(&self) -> Result<Vec<Finding>, StatusCode> {
        let first = self.differences().await?;
        if first.is_empty() {
            return Ok(first);
        }
        sleep(BETWEEN_LOOKS).await;
        let mut second = self.differences().await?;
        second.retain(|finding| is_among(finding, &first));
        Ok(second)
    }

    async fn differences(&self) -> Result<Vec<Finding>, StatusCode> {
        let sources = self.clone();
        blocking(move || sources.look()).await
    }

    /// Blocks; in the network namespace of the calling thread.
    fn look(&self) -> Vec<Finding> {
        let facts = self.facts();
        let failing = |service: &ObjectName| {
            let proxy = self.proxy.as_ref();
            proxy.is_some_and(|proxy| proxy.state().failing.contains(service))
        };
        let unread = |what: &str, error: &dyn std::error::Error| {
            let evidence = format!("{what} cannot be compared: {}", with_causes(error));
            let repair = "see that the agent may read the kernel's tables: CAP_NET_ADMIN and CAP_BPF";
            vec![finding("kernel-unread", "this node".to_owned(), evidence, repair)]
        };
        let of_services = services::look(&facts, &failing);
        let mut findings = of_services.unwrap_or_else(|error| unread("Services", &error));
        let pods = self.pods.as_ref().and_then(|pods| pods.opened());
        if let (Some(plan), Some(pods)) = (&facts.network, pods) {
            let of_network = network::look(&facts.snapshot, plan, &pods.list());
            findings.extend(of_network.unwrap_or_else(|error| unread("the pod network", &error)));
        }
        findings
    }

    /// Starts all that repairs.
    async fn repair(&self) -> Result<(), StatusCode> {
        self.proxy_audits.notify_one();
        let pods = self.pods.as_ref().and_then(|pods| pods.opened()).cloned();
        let plan = self.network.borrow().clone();
        let (Some(pods), Some(plan)) = (pods, plan) else {
            return Ok(());
        };
        let mended = blocking(move || {
            let mended = mend_pod_devices(&mut Netlink::open()?, &plan, &pods.list(), lower_in_pod);
            pods.look_again();
            mended
        });
        match mended.await? {
            Ok(devices) if devices.is_empty() => {}
            Ok(devices) => tracing::info!(
                ?devices,
                "pods' devices are as they shall be again, as somebody asked"
            ),
            Err(error) => tracing::warn!(error = with_causes(&error), "pods' devices cannot be mended"),
        }
        Ok(())
    }

    /// What is left once repairs had their time.
    async fn await_repairs(&self) -> Result<Vec<Finding>, StatusCode> {
        let deadline = Instant::now() + REPAIRED_WITHIN;
        loop {
            let left = self.differences().await?;
            if left.is_empty() {
                return Ok(left);
            }
            if Instant::now() >= deadline {
                return self.lasting_differences().await;
            }
            sleep(BETWEEN_LOOKS / 4).await;
        }
    }
}

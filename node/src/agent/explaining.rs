//! What the agent knows, for `causeway explain` and for what others look up.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;

use super::report::Sources;
use crate::config::Datapath;
use crate::explain::vpc::VpcWays;
use crate::explain::witness::Live;
use crate::explain::{Answer, Facts, PodHere, Question, explain};
use crate::watch::NetworkPolicies;
use crate::{bundle, names};

/// Answers a question, on a thread that may block.
///
/// # Errors
/// When that thread ends without an answer.
pub async fn answer(
    State(sources): State<Sources>,
    Json(question): Json<Question>,
) -> Result<Json<Answer>, StatusCode> {
    let facts = sources.facts();
    let answered =
        tokio::task::spawn_blocking(move || explain(&question, &facts, &mut Live::default())).await;
    let explained = answered.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    Ok(Json(match explained {
        Ok(explanation) => Answer::Explained(Box::new(explanation)),
        Err(error) => Answer::NotUnderstood(error.to_string()),
    }))
}

/// Tells names, on a thread that may take its time: all objects are looked at, and plans are made.
///
/// # Errors
/// When that thread ends without an answer.
pub async fn name(
    State(sources): State<Sources>,
    Json(question): Json<names::Question>,
) -> Result<Json<names::Answer>, StatusCode> {
    let named = move || names::answer(&question, &sources.facts(), &sources.history);
    let named = tokio::task::spawn_blocking(named).await;
    named.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// All that is known here, for a file, on a thread that may take its time: a whole cluster is written as JSON.
///
/// # Errors
/// When that thread ends without an answer.
pub async fn tell(State(sources): State<Sources>) -> Result<impl IntoResponse, StatusCode> {
    let told = tokio::task::spawn_blocking(move || {
        let policies = sources.policies.as_ref().and_then(NetworkPolicies::known);
        serde_json::to_vec(&bundle::Told {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            facts: sources.facts(),
            status: sources.status(),
            metrics: sources.metrics_page(),
            policies: policies.iter().flatten().map(ToString::to_string).collect(),
        })
    });
    match told.await {
        Ok(Ok(json)) => Ok(([(header::CONTENT_TYPE, "application/json")], json)),
        Ok(Err(_)) | Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

impl Sources {
    /// What is known at this moment.
    pub fn facts(&self) -> Facts {
        let assigned = self.pods.as_ref().and_then(|pods| pods.opened());
        let assigned = assigned.map(|pods| pods.list()).unwrap_or_default();
        let vpc = self
            .vpc_eni
            .as_ref()
            .and_then(|heard| heard.plan.borrow().clone());
        let addresses = || {
            assigned
                .iter()
                .flat_map(|pod| pod.addresses().values().copied().collect::<Vec<_>>())
        };
        Facts {
            vpc: vpc.map(|plan| VpcWays::of(&plan, addresses())),
            node: self.node.clone(),
            snapshot: self.snapshots.borrow().clone(),
            context: self
                .proxy
                .as_ref()
                .and_then(|proxy| proxy.state().context.clone()),
            pods: assigned.iter().map(|pod| PodHere::of(pod, &self.node)).collect(),
            former: self.history.former(),
            network: self.network.borrow().clone(),
            pin_dir: (self.datapath == Datapath::Ebpf).then(|| self.pin_dir.clone()),
            unread_rules: match self.datapath {
                Datapath::Ebpf | Datapath::Nftables => None,
                Datapath::Iptables => {
                    Some("chains of iptables are not read back: see iptables-save".to_owned())
                }
                Datapath::None => Some("proxy.datapath is none: this agent programs no Services".to_owned()),
            },
        }
    }
}

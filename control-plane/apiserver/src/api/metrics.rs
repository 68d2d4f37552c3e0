//! `metrics.k8s.io/v1beta1`: get and list of what nodes and pods use, from the figures that the kubelets told last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures::future::join_all;
use http::{HeaderMap, Method, Response};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use super::page::Listed;
use super::{Api, Call, now};
use crate::metrics::{self, Look, PERIOD};
use crate::object::{self, Fields};
use crate::status::{Failure, Result};

/// More than a node of a thousand containers tells.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// A node that takes longer is away.
const PATIENCE: Duration = Duration::from_secs(10);

impl Api {
    /// Asks all kubelets, period after period.
    pub(crate) async fn keep_figures(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let nodes = self
                .caches
                .of(&self.storage, self.registry.kind("", "Node"))
                .items();
            let looks = nodes.iter().map(|item| self.look_at(&item.object));
            let answers: BTreeMap<String, Look> = join_all(looks).await.into_iter().flatten().collect();
            self.figures.take(answers);
        }
    }

    async fn look_at(&self, node: &Value) -> Option<(String, Look)> {
        let name = object::name(node);
        let answer = tokio::time::timeout(PATIENCE, self.ask_for_figures(node)).await;
        let outcome = answer.unwrap_or_else(|_| Err(Failure::unavailable("no answer in time")));
        if let Err(failure) = &outcome {
            tracing::debug!(node = name, error = %failure, "no figures from a node");
        }
        Some((name.to_owned(), metrics::parse(&outcome.ok()?)))
    }

    async fn ask_for_figures(&self, node: &Value) -> Result<String> {
        let path = "/metrics/resource";
        let answer = self
            .kubelets
            .forward(node, Method::GET, path, &HeaderMap::new())
            .await?;
        if !answer.status().is_success() {
            return Err(crate::kubelet::refusal(answer).await);
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| Failure::unavailable(error.to_string()))?;
        Ok(String::from_utf8_lossy(&body.to_bytes()).into_owned())
    }

    /// Nothing of this is stored: it is made when it is asked for, beside the objects that it is about.
    pub(super) async fn metrics(&self, verb: &str, call: &Call) -> Result<Response<Body>> {
        let of = match call.resource.kind {
            "NodeMetrics" => self.registry.kind("", "Node"),
            _ => self.registry.kind("", "Pod"),
        };
        match (verb, call.path.name.as_deref(), call.path.subresource.as_deref()) {
            ("get", Some(name), None) => {
                let found = self.look_up(of, call.namespace(), name).await?;
                let found = found.ok_or_else(|| Failure::not_found(of, name))?;
                let metrics = self.metrics_of(&found);
                let metrics =
                    metrics.ok_or_else(|| Failure::no_figures(call.resource, call.namespace(), name))?;
                Ok(self.respond_object(call, 200, metrics))
            }
            ("list", None, None) => {
                let selection = self.selection(call)?;
                let items = self.caches.of(&self.storage, of).items();
                let objects = items.iter().filter_map(|item| self.metrics_of(&item.object));
                let selected = objects.filter(|object| selection.matches(call.resource, object));
                Ok(self.respond_list(call, Listed::whole(selected.collect(), self.caches.progress())))
            }
            (_, _, Some(_)) => Err(Failure::no_such_path()),
            _ => Err(Failure::method_not_allowed()),
        }
    }

    fn metrics_of(&self, object: &Value) -> Option<Value> {
        let name = object::name(object);
        if object.text("kind") == "Node" {
            return Some(metrics::node_metrics(object, &self.figures.node(name)?, now()));
        }
        let node = object.text("spec.nodeName");
        let containers = self.figures.pod(node, object::namespace(object), name)?;
        metrics::pod_metrics(object, &containers, now())
    }
}

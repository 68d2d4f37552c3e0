//! `autoscaling/v1 Scale`, the view of a workload that `kubectl scale` changes.

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::{Api, Call};
use crate::managed::ManagedFields;
use crate::negotiate;
use crate::object::{self, Fields};
use crate::patch::{Patch, SERVER_SIDE_APPLY};
use crate::status::{Failure, Result};

impl Api {
    pub(super) async fn scale(&self, verb: &str, call: &Call) -> Result<Response<Body>> {
        if verb == "patch" && negotiate::content_type(&call.headers) == SERVER_SIDE_APPLY {
            return self.apply_scale(call).await;
        }
        let current = self.stored(call).await?;
        let wanted = match verb {
            "get" => return Ok(negotiate::respond(200, &scale_of(&current), call.wanted.yaml)),
            "update" => negotiate::decode_body(&call.headers, &call.body)?,
            "patch" => Patch::parse(negotiate::content_type(&call.headers), &call.body)?
                .value
                .apply(&scale_of(&current))?,
            _ => return Err(Failure::method_not_allowed()),
        };
        let revision = wanted.text("metadata.resourceVersion");
        if !revision.is_empty() && revision != current.text("metadata.resourceVersion") {
            return Err(Failure::modified(call.resource, call.name()));
        }
        let replicas = wanted.int("spec.replicas").unwrap_or(0);
        if replicas < 0 {
            return Err(Failure::unprocessable(format!(
                "Scale.autoscaling \"{}\" is invalid: spec.replicas: Invalid value: {replicas}: must be greater than or equal to 0",
                call.name()
            )));
        }
        let written = self.change_replicas(call, replicas).await?;
        Ok(negotiate::respond(200, &scale_of(&written), call.wanted.yaml))
    }
}

/// The view of a workload. Whose its replicas are, it says too.
pub(super) fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        object::copy_field(object.at("metadata"), &mut metadata, field);
    }
    let labels = match object.at("spec.selector.matchLabels") {
        Value::Null => object.at("spec.selector"),
        labels => labels,
    };
    let selector: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let owners = ManagedFields::of(object).narrowed(&["f:spec", "f:replicas"]);
    if !owners.is_empty() {
        metadata["managedFields"] = owners.in_version("autoscaling/v1").into_list();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": object.int("spec.replicas").unwrap_or(0) },
        "status": { "replicas": object.int("status.replicas").unwrap_or(0), "selector": selector.join(",") },
    })
}

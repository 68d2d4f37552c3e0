//! The three kinds of patch: JSON patch (RFC 6902), JSON merge patch (RFC 7386), and Kubernetes' strategic merge.

mod strategic;

use serde_json::Value;

use crate::status::{Failure, Result};

/// A patch, read.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// Lists merge by key.
    Strategic(Value),
}

impl Patch {
    /// Reads a body by its content type.
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Self> {
        let unreadable =
            |error: serde_json::Error| Failure::bad_request(format!("error decoding patch: {error}"));
        let value = || serde_json::from_slice::<Value>(body).map_err(unreadable);
        match content_type {
            "application/json-patch+json" => {
                serde_json::from_slice(body).map(Patch::Json).map_err(unreadable)
            }
            "application/merge-patch+json" => value().map(Patch::Merge),
            "application/strategic-merge-patch+json" => value().map(Patch::Strategic),
            "application/apply-patch+yaml" => Err(Failure::unsupported_media_type(
                "server-side apply is not served by this API server; use client-side apply (kubectl apply without \
                 --server-side)",
            )),
            other => Err(Failure::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json (got {other})"
            ))),
        }
    }

    /// The object after the patch.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let mut patched = object.clone();
        match self {
            Patch::Json(patch) => json_patch::patch(&mut patched, patch).map_err(|error| {
                Failure::unprocessable(format!(
                    "the server rejected our request due to an error in our request: {error}"
                ))
            })?,
            Patch::Merge(patch) => json_patch::merge(&mut patched, patch),
            Patch::Strategic(patch) => {
                patched = strategic::merge(&patched, patch).map_err(Failure::bad_request)?;
            }
        }
        Ok(patched)
    }
}

//! From a body to an object of the right kind: what the path says, and what the Rust type knows.

use serde_json::Value;

use super::Call;
use crate::negotiate::short_version;
use crate::object::{self, Fields};
use crate::resources::{Resource, unknown_fields};
use crate::status::{Failure, Result};

/// Types and unknown fields; what becomes of the latter the client decides (`fieldValidation`).
pub(super) fn decode(call: &Call, object: Value, warnings: &mut Vec<String>) -> Result<Value> {
    let resource = call.resource;
    let mut object = object;
    object::metadata(&mut object).remove("managedFields");
    let given = object.clone();
    let kept = (resource.decode)(object).map_err(|why| {
        let (kind, version) = (resource.kind, resource.api_version());
        Failure::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {kind}: {why}",
            short_version(&version)
        ))
    })?;
    let unknown = unknown_fields(&given, &kept);
    if !unknown.is_empty() {
        let told: Vec<String> = unknown
            .iter()
            .map(|path| format!("unknown field \"{path}\""))
            .collect();
        match call.query.get("fieldValidation") {
            Some("Strict") => {
                let (kind, version) = (resource.kind, resource.api_version());
                let all = told.join(", ");
                return Err(Failure::bad_request(format!(
                    "{kind} in version \"{}\" cannot be handled as a {kind}: strict decoding error: {all}",
                    short_version(&version)
                )));
            }
            Some("Ignore") => {}
            _ => warnings.extend(told),
        }
    }
    Ok(kept)
}

/// The body must be of the kind that the path says; what it leaves out is filled in.
pub(super) fn check_kind(resource: &Resource, object: &mut Value) -> Result<()> {
    if !object.is_object() {
        return Err(Failure::bad_request("the body of the request is not an object"));
    }
    let version = resource.api_version();
    object::default_to(object, "apiVersion", version.as_str());
    object::default_to(object, "kind", resource.kind);
    let (given_version, given_kind) = (object.text("apiVersion"), object.text("kind"));
    if given_version != version {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({given_version}) does not match the expected API version ({version})"
        )));
    }
    if given_kind != resource.kind {
        return Err(Failure::bad_request(format!(
            "{given_kind} in version \"{}\" cannot be handled as a {}: the kind in the data does not match",
            short_version(&version),
            resource.kind
        )));
    }
    Ok(())
}

pub(super) fn check_namespace_field(call: &Call, object: &mut Value) -> Result<()> {
    let metadata = object::metadata(object);
    match call.namespace() {
        Some(namespace) => {
            let given = metadata
                .get("namespace")
                .and_then(Value::as_str)
                .unwrap_or_default();
            if !given.is_empty() && given != namespace {
                return Err(Failure::bad_request(format!(
                    "the namespace of the provided object does not match the namespace sent on the request ({given} != {namespace})"
                )));
            }
            metadata.insert("namespace".to_owned(), namespace.into());
        }
        None => {
            metadata.remove("namespace");
        }
    }
    Ok(())
}

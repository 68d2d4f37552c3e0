//! From a body to an object of the right kind: what the path says, and what the Rust type knows.

use serde_json::Value;

use super::Call;
use super::author::{put_managed, take_managed};
use crate::negotiate::short_version;
use crate::object::{self, Fields};
use crate::resources::{Resource, unknown_fields};
use crate::status::{Failure, Result};
use crate::values::MAX_TOLD;

/// Types, unknown and duplicate fields; what becomes of the latter two the client decides (`fieldValidation`). What the
/// body says of `managedFields` stays as it is: it has rules of its own.
pub(super) fn decode(
    call: &Call,
    object: Value,
    duplicates: &[String],
    warnings: &mut Vec<String>,
) -> Result<Value> {
    let resource = call.resource;
    let mut object = object;
    let managed = managed_list(resource, &mut object)?;
    let given = object.clone();
    let mut kept = (resource.decode)(object).map_err(|why| unhandled(resource, why))?;
    let unknown = unknown_fields(&given, &kept);
    put_managed(&mut kept, managed);
    let duplicates = duplicates
        .iter()
        .map(|path| format!("duplicate field \"{path}\""));
    let unknown = unknown
        .iter()
        .take(MAX_TOLD)
        .map(|path| format!("unknown field \"{path}\""));
    let told: Vec<String> = duplicates.chain(unknown).collect();
    if !told.is_empty() {
        match call.query.get("fieldValidation") {
            Some("Strict") => {
                return Err(unhandled(
                    resource,
                    format!("strict decoding error: {}", told.join(", ")),
                ));
            }
            Some("Ignore") => {}
            _ => warnings.extend(told),
        }
    }
    Ok(kept)
}

fn unhandled(resource: &Resource, why: String) -> Failure {
    let (kind, version) = (resource.kind, resource.api_version());
    Failure::bad_request(format!(
        "{kind} in version \"{}\" cannot be handled as a {kind}: {why}",
        short_version(&version)
    ))
}

/// `managedFields` of an object, which has none any more; refused where it is no list of objects.
fn managed_list(resource: &Resource, object: &mut Value) -> Result<Value> {
    let managed = take_managed(object);
    let is_list = |list: &Value| {
        let items = list.as_array();
        items.is_some_and(|items| items.iter().all(Value::is_object))
    };
    if managed.is_null() || is_list(&managed) {
        return Ok(managed);
    }
    let field = "Go struct field ObjectMeta.metadata.managedFields of type []v1.ManagedFieldsEntry";
    Err(unhandled(
        resource,
        format!("json: cannot unmarshal into {field}"),
    ))
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

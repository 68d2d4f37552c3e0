//! Options of requests: those of create, update and patch from the query, `DeleteOptions` from body and query.

use serde_json::Value;

use super::Call;
use crate::managed::MAX_MANAGER;
use crate::negotiate;
use crate::object::Fields;
use crate::patch::SERVER_SIDE_APPLY;
use crate::status::{Failure, Result};

/// The finalizer of an object whose dependents are let go before it goes (the garbage collector removes it).
const ORPHAN: &str = "orphan";
/// The finalizer of an object whose dependents go first.
const FOREGROUND: &str = "foregroundDeletion";

/// Refuses what upstream refuses (`ValidateCreateOptions` and its like): a half-understood dry run would write.
pub(super) fn check_write_options(verb: &str, call: &Call) -> Result<()> {
    let kind = match verb {
        "create" => "CreateOptions.meta.k8s.io",
        "update" => "UpdateOptions.meta.k8s.io",
        "patch" => "PatchOptions.meta.k8s.io",
        _ => return Ok(()),
    };
    check_dry_run(kind, call.query.get("dryRun"))?;
    check_manager(kind, call)?;
    match call.query.get("fieldValidation") {
        None | Some("Ignore" | "Warn" | "Strict") => Ok(()),
        Some(other) => {
            let supported = r#"supported values: "Ignore", "Strict", "Warn""#;
            let why = format!("fieldValidation: Unsupported value: {other:?}: {supported}");
            Err(Failure::invalid_options(kind, why))
        }
    }
}

/// `ValidatePatchOptions`, `ValidateFieldManager`.
fn check_manager(kind: &str, call: &Call) -> Result<()> {
    let applies = negotiate::content_type(&call.headers) == SERVER_SIDE_APPLY && kind.starts_with("Patch");
    let why = match call.query.get("fieldManager") {
        None if applies => "fieldManager: Required value: is required for apply patch".to_owned(),
        Some(name) if name.len() > MAX_MANAGER => {
            format!("fieldManager: Too long: may not be more than {MAX_MANAGER} bytes")
        }
        Some(name) if name.chars().any(char::is_control) => {
            format!("fieldManager: Invalid value: {name:?}: should only contain printable characters")
        }
        _ if !applies && kind.starts_with("Patch") && call.query.get("force").is_some() => {
            "force: Forbidden: may not be specified for non-apply patch".to_owned()
        }
        _ => return Ok(()),
    };
    Err(Failure::invalid_options(kind, why))
}

fn check_dry_run(kind: &str, given: Option<&str>) -> Result<()> {
    match given {
        None | Some("All") => Ok(()),
        Some(other) => {
            let why = format!("dryRun: Unsupported value: {other:?}: supported values: \"All\"");
            Err(Failure::invalid_options(kind, why))
        }
    }
}

/// What becomes of the objects that an object owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dependents {
    /// What an earlier delete said; else the garbage collector removes them afterwards.
    Unsaid,
    /// They are removed afterwards.
    Background,
    /// They are removed first.
    Foreground,
    /// They stay, and forget their owner.
    Orphan,
}

impl Dependents {
    /// The finalizers of an object that is being deleted (`deletionFinalizersForGarbageCollection`).
    pub(super) fn finalizers(self, object: &Value) -> Vec<Value> {
        let mut finalizers = object.list("metadata.finalizers").to_vec();
        let ours = match self {
            Dependents::Unsaid => return finalizers,
            Dependents::Background => None,
            Dependents::Foreground => Some(FOREGROUND),
            Dependents::Orphan => Some(ORPHAN),
        };
        finalizers.retain(|one| one != ORPHAN && one != FOREGROUND);
        finalizers.extend(ours.map(Value::from));
        finalizers
    }
}

/// How to delete.
#[derive(Debug)]
pub(super) struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub uid: Option<String>,
    pub revision: Option<String>,
    pub dependents: Dependents,
    pub dry_run: bool,
}

impl DeleteOptions {
    pub(super) fn of(call: &Call) -> Result<Self> {
        const KIND: &str = "DeleteOptions.meta.k8s.io";
        let body = match call.body.is_empty() {
            true => Value::Null,
            false => negotiate::decode_body(&call.headers, &call.body)?,
        };
        let dry_runs = body
            .list("dryRun")
            .iter()
            .map(|value| value.as_str().unwrap_or_default());
        for given in dry_runs.chain(call.query.get("dryRun")) {
            check_dry_run(KIND, Some(given))?;
        }
        let policy = match call.query.get("propagationPolicy") {
            Some(policy) => policy,
            None => body.text("propagationPolicy"),
        };
        let orphan = body.at("orphanDependents").as_bool();
        let dependents = match (policy, orphan) {
            ("", None) => Dependents::Unsaid,
            ("", Some(true)) | ("Orphan", None) => Dependents::Orphan,
            ("", Some(false)) | ("Background", None) => Dependents::Background,
            ("Foreground", None) => Dependents::Foreground,
            (_, Some(_)) => {
                let why = "orphanDependents and deletionPropagation cannot be both set";
                let why = format!("propagationPolicy: Invalid value: {policy:?}: {why}");
                return Err(Failure::invalid_options(KIND, why));
            }
            (other, None) => {
                let supported = r#"supported values: "Foreground", "Background", "Orphan", "nil""#;
                let why = format!("propagationPolicy: Unsupported value: {other:?}: {supported}");
                return Err(Failure::invalid_options(KIND, why));
            }
        };
        let text = |path: &str| Some(body.text(path).to_owned()).filter(|text| !text.is_empty());
        Ok(DeleteOptions {
            grace_seconds: call
                .query
                .int("gracePeriodSeconds")
                .or(body.int("gracePeriodSeconds")),
            uid: text("preconditions.uid"),
            revision: text("preconditions.resourceVersion"),
            dependents,
            dry_run: call.dry_run() || !body.list("dryRun").is_empty(),
        })
    }
}

//! `DeleteOptions`, from the body and the query.

use serde_json::Value;

use super::Call;
use crate::negotiate;
use crate::object::Fields;
use crate::status::{Failure, Result};

/// How to delete.
#[derive(Debug, Default)]
pub(super) struct DeleteOptions {
    pub grace_seconds: Option<i64>,
    pub uid: Option<String>,
    pub revision: Option<String>,
    /// Dependents stay. Otherwise the garbage collector removes them afterwards: `Foreground` is treated as
    /// `Background`.
    pub orphan: bool,
    pub dry_run: bool,
}

impl DeleteOptions {
    pub(super) fn of(call: &Call) -> Result<Self> {
        let body = match call.body.is_empty() {
            true => Value::Null,
            false => negotiate::decode_body(&call.headers, &call.body)?,
        };
        let policy = match call.query.get("propagationPolicy") {
            Some(policy) => policy,
            None => body.text("propagationPolicy"),
        };
        if !matches!(policy, "" | "Background" | "Foreground" | "Orphan") {
            return Err(Failure::unprocessable(format!(
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {policy:?}: supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\""
            )));
        }
        let text = |path: &str| Some(body.text(path).to_owned()).filter(|text| !text.is_empty());
        Ok(DeleteOptions {
            grace_seconds: call
                .query
                .int("gracePeriodSeconds")
                .or(body.int("gracePeriodSeconds")),
            uid: text("preconditions.uid"),
            revision: text("preconditions.resourceVersion"),
            orphan: policy == "Orphan" || body.flag("orphanDependents"),
            dry_run: call.dry_run() || !body.list("dryRun").is_empty(),
        })
    }
}

//! The three kinds of patch: JSON patch (RFC 6902), JSON merge patch (RFC 7386), and Kubernetes' strategic merge; and the
//! merge of a server-side apply.

pub(crate) mod apply;
pub(crate) mod lists;
mod strategic;

use json_patch::PatchOperation;
use serde_json::Value;

use crate::negotiate::MAX_VALUES;
use crate::object;
use crate::status::{Failure, Result};
use crate::values::{self, Read};

/// The content type of a server-side apply, which is no patch of an object but a configuration of one.
pub const SERVER_SIDE_APPLY: &str = "application/apply-patch+yaml";

/// As many as a body may have.
const MAX_COPIED_BYTES: usize = 3 << 20;
/// As many levels as a body may have (`serde_json`'s limit).
const MAX_DEPTH: usize = 128;
/// After how many operations the depth is looked at: two of them may add what one body may have.
const DEPTH_EVERY: usize = 8;
/// Upstream's `maxJSONPatchOperations`.
const MAX_OPERATIONS: usize = 10_000;

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
    ///
    /// # Errors
    /// 400 for what cannot be read, 413 for more than `MAX_VALUES` values, 415 for other kinds of patches.
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Read<Self>> {
        let unreadable =
            |error: &dyn std::fmt::Display| Failure::bad_request(format!("error decoding patch: {error}"));
        let value = |patch: fn(Value) -> Self| {
            let read = values::read_json(body, MAX_VALUES).map_err(|error| match error {
                values::Error::TooManyValues => Failure::too_many_values(MAX_VALUES),
                error => unreadable(&error),
            })?;
            Ok(Read {
                value: patch(read.value),
                duplicates: read.duplicates,
            })
        };
        match content_type {
            "application/json-patch+json" if object::json_values_at_least(body) > MAX_VALUES => {
                Err(Failure::too_many_values(MAX_VALUES))
            }
            "application/json-patch+json" => match serde_json::from_slice(body) {
                Ok(patch) => Ok(Read {
                    value: Patch::Json(patch),
                    duplicates: Vec::new(),
                }),
                Err(error) => Err(unreadable(&error)),
            },
            "application/merge-patch+json" => value(Patch::Merge),
            "application/strategic-merge-patch+json" => value(Patch::Strategic),
            other => Err(Failure::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 application/json-patch+json, application/merge-patch+json, \
                 application/strategic-merge-patch+json, {SERVER_SIDE_APPLY} (got {other})"
            ))),
        }
    }

    /// The object after the patch.
    pub fn apply(&self, object: &Value) -> Result<Value> {
        let mut patched = object.clone();
        match self {
            Patch::Json(patch) => run_operations(&mut patched, patch)?,
            Patch::Merge(patch) => json_patch::merge(&mut patched, patch),
            Patch::Strategic(patch) => {
                patched = strategic::merge(&patched, patch).map_err(Failure::bad_request)?;
            }
        }
        Ok(patched)
    }
}

/// One by one, because each may copy what those before it copied: forty lines would fill any memory (upstream's
/// `AccumulatedCopySizeLimit`).
fn run_operations(object: &mut Value, patch: &json_patch::Patch) -> Result<()> {
    let operations = patch.0.len();
    if operations > MAX_OPERATIONS {
        return Err(Failure::too_many_operations(MAX_OPERATIONS, operations));
    }
    let mut copied_bytes = 0;
    for (at, operation) in patch.0.iter().enumerate() {
        if let PatchOperation::Copy(copy) = operation {
            let copied = object.pointer(copy.from.as_str());
            copied_bytes += copied.map_or(0, |value| value.to_string().len());
            if copied_bytes > MAX_COPIED_BYTES {
                return Err(Failure::too_large(MAX_COPIED_BYTES));
            }
        }
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|error| {
            Failure::unprocessable(format!(
                "the server rejected our request due to an error in our request: {error}"
            ))
        })?;
        let is_last = at + 1 == operations;
        if (is_last || at % DEPTH_EVERY == 0) && is_deeper_than(object, MAX_DEPTH) {
            return Err(Failure::unprocessable(format!(
                "the patched object is nested more than {MAX_DEPTH} levels deep"
            )));
        }
    }
    Ok(())
}

/// Each level costs stack wherever the object is read, written or dropped.
fn is_deeper_than(value: &Value, levels: usize) -> bool {
    let Some(below) = levels.checked_sub(1) else {
        return true;
    };
    match value {
        Value::Array(items) => items.iter().any(|item| is_deeper_than(item, below)),
        Value::Object(fields) => fields.values().any(|field| is_deeper_than(field, below)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn copies_of_copies_are_refused_before_they_fill_the_memory() {
        let twice = json!({ "op": "copy", "from": "/a", "path": "/a/-" });
        let patch = |count: usize| {
            let body = Value::from(vec![twice.clone(); count]).to_string();
            let read = Patch::parse("application/json-patch+json", body.as_bytes());
            read.expect("a patch").value
        };
        let object = json!({ "a": ["x"] });
        let few = patch(2).apply(&object).ok();
        assert_eq!(few, Some(json!({ "a": ["x", ["x"], ["x", ["x"]]] })));
        let many = patch(60).apply(&object).map_err(|failure| failure.code);
        assert_eq!(many, Err(413));
    }

    #[test]
    fn moves_cannot_nest_an_object_without_bound() {
        let deeper = |from: &str, to: &str| {
            [
                json!({ "op": "add", "path": to, "value": [] }),
                json!({ "op": "move", "from": from, "path": format!("{to}/0") }),
            ]
        };
        let patch = |levels: usize| {
            let operations: Vec<Value> = (0..levels)
                .flat_map(|level| {
                    if level % 2 == 0 {
                        deeper("/a", "/b")
                    } else {
                        deeper("/b", "/a")
                    }
                })
                .collect();
            let body = Value::from(operations).to_string();
            let read = Patch::parse("application/json-patch+json", body.as_bytes());
            read.expect("a patch").value
        };
        let object = json!({ "a": 1 });
        assert_eq!(patch(2).apply(&object).ok(), Some(json!({ "a": [[1]] })));
        let told = patch(5_000).apply(&object).map_err(|failure| failure.message);
        assert_eq!(
            told,
            Err("the patched object is nested more than 128 levels deep".to_owned())
        );
        let told = patch(5_001).apply(&object).map_err(|failure| failure.message);
        assert_eq!(
            told,
            Err("The allowed maximum operations in a JSON patch is 10000, got 10002".to_owned())
        );
    }
}

//! Strategic merge: JSON merge that knows which lists are sets of objects with a key, and the directives `$patch`,
//! `$retainKeys`, `$setElementOrder` and `$deleteFromPrimitiveList` (apimachinery `pkg/util/strategicpatch`).

use serde_json::{Map, Value};

use super::lists::{ListRule, Place};
use crate::object::Fields;

/// `object` after `patch`.
pub(super) fn merge(object: &Value, patch: &Value) -> Result<Value, String> {
    match patch {
        Value::Object(patch) => {
            let mut patch = patch.clone();
            if object.text("apiVersion") == "policy/v1" && object.text("kind") == "PodDisruptionBudget" {
                replace_selector(&mut patch);
            }
            merge_maps(object, &patch, Place::ROOT).map(|merged| merged.unwrap_or(Value::Null))
        }
        _ => Err("unable to decode patch: a strategic merge patch is an object".to_owned()),
    }
}

/// The only field of the API with `patchStrategy:"replace"` (`PodDisruptionBudgetSpec`).
fn replace_selector(patch: &mut Map<String, Value>) {
    let selector = patch.get_mut("spec").and_then(|spec| spec.get_mut("selector"));
    if let Some(Value::Object(selector)) = selector {
        selector.entry("$patch").or_insert_with(|| "replace".into());
    }
}

/// `None` when the patch deletes the object.
fn merge_maps(object: &Value, patch: &Map<String, Value>, place: Place<'_>) -> Result<Option<Value>, String> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("delete") => return Ok(None),
        Some("replace") => return Ok(Some(Value::Object(without_directives(patch)))),
        Some("merge") | None => {}
        Some(other) => return Err(format!("unknown patch type: {other}")),
    }
    let mut merged = object.as_object().cloned().unwrap_or_default();
    if let Some(kept) = patch.get("$retainKeys").and_then(Value::as_array) {
        merged.retain(|key, _| kept.iter().any(|one| one == key));
    }
    for (key, change) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = change.as_array().map(Vec::as_slice).unwrap_or_default();
            if let Some(Value::Array(list)) = merged.get_mut(field) {
                list.retain(|one| !gone.contains(one));
            }
        }
    }
    for (key, change) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        let current = merged.get(key).unwrap_or(&Value::Null);
        let next = match change {
            Value::Null => None,
            Value::Object(below) => merge_maps(current, below, place.below(key))?,
            Value::Array(items) => Some(merge_lists(current, items, place.below(key))?),
            plain => Some(plain.clone()),
        };
        match next {
            Some(value) => merged.insert(key.clone(), value),
            None => merged.remove(key),
        };
    }
    for (key, order) in patch {
        let Some(field) = key.strip_prefix("$setElementOrder/") else {
            continue;
        };
        if let (Some(Value::Array(list)), Value::Array(order)) = (merged.get_mut(field), order) {
            reorder(list, order, place.below(field).list_rule());
        }
    }
    Ok(Some(Value::Object(merged)))
}

fn merge_lists(current: &Value, changes: &[Value], place: Place<'_>) -> Result<Value, String> {
    let existing = current.as_array().cloned().unwrap_or_default();
    if changes.iter().any(|change| {
        change
            .get("$patch")
            .is_some_and(|directive| directive == "replace")
    }) {
        let kept = changes
            .iter()
            .filter(|change| change.get("$patch").is_none())
            .cloned()
            .collect();
        return Ok(Value::Array(kept));
    }
    let rule = place.list_rule();
    match (rule, rule.merge_key()) {
        (_, Some(key)) => merge_by_key(existing, changes, key, place).map(Value::Array),
        (ListRule::Set, _) => {
            let mut merged = existing;
            for change in changes {
                if !merged.contains(change) {
                    merged.push(change.clone());
                }
            }
            Ok(Value::Array(merged))
        }
        _ => Ok(Value::Array(changes.iter().map(cleaned).collect())),
    }
}

fn merge_by_key(
    mut merged: Vec<Value>,
    changes: &[Value],
    key: &str,
    place: Place<'_>,
) -> Result<Vec<Value>, String> {
    for change in changes {
        let Value::Object(below) = change else {
            let field = place.field();
            return Err(format!("unable to merge list {field}: an element is no object"));
        };
        let Some(wanted) = below.get(key) else {
            return Err(format!(
                "map: {change} does not contain declared merge key: {key}"
            ));
        };
        let found = merged.iter().position(|item| item.get(key) == Some(wanted));
        let current = found.map_or(&Value::Null, |at| &merged[at]);
        match (merge_maps(current, below, place)?, found) {
            (Some(next), Some(at)) => merged[at] = next,
            (Some(next), None) => merged.push(next),
            (None, Some(at)) => drop(merged.remove(at)),
            (None, None) => {}
        }
    }
    Ok(merged)
}

/// Elements named in `order` stand in that order; the others stay where they are between them, at the end.
fn reorder(list: &mut [Value], order: &[Value], rule: ListRule) {
    let place = |item: &Value| match rule.merge_key() {
        Some(key) => order
            .iter()
            .position(|one| one.get(key).is_some() && one.get(key) == item.get(key)),
        None => order.iter().position(|one| one == item),
    };
    list.sort_by_key(|item| place(item).unwrap_or(usize::MAX));
}

fn without_directives(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter()
        .filter(|(key, _)| !key.starts_with('$'))
        .map(|(key, value)| (key.clone(), cleaned(value)))
        .collect()
}

/// Directives and nulls mean nothing in what is new.
fn cleaned(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(without_directives(map)),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(object: Value, patch: Value, expected: Value) {
        assert_eq!(merge(&object, &patch), Ok(expected), "patch {patch}");
    }

    #[test]
    fn maps_merge_and_null_deletes() {
        check(
            json!({ "a": { "b": 1, "c": 2 } }),
            json!({ "a": { "b": null, "d": 3 } }),
            json!({ "a": { "c": 2, "d": 3 } }),
        );
        check(
            json!({ "a": { "b": 1 } }),
            json!({ "a": { "$patch": "replace", "c": 2 } }),
            json!({ "a": { "c": 2 } }),
        );
        check(
            json!({ "a": { "b": 1 } }),
            json!({ "a": { "$patch": "delete" } }),
            json!({}),
        );
    }

    #[test]
    fn the_selector_of_a_budget_is_replaced() {
        let of = |version: &str, kind: &str, selector: Value| json!({ "apiVersion": version, "kind": kind, "spec": { "selector": { "matchLabels": selector } } });
        let patch = json!({ "spec": { "selector": { "matchLabels": { "b": "2" } } } });
        let (one, two) = (json!({ "a": "1" }), json!({ "b": "2" }));
        let budget = "PodDisruptionBudget";
        check(
            of("policy/v1", budget, one.clone()),
            patch.clone(),
            of("policy/v1", budget, two),
        );
        let both = json!({ "a": "1", "b": "2" });
        check(
            of("apps/v1", "Deployment", one),
            patch,
            of("apps/v1", "Deployment", both),
        );
    }

    #[test]
    fn lists_that_only_an_apply_merges_are_replaced() {
        check(
            json!({ "resources": { "claims": [{ "name": "a" }] } }),
            json!({ "resources": { "claims": [{ "name": "b" }] } }),
            json!({ "resources": { "claims": [{ "name": "b" }] } }),
        );
        check(
            json!({ "uncountedTerminatedPods": { "failed": ["a"] } }),
            json!({ "uncountedTerminatedPods": { "failed": ["b"] } }),
            json!({ "uncountedTerminatedPods": { "failed": ["b"] } }),
        );
    }

    #[test]
    fn containers_merge_by_name() {
        let object = json!({ "spec": { "containers": [{ "name": "a", "image": "1" }, { "name": "b", "image": "1" }] } });
        check(
            object.clone(),
            json!({ "spec": { "containers": [{ "name": "b", "image": "2" }, { "name": "c", "image": "1" }] } }),
            json!({ "spec": { "containers": [
                { "name": "a", "image": "1" }, { "name": "b", "image": "2" }, { "name": "c", "image": "1" },
            ] } }),
        );
        check(
            object,
            json!({ "spec": {
                "$setElementOrder/containers": [{ "name": "b" }],
                "containers": [{ "name": "a", "$patch": "delete" }],
            } }),
            json!({ "spec": { "containers": [{ "name": "b", "image": "1" }] } }),
        );
    }

    #[test]
    fn ports_merge_by_the_key_of_their_owner() {
        check(
            json!({ "spec": { "ports": [{ "port": 80, "nodePort": 30080 }] } }),
            json!({ "spec": { "ports": [{ "port": 80, "targetPort": 8080 }] } }),
            json!({ "spec": { "ports": [{ "port": 80, "nodePort": 30080, "targetPort": 8080 }] } }),
        );
        check(
            json!({ "subsets": [{ "ports": [{ "port": 80 }] }] }),
            json!({ "subsets": [{ "ports": [{ "port": 81 }] }] }),
            json!({ "subsets": [{ "ports": [{ "port": 81 }] }] }),
        );
    }

    #[test]
    fn order_sets_and_retained_keys_are_honoured() {
        check(
            json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }] } }),
            json!({ "spec": { "$setElementOrder/containers": [{ "name": "b" }, { "name": "a" }] } }),
            json!({ "spec": { "containers": [{ "name": "b" }, { "name": "a" }] } }),
        );
        check(
            json!({ "metadata": { "finalizers": ["a", "b"] } }),
            json!({ "metadata": { "$deleteFromPrimitiveList/finalizers": ["a"], "finalizers": ["c"] } }),
            json!({ "metadata": { "finalizers": ["b", "c"] } }),
        );
        check(
            json!({ "spec": { "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": 1 } } } }),
            json!({ "spec": { "strategy": { "$retainKeys": ["type"], "type": "Recreate" } } }),
            json!({ "spec": { "strategy": { "type": "Recreate" } } }),
        );
    }

    #[test]
    fn a_list_element_without_its_key_is_refused() {
        let told = merge(
            &json!({}),
            &json!({ "spec": { "containers": [{ "image": "x" }] } }),
        );
        assert!(told.is_err_and(|told| told.contains("does not contain declared merge key: name")));
    }
}

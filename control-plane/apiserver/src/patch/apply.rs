//! The merge of a server-side apply (structured-merge-diff `merge/update.go`, `typed/merge.go`): the configuration over
//! the object, without what its applier named before and names no more.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::lists::{Place, element_name, named_elements};
use crate::managed::FieldSet;

/// `live` with everything that `config` says.
pub(crate) fn merged(live: &Value, config: &Value) -> Value {
    merge(live, config, Place::ROOT)
}

fn merge(live: &Value, config: &Value, place: Place<'_>) -> Value {
    match (live, config) {
        (Value::Object(live), Value::Object(config)) if !place.has_atomic_map() => {
            let mut fields = live.clone();
            for (field, value) in config {
                let (before, place) = (live.get(field).unwrap_or(&Value::Null), place.below(field));
                // A list of elements that has none says nothing; what is pruned to none is not there either.
                let says_nothing = before.is_null()
                    && value.as_array().is_some_and(Vec::is_empty)
                    && place.list_rule().has_elements();
                if !says_nothing {
                    fields.insert(field.clone(), merge(before, value, place));
                }
            }
            Value::Object(fields)
        }
        (Value::Array(live), Value::Array(config)) => {
            let rule = place.list_rule();
            match (named_elements(rule, live), named_elements(rule, config)) {
                (Some(live), Some(config)) => merge_elements(&live, &config, place),
                _ => Value::Array(config.clone()),
            }
        }
        (_, config) => config.clone(),
    }
}

/// Elements of the configuration in its order, the others where they stood before the next one that both have.
fn merge_elements(live: &[(String, &Value)], config: &[(String, &Value)], place: Place<'_>) -> Value {
    let in_live: HashMap<&str, &Value> = live.iter().map(|(name, item)| (name.as_str(), *item)).collect();
    let in_config: HashMap<&str, &Value> = config.iter().map(|(name, item)| (name.as_str(), *item)).collect();
    let mut merged = Vec::with_capacity(live.len() + config.len());
    let mut rest = config.iter().peekable();
    for (name, item) in live {
        if !in_config.contains_key(name.as_str()) {
            merged.push((*item).clone());
            continue;
        }
        while let Some((_, item)) = rest.next_if(|(name, _)| !in_live.contains_key(name.as_str())) {
            merged.push((*item).clone());
        }
        if let Some((name, item)) = rest.next() {
            let before = in_live.get(name.as_str()).copied().unwrap_or(&Value::Null);
            merged.push(merge(before, item, place));
        }
    }
    for (name, item) in rest {
        let before = in_live.get(name.as_str()).copied().unwrap_or(&Value::Null);
        merged.push(merge(before, item, place));
    }
    Value::Array(merged)
}

/// Takes out of `object` what is in `before` and not in `kept`, with everything below it.
pub(crate) fn prune(object: &mut Value, before: &FieldSet, kept: &FieldSet) {
    prune_below(object, before, Some(kept), Place::ROOT);
}

fn prune_below(value: &mut Value, before: &FieldSet, kept: Option<&FieldSet>, place: Place<'_>) {
    let kept_below = |name: &str| kept.and_then(|kept| kept.get(name));
    match value {
        Value::Object(fields) => {
            for (name, below) in before.below() {
                let Some(field) = name.strip_prefix("f:") else {
                    continue;
                };
                let Some(inner) = fields.get_mut(field) else {
                    continue;
                };
                match kept_below(name) {
                    None => drop(fields.remove(field)),
                    kept => {
                        let was_empty = is_empty(inner);
                        prune_below(inner, below, kept, place.below(field));
                        let is_owned = kept.is_some_and(FieldSet::is_member);
                        if is_empty(inner) && !was_empty && !is_owned {
                            fields.remove(field);
                        }
                    }
                }
            }
        }
        Value::Array(items) => {
            let rule = place.list_rule();
            if named_elements(rule, items).is_none() {
                return;
            }
            items.retain_mut(|item| {
                let Ok(name) = element_name(rule, item) else {
                    return true;
                };
                match (before.get(&name), kept_below(&name)) {
                    (None, _) => true,
                    (Some(below), None) if below.is_member() => false,
                    (Some(below), kept) => {
                        prune_below(item, below, kept, place);
                        true
                    }
                }
            });
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

/// Bytes of errors after which no more are looked for: their paths may be as long as the body.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// What is wrong with the lists of a configuration: elements without their keys, or two of one name.
pub(crate) fn list_errors(config: &Value) -> Vec<String> {
    let mut errors = Vec::new();
    collect_list_errors(config, Place::ROOT, "", &mut errors);
    errors
}

fn collect_list_errors(value: &Value, place: Place<'_>, path: &str, errors: &mut Vec<String>) {
    match value {
        Value::Object(fields) if !place.has_atomic_map() => collect_field_errors(fields, place, path, errors),
        Value::Array(items) => {
            let rule = place.list_rule();
            if !rule.has_elements() {
                return;
            }
            let mut seen = std::collections::HashSet::new();
            for (at, item) in items.iter().enumerate() {
                if errors.iter().map(String::len).sum::<usize>() > MAX_ERROR_BYTES {
                    return;
                }
                let name = match element_name(rule, item) {
                    Ok(name) => name,
                    Err(why) => {
                        errors.push(format!("{path}: element {at}: {why}"));
                        continue;
                    }
                };
                let shown = crate::managed::shown(&name);
                if !seen.insert(name) {
                    errors.push(format!("{path}: duplicate entries for key {shown}"));
                }
                if let Value::Object(fields) = item
                    && !place.has_atomic_map()
                {
                    collect_field_errors(fields, place, &format!("{path}{shown}"), errors);
                }
            }
        }
        _ => {}
    }
}

fn collect_field_errors(fields: &Map<String, Value>, place: Place<'_>, path: &str, errors: &mut Vec<String>) {
    for (field, value) in fields {
        collect_list_errors(value, place.below(field), &format!("{path}.{field}"), errors);
    }
}

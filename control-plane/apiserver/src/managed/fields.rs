//! Which fields an object has, and in which fields two objects differ (structured-merge-diff `typed/tofieldset.go` and
//! `typed/compare.go`).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::FieldSet;
use crate::patch::lists::{Place, named_elements};

/// What belongs to nobody: who an object is, and what the server says of it.
const IDENTITY: [&[&str]; 10] = [
    &["f:apiVersion"],
    &["f:kind"],
    &["f:metadata", "f:name"],
    &["f:metadata", "f:namespace"],
    &["f:metadata", "f:uid"],
    &["f:metadata", "f:creationTimestamp"],
    &["f:metadata", "f:selfLink"],
    &["f:metadata", "f:generation"],
    &["f:metadata", "f:resourceVersion"],
    &["f:metadata", "f:managedFields"],
];

/// Structs that Go writes even where they say nothing: nobody adds them, only what is in them.
const ALWAYS_THERE: [&str; 12] = [
    "metadata",
    "spec",
    "status",
    "template",
    "strategy",
    "updateStrategy",
    "jobTemplate",
    "containers",
    "loadBalancer",
    "nodeInfo",
    "daemonEndpoints",
    "source",
];

/// In what two objects differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Fields that are new or have another value.
    pub(crate) written: FieldSet,
    /// Fields that are gone.
    pub(crate) removed: FieldSet,
}

impl Difference {
    /// Between an object and what is to come after it; null is no object.
    pub(crate) fn between(old: &Value, new: &Value) -> Self {
        let mut found = differ(present(Some(old)), present(Some(new)), Place::ROOT, true);
        for set in [&mut found.written, &mut found.removed] {
            without_identity(set);
        }
        found
    }

    /// The objects are the same.
    pub(crate) fn is_empty(&self) -> bool {
        self.written.is_empty() && self.removed.is_empty()
    }

    fn put(&mut self, name: &str, below: Difference) {
        self.written.put(name.to_owned(), below.written);
        self.removed.put(name.to_owned(), below.removed);
    }
}

/// The fields that an applied configuration names.
pub(crate) fn fields_of(config: &Value) -> FieldSet {
    let mut set = named_fields(config, Place::ROOT);
    without_identity(&mut set);
    set
}

fn without_identity(set: &mut FieldSet) {
    for path in IDENTITY {
        set.forget(path);
    }
    set.member = false;
    let metadata_only = set
        .get("f:metadata")
        .is_some_and(|metadata| metadata.below().next().is_none());
    if metadata_only {
        set.forget(&["f:metadata"]);
    }
}

fn named_fields(value: &Value, place: Place<'_>) -> FieldSet {
    let mut set = FieldSet::default();
    match value {
        Value::Object(fields) if !place.has_atomic_map() => {
            for (field, inner) in fields {
                let mut below = named_fields(inner, place.below(field));
                below.member |= inner.as_object().is_some_and(Map::is_empty);
                set.put(format!("f:{field}"), below);
            }
        }
        Value::Array(items) => match named_elements(place.list_rule(), items) {
            Some(elements) => {
                for (name, item) in elements {
                    let mut below = match item {
                        Value::Object(_) => named_fields(item, place),
                        _ => FieldSet::default(),
                    };
                    below.member = true;
                    set.put(name, below);
                }
            }
            None => set.member = true,
        },
        _ => set.member = true,
    }
    set
}

/// Go leaves out null wherever it may.
fn present(value: Option<&Value>) -> Option<&Value> {
    value.filter(|value| !value.is_null())
}

/// `implied`: Go would have written the value's parent before, too.
fn differ(old: Option<&Value>, new: Option<&Value>, place: Place<'_>, implied: bool) -> Difference {
    if old == new {
        return Difference::default();
    }
    let implied = implied && (place == Place::ROOT || ALWAYS_THERE.contains(&place.field()));
    let mut found = match (old, new) {
        (Some(Value::Object(_)) | None, Some(Value::Object(_)) | None) if !place.has_atomic_map() => {
            maps_differ(fields(old), fields(new), place, old.is_some() || implied)
        }
        (Some(Value::Array(_)) | None, Some(Value::Array(_)) | None) => {
            let rule = place.list_rule();
            match (named_elements(rule, items(old)), named_elements(rule, items(new))) {
                (Some(old), Some(new)) => elements_differ(&old, &new, place),
                _ => leaf(new.is_some()),
            }
        }
        _ => leaf(new.is_some()),
    };
    match (old, new) {
        (None, Some(_)) if !implied => found.written.member = true,
        (Some(_), None) if !implied => found.removed.member = true,
        // From empty to nothing, or back.
        _ => {}
    }
    found
}

fn leaf(is_there: bool) -> Difference {
    let mut found = Difference::default();
    match is_there {
        true => found.written = FieldSet::leaf(),
        false => found.removed = FieldSet::leaf(),
    }
    found
}

fn fields(value: Option<&Value>) -> Option<&Map<String, Value>> {
    value.and_then(Value::as_object)
}

fn items(value: Option<&Value>) -> &[Value] {
    value
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn maps_differ(
    old: Option<&Map<String, Value>>,
    new: Option<&Map<String, Value>>,
    place: Place<'_>,
    implied: bool,
) -> Difference {
    let mut found = Difference::default();
    let in_old = |field: &str| present(old.and_then(|map| map.get(field)));
    for (field, value) in new.into_iter().flatten() {
        let below = differ(in_old(field), present(Some(value)), place.below(field), implied);
        found.put(&format!("f:{field}"), below);
    }
    let gone = old.into_iter().flatten();
    for (field, value) in gone.filter(|(field, _)| !new.is_some_and(|new| new.contains_key(*field))) {
        let below = differ(present(Some(value)), None, place.below(field), implied);
        found.put(&format!("f:{field}"), below);
    }
    found
}

fn elements_differ(old: &[(String, &Value)], new: &[(String, &Value)], place: Place<'_>) -> Difference {
    let mut found = Difference::default();
    let mut before: BTreeMap<&str, &Value> = old.iter().map(|(name, item)| (name.as_str(), *item)).collect();
    for (name, item) in new {
        found.put(
            name,
            element_differs(before.remove(name.as_str()), Some(item), place),
        );
    }
    for (name, item) in before {
        found.put(name, element_differs(Some(item), None, place));
    }
    found
}

/// An element is no field: nothing of it was there before.
fn element_differs(old: Option<&Value>, new: Option<&Value>, place: Place<'_>) -> Difference {
    let mut found = match (old, new) {
        _ if old == new => return Difference::default(),
        (Some(Value::Object(_)) | None, Some(Value::Object(_)) | None) if !place.has_atomic_map() => {
            maps_differ(fields(old), fields(new), place, false)
        }
        _ => leaf(new.is_some()),
    };
    found.written.member |= old.is_none();
    found.removed.member |= new.is_none();
    found
}

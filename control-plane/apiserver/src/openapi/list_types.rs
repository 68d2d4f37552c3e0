//! How an apply merges lists (`x-kubernetes-list-type`, `x-kubernetes-list-map-keys`), as the server itself goes by it:
//! its table (`patch::lists`) knows fields by the fields around them, which are those that refer to a definition.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::schemas::{Definitions, LIST_META, referred};
use crate::patch::lists::{ListRule, Place};

/// Writes the rules of all lists into their fields; of those that stand in several places only where they agree.
pub(super) fn annotate(definitions: &mut Definitions) {
    let holders = holders(definitions);
    let root = BTreeSet::from([String::new()]);
    for (name, schema) in definitions {
        let around = holders.get(name).unwrap_or(&root);
        for (field, property) in fields_of(schema) {
            if property["type"] != "array" {
                continue;
            }
            let mut rules = around
                .iter()
                .map(|around| Place::ROOT.below(around).below(field).list_rule());
            let first = rules.next();
            if let Some(property) = property.as_object_mut()
                && let Some(rule) = first.filter(|first| rules.all(|rule| rule == *first))
            {
                write(property, rule);
            }
        }
    }
}

fn fields_of(schema: &mut Value) -> impl Iterator<Item = (&String, &mut Value)> {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flatten()
}

/// The fields that hold each definition; none for the object as a whole. Elements of a list of objects are objects.
fn holders(definitions: &Definitions) -> BTreeMap<String, BTreeSet<String>> {
    let mut holders: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (name, schema) in definitions {
        if schema.get("x-kubernetes-group-version-kind").is_some() {
            holders.entry(name.clone()).or_default().insert(String::new());
        }
        let properties = schema["properties"].as_object();
        let is_list = referred(&schema["properties"]["metadata"]).as_deref() == Some(LIST_META);
        for (field, property) in properties.into_iter().flatten().filter(|_| !is_list) {
            if let Some(held) = referred(property).or_else(|| referred(&property["items"])) {
                holders.entry(held).or_default().insert(field.clone());
            }
        }
    }
    holders
}

fn write(field: &mut Map<String, Value>, rule: ListRule) {
    let (kind, keys) = match rule {
        ListRule::Atomic | ListRule::ReplacedByApply(_) => ("atomic", None),
        ListRule::ByKeys(keys) | ListRule::AppliedByKeys(keys) => ("map", Some(keys)),
        ListRule::Set | ListRule::AppliedSet => ("set", None),
    };
    field.insert("x-kubernetes-list-type".to_owned(), kind.into());
    if let Some(keys) = keys {
        field.insert("x-kubernetes-list-map-keys".to_owned(), keys.into());
    }
}

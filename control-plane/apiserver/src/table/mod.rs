//! `meta.k8s.io/v1 Table`: what `kubectl get` shows is decided by the server (`pkg/printers/internalversion`).

pub mod core;
pub mod networking;
pub mod pods;
pub mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::object::{self, Fields};
use crate::resources::Resource;

/// A column's heading.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Heading; kubectl prints it in capitals.
    pub name: &'static str,
    /// `string` or `integer`.
    pub kind: &'static str,
    /// Shown only with `-o wide`.
    pub wide: bool,
}

/// A text column.
pub(crate) const fn text(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        wide: false,
    }
}

/// A number column.
pub(crate) const fn number(name: &'static str) -> Column {
    Column {
        name,
        kind: "integer",
        wide: false,
    }
}

/// A text column of `-o wide`.
pub(crate) const fn wide(name: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        wide: true,
    }
}

/// For kinds without columns of their own.
pub const NAME_AND_AGE: &[Column] = &[text("Name"), text("Age")];

/// Cells under [`NAME_AND_AGE`].
pub fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![object::name(object).into(), age(object, now)]
}

/// How much of each object a Table carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Include {
    /// Only cells.
    None,
    /// `PartialObjectMetadata`, the default.
    Metadata,
    /// Whole objects.
    Object,
}

/// A Table of `objects`.
pub fn table<'a>(
    resource: &Resource,
    objects: impl IntoIterator<Item = &'a Value>,
    list_metadata: Value,
    (version, include): (&str, Include),
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects
        .into_iter()
        .map(|one| {
            let mut row = json!({ "cells": (resource.cells)(one, now) });
            match include {
                Include::None => {}
                Include::Metadata => row["object"] = partial_metadata(one, version),
                Include::Object => row["object"] = one.clone(),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": format!("meta.k8s.io/{version}"), "metadata": list_metadata,
        "columnDefinitions": column_definitions(resource.columns), "rows": rows,
    })
}

/// `PartialObjectMetadata` of an object.
pub fn partial_metadata(object: &Value, version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": object.at("metadata"),
    })
}

fn column_definitions(columns: &[Column]) -> Vec<Value> {
    let definition = |column: &Column| {
        let format = if column.name == "Name" { "name" } else { "" };
        let priority = i32::from(column.wide);
        json!({ "name": column.name, "type": column.kind, "format": format, "description": "", "priority": priority })
    };
    columns.iter().map(definition).collect()
}

/// Time since creation, as kubectl writes it.
pub(crate) fn age(object: &Value, now: Timestamp) -> Value {
    since(object.text("metadata.creationTimestamp"), now).into()
}

/// Time since an RFC 3339 time; `<unknown>` when it is none.
pub(crate) fn since(time: &str, now: Timestamp) -> String {
    match time.parse::<Timestamp>() {
        Ok(then) => human_duration(now.as_second() - then.as_second()),
        Err(_) => "<unknown>".to_owned(),
    }
}

/// `duration.HumanDuration`: two units while they are small.
pub(crate) fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |whole: i64, unit: char, part: i64, part_unit: char| match part {
        0 => format!("{whole}{unit}"),
        part => format!("{whole}{unit}{part}{part_unit}"),
    };
    match seconds {
        i64::MIN..=-2 => "<invalid>".to_owned(),
        -1..=0 => "0s".to_owned(),
        1..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, 'y', days % 365, 'd'),
        _ => format!("{}y", days / 365),
    }
}

/// `<none>` for nothing.
pub(crate) fn or_none(text: impl Into<String>) -> Value {
    let text = text.into();
    Value::String(if text.is_empty() {
        "<none>".to_owned()
    } else {
        text
    })
}

/// `a=b,c=d`; `<none>` for nothing.
pub(crate) fn labels(map: &Value) -> Value {
    let pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    or_none(pairs.join(","))
}

/// A `metav1.LabelSelector` as text.
pub(crate) fn selector(selector: &Value) -> Value {
    let equal = selector.at("matchLabels").as_object().into_iter().flatten();
    let equal = equal.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()));
    let expressions = selector.list("matchExpressions").iter().map(|expression| {
        let key = expression.text("key");
        let values: Vec<&str> = expression
            .list("values")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        match expression.text("operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        }
    });
    or_none(equal.chain(expressions).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (600, "10m"),
            (10_799, "179m"),
            (11_000, "3h3m"),
            (28_800, "8h"),
            (172_800, "2d"),
            (180_000, "2d2h"),
            (864_000, "10d"),
            (70_000_000, "2y80d"),
        ] {
            assert_eq!(human_duration(seconds), text, "{seconds}");
        }
    }
}

//! The definitions of what is served: `k8s-openapi` knows the fields and their descriptions, the table knows the kinds,
//! and both dialects of OpenAPI differ a little in how they refer to definitions and in two types.

use k8s_openapi::api;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::schemars::SchemaGenerator;
use k8s_openapi::schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::{Dialect, list_types, merge};
use crate::resources::Resource;

/// Schemas by their names (`io.k8s.api.core.v1.Pod`).
pub(super) type Definitions = Map<String, Value>;

pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";

/// Everything that the rows' objects are made of, and what is exchanged about them.
pub(super) fn of<'a>(rows: impl Iterator<Item = &'a Resource>, dialect: Dialect) -> Definitions {
    let rows: Vec<&Resource> = rows.collect();
    let mut generator = SchemaSettings::draft07().into_generator();
    let mut kinds = Vec::new();
    for row in &rows {
        (row.schema)(&mut generator);
        kinds.push((name(row), (row.group, row.version), row.kind.to_owned()));
        for sub in row.subresources() {
            if let Some(name) = exchanged(sub.kind, &mut generator) {
                let of = sub.of.unwrap_or((row.group, row.version));
                kinds.push((name, of, sub.kind.to_owned()));
            }
        }
    }
    generator.subschema_for::<meta::DeleteOptions>();
    generator.subschema_for::<meta::ListMeta>();
    generator.subschema_for::<meta::ObjectMeta>();
    generator.subschema_for::<meta::Patch>();
    generator.subschema_for::<meta::Status>();
    let mut definitions = generator.take_definitions(false);
    for row in rows {
        let name = name(row);
        let schema = definitions.entry(&name).or_insert_with(|| any_object(row));
        if row.verbs().contains(&"list") {
            let list = list(row, &name, schema);
            definitions.entry(format!("{name}List")).or_insert(list);
            kinds.push((
                format!("{name}List"),
                (row.group, row.version),
                format!("{}List", row.kind),
            ));
        }
    }
    for (name, of, kind) in kinds {
        tell_kind(&mut definitions[&name], group_version_kind(of, &kind));
    }
    list_types::annotate(&mut definitions);
    for (name, schema) in &mut definitions {
        merge::annotate(name, schema);
        speak(schema, dialect);
        speak_leaf(name, schema, dialect);
        if dialect == Dialect::V2 && schema["x-kubernetes-preserve-unknown-fields"] == true {
            // kubectl does not know the mark in version 2, and refuses fields beside those that it is told of.
            schema.as_object_mut().map(|fields| fields.remove("properties"));
        }
    }
    definitions
}

/// Several versions of a kind may have one type.
fn tell_kind(schema: &mut Value, kind: Value) {
    let kinds = &mut schema["x-kubernetes-group-version-kind"];
    match kinds.as_array_mut() {
        Some(kinds) if kinds.contains(&kind) => {}
        Some(kinds) => kinds.push(kind),
        None => *kinds = json!([kind]),
    }
}

/// The name of a row's definition: its type's, or one as custom resources have (`io.k8s.metrics.v1beta1.PodMetrics`).
pub(super) fn name(row: &Resource) -> String {
    let schema = (row.schema)(&mut SchemaSettings::draft07().into_generator());
    referred(schema.as_value()).unwrap_or_else(|| {
        let domain: Vec<&str> = row.group.rsplit('.').collect();
        format!("{}.{}.{}", domain.join("."), row.version, row.kind)
    })
}

/// An object whose type is not known here.
fn any_object(row: &Resource) -> Value {
    let text = |about: &str| json!({ "description": about, "type": "string" });
    json!({
        "description": format!("{} is as its group defines it.", row.kind),
        "type": "object",
        "properties": {
            "apiVersion": text("Group and version of the object."), "kind": text("Kind of the object."),
            "metadata": { "description": "Standard object's metadata.", "$ref": reference(OBJECT_META) },
        },
        "x-kubernetes-preserve-unknown-fields": true,
    })
}

/// The name of what a subresource exchanges, where that is another kind than the object's.
pub(super) fn exchanged(kind: &str, generator: &mut SchemaGenerator) -> Option<String> {
    let schema = match kind {
        "Binding" => generator.subschema_for::<api::core::v1::Binding>(),
        "Eviction" => generator.subschema_for::<api::policy::v1::Eviction>(),
        "Scale" => generator.subschema_for::<api::autoscaling::v1::Scale>(),
        "TokenRequest" => generator.subschema_for::<api::authentication::v1::TokenRequest>(),
        _ => return None,
    };
    referred(schema.as_value())
}

/// As operations and definitions name a kind.
pub(super) fn group_version_kind((group, version): (&str, &str), kind: &str) -> Value {
    json!({ "group": group, "version": version, "kind": kind })
}

fn reference(to: &str) -> String {
    format!("{}{to}", Dialect::V2.prefix())
}

/// The definition that a schema refers to.
pub(super) fn referred(schema: &Value) -> Option<String> {
    let reference = schema.get("$ref")?.as_str()?;
    reference.strip_prefix(Dialect::V2.prefix()).map(str::to_owned)
}

/// The list of a kind; the crate has one generic type for all of them.
fn list(row: &Resource, name: &str, of: &Value) -> Value {
    let kind = format!("{}List", row.kind);
    let items =
        json!({ "description": "Items of the list.", "type": "array", "items": { "$ref": reference(name) } });
    let metadata = json!({ "description": "Standard list metadata.", "$ref": reference(LIST_META) });
    json!({
        "description": format!("{kind} is a collection of {}.", row.kind),
        "type": "object",
        "required": ["items"],
        "properties": {
            "apiVersion": of["properties"]["apiVersion"], "kind": of["properties"]["kind"],
            "metadata": metadata, "items": items,
        },
    })
}

/// References of a dialect, in a schema and all that it holds.
fn speak(schema: &mut Value, dialect: Dialect) {
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    let below = ["items", "additionalProperties"];
    for schema in fields
        .iter_mut()
        .filter(|(field, _)| below.contains(&field.as_str()))
    {
        speak(schema.1, dialect);
    }
    for property in fields
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .into_iter()
        .flatten()
    {
        speak(property.1, dialect);
    }
    let Some(name) = fields.get("$ref").and_then(Value::as_str) else {
        return;
    };
    let name = name.trim_start_matches(Dialect::V2.prefix());
    let reference = format!("{}{name}", dialect.prefix());
    if dialect == Dialect::V3 && fields.len() > 1 {
        // Beside a reference nothing counts in version 3.
        fields.remove("$ref");
        fields.insert("allOf".to_owned(), json!([{ "$ref": reference }]));
    } else {
        fields.insert("$ref".to_owned(), reference.into());
    }
}

/// Two types that are strings or numbers, as upstream's builders write them.
fn speak_leaf(name: &str, schema: &mut Value, dialect: Dialect) {
    let (other, format) = match name.rsplit('.').next() {
        Some("IntOrString") => ("integer", Some("int-or-string")),
        Some("Quantity") => ("number", None),
        _ => return,
    };
    let Some(fields) = schema.as_object_mut() else {
        return;
    };
    fields.remove("x-kubernetes-int-or-string");
    if let Some(format) = format {
        fields.insert("format".to_owned(), format.into());
    }
    match dialect {
        Dialect::V2 => fields.insert("type".to_owned(), "string".into()),
        Dialect::V3 => fields.insert(
            "oneOf".to_owned(),
            json!([{ "type": other }, { "type": "string" }]),
        ),
    };
}

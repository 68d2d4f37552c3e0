//! Just enough OpenAPI for kubectl: version 3 tells that the server checks fields itself (`fieldValidation`), version 2
//! is an all but empty document, since kubectl up to 1.27 reads one before it applies anything.

use serde_json::{Value, json};

use crate::object::api_version;
use crate::resources::{Registry, Resource};

/// Content type of the protobuf form. With `@` in place of the last dot of `spec.v2`, as in clients' `Accept`, Go's MIME
/// parser refuses it.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The index at `/openapi/v3`.
pub fn v3_index(registry: &Registry) -> Value {
    let mut paths = serde_json::Map::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let path = group_path(group, version);
            let url = format!("/openapi/v3/{path}?hash={}", env!("CARGO_PKG_VERSION"));
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// The document of one group and version: `segments` are those after `/openapi/v3`.
pub fn v3_document(registry: &Registry, segments: &[String]) -> Option<Value> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version) = match words.as_slice() {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return None,
    };
    let rows: Vec<&Resource> = registry
        .rows()
        .iter()
        .filter(|row| (row.group, row.version) == (group, version))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let paths: serde_json::Map<String, Value> = rows.into_iter().flat_map(paths_of).collect();
    let info = json!({ "title": "Kubernetes", "version": crate::GIT_VERSION });
    Some(json!({ "openapi": "3.0.0", "info": info, "paths": paths, "components": { "schemas": {} } }))
}

fn paths_of(row: &Resource) -> Vec<(String, Value)> {
    let scope = if row.namespaced {
        "namespaces/{namespace}/"
    } else {
        ""
    };
    let collection = format!("/{}/{scope}{}", group_path(row.group, row.version), row.plural);
    let object = format!("{collection}/{{name}}");
    let operation = |action: &str| {
        json!({
            "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": { "group": row.group, "version": row.version, "kind": row.kind },
            "parameters": [
                { "name": "dryRun", "in": "query", "schema": { "type": "string", "uniqueItems": true } },
                { "name": "fieldManager", "in": "query", "schema": { "type": "string", "uniqueItems": true } },
                { "name": "fieldValidation", "in": "query", "schema": { "type": "string", "uniqueItems": true } },
            ],
            "responses": { "200": { "description": "OK" } },
        })
    };
    if !row.verbs().contains(&"create") {
        return Vec::new();
    }
    if !row.verbs().contains(&"patch") {
        return vec![(collection, json!({ "post": operation("post") }))];
    }
    vec![
        (collection, json!({ "post": operation("post") })),
        (
            object,
            json!({ "patch": operation("patch"), "put": operation("put") }),
        ),
    ]
}

fn group_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{}", api_version(group, version))
    }
}

/// The version 2 document as JSON.
pub fn v2_json() -> Value {
    json!({ "swagger": "2.0", "info": { "title": "Kubernetes", "version": crate::GIT_VERSION }, "paths": {} })
}

/// The same as gnostic's `openapi.v2.Document`: swagger = 1, info = 2 { title = 1, version = 2 }, paths = 8.
pub fn v2_protobuf() -> Vec<u8> {
    let info = [field(1, b"Kubernetes"), field(2, crate::GIT_VERSION.as_bytes())].concat();
    [field(1, b"2.0"), field(2, &info), field(8, b"")].concat()
}

/// A length-delimited protobuf field; ours are shorter than 128 bytes, so that lengths take one byte.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u8::try_from(bytes.len()).expect("invariant: only short constants are encoded");
    [&[number << 3 | 2, length], bytes].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_document_is_valid_protobuf() {
        let expected = b"\x0a\x032.0\x12";
        assert!(v2_protobuf().starts_with(expected));
        assert!(v2_protobuf().ends_with(b"\x42\x00"));
    }

    #[test]
    fn every_group_version_has_a_document_that_tells_of_field_validation() {
        let registry = Registry::new();
        let segments = ["apis", "apps", "v1"].map(str::to_owned);
        let document = v3_document(&registry, &segments).expect("apps/v1 is served");
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
        assert_eq!(v3_document(&registry, &["api", "v9"].map(str::to_owned)), None);
    }
}

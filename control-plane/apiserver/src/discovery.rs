//! `/api`, `/apis`, and what lies below them: which resources there are. Both the old form (one document per group and
//! version) and the aggregated one (`apidiscovery.k8s.io/v2`), which saves kubectl some twenty requests.

use http::HeaderMap;
use http::header::ACCEPT;
use serde_json::{Value, json};

use crate::object::api_version;
use crate::resources::{Registry, Resource};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A discovery document and its content type.
pub type Document = (Value, &'static str);

/// Answers `/api…` and `/apis…`; `None` for a group or version that is not served.
pub fn document(registry: &Registry, segments: &[String], headers: &HeaderMap) -> Option<Document> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let aggregated = wants_aggregated(headers);
    let plain = |value: Value| Some((value, "application/json"));
    match words.as_slice() {
        ["api"] if aggregated => Some((group_list(registry, |group| group.is_empty()), AGGREGATED)),
        ["apis"] if aggregated => Some((group_list(registry, |group| !group.is_empty()), AGGREGATED)),
        ["api"] => plain(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [],
        })),
        ["apis"] => {
            let groups: Vec<Value> = registry
                .groups()
                .iter()
                .filter(|(group, _)| !group.is_empty())
                .map(|(group, versions)| api_group(group, versions))
                .collect();
            plain(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", group] => {
            let groups = registry.groups();
            let versions = groups.get(group).filter(|_| !group.is_empty())?;
            let mut found = api_group(group, versions);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            plain(found)
        }
        ["api", version] => plain(resource_list(registry, "", version)?),
        ["apis", group, version] => plain(resource_list(registry, group, version)?),
        _ => None,
    }
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    let accept = headers
        .get(ACCEPT)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    accept.split(',').any(|one| {
        one.contains("as=APIGroupDiscoveryList") && one.contains("v=v2") && !one.contains("v=v2beta1")
    })
}

fn api_group(group: &str, versions: &[&str]) -> Value {
    let entries: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": api_version(group, version), "version": version }))
        .collect();
    json!({ "name": group, "versions": entries, "preferredVersion": entries.first() })
}

fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let rows: Vec<&Resource> = registry
        .rows()
        .iter()
        .filter(|row| (row.group, row.version) == (group, version))
        .collect();
    if rows.is_empty() {
        return None;
    }
    let resources: Vec<Value> = rows.into_iter().flat_map(api_resources).collect();
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": api_version(group, version), "resources": resources,
    }))
}

fn api_resources(row: &Resource) -> Vec<Value> {
    let mut resource = json!({
        "name": row.plural, "singularName": row.singular, "namespaced": row.namespaced, "kind": row.kind,
        "verbs": row.verbs(),
    });
    if !row.short_names.is_empty() {
        resource["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        resource["categories"] = json!(row.categories);
    }
    let below = row.subresources().into_iter().map(|sub| {
        let mut entry = json!({
            "name": format!("{}/{}", row.plural, sub.name), "singularName": "", "namespaced": row.namespaced,
            "kind": sub.kind, "verbs": sub.verbs,
        });
        if let Some((group, version)) = sub.of {
            entry["group"] = group.into();
            entry["version"] = version.into();
        }
        entry
    });
    std::iter::once(resource).chain(below).collect()
}

fn group_list(registry: &Registry, wanted: impl Fn(&str) -> bool) -> Value {
    let items: Vec<Value> = registry
        .groups()
        .into_iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| version_discovery(registry, group, version))
                .collect();
            let metadata = if group.is_empty() {
                json!({})
            } else {
                json!({ "name": group })
            };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items })
}

fn version_discovery(registry: &Registry, group: &str, version: &str) -> Value {
    let rows = registry
        .rows()
        .iter()
        .filter(|row| (row.group, row.version) == (group, version));
    let resources: Vec<Value> = rows.map(resource_discovery).collect();
    json!({ "version": version, "freshness": "Current", "resources": resources })
}

fn resource_discovery(row: &Resource) -> Value {
    let kind =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let subresources: Vec<Value> = row
        .subresources()
        .into_iter()
        .map(|sub| {
            let (group, version) = sub.of.unwrap_or((row.group, row.version));
            json!({ "subresource": sub.name, "responseKind": kind(group, version, sub.kind), "verbs": sub.verbs })
        })
        .collect();
    let mut resource = json!({
        "resource": row.plural, "responseKind": kind(row.group, row.version, row.kind),
        "scope": if row.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": row.singular, "verbs": row.verbs(),
    });
    for (field, names) in [("shortNames", row.short_names), ("categories", row.categories)] {
        if !names.is_empty() {
            resource[field] = json!(names);
        }
    }
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}

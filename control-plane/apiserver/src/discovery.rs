//! `/api`, `/apis`, and what lies below them: which resources there are. Both the old form (one document per group and
//! version) and the aggregated one (`apidiscovery.k8s.io/v2`), which saves kubectl some twenty requests.

use axum::body::Body;
use http::header::ACCEPT;
use http::{HeaderMap, Response};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::features::{Feature, Features};
use crate::negotiate;
use crate::object::api_version;
use crate::resources::{Registry, Resource};
use crate::status::{Failure, Result};

/// The versions of the aggregated form, and their content types.
const AGGREGATED: [(&str, &str); 2] = [
    (
        "v2",
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
    ),
    (
        "v2beta1",
        "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    ),
];

/// Answers `/api…` and `/apis…`.
///
/// # Errors
/// 404 for a group or version that is not served.
pub fn answer(
    features: &Features,
    registry: &Registry,
    segments: &[String],
    headers: &HeaderMap,
) -> Result<Response<Body>> {
    let words: Vec<&str> = segments.iter().map(String::as_str).collect();
    let aggregated = match words.as_slice() {
        _ if !features.has(Feature::AggregatedDiscoveryEndpoint) => None,
        ["api"] => wanted_aggregated(headers).map(|wanted| (wanted, true)),
        ["apis"] => wanted_aggregated(headers).map(|wanted| (wanted, false)),
        _ => None,
    };
    if let Some(((version, content_type), core)) = aggregated {
        let text = group_list(registry, version, |group| group.is_empty() == core).to_string();
        let hash = hex::encode_upper(Sha256::digest(&text));
        return negotiate::tagged(content_type, &hash, headers, || Ok(text.into()));
    }
    let document = document(registry, &words).ok_or_else(Failure::no_such_path)?;
    Ok(negotiate::respond(200, &document, false))
}

/// The first of a client's alternatives decides, as far as it is served.
fn wanted_aggregated(headers: &HeaderMap) -> Option<(&'static str, &'static str)> {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok())?;
    for alternative in accept.split(',') {
        let parts: Vec<&str> = alternative.split(';').map(str::trim).collect();
        if !parts.contains(&"as=APIGroupDiscoveryList") {
            return None;
        }
        let asked = |version: &str| parts.contains(&format!("v={version}").as_str());
        if let Some(served) = AGGREGATED.into_iter().find(|(version, _)| asked(version)) {
            return Some(served);
        }
    }
    None
}

fn document(registry: &Registry, words: &[&str]) -> Option<Value> {
    match words {
        ["api"] => Some(json!({
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
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        ["apis", group] => {
            let groups = registry.groups();
            let versions = groups.get(group).filter(|_| !group.is_empty())?;
            let mut found = api_group(group, versions);
            found["kind"] = "APIGroup".into();
            found["apiVersion"] = "v1".into();
            Some(found)
        }
        ["api", version] => resource_list(registry, "", version),
        ["apis", group, version] => resource_list(registry, group, version),
        _ => None,
    }
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

fn group_list(registry: &Registry, version: &str, wanted: impl Fn(&str) -> bool) -> Value {
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
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_alternative_that_is_served_decides() {
        let aggregated = |version: &str| {
            format!("application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList")
        };
        for (accept, expected) in [
            (
                format!("{},application/json", aggregated("v2beta1")),
                Some("v2beta1"),
            ),
            (
                format!("{},{},application/json", aggregated("v2"), aggregated("v2beta1")),
                Some("v2"),
            ),
            (
                format!("{}, {}", aggregated("v3"), aggregated("v2beta1")),
                Some("v2beta1"),
            ),
            (format!("application/json,{}", aggregated("v2")), None),
            ("application/json, */*".to_owned(), None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a header"));
            let found = wanted_aggregated(&headers).map(|(version, _)| version);
            assert_eq!(found, expected, "{accept}");
        }
    }
}

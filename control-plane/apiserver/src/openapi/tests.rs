use std::collections::BTreeSet;

use super::*;
use crate::patch::lists::{ListRule, Place};

fn documents() -> Documents {
    Documents::new(&Features::default())
}

/// Every `$ref` in a document.
fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|below| references(below, found));
        }
        Value::Array(items) => items.iter().for_each(|below| references(below, found)),
        _ => {}
    }
}

#[track_caller]
fn check_whole(document: &Value, at: &str, dialect: Dialect) {
    let mut found = BTreeSet::new();
    references(document, &mut found);
    let definitions = document
        .pointer(at)
        .and_then(Value::as_object)
        .expect("definitions");
    let names: BTreeSet<String> = definitions
        .keys()
        .map(|name| format!("{}{name}", dialect.prefix()))
        .collect();
    let dangling: Vec<_> = found.iter().filter(|one| !names.contains(**one)).collect();
    assert_eq!(dangling, Vec::<&&str>::new());
}

#[test]
fn no_reference_leads_nowhere() {
    let documents = documents();
    check_whole(&documents.v2(), "/definitions", Dialect::V2);
    for (group, versions) in documents.registry().groups() {
        for version in versions {
            check_whole(&documents.v3(group, version), "/components/schemas", Dialect::V3);
        }
    }
}

#[test]
fn every_kind_is_described_and_found_by_its_paths() {
    let document = documents().v2();
    for row in Registry::global().rows() {
        let kind = json!({ "group": row.group, "version": row.version, "kind": row.kind });
        let definition = &document["definitions"][schemas::name(row)];
        let kinds = definition["x-kubernetes-group-version-kind"].as_array();
        assert!(kinds.is_some_and(|kinds| kinds.contains(&kind)), "{kind}");
        assert!(definition["description"].is_string(), "{kind}");
        let mut served = BTreeSet::new();
        for (path, item) in paths::of(row, Dialect::V2) {
            let operations = item
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(method, _)| *method != "parameters");
            for (method, operation) in operations.filter(|_| !path.contains("{name}/")) {
                assert_eq!(operation["x-kubernetes-group-version-kind"], kind, "{path}");
                let names = |one: &Value| one["name"] == "dryRun";
                let is_dry = operation["parameters"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(names));
                assert_eq!(is_dry, method != "get", "{method} {path}");
                served.insert(
                    operation["x-kubernetes-action"]
                        .as_str()
                        .expect("an action")
                        .to_owned(),
                );
            }
        }
        let verbs = row.verbs().iter().filter(|verb| **verb != "watch");
        let actions = verbs.map(|verb| match *verb {
            "create" => "post",
            "update" => "put",
            other => other,
        });
        assert_eq!(served, actions.map(str::to_owned).collect(), "{kind}");
    }
}

#[test]
fn versions_of_one_type_are_one_definition_and_what_has_none_is_any_object() {
    let row = |version, kind| {
        Resource::new::<k8s_openapi::api::batch::v1::CronJob>(("batch", version), kind, "cronjobs")
    };
    let any = Resource::new::<Value>(("metrics.k8s.io", "v1beta1"), "PodMetrics", "pods");
    let rows = [row("v1", "CronJob"), row("v0", "CronJob"), any];
    let definitions = schemas::of(rows.iter(), Dialect::V2);
    let kinds = |name: &str| definitions[name]["x-kubernetes-group-version-kind"].clone();
    let kind = |version: &str, kind: &str| json!({ "group": "batch", "version": version, "kind": kind });
    let both = |of: &str| json!([kind("v1", of), kind("v0", of)]);
    assert_eq!(kinds("io.k8s.api.batch.v1.CronJob"), both("CronJob"));
    assert_eq!(kinds("io.k8s.api.batch.v1.CronJobList"), both("CronJobList"));
    let any = &definitions["io.k8s.metrics.v1beta1.PodMetrics"];
    assert_eq!(any["x-kubernetes-preserve-unknown-fields"], true);
}

#[test]
fn ids_of_operations_are_upstreams_and_differ() {
    let document = documents().v2();
    let mut ids = BTreeSet::new();
    for operation in document["paths"]
        .as_object()
        .into_iter()
        .flat_map(|paths| paths.values())
    {
        for (method, operation) in operation.as_object().into_iter().flatten() {
            if method != "parameters" {
                let id = operation["operationId"].as_str().expect("an id").to_owned();
                assert!(ids.insert(id.clone()), "{id} twice");
            }
        }
    }
    for id in [
        "listAppsV1NamespacedDeployment",
        "listAppsV1DeploymentForAllNamespaces",
        "deleteAppsV1CollectionNamespacedDeployment",
        "replaceAppsV1NamespacedDeploymentStatus",
        "patchAppsV1NamespacedDeploymentScale",
        "readCoreV1Node",
        "connectPostCoreV1NamespacedPodExec",
        "createCoreV1NamespacedPodEviction",
        "createAuthorizationV1SelfSubjectAccessReview",
        "createRbacAuthorizationV1ClusterRole",
    ] {
        assert!(ids.contains(id), "{id}");
    }
}

#[test]
fn merge_rules_are_those_of_fields_that_there_are() {
    let definitions = documents().v2()["definitions"].take();
    let mut found = 0;
    for schema in definitions.as_object().into_iter().flat_map(|all| all.values()) {
        for field in schema["properties"]
            .as_object()
            .into_iter()
            .flat_map(|fields| fields.values())
        {
            found += usize::from(field.get("x-kubernetes-patch-strategy").is_some());
            let key = field["x-kubernetes-patch-merge-key"].as_str();
            let of = field["items"]["$ref"]
                .as_str()
                .map(|name| name.trim_start_matches(Dialect::V2.prefix()));
            if let Some((key, of)) = key.zip(of) {
                assert!(
                    definitions[of]["properties"][key].is_object(),
                    "{of} has no {key}"
                );
            }
        }
    }
    assert_eq!(found, merge::FIELDS.len());
}

/// kubectl computes patches by what it is told, and the server carries them out by a table of its own.
#[test]
fn kubectl_is_told_the_merge_keys_that_the_server_goes_by() {
    for (definition, field, strategy, key) in merge::FIELDS {
        let (_, kind) = definition.rsplit_once('.').expect("a group before it");
        let place = match kind {
            "ServiceAccount" => Place::ROOT,
            "Container" => Place::ROOT.below("containers"),
            "EphemeralContainer" => Place::ROOT.below("ephemeralContainers"),
            "ContainerStatus" => Place::ROOT.below("containerStatuses"),
            "ObjectMeta" => Place::ROOT.below("metadata"),
            kind if kind.ends_with("Spec") => Place::ROOT.below("spec"),
            kind if kind.ends_with("Status") => Place::ROOT.below("status"),
            kind => panic!("where does a {kind} stand?"),
        };
        let rule = place.below(field).list_rule();
        let is_merged = strategy.starts_with("merge");
        match key {
            "" if is_merged => assert_eq!(rule, ListRule::Set, "{definition} {field}"),
            "" => assert_eq!(rule.merge_key(), None, "{definition} {field}"),
            key => assert_eq!(rule.merge_key(), Some(key), "{definition} {field}"),
        }
    }
}

/// Rows of upstream's `swagger.json`; and no list is left out because it stands in places that differ.
#[test]
fn how_an_apply_merges_lists_is_told_of_every_list() {
    let definitions = documents().v2()["definitions"].take();
    for (definition, field, kind, keys) in [
        ("core.v1.PodSpec", "containers", "map", &["name"][..]),
        ("core.v1.PodSpec", "tolerations", "atomic", &[]),
        (
            "core.v1.PodSpec",
            "topologySpreadConstraints",
            "map",
            &["topologyKey", "whenUnsatisfiable"],
        ),
        (
            "core.v1.Container",
            "ports",
            "map",
            &["containerPort", "protocol"],
        ),
        ("core.v1.Container", "args", "atomic", &[]),
        ("core.v1.ResourceRequirements", "claims", "map", &["name"]),
        ("core.v1.PodStatus", "hostIPs", "atomic", &[]),
        ("core.v1.ServiceSpec", "ports", "map", &["port", "protocol"]),
        ("core.v1.ServiceAccount", "secrets", "map", &["name"]),
        ("core.v1.ServiceAccount", "imagePullSecrets", "atomic", &[]),
        ("core.v1.NodeSpec", "podCIDRs", "set", &[]),
        ("apps.v1.DeploymentStatus", "conditions", "map", &["type"]),
        ("batch.v1.UncountedTerminatedPods", "failed", "set", &[]),
        ("discovery.v1.EndpointSlice", "endpoints", "atomic", &[]),
        ("rbac.v1.ClusterRole", "rules", "atomic", &[]),
    ] {
        let list = &definitions[format!("io.k8s.api.{definition}")]["properties"][field];
        assert_eq!(list["x-kubernetes-list-type"], kind, "{definition} {field}");
        let told = list["x-kubernetes-list-map-keys"].as_array();
        let told = told.into_iter().flatten().filter_map(Value::as_str);
        assert_eq!(told.collect::<Vec<_>>(), keys, "{definition} {field}");
    }
    for (name, schema) in definitions.as_object().into_iter().flatten() {
        for (field, property) in schema["properties"].as_object().into_iter().flatten() {
            let is_told = property["x-kubernetes-list-type"].is_string();
            assert_eq!(is_told, property["type"] == "array", "{name} {field}");
        }
    }
}

#[test]
fn version_3_refers_beside_nothing_else_and_knows_what_is_string_or_number() {
    let document = documents().v3("apps", "v1");
    let schemas = &document["components"]["schemas"];
    let reference = |name: &str| json!([{ "$ref": format!("#/components/schemas/io.k8s.{name}") }]);
    let spec = &schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["spec"];
    assert_eq!(spec["allOf"], reference("api.apps.v1.DeploymentSpec"));
    assert_eq!(
        spec["description"],
        "Specification of the desired behavior of the Deployment."
    );
    let either = &schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"];
    assert_eq!(
        either["oneOf"],
        json!([{ "type": "integer" }, { "type": "string" }])
    );
    assert_eq!(either["format"], "int-or-string");
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(containers["x-kubernetes-patch-merge-key"], "name");
}

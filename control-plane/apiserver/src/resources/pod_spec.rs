//! Pod specs, in Pods and in the templates of workloads: defaults and rules.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::container::{self, items, one_of, validate_label};
use super::field::{Errors, Path};
use super::names::validate_labels;
use crate::object::{Fields, default_to};

const LISTS: [&str; 2] = ["initContainers", "containers"];

/// `SetDefaults_PodSpec` and what hangs below it.
pub(super) fn defaults(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    default_to(spec, "dnsPolicy", "ClusterFirst");
    default_to(spec, "restartPolicy", "Always");
    default_to(spec, "schedulerName", "default-scheduler");
    default_to(spec, "terminationGracePeriodSeconds", 30);
    if spec.at("securityContext").is_null() {
        spec["securityContext"] = json!({});
    }
    // The old and the new name of one field stay equal (`Convert_core_PodSpec_To_v1_PodSpec`).
    if spec.text("serviceAccountName").is_empty() && !spec.text("serviceAccount").is_empty() {
        spec["serviceAccountName"] = spec["serviceAccount"].clone();
    }
    if !spec.text("serviceAccountName").is_empty() {
        spec["serviceAccount"] = spec["serviceAccountName"].clone();
    }
    let host_network = spec.flag("hostNetwork");
    for list in LISTS {
        items(spec, list).for_each(|one| container::defaults(one, host_network));
    }
    items(spec, "volumes").for_each(volume_defaults);
}

/// `requests` from `limits`, for Pods only: a template keeps what its author wrote.
pub(super) fn requests_from_limits(spec: &mut Value) {
    for list in LISTS {
        items(spec, list).for_each(container::requests_from_limits);
    }
}

fn volume_defaults(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |map| map.len());
    if sources == 1 && !volume.at("name").is_null() {
        volume["emptyDir"] = json!({});
    }
    for source in ["configMap", "secret", "downwardAPI", "projected"] {
        if volume.at(source).is_object() {
            default_to(&mut volume[source], "defaultMode", 0o644);
        }
    }
    if volume.at("hostPath").is_object() && volume.at("hostPath.type").is_null() {
        volume["hostPath"]["type"] = "".into();
    }
    if volume.at("projected").is_object() {
        for source in items(&mut volume["projected"], "sources") {
            if source.at("serviceAccountToken").is_object() {
                default_to(&mut source["serviceAccountToken"], "expirationSeconds", 3600);
            }
        }
    }
}

/// `ValidatePodSpec`.
pub(super) fn validate(spec: &Value, at: &Path, errors: &mut Errors) {
    let volumes = validate_volumes(spec.list("volumes"), &at.child("volumes"), errors);
    if spec.list("containers").is_empty() {
        errors.required(&at.child("containers"), "");
    }
    let mut names = HashSet::new();
    for list in ["containers", "initContainers"] {
        container::validate_all(spec.list(list), &at.child(list), &volumes, &mut names, errors);
    }
    one_of(
        spec,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
        at,
        errors,
    );
    let dns_policies = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(spec, "dnsPolicy", dns_policies, at, errors);
    if spec.text("dnsPolicy") == "None" && spec.list("dnsConfig.nameservers").is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.required(&at.child("dnsConfig").child("nameservers"), detail);
    }
    validate_labels(spec.at("nodeSelector"), &at.child("nodeSelector"), errors);
    for (field, rule) in [
        ("hostname", super::NameRule::Label),
        ("subdomain", super::NameRule::Label),
    ] {
        let value = spec.text(field);
        if let Some(complaint) = rule.complaint(value).filter(|_| !value.is_empty()) {
            errors.invalid(&at.child(field), value, complaint);
        }
    }
    if let Some(deadline) = spec.int("activeDeadlineSeconds").filter(|seconds| *seconds < 1) {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.invalid(&at.child("activeDeadlineSeconds"), deadline, detail);
    }
    if let Some(grace) = spec
        .int("terminationGracePeriodSeconds")
        .filter(|seconds| *seconds < 0)
    {
        errors.invalid(
            &at.child("terminationGracePeriodSeconds"),
            grace,
            "must be greater than or equal to 0",
        );
    }
    for (index, toleration) in spec.list("tolerations").iter().enumerate() {
        validate_toleration(toleration, &at.child("tolerations").index(index), errors);
    }
}

fn validate_volumes<'a>(volumes: &'a [Value], at: &Path, errors: &mut Errors) -> HashSet<&'a str> {
    let mut names = HashSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let at = at.index(index);
        let name = volume.text("name");
        validate_label(name, &at.child("name"), errors);
        if !name.is_empty() && !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        let sources: Vec<&String> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, source)| source.is_object())
            .map(|(n, _)| n)
            .collect();
        for extra in sources.iter().skip(1) {
            errors.forbidden(&at.child(extra), "may not specify more than 1 volume type");
        }
        if sources.is_empty() {
            errors.required(&at, "must specify a volume type");
        }
        if volume.at("hostPath").is_object() && volume.text("hostPath.path").is_empty() {
            errors.required(&at.child("hostPath").child("path"), "");
        }
        if volume.at("secret").is_object() && volume.text("secret.secretName").is_empty() {
            errors.required(&at.child("secret").child("secretName"), "");
        }
        if volume.at("configMap").is_object() && volume.text("configMap.name").is_empty() {
            errors.required(&at.child("configMap").child("name"), "");
        }
    }
    names
}

fn validate_toleration(toleration: &Value, at: &Path, errors: &mut Errors) {
    let (key, operator) = (toleration.text("key"), toleration.text("operator"));
    if key.is_empty() && operator != "Exists" {
        let detail =
            "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        errors.invalid(&at.child("operator"), operator, detail);
    }
    if !matches!(operator, "" | "Equal" | "Exists") {
        errors.not_supported(&at.child("operator"), operator, &["Equal", "Exists"]);
    }
    if operator == "Exists" && !toleration.text("value").is_empty() {
        let detail = "value must be empty when `operator` is 'Exists'";
        errors.invalid(&at.child("operator"), toleration.at("value").clone(), detail);
    }
    let effect = toleration.text("effect");
    if !matches!(effect, "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute") {
        let effects = &["NoExecute", "NoSchedule", "PreferNoSchedule"];
        errors.not_supported(&at.child("effect"), effect, effects);
    }
}

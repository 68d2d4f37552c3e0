//! `apps`: Deployments, ReplicaSets, DaemonSets, StatefulSets, ControllerRevisions.

use k8s_openapi::api::apps::v1 as apps;
use serde_json::{Value, json};

use super::field::{Errors, Path};
use super::names::validate_labels;
use super::{Resource, pod_spec};
use crate::object::{Fields, default_to};
use crate::table::workloads as table;

const GROUP: (&str, &str) = ("apps", "v1");

pub(super) fn rows() -> Vec<Resource> {
    vec![
        Resource::new::<apps::ControllerRevision>(GROUP, "ControllerRevision", "controllerrevisions")
            .printed(table::CONTROLLER_REVISION, table::controller_revision),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<apps::DaemonSet>(GROUP, "DaemonSet", "daemonsets")
        }
        .short(&["ds"])
        .in_all()
        .with_status()
        .with_generation()
        .printed(table::DAEMON_SET, table::daemon_set)
        .defaulted(daemon_set_defaults)
        .validated(validate, validate_update),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<apps::Deployment>(GROUP, "Deployment", "deployments")
        }
        .short(&["deploy"])
        .in_all()
        .with_status()
        .with_scale()
        .with_generation()
        .printed(table::DEPLOYMENT, table::deployment)
        .defaulted(deployment_defaults)
        .validated(validate_deployment, validate_update),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<apps::ReplicaSet>(GROUP, "ReplicaSet", "replicasets")
        }
        .short(&["rs"])
        .in_all()
        .with_status()
        .with_scale()
        .with_generation()
        .selectable_by(&["status.replicas"])
        .printed(table::REPLICA_SET, table::replica_set)
        .defaulted(replica_defaults)
        .validated(validate, validate_update),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<apps::StatefulSet>(GROUP, "StatefulSet", "statefulsets")
        }
        .short(&["sts"])
        .in_all()
        .with_status()
        .with_scale()
        .with_generation()
        .printed(table::STATEFUL_SET, table::stateful_set)
        .defaulted(stateful_set_defaults)
        .validated(validate, validate_update),
    ]
}

/// Status is the controller's to write.
pub(super) fn clear_status(object: &mut Value) {
    object["status"] = json!({});
}

fn spec_and_template(object: &mut Value) -> &mut Value {
    crate::object::section(object, "spec");
    let spec = &mut object["spec"];
    if spec.at("template.spec").is_object() {
        pod_spec::defaults(&mut spec["template"]["spec"]);
    }
    spec
}

/// ReplicaSets, and ReplicationControllers alike.
pub(super) fn replica_defaults(object: &mut Value) {
    default_to(spec_and_template(object), "replicas", 1);
}

fn deployment_defaults(object: &mut Value) {
    let spec = spec_and_template(object);
    for (field, value) in [
        ("replicas", 1),
        ("revisionHistoryLimit", 10),
        ("progressDeadlineSeconds", 600),
    ] {
        default_to(spec, field, value);
    }
    rolling_update_defaults(
        spec,
        "strategy",
        &[("maxSurge", json!("25%")), ("maxUnavailable", json!("25%"))],
    );
}

fn daemon_set_defaults(object: &mut Value) {
    let spec = spec_and_template(object);
    default_to(spec, "revisionHistoryLimit", 10);
    rolling_update_defaults(
        spec,
        "updateStrategy",
        &[("maxSurge", json!(0)), ("maxUnavailable", json!(1))],
    );
}

fn stateful_set_defaults(object: &mut Value) {
    let spec = spec_and_template(object);
    for (field, value) in [("replicas", 1), ("revisionHistoryLimit", 10)] {
        default_to(spec, field, value);
    }
    default_to(spec, "podManagementPolicy", "OrderedReady");
    rolling_update_defaults(spec, "updateStrategy", &[("partition", json!(0))]);
    if spec.at("persistentVolumeClaimRetentionPolicy").is_null() {
        spec["persistentVolumeClaimRetentionPolicy"] =
            json!({ "whenDeleted": "Retain", "whenScaled": "Retain" });
    }
}

fn rolling_update_defaults(spec: &mut Value, field: &str, values: &[(&str, Value)]) {
    if !spec.at(field).is_object() {
        spec[field] = json!({});
    }
    let strategy = &mut spec[field];
    default_to(strategy, "type", "RollingUpdate");
    if strategy.text("type") != "RollingUpdate" {
        return;
    }
    if !strategy.at("rollingUpdate").is_object() {
        strategy["rollingUpdate"] = json!({});
    }
    for (name, value) in values {
        default_to(&mut strategy["rollingUpdate"], name, value.clone());
    }
}

fn validate_deployment(object: &Value, errors: &mut Errors) {
    validate(object, errors);
    let at = Path::new("spec").child("strategy");
    let strategy = object.at("spec.strategy");
    match strategy.text("type") {
        "RollingUpdate" => {
            let zero = |field: &str| {
                matches!(strategy.at("rollingUpdate").at(field), Value::Number(n) if n.as_i64() == Some(0))
                    || strategy.at("rollingUpdate").text(field) == "0%"
            };
            if zero("maxSurge") && zero("maxUnavailable") {
                let at = at.child("rollingUpdate").child("maxUnavailable");
                errors.invalid(&at, 0, "may not be 0 when `maxSurge` is 0");
            }
        }
        "Recreate" if strategy.at("rollingUpdate").is_object() => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.forbidden(&at.child("rollingUpdate"), detail);
        }
        "Recreate" => {}
        other => errors.not_supported(&at.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
}

/// Counts, selector and template: what all workloads have in common.
pub(super) fn validate(object: &Value, errors: &mut Errors) {
    let at = Path::new("spec");
    let spec = object.at("spec");
    for field in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        if let Some(number) = spec.int(field).filter(|number| *number < 0) {
            errors.invalid(&at.child(field), number, "must be greater than or equal to 0");
        }
    }
    let (selector, template) = (spec.at("selector"), spec.at("template"));
    let empty = |field: &str| {
        selector
            .at(field)
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
    };
    let at_selector = at.child("selector");
    if selector.is_null() {
        errors.required(&at_selector, "");
    } else if empty("matchLabels") && selector.list("matchExpressions").is_empty() {
        // An absent selector arrives as an empty one, since its type is not optional.
        match selector.as_object().is_none_or(serde_json::Map::is_empty) {
            true => errors.required(&at_selector, ""),
            false => errors.invalid(
                &at_selector,
                selector.clone(),
                "empty selector is invalid for deployment",
            ),
        }
    } else if !selects(selector, template.at("metadata.labels")) {
        let labels = template.at("metadata.labels").clone();
        let labels = if labels.is_null() { json!({}) } else { labels };
        let detail = "`selector` does not match template `labels`";
        errors.invalid(
            &at.child("template").child("metadata").child("labels"),
            labels,
            detail,
        );
    }
    validate_labels(
        selector.at("matchLabels"),
        &at_selector.child("matchLabels"),
        errors,
    );
    validate_template(template, &at.child("template"), errors);
}

/// The pod template of a workload whose pods always restart.
pub(super) fn validate_template(template: &Value, at: &Path, errors: &mut Errors) {
    let labels = at.child("metadata").child("labels");
    validate_labels(template.at("metadata.labels"), &labels, errors);
    let policy = template.text("spec.restartPolicy");
    if matches!(policy, "OnFailure" | "Never") {
        errors.not_supported(&at.child("spec").child("restartPolicy"), policy, &["Always"]);
    }
    if !template.at("spec").is_object() {
        errors.required(&at.child("spec").child("containers"), "");
    } else {
        pod_spec::validate(template.at("spec"), &at.child("spec"), errors);
    }
}

/// A `metav1.LabelSelector` against labels.
pub(super) fn selects(selector: &Value, labels: &Value) -> bool {
    let equal = selector
        .at("matchLabels")
        .as_object()
        .into_iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    equal
        && selector.list("matchExpressions").iter().all(|expression| {
            let label = labels.get(expression.text("key"));
            let listed = label.is_some_and(|label| expression.list("values").contains(label));
            match expression.text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}

/// The selector of a workload never changes.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let at = Path::new("spec").child("selector");
    errors.immutable(&at, new.at("spec.selector"), old.at("spec.selector"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(mut object: Value, expected: &[&str]) {
        deployment_defaults(&mut object);
        let mut errors = Errors::default();
        validate_deployment(&object, &mut errors);
        let told: Vec<String> = match errors.into_result() {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(told, expected);
    }

    fn deployment(selector: Value, labels: Value, containers: Value) -> Value {
        let template = json!({ "metadata": { "labels": labels }, "spec": { "containers": containers } });
        json!({ "spec": { "selector": selector, "template": template } })
    }

    #[test]
    fn deployments_are_judged_in_the_words_of_upstream() {
        let web = || json!({ "app": "web" });
        let selector = || json!({ "matchLabels": { "app": "web" } });
        let containers = || json!([{ "name": "a", "image": "x" }]);
        check(deployment(selector(), web(), containers()), &[]);
        check(
            deployment(json!({}), web(), containers()),
            &["spec.selector: Required value"],
        );
        check(
            deployment(selector(), json!({ "app": "b" }), containers()),
            &[
                "spec.template.metadata.labels: Invalid value: map[string]string{\"app\":\"b\"}: `selector` does not match template `labels`",
            ],
        );
        check(
            deployment(selector(), web(), json!([])),
            &["spec.template.spec.containers: Required value"],
        );
        check(
            deployment(selector(), web(), json!([{ "name": "a" }])),
            &["spec.template.spec.containers[0].image: Required value"],
        );
        check(
            deployment(
                selector(),
                web(),
                json!([{ "name": "a", "image": "x", "imagePullPolicy": "Sometimes" }]),
            ),
            &[
                "spec.template.spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
            ],
        );
    }

    #[test]
    fn selectors_with_expressions_are_evaluated() {
        let expression = |operator: &str, values: Value| json!({ "matchExpressions": [{ "key": "a", "operator": operator, "values": values }] });
        for (operator, labels, expected) in [
            ("In", json!({ "a": "1" }), true),
            ("NotIn", json!({ "a": "1" }), false),
            ("NotIn", json!({}), true),
            ("Exists", json!({ "a": "2" }), true),
            ("DoesNotExist", json!({ "a": "2" }), false),
        ] {
            assert_eq!(
                selects(&expression(operator, json!(["1"])), &labels),
                expected,
                "{operator} {labels}"
            );
        }
    }
}

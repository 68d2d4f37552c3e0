//! Pods: the strategy (`pkg/registry/core/pod/strategy.go`) and the rules that hold for Pods but not for templates.

use serde_json::{Value, json};

use super::container::quantity_milli;
use super::field::{Errors, Path};
use super::pod_spec;
use crate::object::{self, Fields};

/// `SetDefaults_Pod` and what admission fills in on a cluster without special plugins.
pub(super) fn defaults(pod: &mut Value) {
    if !pod.at("spec").is_object() {
        return;
    }
    let spec = &mut pod["spec"];
    pod_spec::requests_from_limits(spec);
    if spec.at("enableServiceLinks").is_null() {
        spec["enableServiceLinks"] = true.into();
    }
    pod_spec::defaults(spec);
}

/// A new Pod is Pending; its quality of service is decided once.
pub(super) fn prepare_create(pod: &mut Value) {
    pod["status"] = json!({ "phase": "Pending", "qosClass": quality_of_service(pod.at("spec")) });
    let spec = &mut pod["spec"];
    // Priority admission without a PriorityClass.
    object::default_to(spec, "priority", 0);
    object::default_to(spec, "preemptionPolicy", "PreemptLowerPriority");
    tolerate_short_outages(spec);
}

/// Admission `DefaultTolerationSeconds`: five minutes on a node that does not answer.
fn tolerate_short_outages(spec: &mut Value) {
    for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
        let tolerated = spec.list("tolerations").iter().any(|toleration| {
            let about_key = toleration.text("key") == key || toleration.text("key").is_empty();
            about_key && matches!(toleration.text("effect"), "" | "NoExecute")
        });
        if !tolerated {
            let added =
                json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 });
            match spec.get_mut("tolerations").and_then(Value::as_array_mut) {
                Some(list) => list.push(added),
                None => spec["tolerations"] = json!([added]),
            }
        }
    }
}

/// `GetPodQOS`: Guaranteed when every container's cpu and memory limits equal its requests.
fn quality_of_service(spec: &Value) -> &'static str {
    let containers: Vec<&Value> = spec
        .list("containers")
        .iter()
        .chain(spec.list("initContainers"))
        .collect();
    let amount = |container: &Value, list: &str, resource: &str| {
        quantity_milli(container.at("resources").at(list).text(resource)).filter(|amount| *amount > 0)
    };
    let guaranteed = containers.iter().all(|container| {
        ["cpu", "memory"].iter().all(|resource| {
            let limit = amount(container, "limits", resource);
            limit.is_some() && limit == amount(container, "requests", resource)
        })
    });
    let any = containers.iter().any(|container| {
        ["limits", "requests"].iter().any(|list| {
            ["cpu", "memory"]
                .iter()
                .any(|resource| amount(container, list, resource).is_some())
        })
    });
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `ValidatePodCreate`.
pub(super) fn validate(pod: &Value, errors: &mut Errors) {
    pod_spec::validate(pod.at("spec"), &Path::new("spec"), errors);
}

/// `ValidatePodUpdate`: images, tolerations and the deadline may change, the node once.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let spec = Path::new("spec");
    if new.list("spec.containers").len() != old.list("spec.containers").len() {
        errors.forbidden(
            &spec.child("containers"),
            "pod updates may not add or remove containers",
        );
        return;
    }
    let old_tolerations = old.list("spec.tolerations");
    if !old_tolerations
        .iter()
        .all(|toleration| new.list("spec.tolerations").contains(toleration))
    {
        let detail = "existing toleration can not be modified except its tolerationSeconds";
        errors.forbidden(&spec.child("tolerations"), detail);
        return;
    }
    if frozen(new, old) != frozen(old, old) {
        errors.forbidden(
            &spec,
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        );
    }
}

/// The spec of `pod` with everything that may change taken from `reference`.
fn frozen(pod: &Value, reference: &Value) -> Value {
    let mut spec = pod.at("spec").clone();
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        object::copy_field(reference.at("spec"), &mut spec, field);
    }
    for list in ["containers", "initContainers"] {
        let images: Vec<Value> = reference
            .at("spec")
            .list(list)
            .iter()
            .map(|one| one.at("image").clone())
            .collect();
        for (container, image) in super::container::items(&mut spec, list).zip(images) {
            container["image"] = image;
        }
    }
    spec
}

/// Nothing of the Pod runs, or ever will.
pub fn is_finished(pod: &Value) -> bool {
    matches!(pod.text("status.phase"), "Succeeded" | "Failed")
}

/// The Pod says that it is ready.
pub fn is_ready(pod: &Value) -> bool {
    pod.list("status.conditions")
        .iter()
        .any(|one| one.text("type") == "Ready" && one.text("status") == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service_follows_requests_and_limits() {
        let pod = |resources: Value| json!({ "containers": [{ "name": "a", "resources": resources }] });
        let both = json!({ "cpu": "1", "memory": "1Gi" });
        for (spec, expected) in [
            (pod(json!({})), "BestEffort"),
            (pod(json!({ "requests": { "cpu": "1" } })), "Burstable"),
            (pod(json!({ "limits": both, "requests": both })), "Guaranteed"),
            (
                pod(json!({ "limits": both, "requests": { "cpu": "1", "memory": "1Mi" } })),
                "Burstable",
            ),
        ] {
            assert_eq!(quality_of_service(&spec), expected, "{spec}");
        }
    }

    #[test]
    fn only_images_tolerations_and_deadline_of_a_pod_change() {
        let pod = |image: &str, node: &str| json!({ "spec": { "nodeName": node, "containers": [{ "name": "a", "image": image }] } });
        for (new, good) in [(pod("b", "n1"), true), (pod("a", "n2"), false)] {
            let mut errors = Errors::default();
            validate_update(&new, &pod("a", "n1"), &mut errors);
            assert_eq!(errors.into_result().is_ok(), good, "{new}");
        }
    }
}

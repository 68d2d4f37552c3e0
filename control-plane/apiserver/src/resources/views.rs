//! Kinds in another form than the stored one: older versions that clients still send, and Events of `events.k8s.io`.
//! Nothing is stored twice: a view is made of the stored object, and a stored object of what came in.

use k8s_openapi::serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};

use super::{codec, events};
use crate::object::{self, Fields};

/// What of an autoscaler version 1 has no field for stands in these annotations (`pkg/apis/autoscaling/annotations.go`),
/// here in the words of version 2.
const IN_ANNOTATIONS: [(&str, &str, &str); 4] = [
    ("spec", "metrics", "autoscaling.alpha.kubernetes.io/metrics"),
    ("spec", "behavior", "autoscaling.alpha.kubernetes.io/behavior"),
    (
        "status",
        "conditions",
        "autoscaling.alpha.kubernetes.io/conditions",
    ),
    (
        "status",
        "currentMetrics",
        "autoscaling.alpha.kubernetes.io/current-metrics",
    ),
];
/// The key of a selector that selects nothing, as an empty one did in `policy/v1beta1`
/// (`pkg/apis/policy/v1beta1/conversion.go`).
const SELECTS_NOTHING: &str = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match";

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// `events.k8s.io/v1` of core Events.
    Event,
    /// `autoscaling/v1` of `autoscaling/v2`.
    Autoscaler,
    /// `batch/v1beta1` of `batch/v1`: the same fields.
    CronJob,
    /// `policy/v1beta1` of `policy/v1`: an empty selector selects nothing.
    DisruptionBudget,
}

impl View {
    /// Group, version, kind and plural name of what is stored.
    pub(super) fn stored(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            View::Event => ("", "v1", "Event", "events"),
            View::Autoscaler => (
                "autoscaling",
                "v2",
                "HorizontalPodAutoscaler",
                "horizontalpodautoscalers",
            ),
            View::CronJob => ("batch", "v1", "CronJob", "cronjobs"),
            View::DisruptionBudget => ("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets"),
        }
    }

    /// From the stored form to the version `shown` of the same group.
    pub(super) fn outward(self, mut object: Value, shown: String) -> Value {
        match self {
            View::Event => return events::from_core(object),
            View::Autoscaler => autoscaler_outward(&mut object),
            View::CronJob => {}
            View::DisruptionBudget => {
                if object.pointer("/spec/selector") == Some(&selects_nothing()) {
                    object["spec"]["selector"] = json!({});
                }
            }
        }
        object["apiVersion"] = shown.into();
        object
    }

    /// To the stored form.
    pub(super) fn inward(self, mut object: Value) -> Value {
        match self {
            View::Event => return events::to_core(object),
            View::Autoscaler => autoscaler_inward(&mut object),
            View::CronJob => {}
            View::DisruptionBudget => {
                let selector = object.pointer("/spec/selector");
                if selector.and_then(Value::as_object).is_some_and(Map::is_empty) {
                    object["spec"]["selector"] = selects_nothing();
                }
            }
        }
        let (group, version, ..) = self.stored();
        object["apiVersion"] = object::api_version(group, version).into();
        object
    }
}

/// Through the type of the stored version, which has the same fields.
pub(super) fn decode_as<T: Serialize + DeserializeOwned>(
    mut object: Value,
    stored: &str,
) -> Result<Value, String> {
    let shown = object::remove(&mut object, "apiVersion").unwrap_or_default();
    object["apiVersion"] = stored.into();
    let mut decoded = codec::round_trip::<T>(object)?;
    decoded["apiVersion"] = shown;
    Ok(decoded)
}

fn selects_nothing() -> Value {
    json!({ "matchExpressions": [{ "key": SELECTS_NOTHING, "operator": "Exists" }] })
}

fn is_cpu(metric: &Value) -> bool {
    metric.text("type") == "Resource" && metric.text("resource.name") == "cpu"
}

/// Takes out the first metric that version 1 has a field for, and says its value.
fn take_utilization(section: &mut Value, list: &str, path: &str) -> Option<Value> {
    let metrics = section.get_mut(list)?.as_array_mut()?;
    let at = metrics
        .iter()
        .position(|metric| is_cpu(metric) && metric.at(path).is_number())?;
    let utilization = metrics.remove(at).at(path).clone();
    if metrics.is_empty() {
        object::remove(section, list);
    }
    Some(utilization)
}

fn autoscaler_outward(object: &mut Value) {
    for (section, list, path, field) in [
        (
            "spec",
            "metrics",
            "resource.target.averageUtilization",
            "targetCPUUtilizationPercentage",
        ),
        (
            "status",
            "currentMetrics",
            "resource.current.averageUtilization",
            "currentCPUUtilizationPercentage",
        ),
    ] {
        let Some(section) = object.get_mut(section) else {
            continue;
        };
        if let Some(utilization) = take_utilization(section, list, path) {
            section[field] = utilization;
        }
    }
    for (section, field, annotation) in IN_ANNOTATIONS {
        let value = object
            .get_mut(section)
            .and_then(|section| object::remove(section, field));
        if let Some(value) = value {
            let annotations = object::metadata(object)
                .entry("annotations")
                .or_insert_with(|| json!({}));
            annotations[annotation] = value.to_string().into();
        }
    }
}

fn autoscaler_inward(object: &mut Value) {
    for (section, field, annotation) in IN_ANNOTATIONS {
        let annotations = object.pointer_mut("/metadata/annotations");
        let text = annotations.and_then(|annotations| object::remove(annotations, annotation));
        let value = text
            .as_ref()
            .and_then(Value::as_str)
            .map(serde_json::from_str::<Value>);
        if let Some(Ok(value)) = value {
            object::section(object, section).insert(field.to_owned(), value);
        }
    }
    let unannotated = object
        .pointer("/metadata/annotations")
        .and_then(Value::as_object)
        .is_some_and(Map::is_empty);
    if unannotated {
        object::metadata(object).remove("annotations");
    }
    for (section, list, from, metric) in [
        (
            "spec",
            "metrics",
            "targetCPUUtilizationPercentage",
            (|value| json!({ "target": { "type": "Utilization", "averageUtilization": value } }))
                as fn(Value) -> Value,
        ),
        (
            "status",
            "currentMetrics",
            "currentCPUUtilizationPercentage",
            |value| json!({ "current": { "averageUtilization": value, "averageValue": "0" } }),
        ),
    ] {
        let value = object
            .get_mut(section)
            .and_then(|section| object::remove(section, from));
        let Some(value) = value.filter(Value::is_number) else {
            continue;
        };
        let mut resource = metric(value);
        resource["name"] = "cpu".into();
        let cpu = json!({ "type": "Resource", "resource": resource });
        let metrics = object::section(object, section)
            .entry(list)
            .or_insert_with(|| json!([]));
        if let Value::Array(metrics) = metrics {
            metrics.insert(0, cpu);
        }
    }
}

/// `SetDefaults_HorizontalPodAutoscaler` of version 2.
pub(super) fn autoscaler_defaults(object: &mut Value) {
    let spec = object::section(object, "spec");
    if spec.get("minReplicas").is_none_or(Value::is_null) {
        spec.insert("minReplicas".to_owned(), 1.into());
    }
    if spec
        .get("metrics")
        .and_then(Value::as_array)
        .is_none_or(Vec::is_empty)
    {
        let target = json!({ "type": "Utilization", "averageUtilization": 80 });
        let cpu = json!({ "type": "Resource", "resource": { "name": "cpu", "target": target } });
        spec.insert("metrics".to_owned(), json!([cpu]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(view: View, shown: &str, outer: Value, inner: Value) {
        assert_eq!(view.inward(outer.clone()), inner, "inward");
        assert_eq!(view.outward(inner, shown.to_owned()), outer, "outward");
    }

    #[test]
    fn an_autoscaler_of_version_1_is_one_of_version_2() {
        let cpu = |percent: i64| {
            json!({ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": percent } } })
        };
        let memory = json!({ "type": "Resource", "resource": { "name": "memory",
            "target": { "type": "AverageValue", "averageValue": "1Gi" } } });
        check(
            View::Autoscaler,
            "autoscaling/v1",
            json!({ "apiVersion": "autoscaling/v1", "metadata": { "name": "a" },
                "spec": { "maxReplicas": 3, "targetCPUUtilizationPercentage": 50 } }),
            json!({ "apiVersion": "autoscaling/v2", "metadata": { "name": "a" },
                "spec": { "maxReplicas": 3, "metrics": [cpu(50)] } }),
        );
        let behavior = json!({ "scaleDown": { "stabilizationWindowSeconds": 5 } });
        check(
            View::Autoscaler,
            "autoscaling/v1",
            json!({ "apiVersion": "autoscaling/v1", "metadata": { "annotations": {
                    "autoscaling.alpha.kubernetes.io/metrics": json!([memory]).to_string(),
                    "autoscaling.alpha.kubernetes.io/behavior": behavior.to_string(),
                    "autoscaling.alpha.kubernetes.io/conditions": "[{\"type\":\"AbleToScale\"}]",
                } },
                "spec": { "targetCPUUtilizationPercentage": 50 }, "status": { "currentReplicas": 2 } }),
            json!({ "apiVersion": "autoscaling/v2", "metadata": {},
                "spec": { "metrics": [cpu(50), memory], "behavior": behavior },
                "status": { "currentReplicas": 2, "conditions": [{ "type": "AbleToScale" }] } }),
        );
    }

    #[test]
    fn an_empty_selector_of_an_old_budget_selects_nothing() {
        let key = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match";
        check(
            View::DisruptionBudget,
            "policy/v1beta1",
            json!({ "apiVersion": "policy/v1beta1", "spec": { "selector": {} } }),
            json!({ "apiVersion": "policy/v1", "spec": { "selector": {
                "matchExpressions": [{ "key": key, "operator": "Exists" }] } } }),
        );
        check(
            View::DisruptionBudget,
            "policy/v1beta1",
            json!({ "apiVersion": "policy/v1beta1", "spec": { "selector": { "matchLabels": { "a": "b" } } } }),
            json!({ "apiVersion": "policy/v1", "spec": { "selector": { "matchLabels": { "a": "b" } } } }),
        );
    }
}

//! How patches merge fields, as kubectl reads it to compute what `apply` sends: the `patchStrategy` and `patchMergeKey`
//! tags of the API's Go types (read from those that kubectl 1.33 carries).

use serde_json::{Map, Value};

/// Definition without its prefix, field, strategy, merge key (empty: none).
pub(super) const FIELDS: [(&str, &str, &str, &str); 44] = [
    ("apps.v1.DaemonSetStatus", "conditions", "merge", "type"),
    ("apps.v1.DeploymentSpec", "strategy", "retainKeys", ""),
    ("apps.v1.DeploymentStatus", "conditions", "merge", "type"),
    ("apps.v1.ReplicaSetStatus", "conditions", "merge", "type"),
    ("apps.v1.StatefulSetStatus", "conditions", "merge", "type"),
    (
        "autoscaling.v2.HorizontalPodAutoscalerStatus",
        "conditions",
        "merge",
        "type",
    ),
    ("batch.v1.JobStatus", "conditions", "merge", "type"),
    ("core.v1.Container", "env", "merge", "name"),
    ("core.v1.Container", "ports", "merge", "containerPort"),
    ("core.v1.Container", "volumeDevices", "merge", "devicePath"),
    ("core.v1.Container", "volumeMounts", "merge", "mountPath"),
    (
        "core.v1.ContainerStatus",
        "allocatedResourcesStatus",
        "merge",
        "name",
    ),
    ("core.v1.ContainerStatus", "volumeMounts", "merge", "mountPath"),
    ("core.v1.EphemeralContainer", "env", "merge", "name"),
    ("core.v1.EphemeralContainer", "ports", "merge", "containerPort"),
    (
        "core.v1.EphemeralContainer",
        "volumeDevices",
        "merge",
        "devicePath",
    ),
    ("core.v1.EphemeralContainer", "volumeMounts", "merge", "mountPath"),
    ("core.v1.NamespaceStatus", "conditions", "merge", "type"),
    ("core.v1.NodeSpec", "podCIDRs", "merge", ""),
    ("core.v1.NodeStatus", "addresses", "merge", "type"),
    ("core.v1.NodeStatus", "conditions", "merge", "type"),
    (
        "core.v1.PersistentVolumeClaimStatus",
        "conditions",
        "merge",
        "type",
    ),
    ("core.v1.PodSpec", "containers", "merge", "name"),
    ("core.v1.PodSpec", "ephemeralContainers", "merge", "name"),
    ("core.v1.PodSpec", "hostAliases", "merge", "ip"),
    ("core.v1.PodSpec", "imagePullSecrets", "merge", "name"),
    ("core.v1.PodSpec", "initContainers", "merge", "name"),
    ("core.v1.PodSpec", "resourceClaims", "merge,retainKeys", "name"),
    ("core.v1.PodSpec", "schedulingGates", "merge", "name"),
    (
        "core.v1.PodSpec",
        "topologySpreadConstraints",
        "merge",
        "topologyKey",
    ),
    ("core.v1.PodSpec", "volumes", "merge,retainKeys", "name"),
    ("core.v1.PodStatus", "conditions", "merge", "type"),
    ("core.v1.PodStatus", "hostIPs", "merge", "ip"),
    ("core.v1.PodStatus", "podIPs", "merge", "ip"),
    (
        "core.v1.PodStatus",
        "resourceClaimStatuses",
        "merge,retainKeys",
        "name",
    ),
    (
        "core.v1.ReplicationControllerStatus",
        "conditions",
        "merge",
        "type",
    ),
    ("core.v1.ServiceAccount", "secrets", "merge", "name"),
    ("core.v1.ServiceSpec", "ports", "merge", "port"),
    ("core.v1.ServiceStatus", "conditions", "merge", "type"),
    ("meta.v1.ObjectMeta", "finalizers", "merge", ""),
    ("meta.v1.ObjectMeta", "ownerReferences", "merge", "uid"),
    ("networking.v1.ServiceCIDRStatus", "conditions", "merge", "type"),
    ("policy.v1.PodDisruptionBudgetSpec", "selector", "replace", ""),
    (
        "policy.v1.PodDisruptionBudgetStatus",
        "conditions",
        "merge",
        "type",
    ),
];

/// Writes the rules of one definition's fields into them.
pub(super) fn annotate(definition: &str, schema: &mut Value) {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    for (owner, field, strategy, key) in FIELDS {
        if !definition
            .strip_suffix(owner)
            .is_some_and(|prefix| prefix.ends_with('.'))
        {
            continue;
        }
        if let Some(field) = properties.get_mut(field).and_then(Value::as_object_mut) {
            write(field, strategy, key);
        }
    }
}

fn write(field: &mut Map<String, Value>, strategy: &str, key: &str) {
    field.insert("x-kubernetes-patch-strategy".to_owned(), strategy.into());
    if !key.is_empty() {
        field.insert("x-kubernetes-patch-merge-key".to_owned(), key.into());
    }
}

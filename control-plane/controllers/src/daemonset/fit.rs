//! Which nodes a DaemonSet's pods belong on, and how a pod is bound to its node.

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec,
    Toleration,
};

use crate::scheduler::{NAME_FIELD, node_labels, selects_node};
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, NOT_READY, UNREACHABLE, UNSCHEDULABLE, tolerates};

/// What the pods of a DaemonSet bear, whatever their template says: key and effect
/// (`AddOrUpdateDaemonPodTolerations`).
const BORNE: [(&str, &str); 6] = [
    (NOT_READY, NO_EXECUTE),
    (UNREACHABLE, NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    (UNSCHEDULABLE, NO_SCHEDULE),
];
/// Pods in the node's own network are often those that make the network.
const BORNE_IN_HOST_NETWORK: (&str, &str) = ("node.kubernetes.io/network-unavailable", NO_SCHEDULE);

/// What a node is to the pods of a DaemonSet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fit {
    /// One belongs here.
    Runs,
    /// None would come here, and one that is here may stay: a taint keeps only new ones away.
    Stays,
    /// None belongs here.
    Leaves,
}

/// What `node` is to pods of this `spec`, which has its tolerations (`NodeShouldRunDaemonPod`).
pub(crate) fn fit(spec: &PodSpec, node: &Node) -> Fit {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    let named = spec.node_name.as_deref().unwrap_or_default();
    if !named.is_empty() && named != name || !selects_node(spec, &node_labels(node)) {
        return Fit::Leaves;
    }
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    let unborne = taints.filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)));
    unborne.fold(Fit::Runs, |fit, taint| match (taint.effect.as_str(), fit) {
        (NO_EXECUTE, _) => Fit::Leaves,
        (NO_SCHEDULE, Fit::Runs) => Fit::Stays,
        _ => fit,
    })
}

/// `spec` with the tolerations that every pod of a DaemonSet has.
pub(crate) fn tolerating(mut spec: PodSpec) -> PodSpec {
    let in_host = (spec.host_network == Some(true)).then_some(BORNE_IN_HOST_NETWORK);
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in BORNE.into_iter().chain(in_host) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let is_same = |known: &Toleration| {
            Toleration {
                toleration_seconds: None,
                ..known.clone()
            } == toleration
        };
        match tolerations.iter_mut().find(|known| is_same(known)) {
            Some(known) => *known = toleration,
            None => tolerations.push(toleration),
        }
    }
    spec
}

/// `spec` for the node of that name alone: the scheduler binds it there, or says why it cannot. What the template
/// requires of nodes is replaced, since the node was chosen by it; what it prefers stays.
pub(crate) fn bound_for(mut spec: PodSpec, node: &str) -> PodSpec {
    let affinity: &mut Affinity = spec.affinity.get_or_insert_default();
    let nodes: &mut NodeAffinity = affinity.node_affinity.get_or_insert_default();
    nodes.required_during_scheduling_ignored_during_execution = Some(NodeSelector {
        node_selector_terms: vec![NodeSelectorTerm {
            match_expressions: None,
            match_fields: Some(vec![NodeSelectorRequirement {
                key: NAME_FIELD.to_owned(),
                operator: "In".to_owned(),
                values: Some(vec![node.to_owned()]),
            }]),
        }],
    });
    spec
}

/// The node that a pod is on, or was made for (`GetTargetNodeName`).
pub(crate) fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let fields = required
        .node_selector_terms
        .iter()
        .flat_map(|term| term.match_fields.iter().flatten());
    let mut named = fields.filter(|field| field.key == NAME_FIELD && field.operator == "In");
    named.find_map(|field| match field.values.as_deref()? {
        [node] => Some(node.as_str()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(edit: Value) -> PodSpec {
        let mut spec = json!({ "containers": [] });
        spec.as_object_mut()
            .unwrap()
            .extend(edit.as_object().unwrap().clone());
        serde_json::from_value(spec).unwrap()
    }

    #[track_caller]
    fn check(template: Value, node: Value, expected: Fit) {
        let node = serde_json::from_value(json!({
            "metadata": { "name": "n1", "labels": { "zone": "a" } }, "spec": node,
        }))
        .unwrap();
        assert_eq!(
            fit(&tolerating(spec(template.clone())), &node),
            expected,
            "{template}"
        );
    }

    fn tainted(key: &str, effect: &str) -> Value {
        json!({ "taints": [{ "key": key, "effect": effect }] })
    }

    #[test]
    fn selectors_affinity_and_names_choose_nodes() {
        check(json!({}), json!({}), Fit::Runs);
        check(json!({ "nodeSelector": { "zone": "a" } }), json!({}), Fit::Runs);
        check(json!({ "nodeSelector": { "zone": "b" } }), json!({}), Fit::Leaves);
        check(json!({ "nodeName": "n1" }), json!({}), Fit::Runs);
        check(json!({ "nodeName": "n2" }), json!({}), Fit::Leaves);
        let affinity = |operator: &str| {
            let term =
                json!({ "matchExpressions": [{ "key": "zone", "operator": operator, "values": ["a"] }] });
            json!({ "affinity": { "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] },
            } } })
        };
        check(affinity("In"), json!({}), Fit::Runs);
        check(affinity("NotIn"), json!({}), Fit::Leaves);
        let preferred = json!({ "affinity": { "nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 1, "preference": {
                "matchExpressions": [{ "key": "zone", "operator": "In", "values": ["b"] }],
            } }],
        } } });
        check(preferred, json!({}), Fit::Runs);
    }

    #[test]
    fn taints_keep_pods_away_and_only_no_execute_drives_them_off() {
        check(json!({}), tainted("mine", "NoSchedule"), Fit::Stays);
        check(json!({}), tainted("mine", "NoExecute"), Fit::Leaves);
        check(json!({}), tainted("mine", "PreferNoSchedule"), Fit::Runs);
        let both = json!({ "taints": [
            { "key": "a", "effect": "NoExecute" }, { "key": "b", "effect": "NoSchedule" },
        ] });
        check(json!({}), both, Fit::Leaves);
        let bearing = json!({ "tolerations": [{ "key": "mine", "operator": "Exists" }] });
        check(bearing.clone(), tainted("mine", "NoExecute"), Fit::Runs);
        check(bearing, tainted("other", "NoSchedule"), Fit::Stays);
    }

    #[test]
    fn what_is_wrong_with_a_node_drives_no_pod_away() {
        let cordoned =
            json!({ "unschedulable": true, "taints": [{ "key": UNSCHEDULABLE, "effect": "NoSchedule" }] });
        check(json!({}), cordoned, Fit::Runs);
        check(json!({}), tainted(NOT_READY, "NoExecute"), Fit::Runs);
        check(json!({}), tainted(UNREACHABLE, "NoExecute"), Fit::Runs);
        for pressure in ["disk", "memory", "pid"] {
            let key = format!("node.kubernetes.io/{pressure}-pressure");
            check(json!({}), tainted(&key, "NoSchedule"), Fit::Runs);
        }
        let (key, effect) = BORNE_IN_HOST_NETWORK;
        check(json!({}), tainted(key, effect), Fit::Stays);
        check(json!({ "hostNetwork": true }), tainted(key, effect), Fit::Runs);
        // Not ready in a way that only keeps new pods away is no reason for a DaemonSet's either, as upstream has it.
        check(json!({}), tainted(NOT_READY, "NoSchedule"), Fit::Stays);
    }

    #[test]
    fn a_toleration_with_an_end_becomes_one_without() {
        let ending = json!({ "tolerations": [
            { "key": NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5 },
        ] });
        let tolerations = tolerating(spec(ending)).tolerations.unwrap();
        assert_eq!(tolerations.len(), BORNE.len());
        assert_eq!(tolerations[0].toleration_seconds, None);
    }

    #[test]
    fn a_pod_made_for_a_node_has_it_as_its_target_before_it_is_bound() {
        let for_node = |spec: PodSpec| Pod {
            spec: Some(spec),
            ..Pod::default()
        };
        assert_eq!(target(&for_node(bound_for(spec(json!({})), "n7"))), Some("n7"));
        assert_eq!(target(&for_node(spec(json!({ "nodeName": "n8" })))), Some("n8"));
        assert_eq!(target(&for_node(spec(json!({})))), None);
        let picky = spec(json!({ "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                { "matchExpressions": [{ "key": "zone", "operator": "Exists" }] },
            ] },
            "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 3, "preference": {} }],
        } } }));
        let bound = bound_for(picky, "n7").affinity.unwrap().node_affinity.unwrap();
        assert_eq!(
            serde_json::to_value(bound).unwrap(),
            json!({
                "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [
                    { "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n7"] }] },
                ] },
                "preferredDuringSchedulingIgnoredDuringExecution": [{ "weight": 3, "preference": {} }],
            })
        );
    }
}

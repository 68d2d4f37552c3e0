//! Which node a pod gets, and the words for why it gets none.

use super::super::ledger::Ledger;
use super::super::schedule;
use super::super::score::Spread;
use super::*;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

#[path = "placement_tests.rs"]
mod placement;

fn merge(base: &mut Value, edit: Value) {
    match (base, edit) {
        (Value::Object(base), Value::Object(edit)) => {
            for (key, value) in edit {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, edit) => *base = edit,
    }
}

fn node(name: &str, edit: Value) -> Node {
    let mut node = json!({
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name, "zone": "a" } },
        "spec": {},
        "status": {
            "allocatable": { "cpu": "4", "memory": "8Gi", "pods": "3" },
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    merge(&mut node, edit);
    serde_json::from_value(node).unwrap()
}

fn pod(name: &str, edit: Value) -> Pod {
    let mut pod = json!({
        "metadata": { "name": name, "namespace": "default", "uid": name },
        "spec": { "containers": [] },
    });
    merge(&mut pod, edit);
    serde_json::from_value(pod).unwrap()
}

fn cpu(cpu: &str) -> Value {
    json!({ "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] } })
}

fn ledger(nodes: &[Node], placed: &[(Pod, &str)]) -> Ledger {
    let mut ledger = Ledger::default();
    for node in nodes {
        ledger.set_node(
            &NodeName::from(node.metadata.name.as_deref().unwrap()),
            Some(node),
        );
    }
    for (pod, node) in placed {
        ledger.place(pod, &NodeName::from(*node));
    }
    ledger
}

#[track_caller]
fn check(pod_edit: Value, nodes: &[Node], placed: &[(Pod, &str)], expected: Result<&str, &str>) {
    let pod = pod("new", pod_edit);
    let ledger = ledger(nodes, placed);
    let outcome = schedule(&pod, &ledger, &Spread::new(&pod, Vec::new()), 1);
    let outcome = outcome.map(|node| node.0).map_err(|reasons| reasons.to_string());
    assert_eq!(outcome, expected.map(Into::into).map_err(str::to_owned));
}

#[test]
fn without_nodes_the_message_says_so() {
    check(json!({}), &[], &[], Err("no nodes available to schedule pods"));
}

#[test]
fn resources_are_compared_with_what_is_left() {
    let nodes = || [node("a", json!({})), node("b", json!({}))];
    let busy = [(pod("p", cpu("3")), "a")];
    check(cpu("2"), &nodes(), &busy, Ok("b"));
    check(
        cpu("5"),
        &nodes(),
        &busy,
        Err("0/2 nodes are available: 2 Insufficient cpu."),
    );
    let greedy = json!({ "spec": { "containers": [{ "name": "c", "resources": {
        "requests": { "cpu": "5", "memory": "9Gi", "example.com/gpu": "1" },
    } }] } });
    check(
        greedy,
        &nodes()[..1],
        &[],
        Err(
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient example.com/gpu, 1 Insufficient memory.",
        ),
    );
    let full: Vec<_> = ["1", "2", "3"]
        .into_iter()
        .map(|name| (pod(name, json!({})), "a"))
        .collect();
    check(
        json!({}),
        &nodes()[..1],
        &full,
        Err("0/1 nodes are available: 1 Too many pods."),
    );
}

#[test]
fn taints_keep_pods_away_that_do_not_tolerate_them() {
    let tainted = |effect: &str| {
        [node(
            "a",
            json!({ "spec": { "taints": [{ "key": "gpu", "value": "yes", "effect": effect }] } }),
        )]
    };
    let tolerating = |toleration: Value| json!({ "spec": { "tolerations": [toleration] } });
    let refused = Err("0/1 nodes are available: 1 node(s) had untolerated taint {gpu: yes}.");
    check(json!({}), &tainted("NoSchedule"), &[], refused);
    check(json!({}), &tainted("NoExecute"), &[], refused);
    check(json!({}), &tainted("PreferNoSchedule"), &[], Ok("a"));
    check(
        tolerating(json!({ "operator": "Exists" })),
        &tainted("NoSchedule"),
        &[],
        Ok("a"),
    );
    check(
        tolerating(json!({ "key": "gpu", "value": "yes" })),
        &tainted("NoSchedule"),
        &[],
        Ok("a"),
    );
    check(
        tolerating(json!({ "key": "gpu", "value": "no" })),
        &tainted("NoSchedule"),
        &[],
        refused,
    );
    check(
        tolerating(json!({ "key": "gpu", "operator": "Exists", "effect": "NoExecute" })),
        &tainted("NoSchedule"),
        &[],
        refused,
    );
}

#[test]
fn a_node_that_is_cordoned_or_not_ready_takes_no_pods() {
    let cordoned = [node("a", json!({ "spec": { "unschedulable": true } }))];
    check(
        json!({}),
        &cordoned,
        &[],
        Err("0/1 nodes are available: 1 node(s) were unschedulable."),
    );
    let unready = |status: &str| {
        [node(
            "a",
            json!({ "status": { "conditions": [{ "type": "Ready", "status": status }] } }),
        )]
    };
    let not_ready =
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/not-ready: }.";
    let unreachable =
        "0/1 nodes are available: 1 node(s) had untolerated taint {node.kubernetes.io/unreachable: }.";
    check(json!({}), &unready("False"), &[], Err(not_ready));
    check(json!({}), &unready("Unknown"), &[], Err(unreachable));
    let agent = json!({ "spec": { "tolerations": [{ "operator": "Exists" }] } });
    check(agent.clone(), &unready("False"), &[], Ok("a"));
    check(agent, &cordoned, &[], Ok("a"));
}

#[test]
fn node_selectors_and_required_affinity_choose_among_nodes() {
    let nodes = || {
        [
            node("a", json!({})),
            node(
                "b",
                json!({ "metadata": { "labels": { "zone": "b", "size": "5" } } }),
            ),
        ]
    };
    let refused = Err("0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector.");
    let selector = |zone: &str| json!({ "spec": { "nodeSelector": { "zone": zone } } });
    let affinity = |term: Value| {
        json!({ "spec": { "affinity": { "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [term] },
        } } } })
    };
    let expression = |key: &str, operator: &str, values: &[&str]| json!({ "key": key, "operator": operator, "values": values });
    check(selector("b"), &nodes(), &[], Ok("b"));
    check(selector("c"), &nodes(), &[], refused);
    check(
        affinity(json!({ "matchExpressions": [expression("zone", "NotIn", &["a"])] })),
        &nodes(),
        &[],
        Ok("b"),
    );
    check(
        affinity(json!({ "matchExpressions": [expression("size", "Gt", &["4"])] })),
        &nodes(),
        &[],
        Ok("b"),
    );
    check(
        affinity(json!({ "matchFields": [expression("metadata.name", "In", &["a"])] })),
        &nodes(),
        &[],
        Ok("a"),
    );
    check(affinity(json!({})), &nodes(), &[], refused);
}

#[test]
fn host_ports_are_had_once_per_node_address_and_protocol() {
    let port = |ip: &str, protocol: &str| {
        json!({ "spec": { "containers": [{ "name": "c", "ports": [
            { "containerPort": 80, "hostPort": 8080, "hostIP": ip, "protocol": protocol },
        ] }] } })
    };
    let nodes = || [node("a", json!({}))];
    let refused =
        Err("0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.");
    check(
        port("", "TCP"),
        &nodes(),
        &[(pod("p", port("", "TCP")), "a")],
        refused,
    );
    check(
        port("", "TCP"),
        &nodes(),
        &[(pod("p", port("10.0.0.1", "TCP")), "a")],
        refused,
    );
    check(
        port("10.0.0.2", "TCP"),
        &nodes(),
        &[(pod("p", port("10.0.0.1", "TCP")), "a")],
        Ok("a"),
    );
    check(
        port("", "UDP"),
        &nodes(),
        &[(pod("p", port("", "TCP")), "a")],
        Ok("a"),
    );
}

#[test]
fn pods_that_must_be_apart_or_together_are() {
    let nodes = || {
        [
            node("a", json!({})),
            node("b", json!({ "metadata": { "labels": { "zone": "b" } } })),
        ]
    };
    let rule = |kind: &str, topology: &str| {
        json!({
            "metadata": { "labels": { "app": "web" } },
            "spec": { "affinity": { kind: { "requiredDuringSchedulingIgnoredDuringExecution": [
                { "topologyKey": topology, "labelSelector": { "matchLabels": { "app": "web" } } },
            ] } } },
        })
    };
    let web = json!({ "metadata": { "labels": { "app": "web" } } });
    let on = |name: &str, edit: Value, node: &'static str| (pod(name, edit), node);
    check(
        rule("podAntiAffinity", "zone"),
        &nodes(),
        &[on("p", web.clone(), "a")],
        Ok("b"),
    );
    check(
        rule("podAntiAffinity", "zone"),
        &nodes(),
        &[on("p", web.clone(), "a"), on("q", web.clone(), "b")],
        Err("0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."),
    );
    check(
        web.clone(),
        &nodes()[..1],
        &[on("p", rule("podAntiAffinity", "zone"), "a")],
        Err("0/1 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules."),
    );
    check(
        rule("podAffinity", "zone"),
        &nodes(),
        &[on("p", web, "b")],
        Ok("b"),
    );
    // the first of its kind is near itself
    check(rule("podAffinity", "zone"), &nodes()[..1], &[], Ok("a"));
    check(
        rule("podAffinity", "rack"),
        &nodes(),
        &[],
        Err("0/2 nodes are available: 2 node(s) didn't match pod affinity rules."),
    );
}

#[test]
fn different_reasons_are_counted_apart() {
    let nodes = [
        node("a", json!({ "spec": { "unschedulable": true } })),
        node(
            "b",
            json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } }),
        ),
        node("c", json!({})),
    ];
    check(
        cpu("8"),
        &nodes,
        &[],
        Err(
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {k: }, \
             1 node(s) were unschedulable.",
        ),
    );
}

#[test]
fn a_burst_of_equal_pods_is_spread_evenly_and_always_in_the_same_way() {
    let place_all = || {
        let roomy = |name| node(name, json!({ "status": { "allocatable": { "pods": "110" } } }));
        let mut ledger = ledger(&[roomy("a"), roomy("b"), roomy("c")], &[]);
        let owner = json!({ "metadata": { "ownerReferences": [
            { "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x", "controller": true },
        ] } });
        for number in 0..30 {
            let pod = pod(&format!("p{number}"), owner.clone());
            let node = schedule(&pod, &ledger, &Spread::new(&pod, Vec::new()), 7).unwrap();
            ledger.place(&pod, &node);
        }
        let counts: Vec<usize> = ledger.nodes().values().map(|node| node.pods.len()).collect();
        let names: Vec<Vec<String>> = ledger
            .nodes()
            .values()
            .map(|node| node.pods.keys().map(|name| name.name.to_string()).collect())
            .collect();
        (counts, names)
    };
    let (counts, names) = place_all();
    assert_eq!(counts, [10, 10, 10]);
    assert_eq!(place_all().1, names);
}

#[test]
fn the_ledger_forgets_what_it_is_told_to_and_keeps_pods_of_a_node_that_comes_back() {
    let mut ledger = ledger(&[node("a", json!({}))], &[(pod("p", cpu("3")), "a")]);
    ledger.set_node(&NodeName::from("a"), None);
    ledger.set_node(&NodeName::from("a"), Some(&node("a", json!({}))));
    assert!(ledger.holds(&pod("p", json!({}))));
    assert_eq!(
        ledger.nodes()[&NodeName::from("a")].requested,
        resources::requests(&pod("p", cpu("3")))
    );
    ledger.remove(&name_of_pod("p"));
    assert!(!ledger.holds(&pod("p", json!({}))));
    let left: Vec<_> = ledger.nodes()[&NodeName::from("a")]
        .requested
        .values()
        .map(|amount| amount.0)
        .collect();
    assert_eq!(left, [0]);
}

fn name_of_pod(name: &str) -> model::ObjectName {
    model::ObjectName::new("default", name)
}

//! Where a pod goes because of other pods: affinity, anti-affinity, spread, and whose turn it is.

use super::super::super::turn;
use super::*;

/// Three zones with two nodes each, `a1` to `c2`.
fn zones() -> Vec<Node> {
    let names = ["a1", "a2", "b1", "b2", "c1", "c2"];
    names
        .iter()
        .map(|name| {
            let edit = json!({
                "metadata": { "labels": { "zone": &name[..1] } }, "status": { "allocatable": { "pods": "110" } },
            });
            node(name, edit)
        })
        .collect()
}

fn app(name: &str) -> Value {
    json!({ "metadata": { "labels": { "app": name } } })
}

/// Pods of an app: `web@a1 web@b1 db@c1`.
fn placed(text: &str) -> Vec<(Pod, String)> {
    let pods = text.split_whitespace().enumerate();
    pods.map(|(place, text)| {
        let (name, node) = text.split_once('@').unwrap();
        (pod(&format!("p{place}"), app(name)), node.to_owned())
    })
    .collect()
}

fn ledger_of(nodes: &[Node], placed: &[(Pod, String)]) -> Ledger {
    let placed: Vec<_> = placed
        .iter()
        .map(|(pod, node)| (pod.clone(), node.as_str()))
        .collect();
    ledger(nodes, &placed)
}

/// Where the pod goes, or why nowhere: `a` stands for any node of zone a.
#[track_caller]
fn check_in(ledger: &Ledger, edit: &Value, expected: &str) {
    let pod = pod("new", edit.clone());
    let outcome = schedule(&pod, ledger, &Spread::new(&pod, Vec::new()), 1);
    let outcome = outcome.map_or_else(|reasons| reasons.to_string(), |node| node.0.to_string());
    let is_zone = expected.len() == 1 && outcome.len() == 2;
    let found = if is_zone { &outcome[..1] } else { &outcome };
    assert_eq!(found, expected, "{edit}");
}

#[track_caller]
fn check_placed(edit: &Value, before: &str, expected: &str) {
    check_in(&ledger_of(&zones(), &placed(before)), edit, expected);
}

fn term(app: &str, topology: &str) -> Value {
    json!({ "topologyKey": topology, "labelSelector": { "matchLabels": { "app": app } } })
}

/// A pod of app `new` with these rules; each of `required` and `preferred` is a list of terms.
fn rules(kind: &str, required: Value, preferred: Value) -> Value {
    json!({
        "metadata": { "labels": { "app": "new" } },
        "spec": { "affinity": { kind: {
            "requiredDuringSchedulingIgnoredDuringExecution": required,
            "preferredDuringSchedulingIgnoredDuringExecution": preferred,
        } } },
    })
}

fn wish(weight: i32, term: Value) -> Value {
    json!([{ "weight": weight, "podAffinityTerm": term }])
}

#[test]
fn a_pod_is_near_one_that_all_its_terms_speak_of() {
    let both = rules(
        "podAffinity",
        json!([term("web", "zone"), term("web", "kubernetes.io/hostname")]),
        json!([]),
    );
    check_placed(&both, "web@b2 db@a1", "b2");
    let two_kinds = rules(
        "podAffinity",
        json!([term("web", "zone"), term("db", "zone")]),
        json!([]),
    );
    check_placed(
        &two_kinds,
        "web@b1 db@b2",
        "0/6 nodes are available: 6 node(s) didn't match pod affinity rules.",
    );
    let first = rules("podAffinity", json!([term("new", "zone")]), json!([]));
    check_placed(&first, "new@c1", "c");
}

#[test]
fn wishes_draw_and_push_by_weight() {
    let near = |weight| rules("podAffinity", json!([]), wish(weight, term("web", "zone")));
    let apart = |weight| rules("podAntiAffinity", json!([]), wish(weight, term("web", "zone")));
    check_placed(&near(50), "web@b1", "b");
    check_placed(&near(1), "web@c1 db@a1", "c");
    check_placed(&near(50), "web@a1 web@c1 web@c2", "c");
    check_placed(&apart(50), "web@a1 web@b1", "c");
    // Nothing near to be drawn to: the wish is none.
    check_placed(&near(100), "db@a1 db@a2 db@b1 db@b2 db@c1", "c2");
    // Far from web, and more so near db.
    let mut torn = apart(10);
    torn["spec"]["affinity"]["podAffinity"] =
        json!({ "preferredDuringSchedulingIgnoredDuringExecution": wish(60, term("db", "zone")) });
    check_placed(&torn, "web@b1 db@b2 web@a1", "b");
}

#[test]
fn pods_that_run_have_wishes_about_newcomers() {
    let mut ledger = ledger_of(&zones(), &placed(""));
    let drawing = rules("podAffinity", json!([]), wish(80, term("web", "zone")));
    ledger.place(&pod("drawing", drawing), &NodeName::from("b1"));
    check_in(&ledger, &app("web"), "b");
    let pushing = rules("podAntiAffinity", json!([]), wish(80, term("web", "zone")));
    let mut ledger = ledger_of(&zones(), &placed(""));
    for (name, node) in [("p", "a1"), ("q", "c1")] {
        ledger.place(&pod(name, pushing.clone()), &NodeName::from(node));
    }
    check_in(&ledger, &app("web"), "b");
    let needing = rules("podAffinity", json!([term("web", "zone")]), json!([]));
    let mut ledger = ledger_of(&zones(), &placed(""));
    ledger.place(&pod("needing", needing), &NodeName::from("c2"));
    check_in(&ledger, &app("web"), "c");
}

#[test]
fn rules_reach_other_namespaces_where_they_say_so() {
    let mut ledger = ledger_of(&zones(), &[]);
    for (name, labels) in [
        ("default", json!({})),
        ("shop", json!({ "team": "x" })),
        ("lab", json!({})),
    ] {
        ledger.set_namespace(name, serde_json::from_value(labels).ok());
    }
    for (namespace, node) in [("shop", "b1"), ("lab", "c1")] {
        let mut there = app("web");
        there["metadata"]["namespace"] = json!(namespace);
        ledger.place(&pod(namespace, there), &NodeName::from(node));
    }
    let near = |scope: Value| {
        let mut term = term("web", "zone");
        merge(&mut term, scope);
        rules("podAffinity", json!([term]), json!([]))
    };
    let refused = "0/6 nodes are available: 6 node(s) didn't match pod affinity rules.";
    check_in(&ledger, &near(json!({})), refused);
    check_in(&ledger, &near(json!({ "namespaces": ["lab"] })), "c");
    check_in(
        &ledger,
        &near(json!({ "namespaceSelector": { "matchLabels": { "team": "x" } } })),
        "b",
    );
    check_in(
        &ledger,
        &near(json!({ "namespaceSelector": { "matchLabels": { "team": "y" } } })),
        refused,
    );
    let listed = json!({ "namespaces": ["lab"], "namespaceSelector": { "matchLabels": { "team": "y" } } });
    check_in(&ledger, &near(listed), "c");
    let everywhere = rules(
        "podAntiAffinity",
        json!([]),
        wish(9, {
            let mut term = term("web", "zone");
            merge(&mut term, json!({ "namespaceSelector": {} }));
            term
        }),
    );
    check_in(&ledger, &everywhere, "a");
    ledger.set_namespace("shop", None);
    check_in(
        &ledger,
        &near(json!({ "namespaceSelector": { "matchLabels": { "team": "x" } } })),
        refused,
    );
}

#[test]
fn anti_affinity_holds_both_ways_in_its_topology() {
    let apart = rules("podAntiAffinity", json!([term("web", "zone")]), json!([]));
    check_placed(&apart, "web@a1 web@b2", "c");
    let mut ledger = ledger_of(&zones(), &placed(""));
    for (name, node) in [("p", "a1"), ("q", "b2")] {
        ledger.place(&pod(name, apart.clone()), &NodeName::from(node));
    }
    check_in(&ledger, &app("web"), "c");
    ledger.place(&pod("r", apart), &NodeName::from("c1"));
    check_in(
        &ledger,
        &app("web"),
        "0/6 nodes are available: 6 node(s) didn't satisfy existing pods anti-affinity rules.",
    );
    let mut other = app("db");
    other["spec"] = json!({ "nodeSelector": { "kubernetes.io/hostname": "c1" } });
    check_in(&ledger, &other, "c1");
}

fn spread(edit: Value) -> Value {
    let mut constraint = json!({
        "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": { "matchLabels": { "app": "new" } },
    });
    merge(&mut constraint, edit);
    let mut pod = app("new");
    pod["spec"] = json!({ "topologySpreadConstraints": [constraint] });
    pod
}

#[test]
fn a_spread_that_must_hold_holds() {
    check_placed(&spread(json!({})), "new@a1 new@b1", "c");
    check_placed(&spread(json!({})), "new@a1 new@b1 new@c1 new@c2 new@b2", "a");
    check_placed(
        &spread(json!({ "maxSkew": 2 })),
        "new@a1 new@a2 new@b1 new@b2",
        "c",
    );
    // Other apps do not count.
    check_placed(&spread(json!({})), "new@a1 new@b1 db@c1 db@c2", "c");
    let uneven = "node(s) didn't match pod topology spread constraints";
    let mut picky = spread(json!({ "nodeAffinityPolicy": "Ignore" }));
    picky["spec"]["nodeSelector"] = json!({ "zone": "a" });
    check_placed(
        &picky,
        "new@a1",
        &format!("0/6 nodes are available: 2 {uneven}, 4 node(s) didn't match Pod's node affinity/selector."),
    );
    // By default only nodes that the pod could use count.
    picky["spec"]["topologySpreadConstraints"][0]["nodeAffinityPolicy"] = json!(null);
    check_placed(&picky, "new@a1", "a2");
    check_placed(
        &spread(json!({ "topologyKey": "rack" })),
        "",
        &format!("0/6 nodes are available: 6 {uneven} (missing required label)."),
    );
    // With fewer domains than there have to be, the fewest is none.
    check_placed(
        &spread(json!({ "minDomains": 4 })),
        "new@a1 new@b1 new@c1",
        &format!("0/6 nodes are available: 6 {uneven}."),
    );
    check_placed(
        &spread(json!({ "minDomains": 3 })),
        "new@a1 new@b1 new@c2 new@c1 new@b2",
        "a",
    );
}

#[test]
fn tainted_nodes_count_unless_the_spread_honors_taints() {
    let mut nodes = zones();
    for node in &mut nodes[4..] {
        let taints = json!([{ "key": "k", "effect": "NoSchedule" }]);
        node.spec.get_or_insert_default().taints = serde_json::from_value(taints).unwrap();
    }
    let ledger = ledger_of(&nodes, &placed("new@a1 new@b1"));
    let refused = "0/6 nodes are available: 2 node(s) had untolerated taint {k: }, \
         4 node(s) didn't match pod topology spread constraints.";
    check_in(&ledger, &spread(json!({})), refused);
    let ledger = ledger_of(&nodes, &placed("new@a1 new@b1 new@b2"));
    check_in(&ledger, &spread(json!({ "nodeTaintsPolicy": "Honor" })), "a");
}

#[test]
fn a_spread_that_advises_chooses_the_emptiest_domain() {
    let advice = |edit: Value| {
        let mut pod = spread(json!({ "whenUnsatisfiable": "ScheduleAnyway" }));
        merge(&mut pod["spec"]["topologySpreadConstraints"][0], edit);
        pod
    };
    check_placed(&advice(json!({})), "new@a1 new@b1", "c");
    check_placed(&advice(json!({})), "new@a1 new@a2 new@b1 new@c1 new@c2", "b");
    check_placed(
        &advice(json!({ "topologyKey": "kubernetes.io/hostname" })),
        "new@a1 new@a2 new@b1 new@b2 new@c1",
        "c2",
    );
}

#[test]
fn labels_of_the_pod_itself_narrow_what_a_spread_counts() {
    let mut versioned = spread(json!({ "matchLabelKeys": ["version"] }));
    versioned["metadata"]["labels"]["version"] = json!("2");
    // The pods there are of no version: each zone counts as empty.
    let before = "new@a1 new@b1 new@b2 new@a2 db@c1 db@c2 db@c1 db@c2 db@c1";
    let pods = placed(before);
    let found = schedule(
        &pod("new", versioned),
        &ledger_of(&zones(), &pods),
        &Spread::new(&pod("new", json!({})), Vec::new()),
        1,
    );
    assert_ne!(found.unwrap().0.chars().next(), Some('c'));
    check_placed(&spread(json!({})), before, "c");
}

#[test]
fn preferred_nodes_weigh_in_and_the_weights_add_up() {
    let prefers = |terms: Value| {
        json!({ "spec": { "affinity": { "nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": terms,
    } } } })
    };
    let zone = |weight: i32, zone: &str| {
        json!({ "weight": weight, "preference": {
            "matchExpressions": [{ "key": "zone", "operator": "In", "values": [zone] }],
        } })
    };
    let host = |weight: i32, name: &str| {
        json!({ "weight": weight, "preference": {
            "matchExpressions": [{ "key": "kubernetes.io/hostname", "operator": "In", "values": [name] }],
        } })
    };
    check_placed(&prefers(json!([zone(10, "b")])), "", "b");
    check_placed(&prefers(json!([zone(10, "b"), zone(11, "c")])), "", "c");
    check_placed(
        &prefers(json!([zone(10, "b"), host(5, "b2"), zone(11, "c")])),
        "",
        "b2",
    );
}

#[test]
fn a_pod_for_one_node_by_name_is_told_of_the_others_as_upstream_does() {
    let field = json!({ "key": "metadata.name", "operator": "In", "values": ["a1"] });
    let mut bound = cpu("9");
    bound["spec"]["affinity"] = json!({ "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": { "nodeSelectorTerms": [{ "matchFields": [field] }] },
    } });
    check_placed(
        &bound,
        "",
        "0/6 nodes are available: 1 Insufficient cpu, 5 node(s) didn't satisfy plugin(s) [NodeAffinity].",
    );
    bound["spec"]["containers"] = json!([]);
    check_placed(&bound, "web@a1", "a1");
}

#[test]
fn the_most_important_pod_has_its_turn_first_and_of_equals_the_oldest() {
    let waiting = |name: &str, priority: Option<i32>, minute: u32| {
        let created = format!("2026-01-01T00:{minute:02}:00Z");
        pod(
            name,
            json!({ "metadata": { "creationTimestamp": created }, "spec": { "priority": priority } }),
        )
    };
    let mut pods = [
        waiting("late", None, 9),
        waiting("humble", Some(-5), 1),
        waiting("early", Some(0), 2),
        waiting("dear", Some(2_000_000_000), 8),
        waiting("b", None, 5),
        waiting("a", None, 5),
    ];
    pods.sort_by_key(turn);
    let order: Vec<_> = pods
        .iter()
        .filter_map(|pod| pod.metadata.name.as_deref())
        .collect();
    assert_eq!(order, ["dear", "early", "a", "b", "late", "humble"]);
}

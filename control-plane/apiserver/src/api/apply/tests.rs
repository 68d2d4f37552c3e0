//! Rows after the behaviour of structured-merge-diff and `pkg/util/managedfields`, without a server.

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::resources::Registry;

#[track_caller]
fn yaml(text: &str) -> Value {
    values::read_yaml(text.as_bytes(), 10_000)
        .expect("a document")
        .value
}

fn manager(name: &str, operation: Operation) -> Manager {
    Manager {
        operation,
        name: name.to_owned(),
        api_version: "v1".to_owned(),
        subresource: String::new(),
    }
}

fn config(name: &str, text: &str, force: bool) -> Configuration {
    let mut object = yaml(text);
    for (field, value) in [("apiVersion", "v1"), ("kind", "Pod")] {
        object[field] = value.into();
    }
    Configuration {
        fields: managed::fields_of(&object),
        object,
        manager: manager(name, Operation::Apply),
        force,
    }
}

/// A pod that `author` made.
fn made(author: &str, text: &str) -> Value {
    let mut pod = yaml(text);
    for (field, value) in [("apiVersion", "v1"), ("kind", "Pod")] {
        pod[field] = value.into();
    }
    let pods = Registry::global().kind("", "Pod");
    let mut pod = normal(pods, pod).expect("a pod");
    let owners = ManagedFields::of_new(&pod, &manager(author, Operation::Update), "2026-01-01T00:00:00Z");
    owners.write(&mut pod);
    pod
}

/// One apply after the other; the last one is refused, or leaves this object without `managedFields`, and these owners.
#[track_caller]
fn check(start: &str, steps: &[(&str, &str)], expected: Result<&str, &str>, owners: &str) {
    let pods = Registry::global().kind("", "Pod");
    let mut pod = made("maker", start);
    let mut told = String::new();
    for (step, text) in steps {
        let (name, force) = match step.strip_suffix('!') {
            Some(name) => (name, true),
            None => (*step, false),
        };
        match apply_to(pods, &pod, &config(name, text, force)) {
            Ok((mut object, Author::Applier(owners))) => {
                owners.write(&mut object);
                pod = object;
                told.clear();
            }
            Ok(_) => panic!("an apply has an applier"),
            Err(failure) => told = failure.message,
        }
    }
    match expected {
        Err(expected) => assert_eq!(told, expected),
        Ok(expected) => {
            assert_eq!(told, "");
            let mut wanted = yaml(expected);
            for (field, value) in [("apiVersion", "v1"), ("kind", "Pod")] {
                wanted[field] = value.into();
            }
            let mut found = pod.clone();
            object::metadata(&mut found).remove("managedFields");
            assert_eq!(found, wanted);
        }
    }
    let list = pod.list("metadata.managedFields");
    let found: Value = list
        .iter()
        .map(|entry| (entry.text("manager").to_owned(), entry["fieldsV1"].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into();
    assert_eq!(found, yaml(owners), "owners");
}

#[test]
fn an_applier_owns_what_it_names() {
    check(
        "{metadata: {name: a}, spec: {containers: []}}",
        &[("one", "{metadata: {name: a, labels: {x: y}}}")],
        Ok("{metadata: {name: a, labels: {x: y}}, spec: {containers: []}}"),
        "{one: {f:metadata: {f:labels: {f:x: {}}}}}",
    );
}

#[test]
fn equal_values_are_shared_and_others_are_conflicts() {
    let start = "{metadata: {name: a, labels: {x: y, z: w}}, spec: {containers: []}}";
    let maker = "f:metadata: {f:labels: {.: {}, f:x: {}, f:z: {}}}";
    let shared = format!("{{maker: {{{maker}}}, one: {{f:metadata: {{f:labels: {{f:x: {{}}}}}}}}}}");
    check(
        start,
        &[("one", "{metadata: {labels: {x: y}}}")],
        Ok(start),
        &shared,
    );
    check(
        start,
        &[("one", "{metadata: {labels: {x: n}}}")],
        Err("Apply failed with 1 conflict: conflict with \"maker\" using v1: .metadata.labels.x"),
        &format!("{{maker: {{{maker}}}}}"),
    );
    check(
        start,
        &[("one", "{metadata: {labels: {x: n, z: n}}}")],
        Err(
            "Apply failed with 2 conflicts: conflicts with \"maker\" using v1:\n- .metadata.labels.x\n- .metadata.labels.z",
        ),
        &format!("{{maker: {{{maker}}}}}"),
    );
    check(
        start,
        &[("one!", "{metadata: {labels: {x: n}}}")],
        Ok("{metadata: {name: a, labels: {x: n, z: w}}, spec: {containers: []}}"),
        "{maker: {f:metadata: {f:labels: {.: {}, f:z: {}}}}, one: {f:metadata: {f:labels: {f:x: {}}}}}",
    );
    check(
        start,
        &[
            ("one!", "{metadata: {labels: {x: n}}}"),
            ("two", "{metadata: {labels: {x: m}}}"),
        ],
        Err("Apply failed with 1 conflict: conflict with \"one\": .metadata.labels.x"),
        "{maker: {f:metadata: {f:labels: {.: {}, f:z: {}}}}, one: {f:metadata: {f:labels: {f:x: {}}}}}",
    );
}

#[test]
fn what_an_applier_names_no_more_goes_unless_others_own_it() {
    let start = "{metadata: {name: a}, spec: {containers: []}}";
    check(
        start,
        &[
            ("one", "{metadata: {labels: {x: y, z: w}}}"),
            ("one", "{metadata: {labels: {z: w}}}"),
        ],
        Ok("{metadata: {name: a, labels: {z: w}}, spec: {containers: []}}"),
        "{one: {f:metadata: {f:labels: {f:z: {}}}}}",
    );
    check(
        start,
        &[
            ("one", "{metadata: {labels: {x: y}}}"),
            ("one", "{metadata: {name: a}}"),
        ],
        Ok(start),
        "{}",
    );
    check(
        start,
        &[
            ("one", "{metadata: {labels: {x: y, z: w}}}"),
            ("two", "{metadata: {labels: {x: y}}}"),
            ("one", "{metadata: {labels: {z: w}}}"),
        ],
        Ok("{metadata: {name: a, labels: {x: y, z: w}}, spec: {containers: []}}"),
        "{one: {f:metadata: {f:labels: {f:z: {}}}}, two: {f:metadata: {f:labels: {f:x: {}}}}}",
    );
    check(
        "{metadata: {name: a, labels: {x: y}}, spec: {containers: []}}",
        &[
            ("one", "{metadata: {labels: {x: y}}}"),
            ("one", "{metadata: {name: a}}"),
        ],
        Ok("{metadata: {name: a, labels: {x: y}}, spec: {containers: []}}"),
        "{maker: {f:metadata: {f:labels: {.: {}, f:x: {}}}}}",
    );
}

#[test]
fn elements_go_with_all_that_nobody_else_owns_of_them() {
    let start = "{metadata: {name: a}, spec: {containers: [{name: m, image: i}]}}";
    let made = r#"f:spec: {f:containers: {'k:{"name":"m"}': {.: {}, f:name: {}, f:image: {}}}}"#;
    check(
        start,
        &[
            (
                "one",
                "{spec: {containers: [{name: s, image: i, env: [{name: E, value: v}]}]}}",
            ),
            ("one", "{spec: {containers: []}}"),
        ],
        Ok(start),
        &format!("{{maker: {{{made}}}}}"),
    );
    check(
        start,
        &[
            (
                "one",
                "{spec: {containers: [{name: m, env: [{name: E, value: v}, {name: F, value: w}]}]}}",
            ),
            (
                "one",
                "{spec: {containers: [{name: m, env: [{name: F, value: w}]}]}}",
            ),
        ],
        Ok("{metadata: {name: a}, spec: {containers: [{name: m, image: i, env: [{name: F, value: w}]}]}}"),
        &format!(
            r#"{{maker: {{{made}}}, one: {{f:spec: {{f:containers: {{'k:{{"name":"m"}}': {{.: {{}}, f:name: {{}},
                f:env: {{'k:{{"name":"F"}}': {{.: {{}}, f:name: {{}}, f:value: {{}}}}}}}}}}}}}}}}"#
        ),
    );
    check(
        start,
        &[
            ("one", "{metadata: {finalizers: [x/a, x/b]}}"),
            ("two", "{metadata: {finalizers: [x/b, x/c]}}"),
            ("one", "{metadata: {finalizers: [x/d]}}"),
        ],
        Ok("{metadata: {name: a, finalizers: [x/b, x/c, x/d]}, spec: {containers: [{name: m, image: i}]}}"),
        &format!(
            r#"{{maker: {{{made}}}, one: {{f:metadata: {{f:finalizers: {{'v:"x/d"': {{}}}}}}}},
                two: {{f:metadata: {{f:finalizers: {{'v:"x/b"': {{}}, 'v:"x/c"': {{}}}}}}}}}}"#
        ),
    );
}

#[test]
fn an_object_without_owners_was_there_before_the_first_apply() {
    let pods = Registry::global().kind("", "Pod");
    let mut pod = made(
        "maker",
        "{metadata: {name: a, labels: {x: y}}, spec: {containers: []}, status: {phase: Running}}",
    );
    object::metadata(&mut pod).remove("managedFields");
    let told = apply_to(pods, &pod, &config("one", "{metadata: {labels: {x: z}}}", false));
    let expected =
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .metadata.labels.x";
    assert_eq!(
        told.map(drop).map_err(|failure| failure.message),
        Err(expected.to_owned())
    );
}

#[test]
fn an_apply_that_says_nothing_new_changes_nothing() {
    let pods = Registry::global().kind("", "Pod");
    let pod = made(
        "maker",
        "{metadata: {name: a}, spec: {containers: [{name: m, image: i}]}}",
    );
    let text = "{metadata: {labels: {x: y}}, spec: {containers: [{name: m, ports: [{containerPort: 80}]}]}}";
    let apply = |pod: &Value| match apply_to(pods, pod, &config("one", text, false)) {
        Ok((mut object, Author::Applier(owners))) => {
            owners.write(&mut object);
            object
        }
        other => panic!("{other:?}"),
    };
    let mut once = apply(&pod);
    // Another second would show.
    once["metadata"]["managedFields"][0]["time"] = "2026-01-01T00:00:00Z".into();
    assert_eq!(apply(&once), once);
}

#[test]
fn kubectl_has_no_conflict_over_what_it_applied_before() {
    let pods = Registry::global().kind("", "Pod");
    let last = r#"{"metadata":{"labels":{"x":"y"}}}"#;
    let mut pod = made(
        "kubectl-client-side-apply",
        "{metadata: {name: a, labels: {x: y, z: w}}, spec: {containers: []}}",
    );
    pod["metadata"]["annotations"] = json!({ LAST_APPLIED: last });
    let apply = |name: &str, text: &str| {
        apply_to(pods, &pod, &config(name, text, false))
            .map(|(object, _)| object)
            .map_err(|failure| failure.message)
    };
    let applied = apply(KUBECTL, "{metadata: {labels: {x: n}}}").expect("no conflict");
    assert_eq!(applied["metadata"]["labels"], json!({ "x": "n", "z": "w" }));
    let renewed = applied["metadata"]["annotations"][LAST_APPLIED].as_str();
    assert!(
        renewed.is_some_and(|text| text.contains(r#""labels":{"x":"n"}"#)),
        "{renewed:?}"
    );
    let conflict = |path: &str| {
        Err(format!(
            "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using v1: {path}"
        ))
    };
    assert_eq!(
        apply(KUBECTL, "{metadata: {labels: {x: n, z: n}}}"),
        conflict(".metadata.labels.z")
    );
    assert_eq!(
        apply("other", "{metadata: {labels: {x: n}}}"),
        conflict(".metadata.labels.x")
    );
}

#[test]
fn lists_merge_by_their_type() {
    for (live, config, expected) in [
        ("{args: [a, b]}", "{args: [c]}", "{args: [c]}"),
        (
            "{spec: {selector: {a: b}}}",
            "{spec: {selector: {c: d}}}",
            "{spec: {selector: {c: d}}}",
        ),
        ("{data: {a: b}}", "{data: {c: d}}", "{data: {a: b, c: d}}"),
        (
            "{metadata: {finalizers: [a, b]}}",
            "{metadata: {finalizers: [b, c]}}",
            "{metadata: {finalizers: [a, b, c]}}",
        ),
        (
            "{env: [{name: a, value: 1}]}",
            "{env: [{name: b}]}",
            "{env: [{name: a, value: 1}, {name: b}]}",
        ),
        (
            "{env: [{name: a, value: 1}]}",
            "{env: [{name: a, x: 2}]}",
            "{env: [{name: a, value: 1, x: 2}]}",
        ),
        (
            "{env: [{name: a}, {name: b}, {name: c}]}",
            "{env: [{name: c}, {name: d}, {name: a}]}",
            "{env: [{name: c}, {name: b}, {name: d}, {name: a}]}",
        ),
        ("{env: [{name: a}]}", "{env: []}", "{env: [{name: a}]}"),
        ("{env: ~}", "{env: [{name: a}]}", "{env: [{name: a}]}"),
        ("{}", "{env: [], args: [], labels: {}}", "{args: [], labels: {}}"),
        (
            "{env: [{name: a}, {name: a}]}",
            "{env: [{name: b}]}",
            "{env: [{name: b}]}",
        ),
        (
            "{containers: [{name: a, ports: [{containerPort: 80, protocol: TCP, name: x}]}]}",
            "{containers: [{name: a, ports: [{containerPort: 80, hostPort: 1}]}]}",
            "{containers: [{name: a, ports: [{containerPort: 80, protocol: TCP, name: x, hostPort: 1}]}]}",
        ),
        (
            "{spec: {ports: [{port: 53, protocol: TCP}]}}",
            "{spec: {ports: [{port: 53, protocol: UDP}]}}",
            "{spec: {ports: [{port: 53, protocol: TCP}, {port: 53, protocol: UDP}]}}",
        ),
    ] {
        assert_eq!(
            merged(&yaml(live), &yaml(config)),
            yaml(expected),
            "{live} + {config}"
        );
    }
}

#[test]
fn elements_without_their_keys_and_twice_the_same_are_told() {
    for (config, expected) in [
        ("{spec: {containers: [{name: a}, {name: b}]}}", &[][..]),
        (
            "{spec: {containers: [{name: a}, {name: a}]}}",
            &[".spec.containers: duplicate entries for key [name=\"a\"]"],
        ),
        (
            "{spec: {containers: [{image: a}]}}",
            &[
                ".spec.containers: element 0: associative list with keys has an element that omits key field \"name\" (and doesn't have default value)",
            ],
        ),
        (
            "{spec: {containers: [7]}}",
            &[".spec.containers: element 0: associative list with keys may not have non-map elements"],
        ),
        (
            "{spec: {containers: [{name: a, ports: [{containerPort: 1}, {containerPort: 1, protocol: TCP}]}]}}",
            &[
                ".spec.containers[name=\"a\"].ports: duplicate entries for key [containerPort=1,protocol=\"TCP\"]",
            ],
        ),
        (
            "{metadata: {finalizers: [a, a]}}",
            &[".metadata.finalizers: duplicate entries for key [=\"a\"]"],
        ),
        (
            "{metadata: {finalizers: [[a]]}}",
            &[
                ".metadata.finalizers: element 0: associative list without keys has an element that's a list or map type",
            ],
        ),
    ] {
        assert_eq!(list_errors(&yaml(config)), expected, "{config}");
    }
}

/// A part of a pod, drawn.
fn drawn(dice: &mut StdRng) -> String {
    let mut some = |names: &[&str], item: &dyn Fn(&str, u32) -> String| -> String {
        let mut kept = Vec::new();
        for name in names {
            if dice.random_bool(0.5) {
                kept.push(item(name, dice.random_range(0..2)));
            }
        }
        kept.join(", ")
    };
    let labels = some(&["a", "b", "c"], &|name, value| format!("{name}: v{value}"));
    let finalizers = some(&["x/a", "x/b", "x/c"], &|name, _| name.to_owned());
    let env = some(&["E", "F"], &|name, value| {
        format!("{{name: {name}, value: v{value}}}")
    });
    let ports = some(&["80", "81"], &|name, value| {
        format!("{{containerPort: {name}, hostPort: {}}}", value + 1)
    });
    let containers = some(&["m", "n"], &|name, value| {
        format!("{{name: {name}, image: i{value}, env: [{env}], ports: [{ports}]}}")
    });
    let selector = some(&["s"], &|name, value| {
        format!("nodeSelector: {{{name}: v{value}}}")
    });
    let containers = match (containers.is_empty(), selector.is_empty()) {
        (true, true) => String::new(),
        (true, false) => format!(", spec: {{{selector}}}"),
        (false, true) => format!(", spec: {{containers: [{containers}]}}"),
        (false, false) => format!(", spec: {{containers: [{containers}], {selector}}}"),
    };
    format!("{{metadata: {{name: a, labels: {{{labels}}}, finalizers: [{finalizers}]}}{containers}}}")
}

#[test]
fn whatever_is_applied_is_owned_and_goes_with_its_last_applier() {
    let pods = Registry::global().kind("", "Pod");
    let mut dice = StdRng::seed_from_u64(12);
    let apply = |pod: &Value, name: &str, text: &str| match apply_to(pods, pod, &config(name, text, true)) {
        Ok((mut object, Author::Applier(owners))) => {
            owners.write(&mut object);
            object
        }
        other => panic!("{other:?}"),
    };
    for round in 0..300 {
        let start = made("maker", &drawn(&mut dice));
        let mut pod = start.clone();
        for _ in 0..8 {
            let name = ["one", "two", "three"][dice.random_range(0..3)];
            let text = drawn(&mut dice);
            pod = apply(&pod, name, &text);
            let owners = ManagedFields::of(&pod);
            let wanted = config(name, &text, true);
            let owned = owners.owned_by(&wanted.manager).cloned().unwrap_or_default();
            assert_eq!(owned, wanted.fields, "round {round}: {name} applied {text}");
            let mut missing = wanted.fields;
            missing.subtract(&Difference::between(&Value::Null, &pod).written);
            assert_eq!(missing, FieldSet::default(), "round {round}: {text}");
            assert_eq!(apply(&pod, name, &text), pod, "round {round}: again {text}");
        }
        for name in ["one", "two", "three"] {
            pod = apply(&pod, name, "{metadata: {name: a}}");
        }
        let managers: Vec<&str> = pod
            .list("metadata.managedFields")
            .iter()
            .map(|entry| entry.text("manager"))
            .collect();
        assert!(
            managers.iter().all(|name| *name == "maker"),
            "round {round}: {managers:?}"
        );
        let mut left = Difference::between(&Value::Null, &pod).written;
        left.subtract(&Difference::between(&Value::Null, &start).written);
        assert_eq!(left, FieldSet::default(), "round {round}: outlived its appliers");
    }
}

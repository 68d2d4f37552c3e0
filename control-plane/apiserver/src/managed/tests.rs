//! Rows after the behaviour of structured-merge-diff: YAML in, `fieldsV1` out.

use serde_json::{Value, json};

use super::*;

#[track_caller]
fn yaml(text: &str) -> Value {
    crate::values::read_yaml(text.as_bytes(), 10_000)
        .expect("a document")
        .value
}

#[test]
fn a_configuration_names_its_fields() {
    for (config, expected) in [
        ("{}", "{}"),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: b, uid: c}}",
            "{}",
        ),
        (
            "{metadata: {name: a, creationTimestamp: ~, resourceVersion: '1', generation: 3}}",
            "{}",
        ),
        ("{metadata: {}}", "{}"),
        ("{spec: {replicas: 3}}", "{f:spec: {f:replicas: {}}}"),
        ("{spec: {replicas: ~}}", "{f:spec: {f:replicas: {}}}"),
        ("{spec: {}}", "{f:spec: {}}"),
        (
            "{metadata: {labels: {a: b, c: d}}}",
            "{f:metadata: {f:labels: {f:a: {}, f:c: {}}}}",
        ),
        (
            "{metadata: {annotations: {}}}",
            "{f:metadata: {f:annotations: {}}}",
        ),
        (
            "{metadata: {finalizers: [x/y, z]}}",
            r#"{f:metadata: {f:finalizers: {'v:"x/y"': {}, 'v:"z"': {}}}}"#,
        ),
        (
            "{metadata: {ownerReferences: [{uid: u, name: n, kind: k}]}}",
            r#"{f:metadata: {f:ownerReferences: {'k:{"uid":"u"}': {}}}}"#,
        ),
        ("{data: {a: b}}", "{f:data: {f:a: {}}}"),
        (
            "{spec: {selector: {matchLabels: {a: b}}}}",
            "{f:spec: {f:selector: {}}}",
        ),
        ("{spec: {nodeSelector: {a: b}}}", "{f:spec: {f:nodeSelector: {}}}"),
        (
            "{spec: {tolerations: [{key: a}]}}",
            "{f:spec: {f:tolerations: {}}}",
        ),
        (
            "{spec: {containers: [{name: a, image: b}]}}",
            r#"{f:spec: {f:containers: {'k:{"name":"a"}': {.: {}, f:name: {}, f:image: {}}}}}"#,
        ),
        (
            "{spec: {containers: [{name: a, command: [x, y]}]}}",
            r#"{f:spec: {f:containers: {'k:{"name":"a"}': {.: {}, f:name: {}, f:command: {}}}}}"#,
        ),
        (
            "{spec: {containers: [{name: a, ports: [{containerPort: 80}]}]}}",
            r#"{f:spec: {f:containers: {'k:{"name":"a"}': {.: {}, f:name: {}, f:ports: {
                'k:{"containerPort":80,"protocol":"TCP"}': {.: {}, f:containerPort: {}}}}}}}"#,
        ),
        (
            "{spec: {ports: [{port: 53, protocol: UDP, name: dns}]}}",
            r#"{f:spec: {f:ports: {'k:{"port":53,"protocol":"UDP"}': {.: {}, f:port: {}, f:protocol: {}, f:name: {}}}}}"#,
        ),
        (
            "{spec: {containers: [{name: a, env: [{name: E, valueFrom: {fieldRef: {fieldPath: p}}}]}]}}",
            r#"{f:spec: {f:containers: {'k:{"name":"a"}': {.: {}, f:name: {}, f:env: {
                'k:{"name":"E"}': {.: {}, f:name: {}, f:valueFrom: {f:fieldRef: {}}}}}}}}"#,
        ),
        (
            "{spec: {imagePullSecrets: [{name: s}]}}",
            r#"{f:spec: {f:imagePullSecrets: {'k:{"name":"s"}': {}}}}"#,
        ),
        (
            "{status: {conditions: [{type: Ready, status: 'True'}]}}",
            r#"{f:status: {f:conditions: {'k:{"type":"Ready"}': {.: {}, f:type: {}, f:status: {}}}}}"#,
        ),
        (
            "{status: {podIPs: [{ip: '::1'}]}}",
            r#"{f:status: {f:podIPs: {'k:{"ip":"::1"}': {.: {}, f:ip: {}}}}}"#,
        ),
        ("{status: {hostIPs: [{ip: a}]}}", "{f:status: {f:hostIPs: {}}}"),
        (
            "{rules: [{verbs: [get]}], roleRef: {name: a}}",
            "{f:rules: {}, f:roleRef: {}}",
        ),
        (
            "{spec: {topologySpreadConstraints: [{topologyKey: z, whenUnsatisfiable: w, maxSkew: 1}]}}",
            r#"{f:spec: {f:topologySpreadConstraints: {'k:{"topologyKey":"z","whenUnsatisfiable":"w"}':
                {.: {}, f:topologyKey: {}, f:whenUnsatisfiable: {}, f:maxSkew: {}}}}}"#,
        ),
    ] {
        assert_eq!(fields_of(&yaml(config)).to_json(), yaml(expected), "{config}");
    }
}

#[test]
fn objects_differ_in_what_was_written_and_what_is_gone() {
    for (old, new, written, removed) in [
        ("{a: 1}", "{a: 1}", "{}", "{}"),
        ("{a: 1}", "{a: 2}", "{f:a: {}}", "{}"),
        ("{a: 1}", "{}", "{}", "{f:a: {}}"),
        ("{a: ~}", "{}", "{}", "{}"),
        ("{}", "{a: ~}", "{}", "{}"),
        (
            "{metadata: {resourceVersion: '1'}}",
            "{metadata: {resourceVersion: '2'}}",
            "{}",
            "{}",
        ),
        (
            "{metadata: {}}",
            "{metadata: {labels: {a: b}}}",
            "{f:metadata: {f:labels: {.: {}, f:a: {}}}}",
            "{}",
        ),
        (
            "{metadata: {labels: {c: d}}}",
            "{metadata: {labels: {a: b}}}",
            "{f:metadata: {f:labels: {f:a: {}}}}",
            "{f:metadata: {f:labels: {f:c: {}}}}",
        ),
        (
            "{metadata: {labels: {a: b}}}",
            "{metadata: {}}",
            "{}",
            "{f:metadata: {f:labels: {.: {}, f:a: {}}}}",
        ),
        (
            "{spec: {s: {a: 1, b: 2}}}",
            "{spec: {s: {a: 1, b: 3}}}",
            "{f:spec: {f:s: {f:b: {}}}}",
            "{}",
        ),
        (
            "{spec: {s: 1}}",
            "{spec: {s: {a: 1}}}",
            "{f:spec: {f:s: {}}}",
            "{}",
        ),
        ("{spec: {s: {}}}", "{spec: {}}", "{}", "{f:spec: {f:s: {}}}"),
        (
            "{spec: {args: [a]}}",
            "{spec: {args: [b]}}",
            "{f:spec: {f:args: {}}}",
            "{}",
        ),
        (
            "{metadata: {finalizers: [a, b]}}",
            "{metadata: {finalizers: [b, c]}}",
            r#"{f:metadata: {f:finalizers: {'v:"c"': {}}}}"#,
            r#"{f:metadata: {f:finalizers: {'v:"a"': {}}}}"#,
        ),
        (
            "{metadata: {finalizers: [a, b]}}",
            "{metadata: {finalizers: [b, a]}}",
            "{}",
            "{}",
        ),
        (
            "{spec: {containers: [{name: a, image: x}]}}",
            "{spec: {containers: [{name: a, image: y}]}}",
            r#"{f:spec: {f:containers: {'k:{"name":"a"}': {f:image: {}}}}}"#,
            "{}",
        ),
        (
            "{spec: {containers: [{name: a}]}}",
            "{spec: {containers: [{name: b}]}}",
            r#"{f:spec: {f:containers: {'k:{"name":"b"}': {.: {}, f:name: {}}}}}"#,
            r#"{f:spec: {f:containers: {'k:{"name":"a"}': {.: {}, f:name: {}}}}}"#,
        ),
        (
            "{spec: {env: [{name: a}, {name: a}]}}",
            "{spec: {env: [{name: a}]}}",
            "{f:spec: {f:env: {}}}",
            "{}",
        ),
        (
            "{spec: {selector: {a: b}}}",
            "{spec: {selector: {a: c}}}",
            "{f:spec: {f:selector: {}}}",
            "{}",
        ),
        (
            "~",
            "{spec: {template: {spec: {containers: [{name: a}]}}, selector: {a: b}}, status: {}}",
            r#"{f:spec: {f:selector: {}, f:template: {f:spec: {f:containers: {'k:{"name":"a"}': {.: {}, f:name: {}}}}}}}"#,
            "{}",
        ),
        (
            "~",
            "{spec: {strategy: {type: R, rollingUpdate: {maxSurge: 1}}}}",
            "{f:spec: {f:strategy: {f:type: {}, f:rollingUpdate: {.: {}, f:maxSurge: {}}}}}",
            "{}",
        ),
    ] {
        let found = Difference::between(&yaml(old), &yaml(new));
        let found = (found.written.to_json(), found.removed.to_json());
        assert_eq!(found, (yaml(written), yaml(removed)), "{old} -> {new}");
    }
}

#[test]
fn sets_are_what_fields_v1_says() {
    for text in [
        "{}",
        "{f:a: {}}",
        r#"{f:spec: {.: {}, f:a: {.: {}, f:b: {}}, 'k:{"name":"x"}': {}, 'v:1': {}, 'i:0': {}}}"#,
    ] {
        let set = FieldSet::read(&yaml(text)).expect("a set");
        assert_eq!(set.to_json(), yaml(text));
        let mut nothing = set.clone();
        nothing.subtract(&set);
        assert!(nothing.is_empty(), "{text}");
        let mut both = set.clone();
        both.add(&set);
        assert_eq!((&both, &both.common(&set)), (&set, &set));
    }
    for wrong in ["[]", "1", "{a: {}}", "{f:a: 1}", "{f:a: {x: {}}}"] {
        assert_eq!(FieldSet::read(&yaml(wrong)), None, "{wrong}");
    }
}

#[test]
fn paths_are_shown_as_people_read_them() {
    let set = r#"{f:spec: {f:replicas: {}, f:ports: {'k:{"port":80,"protocol":"TCP"}': {.: {}, f:name: {}}}},
        f:metadata: {f:finalizers: {'v:"a/b"': {}}}, f:l: {'i:2': {}}}"#;
    assert_eq!(
        FieldSet::read(&yaml(set)).expect("a set").paths(),
        [
            ".l[2]",
            ".metadata.finalizers[=\"a/b\"]",
            ".spec.ports[port=80,protocol=\"TCP\"]",
            ".spec.ports[port=80,protocol=\"TCP\"].name",
            ".spec.replicas",
        ]
    );
}

fn updater(name: &str) -> Manager {
    Manager {
        operation: Operation::Update,
        name: name.to_owned(),
        api_version: "v1".to_owned(),
        subresource: String::new(),
    }
}

#[test]
fn who_writes_takes_from_whom_had_it() {
    let old = yaml("{data: {a: 1, b: 1, c: 1}}");
    let new = yaml("{data: {a: 2, c: 1}}");
    let owners = ManagedFields::of_new(&old, &updater("one"), "2026-01-01T00:00:00Z");
    let difference = Difference::between(&old, &new);
    let owners = owners.after_update(&difference, &updater("two"), "2026-01-02T00:00:00Z");
    let expected = json!([
        { "manager": "one", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": { "f:data": { ".": {}, "f:c": {} } } },
        { "manager": "two", "operation": "Update", "apiVersion": "v1", "time": "2026-01-02T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": { "f:data": { "f:a": {} } } },
    ]);
    assert_eq!(owners.clone().into_list(), expected);
    assert_eq!(ManagedFields::read(&expected), Some(owners));
}

#[test]
fn nobody_is_recorded_where_nobody_was() {
    let difference = Difference::between(&yaml("{a: 1}"), &yaml("{a: 2}"));
    let owners = ManagedFields::default().after_update(&difference, &updater("x"), "t");
    assert_eq!(owners.into_list(), Value::Null);
}

#[test]
fn the_oldest_of_many_updaters_become_one() {
    let mut object = yaml("{data: {start: 0}}");
    let mut owners = ManagedFields::of_new(&object, &updater("u00"), "2026-01-01T00:00:00Z");
    for at in 1..15 {
        let mut next = object.clone();
        next["data"][format!("k{at}")] = at.into();
        let difference = Difference::between(&object, &next);
        let time = format!("2026-01-01T00:00:{at:02}Z");
        owners = owners.after_update(&difference, &updater(&format!("u{at:02}")), &time);
        object = next;
    }
    let list = owners.into_list();
    let names: Vec<&str> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| entry.text("manager"))
        .collect();
    let expected = [
        "ancient-changes",
        "u06",
        "u07",
        "u08",
        "u09",
        "u10",
        "u11",
        "u12",
        "u13",
        "u14",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        list[0]["fieldsV1"],
        yaml("{f:data: {.: {}, f:start: {}, f:k1: {}, f:k2: {}, f:k3: {}, f:k4: {}, f:k5: {}}}")
    );
}

#[test]
fn a_body_resets_replaces_or_leaves_the_owners() {
    let list = ManagedFields::of_new(&yaml("{a: 1}"), &updater("x"), "t").into_list();
    let read = ManagedFields::read(&list).expect("a list");
    for (given, whole, expected) in [
        (Value::Null, true, Given::Nothing),
        (json!([]), true, Given::Nothing),
        (json!([{}]), true, Given::Reset),
        (json!([{}]), false, Given::Nothing),
        (list.clone(), true, Given::List(read)),
        (list, false, Given::Nothing),
        (
            json!([{ "operation": "Steal", "fieldsType": "FieldsV1" }]),
            true,
            Given::Nothing,
        ),
        (
            json!([{ "operation": "Apply", "fieldsType": "FieldsV2" }]),
            true,
            Given::Nothing,
        ),
        (
            json!([{ "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": { "x": {} } }]),
            true,
            Given::Nothing,
        ),
        (json!([{}, {}]), true, Given::Nothing),
    ] {
        assert_eq!(Given::read(&given, whole), expected, "{given}");
    }
}

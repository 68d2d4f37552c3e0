//! Rows after the behaviour of structured-merge-diff: YAML in, `fieldsV1` out.

use serde_json::{Value, json};

use super::*;
use crate::resources::field::Errors;

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
            "{spec: {containers: [{name: a, resources: {claims: [{name: c, request: r}]}}]}}",
            r#"{f:spec: {f:containers: {'k:{"name":"a"}': {.: {}, f:name: {}, f:resources: {f:claims: {
                'k:{"name":"c"}': {.: {}, f:name: {}, f:request: {}}}}}}}}"#,
        ),
        (
            "{status: {uncountedTerminatedPods: {succeeded: [u], failed: [v]}}}",
            r#"{f:status: {f:uncountedTerminatedPods: {f:succeeded: {'v:"u"': {}}, f:failed: {'v:"v"': {}}}}}"#,
        ),
        (
            "{status: {resourceClaimStatuses: [{name: c, resourceClaimName: d}]}}",
            r#"{f:status: {f:resourceClaimStatuses: {'k:{"name":"c"}': {.: {}, f:name: {}, f:resourceClaimName: {}}}}}"#,
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
        FieldSet::read(&yaml(set))
            .expect("a set")
            .paths(&mut Room::default()),
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

fn entries(count: usize, entry: impl Fn(usize) -> Value) -> Value {
    let whole = |at: usize| {
        let mut whole = json!({ "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1" });
        object::section(&mut whole, "fieldsV1").insert(format!("f:k{at}"), json!({}));
        let said = entry(at);
        whole
            .as_object_mut()
            .expect("an object")
            .extend(said.as_object().cloned().unwrap_or_default());
        whole
    };
    (0..count).map(whole).collect()
}

#[test]
fn the_oldest_updaters_become_one_for_each_version_and_subresource() {
    let list = entries(40, |at| {
        let version = ["v1", "v2"][at % 2];
        let subresource = ["", "status"][usize::from(at % 4 > 1)];
        json!({ "manager": format!("u{at:02}"), "apiVersion": version, "subresource": subresource,
            "time": format!("2026-01-01T00:00:{at:02}Z") })
    });
    let owners = ManagedFields::read(&list).expect("a list");
    let difference = Difference::between(&yaml("{}"), &yaml("{x: 1}"));
    let after = owners.after_update(&difference, &updater("last"), "2026-01-02T00:00:00Z");
    let list = after.into_list();
    let names: Vec<[&str; 3]> = list
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| ["manager", "apiVersion", "subresource"].map(|field| entry.text(field)))
        .collect();
    let ancient = |version, subresource| [ANCIENT, version, subresource];
    let expected = [
        ancient("v2", "status"),
        ancient("v1", ""),
        ancient("v2", ""),
        ancient("v1", "status"),
        ["u35", "v2", "status"],
        ["u36", "v1", ""],
        ["u37", "v2", ""],
        ["u38", "v1", "status"],
        ["u39", "v2", "status"],
        ["last", "v1", ""],
    ];
    assert_eq!(names, expected);
    let all = ManagedFields::read(&list)
        .expect("a list")
        .owned_by_others(&updater("nobody"));
    assert_eq!(all.count(), 41);
}

#[test]
fn what_is_told_of_conflicts_has_a_bound() {
    let key = format!("k:{{\"name\":\"{}\"}}", "x".repeat(600_000));
    let elements: Value = (0..10_000)
        .map(|at| (format!("f:e{at:05}"), json!({})))
        .collect::<Map<_, _>>()
        .into();
    let mut fields = json!({ "f:env": {} });
    fields["f:env"][&key] = elements;
    let list = json!([{ "manager": "other", "operation": "Update", "apiVersion": "v1",
        "fieldsType": "FieldsV1", "fieldsV1": fields }]);
    let owners = ManagedFields::read(&list).expect("a list");
    let written = FieldSet::read(&fields).expect("a set");
    let conflicts = owners.conflicts(&written, &updater("me"), &FieldSet::default());
    let text = conflict_message(&conflicts);
    assert_eq!((conflicts.told.len(), conflicts.count), (1, 10_000));
    assert!(text.len() < 70_000, "{} bytes", text.len());
    assert!(
        text.starts_with(
            "Apply failed with 10000 conflicts: conflicts with \"other\" using v1:\n- .env[name="
        )
    );
    assert!(text.ends_with("x\nand 9999 more"));

    let many: Value = (0..300)
        .map(|at| (format!("f:k{at:03}"), json!({})))
        .collect::<Map<_, _>>()
        .into();
    let written = FieldSet::read(&many).expect("a set");
    let list =
        json!([{ "manager": "other", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": many }]);
    let owners = ManagedFields::read(&list).expect("a list");
    let text = conflict_message(&owners.conflicts(&written, &updater("me"), &FieldSet::default()));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 102);
    assert_eq!(lines[99..], ["- .k098", "- .k099", "and 200 more"]);
}

#[test]
fn owners_of_a_body_have_bounds() {
    let told = |list: &Value| {
        let mut errors = Errors::default();
        validate(list, &mut errors);
        let errors = errors.into_result().err().unwrap_or_default();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let field = |field: &str, length: usize| entries(1, |_| json!({ field: "x".repeat(length) }));
    let at = |rest: &str| vec![format!("metadata.managedFields{rest}")];
    for (list, expected) in [
        (Value::Null, vec![]),
        (json!([{}]), vec![]),
        (entries(500, |_| json!({})), vec![]),
        (
            entries(501, |_| json!({})),
            at(": Too many: 501: must have at most 500 items"),
        ),
        (field("manager", 128), vec![]),
        (
            field("manager", 129),
            at("[0].manager: Too long: may not be more than 128 bytes"),
        ),
        (field("subresource", 256), vec![]),
        (
            field("subresource", 257),
            at("[0].subresource: Too long: may not be more than 256 bytes"),
        ),
        (
            field("apiVersion", 318),
            at("[0].apiVersion: Too long: may not be more than 317 bytes"),
        ),
        (
            entries(1, |_| json!({ "manager": "a\u{7}" })),
            at("[0].manager: Invalid value: \"a\\u0007\": should only contain printable characters"),
        ),
    ] {
        assert_eq!(told(&list), expected);
    }
}

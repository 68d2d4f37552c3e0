//! §1, network configuration format: what a plugin is given on standard input.

use serde_json::{Value, json};
use tests::topology::Host;

use crate::subject::Subject;

#[test]
fn a_configuration_that_is_wrong_is_refused_with_its_code_and_nothing_is_made() {
    let not_json = |_: &Subject| "{".to_owned();
    let version = |subject: &Subject| {
        let mut config = subject.config("9.9.9");
        config["name"] = json!("net");
        config.to_string()
    };
    let no_name = |subject: &Subject| {
        let mut config = subject.config(subject.newest);
        config.as_object_mut().expect("an object").remove("name");
        config.to_string()
    };
    let bad_name = |subject: &Subject| {
        let mut config = subject.config(subject.newest);
        config["name"] = json!("a/b");
        config.to_string()
    };
    type Row = (&'static str, fn(&Subject) -> String, u64);
    let rows: [Row; 4] = [
        ("not JSON", not_json, 6),
        ("a version that is not spoken", version, 1),
        ("no name", no_name, 7),
        ("a name with a slash", bad_name, 7),
    ];
    for subject in Subject::all("CNI §1: wrong configurations") {
        let pod = Host::new("pod").expect("a namespace");
        for (what, input, code) in rows {
            for verb in ["ADD", "DEL"] {
                let ran = subject.call(verb, "c1", &pod.path()).input(input(&subject)).run();
                assert_eq!(ran.code(), Some(code), "{} {verb}, {what}: {ran:?}", subject.name);
            }
        }
        assert_eq!(subject.devices(), Vec::<String>::new(), "{}", subject.name);
    }
}

#[test]
fn fields_of_wrong_types_are_refused_and_unknown_ones_ignored() {
    let Some(subject) = Subject::ours("CNI §1: wrong types") else {
        return;
    };
    let pod = Host::new("pod").expect("a namespace");
    let with = |field: &str, value: Value| {
        let mut config = subject.config("1.1.0");
        config[field] = value;
        config.to_string()
    };
    for (field, value) in [
        ("cniVersion", json!(1)),
        ("name", json!({})),
        ("socket", json!([])),
        ("runtimeConfig", json!("x")),
        ("runtimeConfig", json!({"portMappings": "x"})),
        ("runtimeConfig", json!({"portMappings": [{"hostPort": "80"}]})),
        ("runtimeConfig", json!({"ips": [1]})),
        ("cni.dev/valid-attachments", json!(7)),
    ] {
        let ran = subject
            .call("ADD", "c1", &pod.path())
            .input(with(field, value.clone()))
            .run();
        assert_eq!(ran.code(), Some(6), "{field}: {value}: {ran:?}");
    }
    for input in ["", "[]", "null", "\"x\"", "\u{0}"] {
        let ran = subject.call("ADD", "c1", &pod.path()).input(input).run();
        assert_eq!(ran.code(), Some(6), "{input:?}: {ran:?}");
    }
    assert_eq!(subject.devices(), Vec::<String>::new());
    let ran = subject
        .call("ADD", "c1", &pod.path())
        .input(with("x-unknown", json!({"a": 1})))
        .run();
    assert!(ran.success, "{ran:?}");
}

#[test]
fn every_version_of_a_configuration_is_served() {
    for subject in Subject::all("CNI §1: versions") {
        for (number, version) in subject.versions().enumerate() {
            let container = format!("c{number}");
            let pod = Host::new("pod").expect("a namespace");
            let input = subject.config(version).to_string();
            let call = |verb| {
                subject
                    .call(verb, &container, &pod.path())
                    .input(input.clone())
                    .run()
            };
            let added = call("ADD");
            assert!(added.success, "{} {version}: {added:?}", subject.name);
            assert_eq!(added.output["cniVersion"], version, "{}", subject.name);
            let deleted = call("DEL");
            assert!(
                deleted.success && deleted.output.is_null(),
                "{} {version}: {deleted:?}",
                subject.name
            );
        }
        assert_eq!(subject.devices(), Vec::<String>::new(), "{}", subject.name);
    }
}

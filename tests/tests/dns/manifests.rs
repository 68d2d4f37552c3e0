//! The manifests of `examples/dns`: their Corefiles are good, and their rights are those that the server makes use of.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde::Deserialize as _;
use serde_json::Value;
use tests::cluster::program;
use tests::directory::Directory;

use crate::subject::Subject;

const FILES: [&str; 2] = ["deployment.yaml", "node-local.yaml"];

/// The objects in a file of the directory.
fn objects(file: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples/dns")
        .join(file);
    let text = std::fs::read_to_string(&path).expect("it is there");
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    let objects = documents.map(|document| Value::deserialize(document).expect("YAML"));
    objects.collect()
}

/// The one object of a kind.
fn only(file: &str, kind: &str) -> Value {
    let mut found = objects(file);
    found.retain(|object| object["kind"] == kind);
    match <[Value; 1]>::try_from(found) {
        Ok([object]) => object,
        Err(found) => panic!("{file} has {} of {kind}", found.len()),
    }
}

#[test]
fn their_corefiles_are_good() {
    let directory = Directory::new("manifests");
    for file in FILES {
        let corefile = only(file, "ConfigMap")["data"]["Corefile"].clone();
        let path = directory.write("Corefile", corefile.as_str().expect("a text"));
        let check = Command::new(program("causeway"))
            .args(["dns", "check"])
            .arg(path)
            .output();
        let check = check.expect("started");
        assert!(check.status.success(), "{file}: {check:?}");
    }
}

#[test]
fn their_probes_ask_where_the_server_itself_answers() {
    let rows = [
        ("deployment.yaml", "Deployment", false),
        ("node-local.yaml", "DaemonSet", true),
    ];
    for (file, kind, on_the_node) in rows {
        let corefile = only(file, "ConfigMap")["data"]["Corefile"].clone();
        let lines = corefile.as_str().expect("a text").lines();
        let lines: Vec<&str> = lines.map(|line| line.trim().trim_end_matches(" {")).collect();
        let container = only(file, kind)["spec"]["template"]["spec"]["containers"][0].clone();
        for (probe, plugin, usual_port) in [
            ("livenessProbe", "health", 8080),
            ("readinessProbe", "ready", 8181),
        ] {
            let asked = &container[probe]["httpGet"];
            let port = asked["port"].as_u64().expect("a number");
            let line = match asked["host"].as_str() {
                Some(host) => format!("{plugin} {host}:{port}"),
                None => plugin.to_owned(),
            };
            assert!(lines.contains(&&*line), "{file}: {line:?} is not in {lines:?}");
            // A server of the node that listens there at all addresses would answer instead.
            assert_eq!(port != usual_port, on_the_node, "{file}: {plugin} at {port}");
        }
    }
}

#[test]
fn their_rights_are_what_the_server_asks_for() {
    let subject = Subject::start("pods insecure");
    if !subject.is_ours {
        tests::skipped("rights of the manifests", "another server needs others");
        return;
    }
    let asked: BTreeSet<(String, String)> = subject
        .api
        .requests()
        .iter()
        .map(|request| resource(request))
        .collect();
    for file in FILES {
        let mut granted = BTreeSet::new();
        for rule in list(&only(file, "ClusterRole"), "rules") {
            assert_eq!(rule["verbs"], serde_json::json!(["list", "watch"]), "{file}");
            for group in list(&rule, "apiGroups") {
                for resource in list(&rule, "resources") {
                    let text = |value: &Value| value.as_str().expect("a text").to_owned();
                    granted.insert((text(&group), text(&resource)));
                }
            }
        }
        assert_eq!(granted, asked, "{file}");
    }
}

fn list(object: &Value, field: &str) -> Vec<Value> {
    object[field].as_array().expect("a list").clone()
}

/// Group and resource of `/api/v1/RESOURCE?…` or `/apis/GROUP/VERSION/RESOURCE?…`.
fn resource(request: &str) -> (String, String) {
    let path = request.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    match parts.as_slice() {
        ["api", "v1", resource] => (String::new(), (*resource).to_owned()),
        ["apis", group, _, resource] => ((*group).to_owned(), (*resource).to_owned()),
        _ => panic!("{request} is no list of a resource"),
    }
}

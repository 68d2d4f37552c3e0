//! The Helm chart is the overlays in another form: rendered by Helm, it is the same objects.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tests::cluster::everything;
use tests::process::installed;
use tests::skipped;

use crate::manifests::{OVERLAYS, documents, objects, objects_with_component};

/// Says loudly where there is no Helm.
fn helm(claim: &str) -> Option<Command> {
    let helm = installed("helm");
    if helm.is_none() {
        skipped(claim, "no Helm: ./setup.sh test unpacks one");
    }
    helm.map(Command::new)
}

/// What `helm template` makes of the chart with these values.
fn rendered(mut helm: Command, values: &[&str]) -> Vec<Value> {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../node/deploy/chart");
    helm.current_dir(chart)
        .args(["template", "causeway", ".", "--namespace", "causeway"]);
    let output = helm.args(values).output().expect("helm can be started");
    assert!(output.status.success(), "{values:?}: {}", everything(&output));
    documents(&String::from_utf8(output.stdout).expect("YAML is text"))
}

/// By kind and name, in one form: what kustomize and Helm cannot have in common is taken out.
fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let mut by_name = BTreeMap::new();
    for mut object in objects {
        match object["kind"].as_str() {
            // Helm puts a release into a namespace that is there: the first step of README.md makes it.
            Some("Namespace") => continue,
            Some("ConfigMap") => {
                without_hash(&mut object["metadata"]["name"]);
                read_files(&mut object["data"]);
            }
            Some("DaemonSet") => settle_pod(&mut object["spec"]["template"]),
            _ => {}
        }
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert_eq!(by_name.insert(name.clone(), object), None, "{name} twice");
    }
    by_name
}

/// kustomize's name of `node.yaml` ends in a hash of it.
fn without_hash(name: &mut Value) {
    if name
        .as_str()
        .is_some_and(|name| name.starts_with("causeway-node-"))
    {
        *name = json!("causeway-node");
    }
}

/// Comments are not compared.
fn read_files(data: &mut Value) {
    if let Some(Value::String(text)) = data.get_mut("node.yaml") {
        data["node.yaml"] = documents(text).remove(0);
    }
    if let Some(Value::String(text)) = data.get_mut("Corefile") {
        let lines = text.lines().map(str::trim_end);
        let lines = lines.filter(|line| !line.is_empty() && !line.trim_start().starts_with('#'));
        data["Corefile"] = lines.collect();
    }
}

/// Volumes and mounts are sets. In the place of the hash Helm's pods have an annotation.
fn settle_pod(template: &mut Value) {
    if let Some(Value::Object(annotations)) = template["metadata"].get_mut("annotations") {
        annotations.remove("checksum/node.yaml");
        if annotations.is_empty() {
            template["metadata"]
                .as_object_mut()
                .expect("it had annotations")
                .remove("annotations");
        }
    }
    let pod = &mut template["spec"];
    for volume in pod["volumes"].as_array_mut().expect("a list") {
        if let Some(map) = volume.get_mut("configMap") {
            without_hash(&mut map["name"]);
        }
    }
    sort(&mut pod["volumes"]);
    for list in ["initContainers", "containers"] {
        for container in pod
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            sort(&mut container["volumeMounts"]);
        }
    }
}

fn sort(list: &mut Value) {
    let list = list.as_array_mut().expect("a list");
    list.sort_by_key(Value::to_string);
}

#[test]
fn the_chart_renders_the_objects_of_each_overlay() {
    for name in OVERLAYS {
        let Some(helm) = helm("the chart renders the objects of each overlay") else {
            return;
        };
        let values = format!("values/{name}.yaml");
        let values = ["--values", &values];
        // The chart's own values are those of vxlan.
        let found = rendered(helm, if name == "vxlan" { &[] } else { &values });
        let (found, expected) = (by_name(found), by_name(objects(name)));
        assert_eq!(
            found.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "{name}"
        );
        for (object, expected) in &expected {
            assert_eq!(&found[object], expected, "{name}: {object}");
        }
    }
}

/// The annotation that replaces the pods.
fn checksum(objects: &[Value]) -> Value {
    let mut agents = objects
        .iter()
        .filter(|object| object["metadata"]["name"] == "causeway-node");
    let agent = agents
        .find(|object| object["kind"] == "DaemonSet")
        .expect("there is one");
    agent["spec"]["template"]["metadata"]["annotations"]["checksum/node.yaml"].clone()
}

#[test]
fn values_of_the_chart_do_what_they_say() {
    let claim = "values of the chart do what they say";
    let render = |values: &[&str]| Some(rendered(helm(claim)?, values));
    let Some(plain) = render(&[]) else { return };

    let tainted = render(&["--set", "startupTaint=true"]).expect("helm is there");
    assert_eq!(by_name(tainted), by_name(objects_with_component("startup-taint")));

    let served = render(&["--set", "dnsService=10.96.0.10"]).expect("helm is there");
    assert_eq!(by_name(served), by_name(objects_with_component("dns-service")));

    let told = render(&["--set", "apiServer.host=192.0.2.1"]).expect("helm is there");
    let mut expected = by_name(plain.clone());
    let address = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "causeway-api-server", "namespace": "causeway" },
        "data": { "KUBERNETES_SERVICE_HOST": "192.0.2.1", "KUBERNETES_SERVICE_PORT": "6443" },
    });
    expected.extend(by_name(vec![address]));
    assert_eq!(by_name(told), expected);

    let image = render(&["--set", "image=registry.example/causeway:v7"]).expect("helm is there");
    let text = Value::from(image).to_string();
    assert_eq!(
        (
            text.matches("registry.example/causeway:v7").count(),
            text.matches("causeway:v0.1.0").count()
        ),
        (3, 0)
    );

    // Without BPF programs there is no need for more.
    let nftables = render(&["--set", "node.proxy.datapath=nftables"]).expect("helm is there");
    assert_ne!(checksum(&nftables), checksum(&plain));
    let (plain, nftables) = (Value::from(plain).to_string(), Value::from(nftables).to_string());
    for capability in ["SYS_ADMIN", "NET_RAW", "SYSLOG"] {
        assert!(
            plain.contains(capability) && !nftables.contains(capability),
            "{capability}"
        );
    }
}

//! The manifests of `examples/dns` as pods: the DNS server in an image of this build, with its service account's rights
//! and no other, asked from another pod.

use anyhow::{Context as _, ensure};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tests::cluster::{Cluster, busybox, everything, process_of};
use tests::directory::Directory;
use tests::process::{Place, command, installed, run_in};
use tests::{image, skipped, wait};

use super::{SOON, example};

const NAMESPACE: [&str; 2] = ["-n", "kube-system"];
const NODE_LOCAL: &str = "169.254.20.10";

/// A pod that asks, and a Service that comes after the servers.
const CLIENT: &str = "asks-dns";
const LATE: &str = "later-than-dns";

pub fn the_manifests_answer_from_pods(cluster: &Cluster) -> anyhow::Result<()> {
    let Some(dig) = installed("dig") else {
        skipped("the manifests of the DNS server as pods", "no dig");
        return Ok(());
    };
    bring_server(cluster)?;
    bring_busybox(cluster)?;
    let client = start_client(cluster)?;
    let ask = |server: &str, transport: &str, question: &str| -> anyhow::Result<String> {
        let mut dig = command(&client, &dig);
        dig.arg(format!("@{server}"))
            .args(["+short", "+tries=1", "+time=5", transport])
            .args(question.split(' '));
        let output = run_in(&client, &mut dig, b"")?;
        ensure!(
            output.status.success(),
            "dig @{server} {transport} {question}: {output:?}"
        );
        Ok(output.stdout.trim().to_owned())
    };
    let directory = Directory::new("node-dns");
    let service = deploy(cluster)?;
    place_on_nodes(cluster, &directory)?;
    let api = cluster_ip(cluster, "kubernetes")?;
    for server in [&*service, NODE_LOCAL] {
        for transport in ["+notcp", "+tcp"] {
            for (question, answer) in [
                ("kubernetes.default.svc.cluster.local A", &*api),
                (&format!("-x {api}"), "kubernetes.default.svc.cluster.local."),
                ("dns-version.cluster.local TXT", "\"1.1.0\""),
                ("nobody.default.svc.cluster.local A", ""),
            ] {
                let found = ask(server, transport, question)?;
                ensure!(found == answer, "{server} {transport} {question}: {found:?}");
            }
        }
    }
    let late = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": LATE },
        "spec": { "ports": [{ "port": 80 }] },
    });
    cluster.apply(&late.to_string())?;
    let late = cluster_ip(cluster, LATE)?;
    for server in [&*service, NODE_LOCAL] {
        wait::until_value(
            "a Service that came later is known",
            SOON,
            || ask(server, "+notcp", &format!("{LATE}.default.svc.cluster.local A")).unwrap_or_default(),
            |found| *found == late,
        );
    }
    cluster.run(&["delete", "service", LATE])?;
    cluster.run(&["delete", "pod", CLIENT, "--grace-period=0", "--force"])?;
    let made = [
        "delete",
        "deployment/coredns",
        "service/coredns",
        "daemonset/causeway-node-dns",
    ];
    cluster.run(&[&made[..], &NAMESPACE].concat())?;
    // The servers go before the directory of their snapshots does.
    for label in ["k8s-app=kube-dns", "k8s-app=causeway-node-dns"] {
        let left = ["get", "pods", "-l", label, "-o", "name"];
        cluster.await_output(&[&left[..], &NAMESPACE].concat(), "", SOON);
    }
    Ok(())
}

fn cluster_ip(cluster: &Cluster, service: &str) -> anyhow::Result<String> {
    cluster.run(&["get", "service", service, "-o", "jsonpath={.spec.clusterIP}"])
}

fn start_client(cluster: &Cluster) -> anyhow::Result<Place> {
    let container =
        json!({ "name": "idle", "image": "causeway/testserver:v1", "args": ["sleep", "infinity"] });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": CLIENT },
        "spec": { "nodeName": "node-2", "containers": [container] },
    });
    cluster.apply(&pod.to_string())?;
    cluster.run(&["wait", "pod", CLIENT, "--for=condition=Ready", "--timeout=60s"])?;
    let uid = cluster.run(&["get", "pod", CLIENT, "-o", "jsonpath={.metadata.uid}"])?;
    Place::beside(process_of(&uid).context("the pod has a process")?)
}

fn bring_server(cluster: &Cluster) -> anyhow::Result<()> {
    let recipe = image::recipe(&["causeway"])?;
    build(cluster, &recipe.iter().map(String::as_str).collect::<Vec<_>>())
}

/// As the image of that name, as far as the manifest makes use of it.
fn bring_busybox(cluster: &Cluster) -> anyhow::Result<()> {
    let busybox = busybox()?;
    let busybox = busybox.to_str().context("a path")?;
    let ip = format!("{busybox}:/bin/ip");
    build(
        cluster,
        &[
            "--tag",
            "busybox:1.36",
            "--from-binary",
            busybox,
            "--env",
            "PATH=/bin",
            "--file",
            &ip,
        ],
    )
}

fn build(cluster: &Cluster, recipe: &[&str]) -> anyhow::Result<()> {
    let output = cluster.causeway_words("image", &[&["build"], recipe].concat())?;
    ensure!(output.status.success(), "{}", everything(&output));
    Ok(())
}

/// The objects of a file of `examples/dns`.
fn manifest(file: &str) -> anyhow::Result<Vec<Value>> {
    let text = example(&format!("dns/{file}"))?;
    let documents = serde_yaml_ng::Deserializer::from_str(&text);
    documents
        .map(|document| Ok(Value::deserialize(document)?))
        .collect()
}

fn apply_all(cluster: &Cluster, objects: &[Value]) -> anyhow::Result<()> {
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects });
    cluster.apply(&list.to_string()).map(drop)
}

fn await_rollout(cluster: &Cluster, object: &str) -> anyhow::Result<()> {
    let rollout = ["rollout", "status", object, "--timeout=90s"];
    cluster.run(&[&rollout[..], &NAMESPACE].concat()).map(drop)
}

/// `deployment.yaml`, under a Service of another name: the cluster has one of that name, without pods. Returns the
/// Service's address.
fn deploy(cluster: &Cluster) -> anyhow::Result<String> {
    let mut objects = manifest("deployment.yaml")?;
    for object in objects.iter_mut().filter(|object| object["kind"] == "Service") {
        object["metadata"]["name"] = json!("coredns");
        let spec = object["spec"].as_object_mut().context("a Service")?;
        spec.remove("clusterIP");
    }
    apply_all(cluster, &objects)?;
    await_rollout(cluster, "deployment/coredns")?;
    let address = ["get", "service", "coredns", "-o", "jsonpath={.spec.clusterIP}"];
    cluster.run(&[&address[..], &NAMESPACE].concat())
}

/// `node-local.yaml`: the nodes are one machine, where each has a directory of its own.
fn place_on_nodes(cluster: &Cluster, directory: &Directory) -> anyhow::Result<()> {
    let mut objects = manifest("node-local.yaml")?;
    for object in objects.iter_mut().filter(|object| object["kind"] == "DaemonSet") {
        let spec = &mut object["spec"]["template"]["spec"];
        let server = &mut spec["containers"][0];
        let node = json!({ "fieldRef": { "fieldPath": "spec.nodeName" } });
        server["env"] = json!([{ "name": "NODE", "valueFrom": node }]);
        for mount in server["volumeMounts"].as_array_mut().into_iter().flatten() {
            if mount["name"] == "state" {
                mount["subPathExpr"] = json!("$(NODE)");
            }
        }
        for volume in spec["volumes"].as_array_mut().into_iter().flatten() {
            if volume["name"] == "state" {
                volume["hostPath"]["path"] = json!(directory.path());
            }
        }
    }
    apply_all(cluster, &objects)?;
    await_rollout(cluster, "daemonset/causeway-node-dns")
}

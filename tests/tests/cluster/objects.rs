//! Objects that are refused, and that go with their namespace.

use anyhow::ensure;
use tests::cluster::Cluster;

use super::{SOON, example};

pub fn bad_objects(cluster: &Cluster) -> anyhow::Result<()> {
    let service =
        |spec: &str| format!("{{apiVersion: v1, kind: Service, metadata: {{name: bad}}, spec: {spec}}}");
    let rows = [
        ("{apiVersion: v1, kind: Service", "error"),
        (
            "{apiVersion: v1, kind: Nonsense, metadata: {name: x}}",
            "no matches for kind \"Nonsense\"",
        ),
        (
            "{apiVersion: apps/v1, kind: Deployment, metadata: {name: bad}, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}}",
            "spec.selector: Required value",
        ),
        (
            &service("{type: NodePort, ports: [{port: 80, nodePort: 80}]}"),
            "The range of valid ports is 30000-32767",
        ),
        (
            &service("{type: NodePort, ports: [{port: 80, nodePort: 30080}]}"),
            "provided port is already allocated",
        ),
        (
            &service("{clusterIP: 192.0.2.1, ports: [{port: 80}]}"),
            "The range of valid IPs is 10.96.0.0/12",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: Bad_Name}, spec: {containers: [{name: c, image: i}]}}",
            "metadata.name: Invalid value",
        ),
        (
            "{apiVersion: v1, kind: Pod, metadata: {name: bad}, spec: {containers: [{name: c, image: i, lifecycle: {preStop: {}}}]}}",
            "spec.containers[0].lifecycle.preStop: Required value: must specify a handler type",
        ),
        (
            "{apiVersion: v1, kind: ConfigMap, metadata: {name: x, namespace: nowhere}}",
            "namespaces \"nowhere\" not found",
        ),
    ];
    for (manifest, wanted) in rows {
        let said = cluster.refused(&["apply", "-f", "-"], manifest)?;
        ensure!(
            said.contains(wanted),
            "{manifest}\nwanted: {wanted}\nsaid:   {said}"
        );
    }
    let left = cluster.run(&["get", "services,deployments", "-o", "name"])?;
    ensure!(!left.contains("bad"), "something half-made stayed: {left}");
    Ok(())
}

pub fn namespace_deletion(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply("{apiVersion: v1, kind: Namespace, metadata: {name: passing}}")?;
    cluster.await_output(
        &["get", "serviceaccount", "default", "-n", "passing", "-o", "name"],
        "serviceaccount/default",
        SOON,
    );
    let manifest = example("hello.yaml")?.replace("nodePort: 30080", "nodePort: 30081");
    let path = std::env::temp_dir().join(format!("cwt-ns-{}.yaml", std::process::id()));
    std::fs::write(&path, manifest)?;
    cluster.run(&["apply", "-n", "passing", "-f", &path.display().to_string()])?;
    std::fs::remove_file(&path)?;
    cluster.run(&[
        "rollout",
        "status",
        "-n",
        "passing",
        "deployment/hello",
        "--timeout=90s",
    ])?;
    cluster.run(&["delete", "namespace", "passing", "--timeout=90s"])?;
    let left = cluster.run(&[
        "get",
        "pods",
        "-A",
        "-o",
        "jsonpath={.items[*].metadata.namespace}",
    ])?;
    ensure!(!left.contains("passing"), "{left}");
    Ok(())
}

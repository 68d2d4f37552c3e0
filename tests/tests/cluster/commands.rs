//! Commands whose bodies kubectl 1.32 and later send in protobuf, with every kubectl; drains that a budget holds up;
//! deletes that leave or await dependents.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use tests::cluster::{Cluster, everything};

use super::{LATER, SOON, kubectls};

const PODS: [&str; 6] = ["get", "pods", "-l", "app=made", "-o", "name"];

pub(super) fn create_with_every_kubectl(cluster: &Cluster) -> anyhow::Result<()> {
    for kubectl in kubectls() {
        let minor = minor(&kubectl)?;
        println!("{}: 1.{minor}", kubectl.display());
        let run = |line: &str| kubectl_line(cluster, &kubectl, line);
        run("create deployment made --image=causeway/pause:v1 --replicas=2")?;
        run("rollout status deployment/made --timeout=60s")?;
        run("create service clusterip made --tcp=80:80")?;
        run("create configmap made --from-literal=a=b")?;
        run("create secret generic made --from-literal=a=b")?;
        ensure!(run("auth can-i create pods")?.trim() == "yes");
        if minor >= 24 {
            let token = run("create token default")?;
            let server = run("config view --minify --raw -o jsonpath={.clusters[0].cluster.server}")?;
            let asked = [
                "--kubeconfig=/dev/null",
                "--insecure-skip-tls-verify",
                "--server",
                server.trim(),
                "--token",
                token.trim(),
                "auth",
                "can-i",
                "--list",
            ];
            let output = Command::new(&kubectl).args(asked).output()?;
            let said = everything(&output);
            ensure!(said.contains("selfsubjectaccessreviews"), "{said}");
        }
        // The ReplicaSet stays and keeps its pods; when it goes in the foreground, they are gone before it.
        let pods = cluster.run(&PODS)?;
        run("delete deployment made --cascade=orphan")?;
        let sets = "get replicasets -l app=made -o jsonpath={.items[*].metadata.ownerReferences[*].uid}";
        ensure!(run(sets)?.trim().is_empty(), "the owner was not forgotten");
        ensure!(cluster.run(&PODS)? == pods, "pods went with their Deployment");
        run("delete replicasets -l app=made --cascade=foreground --timeout=60s")?;
        let left = cluster.run(&PODS)?;
        ensure!(left.is_empty(), "a ReplicaSet went before its pods: {left}");
        run("delete service/made configmap/made secret/made")?;
    }
    Ok(())
}

pub(super) fn lists_come_in_chunks(cluster: &Cluster) -> anyhow::Result<()> {
    let maps: Vec<String> = (0..5)
        .map(|at| {
            format!(
                "{{apiVersion: v1, kind: ConfigMap, metadata: {{name: chunk-{at}, labels: {{chunk: a}}}}}}"
            )
        })
        .collect();
    cluster.apply(&maps.join("\n---\n"))?;
    let expected = (0..5)
        .map(|at| format!("configmap/chunk-{at}\n"))
        .collect::<String>();
    for kubectl in kubectls() {
        let found = kubectl_line(
            cluster,
            &kubectl,
            "get configmaps -l chunk=a --chunk-size=2 -o name",
        )?;
        ensure!(found == expected, "{}: {found}", kubectl.display());
        let table = kubectl_line(
            cluster,
            &kubectl,
            "get configmaps -l chunk=a --chunk-size=2 --no-headers",
        )?;
        ensure!(table.lines().count() == 5, "{}: {table}", kubectl.display());
    }
    cluster.run(&["delete", "configmaps", "-l", "chunk=a"])?;
    Ok(())
}

pub(super) fn a_budget_holds_a_drain_up(cluster: &Cluster) -> anyhow::Result<()> {
    let run = |line: &str| kubectl_line(cluster, Path::new("kubectl"), line);
    run("create deployment made --image=causeway/pause:v1 --replicas=3")?;
    run("rollout status deployment/made --timeout=60s")?;
    let nodes = "get pods -l app=made -o jsonpath={.items[*].spec.nodeName}";
    ensure!(
        run(nodes)?.contains("node-3"),
        "no pod on node-3: {}",
        run(nodes)?
    );
    run("create poddisruptionbudget made --selector=app=made --min-available=3")?;
    let drain = |timeout: &str| {
        let line = format!("drain node-3 --pod-selector=app=made --timeout={timeout}");
        cluster
            .kubectl("kubectl", &line.split(' ').collect::<Vec<_>>())
            .output()
    };
    let refused = drain("7s")?;
    let said = everything(&refused);
    ensure!(
        !refused.status.success(),
        "a budget of three was not kept: {said}"
    );
    ensure!(said.contains("violate the pod's disruption budget"), "{said}");
    ensure!(run(nodes)?.contains("node-3"), "the pod is gone");

    run("patch poddisruptionbudget made -p {\"spec\":{\"minAvailable\":2}}")?;
    let drained = drain("60s")?;
    ensure!(drained.status.success(), "{}", everything(&drained));
    let ready = [
        "get",
        "deployment",
        "made",
        "-o",
        "jsonpath={.status.readyReplicas}",
    ];
    cluster.await_output(&ready, "3", LATER);
    let stand_on = run(nodes)?;
    let stand_on: BTreeSet<&str> = stand_on.split_whitespace().collect();
    ensure!(stand_on == BTreeSet::from(["node-1", "node-2"]), "{stand_on:?}");
    run("uncordon node-3")?;
    run("delete deployment/made poddisruptionbudget/made")?;
    cluster.await_output(&PODS, "", SOON);
    Ok(())
}

/// What kubectl prints; a line of arguments has no blanks within one.
fn kubectl_line(cluster: &Cluster, kubectl: &Path, line: &str) -> anyhow::Result<String> {
    let program = kubectl.display().to_string();
    let arguments: Vec<&str> = line.split(' ').collect();
    let output = cluster.kubectl(&program, &arguments).output()?;
    ensure!(
        output.status.success(),
        "{program} {line}: {}",
        everything(&output)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The minor version of a kubectl; of a dispatcher, that of what it runs without a server.
fn minor(kubectl: &Path) -> anyhow::Result<u32> {
    let output = Command::new(kubectl)
        .args(["version", "--client", "-o", "json"])
        .output()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let minor = version["clientVersion"]["minor"]
        .as_str()
        .context("no minor version")?;
    Ok(minor.trim_end_matches('+').parse()?)
}

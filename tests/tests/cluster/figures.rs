//! What nodes and pods use, as `kubectl top` shows it; and that no Node leads the API server to itself.

use anyhow::ensure;
use serde_json::json;
use tests::cluster::{Cluster, everything};
use tests::kubectl;

use super::pods::{apply, delete, pod, shell, with};
use super::{LATER, SOON};

/// `123m` of the cell of a line that begins with these words.
fn millicores(text: &str, line_of: &[&str]) -> Option<u64> {
    let mut lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let line = lines.find(|line| line.starts_with(line_of))?;
    line.get(line_of.len())?.strip_suffix('m')?.parse().ok()
}

/// A pod that may have a fifth of a CPU and takes it, beside one that sleeps.
pub fn what_nodes_and_pods_use_is_told_by_top(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.bring_shell()?;
    let limits = json!({ "resources": { "limits": { "cpu": "200m" } } });
    let busy = with(shell("busy", "while :; do :; done"), limits);
    let spec = json!({ "containers": [busy, shell("idle", "exec sleep 1000")] });
    apply(cluster, &pod("used", spec))?;
    let top = ["top", "pod", "used", "--containers", "--no-headers"];
    // Near its limit: the kernel's periods and the looks' do not begin together.
    let said = cluster.await_that(&top, LATER, |text| {
        millicores(text, &["used", "busy"]).is_some_and(|used| (100..=260).contains(&used))
    });
    ensure!(
        millicores(&said, &["used", "idle"]).is_some_and(|used| used < 20),
        "{said}"
    );
    ensure!(said.contains("Mi"), "{said}");
    // A node was looked at twice before it has a rate.
    cluster.await_that(&["top", "nodes", "--no-headers"], LATER, |text| {
        (1..=3).all(|node| millicores(text, &[&format!("node-{node}")]).is_some())
    });
    for kubectl in kubectl::all() {
        let line = |arguments: &[&str]| -> anyhow::Result<String> {
            let output = kubectl.run(cluster, arguments, b"")?;
            ensure!(output.status.success(), "{kubectl}: {}", everything(&output));
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        };
        let nodes = line(&["top", "nodes", "--no-headers"])?;
        let told = |node| millicores(&nodes, &[node]);
        ensure!(told("node-1").is_some_and(|used| used >= 100), "{nodes}");
        ensure!(told("node-2").is_some() && told("node-3").is_some(), "{nodes}");
        let pods = line(&["top", "pods", "-l", "of=pods", "--no-headers"])?;
        ensure!(
            pods.lines().count() == 1 && millicores(&pods, &["used"]).is_some(),
            "{pods}"
        );
    }
    let table = cluster.run(&["get", "podmetrics.metrics.k8s.io", "used"])?;
    ensure!(table.starts_with("NAME") && table.contains("WINDOW"), "{table}");
    let summary = ["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"];
    cluster.await_that(&summary, SOON, |text| {
        let summary: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let pods = summary["pods"].as_array().cloned().unwrap_or_default();
        let used = pods.iter().find(|pod| pod["podRef"]["name"] == "used");
        used.is_some_and(|pod| pod["cpu"]["usageNanoCores"].as_u64() > Some(50_000_000))
    });
    let nobody = ["--as=system:serviceaccount:default:default", "top", "pods"];
    let said = cluster.refused(&nobody, "")?;
    ensure!(said.contains("pods.metrics.k8s.io is forbidden"), "{said}");
    delete(cluster)
}

/// Whoever writes such a Node would have the API server's own certificate at the API server's own door.
pub fn no_way_to_itself(cluster: &Cluster) -> anyhow::Result<()> {
    let node = |name: &str, address: &str, port: u16| {
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "status": {
            "addresses": [{ "type": "InternalIP", "address": address }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": port } },
        } })
    };
    for (name, address, port) in [
        ("itself", "172.30.0.1", 6443),
        ("loopback", "127.0.0.1", 6443),
        ("metadata", "169.254.169.254", 80),
    ] {
        apply(cluster, &node(name, address, port))?;
        let status = node(name, address, port)["status"].clone();
        let patch = json!({ "status": status }).to_string();
        cluster.run(&[
            "patch",
            "node",
            name,
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])?;
        let path = format!("/api/v1/nodes/{name}/proxy/api/v1/secrets");
        let said = cluster.refused(&["get", "--raw", &path], "")?;
        ensure!(said.contains("address not allowed"), "{name}: {said}");
        cluster.run(&["delete", "node", name])?;
    }
    Ok(())
}

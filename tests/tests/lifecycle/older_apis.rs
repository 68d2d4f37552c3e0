//! Agents and kubectl at API servers of older versions, and at one that changes its version under them.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::cluster::Cluster;
use tests::process::{Place, command, run_in};
use tests::wait;

const DEADLINE: Duration = Duration::from_secs(60);

/// What agents meet, by version and gates. Before the first row the cluster is of the newest version.
const SERVERS: [(&str, &str); 7] = [
    ("1.33", "WatchList=false"),
    ("1.33", "WatchBookmark=false"),
    ("1.33", "WatchList=false,APIListChunking=false"),
    ("1.33", "MultiCIDRServiceAllocator=false"),
    ("1.27", ""),
    (
        "1.27",
        "WatchBookmark=false,APIListChunking=false,AggregatedDiscoveryEndpoint=false,OpenAPIV3=false",
    ),
    ("1.33", ""),
];

/// The next control plane is of another version.
fn change_version(cluster: &Cluster, version: &str, gates: &str) -> anyhow::Result<()> {
    let path = cluster.state_dir().join("cluster.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&path)?)?;
    settings["kubernetes_version"] = version.into();
    settings["feature_gates"] = gates.into();
    std::fs::write(&path, settings.to_string())?;
    cluster.kill_and_await_successor("control-plane", DEADLINE)?;
    let minor = version.strip_prefix("1.").context("a version")?.to_owned();
    let arguments = ["get", "--raw", "/version"];
    cluster.await_that(&arguments, DEADLINE, |text| {
        serde_json::from_str::<Value>(text).is_ok_and(|version| version["minor"] == minor.as_str())
    });
    cluster.await_output(&["get", "--raw", "/readyz"], "ok", DEADLINE);
    Ok(())
}

/// A Service whose endpoint is the API server itself.
fn put_service(cluster: &Cluster, name: &str) -> anyhow::Result<Ipv4Addr> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": name }, "spec": { "ports": [{ "port": 443 }] },
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
        "ports": [{ "port": 6443 }], "endpoints": [{ "addresses": ["172.30.0.1"] }],
    });
    let made = cluster.apply_and_read(&service)?;
    cluster.apply_and_read(&slice)?;
    Ok(made["spec"]["clusterIP"]
        .as_str()
        .context("an address")?
        .parse()?)
}

/// The node reaches the API server through a Service.
fn await_served(node: &Place, address: Ipv4Addr) {
    let url = format!("https://{address}/version");
    let flags = ["--insecure", "--silent", "--show-error", "--max-time", "2"];
    let ask = || -> anyhow::Result<()> {
        let output = run_in(node, command(node, "curl").args(flags).arg(&url), b"")?;
        ensure!(output.stdout.contains("gitVersion"), "{output:?}");
        Ok(())
    };
    wait::until(&url, DEADLINE, ask);
}

pub fn agents_follow(cluster: &Cluster) -> anyhow::Result<()> {
    let node = Place::beside(u32::try_from(cluster.pid("node-1-kubelet")?)?)?;
    let first = put_service(cluster, "first")?;
    await_served(&node, first);
    for (index, (version, gates)) in SERVERS.into_iter().enumerate() {
        change_version(cluster, version, gates)?;
        // The agent that was there goes on, and so does one that knows nothing yet.
        await_served(&node, put_service(cluster, &format!("followed-{index}"))?);
        cluster.kill_and_await_successor("node-1-agent", DEADLINE)?;
        await_served(&node, put_service(cluster, &format!("listed-{index}"))?);
        await_served(&node, first);
        let nodes = cluster.run(&["get", "nodes", "--no-headers"])?;
        ensure!(nodes.contains(" Ready "), "{version} {gates}: {nodes}");
        let service_cidrs = ["get", "--raw", "/apis/networking.k8s.io/v1/servicecidrs"];
        let served = cluster.run(&service_cidrs).is_ok();
        let expected = version == "1.33" && !gates.contains("MultiCIDR");
        ensure!(served == expected, "{version} {gates}: ServiceCIDRs");
    }
    let log = std::fs::read_to_string(cluster.state_dir().join("logs/node-1-agent.log"))?;
    for told in [
        "server has no streaming lists, listing by pages",
        "server denies this kind, doing without it",
    ] {
        ensure!(log.contains(told), "the agent never met what it should: {told}");
    }
    Ok(())
}

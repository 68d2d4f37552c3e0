//! Clients that keep their pod.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};
use tests::client::How::{Tcp, Udp};
use tests::client::{Client, each};

use crate::namespace::{Namespace, Object, SERVERS};
use crate::world::await_answer;

/// Requests farther apart than the timeout below: so many choose the same one of three pods once in 3^8 times, and are
/// then made again.
const APART: [&str; 4] = ["--count", "9", "--interval-ms", "1500"];
const TIMEOUT_SECONDS: u8 = 1;

type Addresses = fn(&Namespace<'_>, &Object<'_>) -> anyhow::Result<Vec<SocketAddr>>;

fn cluster_ip(_: &Namespace<'_>, service: &Object<'_>) -> anyhow::Result<Vec<SocketAddr>> {
    Ok(vec![service.cluster_ip()?])
}

fn node_ports(at: &Namespace<'_>, service: &Object<'_>) -> anyhow::Result<Vec<SocketAddr>> {
    Ok(at.on_every_node(service.node_port()?))
}

/// Services: should have session affinity work for service with type clusterIP \[LinuxOnly\] \[Conformance\]
pub fn works_by_cluster_ip(at: &Namespace<'_>) -> anyhow::Result<()> {
    works(at, cluster_ip)
}

/// Services: should have session affinity work for NodePort service \[LinuxOnly\] \[Conformance\]
pub fn works_by_node_port(at: &Namespace<'_>) -> anyhow::Result<()> {
    works(at, node_ports)
}

fn sticky() -> Value {
    json!({"type": "NodePort", "sessionAffinity": "ClientIP"})
}

fn works(at: &Namespace<'_>, addresses: Addresses) -> anyhow::Result<()> {
    at.servers()?;
    let service = at.service("sticky", &sticky())?;
    at.await_all_endpoints("sticky");
    for server in addresses(at, &service)? {
        each([&at.pods[0], &at.hosts[0]], |client| {
            let first = client.await_one_pod(Tcp, server);
            client.await_pods(Tcp, server, &[&first]);
            client.await_one_pod(Udp, server);
        });
    }
    Ok(())
}

/// Services: should be able to switch session affinity for service with type clusterIP \[LinuxOnly\] \[Conformance\]
pub fn switches_by_cluster_ip(at: &Namespace<'_>) -> anyhow::Result<()> {
    switches(at, cluster_ip)
}

/// Services: should be able to switch session affinity for NodePort service \[LinuxOnly\] \[Conformance\]
pub fn switches_by_node_port(at: &Namespace<'_>) -> anyhow::Result<()> {
    switches(at, node_ports)
}

fn switches(at: &Namespace<'_>, addresses: Addresses) -> anyhow::Result<()> {
    at.servers()?;
    let mut service = at.service("switched", &json!({"type": "NodePort"}))?;
    let servers = addresses(at, &service)?;
    let clients = [&at.pods[0], &at.hosts[0]];
    for affinity in ["None", "ClientIP", "None"] {
        service.patch(&json!({ "sessionAffinity": affinity }))?;
        each(clients, |client| {
            for server in &servers {
                match affinity {
                    "None" => client.await_pods(Tcp, *server, &SERVERS),
                    _ => drop(client.await_one_pod(Tcp, *server)),
                }
            }
        });
    }
    Ok(())
}

/// Services: should have session affinity timeout work for service with type clusterIP \[LinuxOnly\]
pub fn ends_by_cluster_ip(at: &Namespace<'_>) -> anyhow::Result<()> {
    ends(at, cluster_ip)
}

/// Services: should have session affinity timeout work for NodePort service \[LinuxOnly\]
pub fn ends_by_node_port(at: &Namespace<'_>) -> anyhow::Result<()> {
    ends(at, node_ports)
}

fn ends(at: &Namespace<'_>, addresses: Addresses) -> anyhow::Result<()> {
    at.servers()?;
    let mut spec = sticky();
    spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": TIMEOUT_SECONDS}});
    let service = at.service("short", &spec)?;
    at.await_all_endpoints("short");
    let servers = addresses(at, &service)?;
    let server = *servers.first().expect("a Service has an address");
    // Requests one upon the other stay within the timeout.
    at.pods[0].await_one_pod(Tcp, server);
    let seen = await_answer(
        "another pod after the timeout",
        || pods_apart(&at.pods[0], server),
        |pods| pods.len() > 1,
    );
    ensure!(seen.iter().all(|pod| SERVERS.contains(&pod.as_str())), "{seen:?}");
    Ok(())
}

/// The pods that answer requests which are farther apart than the timeout.
fn pods_apart(client: &Client, server: SocketAddr) -> anyhow::Result<BTreeSet<String>> {
    let url = format!("http://{server}/");
    let printed = client.run(&[&["fetch", &url], &APART[..]].concat())?;
    let lines = printed.lines().filter(|line| !line.starts_with("summary:"));
    Ok(lines
        .filter_map(|line| line.split(' ').nth(2).map(str::to_owned))
        .collect())
}

//! Which of its endpoints a Service chooses, and for whom.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::client::How::{Tcp, Udp, UdpUnconnected};
use tests::client::Outcome::{Refused, Silent, Status};
use tests::client::{Client, each};

use crate::namespace::{HTTP, Namespace, Object, SERVERS, number, server};
use crate::objects::load_balancer;

/// A port of the host's network that the cases beside this one leave alone; UDP has the next one.
const ON_HOST: u16 = 18_080;

fn local_inside() -> Value {
    json!({"internalTrafficPolicy": "Local"})
}

/// The pods and hosts of the first two nodes get their own server; those of the third get none.
fn each_its_own(server: SocketAddr, clients: &[Client], own: [&str; 2]) {
    for how in [Tcp, Udp, UdpUnconnected] {
        for (client, pod) in clients.iter().zip(own) {
            client.await_pods(how, server, &[pod]);
        }
        for client in &clients[2..] {
            client.await_unserved(how, server);
        }
    }
}

/// Services: should respect internalTrafficPolicy=Local Pod to Pod
pub fn internal_local_from_pods(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.server("two", 1)?;
    let mut service = at.service("inside", &local_inside())?;
    let server = service.cluster_ip()?;
    each_its_own(server, &at.pods, ["one", "two"]);
    service.patch(&json!({"internalTrafficPolicy": "Cluster"}))?;
    each(&at.pods, |client| client.await_pods(Tcp, server, &["one", "two"]));
    Ok(())
}

/// Services: should respect internalTrafficPolicy=Local Pod (hostNetwork: true) to Pod
pub fn internal_local_from_hosts(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.server("two", 1)?;
    let server = at.service("inside", &local_inside())?.cluster_ip()?;
    each_its_own(server, &at.hosts, ["one", "two"]);
    Ok(())
}

/// Services: should respect internalTrafficPolicy=Local Pod and Node, to Pod (hostNetwork: true)
pub fn internal_local_to_hosts(at: &Namespace<'_>) -> anyhow::Result<()> {
    on_hosts(at, ON_HOST, 2)?;
    let server = at.service("inside", &local_inside())?.cluster_ip()?;
    // A pod of the host's network has the node's name.
    let own = [0, 1].map(|node| at.nodes[node].name.as_str());
    each_its_own(server, &at.pods, own);
    each_its_own(server, &at.hosts, own);
    Ok(())
}

/// Servers of the host's network on the first nodes.
fn on_hosts(at: &Namespace<'_>, port: u16, count: usize) -> anyhow::Result<()> {
    let spec = json!({"hostNetwork": true, "containers": [server(port, "/readyz")]});
    for (node, name) in SERVERS.into_iter().enumerate().take(count) {
        at.pod(name, node, &spec)?;
    }
    for name in &SERVERS[..count] {
        at.address(name);
    }
    Ok(())
}

/// Networking Granular Checks: Services: should function for service endpoints using hostNetwork
pub fn endpoints_of_the_hosts_network(at: &Namespace<'_>) -> anyhow::Result<()> {
    on_hosts(at, ON_HOST + 10, 3)?;
    let service = at.service("on-host", &json!({"type": "NodePort"}))?;
    let (server, nodes) = (service.cluster_ip()?, at.on_every_node(service.node_port()?));
    let names: Vec<&str> = at.nodes.iter().map(|node| node.name.as_str()).collect();
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &names);
        client.await_pods(Udp, server, &names);
        for node in &nodes {
            client.await_pods(Tcp, *node, &names);
        }
    });
    Ok(())
}

/// What a Service of externalTrafficPolicy Local at node ports does for `clients` of each node.
fn check_external_local(
    at: &Namespace<'_>,
    service: &Object<'_>,
    clients: &Asking<'_>,
) -> anyhow::Result<()> {
    let nodes = at.on_every_node(service.node_port()?);
    for (number, pod) in ["one", "two"].into_iter().enumerate() {
        each(clients(number), |client| {
            client.await_pods(Tcp, nodes[number], &[pod]);
            client.await_seen_as(nodes[number], |saw| saw == client.address);
        });
    }
    each(clients(2), |client| client.await_outcome(Tcp, nodes[2], &Silent));
    Ok(())
}

/// Who asks the node of a number from elsewhere.
type Asking<'a> = dyn Fn(usize) -> Vec<&'a Client> + 'a;

/// By node port alone.
fn local_outside() -> Value {
    json!({"type": "NodePort", "externalTrafficPolicy": "Local"})
}

/// With health checks.
pub fn local_balanced() -> Value {
    let mut spec = load_balancer();
    spec["externalTrafficPolicy"] = json!("Local");
    spec
}

/// Services: should support externalTrafficPolicy=Local for type=NodePort
pub fn external_local_from_hosts(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.server("two", 1)?;
    let mut service = at.service("local", &local_outside())?;
    check_external_local(at, &service, &|node| at.other_hosts(node).collect())?;
    let nodes = at.on_every_node(service.node_port()?);
    // Who is inside reaches all of them, wherever it asks: it would not be outside's policy else.
    at.hosts[2].await_pods(Tcp, nodes[2], &["one", "two"]);
    at.pods[2].await_pods(Tcp, nodes[2], &["one", "two"]);
    service.patch(&json!({"externalTrafficPolicy": "Cluster"}))?;
    for (node, server) in nodes.into_iter().enumerate() {
        each(at.other_hosts(node), |client| {
            client.await_pods(Tcp, server, &["one", "two"])
        });
    }
    Ok(())
}

/// Services: should support externalTrafficPolicy=Local for type=NodePort, by who is no part of the cluster
pub fn external_local_from_outside(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("one", 0)?;
    at.server("two", 1)?;
    let outside = at.outsider()?;
    let mut service = at.service("local", &local_outside())?;
    check_external_local(at, &service, &|_| vec![outside])?;
    service.patch(&json!({"externalTrafficPolicy": "Cluster"}))?;
    for server in at.on_every_node(service.node_port()?) {
        outside.await_pods(Tcp, server, &["one", "two"]);
        outside.await_seen_as(server, |saw| saw != outside.address);
    }
    Ok(())
}

/// The addresses of a Service's health checks.
pub fn health_checks(at: &Namespace<'_>, service: &Object<'_>) -> anyhow::Result<Vec<SocketAddr>> {
    let port = number(&service.content["spec"]["healthCheckNodePort"]);
    ensure!(port != 0, "no healthCheckNodePort in {}", service.content);
    Ok(at.on_every_node(port))
}

/// Services: should implement NodePort and HealthCheckNodePort correctly when ExternalTrafficPolicy changes
pub fn health_checks_follow_the_policy(at: &Namespace<'_>) -> anyhow::Result<()> {
    let local = at.server("one", 0)?;
    at.address("one");
    let mut service = at.service("checked", &local_balanced())?;
    let (nodes, checks) = (
        at.on_every_node(service.node_port()?),
        health_checks(at, &service)?,
    );
    let asking = |node: usize| at.other_hosts(node).next().context("another node");
    for (node, code) in [200, 503, 503].into_iter().enumerate() {
        asking(node)?.await_outcome(Tcp, checks[node], &Status(code));
    }
    asking(0)?.await_pods(Tcp, nodes[0], &["one"]);
    asking(1)?.await_outcome(Tcp, nodes[1], &Silent);
    service.patch(&json!({"externalTrafficPolicy": "Cluster"}))?;
    for node in 0..3 {
        asking(node)?.await_pods(Tcp, nodes[node], &["one"]);
        asking(node)?.await_outcome(Tcp, checks[node], &Refused);
    }
    service.patch(&json!({"externalTrafficPolicy": "Local"}))?;
    let checks = health_checks(at, &service)?;
    asking(0)?.await_outcome(Tcp, checks[0], &Status(200));
    local.delete()?;
    asking(0)?.await_outcome(Tcp, checks[0], &Status(503));
    Ok(())
}

/// Traffic Distribution: should route traffic to an endpoint in the same zone when using PreferClose, and PreferSameZone
pub fn traffic_stays_in_its_zone(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    for distribution in ["PreferClose", "PreferSameZone"] {
        let spec = json!({ "trafficDistribution": distribution });
        // The second word is younger than the first.
        let service = match at.service(&distribution.to_lowercase(), &spec) {
            Err(error) if tests::api::refusal(&error) == Some(422) && distribution != "PreferClose" => {
                tests::skipped(distribution, "this cluster does not know it");
                continue;
            }
            service => service?,
        };
        let server = service.cluster_ip()?;
        for (client, node) in at.pods.iter().zip(&at.nodes) {
            let zone = SERVERS.into_iter().zip(&at.nodes);
            let near: Vec<&str> = zone
                .filter(|(_, of)| of.zone == node.zone)
                .map(|(pod, _)| pod)
                .collect();
            client.await_pods(Tcp, server, &near);
            client.await_pods(Udp, server, &near);
        }
    }
    Ok(())
}

/// Networking: Granular Checks, and kube-proxy's promise that a client without a near endpoint gets a far one
pub fn a_zone_without_pods_uses_the_others(at: &Namespace<'_>) -> anyhow::Result<()> {
    let far = at.nodes.iter().position(|node| node.zone != at.nodes[0].zone);
    let far = far.context("two zones")?;
    at.server("near", 0)?;
    let server = at
        .service("close", &json!({"trafficDistribution": "PreferClose"}))?
        .cluster_ip()?;
    at.await_endpoints(
        "close",
        &[(at.address("near"), HTTP), (at.address("near"), HTTP + 1)],
    );
    at.pods[far].await_pods(Tcp, server, &["near"]);
    Ok(())
}

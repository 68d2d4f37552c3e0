//! Pods that end or are not ready, as endpoints.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};
use tests::client::How::{Tcp, Udp};
use tests::client::Outcome::{Refused, Silent, Status};
use tests::client::{Client, each};

use crate::namespace::{HTTP, Namespace, Object, server};
use crate::policies::{health_checks, local_balanced};

/// Long after the case: the namespace's end removes the pod at once.
const GRACE_SECONDS: u32 = 600;

/// A pod that goes on serving when it is told to end. The node's number counts from 0.
fn lingering<'a>(at: &'a Namespace<'_>, name: &str, node: usize) -> anyhow::Result<Object<'a>> {
    at.pod(name, node, &lingering_spec("/readyz"))
}

fn lingering_spec(ready_path: &str) -> Value {
    let mut container = server(HTTP, ready_path);
    container["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["/testserver", "sleep", GRACE_SECONDS.to_string()]}}});
    json!({"terminationGracePeriodSeconds": GRACE_SECONDS, "containers": [container]})
}

/// Tells the pod to end, and waits until the Service's slices say so.
fn end(at: &Namespace<'_>, service: &str, pod: &Object<'_>) -> anyhow::Result<()> {
    pod.delete()?;
    let path = format!(
        "{}?labelSelector=kubernetes.io/service-name%3D{service}",
        at.collection("endpointslices")
    );
    let wanted = json!({"ready": false, "serving": true, "terminating": true});
    at.await_object(&path, "an endpoint that serves and ends", |list| {
        let slices = list["items"].as_array().into_iter().flatten();
        let mut endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
        endpoints.any(|endpoint| endpoint["conditions"] == wanted)
    });
    Ok(())
}

/// A pod that serves, on the first node; when another one was made and told to end, the Service's address with it.
fn beside_an_ending_one(at: &Namespace<'_>, spec: &Value) -> anyhow::Result<Vec<SocketAddr>> {
    let ending = lingering(at, "ending", 0)?;
    at.address("ending");
    at.server("stays", 1)?;
    at.address("stays");
    let service = at.service("service", spec)?;
    let server = service.cluster_ip()?;
    each(&at.pods, |client| {
        client.await_pods(Tcp, server, &["ending", "stays"])
    });
    end(at, "service", &ending)?;
    let nodes = match service.node_port() {
        Ok(port) => at.on_every_node(port),
        Err(_) => Vec::new(),
    };
    Ok([vec![server], nodes].concat())
}

/// Services: should not send new connections to terminating endpoints while others are ready
pub fn ready_endpoints_come_first(at: &Namespace<'_>) -> anyhow::Result<()> {
    let servers = beside_an_ending_one(at, &json!({"type": "NodePort"}))?;
    for server in servers {
        each(at.inside(), |client| {
            client.await_pods(Tcp, server, &["stays"]);
            client.await_pods(Udp, server, &["stays"]);
        });
    }
    Ok(())
}

/// Makes a Service whose only pod, on the first node, is told to end.
fn only_ending<'a>(at: &'a Namespace<'_>, spec: &Value) -> anyhow::Result<Object<'a>> {
    let pod = lingering(at, "ending", 0)?;
    at.address("ending");
    let service = at.service("service", spec)?;
    at.pods[0].await_pods(Tcp, service.cluster_ip()?, &["ending"]);
    end(at, "service", &pod)?;
    Ok(service)
}

/// That all of them go on being served by the pod that ends.
fn are_served<'a>(clients: impl IntoIterator<Item = &'a Client>, server: SocketAddr) {
    each(clients, |client| {
        client.await_pods(Tcp, server, &["ending"]);
        client.await_pods(Udp, server, &["ending"]);
    });
}

/// Services: should fallback to terminating endpoints when there are no ready endpoints with internalTrafficPolicy=Cluster
pub fn ending_ones_serve_inside(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = only_ending(at, &json!({}))?;
    are_served(at.inside(), service.cluster_ip()?);
    Ok(())
}

/// Services: should fallback to local terminating endpoints when there are no ready endpoints with
/// internalTrafficPolicy=Local
pub fn ending_ones_serve_inside_their_node(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = only_ending(at, &json!({"internalTrafficPolicy": "Local"}))?;
    let server = service.cluster_ip()?;
    are_served([&at.pods[0], &at.hosts[0]], server);
    each([&at.pods[1], &at.hosts[1]], |client| {
        client.await_unserved(Tcp, server)
    });
    // A ready one elsewhere is no one here.
    at.server("stays", 1)?;
    at.pods[1].await_pods(Tcp, server, &["stays"]);
    are_served([&at.pods[0], &at.hosts[0]], server);
    Ok(())
}

/// Services: should fallback to terminating endpoints when there are no ready endpoints with externallTrafficPolicy=Cluster
pub fn ending_ones_serve_outside(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = only_ending(at, &json!({"type": "NodePort"}))?;
    for (node, server) in at.on_every_node(service.node_port()?).into_iter().enumerate() {
        are_served(at.other_hosts(node), server);
    }
    Ok(())
}

/// Services: should fallback to local terminating endpoints when there are no ready endpoints with
/// externalTrafficPolicy=Local
pub fn ending_ones_serve_outside_by_their_node(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = only_ending(at, &json!({"type": "NodePort", "externalTrafficPolicy": "Local"}))?;
    let servers = at.on_every_node(service.node_port()?);
    are_served(at.other_hosts(0), servers[0]);
    each(at.other_hosts(1), |client| {
        client.await_outcome(Tcp, servers[1], &Silent)
    });
    Ok(())
}

/// Services: should fail health check node port if there are only terminating endpoints
pub fn health_checks_fail_for_ending_ones(at: &Namespace<'_>) -> anyhow::Result<()> {
    let pod = lingering(at, "ending", 0)?;
    at.address("ending");
    let service = at.service("service", &local_balanced())?;
    let check = health_checks(at, &service)?[0];
    let client = &at.hosts[1];
    client.await_outcome(Tcp, check, &Status(200));
    end(at, "service", &pod)?;
    client.await_outcome(Tcp, check, &Status(503));
    are_served([client], at.on_every_node(service.node_port()?)[0]);
    Ok(())
}

/// A pod that never gets ready.
fn unready(at: &Namespace<'_>, name: &str) -> anyhow::Result<()> {
    let pod = at.pod(name, 0, &lingering_spec("/nowhere"))?;
    at.await_object(&pod.path, "it runs", |pod| pod["status"]["phase"] == "Running");
    Ok(())
}

/// Services: should create endpoints for unready pods
pub fn unready_pods_serve_where_it_is_said(at: &Namespace<'_>) -> anyhow::Result<()> {
    unready(at, "unready")?;
    let mut service = at.service(
        "service",
        &json!({"type": "NodePort", "publishNotReadyAddresses": true}),
    )?;
    let (server, nodes) = (service.cluster_ip()?, at.on_every_node(service.node_port()?));
    for _ in 0..2 {
        service.patch(&json!({"publishNotReadyAddresses": true}))?;
        each(at.inside(), |client| {
            client.await_pods(Tcp, server, &["unready"]);
            client.await_pods(Udp, nodes[0], &["unready"]);
        });
        service.patch(&json!({"publishNotReadyAddresses": false}))?;
        each(at.inside(), |client| client.await_outcome(Tcp, server, &Refused));
    }
    Ok(())
}

/// Services: should be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is true
pub fn ending_unready_pods_serve_where_it_is_said(at: &Namespace<'_>) -> anyhow::Result<()> {
    unready(at, "ending")?;
    let service = at.service(
        "service",
        &json!({"type": "NodePort", "publishNotReadyAddresses": true}),
    )?;
    let (server, nodes) = (service.cluster_ip()?, at.on_every_node(service.node_port()?));
    at.pods[1].await_pods(Tcp, server, &["ending"]);
    at.api
        .delete(&format!("{}/ending", at.collection("pods")), None)?;
    await_terminating(at, "ending");
    are_served(at.inside(), server);
    are_served(&at.pods, nodes[1]);
    Ok(())
}

/// Services: should not be able to connect to terminating and unready endpoints if PublishNotReadyAddresses is false
pub fn ending_unready_pods_serve_nobody_else(at: &Namespace<'_>) -> anyhow::Result<()> {
    unready(at, "ending")?;
    let service = at.service("service", &json!({"type": "NodePort"}))?;
    let (server, nodes) = (service.cluster_ip()?, at.on_every_node(service.node_port()?));
    // A Service beside it tells that the pod itself would answer.
    let published = at
        .service("published", &json!({"publishNotReadyAddresses": true}))?
        .cluster_ip()?;
    at.pods[1].await_pods(Tcp, published, &["ending"]);
    at.api
        .delete(&format!("{}/ending", at.collection("pods")), None)?;
    await_terminating(at, "ending");
    each(at.inside(), |client| client.await_outcome(Tcp, server, &Refused));
    each(&at.pods, |client| client.await_outcome(Tcp, nodes[1], &Refused));
    at.pods[1].await_pods(Tcp, published, &["ending"]);
    Ok(())
}

fn await_terminating(at: &Namespace<'_>, pod: &str) {
    let path = format!("{}/{pod}", at.collection("pods"));
    at.await_object(&path, "it ends", |pod| {
        pod["metadata"]["deletionTimestamp"].is_string()
    });
}

/// Connectivity Pod Lifecycle: should be able to connect from a Pod to a terminating Pod; should be able to connect to other
/// Pod from a terminating Pod
pub fn ending_pods_talk(at: &Namespace<'_>) -> anyhow::Result<()> {
    let pod = lingering(at, "ending", 0)?;
    let ending = at.client("ending");
    at.server("stays", 1)?;
    let stays = SocketAddr::new(at.address("stays"), HTTP);
    pod.delete()?;
    await_terminating(at, "ending");
    at.pods[1].await_pods(Tcp, SocketAddr::new(ending.address, HTTP), &["ending"]);
    ending.await_pods(Tcp, stays, &["stays"]);
    ending.await_pods(Udp, SocketAddr::new(stays.ip(), HTTP + 1), &["stays"]);
    Ok(())
}

/// The readiness gate of the case below.
const GATE: &str = "example.com/in-turn";

/// Tells a pod's gate, as its controller would.
fn set_gate(at: &Namespace<'_>, pod: &str, open: bool) -> anyhow::Result<()> {
    let status = if open { "True" } else { "False" };
    let condition = json!({"type": GATE, "status": status});
    let path = format!("{}/{pod}/status", at.collection("pods"));
    at.api
        .strategic_patch(&path, &json!({"status": {"conditions": [condition]}}))?;
    Ok(())
}

/// Connectivity Pod Lifecycle: should be able to have zero downtime on a Blue Green deployment using Services and Readiness
/// Gates
pub fn a_pod_takes_over_without_loss(at: &Namespace<'_>) -> anyhow::Result<()> {
    let spec = json!({
        "readinessGates": [{"conditionType": GATE}], "containers": [server(HTTP, "/readyz")],
        "terminationGracePeriodSeconds": 30,
    });
    at.pod("blue", 0, &spec)?;
    at.pod("green", 1, &spec)?;
    let server = at.service("service", &json!({}))?.cluster_ip()?;
    set_gate(at, "blue", true)?;
    let client = &at.pods[1];
    client.await_pods(Tcp, server, &["blue"]);
    let lost = client.lost_while(Tcp, server, || {
        set_gate(at, "green", true)?;
        client.await_pods(Tcp, server, &["blue", "green"]);
        set_gate(at, "blue", false)?;
        client.await_pods(Tcp, server, &["green"]);
        at.api.delete(&format!("{}/blue", at.collection("pods")), None)?;
        at.await_gone(&format!("{}/blue", at.collection("pods")));
        client.await_pods(Tcp, server, &["green"]);
        Ok(())
    })?;
    ensure!(lost.is_empty(), "{lost:?}");
    Ok(())
}

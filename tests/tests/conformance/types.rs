//! Services that change their type, and node ports.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use tests::api::is_refused;
use tests::client::How::{Tcp, Udp};
use tests::client::each;

use crate::names::await_records;
use crate::namespace::{Namespace, Object, SERVERS, number};

/// What an ExternalName Service of these cases stands for: another one of the namespace.
fn target(at: &Namespace<'_>) -> String {
    format!("real.{}.svc.cluster.local", at.name)
}

/// A Service for the name, the servers, and a client's place.
fn prepare(at: &Namespace<'_>) -> anyhow::Result<IpAddr> {
    at.servers()?;
    Ok(at.service("real", &json!({}))?.cluster_ip()?.ip())
}

fn serves(at: &Namespace<'_>, service: &Object<'_>) -> anyhow::Result<()> {
    let server = service.cluster_ip()?;
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_pods(Udp, server, &SERVERS);
    });
    await_records(at, "server-1", "changing", "A", &[&server.ip().to_string()]);
    Ok(())
}

/// Becomes an ExternalName Service, and checks that it is one.
fn become_external(at: &Namespace<'_>, service: &mut Object<'_>, real: IpAddr) -> anyhow::Result<()> {
    let before = service.cluster_ip()?;
    let name = target(at);
    service.patch(
        &json!({"type": "ExternalName", "externalName": name, "clusterIP": null, "clusterIPs": null}),
    )?;
    let left = &service.content["spec"]["clusterIP"];
    ensure!(left.as_str().unwrap_or_default().is_empty(), "it keeps {left}");
    await_records(at, "server-1", "changing", "CNAME", &[&name]);
    await_records(at, "server-1", "changing", "A", &[&name, &real.to_string()]);
    each(at.inside(), |client| client.await_unserved(Tcp, before));
    Ok(())
}

fn external<'a>(at: &'a Namespace<'_>) -> anyhow::Result<Object<'a>> {
    let spec = json!({"type": "ExternalName", "externalName": target(at)});
    at.make(
        "services",
        &json!({"metadata": {"name": "changing"}, "spec": spec}),
    )
}

fn ports() -> Value {
    json!([
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP"},
    ])
}

/// Services: should be able to change the type from ExternalName to ClusterIP \[Conformance\]
pub fn external_name_to_cluster_ip(at: &Namespace<'_>) -> anyhow::Result<()> {
    external_name_to(at, "ClusterIP").map(|_| ())
}

/// Services: should be able to change the type from ExternalName to NodePort \[Conformance\]
pub fn external_name_to_node_port(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = external_name_to(at, "NodePort")?;
    for server in at.on_every_node(service.node_port()?) {
        each(at.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    }
    Ok(())
}

fn external_name_to<'a>(at: &'a Namespace<'_>, kind: &str) -> anyhow::Result<Object<'a>> {
    let real = prepare(at)?;
    let mut service = external(at)?;
    await_records(at, "server-1", "changing", "A", &[&target(at), &real.to_string()]);
    let spec = json!({"type": kind, "externalName": null, "selector": {"app": "server"}, "ports": ports()});
    service.patch(&spec)?;
    serves(at, &service)?;
    Ok(service)
}

/// Services: should be able to change the type from ClusterIP to ExternalName \[Conformance\]
pub fn cluster_ip_to_external_name(at: &Namespace<'_>) -> anyhow::Result<()> {
    let real = prepare(at)?;
    let mut service = at.service("changing", &json!({}))?;
    serves(at, &service)?;
    become_external(at, &mut service, real)
}

/// Services: should be able to change the type from NodePort to ExternalName \[Conformance\]
pub fn node_port_to_external_name(at: &Namespace<'_>) -> anyhow::Result<()> {
    let real = prepare(at)?;
    let mut service = at.service("changing", &json!({"type": "NodePort"}))?;
    serves(at, &service)?;
    let nodes = at.on_every_node(service.node_port()?);
    service.patch(&json!({"ports": [{"name": "http", "port": 80, "targetPort": "http"}]}))?;
    become_external(at, &mut service, real)?;
    for server in nodes {
        each(&at.pods, |client| client.await_unserved(Tcp, server));
    }
    Ok(())
}

/// Services: should prevent NodePort collisions
pub fn node_ports_collide(at: &Namespace<'_>) -> anyhow::Result<()> {
    let first = at.service("first", &json!({"type": "NodePort", "ports": one_port(None)}))?;
    let taken = json!({"type": "NodePort", "ports": one_port(Some(first.node_port()?))});
    let second = json!({"metadata": {"name": "second"}, "spec": taken});
    is_refused(at.api.create(&at.collection("services"), &second), 422)?;
    first.remove()?;
    at.make("services", &second).map(|_| ())
}

/// Services: should check NodePort out-of-range
pub fn node_ports_are_in_range(at: &Namespace<'_>) -> anyhow::Result<()> {
    let mut service = at.service("ranged", &json!({"type": "NodePort", "ports": one_port(None)}))?;
    let port = service.node_port()?;
    ensure!((30_000..=32_767).contains(&port), "{port}");
    for outside in [1, 29_999, 32_768, 65_535] {
        let spec = json!({"spec": {"ports": one_port(Some(outside))}});
        is_refused(at.api.merge_patch(&service.path, &spec), 422).with_context(|| outside.to_string())?;
        let other = json!({"metadata": {"name": "other"},
            "spec": {"type": "NodePort", "ports": one_port(Some(outside))}});
        is_refused(at.api.create(&at.collection("services"), &other), 422)
            .with_context(|| outside.to_string())?;
    }
    service.merge(&json!({}))?;
    ensure!(service.node_port()? == port, "{}", service.content);
    Ok(())
}

/// Services: should release NodePorts on delete
pub fn node_ports_are_released(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let first = at.service("first", &json!({"type": "NodePort"}))?;
    let port = first.node_port()?;
    first.remove()?;
    for server in at.on_every_node(port) {
        at.pods[0].await_unserved(Tcp, server);
    }
    let spec = json!({"type": "NodePort", "ports": one_port(Some(port))});
    at.service("second", &spec)?;
    for server in at.on_every_node(port) {
        at.pods[0].await_pods(Tcp, server, &SERVERS);
    }
    Ok(())
}

fn one_port(node_port: Option<u16>) -> Value {
    let mut port = json!({"name": "http", "port": 80, "targetPort": "http"});
    if let Some(node_port) = node_port {
        port["nodePort"] = json!(node_port);
    }
    json!([port])
}

/// Networking Granular Checks: Services: should update nodePort: http, udp \[Slow\]
pub fn a_node_port_ends_with_the_type(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let mut service = at.service("moving", &json!({"type": "NodePort"}))?;
    let before = service.content["spec"]["ports"].clone();
    let before: [u16; 2] = [number(&before[0]["nodePort"]), number(&before[1]["nodePort"])];
    let client = &at.pods[0];
    for ((how, port), server) in [(Tcp, before[0]), (Udp, before[1])].into_iter().zip(&at.nodes) {
        client.await_pods(how, SocketAddr::new(server.address, port), &SERVERS);
    }
    service.patch(&json!({"type": "ClusterIP"}))?;
    for ((how, port), server) in [(Tcp, before[0]), (Udp, before[1])].into_iter().zip(&at.nodes) {
        client.await_unserved(how, SocketAddr::new(server.address, port));
    }
    client.await_pods(Tcp, service.cluster_ip()?, &SERVERS);
    client.await_pods(Udp, service.cluster_ip()?, &SERVERS);
    Ok(())
}

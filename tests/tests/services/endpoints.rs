//! Services with no endpoints, with endpoints that are not ready, and Services that are not the proxy's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::Context as _;
use serde_json::{Value, json};
use tests::{http, wait};

use crate::client::How::{Tcp, Udp, UdpUnconnected};
use crate::client::Outcome::Refused;
use crate::client::{SOON, each};
use crate::world::{SERVERS, World, node_address, on_every_node, server_container};

pub fn scaled_to_zero(world: &World) -> anyhow::Result<()> {
    let labels = json!({"app": "scaled"});
    let deployment = world.make(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "scaled"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [server_container("/readyz", 8080)]}},
        },
    }))?;
    let service = world.service("scaled", &json!({"type": "NodePort", "selector": labels}))?;
    let (server, nodes) = (service.cluster_ip()?, on_every_node(service.node_port()?));
    world.clients[0].await_one_pod(Tcp, server);

    deployment.scale(0)?;
    each(world.inside(), |client| {
        client.await_outcome(Tcp, server, &Refused);
    });
    each(&world.clients, |client| {
        client.await_outcome(Udp, server, &Refused);
    });
    // A socket that is not connected is not told of a refusal, and a sender in the network namespace whose rules refuse
    // is told that it may not (EPERM), as at any rule there.
    world.clients[0].await_unserved(UdpUnconnected, server);
    world.nodes[0].await_unserved(Udp, server);
    for server in nodes {
        world.outside.await_outcome(Tcp, server, &Refused);
        world.outside.await_outcome(Udp, server, &Refused);
        world.clients[1].await_outcome(Tcp, server, &Refused);
    }

    deployment.scale(1)?;
    each(world.inside(), |client| {
        client.await_one_pod(Tcp, server);
    });
    for server in nodes {
        world.outside.await_one_pod(Tcp, server);
        world.outside.await_one_pod(Udp, server);
    }
    Ok(())
}

pub fn not_ready(world: &World) -> anyhow::Result<()> {
    let labels = json!({"app": "not-ready"});
    let _pod = world.make(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "not-ready", "labels": labels},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [server_container("/nowhere", 8080)]},
    }))?;
    let spec = json!({"type": "NodePort", "selector": labels, "publishNotReadyAddresses": true});
    let mut service = world.service("not-ready", &spec)?;
    let (server, nodes) = (service.cluster_ip()?, on_every_node(service.node_port()?));
    for published in [true, false, true] {
        service.patch(&json!({ "publishNotReadyAddresses": published }))?;
        if published {
            world.clients[0].await_pods(Tcp, server, &["not-ready"]);
            world.clients[1].await_pods(Udp, server, &["not-ready"]);
            world.outside.await_pods(Tcp, nodes[2], &["not-ready"]);
        } else {
            world.clients[0].await_outcome(Tcp, server, &Refused);
            world.clients[1].await_outcome(Udp, server, &Refused);
            world.outside.await_outcome(Tcp, nodes[2], &Refused);
        }
    }
    Ok(())
}

pub fn other_proxy(world: &World) -> anyhow::Result<()> {
    const LABEL: &str = "service.kubernetes.io/service-proxy-name";
    let service = world.service("others", &json!({"type": "NodePort"}))?;
    let (server, nodes) = (service.cluster_ip()?, on_every_node(service.node_port()?));
    world.clients[0].await_pods(Tcp, server, &SERVERS);
    service.label(&format!("{LABEL}=another"))?;
    each(world.inside(), |client| client.await_unserved(Tcp, server));
    for server in nodes {
        world.outside.await_outcome(Tcp, server, &Refused);
    }
    service.label(&format!("{LABEL}-"))?;
    each(world.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    for server in nodes {
        world.outside.await_pods(Tcp, server, &SERVERS);
    }
    Ok(())
}

pub fn headless(world: &World) -> anyhow::Result<()> {
    const DNS: [u8; 4] = [10, 96, 0, 10];
    let _service = world.service("headless", &json!({"clusterIP": "None"}))?;
    let addresses: BTreeSet<String> = world.servers.iter().map(|pod| pod.address.to_string()).collect();
    each(&world.clients, |client| {
        wait::until_value(
            &format!("{}: the addresses of headless", client.name),
            SOON,
            || {
                let name = "headless.default.svc.cluster.local.";
                client.resolve(name, IpAddr::from(DNS)).unwrap_or_default()
            },
            |found| *found == addresses,
        );
        for pod in &world.servers {
            let server = SocketAddr::new(pod.address, 8080);
            client.await_pods(Tcp, server, &[&pod.name]);
            client.await_seen_as(server, |saw| saw == client.address);
        }
    });
    Ok(())
}

/// Where packets are translated they have to come by the translation.
pub fn fast_path(world: &World) -> anyhow::Result<()> {
    let wanted = if world.datapath == "ebpf" { "on" } else { "refused" };
    for number in 1..=3 {
        let address = SocketAddr::new(node_address(number), 10256);
        wait::until_value(
            "the agent tells of the fast path",
            SOON,
            || health(address).map(|health| health["fastPath"]["state"].clone()),
            |state| matches!(state, Ok(state) if state == wanted),
        )?;
    }
    Ok(())
}

fn health(agent: SocketAddr) -> anyhow::Result<Value> {
    let answer = http::get(agent, "/healthz")?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
    Ok(serde_json::from_str(body)?)
}

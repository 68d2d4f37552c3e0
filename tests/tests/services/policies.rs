//! Which of its endpoints a Service chooses, and for whom.

use std::net::SocketAddr;

use serde_json::json;

use crate::client::How::{Tcp, Udp, UdpUnconnected};
use crate::client::Outcome::{Refused, Silent, Status};
use crate::client::each;
use crate::world::{SERVERS, SOME, World, on_every_node};

pub fn external_local(world: &World) -> anyhow::Result<()> {
    let mut service = world.service(
        "local",
        &json!({"type": "NodePort", "externalTrafficPolicy": "Local", "selector": {"some": "yes"}}),
    )?;
    let nodes = on_every_node(service.node_port()?);
    let outside = &world.outside;
    for (server, pod) in nodes.into_iter().zip(SOME) {
        outside.await_pods(Tcp, server, &[pod]);
        outside.await_pods(Udp, server, &[pod]);
        outside.await_seen_as(server, |saw| saw == outside.address);
    }
    outside.await_outcome(Tcp, nodes[2], &Silent);
    outside.await_outcome(Udp, nodes[2], &Silent);
    // Who is inside reaches all of them, wherever it asks: it would not be outside's policy else.
    world.clients[2].await_pods(Tcp, nodes[2], &SOME);
    world.nodes[2].await_pods(Tcp, nodes[2], &SOME);

    service.patch(&json!({"externalTrafficPolicy": "Cluster"}))?;
    for server in nodes {
        outside.await_pods(Tcp, server, &SOME);
        outside.await_pods(Udp, server, &SOME);
        outside.await_seen_as(server, |saw| saw != outside.address);
    }
    Ok(())
}

pub fn internal_local(world: &World) -> anyhow::Result<()> {
    let mut service = world.service(
        "inside",
        &json!({"type": "NodePort", "internalTrafficPolicy": "Local", "selector": {"some": "yes"}}),
    )?;
    let server = service.cluster_ip()?;
    for how in [Tcp, Udp, UdpUnconnected] {
        for (n, pod) in SOME.into_iter().enumerate() {
            each([&world.clients[n], &world.nodes[n]], |client| {
                client.await_pods(how, server, &[pod]);
            });
        }
        each([&world.clients[2], &world.nodes[2]], |client| {
            client.await_unserved(how, server);
        });
    }
    for node in on_every_node(service.node_port()?) {
        world.outside.await_pods(Tcp, node, &SOME);
    }
    service.patch(&json!({"internalTrafficPolicy": "Cluster"}))?;
    each(world.inside(), |client| client.await_pods(Tcp, server, &SOME));
    Ok(())
}

pub fn health_checks(world: &World) -> anyhow::Result<()> {
    const LOAD_BALANCER: &str = "198.51.100.11";
    let mut service = world.service(
        "checked",
        &json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "selector": {"some": "yes"}}),
    )?;
    let ports = on_every_node(service.health_check_node_port()?);
    let outside = &world.outside;
    for (port, code) in ports.into_iter().zip([200, 200, 503]) {
        outside.await_outcome(Tcp, port, &Status(code));
    }
    // A balancer sends to nodes that say 200, and their pods see the client.
    service.set_load_balancer(LOAD_BALANCER)?;
    let server = SocketAddr::new(LOAD_BALANCER.parse()?, 80);
    for (n, pod) in (1..).zip(SOME) {
        let _route = world.route(LOAD_BALANCER, n)?;
        outside.await_pods(Tcp, server, &[pod]);
        outside.await_seen_as(server, |saw| saw == outside.address);
    }
    service.patch(&json!({"selector": {"some": null, "on": "node-3"}}))?;
    for (port, code) in ports.into_iter().zip([503, 503, 200]) {
        outside.await_outcome(Tcp, port, &Status(code));
    }
    service.patch(&json!({"externalTrafficPolicy": "Cluster"}))?;
    for port in ports {
        outside.await_outcome(Tcp, port, &Refused);
    }
    Ok(())
}

pub fn affinity(world: &World) -> anyhow::Result<()> {
    let mut service = world.service(
        "sticky",
        &json!({"type": "NodePort", "sessionAffinity": "ClientIP"}),
    )?;
    let server = service.cluster_ip()?;
    let nodes = on_every_node(service.node_port()?);
    each(world.inside(), |client| {
        client.await_one_pod(Tcp, server);
        client.await_one_pod(Udp, server);
    });
    for server in nodes {
        world.outside.await_one_pod(Tcp, server);
        world.outside.await_one_pod(Udp, server);
    }
    let before = world.clients[0].await_one_pod(Tcp, server);
    anyhow::ensure!(
        world.clients[0].await_one_pod(Tcp, server) == before,
        "another pod than {before}"
    );

    service.patch(&json!({"sessionAffinity": "None"}))?;
    each(world.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    for server in nodes {
        world.outside.await_pods(Tcp, server, &SERVERS);
    }
    Ok(())
}

/// Labels of nodes, removed when dropped.
struct Zones<'a>(&'a World);

const ZONE: &str = "topology.kubernetes.io/zone";

impl Drop for Zones<'_> {
    fn drop(&mut self) {
        let removed = self
            .0
            .cluster
            .run(&["label", "nodes", "--all", &format!("{ZONE}-")]);
        if let Err(error) = removed {
            eprintln!("left behind: {error:#}");
        }
    }
}

pub fn distribution(world: &World) -> anyhow::Result<()> {
    let _zones = Zones(world);
    for (zone, nodes) in [("near", ["node-1", "node-2"].as_slice()), ("far", &["node-3"])] {
        let label = format!("{ZONE}={zone}");
        let words = [&["label", "nodes"], nodes, &[&label]].concat();
        world.cluster.run(&words)?;
    }
    let by_zone: [&[&str]; 3] = [&SOME, &SOME, &["server-3"]];
    let mut service = world.service(
        "close",
        &json!({"type": "NodePort", "trafficDistribution": "PreferClose"}),
    )?;
    let server = service.cluster_ip()?;
    let nodes = on_every_node(service.node_port()?);
    for (n, pods) in by_zone.into_iter().enumerate() {
        for how in [Tcp, Udp] {
            world.clients[n].await_pods(how, server, pods);
        }
        world.nodes[n].await_pods(Tcp, server, pods);
        world.outside.await_pods(Tcp, nodes[n], pods);
    }
    service.patch(&json!({"trafficDistribution": "PreferSameNode"}))?;
    for (n, pod) in SERVERS.into_iter().enumerate() {
        world.clients[n].await_pods(Tcp, server, &[pod]);
        world.outside.await_pods(Tcp, nodes[n], &[pod]);
    }
    // The node has none any more: its zone is the next choice, and all are the last.
    service.patch(&json!({"selector": {"on": "node-1"}}))?;
    each(&world.clients, |client| {
        client.await_pods(Tcp, server, &["server-1"]);
    });
    service.patch(&json!({"selector": {"on": null}, "trafficDistribution": null}))?;
    each(&world.clients, |client| {
        client.await_pods(Tcp, server, &SERVERS);
    });
    Ok(())
}

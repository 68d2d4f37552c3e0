//! By which addresses a Service serves: ClusterIP, node port, load balancer, externalIPs.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::json;

use crate::client::How::{Tcp, Udp, UdpUnconnected};
use crate::client::Outcome::{Refused, Silent};
use crate::client::each;
use crate::world::{SERVERS, World, node_address, node_address_v6, on_every_node, server_container};

/// Documentation networks (RFC 5737): nobody has these addresses.
const LOAD_BALANCER: &str = "198.51.100.10";
const RANGED_LOAD_BALANCER: &str = "198.51.100.12";
const EXTERNAL: &str = "198.51.100.7";

fn at(address: &str) -> anyhow::Result<SocketAddr> {
    Ok(SocketAddr::new(address.parse()?, 80))
}

pub fn cluster_ip(world: &World) -> anyhow::Result<()> {
    let service = world.service("plain", &json!({}))?;
    let server = service.cluster_ip()?;
    each(world.inside(), |client| {
        for how in [Tcp, Udp, UdpUnconnected] {
            client.await_pods(how, server, &SERVERS);
        }
    });
    for client in &world.clients {
        client.await_seen_as(server, |saw| saw == client.address);
    }
    Ok(())
}

pub fn host_port(world: &World) -> anyhow::Result<()> {
    let mut server = server_container("/readyz", 8080);
    for (number, port) in [8090, 8091].into_iter().enumerate() {
        server["ports"][number]["hostPort"] = json!(port);
    }
    let pod = world.make(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "host-port"},
        "spec": {
            "nodeSelector": {"kubernetes.io/hostname": "node-1"},
            "terminationGracePeriodSeconds": 1,
            "containers": [server],
        },
    }))?;
    let pods = ["host-port"];
    let at = |address: IpAddr, port| SocketAddr::new(address, port);
    let (v4, v6) = (node_address(1), node_address_v6(1));
    for address in [v4, v6] {
        each(world.inside(), |client| {
            client.await_pods(Tcp, at(address, 8090), &pods);
            client.await_pods(Udp, at(address, 8091), &pods);
        });
    }
    world.outside.await_pods(Tcp, at(v4, 8090), &pods);
    world
        .outside
        .await_seen_as(at(v4, 8090), |saw| saw == world.outside.address);
    world.outside_v6.await_pods(Udp, at(v6, 8091), &pods);
    world.nodes[0].await_pods(Tcp, at(Ipv4Addr::LOCALHOST.into(), 8090), &pods);
    world
        .outside
        .await_outcome(Tcp, at(node_address(2), 8090), &Refused);
    drop(pod);
    world.outside.await_outcome(Tcp, at(v4, 8090), &Refused);
    Ok(())
}

pub fn hairpin(world: &World) -> anyhow::Result<()> {
    let service = world.service("hairpin", &json!({"selector": {"on": "node-1"}}))?;
    for how in [Tcp, Udp, UdpUnconnected] {
        world.servers[0].await_pods(how, service.cluster_ip()?, &["server-1"]);
    }
    Ok(())
}

pub fn host_network(world: &World) -> anyhow::Result<()> {
    let labels = json!({"app": "on-host"});
    let _pod = world.make(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "on-host", "labels": labels},
        "spec": {
            "hostNetwork": true,
            "nodeSelector": {"kubernetes.io/hostname": "node-2"},
            "terminationGracePeriodSeconds": 1,
            // DNS has 8080 on each node, for its health.
            "containers": [server_container("/readyz", 7080)],
        },
    }))?;
    let service = world.service("on-host", &json!({"type": "NodePort", "selector": labels}))?;
    let (server, nodes) = (service.cluster_ip()?, on_every_node(service.node_port()?));
    // A pod of the host's network has the node's name.
    each(world.inside(), |client| {
        client.await_pods(Tcp, server, &["node-2"]);
        client.await_pods(Udp, server, &["node-2"]);
    });
    for node in nodes {
        world.outside.await_pods(Tcp, node, &["node-2"]);
    }
    Ok(())
}

pub fn node_port(world: &World) -> anyhow::Result<()> {
    let mut service = world.service("node-port", &json!({"type": "NodePort"}))?;
    let servers = on_every_node(service.node_port()?);
    for server in servers {
        each([&world.outside, &world.clients[0], &world.nodes[1]], |client| {
            client.await_pods(Tcp, server, &SERVERS);
            client.await_pods(Udp, server, &SERVERS);
        });
        // Answers must come back by the same node, so that the pods see none but nodes.
        let outside = world.outside.address;
        world.outside.await_seen_as(server, |saw| saw != outside);
    }
    service.patch(&json!({"type": "ClusterIP"}))?;
    for server in servers {
        world.outside.await_outcome(Tcp, server, &Refused);
    }
    world.clients[2].await_pods(Tcp, service.cluster_ip()?, &SERVERS);
    Ok(())
}

pub fn load_balancer(world: &World) -> anyhow::Result<()> {
    let mut service = world.service("balanced", &json!({"type": "LoadBalancer"}))?;
    service.set_load_balancer(LOAD_BALANCER)?;
    let _route = world.route(LOAD_BALANCER, 2)?;
    let server = at(LOAD_BALANCER)?;
    each(world.inside().chain([&world.outside]), |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_pods(Udp, server, &SERVERS);
    });
    Ok(())
}

pub fn source_ranges(world: &World) -> anyhow::Result<()> {
    let ranges = |networks: &[&str]| json!({"loadBalancerSourceRanges": networks});
    let mut service = world.service("ranges", &json!({"type": "LoadBalancer"}))?;
    service.set_load_balancer(RANGED_LOAD_BALANCER)?;
    let _route = world.route(RANGED_LOAD_BALANCER, 1)?;
    let server = at(RANGED_LOAD_BALANCER)?;
    let (outside, pod) = (&world.outside, &world.clients[2]);

    service.patch(&ranges(&["172.30.0.1/32"]))?;
    pod.await_outcome(Tcp, server, &Silent);
    outside.await_pods(Tcp, server, &SERVERS);
    outside.await_pods(Udp, server, &SERVERS);

    service.patch(&ranges(&["192.0.2.0/24", "10.244.0.0/16"]))?;
    outside.await_outcome(Tcp, server, &Silent);
    outside.await_outcome(Udp, server, &Silent);
    pod.await_pods(Tcp, server, &SERVERS);
    // The ranges are the load balancer's alone.
    for node in on_every_node(service.node_port()?) {
        outside.await_pods(Tcp, node, &SERVERS);
    }

    service.patch(&json!({"loadBalancerSourceRanges": null}))?;
    outside.await_pods(Tcp, server, &SERVERS);
    pod.await_pods(Tcp, server, &SERVERS);
    Ok(())
}

pub fn external_ips(world: &World) -> anyhow::Result<()> {
    let mut service = world.service("external", &json!({"externalIPs": [EXTERNAL]}))?;
    let _route = world.route(EXTERNAL, 1)?;
    let server = at(EXTERNAL)?;
    let clients = [&world.outside, &world.clients[2], &world.nodes[1]];
    each(clients, |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_pods(Udp, server, &SERVERS);
    });
    service.patch(&json!({"externalIPs": null}))?;
    each(clients, |client| client.await_unserved(Tcp, server));
    Ok(())
}

/// An address that no Service has does not leave the node, where nobody or somebody else might answer. The agents know
/// the Services' network by the ServiceCIDR.
pub fn no_such_cluster_ip(world: &World) -> anyhow::Result<()> {
    let nobody = "10.96.250.250:80".parse()?;
    world.clients[0].await_outcome(Tcp, nobody, &Silent);
    world.clients[1].await_outcome(Udp, nobody, &Silent);
    world.nodes[1].await_outcome(Tcp, nobody, &Silent);
    let service = world.service("somebody", &json!({"clusterIP": "10.96.250.250"}))?;
    each(world.inside(), |client| client.await_pods(Tcp, nobody, &SERVERS));
    drop(service);
    world.clients[0].await_outcome(Tcp, nobody, &Silent);
    Ok(())
}

pub fn external_ips_by_default(world: &World) -> anyhow::Result<()> {
    let service = world.service("external", &json!({"externalIPs": [EXTERNAL]}))?;
    let _route = world.route(EXTERNAL, 1)?;
    let server = at(EXTERNAL)?;
    world.outside.await_pods(Tcp, server, &SERVERS);
    // Without the line an agent has its default.
    let (said, unsaid) = ("\n  externalIPs: true\n", "\n  # as it is by default\n");
    world.reconfigure_agents(said, unsaid)?;
    let clients = [&world.outside, &world.clients[2], &world.nodes[1]];
    each(clients, |client| client.await_unserved(Tcp, server));
    world.clients[2].await_pods(Tcp, service.cluster_ip()?, &SERVERS);
    world.reconfigure_agents(unsaid, said)?;
    world.outside.await_pods(Tcp, server, &SERVERS);
    Ok(())
}

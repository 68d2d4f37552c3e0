//! Services of both families, to pods of the pod network and of their nodes' own.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::client::How::{Tcp, Udp, UdpUnconnected};
use crate::client::Outcome::{Refused, Silent};
use crate::client::{Client, each};
use crate::world::{Object, SERVERS, World, node_address_v6, server_container};

/// Documentation network (RFC 3849): nobody has these addresses.
const LOAD_BALANCER: &str = "2001:db8::10";
const EXTERNAL: &str = "2001:db8::7";

/// The pods of the host's network, by their nodes' names.
const ON_NODES: [&str; 2] = ["node-1", "node-2"];

pub fn prefer_dual_stack(world: &World) -> anyhow::Result<()> {
    let spec = json!({"type": "NodePort", "ipFamilyPolicy": "PreferDualStack"});
    let mut service = world.service("prefer", &spec)?;
    let spec = &service.content["spec"];
    ensure!(spec["ipFamilies"] == json!(["IPv4", "IPv6"]), "{spec}");
    let v6 = service.second_cluster_ip()?;
    ensure!(v6.is_ipv6(), "{v6}");
    for server in [service.cluster_ip()?, v6] {
        each(world.inside(), |client| {
            for how in [Tcp, Udp, UdpUnconnected] {
                client.await_pods(how, server, &SERVERS);
            }
        });
    }
    let port = service.node_port()?;
    for node in [1, 2, 3].map(node_address_v6) {
        let server = SocketAddr::new(node, port);
        world.outside_v6.await_pods(Tcp, server, &SERVERS);
        world.outside_v6.await_pods(Udp, server, &SERVERS);
    }
    service.patch(&json!({"selector": {"app": "nobody"}}))?;
    each(world.inside(), |client| client.await_outcome(Tcp, v6, &Refused));
    Ok(())
}

pub fn cluster_ip(world: &World) -> anyhow::Result<()> {
    let pods = on_nodes(world, "dual", 7180)?;
    let mut service = pods.service(&json!({"ipFamilyPolicy": "RequireDualStack"}))?;
    for server in [service.cluster_ip()?, service.second_cluster_ip()?] {
        each(&world.nodes, |node| {
            for how in [Tcp, Udp, UdpUnconnected] {
                node.await_pods(how, server, &ON_NODES);
            }
        });
    }
    let server = service.second_cluster_ip()?;
    service.patch(&json!({"sessionAffinity": "ClientIP"}))?;
    each(&world.nodes, |node| {
        node.await_one_pod(Tcp, server);
        node.await_one_pod(Udp, server);
    });
    service.patch(&json!({"sessionAffinity": "None", "internalTrafficPolicy": "Local"}))?;
    let [first, second, third] = world.nodes.as_slice() else {
        anyhow::bail!("three nodes");
    };
    first.await_pods(Tcp, server, &["node-1"]);
    second.await_pods(Udp, server, &["node-2"]);
    third.await_outcome(Tcp, server, &Silent);
    service.patch(&json!({"internalTrafficPolicy": "Cluster", "selector": {"app": "nobody"}}))?;
    each(&world.nodes, |node| node.await_outcome(Tcp, server, &Refused));
    service.patch(&json!({
        "selector": {"app": "dual"}, "ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"],
        "clusterIPs": [service.cluster_ip()?.ip()],
    }))?;
    third.await_pods(Tcp, service.cluster_ip()?, &ON_NODES);
    third.await_unserved(Tcp, server);
    Ok(())
}

pub fn from_outside(world: &World) -> anyhow::Result<()> {
    let pods = on_nodes(world, "dual-outside", 7190)?;
    let mut service = pods.service(&json!({"type": "LoadBalancer", "ipFamilyPolicy": "RequireDualStack"}))?;
    let outside = &world.outside_v6;
    let serves = |client: &Client, server: SocketAddr| {
        client.await_pods(Tcp, server, &ON_NODES);
        client.await_pods(Udp, server, &ON_NODES);
    };
    let nodes = [1, 2, 3].map(node_address_v6);
    let port = service.node_port()?;
    for node in nodes {
        let server = SocketAddr::new(node, port);
        each([outside, &world.nodes[2]], |client| serves(client, server));
    }
    service.set_load_balancer(LOAD_BALANCER)?;
    let server = SocketAddr::new(LOAD_BALANCER.parse()?, 80);
    let _route = world.route(LOAD_BALANCER, 3)?;
    each([outside, &world.nodes[0]], |client| serves(client, server));
    // Answers must come back by the node that was asked.
    outside.await_seen_as(server, |saw| saw != outside.address);

    let ranges = |networks: &[&str]| json!({"loadBalancerSourceRanges": networks});
    service.patch(&ranges(&["fd00:172:30::2/128"]))?;
    outside.await_outcome(Tcp, server, &Silent);
    service.patch(&ranges(&["fd00:172:30::1/128", "192.0.2.0/24"]))?;
    serves(outside, server);

    let external = SocketAddr::new(EXTERNAL.parse()?, 80);
    let _external = world.route(EXTERNAL, 3)?;
    service.patch(&json!({"externalIPs": [EXTERNAL], "loadBalancerSourceRanges": null}))?;
    each([outside, &world.nodes[1]], |client| serves(client, external));

    service.patch(&json!({"externalTrafficPolicy": "Local"}))?;
    for (node, name) in nodes.into_iter().zip(ON_NODES) {
        let server = SocketAddr::new(node, port);
        outside.await_pods(Tcp, server, &[name]);
        outside.await_pods(Udp, server, &[name]);
        outside.await_seen_as(server, |saw| saw == outside.address);
    }
    outside.await_outcome(Tcp, SocketAddr::new(nodes[2], port), &Silent);
    Ok(())
}

/// Servers on two nodes, in the nodes' own network.
struct OnNodes<'a> {
    world: &'a World,
    app: &'static str,
    _pods: Vec<Object<'a>>,
}

/// `port` and the next one must be free on the nodes.
fn on_nodes<'a>(world: &'a World, app: &'static str, port: u16) -> anyhow::Result<OnNodes<'a>> {
    let pod = |node: &&str| {
        world.make(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("{app}-{node}"), "labels": {"app": app}},
            "spec": {
                "hostNetwork": true,
                "nodeSelector": {"kubernetes.io/hostname": node},
                "terminationGracePeriodSeconds": 1,
                "containers": [server_container("/readyz", port)],
            },
        }))
    };
    let pods = ON_NODES.iter().map(pod).collect::<anyhow::Result<_>>()?;
    Ok(OnNodes {
        world,
        app,
        _pods: pods,
    })
}

impl OnNodes<'_> {
    fn service(&self, spec: &Value) -> anyhow::Result<Object<'_>> {
        let mut whole = json!({"selector": {"app": self.app}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        self.world.service(self.app, &whole)
    }
}

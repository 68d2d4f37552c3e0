//! What people do to Services that no manual shows: addresses that two want, fields that change under traffic, endpoints
//! written by hand and wrong, hundreds at once.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};

use crate::client::How::{Tcp, Udp, UdpUnconnected};
use crate::client::{SOON, each};
use crate::world::{SERVERS, World, on_every_node};

const EXTERNAL: &str = "198.51.100.8:80";

/// Addresses and ports that nobody else asks for; the ports are none of those that Services without a wish get.
const ADDRESS: &str = "10.96.200.7";
const NODE_PORTS: [u16; 2] = [30_001, 30_002];

/// So many at once; kubectl takes its time for each.
const MANY: usize = 100;

fn on(node: u8) -> Value {
    json!({"on": format!("node-{node}")})
}

pub fn shared_address(world: &World) -> anyhow::Result<()> {
    let address: SocketAddr = EXTERNAL.parse()?;
    let service = |number: u8| {
        let spec = json!({"selector": on(number), "externalIPs": [address.ip()]});
        world.service(&format!("shared-{number}"), &spec)
    };
    let first = service(1)?;
    let clients = [&world.clients[2], &world.nodes[1]];
    each(clients, |client| client.await_pods(Tcp, address, &["server-1"]));
    let second = service(2)?;
    let own = second.cluster_ip()?;
    each(clients, |client| {
        client.await_pods(Tcp, own, &["server-2"]);
        client.await_pods(Tcp, address, &["server-1"]);
    });
    drop(first);
    each(clients, |client| client.await_pods(Tcp, address, &["server-2"]));
    Ok(())
}

pub fn reused_address(world: &World) -> anyhow::Result<()> {
    let address = SocketAddr::new(ADDRESS.parse()?, 80);
    for number in 1..=3 {
        let spec = json!({"selector": on(number), "clusterIP": ADDRESS});
        let _service = world.service(&format!("reused-{number}"), &spec)?;
        let pod = format!("server-{number}");
        each(world.inside(), |client| {
            for how in [Tcp, Udp, UdpUnconnected] {
                client.await_pods(how, address, &[&pod]);
            }
        });
    }
    Ok(())
}

pub fn moved_node_port(world: &World) -> anyhow::Result<()> {
    let ports = |node_port: u16| json!([{"port": 80, "targetPort": "http", "nodePort": node_port}]);
    let service = |number: u8, node_port: u16| {
        let spec = json!({"type": "NodePort", "selector": on(number), "ports": ports(node_port)});
        world.service(&format!("moved-{number}"), &spec)
    };
    let [former, latter] = NODE_PORTS;
    let mut first = service(1, former)?;
    let clients = [&world.outside, &world.clients[2]];
    let check = |node_port: u16, pod: &str| {
        let servers = on_every_node(node_port);
        each(clients, |client| {
            for server in servers {
                client.await_pods(Tcp, server, &[pod]);
            }
        });
    };
    check(former, "server-1");
    first.patch(&json!({"ports": ports(latter)}))?;
    let _second = service(2, former)?;
    check(former, "server-2");
    check(latter, "server-1");
    Ok(())
}

pub fn changed_protocol(world: &World) -> anyhow::Result<()> {
    let ports = |protocol: &str, target: &str| json!([{"name": "it", "port": 80, "targetPort": target, "protocol": protocol}]);
    let mut service = world.service("protocol", &json!({"ports": ports("TCP", "http")}))?;
    let server = service.cluster_ip()?;
    let clients = [&world.clients[0], &world.nodes[1]];
    each(clients, |client| client.await_pods(Tcp, server, &SERVERS));
    service.patch(&json!({"ports": ports("UDP", "udp")}))?;
    each(clients, |client| {
        client.await_pods(Udp, server, &SERVERS);
        client.await_unserved(Tcp, server);
    });
    service.patch(&json!({"ports": ports("TCP", "http")}))?;
    each(clients, |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_unserved(Udp, server);
    });
    Ok(())
}

pub fn headless_and_back(world: &World) -> anyhow::Result<()> {
    let selector = json!({"selector": on(1)});
    let headless = json!({"selector": on(1), "clusterIP": "None"});
    for _ in 0..2 {
        let service = world.service("to-and-fro", &selector)?;
        let server = service.cluster_ip()?;
        each(world.inside(), |client| {
            client.await_pods(Tcp, server, &["server-1"])
        });
        drop(service);
        let _service = world.service("to-and-fro", &headless)?;
        each(world.inside(), |client| client.await_unserved(Tcp, server));
    }
    Ok(())
}

/// Under traffic: affinity that comes and goes, and agents that are killed.
pub fn toggles(world: &World) -> anyhow::Result<()> {
    let mut service = world.service("toggled", &json!({}))?;
    let server = service.cluster_ip()?;
    each(world.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    for how in [Tcp, Udp, UdpUnconnected] {
        let lost = world.clients[0].lost_while(how, server, || {
            for affinity in ["ClientIP", "None", "ClientIP", "None"] {
                service.patch(&json!({"sessionAffinity": affinity}))?;
                world.cluster.kill_and_await_successor("node-1-agent", SOON)?;
            }
            Ok(())
        })?;
        ensure!(lost.is_empty(), "{how:?}: {lost:?}");
    }
    // The agent that was started last has programmed what was said last.
    each(world.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    Ok(())
}

pub fn hand_written_endpoints(world: &World) -> anyhow::Result<()> {
    let service = world.service("by-hand", &json!({"selector": null}))?;
    let server = service.cluster_ip()?;
    let slice = |name: &str, family: &str, port: u32, addresses: &[String]| {
        let endpoints: Vec<_> = addresses
            .iter()
            .map(|address| json!({"addresses": [address]}))
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "by-hand"}},
            "addressType": family, "endpoints": endpoints,
            "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
        })
    };
    for (family, port, address) in [
        ("IPv4", 8080, "127.0.0.1"),
        ("IPv4", 8080, "0.0.0.0"),
        ("IPv4", 8080, "169.254.1.1"),
        ("IPv4", 8080, "224.0.0.1"),
        ("IPv4", 8080, "fd00::1"),
        ("IPv6", 8080, "::1"),
        ("IPv6", 8080, "ff02::1"),
        ("IPv6", 8080, "10.244.1.1"),
        ("IPv4", 65_536, "10.244.1.1"),
    ] {
        let bad = slice("bad", family, port, &[address.to_owned()]).to_string();
        world.cluster.refused(&["apply", "-f", "-"], &bad)?;
    }
    let pods: Vec<String> = world
        .servers
        .iter()
        .map(|server| server.address.to_string())
        .collect();
    // The same endpoints in two slices, and the Service itself: it leads nowhere, and harms nobody.
    let _one = world.make(&slice("one", "IPv4", 8080, &pods))?;
    let _two = world.make(&slice("two", "IPv4", 8080, &pods[..2]))?;
    each(world.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    let other = world.service("beside", &json!({}))?;
    {
        let loops = world.make(&slice("three", "IPv4", 80, &[server.ip().to_string()]))?;
        let other = other.cluster_ip()?;
        each(world.inside(), |client| client.await_pods(Tcp, other, &SERVERS));
        drop(loops);
    }
    each(world.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    Ok(())
}

pub fn many_at_once(world: &World) -> anyhow::Result<()> {
    let service = |number: usize| {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"name": format!("many-{number}"), "labels": {"many": "yes"}},
            "spec": {
                "selector": on(1), "clusterIP": format!("10.96.210.{}", number + 1),
                "ports": [{"port": 80, "targetPort": "http"}],
            },
        })
    };
    let at = |number: usize| -> anyhow::Result<SocketAddr> {
        let service = service(number);
        let address = service["spec"]["clusterIP"].as_str().unwrap_or_default();
        Ok(SocketAddr::new(address.parse()?, 80))
    };
    let list: Vec<_> = (0..MANY).map(service).collect();
    let kept = world.service("kept", &json!({}))?;
    let server = kept.cluster_ip()?;
    world.clients[1].await_pods(Tcp, server, &SERVERS);
    let lost = world.clients[1].lost_while(Tcp, server, || {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": list});
        world.cluster.apply(&list.to_string())?;
        for number in [0, MANY / 2, MANY - 1] {
            let at = at(number)?;
            each(world.inside(), |client| client.await_pods(Tcp, at, &["server-1"]));
        }
        world
            .cluster
            .run(&["delete", "services", "-l", "many=yes", "--wait=false"])?;
        for number in [0, MANY / 2, MANY - 1] {
            let at = at(number)?;
            each(world.inside(), |client| client.await_unserved(Tcp, at));
        }
        Ok(())
    })?;
    ensure!(lost.is_empty(), "{lost:?}");
    Ok(())
}

pub fn proxy_name_under_traffic(world: &World) -> anyhow::Result<()> {
    let service = world.service("named", &json!({"type": "NodePort"}))?;
    let other = world.service("unnamed", &json!({}))?;
    let (server, beside) = (service.cluster_ip()?, other.cluster_ip()?);
    let nodes = on_every_node(service.node_port()?);
    each(world.inside(), |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_pods(Tcp, beside, &SERVERS);
    });
    let lost = world.clients[0].lost_while(Tcp, beside, || {
        for _ in 0..3 {
            service.label("service.kubernetes.io/service-proxy-name=other")?;
            each(world.inside(), |client| client.await_unserved(Tcp, server));
            service.label("service.kubernetes.io/service-proxy-name-")?;
            each(world.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
            world.outside.await_pods(Tcp, nodes[0], &SERVERS);
        }
        Ok(())
    })?;
    ensure!(lost.is_empty(), "{lost:?}");
    Ok(())
}

//! Pods, nodes and their ports, without Services.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};
use tests::client::How::{Tcp, Udp, UdpUnconnected};
use tests::client::Outcome::Refused;
use tests::client::each;

use crate::namespace::{HTTP, Namespace, SERVERS, server};
use crate::world::await_answer;

/// As upstream's case has it.
const HOST_PORT: u16 = 54_323;
/// Another one, for the case of who is outside.
const OUTSIDE_PORT: u16 = 54_333;

/// Networking Granular Checks: Pods: should function for intra-pod communication: http \[Conformance\], udp
/// \[Conformance\]
pub fn pods_reach_pods(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let servers = SERVERS.map(|pod| at.client(pod));
    each(&servers, |client| {
        for (name, server) in SERVERS.into_iter().zip(&servers) {
            client.await_pods(Tcp, SocketAddr::new(server.address, HTTP), &[name]);
            client.await_pods(Udp, SocketAddr::new(server.address, HTTP + 1), &[name]);
            client.await_pods(UdpUnconnected, SocketAddr::new(server.address, HTTP + 1), &[name]);
        }
    });
    Ok(())
}

/// Networking Granular Checks: Pods: should function for node-pod communication: http \[Conformance\], udp
/// \[Conformance\]
pub fn nodes_reach_pods(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let servers = SERVERS.map(|pod| SocketAddr::new(at.address(pod), HTTP));
    each(&at.hosts, |client| {
        for (name, server) in SERVERS.into_iter().zip(servers) {
            client.await_pods(Tcp, server, &[name]);
            client.await_pods(Udp, SocketAddr::new(server.ip(), HTTP + 1), &[name]);
        }
    });
    Ok(())
}

/// NoSNAT: Should be able to send traffic between Pods without SNAT
pub fn pods_see_pods(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let servers = SERVERS.map(|pod| at.client(pod));
    each(&servers, |client| {
        for server in &servers {
            client.await_seen_as(SocketAddr::new(server.address, HTTP), |saw| saw == client.address);
        }
    });
    Ok(())
}

/// Networking: should check kube-proxy urls
pub fn a_proxy_tells_of_itself(at: &Namespace<'_>) -> anyhow::Result<()> {
    for host in &at.hosts {
        for url in [
            "http://127.0.0.1:10256/healthz",
            "http://127.0.0.1:10249/proxyMode",
        ] {
            await_answer(
                &format!("{}: {url}", host.name),
                || host.run(&["fetch", url, "--body"]),
                |printed| {
                    printed.contains(" 200 ") && printed.lines().nth(1).is_some_and(|body| !body.is_empty())
                },
            );
        }
    }
    Ok(())
}

/// A pod on the first node whose servers have a port of the host, each of its protocol; `None` where only the other has.
fn with_host_ports(name: &str, ip: Option<IpAddr>, tcp: Option<u16>, udp: Option<u16>) -> (String, Value) {
    let mut container = server(HTTP, "/readyz");
    for (number, port) in [tcp, udp].into_iter().enumerate() {
        if let Some(port) = port {
            container["ports"][number]["hostPort"] = json!(port);
        }
        if let (Some(ip), Some(_)) = (ip, port) {
            container["ports"][number]["hostIP"] = json!(ip);
        }
    }
    (name.to_owned(), json!({"containers": [container]}))
}

/// HostPort: validates that there is no conflict between pods with same hostPort but different hostIP and protocol
/// \[LinuxOnly\] \[Conformance\]
pub fn host_ports_of_other_addresses_and_protocols(at: &Namespace<'_>) -> anyhow::Result<()> {
    let (loopback, node) = (IpAddr::from(Ipv4Addr::LOCALHOST), at.nodes[0].address);
    let pods = [
        with_host_ports("loopback", Some(loopback), Some(HOST_PORT), None),
        with_host_ports("tcp", Some(node), Some(HOST_PORT), None),
        with_host_ports("udp", Some(node), None, Some(HOST_PORT)),
    ];
    for (name, spec) in &pods {
        at.pod(name, 0, spec)?;
    }
    for (name, _) in &pods {
        at.address(name);
    }
    let host = &at.hosts[0];
    host.await_pods(Tcp, SocketAddr::new(loopback, HOST_PORT), &["loopback"]);
    each([host, &at.hosts[1], &at.pods[0], &at.pods[1]], |client| {
        client.await_pods(Tcp, SocketAddr::new(node, HOST_PORT), &["tcp"]);
        client.await_pods(Udp, SocketAddr::new(node, HOST_PORT), &["udp"]);
    });
    Ok(())
}

/// HostPort, by who is no part of the cluster
pub fn host_ports_from_outside(at: &Namespace<'_>) -> anyhow::Result<()> {
    let (name, spec) = with_host_ports("port", None, Some(OUTSIDE_PORT), Some(OUTSIDE_PORT));
    let pod = at.pod(&name, 0, &spec)?;
    at.address(&name);
    let (outside, server) = (at.outsider()?, SocketAddr::new(at.nodes[0].address, OUTSIDE_PORT));
    outside.await_pods(Tcp, server, &["port"]);
    outside.await_pods(Udp, server, &["port"]);
    outside.await_seen_as(server, |saw| saw == outside.address);
    pod.delete()?;
    outside.await_outcome(Tcp, server, &Refused);
    Ok(())
}

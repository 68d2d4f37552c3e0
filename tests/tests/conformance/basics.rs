//! What a Service is: its endpoints, its ports, its addresses.

use std::net::SocketAddr;

use anyhow::ensure;
use serde_json::{Value, json};
use tests::client::How::{Tcp, Udp, UdpUnconnected};
use tests::client::Outcome::Refused;
use tests::client::each;

use crate::namespace::{HTTP, Namespace, SERVERS, server};

/// A documentation address (RFC 5737) that nobody has.
const EXTERNAL: &str = "198.51.100.250:80";

/// Services: should serve a basic endpoint from pods \[Conformance\]
pub fn endpoints_follow_pods(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.service("basic", &json!({}))?;
    let server = service.cluster_ip()?;
    at.await_endpoints("basic", &[]);
    let one = at.server("one", 0)?;
    let first = at.address("one");
    at.await_endpoints("basic", &[(first, HTTP), (first, HTTP + 1)]);
    each(at.inside(), |client| client.await_pods(Tcp, server, &["one"]));
    let two = at.server("two", 1)?;
    let second = at.address("two");
    let both = [first, second].map(|ip| [(ip, HTTP), (ip, HTTP + 1)]).concat();
    at.await_endpoints("basic", &both);
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &["one", "two"])
    });
    one.delete()?;
    at.await_endpoints("basic", &both[2..]);
    each(at.inside(), |client| client.await_pods(Tcp, server, &["two"]));
    two.delete()?;
    at.await_endpoints("basic", &[]);
    each(at.inside(), |client| client.await_outcome(Tcp, server, &Refused));
    Ok(())
}

/// A container of which one port has a name, as no other pod names it.
fn with_port(name: &str, port: u16) -> Value {
    let mut container = server(port, "/readyz");
    container["ports"] = json!([{"name": name, "containerPort": port}]);
    container["readinessProbe"]["httpGet"]["port"] = json!(port);
    json!({ "containers": [container] })
}

/// Services: should serve multiport endpoints from pods \[Conformance\]
pub fn multiport_endpoints(at: &Namespace<'_>) -> anyhow::Result<()> {
    let ports = json!([
        {"name": "first", "port": 80, "targetPort": "one"},
        {"name": "second", "port": 81, "targetPort": "two"},
    ]);
    let service = at.service("multiport", &json!({ "ports": ports }))?;
    let (first, ip) = (service.cluster_ip()?, service.cluster_ip()?.ip());
    let second = SocketAddr::new(ip, 81);
    let one = at.pod("one", 0, &with_port("one", 100))?;
    let two = at.pod("two", 1, &with_port("two", 101))?;
    let addresses = ["one", "two"].map(|pod| at.address(pod));
    at.await_endpoints("multiport", &[(addresses[0], 100), (addresses[1], 101)]);
    each(at.inside(), |client| {
        client.await_pods(Tcp, first, &["one"]);
        client.await_pods(Tcp, second, &["two"]);
    });
    one.delete()?;
    at.await_endpoints("multiport", &[(addresses[1], 101)]);
    each(at.inside(), |client| {
        client.await_outcome(Tcp, first, &Refused);
        client.await_pods(Tcp, second, &["two"]);
    });
    two.delete()?;
    at.await_endpoints("multiport", &[]);
    each(at.inside(), |client| client.await_outcome(Tcp, second, &Refused));
    Ok(())
}

/// Services: should be updated after adding or deleting ports
pub fn ports_come_and_go(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let port = |number: u16| json!({"name": format!("p{number}"), "port": number, "targetPort": "http"});
    let mut service = at.service("ports", &json!({"ports": [port(80)]}))?;
    let (first, second) = (
        service.cluster_ip()?,
        SocketAddr::new(service.cluster_ip()?.ip(), 81),
    );
    let clients = [&at.pods[0], &at.hosts[0]];
    each(clients, |client| client.await_pods(Tcp, first, &SERVERS));
    service.patch(&json!({"ports": [port(80), port(81)]}))?;
    each(clients, |client| {
        client.await_pods(Tcp, second, &SERVERS);
        client.await_pods(Tcp, first, &SERVERS);
    });
    service.patch(&json!({"ports": [port(81)]}))?;
    each(clients, |client| {
        client.await_unserved(Tcp, first);
        client.await_pods(Tcp, second, &SERVERS);
    });
    Ok(())
}

/// Services: should serve endpoints on same port and different protocols \[Conformance\]
pub fn same_port_of_two_protocols(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let tcp = json!({"name": "tcp", "port": 80, "targetPort": "http"});
    let udp = json!({"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP"});
    let mut service = at.service("both", &json!({"ports": [tcp, udp]}))?;
    let server = service.cluster_ip()?;
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_pods(Udp, server, &SERVERS);
    });
    service.patch(&json!({ "ports": [udp] }))?;
    each(at.inside(), |client| {
        client.await_unserved(Tcp, server);
        client.await_pods(UdpUnconnected, server, &SERVERS);
    });
    service.patch(&json!({ "ports": [tcp] }))?;
    each(at.inside(), |client| {
        client.await_unserved(Udp, server);
        client.await_pods(Tcp, server, &SERVERS);
    });
    Ok(())
}

/// Services: a NodePort service with the same port number and different protocols
pub fn same_node_port_of_two_protocols(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let tcp = json!({"name": "http", "port": 80, "targetPort": "http"});
    let mut service = at.service("both", &json!({"type": "NodePort", "ports": [tcp]}))?;
    let (tcp, port) = (service.content["spec"]["ports"][0].clone(), service.node_port()?);
    let udp = json!({"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP", "nodePort": port});
    service.patch(&json!({ "ports": [tcp, udp] }))?;
    for server in at.on_every_node(port) {
        each([&at.pods[0], &at.hosts[0]], |client| {
            client.await_pods(Tcp, server, &SERVERS);
            client.await_pods(Udp, server, &SERVERS);
        });
    }
    Ok(())
}

/// Services: should be able to create a functioning NodePort service \[Conformance\]
pub fn node_port_from_inside(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let service = at.service("node-port", &json!({"type": "NodePort"}))?;
    let (cluster_ip, port) = (service.cluster_ip()?, service.node_port()?);
    each(at.inside(), |client| {
        client.await_pods(Tcp, cluster_ip, &SERVERS);
        for server in at.on_every_node(port) {
            client.await_pods(Tcp, server, &SERVERS);
        }
    });
    Ok(())
}

/// Services: should be able to create a functioning NodePort service \[Conformance\], by who is no part of the cluster
pub fn node_port_from_outside(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let mut service = at.service("node-port", &json!({"type": "NodePort"}))?;
    let (outside, servers) = (at.outsider()?, at.on_every_node(service.node_port()?));
    for server in &servers {
        outside.await_pods(Tcp, *server, &SERVERS);
        outside.await_pods(Udp, *server, &SERVERS);
    }
    service.patch(&json!({"type": "ClusterIP"}))?;
    for server in servers {
        outside.await_outcome(Tcp, server, &Refused);
    }
    Ok(())
}

/// Services: should allow pods to hairpin back to themselves through services
pub fn hairpin(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.server("alone", 0)?;
    let service = at.service("hairpin", &json!({"type": "NodePort"}))?;
    let alone = at.client("alone");
    for how in [Tcp, Udp, UdpUnconnected] {
        alone.await_pods(how, service.cluster_ip()?, &["alone"]);
    }
    for server in at.on_every_node(service.node_port()?) {
        alone.await_pods(Tcp, server, &["alone"]);
    }
    Ok(())
}

/// Services: should preserve source pod IP for traffic thru service cluster IP \[LinuxOnly\]
pub fn servers_see_the_pod(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let server = at.service("seen", &json!({}))?.cluster_ip()?;
    for client in &at.pods {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_seen_as(server, |saw| saw == client.address);
    }
    Ok(())
}

/// Services: should be able to up and down services
pub fn services_up_and_down(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let [first, second] = ["first", "second"].map(|name| at.service(name, &json!({})));
    let (first, second) = (first?, second?);
    let (gone, kept) = (first.cluster_ip()?, second.cluster_ip()?);
    ensure!(gone != kept, "two Services have {gone}");
    each(at.inside(), |client| {
        client.await_pods(Tcp, gone, &SERVERS);
        client.await_pods(Tcp, kept, &SERVERS);
    });
    first.remove()?;
    each(at.inside(), |client| {
        client.await_unserved(Tcp, gone);
        client.await_pods(Tcp, kept, &SERVERS);
    });
    let third = at.service("third", &json!({}))?.cluster_ip()?;
    ensure!(third != kept, "two Services have {third}");
    each(at.inside(), |client| {
        client.await_pods(Tcp, third, &SERVERS);
        client.await_pods(Tcp, kept, &SERVERS);
    });
    Ok(())
}

/// Services: should work after the service has been recreated
pub fn a_recreated_service_serves(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let service = at.service("again", &json!({}))?;
    let server = service.cluster_ip()?;
    each(&at.pods, |client| client.await_pods(Tcp, server, &SERVERS));
    service.remove()?;
    each(&at.pods, |client| client.await_unserved(Tcp, server));
    let again = at.service("again", &json!({"clusterIP": server.ip()}))?;
    ensure!(again.cluster_ip()? == server, "{}", again.content);
    each(&at.pods, |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_pods(Udp, server, &SERVERS);
    });
    Ok(())
}

/// Services: should support named targetPorts that resolve to different ports on different endpoints
pub fn a_named_port_is_each_pods_own(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.pod("low", 0, &with_port("named", 8080))?;
    at.pod("high", 1, &with_port("named", 9090))?;
    let ports = json!([{"name": "http", "port": 80, "targetPort": "named"}]);
    let server = at.service("named", &json!({ "ports": ports }))?.cluster_ip()?;
    at.await_endpoints("named", &[(at.address("low"), 8080), (at.address("high"), 9090)]);
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &["low", "high"])
    });
    Ok(())
}

/// Services: should connect to the ports exposed by restartable init containers
pub fn sidecars_serve(at: &Namespace<'_>) -> anyhow::Result<()> {
    let mut sidecar = server(HTTP, "/readyz");
    sidecar["restartPolicy"] = json!("Always");
    let mut main = server(9090, "/readyz");
    main["name"] = json!("main");
    main["ports"] = json!([{"containerPort": 9090}]);
    main["readinessProbe"]["httpGet"]["port"] = json!(9090);
    at.pod(
        "sidecar",
        0,
        &json!({"initContainers": [sidecar], "containers": [main]}),
    )?;
    let service = |name: &str, target: Value| {
        let ports = json!([{"port": 80, "targetPort": target}]);
        at.service(name, &json!({ "ports": ports }))?.cluster_ip()
    };
    let servers = [
        service("numbered", json!(HTTP))?,
        service("named", json!("http"))?,
    ];
    at.await_endpoints("named", &[(at.address("sidecar"), HTTP)]);
    for server in servers {
        each(at.inside(), |client| client.await_pods(Tcp, server, &["sidecar"]));
    }
    Ok(())
}

/// Services: should be rejected when no endpoints exist
pub fn no_endpoints_refuse(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.service("nobody", &json!({"type": "NodePort"}))?;
    let (server, nodes) = (service.cluster_ip()?, at.on_every_node(service.node_port()?));
    each(at.inside(), |client| client.await_outcome(Tcp, server, &Refused));
    each(&at.pods, |client| {
        client.await_outcome(Udp, server, &Refused);
        for node in &nodes {
            client.await_outcome(Tcp, *node, &Refused);
        }
    });
    Ok(())
}

/// Services: should be rejected for evicted pods (no endpoints exist). What ended the pod is its own deadline here.
pub fn failed_pods_refuse(at: &Namespace<'_>) -> anyhow::Result<()> {
    let spec = json!({"activeDeadlineSeconds": 3, "containers": [server(HTTP, "/readyz")]});
    let pod = at.pod("failed", 0, &spec)?;
    // Not even where pods serve that are not ready.
    let service = at
        .service("nobody", &json!({"publishNotReadyAddresses": true}))?
        .cluster_ip()?;
    at.await_object(&pod.path, "it has failed", |pod| {
        pod["status"]["phase"] == "Failed"
    });
    at.await_endpoints("nobody", &[]);
    each(at.inside(), |client| client.await_outcome(Tcp, service, &Refused));
    Ok(())
}

/// Services: should be possible to connect to a service via ExternalIP when the external IP is not assigned to a node
pub fn an_external_ip_of_no_node_serves(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let external: SocketAddr = EXTERNAL.parse()?;
    let server = at
        .service("external", &json!({"externalIPs": [external.ip()]}))?
        .cluster_ip()?;
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &SERVERS);
        client.await_pods(Tcp, external, &SERVERS);
        client.await_pods(Udp, external, &SERVERS);
    });
    Ok(())
}

/// Services: should implement service.kubernetes.io/service-proxy-name
pub fn another_proxys_service_is_left(at: &Namespace<'_>) -> anyhow::Result<()> {
    label_and_unlabel(at, "service.kubernetes.io/service-proxy-name", "another")
}

/// Services: should implement service.kubernetes.io/headless
pub fn a_service_labelled_headless_is_left(at: &Namespace<'_>) -> anyhow::Result<()> {
    label_and_unlabel(at, "service.kubernetes.io/headless", "")
}

fn label_and_unlabel(at: &Namespace<'_>, label: &str, value: &str) -> anyhow::Result<()> {
    at.servers()?;
    let mut service = at.service("labelled", &json!({}))?;
    let server = service.cluster_ip()?;
    each(at.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    service.merge(&json!({"metadata": {"labels": {label: value}}}))?;
    each(at.inside(), |client| client.await_unserved(Tcp, server));
    service.merge(&json!({"metadata": {"labels": {label: null}}}))?;
    each(at.inside(), |client| client.await_pods(Tcp, server, &SERVERS));
    Ok(())
}

/// Networking Granular Checks: Services: should function for multiple endpoint-Services with same selector
pub fn two_services_share_their_pods(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let [first, second] = ["first", "second"].map(|name| at.service(name, &json!({})));
    let (first, second) = (first?, second?);
    let servers = [first.cluster_ip()?, second.cluster_ip()?];
    let inside = at.client("server-1");
    for server in servers {
        inside.await_pods(Tcp, server, &SERVERS);
        inside.await_pods(Udp, server, &SERVERS);
    }
    second.remove()?;
    inside.await_unserved(Tcp, servers[1]);
    inside.await_pods(Tcp, servers[0], &SERVERS);
    Ok(())
}

//! UDP flows that go on while what serves them changes, and requests that do not fit a packet.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use serde_json::json;
use tests::client::How::{Tcp, Udp};
use tests::client::{Client, each};

use crate::namespace::{HTTP, Namespace, Object, SERVERS, number, server};
use crate::world::{await_answer, image};

/// More than any MTU, so that requests come in several packets.
const LARGE: usize = 2000;

/// A pod that sends from one socket to one address, ten times each second, and logs who answered.
struct Flow<'a> {
    at: &'a Namespace<'a>,
    log: String,
}

impl<'a> Flow<'a> {
    fn begin(at: &'a Namespace<'_>, server: SocketAddr, on_host: bool) -> anyhow::Result<Self> {
        let server = server.to_string();
        let arguments = [
            "udp-ping",
            &server,
            "--kept",
            "--forever",
            "--interval-ms",
            "100",
            "--timeout-ms",
            "500",
        ];
        let container = json!({"name": "flow", "image": image(), "args": arguments});
        let metadata = json!({"name": "flow"});
        let spec = json!({
            "nodeName": at.nodes[0].name, "hostNetwork": on_host, "terminationGracePeriodSeconds": 1,
            "containers": [container],
        });
        let pod = at.make("pods", &json!({"metadata": metadata, "spec": spec}))?;
        Ok(Self {
            at,
            log: format!("{}/log?tailLines=1", pod.path),
        })
    }

    /// Waits until the last datagram was answered by this pod.
    #[track_caller]
    fn await_answers_of(&self, pod: &str) {
        self.await_line(&format!(" ok {pod} "));
    }

    /// Waits until the last datagram was answered by nobody.
    #[track_caller]
    fn await_silence(&self) {
        self.await_line(" error=");
    }

    #[track_caller]
    fn await_line(&self, part: &str) {
        let what = format!("the flow's last line has {part:?}");
        await_answer(&what, || self.at.api.text(&self.log), |line| line.contains(part));
    }
}

/// One server after the other serves the same flow.
fn cycle(at: &Namespace<'_>, server: SocketAddr, on_host: bool) -> anyhow::Result<()> {
    let flow = Flow::begin(at, server, on_host)?;
    // On the client's node for those Services that do not lead elsewhere.
    let first = at.server("first", 0)?;
    flow.await_answers_of("first");
    let second = at.server("second", 0)?;
    at.address("second");
    first.delete()?;
    flow.await_answers_of("second");
    // None at all for a while, and then one made anew under a name that was there.
    second.delete()?;
    let pods = at.collection("pods");
    at.await_object(
        &format!("{pods}?labelSelector=app%3Dserver"),
        "no server",
        |list| list["items"].as_array().is_some_and(Vec::is_empty),
    );
    flow.await_silence();
    at.server("first", 0)?;
    flow.await_answers_of("first");
    Ok(())
}

/// Conntrack: should be able to preserve UDP traffic when server pod cycles for a ClusterIP service
pub fn a_flow_to_a_cluster_ip_goes_on(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.service("flow", &json!({}))?;
    cycle(at, service.cluster_ip()?, false)
}

/// Conntrack: should be able to preserve UDP traffic when server pod cycles for a ClusterIP service and client is hostNetwork
pub fn a_hosts_flow_to_a_cluster_ip_goes_on(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.service("flow", &json!({}))?;
    cycle(at, service.cluster_ip()?, true)
}

/// Conntrack: should be able to preserve UDP traffic when server pod cycles for a ClusterIP service with
/// InternalTrafficPolicy set to Local
pub fn a_flow_within_the_node_goes_on(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = at.service("flow", &json!({"internalTrafficPolicy": "Local"}))?;
    cycle(at, service.cluster_ip()?, false)
}

/// A Service of UDP alone, with a node port.
fn udp_service<'a>(at: &'a Namespace<'_>, name: &str) -> anyhow::Result<Object<'a>> {
    let udp = json!([{"name": "udp", "port": 80, "targetPort": "udp", "protocol": "UDP"}]);
    at.service(name, &json!({"type": "NodePort", "ports": udp}))
}

/// Conntrack: should be able to preserve UDP traffic when server pod cycles for a NodePort service
pub fn a_flow_to_a_node_port_goes_on(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = udp_service(at, "flow")?;
    let server = SocketAddr::new(at.nodes[1].address, service.node_port()?);
    cycle(at, server, false)
}

/// Conntrack: should be able to preserve UDP traffic when initial unready endpoints get ready
pub fn a_flow_begun_too_early_is_served(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = udp_service(at, "flow")?;
    let flow = Flow::begin(
        at,
        SocketAddr::new(at.nodes[1].address, service.node_port()?),
        false,
    )?;
    flow.await_silence();
    at.server("late", 1)?;
    flow.await_answers_of("late");
    Ok(())
}

/// Conntrack: should be able to cleanup conntrack entries when UDP service target port changes for a NodePort service
pub fn a_flow_follows_its_target_port(at: &Namespace<'_>) -> anyhow::Result<()> {
    let node_port =
        |target: u16| json!([{"name": "udp", "port": 80, "targetPort": target, "protocol": "UDP"}]);
    // The second server is the host's, so that another port is another name.
    at.server("one", 0)?;
    let on_host = json!({"hostNetwork": true, "containers": [server(18_100, "/readyz")]});
    at.pod("two", 1, &on_host)?;
    at.address("two");
    let mut service = at.service("flow", &json!({"type": "NodePort", "ports": node_port(HTTP + 1)}))?;
    let server = SocketAddr::new(at.nodes[1].address, service.node_port()?);
    let flow = Flow::begin(at, server, false)?;
    service.patch(&json!({"selector": {"app": null, "pod": "one"}}))?;
    flow.await_answers_of("one");
    let mut ports = node_port(18_101);
    ports[0]["nodePort"] = service.content["spec"]["ports"][0]["nodePort"].clone();
    service.patch(&json!({"ports": ports, "selector": {"pod": "two"}}))?;
    flow.await_answers_of(&at.nodes[1].name);
    Ok(())
}

/// Networking Granular Checks: Services: should be able to handle large requests: udp
pub fn large_requests_by_udp(at: &Namespace<'_>) -> anyhow::Result<()> {
    let service = prepare(at)?;
    each(at.inside(), |client| {
        for server in &service {
            let server = server.to_string();
            let said = format!(" ok {LARGE}-bytes ");
            let asked = |arguments: &[&str]| {
                client.run(&[&["udp-ping", &server, "--size", "2000"], arguments].concat())
            };
            for how in [&[][..], &["--connected"]] {
                let what = format!("{}: {LARGE} bytes to {server} {how:?} and back", client.name);
                await_answer(&what, || asked(how), |printed| printed.contains(&said));
            }
        }
    });
    Ok(())
}

/// A Service of all servers: its addresses.
fn prepare(at: &Namespace<'_>) -> anyhow::Result<Vec<SocketAddr>> {
    at.servers()?;
    let service = udp_service(at, "large")?;
    let node = SocketAddr::new(at.nodes[1].address, service.node_port()?);
    let servers = vec![service.cluster_ip()?, node];
    each(at.inside(), |client| client.await_pods(Udp, servers[0], &SERVERS));
    Ok(servers)
}

/// Networking Granular Checks: Services: should be able to handle large requests: http
pub fn large_requests_by_http(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let server = at.service("large", &json!({}))?.cluster_ip()?;
    let message: String = ('a'..='z').cycle().take(LARGE).collect();
    let url = format!("http://{server}/echo?msg={message}");
    each(at.inside(), |client| {
        client.await_pods(Tcp, server, &SERVERS);
        let printed = client.run(&["fetch", &url, "--body"]).unwrap_or_default();
        assert!(
            printed.lines().any(|line| line == message),
            "{}: {printed}",
            client.name
        );
    });
    Ok(())
}

/// Networking Granular Checks: Services: should function for pod-Service: udp, node-Service: udp; should support basic
/// nodePort: udp functionality; should update endpoints: udp
pub fn endpoints_follow_by_udp(at: &Namespace<'_>) -> anyhow::Result<()> {
    at.servers()?;
    let service = at.service("udp", &json!({"type": "NodePort"}))?;
    let ports = service.content["spec"]["ports"].clone();
    let nodes = at.on_every_node(number(&ports[1]["nodePort"]));
    let all = |pods: &BTreeSet<&str>| {
        let pods: Vec<&str> = pods.iter().copied().collect();
        let cluster_ip = service.cluster_ip()?;
        each(at.inside(), |client: &Client| {
            client.await_pods(Udp, cluster_ip, &pods);
            for node in &nodes {
                client.await_pods(Udp, *node, &pods);
            }
        });
        anyhow::Ok(())
    };
    let mut pods = BTreeSet::from(SERVERS);
    all(&pods)?;
    at.api
        .delete(&format!("{}/server-2", at.collection("pods")), None)?;
    pods.remove("server-2");
    all(&pods)
}

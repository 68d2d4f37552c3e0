//! The pages of a real agent and a real DNS server.

use std::net::{SocketAddr, UdpSocket};

use anyhow::Result;
use serde_json::json;
use tests::cluster::program;
use tests::name_server::{self, answer};
use tests::node::Node;
use tests::probe::queries::query;
use tests::process::{self, Process};
use tests::wait;

use super::expression::Families;
use super::faults;
use crate::DEADLINE;
use crate::traffic::{Bpffs, service, slice};

const DNS: &str = "10.96.0.10";
const UPSTREAM: &str = "127.0.0.1:5399";
const DNS_PAGES: u16 = 9153;

/// Names that are answered by the cluster and by the upstream.
const NAMES: [&str; 2] = ["web.default.svc.cluster.local", "www.example"];

/// The node's DNS server, fed by the agent, once it knows the cluster.
fn start_dns(node: &Node) -> Result<Process> {
    let (directory, pages) = (node.directory.path().display(), DNS_PAGES);
    let corefile = format!(
        ".:53 {{\n bind {DNS}\n prometheus 127.0.0.1:{pages}\n ratelimit 1000\n cache\n \
         kubernetes cluster.local {{\n feed {directory}/dns.sock\n state {directory}\n }}\n \
         hosts /none/such {{\n fallthrough\n }}\n forward . {UPSTREAM}\n}}\n"
    );
    let corefile = node.directory.write("Corefile", &corefile);
    let place = node.place();
    let mut command = process::command(&place, program("causeway"));
    let mut dns = Process::spawn(&place, command.arg("dns").arg("--conf").arg(corefile))?;
    dns.await_line("the cluster's objects are complete", DEADLINE);
    Ok(dns)
}

fn ask_dns(node: &Node, name: &str) -> Result<()> {
    let server: SocketAddr = (DNS.parse::<std::net::IpAddr>()?, 53).into();
    node.host().run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.send_to(&query(7, name), server)?;
        socket.recv_from(&mut [0; 512])
    })??;
    Ok(())
}

/// After the DNS server began, by the clock of whoever wrote it: changes from before are not measured.
const MOMENT: &str = "2999-01-01T00:00:00Z";

/// A headless Service, and a change of its endpoints that is told with its time.
fn headless(node: &Node) {
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "db"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "selector": {"app": "db"}, "ports": [{"port": 80}]},
    }));
    node.api.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": MOMENT},
        },
        "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.1.9"]}],
    }));
}

#[test]
fn every_metric_of_dashboards_and_alerts_is_told_by_an_agent_or_a_dns_server() -> Result<()> {
    if !tests::privileged("every metric of dashboards and alerts is told") {
        return Ok(());
    }
    let node = Node::new("monitoring")?;
    let _bpffs = Bpffs::mount(&node.directory.path().join("bpf"))?;
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}, "spec": {"podCIDRs": ["10.244.1.0/24"]},
    }));
    node.api.put(service(80));
    node.api.put(slice(&["10.244.1.5"]));
    let upstream = node.host().run(|| UdpSocket::bind(UPSTREAM))??;
    name_server::serve(upstream, None, |query, _| {
        vec![answer(query, [192, 0, 2, 1].into())]
    });
    let config = node.configure(json!({
        "network": {
            "leases": "kubernetes", "config": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
            "interface": "eth0", "subnetEnv": node.path("subnet.env"),
        },
        "cni": {"socket": node.path("cni.sock"), "confDir": node.path("net.d")},
        "proxy": {
            "datapath": "ebpf",
            "cgroup": node.cgroup.path(), "pinDir": node.path("bpf/causeway"),
        },
        "dns": {"address": DNS},
        // Nobody has to listen: what is dropped is counted either way.
        "telemetry": {"endpoint": "http://127.0.0.1:9"},
    }));
    let _agent = node.agent(&config);
    for part in ["proxy", "dns-address", "metrics"] {
        node.until_working(part);
    }
    let _dns = start_dns(&node)?;
    for name in NAMES {
        ask_dns(&node, name)?;
    }
    headless(&node);
    wait::until_value(
        "nothing is asked that is not told",
        DEADLINE,
        || {
            let pages = [node.metrics(), node.get(DNS_PAGES, "/metrics")];
            let pages = pages.map(|page| page.unwrap_or_default());
            faults(&Families::of(&pages.concat()))
        },
        Vec::is_empty,
    );
    Ok(())
}

//! What load balancers and monitors ask of a node.

use serde_json::{Value, json};
use tests::node::Node;
use tests::wait;

use crate::DEADLINE;
use crate::traffic::Bpffs;

const PORT: u16 = 32_123;

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "type": "LoadBalancer", "clusterIPs": ["10.96.0.7"], "externalTrafficPolicy": "Local",
            "healthCheckNodePort": PORT, "ports": [{"port": 80, "nodePort": 30_080}],
        },
    })
}

/// Two endpoints on that node, one of which terminates.
fn slice(node: &str) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2999-01-01T00:00:00Z"},
        },
        "ports": [{"port": 8080}],
        "endpoints": [
            {"addresses": ["10.244.1.5"], "nodeName": node},
            {
                "addresses": ["10.244.1.6"], "nodeName": node,
                "conditions": {"ready": false, "serving": true, "terminating": true},
            },
        ],
    })
}

#[track_caller]
fn check(datapath: &str) -> anyhow::Result<()> {
    let node = Node::new(&format!("lb-{datapath}"))?;
    let _bpffs = Bpffs::mount(&node.directory.path().join("bpf"))?;
    node.api.put(service());
    node.api.put(slice("node-1"));
    let config = node.configure(json!({"proxy": {
        "datapath": datapath, "podNetworks": ["10.244.0.0/16"], "nodePortAddresses": ["172.30.8.0/24", "127.0.0.0/8"],
        "cgroup": node.cgroup.path(), "pinDir": node.path("bpf/causeway"),
    }}));
    let agent = node.agent(&config);
    node.until_working("proxy");
    node.until_working("health-check-ports");
    let asked = |code: &str, words: &str| {
        wait::until_value(
            "the balancer is told",
            DEADLINE,
            || {
                node.get(PORT, "/any/path")
                    .unwrap_or_else(|error| error.to_string())
            },
            |answer| answer.contains(code) && answer.contains(words),
        )
    };
    let answer = asked("200 OK", r#""localEndpoints":1"#);
    assert!(
        answer.contains("x-load-balancing-endpoint-weight: 1\r\n"),
        "{answer}\n{}",
        agent.output()
    );
    node.api.put(slice("node-2"));
    asked("503 ", r#""localEndpoints":0"#);

    let mode = node.get(10_249, "/proxyMode")?;
    assert!(mode.ends_with(&format!("\r\n\r\n{datapath}")), "{mode}");
    let metrics = node.metrics()?;
    for line in [
        "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} 2",
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"} 1",
        "kubeproxy_sync_proxy_rules_service_changes_pending 0",
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "no {line} in\n{metrics}"
        );
    }

    node.api.delete(&service());
    let _refused = wait::until_value(
        "the port is closed",
        DEADLINE,
        || node.get(PORT, "/").map_err(|error| error.kind()),
        |answer| *answer == Err(std::io::ErrorKind::ConnectionRefused),
    );
    Ok(())
}

#[test]
fn ebpf_nodes_tell_load_balancers_whether_they_have_endpoints() -> anyhow::Result<()> {
    if !tests::privileged("eBPF nodes tell load balancers whether they have endpoints") {
        return Ok(());
    }
    check("ebpf")
}

#[test]
fn nftables_nodes_tell_load_balancers_whether_they_have_endpoints() -> anyhow::Result<()> {
    if !tests::privileged("nftables nodes tell load balancers whether they have endpoints") {
        return Ok(());
    }
    check("nftables")
}

#[test]
fn iptables_nodes_tell_load_balancers_whether_they_have_endpoints() -> anyhow::Result<()> {
    if !tests::privileged("iptables nodes tell load balancers whether they have endpoints") {
        return Ok(());
    }
    check("iptables")
}

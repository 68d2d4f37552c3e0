//! A node that is new: pods are kept away until its agent serves them.

use serde_json::{Value, json};
use tests::node::Node;
use tests::wait;

use crate::DEADLINE;

const KEY: &str = "causeway.dev/agent-not-ready";
const NODES: &str = "/api/v1/nodes";

fn put_tainted(node: &Node) {
    let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
    node.api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"},
        "spec": {"taints": [taint(KEY, "NoSchedule"), taint("dedicated", "NoSchedule"), taint(KEY, "NoExecute")]},
    }));
}

/// Keys of the Node's taints.
fn taints(node: &Node) -> Vec<String> {
    let nodes = node.api.objects(NODES);
    let taints = nodes[0]["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let key = |taint: &Value| taint["key"].as_str().unwrap_or_default().to_owned();
    taints.iter().map(key).collect()
}

/// The proxy programs nothing as long as the list of EndpointSlices fails: the server does not have them.
#[test]
fn the_startup_taint_goes_after_the_first_sync_and_whenever_it_comes_again() -> anyhow::Result<()> {
    if !tests::privileged("the startup taint goes after the first sync") {
        return Ok(());
    }
    let node = Node::new("taint")?;
    put_tainted(&node);
    node.api
        .behave(|behaviour| behaviour.absent = vec!["endpointslices"]);
    let config = node.configure(json!({"proxy": {
        "datapath": "nftables", "pinDir": node.path("bpf"), "podNetworks": ["10.244.0.0/16"],
    }}));
    let mut agent = node.agent(&config);
    node.until_working("startup-taint");
    let page = wait::until_value(
        "Services and Nodes are known, EndpointSlices are not",
        DEADLINE,
        || node.metrics().unwrap_or_default(),
        |page| page.contains("causeway_watch_failing{kind=\"EndpointSlice\"} 1"),
    );
    assert!(
        page.contains("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 0"),
        "{page}"
    );
    assert_eq!(taints(&node), [KEY, "dedicated", KEY], "before the first sync");
    let is_ok = |path| {
        let answer = node.health(path)?;
        anyhow::Ok(answer.lines().next().is_some_and(|line| line.contains(" 200 ")))
    };
    assert_eq!((is_ok("/readyz")?, is_ok("/livez")?), (false, true));

    node.api.behave(|behaviour| behaviour.absent = Vec::new());
    let gone = || {
        wait::until_value(
            "the taint is gone",
            2 * DEADLINE,
            || taints(&node),
            |keys| keys == &["dedicated"],
        )
    };
    gone();
    assert!(is_ok("/readyz")?);
    let page = node.metrics()?;
    assert!(
        !page.contains("kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 0"),
        "{page}"
    );

    // A Node that is registered again.
    put_tainted(&node);
    gone();
    // An agent that ends leaves the node as it is: what it programmed serves on.
    agent.terminate()?;
    assert_eq!(agent.await_end(DEADLINE).code(), Some(0));
    assert_eq!(taints(&node), ["dedicated"]);
    Ok(())
}

#[test]
fn without_a_startup_taint_the_node_is_left_alone() -> anyhow::Result<()> {
    if !tests::privileged("without a startup taint the node is left alone") {
        return Ok(());
    }
    let node = Node::new("no-taint")?;
    put_tainted(&node);
    let _agent = node.agent(&node.configure(json!({"node": {"startupTaint": null}})));
    node.until_working("watch");
    node.until_working("metrics");
    assert_eq!(node.part("startup-taint"), None);
    assert_eq!(taints(&node), [KEY, "dedicated", KEY]);
    Ok(())
}

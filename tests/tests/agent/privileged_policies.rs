//! NetworkPolicies, which nobody enforces.

use serde_json::{Value, json};
use tests::node::Node;
use tests::process::Process;
use tests::wait;

use crate::DEADLINE;

const EVENTS: &str = "/api/v1/events";
const KIND: &str = "networkpolicies";

fn policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": name, "uid": format!("uid-of-{name}")},
        "spec": {"podSelector": {}},
    })
}

fn start(node: &Node, policies: &str) -> Process {
    node.agent(&node.configure(json!({
        "network": {
            "leases": "kubernetes", "config": {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}},
            "interface": "eth0", "subnetEnv": node.path("subnet.env"), "networkPolicies": policies,
        },
        "proxy": {"pinDir": node.path("bpf")},
        "cni": {"socket": node.path("cni.sock"), "confDir": node.path("net.d")},
    })))
}

/// What was told of whom, in the order of names.
fn told(node: &Node) -> Vec<[String; 3]> {
    let text = |event: &Value, path: &str| {
        event
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or("-")
            .to_owned()
    };
    let events = node.api.objects(EVENTS);
    let of_policies = events
        .iter()
        .filter(|event| event["involvedObject"]["kind"] == "NetworkPolicy");
    let short = |event: &Value| {
        ["/reason", "/involvedObject/name", "/involvedObject/uid"].map(|path| text(event, path))
    };
    of_policies.map(short).collect()
}

fn until_counted(node: &Node, count: usize) {
    let line = format!("causeway_networkpolicies_not_enforced {count}");
    wait::until_value(
        "the policies are counted",
        DEADLINE,
        || node.metrics().unwrap_or_default(),
        |page| page.lines().any(|found| found == line),
    );
}

#[test]
fn policies_that_nobody_enforces_have_one_event_each_and_are_counted() -> anyhow::Result<()> {
    if !tests::privileged("policies that nobody enforces have one Event each") {
        return Ok(());
    }
    let node = Node::new("policies")?;
    node.api.put(policy("first"));
    let mut agent = start(&node, "report");
    until_counted(&node, 1);
    node.api.put(policy("second"));
    until_counted(&node, 2);
    let row = |name: &str| {
        [
            "NotEnforced".to_owned(),
            name.to_owned(),
            format!("uid-of-{name}"),
        ]
    };
    let until_told = |names: &[&str]| {
        let expected: Vec<_> = names.iter().map(|name| row(name)).collect();
        wait::until_value(
            "each has its Event",
            DEADLINE,
            || told(&node),
            |told| *told == expected,
        );
    };
    until_told(&["first", "second"]);

    agent.kill();
    node.api.put(policy("third"));
    let _next = start(&node, "report");
    until_counted(&node, 3);
    until_told(&["first", "second", "third"]);
    node.api.delete(&policy("first"));
    until_counted(&node, 2);
    Ok(())
}

#[test]
fn an_agent_that_may_not_list_policies_says_so_once_and_nothing_fails() -> anyhow::Result<()> {
    if !tests::privileged("an agent that may not list policies says so once") {
        return Ok(());
    }
    let node = Node::new("no-policies")?;
    node.api.put(policy("first"));
    node.api.behave(|behaviour| behaviour.forbidden = vec![KIND]);
    let agent = start(&node, "report");
    node.until_working("network-policies");
    let asked = || {
        node.api
            .requests()
            .iter()
            .filter(|path| path.contains(KIND))
            .count()
    };
    wait::until_value("it asks again", DEADLINE, asked, |count| *count >= 3);
    assert_eq!(node.part("network-policies").as_deref(), Some("working"));
    let page = node.metrics()?;
    assert!(!page.contains("causeway_networkpolicies_not_enforced"), "{page}");
    let log = agent.output();
    assert_eq!(
        log.matches("NetworkPolicies may not be listed").count(),
        1,
        "{log}"
    );

    // The role was corrected.
    node.api.behave(|behaviour| behaviour.forbidden = Vec::new());
    until_counted(&node, 1);
    Ok(())
}

#[test]
fn policies_that_something_else_enforces_are_not_asked_for() -> anyhow::Result<()> {
    if !tests::privileged("policies that something else enforces are not asked for") {
        return Ok(());
    }
    let node = Node::new("ignored")?;
    node.api.put(policy("first"));
    let _agent = start(&node, "ignore");
    node.until_working("watch");
    node.until_working("metrics");
    assert_eq!(node.part("network-policies"), None);
    assert!(!node.api.requests().iter().any(|path| path.contains(KIND)));
    Ok(())
}

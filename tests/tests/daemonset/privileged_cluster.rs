//! A cluster whose nodes have no agent until the manifests bring one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context as _, ensure};
use netlink::Namespace;
use serde_json::{Value, json};
use tests::cluster::{Cluster, process_of};
use tests::directory::Directory;
use tests::process::{Place, Process, command};
use tests::{http, image, wait};

use crate::installation::{
    LATER, NODES, Node, are_as_before, begin_uninstall, end_uninstall, import_image, install, on_a_cluster,
    traces,
};

const NAMESPACE: [&str; 2] = ["-n", "causeway"];

/// Where an agent tells how its parts are.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// By number (`linux/capability.h`).
const CAPABILITIES: [(&str, u64); 5] = [
    ("NET_BIND_SERVICE", 10),
    ("NET_ADMIN", 12),
    ("NET_RAW", 13),
    ("SYS_ADMIN", 21),
    ("SYSLOG", 34),
];

#[test]
fn agents_and_dns_servers_as_daemon_sets_are_installed_replaced_under_load_and_taken_off() {
    on_a_cluster("Causeway as DaemonSets on the bundled cluster", scenario);
}

fn scenario(cluster: &Cluster) -> anyhow::Result<()> {
    nodes_wait_for_a_network(cluster)?;
    let nodes = Node::all(cluster)?;
    let before = traces(&nodes)?;
    bring_image(cluster)?;
    install(cluster, "vxlan")?;
    cluster.run(&["wait", "node", "--all", "--for=condition=Ready", "--timeout=30s"])?;
    nothing_fails()?;
    processes_have_the_rights_of_the_manifests(cluster)?;
    replaced_under_load(cluster)?;
    sockets_of_pods_end_with_their_endpoint(cluster)?;

    taken_off_once_the_pods_are_gone(cluster)?;
    are_as_before(&nodes, &before)?;
    nodes_wait_for_a_network(cluster)
}

/// Everything of Causeway's (F55).
fn taken_off_once_the_pods_are_gone(cluster: &Cluster) -> anyhow::Result<()> {
    begin_uninstall(cluster, "vxlan")?;
    let log = [
        "logs",
        "-l",
        "app.kubernetes.io/name=causeway-uninstall",
        "-c",
        "cleanup",
    ];
    let log = [&log[..], &["-n", "causeway-uninstall"]].concat();
    cluster.await_that(&log, LATER, |log| {
        log.contains("waiting: pods on this node would lose their network") && log.contains("default/hello-")
    });
    let ready = "jsonpath={.status.numberReady}";
    let ready = [
        "get",
        "daemonset",
        "causeway-uninstall",
        "-n",
        "causeway-uninstall",
        "-o",
        ready,
    ];
    ensure!(cluster.run(&ready)? == "0", "pods run");
    cluster.run(&[
        "delete",
        "deployment/hello",
        "pod/load",
        "service/hello",
        "service/hello-nodeport",
    ])?;
    end_uninstall(cluster)
}

fn nodes_wait_for_a_network(cluster: &Cluster) -> anyhow::Result<()> {
    for node in NODES {
        let ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status} \
                     {.status.conditions[?(@.type==\"Ready\")].message}";
        let told = cluster.run(&["get", "node", node, "-o", ready])?;
        ensure!(
            told.starts_with("False") && told.contains("NetworkPluginNotReady"),
            "{node}: {told}"
        );
    }
    let processes = std::fs::read(cluster.state_dir().join("processes.json"))?;
    let processes: BTreeMap<String, Value> = serde_json::from_slice(&processes)?;
    let names: Vec<&str> = processes.keys().map(String::as_str).collect();
    ensure!(
        names == ["control-plane", "node-1-kubelet", "node-2-kubelet"],
        "{names:?}"
    );
    Ok(())
}

fn bring_image(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = Directory::new("image");
    let archive = directory.path().join("causeway.tar");
    image::archive(&archive)?;
    import_image(cluster, &archive)
}

fn counts_policies(page: &str) -> bool {
    let mut lines = page.lines();
    lines.any(|line| line.starts_with("causeway_networkpolicies_not_enforced "))
}

/// Each part and each watch of each agent works: no right and no path is missing. That of NetworkPolicies belongs to no
/// part: what it counts is there once it was heard.
fn nothing_fails() -> anyhow::Result<()> {
    for node in NODES {
        let namespace = Namespace::named(&format!("causeway-{node}"))?;
        let ask = || -> anyhow::Result<Vec<String>> {
            let answer = namespace.run(|| http::get(HEALTH, "/healthz"))??;
            let body = answer.split_once("\r\n\r\n").map_or(&*answer, |(_, body)| body);
            let health: Value = serde_json::from_str(body).with_context(|| answer.clone())?;
            Ok(not_working(&health))
        };
        let all_work = || match ask() {
            Ok(found) if found.is_empty() => Ok(()),
            other => Err(other),
        };
        wait::until(&format!("all parts of the agent of {node} work"), LATER, all_work);
        let _page = wait::until_value(
            &format!("the agent of {node} counts NetworkPolicies"),
            LATER,
            || namespace.run(|| http::get(METRICS, "/metrics").unwrap_or_default()),
            |page| page.as_ref().is_ok_and(|page| counts_policies(page)),
        );
    }
    Ok(())
}

/// What is not as it should be.
fn not_working(health: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for map in ["parts", "watches"] {
        let states = health[map].as_object();
        if states.is_none_or(serde_json::Map::is_empty) {
            found.push(format!("no {map}"));
        }
        for (name, status) in states.into_iter().flatten() {
            if status["state"] != "working" {
                found.push(format!("{name}: {status}"));
            }
        }
    }
    if health["fastPath"]["state"] != "on" {
        found.push(format!("fastPath: {}", health["fastPath"]));
    }
    found
}

fn processes_have_the_rights_of_the_manifests(cluster: &Cluster) -> anyhow::Result<()> {
    for (set, rights) in [
        (
            "causeway-node",
            &["NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYSLOG"][..],
        ),
        ("causeway-dns", &["NET_BIND_SERVICE"]),
    ] {
        let selector = format!("app.kubernetes.io/name={set}");
        let uids = [
            "get",
            "pods",
            "-l",
            &selector,
            "-o",
            "jsonpath={.items[*].metadata.uid}",
        ];
        let uids = cluster.run(&[&uids[..], &NAMESPACE].concat())?;
        let uids: Vec<&str> = uids.split_whitespace().collect();
        ensure!(uids.len() == NODES.len(), "{set}: {uids:?}");
        let wanted: u64 = CAPABILITIES
            .iter()
            .filter(|(name, _)| rights.contains(name))
            .map(|(_, number)| 1 << number)
            .sum();
        for uid in uids {
            let status = status_of(uid).with_context(|| format!("{set} {uid} has no process"))?;
            let field = |name: &str| {
                status
                    .lines()
                    .find_map(|line| Some(line.strip_prefix(name)?.trim()))
            };
            for set_of in ["CapEff:", "CapPrm:", "CapBnd:"] {
                let has = u64::from_str_radix(field(set_of).context("a field")?, 16)?;
                ensure!(has == wanted, "{set}: {set_of} {has:x}, not {wanted:x}");
            }
            ensure!(field("NoNewPrivs:") == Some("1"), "{set}: {status}");
        }
    }
    Ok(())
}

/// `/proc/PID/status` of the program `causeway` in a pod.
fn status_of(uid: &str) -> Option<String> {
    let mut processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.find_map(|process| {
        let path = process.path();
        let program = std::fs::read_link(path.join("exe")).ok()?;
        let cgroups = std::fs::read_to_string(path.join("cgroup")).ok()?;
        let is_it = program.ends_with("causeway") && cgroups.contains(uid);
        is_it
            .then(|| std::fs::read_to_string(path.join("status")).ok())
            .flatten()
    })
}

/// A hundred requests in a second, by name, while every agent and then every DNS server is replaced.
fn replaced_under_load(cluster: &Cluster) -> anyhow::Result<()> {
    let example = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../examples")
            .join(name);
        path.display().to_string()
    };
    cluster.run(&["apply", "-f", &example("hello.yaml")])?;
    cluster.run(&["rollout", "status", "deployment/hello", "--timeout=60s"])?;
    cluster.run(&["apply", "-f", &example("load.yaml")])?;
    let log = || cluster.run(&["logs", "load"]).unwrap_or_default();
    let more = |than: usize| {
        wait::until_value("requests", LATER, log, |log| log.lines().count() > than);
    };
    more(50);
    for set in ["daemonset/causeway-node", "daemonset/causeway-dns"] {
        cluster.run(&[&["rollout", "restart", set][..], &NAMESPACE].concat())?;
        cluster.run(&[&["rollout", "status", set, "--timeout=120s"][..], &NAMESPACE].concat())?;
        more(log().lines().count() + 50);
    }
    nothing_fails()?;
    let log = log();
    let failed: Vec<&str> = log
        .lines()
        .filter(|line| line.split(' ').nth(1) != Some("200"))
        .collect();
    ensure!(
        failed.is_empty(),
        "{} of {}: {failed:#?}",
        failed.len(),
        log.lines().count()
    );
    println!("{} requests, 0 failed", log.lines().count());
    // What an agent's audit takes for somebody's change is what it may not see.
    let logs = [
        "logs",
        "-l",
        "app.kubernetes.io/name=causeway-node",
        "-c",
        "agent",
        "--tail=-1",
    ];
    let logs = cluster.run(&[&logs[..], &NAMESPACE].concat())?;
    ensure!(!logs.contains("somebody changed"), "{logs}");
    Ok(())
}

/// Asks until it is answered, then waits by the same connected socket.
const CONNECTED: &str = r#"
import socket, sys
def connected():
    while True:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        s.settimeout(1)
        try:
            s.connect((sys.argv[1], 5353))
            s.send(b"hostname")
            print("answered by", s.recv(512).decode())
            return s
        except OSError:
            s.close()
s = connected()
s.settimeout(None)
try:
    s.recv(512)
except OSError as error:
    print("ended:", error)
"#;

/// The agent does not see the pods' processes, but the pins of their network namespaces.
fn sockets_of_pods_end_with_their_endpoint(cluster: &Cluster) -> anyhow::Result<()> {
    let container =
        json!({ "name": "c", "image": "causeway/testserver:v1", "args": ["serve", "--udp", ":5353"] });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "leaves", "labels": { "app": "leaves" } },
        "spec": { "nodeName": "node-2", "terminationGracePeriodSeconds": 0, "containers": [container] },
    });
    let port = json!({ "protocol": "UDP", "port": 5353 });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "leaves" },
        "spec": { "selector": { "app": "leaves" }, "ports": [port] },
    });
    cluster.apply(&pod.to_string())?;
    cluster.apply(&service.to_string())?;
    let address = cluster.run(&["get", "service", "leaves", "-o", "jsonpath={.spec.clusterIP}"])?;
    let on_node = "jsonpath={.items[?(@.spec.nodeName==\"node-1\")].metadata.uid}";
    let uids = cluster.run(&["get", "pods", "-l", "app=hello", "-o", on_node])?;
    let uid = uids.split_whitespace().next().context("a pod on node-1")?;
    let place = Place::beside(process_of(uid).context("the pod has a process")?)?;
    let mut client = command(&place, "python3");
    client.args(["-u", "-c", CONNECTED, &address]);
    let mut client = Process::spawn(&place, &mut client)?;
    client.await_line("answered by leaves", LATER);
    cluster.run(&["delete", "pod", "leaves", "--wait=false"])?;
    client.await_line("ended:", LATER);
    Ok(())
}

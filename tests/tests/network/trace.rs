//! `causeway trace` beside agents: Services by name and address, pods of other nodes, and what it is that Causeway refuses.

use std::net::TcpStream;
use std::process::Command;

use serde_json::json;
use tests::cluster::program;
use tests::network::{Network, Pod, SOON};
use tests::process::{self, Output, Place, Process};
use tests::topology::Host;
use tests::traced::{trace, trace_while, way_out};
use tests::wait;

use crate::services::{VIP, run, service, slice};

/// Of a Service for datagrams.
const NAMES: &str = "10.96.0.8";

/// An address that a pod takes, and that is not its own.
const ANOTHER: &str = "10.77.7.7";

/// Sends a probe until what is told of it has all these parts.
#[track_caller]
fn check(arguments: &[&str], code: i32, parts: &[&str]) {
    let arguments = [arguments, &["--inject"]].concat();
    let is_told = |told: &Output| {
        let has = |part: &&str| told.stdout.contains(part) || told.stderr.contains(part);
        told.status.code() == Some(code) && parts.iter().all(has)
    };
    wait::until_value(&parts.join(", "), SOON, || trace(&arguments), is_told);
}

#[test]
fn trace_follows_services_to_their_endpoints_and_tells_what_causeway_refuses() {
    let Some(mut world) = Network::new("trace follows Services to their endpoints", "traced", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    world.put(service());
    world.put(slice(&far, "http", true));
    let configs = [0, 1].map(|node| world.configure(node).display().to_string());
    let [own, other] = configs.each_ref().map(String::as_str);
    names_the_endpoint_and_who_chose_it(&world, &near, &far, own);
    names_what_no_agent_knows(&far, own);
    says_whose_refusal_it_is(&world, &near, &far, own);
    follows_what_nodes_send(&world, &near, &far, own);
    sends_as_the_pods_own_processes_do(&world, &near, &far, own);
    knows_the_pods_own_namespace(&near, &far, own);
    world.kill_agent(0);
    knows_that_nobody_looks_who_sends(&world, &far, own);
    does_without_an_agent(&world, &far, own, other);
    knows_what_the_tunnel_waits_for(&world, &far, own);
}

fn names_the_endpoint_and_who_chose_it(world: &Network, near: &Pod, far: &Pod, config: &str) {
    let chosen = format!("svc/default/web:80 -> 1 of 1 endpoint, {}, by ", far.server());
    let by_rules = format!("{chosen}packet rules");
    let answered = "verdict: ANSWERED";
    check(
        &["pod/near", "svc/web:http", "--config", config],
        0,
        &[answered, &by_rules],
    );
    let by_address = format!("{VIP}:80/tcp");
    check(
        &["pod/near", &by_address, "--config", config],
        0,
        &[answered, &by_rules],
    );
    let hooked = trace_while(&["pod/near", "svc/web", "--config", config], || {
        let mut knock = process::command(&world.inside(near), env!("CARGO_BIN_EXE_knock"));
        let line = format!("0 tcp 1 {by_address}\n").replace("/tcp", "");
        let knocked = process::run_in(&world.inside(near), &mut knock, line.as_bytes()).expect("it runs");
        assert!(knocked.status.success(), "{knocked:?}");
    });
    assert_eq!(hooked.status.code(), Some(0), "{hooked:?}");
    let by_hook = format!("{chosen}socket hook");
    assert_eq!(hooked.stdout.lines().nth(1), Some(&*by_hook), "{hooked:?}");
}

fn names_what_no_agent_knows(far: &Pod, config: &str) {
    // This agent has not connected it: it is an endpoint.
    check(
        &["pod/near", "pod/far:7000/tcp", "--config", config],
        0,
        &["verdict: ANSWERED"],
    );
    let unknown = "no agent of this machine has connected a pod default/nobody";
    check(
        &["pod/near", "pod/nobody:7000", "--config", config],
        2,
        &[unknown],
    );
    let from_far = format!("{}:7000/tcp", far.address);
    check(
        &["svc/web", &from_far, "--config", config],
        2,
        &["svc/default/web sends nothing itself"],
    );
}

fn says_whose_refusal_it_is(world: &Network, near: &Pod, far: &Pod, config: &str) {
    world.put(slice(far, "http", false));
    let refused = "means:   Causeway refuses it: Service default/web has no endpoint that takes connections";
    let nobody = "svc/default/web:80 -> no endpoint";
    check(
        &["pod/near", "svc/web", "--config", config],
        1,
        &["verdict: REFUSED", nobody, refused],
    );
    world.put(slice(far, "http", true));
    let another = ANOTHER;
    let network = format!("{another}/32").parse().expect("a network");
    near.host.add_address("eth0", network).expect("an address");
    let spoofed = format!(
        "means:   Causeway refuses it: pod/default/near may send from {} alone, and it sent from {another}",
        near.address
    );
    let target = format!("{}/udp", far.server());
    check(
        &[another, &target, "--config", config],
        1,
        &["verdict: DROPPED at", &spoofed],
    );
}

/// A node sends to pods of others from its tunnel's address.
fn follows_what_nodes_send(world: &Network, near: &Pod, far: &Pod, config: &str) {
    let answered = "verdict: ANSWERED";
    for protocol in ["tcp", "udp"] {
        let target = format!("{}/{protocol}", far.server());
        check(&["node/node-0", &target, "--config", config], 0, &[answered]);
    }
    // Of node-1 no agent is asked: that of node-0 knows it.
    for (node, host, to) in [("node/node-0", 0, far), ("node/node-1", 1, near)] {
        let target = format!("{}/tcp", to.server());
        let live = trace_while(&[node, &target, "--config", config], || {
            let connected = world
                .host(host)
                .run(|| TcpStream::connect_timeout(&to.server(), SOON));
            connected.expect("entered").expect("connected");
        });
        assert_eq!(live.status.code(), Some(0), "{live:?}");
        assert!(live.stdout.contains(answered), "{live:?}");
    }
}

fn sends_as_the_pods_own_processes_do(world: &Network, near: &Pod, far: &Pod, config: &str) {
    let mut sleep = process::command(&world.inside(near), "sleep");
    let _own = Process::spawn(&world.inside(near), sleep.arg("infinity")).expect("it starts");
    world.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "names"},
        "spec": {"clusterIPs": [NAMES], "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}]},
    }));
    let mut names = slice(far, "dns", true);
    names["metadata"] = json!({
        "namespace": "default", "name": "names-1", "labels": {"kubernetes.io/service-name": "names"},
    });
    names["ports"][0]["protocol"] = "UDP".into();
    world.put(names);
    let answered = "verdict: ANSWERED";
    let chosen = |service: &str| format!("{service} -> 1 of 1 endpoint, {}, by socket hook", far.server());
    let (web, dns) = (chosen("svc/default/web:80"), chosen("svc/default/names:53"));
    let by_address = format!("{NAMES}:53/udp");
    for (target, chosen) in [
        ("svc/web:http", &web),
        ("svc/names:dns", &dns),
        (&*by_address, &dns),
    ] {
        check(&["pod/near", target, "--config", config], 0, &[answered, chosen]);
    }
    for how in ["udp", "udp-unconnected"] {
        let live = trace_while(&["pod/near", "svc/names", "--config", config], || {
            let mut knock = process::command(&world.inside(near), env!("CARGO_BIN_EXE_knock"));
            let line = format!("0 {how} 1 {NAMES}:53\n");
            let knocked = process::run_in(&world.inside(near), &mut knock, line.as_bytes()).expect("it runs");
            assert!(knocked.status.success(), "{knocked:?}");
        });
        assert_eq!(live.status.code(), Some(0), "{live:?}");
        assert_eq!(live.stdout.lines().nth(1), Some(&*dns), "{how}: {live:?}");
    }
    // The hook refuses before there is a packet.
    world.put(slice(far, "http", false));
    check(
        &["pod/near", "svc/web", "--config", config],
        1,
        &[
            "verdict: REFUSED",
            "svc/default/web:80 -> no endpoint",
            "REFUSED before there was a packet",
            "means:   Causeway refuses it: Service default/web has no endpoint that takes connections",
        ],
    );
    world.put(slice(far, "http", true));
    check(&["pod/near", "svc/web", "--config", config], 0, &[answered, &web]);
    sends_so_from_where_the_hierarchy_is_not_mounted(world, &web, config);
}

/// `ip netns exec` mounts a `/sys` of its own.
fn sends_so_from_where_the_hierarchy_is_not_mounted(world: &Network, chosen: &str, config: &str) {
    let program = program("causeway");
    let words = ["netns", "exec", world.host(0).name()];
    let mut within = Command::new("ip");
    within.args(words).arg(program);
    within.args(["trace", "pod/near", "svc/web", "--config", config, "--inject"]);
    let told = process::run_in(&Place::default(), &mut within, b"").expect("it runs");
    told.assert_said(0, &["verdict: ANSWERED", chosen]);
}

/// Another cluster of this machine, or another engine's container, may have a pod's address.
fn knows_the_pods_own_namespace(near: &Pod, far: &Pod, config: &str) {
    let double = Host::new("double").expect("a namespace");
    let network = format!("{}/32", near.address).parse().expect("a network");
    double.add_address("lo", network).expect("an address");
    let target = format!("{}/tcp", far.server());
    check(
        &["pod/near", &target, "--config", config],
        0,
        &["verdict: ANSWERED", "pod/default/near"],
    );
}

/// A packet was handed to the tunnel, and what it was wrapped in waits for the other node's MAC address.
fn knows_what_the_tunnel_waits_for(world: &Network, far: &Pod, config: &str) {
    let down = world.host(1).command("ip", &["link", "set", "eth0", "down"]);
    assert!(down.expect("it runs").status.success());
    run(world, "ip", &["neigh", "flush", "dev", "eth0"]);
    let target = format!("{}/udp", far.server());
    let left = format!("verdict: LEFT THIS MACHINE by {} flannel.1", world.host(0).name());
    let means = format!(
        "means:   NEIGHBOUR unresolved: nobody has answered for {} at device eth0",
        world.lan.hosts[1].address
    );
    check(&["pod/near", &target, "--config", config], 1, &[&left, &means]);
}

/// Without the rules that know senders a packet in another's name was dropped by somebody else's.
fn knows_that_nobody_looks_who_sends(world: &Network, far: &Pod, config: &str) {
    for rule in [
        "delete table ip causeway-guard",
        "add table ip other",
        "add chain ip other passing { type filter hook forward priority 0; }",
        "add rule ip other passing udp dport 7000 drop",
    ] {
        run(world, "nft", &[rule]);
    }
    let target = format!("{}/udp", far.server());
    check(
        &[ANOTHER, &target, "--config", config],
        1,
        &[
            "verdict: DROPPED at",
            "means:   a rule of nftables or iptables dropped it",
        ],
    );
    run(world, "nft", &["delete table ip other"]);
}

fn does_without_an_agent(world: &Network, far: &Pod, own: &str, other: &str) {
    // What it has programmed serves on, and says who is behind an address.
    let by_address = format!("{VIP}:80/tcp");
    let chosen = format!("{VIP}:80 -> 1 of 1 endpoint, {}, by packet rules", far.server());
    check(
        &["pod/near", &by_address, "--config", own],
        0,
        &["verdict: ANSWERED", &chosen],
    );
    let silent = "svc/default/web: no agent of this machine answers";
    check(&["pod/near", "svc/web", "--config", own], 2, &[silent]);
    let network = format!("{}/32", far.address);
    let _way_out = way_out(world.host(0), "out", &network);
    let target = format!("{}/udp", far.server());
    let left = format!("verdict: LEFT THIS MACHINE by {} out", world.host(0).name());
    let means = format!(
        "or led elsewhere: that is pod/default/far of node node-1, which is on this machine; now that of {network} leads there"
    );
    check(
        &["pod/near", &target, "--config", own, "--config", other],
        1,
        &[&left, &means],
    );
}

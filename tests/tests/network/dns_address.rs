//! The cluster's DNS address is the node's own as long as its DNS process answers there, and leads to the servers on
//! other nodes when it does not.

use std::net::IpAddr;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::json;
use tests::cluster::program;
use tests::network::{Network, Pod, SOON};
use tests::process::{self, Process};
use tests::topology::Host;
use tests::wait;

const ADDRESS: &str = "10.96.0.10";
/// What the node's own server says, and what the other one does.
const HERE: &str = "192.0.2.1";
const THERE: &str = "192.0.2.2";

/// A DNS server in a host, that gives this answer.
fn serve(host: &Host, directory: &Path, plugins: &str, answer: &str) -> Process {
    std::fs::create_dir_all(directory).expect("writable");
    let path = directory.join("Corefile");
    let corefile = format!(".:53 {{\n{plugins}\nhosts {{\n{answer} who.example\n}}\n}}\n");
    std::fs::write(&path, corefile).expect("writable");
    let mut command = process::command(&host.place(), program("causeway"));
    command.arg("dns").arg("--conf").arg(path);
    let mut server = Process::spawn(&host.place(), &mut command).expect("it starts");
    server.await_line("serving", SOON);
    server
}

/// The cluster's DNS Service, with these endpoints, one on each node.
fn publish(world: &Network, endpoints: [IpAddr; 2]) {
    let ports = |key: &str| {
        let port = |name, protocol| json!({"name": name, "protocol": protocol, key: 53});
        [port("dns", "UDP"), port("dns-tcp", "TCP")]
    };
    let endpoint = |number: usize| {
        let node = format!("node-{number}");
        json!({"addresses": [endpoints[number]], "conditions": {"ready": true}, "nodeName": node})
    };
    world.put(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": "kube-system"},
        "spec": {"type": "ClusterIP", "clusterIP": ADDRESS, "clusterIPs": [ADDRESS], "ipFamilies": ["IPv4"],
            "ports": ports("port")},
    }));
    world.put(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-1", "namespace": "kube-system",
            "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4", "ports": ports("port"),
        "endpoints": [endpoint(0), endpoint(1)],
    }));
}

/// What a client is told, or what `dig` says instead. It asks once.
fn ask(client: &Host, over: &str) -> String {
    let server = format!("@{ADDRESS}");
    let arguments = ["+short", "+tries=1", "+time=2", over, &server, "who.example"];
    let output = client.command("dig", &arguments).expect("dig runs");
    output.stdout.trim().to_owned()
}

/// A pod and the node itself, over UDP and over TCP.
fn clients<'a>(world: &'a Network, near: &'a Pod) -> [(&'a Host, &'static str); 4] {
    let (pod, node) = (&near.host, world.host(0));
    [(pod, "+notcp"), (pod, "+tcp"), (node, "+notcp"), (node, "+tcp")]
}

fn answers(world: &Network, near: &Pod) -> [String; 4] {
    clients(world, near).map(|(client, over)| ask(client, over))
}

#[track_caller]
fn await_answer(world: &Network, near: &Pod, expected: &str) {
    for (client, over) in clients(world, near) {
        wait::until_value(
            "the answer",
            SOON,
            || ask(client, over),
            |answer| answer == expected,
        );
    }
}

/// Flows to the address that a node's connection tracking has.
fn tracked(world: &Network, number: usize) -> Vec<String> {
    let list = ["--dump", "--orig-dst", ADDRESS];
    let output = world.host(number).command("conntrack", &list).expect("it runs");
    output.stdout.lines().map(str::to_owned).collect()
}

#[track_caller]
fn check(datapath: &'static str) {
    let label = format!("dns-{datapath}");
    let what = format!("the node's own DNS address with {datapath}");
    let Some(mut world) = Network::without_agents(&what, &label, 2, datapath) else {
        return;
    };
    world.dns = Some(ADDRESS);
    world.start_agents();
    let (near, far): (Pod, Pod) = (world.pod(0, "near"), world.pod(1, "far"));
    let directory = world.directory.path().to_owned();
    let _there = serve(&far.host, &directory.join("there"), "", THERE);
    // The node's own server has an endpoint too, at the node's address.
    publish(&world, [world.lan.hosts[0].address.into(), far.address]);
    let feed = world.path(0, "dns.sock");
    let plugins = format!(
        "bind {ADDRESS}\nhealth 127.0.0.1:8080 {{\nlameduck 3s\n}}\nkubernetes cluster.local {{\nfeed {}\nstate {}\n}}",
        feed.display(),
        directory.join("here").display()
    );
    let start = |world: &Network| serve(world.host(0), &directory.join("here"), &plugins, HERE);

    // Nobody answers here yet.
    await_answer(&world, &near, THERE);
    assert_ne!(tracked(&world, 0), Vec::<String>::new());
    for _ in 0..5 {
        assert_eq!(
            answers(&world, &near),
            [THERE; 4],
            "the node's own endpoint is none"
        );
    }

    let mut here = start(&world);
    await_answer(&world, &near, HERE);
    let explained = ["pod/near", "10.96.0.10:53/udp"];
    crate::explain::check(&world, &explained, 0, "is this node's own DNS server");
    let flush = world.host(0).command("conntrack", &["--flush"]).expect("it runs");
    assert!(flush.status.success(), "{}", flush.stderr);
    await_answer(&world, &near, HERE);
    assert_eq!(tracked(&world, 0), Vec::<String>::new());

    // It is killed.
    here.kill();
    await_answer(&world, &near, THERE);
    let here = start(&world);
    await_answer(&world, &near, HERE);

    // It stands still.
    Network::signal(Some(&here), Signal::SIGSTOP);
    await_answer(&world, &near, THERE);
    Network::signal(Some(&here), Signal::SIGCONT);
    await_answer(&world, &near, HERE);

    // The agent goes and comes.
    world.kill_agent(0);
    assert_eq!(answers(&world, &near), [HERE; 4]);
    world.start_agent(0);
    world.await_ready(0);
    assert_eq!(answers(&world, &near), [HERE; 4]);

    // It ends in good order: nobody asks twice.
    here.terminate().expect("it runs");
    let given = wait::until_value(
        "the other server answers everybody",
        SOON,
        || {
            let answers = answers(&world, &near);
            let known = |answer: &String| [HERE, THERE].contains(&answer.as_str());
            assert!(answers.iter().all(known), "{answers:?}");
            answers
        },
        |answers| answers.iter().all(|answer| answer == THERE),
    );
    assert_eq!(given, [THERE; 4]);
}

#[test]
fn the_address_is_the_nodes_own_as_long_as_its_server_answers_with_the_socket_hook() {
    check("ebpf");
}

#[test]
fn the_address_is_the_nodes_own_as_long_as_its_server_answers_with_nftables() {
    check("nftables");
}

#[test]
fn the_address_is_the_nodes_own_as_long_as_its_server_answers_with_iptables() {
    check("iptables");
}

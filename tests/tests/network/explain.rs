//! `causeway explain`, on nodes where something is broken: it names what, and nothing else is wrong.

use std::net::{IpAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use aya::Pod as Plain;
use aya::maps::{Array, Map, MapData};
use ebpf::abi::pods::Tunnel;
use ebpf::abi::service::{Endpoint, Frontend, FrontendKey, SlotKey};
use netlink::{Kernel as _, Netlink};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tests::cluster::program;
use tests::network::{Network, Pod, SOON};
use tests::process;
use tests::wait;

use crate::services::{map, run, service, slice};

/// What a run of it came to.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    code: Option<i32>,
    output: String,
    error: String,
}

fn explain(world: &Network, arguments: &[&str]) -> Told {
    ask("explain", world, arguments)
}

fn ask(what: &str, world: &Network, arguments: &[&str]) -> Told {
    let place = world.host(0).place();
    let mut command = process::command(&place, program("causeway"));
    command
        .arg(what)
        .args(arguments)
        .arg("--config")
        .arg(world.configure(0));
    command.env_remove("NODE_NAME");
    let output = process::run_in(&place, &mut command, b"").expect("it runs");
    Told {
        code: output.status.code(),
        output: output.stdout,
        error: output.stderr,
    }
}

/// Waits until it says so; `expected` is a part of the output.
#[track_caller]
pub fn check(world: &Network, arguments: &[&str], code: i32, expected: &str) {
    wait::until_value(
        expected,
        SOON,
        || explain(world, arguments),
        |told| told.code == Some(code) && (told.output.contains(expected) || told.error.contains(expected)),
    );
}

/// Takes all entries out of a map while `work` is done, and puts them back.
fn without_entries<K: Plain, V: Plain>(pins: &Path, name: &str, work: impl FnOnce()) {
    let mut map = map::<K, V>(pins, name);
    let entries: Vec<(K, V)> = map.iter().collect::<Result<_, _>>().expect("readable");
    assert!(!entries.is_empty(), "{name}");
    for (key, _) in &entries {
        map.remove(key).expect("it was there");
    }
    work();
    for (key, value) in entries {
        map.insert(key, value, 0).expect("there is room");
    }
}

const WAY: [&str; 2] = ["pod/near", "svc/web:http"];

#[test]
fn explain_names_what_stands_in_the_way_and_where() {
    let Some(mut world) = Network::new("explain names what stands in the way", "explain", 2) else {
        return;
    };
    let (near, far) = (world.pod(0, "near"), world.pod(1, "far"));
    world.put(service());
    world.put(slice(&far, "http", true));
    check(&world, &WAY, 0, "WORKS");
    shows_both_sides(&world, &near, &far);
    knows_what_stays_on_the_node(&world);
    knows_node_ports_of_other_nodes(&world, &far);
    names_what_the_maps_lack(&world, &near, &far);
    names_what_others_put_in_the_way(&world, &near, &far);
    says_what_the_objects_say(&world, &far);
    names_what_is_missing(&world, &near, &far);
    does_not_wait_for_an_agent_that_hangs(&world);
    world.kill_agent(0);
    asks_the_kernel_alone(&world, &near, &far);
}

fn shows_both_sides(world: &Network, near: &Pod, far: &Pod) {
    let told = explain(world, &WAY);
    for part in [
        "pod default/near on node-0",
        "-> Service default/web (10.96.0.7:80)/TCP",
        &format!("objects  to {}:7000, its source is kept", far.address),
        "pod default/far on node-1: chosen, ready",
        "map FRONTENDS [10.96.0.7:80/TCP] service ",
        "set ip causeway-proxy service-ips [10.96.0.7 . tcp . 80] goto address.cluster-1",
        "rule ip causeway-proxy services [by address] handle ",
        "via 10.244.",
        "dev flannel.1 onlink proto 213 table 254",
        "dst 172.30.8.12",
        &format!("neighbour [{} dev cw", near.address),
    ] {
        assert!(told.output.contains(part), "{part}: {}", told.output);
    }
    let first = told.output.lines().next().unwrap_or_default();
    let verdict = format!(
        "WORKS: the socket hook sends it to {}:7000; nothing stands in the way, as far as node-0 sees",
        far.address
    );
    assert!(
        first.starts_with("EXPLAIN pod default/near") && first.ends_with(&verdict),
        "{first}"
    );
    let json = explain(world, &["pod/near", "svc/web:80", "-o", "json"]);
    let json: Value = serde_json::from_str(&json.output).expect("JSON");
    assert_eq!(json["conclusion"], "works");
    check(world, &["pod/neer", "svc/web:80"], 2, "did you mean pod/near?");
    check(
        world,
        &["pod/near", "svc/web:81"],
        1,
        "FAILS: refused: Service default/web has no port 81/TCP; it has svc/web:80/tcp",
    );
    check(
        world,
        &["pod/far", "svc/web:80"],
        2,
        "the endpoint is chosen on node-1",
    );
}

/// The hook's maps are looked at by the agent every five minutes.
/// What a pod says to its own node, and to itself.
fn knows_what_stays_on_the_node(world: &Network) {
    check(world, &["pod/near", "172.30.8.11:10256"], 0, "WORKS");
    let itself = explain(world, &["pod/near", "pod/near:7000"]);
    assert_eq!(itself.code, Some(0), "{}", itself.output);
    let stays = "the packet stays in the pod, on its loopback device";
    assert!(itself.output.contains(stays), "{}", itself.output);
    assert!(!itself.output.contains("NEIGHBOUR"), "{}", itself.output);
}

/// The hook of this node serves them.
fn knows_node_ports_of_other_nodes(world: &Network, far: &Pod) {
    world.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "ported"},
        "spec": {"type": "NodePort", "clusterIPs": ["10.96.0.77"],
            "ports": [{"name": "http", "port": 80, "nodePort": 30090}]},
    }));
    let endpoints = |ready| {
        let mut slice = slice(far, "http", ready);
        slice["metadata"]["name"] = "ported-1".into();
        slice["metadata"]["labels"]["kubernetes.io/service-name"] = "ported".into();
        world.put(slice);
    };
    let way = ["pod/near", "172.30.8.12:30090"];
    endpoints(true);
    let taken = "172.30.8.12 is node-1's: the socket hook takes node ports of all nodes here";
    check(world, &way, 0, taken);
    check(
        world,
        &way,
        0,
        &format!("WORKS: the socket hook sends it to {}:7000", far.address),
    );
    let told = explain(world, &way).output;
    let kept = format!(
        "objects  to {}:7000, its source is kept: the socket hook",
        far.address
    );
    assert!(
        told.contains(&kept) && !told.contains("as from this node"),
        "{told}"
    );
    endpoints(false);
    check(
        world,
        &way,
        1,
        "refused: Service default/ported has no endpoint that takes connections",
    );
}

fn names_what_the_maps_lack(world: &Network, near: &Pod, far: &Pod) {
    let pins = world.pins(0);
    let served = format!("WORKS: the packet rules send it to {}:7000", far.address);
    without_entries::<FrontendKey, Frontend>(&pins, "FRONTENDS", || {
        let absent = "DIFFERS  socket hook: no entry, where the plan wants spread, 1 endpoint";
        check(world, &WAY, 0, absent);
        check(world, &WAY, 0, &served);
        shown_by_its_commands(world);
    });
    without_entries::<SlotKey, u32>(&pins, "SLOTS", || {
        let to = far.address;
        let missing = format!("DIFFERS  socket hook: list for the cluster: endpoint {to}:7000 is missing");
        check(world, &WAY, 0, &missing);
        check(world, &WAY, 0, &served);
    });
    let mut endpoints = map::<u32, Endpoint>(&pins, "ENDPOINTS");
    let all: Result<Vec<(u32, Endpoint)>, _> = endpoints.iter().collect();
    let all = all.expect("readable");
    for (id, endpoint) in &all {
        let elsewhere = Endpoint {
            addr: near.address.into(),
            ..*endpoint
        };
        endpoints.insert(id, elsewhere, 0).expect("there is room");
    }
    let stray = format!(
        "PROBLEM  socket hook: list for the cluster: endpoint {}:7000 is not",
        near.address
    );
    check(world, &WAY, 1, &stray);
    for (id, endpoint) in all {
        endpoints.insert(id, endpoint, 0).expect("there is room");
    }
}

/// The commands that it names run as they stand, where the one is who asked, and show what is there.
fn shown_by_its_commands(world: &Network) {
    let told = explain(world, &WAY).output;
    let commands: Vec<_> = told
        .lines()
        .filter_map(|line| line.trim().strip_prefix("look at: "))
        .collect();
    let [of_hook, of_rules] = commands.as_slice() else {
        panic!("{told}");
    };
    assert!(of_hook.starts_with("bpftool map lookup pinned /"), "{of_hook}");
    let set = world.host(0).command("sh", &["-c", of_rules]).expect("sh runs");
    assert!(
        set.stdout
            .contains("10.96.0.7 . tcp . 80 : goto address.cluster-1"),
        "{of_rules}: {set:?}"
    );
}

/// It is not the agent's to repair.
fn names_what_others_put_in_the_way(world: &Network, near: &Pod, far: &Pod) {
    // TCP between pods passes by the stack; all else does not.
    world.await_fast_path(0);
    let udp = format!("{}:7000/udp", far.address);
    let by_udp = ["pod/near", udp.as_str()];
    check(world, &WAY, 0, "FAST PATH");
    hears_the_attached_program(world);
    let host_route = format!("{}/32", far.address);
    run(world, "ip", &["route", "add", &host_route, "via", "172.30.8.1"]);
    let astray = "the route leads to eth0, not to flannel.1";
    check(world, &WAY, 0, &format!("DIFFERS  {astray}"));
    connects(near, far);
    check(world, &by_udp, 1, &format!("FAILS: {astray}"));
    run(world, "ip", &["route", "delete", &host_route]);
    let from = near.address.to_string();
    run(
        world,
        "ip",
        &["route", "add", "blackhole", "default", "table", "77"],
    );
    run(world, "ip", &["rule", "add", "to", &from, "lookup", "77"]);
    check(world, &WAY, 0, "DIFFERS  no way: a blackhole");
    connects(near, far);
    check(world, &by_udp, 1, "FAILS: no way: a blackhole");
    run(world, "ip", &["rule", "delete", "to", &from, "lookup", "77"]);
    check(world, &WAY, 0, "WORKS");
    check(world, &by_udp, 0, "WORKS");
    for (name, hook) in [("in", "ingress"), ("out", "egress")] {
        let device = if name == "in" {
            device_of(world, near)
        } else {
            "flannel.1".to_owned()
        };
        let chain = format!("{{ type filter hook {hook} device {device} priority 0; }}");
        let receiver = far.address.to_string();
        run(world, "nft", &["add", "table", "netdev", "fw"]);
        run(world, "nft", &["add", "chain", "netdev", "fw", name, &chain]);
        let rule = [
            "add", "rule", "netdev", "fw", name, "ip", "daddr", &receiver, "drop",
        ];
        run(world, "nft", &rule);
        let dropped = format!(
            "FAILS: dropped by somebody else's rules: rule handle 2 of chain netdev fw {name}, at hook {hook}"
        );
        check(world, &by_udp, 1, &dropped);
        run(world, "nft", &["delete", "table", "netdev", "fw"]);
    }
    run(world, "nft", &["add", "table", "inet", "fw"]);
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    run(world, "nft", &["add", "chain", "inet", "fw", "forward", chain]);
    let dropped =
        "FAILS: dropped by somebody else's rules: its policy of chain inet fw forward, at hook forward";
    check(world, &WAY, 1, dropped);
    run(world, "nft", &["delete", "table", "inet", "fw"]);
}

/// What its maps have for a pod is right; what it writes around packets is in another one.
fn hears_the_attached_program(world: &Network) {
    let wraps = "172.30.8.11 -> 172.30.8.12:8472/UDP";
    check(world, &WAY, 0, wraps);
    let beside = world.pod(0, "beside");
    let sends = format!("test run: sends it to {} by device ", mac_of(&beside));
    check(world, &["pod/near", "pod/beside:7000"], 0, &sends);
    drop(beside);
    let layout = format!("pods/v{}", ebpf::abi::pods::LAYOUT);
    let pin = world.pins(0).join(layout).join("TUNNELS");
    let map = Map::Array(MapData::from_pin(pin).expect("pinned"));
    let mut tunnels = Array::<_, Tunnel>::try_from(map).expect("an array");
    let tunnel = tunnels.get(&Tunnel::V4, 0).expect("readable");
    let mut set = |vni| tunnels.set(Tunnel::V4, Tunnel { vni, ..tunnel }, 0);
    // The agent puts that right every few seconds.
    let told = wait::until("the program's own verdict", SOON, || {
        set(Tunnel::vni(77)).expect("written");
        let told = explain(world, &WAY);
        if told.code == Some(1) { Ok(told) } else { Err(told) }
    });
    set(tunnel.vni).expect("written");
    let output = told.output;
    for part in [
        "test run: wraps it for ",
        "network 77, ",
        "flannel.1 is of network 1",
    ] {
        assert!(output.contains(part), "{part}: {output}");
    }
    check(world, &WAY, 0, wraps);
}

fn mac_of(pod: &Pod) -> String {
    let read = pod.host.run(|| {
        let mut kernel = Netlink::open()?;
        kernel.link_named("eth0")
    });
    let link = read.expect("entered").expect("readable").expect("its device");
    let octets = link.mac.expect("six bytes").map(|octet| format!("{octet:02x}"));
    octets.join(":")
}

/// The node's end of a pod's device.
fn device_of(world: &Network, pod: &Pod) -> String {
    let address = pod.address.to_string();
    let output = world.host(0).command("ip", &["-o", "route", "get", &address]);
    let output = output.expect("ip runs").stdout;
    let behind = output.split_once(" dev ").map(|(_, behind)| behind);
    let device = behind.and_then(|behind| behind.split_whitespace().next());
    device.expect("a route").to_owned()
}

fn says_what_the_objects_say(world: &Network, far: &Pod) {
    world.put(slice(far, "http", false));
    check(world, &WAY, 1, "pod default/far on node-1: not chosen: not ready");
    let refused = "FAILS: refused: Service default/web has no endpoint that takes connections";
    check(world, &WAY, 1, refused);
    world.put(slice(far, "web", true));
    let others = "endpoints are listed for other ports than \"http\"/TCP: \"web\"/TCP";
    check(world, &WAY, 1, others);
    world.put(slice(far, "http", true));
    check(world, &WAY, 0, "WORKS");
}

/// A packet does what was told of one that nobody sent.
#[track_caller]
fn connects(near: &Pod, far: &Pod) {
    let connected = near.host.run(|| TcpStream::connect_timeout(&far.server(), SOON));
    connected.expect("entered").expect("answered");
}

/// Addresses that nobody has, and Services without one.
fn names_what_is_missing(world: &Network, near: &Pod, far: &Pod) {
    let third = |pod: &Pod| match pod.address {
        IpAddr::V4(address) => address.octets()[2],
        IpAddr::V6(address) => panic!("{address}"),
    };
    let leased = [third(near), third(far)];
    let unleased = (1..=255)
        .find(|octet| !leased.contains(octet))
        .expect("two are leased");
    let unleased = format!("10.244.{unleased}.77");
    check(world, &["pod/near", &unleased], 1, "and no node's lease has it");
    let free = format!("10.244.{}.250", third(near));
    check(world, &["pod/near", &free], 1, "and no pod has it");
    world.put(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "db"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"port": 5432}]},
    }));
    check(
        world,
        &["pod/near", "svc/db:5432"],
        2,
        "Service default/db has no address: it is headless",
    );
    check(world, &["svc/web", "pod/near"], 2, "a Service sends nothing");
    // The only port is meant where none is named.
    check(
        world,
        &["pod/near", "10.96.0.7"],
        0,
        "Service default/web (10.96.0.7:80)/TCP: WORKS",
    );
}

/// It takes connections, and says nothing: what the kernel has is told within five seconds.
fn does_not_wait_for_an_agent_that_hangs(world: &Network) {
    Network::signal(world.agents[0].as_ref(), Signal::SIGSTOP);
    let asked = Instant::now();
    let told = explain(world, &["pod/near", "10.96.0.7:80"]);
    let took = asked.elapsed();
    let doctor = ask("doctor", world, &[]);
    Network::signal(world.agents[0].as_ref(), Signal::SIGCONT);
    assert_eq!(doctor.code, Some(2), "{doctor:?}");
    assert!(doctor.error.contains("is stopped, by SIGSTOP"), "{doctor:?}");
    assert_eq!(told.code, Some(2), "{told:?}");
    assert!(told.error.contains("is stopped, by SIGSTOP"), "{told:?}");
    assert!(
        told.output.contains("UNKNOWN: the agent does not answer"),
        "{told:?}"
    );
    assert!(
        told.output.contains("map FRONTENDS [10.96.0.7:80/TCP] service "),
        "{told:?}"
    );
    assert!(took < Duration::from_secs(5), "{took:?}");
    check(world, &WAY, 0, "WORKS");
}

fn asks_the_kernel_alone(world: &Network, near: &Pod, far: &Pod) {
    check(world, &WAY, 2, "no agent of this node answers");
    let by_name = ["pod/near", "10.96.0.7:80"];
    check(world, &by_name, 0, "EXPLAIN pod default/near on node-0");
    let (to, from) = (far.address.to_string(), near.address.to_string());
    let by_address = [from.as_str(), "10.96.0.7:80"];
    check(world, &by_address, 0, "map FRONTENDS [10.96.0.7:80/TCP] service ");
    let plain = [from.as_str(), to.as_str()];
    check(
        world,
        &plain,
        0,
        "no agent answers: only what the kernel has is told",
    );
    let mac = world.mac(1, "flannel.1");
    let entry = ["fdb", "delete", &mac, "dev", "flannel.1", "dst", "172.30.8.12"];
    run(world, "bridge", &entry);
    check(
        world,
        &plain,
        1,
        &format!("FAILS: flannel.1 does not know where {mac} is"),
    );
}

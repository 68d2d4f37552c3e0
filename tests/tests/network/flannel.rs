//! A node goes from flannel to this agent, and back: its lease, its device and its pods stay.

use std::path::Path;

use serde_json::Value;
use tests::network::{Network, Pod, SOON, Traffic};
use tests::topology::{Host, connect};
use tests::{probe, wait};

const SUBNET: &str = "10.244.200";
const MAC: &str = "02:00:00:00:00:c8";
const KEY: &str = "/coreos.com/network/subnets/10.244.200.0-24";

#[track_caller]
fn run(host: &Host, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let output = host.command(words[0], &words[1..]).expect("it is installed");
    assert!(output.status.success(), "{line}: {}", output.stderr);
    output.stdout
}

/// What flanneld does at its start: a lease in etcd, and a device that it makes or finds.
fn start_flannel(world: &Network) {
    let address = world.lan.hosts[0].address;
    let value = format!(
        r#"{{"PublicIP":"{address}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"{MAC}"}}}}"#
    );
    let lease = world.etcdctl(&["lease", "grant", "86400"]).expect("granted");
    let lease = lease.split_whitespace().nth(1).expect("its id");
    world
        .etcdctl(&["put", "--lease", lease, KEY, &value])
        .expect("written");
    let env = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={SUBNET}.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    let _configuration = world.configure(0);
    std::fs::write(world.path(0, "subnet.env"), env).expect("writable");
    let host = world.host(0);
    for line in [
        format!(
            "ip link add flannel.1 address {MAC} mtu 1450 type vxlan id 1 dstport 8472 local {address} dev eth0 nolearning"
        ),
        format!("ip address add {SUBNET}.0/32 dev flannel.1"),
        "ip link set flannel.1 up".to_owned(),
        "ip link add cni0 mtu 1450 type bridge".to_owned(),
        format!("ip address add {SUBNET}.1/24 dev cni0"),
        "ip link set cni0 up".to_owned(),
    ] {
        run(host, &line);
    }
    host.set("net/ipv4/ip_forward", "1").expect("writable");
}

/// What it does for each lease of another node that it reads.
fn follow_leases(world: &Network) {
    let host = world.host(0);
    for (key, lease) in world.leases().expect("readable") {
        if key == KEY {
            continue;
        }
        let subnet = key
            .rsplit('/')
            .next()
            .and_then(|name| name.strip_suffix("-24"))
            .expect("a subnet");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let (mac, node) = (text(&lease["BackendData"]["VtepMAC"]), text(&lease["PublicIP"]));
        run(
            host,
            &format!("ip neigh replace {subnet} lladdr {mac} dev flannel.1 nud permanent"),
        );
        run(
            host,
            &format!("bridge fdb replace {mac} dev flannel.1 dst {node} self permanent"),
        );
        run(
            host,
            &format!("ip route replace {subnet}/24 via {subnet} dev flannel.1 onlink"),
        );
    }
}

/// A pod that its CNI plugin wired.
fn bridged_pod(world: &Network) -> Pod {
    let (node, host) = (world.host(0), Host::new("bridged").expect("a namespace"));
    connect((node, "veth-old"), (&host, "eth0")).expect("connected");
    run(node, "ip link set veth-old master cni0");
    run(&host, &format!("ip address add {SUBNET}.2/24 dev eth0"));
    run(&host, &format!("ip route add default via {SUBNET}.1"));
    let pod = Pod {
        host,
        id: "bridged".to_owned(),
        node: 0,
        address: format!("{SUBNET}.2").parse().expect("an address"),
    };
    probe::serve(&pod.host, pod.server()).expect("it listens");
    pod
}

/// Index and MAC address of the tunnel's device, and its lease but for what is ours in it.
fn identity(world: &Network) -> (String, String, Value) {
    let shown = run(world.host(0), "ip -o link show flannel.1");
    let index = shown.split(':').next().expect("an index").to_owned();
    let (_, mut lease) = world
        .leases()
        .expect("readable")
        .into_iter()
        .find(|(key, _)| key == KEY)
        .expect("a lease");
    lease["BackendData"]
        .as_object_mut()
        .expect("an object")
        .remove("CausewayNode");
    (index, world.mac(0, "flannel.1"), lease)
}

#[test]
fn a_node_comes_from_flannel_and_goes_back_without_losing_a_packet() {
    let fault = "a node comes from flannel and goes back without losing a packet";
    let Some(mut world) = Network::without_agents(fault, "flannel", 2, "nftables") else {
        return;
    };
    world.start_agent(1);
    world.await_ready(1);
    start_flannel(&world);
    follow_leases(&world);
    wait::until_value(
        "the other node knows it",
        SOON,
        || world.routes(1).len(),
        |routes| *routes == 1,
    );
    let (old, far) = (bridged_pod(&world), world.pod(1, "far"));
    let (out, back) = (Traffic::start(&old, &far), Traffic::start(&far, &old));
    let before = identity(&world);

    // flanneld has ended, and the agent finds what it left.
    world.start_agent(0);
    world.await_ready(0);
    out.await_more();
    back.await_more();
    assert_eq!(identity(&world), before);
    assert!(Path::new(&world.path(0, "subnet.env")).exists());

    // The agent has ended, and flanneld finds what that left.
    world.kill_agent(0);
    follow_leases(&world);
    assert_eq!(identity(&world), before);
    let lost = [out.ended("out"), back.ended("back")];
    assert_eq!(lost.each_ref().map(|lost| lost.datagrams), [0, 0], "{lost:?}");
    println!("from flannel and back: {lost:?}");
}

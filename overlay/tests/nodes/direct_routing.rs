//! VXLAN with flannel's `DirectRouting`: plain routes to the nodes of one's own LAN, the tunnel to those behind a router.

mod privileged {
    use std::net::IpAddr;

    use model::{IpFamily, Mtu};
    use serde_json::json;
    use tests::topology::{Host, LanHost, connect};
    use tests::wait;

    use crate::dual_stack::{FAMILIES, largest, mebibyte, pods};
    use crate::harness::{Cluster, Node, Pod, SOON, await_talk_over, talk_over};

    /// Two on the LAN, and one behind the router.
    const NEAR: [usize; 2] = [0, 1];
    const FAR: usize = 2;

    /// The tunnels' devices. Between them and pods of both versions fits what fits through IPv6's.
    const POD_MTU: usize = 1430;

    /// So many tell what is wrapped from what is not.
    const DATAGRAMS: u64 = 20;

    fn device(family: IpFamily) -> &'static str {
        match family {
            IpFamily::V4 => "flannel.1",
            IpFamily::V6 => "flannel-v6.1",
        }
    }

    fn node_address(number: usize, family: IpFamily) -> IpAddr {
        let rows = [
            ["172.30.9.11", "fd77::11"],
            ["172.30.9.12", "fd77::12"],
            ["172.30.10.13", "fd78::13"],
        ];
        let text = match family {
            IpFamily::V4 => rows[number][0],
            IpFamily::V6 => rows[number][1],
        };
        text.parse().expect("an address")
    }

    #[track_caller]
    fn ip(host: &Host, line: &str) {
        let arguments: Vec<&str> = line.split(' ').collect();
        let output = host.command("ip", &arguments).expect("ip runs");
        assert!(output.status.success(), "ip {line}: {output:?}");
    }

    /// Makes a router of the LAN's switch, with a host on its other side.
    fn add_a_lan_behind_the_router(cluster: &mut Cluster) {
        cluster.add_ipv6();
        let far = Host::new("far").expect("a host");
        let router = &cluster.lan.switch;
        connect((router, "far0"), (&far, "eth0")).expect("a cable");
        for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            router.set(setting, "1").expect("a router");
        }
        for (host, device, network) in [
            (router, "far0", "172.30.10.1/24"),
            (router, "far0", "fd78::1/64"),
            (&far, "eth0", "172.30.10.13/24"),
            (&far, "eth0", "fd78::13/64"),
        ] {
            let network = network.parse().expect("a network");
            host.add_address(device, network).expect("added");
        }
        for number in NEAR {
            ip(cluster.host(number), "route add 172.30.10.0/24 via 172.30.9.1");
            ip(cluster.host(number), "route add fd78::/64 via fd77::1");
        }
        ip(&far, "route add 172.30.9.0/24 via 172.30.10.1");
        ip(&far, "route add fd77::/64 via fd78::1");
        let address = "172.30.10.13".parse().expect("an address");
        cluster.lan.hosts.push(LanHost { host: far, address });
    }

    fn start(cluster: &Cluster, number: usize) -> Node<'_> {
        let network = json!({
            "Network": "10.244.0.0/16",
            "EnableIPv6": true,
            "IPv6Network": "fd05::/48",
            "Backend": {"Type": "vxlan", "DirectRouting": true},
        });
        cluster.node_of(number, &format!("node-{number}"), network)
    }

    /// The ways from a node to the others' subnets: `SUBNET via GATEWAY dev DEVICE`, and what the tunnels' devices know of
    /// other nodes: `DEVICE has TO`.
    fn ways(node: &Node<'_>) -> Vec<String> {
        let mut ways = Vec::new();
        for family in ["-4", "-6"] {
            let arguments = [family, "route", "show", "proto", "213"];
            let output = node.host.command("ip", &arguments).expect("ip runs");
            let routes = output.stdout.lines().filter(|route| route.contains(" via "));
            ways.extend(routes.map(|route| {
                let words: Vec<&str> = route.split_whitespace().take(5).collect();
                words.join(" ")
            }));
        }
        for device in FAMILIES.map(device) {
            let list = |program: &str, arguments: &[&str]| {
                let output = node.host.command(program, arguments).expect("it runs");
                output.stdout
            };
            let forwarding = list("bridge", &["fdb", "show", "dev", device]);
            let places = forwarding.lines().filter_map(|line| line.split(" dst ").nth(1));
            let places = places.filter_map(|rest| rest.split(' ').next());
            ways.extend(places.map(|place| format!("{device} has {place}")));
            let neighbours = list("ip", &["neigh", "show", "dev", device, "nud", "permanent"]);
            let neighbours = neighbours.lines().filter_map(|line| line.split(' ').next());
            ways.extend(neighbours.map(|neighbour| format!("{device} has {neighbour}")));
        }
        ways.sort();
        ways
    }

    /// What they shall be, with the nodes that are there.
    fn wanted_ways(leases: &[Option<model::lease::Lease>], of: usize) -> Vec<String> {
        let mut ways = Vec::new();
        for (number, lease) in leases.iter().enumerate().filter(|(number, _)| *number != of) {
            let Some(lease) = lease else { continue };
            for (family, subnet) in lease.subnets().iter() {
                let (device, address) = (device(family), node_address(number, family));
                if NEAR.contains(&of) && NEAR.contains(&number) {
                    ways.push(format!("{subnet} via {address} dev eth0"));
                } else {
                    let vtep = subnet.network();
                    ways.push(format!("{subnet} via {vtep} dev {device}"));
                    ways.push(format!("{device} has {vtep}"));
                    ways.push(format!("{device} has {address}"));
                }
            }
        }
        ways.sort();
        ways
    }

    #[track_caller]
    fn await_ways(nodes: &[(usize, &Node<'_>)], leases: &[Option<model::lease::Lease>]) {
        for (number, node) in nodes {
            let wanted = wanted_ways(leases, *number);
            let what = format!("node {number} has these ways: {wanted:#?}");
            wait::until_value(&what, SOON, || ways(node), |ways| *ways == wanted);
        }
    }

    /// How many packets left a node through its tunnel.
    fn tunnelled(node: &Node<'_>, family: IpFamily) -> u64 {
        let arguments = ["-j", "-s", "link", "show", "dev", device(family)];
        let output = node.host.command("ip", &arguments).expect("ip runs");
        let shown: serde_json::Value = serde_json::from_str(&output.stdout).expect("JSON");
        shown[0]["stats64"]["tx"]["packets"].as_u64().expect("a number")
    }

    #[track_caller]
    fn everything_between(from: &Pod, to: &Pod) {
        for family in FAMILIES {
            await_talk_over(family, from, to);
            mebibyte(family, from, to);
            largest(family, from, to, POD_MTU);
        }
    }

    #[test]
    fn nodes_of_one_lan_are_routed_to_directly_and_those_behind_a_router_through_the_tunnel() {
        let Some(mut cluster) = Cluster::new("direct", 2) else {
            return;
        };
        add_a_lan_behind_the_router(&mut cluster);
        let cluster = cluster;
        let mut nodes = vec![start(&cluster, 0), start(&cluster, 1), start(&cluster, 2)];
        let pods = pods(&nodes);
        let mut leases: Vec<_> = nodes.iter().map(|node| node.await_others(2).lease).collect();
        for node in &nodes {
            let status = node.await_others(2);
            assert_eq!(status.mtu, Some(Mtu(1430)), "one for pods on every node");
        }
        await_ways(&nodes.iter().enumerate().collect::<Vec<_>>(), &leases);
        for from in 0..3 {
            for to in (0..3).filter(|to| *to != from) {
                everything_between(&pods[from], &pods[to]);
                // Seen where they leave; a tunnel's device says a word of its own now and then.
                let direct = NEAR.contains(&from) && NEAR.contains(&to);
                for family in FAMILIES {
                    let before = tunnelled(&nodes[from], family);
                    for _ in 0..DATAGRAMS {
                        talk_over(family, &pods[from], &pods[to]).expect("they talk");
                    }
                    let wrapped = tunnelled(&nodes[from], family) - before;
                    let told = format!("{from} to {to}, {family:?}: {wrapped} of {DATAGRAMS} wrapped");
                    assert_eq!(wrapped < DATAGRAMS, direct, "{told}");
                }
            }
        }

        // A node's agent that stops takes nothing away from the others, nor from its own pods.
        nodes.remove(1).stop();
        everything_between(&pods[0], &pods[1]);
        everything_between(&pods[FAR], &pods[1]);
        // A node that goes, with its lease, takes its ways along on both sides of the router, and no others.
        let gone = leases[1].take().expect("a lease").subnets();
        let subnet = gone.v4.expect("IPv4").network();
        let prefix = format!("/coreos.com/network/subnets/{subnet}-24");
        cluster.etcdctl(&["del", "--prefix", &prefix]);
        let (near, far) = (&nodes[0], &nodes[1]);
        await_ways(&[(0, near), (FAR, far)], &leases);
        for family in FAMILIES {
            talk_over(family, &pods[0], &pods[1]).expect_err("nobody knows the way");
        }
        everything_between(&pods[0], &pods[FAR]);
        everything_between(&pods[FAR], &pods[0]);
        // And gets them back.
        let back = start(&cluster, 1);
        back.await_others(2);
        let status = back.await_status("the same subnets", |status| {
            status.lease.as_ref().is_some_and(|lease| lease.subnets() == gone)
        });
        leases[1] = status.lease;
        await_ways(&[(0, near), (1, &back), (FAR, far)], &leases);
        everything_between(&pods[0], &pods[1]);
        everything_between(&pods[1], &pods[FAR]);
    }
}

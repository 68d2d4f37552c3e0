//! Nodes whose pods have an address of each version of IP.

pub use privileged::{FAMILIES, largest, mebibyte, nodes, pods};

mod privileged {
    use std::io::{Read, Write};
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    use model::{IpFamily, Mtu};
    use netlink::{Kernel, LinkChange};
    use serde_json::json;
    use tests::wait;

    use crate::harness::{Cluster, Node, Pod, SOON, await_talk, await_talk_over};

    pub const FAMILIES: [IpFamily; 2] = IpFamily::ALL;

    fn network(backend: &str) -> serde_json::Value {
        json!({
            "Network": "10.244.0.0/16",
            "EnableIPv6": true,
            "IPv6Network": "fd05::/48",
            "Backend": {"Type": backend},
        })
    }

    /// Starts the overlay on every host.
    pub fn nodes<'c>(cluster: &'c Cluster, backend: &str) -> Vec<Node<'c>> {
        cluster.add_ipv6();
        let start = |number| cluster.node_of(number, &format!("node-{number}"), network(backend));
        (0..cluster.lan.hosts.len()).map(start).collect()
    }

    /// Waits for the nodes to know each other, and gives each a pod.
    pub fn pods(nodes: &[Node<'_>]) -> Vec<Pod> {
        for node in nodes {
            node.await_others(nodes.len() - 1);
        }
        let add = |(number, node): (usize, &Node<'_>)| node.add_pod(&format!("p{number}"));
        nodes.iter().enumerate().map(add).collect()
    }

    #[test]
    fn pods_of_three_nodes_talk_over_both_versions_with_a_mebibyte_each_way() {
        let Some(cluster) = Cluster::new("dual", 3) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        let pods = pods(&nodes);
        let status = nodes[0].await_others(2);
        assert_eq!(status.mtu, Some(Mtu(1430)), "what fits through both tunnels");
        let mtu = |device| nodes[0].device(device).expect("it is there").mtu;
        assert_eq!((mtu("flannel.1"), mtu("flannel-v6.1")), (1450, 1430));
        for family in FAMILIES {
            for (from, to) in [(0, 1), (1, 0), (0, 2), (2, 1)] {
                await_talk_over(family, &pods[from], &pods[to]);
                mebibyte(family, &pods[from], &pods[to]);
            }
            largest(family, &pods[0], &pods[1], 1430);
        }
        let keys = cluster.etcdctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets"]);
        assert_eq!(keys.matches("-24&fd05:").count(), 3, "{keys}");
        let env = std::fs::read_to_string(cluster.directory.0.join("host-0/subnet.env")).expect("written");
        assert!(
            env.contains("FLANNEL_IPV6_NETWORK=fd05::/48\n") && env.contains("FLANNEL_MTU=1430\n"),
            "{env}"
        );
        the_world_sees_the_node(&cluster, &pods[0]);
        drift_is_repaired(&nodes, &pods);
    }

    /// What leaves the pod network has the node's address.
    fn the_world_sees_the_node(cluster: &Cluster, pod: &Pod) {
        let server = cluster.lan.switch.run(|| UdpSocket::bind("[fd77::1]:7001"));
        let server = server.expect("entered").expect("bound");
        server.set_read_timeout(Some(SOON)).expect("settable");
        let client = pod
            .host
            .run(|| UdpSocket::bind("[::]:0"))
            .expect("entered")
            .expect("bound");
        client.send_to(b"hello", "[fd77::1]:7001").expect("sent");
        let (_, source) = server.recv_from(&mut [0; 16]).expect("received");
        assert_eq!(source.ip().to_string(), "fd77::11");
    }

    fn drift_is_repaired(nodes: &[Node<'_>], pods: &[Pod]) {
        let node = &nodes[0];
        // Indices of devices differ once one was made again.
        let entries = || -> Vec<String> {
            let entries = node.entries_on("flannel-v6.1");
            entries
                .iter()
                .map(|entry| entry.replace(|c: char| c.is_ascii_digit(), ""))
                .collect()
        };
        let good = entries();
        type Damage = fn(&mut netlink::Netlink, u32);
        let damages: [(&str, Damage); 5] = [
            ("routes deleted", |kernel, _| {
                let routes = kernel
                    .routes(&netlink::RouteFilter::made_by(213))
                    .expect("readable");
                for route in routes.iter().filter(|route| route.destination.is_ipv6()) {
                    kernel.delete_route(route).expect("delete");
                }
            }),
            ("neighbours deleted", |kernel, tunnel| {
                let neighbours = kernel.neighbours(Some(tunnel)).expect("readable");
                for neighbour in neighbours.iter().filter(|neighbour| neighbour.permanent) {
                    kernel.delete_neighbour(neighbour).expect("delete");
                }
            }),
            ("address deleted", |kernel, tunnel| {
                let addresses = kernel.addresses(Some(tunnel)).expect("readable");
                let ours = addresses
                    .iter()
                    .filter(|address| address.scope == netlink::Scope::Universe);
                ours.for_each(|address| kernel.delete_address(address).expect("delete"));
            }),
            ("device down", |kernel, tunnel| {
                kernel.change_link(tunnel, &LinkChange::down()).expect("down");
            }),
            ("device deleted", |kernel, tunnel| {
                kernel.delete_link(tunnel).expect("delete");
            }),
        ];
        for (name, damage) in damages {
            let tunnel = node.device("flannel-v6.1").expect("it is there").index;
            let began = Instant::now();
            damage(&mut node.netlink(), tunnel);
            wait::until_value(name, SOON, entries, |entries| *entries == good);
            let took = began.elapsed();
            assert!(took < Duration::from_secs(1), "{name}: repaired after {took:?}");
            for family in FAMILIES {
                await_talk_over(family, &pods[0], &pods[1]);
                await_talk_over(family, &pods[1], &pods[0]);
            }
        }
    }

    #[test]
    fn host_gw_routes_both_versions_plainly() {
        let Some(cluster) = Cluster::new("dualgw", 2) else {
            return;
        };
        let nodes = nodes(&cluster, "host-gw");
        let pods = pods(&nodes);
        assert!(nodes[0].tunnel().is_none() && nodes[0].device("flannel-v6.1").is_none());
        for family in FAMILIES {
            await_talk_over(family, &pods[0], &pods[1]);
            mebibyte(family, &pods[1], &pods[0]);
            largest(family, &pods[0], &pods[1], 1500);
        }
    }

    #[test]
    fn a_version_that_loses_its_address_is_waited_for_and_the_other_goes_on() {
        let Some(cluster) = Cluster::new("halfgone", 2) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        let pods = pods(&nodes);
        let before = nodes[0].await_others(1);
        let ip = |arguments: &[&str]| {
            let output = nodes[0].host.command("ip", arguments).expect("ip runs");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        ip(&["addr", "del", "fd77::11/64", "dev", "eth0"]);
        let told = "device eth0 has no address fd77::11";
        let during = nodes[0].await_status("it is told", |status| {
            status.problems.iter().any(|problem| problem == told)
        });
        assert!(during.ready);
        assert_eq!(
            (during.mtu, &during.lease),
            (before.mtu, &before.lease),
            "nothing else changes"
        );
        let kept = nodes[0]
            .routes()
            .into_iter()
            .filter(|route| route.starts_with("fd05:"))
            .count();
        assert_eq!(kept, 2, "that to the other node and that to the pod stay");
        // IPv4 is repaired as ever.
        ip(&["-4", "route", "flush", "proto", "213"]);
        await_talk(&pods[0], &pods[1]);
        let late = nodes[0].add_pod("late");
        assert!(late.addresses.v6.is_some());

        nodes[0]
            .host
            .add_address("eth0", "fd77::11/64".parse().expect("a network"))
            .expect("added");
        let after = nodes[0].await_others(1);
        assert_eq!(after.lease, before.lease);
        for family in FAMILIES {
            await_talk_over(family, &pods[0], &pods[1]);
            await_talk_over(family, &pods[1], &late);
        }
        // A second address is nobody's business.
        nodes[0]
            .host
            .add_address("eth0", "fd77::99/64".parse().expect("a network"))
            .expect("added");
        ip(&["addr", "add", "172.30.9.99/24", "dev", "eth0"]);
        await_talk_over(IpFamily::V6, &pods[0], &pods[1]);
        assert_eq!(nodes[0].await_others(1).lease, before.lease);
    }

    #[test]
    fn a_network_that_gets_ipv6_keeps_its_ipv4_subnets_and_its_pods() {
        let Some(cluster) = Cluster::new("grow", 2) else {
            return;
        };
        let (before, pods) = {
            let nodes = [cluster.node(0), cluster.node(1)];
            let pods = pods(&nodes);
            await_talk(&pods[0], &pods[1]);
            let leases = nodes
                .each_ref()
                .map(|node| node.await_others(1).lease.expect("a lease"));
            (leases, pods)
        };
        let key = "/coreos.com/network/config";
        cluster.etcdctl(&["put", key, &network("vxlan").to_string()]);
        {
            let node = cluster.node(0);
            let told = "device eth0 has no IPv6 address, which the network's configuration asks for";
            node.await_status("the missing address is told", |status| {
                status.ready && status.problems.iter().any(|problem| problem == told)
            });
            await_talk(&pods[0], &pods[1]);
        }
        let nodes = nodes(&cluster, "vxlan");
        for (node, before) in nodes.iter().zip(&before) {
            let lease = node.await_others(1).lease.expect("a lease");
            assert_eq!(lease.subnets().v4, before.subnets().v4);
            assert!(lease.subnets().v6.is_some());
        }
        let keys = cluster.etcdctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets"]);
        assert_eq!(
            keys.matches("/subnets/").count(),
            2,
            "the old ones are gone: {keys}"
        );
        await_talk(&pods[0], &pods[1]);
        let new = [nodes[0].add_pod("n0"), nodes[1].add_pod("n1")];
        for family in FAMILIES {
            await_talk_over(family, &new[0], &new[1]);
        }
        await_talk(&pods[0], &new[1]);
    }

    #[test]
    fn a_node_made_of_ip_and_etcdctl_commands_joins_in_flannels_form() {
        let Some(cluster) = Cluster::new("byhand", 3) else {
            return;
        };
        let host = cluster.host(2);
        cluster.add_ipv6();
        let run = |program: &str, line: &str| {
            let arguments: Vec<&str> = line.split_whitespace().collect();
            let output = host.command(program, &arguments).expect("it runs");
            assert!(output.status.success(), "{program} {line}: {output:?}");
            output.stdout
        };
        for line in [
            "link add flannel.1 address 02:00:00:00:00:c1 mtu 1450 type vxlan id 1 dstport 8472 local 172.30.9.13 dev eth0 nolearning",
            "link add flannel-v6.1 address 02:00:00:00:00:c6 mtu 1430 type vxlan id 1 dstport 8472 local fd77::13 dev eth0 nolearning udp6zerocsumrx",
            "addr add 10.244.200.0/32 dev flannel.1",
            "addr add fd05:0:0:c8::/128 dev flannel-v6.1 nodad",
            "link set flannel.1 up",
            "link set flannel-v6.1 up",
        ] {
            run("ip", line);
        }
        let value = r#"{"PublicIP":"172.30.9.13","PublicIPv6":"fd77::13","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:c1"},"BackendV6Data":{"VNI":1,"VtepMAC":"02:00:00:00:00:c6"}}"#;
        let lease = cluster.etcdctl(&["lease", "grant", "86400"]);
        let lease = lease.split_whitespace().nth(1).expect("its id").to_owned();
        let key = "/coreos.com/network/subnets/10.244.200.0-24&fd05:0:0:c8::-64";
        cluster.etcdctl(&["put", "--lease", &lease, key, value]);

        let start = |number| cluster.node_of(number, &format!("node-{number}"), network("vxlan"));
        let nodes = [start(0), start(1)];
        for node in &nodes {
            node.await_others(2);
        }
        // What flanneld does for each lease that it reads.
        let leases = cluster.etcdctl(&["get", "--prefix", "/coreos.com/network/subnets/"]);
        let lines: Vec<&str> = leases.lines().filter(|line| !line.is_empty()).collect();
        for pair in lines.chunks(2).filter(|pair| pair[0] != key) {
            let subnets = pair[0].rsplit('/').next().expect("a name");
            let lease: serde_json::Value = serde_json::from_str(pair[1]).expect("JSON");
            let (v4, v6) = subnets.split_once('&').expect("both versions");
            for (subnet, device, data, public_ip) in [
                (v4, "flannel.1", "BackendData", "PublicIP"),
                (v6, "flannel-v6.1", "BackendV6Data", "PublicIPv6"),
            ] {
                let (address, length) = subnet.rsplit_once('-').expect("a length");
                let mac = lease[data]["VtepMAC"].as_str().expect("a MAC address");
                let public_ip = lease[public_ip].as_str().expect("an address");
                run(
                    "ip",
                    &format!("neigh replace {address} lladdr {mac} dev {device} nud permanent"),
                );
                run(
                    "bridge",
                    &format!("fdb append {mac} dev {device} dst {public_ip} self permanent"),
                );
                run(
                    "ip",
                    &format!("route replace {address}/{length} via {address} dev {device} onlink"),
                );
            }
        }
        // The host itself is what stands for its pods: its addresses in the subnets.
        run("ip", "addr add 10.244.200.5/32 dev lo");
        run("ip", "addr add fd05:0:0:c8::5/128 dev lo nodad");
        let pods = [nodes[0].add_pod("h0"), nodes[1].add_pod("h1")];
        for pod in &pods {
            for (theirs, family) in [("10.244.200.5", IpFamily::V4), ("fd05:0:0:c8::5", IpFamily::V6)] {
                let theirs: IpAddr = theirs.parse().expect("an address");
                let ours = *pod.addresses.get(family).expect("dual stack");
                echo(host, theirs, &pod.host, ours);
                echo(&pod.host, ours, host, theirs);
            }
        }
    }

    /// A datagram from one address to the other, and back.
    #[track_caller]
    fn echo(from: &tests::topology::Host, source: IpAddr, to: &tests::topology::Host, destination: IpAddr) {
        let server = to
            .run(|| UdpSocket::bind((destination, 7003)))
            .expect("entered")
            .expect("bound");
        let client = from
            .run(|| UdpSocket::bind((source, 0)))
            .expect("entered")
            .expect("bound");
        for socket in [&server, &client] {
            socket
                .set_read_timeout(Some(Duration::from_millis(300)))
                .expect("settable");
        }
        let mut buffer = [0; 8];
        let seen = wait::until("an answer", SOON, || -> std::io::Result<SocketAddr> {
            client.send_to(b"ping", (destination, 7003))?;
            let (_, peer) = server.recv_from(&mut buffer)?;
            server.send_to(b"pong", peer)?;
            client.recv_from(&mut buffer)?;
            Ok(peer)
        });
        assert_eq!(seen.ip(), source);
    }

    /// A mebibyte over one connection.
    #[track_caller]
    pub fn mebibyte(family: IpFamily, from: &Pod, to: &Pod) {
        let address = SocketAddr::new(*to.addresses.get(family).expect("dual stack"), 7004);
        let listener = to
            .host
            .run(|| TcpListener::bind(address))
            .expect("entered")
            .expect("bound");
        let stream = from.host.run(|| TcpStream::connect_timeout(&address, SOON));
        let mut stream = stream.expect("entered").expect("connected");
        let (mut accepted, _) = listener.accept().expect("accepted");
        let sender = std::thread::spawn(move || stream.write_all(&[7; 1 << 20]));
        accepted.set_read_timeout(Some(SOON)).expect("settable");
        let mut received = Vec::new();
        accepted.read_to_end(&mut received).expect("read to the end");
        assert_eq!(received.len(), 1 << 20);
        sender.join().expect("no panic").expect("written");
    }

    /// The largest datagram that one packet carries arrives as one, and one more byte makes fragments.
    #[track_caller]
    pub fn largest(family: IpFamily, from: &Pod, to: &Pod, mtu: usize) {
        let (headers, everywhere) = match family {
            IpFamily::V4 => (20 + 8, "0.0.0.0:0"),
            IpFamily::V6 => (40 + 8, "[::]:0"),
        };
        let address = SocketAddr::new(*to.addresses.get(family).expect("dual stack"), 7005);
        let server = to
            .host
            .run(|| UdpSocket::bind(address))
            .expect("entered")
            .expect("bound");
        server.set_read_timeout(Some(SOON)).expect("settable");
        let client = from
            .host
            .run(|| UdpSocket::bind(everywhere))
            .expect("entered")
            .expect("bound");
        for (bytes, made) in [(mtu - headers, 0), (mtu - headers + 1, 2)] {
            let before = fragments(family, from);
            client.send_to(&vec![7; bytes], address).expect("sent");
            let (received, _) = server.recv_from(&mut vec![0; 2 * mtu]).expect("arrives");
            assert_eq!(
                (received, fragments(family, from) - before),
                (bytes, made),
                "{family:?}"
            );
        }
    }

    /// How many fragments the pod's kernel made.
    fn fragments(family: IpFamily, pod: &Pod) -> u64 {
        let read = |name| {
            pod.host
                .run(|| std::fs::read_to_string(format!("/proc/thread-self/net/{name}")))
        };
        match family {
            IpFamily::V4 => {
                let text = read("snmp").expect("entered").expect("readable");
                let mut lines = text.lines().filter(|line| line.starts_with("Ip: "));
                let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
                let place = names
                    .split(' ')
                    .position(|name| name == "FragCreates")
                    .expect("counted");
                values
                    .split(' ')
                    .nth(place)
                    .expect("a value")
                    .parse()
                    .expect("a number")
            }
            IpFamily::V6 => {
                let text = read("snmp6").expect("entered").expect("readable");
                let value = text
                    .lines()
                    .find_map(|line| line.strip_prefix("Ip6FragCreates"))
                    .expect("counted");
                value.trim().parse().expect("a number")
            }
        }
    }
}

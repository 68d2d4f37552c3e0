//! What is sent in another's name does not arrive: by pods, through the tunnel, and to the tunnel.

pub use privileged::{address, bind, dropped, nodes_address, thief_and_others, tunnelled};

mod privileged {
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::time::Duration;

    use model::IpFamily;
    use netlink::{Kernel, LinkChange};
    use tests::topology::Host;
    use tests::wait;

    use crate::dual_stack::{FAMILIES, nodes};
    use crate::harness::{Cluster, Node, Pod, SOON, await_talk_over};
    use crate::wire::{Packet, ethernet};

    /// How long something is waited for that does not come. What comes, comes within a millisecond.
    const SILENCE: Duration = Duration::from_millis(300);

    pub fn bind(host: &Host, address: IpAddr, port: u16) -> UdpSocket {
        let socket = host
            .run(|| UdpSocket::bind((address, port)))
            .expect("entered")
            .expect("bound");
        socket.set_read_timeout(Some(SILENCE)).expect("settable");
        socket
    }

    /// Whether a datagram from that address of a host arrives.
    fn arrives(from: &Host, source: IpAddr, to: &Pod) -> bool {
        let destination = *to.addresses.get(IpFamily::from(source)).expect("dual stack");
        let server = bind(&to.host, destination, 7010);
        // Not allowed is an answer, too.
        let _ = bind(from, source, 0).send_to(b"spoofed", (destination, 7010));
        server.recv_from(&mut [0; 16]).is_ok()
    }

    pub fn address(pod: &Pod, family: IpFamily) -> IpAddr {
        *pod.addresses.get(family).expect("dual stack")
    }

    /// Two nodes; a pod of the first that forges, another one of it, and one of the second.
    #[track_caller]
    pub fn thief_and_others(cluster: &Cluster) -> (Vec<Node<'_>>, [Pod; 3]) {
        let nodes = nodes(cluster, "vxlan");
        for node in &nodes {
            node.await_others(1);
        }
        let pods =
            [(0, "thief"), (0, "near"), (1, "far")].map(|(number, id): (usize, _)| nodes[number].add_pod(id));
        (nodes, pods)
    }

    #[test]
    fn a_pod_sends_from_its_own_addresses_and_its_own_mac_address_alone() {
        let Some(cluster) = Cluster::new("spoof", 2) else {
            return;
        };
        let (nodes, [thief, near, far]) = thief_and_others(&cluster);
        for family in FAMILIES {
            await_talk_over(family, &thief, &near);
            await_talk_over(family, &thief, &far);
        }
        let outside: [IpAddr; 2] = ["192.0.2.7", "2001:db8::7"].map(|text| text.parse().expect("an address"));
        let node: [IpAddr; 2] = ["172.30.9.11", "fd77::11"].map(|text| text.parse().expect("an address"));
        for (number, family) in FAMILIES.into_iter().enumerate() {
            let others = [
                address(&near, family),
                address(&far, family),
                outside[number],
                node[number],
            ];
            for stolen in others {
                thief
                    .host
                    .add_address("eth0", stolen.into())
                    .expect("a pod may do so in itself");
                for to in [&near, &far] {
                    if address(to, family) != stolen {
                        assert!(!arrives(&thief.host, stolen, to), "{stolen} to {}", to.id);
                    }
                }
                let mut kernel = thief.host.netlink().expect("a socket");
                let added = kernel.addresses(None).expect("readable");
                let added = added
                    .iter()
                    .find(|found| found.network.ip() == stolen)
                    .expect("it is there");
                kernel.delete_address(added).expect("deleted");
            }
            assert!(arrives(&thief.host, address(&thief, family), &far), "its own");
        }

        let mut kernel = thief.host.netlink().expect("a socket");
        let link = kernel.link_named("eth0").expect("readable").expect("it is there");
        let neighbours = kernel.neighbours(Some(link.index)).expect("readable");
        let mut set_mac = |mac| {
            let change = LinkChange {
                mac: Some(mac),
                ..LinkChange::default()
            };
            kernel
                .change_link(link.index, &change)
                .expect("a pod may do so in itself");
            // The kernel forgets the neighbours of a device whose address changes, and with them the way out.
            for neighbour in neighbours.iter().filter(|neighbour| neighbour.permanent) {
                kernel
                    .replace_neighbour(neighbour)
                    .expect("a pod may do so in itself");
            }
        };
        for (mac, wanted) in [
            ([2, 0, 0, 0, 0, 0x66], false),
            (link.mac.expect("Ethernet"), true),
        ] {
            set_mac(mac);
            for family in FAMILIES {
                let came = arrives(&thief.host, address(&thief, family), &far);
                assert_eq!(came, wanted, "{family:?} {mac:x?}");
            }
        }
        assert!(dropped(&nodes[0]) > 10);
    }

    /// How many packets the guard of the node counted.
    pub fn dropped(node: &Node<'_>) -> u64 {
        let list = |family| {
            let arguments = ["list", "table", family, "causeway-guard"];
            node.host.command("nft", &arguments).expect("nft runs").stdout
        };
        let text = list("ip") + &list("ip6");
        let counts = text.split("counter packets ").skip(1);
        counts
            .map(|rest| {
                rest.split(' ')
                    .next()
                    .expect("a number")
                    .parse::<u64>()
                    .expect("a number")
            })
            .sum()
    }

    #[test]
    fn nothing_that_a_new_pod_sends_is_dropped() {
        let Some(cluster) = Cluster::new("fresh", 1) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        nodes[0].await_others(0);
        let server = nodes[0].add_pod("server");
        for number in 0..20 {
            let pod = nodes[0].add_pod(&format!("f{number}"));
            for family in FAMILIES {
                // Devices take a moment to carry anything.
                wait::until("it arrives", SOON, || {
                    arrives(&pod.host, address(&pod, family), &server)
                        .then_some(())
                        .ok_or("nothing came")
                });
            }
        }
        assert_eq!(dropped(&nodes[0]), 0);
    }

    #[test]
    fn no_pod_reaches_a_tunnels_port() {
        let Some(cluster) = Cluster::new("port", 2) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        for node in &nodes {
            node.await_others(1);
        }
        let pod = nodes[0].add_pod("a");
        for (from, outside) in [("0.0.0.0", "172.30.9.1"), ("::", "fd77::1")] {
            let outside: IpAddr = outside.parse().expect("an address");
            let client = bind(&pod.host, from.parse().expect("an address"), 0);
            let arrives = |port| {
                let server = bind(&cluster.lan.switch, outside, port);
                client.send_to(b"hello", (outside, port)).expect("sent");
                server.recv_from(&mut [0; 16]).map(drop)
            };
            // Devices take a moment to carry anything.
            wait::until("another port is reached", SOON, || arrives(8471));
            assert!(arrives(8472).is_err(), "{outside}");
        }
        // Its own node and the other one, which take what comes there for a packet of the pod network.
        let victim = nodes[1].add_pod("v");
        for (to, family) in [
            ("172.30.9.11", IpFamily::V4),
            ("172.30.9.12", IpFamily::V4),
            ("fd77::11", IpFamily::V6),
            ("fd77::12", IpFamily::V6),
        ] {
            let to: IpAddr = to.parse().expect("an address");
            let node = if to == nodes_address(0, family) {
                &nodes[0]
            } else {
                &nodes[1]
            };
            let forged = datagram(node, address(&pod, family), address(&victim, family));
            let server = bind(&victim.host, address(&victim, family), 7011);
            let client = bind(&pod.host, address(&pod, family), 0);
            client.send_to(&forged, (to, 8472)).expect("sent");
            assert!(server.recv_from(&mut [0; 16]).is_err(), "by {to}");
        }
    }

    pub fn nodes_address(number: u8, family: IpFamily) -> IpAddr {
        let text = match family {
            IpFamily::V4 => format!("172.30.9.1{}", number + 1),
            IpFamily::V6 => format!("fd77::1{}", number + 1),
        };
        text.parse().expect("an address")
    }

    #[test]
    fn what_comes_through_the_tunnel_is_from_the_node_that_has_its_source() {
        let Some(cluster) = Cluster::new("inner", 3) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        for node in &nodes {
            node.await_others(2);
        }
        let (victim, friend, other) = (
            nodes[0].add_pod("victim"),
            nodes[1].add_pod("friend"),
            nodes[2].add_pod("other"),
        );
        for family in FAMILIES {
            await_talk_over(family, &friend, &victim);
            await_talk_over(family, &other, &victim);
            let to = SocketAddr::new(nodes_address(0, family), 8472);
            let server = bind(&victim.host, address(&victim, family), 7011);
            let world: IpAddr = match family {
                IpFamily::V4 => "192.0.2.7",
                IpFamily::V6 => "2001:db8::7",
            }
            .parse()
            .expect("an address");
            let arrives = |from: &Host, source: IpAddr| {
                let packet = datagram(&nodes[0], source, address(&victim, family));
                let client = bind(from, nodes_address_of(from, &cluster, family), 0);
                client.send_to(&packet, to).expect("sent");
                server.recv_from(&mut [0; 16]).is_ok()
            };
            let (second, third) = (cluster.host(1), cluster.host(2));
            let rows = [
                (second, address(&friend, family), true, "its own pod"),
                (second, nodes_address(1, family), true, "itself"),
                (second, address(&other, family), false, "another node's pod"),
                (second, nodes_address(2, family), false, "another node"),
                (third, address(&friend, family), false, "another node's pod"),
                (second, address(&victim, family), false, "the victim"),
                (second, world, false, "the world"),
                (&cluster.lan.switch, address(&friend, family), false, "a stranger"),
            ];
            for (from, source, wanted, what) in rows {
                assert_eq!(arrives(from, source), wanted, "{family:?} {what}: {source}");
            }
            // Connections, which pass by the rules: each is followed by one that arrives.
            let requests = Requests::count(&victim.host);
            let send = |from: &Host, source: IpAddr| {
                let packet = request(&nodes[0], source, address(&victim, family));
                let client = bind(from, nodes_address_of(from, &cluster, family), 0);
                client.send_to(&packet, to).expect("sent");
            };
            for (from, source, wanted, what) in rows {
                let before = requests.seen();
                send(from, source);
                send(second, address(&friend, family));
                let expected = before + 1 + u64::from(wanted);
                wait::until_value(
                    &format!("{family:?} {what}: {source}"),
                    SOON,
                    || requests.seen(),
                    |seen| *seen == expected,
                );
            }
            await_talk_over(family, &victim, &other);
        }
        // A node that leaves is a stranger from then on.
        let lease = nodes[1].status.borrow().lease.clone().expect("a lease");
        drop(nodes);
        let nodes = [cluster.node(0)];
        let subnet = lease.subnets().v4.expect("IPv4").network().to_string();
        let keys = cluster.etcdctl(&["get", "--prefix", "--keys-only", "/coreos.com/network/subnets"]);
        let key = keys.lines().find(|key| key.contains(&subnet)).expect("its key");
        cluster.etcdctl(&["del", key]);
        nodes[0].await_others(1);
        let server = bind(&victim.host, address(&victim, IpFamily::V4), 7011);
        let to = SocketAddr::new(nodes_address(0, IpFamily::V4), 8472);
        let packet = datagram(
            &nodes[0],
            address(&friend, IpFamily::V4),
            address(&victim, IpFamily::V4),
        );
        wait::until("nothing arrives", SOON, || {
            let client = bind(cluster.host(1), nodes_address(1, IpFamily::V4), 0);
            client.send_to(&packet, to).expect("sent");
            match server.recv_from(&mut [0; 16]) {
                Ok(_) => Err("it arrived"),
                Err(_) => Ok(()),
            }
        });
    }

    fn nodes_address_of(host: &Host, cluster: &Cluster, family: IpFamily) -> IpAddr {
        let number = (0..3).find(|number| std::ptr::eq(cluster.host(usize::from(*number)), host));
        match (number, family) {
            (Some(number), family) => nodes_address(number, family),
            (None, IpFamily::V4) => "172.30.9.1".parse().expect("an address"),
            (None, IpFamily::V6) => "fd77::1".parse().expect("an address"),
        }
    }

    /// SYNs that reach a pod at port 7013, counted and not answered.
    struct Requests<'h>(&'h Host);

    impl<'h> Requests<'h> {
        fn count(host: &'h Host) -> Self {
            for rule in [
                "add table inet cwt",
                "flush table inet cwt",
                "add counter inet cwt requests",
                "add chain inet cwt input { type filter hook input priority 0; }",
                "add rule inet cwt input tcp dport 7013 counter name requests drop",
            ] {
                let output = host.command("nft", &[rule]).expect("nft runs");
                assert!(output.status.success(), "{rule}: {output:?}");
            }
            Self(host)
        }

        fn seen(&self) -> u64 {
            let output = self
                .0
                .command("nft", &["list", "counter", "inet", "cwt", "requests"]);
            let listed = output.expect("nft runs").stdout;
            let mut words = listed.split_whitespace().skip_while(|word| *word != "packets");
            words
                .nth(1)
                .and_then(|count| count.parse().ok())
                .expect("a number")
        }
    }

    /// A datagram to port 7011 in a packet for a node's tunnel.
    fn datagram(node: &Node<'_>, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        tunnelled(node, &Packet::udp(source, destination, 7011, b"forged"))
    }

    /// A SYN to port 7013 in a packet for a node's tunnel.
    fn request(node: &Node<'_>, source: IpAddr, destination: IpAddr) -> Vec<u8> {
        tunnelled(node, &Packet::syn(source, destination, 7013, &[]))
    }

    /// VXLAN and Ethernet headers around a packet.
    pub fn tunnelled(node: &Node<'_>, packet: &Packet) -> Vec<u8> {
        let device = match packet.destination {
            IpAddr::V4(_) => "flannel.1",
            IpAddr::V6(_) => "flannel-v6.1",
        };
        let mac = node.device(device).expect("it is there").mac.expect("Ethernet");
        let frame = ethernet(mac, [2, 0, 0, 0, 0, 0x55], packet.ethertype(), &packet.bytes());
        [&[8, 0, 0, 0, 0, 0, 1, 0], &frame[..]].concat()
    }
}

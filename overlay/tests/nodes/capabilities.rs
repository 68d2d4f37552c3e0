//! What a runtime asks for by CNI's capabilities: ports of the node, addresses, a MAC address, a
//! bandwidth.

mod privileged {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::time::{Duration, Instant};

    use model::IpFamily;
    use netlink::Kernel;
    use overlay::pods::AttachmentKey;
    use overlay::pods::wiring::ifname_by_key;
    use serde_json::json;
    use tests::topology::Host;
    use tests::wait;

    use crate::dual_stack::{FAMILIES, nodes};
    use crate::fast_path::await_on;
    use crate::harness::{Cluster, Pod, SOON};

    const SILENCE: Duration = Duration::from_millis(300);

    /// Answers every connection and every datagram with the address of its client.
    fn serve(pod: &Pod, port: u16) {
        for address in pod.addresses.values() {
            let listener = pod.host.run(|| TcpListener::bind((*address, port)));
            let listener = listener.expect("entered").expect("bound");
            std::thread::spawn(move || {
                while let Ok((mut stream, peer)) = listener.accept() {
                    let _ = stream.write_all(peer.ip().to_string().as_bytes());
                }
            });
            let socket = pod.host.run(|| UdpSocket::bind((*address, port)));
            let socket = socket.expect("entered").expect("bound");
            std::thread::spawn(move || {
                while let Ok((_, peer)) = socket.recv_from(&mut [0; 16]) {
                    let _ = socket.send_to(peer.ip().to_string().as_bytes(), peer);
                }
            });
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum How {
        Tcp,
        Udp,
    }

    /// The client's address as the server sees it.
    fn ask(how: How, from: &Host, server: SocketAddr) -> std::io::Result<IpAddr> {
        let text = match how {
            How::Tcp => {
                let stream = from.run(|| TcpStream::connect_timeout(&server, SILENCE));
                let mut stream = stream.expect("entered")?;
                stream.set_read_timeout(Some(SILENCE))?;
                let mut text = String::new();
                stream.read_to_string(&mut text)?;
                text
            }
            How::Udp => {
                let everywhere = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                let socket = from.run(|| UdpSocket::bind(everywhere)).expect("entered")?;
                socket.set_read_timeout(Some(SILENCE))?;
                socket.send_to(b"who", server)?;
                let mut buffer = [0; 64];
                let (len, _) = socket.recv_from(&mut buffer)?;
                String::from_utf8_lossy(&buffer[..len]).into_owned()
            }
        };
        text.parse().map_err(std::io::Error::other)
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn host_ports_lead_to_the_pod_from_everywhere_and_take_nothing_else() {
        let Some(cluster) = Cluster::new("ports", 2) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        for node in &nodes {
            node.await_others(1);
        }
        let runtime_config = json!({"portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 8080, "containerPort": 80, "protocol": "UDP"},
            {"hostPort": 8081, "containerPort": 80, "hostIP": "172.30.9.11"},
            {"hostPort": 8082, "containerPort": 80, "hostIP": "172.30.9.12"},
            {"hostPort": 8085, "containerPort": 80, "hostIP": "172.30.9.1"},
        ]});
        let server = nodes[0].add_pod_with("server", &runtime_config);
        serve(&server, 80);
        let (near, far) = (nodes[0].add_pod("near"), nodes[1].add_pod("far"));
        let outside = &cluster.lan.switch;
        let node = [address("172.30.9.11"), address("fd77::11")];
        let loopback = SocketAddr::new(address("127.0.0.1"), 8080);
        for how in [How::Tcp, How::Udp] {
            for (target, family) in node.into_iter().zip(FAMILIES) {
                let target = SocketAddr::new(target, 8080);
                let own = |pod: &Pod| *pod.addresses.get(family).expect("dual stack");
                let seen = |what: &str, from: &Host| wait::until(what, SOON, || ask(how, from, target));
                let from_outside = match family {
                    IpFamily::V4 => address("172.30.9.1"),
                    IpFamily::V6 => address("fd77::1"),
                };
                assert_eq!(
                    seen("from outside", outside),
                    from_outside,
                    "{how:?}: the client's address stays"
                );
                assert_eq!(seen("from a pod of the node", &near.host), own(&near), "{how:?}");
                seen("from a pod of another node", &far.host);
                seen("from another node", cluster.host(1));
                seen("from the node itself", cluster.host(0));
                assert_ne!(
                    seen("from itself", &server.host),
                    own(&server),
                    "{how:?}: else there is no answer"
                );
            }
            let on_loopback = || ask(how, cluster.host(0), loopback);
            wait::until("by the loopback address", SOON, on_loopback);
        }
        let at = |port| SocketAddr::new(address("172.30.9.11"), port);
        assert!(
            ask(How::Tcp, outside, at(8081)).is_ok(),
            "the address that was named"
        );
        assert!(
            ask(How::Tcp, outside, at(8082)).is_err(),
            "another than the one that was named"
        );
        assert!(ask(How::Udp, outside, at(8081)).is_err(), "another protocol");

        // The same port of others is theirs (CVE-2025-67499).
        let theirs = outside
            .run(|| TcpListener::bind("172.30.9.1:8080"))
            .expect("entered")
            .expect("bound");
        let stream = near
            .host
            .run(|| TcpStream::connect_timeout(&SocketAddr::new(address("172.30.9.1"), 8080), SOON));
        assert!(stream.expect("entered").is_ok());
        assert!(theirs.accept().is_ok());

        // An address that is not this node's stays who it is, whatever a pod asks for.
        let theirs = outside
            .run(|| TcpListener::bind("172.30.9.1:8085"))
            .expect("entered")
            .expect("bound");
        for from in [&near.host, cluster.host(0)] {
            let target = SocketAddr::new(address("172.30.9.1"), 8085);
            let stream = from.run(|| TcpStream::connect_timeout(&target, SOON));
            assert!(stream.expect("entered").is_ok());
            assert!(theirs.accept().is_ok());
        }

        the_nodes_loopback_is_closed(&cluster, &near);

        let gone = nodes[0]
            .host
            .command("nft", &["delete", "table", "ip", "causeway-hostports"])
            .expect("nft runs");
        assert!(gone.status.success(), "{gone:?}");
        wait::until("the table is back", SOON, || ask(How::Tcp, outside, at(8080)));

        // A flow that began before its port was there goes to it as soon as it is.
        let begun = outside
            .run(|| UdpSocket::bind("172.30.9.1:0"))
            .expect("entered")
            .expect("bound");
        begun.set_read_timeout(Some(SILENCE)).expect("settable");
        begun.send_to(b"who", at(8083)).expect("sent");
        let late = nodes[0].add_pod_with(
            "late",
            &json!({"portMappings": [{"hostPort": 8083, "containerPort": 80, "protocol": "udp"}]}),
        );
        serve(&late, 80);
        wait::until("the flow arrives", SOON, || {
            begun.send_to(b"who", at(8083))?;
            begun.recv_from(&mut [0; 64])
        });

        for (pod, port) in [(&server, 8080), (&late, 8083)] {
            assert!(nodes[0].cni("DEL", &pod.id, &pod.host.path()).success);
            wait::until("the port is closed", SOON, || {
                let open =
                    ask(How::Udp, outside, at(port)).is_ok() || ask(How::Tcp, outside, at(port)).is_ok();
                (!open).then_some(()).ok_or("it answers")
            });
        }
        let left = nodes[0]
            .host
            .command("nft", &["list", "tables"])
            .expect("nft runs");
        assert!(!left.stdout.contains("causeway-hostports"), "{}", left.stdout);
    }

    #[test]
    fn datagrams_of_the_only_host_port_follow_it_from_pod_to_pod() {
        let Some(cluster) = Cluster::new("only", 1) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        nodes[0].await_others(0);
        let wish = json!({"portMappings": [{"hostPort": 8125, "containerPort": 80, "protocol": "udp"}]});
        let outside = &cluster.lan.switch;
        let clients = [
            ("172.30.9.1:0", "172.30.9.11:8125"),
            ("[fd77::1]:0", "[fd77::11]:8125"),
        ]
        .map(|(from, to)| {
            let socket = outside
                .run(|| UdpSocket::bind(from))
                .expect("entered")
                .expect("bound");
            socket.set_read_timeout(Some(SILENCE)).expect("settable");
            (socket, to)
        });
        let ask = |what: &str| {
            for (socket, to) in &clients {
                wait::until(what, SOON, || {
                    socket.send_to(b"who", to)?;
                    socket.recv_from(&mut [0; 64])
                });
            }
        };
        // From before there is any pod on, each by one flow that never pauses for long.
        for (socket, to) in &clients {
            socket.send_to(b"who", to).expect("sent");
        }
        for name in ["first", "second"] {
            let pod = nodes[0].add_pod_with(name, &wish);
            serve(&pod, 80);
            ask(name);
            let other = Host::new("contested").expect("a namespace");
            let answer = nodes[0].cni_with("ADD", "contested", &other.path(), &wish);
            assert!(
                answer.notice.contains("host port 8125/UDP is container"),
                "{answer:?}"
            );
            assert!(nodes[0].cni("DEL", &pod.id, &pod.host.path()).success);
        }
    }

    /// That the loopback address leads to pods opens it to none (CVE-2020-8558).
    fn the_nodes_loopback_is_closed(cluster: &Cluster, pod: &Pod) {
        let server = cluster
            .host(0)
            .run(|| UdpSocket::bind("127.0.0.1:8084"))
            .expect("entered")
            .expect("bound");
        server.set_read_timeout(Some(SILENCE)).expect("settable");
        let device = pod
            .host
            .run(|| std::fs::read_to_string("/proc/thread-self/net/route"));
        assert!(device.expect("entered").is_ok());
        // What the node does for this pod's device as for that of a pod with host ports.
        let settings = cluster.host(0).command(
            "sh",
            &[
                "-c",
                "for f in /proc/sys/net/ipv4/conf/cw*/route_localnet; do echo 1 > $f; done",
            ],
        );
        assert!(settings.expect("sh runs").status.success());
        pod.host
            .set("net/ipv4/conf/all/route_localnet", "1")
            .expect("a pod may do so in itself");
        for arguments in [
            "route del local 127.0.0.0/8 dev lo table local",
            "route del local 127.0.0.1 dev lo table local",
            "route add 127.0.0.1 via 169.254.1.1 dev eth0",
        ] {
            let arguments: Vec<&str> = arguments.split(' ').collect();
            let output = pod.host.command("ip", &arguments).expect("ip runs");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        }
        let client = pod
            .host
            .run(|| UdpSocket::bind((pod.address, 0)))
            .expect("entered")
            .expect("bound");
        client.send_to(b"hello", "127.0.0.1:8084").expect("sent");
        assert!(
            server.recv_from(&mut [0; 16]).is_err(),
            "a pod reached the node's loopback address"
        );
    }

    #[test]
    fn addresses_and_a_mac_address_that_are_asked_for_are_given_or_refused_with_the_reason() {
        let Some(cluster) = Cluster::new("wishes", 1) else {
            return;
        };
        let nodes = nodes(&cluster, "vxlan");
        let lease = nodes[0].await_others(0).lease.expect("a lease");
        let nth = |family, n: u128| -> IpAddr {
            match lease.subnets().get(family).expect("dual stack").network() {
                IpAddr::V4(first) => IpAddr::V4((u32::from(first) + u32::try_from(n).expect("small")).into()),
                IpAddr::V6(first) => IpAddr::V6((u128::from(first) + n).into()),
            }
        };
        let [v4, v6] = FAMILIES.map(|family| nth(family, 77));
        let wish = json!({"ips": [format!("{v4}/24"), v6.to_string()], "mac": "02:00:00:00:00:77"});
        let pod = nodes[0].add_pod_with("a", &wish);
        assert_eq!((pod.addresses.v4, pod.addresses.v6), (Some(v4), Some(v6)));
        let link = pod
            .host
            .netlink()
            .expect("a socket")
            .link_named("eth0")
            .expect("readable");
        assert_eq!(link.expect("it is there").mac, Some([2, 0, 0, 0, 0, 0x77]));
        crate::harness::await_talk(&pod, &nodes[0].add_pod("b"));

        let other = Host::new("refused").expect("a namespace");
        for (wish, told) in [
            (
                json!({"ips": [v4.to_string()]}),
                format!("address {v4} is in use"),
            ),
            (
                json!({"ips": ["10.9.9.9"]}),
                "address 10.9.9.9 cannot be given here".to_owned(),
            ),
            (
                json!({"ips": [nth(IpFamily::V4, 1)]}),
                "cannot be given here".to_owned(),
            ),
            (
                json!({"ips": ["nonsense"]}),
                "runtimeConfig.ips: \"nonsense\" is not an address".to_owned(),
            ),
            (
                json!({"ips": [nth(IpFamily::V4, 5), nth(IpFamily::V4, 6)]}),
                "one address of each version".to_owned(),
            ),
            (
                json!({"mac": "01:00:5e:00:00:01"}),
                "is not a device's MAC address".to_owned(),
            ),
            (
                json!({"portMappings": [{"hostPort": 0, "containerPort": 80}]}),
                "runtimeConfig.portMappings.hostPort: 0 is not a port".to_owned(),
            ),
            (
                json!({"portMappings": [{"hostPort": 1, "containerPort": 65536}]}),
                "runtimeConfig.portMappings.containerPort: 65536 is not a port".to_owned(),
            ),
            (
                json!({"portMappings": [{"hostPort": 1, "containerPort": 1, "protocol": "icmp"}]}),
                "\"icmp\" is not tcp, udp or sctp".to_owned(),
            ),
        ] {
            let answer = nodes[0].cni_with("ADD", "refused", &other.path(), &wish);
            assert!(
                !answer.success && answer.notice.contains(&told),
                "{wish}: {answer:?}"
            );
            let link = other
                .netlink()
                .expect("a socket")
                .link_named("eth0")
                .expect("readable");
            assert!(link.is_none(), "{wish}: nothing is left");
        }
        // What the plugin is not for is not its business.
        let answer = nodes[0].cni_with(
            "ADD",
            "refused",
            &other.path(),
            &json!({"dns": {}, "bandwidth": {}}),
        );
        assert!(answer.success, "{answer:?}");
    }

    const RATE_BITS: u32 = 20_000_000;
    const BURST_BITS: u32 = 800_000;

    /// Sends 2.5 MB by TCP; how fast they come, as a part of [`RATE_BITS`], without what may come at once.
    #[track_caller]
    fn rate(from: &Pod, to: &Pod, family: IpFamily) -> f64 {
        let address = *to.addresses.get(family).expect("dual stack");
        let listener = to.host.run(|| TcpListener::bind((address, 0)));
        let listener = listener.expect("entered").expect("bound");
        let server = listener.local_addr().expect("bound");
        let sent = vec![0_u8; 2_500_000];
        std::thread::scope(|scope| {
            let receiving = scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("a connection");
                stream.set_read_timeout(Some(SOON)).expect("settable");
                std::io::copy(&mut stream, &mut std::io::sink()).expect("all of it")
            });
            let began = Instant::now();
            let stream = from.host.run(|| TcpStream::connect_timeout(&server, SOON));
            let mut stream = stream.expect("entered").expect("connected");
            stream.set_write_timeout(Some(SOON)).expect("settable");
            stream.write_all(&sent).expect("sent");
            drop(stream);
            let received = receiving.join().expect("no panic");
            let bits = u32::try_from(8 * received).expect("small") - BURST_BITS;
            f64::from(bits) / began.elapsed().as_secs_f64() / f64::from(RATE_BITS)
        })
    }

    /// Nothing comes faster than it may: what passed the bucket is at most what it held and what it got meanwhile. That
    /// it is not far slower is for the machine to keep, too.
    #[track_caller]
    fn assert_limited(from: &Pod, to: &Pod) {
        for family in FAMILIES {
            let rate = rate(from, to, family);
            eprintln!("{} to {} by {family}: {rate:.3} of the limit", from.id, to.id);
            assert!(
                (0.5..=1.01).contains(&rate),
                "{} to {} by {family}: {rate}",
                from.id,
                to.id
            );
        }
    }

    #[track_caller]
    fn assert_unlimited(from: &Pod, to: &Pod) {
        for family in FAMILIES {
            let rate = rate(from, to, family);
            eprintln!("{} to {} by {family}: {rate:.3} of the limit", from.id, to.id);
            assert!(rate > 3.0, "{} to {} by {family}: {rate}", from.id, to.id);
        }
    }

    /// The devices of a host that have a token bucket, by `tc`.
    fn limited_devices(host: &Host) -> Vec<String> {
        let output = host.command("tc", &["qdisc", "show"]).expect("tc runs");
        assert!(output.status.success(), "{output:?}");
        let lines = output.stdout.lines().filter(|line| line.contains("qdisc tbf"));
        let device = |line: &str| {
            line.split_whitespace()
                .skip_while(|word| *word != "dev")
                .nth(1)
                .map(str::to_owned)
        };
        lines.filter_map(device).collect()
    }

    #[test]
    fn a_bandwidth_bounds_what_comes_to_a_pod_and_what_leaves_it_from_everywhere_and_over_restarts() {
        let Some(cluster) = Cluster::new("bandwidth", 2) else {
            return;
        };
        let mut nodes = nodes(&cluster, "vxlan");
        for node in &nodes {
            node.await_others(1);
        }
        let wish = |directions: &[&str]| {
            let pairs = directions.iter().flat_map(|direction| {
                [
                    (format!("{direction}Rate"), json!(RATE_BITS)),
                    (format!("{direction}Burst"), json!(BURST_BITS)),
                ]
            });
            json!({"bandwidth": pairs.collect::<serde_json::Map<_, _>>()})
        };
        let into = nodes[0].add_pod_with("into", &wish(&["ingress"]));
        let out_of = nodes[0].add_pod_with("outof", &wish(&["egress"]));
        let both_wish = wish(&["ingress", "egress"]);
        let both = nodes[0].add_pod_with("both", &both_wish);
        let (near, far) = (nodes[0].add_pod("near"), nodes[1].add_pod("far"));
        await_on(&cluster, &nodes, &[4, 1]);
        for other in [&near, &far] {
            crate::harness::await_talk(other, &into);
            assert_limited(other, &into);
            assert_unlimited(&into, other);
            crate::harness::await_talk(other, &out_of);
            assert_unlimited(other, &out_of);
            assert_limited(&out_of, other);
        }
        assert_limited(&near, &both);
        assert_limited(&both, &far);

        // An agent that comes back still knows.
        let again = nodes.remove(0);
        again.stop();
        nodes.insert(0, cluster.node(0));
        nodes[0].await_others(1);
        let added = nodes[0].add_pod("added");
        await_on(&cluster, &nodes, &[5, 1]);
        crate::harness::await_talk(&added, &into);
        assert_limited(&added, &into);
        assert_limited(&far, &into);
        assert_unlimited(&added, &near);

        let own = |verb| nodes[0].cni_with(verb, &both.id, &both.host.path(), &both_wish);
        assert!(own("CHECK").success);
        let refused = own("ADD");
        assert!(
            refused.notice.contains("exists in the pod already"),
            "{refused:?}"
        );
        let [device, other] = [&both, &into].map(|pod| {
            ifname_by_key(&AttachmentKey {
                container_id: pod.id.clone(),
                ifname: "eth0".to_owned(),
            })
        });
        let devices: BTreeSet<String> = limited_devices(nodes[0].host).into_iter().collect();
        assert_eq!(devices, BTreeSet::from([device.clone(), other]));
        assert_eq!(limited_devices(&both.host), ["eth0"]);
        assert_eq!(limited_devices(&out_of.host), ["eth0"]);
        assert_eq!(limited_devices(&into.host), Vec::<String>::new());
        for (host, device) in [(nodes[0].host, device.as_str()), (&both.host, "eth0")] {
            let changes = [
                (vec!["delete", "dev", device, "root"], "is missing"),
                (
                    vec![
                        "replace", "dev", device, "root", "tbf", "rate", "1gbit", "burst", "100k", "latency",
                        "25ms",
                    ],
                    "has rate 125000000 bytes/s in place of 2500000",
                ),
            ];
            for (change, told) in changes {
                let output = host
                    .command("tc", &[vec!["qdisc"], change].concat())
                    .expect("tc runs");
                assert!(output.status.success(), "{output:?}");
                let answer = own("CHECK");
                let told = format!("qdisc tbf of device {device} {told}");
                assert!(
                    answer.output.contains("\"code\":101") && answer.output.contains(&told),
                    "{told}: {answer:?}"
                );
                // What an interrupted ADD left is finished by the next.
                assert!(own("ADD").success);
                assert!(own("CHECK").success);
            }
        }

        for pod in [&into, &out_of, &both] {
            assert!(nodes[0].cni("DEL", &pod.id, &pod.host.path()).success);
        }
        for host in [nodes[0].host, &into.host, &out_of.host, &both.host] {
            assert_eq!(limited_devices(host), Vec::<String>::new());
        }
        // The same interface without the wish.
        let answer = nodes[0].cni("ADD", &both.id, &both.host.path());
        assert!(answer.success, "{answer:?}");
        assert_eq!(limited_devices(nodes[0].host), Vec::<String>::new());
        assert_eq!(limited_devices(&both.host), Vec::<String>::new());
    }
}

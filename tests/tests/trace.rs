//! `causeway trace` on a machine: what it prints and with what exit code, from packets between namespaces.

mod loaded;

mod privileged {
    use std::collections::BTreeSet;
    use std::io::{Read, Write};
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::thread::JoinHandle;
    use std::time::Duration;

    use serde_json::{Value, json};
    use tests::attached::attached_by;
    use tests::directory::Directory;
    use tests::topology::{Host, pod};
    use tests::traced::{Following, trace, trace_in, trace_while, way_out};
    use tests::wait;

    use super::loaded::loaded;

    const SOON: Duration = Duration::from_secs(20);

    /// A client's and a server's pod on a node. Each test has addresses of its own: all of the machine is followed.
    struct World {
        node: Host,
        client: Host,
        server: Host,
        from: Ipv4Addr,
        to: Ipv4Addr,
    }

    impl World {
        fn new(label: &str, number: u8) -> Self {
            let (from, to) = (
                Ipv4Addr::new(10, 211, number, 5),
                Ipv4Addr::new(10, 212, number, 5),
            );
            let node = Host::new(label).expect("a node");
            node.set("net/ipv4/ip_forward", "1").expect("forwarding");
            let client = pod(&node, "client", from).expect("a pod");
            let server = pod(&node, "server", to).expect("a pod");
            Self {
                node,
                client,
                server,
                from,
                to,
            }
        }
    }

    impl World {
        /// Addresses of IPv6 for both pods, and ways between them.
        fn with_ipv6(&self, number: u16) -> (Ipv6Addr, Ipv6Addr) {
            let of = |network, last| Ipv6Addr::new(0xfd00, network, number, 0, 0, 0, 0, last);
            self.node
                .set("net/ipv6/conf/all/forwarding", "1")
                .expect("forwarding");
            for (host, label, network) in [(&self.client, "client", 0x211), (&self.server, "server", 0x212)] {
                let network_of = |last| format!("{}/64", of(network, last)).parse().expect("a network");
                self.node.add_address(label, network_of(1)).expect("an address");
                host.add_address("eth0", network_of(5)).expect("an address");
                let gateway = of(network, 1).to_string();
                let added = host.command("ip", &["-6", "route", "add", "default", "via", &gateway]);
                assert!(added.expect("run").status.success());
            }
            (of(0x211, 5), of(0x212, 5))
        }
    }

    /// Answers datagrams with what they carry, until it is sent an empty one.
    fn echo(host: &Host, to: impl Into<IpAddr>, port: u16) -> JoinHandle<()> {
        let at = SocketAddr::new(to.into(), port);
        let socket = host.run(|| UdpSocket::bind(at)).expect("entered").expect("bound");
        std::thread::spawn(move || {
            let mut buffer = [0; 512];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).expect("received");
                if length == 0 {
                    return;
                }
                // Who asked may be gone.
                let _ = socket.send_to(&buffer[..length], from);
            }
        })
    }

    /// Ends an [`echo`].
    fn hush(host: &Host, to: impl Into<IpAddr>, port: u16, server: JoinHandle<()>) {
        let at = SocketAddr::new(to.into(), port);
        let any: IpAddr = if at.is_ipv4() {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let sent = host.run(|| UdpSocket::bind((any, 0))?.send_to(&[], at));
        sent.expect("entered").expect("sent");
        server.join().expect("served");
    }

    fn hops(packet: &Value) -> Vec<String> {
        let hops = packet["hops"].as_array().expect("hops").iter();
        let text = |hop: &Value, key: &str| hop[key].as_str().expect("text").to_owned();
        let line = |hop: &Value| [text(hop, "at"), text(hop, "device"), text(hop, "kind")].join(" ");
        hops.map(line).collect()
    }

    /// What a machine tells of a story of several: here one that has the node's namespace alone.
    #[test]
    fn a_machines_part_is_told_as_it_comes_and_of_its_own_namespaces() {
        if !tests::privileged("causeway trace tells each hop as it is seen") {
            return;
        }
        let world = World::new("part", 17);
        let _listener = world
            .server
            .run(|| TcpListener::bind((world.to, 8080)))
            .expect("entered")
            .expect("bound");
        // Of a node that has no agent running, whatever clusters are on this machine.
        let directory = Directory::new("part");
        let config = json!({
            "nodeName": "node-1",
            "kubernetes": {"kubeconfig": "/nowhere"},
            "proxy": {"datapath": "none"},
            "stateDir": directory.path(),
        });
        let config = directory.write("node.yaml", &config.to_string());
        let config = format!("--config={}", config.display());
        let ends = format!("{} -> {}:8080/tcp", world.from, world.to);
        let told = |more: &[&str]| {
            let words = [&*ends, "--inject", "-o", "ndjson", &config];
            let output = trace_in(&world.node, &[&words, more].concat());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            let lines = output.stdout.lines().map(serde_json::from_str);
            lines.collect::<Result<Vec<Value>, _>>().expect("lines of JSON")
        };
        let places = |lines: &[Value]| -> BTreeSet<String> {
            let hops = lines.iter().filter_map(|line| line["hop"]["at"].as_str());
            hops.filter(|at| *at != "-").map(str::to_owned).collect()
        };
        let lines = told(&["--own-namespaces"]);
        let [first, hops @ .., last] = &lines[..] else {
            panic!("{lines:#?}")
        };
        let attached = &first["attached"];
        let port = attached["filter"]["sourcePort"].as_u64();
        assert!(port.is_some_and(|port| port > 1023), "{first:#}");
        assert_eq!(attached["kernel"].as_str().map(str::len), Some(36), "{first:#}");
        assert_eq!(
            attached["namespaces"].as_array().map(Vec::len),
            Some(1),
            "{first:#}"
        );
        assert!(hops.iter().all(|line| line["hop"].is_object()), "{lines:#?}");
        assert_eq!(places(hops), [world.node.name().to_owned()].into());
        assert_eq!(last["story"]["verdict"], "answered", "{last:#}");
        let all = [&world.node, &world.client, &world.server].map(|host| host.name().to_owned());
        assert_eq!(places(&told(&[])), all.into());
    }

    #[test]
    fn a_probe_is_followed_to_the_server_and_its_reply_back() {
        if !tests::privileged("causeway trace follows a probe") {
            return;
        }
        let world = World::new("traced", 1);
        let _listener = world
            .server
            .run(|| TcpListener::bind((world.to, 8080)))
            .expect("entered")
            .expect("bound");
        let ends = format!("{} -> {}:8080/tcp", world.from, world.to);
        let output = trace(&[&ends, "--inject", "-o", "json", "-v"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.starts_with("attached in "), "{output:?}");
        println!("{}", output.stderr);
        let story: Value = serde_json::from_str(&output.stdout).expect("JSON");
        assert_eq!(
            (&story["verdict"], &story["lostEvents"]),
            (&"answered".into(), &0.into())
        );
        let [node, client, server] = [&world.node, &world.client, &world.server].map(Host::name);
        let of = |is_reply: bool| {
            let packets = story["packets"].as_array().expect("packets");
            let packet = packets.iter().find(|packet| packet["isReply"] == is_reply);
            let mut hops = hops(packet.expect("a packet"));
            hops.retain(|hop| !hop.ends_with(" consumed"));
            hops
        };
        let there = [
            format!("{client} eth0 sent"),
            format!("{node} client received"),
            format!("{node} server sent"),
            format!("{server} eth0 received"),
        ];
        let back = [
            format!("{server} eth0 sent"),
            format!("{node} server received"),
            format!("{node} client sent"),
            format!("{client} eth0 received"),
        ];
        assert_eq!((of(false), of(true)), (there.to_vec(), back.to_vec()));
    }

    #[test]
    fn exit_codes_tell_answers_from_drops_and_from_nothing() {
        if !tests::privileged("causeway trace's exit codes") {
            return;
        }
        let world = World::new("told", 2);
        let _socket = world
            .server
            .run(|| UdpSocket::bind((world.to, 53)))
            .expect("entered")
            .expect("bound");
        for rule in [
            "add table ip guard",
            "add chain ip guard passing { type filter hook forward priority 0; }",
            "add rule ip guard passing udp dport 5353 drop",
        ] {
            let output = world.node.command("nft", &[rule]).expect("run");
            assert!(output.status.success(), "{output:?}");
        }
        let (client, server) = (world.from.to_string(), world.to.to_string());
        let rows = [
            (
                format!("{server}:5353/udp"),
                1,
                "DROPPED at",
                "NETFILTER_DROP in nft_do_chain",
            ),
            (
                format!("{server}:81/tcp"),
                1,
                "verdict: REFUSED",
                "nobody listens at this address and port",
            ),
            (
                format!("{server}:54/udp"),
                1,
                "NO_SOCKET in",
                "nobody listens at this UDP port",
            ),
        ];
        for (target, code, verdict, part) in rows {
            let output = trace(&[&client, &target, "--inject"]);
            assert_eq!(output.status.code(), Some(code), "{target}: {output:?}");
            assert!(
                output.stdout.contains(verdict) && output.stdout.contains(part),
                "{output:?}"
            );
            assert!(output.stdout.contains("\n0 events lost\n"), "{output:?}");
            // The diagnosis is last.
            let last = output.stdout.lines().last().unwrap_or_default();
            assert!(last.starts_with("look at: "), "{output:?}");
        }
        let quiet = trace(&["any", "10.211.9.9:1", "--timeout", "100ms"]);
        assert_eq!(quiet.status.code(), Some(2), "{quiet:?}");
        assert!(quiet.stdout.contains("verdict: NOTHING SEEN"), "{quiet:?}");
    }

    #[test]
    fn datagrams_over_ipv6_that_are_answered_are_told_so() {
        if !tests::privileged("causeway trace follows UDP over IPv6") {
            return;
        }
        let world = World::new("sixth", 3);
        let (from, to) = world.with_ipv6(3);
        let server = echo(&world.server, to, 7000);
        let (client, target) = (from.to_string(), format!("[{to}]:7000/udp"));
        // The same bytes there and back: only the direction tells the packets apart.
        let ask = || {
            world.client.run(|| {
                let socket = UdpSocket::bind((from, 0))?;
                socket.set_read_timeout(Some(Duration::from_millis(500)))?;
                socket.send_to(b"the same bytes", (to, 7000))?;
                socket.recv(&mut [0; 64])
            })
        };
        // Link-local addresses are probed for before anybody is asked for from them.
        wait::until("a way there", SOON, || ask().expect("entered"));
        for _ in 0..3 {
            let probed = trace(&[&client, &target, "--inject"]);
            println!("{}", probed.stdout);
            assert_eq!(probed.status.code(), Some(0), "{probed:?}");
            assert!(probed.stdout.starts_with("TRACE  "), "{probed:?}");
            assert!(probed.stdout.contains("/udp  verdict: ANSWERED"), "{probed:?}");
        }
        for _ in 0..3 {
            let live = trace_while(&[&client, &target, "-o", "json"], || {
                ask().expect("entered").expect("answered");
            });
            println!("{}", live.stdout);
            let story: Value = serde_json::from_str(&live.stdout).expect("JSON");
            assert_eq!(
                (&story["verdict"], live.status.code()),
                (&"answered".into(), Some(0))
            );
            let replies: Vec<bool> = story["packets"]
                .as_array()
                .expect("packets")
                .iter()
                .map(|packet| packet["isReply"] == true)
                .collect();
            assert_eq!(replies, [false, true]);
        }
        hush(&world.client, to, 7000, server);
    }

    #[test]
    fn a_probe_of_a_dns_server_is_a_question_which_it_answers() {
        if !tests::privileged("causeway trace asks a DNS server") {
            return;
        }
        let world = World::new("asked", 4);
        let socket = world.server.run(|| UdpSocket::bind((world.to, 53)));
        let socket = socket.expect("entered").expect("bound");
        let (heard, question) = channel();
        let server = std::thread::spawn(move || {
            let mut buffer = [0; 512];
            let (length, from) = socket.recv_from(&mut buffer).expect("a question");
            // A server answers questions alone (RFC 1035 §4.1.1: one of them, and no answer yet).
            if length > 12 && buffer[2] & 0x80 == 0 && buffer[4..6] == [0, 1] {
                buffer[2] |= 0x80;
                socket.send_to(&buffer[..length], from).expect("answered");
            }
            heard.send(buffer[..length].to_vec()).expect("listened to");
        });
        let output = trace(&[
            &world.from.to_string(),
            &format!("{}:53/udp", world.to),
            "--inject",
        ]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout.contains("verdict: ANSWERED"), "{output:?}");
        let question = question.recv_timeout(SOON).expect("a question");
        let name = b"\x0akubernetes\x07default\x03svc\x07cluster\x05local\0";
        assert!(
            question.windows(name.len()).any(|window| window == name),
            "{question:?}"
        );
        server.join().expect("served");
    }

    #[test]
    fn what_leaves_by_a_device_to_nowhere_is_not_told_as_delivered() {
        if !tests::privileged("causeway trace tells what left this machine") {
            return;
        }
        let world = World::new("leaving", 5);
        let _way_out = way_out(&world.node, "out", "10.214.5.0/24");
        let output = trace(&[&world.from.to_string(), "10.214.5.9:80/tcp", "--inject"]);
        println!("{}", output.stdout);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let place = format!("{} out", world.node.name());
        let verdict = format!("verdict: LEFT THIS MACHINE by {place}, no reply seen");
        assert!(output.stdout.contains(&verdict), "{output:?}");
        // The command runs as it stands.
        let looks = output
            .stdout
            .lines()
            .filter_map(|line| line.strip_prefix("look at: "));
        let looks: Vec<&str> = looks.collect();
        let node = world.node.name();
        let command = format!("ip netns exec {node} ip route get 10.214.5.9");
        assert_eq!(looks, [&*command, "what is behind that device"], "{output:?}");
        let run = Command::new("sh").args(["-c", &command]).output();
        let shown = String::from_utf8_lossy(&run.expect("run").stdout).into_owned();
        assert!(shown.contains("dev out"), "{shown}");
    }

    #[test]
    fn a_device_whose_peer_is_down_is_named() {
        if !tests::privileged("causeway trace names a device that is down") {
            return;
        }
        let world = World::new("down", 6);
        let output = world
            .server
            .command("ip", &["link", "set", "eth0", "down"])
            .expect("run");
        assert!(output.status.success(), "{output:?}");
        // Its address is known: nobody need be asked for it.
        let neighbour = format!(
            "neigh replace {} lladdr 02:00:00:00:00:02 dev server nud permanent",
            world.to
        );
        let output = world
            .node
            .command("ip", &neighbour.split(' ').collect::<Vec<_>>());
        assert!(output.expect("run").status.success());
        let output = trace(&[
            &world.from.to_string(),
            &format!("{}:80/tcp", world.to),
            "--inject",
        ]);
        println!("{}", output.stdout);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(
            output
                .stdout
                .contains("means:   the peer of device server is down\n"),
            "{output:?}"
        );
    }

    #[test]
    fn a_next_hop_that_nobody_answers_for_is_named_while_it_is_asked_for() {
        if !tests::privileged("causeway trace names a neighbour that does not answer") {
            return;
        }
        let world = World::new("unresolved", 10);
        // On its way, and where it begins.
        let rows = [
            (world.from.to_string(), "10.212.10.77", "verdict: NO REPLY"),
            (
                "10.212.10.1".to_owned(),
                "10.212.10.78",
                "a probe was sent, and no device had a packet of it",
            ),
        ];
        for (source, nobody, part) in rows {
            let means = format!("NEIGHBOUR unresolved: nobody has answered for {nobody} at device server");
            let target = format!("{nobody}:80/tcp");
            let output = trace(&[&source, &target, "--inject"]);
            println!("{}", output.stdout);
            assert_eq!(output.status.code(), Some(1), "{output:?}");
            assert!(
                output.stdout.contains(part) && output.stdout.contains(&means),
                "{output:?}"
            );
            assert!(!output.stdout.contains("nobody sent one"), "{output:?}");
        }
    }

    #[test]
    fn who_refuses_is_told_with_what_they_say() {
        if !tests::privileged("causeway trace tells who refuses") {
            return;
        }
        let world = World::new("refused", 11);
        for line in [
            "ip route add unreachable 10.215.11.0/24",
            "ip route add prohibit 10.216.11.0/24",
            "nft add table ip guard",
            "nft add chain ip guard passing { type filter hook forward priority 0; }",
            "nft add rule ip guard passing udp dport 5454 reject",
        ] {
            let words: Vec<&str> = line.split(' ').collect();
            let output = world.node.command(words[0], &words[1..]).expect("run");
            assert!(output.status.success(), "{output:?}");
        }
        for rule in [
            "add table ip own",
            "add chain ip own sending { type filter hook output priority 0; }",
            "add rule ip own sending udp dport 5555 drop",
        ] {
            let output = world.client.command("nft", &[rule]).expect("run");
            assert!(output.status.success(), "{output:?}");
        }
        let (gateway, node) = ("10.211.11.1", format!("{} client", world.node.name()));
        let server = world.to.to_string();
        let by_node = |what: &str| format!("REFUSED by {gateway} at {node}: icmp {what}");
        let by_server = |what: &str| format!("REFUSED by {server} at {} eth0: {what}", world.server.name());
        let rows = [
            (
                format!("{server}:5454/udp"),
                by_node("port unreachable"),
                "a rule of nftables",
            ),
            (
                format!("{server}:54/udp"),
                by_server("icmp port unreachable"),
                "nobody listens at this UDP port",
            ),
            (
                format!("{server}:81/tcp"),
                by_server("tcp RST,ACK"),
                "nobody listens at this address and port",
            ),
            (
                "10.215.11.9:80/udp".to_owned(),
                by_node("host unreachable"),
                "or a route refuses it",
            ),
            (
                "10.216.11.9:80/udp".to_owned(),
                by_node("administratively prohibited"),
                "or a route, of 10.211.11.1 rejects it",
            ),
        ];
        // The socket is told that it may not send (EPERM): the packet that it made says where.
        let own = format!("{server}:5555/udp");
        let output = trace(&[&world.from.to_string(), &own, "--inject"]);
        output.assert_said(
            1,
            &["verdict: DROPPED at", world.client.name(), "a rule of nftables"],
        );
        for (target, by, means) in rows {
            let output = trace(&[&world.from.to_string(), &target, "--inject"]);
            println!("{}", output.stdout);
            assert_eq!(output.status.code(), Some(1), "{target}: {output:?}");
            assert!(output.stdout.contains("verdict: REFUSED"), "{target}: {output:?}");
            assert!(
                output.stdout.contains(&by) && output.stdout.contains(means),
                "{target}, {by}: {output:?}"
            );
        }
    }

    #[test]
    fn what_cannot_be_sent_is_told_at_once() {
        if !tests::privileged("causeway trace tells what cannot be sent") {
            return;
        }
        let world = World::new("unsent", 7);
        let output = world
            .client
            .command("ip", &["route", "del", "default"])
            .expect("run");
        assert!(output.status.success(), "{output:?}");
        let (client, server) = (world.from.to_string(), world.to);
        let netns = world.server.name();
        let unreachable = ["Network is unreachable", "the sender has no route to"];
        let rows = [
            (vec![&*client, "T/tcp", "--inject"], &unreachable[..]),
            (vec![&*client, "T/udp", "--inject"], &unreachable[..]),
            (
                vec!["10.211.77.77", "T/tcp", "--inject"],
                &["no network namespace of this machine has that address"][..],
            ),
            (
                vec![&*client, "T/tcp", "--inject", "--netns", netns],
                &["does not have that address"][..],
            ),
        ];
        for (arguments, parts) in rows {
            let target = format!("{server}:80");
            let arguments: Vec<String> = arguments.iter().map(|word| word.replace('T', &target)).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            // Longer than anybody would wait for this test.
            let output = trace(&[&arguments[..], &["--timeout", "30m"]].concat());
            assert_eq!(output.status.code(), Some(2), "{output:?}");
            assert!(
                parts.iter().all(|part| output.stderr.contains(part)),
                "{output:?}"
            );
        }
    }

    #[test]
    fn an_interrupt_ends_it_with_what_was_seen() {
        if !tests::privileged("causeway trace tells what it saw when it is interrupted") {
            return;
        }
        let world = World::new("interrupted", 8);
        let server = echo(&world.server, world.to, 7000);
        let target = format!("{}:7000/udp", world.to);
        let following = Following::start(&[&world.from.to_string(), &target, "--for", "10m"]);
        let answered = world.client.run(|| {
            let socket = UdpSocket::bind((world.from, 0))?;
            socket.set_read_timeout(Some(SOON))?;
            socket.send_to(b"question", (world.to, 7000))?;
            socket.recv(&mut [0; 64])
        });
        answered.expect("entered").expect("answered");
        let pid = nix::unistd::Pid::from_raw(following.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).expect("told");
        let told = following.end();
        assert_eq!(told.status.code(), Some(0), "{told:?}");
        assert!(told.stdout.contains("/udp  verdict: ANSWERED"), "{told:?}");
        hush(&world.client, world.to, 7000, server);
    }

    #[test]
    fn how_a_connection_is_closed_is_told_when_it_is_asked_for() {
        if !tests::privileged("causeway trace leaves out the end of a connection") {
            return;
        }
        let world = World::new("closed", 9);
        let listener = world.server.run(|| TcpListener::bind((world.to, 8080)));
        let listener = listener.expect("entered").expect("bound");
        let exchange = || {
            let stream = world.client.run(|| TcpStream::connect((world.to, 8080)));
            let mut stream = stream.expect("entered").expect("connected");
            let (mut accepted, _) = listener.accept().expect("accepted");
            stream.write_all(b"hello").expect("sent");
            accepted.read_exact(&mut [0; 5]).expect("read");
            drop(stream);
            let _ = accepted.read(&mut [0; 1]); // its end
        };
        let (client, target) = (world.from.to_string(), format!("{}:8080", world.to));
        let brief = trace_while(&[&client, &target, "--for", "1s"], exchange);
        println!("{}", brief.stdout);
        assert_eq!(brief.status.code(), Some(0), "{brief:?}");
        assert!(
            brief.stdout.contains("PSH,ACK") && !brief.stdout.contains("FIN"),
            "{brief:?}"
        );
        assert!(
            brief.stdout.contains("packets that close the connection"),
            "{brief:?}"
        );
        let full = trace_while(&[&client, &target, "--for", "1s", "--verbose"], exchange);
        assert!(full.stdout.contains("FIN"), "{full:?}");
    }

    #[test]
    fn nothing_is_attached_after_the_process_was_killed() {
        if !tests::privileged("causeway trace leaves nothing behind") {
            return;
        }
        let Following { mut child, .. } = Following::start(&["any", "10.211.9.8:1", "--timeout", "60s"]);
        let own = attached_by(child.id());
        assert_eq!(own.len(), 4, "a program for each tracepoint");
        child.kill().expect("killed");
        child.wait().expect("ended");
        let left = || loaded().intersection(&own).copied().collect::<BTreeSet<u32>>();
        wait::until_value("their end", SOON, left, BTreeSet::is_empty);
    }
}

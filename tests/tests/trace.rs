//! `causeway trace` on a machine: what it prints and with what exit code, from packets between namespaces.

mod attached;

mod privileged {
    use std::collections::BTreeSet;
    use std::net::{Ipv4Addr, TcpListener, UdpSocket};
    use std::time::Duration;

    use serde_json::Value;
    use tests::cluster::program;
    use tests::process::{self, Output, Place};
    use tests::topology::{Host, pod};
    use tests::wait;

    use super::attached;

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

    fn trace(arguments: &[&str]) -> Output {
        let mut command = std::process::Command::new(program("causeway"));
        command.arg("trace").args(arguments);
        process::run_in(&Place::default(), &mut command, b"").expect("started")
    }

    fn hops(packet: &Value) -> Vec<String> {
        let hops = packet["hops"].as_array().expect("hops").iter();
        let text = |hop: &Value, key: &str| hop[key].as_str().expect("text").to_owned();
        let line = |hop: &Value| [text(hop, "at"), text(hop, "device"), text(hop, "kind")].join(" ");
        hops.map(line).collect()
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
            assert!(output.stdout.ends_with("0 events lost\n"), "{output:?}");
        }
        let quiet = trace(&["any", "10.211.9.9:1", "--timeout", "100ms"]);
        assert_eq!(quiet.status.code(), Some(2), "{quiet:?}");
        assert!(quiet.stdout.contains("verdict: NOTHING SEEN"), "{quiet:?}");
    }

    #[test]
    fn nothing_is_attached_after_the_process_was_killed() {
        if !tests::privileged("causeway trace leaves nothing behind") {
            return;
        }
        let mut command = std::process::Command::new(program("causeway"));
        command.args(["trace", "any", "10.211.9.8:1", "--timeout", "60s"]);
        let mut child = command.spawn().expect("started");
        let pid = child.id();
        let is_attached = |own: &BTreeSet<u32>| own.len() == 4;
        let own = wait::until_value("the programs", SOON, || attached::programs_of(pid), is_attached);
        child.kill().expect("killed");
        child.wait().expect("ended");
        let left = || {
            attached::programs()
                .intersection(&own)
                .copied()
                .collect::<BTreeSet<u32>>()
        };
        wait::until_value("their end", SOON, left, BTreeSet::is_empty);
    }
}

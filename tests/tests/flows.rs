//! `causeway flows` on a machine: what it prints and with what exit code, from packets between namespaces.

mod counting;
mod loaded;

mod privileged {
    use std::net::{Ipv4Addr, UdpSocket};

    use serde_json::{Value, json};
    use tests::topology::{Host, pod};
    use tests::wait;

    use super::counting::{Counting, Lines, SOON, leaves_nothing, refuses, run_as};

    /// A client's and a server's pod on a node that lets nothing pass to port 4243. Each test has addresses of its own:
    /// all of the machine is counted.
    struct World {
        node: Host,
        client: Host,
        server: Host,
        from: Ipv4Addr,
        to: Ipv4Addr,
        socket: UdpSocket,
    }

    impl World {
        fn new(label: &str, number: u8) -> Self {
            let (from, to) = (
                Ipv4Addr::new(10, 215, number, 5),
                Ipv4Addr::new(10, 216, number, 5),
            );
            let node = Host::new(label).expect("a node");
            node.set("net/ipv4/ip_forward", "1").expect("forwarding");
            let client = pod(&node, "client", from).expect("a pod");
            let server = pod(&node, "server", to).expect("a pod");
            for rule in [
                "add table ip guard",
                "add chain ip guard passing { type filter hook forward priority 0; }",
                "add rule ip guard passing udp dport 4243 drop",
            ] {
                let output = node.command("nft", &[rule]).expect("run");
                assert!(output.status.success(), "{output:?}");
            }
            let socket = server.run(|| UdpSocket::bind((to, 4242))).expect("entered");
            Self {
                node,
                client,
                server,
                from,
                to,
                socket: socket.expect("bound"),
            }
        }

        /// From one port of the client, and to the end each received.
        fn send(&self, port: u16, packets: usize) {
            let send = || {
                let socket = UdpSocket::bind((self.from, 40000)).expect("a socket");
                for _ in 0..packets {
                    socket.send_to(b"hello", (self.to, port)).expect("sent");
                }
            };
            self.client.run(send).expect("entered");
            self.socket.set_read_timeout(Some(SOON)).expect("a timeout");
            for _ in 0..if port == 4242 { packets } else { 0 } {
                self.socket.recv(&mut [0; 16]).expect("received");
            }
        }
    }

    /// The flows of a world's client.
    fn of<'a>(flows: impl Iterator<Item = &'a Value>, world: &World) -> Vec<&'a Value> {
        let client = world.from.to_string();
        flows
            .filter(|flow| flow["IP"]["source"] == client.as_str())
            .collect()
    }

    #[test]
    fn the_end_of_the_window_tells_what_passed_and_what_was_dropped() {
        if !tests::privileged("causeway flows counts") {
            return;
        }
        let world = World::new("passing", 1);
        let counting = Counting::start(&["flows", "--for", "60s", "-o", "json"]);
        world.send(4242, 90);
        world.send(4243, 12);
        let (text, code) = counting.interrupt();
        assert_eq!(code, Some(1), "{text}");
        let told: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(told["uncounted"]["forgotten"], 0);
        let mut flows = of(told["flows"].as_array().expect("flows").iter(), &world);
        flows.sort_by_key(|flow| flow["verdict"].as_str());
        let of_port = |port: u16| json!({"UDP": {"source_port": 40000, "destination_port": port}});
        let told: Vec<Value> = flows
            .iter()
            .map(|flow| {
                json!([
                    flow["verdict"],
                    flow["packets"],
                    flow["bytes"],
                    flow["l4"],
                    flow["is_reply"],
                    flow["source"]["netns"],
                    flow["destination"]["netns"],
                    flow["drop_reason_desc"],
                    flow["drop_netns"],
                ])
            })
            .collect();
        let [node, client, server] = [&world.node, &world.client, &world.server].map(Host::name);
        assert_eq!(
            told,
            [
                json!([
                    "DROPPED",
                    12,
                    12 * 33,
                    of_port(4243),
                    false,
                    client,
                    null,
                    "NETFILTER_DROP",
                    node
                ]),
                json!([
                    "FORWARDED",
                    90,
                    90 * 33,
                    of_port(4242),
                    false,
                    client,
                    server,
                    null,
                    null
                ]),
            ],
            "{text}"
        );
    }

    #[test]
    fn ends_and_verdicts_choose_what_people_read() {
        if !tests::privileged("causeway flows --to --verdict") {
            return;
        }
        let world = World::new("chosen", 2);
        let to = format!("{}:4242/udp", world.to);
        let counting = Counting::start(&["flows", "--to", &to, "--verdict", "FORWARDED"]);
        world.send(4242, 5);
        world.send(4243, 5);
        let (text, code) = counting.interrupt();
        let expected = format!(
            "  udp  {} {}:40000 -> {} {}:4242  FORWARDED  5 packets 165 bytes\nevery packet was counted\n",
            world.client.name(),
            world.from,
            world.server.name(),
            world.to
        );
        assert_eq!((text.get(8..), code), (Some(expected.as_str()), Some(0)));
    }

    #[test]
    fn who_follows_is_told_each_second_and_a_reader_that_is_gone_ends_it() {
        if !tests::privileged("causeway flows --follow") {
            return;
        }
        let world = World::new("flowing", 3);
        let from = world.from.to_string();
        let mut counting = Counting::start(&["flows", "--follow", "--from", &from, "-o", "ndjson"]);
        let lines = Lines::of(&mut counting);
        for packets in [3, 4] {
            world.send(4242, packets);
            let mut left = packets;
            while left > 0 {
                let line: Value = serde_json::from_str(&lines.next()).expect("JSON");
                for flow in of(std::iter::once(&line), &world) {
                    left -= usize::try_from(flow["packets"].as_u64().expect("a number")).expect("small");
                }
            }
        }
        drop(lines);
        let ended = || {
            world.send(4242, 1);
            counting.0.try_wait().expect("asked").map(|status| status.code())
        };
        let code = wait::until_value("its end", SOON, ended, Option::is_some);
        assert_eq!(code, Some(Some(0)));
    }

    #[test]
    fn nothing_is_attached_after_the_process_was_killed() {
        if !tests::privileged("causeway flows leaves nothing behind") {
            return;
        }
        leaves_nothing(&["flows", "--for", "60s"], 3);
    }

    #[test]
    fn who_may_not_or_asks_wrongly_is_told_so() {
        if !tests::privileged("causeway flows without rights") {
            return;
        }
        assert_eq!(
            run_as(65534, &["flows"]),
            (
                Some(2),
                "error: must run as root: flows are counted by programs in the kernel\n\
                 on a node that a kubeconfig reaches: causeway on NODE -- flows\n"
                    .to_owned()
            )
        );
        let rows = [
            (
                &["--follow", "-o", "json"][..],
                "-o ndjson is a line for each flow",
            ),
            (&["--service", "web", "--config", "/nowhere"], "/nowhere"),
            (&["--verdict", "LOST"], "invalid value 'LOST'"),
            (&["--to", "pod"], "is no pod/NAME"),
        ];
        refuses("flows", &rows);
    }
}

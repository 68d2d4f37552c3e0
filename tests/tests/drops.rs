//! `causeway drops` on a machine: what it prints and with what exit code, from packets between namespaces.

mod counting;
mod loaded;

mod privileged {
    use std::net::{Ipv4Addr, UdpSocket};

    use serde_json::Value;
    use tests::topology::{Host, pod};
    use tests::wait;

    use super::counting::{Counting, Lines, SOON, leaves_nothing, refuses, run_as};

    /// A client's and a server's pod on a node that lets no UDP pass. Each test has addresses of its own: all of the
    /// machine is counted.
    struct World {
        node: Host,
        client: Host,
        _server: Host,
        from: Ipv4Addr,
        to: Ipv4Addr,
    }

    impl World {
        fn new(label: &str, number: u8) -> Self {
            let (from, to) = (
                Ipv4Addr::new(10, 213, number, 5),
                Ipv4Addr::new(10, 214, number, 5),
            );
            let node = Host::new(label).expect("a node");
            node.set("net/ipv4/ip_forward", "1").expect("forwarding");
            let client = pod(&node, "client", from).expect("a pod");
            let server = pod(&node, "server", to).expect("a pod");
            for rule in [
                "add table ip guard",
                "add chain ip guard passing { type filter hook forward priority 0; }",
                "add rule ip guard passing meta l4proto udp drop",
            ] {
                let output = node.command("nft", &[rule]).expect("run");
                assert!(output.status.success(), "{output:?}");
            }
            Self {
                node,
                client,
                _server: server,
                from,
                to,
            }
        }

        fn send(&self, packets: usize) {
            let send = || {
                let socket = UdpSocket::bind((self.from, 0)).expect("a socket");
                for _ in 0..packets {
                    socket.send_to(b"hello", (self.to, 4243)).expect("sent");
                }
            };
            self.client.run(send).expect("entered");
        }
    }

    /// The drops of a world's client.
    fn of<'a>(drops: impl Iterator<Item = &'a Value>, world: &World) -> Vec<&'a Value> {
        let client = world.from.to_string();
        drops
            .filter(|dropped| dropped["source"] == client.as_str())
            .collect()
    }

    #[test]
    fn the_end_of_the_window_tells_how_many_where_and_why() {
        if !tests::privileged("causeway drops counts") {
            return;
        }
        let world = World::new("counted", 1);
        let counting = Counting::start(&["drops", "--for", "60s", "-o", "json"]);
        world.send(1234);
        let (text, code) = counting.interrupt();
        assert_eq!(code, Some(1), "{text}");
        let report: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(report["forgotten"], 0);
        let drops = report["drops"].as_array().expect("drops");
        let [dropped] = of(drops.iter(), &world)[..] else {
            panic!("{text}")
        };
        let keys = ["at", "device", "reason", "place", "protocol", "destination"];
        let told = keys.map(|key| dropped[key].as_str().unwrap_or_default());
        let to = world.to.to_string();
        assert_eq!(
            told,
            [
                world.node.name(),
                "client",
                "NETFILTER_DROP",
                "nft_do_chain",
                "udp",
                &to
            ]
        );
        assert_eq!(
            (
                &dropped["packets"],
                &dropped["bytes"],
                &dropped["destinationPort"]
            ),
            (&1234.into(), &(1234 * 33).into(), &4243.into())
        );
    }

    #[test]
    fn people_read_it_as_a_table() {
        if !tests::privileged("causeway drops as text") {
            return;
        }
        let world = World::new("read", 2);
        let counting = Counting::start(&["drops"]);
        world.send(12);
        let (text, code) = counting.interrupt();
        println!("{text}");
        assert_eq!(code, Some(1), "{text}");
        let part = format!("udp  {} -> {}:4243", world.from, world.to);
        let row = text.lines().find(|line| line.contains(&part)).expect("a row");
        assert!(
            row.contains("NETFILTER_DROP in nft_do_chain") && row.trim_start().starts_with("12 "),
            "{row}"
        );
        assert!(
            text.contains("  means:   a rule of nftables or iptables dropped it\n"),
            "{text}"
        );
    }

    #[test]
    fn who_follows_is_told_each_second_and_a_reader_that_is_gone_ends_it() {
        if !tests::privileged("causeway drops --follow") {
            return;
        }
        let world = World::new("follow", 3);
        let mut counting = Counting::start(&["drops", "--follow", "-o", "ndjson"]);
        let lines = Lines::of(&mut counting);
        for packets in [3, 4] {
            world.send(packets);
            let mut left = packets;
            while left > 0 {
                let line: Value = serde_json::from_str(&lines.next()).expect("JSON");
                for dropped in of(std::iter::once(&line), &world) {
                    left -= usize::try_from(dropped["packets"].as_u64().expect("a number")).expect("small");
                }
            }
        }
        drop(lines);
        let ended = || {
            world.send(1);
            counting.0.try_wait().expect("asked").map(|status| status.code())
        };
        let code = wait::until_value("its end", SOON, ended, Option::is_some);
        assert_eq!(code, Some(Some(1)));
    }

    #[test]
    fn nothing_is_attached_after_the_process_was_killed() {
        if !tests::privileged("causeway drops leaves nothing behind") {
            return;
        }
        leaves_nothing(&["drops", "--for", "60s"], 1);
    }

    #[test]
    fn who_may_not_or_asks_wrongly_is_told_so() {
        if !tests::privileged("causeway drops without rights") {
            return;
        }
        assert_eq!(
            run_as(65534, &["drops"]),
            (
                Some(2),
                "error: must run as root: drops are counted by a program in the kernel\n\
                 on a node that a kubeconfig reaches: causeway on NODE -- drops\n"
                    .to_owned()
            )
        );
        let rows = [
            (
                &["--follow", "-o", "json"][..],
                "-o ndjson is a line for each kind of drops",
            ),
            (&["--pod", "a/b", "--config", "/nowhere"], "/nowhere"),
            (&["--for", "3"], "3 has no unit: 3ms, 3s or 3m is a time"),
        ];
        refuses("drops", &rows);
    }
}

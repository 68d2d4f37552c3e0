//! What `netlink::nft::ruleset` makes of a packet, beside what the kernel does with the same packet.

mod place;

mod privileged {
    use std::net::{IpAddr, SocketAddr, UdpSocket};
    use std::time::Duration;

    use netlink::nft::Nft;
    use netlink::nft::ruleset::walk::{Carried, Device, End, Packet, follow};

    use crate::place::{add_address, in_namespace, run};

    const OUTPUT: u32 = 3;
    const NEW: u32 = 8;
    const PORT: u16 = 9000;
    /// How long a datagram may take through loopback.
    const PATIENCE: Duration = Duration::from_millis(200);

    /// What the walk says.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Said {
        Passes,
        Stops,
        /// It passes, or is stopped: it depends on rules that are not understood.
        Open,
    }

    fn said(to: IpAddr) -> Said {
        let ruleset = Nft::open()
            .and_then(|mut nft| nft.ruleset(|_| true))
            .expect("read");
        let packet = Packet {
            source: Some(to),
            destination: to,
            protocol: 17,
            source_port: None,
            destination_port: Some(PORT),
            state: Some(NEW),
            is_reply: false,
            comes_by: Some(Device::default()),
            leaves_by: Some(Device {
                index: 1,
                name: "lo".to_owned(),
            }),
        };
        let mut carried = Carried::new(Some(0), false);
        let met = follow(&ruleset, OUTPUT, &mut carried, |_| Some(packet.clone()));
        let stops = met
            .iter()
            .any(|met| matches!(met.end, End::Stopped { is_certain: true, .. }));
        let is_open = met.iter().any(|met| !met.unknown.is_empty());
        match (stops, is_open) {
            (true, _) => Said::Stops,
            (false, true) => Said::Open,
            (false, false) => Said::Passes,
        }
    }

    /// Whether the kernel delivers it.
    fn arrives(to: IpAddr) -> bool {
        let receiver = UdpSocket::bind(SocketAddr::new(to, PORT)).expect("bound");
        receiver.set_read_timeout(Some(PATIENCE)).expect("set");
        let sender = UdpSocket::bind(SocketAddr::new(to, 0)).expect("bound");
        // What is dropped on its way out is an error (EPERM).
        let is_sent = sender
            .send_to(b"packet", receiver.local_addr().expect("bound"))
            .is_ok();
        is_sent && receiver.recv(&mut [0; 16]).is_ok()
    }

    #[track_caller]
    fn check(to: &str, commands: &[&str], expected: Said) {
        let to: IpAddr = to.parse().expect("an address");
        run("nft flush ruleset");
        for command in commands {
            run(command);
        }
        assert_eq!(said(to), expected, "{commands:?}\n{}", run("nft -a list ruleset"));
        if expected != Said::Open {
            assert_eq!(
                arrives(to),
                expected == Said::Passes,
                "the kernel, by {commands:?}"
            );
        }
    }

    /// The rules of a chain at the hook of what this host sends, in a table of that family.
    #[track_caller]
    fn check_rules(family: &str, policy: &str, rules: &[&str], expected: Said) {
        let base =
            format!("add chain {family} t out {{ type filter hook output priority 0 ; policy {policy} ; }}");
        let mut lines = vec![
            format!("nft add table {family} t"),
            format!("nft {base}"),
            format!("nft add chain {family} t other"),
        ];
        for rule in rules {
            let (chain, rule) = match rule.strip_prefix("other: ") {
                Some(rule) => ("other", rule),
                None => ("out", *rule),
            };
            lines.push(format!("nft add rule {family} t {chain} {rule}"));
        }
        let lines: Vec<_> = lines.iter().map(String::as_str).collect();
        let to = if family == "ip6" { "::1" } else { "127.0.0.1" };
        check(to, &lines, expected);
    }

    #[test]
    fn the_walk_says_of_simple_rules_what_the_kernel_does() {
        use Said::{Open, Passes, Stops};
        in_namespace("walk-nft", || {
            run("ip link set lo up");
            let rows: &[(&[&str], Said)] = &[
                (&["udp dport 9000 drop"], Stops),
                (&["udp dport 9001 drop"], Passes),
                (&["tcp dport 9000 drop"], Passes),
                (&["udp dport { 9000, 9001 } drop"], Stops),
                (&["udp dport { 9001, 9002 } drop"], Passes),
                (&["udp dport != { 9001, 9002 } drop"], Stops),
                (&["udp dport 8000-9000 drop"], Stops),
                (&["udp dport != 8000-9000 drop"], Passes),
                (&["udp dport { 8000-8999, 9001-9100 } drop"], Passes),
                (&["udp dport { 8000-9000, 9002-9100 } drop"], Stops),
                (&["udp dport > 8999 drop"], Stops),
                (&["udp dport < 9000 drop"], Passes),
                (&["udp dport vmap { 9000 : drop, 9001 : accept }"], Stops),
                (&["udp dport vmap { 9000 : accept, 9001 : drop }", "drop"], Passes),
                (&["udp dport vmap { 9000 : jump other }", "other: drop"], Stops),
                (&["ct state established,related accept", "drop"], Stops),
                (&["ct state new accept", "drop"], Passes),
                (&["ct state vmap { established : accept, new : drop }"], Stops),
                (&["oifname lo drop"], Stops),
                (&["oifname eth* drop"], Passes),
                (&["oif lo reject"], Stops),
                (&["meta mark 0x1 drop"], Passes),
                (&["meta mark 0x0 drop"], Stops),
                (&["counter accept", "drop"], Passes),
                (&["jump other", "drop", "other: return"], Stops),
                (&["goto other", "drop", "other: return"], Passes),
                (&["jump other", "drop", "other: accept"], Passes),
                (&["meta l4proto udp drop"], Stops),
                (&["udp dport 9000 log", "udp dport 9000 counter drop"], Stops),
                // What is not understood neither stops it nor lets it pass.
                (&["limit rate 1/second drop"], Open),
                (&["fib daddr type local accept", "drop"], Open),
                (&["limit rate 1/second drop", "udp dport 9000 drop"], Stops),
                (&["meta mark set 0x1", "meta mark 0x1 drop"], Open),
                (&["udp sport 1-10 drop"], Open),
            ];
            for family in ["ip", "ip6", "inet"] {
                for (rules, expected) in rows {
                    check_rules(family, "accept", rules, *expected);
                }
            }
            check_rules("ip", "drop", &["udp dport 9001 accept"], Stops);
            check_rules("ip", "drop", &["udp dport 9000 accept"], Passes);
            check_rules("ip", "accept", &["ip daddr 127.0.0.1 drop"], Stops);
            check_rules("ip", "accept", &["ip daddr 127.0.0.0/8 drop"], Stops);
            check_rules("ip", "accept", &["ip daddr != 127.0.0.0/8 drop"], Passes);
            check_rules("ip", "accept", &["ip saddr 10.0.0.0/8 drop"], Passes);
            check_rules(
                "ip",
                "accept",
                &["ip daddr { 10.0.0.0/8, 127.0.0.0/16 } drop"],
                Stops,
            );
            check_rules("ip", "accept", &["ip protocol udp drop"], Stops);
            check_rules(
                "ip",
                "accept",
                &["ip daddr . udp dport { 127.0.0.1 . 9000 } drop"],
                Stops,
            );
            check_rules("ip6", "accept", &["ip6 daddr ::1 drop"], Stops);
            check_rules("ip6", "accept", &["ip6 saddr fd00::/8 drop"], Passes);
            check_rules(
                "inet",
                "accept",
                &["ip daddr 127.0.0.1 udp dport 9000 drop"],
                Stops,
            );
            check_rules("inet", "accept", &["ip6 daddr ::1 drop"], Passes);
        });
    }

    /// A rule of a chain before that of another rule.
    #[test]
    fn what_a_chain_makes_of_a_packet_the_next_one_meets() {
        use Said::{Open, Passes, Stops};
        in_namespace("walk-chains", || {
            run("ip link set lo up");
            let rows = [
                ("meta mark set 0x1", "meta mark 0x0 drop", Open),
                ("udp dport 9001 meta mark set 0x1", "meta mark 0x0 drop", Stops),
                ("notrack", "ct state new drop", Open),
                ("notrack", "udp dport 9000 drop", Stops),
                ("accept", "drop", Stops),
                ("drop", "accept", Stops),
                ("accept", "udp dport 9001 drop", Passes),
            ];
            for (before, then, expected) in rows {
                let rules = [("a", -300, before), ("b", 0, then)].map(|(chain, priority, rule)| {
                    [
                        format!(
                            "nft add chain inet t {chain} {{ type filter hook output priority {priority} ; }}"
                        ),
                        format!("nft add rule inet t {chain} {rule}"),
                    ]
                });
                let table = "nft add table inet t".to_owned();
                let lines: Vec<_> = std::iter::once(&table).chain(rules.iter().flatten()).collect();
                let lines: Vec<_> = lines.into_iter().map(String::as_str).collect();
                check("127.0.0.1", &lines, expected);
            }
        });
    }

    #[test]
    fn rules_that_iptables_wrote_are_followed_too() {
        use Said::{Open, Passes, Stops};
        in_namespace("walk-xt", || {
            run("ip link set lo up");
            let rows: &[(&str, Said)] = &[
                ("-p udp --dport 9000 -j DROP", Stops),
                ("-p udp --dport 9001 -j DROP", Passes),
                ("-d 127.0.0.0/8 -o lo -j REJECT", Stops),
                ("! -d 127.0.0.0/8 -j DROP", Passes),
                (
                    "-m conntrack --ctstate NEW -m comment --comment why -j DROP",
                    Stops,
                ),
                ("-m conntrack --ctstate RELATED,ESTABLISHED -j DROP", Passes),
                ("-m conntrack ! --ctstate NEW -j DROP", Passes),
                ("-m addrtype --dst-type LOCAL -j DROP", Open),
            ];
            for (rule, expected) in rows {
                check(
                    "127.0.0.1",
                    &[&format!("iptables-nft -A OUTPUT {rule}")],
                    *expected,
                );
            }
            add_address("198.51.100.7/32", "lo");
            for (to, expected) in [("127.0.0.1", Passes), ("198.51.100.7", Stops)] {
                check(
                    to,
                    &["iptables-nft -A OUTPUT -d 198.51.100.0/28 -j DROP"],
                    expected,
                );
            }
        });
    }
}

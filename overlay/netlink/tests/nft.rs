//! The nftables and conntrack encodings against the kernel, each test in a network namespace of its own.

mod place;

mod privileged {
    use std::collections::BTreeMap;
    use std::net::UdpSocket;
    use std::time::Duration;

    use netlink::nft::fake::FakeTables;
    use netlink::nft::object::ChainKind;
    use netlink::nft::rule::{Comparison, Expression, Interface, KeyField, Register, Reject, SourcePorts};
    use netlink::nft::{
        BaseChain, Batch, Chain, Contents, DataType, Element, ElementData, Error, Family, Hook, Layout,
        Monitor, Nft, Repair, Rule, Set, SetKind, Table, Verdict,
    };
    use netlink::{Kernel, Namespace, Netlink, NewLink, NewLinkKind, VethPeer};

    use crate::place::{add_address, in_namespace, run};

    fn listing() -> String {
        run("nft list ruleset")
    }

    fn table() -> Table {
        Table::new(Family::Ip, "cwt")
    }

    fn endpoints() -> Set {
        use DataType::{InetProto, InetService, Ipv4Addr, Mark};
        let data = SetKind::Map(vec![Ipv4Addr, InetService]);
        Set::new("endpoints", &[Ipv4Addr, InetProto, InetService, Mark], data)
    }

    fn services() -> Set {
        use DataType::{InetProto, InetService, Ipv4Addr};
        Set::new(
            "services",
            &[Ipv4Addr, InetProto, InetService],
            SetKind::VerdictMap,
        )
    }

    fn layout() -> Layout {
        let destination = KeyField::DestinationAddress(Family::Ip);
        let pods = "10.244.0.0/16".parse().expect("a network");
        let mut layout = Layout::new(table());
        layout.add_set(endpoints()).add_set(services());
        layout.add_set(Set::new("plain", &[DataType::Ipv4Addr], SetKind::Set));
        let key = [destination, KeyField::Protocol, KeyField::DestinationPort];
        let slot = KeyField::Random {
            modulus: 2,
            offset: 0,
        };
        layout.add_chain(
            Chain::base("prerouting", BaseChain::PREROUTING_NAT),
            [
                Rule::new("services").verdict_from(&key, "services"),
                Rule::new("local").destination_is_local().jump("to-two"),
            ],
        );
        layout.add_chain(
            Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
            [
                Rule::new("unmarked").not_mark(0x4000, 0x4000).returns(),
                Rule::new("clear").clear_mark_bits(0x4000),
                Rule::new("pods")
                    .source(pods)
                    .not_destination(pods)
                    .out_interface(Interface::Named("eth0"))
                    .masquerade(),
                Rule::new("hairpin")
                    .destination_was_translated()
                    .in_set(&[destination], "plain")
                    .masquerade(),
            ],
        );
        layout.add_chain(
            Chain::regular("to-two"),
            [
                Rule::new("mark").set_mark_bits(0x4000),
                Rule::new("pick").destination_nat_from(
                    &[key.as_slice(), &[slot]].concat(),
                    "endpoints",
                    Family::Ip,
                ),
            ],
        );
        layout.add_chain(
            Chain::base("output", BaseChain::OUTPUT_RAW),
            [
                Rule::new("tunnel")
                    .protocol(17)
                    .destination_port(8472)
                    .untracked(),
                Rule::new("answers").protocol(17).source_port(53).untracked(),
            ],
        );
        layout.add_chain(
            Chain::regular("refuse"),
            [
                Rule::new("tcp").protocol(6).count().reject(Reject::TcpReset),
                Rule::new("rest").reject(Reject::PortUnreachable(Family::Ip)),
            ],
        );
        layout
    }

    fn element(slot: u32) -> Element {
        let mut key = vec![10, 96, 0, 1, 6, 0, 0, 0];
        key.extend([1, 187, 0, 0]);
        key.extend(slot.to_ne_bytes());
        let host = 2 + u8::try_from(slot).expect("small");
        Element::new(key, ElementData::Value(vec![10, 244, 1, host, 0, 80, 0, 0]))
    }

    fn service(chain: &str) -> Element {
        let verdict = Verdict::Goto(chain.into());
        Element::new(
            vec![10, 96, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0],
            ElementData::Verdict(verdict),
        )
    }

    /// What became of a batch: which messages were refused, and with which number.
    fn refusals(nft: &mut Nft, change: impl Fn(&mut Batch)) -> Vec<(String, Option<i32>)> {
        let mut batch = Batch::new(&table());
        change(&mut batch);
        match nft.commit(&batch) {
            Ok(()) => Vec::new(),
            Err(Error::Refused(failures)) => failures
                .into_iter()
                .map(|failure| (failure.message, failure.error.raw_os_error()))
                .collect(),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn counted_packets_are_told_by_the_rules_comments() {
        in_namespace("counts", || {
            run("ip link set lo up");
            let mut nft = Nft::open().expect("a socket");
            assert_eq!(nft.counts(&table()).expect("read"), BTreeMap::new(), "no table");
            let mut layout = Layout::new(table());
            layout.add_chain(
                Chain::base("output", BaseChain::OUTPUT_RAW),
                [
                    Rule::new("not counted").protocol(17),
                    Rule::new("all").count(),
                    Rule::new("never #1").protocol(6).count(),
                    Rule::new("all").protocol(17).count(),
                ],
            );
            layout.add_chain(Chain::regular("other"), [Rule::new("elsewhere").count()]);
            nft.ensure(&layout).expect("written");
            let counts = |all| {
                let rows = [("all", all), ("elsewhere", 0), ("never #1", 0)];
                rows.map(|(comment, count)| (comment.to_owned(), count)).into()
            };
            assert_eq!(nft.counts(&table()).expect("read"), counts(0));
            let far = UdpSocket::bind("127.0.0.1:0").expect("bound");
            let near = UdpSocket::bind("127.0.0.1:0").expect("bound");
            for packet in 1..=3 {
                near.send_to(b"packet", far.local_addr().expect("bound"))
                    .expect("sent");
                assert_eq!(nft.counts(&table()).expect("read"), counts(packet * 2));
            }
            let elsewhere = Table::new(Family::Ip6, "cwt");
            assert_eq!(nft.counts(&elsewhere).expect("read"), BTreeMap::new());
        });
    }

    #[test]
    fn the_fake_takes_and_refuses_what_the_kernel_does() {
        let changes: [fn(&mut Batch); 11] = [
            |batch| {
                batch.add_elements("plain", &[]);
            },
            |batch| {
                batch.add_elements("services", &[service("to-two")]);
            },
            |batch| {
                batch.add_elements("services", &[service("to-two")]);
            },
            |batch| {
                batch.add_elements("services", &[service("refuse")]);
            },
            |batch| {
                batch.add_elements("services", &[service("nowhere")]);
            },
            |batch| {
                batch.delete_elements("endpoints", &[element(0)]);
            },
            |batch| {
                batch.add_elements("absent", &[element(0)]);
            },
            |batch| {
                batch.flush_chain("to-two").delete_chain("to-two");
            },
            |batch| {
                batch.delete_chain("refuse");
            },
            |batch| {
                batch.flush_chain("refuse");
            },
            |batch| {
                batch.add_elements("endpoints", &[element(0), element(1)]);
                batch.delete_elements("services", &[service("to-two")]);
                batch.delete_chain("absent");
            },
        ];
        let look = |nft: &mut Nft| {
            let sets = ["endpoints", "services", "plain"];
            (
                nft.chains(&table()).expect("chains"),
                nft.has_sets_of(&layout()).expect("sets"),
                sets.map(|set| nft.elements(&table(), set).expect("elements")),
            )
        };
        in_namespace("fake", move || {
            let mut kernel = Nft::open().expect("a socket");
            let mut fake = FakeTables::default().connect();
            let nobodys = |batch: &mut Batch| {
                batch.delete_table();
            };
            assert_eq!(refusals(&mut fake, nobodys), refusals(&mut kernel, nobodys));
            for nft in [&mut kernel, &mut fake] {
                assert_eq!(nft.ensure(&layout()).expect("written"), Repair::Rebuilt);
                assert_eq!(nft.ensure(&layout()).expect("looked at"), Repair::Unchanged);
            }
            for (number, change) in changes.into_iter().enumerate() {
                assert_eq!(
                    refusals(&mut fake, change),
                    refusals(&mut kernel, change),
                    "change {number}"
                );
                let (mut by_kernel, mut by_fake) = (look(&mut kernel), look(&mut fake));
                by_kernel.0.sort_unstable();
                by_fake.0.sort_unstable();
                assert_eq!(by_fake, by_kernel, "after change {number}");
            }
        });
    }

    #[test]
    fn the_kernel_and_the_nft_program_read_what_was_written() {
        in_namespace("listing", || {
            let mut nft = Nft::open().expect("a socket");
            assert_eq!(nft.ensure(&layout()).expect("written"), Repair::Rebuilt);
            let mut batch = Batch::new(&table());
            batch.add_elements("endpoints", &[element(0), element(1)]);
            batch.add_elements("services", &[service("to-two")]);
            nft.commit(&batch).expect("elements");
            let text = listing();
            for line in [
                "ip daddr . meta l4proto . th dport vmap @services comment",
                "fib daddr type local jump to-two",
                "10.96.0.1 . tcp . 443 . 0x00000001 : 10.244.1.3 . 80",
                "10.96.0.1 . tcp . 443 : goto to-two",
                "type nat hook postrouting priority srcnat; policy accept;",
                "ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 oifname \"eth0\" masquerade fully-random",
                "meta mark & 0x00004000 != 0x00004000 return",
                "ct status dnat ip daddr @plain masquerade",
                "meta mark set meta mark | 0x00004000",
                "reject with tcp reset",
                "type filter hook output priority raw; policy accept;",
                "udp dport 8472 notrack",
                "udp sport 53 notrack",
                "reject comment \"rest",
            ] {
                assert!(text.contains(line), "no {line:?} in\n{text}");
            }
            assert!(text.contains("numgen random mod 2 map @endpoints"), "{text}");
        });
    }

    #[test]
    fn elements_read_back_as_they_were_written_and_thousands_fit_in_one_transaction() {
        in_namespace("elements", || {
            let mut nft = Nft::open().expect("a socket");
            nft.ensure(&layout()).expect("written");
            let many: Vec<_> = (0..20_000_u32)
                .map(|slot| {
                    let key = [&[10, 96, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0], &slot.to_ne_bytes()[..]].concat();
                    Element::new(key, ElementData::Value(vec![10, 244, 1, 2, 0, 80, 0, 0]))
                })
                .collect();
            let mut batch = Batch::new(&table());
            batch.add_elements("endpoints", &many);
            batch.add_elements("services", &[service("refuse")]);
            assert_eq!(batch.changes(), 20_001);
            nft.commit(&batch).expect("elements");
            let read = nft.elements(&table(), "endpoints").expect("elements");
            let mut expected = many;
            expected.sort();
            assert!(read == expected, "20,000 elements differ");
            assert_eq!(
                nft.elements(&table(), "services").expect("elements"),
                [service("refuse")]
            );
        });
    }

    #[test]
    fn a_refused_message_is_named_and_the_whole_batch_is_undone() {
        in_namespace("refused", || {
            let mut nft = Nft::open().expect("a socket");
            nft.ensure(&layout()).expect("written");
            let mut batch = Batch::new(&table());
            batch.add_elements("endpoints", &[element(0)]);
            batch.delete_elements("services", &[service("refuse")]);
            let error = nft.commit(&batch).expect_err("the element is not there");
            assert!(error.is(libc::ENOENT), "{error}");
            assert!(
                error.to_string().contains("delete elements of services"),
                "{error}"
            );
            assert_eq!(nft.elements(&table(), "endpoints").expect("elements"), []);
        });
    }

    #[test]
    fn a_layout_that_is_there_costs_nothing_and_drift_is_repaired_without_touching_elements() {
        in_namespace("repair", || {
            let mut nft = Nft::open().expect("a socket");
            nft.ensure(&layout()).expect("written");
            let mut batch = Batch::new(&table());
            batch.add_elements("services", &[service("to-two")]);
            nft.commit(&batch).expect("elements");
            assert_eq!(nft.ensure(&layout()).expect("read"), Repair::Unchanged);
            for (damage, repaired) in [
                ("nft flush chain ip cwt to-two", "to-two"),
                ("nft insert rule ip cwt prerouting accept", "prerouting"),
                ("nft flush chain ip cwt postrouting", "postrouting"),
                (
                    "nft add chain ip cwt more {type filter hook input priority 0;}",
                    "more",
                ),
            ] {
                run(damage);
                assert_eq!(
                    nft.ensure(&layout()).expect("repaired"),
                    Repair::Chains(vec![repaired.to_owned()]),
                    "{damage}"
                );
                assert_eq!(
                    nft.ensure(&layout()).expect("read"),
                    Repair::Unchanged,
                    "{damage}"
                );
            }
            assert_eq!(
                nft.elements(&table(), "services").expect("elements"),
                [service("to-two")]
            );
            nft.remove(&table()).expect("removed");
            nft.remove(&table()).expect("absent is fine");
            assert_eq!(nft.ensure(&layout()).expect("made anew"), Repair::Rebuilt);
        });
    }

    #[test]
    fn the_monitor_tells_changes_by_others_and_is_silent_about_ones_own() {
        in_namespace("monitor", || {
            let second_table = Table::new(Family::Ip6, "cwt-second");
            let mut nft = Nft::open().expect("a socket");
            let mut second = Nft::open().expect("a socket");
            let mut monitor = Monitor::open(&[table(), second_table.clone()], &[nft.port(), second.port()])
                .expect("a socket");
            let mut is_news = |timeout| monitor.wait(timeout).expect("events");
            let (short, long) = (Duration::from_millis(50), Duration::from_secs(5));
            nft.ensure(&layout()).expect("written");
            second.ensure(&Layout::new(second_table)).expect("written");
            assert!(!is_news(short), "own changes");
            run("nft add table ip other");
            run("nft add table ip6 cwt");
            assert!(!is_news(short), "other tables");
            run("nft delete table ip cwt");
            assert!(is_news(long));
            assert!(!is_news(short), "once");
            run("nft delete table ip6 cwt-second");
            assert!(is_news(long));
        });
    }

    /// Ranges of source addresses that may use a service, by its number.
    fn ranges(family: Family) -> Set {
        Set::new("ranges", &[DataType::Mark, family.address()], SetKind::Set).with_contents(Contents::Ranges)
    }

    fn range(service: u32, network: &str) -> Element {
        let network: ipnetwork::IpNetwork = network.parse().expect("a network");
        let key = |address| {
            let octets = match address {
                std::net::IpAddr::V4(address) => address.octets().to_vec(),
                std::net::IpAddr::V6(address) => address.octets().to_vec(),
            };
            [service.to_ne_bytes().to_vec(), octets].concat()
        };
        Element::range(
            key(network.network()),
            key(network.broadcast()),
            ElementData::None,
        )
    }

    #[test]
    fn ranges_read_back_with_their_ends_and_overlaps_are_refused() {
        for (family, name, wide, narrow, other) in [
            (Family::Ip, "4", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.1/32"),
            (Family::Ip6, "6", "fd00::/16", "fd00:1::/32", "2001:db8::1/128"),
        ] {
            in_namespace(&format!("ranges{name}"), || {
                let mut layout = Layout::new(Table::new(family, "cwt"));
                layout.add_set(ranges(family));
                let table = layout.table();
                let mut nft = Nft::open().expect("a socket");
                assert_eq!(nft.ensure(&layout).expect("written"), Repair::Rebuilt);
                assert_eq!(nft.ensure(&layout).expect("read"), Repair::Unchanged);
                let mut expected = vec![range(1, wide), range(1, other), range(2, narrow)];
                expected.sort();
                let mut batch = Batch::new(table);
                batch.add_elements("ranges", &expected);
                nft.commit(&batch).expect("elements");
                nft.commit(&batch).expect("once more is fine");
                assert_eq!(nft.elements(table, "ranges").expect("listed"), expected);
                let text = listing();
                assert!(text.contains(&format!(" . {wide}")), "{text}");

                let mut overlap = Batch::new(table);
                overlap.add_elements("ranges", &[range(1, narrow)]);
                let error = nft.commit(&overlap).expect_err("it overlaps");
                assert!(error.is(libc::EEXIST), "{error}");

                let mut replace = Batch::new(table);
                replace.delete_elements("ranges", &[range(1, wide)]);
                replace.add_elements("ranges", &[range(1, narrow)]);
                nft.commit(&replace).expect("one in the other's place");
                let mut expected = vec![range(1, narrow), range(1, other), range(2, narrow)];
                expected.sort();
                assert_eq!(nft.elements(table, "ranges").expect("listed"), expected);

                let exact = ranges(family).with_contents(Contents::Exact);
                let mut changed = Layout::new(table.clone());
                changed.add_set(exact);
                assert_eq!(nft.ensure(&changed).expect("written"), Repair::Rebuilt);
            });
        }
    }

    /// Sends a packet from `vethabcdef0`'s far end and tells whether a rule with that condition dropped it.
    struct Gate<'a> {
        nft: &'a mut Nft,
        client: UdpSocket,
        /// The first is guarded by the rule, the second one tells that the packet to the first has been seen.
        servers: &'a [UdpSocket; 2],
        family: Family,
    }

    impl Gate<'_> {
        #[track_caller]
        fn check(&mut self, condition: impl Fn(Rule) -> Rule, dropped: bool) {
            let [guarded, open] = self
                .servers
                .each_ref()
                .map(|server| server.local_addr().expect("bound"));
            let to_open = Rule::new("open")
                .load(KeyField::DestinationPort, Register::FIRST)
                .with(Expression::Compare(
                    Register::FIRST,
                    Comparison::Equal,
                    open.port().to_be_bytes().to_vec(),
                ));
            let udp = Rule::new("UDP").protocol(17).jump("gate");
            let gate = [to_open.accept(), condition(Rule::new("guarded")).drop()];
            let mut layout = Layout::new(Table::new(self.family, "cwt"));
            layout.add_set(ranges(self.family));
            layout.add_chain(
                Chain::base("input", BaseChain::new(ChainKind::Filter, Hook::Input, 0)),
                [udp],
            );
            layout.add_chain(Chain::regular("gate"), gate);
            self.nft.ensure(&layout).expect("written");
            for to in [guarded, open] {
                self.client.send_to(b"x", to).expect("sent");
            }
            let [guarded, open] = self.servers;
            open.recv(&mut [0; 1]).expect("the second packet");
            let received = guarded.recv(&mut [0; 1]);
            assert_eq!(received.is_err(), dropped, "{received:?}");
        }
    }

    #[test]
    fn packets_are_told_by_the_device_that_they_came_in_by_and_by_range() {
        for (family, name, here, there, around, beside) in [
            (
                Family::Ip,
                "4",
                "10.9.0.1",
                "10.9.0.2",
                "10.9.0.0/30",
                "10.9.0.4/30",
            ),
            (
                Family::Ip6,
                "6",
                "fd00::1",
                "fd00::2",
                "fd00::/126",
                "fd00::4/126",
            ),
        ] {
            in_namespace(&format!("near{name}"), || {
                let near = Namespace::current().expect("open");
                let mut nft = Nft::open().expect("a socket");
                in_namespace(&format!("far{name}"), || {
                    let peer = NewLinkKind::Veth(VethPeer {
                        name: "vethabcdef0".into(),
                        mac: None,
                        mtu: None,
                        namespace: Some(near.clone()),
                    });
                    let mut kernel = Netlink::open().expect("a socket");
                    kernel.create_link(&NewLink::new("far0", peer)).expect("a device");
                    let setup = |address: &str, device: &str| {
                        run(&format!("ip link set {device} up"));
                        add_address(&format!("{address}/28"), device);
                    };
                    setup(there, "far0");
                    let servers = near.run(|| {
                        setup(here, "vethabcdef0");
                        [(); 2].map(|()| UdpSocket::bind((here, 0)).expect("a port"))
                    });
                    let servers = servers.expect("entered");
                    servers[0].set_nonblocking(true).expect("set");
                    servers[1]
                        .set_read_timeout(Some(Duration::from_secs(10)))
                        .expect("set");
                    let mut gate = Gate {
                        nft: &mut nft,
                        client: UdpSocket::bind((there, 0)).expect("a port"),
                        servers: &servers,
                        family,
                    };
                    let named = Interface::Named;
                    let prefixed = Interface::Prefixed;
                    for (interface, matches) in [
                        (named("vethabcdef0"), true),
                        (named("vethabcdef"), false),
                        (named("vethabcdef00"), false),
                        (prefixed("v"), true),
                        (prefixed("veth"), true),
                        (prefixed("vetha"), true),
                        (prefixed("vethabcdef"), true),
                        (prefixed("vethabcdef0"), true),
                        (prefixed("vethabcdef00"), false),
                        (prefixed("eth"), false),
                        (prefixed("vethb"), false),
                    ] {
                        gate.check(|rule| rule.in_interface(interface), matches);
                        gate.check(|rule| rule.not_in_interface(interface), !matches);
                    }
                    let mut batch = Batch::new(&Table::new(family, "cwt"));
                    batch.add_elements("ranges", &[range(1, around), range(2, beside)]);
                    gate.nft.commit(&batch).expect("elements");
                    for (service, inside) in [(1, true), (2, false), (3, false)] {
                        let key = [KeyField::Number(service), KeyField::SourceAddress(family)];
                        gate.check(|rule| rule.in_set(&key, "ranges"), inside);
                        let place = Register::new(3);
                        let loaded = |rule: Rule| rule.load_all(&key, place);
                        gate.check(|rule| loaded(rule).found_in("ranges", place), inside);
                        gate.check(|rule| loaded(rule).not_found_in("ranges", place), !inside);
                    }
                });
            });
        }
    }

    #[test]
    fn filters_are_the_chains_that_may_drop_what_passes_through_or_is_for_the_node() {
        in_namespace("nft-filters", || {
            let mut nft = Nft::open().expect("nftables");
            assert_eq!(nft.filters().expect("listed"), [], "nothing is there");
            for rules in [
                // Nothing that they do meets a packet that passes through.
                "add table ip idle",
                "add chain ip idle forward { type filter hook forward priority 0; }",
                "add chain ip idle jumped",
                "add rule ip idle jumped drop",
                "add chain ip idle nat { type nat hook prerouting priority -100; }",
            ] {
                run(&format!("nft {rules}"));
            }
            assert_eq!(nft.filters().expect("listed"), [], "{}", listing());
            for rules in [
                "add chain ip idle input { type filter hook input priority 0; policy drop; }",
                "add chain ip idle late { type filter hook postrouting priority 0; policy drop; }",
                "add table inet firewall",
                "add chain inet firewall forward { type filter hook forward priority 0; }",
                "add rule inet firewall forward ct state invalid drop",
                "add chain inet firewall early { type filter hook ingress device \"lo\" priority 0; }",
                "add rule inet firewall early drop",
                "add rule ip idle nat tcp dport 1 redirect to 2",
                "add table ip6 raw",
                "add chain ip6 raw prerouting { type filter hook prerouting priority -300; }",
                "add rule ip6 raw prerouting notrack",
            ] {
                run(&format!("nft {rules}"));
            }
            let found = nft.filters().expect("listed");
            let mut found: Vec<_> = found
                .iter()
                .map(|filter| {
                    let netlink::nft::Filter {
                        family,
                        table,
                        chain,
                        is_of_node,
                    } = filter;
                    (*family, table.as_str(), chain.as_str(), *is_of_node)
                })
                .collect();
            found.sort_unstable();
            let expected = [
                ("inet", "firewall", "early", false),
                ("inet", "firewall", "forward", false),
                ("ip", "idle", "input", true),
                ("ip", "idle", "late", false),
                ("ip", "idle", "nat", false),
                ("ip6", "raw", "prerouting", false),
            ];
            assert_eq!(found, expected, "{}", listing());
        });
    }

    #[test]
    fn sources_and_marks_of_connections_are_what_nft_makes_of_them() {
        in_namespace("snat", || {
            let address = "192.0.2.7".parse().expect("an address");
            let ports = [SourcePorts::Kept, SourcePorts::Random, SourcePorts::FullyRandom];
            let mut layout = Layout::new(table());
            layout.add_chain(
                Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
                ports.map(|ports| Rule::new(format!("{ports:?}")).source_nat(address, ports)),
            );
            let filter = BaseChain::new(ChainKind::Filter, Hook::Prerouting, -80);
            layout.add_chain(
                Chain::base("marks", filter),
                [
                    Rule::new("new")
                        .connection_is_new()
                        .set_connection_mark_bits(0x80),
                    Rule::new("restored").connection_mark(0x80).set_mark_bits(0x80),
                ],
            );
            let mut nft = Nft::open().expect("a socket");
            assert_eq!(nft.ensure(&layout).expect("taken"), Repair::Rebuilt);
            assert_eq!(nft.ensure(&layout).expect("taken"), Repair::Unchanged);
            let listing = listing();
            let rules: Vec<&str> = listing
                .lines()
                .filter_map(|line| Some(line.split_once(" comment ")?.0.trim()))
                .collect();
            let expected = [
                "snat to 192.0.2.7",
                "snat to 192.0.2.7 random",
                "snat to 192.0.2.7 fully-random",
                "ct state new ct mark set ct mark | 0x00000080",
                "ct mark & 0x00000080 == 0x00000080 meta mark set meta mark | 0x00000080",
            ];
            assert_eq!(rules, expected, "{listing}");
        });
    }
}

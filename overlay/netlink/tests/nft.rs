//! The nftables and conntrack encodings against the kernel, each test in a network namespace of its own.

mod privileged {
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::Duration;

    use netlink::Namespace;
    use netlink::conntrack::Conntrack;
    use netlink::nft::rule::{IcmpVersion, KeyField, Reject};
    use netlink::nft::{
        BaseChain, Batch, Chain, DataType, Element, ElementData, Family, Layout, Monitor, Nft, Repair, Rule,
        Set, SetKind, Table, Verdict,
    };

    /// Runs a test in a fresh namespace, or says that it was skipped.
    fn in_namespace(test: &str, body: impl FnOnce() + Send) {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED {test}: needs root");
            return;
        }
        let name = format!("cwt-nft-{}-{test}", std::process::id());
        let namespace = Namespace::create(&name).expect("a namespace");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| namespace.run(body)));
        Namespace::delete(&name).expect("the namespace was there");
        result.expect("no panic in the namespace").expect("entered");
    }

    fn listing() -> String {
        let output = Command::new("nft")
            .args(["list", "ruleset"])
            .output()
            .expect("nft is installed");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn table() -> Table {
        Table::new(Family::Ip, "cwt")
    }

    fn endpoints() -> Set {
        use DataType::{InetProto, InetService, Ipv4Addr, Mark};
        Set {
            name: "endpoints".into(),
            key: vec![Ipv4Addr, InetProto, InetService, Mark],
            kind: SetKind::Map(vec![Ipv4Addr, InetService]),
        }
    }

    fn services() -> Set {
        use DataType::{InetProto, InetService, Ipv4Addr};
        Set {
            name: "services".into(),
            key: vec![Ipv4Addr, InetProto, InetService],
            kind: SetKind::VerdictMap,
        }
    }

    fn layout() -> Layout {
        use KeyField::{DestinationAddress4, DestinationPort, Protocol, Random};
        let pods = "10.244.0.0/16".parse().expect("a network");
        let mut layout = Layout::new(table());
        layout.add_set(endpoints()).add_set(services());
        layout.add_set(Set {
            name: "plain".into(),
            key: vec![DataType::Ipv4Addr],
            kind: SetKind::Set,
        });
        let key = [DestinationAddress4, Protocol, DestinationPort];
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
                    .out_interface("eth0")
                    .masquerade(),
                Rule::new("hairpin")
                    .destination_was_translated()
                    .in_set(&[DestinationAddress4], "plain")
                    .masquerade(),
            ],
        );
        layout.add_chain(
            Chain::regular("to-two"),
            [
                Rule::new("mark").set_mark_bits(0x4000),
                Rule::new("pick").destination_nat4_from(
                    &[DestinationAddress4, Protocol, DestinationPort, Random(2)],
                    "endpoints",
                ),
            ],
        );
        layout.add_chain(
            Chain::regular("refuse"),
            [
                Rule::new("tcp").protocol(6).count().reject(Reject::TcpReset),
                Rule::new("rest").reject(Reject::PortUnreachable(IcmpVersion::V4)),
            ],
        );
        layout
    }

    fn element(slot: u32) -> Element {
        let mut key = vec![10, 96, 0, 1, 6, 0, 0, 0];
        key.extend([1, 187, 0, 0]);
        key.extend(slot.to_ne_bytes());
        Element {
            key,
            data: ElementData::Value(vec![
                10,
                244,
                1,
                2 + u8::try_from(slot).expect("small"),
                0,
                80,
                0,
                0,
            ]),
        }
    }

    fn service(chain: &str) -> Element {
        let verdict = Verdict::Goto(chain.into());
        Element {
            key: vec![10, 96, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0],
            data: ElementData::Verdict(verdict),
        }
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
                .map(|slot| Element {
                    key: [10, 96, 0, 1, 6, 0, 0, 0, 1, 187, 0, 0]
                        .into_iter()
                        .chain(slot.to_ne_bytes())
                        .collect(),
                    data: ElementData::Value(vec![10, 244, 1, 2, 0, 80, 0, 0]),
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
                (vec!["flush", "chain", "ip", "cwt", "to-two"], vec!["to-two"]),
                (
                    vec!["insert", "rule", "ip", "cwt", "prerouting", "accept"],
                    vec!["prerouting"],
                ),
                (
                    vec!["flush", "chain", "ip", "cwt", "postrouting"],
                    vec!["postrouting"],
                ),
            ] {
                let status = Command::new("nft")
                    .args(&damage)
                    .status()
                    .expect("nft is installed");
                assert!(status.success(), "{damage:?}");
                let chains = repaired.into_iter().map(str::to_owned).collect();
                assert_eq!(
                    nft.ensure(&layout()).expect("repaired"),
                    Repair::Chains(chains),
                    "{damage:?}"
                );
                assert_eq!(
                    nft.ensure(&layout()).expect("read"),
                    Repair::Unchanged,
                    "{damage:?}"
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
            let mut nft = Nft::open().expect("a socket");
            let mut monitor = Monitor::open(&table(), nft.port()).expect("a socket");
            nft.ensure(&layout()).expect("written");
            assert!(
                !monitor.wait(Duration::from_millis(50)).expect("events"),
                "own changes are no news"
            );
            let other = ["add", "table", "ip", "other"];
            assert!(
                Command::new("nft")
                    .args(other)
                    .status()
                    .expect("nft is installed")
                    .success()
            );
            assert!(
                !monitor.wait(Duration::from_millis(50)).expect("events"),
                "another table is no news"
            );
            let delete = ["delete", "table", "ip", "cwt"];
            assert!(
                Command::new("nft")
                    .args(delete)
                    .status()
                    .expect("nft is installed")
                    .success()
            );
            assert!(monitor.wait(Duration::from_secs(5)).expect("events"));
        });
    }

    #[test]
    fn a_tracked_flow_is_listed_with_both_directions_and_can_be_forgotten() {
        in_namespace("conntrack", || {
            let up = Command::new("ip")
                .args(["link", "set", "lo", "up"])
                .status()
                .expect("ip is installed");
            assert!(up.success());
            // Tracking starts with the first rule that needs it.
            Nft::open().expect("a socket").ensure(&layout()).expect("written");
            let server = UdpSocket::bind("127.0.0.1:0").expect("a port");
            let client = UdpSocket::bind("127.0.0.1:0").expect("a port");
            let (to, from) = (
                server.local_addr().expect("bound"),
                client.local_addr().expect("bound"),
            );
            client.send_to(b"x", to).expect("sent");
            let mut conntrack = Conntrack::open().expect("a socket");
            let flows = conntrack
                .flows(|flow| flow.original.destination == to)
                .expect("listed");
            let [flow] = flows.as_slice() else {
                panic!("one flow, not {flows:?}")
            };
            assert_eq!((flow.original.source, flow.original.protocol), (from, 17));
            assert_eq!((flow.reply.source, flow.reply.destination), (to, from));
            conntrack.delete(flow).expect("deleted");
            assert_eq!(conntrack.flows(|_| true).expect("listed"), []);
            conntrack.delete(flow).expect("gone already is fine");
        });
    }
}

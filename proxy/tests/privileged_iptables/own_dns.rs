//! Rules for the DNS server of the node itself.

use super::*;

/// Rules and jumps of DNS, as `rules` prints them.
fn of_dns(suffix: &str) -> Vec<String> {
    let mut lines = rules(suffix);
    lines.retain(|line| line.contains("-A") && line.contains("CAUSEWAY-DNS"));
    lines
}

#[track_caller]
fn expect_of_dns(suffix: &str, dns_answers: bool) {
    let mut expected = Vec::new();
    for (family, address) in FAMILIES.iter().zip(["10.96.0.10/32", "fd00:96::a/128"]) {
        let line = |text: String| format!("{family} raw -A {text}");
        for chain in ["PREROUTING", "OUTPUT"] {
            let jump = "-m comment --comment \"DNS server of this node\" -j CAUSEWAY-DNS";
            expected.push(line(format!("{chain} {jump}")));
        }
        let question = ("-d", "question", "--dport");
        let answer = ("-s", "answer", "--sport");
        for (end, what, port) in dns_answers.then_some(question).into_iter().chain([answer]) {
            expected.extend(["udp", "tcp"].map(|protocol| {
                line(format!(
                    "CAUSEWAY-DNS {end} {address} -p {protocol} -m comment --comment {what} -m {protocol} {port} 53 \
                     -j CT --notrack"
                ))
            }));
        }
    }
    assert_eq!(of_dns(suffix), expected, "answers: {dns_answers}");
}

#[test]
fn questions_to_the_nodes_own_dns_are_untracked_while_it_answers() {
    with_each_variant(
        "questions to the node's own DNS are untracked while it answers",
        |variant, suffix| {
            let mut datapath = open(variant);
            datapath.set_context(&node()).expect("context");
            assert_eq!(of_dns(suffix), Vec::<String>::new(), "a node without DNS");
            for dns_answers in [true, false, true] {
                let context = node_with_dns(dns_answers);
                assert_ne!(datapath.set_context(&context).expect("context"), 0);
                expect_of_dns(suffix, dns_answers);
                assert_eq!(datapath.set_context(&context).expect("context"), 0, "again");
                let mut next = open(variant);
                assert_eq!(
                    next.set_context(&context).expect("context"),
                    0,
                    "in the next process"
                );
            }
            let damage: [&[&str]; 3] = [&["-D", "CAUSEWAY-DNS", "1"], &["-D", "OUTPUT", "1"], &["-F"]];
            for arguments in damage {
                let arguments = [&["-t", "raw"], arguments].concat();
                run(&format!("iptables-{suffix}"), &arguments);
                let repaired = datapath.repair().expect("repair");
                assert_ne!(repaired, Vec::<String>::new(), "{arguments:?}");
                expect_of_dns(suffix, true);
            }
        },
    );
}

#[test]
fn what_leaves_dns_untracked_goes_with_the_address_and_with_the_datapath() {
    with_each_variant("what leaves DNS untracked goes", |variant, suffix| {
        let served = || {
            let mut datapath = open(variant);
            datapath.set_context(&node_with_dns(true)).expect("context");
            rules(suffix)
        };
        let without_dns = |mut lines: Vec<String>| {
            lines.retain(|line| !line.contains("CAUSEWAY-DNS"));
            lines
        };
        let of_both = served();
        let of_v4 = NodeContext {
            local_dns: [DNS[0].parse().expect("an address")].into(),
            ..node()
        };
        for (context, expected) in [(of_v4, [true, false]), (node(), [false, false])] {
            let mut next = open(variant);
            next.set_context(&context).expect("context");
            let has_dns = |family: &str| of_dns(suffix).iter().any(|line| line.starts_with(family));
            assert_eq!(FAMILIES.map(|family| has_dns(&format!("{family} "))), expected);
            assert_eq!(next.repair().expect("repair"), Vec::<String>::new());
        }
        assert_eq!(rules(suffix), without_dns(of_both.clone()));

        assert_eq!(served(), of_both);
        for (datapath, expected) in [
            (DatapathKind::Iptables { variant }, of_both.clone()),
            (DatapathKind::Nftables, without_dns(of_both)),
        ] {
            let config = Config {
                settings: Settings::new("here".into(), [network("10.244.0.0/16")]),
                datapath,
            };
            let removed = Proxy::remove_other_datapaths(&config, Path::new("/nonexistent/cwt-pins"));
            removed.expect("removed");
            assert_eq!(rules(suffix), expected, "{config:?}");
        }
    });
}

#[test]
fn what_the_other_variant_left_untracked_goes_when_this_one_takes_over() {
    let test = "what the other variant left untracked goes";
    with_each_variant(test, |variant, suffix| {
        let (other, others) = match variant {
            Variant::Nft => (Variant::Legacy, "legacy"),
            Variant::Legacy | Variant::Auto => (Variant::Nft, "nft"),
        };
        if Command::new(format!("iptables-{others}"))
            .arg("--version")
            .output()
            .is_err()
        {
            return skipped(test, &format!("iptables-{others} is not installed"));
        }
        for family in FAMILIES {
            let foreign = "-t raw -A OUTPUT -p tcp --dport 9 -j ACCEPT";
            run(
                &format!("{family}-{others}"),
                &foreign.split(' ').collect::<Vec<_>>(),
            );
        }
        for context in [node_with_dns(true), node_with_dns(false), node()] {
            let mut before = open(other);
            before.set_context(&node_with_dns(true)).expect("context");
            drop(before);
            expect_of_dns(others, true);
            let mut without = rules(others);
            without.retain(|line| !line.contains("CAUSEWAY-DNS"));

            let mut next = open(variant);
            expect_of_dns(others, true);
            assert_ne!(next.set_context(&context).expect("context"), 0);
            assert_eq!(rules(others), without, "{context:?}");
            if context.local_dns.is_empty() {
                assert_eq!(of_dns(suffix), Vec::<String>::new());
            } else {
                expect_of_dns(suffix, context.dns_answers);
            }
            assert_eq!(next.set_context(&context).expect("context"), 0, "again");
        }
    });
}

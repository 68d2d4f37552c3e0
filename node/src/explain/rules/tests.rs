use netlink::nft::Verdict;
use netlink::nft::ruleset::{ChainName, Part, ReadRule, RuleFamily, Slot};

use super::*;

const DROP: Part = Part::Verdict(Verdict::Drop);
const RAW: i32 = -300;

fn chain(name: &str) -> ChainName {
    ChainName {
        family: RuleFamily::Inet,
        table: "theirs".to_owned(),
        chain: name.to_owned(),
    }
}

/// Base chains by hook, priority, and their one rule.
fn ruleset(chains: &[(u32, i32, &[Part])]) -> Ruleset {
    let mut ruleset = Ruleset::default();
    for (number, (hook, priority, parts)) in chains.iter().enumerate() {
        let name = chain(&number.to_string());
        ruleset.bases.push(Base {
            name: name.clone(),
            hook: *hook,
            priority: *priority,
            is_nat: false,
            drops: false,
        });
        let rule = ReadRule {
            handle: 7,
            parts: parts.to_vec(),
        };
        ruleset.rules.insert(name, vec![rule]);
    }
    ruleset
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn device(index: u32, name: &str) -> Device {
    Device {
        index,
        name: name.to_owned(),
    }
}

fn passing() -> Trip {
    Trip {
        source: address("10.244.1.5"),
        source_port: None,
        destination: address("10.244.2.6"),
        destination_port: Some(8080),
        asked: None,
        protocol: Protocol::Tcp,
        is_reply: false,
        is_masqueraded: false,
        comes_by: Some(device(4, "pod")),
        leaves_by: Some(device(2, "eth0")),
    }
}

/// Whether it is a problem, unknown, or neither.
#[track_caller]
fn check(trip: &Trip, chains: &[(u32, i32, &[Part])], expected: &str) {
    let step = step(&ruleset(chains), trip, &Vantage::default());
    let said = match step {
        Some(step) if !step.problems.is_empty() => "dropped",
        Some(step) if !step.unknown.is_empty() => "open",
        _ => "passes",
    };
    assert_eq!(said, expected, "{chains:?}");
}

/// `meta mark != 0x1`, `ct state new`, `ip daddr 10.244.2.6`.
fn compared(load: Part, operation: u32, value: &[u8]) -> Vec<Part> {
    vec![
        load,
        Part::Compare {
            from: Slot(0),
            operation,
            value: value.to_vec(),
        },
        DROP,
    ]
}

#[test]
fn a_drop_is_certain_unless_an_earlier_chain_may_have_made_another_packet_of_it() {
    let mark = compared(Part::Meta { key: 3, to: Slot(0) }, 1, &1_u32.to_ne_bytes());
    let state = compared(Part::Conntrack { key: 0, to: Slot(0) }, 0, &NEW.to_ne_bytes());
    let destination = Part::Payload {
        base: 1,
        offset: 16,
        len: 4,
        to: Slot(0),
    };
    let destination = compared(destination, 0, &[10, 244, 2, 6]);
    let limit = || Part::Other("limit".to_owned());
    let jump = || Part::Verdict(Verdict::Jump("2".to_owned()));
    let rows: &[(&[Part], &[Part], &str)] = &[
        (&[Part::Passive], &mark, "dropped"),
        (&[Part::SetsMark], &mark, "passes"),
        (&[limit(), Part::SetsMark], &mark, "passes"),
        (&[Part::Passive], &state, "dropped"),
        (&[Part::Untracks], &state, "passes"),
        (&[Part::Untracks], &destination, "dropped"),
        (&[Part::Passive], &destination, "dropped"),
        (&[Part::Translates], &destination, "open"),
        (&[limit(), Part::Translates], &destination, "open"),
        (&[Part::Other("queue".to_owned())], &destination, "open"),
        (&[Part::Other("payload".to_owned())], &destination, "open"),
        (
            &[limit(), Part::Verdict(Verdict::Accept)],
            &destination,
            "dropped",
        ),
        (&[limit(), jump()], &destination, "open"),
    ];
    for (before, then, expected) in rows {
        check(
            &passing(),
            &[
                (PREROUTING, RAW, before),
                (FORWARD, 0, then),
                // Only what leads there meets it.
                (INPUT, 0, &[Part::Translates]),
            ],
            expected,
        );
    }
    // Untracked, it does not go where the Service's rules send it.
    let asked = Trip {
        asked: Some((address("10.96.0.10"), 80)),
        ..passing()
    };
    let chains: &[(u32, i32, &[Part])] = &[(PREROUTING, RAW, &[Part::Untracks]), (FORWARD, 0, &destination)];
    check(&asked, chains, "open");
}

#[test]
fn what_a_node_sends_to_itself_comes_by_loopback_too() {
    let own = Trip {
        comes_by: None,
        leaves_by: None,
        ..passing()
    };
    let by_loopback = compared(Part::Meta { key: 4, to: Slot(0) }, 0, &1_u32.to_ne_bytes());
    for hook in [PREROUTING, INPUT] {
        check(&own, &[(hook, 0, &by_loopback)], "dropped");
    }
    check(&own, &[(FORWARD, 0, &[DROP])], "passes");
    let state = compared(Part::Conntrack { key: 0, to: Slot(0) }, 0, &NEW.to_ne_bytes());
    check(&own, &[(OUTPUT, RAW, &state)], "passes");
    check(&own, &[(PREROUTING, RAW, &state)], "dropped");
}

#[test]
fn chains_at_ingress_are_told_as_not_evaluated() {
    let others = Others {
        rules: ruleset(&[(INGRESS, 0, &[DROP]), (FORWARD, 0, &[DROP])]),
        ..Others::default()
    };
    let told = others.unread(&Vantage::default());
    let line =
        "chain inet theirs 0 is somebody else's and may drop or change it; its rules are not evaluated: ";
    assert!(matches!(&told[..], [one] if one.starts_with(line)), "{told:?}");
}

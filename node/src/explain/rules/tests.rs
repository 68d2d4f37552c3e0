use netlink::nft::Verdict;
use netlink::nft::ruleset::{ChainName, ReadRule, RuleFamily, Slot};

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
            devices: Vec::new(),
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

/// The same of a chain at these devices.
fn at_devices(hook: u32, devices: &[&str], parts: &[Part]) -> Ruleset {
    let mut ruleset = ruleset(&[(hook, 0, parts)]);
    for base in &mut ruleset.bases {
        base.name.family = RuleFamily::Netdev;
        base.devices = devices.iter().map(|name| (*name).to_owned()).collect();
    }
    let rules = std::mem::take(&mut ruleset.rules).into_iter();
    ruleset.rules = rules
        .map(|(name, rules)| {
            let family = RuleFamily::Netdev;
            (ChainName { family, ..name }, rules)
        })
        .collect();
    ruleset
}

#[test]
fn a_chain_of_a_device_drops_what_passes_that_device() {
    let at = |offset, address: [u8; 4]| {
        let loaded = Part::Payload {
            base: 1,
            offset,
            len: 4,
            to: Slot(0),
        };
        compared(loaded, 0, &address)
    };
    let wanted = |address| at(16, address);
    let from_endpoint = at(12, [10, 244, 2, 6]);
    let from_service = at(12, [10, 96, 0, 10]);
    let endpoint = wanted([10, 244, 2, 6]);
    let service = wanted([10, 96, 0, 10]);
    let invalid = compared(Part::Conntrack { key: 0, to: Slot(0) }, 0, &INVALID.to_ne_bytes());
    let own = Trip {
        comes_by: None,
        ..passing()
    };
    let asked = Trip {
        asked: Some((address("10.96.0.10"), 80)),
        ..passing()
    };
    // The answer to that, to a pod and to this node.
    let answer = Trip {
        source: asked.destination,
        source_port: asked.destination_port,
        destination: asked.source,
        destination_port: None,
        is_reply: true,
        comes_by: asked.leaves_by.clone(),
        leaves_by: asked.comes_by.clone(),
        ..asked.clone()
    };
    let port = Part::Payload {
        base: 2,
        offset: 0,
        len: 2,
        to: Slot(0),
    };
    let [from_port, from_service_port] =
        [8080_u16, 80].map(|number| compared(port.clone(), 0, &number.to_be_bytes()));
    let masqueraded = Trip {
        is_masqueraded: true,
        ..answer.clone()
    };
    let problem = |trip: &Trip, ruleset: &Ruleset| {
        let step = step(ruleset, trip, &Vantage::default())?;
        step.problems.first().cloned()
    };
    let dropped = |hook: &str| {
        let line = format!(
            "dropped by somebody else's rules: rule handle 7 of chain netdev theirs 0, at hook {hook}"
        );
        Some(line)
    };
    for (trip, hook, devices, parts, expected) in [
        (&passing(), INGRESS, &["pod"][..], &endpoint, dropped("ingress")),
        (&passing(), INGRESS, &["x", "po*"], &endpoint, dropped("ingress")),
        (&passing(), INGRESS, &["pod"], &invalid, dropped("ingress")),
        (&passing(), INGRESS, &["eth0"], &endpoint, None),
        (&passing(), INGRESS, &[], &endpoint, None),
        (&passing(), EGRESS, &["eth0"], &endpoint, dropped("egress")),
        (&passing(), EGRESS, &["eth0"], &invalid, None),
        (&own, INGRESS, &["eth0"], &endpoint, None),
        (&own, EGRESS, &["eth0"], &endpoint, dropped("egress")),
        // Before our rules send it on, and behind.
        (&asked, INGRESS, &["pod"], &service, dropped("ingress")),
        (&asked, INGRESS, &["pod"], &endpoint, None),
        (&asked, EGRESS, &["eth0"], &endpoint, dropped("egress")),
        (&answer, INGRESS, &["eth0"], &from_endpoint, dropped("ingress")),
        (&answer, INGRESS, &["eth0"], &from_service, None),
        (&answer, EGRESS, &["pod"], &from_endpoint, None),
        (&answer, EGRESS, &["pod"], &from_service, dropped("egress")),
        (&answer, EGRESS, &["pod"], &from_port, None),
        (&answer, EGRESS, &["pod"], &from_service_port, dropped("egress")),
        (&masqueraded, EGRESS, &["pod"], &from_endpoint, None),
        (&masqueraded, EGRESS, &["pod"], &from_service, dropped("egress")),
    ] {
        let ruleset = at_devices(hook, devices, parts);
        assert_eq!(problem(trip, &ruleset), expected, "{hook} {devices:?} {parts:?}");
    }
}

#[test]
fn an_answer_has_the_services_source_behind_its_translation() {
    let from = |address: &[u8]| {
        let source = Part::Payload {
            base: 1,
            offset: 12,
            len: 4,
            to: Slot(0),
        };
        compared(source, 0, address)
    };
    let [endpoint, service] = [[10, 244, 2, 6], [10, 96, 0, 10]].map(|address| from(&address));
    let to_pod = Trip {
        source: address("10.244.2.6"),
        source_port: Some(8080),
        destination: address("10.244.1.5"),
        destination_port: None,
        asked: Some((address("10.96.0.10"), 80)),
        is_reply: true,
        ..passing()
    };
    let to_node = Trip {
        leaves_by: None,
        ..to_pod.clone()
    };
    for (trip, hook, priority, has_services) in [
        (&to_pod, PREROUTING, 0, false),
        (&to_pod, FORWARD, 0, false),
        (&to_pod, POSTROUTING, 0, false),
        (&to_pod, POSTROUTING, SOURCE_NAT + 1, true),
        (&to_node, INPUT, 0, false),
        (&to_node, INPUT, SOURCE_NAT + 1, true),
    ] {
        let (drops, passes) = if has_services {
            (&service, &endpoint)
        } else {
            (&endpoint, &service)
        };
        check(trip, &[(hook, priority, drops)], "dropped");
        check(trip, &[(hook, priority, passes)], "passes");
    }
}

#[test]
fn rules_that_nobody_read_are_told() {
    let older = ("netdev".to_owned(), "theirs".to_owned(), "in".to_owned());
    let others = Others {
        of_devices: vec![older],
        legacy: vec!["filter".to_owned()],
        ..Others::default()
    };
    let told = others.unread(&Vantage::default());
    let line =
        "chain netdev theirs in is somebody else's and may drop or change it; its rules are not evaluated: ";
    let is_told = |told: &[String]| {
        matches!(told, [one, two] if one.starts_with(line)
            && two == "legacy iptables has a table filter: its rules are not evaluated")
    };
    assert!(is_told(&told), "{told:?}");
    assert_eq!(Others::default().unread(&Vantage::default()), [""; 0]);
    // Chains at a hook of devices that an older recording has without those.
    let with = |rules| Others {
        rules,
        ..Others::default()
    };
    let of_none = with(at_devices(INGRESS, &[], &[DROP])).unread(&Vantage::default());
    let line =
        "chain netdev theirs 0 is somebody else's and may drop or change it; its rules are not evaluated: ";
    assert!(
        matches!(of_none.as_slice(), [one] if one.starts_with(line)),
        "{of_none:?}"
    );
    for rules in [
        at_devices(INGRESS, &[], &[Part::Passive]),
        at_devices(INGRESS, &["eth0"], &[DROP]),
        ruleset(&[(FORWARD, 0, &[DROP])]),
    ] {
        assert_eq!(with(rules).unread(&Vantage::default()), [""; 0]);
    }
}

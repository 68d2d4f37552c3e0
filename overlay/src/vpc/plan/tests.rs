//! Places in a VPC, and what is planned for them.

use super::*;

fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

fn networks(text: &str) -> Vec<IpNetwork> {
    text.split_whitespace()
        .map(|text| text.parse().expect("a network"))
        .collect()
}

fn interface(number: u8, blocks: &str) -> Interface {
    Interface {
        mac: mac(number),
        address: Ipv4Addr::new(10, 0, number, 5),
        subnet: format!("10.0.{number}.0/24").parse().expect("a network"),
        device_index: u32::from(number),
        blocks: networks(blocks),
    }
}

/// Interfaces 0 and 1, which have the addresses 16 to 31 of their subnets, and 7 of the second.
fn interfaces() -> Interfaces {
    Interfaces {
        primary: interface(0, "10.0.0.16/28 2600:1f14::/80"),
        others: vec![interface(1, "10.0.1.16/28 10.0.1.7/32")],
    }
}

fn ways() -> Ways {
    Ways {
        interfaces: Some(interfaces()),
        vpc_networks: networks("10.0.0.0/16"),
        external_services: Vec::new(),
        snat: Snat::External,
        node_ports: false,
        mtu: Mtu(9001),
    }
}

fn pods(addresses: &str) -> Vec<PodRoute> {
    let pod = |text: &str| PodRoute {
        address: text.parse().expect("an address"),
        host_ifname: format!("cw{text}"),
        pod_mac: mac(9),
        is_limited: false,
    };
    addresses.split_whitespace().map(pod).collect()
}

/// The rules in words, and what was rejected.
#[track_caller]
fn check(change: impl FnOnce(&mut Ways), addresses: &str, rules: &[&str], rejected: &[&str]) {
    let mut ways = ways();
    change(&mut ways);
    let (planned, told) = plan(&ways, &pods(addresses));
    let mut found: Vec<(u32, String)> = planned
        .rules
        .iter()
        .map(|rule| (rule.priority, rule.to_string()))
        .collect();
    found.sort();
    let found: Vec<String> = found
        .into_iter()
        .map(|(_, text)| text.strip_suffix(" protocol 213").expect("ours").to_owned())
        .collect();
    assert_eq!(found, rules);
    let told: Vec<String> = told
        .iter()
        .map(|told| format!("{} {}", told.object, told.reason))
        .collect();
    assert_eq!(told, rejected);
    for rule in &planned.rules {
        assert!(is_of_a_plan(rule), "{rule}");
    }
    // In any other order it is the same.
    if let Some(interfaces) = &mut ways.interfaces {
        interfaces.others.reverse();
        interfaces.primary.blocks.reverse();
    }
    ways.external_services.reverse();
    ways.vpc_networks.reverse();
    let mut reversed = pods(addresses);
    reversed.reverse();
    reversed.extend(pods(addresses));
    assert_eq!(plan(&ways, &reversed).0, planned);
}

const OF_UPLINK: &str = "32765: from 10.0.1.5/32 table 2";

#[test]
fn a_pod_leaves_by_the_interface_that_its_address_is_of() {
    check(|_| (), "", &[OF_UPLINK], &[]);
    check(
        |_| (),
        "10.0.0.17 10.0.1.18 10.0.1.7 2600:1f14::5",
        &[
            "512: to 10.0.0.17/32 table 254",
            "512: to 10.0.1.18/32 table 254",
            "512: to 10.0.1.7/32 table 254",
            "512: to 2600:1f14::5/128 table 254",
            "1536: from 10.0.1.18/32 table 2",
            "1536: from 10.0.1.7/32 table 2",
            OF_UPLINK,
        ],
        &[],
    );
}

#[test]
fn connections_are_marked_where_something_is_translated() {
    let here = || Snat::Here {
        excluded: Vec::new(),
        random: Random::Prng,
    };
    let with = &["1024: fwmark 0x80/0x80 table 254", OF_UPLINK][..];
    check(|ways| ways.node_ports = true, "", with, &[]);
    check(|ways| ways.snat = here(), "", with, &[]);
}

#[test]
fn external_services_are_reached_by_the_primary_interface_and_may_answer_by_another() {
    check(
        |ways| ways.external_services = networks("198.51.100.9/24 192.0.2.0/24"),
        "10.0.1.18",
        &[
            "512: to 10.0.1.18/32 table 254",
            "1535: to 192.0.2.0/24 table 254",
            "1535: to 198.51.100.0/24 table 254",
            "1536: from 10.0.1.18/32 table 2",
            OF_UPLINK,
        ],
        &[],
    );
}

#[test]
fn a_pod_of_no_interface_keeps_the_rules_that_it_has() {
    let rules = |pod: &str| format!("512: to {pod} table 254");
    type Change = fn(&mut Ways);
    let rows: [(&str, &str, Change); 3] = [
        ("10.0.9.9", "is of no interface that is served", |_| ()),
        ("10.0.1.7", "is of several interfaces", |ways| {
            if let Some(interfaces) = &mut ways.interfaces {
                interfaces.primary.blocks.extend(networks("10.0.1.7/32"));
            }
        }),
        (
            "fd00::7",
            "is of IPv6 and of another interface than the primary one",
            |ways| {
                if let Some(interfaces) = &mut ways.interfaces {
                    interfaces.others[0].blocks.extend(networks("fd00::/80"));
                }
            },
        ),
    ];
    for (pod, reason, change) in rows {
        let host = IpNetwork::from(pod.parse::<IpAddr>().expect("an address"));
        let told = format!("pod address {pod} {reason}: it leaves as it did");
        check(change, pod, &[&rules(&host.to_string()), OF_UPLINK], &[&told]);
        let mut ways = ways();
        change(&mut ways);
        let undecided = plan(&ways, &pods(pod)).0.undecided;
        assert_eq!(undecided, BTreeSet::from([host.ip()]));
    }
}

#[test]
fn an_interface_that_cannot_be_served_is_told_and_stops_no_other() {
    type Spoil = fn(&mut Interface);
    let rows: [(&str, Spoil); 8] = [
        ("has another interface's MAC address", |bad| bad.mac = mac(0)),
        ("has another interface's MAC address", |bad| bad.mac = mac(1)),
        ("has another interface's device index 1", |bad| {
            bad.device_index = 1
        }),
        (
            "has the device index 0, whose table is not an interface's",
            |bad| bad.device_index = 0,
        ),
        (
            "has the device index 253, whose table is not an interface's",
            |bad| bad.device_index = 253,
        ),
        (
            "has the device index 252, whose table is not an interface's",
            |bad| bad.device_index = 252,
        ),
        (
            "has the address 10.0.3.5, which is not of its subnet 10.0.2.0/24",
            |bad| {
                bad.address = Ipv4Addr::new(10, 0, 3, 5);
            },
        ),
        (
            "is in the subnet 10.0.2.4/31, which has no room for a gateway",
            |bad| {
                bad.subnet = "10.0.2.4/31".parse().expect("a network");
            },
        ),
    ];
    for (reason, spoil) in rows {
        let mut bad = interface(2, "10.0.2.16/28");
        spoil(&mut bad);
        let told = format!("interface {} {reason}", bad.mac);
        let spoilt = |ways: &mut Ways| {
            if let Some(interfaces) = &mut ways.interfaces {
                interfaces.others.push(bad);
            }
        };
        check(
            spoilt,
            "10.0.1.18",
            &[
                "512: to 10.0.1.18/32 table 254",
                "1536: from 10.0.1.18/32 table 2",
                OF_UPLINK,
            ],
            &[&told],
        );
    }
    // The last index below the kernel's tables, and the first above (network cards count from 10000).
    for index in [251, 255, 10_101] {
        let mut far = ways();
        if let Some(interfaces) = &mut far.interfaces {
            interfaces.others[0].device_index = index;
        }
        let tables: Vec<u32> = plan(&far, &[])
            .0
            .uplinks
            .values()
            .map(|uplink| uplink.table)
            .collect();
        assert_eq!(tables, [index + 1]);
    }
}

#[test]
fn what_is_not_rules_follows_from_the_interfaces() {
    let mut ways = ways();
    ways.node_ports = true;
    ways.snat = Snat::Here {
        excluded: networks("192.0.2.7/24 fd00::/8"),
        random: Random::HashRandom,
    };
    let (planned, _) = plan(&ways, &[]);
    let inside = ["10.0.0.0/16", "10.0.0.0/24", "10.0.1.0/24", "192.0.2.0/24"];
    let mut expected = Plan {
        rules: planned.rules.clone(),
        uplinks: BTreeMap::from([(
            mac(1),
            Uplink {
                address: Ipv4Addr::new(10, 0, 1, 5),
                gateway: Ipv4Addr::new(10, 0, 1, 1),
                table: 2,
                mtu: Mtu(9001),
                blocks: networks("10.0.1.16/28 10.0.1.7/32").into_iter().collect(),
            },
        )]),
        translation: Some(Translation {
            primary: mac(0),
            address: Ipv4Addr::new(10, 0, 0, 5),
            node_ports: true,
            snat: Some(SourceNat {
                inside: inside.map(|text| text.parse().expect("a network")).into(),
                ports: SourcePorts::Random,
            }),
        }),
        loose: BTreeSet::from([mac(0)]),
        undecided: BTreeSet::new(),
        is_complete: true,
    };
    assert_eq!(planned, expected);

    ways.external_services = networks("198.51.100.0/24");
    ways.snat = Snat::External;
    let (planned, _) = plan(&ways, &[]);
    expected.rules.clone_from(&planned.rules);
    expected.loose.insert(mac(1));
    if let Some(translation) = &mut expected.translation {
        translation.snat = None;
    }
    assert_eq!(planned, expected);

    ways.node_ports = false;
    let (planned, _) = plan(&ways, &[]);
    expected.rules.clone_from(&planned.rules);
    (expected.translation, expected.loose) = (None, BTreeSet::from([mac(1)]));
    assert_eq!(planned, expected);
}

#[test]
fn before_the_interfaces_are_known_pods_of_this_node_reach_each_other_and_nothing_may_go() {
    let mut ways = ways();
    ways.interfaces = None;
    let (planned, rejected) = plan(&ways, &pods("10.0.1.18"));
    let expected = Plan {
        rules: BTreeSet::from([to(TO_POD, networks("10.0.1.18/32")[0])]),
        ..Plan::default()
    };
    assert_eq!((planned, rejected), (expected, Vec::new()));
}

#[test]
fn only_rules_that_a_plan_could_have_are_its_own() {
    let pod = networks("10.0.1.18/32")[0];
    let subnet = networks("10.0.1.0/24")[0];
    let rows: [(bool, Rule); 10] = [
        (true, to(TO_POD, pod)),
        (false, to(TO_POD, subnet)),
        (false, to(513, pod)),
        (true, from(FROM_POD, pod, 7)),
        (false, from(FROM_POD, subnet, 7)),
        (true, to(TO_EXTERNAL_SERVICE, subnet)),
        (true, marked()),
        (
            false,
            Rule {
                mark: (0x80, 0xff),
                ..marked()
            },
        ),
        (
            false,
            Rule {
                arrives_by: Some("eth0".to_owned()),
                ..from(FROM_POD, pod, 7)
            },
        ),
        (
            false,
            Rule {
                action: Action::Blackhole,
                ..from(FROM_POD, pod, 7)
            },
        ),
    ];
    for (expected, rule) in rows {
        let theirs = Rule {
            protocol: 3,
            ..rule.clone()
        };
        assert_eq!(
            (is_of_a_plan(&rule), is_of_a_plan(&theirs)),
            (expected, expected),
            "{rule}"
        );
    }
}

#[test]
fn what_all_pods_need_does_not_change_with_blocks_and_does_with_what_it_is_made_of() {
    let for_all = |change: fn(&mut Ways)| {
        let mut ways = Ways {
            snat: Snat::Here {
                excluded: Vec::new(),
                random: Random::Prng,
            },
            external_services: networks("192.0.2.0/24"),
            ..ways()
        };
        change(&mut ways);
        Plan::for_all(&ways)
    };
    let before = for_all(|_| {});
    let same: [fn(&mut Ways); 2] = [
        |ways| {
            let interfaces = ways.interfaces.as_mut().expect("they are known");
            interfaces.primary.blocks.clear();
            interfaces.others[0].blocks.extend(networks("10.0.1.32/28"));
        },
        |ways| ways.vpc_networks.extend(networks("10.0.0.0/16")),
    ];
    for change in same {
        assert_eq!(for_all(change), before);
    }
    let others: [fn(&mut Ways); 5] = [
        |ways| ways.snat = Snat::External,
        |ways| {
            ways.interfaces
                .as_mut()
                .expect("they are known")
                .others
                .push(interface(2, ""))
        },
        |ways| ways.interfaces.as_mut().expect("they are known").primary.mac = mac(7),
        |ways| ways.vpc_networks.clear(),
        |ways| ways.external_services.clear(),
    ];
    for (number, change) in others.into_iter().enumerate() {
        assert_ne!(for_all(change), before, "{number}");
    }
    assert!(before.is_complete && !for_all(|ways| ways.interfaces = None).is_complete);
}

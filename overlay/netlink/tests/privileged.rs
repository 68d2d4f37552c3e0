//! The real kernel, in namespaces made for it. Needs root; says so when it is not.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use netlink::rule::{Action, Rule};
use netlink::{
    AbsentIsFine, Address, Event, Events, Forwarding, Group, Kernel, LinkChange, LinkKind, Namespace,
    Neighbour, Netlink, NewLink, NewLinkKind, RootQdisc, Route, RouteFilter, TokenBucket, VethPeer, Vxlan,
    Way, sysctl,
};

const PROTOCOL: u8 = 213;

/// A named namespace, removed on drop.
struct TestNamespace {
    name: String,
    namespace: Namespace,
}

impl TestNamespace {
    fn new(label: &str) -> Self {
        let name = format!("cwt-nl-{label}-{}", std::process::id());
        let namespace = Namespace::create(&name).expect("make a namespace");
        Self { name, namespace }
    }

    fn netlink(&self) -> Netlink {
        Netlink::open_in(&self.namespace).expect("open a socket in it")
    }
}

impl Drop for TestNamespace {
    fn drop(&mut self) {
        if let Err(error) = Namespace::delete(&self.name) {
            eprintln!("left behind: {error}");
        }
    }
}

fn not_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    !root
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn veth_with_peer_in(
    kernel: &mut Netlink,
    name: &str,
    peer: &str,
    namespace: Option<Namespace>,
) -> netlink::Link {
    let mut link = NewLink::new(
        name,
        NewLinkKind::Veth(VethPeer {
            name: peer.to_owned(),
            mac: Some([0x0a, 0, 0, 0, 0, 2]),
            mtu: Some(1400),
            namespace,
        }),
    );
    link.mac = Some([0x0a, 0, 0, 0, 0, 1]);
    link.mtu = Some(1400);
    link.up = true;
    link.alias = Some("cwt".to_owned());
    kernel.create_link(&link).expect("make a veth")
}

#[test]
fn a_veth_is_made_with_its_other_end_in_another_namespace_and_both_are_up() {
    if not_root("veth") {
        return;
    }
    let (near, far) = (TestNamespace::new("near"), TestNamespace::new("far"));
    let mut kernel = near.netlink();
    let link = veth_with_peer_in(&mut kernel, "eth0", "cwpeer", Some(far.namespace.clone()));
    assert_eq!(link.kind, LinkKind::Veth);
    assert!(link.up && link.parent_elsewhere);
    assert_eq!(link.alias.as_deref(), Some("cwt"));
    assert_eq!((link.mac, link.mtu), (Some([0x0a, 0, 0, 0, 0, 1]), 1400));
    assert_eq!(kernel.link_at(link.index).expect("get"), Some(link.clone()));
    assert_eq!(kernel.link_named("nosuch").expect("get"), None);

    let other = far
        .netlink()
        .link_named("cwpeer")
        .expect("get")
        .expect("it is there");
    far.netlink()
        .change_link(other.index, &LinkChange::up())
        .expect("up");
    assert_eq!((other.mac, other.mtu), (Some([0x0a, 0, 0, 0, 0, 2]), 1400));

    let told = kernel.peer_of(link.index).expect("get").expect("it is there");
    assert_eq!(
        (told.index, &*told.name, told.mac),
        (other.index, "cwpeer", other.mac)
    );
    let back = far.netlink().peer_of(other.index).expect("get");
    assert_eq!(back.expect("it is there").name, "eth0");
    assert_eq!(kernel.peer_of(9_999).expect("get"), None);
    assert_eq!(kernel.peer_of(1).expect("the loopback"), None);

    let again = kernel.create_link(&NewLink::new("eth0", NewLinkKind::Bridge));
    assert!(again.expect_err("the name is taken").is_present());
    kernel.delete_link(link.index).expect("delete");
    assert_eq!(far.netlink().link_named("cwpeer").expect("get"), None);
    kernel
        .delete_link(link.index)
        .absent_is_fine()
        .expect("gone is fine");
}

#[test]
fn addresses_routes_neighbours_and_forwarding_entries_read_back_as_written() {
    if not_root("objects") {
        return;
    }
    let place = TestNamespace::new("objects");
    let mut kernel = place.netlink();
    let link = veth_with_peer_in(&mut kernel, "eth0", "eth1", None).index;
    let address = Address::global(link, "10.9.0.1/24".parse().expect("network"));
    kernel.add_address(&address).expect("add");
    kernel.add_address(&address).expect("add again");
    let read = kernel.addresses(Some(link)).expect("list");
    assert_eq!(
        read.iter()
            .filter(|found| found.network.is_ipv4())
            .collect::<Vec<_>>(),
        [&address]
    );

    let mut vxlan = NewLink::new(
        "flannel.7",
        NewLinkKind::Vxlan(Vxlan {
            vni: 7,
            local: Some(ip("10.9.0.1")),
            device: Some(link),
            port: 8472,
            learning: false,
            udp_csum: true,
            gbp: false,
            collect_metadata: false,
        }),
    );
    vxlan.up = true;
    let tunnel = kernel.create_link(&vxlan).expect("make a tunnel");
    assert_eq!(
        NewLinkKind::Vxlan(match tunnel.kind {
            LinkKind::Vxlan(read) => read,
            other => panic!("{other:?}"),
        }),
        vxlan.kind
    );

    let mut remote = Route::via(
        "10.5.1.0/24".parse().expect("net"),
        ip("10.5.1.0"),
        tunnel.index,
        PROTOCOL,
    );
    remote.onlink = true;
    let pod = Route::on_link("10.5.0.9/32".parse().expect("net"), link, PROTOCOL);
    for route in [&remote, &pod, &remote] {
        kernel.replace_route(route).expect("replace");
    }
    let mut ours = kernel.routes(&RouteFilter::made_by(PROTOCOL)).expect("list");
    ours.sort();
    assert_eq!(ours, [pod.clone(), remote.clone()]);
    assert_eq!(
        kernel
            .route_to(ip("10.9.0.77"))
            .expect("look up")
            .expect("on-link")
            .gateway,
        None
    );
    assert_eq!(kernel.route_to(ip("192.0.2.1")).expect("look up"), None);

    let neighbour = Neighbour::permanent(tunnel.index, ip("10.5.1.0"), [2, 2, 2, 2, 2, 2]);
    kernel.replace_neighbour(&neighbour).expect("replace");
    assert_eq!(
        kernel
            .neighbours(Some(tunnel.index))
            .expect("list")
            .into_iter()
            .filter(|n| n.permanent)
            .collect::<Vec<_>>(),
        std::slice::from_ref(&neighbour)
    );

    let first = Forwarding::permanent(tunnel.index, [2, 2, 2, 2, 2, 2], ip("10.9.0.2"));
    let moved = Forwarding {
        destination: ip("10.9.0.3"),
        ..first.clone()
    };
    kernel.replace_forwarding(&first).expect("replace");
    kernel.replace_forwarding(&moved).expect("replace");
    assert_eq!(
        kernel.forwarding(tunnel.index).expect("list"),
        std::slice::from_ref(&moved)
    );

    kernel.delete_forwarding(&moved).expect("delete");
    kernel.delete_neighbour(&neighbour).expect("delete");
    kernel.delete_route(&remote).expect("delete");
    assert!(kernel.delete_route(&remote).expect_err("gone").is_absent());
    assert!(kernel.delete_neighbour(&neighbour).expect_err("gone").is_absent());
    assert!(kernel.delete_forwarding(&moved).expect_err("gone").is_absent());
}

#[test]
fn a_refusal_names_the_operation_the_object_and_the_kernels_words() {
    if not_root("refusal") {
        return;
    }
    let place = TestNamespace::new("refusal");
    let route = Route::via("10.5.1.0/24".parse().expect("net"), ip("10.1.1.1"), 1, PROTOCOL);
    let error = place
        .netlink()
        .replace_route(&route)
        .expect_err("loopback is down");
    let text = error.to_string();
    assert!(
        text.starts_with("replace route 10.5.1.0/24 via 10.1.1.1 link 1 table 254 protocol 213: "),
        "{text}"
    );
}

#[test]
fn events_tell_of_changes_in_their_namespace_only() {
    if not_root("events") {
        return;
    }
    let (place, elsewhere) = (TestNamespace::new("events"), TestNamespace::new("quiet"));
    let mut events = Events::open_in(
        &place.namespace,
        &[Group::Links, Group::RoutesV4, Group::Neighbours],
    )
    .expect("subscribe");
    assert_eq!(events.next(Duration::from_millis(1)).expect("read"), None);
    elsewhere
        .netlink()
        .create_link(&NewLink::new("br0", NewLinkKind::Bridge))
        .expect("make");
    let mut kernel = place.netlink();
    let link = kernel
        .create_link(&NewLink::new("br1", NewLinkKind::Bridge))
        .expect("make");
    kernel.change_link(link.index, &LinkChange::up()).expect("up");
    let route = Route::on_link("10.5.1.0/24".parse().expect("net"), link.index, PROTOCOL);
    kernel.replace_route(&route).expect("route");
    kernel.delete_route(&route).expect("delete");
    kernel.delete_link(link.index).expect("delete");

    let mut seen = Vec::new();
    while let Some(event) = events.next(Duration::from_secs(2)).expect("read") {
        let last = matches!(&event, Event::LinkGone(gone) if gone.index == link.index);
        seen.push(event);
        if last {
            break;
        }
    }
    assert!(seen.contains(&Event::Route(route.clone())), "{seen:?}");
    assert!(seen.contains(&Event::RouteGone(route)), "{seen:?}");
    assert!(
        seen.iter()
            .all(|event| !matches!(event, Event::Link(link) if link.name == "br0"))
    );
    assert!(matches!(seen.last(), Some(Event::LinkGone(_))), "{seen:?}");
}

#[test]
fn a_closure_runs_inside_the_namespace_and_the_caller_stays_outside() {
    if not_root("run") {
        return;
    }
    let place = TestNamespace::new("run");
    let outside = Namespace::current().expect("current");
    let inside = place
        .namespace
        .run(|| Namespace::current().expect("current"))
        .expect("run");
    assert_eq!(inside, place.namespace);
    assert_eq!(Namespace::current().expect("current"), outside);
    assert!(Namespace::pinned().expect("list").contains(&place.name));
    let ensure = |value| {
        place
            .namespace
            .run(move || sysctl::ensure("net/ipv4/ip_forward", value))
    };
    for (value, writes) in [
        ("1", None),
        ("1", Some(false)),
        ("0", Some(true)),
        ("0", Some(false)),
    ] {
        let wrote = ensure(value).expect("run").expect("write");
        assert_eq!(wrote, writes.unwrap_or(wrote), "second write of {value}");
    }
}

/// Lines that `tc` prints.
fn tc(place: &TestNamespace, arguments: &[&str]) -> Vec<String> {
    let mut ip = std::process::Command::new("ip");
    ip.args(["netns", "exec", &place.name, "tc"]).args(arguments);
    let output = ip.output().expect("tc runs");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn a_token_bucket_is_put_at_a_devices_root_replaced_and_taken_away() {
    if not_root("qdisc") {
        return;
    }
    let place = TestNamespace::new("qdisc");
    let mut kernel = place.netlink();
    let link = veth_with_peer_in(&mut kernel, "eth0", "eth1", None).index;
    let other = kernel.link_named("eth1").expect("get").expect("it is there");
    kernel.change_link(other.index, &LinkChange::up()).expect("up");
    let kernels_own = Some(RootQdisc::Other("noqueue".to_owned()));
    assert_eq!(kernel.root_qdisc(link).expect("list"), kernels_own);
    tc(&place, &["qdisc", "add", "dev", "eth0", "root", "pfifo"]);
    assert_eq!(
        kernel.root_qdisc(link).expect("get"),
        Some(RootQdisc::Other("pfifo".to_owned()))
    );

    // As `tc` tells it: bits in a second, the burst as it follows from a rounded time, the limit as a time.
    let rows = [
        (2_500_000, 125_000, 187_500, "rate 20Mbit burst 125000b lat 25ms"),
        (
            125_000_000,
            1_000_000,
            4_125_000,
            "rate 1Gbit burst 1000000b lat 25ms",
        ),
        (1, 100, 200, "rate 8bit "),
        // More than 32 bits of rate, and of what may wait all that there is.
        (125_000_000_000_000, u32::MAX, u32::MAX, "rate 1000Tbit "),
    ];
    for (rate_bytes, burst_bytes, limit_bytes, text) in rows {
        let bucket = TokenBucket {
            rate_bytes,
            burst_bytes,
            limit_bytes,
        };
        for _ in 0..2 {
            kernel.replace_root_qdisc(link, &bucket).expect("replace");
            let read = kernel.root_qdisc(link).expect("get").expect("it is there");
            assert!(read.is(&bucket), "{bucket:?}: {read:?}");
            let told = tc(&place, &["qdisc", "show", "dev", "eth0"]);
            assert_eq!(told.len(), 1, "{told:?}");
            assert!(told[0].contains(text), "{bucket:?}: {told:?}");
        }
        let other = TokenBucket {
            limit_bytes: limit_bytes - 1,
            ..bucket
        };
        assert!(
            !kernel
                .root_qdisc(link)
                .expect("get")
                .expect("it is there")
                .is(&other)
        );
    }
    kernel.delete_root_qdisc(link).expect("delete");
    assert_eq!(kernel.root_qdisc(link).expect("list"), kernels_own);
    kernel
        .delete_root_qdisc(link)
        .absent_is_fine()
        .expect("gone is fine");
    assert_eq!(kernel.root_qdisc(link + 100).expect("list"), None);
}

#[test]
fn ways_are_as_the_routes_say() {
    if not_root("ways") {
        return;
    }
    let namespace = TestNamespace::new("ways");
    let mut kernel = namespace.netlink();
    let link = veth_with_peer_in(&mut kernel, "eth0", "cwpeer", None).index;
    let ip_command = |line: &str| {
        let words = ["-n", &namespace.name].into_iter().chain(line.split_whitespace());
        let ran = Command::new("ip").args(words).output().expect("ip is installed");
        assert!(
            ran.status.success(),
            "{line}: {}",
            String::from_utf8_lossy(&ran.stderr)
        );
    };
    for line in [
        "link set cwpeer up",
        "address add 10.9.0.1/24 dev eth0",
        "address add fd09::1/64 dev eth0 nodad",
        "route add 10.9.2.0/24 via 10.9.0.2",
        "route add fd09:2::/64 via fd09::2",
        "route add 10.9.3.0/24 via 10.9.0.2 mtu 1300 hoplimit 10",
        "route add fd09:3::/64 via fd09::2 mtu 1300",
        "route add 10.9.4.0/24 nexthop via 10.9.0.2 nexthop via 10.9.0.3",
        "route add fd09:4::/64 nexthop via fd09::2 nexthop via fd09::3",
        "route add 10.9.5.0/24 via inet6 fd09::2",
        "route add 10.9.6.0/24 dev eth0",
        "route add 10.9.7.0/24 dev cwpeer",
        "route add fd09:7::/64 dev cwpeer",
        "nexthop add id 1 via 10.9.0.2 dev eth0",
        "route add 10.9.10.0/24 nhid 1",
        "route add unreachable 10.9.8.0/24",
        "route add default via 10.9.0.9",
        "rule add from 10.9.0.1 to 10.9.9.0/24 lookup 7",
        "route add 10.9.9.0/24 via 10.9.0.7 table 7",
    ] {
        ip_command(line);
    }
    let way = |neighbour: &str| {
        Some(Way {
            neighbour: (!neighbour.is_empty()).then(|| ip(neighbour)),
            mtu: None,
            hops: None,
        })
    };
    let with = |way: Option<Way>, mtu, hops| way.map(|way| Way { mtu, hops, ..way });
    let rows = [
        ("10.9.0.77", way("10.9.0.77")),
        ("fd09::77", way("fd09::77")),
        ("10.9.2.2", way("10.9.0.2")),
        ("fd09:2::2", way("fd09::2")),
        ("10.9.3.2", with(way("10.9.0.2"), Some(1300), Some(10))),
        ("fd09:3::2", with(way("fd09::2"), Some(1300), None)),
        ("10.9.4.2", way("")),
        ("fd09:4::2", way("")),
        ("10.9.5.2", way("")),
        ("10.9.6.2", way("10.9.6.2")),
        // By this device nothing leads there but the default route.
        ("10.9.7.2", way("10.9.0.9")),
        ("fd09:7::2", None),
        ("10.9.8.2", None),
        ("10.9.9.2", way("10.9.0.7")),
        // A nexthop object may be several.
        ("10.9.10.2", way("")),
        ("fd0a::1", None),
    ];
    let mut look = |rows: &[(&str, Option<Way>)]| {
        for (address, expected) in rows {
            let source = if address.contains(':') {
                "fd09::1"
            } else {
                "10.9.0.1"
            };
            let found = kernel.way_to(ip(address), ip(source), link).expect("look up");
            assert_eq!(found, *expected, "{address}");
        }
    };
    look(&rows);
    // Then the kernel tells no more of a nexthop object than its number.
    let set = namespace
        .namespace
        .run(|| sysctl::write("net/ipv4/nexthop_compat_mode", "0"));
    set.expect("entered").expect("set");
    look(&[("10.9.10.2", way(""))]);
}

#[test]
fn rules_read_back_as_written_are_never_doubled_and_change_their_maker_in_place() {
    if not_root("rules") {
        return;
    }
    let place = TestNamespace::new("rules");
    let mut kernel = place.netlink();
    let network = |text: &str| Some(text.parse().expect("a network"));
    let ours = |priority| Rule {
        protocol: PROTOCOL,
        ..Rule::new(priority, Action::LookUp(7))
    };
    let rules = [
        Rule {
            destination: network("10.9.0.5/32"),
            ..ours(100)
        },
        Rule {
            source: network("10.9.0.0/24"),
            action: Action::LookUp(10_001),
            ..ours(101)
        },
        Rule {
            mark: (0x80, 0x80),
            ..ours(102)
        },
        Rule {
            arrives_by: Some("eth0".to_owned()),
            leaves_by: Some("eth1".to_owned()),
            inverted: true,
            tos: 4,
            ..ours(103)
        },
        Rule {
            users: Some((0, 9)),
            suppressed_bits: Some(0),
            ..ours(104)
        },
        Rule {
            action: Action::GoTo(32766),
            ..ours(105)
        },
        Rule {
            action: Action::Blackhole,
            ..ours(106)
        },
        Rule {
            action: Action::Unreachable,
            ..ours(107)
        },
        Rule {
            action: Action::Prohibit,
            ..ours(108)
        },
        Rule {
            is_v6: true,
            destination: network("fd09::5/128"),
            ..ours(100)
        },
        Rule {
            is_v6: true,
            source: network("fd09::/64"),
            ..ours(101)
        },
    ];
    let groups = [Group::RulesV4, Group::RulesV6];
    let mut events = Events::open_in(&place.namespace, &groups).expect("subscribe");
    // Twice: the kernel would keep both.
    for rule in rules.iter().chain(&rules) {
        kernel.add_rule(rule).expect("add");
    }
    let made_by = |kernel: &mut Netlink, maker: u8| -> Vec<Rule> {
        let rules = kernel.all_rules().expect("list").into_iter();
        rules.filter(|rule| rule.protocol == maker).collect()
    };
    assert_eq!(made_by(&mut kernel, PROTOCOL), rules);
    for rule in &rules {
        let event = events.next(Duration::from_secs(5)).expect("read");
        assert_eq!(event, Some(Event::Rule(rule.clone())));
    }

    // Made by `ip`, which says so, and by a program that does not say who it is.
    for maker in [3, 0] {
        let theirs = Rule {
            destination: network("10.9.0.9/32"),
            protocol: maker,
            ..ours(200)
        };
        let own = Rule {
            protocol: PROTOCOL,
            ..theirs.clone()
        };
        kernel.add_rule(&theirs).expect("add");
        let of_priority = |kernel: &mut Netlink| -> Vec<Rule> {
            let rules = kernel.all_rules().expect("list").into_iter();
            rules.filter(|rule| rule.priority == 200).collect()
        };
        assert_eq!(of_priority(&mut kernel), std::slice::from_ref(&theirs));
        kernel.take_over_rule(&theirs, PROTOCOL).expect("take over");
        assert_eq!(of_priority(&mut kernel), std::slice::from_ref(&own));
        let others = Rule {
            protocol: 4,
            ..own.clone()
        };
        let refused = kernel.delete_rule(&others).expect_err("it is not theirs");
        assert!(refused.is_absent(), "{refused}");
        kernel.delete_rule(&own).expect("delete");
    }

    for rule in &rules {
        kernel.delete_rule(rule).expect("delete");
        kernel.delete_rule(rule).absent_is_fine().expect("gone is fine");
    }
    assert_eq!(made_by(&mut kernel, PROTOCOL), []);
    let unclear = Rule {
        more: true,
        ..ours(109)
    };
    for refused in [kernel.add_rule(&unclear), kernel.delete_rule(&unclear)] {
        assert_eq!(
            refused.expect_err("it is another rule").errno(),
            Some(nix::errno::Errno::EINVAL)
        );
    }
}

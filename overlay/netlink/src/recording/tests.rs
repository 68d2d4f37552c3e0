//! Look-ups in small tables, without a kernel. `tests/recording.rs` compares large ones with the kernel's.

use std::net::IpAddr;

use super::{Recording, TableRoute};
use crate::address::Address;
use crate::link::{Link, LinkKind};
use crate::route::{Found, Lookup, Route, RouteKind, TABLE_MAIN};
use crate::rule::{Action, Rule, TABLE_LOCAL};

const EXTRA: u32 = 77;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn link(index: u32, name: &str) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: None,
        mtu: 1500,
        up: true,
        running: true,
        loopback: index == 1,
        master: None,
        alias: None,
        parent: None,
        parent_elsewhere: false,
        kind: LinkKind::Physical,
    }
}

fn route(to: &str, device: u32, table: u32, metric: u32) -> TableRoute {
    TableRoute {
        route: Route {
            table,
            metric,
            ..Route::on_link(to.parse().expect("a network"), device, 4)
        },
        several: Vec::new(),
        tos: 0,
        from: None,
        dead: false,
    }
}

fn of_kind(kind: RouteKind, mut route: TableRoute) -> TableRoute {
    route.route.kind = kind;
    route
}

/// Three devices, the first rules, and an address on the second device.
fn recording() -> Recording {
    let own = of_kind(RouteKind::Local, route("10.0.0.1/32", 2, TABLE_LOCAL, 0));
    let mut recording = Recording {
        kernel: "6.18.44".to_owned(),
        links: vec![link(1, "lo"), link(2, "eth0"), link(3, "eth1")],
        addresses: vec![Address::global(2, "10.0.0.1/24".parse().expect("a network"))],
        rules: vec![
            Rule::new(0, Action::LookUp(TABLE_LOCAL)),
            Rule::new(32766, Action::LookUp(TABLE_MAIN)),
            Rule::new(32767, Action::LookUp(253)),
        ],
        routes: vec![own, route("10.0.0.0/24", 2, TABLE_MAIN, 0)],
        ..Recording::default()
    };
    for device in ["lo", "eth0", "eth1", "all"] {
        for (setting, value) in [
            ("accept_local", "0"),
            ("forwarding", "1"),
            ("route_localnet", "0"),
            ("rp_filter", "0"),
            ("src_valid_mark", "0"),
        ] {
            let path = format!("net/ipv4/conf/{device}/{setting}");
            recording.settings.insert(path, value.to_owned());
        }
    }
    recording
}

/// What becomes of a packet of this host, or of one from a source that comes in by a device.
fn told(recording: &Recording, to: &str, from: Option<(&str, u32)>) -> String {
    let packet = Lookup {
        destination: ip(to),
        source: from.map(|(source, _)| ip(source)),
        device: from.map(|(_, device)| device),
        mark: 0,
    };
    match recording.look_up(&packet) {
        Ok(Found::Route(route)) => format!("{} by {}", route.destination, route.link.unwrap_or_default()),
        Ok(Found::Other) => "several".to_owned(),
        Ok(Found::Refused(errno)) => format!("{errno:?}"),
        Err(undecided) => undecided.to_string(),
    }
}

#[test]
fn the_longest_prefix_comes_first_and_then_the_lowest_metric() {
    let mut recording = recording();
    recording.routes.extend([
        route("10.0.0.0/8", 3, TABLE_MAIN, 5),
        route("10.1.0.0/16", 3, TABLE_MAIN, 20),
        route("10.1.0.0/16", 2, TABLE_MAIN, 10),
        of_kind(RouteKind::Blackhole, route("10.2.0.0/16", 0, TABLE_MAIN, 0)),
        TableRoute {
            dead: true,
            ..route("10.1.1.0/24", 3, TABLE_MAIN, 0)
        },
        TableRoute {
            several: vec![2, 3],
            ..route("10.3.0.0/16", 0, TABLE_MAIN, 0)
        },
    ]);
    for (to, expected) in [
        ("10.0.0.1", "10.0.0.1/32 by 2"),
        ("10.0.0.9", "10.0.0.0/24 by 2"),
        ("10.9.0.9", "10.0.0.0/8 by 3"),
        ("10.1.1.9", "10.1.0.0/16 by 2"),
        ("10.2.0.9", "EINVAL"),
        ("10.3.0.9", "several"),
        ("11.0.0.1", "ENETUNREACH"),
    ] {
        assert_eq!(told(&recording, to, None), expected, "{to}");
    }
}

#[test]
fn rules_are_asked_in_their_order_and_go_on_where_a_table_has_nothing() {
    let mut recording = recording();
    recording.routes.extend([
        route("0.0.0.0/0", 2, TABLE_MAIN, 0),
        route("0.0.0.0/0", 3, EXTRA, 0),
        of_kind(RouteKind::Other(9), route("10.7.0.0/16", 0, EXTRA, 0)),
    ]);
    let to_extra = |priority| Rule {
        destination: Some("10.0.0.0/8".parse().expect("a network")),
        ..Rule::new(priority, Action::LookUp(EXTRA))
    };
    recording.rules.insert(1, to_extra(10));
    assert_eq!(told(&recording, "10.9.0.1", None), "0.0.0.0/0 by 3");
    assert_eq!(told(&recording, "11.0.0.1", None), "0.0.0.0/0 by 2");
    // A route of kind `throw`.
    assert_eq!(told(&recording, "10.7.0.1", None), "0.0.0.0/0 by 2");
    recording.rules[1].suppressed_bits = Some(0);
    assert_eq!(told(&recording, "10.9.0.1", None), "0.0.0.0/0 by 2");
    recording.rules[1].suppressed_bits = None;
    recording.rules[1].inverted = true;
    assert_eq!(told(&recording, "11.0.0.1", None), "0.0.0.0/0 by 3");
    recording.rules.insert(1, Rule::new(5, Action::GoTo(32766)));
    assert_eq!(told(&recording, "11.0.0.1", None), "0.0.0.0/0 by 2");
    recording.rules[1].action = Action::Prohibit;
    assert_eq!(told(&recording, "11.0.0.1", None), "EACCES");
}

#[test]
fn what_comes_in_needs_forwarding_and_a_source_that_is_routed_back() {
    let mut recording = recording();
    recording.routes.push(route("10.1.0.0/16", 3, TABLE_MAIN, 0));
    let stranger = Some(("10.1.0.9", 2));
    assert_eq!(told(&recording, "10.1.0.1", stranger), "10.1.0.0/16 by 3");
    let mut set = |device: &str, setting: &str, value: &str| {
        let path = format!("net/ipv4/conf/{device}/{setting}");
        recording.settings.insert(path, value.to_owned());
        [stranger, Some(("10.0.0.9", 2)), Some(("10.0.0.1", 3))]
            .map(|from| told(&recording, "10.1.0.1", from))
    };
    let goes = "10.1.0.0/16 by 3";
    assert_eq!(set("all", "rp_filter", "1"), ["EINVAL", goes, "EINVAL"]);
    assert_eq!(set("eth0", "rp_filter", "2"), [goes, goes, "EINVAL"]);
    assert_eq!(
        set("eth0", "forwarding", "0"),
        ["EHOSTUNREACH", "EHOSTUNREACH", "EINVAL"]
    );
    recording.kernel = "6.1.0-13-amd64".to_owned();
    recording
        .settings
        .insert("net/ipv4/conf/eth0/rp_filter".to_owned(), "1".to_owned());
    assert_eq!(told(&recording, "10.0.0.1", stranger), "EXDEV");
}

#[test]
fn what_is_not_recorded_is_not_guessed() {
    let mut recording = recording();
    let told_of = |recording: &Recording, to| told(recording, to, None);
    recording.rules.insert(
        1,
        Rule {
            destination: Some("10.0.0.0/24".parse().expect("a network")),
            more: true,
            ..Rule::new(9, Action::Blackhole)
        },
    );
    let more = "what is recorded does not tell: rule 9 asks for more than is recorded of it";
    assert_eq!(told_of(&recording, "10.0.0.9"), more);
    assert_eq!(told_of(&recording, "10.8.0.9"), "ENETUNREACH");
    recording.rules.remove(1);
    recording
        .routes
        .extend([2, 3].map(|device| route("0.0.0.0/0", device, TABLE_MAIN, 0)));
    let of_same_metric = "what is recorded does not tell: several routes to 0.0.0.0/0 have the same metric, and \
                          neighbours decide between them";
    assert_eq!(told_of(&recording, "10.8.0.9"), of_same_metric);
    let many = "what is recorded does not tell: 224.0.0.5 is for many, and who takes part is not recorded";
    assert_eq!(told_of(&recording, "224.0.0.5"), many);
    recording.settings.clear();
    let setting = "what is recorded does not tell: net/ipv4/conf/eth0/forwarding is not known";
    assert_eq!(told(&recording, "10.0.0.1", Some(("10.0.0.9", 2))), setting);
    let nowhere = "what is recorded does not tell: there is no device 9";
    assert_eq!(told(&recording, "10.0.0.1", Some(("10.0.0.9", 9))), nowhere);
}

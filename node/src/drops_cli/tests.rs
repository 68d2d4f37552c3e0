use clap::Parser;
use trace::drops::Kind;
use trace::hop::Protocol;

use super::*;
use crate::cli::{Cli, Command};
use crate::ends::pods::Pods;

fn args(line: &str) -> DropsArgs {
    let words = ["causeway", "drops"].into_iter().chain(line.split_whitespace());
    match Cli::try_parse_from(words).expect("valid").command {
        Command::Drops(args) => args,
        other => panic!("{other:?}"),
    }
}

fn dropped(at: &str, source_pod: Option<&str>, destination_pod: Option<&str>) -> Dropped {
    Dropped {
        packets: 1,
        bytes: 60,
        first: Timestamp::UNIX_EPOCH,
        last: Timestamp::UNIX_EPOCH,
        at: at.to_owned(),
        source_pod: source_pod.map(str::to_owned),
        destination_pod: destination_pod.map(str::to_owned),
        kind: Kind {
            reason: "NETFILTER_DROP".to_owned(),
            place: "nft_do_chain".to_owned(),
            netns: 1,
            device: "\u{1b}[2J".to_owned(),
            ethertype: 0x0800,
            protocol: Some(Protocol::UDP),
            opens: false,
            wrapped: false,
            source: Some("10.244.1.2".parse().expect("an address")),
            source_port: None,
            destination: Some("10.244.1.3".parse().expect("an address")),
            destination_port: Some(53),
        },
        cause: None,
        ordinary: false,
    }
}

fn resolver() -> Resolver {
    let pods = Pods::of(&[
        ("shop/web", "node-1", "10.244.1.2"),
        ("default/web", "node-1", "10.244.1.3"),
    ]);
    Resolver {
        pods,
        ..Resolver::default()
    }
}

#[test]
fn drops_of_a_pod_are_in_it_or_from_it_or_to_it() {
    let of = |line: &str| Whose::of(&args(line), &resolver()).expect("known");
    let web = of("--pod web -n shop");
    assert_eq!(web, of("--pod shop/web"));
    assert_eq!(web, of("--pod pod/shop/web -n shop"));
    assert_eq!(web, of("--pod po/web -n shop"));
    assert_eq!(of("--pod web"), Whose::Pod("pod/default/web".to_owned()));
    let rows = [
        (dropped("pod/shop/web", None, None), true, true),
        (dropped("node", Some("pod/shop/web"), None), true, true),
        (dropped("node", None, Some("pod/shop/web")), true, true),
        (dropped("pod/shop/web2", None, None), false, true),
        (dropped("node", Some("pod/default/web"), None), false, false),
        (dropped("node", None, None), false, false),
    ];
    for (dropped, of_pod, of_namespace) in rows {
        assert_eq!(web.has(&dropped), of_pod, "{dropped:?}");
        assert_eq!(of("-n shop").has(&dropped), of_namespace, "{dropped:?}");
        assert!(of("").has(&dropped));
    }
}

#[test]
fn whose_cannot_be_told_is_refused_with_what_can() {
    let rows = [
        ("--pod shop/web -n default", "is not in the namespace"),
        (
            "--pod api",
            "has connected a pod default/api, and none knows it as an endpoint of a Service; give its address (there are \
             pod/default/web, pod/shop/web;",
        ),
        ("--pod web:80", "\"pod/web:80\" is no pod/NAME"),
        ("-n kitchen", "no pod of namespace kitchen"),
    ];
    for (line, part) in rows {
        let error = Whose::of(&args(line), &resolver()).expect_err(line).to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
    let error = Whose::of(&args("-n shop"), &Resolver::default()).expect_err("no agent");
    assert!(error.to_string().contains("--config"), "{error}");
}

#[test]
fn wrong_options_are_refused() {
    for line in ["--for 3", "--for 2d", "-o yaml", "pod/web", "--follow=1"] {
        let words = ["causeway", "drops"].into_iter().chain(line.split_whitespace());
        assert!(Cli::try_parse_from(words).is_err(), "{line}");
    }
}

#[test]
fn that_there_was_nothing_is_said_only_where_all_was_counted() {
    let all = Uncounted::default();
    let some = Uncounted { forgotten: 1, ..all };
    let told = |missed| Told {
        missed,
        ordinary_packets: 3,
    };
    let found = [(0, all), (1, all), (0, some), (1, some)].map(|(missed, rest)| told(missed).finding(rest));
    assert_eq!(
        found,
        [Finding::Good, Finding::Wrong, Finding::Nothing, Finding::Wrong]
    );
}

#[test]
fn each_second_tells_its_drops_and_the_end_the_rest() {
    let ordinary = Dropped {
        ordinary: true,
        packets: 7,
        ..dropped("node", None, None)
    };
    let (mut told, mut shown) = (Told::default(), String::new());
    let drops = vec![dropped("node", None, None), ordinary];
    let is_read = told.tell(&args("--follow"), &Whose::Everybodys, drops, &mut |text| {
        shown.push_str(text);
        false
    });
    assert!(!is_read);
    assert_eq!(
        shown,
        "00:00:00  1 at node \u{fffd}[2J  NETFILTER_DROP in nft_do_chain  udp  10.244.1.2 -> 10.244.1.3:53\n"
    );
    assert_eq!(
        told.end(Stream::Text, Timestamp::now(), Uncounted::default()),
        "7 more that are part of normal traffic: --all\nevery drop was counted\n"
    );
}

use std::net::SocketAddr;

use clap::Parser;
use jiff::Timestamp;
use model::{ObjectName, Protocol as ServiceProtocol};
use trace::flows::{Amount, Lost};
use trace::hop::{Flow, Protocol};

use super::*;
use crate::cli::{Cli, Command};
use crate::ends::meant::Resolver;
use crate::ends::pods::Pods;
use crate::names::Called;
use crate::names::addresses::Frontend;

fn args(line: &str) -> FlowsArgs {
    let words = ["causeway", "flows"].into_iter().chain(line.split_whitespace());
    match Cli::try_parse_from(words).expect("valid").command {
        Command::Flows(args) => args,
        other => panic!("{other:?}"),
    }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn passed(source: &str, destination: &str, service: Option<&str>, is_reply: bool) -> Passed {
    Passed {
        flow: Flow {
            source: at(source),
            destination: at(destination),
            protocol: Protocol::TCP,
        },
        service: service.map(at),
        is_reply,
        sent: Amount {
            packets: 2,
            bytes: 120,
        },
        received: Amount::default(),
        first: Timestamp::UNIX_EPOCH,
        last: Timestamp::UNIX_EPOCH,
        sender: 0,
        receiver: 0,
        tcp_flags: 2,
        drops: Vec::new(),
    }
}

/// What an agent tells of `shop/web`.
fn called() -> Vec<Called> {
    let web = Called {
        address: "10.96.0.10".parse().expect("an address"),
        pod: None,
        services: vec![Frontend {
            port: 80,
            protocol: ServiceProtocol::Tcp,
            service: ObjectName::new("shop", "web"),
        }],
    };
    let pod = Called {
        address: "10.244.2.3".parse().expect("an address"),
        pod: Some(ObjectName::new("shop", "web-7f")),
        services: Vec::new(),
    };
    vec![web, pod]
}

fn resolver() -> Resolver {
    Resolver {
        pods: pods(),
        ..Resolver::default()
    }
}

fn pods() -> Pods {
    Pods::of(&[("shop/client", "node-1", "10.244.1.2")])
}

#[test]
fn flows_are_told_by_their_ends_their_service_and_their_verdict() {
    let translated = passed(
        "10.244.1.2:40000",
        "10.244.2.3:8080",
        Some("10.96.0.10:80"),
        false,
    );
    let reply = passed("10.244.2.3:8080", "10.244.1.2:40000", Some("10.96.0.10:80"), true);
    let direct = passed("10.244.1.2:40001", "10.244.2.3:9090", None, false);
    let rows = [
        ("", [true, true, true]),
        ("--from pod/shop/client", [true, false, true]),
        ("--to pod/shop/client", [false, true, false]),
        ("--to 10.244.2.3:8080/tcp", [true, false, false]),
        ("--to 10.244.2.3:8080/udp", [false, false, false]),
        ("--to 10.96.0.10:80", [true, false, false]),
        ("--from 10.96.0.10", [false, true, false]),
        ("-n shop --to pod/client", [false, true, false]),
        ("--from any --to any/udp", [false, false, false]),
    ];
    for (line, expected) in rows {
        let whose = Whose::new(&args(line), &resolver()).expect(line);
        let found = [&translated, &reply, &direct].map(|passed| whose.has(passed));
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn what_is_not_known_is_refused_with_what_is() {
    let rows = [
        (
            "--from pod/api",
            "no agent of this machine has connected a pod default/api",
        ),
        (
            "--service web",
            "svc/default/web: this machine has no agent that is known",
        ),
        (
            "--service web.shop -n other",
            "svc/shop/web: this machine has no agent",
        ),
        ("--to node/n", "node/n: this machine has no agent that is known"),
        ("--to pod", "is no pod/NAME"),
    ];
    for (line, part) in rows {
        let error = Whose::new(&args(line), &resolver()).expect_err(line).to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
    for line in ["--verdict LOST", "--for 3", "-o yaml", "pod/web"] {
        let words = ["causeway", "flows"].into_iter().chain(line.split_whitespace());
        assert!(Cli::try_parse_from(words).is_err(), "{line}");
    }
}

#[test]
fn a_namespace_is_meant_where_it_has_no_pod_but_not_where_nobody_knows_names() {
    let note = |namespace| without_pods(namespace, &resolver());
    assert_eq!(note("shop"), None);
    let told = note("other").expect("it may be misspelt");
    assert!(
        told.starts_with("note: no pod of namespace other on this machine's nodes:"),
        "{told}"
    );
    assert!(Whose::new(&args("-n other"), &resolver()).is_ok());
    let error = Whose::new(&args("-n other"), &Resolver::default()).expect_err("no agent");
    let error = error.to_string();
    assert!(
        error.starts_with("namespace other is not known: this machine has no agent"),
        "{error}"
    );
}

#[test]
fn a_service_and_pods_of_other_nodes_have_the_names_that_the_agent_tells() {
    let teller = |line: &str| {
        let args = args(line);
        Teller {
            whose: Whose::new(&args, &resolver()).expect("known"),
            node: "machine".to_owned(),
            output: args.output,
        }
    };
    let lost = Lost {
        amount: Amount {
            packets: 1,
            bytes: 60,
        },
        reason: "NETFILTER_DROP".to_owned(),
        place: "nft_do_chain".to_owned(),
        netns: 0,
        was_sent: true,
        last: Timestamp::UNIX_EPOCH,
    };
    let passed = [Passed {
        drops: vec![lost],
        ..passed(
            "10.244.1.2:40000",
            "10.244.2.3:8080",
            Some("10.96.0.10:80"),
            false,
        )
    }];
    let told = |line: &str| {
        let (teller, mut known) = (teller(line), Known::with(pods(), called()));
        teller.some(&teller.records(passed.to_vec(), &mut known))
    };
    let forwarded = "00:00:00  tcp  pod/shop/client 10.244.1.2:40000 -> pod/shop/web-7f 10.244.2.3:8080 as svc/shop/web \
                     10.96.0.10:80  FORWARDED  1 packets 60 bytes  (TCP Flags: SYN)\n";
    let dropped = "00:00:00  tcp  pod/shop/client 10.244.1.2:40000 -> pod/shop/web-7f 10.244.2.3:8080 as svc/shop/web \
                   10.96.0.10:80  DROPPED  1 packets 60 bytes  NETFILTER_DROP in nft_do_chain at -  (TCP Flags: SYN)\n";
    assert_eq!(told("--verdict FORWARDED"), forwarded);
    assert_eq!(told("--verdict dropped"), dropped);
    assert_eq!(told(""), [forwarded, dropped].concat());
    assert_eq!(told("-n shop"), [forwarded, dropped].concat());
    assert_eq!(told("-n shop --verdict FORWARDED"), forwarded);
}

#[test]
fn a_namespace_is_that_of_names_and_where_there_are_none_whose_flows_are_told() {
    let rows = [
        ("", None),
        ("-n shop", Some("shop")),
        ("-n shop --to pod/client", None),
        ("-n shop --service web", None),
    ];
    for (line, namespace) in rows {
        assert_eq!(args(line).of_namespace(), namespace, "{line}");
    }
    let mut known = Known::with(pods(), called());
    let elsewhere = [passed("10.9.0.1:1", "10.9.0.2:2", None, false)];
    let args = args("-n shop");
    let teller = Teller {
        whose: Whose::new(&args, &resolver()).expect("known"),
        node: "machine".to_owned(),
        output: args.output,
    };
    assert_eq!(teller.records(elsewhere.to_vec(), &mut known), []);
}

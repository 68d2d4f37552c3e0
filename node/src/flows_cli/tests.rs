use std::net::SocketAddr;

use clap::Parser;
use jiff::Timestamp;
use model::{ObjectName, Protocol as ServiceProtocol};
use trace::flows::{Amount, Lost};
use trace::hop::{Flow, Protocol};

use super::*;
use crate::agent::naming::{Named, NamedEndpoint, NamedPod, NamedService};
use crate::cli::{Cli, Command};

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

fn services() -> Services {
    let mut services = Services::default();
    let web = ObjectName::new("shop", "web");
    services.add(Named {
        services: vec![NamedService {
            name: web.clone(),
            frontends: vec![NamedEndpoint {
                address: "10.96.0.10".parse().expect("an address"),
                port: 80,
                protocol: ServiceProtocol::Tcp,
            }],
            endpoints: vec![NamedEndpoint {
                address: "10.244.2.3".parse().expect("an address"),
                port: 8080,
                protocol: ServiceProtocol::Tcp,
            }],
        }],
        pods: vec![NamedPod {
            address: "10.244.2.3".parse().expect("an address"),
            name: ObjectName::new("shop", "web-7f"),
        }],
    });
    services
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
        ("--to svc/shop/web", [true, false, false]),
        ("--service shop/web", [true, true, false]),
        ("--from any --to any/udp", [false, false, false]),
    ];
    for (line, expected) in rows {
        let whose = Whose::new(&args(line), &pods(), &services()).expect(line);
        let found = [&translated, &reply, &direct].map(|passed| whose.has(passed));
        assert_eq!(found, expected, "{line}");
    }
}

#[test]
fn what_is_not_known_is_refused_with_what_is() {
    let rows = [
        ("--from pod/api", "no pod default/api on this machine's nodes"),
        ("--service web", "no Service default/web in this cluster"),
        ("--to node/n", "kubectl get node n -o wide"),
        ("--to web", "is no pod/NAME"),
    ];
    for (line, part) in rows {
        let error = Whose::new(&args(line), &pods(), &services())
            .expect_err(line)
            .to_string();
        assert!(error.contains(part), "{line}: {error}");
    }
    let error = Whose::new(&args("--service web"), &pods(), &Services::default()).expect_err("no agent");
    assert!(error.to_string().contains("--config"), "{error}");
    for line in ["--verdict LOST", "--for 3", "-o yaml", "pod/web"] {
        let words = ["causeway", "flows"].into_iter().chain(line.split_whitespace());
        assert!(Cli::try_parse_from(words).is_err(), "{line}");
    }
}

#[test]
fn a_service_and_pods_of_other_nodes_have_the_names_that_the_agent_tells() {
    let teller = |line: &str| {
        let args = args(line);
        Teller {
            whose: Whose::new(&args, &pods(), &services()).expect("known"),
            services: services(),
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
    let known = Known::new(pods());
    let told = |line: &str| {
        let teller = teller(line);
        teller.some(&teller.records(&passed, &known))
    };
    let forwarded = "00:00:00  tcp  pod/shop/client 10.244.1.2:40000 -> pod/shop/web-7f 10.244.2.3:8080 as svc/shop/web \
                     10.96.0.10:80  FORWARDED  1 packets 60 bytes  (TCP Flags: SYN)\n";
    let dropped = "00:00:00  tcp  pod/shop/client 10.244.1.2:40000 -> pod/shop/web-7f 10.244.2.3:8080 as svc/shop/web \
                   10.96.0.10:80  DROPPED  1 packets 60 bytes  NETFILTER_DROP in nft_do_chain at -  (TCP Flags: SYN)\n";
    assert_eq!(told("--verdict FORWARDED"), forwarded);
    assert_eq!(told("--verdict dropped"), dropped);
    assert_eq!(told(""), [forwarded, dropped].concat());
}

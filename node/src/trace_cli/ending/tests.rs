//! What is told of an end, by pods and by what an agent explains.

use std::os::unix::net::UnixListener;

use ::tests::directory::Directory;
use model::Protocol;
use trace::hop::{Flow, Header};
use trace::{Filter, Gaps, Names};

use super::*;
use crate::ask::SOCKET;
use crate::explain::{self, Conclusion, End};

fn hop(device: &str, source: &str, destination: &str) -> Hop {
    Hop {
        at_ns: 1,
        packet: 1,
        node: "machine".to_owned(),
        netns: 1,
        device: device.to_owned(),
        kind: HopKind::Dropped {
            reason: "NETFILTER_DROP".to_owned(),
            place: "nft_do_chain".to_owned(),
        },
        header: Header {
            flow: Flow {
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
                protocol: trace::hop::Protocol::TCP,
            },
            what: "SYN".to_owned(),
            ip_id: 1,
            sequence: 1,
            acknowledgement: 0,
            length: 60,
            ttl: 64,
        },
        wrapping: None,
        connection: None,
    }
}

/// What an agent says, with these problems.
fn explanation(problems: &[(Stage, &str)]) -> Explanation {
    let end = |address: [u8; 4]| End {
        name: "address".to_owned(),
        address: address.into(),
        port: None,
        node: None,
    };
    let step = |(stage, problem): &(Stage, &str)| {
        let mut step = explain::Step::new(*stage, "10.244.2.3");
        step.problems.push((*problem).to_owned());
        step
    };
    Explanation {
        node: Some("node-1".to_owned()),
        source: end([10, 244, 1, 2]),
        destination: end([10, 96, 0, 7]),
        protocol: Protocol::Tcp,
        forward: problems.iter().map(step).collect(),
        reverse: Vec::new(),
        conclusion: Conclusion::Fails,
        sentence: String::new(),
        notes: Vec::new(),
    }
}

#[test]
fn what_a_pod_sends_in_anothers_name_is_told_with_its_own_addresses() {
    let pods = Pods::of(&[("shop/web", "node-1", "10.244.1.2")]);
    let machine = Machine {
        agents: &Agents::default(),
        pods: &pods,
        namespaces: &[],
    };
    let means = |device, source| {
        let step = Step {
            after_ns: 0,
            at: "node-1".to_owned(),
            entering: Some("ip netns exec node-1".to_owned()),
            hop: hop(device, source, "10.244.1.3:80"),
            cause: None,
        };
        let Cause { means, look } = machine.spoofed(&step)?;
        assert_eq!(
            look.last().map(String::as_str),
            Some("ip netns exec node-1 nft list table ip causeway-guard")
        );
        Some(means)
    };
    assert_eq!(
        means("cw-web", "10.9.9.9:4000").as_deref(),
        Some(
            "Causeway refuses it: pod/shop/web may send from 10.244.1.2 alone, and it sent from 10.9.9.9 \
             (network.antiSpoofing)"
        )
    );
    assert_eq!(means("cw-web", "10.244.1.2:4000"), None);
    assert_eq!(means("eth0", "10.9.9.9:4000"), None);
}

#[test]
fn a_refusal_is_the_services_and_a_wrong_way_the_routes() {
    let no_endpoint = "refused: Service shop/web has no endpoint that takes connections";
    let missing = "no route: 10.244.2.0/24 is node 172.30.0.12's by its lease";
    let differs = "nftables: an endpoint is missing";
    let rows = [
        (vec![], None, None),
        (
            vec![(Stage::Service, no_endpoint)],
            Some("Service shop/web has no endpoint that takes connections"),
            None,
        ),
        (
            vec![(Stage::Service, differs), (Stage::Route, missing)],
            None,
            Some("10.244.2.3: no route: 10.244.2.0/24 is node 172.30.0.12's by its lease"),
        ),
    ];
    for (problems, wanted_refusal, wanted_problem) in rows {
        let explanation = explanation(&problems);
        assert_eq!(refusal(&explanation), wanted_refusal);
        assert_eq!(way_problem(&explanation).as_deref(), wanted_problem);
    }
}

#[test]
fn the_question_names_ports_where_there_are_some() {
    let of = |hop: &Hop| {
        let Question {
            source, destination, ..
        } = question(hop);
        format!("{source} {destination}")
    };
    let tcp = hop("eth0", "10.0.0.1:4000", "[fd00::1]:80");
    assert_eq!(of(&tcp), "10.0.0.1 [fd00::1]:80/tcp");
    let mut icmp = hop("eth0", "10.0.0.1:0", "10.0.0.2:0");
    icmp.header.flow.protocol = trace::hop::Protocol::ICMP;
    assert_eq!(of(&icmp), "10.0.0.1 10.0.0.2");
    assert_eq!(
        asks(None, &question(&tcp)),
        "causeway explain 10.0.0.1 '[fd00::1]:80/tcp'"
    );
}

#[test]
fn what_its_receiver_does_not_answer_is_asked_of_the_agent_there() {
    let directory = Directory::new("silence");
    let config = directory.path().join("my node.yaml");
    let text = format!(
        "{{nodeName: node-1, stateDir: {}, proxy: {{podNetworks: [10.244.0.0/16]}}}}\n",
        directory.path().display()
    );
    std::fs::write(&config, text).expect("written");
    // Whoever listens there is taken for the agent: it stands in this process's network namespace.
    let _agent = UnixListener::bind(directory.path().join(SOCKET)).expect("a socket");
    let agents = Agents::read(std::slice::from_ref(&config)).expect("one");
    let here = trace::places::inode("/proc/self/ns/net".as_ref()).expect("a namespace");
    let machine = Machine {
        agents: &agents,
        pods: &Pods::of(&[]),
        namespaces: &[],
    };
    let look = |netns| {
        let mut taken = hop("", "10.244.1.2:40000", "10.244.1.3:80");
        taken.netns = netns;
        taken.kind = HopKind::Consumed {
            place: "tcp_v4_rcv".to_owned(),
        };
        let filter = Filter {
            targets: vec![([10, 244, 1, 3].into(), Some(80))],
            ..Filter::default()
        };
        let mut story = Story::new(&filter, &[taken], &Names::default(), Gaps::default());
        machine.explain_silence(&mut story);
        let step = story.last_step(false).expect("a hop");
        let cause = step.cause.clone().expect("told");
        let told = trace::render::text(&story);
        assert!(told.contains(&format!("means:   {}", cause.means)), "{told}");
        cause.look
    };
    let way = |netns| format!("ip route get 10.244.1.2  # at netns:{netns}");
    let option = format!("--config '{}'", config.display());
    assert_eq!(look(here), [way(here), format!("causeway doctor {option}")]);
    assert_eq!(look(1), [way(1), "causeway doctor".to_owned()]);
}

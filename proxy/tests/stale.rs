//! Which of the flows that the kernel tracks lead nowhere.

mod world;

use std::net::SocketAddr;

use model::Protocol::{self, Sctp, Tcp, Udp};
use netlink::conntrack::Tuple;
use proxy::plan::ServicePlan;
use proxy::stale::StaleFlows;
use proxy::{ServiceView, plan_service};
use world::{READY, context, ip, port, service, slice};

/// A flow from `10.244.3.2:40000`: the protocol, where it was sent to, whom it expects answers from.
fn tuples(protocol: Protocol, to: &str, answers: &str) -> (Tuple, Tuple) {
    let at = |text: &str| text.parse::<SocketAddr>().expect("an address and port");
    let client = at("10.244.3.2:40000");
    let original = Tuple {
        source: client,
        destination: at(to),
        protocol: protocol.number(),
    };
    let reply = Tuple {
        source: at(answers),
        destination: client,
        protocol: protocol.number(),
    };
    (original, reply)
}

#[track_caller]
fn check(stale: &StaleFlows, rows: &[(Protocol, &str, &str, bool, bool)]) {
    for (protocol, to, answers, answered, expected) in rows {
        let (original, reply) = tuples(*protocol, to, answers);
        let found = stale.matches(&original, &reply, *answered);
        let answered = if *answered { "answered" } else { "not answered" };
        assert_eq!(found, *expected, "{protocol} to {to} by {answers}, {answered}");
    }
}

/// A Service at `10.96.0.1:80` and node port 30080, by this protocol.
fn plan(protocol: Protocol, endpoints: &[&str]) -> ServicePlan {
    let mut web = service("web", "10.96.0.1");
    web.ports = [port("http", protocol, 80, Some(30080))].into();
    let rows: Vec<_> = endpoints
        .iter()
        .map(|address| (*address, "there", READY))
        .collect();
    let mut slice = slice("web-1", "web", &rows);
    slice.ports[0].protocol = protocol;
    let view = ServiceView {
        service: &web,
        slices: vec![&slice],
    };
    plan_service(&view, &context()).0
}

const NONE: &[(Protocol, &str, &str, bool, bool)] = &[
    (Tcp, "10.96.0.1:80", "10.96.0.1:80", false, false),
    (Udp, "10.96.0.1:80", "10.96.0.1:80", false, false),
    (Udp, "10.96.0.1:80", "10.244.0.9:8080", true, false),
];

#[test]
fn what_was_tried_before_its_frontend_was_there_is_stale_unless_somebody_answered() {
    for (protocol, other) in [(Tcp, Sctp), (Sctp, Tcp)] {
        let mut stale = StaleFlows::default();
        check(&stale, NONE);
        stale.add_change(&ServicePlan::default(), &plan(protocol, &["10.244.0.1"]));
        check(
            &stale,
            &[
                (protocol, "10.96.0.1:80", "10.96.0.1:80", false, true),
                // A real host elsewhere has the address: its connections are its own.
                (protocol, "10.96.0.1:80", "10.96.0.1:80", true, false),
                // Somebody translated it, be it to an endpoint or by a rule that is not ours.
                (protocol, "10.96.0.1:80", "10.244.0.1:8080", false, false),
                (protocol, "10.96.0.1:80", "192.0.2.1:80", false, false),
                (protocol, "10.96.0.1:81", "10.96.0.1:81", false, false),
                (other, "10.96.0.1:80", "10.96.0.1:80", false, false),
                (Udp, "10.96.0.1:80", "10.96.0.1:80", false, false),
                // The node itself answers where no node port is.
                (protocol, "192.0.2.1:30080", "192.0.2.1:30080", false, false),
            ],
        );
    }
}

#[test]
fn what_appeared_and_went_before_the_look_is_left_alone() {
    let mut stale = StaleFlows::default();
    let plan = plan(Tcp, &["10.244.0.1"]);
    stale.add_change(&ServicePlan::default(), &plan);
    stale.add_change(&plan, &ServicePlan::default());
    assert!(stale.is_empty());
    check(&stale, NONE);
}

#[test]
fn udp_flows_that_no_endpoint_answers_are_stale() {
    let mut stale = StaleFlows::default();
    stale.set_node_addresses([ip("192.0.2.1")]);
    let before = plan(Udp, &["10.244.0.1", "10.244.0.2"]);
    stale.add_change(&before, &plan(Udp, &["10.244.0.2"]));
    check(
        &stale,
        &[
            (Udp, "10.96.0.1:80", "10.244.0.1:8080", true, true),
            (Udp, "10.96.0.1:80", "10.244.0.1:8080", false, true),
            (Udp, "10.96.0.1:80", "10.244.0.2:8080", true, false),
            (Udp, "10.96.0.1:80", "10.96.0.1:80", false, true),
            (Udp, "192.0.2.1:30080", "10.244.0.1:8080", true, true),
            (Udp, "192.0.2.1:30080", "10.244.0.2:8080", true, false),
            // Sent before the node port was there, and taken by the node itself.
            (Udp, "192.0.2.1:30080", "192.0.2.1:30080", false, true),
            // The same port somewhere else.
            (Udp, "192.0.2.9:30080", "192.0.2.9:30080", true, false),
            (Tcp, "10.96.0.1:80", "10.244.0.1:8080", true, false),
        ],
    );
}

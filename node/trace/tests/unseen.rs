//! Stories of probes that no device had, of packets that wait, and of answers that refuse.

use std::net::SocketAddr;

use trace::cause::Cause;
use trace::hop::{Flow, Header, Hop, HopKind, Protocol};
use trace::{Filter, Gaps, Names, Service, Story, Verdict, render};

const CLIENT: &str = "10.241.0.5:46798";
const SERVER: &str = "10.242.0.5:9000";

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and port")
}

fn flow(source: &str, destination: &str, protocol: Protocol) -> Flow {
    Flow {
        source: at(source),
        destination: at(destination),
        protocol,
    }
}

fn hop(at_ns: u64, packet: u64, device: &str, kind: HopKind, flow: Flow, what: &str) -> Hop {
    Hop {
        at_ns,
        packet,
        node: "machine".to_owned(),
        netns: 1,
        device: device.to_owned(),
        kind,
        header: Header {
            flow,
            what: what.to_owned(),
            ip_id: u32::try_from(packet).expect("small"),
            sequence: 1,
            acknowledgement: 0,
            length: 44,
            ttl: 64,
        },
        wrapping: None,
        connection: None,
    }
}

fn story(hops: &[Hop]) -> Story {
    let filter = Filter {
        sources: vec![at(CLIENT).ip()],
        targets: vec![(at(SERVER).ip(), Some(9000))],
        ..Filter::default()
    };
    Story::new(&filter, hops, &Names::default(), Gaps::default())
}

fn waits() -> Option<Cause> {
    Some(Cause {
        means: "NEIGHBOUR unresolved".to_owned(),
        look: vec!["ip neigh show".to_owned()],
    })
}

fn datagram() -> Flow {
    flow(CLIENT, SERVER, Protocol::UDP)
}

#[test]
fn a_probe_that_no_device_had_was_sent_all_the_same_and_one_that_was_refused_is_told_so() {
    let told = |is_refused, verdict| {
        let mut story = story(&[]).of_probe(datagram(), is_refused);
        story.explain_unseen(waits);
        assert_eq!(story.verdict, verdict);
        render::text(&story)
    };
    let headline = "TRACE  10.241.0.5:46798 -> 10.242.0.5:9000/udp  verdict: ";
    let causes = "\nmeans:   NEIGHBOUR unresolved\nlook at: ip neigh show\n";
    assert_eq!(
        told(false, Verdict::NothingSeen),
        format!(
            "{headline}NOTHING SEEN\n\n0 events lost\n\na probe was sent, and no device had a packet of it{causes}"
        )
    );
    assert_eq!(
        told(true, Verdict::Refused),
        format!(
            "{headline}REFUSED\n\n0 events lost\n\nREFUSED before there was a packet: its socket was told so{causes}"
        )
    );
}

#[test]
fn where_a_packet_waits_is_told_with_the_cause() {
    let mut story = story(&[hop(1, 1, "veth", HopKind::Received, datagram(), "")]);
    assert_eq!(story.verdict, Verdict::Unanswered);
    story.explain_unseen(|| panic!("a packet was seen"));
    story.explain_end(|step, _| waits().filter(|_| step.hop.device == "veth"));
    let told = render::text(&story);
    let end = "it was seen last at netns:1 veth\nmeans:   NEIGHBOUR unresolved\nlook at: ip neigh show\n";
    assert!(told.ends_with(end), "{told}");
}

#[test]
fn who_refuses_is_told_with_what_their_answer_means() {
    let error = flow("10.241.0.1:0", "10.241.0.5:0", Protocol::ICMP);
    let mut refusal = hop(3, 3, "veth", HopKind::Sent, error, "host unreachable");
    // The kernel's tracking, or the packet that the error quotes, joins it to what it is about.
    refusal.connection = Some(trace::hop::Connection {
        original: datagram(),
        reply: datagram().reversed(),
    });
    let story = story(&[
        hop(1, 1, "eth0", HopKind::Sent, datagram(), ""),
        hop(2, 1, "veth", HopKind::Received, datagram(), ""),
        refusal,
    ]);
    assert_eq!(story.verdict, Verdict::Refused);
    let told = render::text(&story);
    let end = "REFUSED by 10.241.0.1 at netns:1 veth: icmp host unreachable\nmeans:   10.241.0.1 knows no way to the \
               receiver: nobody on the link answers for its address, or a route refuses it\nlook at: ip neigh show  # at \
               netns:1\nlook at: ip route  # at netns:1\n";
    assert!(told.ends_with(end), "{told}");
}

#[test]
fn a_copy_that_somebody_let_go_of_is_no_end_of_a_packet_that_went_on() {
    let taken = |place: &str| HopKind::Consumed {
        place: place.to_owned(),
    };
    let story = story(&[
        hop(1, 1, "eth0", HopKind::Sent, datagram(), ""),
        hop(2, 1, "", taken("skb_expand_head"), datagram(), ""),
        hop(3, 1, "tunnel", HopKind::Sent, datagram(), ""),
        hop(4, 1, "", taken("udp_recvmsg"), datagram(), ""),
    ]);
    let places = story.packets[0].hops.iter().map(|step| match &step.hop.kind {
        HopKind::Consumed { place } => place.as_str(),
        _ => &step.hop.device,
    });
    assert_eq!(places.collect::<Vec<_>>(), ["eth0", "tunnel", "udp_recvmsg"]);
}

#[test]
fn what_a_node_sends_is_its_own_though_both_ends_are_translated_before_it_is_seen() {
    let asked = flow("10.241.0.5:46798", "10.96.0.7:9000", Protocol::UDP);
    let sent = flow("10.240.0.1:1025", SERVER, Protocol::UDP);
    let tracked = |hop: Hop| Hop {
        connection: Some(trace::hop::Connection {
            original: asked,
            reply: sent.reversed(),
        }),
        ..hop
    };
    let filter = Filter {
        sources: vec![asked.source.ip()],
        source_port: Some(asked.source.port()),
        targets: vec![(asked.destination.ip(), Some(9000))],
        ..Filter::default()
    };
    let hops = [
        tracked(hop(1, 1, "tunnel", HopKind::Sent, sent, "")),
        hop(2, 2, "tunnel", HopKind::Received, sent.reversed(), ""),
    ];
    let service = Service {
        name: "svc/default/web:9000".to_owned(),
        frontends: vec![asked.destination],
        endpoints: vec![at(SERVER)],
    };
    let story = Story::new(&filter, &hops, &Names::default(), Gaps::default()).to_service(&service);
    assert_eq!(story.verdict, Verdict::Answered);
    let choice = story.service.expect("a Service");
    assert_eq!(
        choice.to_string(),
        "svc/default/web:9000 -> 1 of 1 endpoint, 10.242.0.5:9000, by packet rules"
    );
}

#[test]
fn who_refuses_at_a_services_address_does_not_serve_there() {
    let asked = flow(CLIENT, "10.242.0.5:9000", Protocol::TCP);
    let told = |answer: &str| {
        let service = Service {
            name: "svc/default/web:9000".to_owned(),
            frontends: vec![asked.destination],
            endpoints: Vec::new(),
        };
        let story = story(&[
            hop(1, 1, "eth0", HopKind::Sent, asked, "SYN"),
            hop(2, 2, "veth", HopKind::Sent, asked.reversed(), answer),
        ]);
        story.to_service(&service).service.expect("a Service").to_string()
    };
    assert_eq!(told("RST,ACK"), "svc/default/web:9000 -> no endpoint");
    assert_eq!(
        told("SYN,ACK"),
        "svc/default/web:9000 -> answered at 10.242.0.5:9000 itself, and not by an endpoint"
    );
}

#[test]
fn a_services_endpoints_are_counted_in_the_version_of_ip_that_it_is_asked_by() {
    let service = Service {
        name: "svc/default/web:9000".to_owned(),
        frontends: vec![at("10.96.0.7:9000"), at("[fd00::7]:9000")],
        endpoints: vec![at(SERVER), at("[fd00:1::5]:9000")],
    };
    let story = story(&[hop(1, 1, "eth0", HopKind::Sent, datagram(), "")]).to_service(&service);
    let choice = story.service.expect("a Service");
    assert_eq!(
        choice.to_string(),
        "svc/default/web:9000 -> 1 of 1 endpoint, 10.242.0.5:9000, by socket hook"
    );
}

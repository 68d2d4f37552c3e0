//! One story of what several machines saw: hops of each with clocks, network namespaces and memory of their own.

mod packets;

use trace::cause::Cause;
use trace::hop::HopKind::{Received, Sent};
use trace::hop::{Connection, Flow, Header, Hop, HopKind, Protocol, Wrapping};
use trace::part::{Attached, MOST_HOPS, Part, Seen};
use trace::{Filter, Gaps, Names, Service, Story, Verdict, render};

use packets::{CLIENT, SERVER, SERVICE, at, check_golden, flow};

/// What the second machine's clock shows when the first one's shows 0: it began long before.
const BEFORE: u64 = 3_600_000_000_000;

/// The number of the host's network namespace is the same on all machines.
const HOST: u32 = 4_026_531_840;
const POD: u32 = 4_026_532_000;

/// A packet of TCP.
#[derive(Clone, Copy)]
struct Segment {
    flow: Flow,
    what: &'static str,
    numbers: (u32, u32),
}

fn syn(destination: &str) -> Segment {
    Segment {
        flow: flow(CLIENT, destination),
        what: "SYN",
        numbers: (1000, 0),
    }
}

fn syn_ack(source: &str) -> Segment {
    Segment {
        flow: flow(source, CLIENT),
        what: "SYN,ACK",
        numbers: (7000, 1001),
    }
}

fn hop(
    (at_ns, packet): (u64, u64),
    (netns, device): (u32, &str),
    kind: HopKind,
    ttl: u8,
    of: Segment,
) -> Hop {
    Hop {
        at_ns,
        packet,
        node: "as the machine calls itself".to_owned(),
        netns,
        device: device.to_owned(),
        kind,
        header: Header {
            flow: of.flow,
            what: of.what.to_owned(),
            ip_id: if of.what == "SYN" { 34574 } else { 0 },
            sequence: of.numbers.0,
            acknowledgement: of.numbers.1,
            length: 60,
            ttl,
        },
        wrapping: None,
        connection: None,
    }
}

/// Somebody has had it, at no place.
fn consumed(place: &str, at_ns: u64, packet: u64, of: Segment) -> Hop {
    let kind = HopKind::Consumed {
        place: place.to_owned(),
    };
    hop((at_ns, packet), (0, ""), kind, 62, of)
}

fn wrapped(hop: Hop, source: &str, destination: &str) -> Hop {
    let flow = Flow {
        protocol: Protocol::UDP,
        ..flow(source, destination)
    };
    Hop {
        wrapping: Some(Wrapping { vni: 1, flow }),
        ..hop
    }
}

fn translated(hop: Hop) -> Hop {
    Hop {
        connection: Some(Connection {
            original: flow(CLIENT, SERVICE),
            reply: flow(SERVER, CLIENT),
        }),
        ..hop
    }
}

/// The request on the client's node.
fn request_1() -> Vec<Hop> {
    let eth0 = hop((33_700, 5000), (HOST, "eth0"), Sent, 63, syn(SERVER));
    vec![
        hop((5000, 5000), (POD, "eth0"), Sent, 64, syn(SERVICE)),
        hop((7400, 5000), (HOST, "vethp"), Received, 64, syn(SERVICE)),
        translated(hop((25_800, 5000), (HOST, "flannel.1"), Sent, 63, syn(SERVER))),
        wrapped(eth0, "172.30.0.11:34826", "172.30.0.12:8472"),
    ]
}

/// The same on the server's.
fn request_2() -> Vec<Hop> {
    let (a, packet) = (BEFORE + 40_000, BEFORE + 40_000);
    let eth0 = hop((a, packet), (HOST, "eth0"), Received, 63, syn(SERVER));
    vec![
        wrapped(eth0, "172.30.0.11:34826", "172.30.0.12:8472"),
        hop((a + 9000, packet), (HOST, "flannel.1"), Received, 63, syn(SERVER)),
        hop((a + 12_000, packet), (HOST, "vethw"), Sent, 62, syn(SERVER)),
        hop((a + 13_000, packet), (POD, "eth0"), Received, 62, syn(SERVER)),
    ]
}

/// The reply there, which that machine saw in the memory that the request had on the other one.
fn reply_2() -> Vec<Hop> {
    let a = BEFORE + 60_000;
    let eth0 = hop((a + 9000, 5000), (HOST, "eth0"), Sent, 63, syn_ack(SERVER));
    vec![
        hop((a, 5000), (POD, "eth0"), Sent, 64, syn_ack(SERVER)),
        hop((a + 2000, 5000), (HOST, "vethw"), Received, 64, syn_ack(SERVER)),
        hop((a + 5000, 5000), (HOST, "flannel.1"), Sent, 63, syn_ack(SERVER)),
        wrapped(eth0, "172.30.0.12:40000", "172.30.0.11:8472"),
    ]
}

fn reply_1() -> Vec<Hop> {
    let eth0 = hop((70_000, 70_000), (HOST, "eth0"), Received, 63, syn_ack(SERVER));
    vec![
        wrapped(eth0, "172.30.0.12:40000", "172.30.0.11:8472"),
        hop(
            (74_000, 70_000),
            (HOST, "flannel.1"),
            Received,
            63,
            syn_ack(SERVER),
        ),
        translated(hop((84_800, 70_000), (HOST, "vethp"), Sent, 62, syn_ack(SERVICE))),
        hop((85_700, 70_000), (POD, "eth0"), Received, 62, syn_ack(SERVICE)),
    ]
}

fn service() -> Service {
    Service {
        name: "svc/default/web:80".to_owned(),
        frontends: vec![at(SERVICE)],
        endpoints: vec![at("10.241.0.9:8080"), at(SERVER)],
    }
}

fn filter(source_port: Option<u16>) -> Filter {
    let targets = [SERVICE, "10.241.0.9:8080", SERVER].map(at);
    Filter {
        sources: vec![at(CLIENT).ip()],
        source_port,
        targets: targets.map(|target| (target.ip(), Some(target.port()))).into(),
        ..Filter::default()
    }
}

/// What a node tells: node-1 has the client, node-2 the server.
fn part(node: &str, kernel: &str, hops: Vec<Hop>) -> Part {
    let is_first = node == "node-1";
    let pod = if is_first {
        "pod/default/client"
    } else {
        "pod/default/web"
    };
    let filter = filter(is_first.then_some(46798));
    let names = Names {
        netns: [(HOST, "host".to_owned()), (POD, pod.to_owned())].into(),
        ..Names::default()
    };
    let seen = hops.iter().map(|hop| Seen {
        at: names.of_netns(hop.netns),
        entering: None,
        hop: hop.clone(),
    });
    let addresses = match is_first {
        true => ["172.30.0.11", "10.241.0.5"],
        false => ["172.30.0.12", "10.242.0.5"],
    };
    Part {
        node: node.to_owned(),
        attached: Some(Attached {
            kernel: kernel.to_owned(),
            filter: filter.clone(),
            service: Some(service()),
            addresses: addresses
                .map(|address| address.parse().expect("an address"))
                .into(),
            namespaces: [HOST, POD].into(),
        }),
        hops: seen.collect(),
        story: Some(Story::new(&filter, &hops, &names, Gaps::default())),
        missing: None,
    }
}

fn two(first: Vec<Hop>, second: Vec<Hop>) -> [Part; 2] {
    [part("node-1", "one", first), part("node-2", "other", second)]
}

fn joined(parts: &[Part]) -> Story {
    Story::joined(parts).expect("somebody followed packets")
}

/// The nodes that packets pass, and where.
fn ways(story: &Story) -> Vec<Vec<String>> {
    let way = |packet: &trace::story::Packet| {
        let hops = packet.hops.iter();
        hops.map(|step| format!("{} {} {}", step.hop.node, step.at, step.hop.device))
            .collect()
    };
    story.packets.iter().map(way).collect()
}

#[test]
fn what_two_machines_saw_is_one_story_there_and_back_whatever_their_clocks_show() {
    let (first, second) = (
        [request_1(), reply_1()].concat(),
        [request_2(), reply_2()].concat(),
    );
    let story = joined(&two(first.clone(), second.clone()));
    assert_eq!(story.verdict, Verdict::Answered);
    check_golden(
        &story,
        include_str!("golden/joined.txt"),
        include_str!("golden/joined.json"),
    );
    // Whichever began before, and in whatever order the hops come.
    let mut later = second.clone();
    for hop in &mut later {
        hop.at_ns -= BEFORE - 5;
    }
    later.reverse();
    let other = joined(&two(first, later));
    assert_eq!((ways(&other), other.verdict), (ways(&story), story.verdict));
    assert_eq!(other.round_trip_ns, Some(80_700));
}

#[test]
fn what_left_one_machine_for_another_that_saw_nothing_is_lost_between_them() {
    let story = joined(&two(request_1(), Vec::new()));
    assert_eq!(story.verdict, Verdict::Lost { is_reply: false });
    check_golden(
        &story,
        include_str!("golden/lost.txt"),
        include_str!("golden/lost.json"),
    );
    // The server's kernel takes a request that it answers.
    let taken = consumed(
        "tcp_rcv_state_process",
        BEFORE + 55_000,
        BEFORE + 40_000,
        syn(SERVER),
    );
    let second = [request_2(), vec![taken], reply_2()].concat();
    let story = joined(&two(request_1(), second));
    assert_eq!(story.verdict, Verdict::Lost { is_reply: true });
    let text = render::text(&story);
    for line in [
        "verdict: REPLY LOST BETWEEN node-2 and node-1\n",
        "\nREPLY LOST BETWEEN node-2 and node-1: it left node-2 by host eth0 to 172.30.0.11, and node-1 saw nothing of it\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn what_comes_again_since_its_reply_was_lost_is_not_dropped() {
    let again = |mut hops: Vec<Hop>| {
        for hop in &mut hops {
            hop.at_ns += 1_000_000_000;
            hop.packet += 1000;
            hop.header.ip_id += 1;
        }
        hops
    };
    let taken = consumed(
        "tcp_rcv_state_process",
        BEFORE + 55_000,
        BEFORE + 40_000,
        syn(SERVER),
    );
    let kind = HopKind::Dropped {
        reason: "NOT_SPECIFIED".to_owned(),
        place: "tcp_v4_rcv".to_owned(),
    };
    let refused = Hop {
        kind,
        ..taken.clone()
    };
    let first = [request_1(), again(request_1())].concat();
    let repeated = again([request_2(), vec![refused.clone()]].concat());
    let second = [request_2(), vec![taken], reply_2(), repeated.clone()].concat();
    let story = joined(&two(first.clone(), second));
    assert_eq!(story.verdict, Verdict::Lost { is_reply: true });
    // Where it has none of them, it does not want the connection.
    let second = [request_2(), vec![refused], repeated].concat();
    let story = joined(&two(first, second));
    assert_eq!(story.verdict, Verdict::Dropped { is_reply: false });
}

#[test]
fn a_datagram_that_was_read_may_have_an_answer_that_is_lost() {
    let datagrams = |mut hops: Vec<Hop>| {
        for hop in &mut hops {
            hop.header.flow.protocol = Protocol::UDP;
            hop.header.what = String::new();
            hop.connection = None;
        }
        hops
    };
    let read = consumed("skb_consume_udp", BEFORE + 55_000, BEFORE + 40_000, syn(SERVER));
    let taken = datagrams([request_2(), vec![read]].concat());
    let first = datagrams(request_1());
    let story = joined(&two(first.clone(), taken.clone()));
    assert_eq!(story.verdict, Verdict::Delivered);
    let second = [taken, datagrams(reply_2())].concat();
    let story = joined(&two(first, second));
    assert_eq!(story.verdict, Verdict::Lost { is_reply: true });
}

/// Only who would have seen a packet says by seeing nothing that it did not come.
#[test]
fn what_nobody_would_have_seen_has_left_and_is_not_lost() {
    type Change = fn(&mut Part);
    let told = |change: Change| {
        let mut parts = two(request_1(), Vec::new());
        change(&mut parts[1]);
        let story = joined(&parts);
        let missing = story.nodes.iter().filter_map(|witness| witness.missing.clone());
        (story.verdict, missing.collect::<Vec<_>>(), render::text(&story))
    };
    let left = "verdict: LEFT by node-1 host eth0 to 172.30.0.12, no reply seen\n";
    let rows: [(Change, Option<&str>); 7] = [
        (|part| part.attached = None, Some("it did not follow packets")),
        (
            |part| {
                part.attached = None;
                part.missing = Some("no agent is on it".to_owned());
            },
            Some("no agent is on it"),
        ),
        (
            |part| part.story = None,
            Some("it did not tell what it saw at the end"),
        ),
        (
            |part| {
                let other = hop((1, 1), (HOST, "eth0"), Sent, 64, syn_ack("10.241.0.9:8080"));
                let seen = Seen {
                    at: "host".to_owned(),
                    entering: None,
                    hop: other,
                };
                part.hops = vec![seen; MOST_HOPS];
            },
            Some("it saw 5000 hops, and looked no longer"),
        ),
        (
            |part| {
                part.story
                    .as_mut()
                    .into_iter()
                    .for_each(|story| story.gaps.lost_events = 1)
            },
            None,
        ),
        // It has another address.
        (
            |part| {
                part.attached
                    .as_mut()
                    .into_iter()
                    .for_each(|own| own.addresses.clear())
            },
            None,
        ),
        // It looks for others' packets.
        (
            |part| {
                part.attached
                    .as_mut()
                    .into_iter()
                    .for_each(|own| own.filter.sources = vec![at(SERVICE).ip()])
            },
            None,
        ),
    ];
    for (number, (change, why)) in rows.into_iter().enumerate() {
        let (verdict, missing, text) = told(change);
        assert_eq!(verdict, Verdict::Left, "row {number}");
        assert!(text.contains(left), "row {number}: {text}");
        assert_eq!(missing, Vec::from_iter(why.map(str::to_owned)), "row {number}");
        for why in missing {
            let line = format!("\nMISSING: what node-2 saw: {why}\n");
            assert!(text.contains(&line), "row {number}: {text}");
        }
    }
}

#[test]
fn what_left_a_machine_that_did_not_see_all_is_not_lost() {
    let second = || {
        let taken = consumed(
            "tcp_rcv_state_process",
            BEFORE + 55_000,
            BEFORE + 40_000,
            syn(SERVER),
        );
        [request_2(), vec![taken], reply_2()].concat()
    };
    // Which one lost events, and what is said then.
    let rows = [
        (Vec::new(), 0, Verdict::Left),
        (second(), 1, Verdict::Unanswered),
        ([request_2(), reply_2()].concat(), 1, Verdict::Unanswered),
    ];
    for (second, losing, verdict) in rows {
        let mut parts = two(request_1(), second);
        parts[losing].story.as_mut().expect("a story").gaps.lost_events = 1;
        let story = joined(&parts);
        assert_eq!(story.verdict, verdict);
        assert_eq!(story.gone.and_then(|gone| gone.to), None);
    }
}

#[test]
fn where_the_machine_that_it_left_knows_why_it_does_not_come_that_is_told() {
    let mut parts = two(request_1(), Vec::new());
    let cause = Cause {
        means: "NEIGHBOUR unresolved".to_owned(),
        look: vec!["there".to_owned()],
    };
    let own = parts[0].story.as_mut().expect("a story");
    own.explain_end(|_, _| Some(cause.clone()));
    let story = joined(&parts);
    assert_eq!(story.verdict, Verdict::Left);
    let text = render::text(&story);
    let told = "\nLEFT node-1 by host eth0 to 172.30.0.12: no node that was asked received the packet from there\n\
                means:   NEIGHBOUR unresolved\nlook at: there  # on node-1\n";
    assert!(text.ends_with(told), "{text}");
}

#[test]
fn a_drop_is_told_with_its_node_and_with_what_that_node_alone_knows() {
    let mut dropped = request_2();
    dropped.truncate(2);
    let kind = HopKind::Dropped {
        reason: "NETFILTER_DROP".to_owned(),
        place: "nft_do_chain".to_owned(),
    };
    dropped.push(hop(
        (BEFORE + 50_000, BEFORE + 40_000),
        (HOST, "flannel.1"),
        kind,
        63,
        syn(SERVER),
    ));
    let mut parts = two(request_1(), dropped);
    let cause = Cause {
        means: "a policy of the node refuses it".to_owned(),
        look: vec!["there".to_owned()],
    };
    let own = parts[1].story.as_mut().expect("a story");
    own.explain_end(|_, _| Some(cause.clone()));
    let story = joined(&parts);
    assert_eq!(story.verdict, Verdict::Dropped { is_reply: false });
    assert_eq!(story.drop().and_then(|step| step.cause.clone()), Some(cause));
    let text = render::text(&story);
    assert!(
        text.contains("verdict: DROPPED at node-2 host flannel.1\n")
            && text.contains(
                "\nDROPPED at node-2 host flannel.1: NETFILTER_DROP in nft_do_chain\nmeans:   a policy of"
            ),
        "{text}"
    );
}

/// As in a bundled cluster: both see all packets of the machine, and each knows its own namespaces alone by name.
#[test]
fn machines_that_are_one_tell_no_hop_twice() {
    let other = |mut hops: Vec<Hop>, to: [u32; 2]| {
        for hop in &mut hops {
            hop.netns = if hop.netns == HOST { to[0] } else { to[1] };
        }
        hops
    };
    let first = [request_1(), reply_1()].concat();
    let mut second = other([request_2(), reply_2()].concat(), [7, 8]);
    for hop in &mut second {
        hop.at_ns -= BEFORE;
    }
    // Who takes a packet is at no place: it is where the packet was.
    second.push(consumed(
        "tcp_rcv_state_process",
        55_000,
        BEFORE + 40_000,
        syn(SERVER),
    ));
    let all = [first, second].concat();
    let mut parts = [part("node-1", "same", all.clone()), part("node-2", "same", all)];
    parts[1].attached.as_mut().expect("attached").namespaces = [7, 8].into();
    let story = joined(&parts);
    assert_eq!(story.verdict, Verdict::Answered);
    let hops: Vec<usize> = story.nodes.iter().map(|witness| witness.hops).collect();
    assert_eq!(hops, [8, 9]);
    let nodes = |way: &Vec<String>| {
        let mut nodes: Vec<String> = way.iter().map(|place| place[..6].to_owned()).collect();
        nodes.dedup();
        nodes
    };
    let nodes: Vec<Vec<String>> = ways(&story).iter().map(nodes).collect();
    assert_eq!(nodes, [["node-1", "node-2"], ["node-2", "node-1"]]);
}

/// A packet to a node port of node-2, whose endpoint is on node-1 again.
#[test]
fn a_packet_that_comes_back_to_a_machine_is_told_in_the_order_of_its_way() {
    let first = vec![
        hop((1000, 1), (POD, "eth0"), Sent, 64, syn(SERVER)),
        hop((2000, 1), (HOST, "vethp"), Received, 64, syn(SERVER)),
        hop((3000, 1), (HOST, "eth0"), Sent, 63, syn(SERVER)),
        hop((9000, 9), (HOST, "eth0"), Received, 62, syn(SERVER)),
        hop((9500, 9), (HOST, "vethq"), Sent, 61, syn(SERVER)),
    ];
    let second = vec![
        hop((700, 1), (HOST, "eth0"), Received, 63, syn(SERVER)),
        hop((800, 1), (HOST, "eth0"), Sent, 62, syn(SERVER)),
    ];
    let expected = [
        "node-1 pod/default/client eth0",
        "node-1 host vethp",
        "node-1 host eth0",
        "node-2 host eth0",
        "node-2 host eth0",
        "node-1 host eth0",
        "node-1 host vethq",
    ];
    // A network card lets go of what it has sent when it comes to it: at once, or when the packet is back already.
    for let_go in [None, Some(3500), Some(9200), Some(9900)] {
        let mut first = first.clone();
        first.extend(let_go.map(|at| consumed("napi_consume_skb", at, 1, syn(SERVER))));
        let story = joined(&two(first, second.clone()));
        assert_eq!(ways(&story), [expected], "{let_go:?}");
    }
}

/// When a network card lets go of a packet says nothing of when it sent that.
#[test]
fn the_order_of_packets_follows_from_when_they_left_and_not_from_when_cards_let_go_of_them() {
    let mut second = [request_2(), reply_2()].concat();
    // What only the second machine saw, after it had answered.
    for mut hop in reply_2() {
        hop.at_ns += 50_000;
        hop.packet += 1;
        hop.header.ip_id = 9;
        second.push(hop);
    }
    // What only the first one saw, after it was answered and before that.
    let later = hop((130_000, 6000), (POD, "eth0"), Sent, 64, syn(SERVICE));
    let mut first = [request_1(), reply_1()].concat();
    first.push(Hop {
        header: Header {
            ip_id: 34575,
            ..later.header.clone()
        },
        ..later
    });
    for let_go in [None, Some(10_000_000)] {
        let mut first = first.clone();
        first.extend(let_go.map(|at| consumed("napi_consume_skb", at, 5000, syn(SERVER))));
        let story = joined(&two(first, second.clone()));
        let begin: Vec<_> = story
            .packets
            .iter()
            .map(|packet| (&*packet.hops[0].hop.node, packet.is_reply))
            .collect();
        let expected = [
            ("node-1", false),
            ("node-2", true),
            ("node-2", true),
            ("node-1", false),
        ];
        assert_eq!(begin, expected, "{let_go:?}");
    }
}

#[test]
fn packets_that_one_machine_alone_saw_stand_between_those_that_led_to_them() {
    // The reply was lost, and sent again.
    let mut again = reply_2();
    for hop in &mut again {
        hop.at_ns += 1_000_000_000;
        hop.packet += 1;
        hop.header.ip_id = 9;
    }
    let mut back = reply_1();
    for hop in &mut back {
        hop.at_ns += 1_000_000_000;
        hop.header.ip_id = 9;
    }
    let second = [again, request_2(), reply_2()].concat();
    let story = joined(&two([back, request_1()].concat(), second));
    let lengths: Vec<_> = story
        .packets
        .iter()
        .map(|packet| (packet.is_reply, packet.hops.len()))
        .collect();
    assert_eq!(lengths, [(false, 8), (true, 4), (true, 8)]);
    assert_eq!(story.verdict, Verdict::Answered);
}

#[test]
fn a_probe_that_no_machine_saw_is_told_as_its_own_machine_tells_it() {
    let mut parts = two(Vec::new(), Vec::new());
    let own = parts[0].story.take().expect("a story");
    let mut own = own.of_probe(flow(CLIENT, SERVICE), true);
    let cause = Cause {
        means: "a hook refuses it".to_owned(),
        look: vec!["there".to_owned()],
    };
    own.explain_unseen(|| Some(cause.clone()));
    parts[0].story = Some(own);
    let story = joined(&parts);
    assert_eq!(
        (story.verdict, story.cause.as_ref()),
        (Verdict::Refused, Some(&cause))
    );
    assert_eq!(story.flow, Some(flow(CLIENT, SERVICE)));
    assert_eq!(Story::joined(&[Part::default()]), None);
}

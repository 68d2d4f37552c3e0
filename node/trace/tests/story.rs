//! Stories of hops that were seen in other orders, of copies, of what is lost, and how they are told.

mod packets;

use trace::cause::Cause;
use trace::hop::{Connection, Flow, Header, Hop, HopKind, Protocol, Wrapping};
use trace::{Filter, Gaps, Names, Service, Story, Verdict, render};

use packets::{CLIENT, SERVER, SERVICE, at, check_golden, flow};

fn hop(at_ns: u64, packet: u64, netns: u32, device: &str, kind: HopKind, header: &Header) -> Hop {
    Hop {
        at_ns,
        packet,
        node: "machine".to_owned(),
        netns,
        device: device.to_owned(),
        kind,
        header: header.clone(),
        wrapping: None,
        connection: None,
    }
}

fn tcp(flow: Flow, what: &str, sequence: u32, acknowledgement: u32) -> Header {
    Header {
        flow,
        what: what.to_owned(),
        ip_id: if what == "SYN,ACK" { 0 } else { 34574 },
        sequence,
        acknowledgement,
        length: 60,
        ttl: 64,
    }
}

/// What conntrack says of the connection to the Service.
fn translated() -> Option<Connection> {
    Some(Connection {
        original: flow(CLIENT, SERVICE),
        reply: flow(SERVER, CLIENT),
    })
}

fn vxlan(source: &str, destination: &str) -> Option<Wrapping> {
    Some(Wrapping {
        vni: 77,
        flow: Flow {
            protocol: Protocol::UDP,
            ..flow(source, destination)
        },
    })
}

fn dropped(reason: &str, place: &str) -> HopKind {
    HopKind::Dropped {
        reason: reason.to_owned(),
        place: place.to_owned(),
    }
}

/// From pod 1 to a Service, by node 1 and VXLAN to pod 2 on node 2.
fn request() -> Vec<Hop> {
    use HopKind::{Received, Sent};
    let named = tcp(flow(CLIENT, SERVICE), "SYN", 1000, 0);
    let translated_header = tcp(flow(CLIENT, SERVER), "SYN", 1000, 0);
    let wrap = vxlan("192.168.77.1:34826", "192.168.77.2:8472");
    vec![
        hop(5000, 5000, 1, "eth0", Sent, &named),
        hop(7400, 5000, 2, "vethp", Received, &named),
        Hop {
            connection: translated(),
            ..hop(25800, 5000, 2, "vx", Sent, &translated_header)
        },
        Hop {
            wrapping: wrap,
            ..hop(33700, 5000, 2, "eth0", Sent, &translated_header)
        },
        Hop {
            wrapping: wrap,
            ..hop(35100, 5000, 3, "eth0", Received, &translated_header)
        },
        hop(44300, 5000, 3, "vx", Received, &translated_header),
        hop(47000, 5000, 3, "vethp", Sent, &translated_header),
        hop(47900, 5000, 4, "eth0", Received, &translated_header),
    ]
}

fn reply(what: &str) -> Vec<Hop> {
    use HopKind::{Received, Sent};
    let server = tcp(flow(SERVER, CLIENT), what, 7000, 1001);
    let service = tcp(flow(SERVICE, CLIENT), what, 7000, 1001);
    vec![
        hop(57300, 57300, 4, "eth0", Sent, &server),
        Hop {
            connection: translated(),
            ..hop(84800, 57300, 2, "vethp", Sent, &service)
        },
        hop(85700, 57300, 1, "eth0", Received, &service),
    ]
}

fn filter() -> Filter {
    Filter {
        sources: vec![at(CLIENT).ip()],
        targets: vec![(at(SERVICE).ip(), Some(80))],
        ..Filter::default()
    }
}

fn names() -> Names {
    let names = [
        (1, "pod/default/client"),
        (2, "node-1"),
        (3, "node-2"),
        (4, "pod/default/web"),
    ];
    Names {
        netns: names.map(|(inode, name)| (inode, name.to_owned())).into(),
        entering: [(2, "ip netns exec node-1".to_owned())].into(),
        ..Names::default()
    }
}

fn web() -> Service {
    Service {
        name: "svc/default/web:80".to_owned(),
        frontends: vec![at(SERVICE)],
        endpoints: vec![at("10.241.0.9:8080"), at(SERVER), at("10.242.0.6:8080")],
    }
}

/// The request of a client whose socket was sent to an endpoint.
fn hooked() -> Vec<Hop> {
    let mut hops = request();
    for hop in &mut hops {
        hop.header.flow = flow(CLIENT, SERVER);
        hop.connection = None;
    }
    hops
}

/// Of who sends to a Service, under whatever address.
fn story_to(service: &Service, hops: &[Hop]) -> Story {
    let targets = service.frontends.iter().chain(&service.endpoints);
    let filter = Filter {
        targets: targets.map(|target| (target.ip(), Some(target.port()))).collect(),
        ..filter()
    };
    Story::new(&filter, hops, &names(), Gaps::default())
}

fn story(hops: &[Hop], lost: u64) -> Story {
    let gaps = Gaps {
        lost_events: lost,
        missed_events: 0,
    };
    Story::new(&filter(), hops, &names(), gaps)
}

#[test]
fn an_answered_request_is_told_hop_by_hop_with_its_translations() {
    let hops = [request(), reply("SYN,ACK")].concat();
    let story = story(&hops, 0);
    assert_eq!(story.verdict, Verdict::Answered);
    check_golden(
        &story,
        include_str!("golden/answered.txt"),
        include_str!("golden/answered.json"),
    );
}

#[test]
fn a_drop_is_told_with_what_it_means_and_what_was_lost() {
    let mut hops = request();
    hops.truncate(2);
    let header = tcp(flow(CLIENT, SERVER), "SYN", 1000, 0);
    hops.push(hop(
        25800,
        5000,
        2,
        "vx",
        dropped("NO_TX_TARGET", "vxlan_xmit"),
        &header,
    ));
    let story = story(&hops, 12);
    assert_eq!(story.verdict, Verdict::Dropped { is_reply: false });
    check_golden(
        &story,
        include_str!("golden/dropped.txt"),
        include_str!("golden/dropped.json"),
    );
}

#[test]
fn the_order_in_which_hops_come_makes_no_difference_and_neither_do_other_connections() {
    let hops = [request(), reply("SYN,ACK")].concat();
    let whole = story(&hops, 0);
    let mut reversed = hops.clone();
    reversed.reverse();
    assert_eq!(story(&reversed, 0), whole);
    let other = tcp(flow("10.241.0.5:50000", SERVICE), "SYN", 5, 0);
    let mut with_other = hops.clone();
    with_other.push(hop(90000, 90000, 1, "eth0", HopKind::Sent, &other));
    let with_other = story(&with_other, 0);
    assert_eq!(with_other.other_connections, 1);
    assert_eq!(with_other.packets, whole.packets);
}

#[test]
fn a_packet_that_was_copied_into_other_memory_is_one_packet_and_a_retransmission_another() {
    let mut copied = request();
    for hop in copied.iter_mut().skip(4) {
        hop.packet = 35100;
    }
    let copied = story(&copied, 0);
    assert_eq!(copied.packets.len(), 1);
    assert_eq!(copied.packets[0].hops.len(), 8);
    // The same to the byte, a second later.
    let mut again = reply("SYN,ACK");
    for hop in &mut again {
        hop.at_ns += 1_000_000_000;
        hop.packet += 1_000_000_000;
    }
    let hops = [request(), reply("SYN,ACK"), again].concat();
    let twice = story(&hops, 0);
    let replies: Vec<usize> = twice.packets.iter().map(|packet| packet.hops.len()).collect();
    assert_eq!(replies, [8, 3, 3]);
}

#[test]
fn a_connection_that_begins_is_told_rather_than_one_that_was_there_before() {
    let older = |source, destination, what: &str| tcp(flow(source, destination), what, 5, 5);
    let there = older("10.241.0.5:50000", SERVICE, "PSH,ACK");
    let back = older(SERVICE, "10.241.0.5:50000", "ACK");
    let old = vec![
        hop(100, 100, 1, "eth0", HopKind::Sent, &there),
        hop(200, 200, 1, "eth0", HopKind::Received, &back),
    ];
    let only_old = story(&old, 0);
    assert_eq!(
        (only_old.verdict, only_old.is_complete()),
        (Verdict::Answered, false)
    );
    let both = story(&[old, request(), reply("SYN,ACK")].concat(), 0);
    assert_eq!(both.flow, Some(flow(CLIENT, SERVICE)));
    assert!(both.is_complete());
    // By its port another one is out of question.
    let named = Filter {
        source_port: Some(50000),
        ..filter()
    };
    assert_eq!(
        Story::new(&named, &request(), &names(), Gaps::default()).flow,
        None
    );
}

#[test]
fn a_datagram_that_is_answered_by_the_same_bytes_is_two_packets() {
    let datagram = |source, destination| Header {
        flow: Flow {
            protocol: Protocol::UDP,
            ..flow(source, destination)
        },
        ip_id: 0,
        ..tcp(flow(source, destination), "", 7, 7)
    };
    let (there, back) = (datagram(CLIENT, SERVER), datagram(SERVER, CLIENT));
    use HopKind::{Received, Sent};
    let hops = |memory| {
        vec![
            hop(1000, 1000, 1, "eth0", Sent, &there),
            hop(2000, 1000, 4, "eth0", Received, &there),
            hop(3000, memory, 4, "eth0", Sent, &back),
            hop(4000, memory, 1, "eth0", Received, &back),
        ]
    };
    // In other memory, and in the same.
    for memory in [3000, 1000] {
        let filter = Filter {
            targets: vec![(at(SERVER).ip(), Some(at(SERVER).port()))],
            ..filter()
        };
        let story = Story::new(&filter, &hops(memory), &names(), Gaps::default());
        let directions: Vec<_> = story
            .packets
            .iter()
            .map(|packet| (packet.is_reply, packet.hops.len()))
            .collect();
        assert_eq!(directions, [(false, 2), (true, 2)], "{memory}");
        assert_eq!(story.verdict, Verdict::Answered);
    }
}

#[test]
fn verdicts_follow_from_what_came_back_and_from_what_did_not() {
    let refused = [request(), reply("RST,ACK")].concat();
    let mut taken = request();
    let header = tcp(flow(CLIENT, SERVER), "SYN", 1000, 0);
    let by = HopKind::Consumed {
        place: "tcp_rcv_state_process".to_owned(),
    };
    taken.push(hop(50000, 5000, 0, "", by, &header));
    // Data of a connection that is there need no answer of their own.
    let mut taken_later = taken.clone();
    for hop in &mut taken_later {
        "PSH,ACK".clone_into(&mut hop.header.what);
    }
    let mut reply_dropped = [request(), reply("SYN,ACK")].concat();
    reply_dropped.pop();
    if let Some(last) = reply_dropped.last_mut() {
        last.kind = dropped("NETFILTER_DROP", "nft_do_chain");
    }
    // What is redirected into the client's namespace is not seen there.
    let redirected = |what| {
        let mut hops = [request(), reply(what)].concat();
        hops.pop();
        hops
    };
    let acknowledgement = tcp(flow(CLIENT, SERVICE), "ACK", 1001, 7001);
    let acknowledgement = hop(90000, 90000, 1, "eth0", HopKind::Sent, &acknowledgement);
    let acknowledged = [redirected("SYN,ACK"), vec![acknowledgement]].concat();
    let mut closed_unread = acknowledged.clone();
    let end = tcp(flow(SERVICE, CLIENT), "FIN,ACK", 7001, 1001);
    let purged = dropped("QUEUE_PURGE", "sk_stream_kill_queues");
    closed_unread.push(hop(95000, 95000, 1, "", purged, &end));
    // By a device that leads to another machine.
    let left = |kind: Option<HopKind>| {
        let mut hops = request();
        hops.truncate(4);
        let header = tcp(flow(CLIENT, SERVER), "SYN", 1000, 0);
        hops.extend(kind.map(|kind| hop(50000, 5000, 0, "", kind, &header)));
        hops
    };
    let sent_on = HopKind::Consumed {
        place: "__dev_kfree_skb_any".to_owned(),
    };
    let rows = [
        (left(None), Verdict::Left),
        (left(Some(sent_on)), Verdict::Left),
        (
            left(Some(dropped("NEIGH_FAILED", "neigh_probe"))),
            Verdict::Dropped { is_reply: false },
        ),
        (Vec::new(), Verdict::NothingSeen),
        (redirected("SYN,ACK"), Verdict::Unanswered),
        (acknowledged, Verdict::Answered),
        (closed_unread, Verdict::Answered),
        (redirected("RST,ACK"), Verdict::Refused),
        (refused, Verdict::Refused),
        (taken, Verdict::Unanswered),
        (taken_later, Verdict::Delivered),
        (request(), Verdict::Unanswered),
        (reply_dropped, Verdict::Dropped { is_reply: true }),
    ];
    for (hops, verdict) in rows {
        assert_eq!(story(&hops, 0).verdict, verdict);
    }
}

#[test]
fn what_went_to_an_endpoint_on_another_machine_is_told_with_the_service() {
    let mut hops = hooked();
    hops.truncate(4);
    let story = story_to(&web(), &hops).to_service(&web());
    assert_eq!(story.verdict, Verdict::Left);
    check_golden(
        &story,
        include_str!("golden/left.txt"),
        include_str!("golden/left.json"),
    );
}

#[test]
fn what_left_this_machine_is_told_with_the_device_and_where_to_go_on() {
    let mut wrapped = request();
    wrapped.truncate(4);
    let mut bare = request();
    bare.truncate(3);
    let rows = [
        (
            wrapped,
            "LEFT THIS MACHINE by node-1 eth0: nothing on it received the packet from there",
            &["look at: the same trace on the machine that has 192.168.77.2"][..],
        ),
        (
            bare.clone(),
            "LEFT THIS MACHINE by node-1 vx: nothing on it received the packet from there",
            &[
                "look at: ip netns exec node-1 ip route get 10.242.0.5",
                "look at: what is behind that device",
            ],
        ),
    ];
    for (hops, left, look) in rows {
        let text = render::text(&story(&hops, 0));
        let last = [&[left][..], look].concat();
        assert!(text.ends_with(&(last.join("\n") + "\n")), "{text}");
    }
    let mut known = story(&bare, 0);
    known.explain_end(|step, _| {
        assert_eq!((step.at.as_str(), step.hop.device.as_str()), ("node-1", "vx"));
        Some(Cause {
            means: "the route is missing".to_owned(),
            look: vec!["ip route".to_owned()],
        })
    });
    let text = render::text(&known);
    assert!(
        text.ends_with("means:   the route is missing\nlook at: ip route\n"),
        "{text}"
    );
}

#[test]
fn the_endpoint_of_a_service_is_told_with_who_chose_it() {
    let service = web();
    let of = |hops: &[Hop]| {
        let told = story_to(&service, hops).to_service(&service);
        render::text(&told).lines().nth(1).unwrap_or_default().to_owned()
    };
    let mut untranslated = request();
    untranslated.truncate(2);
    let answer = tcp(flow(SERVICE, CLIENT), "SYN,ACK", 7000, 1001);
    let answered = hop(90_000, 90_000, 2, "", HopKind::Sent, &answer);
    let by_itself = [untranslated.clone(), vec![answered]].concat();
    let rows = [
        (
            by_itself,
            "answered at 10.96.0.10:80 itself, and not by an endpoint",
        ),
        (request(), "1 of 3 endpoints, 10.242.0.5:8080, by packet rules"),
        (hooked(), "1 of 3 endpoints, 10.242.0.5:8080, by socket hook"),
        (untranslated, "none of 3 endpoints seen"),
        (Vec::new(), "none of 3 endpoints seen"),
    ];
    for (hops, expected) in rows {
        assert_eq!(of(&hops), format!("svc/default/web:80 -> {expected}"));
    }
}

#[test]
fn how_a_connection_that_works_is_closed_is_told_only_in_full() {
    let server = |what| tcp(flow(SERVICE, CLIENT), what, 7001, 1002);
    let client = |what| tcp(flow(CLIENT, SERVICE), what, 1001, 7001);
    let late = dropped("TCP_OLD_ACK", "tcp_rcv_established");
    let closing = vec![
        hop(200_000, 200_000, 1, "eth0", HopKind::Sent, &client("FIN,ACK")),
        hop(210_000, 210_000, 1, "eth0", HopKind::Received, &server("FIN,ACK")),
        hop(220_000, 220_000, 1, "eth0", HopKind::Sent, &client("ACK")),
        hop(230_000, 230_000, 4, "eth0", late, &client("RST")),
    ];
    let data = hop(90_000, 90_000, 1, "eth0", HopKind::Sent, &client("PSH,ACK"));
    let hops = [request(), reply("SYN,ACK"), vec![data.clone()], closing.clone()].concat();
    let works = story(&hops, 0);
    assert_eq!(works.verdict, Verdict::Answered);
    let (text, full) = (render::text(&works), render::full_text(&works));
    assert!(
        text.contains("PSH,ACK") && !text.contains("FIN") && !text.contains("TCP_OLD_ACK"),
        "{text}"
    );
    assert!(text.contains("and 4 packets that close the connection"), "{text}");
    assert!(full.contains("FIN,ACK") && full.contains("TCP_OLD_ACK"), "{full}");
    // Where it does not work, nothing is left out.
    let lost = hop(
        95_000,
        95_000,
        1,
        "",
        dropped("NETFILTER_DROP", "nft_do_chain"),
        &client("PSH,ACK"),
    );
    let lost = Hop {
        header: Header {
            sequence: 5000,
            ..lost.header
        },
        ..lost
    };
    let fails = story(&[hops, vec![lost]].concat(), 0);
    assert_eq!(fails.verdict, Verdict::Dropped { is_reply: false });
    assert!(
        render::text(&fails).contains("FIN,ACK"),
        "{}",
        render::text(&fails)
    );
}

#[test]
fn without_symbols_drops_are_judged_by_their_reasons_and_that_is_said() {
    let with_drop = |reason, place| {
        let late = tcp(flow(CLIENT, SERVICE), "ACK", 1001, 7001);
        let late = hop(200_000, 200_000, 4, "", dropped(reason, place), &late);
        story(&[request(), reply("SYN,ACK"), vec![late]].concat(), 0)
    };
    let lost = Verdict::Dropped { is_reply: false };
    let bare = "0xffffffff81a2b3c0";
    let rows = [
        ("TCP_OLD_DATA", "tcp_data_queue", Verdict::Answered, false),
        ("TCP_OLD_DATA", bare, Verdict::Answered, true),
        ("NOT_SPECIFIED", bare, Verdict::Answered, true),
        ("NETFILTER_DROP", bare, lost, true),
        ("NOT_SPECIFIED", "veth_xmit", lost, false),
    ];
    for (reason, place, verdict, lacks_symbols) in rows {
        let story = with_drop(reason, place);
        assert_eq!(
            (story.verdict, story.lacks_symbols),
            (verdict, lacks_symbols),
            "{reason} {place}"
        );
        let is_said = render::text(&story).contains("CAP_SYSLOG");
        assert_eq!(is_said, lacks_symbols, "{reason} {place}");
    }
}

#[test]
fn a_later_packet_that_is_dropped_and_not_made_good_is_the_verdict() {
    let answered = [request(), reply("SYN,ACK")].concat();
    let data = tcp(flow(CLIENT, SERVICE), "PSH,ACK", 1001, 7001);
    let data = Header {
        ip_id: 34576,
        length: 1500,
        ..data
    };
    let lost = hop(
        200_000,
        200_000,
        2,
        "vethp",
        dropped("NOT_SPECIFIED", "__dev_forward_skb2"),
        &data,
    );
    let mut hops = answered;
    hops.push(lost);
    assert_eq!(story(&hops, 0).verdict, Verdict::Dropped { is_reply: false });
    // It was sent again, and acknowledged.
    let acknowledged = tcp(flow(SERVICE, CLIENT), "ACK", 7001, 2449);
    hops.push(hop(300_000, 300_000, 1, "eth0", HopKind::Received, &acknowledged));
    assert_eq!(story(&hops, 0).verdict, Verdict::Answered);
}

#[test]
fn where_nothing_was_seen_the_reasons_are_told() {
    let expected = "\
TRACE  verdict: NOTHING SEEN

0 events lost

no packet of this kind was seen: nobody sent one while it was looked for
a Service's address is translated before a packet exists, where the socket hook does it: name the Service, or its endpoint
";
    assert_eq!(render::text(&story(&[], 0)), expected);
}

//! What is told of flows, to people and to programs.

use jiff::Timestamp;
use serde_json::json;
use trace::Names;
use trace::drops::Uncounted;
use trace::flows::record::{self, Object, Record};
use trace::flows::{Amount, Lost, Passed, render};
use trace::hop::{Flow, Protocol};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

fn amount(packets: u64, bytes: u64) -> Amount {
    Amount { packets, bytes }
}

fn passed(source: &str, destination: &str, protocol: Protocol) -> Passed {
    Passed {
        flow: Flow {
            source: source.parse().expect("an address"),
            destination: destination.parse().expect("an address"),
            protocol,
        },
        service: None,
        is_reply: false,
        sent: Amount::default(),
        received: Amount::default(),
        first: at(1),
        last: at(3),
        sender: 0,
        receiver: 0,
        tcp_flags: 0,
        drops: Vec::new(),
    }
}

fn names() -> Names {
    let netns = [(1, "pod/shop/client"), (2, "node-1"), (3, "pod/shop/web")];
    let pods = [("10.244.9.9", "pod/shop/remote")];
    Names {
        netns: netns.map(|(inode, name)| (inode, name.to_owned())).into(),
        pods: pods
            .map(|(address, name)| (address.parse().expect("an address"), name.to_owned()))
            .into(),
        ..Names::default()
    }
}

fn records(passed: &Passed) -> Vec<Record> {
    record::of(passed, "machine", &names(), |address, _| {
        (address.ip().to_string() == "10.96.0.10").then(|| Object {
            name: "web".to_owned(),
            namespace: "shop".to_owned(),
        })
    })
}

/// A connection to a Service, some packets of which are dropped on the node.
fn request() -> Passed {
    let lost = |packets, was_sent, netns| Lost {
        amount: amount(packets, packets * 60),
        reason: "NETFILTER_DROP".to_owned(),
        place: "nft_do_chain".to_owned(),
        netns,
        was_sent,
        last: at(2),
    };
    Passed {
        service: Some("10.96.0.10:80".parse().expect("an address")),
        sent: amount(12, 900),
        received: amount(9, 720),
        sender: 1,
        receiver: 3,
        tcp_flags: 0b1_0010,
        // One was dropped before it was sent at all.
        drops: vec![lost(3, true, 2), lost(1, false, 1)],
        ..passed("10.244.1.2:40000", "10.244.1.3:8080", Protocol::TCP)
    }
}

#[test]
fn a_record_has_the_names_of_hubbles_fields() {
    let expected = json!({
        "time": "2027-01-15T08:00:03Z", "first_time": "2027-01-15T08:00:01Z",
        "verdict": "FORWARDED",
        "IP": {"source": "10.244.1.2", "destination": "10.244.1.3", "ipVersion": "IPv4"},
        "l4": {"TCP": {"source_port": 40000, "destination_port": 8080, "flags": {"SYN": true, "ACK": true}}},
        "source": {"namespace": "shop", "pod_name": "client"},
        "destination": {"namespace": "shop", "pod_name": "web"},
        "Type": "L3_L4", "node_name": "machine", "is_reply": false,
        "destination_service": {"namespace": "shop", "name": "web"}, "service_address": "10.96.0.10:80",
        "Summary": "TCP Flags: SYN, ACK",
        "packets": 9, "bytes": 720,
    });
    let records = records(&request());
    assert_eq!(json!(records[0]), expected);
    let mut dropped = expected;
    for (key, value) in [
        ("verdict", json!("DROPPED")),
        ("time", json!("2027-01-15T08:00:02Z")),
        ("drop_reason_desc", json!("NETFILTER_DROP")),
        ("drop_place", json!("nft_do_chain")),
        ("drop_netns", json!("node-1")),
        ("packets", json!(3)),
        ("bytes", json!(180)),
    ] {
        dropped[key] = value;
    }
    assert_eq!(json!(records[1]), dropped);
    assert_eq!((records.len(), records[2].packets), (3, 1));
    let told: serde_json::Value =
        serde_json::from_str(&render::json(&records, Uncounted::default())).expect("JSON");
    assert_eq!(told["flows"][1], dropped);
    assert_eq!(told["uncounted"], json!({"forgotten": 0, "missed": 0}));
    assert_eq!(render::lines(&records).lines().count(), 3);
}

#[test]
fn people_read_who_began_on_the_left() {
    let reply = Passed {
        is_reply: true,
        sent: amount(7, 500),
        received: amount(8, 560),
        sender: 3,
        receiver: 1,
        ..passed("10.244.1.3:8080", "10.244.1.2:40000", Protocol::TCP)
    };
    let ping = Passed {
        sent: amount(1, 84),
        sender: 2,
        ..passed("172.30.0.11:0", "10.244.9.9:0", Protocol::ICMP)
    };
    let name = Passed {
        received: amount(2, 200),
        receiver: 3,
        ..passed("[fd00::5]:5353", "[fd00::6]:53", Protocol::UDP)
    };
    let expected = "\
08:00:03  tcp  pod/shop/client 10.244.1.2:40000 -> pod/shop/web 10.244.1.3:8080 as svc/shop/web 10.96.0.10:80  FORWARDED  9 packets 720 bytes  (TCP Flags: SYN, ACK)
08:00:02  tcp  pod/shop/client 10.244.1.2:40000 -> pod/shop/web 10.244.1.3:8080 as svc/shop/web 10.96.0.10:80  DROPPED  3 packets 180 bytes  NETFILTER_DROP in nft_do_chain at node-1  (TCP Flags: SYN, ACK)
08:00:02  tcp  pod/shop/client 10.244.1.2:40000 -> pod/shop/web 10.244.1.3:8080 as svc/shop/web 10.96.0.10:80  DROPPED  1 packets 60 bytes  NETFILTER_DROP in nft_do_chain at pod/shop/client  (TCP Flags: SYN, ACK)
08:00:03  tcp  pod/shop/client 10.244.1.2:40000 <- pod/shop/web 10.244.1.3:8080  FORWARDED  8 packets 560 bytes  (TCP Flags: )
08:00:03  icmp  node-1 172.30.0.11 -> pod/shop/remote 10.244.9.9  FORWARDED  1 packets 84 bytes
08:00:03  udp  [fd00::5]:5353 -> pod/shop/web [fd00::6]:53  FORWARDED  2 packets 200 bytes
";
    let told: Vec<Record> = [request(), reply, ping, name].iter().flat_map(records).collect();
    assert_eq!(render::text(&told), expected);
}

#[test]
fn what_was_not_counted_is_never_silent() {
    let rows = [
        (0, 0, "every packet was counted\n"),
        (
            0,
            2,
            "INCOMPLETE: 2 packets were not counted, since another was just being counted on that CPU\n",
        ),
        (
            5,
            2,
            "INCOMPLETE: 5 packets of further flows, which there was no room to remember, and 2 that were not counted\n",
        ),
    ];
    for (forgotten, missed, text) in rows {
        let uncounted = Uncounted { forgotten, missed };
        assert_eq!(render::notes(uncounted), text);
        let line: serde_json::Value =
            serde_json::from_str(&render::lost_line("machine", uncounted)).expect("JSON");
        assert_eq!(line["lost_events"]["num_events_lost"], forgotten + missed);
    }
}

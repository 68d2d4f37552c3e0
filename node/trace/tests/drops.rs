//! What is told of drops, to people and to programs.

use jiff::Timestamp;
use trace::cause::{self, Scene};
use trace::drops::{Dropped, Kind, Report, Uncounted, render};
use trace::hop::Protocol;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("a time")
}

fn kind(reason: &str, place: &str, protocol: Protocol, ends: (&str, &str, Option<u16>)) -> Kind {
    let (source, destination, destination_port) = ends;
    Kind {
        reason: reason.to_owned(),
        place: place.to_owned(),
        netns: 4_026_532_001,
        device: "eth0".to_owned(),
        ethertype: 0x0800,
        protocol: Some(protocol),
        opens: false,
        wrapped: false,
        source: Some(source.parse().expect("an address")),
        source_port: None,
        destination: Some(destination.parse().expect("an address")),
        destination_port,
    }
}

fn dropped(packets: u64, place: &str, kind: Kind) -> Dropped {
    let entering = match place {
        "node-1" => Some("ip netns exec node-1"),
        "host" => Some(""),
        _ => None,
    };
    let scene = Scene {
        device: &kind.device,
        sender: kind.source,
        receiver: kind.destination,
        at: place,
        entering,
    };
    Dropped {
        packets,
        bytes: packets * 60,
        first: at(1),
        last: at(8),
        at: place.to_owned(),
        source_pod: None,
        destination_pod: None,
        cause: cause::of(&kind.reason, &kind.place, &scene),
        ordinary: false,
        kind,
    }
}

fn report() -> Report {
    let refused = Dropped {
        source_pod: Some("pod/shop/client".to_owned()),
        destination_pod: Some("pod/shop/web".to_owned()),
        last: at(1),
        ..dropped(
            2,
            "pod/shop/web",
            Kind {
                opens: true,
                ..kind(
                    "NO_SOCKET",
                    "tcp_v4_rcv",
                    Protocol::TCP,
                    ("10.244.1.2", "10.244.1.3", Some(81)),
                )
            },
        )
    };
    let guarded = dropped(
        120,
        "node-1",
        Kind {
            wrapped: true,
            ..kind(
                "NETFILTER_DROP",
                "nft_do_chain",
                Protocol::UDP,
                ("10.244.1.2", "fd00::5", Some(9999)),
            )
        },
    );
    let ping = dropped(
        1,
        "node-1",
        kind(
            "IP_RPFILTER",
            "ip_rcv_finish_core",
            Protocol::ICMP,
            ("10.244.1.2", "10.244.1.3", None),
        ),
    );
    let late = Dropped {
        ordinary: true,
        ..dropped(
            37,
            "host",
            kind(
                "TCP_OLD_ACK",
                "tcp_ack",
                Protocol::TCP,
                ("10.0.0.1", "10.0.0.2", Some(80)),
            ),
        )
    };
    let drops = vec![guarded, late, refused, ping];
    Report {
        millis: 10_040,
        ..Report::new("machine", at(0), drops, false, Uncounted::default())
    }
}

#[test]
fn drops_are_a_table_with_what_they_mean_below() {
    let expected = "\
DROPS  10.0 s of machine: 123 packets

PACKETS  BYTES  WHEN (UTC)         AT            DEVICE  WHY                                WHAT
    120   7200  08:00:01-08:00:08  node-1        eth0    NETFILTER_DROP in nft_do_chain     udp  10.244.1.2 -> [fd00::5]:9999 (within VXLAN)
      2    120  08:00:01           pod/shop/web  eth0    NO_SOCKET in tcp_v4_rcv            tcp SYN  pod/shop/client 10.244.1.2 -> pod/shop/web 10.244.1.3:81
      1     60  08:00:01-08:00:08  node-1        eth0    IP_RPFILTER in ip_rcv_finish_core  icmp  10.244.1.2 -> 10.244.1.3

IP_RPFILTER in ip_rcv_finish_core
  means:   the way back to the sender is not by the device that it came from (rp_filter)
  look at: ip netns exec node-1 ip route get 10.244.1.2
  look at: ip netns exec node-1 sysctl net.ipv4.conf.all.rp_filter
NETFILTER_DROP in nft_do_chain
  means:   a rule of nftables or iptables dropped it
  look at: ip netns exec node-1 nft list ruleset
  look at: ip netns exec node-1 iptables-save
NO_SOCKET in tcp_v4_rcv
  means:   nobody listens at this address and port
  look at: ss -tln  # at pod/shop/web

37 more that are part of normal traffic: --all
every drop was counted
";
    assert_eq!(render::text(&report()), expected);
}

#[test]
fn what_was_not_counted_is_never_silent() {
    let uncounted = Uncounted {
        forgotten: 5,
        missed: 2,
    };
    let nothing = Report {
        millis: 300,
        ..Report::new("machine", at(0), Vec::new(), false, uncounted)
    };
    let expected = "\
DROPS  0.3 s of machine: 0 packets

INCOMPLETE: 5 packets more were dropped in other ways, which there was no room to remember
INCOMPLETE: 2 drops were not counted, since another was just being counted on that CPU
";
    assert_eq!(render::text(&nothing), expected);
    let line = "{\"began\":\"2027-01-15T08:00:00Z\",\"forgotten\":5,\"lacksSymbols\":false,\"millis\":300,\"missed\":2,\
                \"node\":\"machine\",\"ordinaryPackets\":0}\n";
    assert_eq!(render::lines(&nothing), line);
}

#[test]
fn programs_are_told_the_same() {
    let expected = serde_json::json!({
        "packets": 2, "bytes": 120, "first": "2027-01-15T08:00:01Z", "last": "2027-01-15T08:00:01Z",
        "at": "pod/shop/web", "netns": 4_026_532_001_u32, "device": "eth0",
        "reason": "NO_SOCKET", "place": "tcp_v4_rcv", "ethertype": 0x0800, "protocol": "tcp", "opens": true, "wrapped": false,
        "source": "10.244.1.2", "sourcePod": "pod/shop/client",
        "destination": "10.244.1.3", "destinationPort": 81, "destinationPod": "pod/shop/web",
        "cause": {"means": "nobody listens at this address and port", "look": ["ss -tln  # at pod/shop/web"]},
        "ordinary": false,
    });
    let told: serde_json::Value = serde_json::from_str(&render::json(&report())).expect("JSON");
    assert_eq!(told["drops"][1], expected);
    assert_eq!(told["ordinaryPackets"], 37);
    let lines = render::lines(&report());
    let line: serde_json::Value =
        serde_json::from_str(lines.lines().nth(1).expect("a second line")).expect("JSON");
    assert_eq!((line, lines.lines().count()), (expected, 4));
}

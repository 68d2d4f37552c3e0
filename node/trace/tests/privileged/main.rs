//! Real packets between namespaces, followed. Needs root.

mod drops;
mod flows;
mod once;
mod world;

use std::net::SocketAddr;

use tests::privileged;
use trace::hop::HopKind;
use trace::story::Packet;
use trace::{Story, Verdict};
use world::{PORT, SERVER, SERVICE, World, ask, ip, knock, run, short};

fn lines(packet: &Packet) -> Vec<String> {
    packet
        .hops
        .iter()
        .map(|step| short(&step.at, &step.hop))
        .collect()
}

/// The packet with these flags.
fn packet<'a>(story: &'a Story, what: &str) -> &'a Packet {
    let is_it = |packet: &&Packet| {
        packet
            .hops
            .first()
            .is_some_and(|step| step.hop.header.what == what)
    };
    story
        .packets
        .iter()
        .find(is_it)
        .unwrap_or_else(|| panic!("no {what}:\n{}", trace::render::text(story)))
}

#[test]
fn a_packet_is_followed_through_nat_and_vxlan_to_another_node_and_its_reply_back() {
    if !privileged("a packet is followed through NAT and VXLAN to another node") {
        return;
    }
    let world = World::new().expect("a world");
    let server = world.serve().expect("a server");
    let story = world.follow(SERVICE, ask, |story| {
        let packets = &story.packets;
        let answer = packets
            .iter()
            .find(|packet| packet.is_reply && packet.hops[0].hop.header.what == "PSH,ACK");
        answer.is_some_and(|answer| answer.hops.iter().any(|step| step.at == "p1"))
    });
    let story = story.expect("a story");
    server.join().expect("served");
    println!("{}", trace::render::text(&story));
    let there = [
        "p1 eth0 sent 10.201.0.5>10.203.0.10:80",
        "n1 vethp received 10.201.0.5>10.203.0.10:80",
        "n1 vx sent 10.201.0.5>10.202.0.5:8080",
        "n1 eth0 sent 10.201.0.5>10.202.0.5:8080 in 77 192.168.77.1>192.168.77.2:8472",
        "n2 eth0 received 10.201.0.5>10.202.0.5:8080 in 77 192.168.77.1>192.168.77.2:8472",
        "n2 vx received 10.201.0.5>10.202.0.5:8080",
        "n2 vethp sent 10.201.0.5>10.202.0.5:8080",
        "p2 eth0 received 10.201.0.5>10.202.0.5:8080",
    ];
    let back = [
        "p2 eth0 sent 10.202.0.5:8080>10.201.0.5",
        "n2 vethp received 10.202.0.5:8080>10.201.0.5",
        "n2 vx sent 10.202.0.5:8080>10.201.0.5",
        "n2 eth0 sent 10.202.0.5:8080>10.201.0.5 in 77 192.168.77.2>192.168.77.1:8472",
        "n1 eth0 received 10.202.0.5:8080>10.201.0.5 in 77 192.168.77.2>192.168.77.1:8472",
        "n1 vx received 10.202.0.5:8080>10.201.0.5",
        "n1 vethp sent 10.203.0.10:80>10.201.0.5",
        "p1 eth0 received 10.203.0.10:80>10.201.0.5",
    ];
    // A packet that nobody uses any more may be told as taken at the end.
    let passed = |story: &Story, what| {
        let mut lines = lines(packet(story, what));
        lines.retain(|line| !line.contains(" taken "));
        lines
    };
    let joined = world.as_of_two_machines(&story).expect("a story");
    println!("{}", trace::render::text(&joined));
    for story in [&story, &joined] {
        assert_eq!(passed(story, "SYN"), there);
        assert_eq!(passed(story, "SYN,ACK"), back);
        assert_eq!(passed(story, "PSH,ACK"), there);
        assert_eq!((story.verdict, story.gaps.lost_events), (Verdict::Answered, 0));
    }
    assert_eq!(joined.packets.len(), story.packets.len());
}

/// A way to break the world, and what is told of the packet that meets it.
struct Fault {
    port: u16,
    make: fn(&World) -> anyhow::Result<()>,
    verdict: Verdict,
    drop: &'static str,
    means: &'static str,
}

const THERE: Verdict = Verdict::Dropped { is_reply: false };

const FAULTS: [Fault; 5] = [
    Fault {
        port: 9999,
        make: |world| {
            world.nft(&world.n2, "add table ip guard")?;
            world.nft(
                &world.n2,
                "add chain ip guard passing { type filter hook forward priority 0; }",
            )?;
            world.nft(&world.n2, "add rule ip guard passing tcp dport 9999 drop")
        },
        verdict: THERE,
        drop: "n2 vx NETFILTER_DROP@nft_do_chain 10.201.0.5>10.202.0.5:9999",
        means: "a rule of nftables or iptables dropped it",
    },
    Fault {
        port: PORT,
        make: |world| {
            run(
                &world.n1,
                "bridge",
                "fdb del 02:00:00:00:00:02 dev vx dst 192.168.77.2",
            )
        },
        verdict: THERE,
        drop: "n1 vx NO_TX_TARGET@vxlan_xmit 10.201.0.5>10.202.0.5:8080",
        means: "the VXLAN device knows no node for the packet's MAC address: the FDB entry is missing",
    },
    Fault {
        port: 81,
        make: |_| Ok(()),
        verdict: Verdict::Refused,
        drop: "p2 eth0 NO_SOCKET@tcp_v4_rcv 10.201.0.5>10.202.0.5:81",
        means: "nobody listens at this address and port",
    },
    Fault {
        port: PORT,
        make: |world| {
            world.n2.set("net/ipv4/conf/all/rp_filter", "1")?;
            world.n2.set("net/ipv4/conf/vx/rp_filter", "1")?;
            ip(&world.n2, "route replace 10.201.0.0/24 via 192.168.77.1 dev eth0")
        },
        verdict: THERE,
        drop: "n2 vx IP_RPFILTER@ip_rcv_finish_core 10.201.0.5>10.202.0.5:8080",
        means: "the way back to the sender is not by the device that it came from (rp_filter)",
    },
    Fault {
        port: 7777,
        make: |world| {
            world.nft(&world.p1, "add table ip guard")?;
            world.nft(
                &world.p1,
                "add chain ip guard leaving { type filter hook output priority 0; }",
            )?;
            world.nft(&world.p1, "add rule ip guard leaving tcp dport 7777 drop")
        },
        verdict: THERE,
        drop: "p1 NETFILTER_DROP@nft_do_chain 10.201.0.5>10.202.0.5:7777",
        means: "a rule of nftables or iptables dropped it",
    },
];

#[test]
fn a_drop_is_told_with_its_reason_its_place_and_what_it_means() {
    if !privileged("a drop is told with its reason, its place and what it means") {
        return;
    }
    for fault in FAULTS {
        let world = World::new().expect("a world");
        (fault.make)(&world).expect("a fault");
        let target = SocketAddr::new(SERVER.into(), fault.port);
        let story = world.follow(target, knock, |story| {
            story.verdict == fault.verdict && story.drop().is_some()
        });
        let story = story.expect("a story");
        println!("{}", trace::render::text(&story));
        let step = story.drop().expect("a drop");
        assert!(matches!(step.hop.kind, HopKind::Dropped { .. }));
        assert_eq!(short(&step.at, &step.hop), fault.drop);
        let means = step.cause.as_ref().map(|cause| cause.means.as_str());
        assert_eq!(means, Some(fault.means), "{}", fault.drop);
    }
}

//! Packets that meet several devices, or lie in packets of a tunnel, are counted once, as what they are.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Instant;

use tests::privileged;
use tests::topology::{Host, connect};
use trace::drops;
use trace::flows::{Amount, Passed, Session};

use super::world::{CLIENT, DEADLINE, SERVER, World, ip, run};

/// Datagrams, and how long each is with its headers. So many fit into a socket.
const SENT: u64 = 90;
const CARRIED: usize = 72;
const LONG: u64 = 100;

fn all(packets: u64) -> Amount {
    Amount {
        packets,
        bytes: packets * LONG,
    }
}

fn start() -> Session {
    Session::start(&trace::namespaces::of_this_machine()).expect("a session")
}

/// Sends datagrams from one address to the other.
fn send(host: &Host, from: Ipv4Addr, to: SocketAddr) {
    let send = || {
        let socket = UdpSocket::bind((from, 40000)).expect("a socket");
        for _ in 0..SENT {
            socket.send_to(&[7; CARRIED], to).expect("sent");
        }
    };
    host.run(send).expect("entered");
}

/// A socket that datagrams come to.
fn bound(host: &Host, at: SocketAddr) -> UdpSocket {
    let socket = host.run(|| UdpSocket::bind(at)).expect("entered").expect("bound");
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    socket
}

fn receive(socket: &UdpSocket) {
    for _ in 0..SENT {
        socket.recv(&mut [0; 256]).expect("received");
    }
}

/// What passed to an address from the start to the end.
fn to(session: &mut Session, target: SocketAddr) -> Vec<Passed> {
    let mut passed = session.stop().expect("told");
    passed.retain(|passed| passed.flow.destination == target);
    passed
}

#[test]
fn a_packet_is_counted_once_where_devices_stand_on_others() {
    const BRIDGE: Ipv4Addr = Ipv4Addr::new(10, 201, 9, 1);
    const ABOVE: Ipv4Addr = Ipv4Addr::new(10, 201, 9, 6);
    if !privileged("a packet is counted once where devices stand on others") {
        return;
    }
    // A bridge on a port, and what stands on an uplink as a VLAN does: `br0/port - eth0/above`.
    let (node, peer) = (
        Host::new("bridged").expect("a node"),
        Host::new("peer").expect("a peer"),
    );
    connect((&node, "port"), (&peer, "eth0")).expect("a cable");
    for (host, lines) in [
        (
            &node,
            &[
                "link add br0 type bridge",
                "link set br0 up",
                "link set port master br0",
                "address add 10.201.9.1/24 dev br0",
            ][..],
        ),
        (
            &peer,
            &[
                "link add above link eth0 type macvlan mode bridge",
                "link set above up",
                "address add 10.201.9.6/24 dev above",
            ],
        ),
    ] {
        for line in lines {
            ip(host, line).expect("a device");
        }
    }
    for (from, to_end) in [
        ((&node, BRIDGE), (&peer, ABOVE)),
        ((&peer, ABOVE), (&node, BRIDGE)),
    ] {
        let target = SocketAddr::new(to_end.1.into(), 4242);
        let socket = bound(to_end.0, target);
        let mut session = start();
        send(from.0, from.1, target);
        receive(&socket);
        let told = to(&mut session, target);
        let [passed] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(
            (passed.sent, passed.received),
            (all(SENT), all(SENT)),
            "{passed:?}"
        );
    }
}

#[test]
fn what_comes_with_a_vlan_tag_is_counted() {
    const HERE: Ipv4Addr = Ipv4Addr::new(10, 201, 0, 1);
    if !privileged("what comes with a VLAN tag is counted") {
        return;
    }
    let world = World::new().expect("a world");
    let target = SocketAddr::new(HERE.into(), 4343);
    let socket = bound(&world.n1, target);
    let mut session = start();
    // Of VLAN 0, which is none: every kernel takes it (IEEE 802.1Q §6.9).
    let program = format!(
        "import socket, struct\n\
         half = lambda data: sum(struct.unpack('>10H', data))\n\
         ip = struct.pack('>BBHHHBBH4s4s', 69, 0, {LONG}, 1, 0, 64, 17, 0, socket.inet_aton('{CLIENT}'), \
         socket.inet_aton('{HERE}'))\n\
         total = half(ip); total = (total & 65535) + (total >> 16)\n\
         ip = ip[:10] + struct.pack('>H', ~total & 65535) + ip[12:]\n\
         udp = struct.pack('>HHHH', 40000, 4343, {LONG} - 20, 0) + bytes({CARRIED})\n\
         wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n\
         wire.bind(('eth0', 0))\n\
         for _ in range({SENT}): wire.send(b'\\xff' * 6 + b'\\x02' * 6 + b'\\x81\\0\\0\\0\\x08\\0' + ip + udp)\n"
    );
    let output = world.p1.command("python3", &["-c", &program]).expect("run");
    assert!(output.status.success(), "{output:?}");
    receive(&socket);
    let told = to(&mut session, target);
    let [passed] = told.as_slice() else {
        panic!("{told:?}")
    };
    assert_eq!(passed.received, all(SENT), "{passed:?}");
}

/// A node drops what is in packets of the tunnel: where it wraps them, or where it gets them. Who is told to have lost them.
#[test]
fn what_is_lost_within_a_tunnel_is_its_senders_loss() {
    if !privileged("what is lost within a tunnel is its sender's loss") {
        return;
    }
    type Row = (fn(&World) -> &Host, &'static str, &'static str, &'static str);
    let rows: [Row; 4] = [
        (|world| &world.n1, "output", "n1", "NETFILTER_DROP"),
        (|world| &world.n2, "prerouting", "n2", "NETFILTER_DROP"),
        (|world| &world.n2, "input", "n2", "NETFILTER_DROP"),
        (|world| &world.n2, "", "n2", "VXLAN_VNI_NOT_FOUND"),
    ];
    for (host, hook, place, reason) in rows {
        let world = World::new().expect("a world");
        let host = host(&world);
        if hook.is_empty() {
            run(host, "ip", "link del vx").expect("no tunnel");
            let line = "link add vx type vxlan id 78 dstport 8472 local 192.168.77.2 dev eth0 nolearning";
            ip(host, line).expect("another tunnel");
            ip(host, "link set vx up").expect("another tunnel");
        } else {
            let chain = format!("add chain ip guard it {{ type filter hook {hook} priority 0; }}");
            for rule in [
                "add table ip guard",
                &chain,
                "add rule ip guard it udp dport 8472 drop",
            ] {
                world.nft(host, rule).expect("a rule");
            }
        }
        let target = SocketAddr::new(SERVER.into(), 4242);
        let mut flows = start();
        let mut session = drops::Session::start().expect("a session");
        send(&world.p1, CLIENT, target);
        let (names, deadline) = (world.names(), Instant::now() + DEADLINE);
        let (mut packets, mut bytes) = (0, 0);
        while packets < SENT {
            for mut dropped in session.read().expect("read") {
                let kind = &dropped.kind;
                let is_it = kind.source == Some(CLIENT.into()) && kind.destination == Some(target.ip());
                if !is_it || !names.netns.contains_key(&kind.netns) {
                    continue;
                }
                dropped.name(&names, |_| None);
                let told = (dropped.at.as_str(), dropped.kind.reason.as_str());
                assert_eq!(told, (place, reason), "{hook}: {dropped:?}");
                assert!(dropped.kind.wrapped && !dropped.ordinary, "{dropped:?}");
                assert_eq!(dropped.kind.destination_port, Some(4242), "{dropped:?}");
                assert_eq!(dropped.kind.ethertype, 0x0800, "{dropped:?}");
                packets += dropped.packets;
                bytes += dropped.bytes;
            }
            assert!(Instant::now() < deadline, "{hook}: {packets} told");
            std::thread::yield_now();
        }
        assert_eq!((packets, bytes), (SENT, SENT * LONG), "{hook}");
        let told = to(&mut flows, target);
        let [passed] = told.as_slice() else {
            panic!("{hook}: {told:?}")
        };
        let lost: u64 = passed.drops.iter().map(|lost| lost.amount.packets).sum();
        assert_eq!((passed.sent, lost), (all(SENT), SENT), "{hook}: {passed:?}");
        assert_eq!(passed.forwarded(), all(0), "{hook}: {passed:?}");
    }
}

//! Flows between namespaces, counted in the kernel.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Instant;

use tests::privileged;
use trace::flows::{Amount, Passed, Session};
use trace::hop::Protocol;

use super::world::{CLIENT, DEADLINE, PORT, SERVER, SERVICE, World, ask};

fn start() -> Session {
    Session::start(&trace::namespaces::of_this_machine()).expect("a session")
}

/// What this world's client and server have sent each other over all readings, by direction: from the client, and back.
fn count(session: &mut Session, is_enough: impl Fn(&[Passed; 2]) -> bool) -> [Passed; 2] {
    let deadline = Instant::now() + DEADLINE;
    let mut all: [Option<Passed>; 2] = [None, None];
    loop {
        for passed in session.read().expect("read") {
            let (source, destination) = (passed.flow.source.ip(), passed.flow.destination.ip());
            let ends: [std::net::IpAddr; 2] = [CLIENT.into(), SERVER.into()];
            let Some(at) = [[source, destination], [destination, source]]
                .iter()
                .position(|found| *found == ends)
            else {
                continue;
            };
            all[at] = Some(match all[at].take() {
                None => passed,
                Some(before) => sum(before, passed),
            });
        }
        if let [Some(there), Some(back)] = &all {
            let both = [there.clone(), back.clone()];
            if is_enough(&both) {
                return both;
            }
        }
        assert!(Instant::now() < deadline, "not told in time: {all:?}");
        std::thread::yield_now();
    }
}

fn sum(before: Passed, passed: Passed) -> Passed {
    let add = |one: Amount, other: Amount| Amount {
        packets: one.packets + other.packets,
        bytes: one.bytes + other.bytes,
    };
    Passed {
        sent: add(before.sent, passed.sent),
        received: add(before.received, passed.received),
        drops: [before.drops, passed.drops.clone()].concat(),
        sender: before.sender.max(passed.sender),
        receiver: before.receiver.max(passed.receiver),
        ..passed
    }
}

fn inode(host: &tests::topology::Host) -> u32 {
    trace::places::inode(host.path().as_ref()).expect("a namespace")
}

#[test]
fn a_connection_through_nat_and_vxlan_is_one_flow_each_way_with_its_service() {
    if !privileged("a connection through NAT and VXLAN is one flow each way") {
        return;
    }
    let world = World::new().expect("a world");
    let mut session = start();
    let server = world.serve().expect("a server");
    world.p1.run(|| ask(SERVICE)).expect("asked");
    server.join().expect("served");
    let [there, back] = count(&mut session, |both| {
        both.iter().all(|passed| passed.tcp_flags & 1 != 0) && both[0].received == both[0].sent
    });
    println!("{there:?}\n{back:?}");
    assert_eq!(there.flow.destination, SocketAddr::new(SERVER.into(), PORT));
    assert_eq!((there.is_reply, back.is_reply), (false, true));
    assert_eq!((there.service, back.service), (Some(SERVICE), Some(SERVICE)));
    let ends = |passed: &Passed| (passed.sender, passed.receiver);
    let (client, server) = (inode(&world.p1), inode(&world.p2));
    assert_eq!((ends(&there), ends(&back)), ((client, server), (server, client)));
    // SYN, ACK, the request, the end: each once, whatever devices they pass.
    assert!((4..=8).contains(&there.sent.packets), "{there:?}");
    assert_eq!((there.sent, back.sent), (there.received, back.received));
    assert!(there.drops.is_empty() && back.drops.is_empty());
}

#[test]
fn datagrams_are_counted_exactly_where_they_are_sent_received_and_dropped() {
    /// What arrives of it fits into the socket.
    const SENT: u64 = 120;
    const CARRIED: u64 = 72;
    const LONG: u64 = CARRIED + 28;
    if !privileged("datagrams are counted exactly") {
        return;
    }
    let world = World::new().expect("a world");
    for rule in [
        "add table ip guard",
        "add chain ip guard passing { type filter hook forward priority 0; }",
        // Every third one.
        "add rule ip guard passing udp dport 4242 numgen inc mod 3 0 drop",
    ] {
        world.nft(&world.n2, rule).expect("a rule");
    }
    let target = SocketAddr::new(SERVER.into(), 4242);
    let socket = world
        .p2
        .run(|| UdpSocket::bind(target))
        .expect("entered")
        .expect("bound");
    let mut session = start();
    let flood = || {
        let client = UdpSocket::bind((CLIENT, 0)).expect("a socket");
        for _ in 0..SENT {
            client.send_to(&[7; CARRIED as usize], target).expect("sent");
        }
        // Open until it is all over: a closed one would answer that nobody listens.
        client
    };
    let client = world.p1.run(flood).expect("entered");
    // One back, so that both directions are there.
    socket
        .send_to(b"done", client.local_addr().expect("an address"))
        .expect("sent");
    let dropped = |passed: &Passed| passed.drops.iter().map(|lost| lost.amount.packets).sum::<u64>();
    let [there, back] = count(&mut session, |both| {
        both[1].received.packets == 1 && dropped(&both[0]) + both[0].received.packets >= SENT
    });
    let all = |packets| Amount {
        packets,
        bytes: packets * LONG,
    };
    assert_eq!(there.flow.protocol, Protocol::UDP);
    assert_eq!((there.sent, there.received), (all(SENT), all(SENT / 3 * 2)));
    assert_eq!(dropped(&there), SENT / 3);
    assert_eq!(there.forwarded(), all(SENT / 3 * 2));
    let at: Vec<_> = there
        .drops
        .iter()
        .map(|lost| (lost.reason.as_str(), lost.netns))
        .collect();
    assert!(
        at.iter().all(|at| *at == ("NETFILTER_DROP", inode(&world.n2))),
        "{at:?}"
    );
    assert_eq!((there.is_reply, back.is_reply), (false, true));
    assert_eq!(session.uncounted().forgotten, 0);
}

#[test]
fn flows_that_there_was_no_room_for_are_told() {
    /// More than the map has entries, from two sockets.
    const PORTS: std::ops::Range<u16> = 1000..61_000;
    if !privileged("flows that there was no room for are told") {
        return;
    }
    let world = World::new().expect("a world");
    let mut session = start();
    let scan = || {
        for _ in 0..2 {
            let socket = UdpSocket::bind((CLIENT, 0)).expect("a socket");
            for port in PORTS {
                // The answer is that nobody listens: it may come as an error of the next one.
                let _ = socket.send_to(b"?", (SERVER, port));
            }
        }
    };
    world.p1.run(scan).expect("sent");
    let told = session.stop().expect("told").len();
    let forgotten = session.uncounted().forgotten;
    assert!(forgotten > 0, "{told} told, {forgotten} forgotten");
}

#[test]
fn who_began_is_known_from_the_middle_of_a_connection() {
    if !privileged("who began is known from the middle of a connection") {
        return;
    }
    let world = World::new().expect("a world");
    let at = SocketAddr::new(SERVER.into(), PORT);
    let listener = world
        .p2
        .run(|| TcpListener::bind(at))
        .expect("entered")
        .expect("bound");
    let client = world
        .p1
        .run(|| std::net::TcpStream::connect_timeout(&at, DEADLINE));
    let mut client = client.expect("entered").expect("connected");
    let (mut server, _) = listener.accept().expect("a client");
    let mut session = start();
    std::io::Write::write_all(&mut server, b"news").expect("sent");
    std::io::Read::read_exact(&mut client, &mut [0; 4]).expect("read");
    let [there, back] = count(&mut session, |_| true);
    assert_eq!((there.is_reply, back.is_reply), (false, true));
}

//! Drops between namespaces, counted in the kernel.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use tests::privileged;
use trace::drops::{Dropped, Session};
use trace::hop::Protocol;

use super::FAULTS;
use super::world::{CLIENT, DEADLINE, SERVER, World, knock};

/// What is dropped of packets of this world's client to `target`, counted over all readings; until `is_enough`.
fn count(
    session: &mut Session,
    world: &World,
    target: SocketAddr,
    is_enough: impl Fn(&[Dropped]) -> bool,
) -> Vec<Dropped> {
    let names = world.names();
    let deadline = Instant::now() + DEADLINE;
    let mut all = Vec::new();
    loop {
        for mut dropped in session.read().expect("read") {
            dropped.name(&names, |_| None);
            let kind = &dropped.kind;
            let is_it = kind.source == Some(CLIENT.into())
                && kind.destination == Some(target.ip())
                && kind.destination_port == Some(target.port());
            if is_it && names.netns.contains_key(&kind.netns) {
                all.push(dropped);
            }
        }
        if is_enough(&all) {
            return all;
        }
        assert!(Instant::now() < deadline, "not told in time: {all:?}");
        std::thread::yield_now();
    }
}

fn short(dropped: &Dropped) -> String {
    let Dropped { at, kind, .. } = dropped;
    let line = format!(
        "{at} {} {}@{} {}>{}:{}",
        kind.device,
        kind.reason,
        kind.place,
        CLIENT,
        SERVER,
        kind.destination_port.unwrap_or(0)
    );
    line.replace("  ", " ")
}

#[test]
fn drops_are_counted_where_a_packet_that_is_followed_ends() {
    if !privileged("drops are counted where a packet that is followed ends") {
        return;
    }
    let mut session = Session::start().expect("a session");
    for fault in FAULTS {
        let world = World::new().expect("a world");
        (fault.make)(&world).expect("a fault");
        let target = SocketAddr::new(SERVER.into(), fault.port);
        world.p1.run(|| knock(target)).expect("sent");
        let dropped = count(&mut session, &world, target, |all| !all.is_empty());
        println!("{dropped:?}");
        let [dropped] = dropped.as_slice() else {
            panic!("{dropped:?}")
        };
        // TCP's port is told only where it is not the client's own.
        let expected = fault.drop.replace("10.201.0.5>", &format!("{CLIENT}>"));
        assert_eq!(short(dropped), expected);
        assert_eq!(
            dropped.cause.as_ref().map(|cause| cause.means.as_str()),
            Some(fault.means)
        );
        assert!(
            dropped.kind.opens && !dropped.ordinary && dropped.bytes >= 40,
            "{dropped:?}"
        );
    }
}

/// Datagrams of so many bytes with IP's and UDP's headers.
const CARRIED: usize = 72;
const LONG: u64 = 100;

fn guard(world: &World) {
    for rule in [
        "add table ip guard",
        "add chain ip guard passing { type filter hook forward priority 0; }",
        "add rule ip guard passing meta l4proto udp drop",
    ] {
        world.nft(&world.n2, rule).expect("a rule");
    }
}

#[test]
fn every_packet_is_counted_with_its_bytes_over_any_number_of_readings() {
    const SENT: u64 = 5000;
    if !privileged("every packet is counted") {
        return;
    }
    let world = World::new().expect("a world");
    guard(&world);
    let target = SocketAddr::new(SERVER.into(), 4242);
    let mut session = Session::start().expect("a session");
    let flood = || {
        let socket = UdpSocket::bind((CLIENT, 0)).expect("a socket");
        for _ in 0..SENT {
            socket.send_to(&[7; CARRIED], target).expect("sent");
        }
    };
    let sum = |all: &[Dropped], of: fn(&Dropped) -> u64| all.iter().map(of).sum::<u64>();
    let all = std::thread::scope(|scope| {
        let sending = scope.spawn(|| world.p1.run(flood).expect("entered"));
        let all = count(&mut session, &world, target, |all| {
            sum(all, |dropped| dropped.packets) >= SENT
        });
        sending.join().expect("sent");
        all
    });
    let told = (
        sum(&all, |dropped| dropped.packets),
        sum(&all, |dropped| dropped.bytes),
    );
    assert_eq!(told, (SENT, SENT * LONG));
    assert_eq!(session.uncounted().forgotten, 0);
    for dropped in &all {
        assert_eq!(dropped.kind.protocol, Some(Protocol::UDP));
        assert!(dropped.first <= dropped.last);
        let age = jiff::Timestamp::now().duration_since(dropped.last);
        assert!(age.unsigned_abs() < DEADLINE + Duration::from_secs(20), "{age:?}");
    }
}

#[test]
fn what_there_was_no_room_for_is_told() {
    /// More ports than the map has entries.
    const PORTS: std::ops::Range<u16> = 1000..61_000;
    if !privileged("what there was no room for is told") {
        return;
    }
    let world = World::new().expect("a world");
    guard(&world);
    let mut session = Session::start().expect("a session");
    let scan = || {
        let socket = UdpSocket::bind((CLIENT, 0)).expect("a socket");
        for port in PORTS {
            socket.send_to(&[7; CARRIED], (SERVER, port)).expect("sent");
        }
    };
    world.p1.run(scan).expect("sent");
    let told: u64 = session
        .stop()
        .expect("told")
        .iter()
        .map(|dropped| dropped.packets)
        .sum();
    let forgotten = session.uncounted().forgotten;
    assert!(forgotten > 0, "{told} told, {forgotten} forgotten");
    assert!(
        told + forgotten >= PORTS.len() as u64,
        "{told} told, {forgotten} forgotten"
    );
}

//! Clients of the DNS server that ask too much, and an API server that is away.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use tests::cluster::program;
use tests::ledger::Holdings;
use tests::probe::{Attempt, Attempts, now, queries};
use tests::process::{self, Process};
use tests::{is_full_run, name_server, privileged, wait};

use crate::DEADLINE;
use crate::resolver::{Answered, NOERROR, NXDOMAIN, SERVFAIL, ask, client};
use crate::world::{DNS, NOTHING, VIP, World, outlast, rule_changes, service};

const DNS_AT: (IpAddr, u16) = (IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);
const WEB: &str = "web.default.svc.cluster.local";

/// The bars of F48.
const GROWTH_KIB: u64 = 64 << 10;
const FLOOD: u32 = 50_000;
const IDLE_CONNECTIONS: usize = 10_000;
/// A client that says nothing is put out after ten seconds.
const IDLE: Duration = Duration::from_secs(10);

/// How long answers took: the middle, and 99 of 100.
fn times(attempts: Vec<Attempt>) -> (Duration, Duration) {
    let mut took: Vec<Duration> = attempts.iter().map(|attempt| attempt.took).collect();
    took.sort();
    let at = |share: usize| took.get(took.len() * share / 100).copied().unwrap_or_default();
    (at(50), at(99))
}

#[track_caller]
fn assert_all_answered(attempts: &Attempts) {
    let mut wrong = attempts.all();
    let asked = wrong.len();
    wrong.retain(|query| query.server() != VIP.parse().ok());
    assert_eq!(wrong, [], "of {asked} queries");
}

#[test]
fn one_client_that_floods_takes_no_answer_from_another() -> Result<()> {
    if !privileged("one client that floods takes no answer from another (F48)") {
        return Ok(());
    }
    let length = Duration::from_secs(if is_full_run() { 10 } else { 1 });
    let (world, _agent) = World::build("flood", "nftables")?.with_dns().begin(&[1]);
    world.node.until_working("dns-address");
    let mut dns = world.start_dns_with("ratelimit 500\n prometheus 127.0.0.1:9153", "")?;
    dns.await_line("the cluster's objects are complete", DEADLINE);
    let ledger = world.ledger()?;
    let attempts = world.queries(200)?;
    attempts.await_more(100);
    let before = Holdings::of(dns.pid())?;

    // Nobody reads there: what the kernel and the flooding client take of the machine is the same.
    let unread = (DNS_AT.0, 5353);
    let _unread = world.node.host().run(|| UdpSocket::bind(unread))??;
    let loads = [
        ("nobody", None),
        ("nothing", Some(unread)),
        ("the server", Some(DNS_AT)),
    ];
    let mut seen = loads.map(|_| Vec::new());
    let (mut sent, mut answered, mut seconds) = (0, 0, 0);
    for _ in 0..3 {
        for ((_, to), seen) in loads.iter().zip(&mut seen) {
            let flood = to.map(|to| Flood::start(&world, to.into())).transpose()?;
            let began = now();
            outlast(length);
            seen.extend(attempts.since(began));
            let Some(flood) = flood else { continue };
            let counts = flood.end();
            if *to == Some(DNS_AT) {
                (sent, answered) = (sent + counts.0, answered + counts.1);
                // So many a second, and as many at once in the beginning.
                seconds += (now() - began).div_ceil(1_000_000) + 1;
            }
        }
    }
    let after = Holdings::of(dns.pid())?;
    let page = world.node.get(9153, "/metrics")?;
    let lost = page
        .lines()
        .find(|line| line.starts_with("causeway_dns_receive_drops_total "));
    println!(
        "F48: {sent} queries of one client within {:?}, {answered} answered, {} KiB more, {}",
        3 * length,
        after.resident_kib.saturating_sub(before.resident_kib),
        lost.unwrap_or_default(),
    );
    for ((floods, _), seen) in loads.iter().zip(seen) {
        println!(
            "F48: {:?} while {FLOOD} packets a second flood {floods}",
            times(seen)
        );
    }
    assert!(
        sent > 20_000 && answered <= 500 * seconds,
        "{sent} {answered} {seconds}"
    );
    assert_all_answered(&attempts);
    assert!(
        after.resident_kib < before.resident_kib + GROWTH_KIB,
        "{before:?} {after:?}"
    );
    assert_eq!(world.ledger()?.changes_since(&ledger), NOTHING);
    Ok(())
}

/// A client that asks [`FLOOD`] times a second, and counts its answers.
struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    answered: Arc<AtomicU64>,
}

impl Flood {
    fn start(world: &World, to: SocketAddr) -> Result<Self> {
        let flood = Self {
            stop: Arc::default(),
            sent: Arc::default(),
            answered: Arc::default(),
        };
        let socket: UdpSocket = client(&world.servers)?;
        socket.connect(to)?;
        let reader = socket.try_clone()?;
        let (stop, sent) = (Arc::clone(&flood.stop), Arc::clone(&flood.sent));
        std::thread::spawn(move || {
            let query = queries::query(4712, WEB);
            let mut next = Instant::now();
            while !stop.load(Ordering::Relaxed) {
                // A full queue of the device loses some, and that is what floods do.
                let gone = (0..FLOOD / 1000).filter(|_| socket.send(&query).is_ok()).count();
                sent.fetch_add(gone as u64, Ordering::Relaxed);
                next = (next + Duration::from_millis(1)).max(Instant::now());
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        let (stop, answered) = (Arc::clone(&flood.stop), Arc::clone(&flood.answered));
        reader.set_read_timeout(Some(Duration::from_millis(100)))?;
        std::thread::spawn(move || {
            let mut answer = [0; 512];
            while !stop.load(Ordering::Relaxed) {
                answered.fetch_add(u64::from(reader.recv(&mut answer).is_ok()), Ordering::Relaxed);
            }
        });
        Ok(flood)
    }

    fn end(self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        (
            self.sent.load(Ordering::Relaxed),
            self.answered.load(Ordering::Relaxed),
        )
    }
}

#[test]
fn idle_connections_of_one_client_take_no_answer_from_another_and_end() -> Result<()> {
    if !privileged("idle connections of one client take no answer from another (F48)") {
        return Ok(());
    }
    let (world, _agent) = World::build("idle", "nftables")?.with_dns().begin(&[1]);
    world.node.until_working("dns-address");
    let dns = world.start_dns()?;
    let ledger = world.ledger()?;
    let attempts = world.queries(200)?;
    attempts.await_more(100);
    let (before, quiet) = (Holdings::of(dns.pid())?, times(attempts.all()));

    // Who accepts there closes at once: what the kernel and the client take of the machine is the same.
    let nothing = SocketAddr::from((DNS_AT.0, 5353));
    let listener = world.node.host().run(|| TcpListener::bind(nothing))??;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let since = now();
    drop(connect_many(&world, nothing)?);
    let beside_nothing = times(attempts.since(since));

    let (since, began) = (now(), Instant::now());
    let open = connect_many(&world, DNS_AT.into())?;
    let beside = times(attempts.since(since));
    assert!(open.len() > 1_000, "{}", open.len());
    let during = Holdings::of(dns.pid())?;
    let answered = wait::until("another client's connection is served", DEADLINE + IDLE, || {
        ask_by_tcp(&world)
    });
    println!(
        "F48: {} of {IDLE_CONNECTIONS} connections open, {} KiB more; another client's was answered after {:?}, by UDP it \
         took {quiet:?} before, {beside_nothing:?} while as many were made to nothing, {beside:?} while they were made here",
        open.len(),
        during.resident_kib.saturating_sub(before.resident_kib),
        began.elapsed(),
    );
    assert!(answered > 12);
    let mut ended = 0;
    for mut stream in open.into_iter().take(1_000) {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(IDLE + DEADLINE))?;
        let mut answer = [0; 16];
        ended += usize::from(matches!(stream.read(&mut answer), Ok(0) | Err(_)));
    }
    assert_eq!(ended, 1_000, "the server ends who says nothing");
    assert!(
        during.resident_kib < before.resident_kib + GROWTH_KIB,
        "{before:?} {during:?}"
    );
    assert_all_answered(&attempts);
    assert_eq!(world.ledger()?.changes_since(&ledger), NOTHING);
    Ok(())
}

/// Makes [`IDLE_CONNECTIONS`], each with one byte of a message's length, and gives those that came to be. Most of them wait
/// to be accepted, or for an answer to their SYN.
fn connect_many(world: &World, to: SocketAddr) -> Result<Vec<TcpStream>> {
    let begun = || {
        (0..IDLE_CONNECTIONS)
            .map(|_| begin_connection(to))
            .collect::<Result<Vec<_>>>()
    };
    let mut streams = world.servers.run(begun)??;
    // Whoever is not connected yet cannot say it.
    streams.retain_mut(|stream| stream.write_all(&[0]).is_ok());
    Ok(streams)
}

/// A connection that may still be on its way.
fn begin_connection(to: SocketAddr) -> Result<TcpStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let own = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    match connect(std::os::fd::AsRawFd::as_raw_fd(&own), &SockaddrStorage::from(to)) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(own.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// The length of an answer by a connection of the pod.
fn ask_by_tcp(world: &World) -> Result<usize> {
    let query = queries::query(4713, WEB);
    let mut stream = world
        .pod
        .run(|| TcpStream::connect_timeout(&SocketAddr::from(DNS_AT), Duration::from_secs(2)))??;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(&name_server::frame(&query))?;
    let answer = name_server::read_frame(&mut stream)?;
    queries::address(&query, &answer).map_err(anyhow::Error::msg)?;
    Ok(answer.len())
}

/// `[id:2][flags:2][questions:2][answers:2][authorities:2][additional:2]`, then the question.
fn packet(flags: u16, questions: u16, name: &str, kind: u16) -> Vec<u8> {
    let mut packet = queries::query(4714, name);
    packet[2..4].copy_from_slice(&flags.to_be_bytes());
    packet[4..6].copy_from_slice(&questions.to_be_bytes());
    let end = packet.len();
    packet[end - 4..end - 2].copy_from_slice(&kind.to_be_bytes());
    packet
}

#[test]
fn what_is_refused_is_answered_with_no_more_than_was_asked() -> Result<()> {
    if !privileged("what is refused is answered with no more than was asked (F48)") {
        return Ok(());
    }
    const FORMERR: u8 = 1;
    const NOTIMP: u8 = 4;
    const REFUSED: u8 = 5;
    const QUERY: u16 = 0x0100;
    let (world, _agent) = World::build("refused", "nftables")?.with_dns().begin(&[1]);
    world.node.until_working("dns-address");
    let _dns = world.start_dns()?;
    let client = client(&world.pod)?;
    let ask = |packet: &[u8]| -> Result<(u8, usize)> {
        client.send(packet)?;
        let mut answer = [0; 65_535];
        let length = client.recv(&mut answer)?;
        ensure!(answer[..2] == packet[..2], "another id");
        Ok((answer[3] & 15, length))
    };
    for (what, packet, code) in [
        ("65,535 questions", packet(QUERY, u16::MAX, WEB, 1), FORMERR),
        ("no question", packet(QUERY, 0, WEB, 1), FORMERR),
        ("UPDATE", packet(5 << 11, 1, WEB, 6), NOTIMP),
        ("STATUS", packet(2 << 11, 1, WEB, 1), NOTIMP),
        ("AXFR", packet(QUERY, 1, "cluster.local", 252), REFUSED),
        ("IXFR", packet(QUERY, 1, "cluster.local", 251), REFUSED),
    ] {
        let (found, length) = ask(&packet)?;
        assert_eq!(found, code, "{what}");
        assert!(
            length <= packet.len(),
            "{what}: {length} bytes for {}",
            packet.len()
        );
    }
    // An answer that is neither to be had nor refused is not worth forging a question for.
    for (what, kind) in [("ANY", 255), ("TXT", 16)] {
        let packet = packet(QUERY, 1, WEB, kind);
        let (found, length) = ask(&packet)?;
        assert_eq!(found, NOERROR, "{what}");
        assert!(
            length < packet.len() * 4,
            "{what}: {length} bytes for {}",
            packet.len()
        );
    }
    Ok(())
}

#[test]
fn names_that_were_known_are_never_denied_while_the_api_server_is_away() -> Result<()> {
    if !privileged("names that were known are never denied while the API server is away (F49)") {
        return Ok(());
    }
    let outage = Duration::from_secs(if is_full_run() { 60 } else { 4 });
    let world = World::build("dns-outage", "nftables")?.with_dns();
    world.put_web(&[1]);
    let code = |name: &str| -> Result<u8> { Ok(ask(&world, name)?.code) };

    // Before the first list nothing is known, and nothing is denied: the address is there, and no agent yet.
    world
        .node
        .host()
        .add_address("lo", format!("{DNS}/32").parse()?)?;
    let ready = "ready 127.0.0.1:8181";
    let mut dns = world.start_dns_with(ready, "")?;
    for name in [WEB, "nobody.default.svc.cluster.local"] {
        assert_eq!(code(name)?, SERVFAIL, "{name}");
    }
    assert!(is_ready(&world).is_err());
    let mut agent = world.start_agent();
    dns.await_line("the cluster's objects are complete", DEADLINE);
    wait::until("it is ready", DEADLINE, || is_ready(&world));
    assert_eq!(code("nobody.default.svc.cluster.local")?, NXDOMAIN);
    world.node.until_working("dns-address");
    let ledger = world.ledger()?;
    let attempts = world.queries(50)?;

    world.node.api.go_down();
    let later = service("later", "10.96.0.9", "fd00:96::9", None);
    world.node.api.put(later.clone());
    outlast(outage);
    // Agent and server begin anew meanwhile: the agent has nothing to tell, and that is not taken for an empty cluster.
    agent.0.kill();
    agent = world.start_agent();
    attempts.await_more(20);
    assert_all_answered(&attempts);
    drop(attempts);
    dns.kill();
    let mut dns = world.start_dns_with(ready, "")?;
    let attempts = world.queries(50)?;
    attempts.await_more(20);
    assert!(is_ready(&world).is_ok(), "what is served is whole, if old");
    let name = "later.default.svc.cluster.local";

    world.node.api.come_up();
    let back = Instant::now();
    let answered: Answered = wait::until("the new Service is known", DEADLINE, || {
        let answered = ask(&world, name).map_err(|error| error.to_string())?;
        if answered.code == NOERROR {
            Ok(answered)
        } else {
            Err(format!("{answered:?}"))
        }
    });
    println!(
        "F49: a Service of the outage of {outage:?} was answered {:?} after it",
        back.elapsed()
    );
    assert_eq!(answered.address, Some(Ipv4Addr::new(10, 96, 0, 9)));
    dns.await_line("the cluster's objects are complete", DEADLINE);
    world.node.api.delete(&later);
    wait::until_value(
        "it is denied once it is gone",
        DEADLINE,
        || code(name).ok(),
        |code| *code == Some(NXDOMAIN),
    );
    assert_all_answered(&attempts);
    wait::until_value(
        "nothing is left of it",
        DEADLINE,
        || {
            world
                .ledger()
                .map(|now| now.changes_since(&ledger))
                .unwrap_or_default()
        },
        |changes| *changes == NOTHING,
    );
    drop(agent);
    Ok(())
}

#[test]
fn a_reload_that_changes_what_is_kept_of_the_feed_never_gives_the_address_away() -> Result<()> {
    if !privileged("a reload that changes what is kept of the feed never gives the address away") {
        return Ok(());
    }
    let (world, agent) = World::build("dns-keeps", "nftables")?.with_dns().begin(&[1]);
    world.node.until_working("dns-address");
    let corefile = |option: &str, generation: u8| {
        let directory = world.node.directory.path().display();
        let text = format!(
            ".:53 {{\n bind {DNS}\n reload 2s 1s\n kubernetes cluster.local {{\n feed {directory}/dns.sock\n state \
             {directory}\n {option}\n }}\n hosts /none/such {{\n 192.0.2.{generation} generation.example\n fallthrough\n }}\n}}\n"
        );
        world.node.directory.write("Corefile", &text)
    };
    let path = corefile("", 0);
    let place = world.node.place();
    let mut command = process::command(&place, program("causeway"));
    let mut dns = Process::spawn(&place, command.arg("dns").arg("--conf").arg(path))?;
    dns.await_line("the cluster's objects are complete", DEADLINE);
    let told = |what: &str| agent.0.output().matches(what).count();
    let away = || told("this node's DNS server does not answer");
    wait::until_value(
        "the agent knows it",
        DEADLINE,
        || (told("this node's DNS server answers"), away()),
        |(answers, away)| answers >= away,
    );
    let before = away();
    let (monitor, attempts) = (world.monitor_rules()?, world.queries(200)?);
    for generation in 1..=6 {
        let option = if generation % 2 == 0 {
            ""
        } else {
            "endpoint_pod_names"
        };
        corefile(option, generation);
        wait::until_value(
            "the Corefile is taken",
            DEADLINE,
            || ask(&world, "generation.example").ok()?.address,
            |address| *address == Some(Ipv4Addr::new(192, 0, 2, generation)),
        );
        attempts.await_more(50);
    }
    assert_all_answered(&attempts);
    assert_eq!(away(), before, "{}", agent.0.output());
    assert_eq!(rule_changes(&monitor), Vec::<String>::new());
    Ok(())
}

/// What `/ready` says, where it is no yes.
fn is_ready(world: &World) -> Result<()> {
    let answer = world.node.get(8181, "/ready")?;
    ensure!(answer.split(' ').nth(1) == Some("200"), "{answer}");
    Ok(())
}

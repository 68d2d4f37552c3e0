//! The Corefile changes while clients ask.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use tests::name_server::{self, HEADER, NOERROR, answer, answer_for, head};
use tests::probe::{Attempts, queries};
use tests::process::Place;
use tests::wait;

use crate::message::{ask_tcp, ask_udp, query};
use crate::plain::{Plain, ask, memory, metric, wait_until};
use crate::subject::{Config, DEADLINE, Subject, free_address};

const RELOADS: u8 = 4;
const PER_SECOND: u32 = 200;
/// What the upstream says, once.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// An upstream that answers questions for one name's address until it has done so.
fn upstream(name: &'static str) -> SocketAddr {
    let is_done = AtomicBool::new(false);
    name_server::start(move |asked, _| {
        if is_done.load(Ordering::Relaxed) {
            return Vec::new();
        }
        // Both name and type end with the question.
        let is_known = asked[HEADER..]
            .to_ascii_lowercase()
            .starts_with(&query(name, None)[HEADER..]);
        is_done.store(is_known, Ordering::Relaxed);
        vec![if is_known {
            answer_for(asked, OUTSIDE, 3600)
        } else {
            head(asked, 0, NOERROR, 0)
        }]
    })
}

/// Plugins that tell the number of their Corefile.
fn plugins(number: u8, upstream: SocketAddr) -> String {
    format!(
        "hosts /none/such {{
        192.0.2.{number} generation.example
        fallthrough
    }}
    cache 3600
    forward . {upstream}
    reload 2s 1s"
    )
}

#[test]
fn no_query_and_no_cache_entry_is_lost_at_a_reload() {
    let upstream = upstream("once.example. A");
    let before = plugins(0, upstream);
    let subject = Subject::with(Config {
        plugins: &before,
        ..Config::default()
    });
    if !subject.is_ours {
        tests::skipped("reloads", "another server loses its cache");
        return;
    }
    let packet = query("once.example. A", None);
    let first = ask_udp(subject.address, &packet, DEADLINE).expect("an answer");
    assert!(first.ends_with(&OUTSIDE.octets()), "{first:?}");

    let ask = |name: &str| Attempts::start_queries(&Place::default(), name, subject.address, PER_SECOND);
    // From now on nobody but the cache knows the second one.
    let clients = [
        (
            ask("svc1.testns.svc.cluster.local").expect("a client"),
            Ipv4Addr::new(10, 0, 0, 1),
        ),
        (ask("once.example").expect("a client"), OUTSIDE),
    ];
    let mut text = std::fs::read_to_string(subject.corefile()).expect("written");
    for number in 1..=RELOADS {
        text = text.replace(
            &format!("192.0.2.{} generation", number - 1),
            &format!("192.0.2.{number} generation"),
        );
        std::fs::write(subject.corefile(), &text).expect("written");
        let generation = query("generation.example. A", None);
        wait::until_value(
            "the new Corefile is in force",
            DEADLINE,
            || ask_udp(subject.address, &generation, Duration::from_secs(5)),
            |answer| {
                answer
                    .as_ref()
                    .is_some_and(|answer| answer.ends_with(&[192, 0, 2, number]))
            },
        );
    }
    for (client, address) in clients {
        client.await_more(PER_SECOND as usize / 2);
        let mut wrong = client.all();
        let asked = wrong.len();
        wrong.retain(|attempt| attempt.server() != Some(address.into()));
        assert_eq!(wrong, [], "of {asked}");
    }
}

/// What the standard library maps for a thread, in bytes.
const STACK: u64 = 2 << 20;
const FAILED: &str = "coredns_reload_failed_total ";

/// A block at one port, with what it answers for `a.example`.
fn block(port: u16, address: &str, plugins: &str) -> String {
    format!(
        ".:{port} {{\n reload 2s 1s\n hosts /none/such {{\n {address} a.example\n fallthrough\n }}\n {plugins}\n}}\n"
    )
}

#[test]
fn all_addresses_may_become_one_and_all_again_and_no_query_is_lost() {
    let here = free_address();
    let elsewhere = SocketAddr::from(([127, 0, 0, 2], here.port()));
    let corefile = |bind: &str| block(here.port(), "192.0.2.1", &format!("bind {bind}"));
    let server = Plain::start(&corefile("0.0.0.0"));
    let client = Attempts::start_queries(&Place::default(), "a.example", here, 50).expect("a client");
    wait_until(elsewhere, "a.example", "192.0.2.1");
    for (bind, found) in [
        ("127.0.0.1", "silence"),
        ("0.0.0.0", "192.0.2.1"),
        ("127.0.0.1", "silence"),
    ] {
        server.write(&corefile(bind));
        wait_until(elsewhere, "a.example", found);
        let by_tcp = TcpStream::connect(elsewhere);
        assert_eq!(by_tcp.is_ok(), found != "silence", "{bind}");
        let packet = queries::query(7, "a.example");
        let address = queries::address(&packet, &ask_tcp(here, &packet));
        assert_eq!(address, Ok(Ipv4Addr::new(192, 0, 2, 1)), "{bind}");
        client.await_more(10);
    }
    let mut wrong = client.all();
    let asked = wrong.len();
    wrong.retain(|attempt| attempt.server() != Some(Ipv4Addr::new(192, 0, 2, 1).into()));
    assert_eq!(wrong, [], "of {asked}");
}

#[test]
fn an_upstream_that_leads_back_is_asked_again_when_nobody_looks_for_loops() {
    const HINFO: [u8; 4] = [0, 13, 0, 1];
    let here = free_address();
    let upstream = name_server::start(move |query, _| {
        let end = name_server::question_end(query);
        if query[end - 4..end] != HINFO {
            return vec![answer(query, OUTSIDE)];
        }
        // The probe goes back to where it came from.
        ask_udp(here, query, DEADLINE);
        Vec::new()
    });
    let corefile = |plugins: &str| {
        let forward = format!("bind 127.0.0.1\n forward . {upstream}\n {plugins}");
        block(here.port(), "192.0.2.1", &forward)
    };
    let server = Plain::start(&corefile("loop"));
    wait_until(here, "b.example", "code 2, [0, 0] answers");
    server.write(&corefile(""));
    wait_until(here, "b.example", &OUTSIDE.to_string());
}

#[test]
fn a_configuration_whose_threads_cannot_start_changes_nothing_and_is_taken_once_they_can() {
    let (first, second, pages) = (free_address(), free_address(), free_address());
    let before = |address| {
        block(
            first.port(),
            address,
            &format!("bind 127.0.0.1\n prometheus {pages}"),
        )
    };
    let server = Plain::start(&before("192.0.2.1"));
    // From its first look on it has the thread that looks.
    server.write(&before("192.0.2.2"));
    wait_until(first, "a.example", "192.0.2.2");

    let limit = |room: Option<u64>| {
        let pid = Pid::from_raw(i32::try_from(server.process.pid()).expect("a pid"));
        let kib = memory(server.process.pid(), "VmSize");
        let current = room.map(|room| (kib << 10) + room);
        let maximum = None;
        prlimit(pid, Resource::As, Rlimit { current, maximum }).expect("its limit");
    };
    let everywhere = "bind 127.0.0.1 127.0.0.2 127.0.0.3 127.0.0.4";
    let after = [before("192.0.2.3"), block(second.port(), "192.0.2.4", everywhere)].concat();
    // Threads that end keep their room for the next ones.
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    for (what, threads) in [("within the first address", 1), ("behind it", threads as u64)] {
        limit(Some(threads * STACK + STACK / 2));
        server.write(&after);
        let failed = metric(pages, FAILED);
        wait::until_value(what, DEADLINE, || metric(pages, FAILED), |now| *now > failed + 1);
        let said = server.process.output();
        assert!(said.contains("cannot start a serving thread"), "{said}");
        assert_eq!(ask(first, "a.example"), "192.0.2.2", "{what}");
        wait::until(what, DEADLINE, || {
            for last in 1..=4 {
                UdpSocket::bind((Ipv4Addr::new(127, 0, 0, last), second.port()))?;
                TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), second.port()))?;
            }
            Ok::<_, std::io::Error>(())
        });
    }

    limit(None);
    // Addresses get the new configuration one after the other.
    wait_until(second, "a.example", "192.0.2.4");
    wait_until(first, "a.example", "192.0.2.3");
}

#[test]
fn a_lenient_server_warns_of_a_plugin_once_for_each_corefile_that_has_it() {
    let (here, pages, taken) = (free_address(), free_address(), free_address());
    let stranger = |name: &str| format!("bind 127.0.0.1\n prometheus {pages}\n {name}");
    let corefile = |address, name| block(here.port(), address, &stranger(name));
    let server = Plain::start_with(&corefile("192.0.2.1", "hostess"), &["--lenient"]);
    let warned = |name: &str| {
        let output = server.process.output();
        let lines = output
            .lines()
            .filter(|line| line.contains("unknown plugin passed over"));
        lines.filter(|line| line.contains(name)).count()
    };
    assert_eq!(warned("hostess"), 1);

    // Of one that is refused again and again it warns once.
    let holder = UdpSocket::bind(taken).expect("bound");
    let beside = block(taken.port(), "192.0.2.3", "bind 127.0.0.1");
    server.write(&format!("{}{beside}", corefile("192.0.2.2", "waiter")));
    wait::until_value(
        "it is looked at thrice",
        DEADLINE,
        || metric(pages, FAILED),
        |failed| *failed > 2,
    );
    assert_eq!((warned("hostess"), warned("waiter")), (1, 1));
    drop(holder);
    wait_until(here, "a.example", "192.0.2.2");
    server.write(&corefile("192.0.2.4", "porter"));
    wait_until(here, "a.example", "192.0.2.4");
    assert_eq!((warned("hostess"), warned("waiter"), warned("porter")), (1, 1, 1));
}

#[test]
fn a_refusal_is_told_again_once_another_corefile_was_taken_between() {
    let (here, pages) = (free_address(), free_address());
    let good = |address| {
        block(
            here.port(),
            address,
            &format!("bind 127.0.0.1\n prometheus {pages}"),
        )
    };
    let bad = format!("{}b.example {{\n nonsense\n}}\n", good("192.0.2.9"));
    let server = Plain::start(&good("192.0.2.1"));
    for (times, next) in [(1, "192.0.2.2"), (2, "192.0.2.3")] {
        server.write(&bad);
        wait::until_value(
            "it is refused",
            DEADLINE,
            || metric(pages, FAILED),
            |failed| *failed == times as u64,
        );
        server.write(&good(next));
        wait_until(here, "a.example", next);
        let output = server.process.output();
        assert_eq!(
            output.matches("the Corefile changed and is refused").count(),
            times,
            "{output}"
        );
    }
}

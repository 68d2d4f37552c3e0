//! The Corefile changes while clients ask.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use tests::probe::Attempts;
use tests::process::Place;
use tests::wait;

use crate::message::{ask_udp, query};
use crate::subject::{Config, DEADLINE, Subject};

const RELOADS: u8 = 4;
const PER_SECOND: u32 = 200;
/// What the upstream says, once.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// An upstream that answers questions for one name's address until it has done so.
fn upstream(name: &'static str) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
    let own = socket.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            // Header and question, whatever OPT record is behind them; both name and type end with the question.
            let end = query(name, None).len();
            let mut answer = buffer[..end.min(length)].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
            let is_known = answer[12..].eq_ignore_ascii_case(&query(name, None)[12..]);
            if is_known {
                answer[7] = 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4]);
                answer.extend(OUTSIDE.octets());
            }
            socket.send_to(&answer, client).expect("sent");
            if is_known {
                return;
            }
        }
    });
    own
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

//! Upstreams of the DNS server fail, or lie.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tests::process::Process;
use tests::{is_full_run, privileged, wait};

use crate::DEADLINE;
use crate::resolver::{
    Answered, By, FLAG_TC, HEADER, NOERROR, REFUSED, answer, ask, head, is_from_upstream, question_end,
    record, serve, upstream,
};
use crate::world::{Agent, DNS, NOTHING, VIP, World};

/// What the upstream that is well says, and the one that is not, where it says anything.
const GOOD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const BAD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 66);

/// The bars of F46.
const FIRST: Duration = Duration::from_secs(2);
const AFTERWARDS: Duration = Duration::from_millis(50);

/// How the upstream fails that is asked first. Its number is its place, from 1 on.
const MANNERS: [(&str, Manner); 6] = [
    ("closed", Manner::Closed),
    ("silent", Manner::Silent),
    ("slow", Manner::Slow(Duration::from_secs(5))),
    ("refusing", Manner::Refusing),
    ("truncating", Manner::Truncating),
    ("tcp-only", Manner::TcpOnly),
];

#[derive(Clone, Copy)]
enum Manner {
    /// Nobody listens, and the host says so.
    Closed,
    Silent,
    Slow(Duration),
    Refusing,
    /// Only a stream has the answer, which is right.
    Truncating,
    TcpOnly,
}

/// The upstream that flaps, and the one that is well.
const FLAPPING: u16 = 20;
const WELL: u16 = 30;

impl Manner {
    fn serve(self, world: &World, at: SocketAddr) -> Result<()> {
        match self {
            Self::Closed => Ok(()),
            Self::Silent => serve(world, at, |_, _| Vec::new()),
            Self::Slow(time) => serve(world, at, move |query, _| {
                std::thread::sleep(time);
                vec![answer(query, BAD)]
            }),
            Self::Refusing => serve(world, at, |query, _| vec![head(query, 0, REFUSED, 0)]),
            Self::Truncating => serve(world, at, |query, by| match by {
                By::Udp => vec![head(query, FLAG_TC, NOERROR, 0)],
                By::Tcp => vec![answer(query, GOOD)],
            }),
            Self::TcpOnly => serve(world, at, |query, by| match by {
                By::Udp => Vec::new(),
                By::Tcp => vec![answer(query, BAD)],
            }),
        }
    }
}

/// Started with an agent, once names of the cluster are answered.
fn start(label: &str, blocks: &str) -> Result<(World, Agent, Process)> {
    let (world, agent) = World::build(label, "nftables")?.with_dns().begin(&[1]);
    world.node.until_working("dns-address");
    let mut dns = world.start_dns_with("", blocks)?;
    dns.await_line("the cluster's objects are complete", DEADLINE);
    Ok((world, agent, dns))
}

/// A server block for a zone, which asks these upstreams in their order.
fn block(zone: &str, to: &[SocketAddr], more: &str) -> String {
    let to: Vec<String> = to.iter().map(SocketAddr::to_string).collect();
    let to = to.join(" ");
    format!("{zone}:53 {{\n bind {DNS}\n forward . {to} {{\n policy sequential\n }}\n {more}\n}}\n")
}

#[test]
fn a_failing_upstream_is_replaced_within_2_seconds_and_takes_nothing_from_cluster_names() -> Result<()> {
    if !privileged("a failing upstream is replaced within 2 seconds (F46)") {
        return Ok(());
    }
    let mut blocks = block("flapping.example", &[upstream(FLAPPING), upstream(WELL)], "");
    for (number, (zone, _)) in (1..).zip(MANNERS) {
        write!(
            blocks,
            "{}",
            block(
                &format!("{zone}.example"),
                &[upstream(number), upstream(WELL)],
                ""
            )
        )?;
    }
    let (world, _agent, _dns) = start("upstreams", &blocks)?;
    let ledger = world.ledger()?;
    serve(&world, upstream(WELL), |query, _| vec![answer(query, GOOD)])?;
    for (number, (_, manner)) in (1..).zip(MANNERS) {
        manner.serve(&world, upstream(number))?;
    }
    let since = Instant::now();
    serve(&world, upstream(FLAPPING), move |query, _| {
        let is_up = since.elapsed().as_secs().is_multiple_of(2);
        if is_up {
            vec![answer(query, GOOD)]
        } else {
            Vec::new()
        }
    })?;
    let cluster = world.queries(50)?;

    for (zone, _) in MANNERS {
        let first = ask(&world, &format!("first.{zone}.example"))?;
        assert!(
            is_from_upstream(&first, GOOD) && first.took <= FIRST,
            "{zone}: {first:?}"
        );
        // Checks find out what it is within moments; then nobody waits for it any more.
        let began = Instant::now();
        let mut number = 0;
        let settled = wait::until("twenty answers in a row are quick", DEADLINE, || {
            let asked: Vec<Answered> = (0..20)
                .map(|_| {
                    number += 1;
                    ask(&world, &format!("n{number}.{zone}.example")).expect("an answer")
                })
                .collect();
            assert!(
                asked.iter().all(|answered| is_from_upstream(answered, GOOD)),
                "{zone}: {asked:?}"
            );
            let slowest = asked
                .iter()
                .map(|answered| answered.took)
                .max()
                .unwrap_or_default();
            if slowest <= AFTERWARDS {
                Ok(began.elapsed())
            } else {
                Err(slowest)
            }
        });
        println!(
            "F46 {zone}: first after {:?}, quick after {settled:?}",
            first.took
        );
    }
    let began = Instant::now();
    let mut number = 0;
    let mut slowest = Duration::ZERO;
    while began.elapsed() < Duration::from_secs(6) {
        number += 1;
        let answered = ask(&world, &format!("n{number}.flapping.example"))?;
        assert!(
            is_from_upstream(&answered, GOOD) && answered.took <= FIRST,
            "{answered:?}"
        );
        slowest = slowest.max(answered.took);
    }
    println!("F46 flapping: {number} answers, the slowest after {slowest:?}");
    let mut wrong = cluster.all();
    let asked = wrong.len();
    wrong.retain(|query| query.server() != VIP.parse().ok());
    assert_eq!(wrong, [], "of {asked} names of the cluster");
    assert_eq!(world.ledger()?.changes_since(&ledger), NOTHING);
    Ok(())
}

/// Makes of a query what a liar sends.
type Lie = fn(&[u8]) -> Vec<u8>;

/// What comes before the true answer.
const LIES: [Lie; 11] = [
    wrong_id,
    wrong_name,
    wrong_type,
    two_questions,
    another_owner,
    more_than_asked,
    another_zone,
    loop_of_aliases,
    loop_of_pointers,
    another_case,
    cut_without_saying_so,
];

fn wrong_id(query: &[u8]) -> Vec<u8> {
    let mut lie = answer(query, BAD);
    lie[1] ^= rand::random_range(1..=255_u8);
    lie
}

fn wrong_name(query: &[u8]) -> Vec<u8> {
    let mut lie = answer(query, BAD);
    lie[HEADER + 1] = b'0';
    lie
}

fn wrong_type(query: &[u8]) -> Vec<u8> {
    let mut lie = answer(query, BAD);
    lie[question_end(query) - 3] = 28;
    lie
}

fn two_questions(query: &[u8]) -> Vec<u8> {
    let mut lie = answer(query, BAD);
    lie[5] = 2;
    lie
}

/// `victim.lies.example`, in wire form.
const VICTIM: &[u8] = b"\x06victim\x04lies\x07example\0";

fn record_of(owner: &[u8], kind: u8, data: &[u8]) -> Vec<u8> {
    let length = u16::try_from(data.len()).expect("short").to_be_bytes();
    [owner, &[0, kind, 0, 1, 0, 0, 0, 60], &length, data].concat()
}

fn another_owner(query: &[u8]) -> Vec<u8> {
    [head(query, 0, NOERROR, 1), record_of(VICTIM, 1, &BAD.octets())].concat()
}

fn more_than_asked(query: &[u8]) -> Vec<u8> {
    let victim = record_of(VICTIM, 1, &BAD.octets());
    [head(query, 0, NOERROR, 2), record(BAD, 60), victim].concat()
}

/// Servers of a zone that the name is not in.
fn another_zone(query: &[u8]) -> Vec<u8> {
    let mut lie = answer(query, BAD);
    lie[9] = 1;
    lie.extend(record_of(b"\x04bank\0", 2, VICTIM));
    lie
}

/// The name's alias leads back to it.
fn loop_of_aliases(query: &[u8]) -> Vec<u8> {
    let other = b"\x05other\x04lies\x07example\0";
    let there = record_of(&[0xc0, 12], 5, other);
    [
        head(query, 0, NOERROR, 2),
        there,
        record_of(other, 5, &[0xc0, 12]),
    ]
    .concat()
}

/// A name that points at itself.
fn loop_of_pointers(query: &[u8]) -> Vec<u8> {
    let end = u16::try_from(question_end(query)).expect("short") | 0xc000;
    [
        head(query, 0, NOERROR, 1),
        record_of(&end.to_be_bytes(), 1, &BAD.octets()),
    ]
    .concat()
}

/// The name in other letters than it was asked for by: a forger guesses them (`draft-vixie-dnsext-dns0x20`).
fn another_case(query: &[u8]) -> Vec<u8> {
    let mut lie = answer(query, BAD);
    let name = &mut lie[HEADER..question_end(query) - 4];
    for letter in name.iter_mut().filter(|byte| byte.is_ascii_alphabetic()) {
        *letter ^= 0x20;
    }
    lie
}

/// It ends within its second record, and TC is not set.
fn cut_without_saying_so(query: &[u8]) -> Vec<u8> {
    let whole = [head(query, 0, NOERROR, 2), record(BAD, 60), record(BAD, 60)].concat();
    whole[..whole.len() - 2].to_vec()
}

/// More than anybody asked for, and as wrong as [`wrong_id`].
fn long(query: &[u8]) -> Vec<u8> {
    [wrong_id(query), vec![0xff; 60_000]].concat()
}

#[test]
fn no_forged_answer_is_believed_and_the_true_one_arrives() -> Result<()> {
    if !privileged("no forged answer is believed (F47)") {
        return Ok(());
    }
    let wanted: u64 = if is_full_run() { 1_000_000 } else { 20_000 };
    let liar = upstream(1);
    let blocks = block("lies.example", &[liar], "cache 3600");
    let (world, _agent, dns) = start("lies", &blocks)?;
    let ledger = world.ledger()?;
    let told = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&told);
    // Not from where the question went, though all else fits.
    let elsewhere = world.servers.run(|| UdpSocket::bind((liar.ip(), 0)))??;
    let socket = world.servers.run(|| UdpSocket::bind(liar))??;
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let query = buffer.get(..length).unwrap_or_default();
            // In bursts that the client's socket has room for. Of whom others were told lies, the truth alone is told:
            // to its own name one of the lies would be an answer.
            let is_victim = query[HEADER..].to_ascii_lowercase().starts_with(VICTIM);
            let lies = LIES.iter().cycle().take(50).map(|lie| lie(query));
            let lies = lies.chain([long(query)]).take(if is_victim { 0 } else { 51 });
            for lie in lies {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = socket.send_to(&lie, client); // who has the answer is gone
            }
            count.fetch_add(1, Ordering::Relaxed);
            let _ = elsewhere.send_to(&answer(query, BAD), client);
            let _ = socket.send_to(&answer(query, GOOD), client);
        }
    });
    let mut names = 0;
    while told.load(Ordering::Relaxed) < wanted {
        names += 1;
        let answered = ask(&world, &format!("n{names}.lies.example"))?;
        assert!(
            is_from_upstream(&answered, GOOD),
            "n{names} after {} lies: {answered:?}",
            told.load(Ordering::Relaxed)
        );
    }
    // What is in the cache is true, too, and the victim is told by the one who was asked for it.
    let names = (1..=names).map(|number| format!("n{number}"));
    for name in names.chain(["victim", "other"].map(str::to_owned)) {
        let answered = ask(&world, &format!("{name}.lies.example"))?;
        assert!(is_from_upstream(&answered, GOOD), "{name}: {answered:?}");
    }
    println!("F47: {} lies", told.load(Ordering::Relaxed));
    assert!(!dns.output().contains("panicked"), "{}", dns.output());
    assert_eq!(world.ledger()?.changes_since(&ledger), NOTHING);
    Ok(())
}

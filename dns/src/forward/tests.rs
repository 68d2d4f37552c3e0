//! The forwarder against name servers that misbehave.

mod dialects;
mod load;
mod streams;

use std::net::Ipv4Addr;

use tokio::time::Instant;

use super::fake_upstream::{FakeUpstream, answer, code, truncated};
use super::*;
use crate::answer::{Opt, code_of};
use crate::question::{query_packet, rcode, rtype};

const QUESTION: &[u8] = b"\x03wWw\x07example\0";
const CLIENT: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));

fn forward(upstreams: &[SocketAddr]) -> Arc<Forward> {
    Arc::new(Forward::new(Options {
        to: targets(upstreams),
        policy: Policy::Sequential,
        ..Options::default()
    }))
}

fn targets(upstreams: &[SocketAddr]) -> Vec<Target> {
    upstreams.iter().copied().map(Target::from).collect()
}

/// Asks for `wWw.example A` under id 4711.
async fn ask(forward: &Arc<Forward>, by_tcp: bool) -> Result<Vec<u8>, Failure> {
    let packet = query_packet(4711, QUESTION, rtype::A);
    let query = Query::parse(&packet).expect("query");
    let response = forward.exchange(&query, CLIENT, by_tcp).await;
    if let Ok(response) = &response {
        assert_eq!(
            (&response[..2], &response[12..query.question_end]),
            (&packet[..2], &packet[12..])
        );
    }
    response
}

/// The data of the last record: the address of an answer.
fn last_address(response: &[u8]) -> &[u8] {
    &response[response.len() - 4..]
}

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    socket.local_addr().expect("address")
}

#[tokio::test]
async fn the_next_upstream_answers_for_one_that_is_silent_refuses_or_fails() {
    let good = FakeUpstream::answering([1, 1, 1, 1]).await;
    let silent = FakeUpstream::start(|_, _| Vec::new()).await;
    let failing = FakeUpstream::start(|packet, _| vec![code(packet, rcode::SERVFAIL)]).await;
    for (what, first) in [
        ("silent", silent.address),
        ("refusing", nobody().await),
        ("failing", failing.address),
    ] {
        let response = ask(&forward(&[first, good.address]), false).await.expect(what);
        assert_eq!(last_address(&response), [1, 1, 1, 1], "{what}");
    }
}

#[tokio::test]
async fn a_failure_that_all_agree_on_is_the_answer() {
    for failure in [rcode::SERVFAIL, rcode::REFUSED] {
        let failing = FakeUpstream::start(move |packet, _| vec![code(packet, failure)]).await;
        let response = ask(&forward(&[failing.address, failing.address]), false)
            .await
            .expect("response");
        assert_eq!((code_of(&response), failing.asked()), (failure, 2));
        let denying = FakeUpstream::start(|packet, _| vec![code(packet, rcode::NXDOMAIN)]).await;
        let response = ask(&forward(&[denying.address, failing.address]), false)
            .await
            .expect("response");
        assert_eq!((code_of(&response), failing.asked()), (rcode::NXDOMAIN, 2));
        // One that helps is asked next.
        let response = ask(&forward(&[failing.address, denying.address]), false)
            .await
            .expect("response");
        assert_eq!((code_of(&response), failing.asked()), (rcode::NXDOMAIN, 3));
    }
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_again_by_tcp() {
    let long: Vec<[u8; 4]> = (0..200).map(|n| [10, 0, 0, n]).collect();
    let upstream = FakeUpstream::start(move |packet, by_tcp| {
        vec![if by_tcp {
            answer(packet, &long)
        } else {
            truncated(packet)
        }]
    })
    .await;
    let response = ask(&forward(&[upstream.address]), false).await.expect("response");
    assert_eq!(
        (response[7], last_address(&response), upstream.asked()),
        (200, &[10, 0, 0, 199][..], 2)
    );
}

#[tokio::test]
async fn forged_answers_are_dropped_while_the_true_one_is_awaited() {
    let upstream = FakeUpstream::start(|packet, by_tcp| {
        let mut other_id = answer(packet, &[[6, 6, 6, 6]]);
        other_id[0] ^= 1;
        let mut other_question = answer(packet, &[[6, 6, 6, 6]]);
        other_question[13] = b'x';
        let mut other_type = answer(packet, &[[6, 6, 6, 6]]);
        other_type[26] = 28;
        let query = packet.to_vec();
        let short = packet[..5].to_vec();
        let mut other_case = answer(packet, &[[1, 2, 3, 4]]);
        other_case[12..16].make_ascii_uppercase();
        if by_tcp {
            vec![other_id]
        } else {
            vec![other_id, other_question, other_type, query, short, other_case]
        }
    })
    .await;
    let response = ask(&forward(&[upstream.address]), false).await.expect("response");
    assert_eq!(last_address(&response), [1, 2, 3, 4]);
    // Over TCP there is nothing to wait for.
    let failure = ask(&forward(&[upstream.address]), true)
        .await
        .expect_err("forged");
    let Failure::Unanswered {
        source: ExchangeError::Mismatch,
        ..
    } = failure
    else {
        panic!("{failure:?}")
    };
}

#[tokio::test]
async fn the_protocol_follows_the_client_unless_an_option_says_otherwise() {
    let upstream =
        FakeUpstream::start(|packet, by_tcp| vec![answer(packet, &[[u8::from(by_tcp), 0, 0, 0]])]).await;
    for (force_tcp, prefer_udp, client_by_tcp, expected) in [
        (false, false, false, 0),
        (false, false, true, 1),
        (true, false, false, 1),
        (false, true, true, 0),
    ] {
        let options = Options {
            to: targets(&[upstream.address]),
            force_tcp,
            prefer_udp,
            ..Options::default()
        };
        let response = ask(&Arc::new(Forward::new(options)), client_by_tcp)
            .await
            .expect("response");
        assert_eq!(
            last_address(&response)[0],
            expected,
            "{force_tcp} {prefer_udp} {client_by_tcp}"
        );
    }
}

#[tokio::test]
async fn nobody_to_ask_and_nobody_who_answers_are_told_apart() {
    let failure = ask(&forward(&[]), false).await.expect_err("nobody");
    assert_eq!(
        failure.to_string(),
        "no upstream: the list of name servers is empty, or all of them lead back here"
    );
    let dead = nobody().await;
    let failure = ask(&forward(&[dead]), false).await.expect_err("dead");
    assert_eq!(
        failure.to_string(),
        format!("no upstream answered; the last one was {dead}")
    );
}

#[tokio::test]
async fn more_queries_than_allowed_are_refused_and_counted() {
    let options = Options {
        max_concurrent: Some(0),
        ..Options::default()
    };
    let forward = Arc::new(Forward::new(options));
    for rejected in 1..3 {
        let failure = ask(&forward, false).await.expect_err("refused");
        assert!(matches!(failure, Failure::TooMany { limit: 0 }), "{failure:?}");
        assert_eq!(forward.rejected.load(Ordering::Relaxed), rejected);
    }
}

#[tokio::test]
async fn an_upstream_that_stays_silent_is_asked_last_until_it_answers_a_check() {
    let good = FakeUpstream::answering([1, 1, 1, 1]).await;
    let dead = nobody().await;
    let options = Options {
        to: targets(&[dead, good.address]),
        policy: Policy::Sequential,
        health_check: HealthCheck {
            interval: Duration::from_millis(5),
            ..Options::default().health_check
        },
        ..Options::default()
    };
    let forward = Arc::new(Forward::new(options));
    ask(&forward, false).await.expect("response");
    let deadline = Instant::now() + Duration::from_secs(5);
    while !forward.upstreams()[0].is_down(2) {
        assert!(Instant::now() < deadline, "the dead upstream is not noticed");
        tokio::task::yield_now().await;
    }
    let first = |forward: &Forward| forward.order().first().map(|upstream| upstream.address);
    assert_eq!(first(&forward), Some(good.address));
    // It comes back.
    let revived = tokio::net::UdpSocket::bind(dead).await.expect("bound");
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = revived.recv_from(&mut buffer).await {
            let reply = code(&buffer[..length], rcode::NOERROR);
            revived.send_to(&reply, from).await.expect("sent");
        }
    });
    while forward.upstreams()[0].is_down(2) {
        assert!(Instant::now() < deadline, "the revived upstream is not noticed");
        tokio::task::yield_now().await;
    }
    assert_eq!(first(&forward), Some(dead));
}

#[tokio::test]
async fn an_upstream_that_no_configuration_names_any_more_is_not_checked_any_more() {
    let forward = forward(&[nobody().await]);
    ask(&forward, false).await.expect_err("nobody");
    let checked = Arc::downgrade(&forward.upstreams()[0]);
    drop(forward);
    let deadline = Instant::now() + Duration::from_secs(5);
    while checked.strong_count() > 0 {
        assert!(Instant::now() < deadline, "it is checked for ever");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn policies_choose_who_is_asked_first() {
    let addresses: Vec<SocketAddr> = (1..4).map(|n| SocketAddr::from(([127, 0, 0, n], 53))).collect();
    let firsts = |policy| {
        let forward = Forward::new(Options {
            to: targets(&addresses),
            policy,
            ..Options::default()
        });
        let firsts = (0..60).filter_map(|_| forward.order().first().map(|upstream| upstream.address));
        firsts.collect::<Vec<_>>()
    };
    assert_eq!(firsts(Policy::Sequential), vec![addresses[0]; 60]);
    for policy in [Policy::RoundRobin, Policy::Random] {
        let mut seen = firsts(policy);
        if policy == Policy::RoundRobin {
            assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "{seen:?}");
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, addresses, "{policy:?}");
    }
}

#[tokio::test]
async fn who_asks_the_same_at_once_waits_for_one_answer() {
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let upstream = FakeUpstream::answering_after(Arc::clone(&release), [1, 1, 1, 1]).await;
    let forward = forward(&[upstream.address]);
    let packets: Vec<Vec<u8>> = [(1, rtype::A), (2, rtype::A), (3, rtype::A), (4, rtype::AAAA)]
        .map(|(id, qtype)| query_packet(id, QUESTION, qtype))
        .into();
    let asking = packets.iter().map(|packet| {
        let query = Query::parse(packet).expect("query");
        let forward = &forward;
        async move { forward.exchange(&query, CLIENT, false).await.expect("response") }
    });
    let answers = futures::future::join_all(asking);
    let releasing = async {
        let deadline = Instant::now() + Duration::from_secs(5);
        while upstream.asked() < 2 {
            assert!(Instant::now() < deadline, "two questions are not asked");
            tokio::task::yield_now().await;
        }
        release.add_permits(2);
    };
    let (answers, ()) = tokio::join!(answers, releasing);
    let ids: Vec<u8> = answers.iter().map(|answer| answer[1]).collect();
    assert_eq!((ids, upstream.asked()), (vec![1, 2, 3, 4], 2));
    assert!(forward.flights.lock().expect("lock").is_empty());
    // Nobody waits for it any more: it is forgotten.
    let query = Query::parse(&packets[0]).expect("query");
    let gave_up =
        tokio::time::timeout(Duration::from_millis(20), forward.exchange(&query, CLIENT, false)).await;
    assert!(gave_up.is_err() && forward.flights.lock().expect("lock").is_empty());
}

#[tokio::test]
async fn a_dead_upstream_costs_its_clients_less_than_two_seconds_and_the_next_ones_nothing() {
    let silent = FakeUpstream::start(|_, _| Vec::new()).await;
    let good = FakeUpstream::answering([1, 1, 1, 1]).await;
    let forward = forward(&[silent.address, silent.address, good.address]);
    let started = Instant::now();
    let response = ask(&forward, false).await.expect("response");
    let first = started.elapsed();
    assert_eq!(last_address(&response), [1, 1, 1, 1]);
    assert!(first < Duration::from_secs(2), "{first:?}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !forward.upstreams()[..2]
        .iter()
        .all(|upstream| upstream.is_down(2))
    {
        assert!(Instant::now() < deadline, "the silent ones are not noticed");
        tokio::task::yield_now().await;
    }
    let started = Instant::now();
    ask(&forward, false).await.expect("response");
    assert!(started.elapsed() < latency::MOST, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_client_gets_an_opt_record_where_it_sent_one_and_only_then() {
    let upstream = FakeUpstream::answering([1, 1, 1, 1]).await;
    let forward = forward(&[upstream.address]);
    let plain = query_packet(7, QUESTION, rtype::A);
    let mut with_opt = plain.clone();
    let opt = Opt {
        udp_size: 600,
        dnssec_ok: true,
        ..Opt::default()
    };
    opt.add_to(&mut with_opt);
    for (packet, counts, tail) in [
        (plain, [1, 0], &[1, 1, 1, 1][..]),
        (with_opt, [1, 1], &[2, 88, 0, 0, 0x80, 0, 0, 0]),
    ] {
        let query = Query::parse(&packet).expect("query");
        let response = forward.exchange(&query, CLIENT, false).await.expect("response");
        assert_eq!(
            (
                [response[7], response[11]],
                &response[response.len() - tail.len()..]
            ),
            (counts, tail)
        );
    }
}

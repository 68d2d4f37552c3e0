//! Upstreams that speak otherwise, and forgers who make it look so.

use std::sync::Mutex;

use super::*;

#[tokio::test]
async fn an_upstream_of_another_dialect_is_asked_in_it() {
    // One that knows no EDNS, and one that answers in lower case.
    let without_edns = FakeUpstream::start(|packet, _| {
        if packet[11] == 0 {
            return vec![answer(packet, &[[1, 1, 1, 1]])];
        }
        let query = Query::parse(packet).expect("query");
        let mut refusal = query.head().to_vec();
        refusal[2..4].copy_from_slice(&[0x81, rcode::FORMERR as u8 | 0x80]);
        refusal[11] = 0;
        vec![refusal]
    })
    .await;
    let lowering = FakeUpstream::start(|packet, _| {
        let mut answer = answer(packet, &[[2, 2, 2, 2]]);
        answer[12..25].make_ascii_lowercase();
        vec![answer]
    })
    .await;
    for (upstream, address) in [(without_edns, [1, 1, 1, 1]), (lowering, [2, 2, 2, 2])] {
        let forward = forward(&[upstream.address]);
        for _ in 0..5 {
            let response = ask(&forward, false).await.expect("response");
            assert_eq!(last_address(&response), address);
        }
        // It is asked twice only until it is known; by chance a name of eleven letters may be in lower case.
        assert!((5..=6).contains(&upstream.asked()), "{}", upstream.asked());
    }
}

/// Keeps what came in.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

/// An upstream whose replies are made by a function that is told whether the name begins with `odd`.
async fn noting(reply: impl Fn(&[u8], bool) -> Vec<Vec<u8>> + Send + Sync + 'static) -> (FakeUpstream, Seen) {
    let seen = Seen::default();
    let notes = Arc::clone(&seen);
    let upstream = FakeUpstream::start(move |packet, _| {
        notes.lock().expect("lock").push(packet.to_vec());
        reply(packet, packet[13..16].eq_ignore_ascii_case(b"odd"))
    })
    .await;
    (upstream, seen)
}

async fn ask_for(forward: &Arc<Forward>, name: &[u8]) -> Vec<u8> {
    let packet = query_packet(1, name, rtype::A);
    let query = Query::parse(&packet).expect("query");
    forward.exchange(&query, CLIENT, false).await.expect("response")
}

#[tokio::test]
async fn a_forged_answer_in_another_case_costs_neither_the_true_one_nor_the_case() {
    let (upstream, seen) = noting(|packet, is_odd| {
        let mut forged = answer(packet, &[[6, 6, 6, 6]]);
        for letter in forged[13..24]
            .iter_mut()
            .filter(|byte| byte.is_ascii_alphabetic())
        {
            *letter ^= 0x20;
        }
        let mut replies = vec![answer(packet, &[[1, 1, 1, 1]])];
        if is_odd {
            replies.insert(0, forged);
        }
        replies
    })
    .await;
    let forward = forward(&[upstream.address]);
    assert_eq!(
        last_address(&ask_for(&forward, b"\x03odd\x07example\0").await),
        [1, 1, 1, 1]
    );
    assert_eq!(upstream.asked(), 1);
    seen.lock().expect("lock").clear();
    for _ in 0..10 {
        ask_for(&forward, b"\x03www\x07example\0").await;
    }
    let seen = seen.lock().expect("lock");
    let is_mixed = |packet: &&Vec<u8>| packet[13..24].iter().any(u8::is_ascii_uppercase);
    assert!(seen.iter().any(|packet| is_mixed(&packet)), "{seen:?}");
}

#[tokio::test]
async fn who_refuses_a_question_and_not_edns_is_asked_with_edns_again() {
    let (upstream, seen) = noting(|packet, is_odd| {
        if !is_odd {
            return vec![answer(packet, &[[1, 1, 1, 1]])];
        }
        let mut refusal = code(packet, rcode::FORMERR);
        refusal.truncate(29);
        refusal[11] = 0;
        vec![refusal]
    })
    .await;
    let forward = forward(&[upstream.address]);
    let refusal = ask_for(&forward, b"\x03odd\x07example\0").await;
    assert_eq!(code_of(&refusal), rcode::FORMERR);
    ask_for(&forward, b"\x03www\x07example\0").await;
    let with_opt: Vec<u8> = seen
        .lock()
        .expect("lock")
        .iter()
        .map(|packet| packet[11])
        .collect();
    assert_eq!(with_opt, [1, 0, 1]);
}

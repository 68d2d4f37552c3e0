//! Many questions, slow upstreams, dead ones.

use futures::future::join_all;

use super::*;

/// An upstream that says nothing, and how many questions of clients it got: checks ask for name servers.
async fn silent() -> (FakeUpstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let upstream = FakeUpstream::start(move |packet, _| {
        let is_clients = Query::parse(packet).is_ok_and(|query| query.qtype == rtype::A);
        count.fetch_add(usize::from(is_clients), Ordering::SeqCst);
        Vec::new()
    })
    .await;
    (upstream, asked)
}

/// Asks for a name of its own.
async fn ask_number(forward: &Arc<Forward>, client: u8, number: usize) -> Result<Vec<u8>, Failure> {
    let name = Name::parse(&format!("n{number}.c{client}.example")).expect("name");
    let packet = query_packet(1, name.wire(), rtype::A);
    let query = Query::parse(&packet).expect("query");
    let client = IpAddr::from([10, 0, 0, client]);
    forward.exchange(&query, Some(client), false).await
}

#[tokio::test]
async fn a_client_that_floods_a_slow_upstream_leaves_room_for_the_others() {
    let slow = FakeUpstream::start(|packet, _| {
        let is_flood = packet
            .windows(3)
            .any(|label| label.eq_ignore_ascii_case(b"\x02c1"));
        if is_flood {
            Vec::new()
        } else {
            vec![answer(packet, &[[1, 1, 1, 1]])]
        }
    })
    .await;
    let forward = Arc::new(Forward::new(Options {
        to: targets(&[slow.address]),
        max_concurrent: Some(10),
        ..Options::default()
    }));
    let flood = join_all((0..100).map(|number| ask_number(&forward, 1, number)));
    let others = async {
        let deadline = Instant::now() + Duration::from_secs(4);
        while forward.rejected.load(Ordering::Relaxed) == 0 {
            assert!(Instant::now() < deadline, "nothing is refused");
            tokio::task::yield_now().await;
        }
        for client in 2..12 {
            let answered = ask_number(&forward, client, 0).await.expect("a place");
            assert_eq!(last_address(&answered), [1, 1, 1, 1]);
        }
    };
    tokio::select! {
        _ = flood => panic!("the flood ended before the others were answered"),
        () = others => {}
    }
    // Half of the places, and one.
    assert_eq!(forward.rejected.load(Ordering::Relaxed), 94);
}

#[tokio::test]
async fn a_question_without_answer_goes_out_once_more_and_to_whoever_was_not_asked() {
    let check = async |upstreams: usize, expected: usize| {
        let (silent, asked) = silent().await;
        let forward = forward(&vec![silent.address; upstreams]);
        let failure = ask(&forward, false).await.expect_err("silence");
        assert!(
            matches!(
                &failure,
                Failure::Unanswered {
                    source: ExchangeError::Timeout,
                    ..
                }
            ),
            "{failure:?}"
        );
        assert_eq!(asked.load(Ordering::SeqCst), expected, "{upstreams} upstreams");
    };
    tokio::join!(check(1, 2), check(2, 2), check(3, 3));
}

#[tokio::test]
async fn sockets_of_those_who_were_too_slow_are_closed_with_the_answer() {
    let slow = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("bound");
    let good = FakeUpstream::answering([1, 1, 1, 1]).await;
    let forward = forward(&[slow.local_addr().expect("address"), good.address]);
    ask(&forward, false).await.expect("response");
    let (_, from) = slow.recv_from(&mut [0; 512]).await.expect("the question");
    // The port is free only where nobody has it any more.
    tokio::net::UdpSocket::bind(from)
        .await
        .expect("the socket is closed");
}

#[tokio::test]
async fn while_one_upstream_is_dead_nobody_waits_for_long_and_then_nobody_asks_it_first() {
    for policy in [Policy::Sequential, Policy::RoundRobin, Policy::Random] {
        let (dead, asked) = silent().await;
        let good = [[1, 1, 1, 1], [2, 2, 2, 2]].map(FakeUpstream::answering);
        let good = join_all(good).await;
        let forward = Arc::new(Forward::new(Options {
            to: targets(&[dead.address, good[0].address, good[1].address]),
            policy,
            ..Options::default()
        }));
        let under_load = async |round: usize| {
            let started = Instant::now();
            let numbers = (0..200).map(|number| round * 200 + number);
            let answers = join_all(numbers.map(|number| ask_number(&forward, 1, number))).await;
            assert!(answers.iter().all(Result::is_ok), "{policy:?}");
            started.elapsed()
        };
        let first = under_load(0).await;
        assert!(first < Duration::from_secs(2), "{policy:?}: {first:?}");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !forward.upstreams()[0].is_suspect() {
            assert!(
                Instant::now() < deadline,
                "{policy:?}: the dead one is not noticed"
            );
            tokio::task::yield_now().await;
        }
        let before = asked.load(Ordering::SeqCst);
        assert!(before > 0, "{policy:?}");
        for round in 1..4 {
            under_load(round).await;
        }
        assert_eq!(asked.load(Ordering::SeqCst), before, "{policy:?}");
    }
}

//! `bufsize`, `ratelimit`, `acl`, `any`, `minimal`, `loadbalance`, through whole server blocks.

use super::*;

#[test]
fn acl_refuses_empties_drops_and_lets_through_and_counts() {
    let server = server(
        ".:53 {\n acl {\n allow net 192.0.2.1 type A\n drop type TXT\n block type AAAA\n filter type MX\n}\n whoami\n}",
        &Snapshot::default(),
    );
    let mut out = Vec::new();
    let mut ask = |qtype| {
        let outcome = server.answer_now(&packet("a.example", qtype), udp(), &mut worker(), &mut out);
        (outcome, code_of(&out), out[11])
    };
    assert_eq!(ask(rtype::A), (Outcome::Reply, rcode::NOERROR, 2));
    assert_eq!(ask(rtype::AAAA), (Outcome::Reply, rcode::REFUSED, 0));
    assert_eq!(ask(rtype::MX), (Outcome::Reply, rcode::NOERROR, 0));
    assert_eq!(ask(rtype::TXT).0, Outcome::Silence);
    assert_eq!(ask(rtype::SRV), (Outcome::Reply, rcode::NOERROR, 2));
}

#[test]
fn a_client_over_its_rate_is_refused_by_tcp_and_ignored_by_udp() {
    let server = server(".:53 {\n ratelimit 1 3\n whoami\n}", &Snapshot::default());
    let mut out = Vec::new();
    let mut ask = |client: Client| {
        let asked = packet("a.example", rtype::A);
        match server.answer_now(&asked, client, &mut worker(), &mut out) {
            Outcome::Reply => Some(code_of(&out)),
            _ => None,
        }
    };
    for _ in 0..3 {
        assert_eq!(ask(udp()), Some(rcode::NOERROR));
    }
    assert_eq!((ask(udp()), ask(tcp())), (None, Some(rcode::REFUSED)));
    let other = Client {
        address: SocketAddr::from(([192, 0, 2, 2], 4000)),
        ..udp()
    };
    assert_eq!(ask(other), Some(rcode::NOERROR));
    let limit = server.routes()[0].block.rate_limit().expect("given");
    assert_eq!(limit.limited.load(Ordering::Relaxed), 2);
}

#[test]
fn a_query_for_every_type_gets_a_hint_where_the_block_says_so() {
    let with_any = CLUSTER.replace(".:53 {\n", ".:53 {\n any\n");
    let asked = packet("svc1.testns.svc.cluster.local", rtype::ANY);
    let hint = [
        &asked[12..],
        b"\xc0\x0c\0\x0d\0\x01\0\0\x21\x22\0\x1b\x0dANY obsoleted\x0cSee RFC 8482",
    ]
    .concat();
    let mut out = Vec::new();
    server(&with_any, &samples::snapshot()).answer_now(&asked, udp(), &mut worker(), &mut out);
    assert_eq!(out[12..], hint);
    let found = outline(&server(CLUSTER, &samples::snapshot()), &asked, udp());
    assert_eq!(
        found.map(|(code, answers, ..)| (code, answers)),
        Some((rcode::NOERROR, 0))
    );
}

#[test]
fn no_client_is_sent_more_by_udp_than_bufsize() {
    let server = server(
        &CLUSTER.replace(".:53 {\n", ".:53 {\n bufsize 1232\n"),
        &samples::crowded(),
    );
    let asked = |size| edns(packet("big.testns.svc.cluster.local", rtype::A), size, 0, false);
    for (size, client, answers, told) in [
        (4096, udp(), 73, 1232),
        (1232, udp(), 73, 1232),
        (600, udp(), 33, 600),
        (4096, tcp(), 200, 1232),
    ] {
        let mut out = Vec::new();
        server.answer_now(&asked(size), client, &mut worker(), &mut out);
        let opt_size = u16::from_be_bytes([out[out.len() - 8], out[out.len() - 7]]);
        let found = (u16::from_be_bytes([out[6], out[7]]), opt_size);
        assert_eq!(found, (answers, told), "{size} {client:?}");
    }
}

#[test]
fn a_minimal_answer_leaves_additional_records_out() {
    let asked = packet("_http._tcp.svc1.testns.svc.cluster.local", rtype::SRV);
    let counts = |corefile: &str| {
        let mut out = Vec::new();
        server(corefile, &samples::snapshot()).answer_now(&asked, udp(), &mut worker(), &mut out);
        [out[7], out[9], out[11]]
    };
    assert_eq!(counts(CLUSTER), [1, 0, 1]);
    assert_eq!(
        counts(&CLUSTER.replace(".:53 {\n", ".:53 {\n minimal\n")),
        [1, 0, 0]
    );
}

#[tokio::test]
async fn forwarded_and_cached_addresses_come_in_every_order() {
    let addresses: [[u8; 4]; 3] = [[10, 0, 0, 1], [10, 0, 0, 2], [10, 0, 0, 3]];
    let upstream = FakeUpstream::start(move |packet, _| vec![answer(packet, &addresses)]).await;
    let firsts = async |plugins: &str, cached: bool| {
        let corefile = format!(".:53 {{\n {plugins}\n forward . {}\n}}", upstream.address);
        let server = server(&corefile, &Snapshot::default());
        let asked = packet("www.example", rtype::A);
        let (mut worker, mut seen) = (worker(), std::collections::BTreeSet::new());
        for _ in 0..100 {
            let mut out = Vec::new();
            if server.answer_now(&asked, udp(), &mut worker, &mut out) == Outcome::Later {
                out = server
                    .answer(&asked, udp(), Instant::now(), &worker.shard)
                    .await
                    .expect("an answer");
            }
            seen.insert(out[asked.len() + 15]);
        }
        assert_eq!(cached, upstream.asked() <= 101, "{plugins}");
        seen.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(firsts("loadbalance\n cache", true).await, [1, 2, 3]);
    assert_eq!(firsts("cache", true).await, [1]);
    assert_eq!(firsts("loadbalance", false).await, [1, 2, 3]);
}

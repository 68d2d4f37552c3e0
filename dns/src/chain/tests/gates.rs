//! `bufsize`, `ratelimit`, `acl`, `any`, `minimal`, `loadbalance`, and who is told why, through whole server blocks.

use super::*;

#[test]
fn acl_refuses_empties_drops_and_lets_through_and_counts() {
    let server = server(
        ".:53 {\n acl {\n allow net 192.0.2.1 type A\n drop type TXT\n block type AAAA\n filter type MX\n}\n whoami\n}",
        &Snapshot::default(),
    );
    let mut out = Vec::new();
    let mut ask = |qtype| {
        let outcome = server.answer_now(
            Arrived::now(&packet("a.example", qtype), udp()),
            &mut worker(),
            &mut out,
        );
        (outcome, code_of(&out), out[11])
    };
    assert_eq!(ask(rtype::A), (Outcome::Reply, rcode::NOERROR, 2));
    assert_eq!(ask(rtype::AAAA), (Outcome::Reply, rcode::REFUSED, 0));
    assert_eq!(ask(rtype::MX), (Outcome::Reply, rcode::NOERROR, 0));
    assert_eq!(ask(rtype::TXT).0, Outcome::Silence);
    assert_eq!(ask(rtype::SRV), (Outcome::Reply, rcode::NOERROR, 2));
}

#[tokio::test]
async fn acl_holds_for_what_an_alias_leads_to_as_if_the_client_asked_for_it() {
    let upstream = FakeUpstream::answering([9, 9, 9, 9]).await;
    let of = "external.testns.svc.cluster.local. 5 ext.interwebs.test.";
    let inside = "external-internal.testns.svc.cluster.local. 5 svc1.testns.svc.cluster.local.";
    let template = "made.test. 7 svc1.testns.svc.cluster.local.";
    for (action, is_open) in [
        ("allow", true),
        ("block", false),
        ("filter", false),
        ("drop", false),
    ] {
        let corefile = CLUSTER.replace(
            "\n}",
            &format!(
                "\n acl interwebs.test svc1.testns.svc.cluster.local {{\n {action} net 192.0.2.0/24\n}}\n template IN A \
                 made.test {{\n answer \"{{{{ .Name }}}} 7 IN CNAME svc1.testns.svc.cluster.local\"\n}}\n forward . {}\n}}",
                upstream.address
            ),
        );
        let server = server(&corefile, &samples::snapshot());
        for (name, alias, behind) in [
            (
                "external.testns.svc.cluster.local",
                of,
                "ext.interwebs.test. 60 9.9.9.9",
            ),
            (
                "external-internal.testns.svc.cluster.local",
                inside,
                "svc1.testns.svc.cluster.local. 5 10.0.0.1",
            ),
            ("made.test", template, "svc1.testns.svc.cluster.local. 5 10.0.0.1"),
        ] {
            let mut expected = vec![alias.to_owned()];
            expected.extend(is_open.then(|| behind.to_owned()));
            let found = resolve(&server, name, rtype::A).await;
            assert_eq!(found, (rcode::NOERROR, expected), "{action} {name}");
        }
    }
    assert_eq!(upstream.asked(), 1);
}

#[tokio::test]
async fn only_programs_of_this_machine_are_told_why_and_others_cost_no_more_than_who_does_not_ask() {
    let server = server(CLUSTER, &samples::snapshot());
    let plain = edns(packet("svc1.testns.svc.cluster.local", rtype::A), 1232, 0, false);
    let mut asked = plain.clone();
    let length_at = asked.len() - 2;
    asked[length_at + 1] = 4;
    asked.extend(explain::OPTION.to_be_bytes());
    asked.extend([0, 0]);
    let own = Client {
        address: SocketAddr::from(([127, 0, 0, 1], 4000)),
        ..udp()
    };
    let (mut usual, mut out) = (Vec::new(), Vec::new());
    server.answer_now(Arrived::now(&plain, udp()), &mut worker(), &mut usual);
    assert_eq!(
        server.answer_now(Arrived::now(&asked, udp()), &mut worker(), &mut out),
        Outcome::Reply
    );
    assert_eq!(out, usual);
    let waited = server
        .answer(Arrived::now(&asked, udp()), None, &worker().shard)
        .await
        .expect("an answer");
    assert_eq!(waited, usual);
    assert_eq!(
        server.answer_now(Arrived::now(&asked, own), &mut worker(), &mut out),
        Outcome::Later(None)
    );
    let told = server
        .answer(Arrived::now(&asked, own), None, &worker().shard)
        .await
        .expect("an answer");
    let plugin = explain::Explanation::read(&told).map(|explanation| explanation.plugin);
    assert_eq!(plugin.as_deref(), Some("kubernetes"));
}

#[test]
fn a_client_over_its_rate_is_refused_by_tcp_and_ignored_by_udp() {
    let server = server(".:53 {\n ratelimit 1 3\n whoami\n}", &Snapshot::default());
    let mut out = Vec::new();
    let mut ask = |client: Client| {
        let asked = packet("a.example", rtype::A);
        match server.answer_now(Arrived::now(&asked, client), &mut worker(), &mut out) {
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
    server(&with_any, &samples::snapshot()).answer_now(Arrived::now(&asked, udp()), &mut worker(), &mut out);
    assert_eq!(out[12..], hint);
    let found = outline(&server(CLUSTER, &samples::snapshot()), &asked, udp());
    assert_eq!(
        found.map(|(code, answers, ..)| (code, answers)),
        Some((rcode::NOERROR, 0))
    );
}

#[test]
fn no_client_is_sent_more_by_udp_than_bufsize() {
    let asked = |size| edns(packet("big.testns.svc.cluster.local", rtype::A), size, 0, false);
    for (plugin, size, client, answers, told) in [
        ("bufsize 1232", 4096, udp(), 73, 1232),
        ("bufsize 1232", 1232, udp(), 73, 1232),
        ("bufsize 1232", 600, udp(), 33, 600),
        ("bufsize 1232", 4096, tcp(), 200, 1232),
        ("bufsize", 4096, udp(), 73, 1232),
        // Without it, too.
        ("", 4096, udp(), 73, 1232),
        ("bufsize 4096", 4096, udp(), 200, 4096),
        ("bufsize 4096", 65_535, udp(), 200, 4096),
    ] {
        let corefile = CLUSTER.replace(".:53 {\n", &format!(".:53 {{\n {plugin}\n"));
        let server = server(&corefile, &samples::crowded());
        let mut out = Vec::new();
        server.answer_now(Arrived::now(&asked(size), client), &mut worker(), &mut out);
        let opt_size = u16::from_be_bytes([out[out.len() - 8], out[out.len() - 7]]);
        let found = (u16::from_be_bytes([out[6], out[7]]), opt_size);
        assert_eq!(found, (answers, told), "{plugin:?} {size} {client:?}");
    }
}

#[test]
fn a_minimal_answer_leaves_additional_records_out() {
    let asked = packet("_http._tcp.svc1.testns.svc.cluster.local", rtype::SRV);
    let counts = |corefile: &str| {
        let mut out = Vec::new();
        server(corefile, &samples::snapshot()).answer_now(
            Arrived::now(&asked, udp()),
            &mut worker(),
            &mut out,
        );
        [out[7], out[9], out[11]]
    };
    assert_eq!(counts(CLUSTER), [1, 0, 1]);
    assert_eq!(
        counts(&CLUSTER.replace(".:53 {\n", ".:53 {\n minimal\n")),
        [1, 0, 0]
    );
}

#[tokio::test]
async fn what_stands_behind_an_alias_comes_in_every_order_too() {
    let mut snapshot = samples::snapshot();
    let many = "hdls1.testns.svc.cluster.local";
    snapshot.apply(model::Change::Service(samples::external("testns", "many", many)));
    let corefile = CLUSTER.replace(
        ".:53 {\n",
        &format!(
            ".:53 {{\n loadbalance\n rewrite name suffix .svc.old .svc.cluster.local answer auto\n template IN A made.test {{\n \
             answer \"{{{{ .Name }}}} 7 IN CNAME {many}\"\n}}\n"
        ),
    );
    let server = server(&corefile, &snapshot);
    let mut worker = worker();
    for name in [
        "many.testns.svc.cluster.local",
        "many.testns.svc.old",
        "made.test",
    ] {
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let asked = packet(name, rtype::A);
            let mut out = Vec::new();
            assert_eq!(
                server.answer_now(Arrived::now(&asked, udp()), &mut worker, &mut out),
                Outcome::Later(None)
            );
            let out = server
                .answer(Arrived::now(&asked, udp()), None, &worker.shard)
                .await
                .expect("an answer");
            let kinds: Vec<u16> = followed_answers(&out).iter().map(|record| record.rtype).collect();
            assert_eq!(
                kinds,
                [rtype::CNAME, rtype::A, rtype::A, rtype::A, rtype::A],
                "{name}"
            );
            firsts.insert(followed_answers(&out)[1].data[3]);
        }
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [2, 3, 4, 5], "{name}");
    }
    let plugins = server.routes()[0].block.plugins();
    let template = plugins.iter().find_map(Plugin::as_template).expect("given");
    assert_eq!(template.matched.load(Ordering::Relaxed), 200);
}

#[tokio::test]
async fn ipv6_addresses_outside_are_denied_without_asking_where_the_corefile_says_so() {
    let upstream = FakeUpstream::answering([9, 9, 9, 9]).await;
    let with_off = format!("\n aaaa off\n cache\n forward . {}\n}}", upstream.address);
    let server = server(&CLUSTER.replace("\n}", &with_off), &samples::snapshot());
    let mut out = Vec::new();
    let mut ask = |name, qtype| {
        let outcome = server.answer_now(Arrived::now(&packet(name, qtype), udp()), &mut worker(), &mut out);
        (outcome, code_of(&out), out[7], out[9])
    };
    // The cluster's own addresses stay.
    let dual = ask("dual.testns.svc.cluster.local", rtype::AAAA);
    assert_eq!(dual, (Outcome::Reply, rcode::NOERROR, 1, 0));
    let outside = ask("www.example", rtype::AAAA);
    assert_eq!(outside, (Outcome::Reply, rcode::NOERROR, 0, 1));
    assert_eq!(ask("www.example", rtype::A).0, Outcome::Later(None));
    assert_eq!(upstream.asked(), 0);
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
            if server.answer_now(Arrived::now(&asked, udp()), &mut worker, &mut out) == Outcome::Later(None) {
                out = server
                    .answer(Arrived::now(&asked, udp()), None, &worker.shard)
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

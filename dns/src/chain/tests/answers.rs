//! `rewrite`, `template` and `hosts` through whole server blocks.

use super::*;

/// `CODE OWNER TTL DATA…` by waiting.
async fn text(server: &Server, name: &str, qtype: u16) -> String {
    let (code, answers) = resolve(server, name, qtype).await;
    let code = crate::mnemonic::code_name(code).into_owned();
    std::iter::once(code).chain(answers).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn a_name_that_is_rewritten_answers_from_the_cluster_under_its_own_name() {
    let upstream = FakeUpstream::answering([1, 1, 1, 1]).await;
    let corefile = CLUSTER.replace(
        ".:53 {\n",
        &format!(
            ".:53 {{\n rewrite name suffix .svc.old .svc.cluster.local answer auto\n \
             rewrite name regex ^x(.*) {{1}}..\n rewrite name far.example near.example\n forward . {}\n",
            upstream.address
        ),
    );
    let server = server(&corefile, &samples::snapshot());
    for (name, qtype, expected) in [
        (
            "svc1.testns.svc.old",
            rtype::A,
            "NOERROR svc1.testns.svc.old. 5 10.0.0.1",
        ),
        ("none.testns.svc.old", rtype::A, "NXDOMAIN"),
        (
            "svc1.testns.svc.cluster.local",
            rtype::A,
            "NOERROR svc1.testns.svc.cluster.local. 5 10.0.0.1",
        ),
        // An alias inside the cluster, through the rule, by waiting.
        (
            "external-internal.testns.svc.old",
            rtype::A,
            "NOERROR external-internal.testns.svc.old. 5 svc1.testns.svc.old. svc1.testns.svc.old. 5 10.0.0.1",
        ),
        ("far.example", rtype::A, "NOERROR far.example. 60 1.1.1.1"),
        ("xyz", rtype::A, "SERVFAIL"),
    ] {
        assert_eq!(text(&server, name, qtype).await, expected, "{name}");
    }
    let asked = packet("svc1.testns.svc.old", rtype::A);
    let outline = outline(&server, &asked, udp());
    assert_eq!(outline, Some((rcode::NOERROR, 1, false, asked.len() + 16)));
}

#[tokio::test]
async fn plugins_answer_in_corednss_order_whatever_the_files_order_is() {
    let upstream = FakeUpstream::answering([9, 9, 9, 9]).await;
    let corefile = format!(
        ".:53 {{\n forward . {}\n hosts /none/such {{\n 10.0.0.2 both.example hosted.example\n 10.0.0.9 svc1.testns.svc.cluster.local\n \
         fallthrough\n}}\n kubernetes cluster.local\n template IN A example {{\n match ^(templated|both)[.]\n answer \"{{{{ .Name }}}} 7 IN \
         A 10.0.0.1\"\n fallthrough\n}}\n template IN A {{\n match ^alias[.]\n answer \"{{{{ .Name }}}} 7 IN CNAME hosted.example\"\n \
         fallthrough\n}}\n}}",
        upstream.address
    );
    let server = server(&corefile, &samples::snapshot());
    for (name, qtype, expected) in [
        (
            "templated.example",
            rtype::A,
            "NOERROR templated.example. 7 10.0.0.1",
        ),
        ("both.example", rtype::A, "NOERROR both.example. 7 10.0.0.1"),
        ("both.example", rtype::AAAA, "NOERROR"),
        (
            "hosted.example",
            rtype::A,
            "NOERROR hosted.example. 3600 10.0.0.2",
        ),
        (
            "svc1.testns.svc.cluster.local",
            rtype::A,
            "NOERROR svc1.testns.svc.cluster.local. 3600 10.0.0.9",
        ),
        (
            "dual.testns.svc.cluster.local",
            rtype::A,
            "NOERROR dual.testns.svc.cluster.local. 5 10.0.0.4",
        ),
        ("other.example", rtype::A, "NOERROR other.example. 60 9.9.9.9"),
        (
            "alias.test",
            rtype::A,
            "NOERROR alias.test. 7 hosted.example. hosted.example. 3600 10.0.0.2",
        ),
    ] {
        assert_eq!(text(&server, name, qtype).await, expected, "{name}");
    }
}

#[tokio::test]
async fn what_is_served_beyond_its_end_is_asked_for_again_or_served_where_nobody_answers() {
    let alive = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_alive = Arc::clone(&alive);
    let upstream = FakeUpstream::start(move |packet, _| match is_alive.load(Ordering::SeqCst) {
        true => vec![answer(packet, &[[1, 1, 1, 1]])],
        false => vec![crate::forward::fake_upstream::code(packet, rcode::SERVFAIL)],
    })
    .await;
    for (mode, first) in [("immediate", Outcome::Reply), ("verify", Outcome::Later(None))] {
        let corefile = format!(
            ".:53 {{\n cache {{\n success 100 1 0\n serve_stale 1h {mode}\n}}\n forward . {}\n}}",
            upstream.address
        );
        let server = server(&corefile, &Snapshot::default());
        alive.store(true, Ordering::SeqCst);
        let kept = "NOERROR www.example. 1 1.1.1.1";
        assert_eq!(text(&server, "www.example", rtype::A).await, kept, "{mode}");
        let asked = packet("www.example", rtype::A);
        let deadline = Instant::now() + std::time::Duration::from_secs(10);
        let mut out = Vec::new();
        // One second is the shortest life.
        let is_stale = |out: &[u8]| out.len() > 4 && out[asked.len() + 6..][..4] == [0; 4];
        alive.store(false, Ordering::SeqCst);
        let before = upstream.asked();
        loop {
            let outcome = server.answer_now(Arrived::now(&asked, udp()), &mut worker(), &mut out);
            if outcome == Outcome::Later(None) || is_stale(&out) {
                assert_eq!(outcome, first, "{mode}");
                break;
            }
            assert!(Instant::now() < deadline, "{mode}: it never ends");
            tokio::task::yield_now().await;
        }
        // The upstream fails: the client has the old answer.
        let stale = "NOERROR www.example. 0 1.1.1.1";
        assert_eq!(text(&server, "www.example", rtype::A).await, stale, "{mode}");
        while upstream.asked() == before {
            assert!(Instant::now() < deadline, "{mode}: nobody asks again");
            tokio::task::yield_now().await;
        }
        let blocks = server.routes()[0].block.plugins();
        let cache = blocks.iter().find_map(Plugin::as_cache).expect("a cache");
        assert!(cache.counts().served_stale > 0, "{mode}");
    }
}

/// A Corefile's `autopath` for clients with these domains.
fn autopath(label: &str, domains: &str) -> (String, std::path::PathBuf) {
    let file = std::env::temp_dir().join(format!("cwt-{label}-{}", std::process::id()));
    std::fs::write(&file, format!("search {domains}\n")).expect("written");
    (format!("autopath {}", file.display()), file)
}

#[tokio::test]
async fn the_clients_search_path_is_gone_along_for_it() {
    let upstream = FakeUpstream::start(|packet, _| {
        let query = Query::parse(packet).expect("query");
        match Name::from_lower_wire(query.name()).to_string().as_str() {
            "www.example." => vec![answer(packet, &[[1, 1, 1, 1]])],
            _ => vec![crate::forward::fake_upstream::code(packet, rcode::NXDOMAIN)],
        }
    })
    .await;
    let (autopath, file) = autopath(
        "search",
        "testns.svc.cluster.local svc.cluster.local cluster.local",
    );
    let corefile = CLUSTER.replace(
        "\n}",
        &format!("\n {autopath}\n forward . {}\n}}", upstream.address),
    );
    let server = server(&corefile, &samples::snapshot());
    std::fs::remove_file(&file).expect("removed");
    for (name, qtype, expected) in [
        (
            "svc1.testns.svc.cluster.local",
            rtype::A,
            "NOERROR svc1.testns.svc.cluster.local. 5 10.0.0.1",
        ),
        (
            "svc1.otherns.testns.svc.cluster.local",
            rtype::A,
            "NOERROR svc1.otherns.testns.svc.cluster.local. 5 svc1.otherns.svc.cluster.local. svc1.otherns.svc.cluster.local. 5 \
             10.0.1.1",
        ),
        (
            "www.example.testns.svc.cluster.local",
            rtype::A,
            "NOERROR www.example.testns.svc.cluster.local. 60 www.example. www.example. 60 1.1.1.1",
        ),
        // It exists and has no such records: the client goes no farther either.
        ("svc1.otherns.testns.svc.cluster.local", rtype::AAAA, "NOERROR"),
        ("none.example.testns.svc.cluster.local", rtype::A, "NXDOMAIN"),
        // Not by the first domain: the client is farther along already.
        ("www.example.svc.cluster.local", rtype::A, "NXDOMAIN"),
        ("testns.svc.cluster.local", rtype::A, "NOERROR"),
    ] {
        assert_eq!(text(&server, name, qtype).await, expected, "{name}");
    }
    let asked = |name| packet(name, rtype::A);
    let mut out = Vec::new();
    let mut outcome = |name| server.answer_now(Arrived::now(&asked(name), udp()), &mut worker(), &mut out);
    let along = outcome("www.example.testns.svc.cluster.local");
    assert!(matches!(along, Outcome::Later(Some(_))), "{along:?}");
    assert_eq!(outcome("svc1.testns.svc.cluster.local"), Outcome::Reply);
    let autopath = server.routes()[0].block.autopath().expect("given");
    assert_eq!(autopath.found.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_denied_name_that_is_completed_anew_is_one_query_of_its_cache_and_its_template() {
    let upstream = FakeUpstream::start(|packet, _| {
        let query = Query::parse(packet).expect("query");
        match query.label(1) {
            b"b" => vec![answer(packet, &[[1, 1, 1, 1]])],
            _ => vec![crate::forward::fake_upstream::denial(packet)],
        }
    })
    .await;
    let (autopath, file) = autopath("counts", "a.test b.test");
    let template = "template IN A a.test {\n match ^made\n rcode NXDOMAIN\n fallthrough\n }";
    let server = server(
        &format!(
            ".:53 {{\n {autopath}\n {template}\n cache\n forward . {}\n}}",
            upstream.address
        ),
        &Snapshot::default(),
    );
    std::fs::remove_file(&file).expect("removed");
    let plugins = server.routes()[0].block.plugins();
    let cache = plugins.iter().find_map(Plugin::as_cache).expect("given");
    let counts = || (cache.counts().requests, cache.counts().hits);
    // The name, and the one that is found in its place: both are asked for, then both are kept.
    for expected in [(2, [0, 0]), (4, [1, 1])] {
        let found = text(&server, "www.a.test", rtype::A).await;
        assert_eq!(found, "NOERROR www.a.test. 60 www.b.test. www.b.test. 60 1.1.1.1");
        assert_eq!(counts(), expected);
    }
    text(&server, "made.a.test", rtype::A).await;
    let template = plugins.iter().find_map(Plugin::as_template).expect("given");
    assert_eq!(template.matched.load(Ordering::Relaxed), 1);
}

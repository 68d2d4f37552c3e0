//! Whole answers: packets in, packets out, through server blocks written as a Corefile.

mod answers;
mod gates;

use model::Snapshot;

use super::*;
use crate::answer::{Opt, followed_answers};
use crate::corefile::Corefile;
use crate::feed::Source;
use crate::forward::fake_upstream::{FakeUpstream, alias, answer};
use crate::metrics::Registry;
use crate::metrics::ZoneLabel;
use crate::question::{query_packet, rtype};
use crate::samples;
use crate::zone::Table;

const CLUSTER: &str = ".:53 {\n kubernetes cluster.local in-addr.arpa {\n fallthrough in-addr.arpa\n }\n}";

fn udp() -> Client {
    Client {
        address: SocketAddr::from(([192, 0, 2, 1], 4000)),
        transport: Transport::Udp,
    }
}

fn tcp() -> Client {
    Client {
        transport: Transport::Tcp,
        ..udp()
    }
}

fn server(corefile: &str, snapshot: &Snapshot) -> Server {
    let source = Arc::new(Source::default());
    source.table.store(Arc::new(Table::default().updated(
        &Snapshot::default(),
        snapshot,
        1,
    )));
    let corefile = Corefile::parse("Corefile", corefile, &|_| None).expect("a Corefile");
    let routes = corefile.blocks.iter().flat_map(|config| {
        let source = config.kubernetes.as_ref().map(|_| Arc::clone(&source));
        let probe = config.detect_loops.then(|| Arc::new(LoopProbe::new()));
        let block = Arc::new(Block::new(config, source, probe));
        let route = move |key: &crate::corefile::Key| Route {
            zone: key.zone.clone(),
            block: Arc::clone(&block),
            counters: 0,
        };
        config.keys.iter().map(route).collect::<Vec<_>>()
    });
    Server::new(routes.collect(), 0)
}

fn worker() -> Worker {
    let label = ZoneLabel {
        server: "dns://:53".to_owned(),
        zone: ".".to_owned(),
    };
    Worker::new(Registry::new(vec![label]).shard())
}

fn packet(name: &str, qtype: u16) -> Vec<u8> {
    query_packet(4711, Name::parse(name).expect("name").wire(), qtype)
}

/// Adds an OPT record.
fn edns(mut packet: Vec<u8>, size: u16, version: u8, dnssec_ok: bool) -> Vec<u8> {
    let opt = Opt {
        udp_size: size,
        version,
        dnssec_ok,
        ..Opt::default()
    };
    opt.add_to(&mut packet);
    packet
}

/// `(code, answers, TC, length)` of an answer, or `None` for silence.
fn outline(server: &Server, packet: &[u8], client: Client) -> Option<(u16, u16, bool, usize)> {
    let mut out = Vec::new();
    match server.answer_now(Arrived::now(packet, client), &mut worker(), &mut out) {
        Outcome::Reply => Some((
            code_of(&out),
            u16::from_be_bytes([out[6], out[7]]),
            out[2] & 2 != 0,
            out.len(),
        )),
        Outcome::Silence => None,
        Outcome::Later(_) => panic!("nothing here needs an upstream"),
    }
}

#[test]
fn the_protocols_edges_are_answered_as_measured_of_coredns() {
    let server = server(
        &CLUSTER.replace(".:53", "cluster.local:53 in-addr.arpa"),
        &samples::snapshot(),
    );
    let svc1 = || packet("svc1.testns.svc.cluster.local", rtype::A);
    let length = svc1().len();
    let with = |at: usize, value: u8| {
        let mut packet = svc1();
        packet[at] = value;
        packet
    };
    let class = |class: u8| with(svc1().len() - 1, class);
    let trailing = [svc1(), b"more".to_vec()].concat();
    let two_opts = edns(edns(svc1(), 1232, 0, false), 1232, 0, false);
    for (what, packet, expected) in [
        ("a query", svc1(), Some((rcode::NOERROR, 1, false, length + 16))),
        (
            "twelve zero bytes",
            vec![0; 12],
            Some((rcode::FORMERR, 0, false, 12)),
        ),
        ("no question", with(5, 0), Some((rcode::FORMERR, 0, false, 12))),
        ("two questions", with(5, 2), Some((rcode::FORMERR, 0, false, 12))),
        (
            "a pointer to itself",
            with(12, 0xc0),
            Some((rcode::FORMERR, 0, false, 12)),
        ),
        ("a response", with(2, 0x81), None),
        ("eleven bytes", vec![0; 11], None),
        (
            "opcode STATUS",
            with(2, 0x10),
            Some((rcode::NOTIMP, 0, false, 12)),
        ),
        (
            "opcode UPDATE",
            with(2, 0x28),
            Some((rcode::NOTIMP, 0, false, 12)),
        ),
        (
            "opcode NOTIFY",
            with(2, 0x20),
            Some((rcode::NOERROR, 1, false, length + 16)),
        ),
        ("class CH", class(3), Some((rcode::REFUSED, 0, false, length))),
        ("class ANY", class(255), Some((rcode::REFUSED, 0, false, length))),
        (
            "a name that nobody serves",
            packet("example.com", 1),
            Some((rcode::REFUSED, 0, false, 29)),
        ),
        (
            "the end of the chain",
            packet("9.9.9.9.in-addr.arpa", 12),
            Some((rcode::SERVFAIL, 0, false, 38)),
        ),
        (
            "EDNS version 1",
            edns(svc1(), 1232, 1, false),
            Some((0, 0, false, length + 11)),
        ),
        (
            "trailing bytes",
            trailing,
            Some((rcode::NOERROR, 1, false, length + 16)),
        ),
        (
            "two OPT records",
            two_opts,
            Some((rcode::NOERROR, 1, false, length + 16 + 11)),
        ),
    ] {
        assert_eq!(outline(&server, &packet, udp()), expected, "{what}");
    }
}

#[test]
fn edns_comes_back_with_the_clients_size_and_do_bit_and_nothing_else() {
    let server = server(CLUSTER, &samples::snapshot());
    for (what, version, dnssec_ok, opt) in [
        ("DO", 0, true, [0, 0, 41, 4, 208, 0, 0, 0x80, 0, 0, 0]),
        ("no DO", 0, false, [0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]),
        // BADVERS is 16: one in the OPT record's high bits, zero in the header.
        ("version 1", 1, false, [0, 0, 41, 4, 208, 1, 0, 0, 0, 0, 0]),
    ] {
        let asked = edns(
            packet("svc1.testns.svc.cluster.local", rtype::A),
            1232,
            version,
            dnssec_ok,
        );
        let mut out = Vec::new();
        assert_eq!(
            server.answer_now(Arrived::now(&asked, udp()), &mut worker(), &mut out),
            Outcome::Reply
        );
        assert_eq!((&out[out.len() - 11..], out[11]), (&opt[..], 1), "{what}");
    }
    // RD, AD and CD are echoed, RA is never set, AA is.
    let mut asked = packet("svc1.testns.svc.cluster.local", rtype::A);
    asked[3] |= 0x30;
    let mut out = Vec::new();
    server.answer_now(Arrived::now(&asked, udp()), &mut worker(), &mut out);
    assert_eq!(out[2..4], [0x85, 0x30]);
}

#[test]
fn as_many_addresses_as_fit_are_given() {
    let server = server(
        &CLUSTER.replace(".:53 {\n", ".:53 {\n bufsize 4096\n"),
        &samples::crowded(),
    );
    let asked = || packet("big.testns.svc.cluster.local", rtype::A);
    let question = asked().len();
    for (what, packet, client, answers) in [
        ("no EDNS", asked(), udp(), 29),
        (
            "EDNS of 100 counts as 512",
            edns(asked(), 100, 0, false),
            udp(),
            28,
        ),
        ("EDNS of 1232", edns(asked(), 1232, 0, false), udp(), 73),
        ("EDNS of 4096", edns(asked(), 4096, 0, false), udp(), 200),
        ("TCP", asked(), tcp(), 200),
    ] {
        let opt = if packet.len() > question { 11 } else { 0 };
        let expected = (
            rcode::NOERROR,
            answers,
            answers < 200,
            question + usize::from(answers) * 16 + opt,
        );
        assert_eq!(outline(&server, &packet, client), Some(expected), "{what}");
    }
}

#[test]
fn load_balancing_puts_every_address_first_some_time() {
    let first = |corefile: &str| {
        let server = server(corefile, &samples::snapshot());
        let mut worker = worker();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let asked = packet("hdls1.testns.svc.cluster.local", rtype::A);
            let mut out = Vec::new();
            server.answer_now(Arrived::now(&asked, udp()), &mut worker, &mut out);
            seen.insert(out[asked.len() + 15]);
        }
        seen.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(first(CLUSTER), [2]);
    assert_eq!(
        first(&CLUSTER.replace(".:53 {\n", ".:53 {\n loadbalance\n")),
        [2, 3, 4, 5]
    );
}

#[test]
fn the_longest_zone_serves_a_name() {
    let server = server(
        ".:53 {\n whoami\n}\nexample.com:53 {\n}\nsub.example.com {\n whoami\n}",
        &Snapshot::default(),
    );
    for (name, code) in [
        ("sub.example.com", rcode::NOERROR),
        ("a.sub.example.com", rcode::NOERROR),
        ("xsub.example.com", rcode::SERVFAIL),
        ("example.com", rcode::SERVFAIL),
        ("com", rcode::NOERROR),
        (".", rcode::NOERROR),
    ] {
        let outline = outline(&server, &packet(name, rtype::A), udp());
        assert_eq!(outline.map(|(code, ..)| code), Some(code), "{name}");
    }
}

#[test]
fn whoami_tells_the_clients_address_and_port() {
    let server = server(".:53 {\n whoami\n}", &Snapshot::default());
    let asked = packet("any", rtype::A);
    let mut out = Vec::new();
    server.answer_now(Arrived::now(&asked, tcp()), &mut worker(), &mut out);
    let address = [0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 1];
    let port = b"\x04_tcp\x03any\0\x00\x21\x00\x01\0\0\0\0\x00\x07\0\0\0\0\x0f\xa0\0";
    assert_eq!(out[asked.len()..], [&address[..], port].concat());
}

/// Answers as a serving thread does, where it has to be with waiting.
async fn ask(server: &Server, packet: &[u8], worker: &mut Worker) -> Vec<u8> {
    let (arrived, mut out) = (Arrived::now(packet, udp()), Vec::new());
    match server.answer_now(arrived, worker, &mut out) {
        Outcome::Reply => out,
        Outcome::Silence => panic!("no answer"),
        Outcome::Later(denial) => {
            let waited = server.answer(arrived, denial, &worker.shard).await;
            waited.expect("an answer")
        }
    }
}

/// Gives the code and the answers as text.
async fn resolve(server: &Server, name: &str, qtype: u16) -> (u16, Vec<String>) {
    let out = ask(server, &packet(name, qtype), &mut worker()).await;
    let text = followed_answers(&out).into_iter().map(|record| {
        let data = match record.rtype {
            rtype::CNAME => Name::from_lower_wire(&record.data).to_string(),
            _ => record
                .data
                .iter()
                .map(u8::to_string)
                .collect::<Vec<_>>()
                .join("."),
        };
        format!("{} {} {data}", Name::from_lower_wire(&record.owner), record.ttl)
    });
    (code_of(&out), text.collect())
}

#[tokio::test]
async fn aliases_are_followed_inside_the_cluster_and_outside_and_never_in_circles() {
    let upstream = FakeUpstream::start(|packet, _| {
        vec![alias(
            packet,
            Name::parse("real.interwebs.test").expect("name").wire(),
            [9, 9, 9, 9],
        )]
    })
    .await;
    let corefile = CLUSTER.replace("\n}", &format!("\n forward . {}\n}}", upstream.address));
    let server = server(&corefile, &samples::snapshot());
    let dead = CLUSTER.replace("\n}", "\n forward . 127.0.0.1:1\n}");
    let without_upstream = self::server(&dead, &samples::snapshot());
    let alias_of = |name: &str, target: &str| format!("{name}.testns.svc.cluster.local. 5 {target}");
    let inside = "svc1.testns.svc.cluster.local.";
    for (what, server, name, expected) in [
        (
            "a name inside",
            &server,
            "external-internal",
            vec![
                alias_of("external-internal", inside),
                format!("{inside} 5 10.0.0.1"),
            ],
        ),
        (
            "a name outside that is an alias itself",
            &server,
            "external",
            vec![
                alias_of("external", "ext.interwebs.test."),
                "ext.interwebs.test. 60 real.interwebs.test.".to_owned(),
                "real.interwebs.test. 60 9.9.9.9".to_owned(),
            ],
        ),
        (
            "a name outside while no upstream answers",
            &without_upstream,
            "external",
            vec![alias_of("external", "ext.interwebs.test.")],
        ),
        (
            "aliases for each other",
            &server,
            "loop-a",
            vec![
                alias_of("loop-a", "loop-b.testns.svc.cluster.local."),
                alias_of("loop-b", "loop-a.testns.svc.cluster.local."),
            ],
        ),
    ] {
        let found = resolve(server, &format!("{name}.testns.svc.cluster.local"), rtype::A).await;
        assert_eq!(found, (rcode::NOERROR, expected), "{what}");
    }
}

#[tokio::test]
async fn what_an_upstream_said_is_answered_from_the_cache_the_next_time() {
    let upstream = FakeUpstream::answering([1, 2, 3, 4]).await;
    let corefile = format!(".:53 {{\n cache 30\n forward . {}\n}}", upstream.address);
    let server = server(&corefile, &Snapshot::default());
    let asked = packet("www.example", rtype::A);
    let mut out = Vec::new();
    assert_eq!(
        server.answer_now(Arrived::now(&asked, udp()), &mut worker(), &mut out),
        Outcome::Later(None)
    );
    let first = server
        .answer(Arrived::now(&asked, udp()), None, &worker().shard)
        .await
        .expect("an answer");
    assert_eq!(
        server.answer_now(Arrived::now(&asked, udp()), &mut worker(), &mut out),
        Outcome::Reply
    );
    assert_eq!((&out, upstream.asked()), (&first, 1));
    // The query that had to wait came to the cache twice, and is one.
    let plugins = server.routes()[0].block.plugins();
    let counts = plugins.iter().find_map(Plugin::as_cache).expect("given").counts();
    assert_eq!((counts.requests, counts.hits), (2, [1, 0]));
}

#[tokio::test]
async fn a_long_answer_is_cut_for_a_client_without_edns() {
    let long: Vec<[u8; 4]> = (0..100).map(|n| [10, 0, 0, n]).collect();
    let upstream = FakeUpstream::start(move |packet, _| vec![answer(packet, &long)]).await;
    let server = server(
        &format!(".:53 {{\n forward . {}\n}}", upstream.address),
        &Snapshot::default(),
    );
    let asked = packet("www.example", rtype::A);
    let out = server
        .answer(Arrived::now(&asked, udp()), None, &worker().shard)
        .await
        .expect("an answer");
    assert_eq!((out[7], out[2] & 2, out.len()), (30, 2, asked.len() + 30 * 16));
    let out = server
        .answer(Arrived::now(&asked, tcp()), None, &worker().shard)
        .await
        .expect("an answer");
    assert_eq!((out[7], out[2] & 2), (100, 0));
}

#[tokio::test]
async fn an_upstream_that_sends_our_queries_back_is_taken_out() {
    let came_in = Arc::new(std::sync::Mutex::new(Vec::new()));
    let note = Arc::clone(&came_in);
    let upstream = FakeUpstream::start(move |packet, _| {
        note.lock().expect("lock").push(packet.to_vec());
        vec![answer(packet, &[[1, 1, 1, 1]])]
    })
    .await;
    let server = server(
        &format!(".:53 {{\n loop\n forward . {}\n}}", upstream.address),
        &Snapshot::default(),
    );
    let plugins = server.routes()[0].block.plugins();
    let (Plugin::Loop(probe), Plugin::Forward(forward)) = (&plugins[0], &plugins[1]) else {
        panic!("loop stands in front of forward");
    };
    let forwards = [Arc::clone(forward)];
    probe.send(&forwards, &Name::root()).await;
    let probe_packet = came_in
        .lock()
        .expect("lock")
        .pop()
        .expect("the upstream got the probe");
    assert!(!forward.upstreams()[0].is_looping());

    let mut out = Vec::new();
    assert_eq!(
        server.answer_now(Arrived::now(&probe_packet, udp()), &mut worker(), &mut out),
        Outcome::Reply
    );
    assert!(forward.upstreams()[0].is_looping());
    let (code, _) = resolve(&server, "www.example", rtype::A).await;
    assert_eq!((code, upstream.asked()), (rcode::SERVFAIL, 1));
    // The next probe is answered and does not come in.
    probe.send(&forwards, &Name::root()).await;
    let (code, _) = resolve(&server, "www.example", rtype::A).await;
    assert_eq!((code, upstream.asked()), (rcode::NOERROR, 3));
    // It is innocent, and is not probed any more.
    probe.send(&forwards, &Name::root()).await;
    assert_eq!(upstream.asked(), 3);
}

#[tokio::test]
async fn an_upstream_stays_out_for_as_long_as_probes_come_in() {
    // Sends everything on to us before it answers.
    let looped: Arc<std::sync::OnceLock<Server>> = Arc::default();
    let here = Arc::clone(&looped);
    let upstream = FakeUpstream::start(move |packet, _| {
        let mut out = Vec::new();
        let server = here.get().expect("a server");
        match server.answer_now(Arrived::now(packet, udp()), &mut worker(), &mut out) {
            Outcome::Reply => vec![out],
            Outcome::Silence | Outcome::Later(_) => Vec::new(),
        }
    })
    .await;
    let corefile = format!(".:53 {{\n loop\n forward . {}\n}}", upstream.address);
    let server = looped.get_or_init(|| server(&corefile, &Snapshot::default()));
    let plugins = server.routes()[0].block.plugins();
    let (Plugin::Loop(probe), Plugin::Forward(forward)) = (&plugins[0], &plugins[1]) else {
        panic!("loop stands in front of forward");
    };
    for asked in 1..4 {
        probe.send(&[Arc::clone(forward)], &Name::root()).await;
        assert_eq!(
            (forward.upstreams()[0].is_looping(), upstream.asked()),
            (true, asked)
        );
    }
}

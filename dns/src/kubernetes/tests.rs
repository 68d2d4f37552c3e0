//! The specification as rows: a name and a type, and the whole answer as text.
//!
//! `NOERROR A 10.0.0.1 + svc1. A 10.0.0.1` is an answer and an additional record with its owner;
//! `NXDOMAIN ~ cluster.local.` is a denial with the owner of its SOA record. Names end in `cluster.local` unless they
//! end in a dot. Records of a kind are sorted, because their order means nothing.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::{Record, RecordType};
use model::Snapshot;

use super::*;
use crate::question::query_packet;
use crate::samples;

const SERIAL: u32 = 1_700_000_000;

fn options() -> Options {
    let zones = ["cluster.local", "in-addr.arpa", "ip6.arpa"];
    Options::new(zones.map(|text| Name::parse(text).expect("zone")).into())
}

fn table(snapshot: &Snapshot) -> Table {
    let mut table = Table::default().updated(&Snapshot::default(), snapshot, SERIAL);
    table.local_addresses = vec![
        "192.0.2.7".parse().expect("address"),
        "2001:db8::7".parse().expect("address"),
    ];
    table
}

fn type_number(text: &str) -> u16 {
    match text {
        "ANY" => 255,
        "AXFR" => rtype::AXFR,
        "IXFR" => rtype::IXFR,
        text => text.parse::<RecordType>().map(u16::from).expect("a record type"),
    }
}

fn absolute(name: &str) -> String {
    if name.ends_with('.') {
        name.to_owned()
    } else {
        format!("{name}.cluster.local.")
            .trim_start_matches('.')
            .to_owned()
    }
}

/// The answer as text, after everything that holds for every answer has been checked.
fn ask(options: &Options, table: &Table, name: &str, qtype: &str) -> String {
    ask_rotated(options, table, name, qtype, 0)
}

/// The same, with the addresses moved on by `rotation`.
fn ask_rotated(options: &Options, table: &Table, name: &str, qtype: &str, rotation: usize) -> String {
    let asked = absolute(name);
    // `query_packet` takes the name as it stands: its case must come back.
    let mut wire = Vec::new();
    for label in asked
        .trim_end_matches('.')
        .split('.')
        .filter(|label| !label.is_empty())
    {
        wire.push(label.len() as u8);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    let packet = query_packet(4711, &wire, type_number(qtype));
    let query = Query::parse(&packet).expect("query");
    let mut out = Vec::new();
    match options.answer(
        table,
        &query,
        Shape {
            limit: 65_535,
            rotation,
        },
        &mut out,
    ) {
        Verdict::Answered => {}
        Verdict::NotOurs => return "next plugin".to_owned(),
        Verdict::Follow(target) => return format!("follow {target}"),
    }
    let message = Message::from_vec(&out).expect("hickory reads the answer");
    assert_eq!(
        (message.metadata.id, message.metadata.message_type),
        (4711, MessageType::Response)
    );
    assert_eq!(
        out[12..query.question_end],
        packet[12..query.question_end],
        "the question as it came"
    );
    render(&message, &asked)
}

fn render(message: &Message, asked: &str) -> String {
    let code = match message.metadata.response_code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        ResponseCode::ServFail => "SERVFAIL",
        ResponseCode::Refused => "REFUSED",
        other => panic!("unexpected code {other}"),
    };
    let refused = code == "REFUSED";
    assert_eq!(message.metadata.authoritative, !refused, "AA of {asked}");
    let mut parts = vec![code.to_owned()];
    let mut answers: Vec<String> = message
        .answers
        .iter()
        .map(|record| answer_text(record, asked))
        .collect();
    answers.sort();
    parts.extend(answers);
    for soa in &message.authorities {
        let text = soa.data.to_string();
        let zone = soa.name.to_string();
        let expected = format!("ns.dns.{zone} hostmaster.{zone} {SERIAL} 7200 1800 86400 5");
        assert_eq!((soa.ttl, text), (5, expected), "SOA for {asked}");
        parts.push(format!("~ {zone}"));
    }
    let extra = message.additionals.iter();
    let mut extra: Vec<String> = extra
        .map(|record| format!("+ {} {} {}", record.name, record.record_type(), record.data))
        .collect();
    extra.sort();
    parts.extend(extra);
    parts.join(" ")
}

fn answer_text(record: &Record, asked: &str) -> String {
    assert_eq!(
        record.name.to_string(),
        asked,
        "the owner is the question's name, in its case"
    );
    let ttl = if record.record_type() == RecordType::TXT {
        28_800
    } else {
        5
    };
    assert_eq!(record.ttl, ttl, "TTL of {asked}");
    format!("{} {}", record.record_type(), record.data)
}

#[track_caller]
fn check(options: &Options, table: &Table, rows: &[(&str, &str, &str)]) {
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|(name, qtype, expected)| {
            let found = ask(options, table, name, qtype);
            (found != *expected).then(|| format!("{name} {qtype}\n  expected {expected}\n  found    {found}"))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} rows:\n{}",
        wrong.len(),
        rows.len(),
        wrong.join("\n")
    );
}

const NODATA: &str = "NOERROR ~ cluster.local.";
const NXDOMAIN: &str = "NXDOMAIN ~ cluster.local.";

#[test]
fn services_with_addresses() {
    check(
        &options(),
        &table(&samples::snapshot()),
        &[
            ("svc1.testns.svc", "A", "NOERROR A 10.0.0.1"),
            ("svc1.otherns.svc", "A", "NOERROR A 10.0.1.1"),
            ("svc1.testns.svc", "AAAA", NODATA),
            ("svc6.testns.svc", "A", NODATA),
            ("svc6.testns.svc", "AAAA", "NOERROR AAAA 1234:abcd::1"),
            ("dual.testns.svc", "A", "NOERROR A 10.0.0.4"),
            ("dual.testns.svc", "AAAA", "NOERROR AAAA 1234:abcd::4"),
            ("no-endpoints.testns.svc", "A", "NOERROR A 10.0.0.5"),
            // A Service whose Namespace object has not arrived yet answers.
            ("early.no-namespace-object.svc", "A", "NOERROR A 10.0.2.1"),
            // SRV by port, by port without underscores, and all ports of a Service.
            (
                "_http._tcp.svc1.testns.svc",
                "SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc.cluster.local. + svc1.testns.svc.cluster.local. A 10.0.0.1",
            ),
            (
                "http.tcp.svc1.testns.svc",
                "SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc.cluster.local. + svc1.testns.svc.cluster.local. A 10.0.0.1",
            ),
            (
                "svc1.testns.svc",
                "SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc.cluster.local. + svc1.testns.svc.cluster.local. A 10.0.0.1",
            ),
            (
                "two-ports.testns.svc",
                "SRV",
                "NOERROR SRV 0 50 443 two-ports.testns.svc.cluster.local. SRV 0 50 80 two-ports.testns.svc.cluster.local. \
                 + two-ports.testns.svc.cluster.local. A 10.0.0.2",
            ),
            (
                "_https._tcp.two-ports.testns.svc",
                "SRV",
                "NOERROR SRV 0 100 443 two-ports.testns.svc.cluster.local. + two-ports.testns.svc.cluster.local. A 10.0.0.2",
            ),
            (
                "unnamed.testns.svc",
                "SRV",
                "NOERROR SRV 0 100 8080 unnamed.testns.svc.cluster.local. + unnamed.testns.svc.cluster.local. A 10.0.0.3",
            ),
            (
                "_dns-udp._udp.kube-dns.kube-system.svc",
                "SRV",
                "NOERROR SRV 0 100 53 kube-dns.kube-system.svc.cluster.local. + kube-dns.kube-system.svc.cluster.local. A 10.0.0.10",
            ),
            // Dual stack: the weight counts both addresses, the records are one.
            (
                "_http._tcp.dual.testns.svc",
                "SRV",
                "NOERROR SRV 0 50 80 dual.testns.svc.cluster.local. + dual.testns.svc.cluster.local. A 10.0.0.4 \
                 + dual.testns.svc.cluster.local. AAAA 1234:abcd::4",
            ),
            // The address of a port's name is the Service's.
            ("_http._tcp.svc1.testns.svc", "A", "NOERROR A 10.0.0.1"),
            ("_http._tcp.svc1.testns.svc", "AAAA", NODATA),
            ("_http._udp.svc1.testns.svc", "SRV", NXDOMAIN),
            ("_ftp._tcp.svc1.testns.svc", "SRV", NXDOMAIN),
            ("_dns-udp._tcp.kube-dns.kube-system.svc", "SRV", NXDOMAIN),
            ("__._tcp.unnamed.testns.svc", "SRV", NXDOMAIN),
            // Endpoints have names under Services with addresses, too.
            ("172-0-0-1.svc1.testns.svc", "A", "NOERROR A 172.0.0.1"),
            ("172-0-0-2.svc1.testns.svc", "A", NXDOMAIN),
            ("svc1-pod.svc1.testns.svc", "A", NXDOMAIN),
        ],
    );
}

#[test]
fn names_that_hold_only_other_names_and_names_that_are_not() {
    check(
        &options(),
        &table(&samples::snapshot()),
        &[
            ("", "A", NODATA),
            ("svc", "A", NODATA),
            ("pod", "A", NODATA),
            ("testns.svc", "A", NODATA),
            ("testns.svc", "SRV", NODATA),
            ("emptyns.svc", "A", NODATA),
            // CoreDNS denies the next four, which exist (RFC 8020).
            ("emptyns.svc", "TXT", NODATA),
            ("_tcp.svc1.testns.svc", "A", NODATA),
            ("_tcp.hdls1.testns.svc", "SRV", NODATA),
            ("dns-version", "A", NODATA),
            ("_udp.svc1.testns.svc", "A", NXDOMAIN),
            ("_tcp.unnamed.testns.svc", "A", NXDOMAIN),
            ("_tcp.hdls-portless.testns.svc", "A", NXDOMAIN),
            ("dns", "A", NODATA),
            ("nons.svc", "A", NXDOMAIN),
            ("svc1.nons.svc", "A", NXDOMAIN),
            ("nosvc.testns.svc", "A", NXDOMAIN),
            ("svc1.testns.svc", "MX", NODATA),
            ("svc1.testns.svc", "HTTPS", NODATA),
            ("svc1.testns.svc", "ANY", NODATA),
            ("svc1.testns.svc", "TXT", NODATA),
            ("svc1.testns.svc", "PTR", NODATA),
            ("nosvc.testns.svc", "MX", NXDOMAIN),
            ("svc1.testns.kind", "A", NXDOMAIN),
            ("kind", "A", NXDOMAIN),
            ("x.y", "A", NXDOMAIN),
            ("a._http._tcp.svc1.testns.svc", "A", NXDOMAIN),
            ("a.b.svc1.testns.svc", "A", NXDOMAIN),
            // Wildcards went with CoreDNS 1.9.
            ("*.testns.svc", "A", NXDOMAIN),
            ("any.testns.svc", "A", NXDOMAIN),
            ("svc1.*.svc", "A", NXDOMAIN),
            ("svc1.testns.svc.cluster.local.", "AXFR", "REFUSED"),
            ("cluster.local.", "IXFR", "REFUSED"),
            ("example.com.", "A", "next plugin"),
            ("local.", "A", "next plugin"),
            ("xcluster.local.", "A", "next plugin"),
        ],
    );
}

#[test]
fn headless_services_and_their_endpoints() {
    const DUP: &str = "dup-name.hdls1.testns.svc.cluster.local.";
    let srv = format!(
        "NOERROR SRV 0 16 80 172-0-0-2.hdls1.testns.svc.cluster.local. SRV 0 16 80 172-0-0-3.hdls1.testns.svc.cluster.local. \
         SRV 0 16 80 5678-abcd--0.hdls1.testns.svc.cluster.local. SRV 0 16 80 5678-abcd--1.hdls1.testns.svc.cluster.local. \
         SRV 0 16 80 {DUP} + 172-0-0-2.hdls1.testns.svc.cluster.local. A 172.0.0.2 \
         + 172-0-0-3.hdls1.testns.svc.cluster.local. A 172.0.0.3 \
         + 5678-abcd--0.hdls1.testns.svc.cluster.local. AAAA 5678:abcd:: \
         + 5678-abcd--1.hdls1.testns.svc.cluster.local. AAAA 5678:abcd::1 + {DUP} A 172.0.0.4 + {DUP} A 172.0.0.5"
    );
    check(
        &options(),
        &table(&samples::snapshot()),
        &[
            (
                "hdls1.testns.svc",
                "A",
                "NOERROR A 172.0.0.2 A 172.0.0.3 A 172.0.0.4 A 172.0.0.5",
            ),
            (
                "hdls1.testns.svc",
                "AAAA",
                "NOERROR AAAA 5678:abcd:: AAAA 5678:abcd::1",
            ),
            ("_http._tcp.hdls1.testns.svc", "SRV", &srv),
            ("hdls1.testns.svc", "SRV", &srv),
            (
                "_http._tcp.hdls1.testns.svc",
                "A",
                "NOERROR A 172.0.0.2 A 172.0.0.3 A 172.0.0.4 A 172.0.0.5",
            ),
            ("_ftp._tcp.hdls1.testns.svc", "SRV", NXDOMAIN),
            ("172-0-0-2.hdls1.testns.svc", "A", "NOERROR A 172.0.0.2"),
            (
                "5678-abcd--1.hdls1.testns.svc",
                "AAAA",
                "NOERROR AAAA 5678:abcd::1",
            ),
            (
                "5678-abcd--0.hdls1.testns.svc",
                "AAAA",
                "NOERROR AAAA 5678:abcd::",
            ),
            ("172-0-0-2.hdls1.testns.svc", "AAAA", NODATA),
            // Two endpoints of one hostname; an endpoint with a hostname has no other name.
            (
                "dup-name.hdls1.testns.svc",
                "A",
                "NOERROR A 172.0.0.4 A 172.0.0.5",
            ),
            ("172-0-0-4.hdls1.testns.svc", "A", NXDOMAIN),
            ("172-0-0-6.hdls1.testns.svc", "A", NXDOMAIN),
            ("172-000-0-2.hdls1.testns.svc", "A", NXDOMAIN),
            (
                "172-0-0-2.hdls1.testns.svc",
                "SRV",
                "NOERROR SRV 0 100 80 172-0-0-2.hdls1.testns.svc.cluster.local. \
                 + 172-0-0-2.hdls1.testns.svc.cluster.local. A 172.0.0.2",
            ),
            ("hdls-unready.testns.svc", "A", NXDOMAIN),
            ("_http._tcp.hdls-unready.testns.svc", "SRV", NXDOMAIN),
            ("hdls-portless.testns.svc", "A", "NOERROR A 172.0.0.20"),
            ("hdls-portless.testns.svc", "SRV", NODATA),
            ("172-0-0-20.hdls-portless.testns.svc", "A", "NOERROR A 172.0.0.20"),
            (
                "hdls-two-ports.testns.svc",
                "SRV",
                "NOERROR SRV 0 25 443 a.hdls-two-ports.testns.svc.cluster.local. SRV 0 25 443 b.hdls-two-ports.testns.svc.cluster.local. \
                 SRV 0 25 80 a.hdls-two-ports.testns.svc.cluster.local. SRV 0 25 80 b.hdls-two-ports.testns.svc.cluster.local. \
                 + a.hdls-two-ports.testns.svc.cluster.local. A 172.0.0.40 + b.hdls-two-ports.testns.svc.cluster.local. A 172.0.0.41",
            ),
            ("b.hdls-two-ports.testns.svc", "A", "NOERROR A 172.0.0.41"),
            (
                "_http._tcp.hdls-dual.testns.svc",
                "SRV",
                "NOERROR SRV 0 50 80 host.hdls-dual.testns.svc.cluster.local. \
                 + host.hdls-dual.testns.svc.cluster.local. A 172.0.0.50 + host.hdls-dual.testns.svc.cluster.local. AAAA 5678:abcd::50",
            ),
            ("host.hdls-dual.testns.svc", "A", "NOERROR A 172.0.0.50"),
            ("host.hdls-dual.testns.svc", "AAAA", "NOERROR AAAA 5678:abcd::50"),
        ],
    );
}

#[test]
fn a_name_that_endpoints_share_is_told_once_with_each_port_and_has_the_addresses_of_all() {
    let mut snapshot = samples::snapshot();
    let http = [("http", 80)];
    snapshot.apply(model::Change::Service(samples::headless(
        "testns", "shared", &http,
    )));
    let one = [("172.1.0.1", Some("x"), None), ("172.1.0.3", None, Some("p"))];
    let other = [("172.1.0.2", Some("x"), None), ("172.1.0.3", None, Some("q"))];
    let both = [("admin", 81), ("http", 80)];
    for slice in [
        samples::slice("testns", "shared-a", "shared", &http, &one),
        samples::slice("testns", "shared-b", "shared", &both, &other),
    ] {
        snapshot.apply(model::Change::EndpointSlice(slice));
    }
    let table = table(&snapshot);
    let by_pods = Options {
        endpoint_names: EndpointNames::Pod,
        ..options()
    };
    let all = "NOERROR SRV 0 16 80 172-1-0-3.Z SRV 0 16 80 x.Z SRV 0 16 81 172-1-0-3.Z SRV 0 16 81 x.Z \
               + 172-1-0-3.Z A 172.1.0.3 + x.Z A 172.1.0.1 + x.Z A 172.1.0.2";
    let admin = "NOERROR SRV 0 50 81 172-1-0-3.Z SRV 0 50 81 x.Z + 172-1-0-3.Z A 172.1.0.3 + x.Z A 172.1.0.2";
    let one_name = "NOERROR SRV 0 33 80 x.Z SRV 0 33 81 x.Z + x.Z A 172.1.0.1 + x.Z A 172.1.0.2";
    let pods = "NOERROR SRV 0 16 80 p.Z SRV 0 16 80 q.Z SRV 0 16 80 x.Z SRV 0 16 81 q.Z SRV 0 16 81 x.Z \
                + p.Z A 172.1.0.3 + q.Z A 172.1.0.3 + x.Z A 172.1.0.1 + x.Z A 172.1.0.2";
    for rotation in 0..7 {
        for (options, name, expected) in [
            (&options(), "shared.testns.svc", all),
            (&options(), "_admin._tcp.shared.testns.svc", admin),
            (&options(), "x.shared.testns.svc", one_name),
            (&by_pods, "shared.testns.svc", pods),
        ] {
            let expected = expected.replace("Z", "shared.testns.svc.cluster.local.");
            let found = ask_rotated(options, &table, name, "SRV", rotation);
            assert_eq!(found, expected, "{name} by {rotation}");
        }
    }
}

#[test]
fn external_names_are_aliases_and_nothing_is_below_them() {
    check(
        &options(),
        &table(&samples::snapshot()),
        &[
            (
                "external.testns.svc",
                "CNAME",
                "NOERROR CNAME ext.interwebs.test.",
            ),
            ("external.testns.svc", "A", "follow ext.interwebs.test."),
            ("external.testns.svc", "AAAA", "follow ext.interwebs.test."),
            (
                "external-internal.testns.svc",
                "A",
                "follow svc1.testns.svc.cluster.local.",
            ),
            ("external.testns.svc", "SRV", NODATA),
            ("external.testns.svc", "TXT", NODATA),
            ("external-ip.testns.svc", "A", NXDOMAIN),
            ("_http._tcp.external.testns.svc", "SRV", NXDOMAIN),
            ("_tcp.external.testns.svc", "A", NXDOMAIN),
            ("x.external.testns.svc", "A", NXDOMAIN),
        ],
    );
}

#[test]
fn the_zone_itself() {
    let soa =
        format!("NOERROR SOA ns.dns.cluster.local. hostmaster.cluster.local. {SERIAL} 7200 1800 86400 5");
    let mut table = table(&samples::snapshot());
    let names = [
        ("", "SOA", soa.as_str()),
        (
            "",
            "NS",
            "NOERROR NS ns.dns.cluster.local. + ns.dns.cluster.local. A 192.0.2.7 + ns.dns.cluster.local. AAAA 2001:db8::7",
        ),
        ("", "AAAA", NODATA),
        ("", "SRV", NODATA),
        ("ns.dns", "A", "NOERROR A 192.0.2.7"),
        ("ns.dns", "AAAA", "NOERROR AAAA 2001:db8::7"),
        ("ns.dns", "TXT", NODATA),
        ("x.ns.dns", "A", NXDOMAIN),
        ("y.dns", "A", NXDOMAIN),
        ("svc1.testns.svc", "SOA", NODATA),
        ("svc1.testns.svc", "NS", NODATA),
        ("dns-version", "TXT", "NOERROR TXT 1.1.0"),
        ("x.dns-version", "TXT", NXDOMAIN),
    ];
    check(&options(), &table, &names);
    // A machine that has the cluster DNS address is called by its Service.
    table.local_addresses = vec!["10.0.0.10".parse().expect("address")];
    let own = "NOERROR NS kube-dns.kube-system.svc.cluster.local. + kube-dns.kube-system.svc.cluster.local. A 10.0.0.10";
    check(&options(), &table, &[("", "NS", own)]);
    // A pod is called by what its Service answers: the ClusterIP, or its own address where that is headless.
    for (address, expected) in [
        (
            "172.0.0.1",
            "NOERROR NS svc1.otherns.svc.cluster.local. NS svc1.testns.svc.cluster.local. \
             + svc1.otherns.svc.cluster.local. A 10.0.1.1 + svc1.testns.svc.cluster.local. A 10.0.0.1",
        ),
        (
            "172.0.0.4",
            "NOERROR NS dup-name.hdls1.testns.svc.cluster.local. + dup-name.hdls1.testns.svc.cluster.local. A 172.0.0.4",
        ),
    ] {
        table.local_addresses = vec![address.parse().expect("address")];
        check(&options(), &table, &[("", "NS", expected)]);
    }
}

#[test]
fn addresses_lead_back_to_names() {
    let table = table(&samples::snapshot());
    let reverse = |address: &str| Name::reverse(address.parse::<IpAddr>().expect("address")).to_string();
    let rows = [
        (reverse("10.0.0.1"), "NOERROR PTR svc1.testns.svc.cluster.local."),
        (
            reverse("1234:abcd::1"),
            "NOERROR PTR svc6.testns.svc.cluster.local.",
        ),
        (reverse("10.0.0.4"), "NOERROR PTR dual.testns.svc.cluster.local."),
        // One name for each Service that has the endpoint; two slices that tell of it make one name.
        (
            reverse("172.0.0.1"),
            "NOERROR PTR 172-0-0-1.svc1.otherns.svc.cluster.local. PTR 172-0-0-1.svc1.testns.svc.cluster.local.",
        ),
        (
            reverse("172.0.0.3"),
            "NOERROR PTR 172-0-0-3.hdls1.testns.svc.cluster.local.",
        ),
        (
            reverse("172.0.0.4"),
            "NOERROR PTR dup-name.hdls1.testns.svc.cluster.local.",
        ),
        (
            reverse("5678:abcd::1"),
            "NOERROR PTR 5678-abcd--1.hdls1.testns.svc.cluster.local.",
        ),
        (reverse("172.0.0.6"), "NXDOMAIN ~ in-addr.arpa."),
        (reverse("9.9.9.9"), "NXDOMAIN ~ in-addr.arpa."),
        (reverse("fd00::1"), "NXDOMAIN ~ ip6.arpa."),
        ("1.0.0.in-addr.arpa.".to_owned(), "NXDOMAIN ~ in-addr.arpa."),
        // CoreDNS denies the next three, which exist (RFC 8020).
        ("0.0.10.in-addr.arpa.".to_owned(), "NOERROR ~ in-addr.arpa."),
        ("172.in-addr.arpa.".to_owned(), "NOERROR ~ in-addr.arpa."),
        ("d.c.b.a.4.3.2.1.ip6.arpa.".to_owned(), "NOERROR ~ ip6.arpa."),
        ("3.0.10.in-addr.arpa.".to_owned(), "NXDOMAIN ~ in-addr.arpa."),
        ("x.0.0.10.in-addr.arpa.".to_owned(), "NXDOMAIN ~ in-addr.arpa."),
        ("01.0.0.10.in-addr.arpa.".to_owned(), "NXDOMAIN ~ in-addr.arpa."),
        ("1.1.0.0.10.in-addr.arpa.".to_owned(), "NXDOMAIN ~ in-addr.arpa."),
        ("300.0.0.10.in-addr.arpa.".to_owned(), "NXDOMAIN ~ in-addr.arpa."),
    ];
    let rows: Vec<_> = rows
        .iter()
        .map(|(name, expected)| (name.as_str(), "PTR", *expected))
        .collect();
    check(&options(), &table, &rows);
    let svc1 = reverse("10.0.0.1");
    check(
        &options(),
        &table,
        &[
            (&svc1, "A", "NOERROR ~ in-addr.arpa."),
            ("in-addr.arpa.", "PTR", "NOERROR ~ in-addr.arpa."),
        ],
    );
}

#[test]
fn pods_by_mode() {
    let table = table(&samples::snapshot());
    for (pods, rows) in [
        (
            PodMode::Disabled,
            [
                ("172-0-0-3.testns.pod", "A", NXDOMAIN),
                ("1-2-3-4.testns.pod", "A", NXDOMAIN),
                ("172-0-0-50.testns.pod", "A", NXDOMAIN),
                ("5678-abcd--50.testns.pod", "AAAA", NXDOMAIN),
                ("testns.pod", "A", NXDOMAIN),
                ("nons.pod", "A", NXDOMAIN),
                ("1-2-3-4.nons.pod", "A", NXDOMAIN),
                ("web.testns.pod", "A", NXDOMAIN),
                ("x.1-2-3-4.testns.pod", "A", NXDOMAIN),
                ("1-2-3-4.testns.pod", "AAAA", NXDOMAIN),
            ],
        ),
        (
            PodMode::Insecure,
            [
                ("172-0-0-3.testns.pod", "A", "NOERROR A 172.0.0.3"),
                ("1-2-3-4.testns.pod", "A", "NOERROR A 1.2.3.4"),
                ("172-0-0-50.testns.pod", "A", "NOERROR A 172.0.0.50"),
                ("5678-abcd--50.testns.pod", "AAAA", "NOERROR AAAA 5678:abcd::50"),
                ("testns.pod", "A", NODATA),
                ("nons.pod", "A", NXDOMAIN),
                ("1-2-3-4.nons.pod", "A", NXDOMAIN),
                ("web.testns.pod", "A", NXDOMAIN),
                ("x.1-2-3-4.testns.pod", "A", NXDOMAIN),
                ("1-2-3-4.testns.pod", "AAAA", NODATA),
            ],
        ),
        (
            PodMode::Verified,
            [
                ("172-0-0-3.testns.pod", "A", "NOERROR A 172.0.0.3"),
                ("1-2-3-4.testns.pod", "A", NXDOMAIN),
                ("172-0-0-50.testns.pod", "A", "NOERROR A 172.0.0.50"),
                // CoreDNS serves only the first family of a pod.
                ("5678-abcd--50.testns.pod", "AAAA", "NOERROR AAAA 5678:abcd::50"),
                ("testns.pod", "A", NODATA),
                ("nons.pod", "A", NXDOMAIN),
                ("172-0-0-3.otherns.pod", "A", NXDOMAIN),
                ("web-0.testns.pod", "A", NXDOMAIN),
                ("x.172-0-0-3.testns.pod", "A", NXDOMAIN),
                ("172-0-0-3.testns.pod", "AAAA", NODATA),
            ],
        ),
    ] {
        check(&Options { pods, ..options() }, &table, &rows);
    }
}

#[test]
fn the_case_of_the_question_comes_back() {
    check(
        &options(),
        &table(&samples::snapshot()),
        &[
            ("SVC1.TestNS.svc.cluster.local.", "A", "NOERROR A 10.0.0.1"),
            (
                "svc1.testns.svc.Cluster.LOCAL.",
                "AAAA",
                "NOERROR ~ Cluster.LOCAL.",
            ),
            (
                "NoSvc.testns.svc.CLUSTER.local.",
                "A",
                "NXDOMAIN ~ CLUSTER.local.",
            ),
            (
                "DUP-name.HDLS1.testns.svc",
                "A",
                "NOERROR A 172.0.0.4 A 172.0.0.5",
            ),
            (
                "_HTTP._TCP.svc1.testns.svc",
                "SRV",
                "NOERROR SRV 0 100 80 svc1.testns.svc.cluster.local. + svc1.testns.svc.cluster.local. A 10.0.0.1",
            ),
        ],
    );
}

#[test]
fn endpoints_by_the_names_of_their_pods() {
    let by_pod = Options {
        endpoint_names: EndpointNames::Pod,
        ..options()
    };
    check(
        &by_pod,
        &table(&samples::snapshot()),
        &[
            ("web-0.hdls1.testns.svc", "A", "NOERROR A 172.0.0.3"),
            ("172-0-0-3.hdls1.testns.svc", "A", NXDOMAIN),
            ("172-0-0-2.hdls1.testns.svc", "A", "NOERROR A 172.0.0.2"),
            ("svc1-pod.svc1.testns.svc", "A", "NOERROR A 172.0.0.1"),
            (
                "3.0.0.172.in-addr.arpa.",
                "PTR",
                "NOERROR PTR web-0.hdls1.testns.svc.cluster.local.",
            ),
        ],
    );
}

#[test]
fn before_the_lists_are_complete_absence_is_a_failure_and_presence_an_answer() {
    let mut snapshot = Snapshot::default();
    for change in samples::changes() {
        if !matches!(change, model::Change::Synced(_)) {
            snapshot.apply(change);
        }
    }
    check(
        &options(),
        &table(&snapshot),
        &[
            ("svc1.testns.svc", "A", "NOERROR A 10.0.0.1"),
            ("nosvc.testns.svc", "A", "SERVFAIL ~ cluster.local."),
            ("9.9.9.9.in-addr.arpa.", "PTR", "SERVFAIL ~ in-addr.arpa."),
            ("dns-version", "TXT", "NOERROR TXT 1.1.0"),
        ],
    );
}

#[test]
fn pods_that_were_never_listed_are_not_denied() {
    let mut snapshot = Snapshot::default();
    for change in samples::changes() {
        if !matches!(
            change,
            model::Change::Synced(model::Kind::Pod) | model::Change::Pod(_)
        ) {
            snapshot.apply(change);
        }
    }
    check(
        &Options {
            pods: PodMode::Verified,
            ..options()
        },
        &table(&snapshot),
        &[
            ("172-0-0-3.testns.pod", "A", "SERVFAIL ~ cluster.local."),
            ("testns.pod", "A", NODATA),
            ("nosvc.testns.svc", "A", NXDOMAIN),
        ],
    );
}

#[test]
fn a_denial_falls_through_where_the_corefile_says_so() {
    let reverse = ["in-addr.arpa", "ip6.arpa"]
        .map(|zone| Name::parse(zone).expect("zone"))
        .into();
    let kubeadm = Options {
        fallthrough: Fallthrough(reverse),
        ..options()
    };
    check(
        &kubeadm,
        &table(&samples::snapshot()),
        &[
            ("9.9.9.9.in-addr.arpa.", "PTR", "next plugin"),
            (
                "1.0.0.10.in-addr.arpa.",
                "PTR",
                "NOERROR PTR svc1.testns.svc.cluster.local.",
            ),
            ("nosvc.testns.svc", "A", NXDOMAIN),
        ],
    );
}

//! Rules as a Corefile writes them; questions as the other plugins see them; answers as the client sees them.

use super::*;
use crate::answer::{Opt, Owner, Section, Writer};
use crate::corefile::Corefile;
use crate::name::Name;
use crate::question::{query_packet, rtype};

fn rules(lines: &str) -> Vec<Rule> {
    let text = format!(". {{\n {lines}\n}}");
    let corefile =
        Corefile::parse("Corefile", &text, &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"));
    corefile.blocks[0].rewrites.clone()
}

fn wire(text: &str) -> Vec<u8> {
    Name::parse(text).expect("name").wire().to_vec()
}

/// `NAME TYPE` of the changed question, `-` where no rule fits.
fn changed(rules: &[Rule], name: &str, qtype: u16) -> String {
    let packet = query_packet(7, &wire(name), qtype);
    let query = Query::parse(&packet).expect("query");
    match rewrite(rules, &query) {
        None => "-".to_owned(),
        Some(Err(error)) => error.to_string(),
        Some(Ok(rewritten)) => {
            let changed = Query::parse(&rewritten.packet).expect("a query");
            format!("{} {}", Name::from_lower_wire(changed.name()), changed.qtype)
        }
    }
}

#[test]
fn questions_are_changed_by_the_rules_in_their_order() {
    for (lines, name, expected) in [
        ("rewrite name a.example b.example", "A.example", "b.example. 1"),
        ("rewrite name a.example b.example", "x.a.example", "-"),
        (
            "rewrite name exact a.example. b.example.",
            "a.example",
            "b.example. 1",
        ),
        ("rewrite name prefix a- b-", "a-1.example", "b-1.example. 1"),
        ("rewrite name prefix a- b-", "x.a-1.example", "-"),
        (
            "rewrite name suffix .example .svc.cluster.local",
            "web.ns.example",
            "web.ns.svc.cluster.local. 1",
        ),
        ("rewrite name suffix example test", "a.badexample", "a.badtest. 1"),
        (
            "rewrite name substring service.us.example.org service.us.consul",
            "ftp.service.us.example.org",
            "ftp.service.us.consul. 1",
        ),
        (
            "rewrite name regex (.*)-(us-west-1)\\.example\\.org {1}.service.{2}.consul",
            "ftp-us-west-1.example.org",
            "ftp.service.us-west-1.consul. 1",
        ),
        ("rewrite name regex ^a(b)?c {1}x.example", "ac", "x.example. 1"),
        ("rewrite type A AAAA", "a.example", "a.example. 28"),
        ("rewrite type ANY HINFO", "a.example", "-"),
        ("rewrite ttl a.example 5", "a.example", "a.example. 1"),
        ("rewrite ttl suffix .example 5", "a.test", "-"),
        // The first rule that fits is the last, unless it says otherwise.
        (
            "rewrite name a.example b.example\n rewrite name b.example c.example",
            "a.example",
            "b.example. 1",
        ),
        (
            "rewrite continue name a.example b.example\n rewrite stop name b.example c.example\n rewrite type A TXT",
            "a.example",
            "c.example. 1",
        ),
        (
            "rewrite continue {\n name regex (.*)\\.example\\.$ {1}.test.\n answer auto\n}\n rewrite type A TXT",
            "a.example",
            "a.test. 16",
        ),
        (
            "rewrite name regex (.*) {1}..{1}",
            "a.example",
            "rewritten to \"a.example...a.example.\", which is no domain name",
        ),
    ] {
        assert_eq!(changed(&rules(lines), name, rtype::A), expected, "{lines}");
    }
    assert_eq!(changed(&[], "a.example", rtype::A), "-");
}

/// Answers the changed question with an alias for `to`, an address of `to`, a server below the question's name, and
/// gives `OWNER TTL VALUE` of each record, as the client sees them.
fn answered(lines: &str, asked: &str, to: &str) -> Vec<String> {
    let rules = rules(lines);
    let mut packet = query_packet(7, &wire(asked), rtype::A);
    packet[13] = packet[13].to_ascii_uppercase();
    let query = Query::parse(&packet).expect("query");
    let rewritten = rewrite(&rules, &query).expect("a rule fits").expect("a name");
    let changed = Query::parse(&rewritten.packet).expect("a query");
    let mut out = Vec::new();
    let mut writer = Writer::start(&mut out, &changed, 65_535);
    writer.name(Section::Answer, Owner::QUESTION, rtype::CNAME, 60, &wire(to));
    writer.address(
        Section::Answer,
        Owner::Literal(&wire(to)),
        [1, 2, 3, 4].into(),
        60,
    );
    let server = [b"\x02ns", changed.name()].concat();
    writer.name(Section::Authority, Owner::QUESTION, rtype::NS, 60, &server);
    writer.finish(rcode::NOERROR, true);
    rewritten.restore(&query, 512, &mut out);
    assert_eq!(
        out[..query.question_end][12..],
        packet[12..],
        "the client's own question"
    );
    let reply = Reply::read(&out, &query).expect("a reply");
    let text = reply.sections.iter().flatten().map(|record| {
        let value = record
            .value()
            .map(|value| NameText::of(value).as_str().to_owned());
        let owner = NameText::of(&record.owner).as_str().to_ascii_lowercase();
        format!("{owner} {} {}", record.ttl, value.unwrap_or_default())
    });
    text.collect()
}

#[test]
fn answers_are_changed_back() {
    for (lines, asked, to, expected) in [
        (
            "rewrite name a.example b.test",
            "a.example",
            "x.b.test",
            [
                "a.example. 60 x.a.example.",
                "x.a.example. 60 ",
                "a.example. 60 ns.a.example.",
            ],
        ),
        (
            "rewrite name suffix .example .test answer auto",
            "a.example",
            "other.test",
            [
                "a.example. 60 other.example.",
                "other.example. 60 ",
                "a.example. 60 ns.a.example.",
            ],
        ),
        (
            "rewrite name suffix .example .test",
            "a.example",
            "other.test",
            [
                "a.test. 60 other.test.",
                "other.test. 60 ",
                "a.test. 60 ns.a.test.",
            ],
        ),
        (
            "rewrite name regex (.*)\\.example\\. {1}.test. answer name (.*)\\.test\\. {1}.example. answer value x x",
            "a.example",
            "other.test",
            [
                "a.example. 60 other.test.",
                "other.example. 60 ",
                "a.example. 60 ns.a.test.",
            ],
        ),
        (
            "rewrite name regex (.*)\\.example\\. {1}.test. answer value ^ns\\.(.*)\\.test\\. {1}.example.",
            "a.example",
            "other.test",
            [
                "a.test. 60 other.test.",
                "other.test. 60 ",
                "a.test. 60 a.example.",
            ],
        ),
        (
            "rewrite ttl a.example 5-30",
            "a.example",
            "b.test",
            [
                "a.example. 30 b.test.",
                "b.test. 30 ",
                "a.example. 30 ns.a.example.",
            ],
        ),
        (
            "rewrite ttl regex .* 300",
            "a.example",
            "b.test",
            [
                "a.example. 300 b.test.",
                "b.test. 300 ",
                "a.example. 300 ns.a.example.",
            ],
        ),
        // Two steps there, two steps back.
        (
            "rewrite continue name a.example b.example\n rewrite name b.example c.example",
            "a.example",
            "x.test",
            [
                "a.example. 60 x.test.",
                "x.test. 60 ",
                "a.example. 60 ns.a.example.",
            ],
        ),
    ] {
        assert_eq!(answered(lines, asked, to), expected, "{lines}");
    }
}

#[test]
fn edns_goes_along_and_an_unreadable_response_is_a_failure() {
    let rules = rules("rewrite name a.example longer.name.example");
    let mut packet = query_packet(7, &wire("a.example"), rtype::A);
    let opt = Opt {
        udp_size: 1232,
        dnssec_ok: true,
        ..Opt::default()
    };
    opt.add_to(&mut packet);
    let query = Query::parse(&packet).expect("query");
    let rewritten = rewrite(&rules, &query).expect("a rule fits").expect("a name");
    let changed = Query::parse(&rewritten.packet).expect("a query");
    assert_eq!(changed.edns, query.edns);
    let mut out = vec![1, 2, 3];
    rewritten.restore(&query, 512, &mut out);
    assert_eq!((out[3] & 15, out.len()), (2, packet.len()));
}

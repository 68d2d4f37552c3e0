//! Templates as a Corefile writes them, through to records.

use super::*;
use crate::answer::code_of;
use crate::corefile::Corefile;
use crate::question::query_packet;
use crate::reply::Reply;

fn template(text: &str) -> Templates {
    let text = format!(". {{\n template {text}\n}}");
    let corefile =
        Corefile::parse("Corefile", &text, &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"));
    Templates::new(corefile.blocks[0].templates[0].clone())
}

/// `CODE; OWNER TTL TYPE DATA…; …` of all sections, or what else became of the query.
fn ask(template: &Templates, name: &str, qtype: u16) -> String {
    let packet = query_packet(1, Name::parse(name).expect("name").wire(), qtype);
    let query = Query::parse(&packet).expect("query");
    let mut out = Vec::new();
    let shape = Shape {
        limit: 512,
        rotation: 0,
    };
    match template.answer(&query, [192, 0, 2, 1].into(), shape, &mut out) {
        Verdict::NotOurs => "next".to_owned(),
        Verdict::Follow(target, ttl) => format!("alias {target} {ttl}"),
        Verdict::Failed(error) => {
            assert_eq!(code_of(&out), rcode::SERVFAIL);
            model::with_causes(&error).to_string()
        }
        Verdict::Answered => {
            let reply = Reply::read(&out, &query).expect("a reply");
            let code = crate::mnemonic::code_name(code_of(&out)).into_owned();
            let records = reply.sections.iter().flatten().map(|record| {
                let owner = NameText::of(&record.owner);
                let data = match record.value() {
                    Some(value) => NameText::of(value).as_str().to_owned(),
                    None => record
                        .data
                        .iter()
                        .map(u8::to_string)
                        .collect::<Vec<_>>()
                        .join("."),
                };
                format!(
                    "; {} {} {} {data}",
                    owner.as_str(),
                    record.ttl,
                    type_name(record.rtype)
                )
            });
            std::iter::once(code).chain(records).collect()
        }
    }
}

const IP: &str = "IN A example {\n match (^|[.])ip-(?P<a>[0-9]+)-(?P<b>[0-9]+)-(?P<c>[0-9]+)-(?P<d>[0-9]+)[.]example[.]$\n \
                  answer \"{{ .Name }} 60 IN A {{ .Group.a }}.{{ .Group.b }}.{{.Group.c}}.{{ index .Group \"d\" }}\"\n fallthrough\n}";

#[test]
fn questions_become_answers() {
    let ip = IP.replace("\"d\"", "\\\"d\\\"");
    let hex = "IN A example {\n match \"^ip0a(?P<b>[a-f0-9]{2,3})(?P<c>[a-f0-9]{2})(?P<d>[a-f0-9]{2})[.]example[.]$\"\n \
               answer \"{{ .Name }} 60 IN A 10.{{ parseInt .Group.b 16 8 }}.{{ parseInt .Group.c 16 8 }}.{{ parseInt (index .Match 3) 16 8 }}\"\n}";
    let two = "IN ANY example {\n match ^a\\.(.*)$\n match ^b\\.(?P<tail>.*)$\n answer \"{{ .Name }} 60 TXT {{ .Type }} {{ .Class }} \
               {{ .Zone }} {{ .Remote }} [{{ index .Match 1 }}] [{{ .Group.tail }}]\"\n}";
    let all = "IN MX example {\n answer \"{{ .Name }} 60 IN MX 10 m.{{ .Name }}\"\n authority \"example. 60 IN NS ns.example.\"\n \
               additional \"m.{{ .Name }} 60 IN A 10.0.0.1\"\n additional \"ns.example. 60 IN A 10.0.0.2\"\n}";
    let denial = "ANY ANY invalid {\n rcode NXDOMAIN\n authority \"invalid. 60 {{ .Class }} SOA ns. host. (1 60 60 60 60)\"\n}";
    let alias = "IN ANY foogle.example {\n answer \"foogle.example 7 IN CNAME Google.example\"\n}";
    for (text, name, qtype, expected) in [
        (
            ip.as_str(),
            "x.ip-10-1-2-3.example",
            rtype::A,
            "NOERROR; x.ip-10-1-2-3.example. 60 A 10.1.2.3",
        ),
        (&ip, "ip-10-1-2-3.example", rtype::AAAA, "next"),
        (&ip, "ip-10-1-2.example", rtype::A, "next"),
        (&ip, "ip-10-1-2-3.test", rtype::A, "next"),
        (
            &ip,
            "ip-10-1-2-300.example",
            rtype::A,
            "a template made \"ip-10-1-2-300.example. 60 IN A 10.1.2.300\": \"10.1.2.300\" is no IPv4 address",
        ),
        (
            hex,
            "ip0a7b7c7d.example",
            rtype::A,
            "NOERROR; ip0a7b7c7d.example. 60 A 10.123.124.125",
        ),
        (
            hex,
            "ip0afff7c7d.example",
            rtype::A,
            "parseInt of \"fff\" in a template",
        ),
        (hex, "other.example", rtype::A, "SERVFAIL"),
        (
            two,
            "b.x.example",
            rtype::TXT,
            "NOERROR; b.x.example. 60 TXT 3.84.88.84.2.73.78.8.101.120.97.109.112.108.101.46.9.49.57.50.46.48.46.50.46.49.12.91.120\
             .46.101.120.97.109.112.108.101.46.93.12.91.120.46.101.120.97.109.112.108.101.46.93",
        ),
        (
            all,
            "a.example",
            rtype::MX,
            "NOERROR; a.example. 60 MX m.a.example.; example. 60 NS ns.example.; m.a.example. 60 A 10.0.0.1; ns.example. 60 A 10.0.0.2",
        ),
        (
            all,
            "a.example",
            rtype::ANY,
            "NOERROR; a.example. 60 MX m.a.example.; example. 60 NS ns.example.; m.a.example. 60 A 10.0.0.1; ns.example. 60 A 10.0.0.2",
        ),
        (
            denial,
            "x.invalid",
            rtype::A,
            "NXDOMAIN; invalid. 60 SOA 2.110.115.0.4.104.111.115.116.0.0.0.0.1.0.0.0.60.0.0.0.60.0.0.0.60.0.0.0.60",
        ),
        (alias, "foogle.example", rtype::A, "alias google.example. 7"),
        (
            alias,
            "foogle.example",
            rtype::CNAME,
            "NOERROR; foogle.example. 7 CNAME Google.example.",
        ),
        ("IN AAAA {\n rcode NOERROR\n}", "any.name", rtype::AAAA, "NOERROR"),
        (
            "IN ANY {\n rcode SERVFAIL\n answer \"x A 1.1.1.1\"\n}",
            "any.name",
            rtype::A,
            "SERVFAIL",
        ),
    ] {
        assert_eq!(ask(&template(text), name, qtype), expected, "{text}");
    }
}

#[test]
fn spaces_around_an_action_are_cut_where_it_says_so() {
    let template = template(
        "IN A {\n answer \"{{ .Name }} 60 IN A 10.0.0.  {{- index .Match 0 -}}  1\"\n match ^(.)\n}",
    );
    assert_eq!(
        ask(&template, "7.example", rtype::A),
        "NOERROR; 7.example. 60 A 10.0.0.71"
    );
}

#[test]
fn what_is_done_is_counted() {
    let template = template(
        "IN A {\n match ^(?P<x>.*)[.]a[.]$\n answer \"{{ .Name }} A {{ .Group.x }}\"\n fallthrough\n}",
    );
    for name in ["1.1.1.1.a", "x.a", "x.b"] {
        ask(&template, name, rtype::A);
    }
    let counts = [&template.matched, &template.failed].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(counts, [2, 1]);
}

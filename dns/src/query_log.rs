//! The `log` plugin: one line per query, of the classes and in the form that the Corefile wants.

use std::fmt::Write;

use crate::chain::Client;
use crate::metrics::{Event, Transport};
use crate::mnemonic::{code_name, type_name};
use crate::name::Name;
use crate::presentation::NameText;
use crate::question::{Query, flag, flags_of, rcode};

/// CoreDNS's own format, which `{common}` stands for.
const COMMON: &str = "{remote}:{port} - {>id} \"{type} {class} {name} {proto} {size} {>do} {>bufsize}\" {rcode} {>rflags} \
                      {rsize} {duration}";
/// `{combined}`: the same with the opcode.
const COMBINED: &str = "{remote}:{port} - {>id} \"{type} {class} {name} {proto} {size} {>do} {>bufsize}\" {rcode} {>rflags} \
                        {rsize} {duration} {>opcode}";
/// What stands for a value that is not there.
const EMPTY: &str = "-";

/// Which queries are logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The names; the first rule that covers a name decides.
    pub zones: Vec<Name>,
    /// The classes of answers.
    pub classes: Classes,
    /// The form of the line. Default: fields.
    pub format: Option<Format>,
}

/// Classes of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Classes {
    /// Class `success`: NOERROR with answers.
    pub success: bool,
    /// Class `denial`: NXDOMAIN and NODATA.
    pub denial: bool,
    /// Class `error`: SERVFAIL, NOTIMP, REFUSED and the like.
    pub error: bool,
}

/// A line with places to fill in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Format(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Type,
    Class,
    Name,
    Proto,
    Remote,
    Port,
    Size,
    Id,
    Opcode,
    DnssecOk,
    BufferSize,
    Code,
    AnswerFlags,
    AnswerSize,
    Duration,
    /// Of CoreDNS's, and not known here: the server's own address, metadata.
    Absent,
}

/// The fields by name.
const FIELDS: [(&str, Field); 15] = [
    ("type", Field::Type),
    ("class", Field::Class),
    ("name", Field::Name),
    ("proto", Field::Proto),
    ("remote", Field::Remote),
    ("port", Field::Port),
    ("size", Field::Size),
    (">id", Field::Id),
    (">opcode", Field::Opcode),
    (">do", Field::DnssecOk),
    (">bufsize", Field::BufferSize),
    ("rcode", Field::Code),
    (">rflags", Field::AnswerFlags),
    ("rsize", Field::AnswerSize),
    ("duration", Field::Duration),
];

impl Classes {
    /// All of them.
    pub const ALL: Self = Self {
        success: true,
        denial: true,
        error: true,
    };

    fn covers(self, code: u16, out: &[u8]) -> bool {
        let answers = out.get(6..8).is_some_and(|count| count != [0, 0]);
        match code {
            rcode::NOERROR if answers => self.success,
            rcode::NOERROR | rcode::NXDOMAIN => self.denial,
            _ => self.error,
        }
    }
}

impl Format {
    /// Reads a format. Braces around something else are text, as in CoreDNS.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.replace("{common}", COMMON).replace("{combined}", COMBINED);
        let (mut pieces, mut literal, mut rest) = (Vec::new(), String::new(), text.as_str());
        while let Some((front, tail)) = rest.split_once('{') {
            literal.push_str(front);
            match tail
                .split_once('}')
                .and_then(|(name, behind)| Some((field(name)?, behind)))
            {
                Some((field, behind)) => {
                    pieces.push(Piece::Text(std::mem::take(&mut literal)));
                    pieces.push(Piece::Field(field));
                    rest = behind;
                }
                None => {
                    literal.push('{');
                    rest = tail;
                }
            }
        }
        pieces.push(Piece::Text(literal + rest));
        Self(pieces)
    }

    fn line(&self, query: &Query<'_>, client: Client, out: &[u8], event: &Event) -> String {
        let mut line = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Field(field) => field.put(&mut line, query, client, out, event),
            }
        }
        line
    }
}

fn field(name: &str) -> Option<Field> {
    let known = FIELDS.iter().find(|(known, _)| *known == name);
    let absent = name == "local" || name.starts_with('/');
    known.map(|(_, field)| *field).or(absent.then_some(Field::Absent))
}

impl Field {
    fn put(self, line: &mut String, query: &Query<'_>, client: Client, out: &[u8], event: &Event) {
        // Writing to a string does not fail.
        let _ = match self {
            Self::Type => line.write_str(&type_name(query.qtype)),
            Self::Class => line.write_str("IN"),
            Self::Name => line.write_str(NameText::of(query.name()).as_str()),
            Self::Proto => line.write_str(match client.transport {
                Transport::Udp => "udp",
                Transport::Tcp => "tcp",
            }),
            Self::Remote if client.address.is_ipv6() => write!(line, "[{}]", client.address.ip()),
            Self::Remote => write!(line, "{}", client.address.ip()),
            Self::Port => write!(line, "{}", client.address.port()),
            Self::Size => write!(line, "{}", query.packet().len()),
            Self::Id => write!(line, "{}", query.id()),
            Self::Opcode => write!(line, "{}", query.flags() >> 11 & 15),
            Self::DnssecOk => write!(line, "{}", query.edns.is_some_and(|edns| edns.dnssec_ok)),
            Self::BufferSize => write!(line, "{}", query.udp_limit()),
            Self::Code => line.write_str(&code_name(event.code)),
            Self::AnswerFlags => line.write_str(&flags(out)),
            Self::AnswerSize => write!(line, "{}", out.len()),
            Self::Duration => write!(line, "{}s", event.duration.as_secs_f64()),
            Self::Absent => line.write_str(EMPTY),
        };
    }
}

/// The flags of an answer, as `dig` names them, with commas between.
fn flags(out: &[u8]) -> String {
    const FLAGS: [(u16, &str); 7] = [
        (flag::QR, "qr"),
        (flag::AA, "aa"),
        (flag::TC, "tc"),
        (flag::RD, "rd"),
        (flag::RA, "ra"),
        (flag::AD, "ad"),
        (flag::CD, "cd"),
    ];
    let word = flags_of(out);
    let set = FLAGS.iter().filter(|(flag, _)| word & flag != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

/// Logs a query where one of the rules wants it.
pub fn log(rules: &[Rule], query: &Query<'_>, client: Client, out: &[u8], event: &Event) {
    let Some(rule) = rules.iter().find(|rule| query.is_within(&rule.zones)) else {
        return;
    };
    if !rule.classes.covers(event.code, out) {
        return;
    }
    match &rule.format {
        Some(format) => tracing::info!(line = %format.line(query, client, out, event), "query answered"),
        None => tracing::info!(
            client = %client.address,
            id = query.id(),
            name = %Name::from_lower_wire(query.name()),
            qtype = query.qtype,
            transport = ?client.transport,
            code = event.code,
            bytes = out.len(),
            micros = event.duration.as_micros() as u64,
            "query answered"
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::answer::{Opt, Owner, Section, Writer};
    use crate::metrics::Answerer;
    use crate::question::{query_packet, rtype};
    use crate::samples::logged;

    fn name(text: &str) -> Name {
        Name::parse(text).expect("name")
    }

    /// What is logged of an answer for `a.example A` with a code, and an address if wanted.
    fn line(rules: &[Rule], asked: &str, code: u16, address: bool) -> String {
        let mut packet = query_packet(4711, name(asked).wire(), rtype::A);
        let opt = Opt {
            udp_size: 1232,
            dnssec_ok: true,
            ..Opt::default()
        };
        opt.add_to(&mut packet);
        let query = Query::parse(&packet).expect("query");
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, &query, 512);
        if address {
            writer.address(Section::Answer, Owner::QUESTION, [1, 2, 3, 4].into(), 60);
        }
        writer.finish(code, true);
        let client = Client {
            address: "[fd00::1]:4000".parse::<SocketAddr>().expect("address"),
            transport: Transport::Udp,
        };
        let event = Event {
            zone: 0,
            transport: Transport::Udp,
            is_v6: true,
            qtype: rtype::A,
            code,
            answerer: Answerer::Forward,
            duration: Duration::from_micros(1500),
            bytes: (0, 0),
        };
        logged(|| log(rules, &query, client, &out, &event))
    }

    fn rule(zone: &str, classes: Classes, format: &str) -> Rule {
        Rule {
            zones: vec![name(zone)],
            classes,
            format: Some(Format::parse(format)),
        }
    }

    #[test]
    fn a_format_is_filled_in() {
        for (format, expected) in [
            (
                "{common}",
                "[fd00::1]:4000 - 4711 \"A IN a.example. udp 38 true 1232\" NOERROR qr,aa,rd 54 0.0015s",
            ),
            (
                "{combined}",
                "[fd00::1]:4000 - 4711 \"A IN a.example. udp 38 true 1232\" NOERROR qr,aa,rd 54 0.0015s 0",
            ),
            ("{name}{type} {local} {/meta/data}", "a.example.A - -"),
            ("{ {unknown} {name", "{ {unknown} {name"),
        ] {
            let text = line(
                &[rule(".", Classes::ALL, format)],
                "a.example",
                rcode::NOERROR,
                true,
            );
            let expected = format!(" INFO query answered line={expected}\n");
            assert_eq!(text, expected, "{format}");
        }
    }

    #[test]
    fn the_first_rule_for_a_name_decides_by_class() {
        let class = |success, denial, error| Classes {
            success,
            denial,
            error,
        };
        let rules = [
            rule("a.example", class(false, false, true), "first"),
            rule("example", class(true, true, false), "second"),
        ];
        for (asked, code, address, expected) in [
            ("a.example", rcode::NOERROR, true, ""),
            ("a.example", rcode::NXDOMAIN, false, ""),
            ("a.example", rcode::SERVFAIL, false, "first"),
            ("b.example", rcode::NOERROR, true, "second"),
            ("b.example", rcode::NOERROR, false, "second"),
            ("b.example", rcode::NXDOMAIN, false, "second"),
            ("b.example", rcode::REFUSED, false, ""),
            ("test", rcode::NOERROR, true, ""),
        ] {
            let text = line(&rules, asked, code, address);
            let found = text.trim_end().rsplit('=').next().unwrap_or_default();
            assert_eq!(found, expected, "{asked} {code}");
        }
        let fields = Rule {
            zones: vec![Name::root()],
            classes: Classes::ALL,
            format: None,
        };
        assert_eq!(
            line(&[fields], "a.example", rcode::NOERROR, true),
            " INFO query answered client=[fd00::1]:4000 id=4711 name=a.example. qtype=1 transport=Udp code=0 bytes=54 \
             micros=1500\n"
        );
    }
}

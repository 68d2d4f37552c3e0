//! What is asked of an upstream, and which answers to it are believed.
//!
//! A forger who does not see the question has to guess the port (a new socket each time), the id, and the case of
//! every letter of the name (`draft-vixie-dnsext-dns0x20`). What does not match is dropped while the true answer is
//! awaited. An upstream that does not keep the case is asked once more, under a new port and id, and believed when it
//! does not keep that one either.

use super::bailiwick::is_in_bailiwick;
use crate::answer::Opt;
use crate::question::{HEADER, Query, Record, flag, flags_of, rcode, rtype};
use crate::reply::Reply;

/// Safe over every path (DNS flag day 2020); what is longer comes by TCP.
const UDP_SIZE: u16 = 1232;

/// What a client wants to know: clients that want the same wait for one answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Question {
    /// In wire form, lower case.
    name: Box<[u8]>,
    qtype: u16,
    qclass: u16,
    /// Opcode, RD, CD.
    flags: u16,
    dnssec_ok: bool,
    /// Whether it is to be asked by TCP.
    pub(super) by_tcp: bool,
}

/// How an upstream is talked to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dialect {
    /// With an OPT record.
    pub(super) edns: bool,
    /// With the letters of the name in a case of their own.
    pub(super) mixed_case: bool,
}

/// A packet on its way.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) packet: Vec<u8>,
    question_end: usize,
    dialect: Dialect,
}

/// What a packet that came in is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The answer.
    True,
    /// The answer but for the case of the name.
    OtherCase,
    /// The upstream does not understand an OPT record.
    NoEdns,
    /// Something else: forged, late, or broken.
    Foreign,
}

impl Question {
    pub(super) fn of(query: &Query<'_>, by_tcp: bool) -> Self {
        Self {
            name: query.name().into(),
            qtype: query.qtype,
            qclass: query.qclass,
            flags: query.flags() & (flag::OPCODE | flag::RD | flag::CD),
            dnssec_ok: query.edns.is_some_and(|edns| edns.dnssec_ok),
            by_tcp,
        }
    }

    /// A packet under a new id. AD says that the answer's AD is understood (RFC 6840 §5.7); it is taken off for
    /// clients that did not ask for it.
    pub(super) fn packet(&self, dialect: Dialect) -> Outgoing {
        let mut packet = Vec::with_capacity(HEADER + self.name.len() + 15);
        packet.extend(rand::random::<[u8; 2]>());
        packet.extend((self.flags | flag::AD).to_be_bytes());
        packet.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        let mut coins = [0; 32];
        if dialect.mixed_case {
            coins = rand::random();
        }
        for (index, byte) in self.name.iter().enumerate() {
            let upper = coins[index / 8] >> (index % 8) & 1 == 1;
            // Length bytes are below 64 and no letters.
            packet.push(if upper { byte.to_ascii_uppercase() } else { *byte });
        }
        packet.extend(self.qtype.to_be_bytes());
        packet.extend(self.qclass.to_be_bytes());
        let question_end = packet.len();
        if dialect.edns {
            let opt = Opt {
                udp_size: UDP_SIZE,
                dnssec_ok: self.dnssec_ok,
                ..Opt::default()
            };
            opt.add_to(&mut packet);
        }
        Outgoing {
            packet,
            question_end,
            dialect,
        }
    }
}

impl Outgoing {
    pub(super) fn judge(&self, response: &[u8]) -> Judgement {
        let Some(header) = response.get(..HEADER) else {
            return Judgement::Foreign;
        };
        let (sent, name_end) = (&self.packet, self.question_end - 4);
        let (flags, sent_flags) = (flags_of(response), flags_of(sent));
        let is_ours = header[..2] == sent[..2]
            && flags & flag::QR != 0
            && flags & flag::OPCODE == sent_flags & flag::OPCODE;
        let refuses = matches!(u16::from(header[3] & 15), rcode::FORMERR | rcode::NOTIMP);
        // Who cannot read the packet may not know its question either.
        if is_ours && refuses && self.dialect.edns && header[4..] == [0; 8] {
            return Judgement::NoEdns;
        }
        let Some(question) = response.get(HEADER..self.question_end) else {
            return Judgement::Foreign;
        };
        let is_answer = is_ours
            && header[4..6] == [0, 1]
            && response[name_end..self.question_end] == sent[name_end..self.question_end]
            && response[HEADER..name_end].eq_ignore_ascii_case(&sent[HEADER..name_end]);
        if !is_answer || !is_in_bailiwick(response, &sent[HEADER..name_end], self.question_end) {
            return Judgement::Foreign;
        }
        if self.dialect.edns && refuses && header[10..] == [0, 0] {
            return Judgement::NoEdns;
        }
        if !self.dialect.mixed_case || question == &sent[HEADER..self.question_end] {
            Judgement::True
        } else {
            Judgement::OtherCase
        }
    }

    /// The answer without its OPT record, which was for us.
    pub(super) fn without_opt(&self, response: Vec<u8>) -> Vec<u8> {
        strip_opt(response, self)
    }
}

fn strip_opt(mut response: Vec<u8>, sent: &Outgoing) -> Vec<u8> {
    let count = |at: usize| usize::from(u16::from_be_bytes([response[at], response[at + 1]]));
    let total = count(6) + count(8) + count(10);
    let mut at = sent.question_end;
    for index in 0..total {
        let Some((record, next)) = Record::read(&response, at) else {
            return cut(response, at, index);
        };
        if record.rtype == rtype::OPT {
            if index + 1 == total && count(10) > 0 {
                let additionals = count(10) as u16 - 1;
                response.truncate(at);
                response[10..12].copy_from_slice(&additionals.to_be_bytes());
                return response;
            }
            // Names behind it may be pointed at: the whole is written anew.
            return rewritten(&response, sent).unwrap_or(response);
        }
        at = next;
    }
    response
}

/// The first records of a response that ends in the middle of one: `whole` of them, up to `at`.
fn cut(mut response: Vec<u8>, at: usize, mut whole: usize) -> Vec<u8> {
    response.truncate(at);
    for count in response[6..HEADER].chunks_exact_mut(2) {
        let kept = whole.min(usize::from(u16::from_be_bytes([count[0], count[1]])));
        count.copy_from_slice(&(kept as u16).to_be_bytes());
        whole -= kept;
    }
    response
}

fn rewritten(response: &[u8], sent: &Outgoing) -> Option<Vec<u8>> {
    let plain = &sent.packet[..sent.question_end];
    let mut question = plain.to_vec();
    question[11] = 0;
    let query = Query::parse(&question).ok()?;
    let reply = Reply::read(response, &query)?;
    let mut out = Vec::new();
    reply.write(&query, usize::from(u16::MAX), &mut out);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Owner, Section, Writer};
    use crate::name::Name;
    use crate::question::{query_packet, set_flags};
    use crate::xorshift::Xorshift;

    const MIXED: Dialect = Dialect {
        edns: true,
        mixed_case: true,
    };

    fn wire(text: &str) -> Vec<u8> {
        Name::parse(text).expect("name").wire().to_vec()
    }

    fn question(name: &str) -> Question {
        let packet = query_packet(1, &wire(name), rtype::A);
        Question::of(&Query::parse(&packet).expect("query"), false)
    }

    /// `OWNER TYPE TARGET` in a section, as the answer to what was sent.
    fn answer(sent: &Outgoing, answers: &[(&str, u16, &str)], authorities: &[(&str, u16, &str)]) -> Vec<u8> {
        let query = Query::parse(&sent.packet).expect("query");
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, &query, 65_535);
        for (section, records) in [(Section::Answer, answers), (Section::Authority, authorities)] {
            for (owner, kind, target) in records {
                writer.record(
                    section,
                    Owner::Literal(&wire(owner)),
                    *kind,
                    60,
                    |out| match *kind {
                        rtype::A => out.extend([1, 2, 3, 4]),
                        rtype::SOA => out.extend([wire(target), wire(target), vec![0; 20]].concat()),
                        _ => out.extend(wire(target)),
                    },
                );
            }
        }
        writer.finish(rcode::NOERROR, false);
        out
    }

    #[test]
    fn every_packet_has_an_id_and_a_case_of_its_own() {
        let question = question("a-rather-long-name.with-many-letters.example");
        let sent: Vec<Vec<u8>> = (0..50).map(|_| question.packet(MIXED).packet).collect();
        let distinct = |part: &dyn Fn(&Vec<u8>) -> Vec<u8>| {
            let parts: std::collections::BTreeSet<Vec<u8>> = sent.iter().map(part).collect();
            parts.len()
        };
        assert!(distinct(&|packet| packet[..2].to_vec()) > 45);
        assert!(distinct(&|packet| packet[HEADER..].to_vec()) > 45);
        assert_eq!(distinct(&|packet| packet[HEADER..].to_ascii_lowercase()), 1);
        let plain = question.packet(Dialect {
            edns: false,
            mixed_case: false,
        });
        assert_eq!(
            plain.packet[HEADER..],
            [&question.name[..], &[0, 1, 0, 1]].concat()
        );
        let query = Query::parse(&sent[0]).expect("a query");
        assert_eq!(
            query.edns.map(|edns| (edns.udp_size, edns.dnssec_ok)),
            Some((1232, false))
        );
    }

    #[test]
    fn answers_belong_to_the_question_or_are_foreign() {
        use rtype::{A, CNAME, DNAME, NS, SOA};
        let sent = question("www.a.example").packet(MIXED);
        let names: Vec<String> = (0..100).map(|index| format!("n{index}.test")).collect();
        let mut aliases = vec![("www.a.example", CNAME, "n0.test")];
        aliases.extend(
            names
                .windows(2)
                .map(|pair| (pair[0].as_str(), CNAME, pair[1].as_str())),
        );
        for (what, answers, authorities, expected) in [
            (
                "its own",
                &[("www.a.example", A, "")][..],
                &[][..],
                Judgement::True,
            ),
            ("nothing", &[], &[], Judgement::True),
            (
                "somebody else's",
                &[("www.b.example", A, "")],
                &[],
                Judgement::Foreign,
            ),
            (
                "its own and somebody else's",
                &[("www.a.example", A, ""), ("bank.example", A, "")],
                &[],
                Judgement::Foreign,
            ),
            (
                "an alias",
                &[
                    ("www.a.example", CNAME, "x.test"),
                    ("x.test", CNAME, "y.test"),
                    ("y.test", A, ""),
                ],
                &[("test", NS, "ns.test")],
                Judgement::True,
            ),
            (
                "an alias in any order",
                &[
                    ("y.test", A, ""),
                    ("x.test", CNAME, "y.test"),
                    ("www.a.example", CNAME, "x.test"),
                ],
                &[],
                Judgement::True,
            ),
            (
                "an alias that leads elsewhere",
                &[("www.a.example", CNAME, "x.test"), ("y.test", A, "")],
                &[],
                Judgement::Foreign,
            ),
            (
                "a DNAME above",
                &[
                    ("a.example", DNAME, "test"),
                    ("www.a.example", CNAME, "www.test"),
                    ("www.test", A, ""),
                ],
                &[],
                Judgement::True,
            ),
            (
                "a DNAME at the name, which leads nowhere",
                &[("www.a.example", DNAME, "x.test"), ("x.test", A, "")],
                &[],
                Judgement::Foreign,
            ),
            (
                "an alias that leads back",
                &[
                    ("www.a.example", CNAME, "x.test"),
                    ("x.test", CNAME, "www.a.example"),
                ],
                &[],
                Judgement::Foreign,
            ),
            (
                "an alias of itself",
                &[("www.a.example", CNAME, "www.a.example")],
                &[],
                Judgement::Foreign,
            ),
            (
                "its zone",
                &[],
                &[("a.example", SOA, "ns.example")],
                Judgement::True,
            ),
            ("the root", &[], &[(".", SOA, "ns.example")], Judgement::True),
            (
                "another zone",
                &[],
                &[("b.example", SOA, "ns.example")],
                Judgement::Foreign,
            ),
            (
                "servers of another zone",
                &[],
                &[("com", NS, "ns.example")],
                Judgement::Foreign,
            ),
        ] {
            assert_eq!(
                sent.judge(&answer(&sent, answers, authorities)),
                expected,
                "{what}"
            );
        }
    }

    #[test]
    fn headers_questions_and_cases_are_judged() {
        let sent = question("www.a.example").packet(MIXED);
        let good = answer(&sent, &[("www.a.example", rtype::A, "")], &[]);
        let bent = |at: usize, change: u8| {
            let mut packet = good.clone();
            packet[at] ^= change;
            packet
        };
        let other_case = {
            let mut packet = good.clone();
            for byte in &mut packet[HEADER..sent.question_end - 4] {
                if byte.is_ascii_alphabetic() {
                    *byte ^= 0x20;
                }
            }
            packet
        };
        let mut refused = sent.packet[..sent.question_end].to_vec();
        refused[2..4].copy_from_slice(&[0x81, 0x81]);
        refused[11] = 0;
        for (what, packet, expected) in [
            ("good", good.clone(), Judgement::True),
            ("another id", bent(0, 1), Judgement::Foreign),
            ("a query", bent(2, 0x80), Judgement::Foreign),
            ("another opcode", bent(2, 0x08), Judgement::Foreign),
            ("two questions", bent(5, 3), Judgement::Foreign),
            ("another name", bent(13, 1), Judgement::Foreign),
            ("another type", bent(sent.question_end - 3, 1), Judgement::Foreign),
            (
                "another class",
                bent(sent.question_end - 1, 2),
                Judgement::Foreign,
            ),
            ("another case", other_case, Judgement::OtherCase),
            ("no EDNS", refused.clone(), Judgement::NoEdns),
            (
                "no EDNS, and no question",
                {
                    refused.truncate(HEADER);
                    refused[5] = 0;
                    refused
                },
                Judgement::NoEdns,
            ),
            (
                "cut in the question",
                good[..sent.question_end - 1].to_vec(),
                Judgement::Foreign,
            ),
        ] {
            assert_eq!(sent.judge(&packet), expected, "{what}");
        }
    }

    #[test]
    fn what_is_cut_is_believed_where_tc_says_so_and_its_whole_records_go_on() {
        let sent = question("www.a.example").packet(MIXED);
        let records = [
            ("www.a.example", rtype::CNAME, "x.test"),
            ("x.test", rtype::A, ""),
        ];
        let mut whole = answer(&sent, &records, &[("test", rtype::SOA, "ns.test")]);
        let ends: Vec<usize> = (0..4)
            .scan(sent.question_end, |at, _| {
                let (_, next) = Record::read(&whole, *at)?;
                Some(std::mem::replace(at, next))
            })
            .collect();
        for length in sent.question_end..whole.len() {
            assert_eq!(sent.judge(&whole[..length]), Judgement::Foreign, "{length} bytes");
        }
        set_flags(&mut whole, flag::TC, flag::TC);
        for length in sent.question_end..whole.len() {
            let part = whole[..length].to_vec();
            assert_eq!(sent.judge(&part), Judgement::True, "{length} bytes");
            let kept = ends.iter().filter(|end| **end <= length).count() - 1;
            let counts = [kept.min(2), kept.saturating_sub(2), 0].map(|count| count as u8);
            let part = sent.without_opt(part);
            assert_eq!(
                (part.len(), [part[7], part[9], part[11]]),
                (ends[kept], counts),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn no_packet_makes_the_judge_panic_and_what_it_believes_has_the_question() {
        let sent = question("www.a.example").packet(MIXED);
        let records = [
            ("www.a.example", rtype::CNAME, "x.test"),
            ("x.test", rtype::A, ""),
        ];
        let good = answer(&sent, &records, &[("test", rtype::SOA, "ns.test")]);
        let mut noise = Xorshift::new(42);
        let mut below = |limit: usize| noise.below(limit);
        let mut believed = 0;
        for _ in 0..50_000 {
            let mut packet = good.clone();
            for _ in 0..below(4) {
                let at = below(packet.len());
                packet[at] = below(256) as u8;
            }
            if below(4) == 0 {
                packet.truncate(below(packet.len()) + 1);
            }
            if sent.judge(&packet) == Judgement::True {
                believed += 1;
                assert_eq!(
                    packet[HEADER..sent.question_end],
                    sent.packet[HEADER..sent.question_end]
                );
                let stripped = sent.without_opt(packet);
                assert!(stripped.len() >= sent.question_end);
            }
        }
        assert!(believed > 5_000, "{believed}");
    }

    #[test]
    fn the_opt_record_is_taken_out_wherever_it_stands() {
        let sent = question("www.a.example").packet(MIXED);
        let with_opt = answer(&sent, &[("www.a.example", rtype::A, "")], &[]);
        let expected = [&with_opt[..11], &[0], &with_opt[12..with_opt.len() - 11]].concat();
        assert_eq!(sent.without_opt(with_opt.clone()), expected);
        // Where it has no place.
        let mut misplaced = with_opt.clone();
        misplaced[8..12].copy_from_slice(&[0, 1, 0, 0]);
        let stripped = sent.without_opt(misplaced);
        let end = Record::read(&stripped, sent.question_end).map(|(_, end)| end);
        assert_eq!(
            (&stripped[6..12], end),
            (&[0, 1, 0, 0, 0, 0][..], Some(stripped.len()))
        );
        // An address behind the OPT record.
        let mut behind = with_opt;
        behind[11] = 2;
        behind.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 9, 9, 9, 9]);
        let stripped = sent.without_opt(behind);
        assert_eq!(
            (stripped[7], stripped[11], &stripped[stripped.len() - 4..]),
            (1, 1, &[9, 9, 9, 9][..])
        );
        for length in sent.question_end..stripped.len() {
            sent.without_opt(stripped[..length].to_vec());
        }
    }
}

//! A response taken apart into records with whole names, changed, and written again: for what cannot be done in place
//! because pointers would lead astray.

use crate::answer::{Section, Writer};
use crate::question::{HEADER, Query, Record, expand_name, flag, flags_of, rtype, set_flags};

/// What only the one who found the answer can set.
const KEPT_FLAGS: u16 = flag::RA | flag::AD;
const SECTIONS: [Section; 3] = [Section::Answer, Section::Authority, Section::Additional];

/// A response without its question and OPT record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    code: u16,
    flags: u16,
    /// The records of each section.
    pub sections: [Vec<ReplyRecord>; 3],
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplyRecord {
    /// Its owner in wire form, in the case that it came in.
    pub owner: Vec<u8>,
    /// Type.
    pub rtype: u16,
    /// Time to live, in seconds.
    pub ttl: u32,
    /// Its data, names written out.
    pub data: Vec<u8>,
}

impl Reply {
    /// Takes a response to `query` apart. `None` = it cannot be read.
    #[must_use]
    pub fn read(response: &[u8], query: &Query<'_>) -> Option<Self> {
        let header = response.get(..HEADER)?;
        let mut reply = Self {
            code: u16::from(header[3] & 15),
            flags: flags_of(response),
            sections: Default::default(),
        };
        let mut at = query.question_end;
        for (index, section) in reply.sections.iter_mut().enumerate() {
            let count = u16::from_be_bytes([header[6 + 2 * index], header[7 + 2 * index]]);
            for _ in 0..count {
                let (record, next) = Record::read(response, at)?;
                at = next;
                if record.rtype != rtype::OPT {
                    section.push(ReplyRecord {
                        owner: expand_name(response, record.start)?,
                        rtype: record.rtype,
                        ttl: record.ttl,
                        data: expand_data(response, &record)?,
                    });
                }
            }
        }
        Some(reply)
    }

    /// Writes it as the answer to `query`, as much of it as fits.
    pub fn write(&self, query: &Query<'_>, limit: usize, out: &mut Vec<u8>) {
        let mut writer = Writer::start(out, query, limit);
        for (section, records) in SECTIONS.into_iter().zip(&self.sections) {
            for record in records {
                let owner = writer.owner(&record.owner);
                let fits = writer.record(section, owner, record.rtype, record.ttl, |out| {
                    out.extend_from_slice(&record.data);
                });
                if !fits {
                    break;
                }
            }
        }
        writer.finish(self.code, self.flags & flag::AA != 0);
        let flags = flags_of(out) | self.flags;
        set_flags(out, KEPT_FLAGS, flags);
    }

    /// Puts an alias for `target` in front of the answers, if there are any, with the TTL of the first.
    pub fn put_alias(&mut self, owner: &[u8], target: &[u8]) {
        let answers = &mut self.sections[0];
        if let Some(first) = answers.first() {
            let alias = ReplyRecord {
                owner: owner.to_vec(),
                rtype: rtype::CNAME,
                ttl: first.ttl,
                data: target.to_vec(),
            };
            answers.insert(0, alias);
        }
    }

    /// The records of all sections.
    pub fn records_mut(&mut self) -> impl Iterator<Item = &mut ReplyRecord> {
        self.sections.iter_mut().flatten()
    }
}

impl ReplyRecord {
    /// The name in the data, where the data is one, or ends in one: alias, pointer, server, target.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        self.data.get(self.value_at()?..)
    }

    /// Puts another name in its place.
    pub fn set_value(&mut self, name: &[u8]) {
        if let Some(at) = self.value_at() {
            self.data.truncate(at);
            self.data.extend_from_slice(name);
        }
    }

    fn value_at(&self) -> Option<usize> {
        match names_in(self.rtype) {
            (at, 1, 0) => Some(at),
            _ => None,
        }
    }
}

/// How data with names is laid out: bytes in front, names, bytes behind. Other types hold none, or none that may be
/// compressed (RFC 3597 §4).
fn names_in(rtype: u16) -> (usize, usize, usize) {
    const MINFO: u16 = 14;
    const RP: u16 = 17;
    const AFSDB: u16 = 18;
    match rtype {
        rtype::NS | rtype::CNAME | rtype::PTR | rtype::DNAME => (0, 1, 0),
        rtype::MX | AFSDB => (2, 1, 0),
        rtype::SRV => (6, 1, 0),
        MINFO | RP => (0, 2, 0),
        rtype::SOA => (0, 2, 20),
        _ => (0, 0, 0),
    }
}

fn expand_data(response: &[u8], record: &Record<'_>) -> Option<Vec<u8>> {
    let (front, names, behind) = names_in(record.rtype);
    if names == 0 {
        return Some(record.data.to_vec());
    }
    let mut data = record.data.get(..front)?.to_vec();
    let mut at = record.data_at + front;
    for _ in 0..names {
        data.extend(expand_name(response, at)?);
        at = crate::question::skip_name(response, at)?;
    }
    let end = record.data_at + record.data.len();
    let tail = response.get(at..end).filter(|tail| tail.len() == behind)?;
    data.extend_from_slice(tail);
    Some(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Owner;
    use crate::name::Name;
    use crate::question::{query_packet, rcode};

    fn wire(text: &str) -> Vec<u8> {
        Name::parse(text).expect("name").wire().to_vec()
    }

    fn record(owner: &str, rtype: u16, data: &[&[u8]]) -> ReplyRecord {
        ReplyRecord {
            owner: wire(owner),
            rtype,
            ttl: 60,
            data: data.concat(),
        }
    }

    #[test]
    fn what_is_written_for_another_question_is_read_back_the_same() {
        let asked = query_packet(7, &wire("a.example"), rtype::A);
        let query = Query::parse(&asked).expect("query");
        let mut compressed = Vec::new();
        let mut writer = Writer::start(&mut compressed, &query, 512);
        let put = |writer: &mut Writer<'_, '_>, section, rtype, data: &[u8]| {
            writer.record(section, Owner::QUESTION, rtype, 60, |out| {
                out.extend_from_slice(data);
            });
        };
        // `C0 0E` is "example" inside the question.
        put(&mut writer, Section::Answer, rtype::CNAME, b"\x01b\xc0\x0e");
        put(&mut writer, Section::Answer, rtype::MX, b"\0\x0a\x01m\xc0\x0e");
        put(
            &mut writer,
            Section::Answer,
            rtype::SRV,
            b"\0\x01\0\x02\0\x03\x01s\xc0\x0e",
        );
        put(&mut writer, Section::Answer, rtype::TXT, b"\x02hi");
        let soa = [&b"\x02ns\xc0\x0e\xc0\x0c"[..], &[7; 20]].concat();
        put(&mut writer, Section::Authority, rtype::SOA, &soa);
        writer.finish(rcode::NOERROR, true);
        compressed[3] |= 0xa0;

        let reply = Reply::read(&compressed, &query).expect("a reply");
        let expected = [
            vec![
                record("a.example", rtype::CNAME, &[&wire("b.example")]),
                record("a.example", rtype::MX, &[&[0, 10], &wire("m.example")]),
                record(
                    "a.example",
                    rtype::SRV,
                    &[&[0, 1, 0, 2, 0, 3], &wire("s.example")],
                ),
                record("a.example", rtype::TXT, &[b"\x02hi"]),
            ],
            vec![record(
                "a.example",
                rtype::SOA,
                &[&wire("ns.example"), &wire("a.example"), &[7; 20]],
            )],
            vec![],
        ];
        assert_eq!(reply.sections, expected);
        let values: Vec<_> = reply.sections[0].iter().map(ReplyRecord::value).collect();
        let names = [wire("b.example"), wire("m.example"), wire("s.example")];
        assert_eq!(values[..3], names.each_ref().map(|name| Some(&name[..])));
        assert_eq!((values[3], reply.sections[1][0].value()), (None, None));

        let other = query_packet(9, &wire("longer.name.test"), rtype::A);
        let other_query = Query::parse(&other).expect("query");
        let mut out = Vec::new();
        reply.write(&other_query, 512, &mut out);
        assert_eq!((&out[..2], out[2] & 4, out[3] & 0xa0), (&other[..2], 4, 0xa0));
        assert_eq!(Reply::read(&out, &other_query), Some(reply));
    }

    #[test]
    fn what_cannot_be_read_is_none_and_what_does_not_fit_is_cut() {
        let asked = query_packet(7, &wire("a.example"), rtype::CNAME);
        let query = Query::parse(&asked).expect("query");
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, &query, 512);
        for _ in 0..3 {
            writer.name(
                Section::Answer,
                Owner::QUESTION,
                rtype::CNAME,
                60,
                &wire("b.example"),
            );
        }
        writer.finish(rcode::NOERROR, false);
        for length in 0..out.len() {
            assert_eq!(Reply::read(&out[..length], &query), None, "{length} bytes");
        }
        let reply = Reply::read(&out, &query).expect("a reply");
        let one = asked.len() + 12 + 11;
        let mut short = Vec::new();
        reply.write(&query, one + 5, &mut short);
        assert_eq!((short.len(), short[7], short[2] & 2), (one, 1, 2));
    }
}

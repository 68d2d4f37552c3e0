//! What a client asks: a parser over the packet's bytes that allocates nothing.
//!
//! ```text
//! [id:2][flags:2][qdcount:2][ancount:2][nscount:2][arcount:2] = 12 bytes (RFC 1035 §4.1.1)
//! [qname: labels, 0][qtype:2][qclass:2]
//! ```
//! A question's name cannot be compressed (nothing stands before it), so that every label lies in the packet at
//! `HEADER + its offset in the name`: answers point there instead of repeating it, which keeps the client's case.

use crate::explain;
use crate::name::{MAX_LABEL, MAX_NAME, Name};
use crate::serve::keepalive;

/// Bytes of the header.
pub const HEADER: usize = 12;

/// Record types that the server knows by name.
pub mod rtype {
    #![expect(missing_docs, reason = "the names are RFC 1035's and IANA's")]
    pub const A: u16 = 1;
    pub const NS: u16 = 2;
    pub const CNAME: u16 = 5;
    pub const SOA: u16 = 6;
    pub const PTR: u16 = 12;
    pub const HINFO: u16 = 13;
    pub const MX: u16 = 15;
    pub const TXT: u16 = 16;
    pub const AAAA: u16 = 28;
    pub const SRV: u16 = 33;
    pub const DNAME: u16 = 39;
    pub const OPT: u16 = 41;
    pub const IXFR: u16 = 251;
    pub const AXFR: u16 = 252;
    pub const ANY: u16 = 255;
}

/// Response codes.
pub mod rcode {
    #![expect(missing_docs, reason = "the names are RFC 1035's and RFC 6891's")]
    pub const NOERROR: u16 = 0;
    pub const FORMERR: u16 = 1;
    pub const SERVFAIL: u16 = 2;
    pub const NXDOMAIN: u16 = 3;
    pub const NOTIMP: u16 = 4;
    pub const REFUSED: u16 = 5;
    pub const BADVERS: u16 = 16;
}

/// Class IN.
pub const CLASS_IN: u16 = 1;

/// The bits of a header's flags (RFC 1035 §4.1.1; AD and CD: RFC 4035 §3.1.6).
pub mod flag {
    #![expect(missing_docs, reason = "the names are the RFCs'")]
    pub const QR: u16 = 0x8000;
    pub const OPCODE: u16 = 0x7800;
    pub const AA: u16 = 0x0400;
    pub const TC: u16 = 0x0200;
    pub const RD: u16 = 0x0100;
    pub const RA: u16 = 0x0080;
    pub const AD: u16 = 0x0020;
    pub const CD: u16 = 0x0010;
}

const OPCODE_QUERY: u16 = 0;
const OPCODE_NOTIFY: u16 = 4;

/// What to do with a packet that is no query to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Say nothing: a response, or too short to hold an id.
    Silence,
    /// Send back a header with this code and nothing else.
    Header(u16),
}

/// What the client's OPT record says (RFC 6891 §6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edns {
    /// The UDP payload that the client can take, as sent.
    pub udp_size: u16,
    /// Version; only 0 exists.
    pub version: u8,
    /// The DO bit (RFC 3225).
    pub dnssec_ok: bool,
    /// Whether one of its options asks who answers, and of what ([`crate::explain`]).
    pub explain: bool,
    /// Whether one of them asks for how long a stream may be idle ([`crate::serve::keepalive`]).
    pub keepalive: bool,
}

/// One query.
#[derive(Clone, Debug)]
pub struct Query<'p> {
    packet: &'p [u8],
    name: LowerName,
    /// Type asked for.
    pub qtype: u16,
    /// Class asked for.
    pub qclass: u16,
    /// Where the question section ends in the packet.
    pub question_end: usize,
    /// The OPT record, where the client sent one.
    pub edns: Option<Edns>,
}

/// The question's name in lower case with an index of its labels.
#[derive(Clone, Debug)]
struct LowerName {
    bytes: [u8; MAX_NAME],
    length: u8,
    /// Where each label's length byte stands.
    starts: [u8; MAX_NAME / 2 + 1],
    count: u8,
}

impl<'p> Query<'p> {
    /// Reads a packet.
    ///
    /// The refusals are those of CoreDNS's library, measured: a header that promises more than one question or
    /// more records than a query can have is a format error, opcodes other than QUERY and NOTIFY are not
    /// implemented, responses and fragments of a header get no answer.
    ///
    /// # Errors
    /// What to do instead of answering.
    pub fn parse(packet: &'p [u8]) -> Result<Self, Refusal> {
        let header = packet.get(..HEADER).ok_or(Refusal::Silence)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let flags = word(2);
        if flags & flag::QR != 0 {
            return Err(Refusal::Silence);
        }
        if !matches!(flags >> 11 & 15, OPCODE_QUERY | OPCODE_NOTIFY) {
            return Err(Refusal::Header(rcode::NOTIMP));
        }
        let (questions, answers, authorities, additionals) = (word(4), word(6), word(8), word(10));
        if questions != 1 || answers > 1 || authorities > 1 || additionals > 2 {
            return Err(Refusal::Header(rcode::FORMERR));
        }
        let formerr = Refusal::Header(rcode::FORMERR);
        let name = LowerName::read(&packet[HEADER..]).ok_or(formerr)?;
        let at = HEADER + usize::from(name.length);
        let tail = packet.get(at..at + 4).ok_or(formerr)?;
        let question_end = at + 4;
        let mut query = Self {
            packet,
            name,
            qtype: u16::from_be_bytes([tail[0], tail[1]]),
            qclass: u16::from_be_bytes([tail[2], tail[3]]),
            question_end,
            edns: None,
        };
        query
            .read_records(usize::from(answers + authorities + additionals))
            .ok_or(formerr)?;
        Ok(query)
    }

    /// Steps over the records behind the question and notes the last OPT. A second OPT and bytes behind the last
    /// record are tolerated, as by CoreDNS.
    fn read_records(&mut self, count: usize) -> Option<()> {
        let mut at = self.question_end;
        for _ in 0..count {
            let (record, next) = Record::read(self.packet, at)?;
            if record.rtype == rtype::OPT {
                let [_, version, high, _] = record.ttl.to_be_bytes();
                self.edns = Some(Edns {
                    udp_size: record.class,
                    version,
                    dnssec_ok: high & 0x80 != 0,
                    explain: option(record.data, explain::OPTION).is_some(),
                    keepalive: option(record.data, keepalive::OPTION).is_some_and(<[u8]>::is_empty),
                });
            }
            at = next;
        }
        Some(())
    }

    /// The packet's id.
    #[must_use]
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.packet[0], self.packet[1]])
    }

    /// The flags word.
    #[must_use]
    pub fn flags(&self) -> u16 {
        flags_of(self.packet)
    }

    /// The whole packet.
    #[must_use]
    pub fn packet(&self) -> &'p [u8] {
        self.packet
    }

    /// Whether the client wants to know who answers, and of what ([`crate::explain`]).
    #[must_use]
    pub fn asks_why(&self) -> bool {
        self.edns.is_some_and(|edns| edns.explain)
    }

    /// Header and question as the client sent them.
    #[must_use]
    pub fn head(&self) -> &'p [u8] {
        &self.packet[..self.question_end]
    }

    /// The name in wire form, lower case.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        &self.name.bytes[..usize::from(self.name.length)]
    }

    /// How many labels the name has, the root not counted.
    #[must_use]
    pub fn label_count(&self) -> usize {
        usize::from(self.name.count)
    }

    /// The label at `index` from the left, in lower case.
    #[must_use]
    pub fn label(&self, index: usize) -> &[u8] {
        let start = usize::from(self.name.starts[index]);
        let length = usize::from(self.name.bytes[start]);
        &self.name.bytes[start + 1..start + 1 + length]
    }

    /// The name from the label at `index` on; `index` may be the number of labels (the root).
    #[must_use]
    pub fn suffix(&self, index: usize) -> &[u8] {
        &self.name()[self.offset(index)..]
    }

    /// Where the label at `index` stands in the packet.
    #[must_use]
    pub fn packet_offset(&self, index: usize) -> usize {
        HEADER + self.offset(index)
    }

    fn offset(&self, index: usize) -> usize {
        if index == self.label_count() {
            usize::from(self.name.length) - 1
        } else {
            usize::from(self.name.starts[index])
        }
    }

    /// How many labels stand in front of `zone`, where the name is within it.
    #[must_use]
    pub fn labels_before(&self, zone: &Name) -> Option<usize> {
        let front = usize::from(self.name.length).checked_sub(zone.wire().len())?;
        if self.name()[front..] != *zone.wire() {
            return None;
        }
        // The same bytes are the same labels only where a label starts.
        (0..=self.label_count())
            .rev()
            .find(|index| self.offset(*index) == front)
    }

    /// Whether the name is within one of the zones.
    #[must_use]
    pub fn is_within(&self, zones: &[Name]) -> bool {
        zones.iter().any(|zone| self.labels_before(zone).is_some())
    }

    /// Takes the client for one that cannot take more than `size` over UDP.
    pub fn clamp_udp_size(&mut self, size: u16) {
        if let Some(edns) = &mut self.edns {
            edns.udp_size = edns.udp_size.min(size);
        }
    }

    /// The largest answer that the client can take over UDP (RFC 6891 §6.2.3: less than 512 counts as 512).
    #[must_use]
    pub fn udp_limit(&self) -> usize {
        self.edns.map_or(512, |edns| usize::from(edns.udp_size.max(512)))
    }
}

impl LowerName {
    fn read(packet: &[u8]) -> Option<Self> {
        let mut name = Self {
            bytes: [0; MAX_NAME],
            length: 0,
            starts: [0; MAX_NAME / 2 + 1],
            count: 0,
        };
        let mut at = 0;
        loop {
            let length = usize::from(*packet.get(at)?);
            if length == 0 {
                break;
            }
            let end = at + 1 + length;
            // The root's byte must still fit behind this label. Two high bits are a pointer, which leads nowhere here.
            if length > MAX_LABEL || end >= MAX_NAME {
                return None;
            }
            let label = packet.get(at..end)?;
            name.starts[usize::from(name.count)] = at as u8;
            name.count += 1;
            name.bytes[at..end].copy_from_slice(label);
            // Length bytes are below 64 and so never touched by the case.
            name.bytes[at..end].make_ascii_lowercase();
            at = end;
        }
        name.length = at as u8 + 1;
        Some(name)
    }
}

/// A resource record found in a packet.
#[derive(Clone, Copy, Debug)]
pub struct Record<'p> {
    /// Where its owner's name starts.
    pub start: usize,
    /// Type.
    pub rtype: u16,
    /// Class.
    pub class: u16,
    /// Time to live, or OPT's flags.
    pub ttl: u32,
    /// Where the TTL stands.
    pub ttl_at: usize,
    /// The data.
    pub data: &'p [u8],
    /// Where the data starts.
    pub data_at: usize,
}

impl<'p> Record<'p> {
    /// Reads the record at `at`, and says where the next one starts.
    #[must_use]
    pub fn read(packet: &'p [u8], at: usize) -> Option<(Self, usize)> {
        let fixed_at = skip_name(packet, at)?;
        let fixed: &[u8; 10] = packet.get(fixed_at..fixed_at + 10)?.try_into().ok()?;
        let [t0, t1, c0, c1, a, b, c, d, l0, l1] = *fixed;
        let data_at = fixed_at + 10;
        let next = data_at + usize::from(u16::from_be_bytes([l0, l1]));
        let record = Self {
            start: at,
            rtype: u16::from_be_bytes([t0, t1]),
            class: u16::from_be_bytes([c0, c1]),
            ttl: u32::from_be_bytes([a, b, c, d]),
            ttl_at: fixed_at + 4,
            data: packet.get(data_at..next)?,
            data_at,
        };
        Some((record, next))
    }
}

/// The flags word of a packet; 0 of what has no header.
#[must_use]
pub fn flags_of(packet: &[u8]) -> u16 {
    packet
        .get(2..4)
        .map_or(0, |flags| u16::from_be_bytes([flags[0], flags[1]]))
}

/// Makes the flags of a packet within `mask` those of `flags`.
pub fn set_flags(packet: &mut [u8], mask: u16, flags: u16) {
    let word = flags_of(packet) & !mask | flags & mask;
    if let Some(place) = packet.get_mut(2..4) {
        place.copy_from_slice(&word.to_be_bytes());
    }
}

/// The first option of an OPT record that has this code.
fn option(mut options: &[u8], code: u16) -> Option<&[u8]> {
    while let [c0, c1, l0, l1, rest @ ..] = options {
        let length = usize::from(u16::from_be_bytes([*l0, *l1]));
        let data = rest.get(..length);
        if u16::from_be_bytes([*c0, *c1]) == code {
            return data;
        }
        options = rest.get(length..)?;
    }
    None
}

/// Steps over a name, which a pointer ends.
pub(crate) fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            0xc0..=0xff => return packet.get(at + 1).map(|_| at + 2),
            length if usize::from(length) <= MAX_LABEL => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

/// Writes out the name at `at` without compression, in the case it was sent in. Pointers must lead backwards
/// (RFC 1035 §4.1.4: "a prior occurrence"), which also ends every loop.
#[must_use]
pub fn expand_name(packet: &[u8], mut at: usize) -> Option<Vec<u8>> {
    let mut name = Vec::with_capacity(64);
    let mut barrier = at;
    loop {
        let length = *packet.get(at)?;
        match length {
            0 => {
                name.push(0);
                return (name.len() <= MAX_NAME).then_some(name);
            }
            0xc0..=0xff => {
                let target = usize::from(u16::from_be_bytes([length & 0x3f, *packet.get(at + 1)?]));
                if target >= barrier {
                    return None;
                }
                barrier = target;
                at = target;
            }
            length if usize::from(length) <= MAX_LABEL => {
                let end = at + 1 + usize::from(length);
                name.extend_from_slice(packet.get(at..end)?);
                if name.len() >= MAX_NAME {
                    return None;
                }
                at = end;
            }
            _ => return None,
        }
    }
}

/// Builds a query packet: recursion desired, one question, no EDNS.
#[must_use]
pub fn query_packet(id: u16, name: &[u8], qtype: u16) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER + name.len() + 4);
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    packet.extend_from_slice(name);
    packet.extend_from_slice(&qtype.to_be_bytes());
    packet.extend_from_slice(&CLASS_IN.to_be_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &[u8] = b"\x01a\x02bC\0";

    /// A query whose parts can be bent: header words and the bytes behind the header.
    fn packet(flags: u16, counts: [u16; 4], body: &[&[u8]]) -> Vec<u8> {
        let mut packet = vec![0x12, 0x34];
        packet.extend(flags.to_be_bytes());
        packet.extend(counts.iter().flat_map(|count| count.to_be_bytes()));
        packet.extend(body.concat());
        packet
    }

    #[test]
    fn what_is_no_query_gets_the_right_refusal() {
        const FORMERR: Refusal = Refusal::Header(rcode::FORMERR);
        const NOTIMP: Refusal = Refusal::Header(rcode::NOTIMP);
        let type_a: &[u8] = &[0, 1, 0, 1];
        let label_of_64 = [&[64][..], &[b'a'; 64], &[0]].concat();
        let name_of_256 = [&[63][..], &[b'a'; 63]].concat().repeat(4);
        for (what, bytes, expected) in [
            ("nothing", vec![], Refusal::Silence),
            ("eleven bytes", vec![0; 11], Refusal::Silence),
            (
                "a response",
                packet(0x8000, [1, 0, 0, 0], &[NAME, type_a]),
                Refusal::Silence,
            ),
            ("twelve zero bytes", vec![0; 12], FORMERR),
            ("no question", packet(0, [0, 0, 0, 0], &[NAME, type_a]), FORMERR),
            (
                "two questions",
                packet(0, [2, 0, 0, 0], &[NAME, type_a, NAME, type_a]),
                FORMERR,
            ),
            ("two answers", packet(0, [1, 2, 0, 0], &[NAME, type_a]), FORMERR),
            (
                "two authorities",
                packet(0, [1, 0, 2, 0], &[NAME, type_a]),
                FORMERR,
            ),
            (
                "three additionals",
                packet(0, [1, 0, 0, 3], &[NAME, type_a]),
                FORMERR,
            ),
            (
                "opcode IQUERY",
                packet(1 << 11, [1, 0, 0, 0], &[NAME, type_a]),
                NOTIMP,
            ),
            (
                "opcode STATUS",
                packet(2 << 11, [1, 0, 0, 0], &[NAME, type_a]),
                NOTIMP,
            ),
            (
                "opcode UPDATE",
                packet(5 << 11, [1, 0, 0, 0], &[NAME, type_a]),
                NOTIMP,
            ),
            (
                "question cut in the name",
                packet(0, [1, 0, 0, 0], &[b"\x05abc"]),
                FORMERR,
            ),
            (
                "question without end of name",
                packet(0, [1, 0, 0, 0], &[b"\x01a"]),
                FORMERR,
            ),
            (
                "question cut in the type",
                packet(0, [1, 0, 0, 0], &[NAME, &[0, 1, 0]]),
                FORMERR,
            ),
            (
                "pointer to itself",
                packet(0, [1, 0, 0, 0], &[&[0xc0, 12], type_a]),
                FORMERR,
            ),
            (
                "pointer into the header",
                packet(0, [1, 0, 0, 0], &[&[0xc0, 4], type_a]),
                FORMERR,
            ),
            (
                "label type 01",
                packet(0, [1, 0, 0, 0], &[&label_of_64, type_a]),
                FORMERR,
            ),
            (
                "label type 10",
                packet(0, [1, 0, 0, 0], &[&[0x80, 0, 0], type_a]),
                FORMERR,
            ),
            (
                "name of 257 bytes",
                packet(0, [1, 0, 0, 0], &[&name_of_256, &[0], type_a]),
                FORMERR,
            ),
            (
                "promised OPT is missing",
                packet(0, [1, 0, 0, 1], &[NAME, type_a]),
                FORMERR,
            ),
            (
                "OPT cut in its data",
                packet(
                    0,
                    [1, 0, 0, 1],
                    &[NAME, type_a, &[0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 9, 1]],
                ),
                FORMERR,
            ),
        ] {
            assert_eq!(Query::parse(&bytes).err(), Some(expected), "{what}");
        }
    }

    #[test]
    fn a_query_is_read_with_its_labels_in_lower_case() {
        let bytes = packet(0x0100, [1, 0, 0, 0], &[NAME, &[0, 28, 0, 1], b"trailing"]);
        let query = Query::parse(&bytes).expect("query");
        assert_eq!(
            (query.id(), query.qtype, query.qclass),
            (0x1234, rtype::AAAA, CLASS_IN)
        );
        assert_eq!(query.name(), b"\x01a\x02bc\0");
        assert_eq!(
            (0..query.label_count())
                .map(|i| query.label(i))
                .collect::<Vec<_>>(),
            [&b"a"[..], b"bc"]
        );
        assert_eq!((query.suffix(1), query.suffix(2)), (&b"\x02bc\0"[..], &b"\0"[..]));
        assert_eq!((query.packet_offset(1), query.packet_offset(2)), (14, 17));
        assert_eq!((query.edns, query.udp_limit()), (None, 512));
        assert_eq!(query.labels_before(&Name::parse("bC").expect("name")), Some(1));
        assert_eq!(query.labels_before(&Name::parse("a.bc").expect("name")), Some(0));
        assert_eq!(query.labels_before(&Name::root()), Some(2));
        assert_eq!(query.labels_before(&Name::parse("c").expect("name")), None);
    }

    #[test]
    fn edns_is_read_and_the_last_of_two_holds() {
        let opt = |size: u16, version: u8, flags: u8| {
            let [high, low] = size.to_be_bytes();
            vec![0, 0, 41, high, low, 0, version, flags, 0, 0, 0]
        };
        let (one, two) = (opt(1232, 1, 0x80), opt(100, 0, 0));
        let bytes = packet(0, [1, 0, 0, 1], &[NAME, &[0, 1, 0, 1], &one]);
        let edns = Query::parse(&bytes).expect("query").edns;
        assert_eq!(
            edns,
            Some(Edns {
                udp_size: 1232,
                version: 1,
                dnssec_ok: true,
                explain: false,
                keepalive: false,
            })
        );
        let bytes = packet(0, [1, 0, 0, 2], &[NAME, &[0, 1, 0, 1], &one, &two]);
        assert_eq!(Query::parse(&bytes).expect("query").udp_limit(), 512);
    }

    #[test]
    fn compressed_names_expand_and_loops_end() {
        let packet = b"\x03foo\0\x01a\xc0\x00\xc0\x07\xc0\x09\x05abc";
        assert_eq!(expand_name(packet, 0), Some(b"\x03foo\0".to_vec()));
        assert_eq!(expand_name(packet, 5), Some(b"\x01a\x03foo\0".to_vec()));
        // 7 is a pointer to 0, 9 a pointer to 7, 11 a pointer to 9: each leads backwards.
        assert_eq!(expand_name(packet, 11), Some(b"\x03foo\0".to_vec()));
        assert_eq!(expand_name(b"\xc0\x00", 0), None);
        assert_eq!(expand_name(b"\x01a\xc0\x00", 0), None);
        assert_eq!(expand_name(packet, 13), None);
        assert_eq!(expand_name(packet, 99), None);
    }
}

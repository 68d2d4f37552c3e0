//! What goes back: a writer that starts from the client's own header and question, so that id, case and flags come
//! back as they came, and that never grows beyond what the client can take.
//!
//! ```text
//! [header + question, copied][answers][authorities][additionals][OPT: 11 bytes, where the client sent one]
//! ```
//! Owners are pointers into the question (`C0 0C` is its name), so that the answer carries no name twice.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::name::Name;
use crate::question::{
    CLASS_IN, Edns, HEADER, Query, Record, expand_name, flag, flags_of, rcode, rtype, set_flags, skip_name,
};

/// What an answer copies from the query.
const COPIED_FLAGS: u16 = flag::OPCODE | flag::RD | flag::AD | flag::CD;
/// An OPT record without options: root, type, class, ttl, length.
const OPT_SIZE: usize = 11;
/// The farthest place that a compression pointer reaches (RFC 1035 §4.1.4: 14 bits).
const POINTER_REACH: usize = 0x3fff;

/// The name that a record belongs to.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'n> {
    /// A name that stands at this place of the packet: pointed at, or repeated where a pointer does not reach.
    At(usize),
    /// A name written out.
    Literal(&'n [u8]),
}

impl Owner<'_> {
    /// The question's name.
    pub const QUESTION: Self = Self::At(HEADER);
}

/// The three sections, in their order in a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Answers.
    Answer,
    /// Authorities.
    Authority,
    /// Additional records; what does not fit is left out without a word (RFC 2181 §9).
    Additional,
}

/// What an A or AAAA record holds.
pub trait Address: Copy {
    /// The record's type, below 256.
    const RTYPE: u16;

    /// Its data.
    fn data(self) -> impl AsRef<[u8]>;
}

impl Address for Ipv4Addr {
    const RTYPE: u16 = rtype::A;

    fn data(self) -> impl AsRef<[u8]> {
        self.octets()
    }
}

impl Address for Ipv6Addr {
    const RTYPE: u16 = rtype::AAAA;

    fn data(self) -> impl AsRef<[u8]> {
        self.octets()
    }
}

/// Writes one answer into a buffer.
pub struct Writer<'b, 'q> {
    out: &'b mut Vec<u8>,
    query: &'q Query<'q>,
    /// Bytes that records may fill: the client's limit without the OPT record.
    limit: usize,
    counts: [u16; 3],
    truncated: bool,
    /// Where the target of the last alias stands.
    alias_at: Option<usize>,
}

impl<'b, 'q> Writer<'b, 'q> {
    /// Starts an answer of at most `limit` bytes in `out`, whose old contents go.
    pub fn start(out: &'b mut Vec<u8>, query: &'q Query<'q>, limit: usize) -> Self {
        out.clear();
        out.extend_from_slice(query.head());
        let reserved = if query.edns.is_some() { OPT_SIZE } else { 0 };
        Self {
            out,
            query,
            limit: limit.saturating_sub(reserved),
            counts: [0; 3],
            truncated: false,
            alias_at: None,
        }
    }

    /// Where the next record will start.
    #[must_use]
    pub fn position(&self) -> usize {
        self.out.len()
    }

    /// What is written so far.
    #[must_use]
    pub fn written(&self) -> &[u8] {
        self.out
    }

    /// Whether a record did not fit into the answer section.
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The shortest form of a name: a pointer, where the question or the last alias's target is the same name.
    #[must_use]
    pub fn owner<'n>(&self, name: &'n [u8]) -> Owner<'n> {
        let stands_at = |at: &usize| {
            let there = self.out.get(*at..*at + name.len());
            there.is_some_and(|there| there.eq_ignore_ascii_case(name))
        };
        let place = [Some(HEADER), self.alias_at]
            .into_iter()
            .flatten()
            .find(stands_at);
        place.map_or(Owner::Literal(name), Owner::At)
    }

    /// Adds a record of the question's name for each of these addresses, beginning with the one at `rotation`: as many
    /// as fit. `[C0 0C][type][class][ttl:4][length:2][address]`, 16 or 28 bytes each.
    pub fn addresses<A: Address>(&mut self, addresses: &[A], rotation: usize, ttl: u32) {
        let size = 12 + size_of::<A>();
        let room = self.limit.saturating_sub(self.out.len()) / size;
        let [a, b, c, d] = ttl.to_be_bytes();
        let head = [
            0xc0,
            0x0c,
            0,
            A::RTYPE as u8,
            0,
            1,
            a,
            b,
            c,
            d,
            0,
            size_of::<A>() as u8,
        ];
        let (tail, front) = addresses.split_at(rotation.checked_rem(addresses.len()).unwrap_or(0));
        for address in front.iter().chain(tail).take(room) {
            self.out.extend_from_slice(&head);
            self.out.extend_from_slice(address.data().as_ref());
        }
        self.counts[0] += room.min(addresses.len()) as u16;
        self.truncated |= room < addresses.len();
    }

    /// Adds a record whose data `data` writes. Returns whether it fitted.
    pub fn record(
        &mut self,
        section: Section,
        owner: Owner<'_>,
        rtype: u16,
        ttl: u32,
        data: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        let start = self.out.len();
        put_owner(self.out, owner);
        self.out.extend_from_slice(&rtype.to_be_bytes());
        self.out.extend_from_slice(&CLASS_IN.to_be_bytes());
        self.out.extend_from_slice(&ttl.to_be_bytes());
        let length_at = self.out.len();
        self.out.extend_from_slice(&[0, 0]);
        data(self.out);
        let length = (self.out.len() - length_at - 2) as u16;
        self.out[length_at..length_at + 2].copy_from_slice(&length.to_be_bytes());
        if self.out.len() > self.limit {
            self.out.truncate(start);
            self.truncated |= section == Section::Answer;
            return false;
        }
        self.counts[section as usize] += 1;
        if rtype == rtype::CNAME {
            self.alias_at = Some(length_at + 2);
        }
        true
    }

    /// Adds an A or AAAA record.
    pub fn address(&mut self, section: Section, owner: Owner<'_>, address: IpAddr, ttl: u32) -> bool {
        match address {
            IpAddr::V4(v4) => self.record(section, owner, rtype::A, ttl, |out| out.extend(v4.octets())),
            IpAddr::V6(v6) => self.record(section, owner, rtype::AAAA, ttl, |out| out.extend(v6.octets())),
        }
    }

    /// Adds a record whose data is one name, written out.
    pub fn name(&mut self, section: Section, owner: Owner<'_>, rtype: u16, ttl: u32, name: &[u8]) -> bool {
        self.record(section, owner, rtype, ttl, |out| out.extend_from_slice(name))
    }

    /// Ends the answer: flags, counts, OPT. `authoritative` sets AA.
    pub fn finish(self, code: u16, authoritative: bool) {
        let mut flags = flag::QR | (self.query.flags() & COPIED_FLAGS) | (code & 15);
        flags |= if authoritative { flag::AA } else { 0 };
        flags |= if self.truncated { flag::TC } else { 0 };
        let mut additionals = self.counts[2];
        if let Some(edns) = self.query.edns {
            Opt { code, ..edns.into() }.put(self.out);
            additionals += 1;
        }
        let words = [flags, 1, self.counts[0], self.counts[1], additionals];
        for (index, word) in words.into_iter().enumerate() {
            self.out[2 + 2 * index..4 + 2 * index].copy_from_slice(&word.to_be_bytes());
        }
    }
}

fn put_owner(out: &mut Vec<u8>, owner: Owner<'_>) {
    match owner {
        Owner::At(at) if at <= POINTER_REACH => {
            out.extend_from_slice(&(0xc000 | at as u16).to_be_bytes());
        }
        Owner::At(at) => {
            let end = skip_name(out, at).unwrap_or(at);
            out.extend_from_within(at..end);
        }
        Owner::Literal(name) => out.extend_from_slice(name),
    }
}

/// An OPT record (RFC 6891 §6.1.2).
///
/// `[root:1][OPT:2][size:2][code:1][version:1][DO:1][0:1][length:2][options] = 11 bytes and the options`
#[derive(Clone, Copy, Debug, Default)]
pub struct Opt<'o> {
    /// The UDP payload that its sender can take, in bytes.
    pub udp_size: u16,
    /// The code of a response, whose high bits stand here (RFC 6891 §6.1.3).
    pub code: u16,
    /// Version; only 0 exists.
    pub version: u8,
    /// The DO bit.
    pub dnssec_ok: bool,
    /// The options, in wire form.
    pub options: &'o [u8],
}

/// What an answer carries: the client's size and DO bit come back, its options do not.
impl From<Edns> for Opt<'_> {
    fn from(edns: Edns) -> Self {
        Self {
            udp_size: edns.udp_size,
            dnssec_ok: edns.dnssec_ok,
            ..Self::default()
        }
    }
}

impl Opt<'_> {
    /// Writes it.
    pub fn put(self, out: &mut Vec<u8>) {
        out.push(0);
        out.extend_from_slice(&rtype::OPT.to_be_bytes());
        out.extend_from_slice(&self.udp_size.to_be_bytes());
        let dnssec_ok = if self.dnssec_ok { 0x80 } else { 0 };
        out.extend_from_slice(&[(self.code >> 4) as u8, self.version, dnssec_ok, 0]);
        out.extend_from_slice(&(self.options.len() as u16).to_be_bytes());
        out.extend_from_slice(self.options);
    }

    /// Adds it to a whole packet, as one more additional record.
    pub fn add_to(self, packet: &mut Vec<u8>) {
        self.put(packet);
        // An upstream may promise as many as there can be.
        let additionals = u16::from_be_bytes([packet[10], packet[11]]).saturating_add(1);
        packet[10..12].copy_from_slice(&additionals.to_be_bytes());
    }
}

/// An answer with a code and nothing else but question and OPT.
pub fn code_only(out: &mut Vec<u8>, query: &Query<'_>, code: u16) {
    Writer::start(out, query, usize::MAX).finish(code, false);
}

/// A bare header with a code, for packets that could not be read to the end of their question.
///
/// The opcode comes back for NOTIMP alone, as from CoreDNS's library.
pub fn header_only(out: &mut Vec<u8>, packet: &[u8], code: u16) {
    out.clear();
    let opcode = if code == rcode::NOTIMP {
        flags_of(packet) & flag::OPCODE
    } else {
        0
    };
    out.extend_from_slice(&packet[..2]);
    out.extend_from_slice(&(flag::QR | opcode | code).to_be_bytes());
    out.extend_from_slice(&[0; 8]);
}

/// Cuts an upstream's response to what the client can take: as many records as fit, and the OPT record where the
/// client sent one. TC is set where what is missing was needed (RFC 2181 §9): an answer, or, where there is none, what
/// the authorities say instead.
pub fn fit(response: &mut Vec<u8>, query: &Query<'_>, limit: usize) {
    if response.len() <= limit {
        return;
    }
    let room = limit.saturating_sub(if query.edns.is_some() { OPT_SIZE } else { 0 });
    let promised = [6, 8, 10].map(|at| u16::from_be_bytes([response[at], response[at + 1]]));
    let mut end = query.question_end;
    let mut kept = [0u16; 3];
    'sections: for (kept, promised) in kept.iter_mut().zip(promised) {
        while *kept < promised {
            match Record::read(response, end) {
                Some((record, next)) if next <= room && record.rtype != rtype::OPT => end = next,
                _ => break 'sections,
            }
            *kept += 1;
        }
    }
    let needed = if promised[0] > 0 { 0 } else { 1 };
    response.truncate(end);
    if kept[needed] < promised[needed] {
        set_flags(response, flag::TC, flag::TC);
    }
    for (at, kept) in [6, 8, 10].into_iter().zip(kept) {
        response[at..at + 2].copy_from_slice(&kept.to_be_bytes());
    }
    put_client_opt(response, query);
}

/// Adds an OPT record to a response that has none, where the client sent one.
pub fn put_client_opt(response: &mut Vec<u8>, query: &Query<'_>) {
    if let Some(edns) = query.edns {
        Opt::from(edns).add_to(response);
    }
}

/// Makes a response to the same question this query's own: id, RD and CD, the question in its case, an OPT record where
/// it has one. The response has none.
pub fn adopt(response: &mut Vec<u8>, query: &Query<'_>) {
    let head = query.head();
    response[..2].copy_from_slice(&head[..2]);
    set_flags(response, flag::RD | flag::CD, query.flags());
    if let Some(question) = response.get_mut(HEADER..query.question_end) {
        question.copy_from_slice(&head[HEADER..]);
    }
    put_client_opt(response, query);
}

/// Takes AD off where the client did not ask for it, by AD or DO (RFC 6840 §5.7).
pub fn hide_ad(response: &mut [u8], query: &Query<'_>) {
    let wanted = query.flags() & flag::AD != 0 || query.edns.is_some_and(|edns| edns.dnssec_ok);
    if !wanted {
        set_flags(response, flag::AD, 0);
    }
}

/// The code of a response.
#[must_use]
pub fn code_of(response: &[u8]) -> u16 {
    response.get(3).map_or(rcode::SERVFAIL, |low| u16::from(low & 15))
}

/// One answer of a response that an alias was followed to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// Its owner, written out.
    pub owner: Vec<u8>,
    /// CNAME or the type asked for.
    pub rtype: u16,
    /// Time to live.
    pub ttl: u32,
    /// Its data, names written out.
    pub data: Vec<u8>,
}

/// The CNAME, A and AAAA records in the answer section of a response without error; nothing else is followed.
#[must_use]
pub fn followed_answers(response: &[u8]) -> Vec<Followed> {
    let mut found = Vec::new();
    let Ok(header) = <&[u8; HEADER]>::try_from(response.get(..HEADER).unwrap_or(&[])) else {
        return found;
    };
    let questions = u16::from_be_bytes([header[4], header[5]]);
    let answers = u16::from_be_bytes([header[6], header[7]]);
    let mut at = HEADER;
    if questions != 1 || code_of(response) != rcode::NOERROR {
        return found;
    }
    // The question: a name that is never compressed, type, class.
    match expand_name(response, at) {
        Some(name) => at += name.len() + 4,
        None => return found,
    }
    for _ in 0..answers {
        let Some((record, next)) = Record::read(response, at) else {
            break;
        };
        at = next;
        let data = match record.rtype {
            rtype::A if record.data.len() == 4 => Some(record.data.to_vec()),
            rtype::AAAA if record.data.len() == 16 => Some(record.data.to_vec()),
            rtype::CNAME => expand_name(response, record.data_at),
            _ => None,
        };
        if let (Some(owner), Some(data)) = (expand_name(response, record.start), data) {
            found.push(Followed {
                owner,
                rtype: record.rtype,
                ttl: record.ttl,
                data,
            });
        }
    }
    found
}

/// The SOA record of a zone whose name stands at `zone_at` inside the question, as CoreDNS makes it: owner, `ns.dns` and
/// `hostmaster` all point there and so come in the question's case.
pub fn put_soa(
    writer: &mut Writer<'_, '_>,
    section: Section,
    zone_at: usize,
    serial: u32,
    ttl: u32,
    minimum: u32,
) -> bool {
    writer.record(section, Owner::At(zone_at), rtype::SOA, ttl, |out| {
        let zone = (0xc000 | zone_at as u16).to_be_bytes();
        out.extend_from_slice(b"\x02ns\x03dns");
        out.extend_from_slice(&zone);
        out.extend_from_slice(b"\x0ahostmaster");
        out.extend_from_slice(&zone);
        for number in [serial, 7200, 1800, 86400, minimum] {
            out.extend_from_slice(&number.to_be_bytes());
        }
    })
}

/// The name made of labels in front of a zone, written out.
#[must_use]
pub fn join(labels: &[&[u8]], zone: &Name) -> Vec<u8> {
    let mut name = Vec::with_capacity(64 + zone.wire().len());
    for label in labels {
        name.push(label.len() as u8);
        name.extend_from_slice(label);
    }
    name.extend_from_slice(zone.wire());
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::question::query_packet;

    fn with_opt(mut packet: Vec<u8>, size: u16) -> Vec<u8> {
        let opt = Opt {
            udp_size: size,
            dnssec_ok: true,
            ..Opt::default()
        };
        opt.add_to(&mut packet);
        packet
    }

    #[test]
    fn as_many_addresses_as_fit_are_written_and_the_rest_is_marked() {
        let name = Name::parse("svc.ns.svc.cluster.local").expect("name");
        let addresses: Vec<Ipv4Addr> = (0..200).map(|n| [10, 0, 0, n].into()).collect();
        for (size, limit, expected) in [
            (None, 512, 29),
            (Some(1232), 1232, 73),
            (Some(4096), 4096, 200),
            (None, 65_535, 200),
        ] {
            let plain = query_packet(7, name.wire(), rtype::A);
            let packet = size.map_or(plain.clone(), |size| with_opt(plain.clone(), size));
            let query = Query::parse(&packet).expect("query");
            let mut out = Vec::new();
            let mut writer = Writer::start(&mut out, &query, limit);
            writer.addresses(&addresses, 199, 30);
            writer.finish(rcode::NOERROR, true);
            assert!(out.len() <= limit);
            assert_eq!(
                u16::from_be_bytes([out[6], out[7]]),
                expected,
                "answers in {limit} bytes"
            );
            assert_eq!(out[2] & 2 != 0, expected < 200, "TC in {limit} bytes");
            assert_eq!(
                out[query.question_end + 12..][..4],
                [10, 0, 0, 199],
                "the rotation's first"
            );
            assert_eq!(out[query.question_end + 6..][..4], [0, 0, 0, 30], "the TTL");
        }
    }

    #[test]
    fn a_long_response_is_cut_to_whole_answers_with_the_opt_record_kept() {
        let name = Name::parse("big.example").expect("name");
        let packet = with_opt(query_packet(7, name.wire(), rtype::A), 600);
        let query = Query::parse(&packet).expect("query");
        let addresses: Vec<Ipv4Addr> = (0..100).map(|n| [10, 0, 0, n].into()).collect();
        let mut response = Vec::new();
        let mut writer = Writer::start(&mut response, &query, 65_535);
        writer.addresses(&addresses, 0, 30);
        writer.finish(rcode::NOERROR, false);
        fit(&mut response, &query, query.udp_limit());
        // 600 - 11 for OPT - 29 of header and question = 560 = 35 records of 16.
        assert_eq!(
            (response.len(), response[7], response[11], response[2] & 2),
            (600, 35, 1, 2)
        );
    }

    #[test]
    fn only_what_the_client_needs_is_missed_when_it_is_cut() {
        let name = Name::parse("big.example").expect("name");
        let packet = with_opt(query_packet(7, name.wire(), rtype::A), 600);
        let query = Query::parse(&packet).expect("query");
        for (what, put, expected) in [
            ("additional records", [1, 1, 40], ([1, 1, 34], false)),
            ("authorities behind an answer", [1, 40, 40], ([1, 34, 1], false)),
            ("authorities alone", [0, 40, 0], ([0, 35, 1], true)),
            ("answers", [40, 1, 1], ([35, 0, 1], true)),
        ] {
            let mut response = Vec::new();
            let mut writer = Writer::start(&mut response, &query, 65_535);
            for (section, count) in [Section::Answer, Section::Authority, Section::Additional]
                .into_iter()
                .zip(put)
            {
                for number in 0..count {
                    writer.address(section, Owner::QUESTION, [10, 0, 0, number].into(), 30);
                }
            }
            writer.finish(rcode::NOERROR, false);
            fit(&mut response, &query, query.udp_limit());
            let counts = [response[7], response[9], response[11]];
            assert_eq!((counts, response[2] & 2 != 0), expected, "{what}");
            assert!(response.len() <= 600, "{what}");
        }
    }

    #[test]
    fn a_name_is_a_pointer_where_it_stands_before_and_written_out_beyond_the_reach_of_one() {
        let wire = |text: &str| Name::parse(text).expect("name").wire().to_vec();
        let packet = query_packet(7, &wire("a.example"), rtype::A);
        let query = Query::parse(&packet).expect("query");
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, &query, 65_535);
        writer.name(
            Section::Answer,
            Owner::QUESTION,
            rtype::CNAME,
            60,
            &wire("b.example"),
        );
        let near = query.question_end + 12;
        for (name, expected) in [
            ("A.example", Some(HEADER)),
            ("B.example", Some(near)),
            ("example", None),
            ("c.b.example", None),
        ] {
            let name = wire(name);
            let at = match writer.owner(&name) {
                Owner::At(at) => Some(at),
                Owner::Literal(_) => None,
            };
            assert_eq!(at, expected, "{name:?}");
        }
        writer.record(Section::Answer, Owner::QUESTION, rtype::TXT, 60, |out| {
            out.resize(out.len() + 0x4000, 0);
        });
        writer.name(
            Section::Answer,
            Owner::QUESTION,
            rtype::CNAME,
            60,
            &wire("far.example"),
        );
        let owner = wire("far.example");
        writer.address(Section::Answer, writer.owner(&owner), [1, 2, 3, 4].into(), 60);
        writer.finish(rcode::NOERROR, true);
        let found = followed_answers(&out);
        assert_eq!(
            found.last().map(|last| (&last.owner, last.rtype)),
            Some((&owner, rtype::A))
        );
    }

    #[test]
    fn followed_answers_come_with_their_names_written_out() {
        let name = Name::parse("a.example").expect("name");
        let packet = query_packet(7, name.wire(), rtype::A);
        let query = Query::parse(&packet).expect("query");
        let mut response = Vec::new();
        let mut writer = Writer::start(&mut response, &query, 512);
        let target_at = writer.position() + 12;
        writer.record(Section::Answer, Owner::QUESTION, rtype::CNAME, 60, |out| {
            out.extend_from_slice(b"\x01b\xc0\x0e");
        });
        writer.address(Section::Answer, Owner::At(target_at), [1, 2, 3, 4].into(), 5);
        writer.record(Section::Answer, Owner::QUESTION, rtype::TXT, 60, |out| {
            out.push(0)
        });
        writer.finish(rcode::NOERROR, false);
        let wire = |text: &str| Name::parse(text).expect("name").wire().to_vec();
        let alias = Followed {
            owner: wire("a.example"),
            rtype: rtype::CNAME,
            ttl: 60,
            data: wire("b.example"),
        };
        let address = Followed {
            owner: wire("b.example"),
            rtype: rtype::A,
            ttl: 5,
            data: vec![1, 2, 3, 4],
        };
        assert_eq!(followed_answers(&response), [alias, address]);
        assert_eq!(followed_answers(&response[..20]), []);
    }
}

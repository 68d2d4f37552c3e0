//! What is done to a whole answer, in place: `minimal` and `loadbalance`.

use crate::answer::{code_of, put_client_opt};
use crate::question::{HEADER, Query, Record, rcode, rtype};

/// Leaves nothing but question and answers of a positive answer, and the OPT record where the client sent one.
pub(super) fn keep_answers(out: &mut Vec<u8>, query: &Query<'_>) {
    let Some((answers, others)) = counts(out) else {
        return;
    };
    if code_of(out) != rcode::NOERROR || answers == 0 || !others {
        return;
    }
    let mut end = query.question_end;
    for _ in 0..answers {
        match Record::read(out, end) {
            Some((_, next)) => end = next,
            None => return,
        }
    }
    out.truncate(end);
    out[8..HEADER].fill(0);
    put_client_opt(out, query);
}

/// Whether the first answer is an alias.
pub(super) fn begins_with_alias(out: &[u8], question_end: usize) -> bool {
    let has_answers = counts(out).is_some_and(|(answers, _)| answers > 0);
    let first = Record::read(out, question_end).filter(|_| has_answers);
    first.is_some_and(|(record, _)| record.rtype == rtype::CNAME)
}

/// Moves addresses on by `rotation` places: each run of A or of AAAA records, the records around it stay. Only
/// records whose owner is a pointer are moved, since nothing else in the packet can point into those.
pub(super) fn rotate_addresses(out: &mut [u8], question_end: usize, rotation: usize) {
    let Some((answers, _)) = counts(out) else { return };
    let mut at = question_end;
    let mut run: Option<(usize, u16, usize)> = None;
    for _ in 0..answers {
        let Some((record, next)) = Record::read(out, at) else {
            return;
        };
        let kind = movable(out, &record, next);
        match run {
            Some((start, size, _)) if kind == Some(size) => run = Some((start, size, next)),
            ended => {
                rotate(out, ended, rotation);
                run = kind.map(|size| (at, size, next));
            }
        }
        at = next;
    }
    rotate(out, run, rotation);
}

/// The size of an address record that may be moved. A and AAAA records differ in it.
fn movable(out: &[u8], record: &Record<'_>, next: usize) -> Option<u16> {
    let is_address = matches!(record.rtype, rtype::A | rtype::AAAA);
    let is_pointer = out.get(record.start).is_some_and(|byte| byte & 0xc0 == 0xc0);
    (is_address && is_pointer).then_some((next - record.start) as u16)
}

fn rotate(out: &mut [u8], run: Option<(usize, u16, usize)>, rotation: usize) {
    let Some((start, size, end)) = run else { return };
    let size = usize::from(size);
    let count = (end - start) / size;
    out[start..end].rotate_left(rotation % count * size);
}

/// How many answers there are, and whether there is anything behind them.
fn counts(out: &[u8]) -> Option<(u16, bool)> {
    let header = out.get(..HEADER)?;
    Some((u16::from_be_bytes([header[6], header[7]]), header[8..] != [0; 4]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Opt, Owner, Section, Writer};
    use crate::name::Name;
    use crate::question::query_packet;

    /// `a.example A` with an alias, `addresses` and records behind them; each address by its last octet.
    fn response(addresses: &[&str]) -> (Vec<u8>, Vec<u8>) {
        let wire = Name::parse("a.example").expect("name").wire().to_vec();
        let packet = query_packet(7, &wire, rtype::A);
        let query = Query::parse(&packet).expect("query");
        let mut out = Vec::new();
        let mut writer = Writer::start(&mut out, &query, 512);
        writer.name(
            Section::Answer,
            Owner::QUESTION,
            rtype::CNAME,
            60,
            b"\x01b\xc0\x0e",
        );
        for address in addresses {
            let address = address.parse().expect("address");
            writer.address(Section::Answer, Owner::QUESTION, address, 60);
        }
        writer.name(Section::Authority, Owner::QUESTION, rtype::NS, 60, &wire);
        writer.address(Section::Additional, Owner::QUESTION, [9, 9, 9, 9].into(), 60);
        writer.finish(rcode::NOERROR, false);
        (packet, out)
    }

    fn last_octets(out: &[u8], question_end: usize) -> Vec<u8> {
        let mut at = question_end;
        let answers = (0..out[7]).filter_map(|_| {
            let (record, next) = Record::read(out, at)?;
            at = next;
            matches!(record.rtype, rtype::A | rtype::AAAA).then(|| record.data.last().copied())?
        });
        answers.collect()
    }

    #[test]
    fn runs_of_addresses_rotate_and_everything_else_stays() {
        let all = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::4", "fd00::5"];
        for (rotation, expected) in [
            (0, [1, 2, 3, 4, 5]),
            (1, [2, 3, 1, 5, 4]),
            (2, [3, 1, 2, 4, 5]),
            (6, [1, 2, 3, 4, 5]),
        ] {
            let (packet, mut out) = response(&all);
            let before = out.clone();
            rotate_addresses(&mut out, packet.len(), rotation);
            assert_eq!(last_octets(&out, packet.len()), expected, "by {rotation}");
            let (alias, addresses) = (12 + 4, 3 * 16 + 2 * 28);
            let start = packet.len() + alias;
            assert_eq!(out[..start], before[..start], "what stands before");
            assert_eq!(
                out[start + addresses..],
                before[start + addresses..],
                "and behind"
            );
        }
        let (packet, mut out) = response(&all);
        for length in 0..out.len() {
            rotate_addresses(&mut out[..length], packet.len(), 1);
        }
    }

    #[test]
    fn a_minimal_answer_has_answers_alone_and_a_denial_keeps_its_soa() {
        let (packet, whole) = response(&["10.0.0.1"]);
        let mut with_opt = packet.clone();
        let opt = Opt {
            udp_size: 1232,
            ..Opt::default()
        };
        opt.add_to(&mut with_opt);
        for (what, packet, counts, length) in [
            ("without EDNS", &packet, [2, 0, 0], packet.len() + 16 + 16),
            ("with EDNS", &with_opt, [2, 0, 1], packet.len() + 16 + 16 + 11),
        ] {
            let mut out = whole.clone();
            keep_answers(&mut out, &Query::parse(packet).expect("query"));
            assert_eq!(([out[7], out[9], out[11]], out.len()), (counts, length), "{what}");
        }
        let query = Query::parse(&packet).expect("query");
        for (what, at, value) in [("NXDOMAIN", 3, 3), ("NODATA", 7, 0)] {
            let mut out = whole.clone();
            out[at] = value;
            let before = out.clone();
            keep_answers(&mut out, &query);
            assert_eq!(out, before, "{what}");
        }
    }
}

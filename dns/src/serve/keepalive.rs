//! EDNS TCP keepalive (RFC 7828): a client that asks is told for how long its connection may be idle.

use std::time::Duration;

use crate::question::{HEADER, Query, Record, rtype, skip_name};

/// The option's number.
pub const OPTION: u16 = 11;
/// Timeouts are told in these (RFC 7828 §3.1).
const UNIT_MILLIS: u128 = 100;

/// Whether a query asks.
#[must_use]
pub fn is_asked(packet: &[u8]) -> bool {
    let query = Query::parse(packet);
    query.is_ok_and(|query| query.edns.is_some_and(|edns| edns.keepalive))
}

/// Tells it in the OPT record of an answer, where there is one and the room.
pub fn tell(answer: &mut Vec<u8>, idle: Duration) {
    let units = u16::try_from(idle.as_millis() / UNIT_MILLIS).unwrap_or(u16::MAX);
    let [[c0, c1], [u0, u1]] = [OPTION, units].map(u16::to_be_bytes);
    let option = [c0, c1, 0, 2, u0, u1];
    let Some((data_at, length)) = opt_data(answer) else {
        return;
    };
    if answer.len() + option.len() > usize::from(u16::MAX) {
        return;
    }
    let told = (length + option.len()) as u16;
    answer[data_at - 2..data_at].copy_from_slice(&told.to_be_bytes());
    let end = data_at + length;
    answer.splice(end..end, option);
}

/// Where the data of an answer's OPT record starts, and how long it is.
fn opt_data(answer: &[u8]) -> Option<(usize, usize)> {
    let header = answer.get(..HEADER)?;
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let mut at = HEADER;
    for _ in 0..count(4) {
        at = skip_name(answer, at)? + 4;
    }
    for _ in 0..count(6) + count(8) + count(10) {
        let (record, next) = Record::read(answer, at)?;
        if record.rtype == rtype::OPT {
            return Some((record.data_at, record.data.len()));
        }
        at = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Opt, code_only};
    use crate::name::Name;
    use crate::question::{query_packet, rcode};

    /// A query with these options, or without an OPT record.
    fn query(options: Option<&[u8]>) -> Vec<u8> {
        let mut packet = query_packet(7, Name::parse("a.example").expect("name").wire(), rtype::A);
        if let Some(options) = options {
            let opt = Opt {
                udp_size: 1232,
                options,
                ..Opt::default()
            };
            opt.add_to(&mut packet);
        }
        packet
    }

    #[test]
    fn who_asks_as_the_rfc_says_is_told() {
        let cookie = [0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
        let behind_a_cookie = [&cookie[..], &[0, 11, 0, 0]].concat();
        for (options, expected) in [
            (None, false),
            (Some(&[][..]), false),
            (Some(&cookie), false),
            (Some(&[0, 11, 0, 0]), true),
            (Some(&behind_a_cookie), true),
            // RFC 7828 §3.2.1: a query has no timeout.
            (Some(&[0, 11, 0, 2, 0, 9]), false),
        ] {
            assert_eq!(is_asked(&query(options)), expected, "{options:?}");
        }
    }

    #[test]
    fn the_option_stands_in_the_opt_record_wherever_that_is() {
        let packet = query(Some(&[]));
        let asked = Query::parse(&packet).expect("query");
        let mut answer = Vec::new();
        code_only(&mut answer, &asked, rcode::NOERROR);
        // A record behind it, as `explain` appends one.
        answer.extend([0, 0, 16, 0, 3, 0, 0, 0, 0, 0, 2, 1, b'x']);
        answer[11] = 2;
        tell(&mut answer, Duration::from_millis(9_950));
        let (data_at, length) = opt_data(&answer).expect("an OPT record");
        assert_eq!(answer[data_at..data_at + length], [0, 11, 0, 2, 0, 99]);
        let message = hickory_proto::op::Message::from_vec(&answer).expect("hickory reads it");
        assert_eq!(message.additionals.len(), 1);
    }

    #[test]
    fn an_answer_without_room_or_without_an_opt_record_stays_as_it_is() {
        let plain = query(None);
        let mut answer = Vec::new();
        code_only(&mut answer, &Query::parse(&plain).expect("query"), rcode::NOERROR);
        let mut full = Vec::new();
        let with_opt = query(Some(&[]));
        code_only(
            &mut full,
            &Query::parse(&with_opt).expect("query"),
            rcode::NOERROR,
        );
        full.resize(65_530, 0);
        for answer in [&mut answer, &mut full, &mut vec![1, 2, 3]] {
            let before = answer.clone();
            tell(answer, Duration::from_secs(1));
            assert_eq!(*answer, before);
        }
    }
}

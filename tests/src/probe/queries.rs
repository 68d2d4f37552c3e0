//! A question to a DNS server, and what its answer says (RFC 1035 §4.1).
//!
//! ```text
//! [id:2][flags:2][questions:2][answers:2][authorities:2][additional:2]  question: [name][type:2][class:2]
//! answer: [name][type:2][class:2][ttl:4][length:2][data]                integers big endian
//! ```

use std::net::Ipv4Addr;

const HEADER: usize = 12;

/// Recursion desired.
const FLAGS: u16 = 0x0100;
const IS_ANSWER: u8 = 0x80;

/// Type A, class IN.
const ADDRESS_V4: [u8; 4] = [0, 1, 0, 1];

/// A query for the IPv4 addresses of a name.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut query = Vec::new();
    for field in [id, FLAGS, 1, 0, 0, 0] {
        query.extend(field.to_be_bytes());
    }
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("labels are short"));
        query.extend(label.as_bytes());
    }
    query.push(0);
    query.extend(ADDRESS_V4);
    query
}

/// The one address in the answer to a query.
///
/// # Errors
/// With what the answer says instead.
pub fn address(query: &[u8], answer: &[u8]) -> Result<Ipv4Addr, String> {
    parse(query, answer).unwrap_or_else(|| Err(format!("not an answer: {answer:02x?}")))
}

fn parse(query: &[u8], answer: &[u8]) -> Option<Result<Ipv4Addr, String>> {
    let is_ours = answer.get(..2)? == query.get(..2)?
        && answer.get(2)? & IS_ANSWER != 0
        && answer.get(HEADER..query.len())? == query.get(HEADER..)?;
    if !is_ours {
        return None;
    }
    let (code, count) = (answer.get(3)? & 0xf, answer.get(6..8)?);
    if code != 0 || count != [0, 1] {
        return Some(Err(format!("code {code}, {count:?} answers")));
    }
    let record = after_name(answer.get(query.len()..)?)?;
    let (head, data) = record.split_at_checked(10)?;
    let is_address = head.get(..4)? == ADDRESS_V4 && head.get(8..)? == [0, 4];
    let address = *data.first_chunk::<4>()?;
    is_address.then(|| Ok(address.into()))
}

/// What follows a name, which ends with the root or a pointer (RFC 1035 §4.1.4).
fn after_name(mut bytes: &[u8]) -> Option<&[u8]> {
    loop {
        match *bytes.first()? {
            0 => return bytes.get(1..),
            length if length >= 0xc0 => return bytes.get(2..),
            length => bytes = bytes.get(1 + usize::from(length)..)?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u8, record: &[u8]) -> Vec<u8> {
        let mut answer = query(7, "web.example");
        answer[2..8].copy_from_slice(&[0x85, code, 0, 1, 0, u8::from(!record.is_empty())]);
        answer.extend(record);
        answer
    }

    #[test]
    fn an_answer_gives_its_address_or_says_what_it_is_instead() {
        let pointer = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 7];
        let whole = [
            &b"\x03web\x07example\0"[..],
            &[0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 7],
        ]
        .concat();
        let asked = query(7, "web.example");
        let vip = Ipv4Addr::new(10, 96, 0, 7);
        for record in [&pointer[..], &whole] {
            assert_eq!(address(&asked, &answered(0, record)), Ok(vip));
        }
        assert_eq!(
            address(&asked, &answered(3, &[])),
            Err("code 3, [0, 0] answers".to_owned())
        );
        let others = [
            query(7, "web.example"),
            answered(0, &pointer[..12]),
            [&[0, 8], &answered(0, &pointer)[2..]].concat(),
        ];
        for other in others {
            assert!(
                address(&asked, &other).is_err_and(|error| error.starts_with("not an answer")),
                "{other:?}"
            );
        }
    }
}

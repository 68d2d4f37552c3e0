//! Names and records as text (RFC 1035 §5.1), for what people write into a Corefile and what they read in a log.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::mnemonic::{type_name, type_number};
use crate::name::{MAX_LABEL, MAX_NAME};
use crate::question::rtype;

/// TTL of a record that names none.
const DEFAULT_TTL: u32 = 3600;
/// Every byte of a name as `\DDD`.
const MAX_TEXT: usize = 4 * MAX_NAME;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its owner in wire form.
    pub owner: Vec<u8>,
    /// Type.
    pub rtype: u16,
    /// Time to live, in seconds.
    pub ttl: u32,
    /// Its data in wire form, without compression.
    pub data: Vec<u8>,
}

/// Why a text is no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It ends where something is still wanted.
    #[error("the record ends where {0} is wanted")]
    Ends(&'static str),
    /// A word that is not what is wanted there.
    #[error("{word:?} is no {wanted}")]
    Word {
        /// The word.
        word: String,
        /// What is wanted.
        wanted: &'static str,
    },
    /// The data cannot be read from text.
    #[error("data of type {0} is only read as \\# LENGTH HEX (RFC 3597)")]
    Opaque(String),
    /// There is more than the record.
    #[error("{0:?} stands behind the end of the record")]
    TooMuch(String),
    /// A quote is opened and not closed.
    #[error("a quote is never closed")]
    OpenQuote,
}

/// A name as text, final dot included, lower case as in the query; on the stack.
pub struct NameText {
    bytes: [u8; MAX_TEXT],
    length: usize,
}

impl NameText {
    /// The text of a name in wire form.
    #[must_use]
    pub fn of(wire: &[u8]) -> Self {
        let mut text = Self {
            bytes: [0; MAX_TEXT],
            length: 0,
        };
        let mut rest = wire;
        while let Some((&length, tail)) = rest.split_first()
            && length > 0
        {
            let (label, tail) = tail.split_at(usize::from(length).min(tail.len()));
            for byte in label {
                text.push(*byte);
            }
            text.put(b".");
            rest = tail;
        }
        if text.length == 0 {
            text.put(b".");
        }
        text
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).expect("invariant: only ASCII is put in")
    }

    fn push(&mut self, byte: u8) {
        match byte {
            b'.' | b'\\' => self.put(&[b'\\', byte]),
            byte if byte.is_ascii_graphic() => self.put(&[byte]),
            byte => self.put(&[b'\\', b'0' + byte / 100, b'0' + byte / 10 % 10, b'0' + byte % 10]),
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        // A name in wire form is never too long; anything else is cut.
        if let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            room.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }
}

/// A name in wire form from its text, with `\X` and `\DDD`, in the case that it is written in; taken as absolute.
#[must_use]
pub fn name(text: &str) -> Option<Vec<u8>> {
    let mut wire = Vec::with_capacity(text.len() + 2);
    let mut label = Vec::new();
    let mut bytes = text.bytes();
    let mut end_label = |label: &mut Vec<u8>| {
        let length = u8::try_from(label.len()).ok()?;
        if length == 0 || label.len() > MAX_LABEL {
            return None;
        }
        wire.push(length);
        wire.append(label);
        Some(())
    };
    while let Some(byte) = bytes.next() {
        match byte {
            b'.' if text == "." => {}
            b'.' => end_label(&mut label)?,
            b'\\' => label.push(escaped(&mut bytes)?),
            byte => label.push(byte),
        }
    }
    if !label.is_empty() {
        end_label(&mut label)?;
    }
    wire.push(0);
    (wire.len() <= MAX_NAME).then_some(wire)
}

/// What stands behind a backslash.
fn escaped(bytes: &mut impl Iterator<Item = u8>) -> Option<u8> {
    let first = bytes.next()?;
    if !first.is_ascii_digit() {
        return Some(first);
    }
    let digits = [first, bytes.next()?, bytes.next()?];
    std::str::from_utf8(&digits).ok()?.parse().ok()
}

/// Reads `OWNER [TTL] [CLASS] TYPE DATA`. Parentheses group nothing, since there is only one line.
///
/// # Errors
/// At the first word that is wrong.
pub fn record(text: &str) -> Result<Record, RecordError> {
    let mut words = Words::of(text)?;
    let owner = words.name("owner")?;
    let mut ttl = DEFAULT_TTL;
    loop {
        let word = words.next("type")?;
        if let Ok(seconds) = word.text.parse() {
            ttl = seconds;
        } else if let Some(rtype) = type_number(&word.text) {
            let data = words.data(rtype)?;
            words.end()?;
            return Ok(Record {
                owner,
                rtype,
                ttl,
                data,
            });
        } else if !word.text.eq_ignore_ascii_case("IN") {
            return Err(word.wrong("TTL, class IN or type"));
        }
    }
}

/// A word of a record.
struct Word {
    text: String,
}

impl Word {
    fn wrong(self, wanted: &'static str) -> RecordError {
        RecordError::Word {
            word: self.text,
            wanted,
        }
    }
}

/// The words of a record, the first one last.
struct Words(Vec<Word>);

impl Words {
    fn of(text: &str) -> Result<Self, RecordError> {
        let mut words = Vec::new();
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                character if character.is_whitespace() || "()".contains(character) => {}
                '"' => {
                    let mut word = String::new();
                    loop {
                        match characters.next().ok_or(RecordError::OpenQuote)? {
                            '"' => break,
                            '\\' => word.extend(characters.next()),
                            character => word.push(character),
                        }
                    }
                    words.push(Word { text: word });
                }
                character => {
                    let mut word = String::from(character);
                    while let Some(more) =
                        characters.next_if(|next| !next.is_whitespace() && !"()\"".contains(*next))
                    {
                        word.push(more);
                    }
                    words.push(Word { text: word });
                }
            }
        }
        words.reverse();
        Ok(Self(words))
    }

    fn next(&mut self, wanted: &'static str) -> Result<Word, RecordError> {
        self.0.pop().ok_or(RecordError::Ends(wanted))
    }

    fn end(&mut self) -> Result<(), RecordError> {
        match self.0.pop() {
            None => Ok(()),
            Some(word) => Err(RecordError::TooMuch(word.text)),
        }
    }

    fn name(&mut self, wanted: &'static str) -> Result<Vec<u8>, RecordError> {
        let word = self.next(wanted)?;
        name(&word.text).ok_or_else(|| word.wrong("domain name"))
    }

    fn number<N: std::str::FromStr>(&mut self, wanted: &'static str) -> Result<N, RecordError> {
        let word = self.next(wanted)?;
        word.text.parse().map_err(|_| word.wrong(wanted))
    }

    /// A text of at most 255 bytes with its length in front.
    fn string(&mut self, data: &mut Vec<u8>) -> Result<(), RecordError> {
        let word = self.next("text")?;
        let Ok(length) = u8::try_from(word.text.len()) else {
            return Err(word.wrong("text of at most 255 bytes"));
        };
        data.push(length);
        data.extend_from_slice(word.text.as_bytes());
        Ok(())
    }

    fn data(&mut self, rtype: u16) -> Result<Vec<u8>, RecordError> {
        const HINFO: u16 = rtype::HINFO;
        const CAA: u16 = 257;
        let mut data = Vec::new();
        if self.0.last().is_some_and(|word| word.text == "\\#") {
            return self.opaque();
        }
        match rtype {
            rtype::A => data.extend(self.number::<Ipv4Addr>("IPv4 address")?.octets()),
            rtype::AAAA => data.extend(self.number::<Ipv6Addr>("IPv6 address")?.octets()),
            rtype::NS | rtype::CNAME | rtype::PTR | rtype::DNAME => data = self.name("domain name")?,
            rtype::MX => {
                data.extend(self.number::<u16>("preference")?.to_be_bytes());
                data.extend(self.name("domain name")?);
            }
            rtype::SRV => {
                for wanted in ["priority", "weight", "port"] {
                    data.extend(self.number::<u16>(wanted)?.to_be_bytes());
                }
                data.extend(self.name("domain name")?);
            }
            rtype::SOA => {
                data.extend(self.name("name server")?);
                data.extend(self.name("mailbox")?);
                for wanted in ["serial", "refresh", "retry", "expire", "minimum"] {
                    data.extend(self.number::<u32>(wanted)?.to_be_bytes());
                }
            }
            rtype::TXT => {
                self.string(&mut data)?;
                while !self.0.is_empty() {
                    self.string(&mut data)?;
                }
            }
            HINFO => {
                self.string(&mut data)?;
                self.string(&mut data)?;
            }
            CAA => {
                data.push(self.number::<u8>("flags")?);
                self.string(&mut data)?;
                data.extend_from_slice(self.next("value")?.text.as_bytes());
            }
            other => return Err(RecordError::Opaque(type_name(other).into_owned())),
        }
        Ok(data)
    }

    /// `\# LENGTH HEX…` (RFC 3597 §5).
    fn opaque(&mut self) -> Result<Vec<u8>, RecordError> {
        self.next("\\#")?;
        let length: u16 = self.number("length")?;
        let mut data = Vec::new();
        while let Some(word) = self.0.pop() {
            let digits = word.text.as_bytes().chunks(2);
            let bytes: Option<Vec<u8>> = digits
                .map(|pair| {
                    u8::from_str_radix(std::str::from_utf8(pair).ok().filter(|p| p.len() == 2)?, 16).ok()
                })
                .collect();
            match bytes {
                Some(bytes) => data.extend(bytes),
                None => return Err(word.wrong("row of hexadecimal bytes")),
            }
        }
        if data.len() != usize::from(length) {
            return Err(RecordError::Ends("as many bytes as its length says"));
        }
        Ok(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_with_their_odd_bytes() {
        let long = format!("{}.", "a".repeat(64));
        for (text, wire, back) in [
            (".", Some(&b"\0"[..]), "."),
            ("a.Example", Some(b"\x01a\x07Example\0"), "a.Example."),
            ("a\\.b.c.", Some(b"\x03a.b\x01c\0"), "a\\.b.c."),
            ("a\\000\\255b", Some(b"\x04a\x00\xffb\0"), "a\\000\\255b."),
            ("a\\\\", Some(b"\x02a\\\0"), "a\\\\."),
            ("a..b", None, ""),
            (".a", None, ""),
            ("a\\", None, ""),
            ("a\\25", None, ""),
            ("a\\256", None, ""),
            (long.as_str(), None, ""),
        ] {
            let read = name(text);
            assert_eq!(read.as_deref(), wire, "{text}");
            if let Some(read) = read {
                assert_eq!(NameText::of(&read).as_str(), back);
            }
        }
        let longest = [&[63; 64][..], &[63; 64], &[63; 64], &[61; 62], &[0]].concat();
        assert_eq!(longest.len(), MAX_NAME);
        let text = NameText::of(&longest).as_str().to_owned();
        assert_eq!(name(&text), Some(longest));
    }

    #[test]
    fn records_are_read_from_text() {
        let soa = [
            &b"\x02ns\0\x01h\0"[..],
            &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 5],
        ]
        .concat();
        for (text, rtype, ttl, data) in [
            ("a 60 IN A 10.0.0.1", 1, 60, &[10, 0, 0, 1][..]),
            ("a IN 60 A 10.0.0.1", 1, 60, &[10, 0, 0, 1]),
            ("a A 10.0.0.1", 1, 3600, &[10, 0, 0, 1]),
            (
                "a 0 aaaa ::1",
                28,
                0,
                &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            ),
            ("a 60 CNAME b.c.", 5, 60, b"\x01b\x01c\0"),
            ("a 60 MX 10 m", 15, 60, b"\0\x0a\x01m\0"),
            ("a 60 SRV 1 2 3 s", 33, 60, b"\0\x01\0\x02\0\x03\x01s\0"),
            ("a 60 SOA ns. h. (1 2 3 4 5)", 6, 60, &soa),
            ("a 60 TXT \"b c\" d", 16, 60, b"\x03b c\x01d"),
            ("a 60 TXT \"say \\\"hi\\\"\"", 16, 60, b"\x08say \"hi\""),
            ("a 60 HINFO x y", 13, 60, b"\x01x\x01y"),
            (
                "a 60 CAA 0 issue \"ca.example\"",
                257,
                60,
                b"\0\x05issueca.example",
            ),
            ("a 60 TYPE65 \\# 3 0102 ff", 65, 60, &[1, 2, 255]),
        ] {
            let expected = Record {
                owner: b"\x01a\0".to_vec(),
                rtype,
                ttl,
                data: data.to_vec(),
            };
            assert_eq!(record(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_record_is_told() {
        for (text, expected) in [
            ("", "the record ends where owner is wanted"),
            ("a", "the record ends where type is wanted"),
            ("a..b A 1.1.1.1", "\"a..b\" is no domain name"),
            ("a CH TXT x", "\"CH\" is no TTL, class IN or type"),
            ("a A 1.1.1", "\"1.1.1\" is no IPv4 address"),
            ("a A", "the record ends where IPv4 address is wanted"),
            (
                "a A 1.1.1.1 2.2.2.2",
                "\"2.2.2.2\" stands behind the end of the record",
            ),
            ("a MX m", "\"m\" is no preference"),
            ("a TXT \"x", "a quote is never closed"),
            (
                "a DS 1 2 3 4",
                "data of type DS is only read as \\# LENGTH HEX (RFC 3597)",
            ),
            (
                "a DS \\# 2 00",
                "the record ends where as many bytes as its length says is wanted",
            ),
            ("a DS \\# 1 0", "\"0\" is no row of hexadecimal bytes"),
        ] {
            assert_eq!(record(text).expect_err(text).to_string(), expected, "{text}");
        }
    }
}

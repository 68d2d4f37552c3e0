//! Reads captures: pcapng as draft-ietf-opsawg-pcapng has it, in little-endian blocks of one section.

use std::collections::BTreeMap;
use std::time::Duration;

/// Options of a block: values by their codes.
pub type Options = BTreeMap<u16, Vec<u8>>;

/// What is in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Of the section.
    pub section: Vec<(u16, String)>,
    /// Link type, longest packet, options.
    pub interfaces: Vec<(u16, u32, Options)>,
    /// In the order of the file.
    pub packets: Vec<Packet>,
    /// Interface, received, dropped.
    pub statistics: Vec<(u32, u64, u64)>,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Number of its interface.
    pub interface: u32,
    /// Since 1970, where the interface counts in nanoseconds.
    pub at: Duration,
    /// What was kept.
    pub bytes: Vec<u8>,
    /// How long it was.
    pub length: u32,
    /// 1: it came, 2: it left.
    pub flags: Option<u32>,
    /// What is said of it.
    pub comment: Option<String>,
}

impl Contents {
    /// The interfaces' names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let name = |(_, _, options): &(u16, u32, Options)| text(options.get(&2).map_or(&[], Vec::as_slice));
        self.interfaces.iter().map(name).collect()
    }
}

/// Reads all of it.
///
/// # Panics
/// When it is none, or not whole.
#[must_use]
pub fn read(mut file: &[u8]) -> Contents {
    let mut contents = Contents::default();
    let mut is_first = true;
    while !file.is_empty() {
        let (kind, total) = (word(file, 0), length(file, 4));
        assert_eq!(total % 4, 0, "blocks end at multiples of four bytes");
        let (block, rest) = file.split_at(total);
        assert_eq!(length(block, total - 4), total, "the length stands at both ends");
        let body = &block[8..total - 4];
        assert_eq!(is_first, kind == 0x0a0d_0d0a, "one section, at the beginning");
        is_first = false;
        match kind {
            0x0a0d_0d0a => {
                assert_eq!(
                    (word(body, 0), word(body, 4)),
                    (0x1a2b_3c4d, 1),
                    "magic and version"
                );
                assert_eq!(&body[8..16], [0xff; 8], "no length of the section");
                let options = options(&body[16..]);
                contents.section = options.iter().map(|(code, value)| (*code, text(value))).collect();
            }
            1 => {
                let link_type = u16::from_le_bytes([body[0], body[1]]);
                contents
                    .interfaces
                    .push((link_type, word(body, 4), options(&body[8..])));
            }
            5 => {
                let options = options(&body[12..]);
                contents
                    .statistics
                    .push((word(body, 0), long(&options[&4]), long(&options[&5])));
            }
            6 => contents.packets.push(packet(body)),
            other => panic!("block {other:#x}"),
        }
        file = rest;
    }
    contents
}

fn packet(body: &[u8]) -> Packet {
    let kept = length(body, 12);
    let options = options(&body[20 + kept.next_multiple_of(4)..]);
    Packet {
        interface: word(body, 0),
        at: Duration::from_nanos(u64::from(word(body, 4)) << 32 | u64::from(word(body, 8))),
        bytes: body[20..20 + kept].to_vec(),
        length: word(body, 16),
        flags: options.get(&2).map(|flags| word(flags, 0)),
        comment: options.get(&1).map(|comment| text(comment)),
    }
}

fn options(mut bytes: &[u8]) -> Options {
    let mut options = Options::new();
    loop {
        let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let (code, length) = (half(0), usize::from(half(2)));
        bytes = &bytes[4..];
        if code == 0 {
            assert_eq!(
                (length, bytes.len()),
                (0, 0),
                "the options end where the block does"
            );
            return options;
        }
        options.insert(code, bytes[..length].to_vec());
        bytes = &bytes[length.next_multiple_of(4)..];
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn length(bytes: &[u8], at: usize) -> usize {
    usize::try_from(word(bytes, at)).expect("a length")
}

fn long(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

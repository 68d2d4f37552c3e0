//! Captures as files: pcapng, draft-ietf-opsawg-pcapng, in little-endian blocks.
//!
//! ```text
//! [type:4][total length:4] body, options [total length:4]
//! option = [code:2][length:2] value, padded to four bytes; the last one is [0:2][0:2]
//! ```

use std::io::{self, Write};
use std::time::Duration;

/// Link types (LINKTYPE_…): Ethernet frames, and packets that begin with their IP header.
pub const ETHERNET: u16 = 1;
/// As above.
pub const RAW_IP: u16 = 101;

/// Types of blocks (draft-ietf-opsawg-pcapng §4): a section's header.
pub const SECTION: u32 = 0x0a0d_0d0a;
/// An interface.
pub const INTERFACE: u32 = 1;
/// A packet.
pub const PACKET: u32 = 6;
/// What an interface counted.
pub const STATISTICS: u32 = 5;

const MAGIC: u32 = 0x1a2b_3c4d;

const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
/// An interface's name, among its options.
pub const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_RESOLUTION: u16 = 9;
const PACKET_FLAGS: u16 = 2;
const STATISTICS_RECEIVED: u16 = 4;
const STATISTICS_DROPPED: u16 = 5;

/// Times are counted in 10⁻⁹ s.
const NANOSECONDS: u8 = 9;

/// A place where packets are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// What it is.
    pub description: String,
    /// How its packets begin.
    pub link_type: u16,
    /// The most that is kept of a packet, in bytes.
    pub snap_length: u32,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'p> {
    /// Number of its interface.
    pub interface: u32,
    /// Since 1970.
    pub at: Duration,
    /// What was kept of it.
    pub bytes: &'p [u8],
    /// How long it is.
    pub length: u32,
    /// It leaves, or comes; None: neither.
    pub is_outgoing: Option<bool>,
    /// What is said of it.
    pub comment: Option<&'p str>,
}

/// Writes a file, or into a pipe.
pub struct Writer<W> {
    to: W,
}

impl<W: Write> Writer<W> {
    /// Begins it.
    ///
    /// # Errors
    /// Those of what is written to, as of all others here.
    pub fn begin(to: W, application: &str, comment: &str) -> io::Result<Self> {
        let mut body = Vec::new();
        body.extend(MAGIC.to_le_bytes());
        // Version 1.0; the section ends where the file does.
        body.extend([1, 0, 0, 0]);
        body.extend((-1i64).to_le_bytes());
        option(&mut body, COMMENT, comment.as_bytes());
        option(&mut body, SECTION_APPLICATION, application.as_bytes());
        let mut writer = Self { to };
        writer.block(SECTION, body)?;
        Ok(writer)
    }

    /// Tells of an interface. They are numbered in this order, from 0 on.
    pub fn interface(&mut self, interface: &Interface) -> io::Result<()> {
        let Interface {
            name,
            description,
            link_type,
            snap_length,
        } = interface;
        let mut body = Vec::new();
        body.extend(link_type.to_le_bytes());
        body.extend([0, 0]);
        body.extend(snap_length.to_le_bytes());
        option(&mut body, INTERFACE_NAME, name.as_bytes());
        option(&mut body, INTERFACE_DESCRIPTION, description.as_bytes());
        option(&mut body, INTERFACE_RESOLUTION, &[NANOSECONDS]);
        self.block(INTERFACE, body)
    }

    /// Writes a packet.
    pub fn packet(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let Packet {
            interface,
            at,
            bytes,
            length,
            is_outgoing,
            comment,
        } = packet;
        let kept = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut body = Vec::new();
        body.extend(interface.to_le_bytes());
        time(&mut body, *at)?;
        body.extend(kept.to_le_bytes());
        body.extend(length.to_le_bytes());
        body.extend_from_slice(bytes);
        pad(&mut body);
        if let Some(comment) = comment {
            option(&mut body, COMMENT, comment.as_bytes());
        }
        if let Some(is_outgoing) = is_outgoing {
            let flags: u32 = if *is_outgoing { 2 } else { 1 };
            option(&mut body, PACKET_FLAGS, &flags.to_le_bytes());
        }
        self.block(PACKET, body)
    }

    /// Tells how many packets an interface had, and how many of them found no room.
    pub fn statistics(
        &mut self,
        interface: u32,
        at: Duration,
        received: u64,
        dropped: u64,
    ) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend(interface.to_le_bytes());
        time(&mut body, at)?;
        option(&mut body, STATISTICS_RECEIVED, &received.to_le_bytes());
        option(&mut body, STATISTICS_DROPPED, &dropped.to_le_bytes());
        self.block(STATISTICS, body)
    }

    /// Hands on what was written, to a reader at the other end of a pipe.
    pub fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }

    fn block(&mut self, kind: u32, mut body: Vec<u8>) -> io::Result<()> {
        // The end of the options.
        body.extend([0; 4]);
        let total = u32::try_from(body.len() + 12).map_err(io::Error::other)?;
        let head = [kind.to_le_bytes(), total.to_le_bytes()].concat();
        self.to
            .write_all(&[&head[..], &body, &total.to_le_bytes()].concat())
    }
}

/// The upper half of the time comes first.
fn time(body: &mut Vec<u8>, at: Duration) -> io::Result<()> {
    let nanos = u64::try_from(at.as_nanos())
        .map_err(io::Error::other)?
        .to_le_bytes();
    body.extend_from_slice(&nanos[4..]);
    body.extend_from_slice(&nanos[..4]);
    Ok(())
}

/// What is too long for an option is cut off, at the beginning of a character.
fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = match std::str::from_utf8(value) {
        Ok(text) => &value[..text.floor_char_boundary(usize::from(u16::MAX))],
        Err(_) => value,
    };
    let Ok(length) = u16::try_from(value.len()) else {
        return;
    };
    body.extend(code.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend_from_slice(value);
    pad(body);
}

/// Blocks and options begin at multiples of four bytes; so does each body.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use ::tests::pcapng as reader;

    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut file = Vec::new();
        let mut writer = Writer::begin(&mut file, "causeway", "any -> 10.0.0.1").expect("written");
        let interface = Interface {
            name: "node-1/eth0".to_owned(),
            description: "the uplink".to_owned(),
            link_type: ETHERNET,
            snap_length: 128,
        };
        writer.interface(&interface).expect("written");
        let at = Duration::new(1_800_000_000, 123_456_789);
        let packet = Packet {
            interface: 0,
            at,
            bytes: &[1, 2, 3, 4, 5],
            length: 1400,
            is_outgoing: Some(true),
            comment: Some("dropped: ü"),
        };
        writer.packet(&packet).expect("written");
        let bare = Packet {
            bytes: &[],
            is_outgoing: None,
            comment: None,
            ..packet
        };
        writer.packet(&bare).expect("written");
        let arriving = Packet {
            is_outgoing: Some(false),
            ..bare
        };
        writer.packet(&arriving).expect("written");
        writer.statistics(0, at, 7, 4).expect("written");
        writer.flush().expect("written");
        let read = reader::read(&file);
        let packet = |bytes: &[u8], flags, comment: Option<&str>| reader::Packet {
            interface: 0,
            at,
            bytes: bytes.to_vec(),
            length: 1400,
            flags,
            comment: comment.map(str::to_owned),
        };
        let options = [
            (2, b"node-1/eth0".to_vec()),
            (3, b"the uplink".to_vec()),
            (9, vec![9]),
        ];
        let expected = reader::Contents {
            section: vec![(1, "any -> 10.0.0.1".to_owned()), (4, "causeway".to_owned())],
            interfaces: vec![(ETHERNET, 128, options.into())],
            packets: vec![
                packet(&[1, 2, 3, 4, 5], Some(2), Some("dropped: ü")),
                packet(&[], None, None),
                packet(&[], Some(1), None),
            ],
            statistics: vec![(0, 7, 4)],
        };
        assert_eq!(read, expected);
    }

    #[test]
    fn a_comment_that_is_too_long_is_cut_between_characters() {
        let mut file = Vec::new();
        let comment = "ü".repeat(40_000);
        Writer::begin(&mut file, "causeway", &comment).expect("written");
        let (_, read) = reader::read(&file).section.into_iter().next().expect("a comment");
        assert_eq!(read, "ü".repeat(32_767));
    }
}

//! Captures of several nodes as one: pcapng files (`capture::pcapng` writes them) become one of one section, whose
//! interfaces bear their nodes' names.
//!
//! Nodes tell packets as they see them, and their connections are not equally fast. A packet is therefore held for a
//! moment, so that packets stand in the order of their times, as far as the nodes' clocks agree.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::capture::pcapng::{INTERFACE, INTERFACE_NAME, PACKET, SECTION, STATISTICS};

/// How long a packet waits for earlier ones. `capture` hands packets on ten times a second.
const HELD: Duration = Duration::from_millis(500);

/// The longest block that is believed: a packet of 64 KiB with its options is less.
const LONGEST_BLOCK: usize = 1 << 20;

/// How `capture` calls the node where it runs, where it does not know its name.
const UNNAMED_NODE: &[u8] = b"host/";

/// What came is no capture.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it wrote is no capture that can be read: {0}")]
pub struct Broken(&'static str);

/// Time in nanoseconds since 1970, and a number of its own.
type Order = (u64, u64);

/// Makes one of them.
#[derive(Debug)]
pub struct Merger {
    nodes: Vec<Stream>,
    has_begun: bool,
    interfaces: u32,
    packets: u64,
    held: BTreeMap<Order, Held>,
    /// Statistics, which stand behind all packets.
    last: Vec<u8>,
}

/// What one node writes.
#[derive(Debug)]
struct Stream {
    node: String,
    /// A block that is not whole yet.
    rest: Vec<u8>,
    /// Which of ours its interfaces are.
    interfaces: Vec<u32>,
}

#[derive(Debug)]
struct Held {
    since: Instant,
    block: Vec<u8>,
}

impl Merger {
    /// Of these nodes, which are known by their numbers from here on.
    #[must_use]
    pub fn new(nodes: impl IntoIterator<Item = String>) -> Self {
        let stream = |node| Stream {
            node,
            rest: Vec::new(),
            interfaces: Vec::new(),
        };
        Self {
            nodes: nodes.into_iter().map(stream).collect(),
            has_begun: false,
            interfaces: 0,
            packets: 0,
            held: BTreeMap::new(),
            last: Vec::new(),
        }
    }

    /// Takes what a node wrote; what is to be written now, also where an error follows it.
    ///
    /// # Errors
    /// When that is no capture. The node's packets are not to be given again.
    pub fn take(&mut self, number: usize, bytes: &[u8], now: Instant) -> (Vec<u8>, Result<(), Broken>) {
        self.nodes[number].rest.extend_from_slice(bytes);
        let mut out = Vec::new();
        let taken = self.blocks(number, now, &mut out);
        (out, taken)
    }

    fn blocks(&mut self, number: usize, now: Instant, out: &mut Vec<u8>) -> Result<(), Broken> {
        while let Some(block) = self.nodes[number].next_block()? {
            self.block(number, block, now, out)?;
        }
        Ok(())
    }

    /// Packets that have waited long enough, and those before them.
    pub fn due(&mut self, now: Instant) -> Vec<u8> {
        let late = |held: &Held| now.saturating_duration_since(held.since) >= HELD;
        let last = self.held.iter().rev().find(|(_, held)| late(held));
        let Some((&(nanos, number), _)) = last else {
            return Vec::new();
        };
        let later = self.held.split_off(&(nanos, number + 1));
        written(std::mem::replace(&mut self.held, later))
    }

    /// All that is left.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = written(std::mem::take(&mut self.held));
        out.append(&mut self.last);
        out
    }

    fn block(
        &mut self,
        number: usize,
        mut block: Vec<u8>,
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), Broken> {
        let stream = &mut self.nodes[number];
        match word(&block, 0)? {
            SECTION => {
                if word(&block, 8)? != 0x1a2b_3c4d {
                    return Err(Broken("it is not in little-endian order"));
                }
                // The first one's says what is captured: the same everywhere.
                if !std::mem::replace(&mut self.has_begun, true) {
                    out.append(&mut block);
                }
            }
            INTERFACE => {
                out.extend(with_node(&block, &stream.node)?);
                stream.interfaces.push(self.interfaces);
                self.interfaces += 1;
            }
            kind @ (STATISTICS | PACKET) => {
                let theirs = usize::try_from(word(&block, 8)?).unwrap_or(usize::MAX);
                let ours = *stream
                    .interfaces
                    .get(theirs)
                    .ok_or(Broken("a packet is of no interface"))?;
                block[8..12].copy_from_slice(&ours.to_le_bytes());
                if kind == STATISTICS {
                    self.last.append(&mut block);
                    return Ok(());
                }
                let nanos = u64::from(word(&block, 12)?) << 32 | u64::from(word(&block, 16)?);
                self.packets += 1;
                self.held
                    .insert((nanos, self.packets), Held { since: now, block });
            }
            _ => return Err(Broken("it has blocks that are not known")),
        }
        Ok(())
    }
}

fn written(held: BTreeMap<Order, Held>) -> Vec<u8> {
    held.into_values().flat_map(|held| held.block).collect()
}

impl Stream {
    /// A whole block, its type and lengths included.
    fn next_block(&mut self) -> Result<Option<Vec<u8>>, Broken> {
        if self.rest.len() < 8 {
            return Ok(None);
        }
        let total = usize::try_from(word(&self.rest, 4)?).unwrap_or(usize::MAX);
        if !(12..=LONGEST_BLOCK).contains(&total) || !total.is_multiple_of(4) {
            return Err(Broken("a block has a length that none can have"));
        }
        if self.rest.len() < total {
            return Ok(None);
        }
        Ok(Some(self.rest.drain(..total).collect()))
    }
}

/// The block of an interface whose name begins with its node's.
///
/// ```text
/// [type:4][total length:4][link type:2][0:2][snap length:4] options [total length:4]
/// ```
fn with_node(block: &[u8], node: &str) -> Result<Vec<u8>, Broken> {
    let end = block.len() - 4;
    let mut body = block
        .get(8..16)
        .ok_or(Broken("an interface is cut off"))?
        .to_vec();
    let mut at = 16;
    while at + 4 <= end {
        let (code, length) = (half(block, at)?, usize::from(half(block, at + 2)?));
        let value = block
            .get(at + 4..at + 4 + length)
            .ok_or(Broken("an option is cut off"))?;
        let value = match code {
            INTERFACE_NAME => [
                node.as_bytes(),
                b"/",
                value.strip_prefix(UNNAMED_NODE).unwrap_or(value),
            ]
            .concat(),
            _ => value.to_vec(),
        };
        let written = u16::try_from(value.len()).map_err(|_| Broken("a name is too long"))?;
        body.extend(code.to_le_bytes());
        body.extend(written.to_le_bytes());
        body.extend(&value);
        body.resize(body.len().next_multiple_of(4), 0);
        at += 4 + length.next_multiple_of(4);
    }
    let total = u32::try_from(body.len() + 12).map_err(|_| Broken("an interface is too long"))?;
    let ends = total.to_le_bytes();
    Ok([&INTERFACE.to_le_bytes()[..], &ends, &body, &ends].concat())
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Broken> {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_le_bytes).ok_or(Broken("a block is cut off"))
}

fn half(bytes: &[u8], at: usize) -> Result<u16, Broken> {
    let bytes = bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u16::from_le_bytes).ok_or(Broken("a block is cut off"))
}

#[cfg(test)]
mod tests {
    use ::tests::pcapng as reader;

    use super::*;
    use crate::capture::pcapng::{ETHERNET, Interface, Packet, Writer};

    /// A node's capture: its interfaces, and packets as interface and time in milliseconds.
    fn capture(interfaces: &[&str], packets: &[(u32, u64)]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut writer = Writer::begin(&mut file, "causeway", "pod/a").expect("a Vec");
        for name in interfaces {
            let interface = Interface {
                name: (*name).to_owned(),
                description: "a device".to_owned(),
                link_type: ETHERNET,
                snap_length: 128,
            };
            writer.interface(&interface).expect("a Vec");
        }
        for (interface, millis) in packets {
            let packet = Packet {
                interface: *interface,
                at: Duration::from_millis(*millis),
                bytes: &[7; 5],
                length: 60,
                is_outgoing: Some(true),
                comment: Some("said"),
            };
            writer.packet(&packet).expect("a Vec");
        }
        writer.statistics(0, Duration::from_secs(9), 3, 1).expect("a Vec");
        file
    }

    /// What is written now of a capture that is one.
    fn take(merger: &mut Merger, number: usize, bytes: &[u8], now: Instant) -> Vec<u8> {
        let (out, taken) = merger.take(number, bytes, now);
        assert_eq!(taken, Ok(()));
        out
    }

    fn merger() -> Merger {
        Merger::new(["node-1", "node-2"].map(str::to_owned))
    }

    #[test]
    fn interfaces_bear_their_nodes_names_and_packets_stand_in_the_order_of_their_times() {
        let now = Instant::now();
        let first = capture(&["host/shop/web/eth0", "host/eth0"], &[(0, 10), (1, 30), (0, 50)]);
        let second = capture(&["host/eth0", "drops"], &[(1, 20), (0, 40)]);
        let mut merger = merger();
        let mut file = Vec::new();
        // In pieces of any length.
        for (number, capture) in [(1, &second), (0, &first)] {
            for bytes in capture.chunks(7) {
                file.extend(take(&mut merger, number, bytes, now));
            }
        }
        assert!(merger.due(now + HELD - Duration::from_millis(1)).is_empty());
        file.extend(merger.finish());
        let contents = reader::read(&file);
        assert_eq!(
            contents.names(),
            [
                "node-2/eth0",
                "node-2/drops",
                "node-1/shop/web/eth0",
                "node-1/eth0"
            ]
        );
        let packets: Vec<(u32, u64)> = contents
            .packets
            .iter()
            .map(|packet| (packet.interface, packet.at.as_millis() as u64))
            .collect();
        assert_eq!(packets, [(2, 10), (1, 20), (3, 30), (0, 40), (2, 50)]);
        assert_eq!(contents.statistics, [(0, 3, 1), (2, 3, 1)]);
        let packet = &contents.packets[0];
        let said = (packet.bytes.as_slice(), packet.length, packet.comment.as_deref());
        assert_eq!(said, (&[7; 5][..], 60, Some("said")));
    }

    #[test]
    fn a_packet_waits_for_earlier_ones_and_not_longer() {
        let now = Instant::now();
        let mut merger = merger();
        let mut file = take(&mut merger, 0, &capture(&["a"], &[(0, 20)]), now);
        let later = now + Duration::from_millis(300);
        let second = capture(&["b"], &[(0, 10), (0, 30)]);
        file.extend(take(&mut merger, 1, &second, later));
        file.extend(merger.due(now + HELD));
        let times = |file: &[u8]| {
            let packets = reader::read(file).packets;
            packets
                .iter()
                .map(|packet| packet.at.as_millis())
                .collect::<Vec<_>>()
        };
        assert_eq!(times(&file), [10, 20]);
        file.extend(merger.due(later + HELD));
        assert_eq!(times(&file), [10, 20, 30]);
        assert!(merger.due(later + 2 * HELD).is_empty());
    }

    #[test]
    fn what_is_no_capture_is_refused() {
        let no_interface = capture(&[], &[]);
        let rows: [(&[u8], &str); 4] = [
            (b"error: it is text", "a block has a length that none can have"),
            (
                &[
                    0x0a, 0x0d, 0x0d, 0x0a, 16, 0, 0, 0, 0x1a, 0x2b, 0x3c, 0x4d, 16, 0, 0, 0,
                ],
                "it is not in little-endian order",
            ),
            (
                &[9, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0],
                "it has blocks that are not known",
            ),
            (&no_interface, "a packet is of no interface"),
        ];
        for (bytes, why) in rows {
            assert_eq!(merger().take(0, bytes, Instant::now()).1, Err(Broken(why)));
        }
    }

    #[test]
    fn what_stands_before_an_error_is_written() {
        const UNKNOWN: [u8; 12] = [9, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0];
        // An interface that ends before its length of packets.
        const CUT_OFF: [u8; 12] = [1, 0, 0, 0, 12, 0, 0, 0, 12, 0, 0, 0];
        let whole = capture(&["a"], &[]);
        let section = usize::try_from(word(&whole, 4).expect("a length")).expect("small");
        let interface =
            section + usize::try_from(word(&whole, section + 4).expect("a length")).expect("small");
        let good = capture(&["b"], &[(0, 10)]);
        let rows: [(&[u8], &[u8], &[&str]); 3] = [
            (&whole[..section], &UNKNOWN, &["node-2/b"]),
            (&whole[..interface], &UNKNOWN, &["node-1/a", "node-2/b"]),
            (&whole[..section], &CUT_OFF, &["node-2/b"]),
        ];
        for (first, broken, names) in rows {
            let mut merger = merger();
            let now = Instant::now();
            let (mut file, taken) = merger.take(0, &[first, broken].concat(), now);
            assert!(taken.is_err());
            file.extend(take(&mut merger, 1, &good, now));
            file.extend(merger.finish());
            let contents = reader::read(&file);
            assert_eq!(contents.names(), names);
            let of: Vec<&str> = contents
                .packets
                .iter()
                .map(|packet| names[packet.interface as usize])
                .collect();
            assert_eq!(of, ["node-2/b"]);
        }
    }
}

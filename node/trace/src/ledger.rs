//! What counts in the kernel grew by from one reading to the next, and what was forgotten in between.

use std::collections::HashMap;
use std::hash::Hash;

use ebpf::abi::tally::{DropCount, DropKey, FlowCount};

/// A count in the kernel.
pub(crate) trait Count: Copy {
    /// All packets that it tells.
    fn packets(&self) -> u64;
    /// When it began. One that was forgotten and made anew began at another time.
    fn first(&self) -> u64;
    /// What it grew by since it was `before`.
    fn since(&self, before: &Self) -> Self;
}

impl Count for DropCount {
    fn packets(&self) -> u64 {
        self.packets
    }

    fn first(&self) -> u64 {
        self.first
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(before.packets),
            bytes: self.bytes.saturating_sub(before.bytes),
            ..*self
        }
    }
}

impl Count for FlowCount {
    fn packets(&self) -> u64 {
        self.sent_packets + self.received_packets
    }

    fn first(&self) -> u64 {
        self.first
    }

    fn since(&self, before: &Self) -> Self {
        Self {
            sent_packets: self.sent_packets.saturating_sub(before.sent_packets),
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
            received_packets: self.received_packets.saturating_sub(before.received_packets),
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
            ..*self
        }
    }
}

/// What was read so far.
#[derive(Debug)]
pub(crate) struct Ledger<K, V> {
    before: HashMap<K, V>,
    read: u64,
}

pub(crate) type Drops = Ledger<DropKey, DropCount>;

impl<K: Copy + Eq + Hash, V: Count> Ledger<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            before: HashMap::new(),
            read: 0,
        }
    }

    /// Takes what the kernel has now: the counts that grew, with what they grew by.
    pub(crate) fn take(&mut self, entries: Vec<(K, V)>) -> Vec<(K, V)> {
        let mut grown = Vec::new();
        for (key, value) in &entries {
            let since = match self.before.get(key) {
                Some(before) if before.first() == value.first() => value.since(before),
                _ => *value,
            };
            if since.packets() > 0 {
                self.read += since.packets();
                grown.push((*key, since));
            }
        }
        self.before = entries.into_iter().collect();
        grown
    }

    /// How many packets of so many were in counts that were forgotten before they were read.
    pub(crate) fn forgotten(&self, counted: u64) -> u64 {
        counted.saturating_sub(self.read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(packets: u64, first: u64) -> DropCount {
        DropCount {
            packets,
            bytes: packets * 100,
            first,
            last: first + packets,
            device: [0; 16],
        }
    }

    #[test]
    fn what_grew_is_told_once_and_what_was_forgotten_is_missed() {
        let mut ledger = Ledger::new();
        let grown = ledger.take(vec![(1, count(3, 10)), (2, count(5, 11))]);
        assert_eq!(grown, [(1, count(3, 10)), (2, count(5, 11))]);
        assert_eq!(ledger.forgotten(8), 0);
        // One grew, one rested.
        let grown = ledger.take(vec![(1, count(4, 10)), (2, count(5, 11))]);
        let by_one = DropCount {
            packets: 1,
            bytes: 100,
            ..count(4, 10)
        };
        assert_eq!(grown, [(1, by_one)]);
        // The second was forgotten after two packets more, and made anew; the first is gone for good.
        assert_eq!(ledger.take(vec![(2, count(6, 90))]), [(2, count(6, 90))]);
        assert_eq!(ledger.forgotten(9 + 2 + 6), 2);
        // Packets that came while it was read are counted already.
        assert_eq!(ledger.forgotten(14), 0);
    }
}

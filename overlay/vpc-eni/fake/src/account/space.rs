//! Which addresses of a subnet are free, and which of them are given next.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};

/// How many addresses a delegated IPv4 block holds: a `/28`.
const BLOCK: u32 = 16;
/// The first addresses of a subnet that AWS keeps: network, router, DNS, and one for later; the last is the fifth.
const KEPT_AT_START: u32 = 4;

/// What comes of wanting one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// Somebody has it.
    InUse,
    /// AWS keeps it.
    Kept,
    /// It is none of the subnet's.
    Elsewhere,
}

/// Where the search for free addresses begins.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// With the lowest.
    Ascending,
    /// Here and there, from this number on: subnets fragment.
    Scattered(u32),
}

/// A subnet's addresses.
pub(super) struct Space {
    start: u32,
    size: u32,
    used: BTreeSet<u32>,
}

impl Space {
    pub(super) fn new(network: Ipv4Network, used: impl IntoIterator<Item = Ipv4Network>) -> Self {
        let start = u32::from(network.network());
        let size = network.size();
        let mut taken: BTreeSet<u32> = (start..start + KEPT_AT_START).collect();
        taken.insert(start + (size - 1));
        for block in used {
            let first = u32::from(block.network());
            taken.extend(first..=first + (block.size() - 1));
        }
        Self {
            start,
            size,
            used: taken,
        }
    }

    pub(super) fn is_free(&self, address: Ipv4Addr) -> bool {
        let address = u32::from(address);
        address >= self.start && address - self.start < self.size && !self.used.contains(&address)
    }

    /// This address and no other.
    pub(super) fn take_this(&mut self, address: Ipv4Addr) -> Taken {
        let number = u32::from(address);
        let Some(place) = number.checked_sub(self.start).filter(|place| *place < self.size) else {
            return Taken::Elsewhere;
        };
        if place < KEPT_AT_START || place == self.size - 1 {
            return Taken::Kept;
        }
        if self.used.insert(number) {
            Taken::Yes
        } else {
            Taken::InUse
        }
    }

    pub(super) fn free(&self) -> u32 {
        self.size - u32::try_from(self.used.len()).expect("invariant: a subnet has at most 2^16 addresses")
    }

    /// So many addresses, or none.
    pub(super) fn take_addresses(&mut self, count: u32, order: Order) -> Option<Vec<Ipv4Addr>> {
        if self.free() < count {
            return None;
        }
        let (first, stride) = match order {
            Order::Ascending => (0, 1),
            Order::Scattered(first) => (first, scattering_stride(self.size)),
        };
        let taken: Vec<u32> = (0..self.size)
            .map(|step| self.start + first.wrapping_add(step.wrapping_mul(stride)) % self.size)
            .filter(|address| !self.used.contains(address))
            .take(count as usize)
            .collect();
        self.used.extend(&taken);
        Some(taken.into_iter().map(Ipv4Addr::from).collect())
    }

    /// So many whole, aligned blocks, or none.
    pub(super) fn take_blocks(&mut self, count: u32) -> Option<Vec<Ipv4Network>> {
        let taken: Vec<u32> = (self.start..self.start + (self.size - 1))
            .step_by(BLOCK as usize)
            .filter(|first| self.used.range(*first..*first + BLOCK).next().is_none())
            .take(count as usize)
            .collect();
        if taken.len() < count as usize {
            return None;
        }
        for first in &taken {
            self.used.extend(*first..first + BLOCK);
        }
        let block =
            |first| Ipv4Network::new(Ipv4Addr::from(first), 28).expect("invariant: 28 is a prefix length");
        Some(taken.into_iter().map(block).collect())
    }
}

/// Steps of the golden ratio leave the smallest gaps that are alike; an odd step comes to all of a power of two.
fn scattering_stride(size: u32) -> u32 {
    (size / 1_000 * 618 + size % 1_000 * 618 / 1_000) | 1
}

/// So many `/80` blocks of a `/64` that are in none of `used`. The first holds what the VPC keeps, and is not given.
pub(super) fn take_blocks_v6(
    network: Ipv6Network,
    used: &BTreeSet<Ipv6Network>,
    count: u32,
) -> Option<Vec<Ipv6Network>> {
    let start = u128::from(network.network());
    let taken: Vec<Ipv6Network> = (1..1_u128 << 16)
        .map(|block| {
            Ipv6Network::new(Ipv6Addr::from(start | (block << 48)), 80)
                .expect("invariant: 80 is a prefix length")
        })
        .filter(|block| !used.contains(block))
        .take(count as usize)
        .collect();
    (taken.len() == count as usize).then_some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Ipv4Network {
        text.parse().unwrap()
    }

    #[test]
    fn the_first_four_addresses_and_the_last_are_never_given() {
        let mut space = Space::new(network("10.0.0.0/28"), []);
        assert_eq!(space.free(), 11);
        let all: Vec<Ipv4Addr> = (4..15).map(|last| Ipv4Addr::new(10, 0, 0, last)).collect();
        assert_eq!(space.take_addresses(11, Order::Ascending), Some(all));
        assert_eq!(space.take_addresses(1, Order::Ascending), None);
    }

    #[test]
    fn a_scattered_search_finds_every_free_address_once() {
        let mut space = Space::new(network("10.0.0.0/24"), [network("10.0.0.16/28")]);
        let mut given = space
            .take_addresses(256 - 5 - 16, Order::Scattered(4_000_000_000))
            .unwrap();
        assert!(given[0] > given[1] || given[1] > given[2], "{given:?}");
        given.sort_unstable();
        let expected: Vec<Ipv4Addr> = (4..16)
            .chain(32..255)
            .map(|last| Ipv4Addr::new(10, 0, 0, last))
            .collect();
        assert_eq!(given, expected);
    }

    #[test]
    fn a_block_is_aligned_and_wholly_free() {
        let mut space = Space::new(network("10.0.0.0/26"), [network("10.0.0.17/32")]);
        // The first holds what AWS keeps, the second an address, the last the broadcast.
        assert_eq!(space.take_blocks(1), Some(vec![network("10.0.0.32/28")]));
        assert_eq!(space.take_blocks(1), None);
        assert_eq!(space.free(), 64 - 5 - 1 - 16);
    }
}

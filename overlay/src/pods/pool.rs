//! Addresses that a node has in blocks which come and go, in place of a subnet: those of a VPC's network interfaces.
//! Pure: what is given next, and what the manager of the blocks may take away.
//!
//! Pods are put together, so that the rest can be given back: into the block that is in use most. Where that leaves a
//! choice, the primary interface comes first, since it is never given back, and then the interface that is in use most.
//! An address that came back is left alone for the cool-down: others may still send to the pod that had it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use model::{ByFamily, IpFamily, Mtu};

use super::addresses::{Addresses, Assigned, AttachmentKey, MOST, Refused};
use super::clock::Now;
use crate::pool::{address, masked, number};

/// Addresses that pods may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Where they lie.
    pub blocks: Vec<Block>,
    /// MTU of pods' devices.
    pub mtu: Mtu,
    /// How long an address that came back is given to nobody.
    pub cool_down: Duration,
    /// Whether there may be more blocks.
    pub growth: Growth,
}

/// A part of a pool. Every address of it is one for a pod, but for the first one of a block of IPv6, which is all of its
/// routers' (RFC 4291 §2.6.1), and as far as they are not more than 4096.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// `/32` for an address by itself, `/28` and `/80` for prefixes.
    pub network: IpNetwork,
    /// Of which network interface of the machine; 0 is the primary one.
    pub device_index: u32,
}

/// Whether a pool gets more blocks when pods need them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Growth {
    /// As far as anybody knows.
    #[default]
    Possible,
    /// Not now.
    Blocked {
        /// Why, for who reads it: a limit of the machine, a subnet without addresses, a right that is missing.
        reason: String,
    },
}

/// What the addresses of a pool are used for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    /// Each block, in the pool's order.
    pub blocks: Vec<Count>,
    /// Addresses that pods have and that are in no block any more.
    pub stranded: Vec<Stranded>,
    /// How many pods wait for an address.
    pub unmet: usize,
}

/// What the addresses of a block are used for. Together they are all that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Which one.
    pub block: Block,
    /// Pods have them, with or without a record.
    pub assigned: usize,
    /// They came back less than the cool-down ago.
    pub cooling: usize,
    /// They can be given, unless the block is withdrawn.
    pub free: usize,
    /// Whether none of them is given.
    pub is_withdrawn: bool,
}

/// An address that a pod has and that is in no block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranded {
    /// The address.
    pub address: IpAddr,
    /// Whose it is.
    pub key: AttachmentKey,
}

/// What came of taking blocks out of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withdrawal {
    /// Of these nothing is in use, nothing cools down, and nothing is given from now on.
    pub withdrawn: Vec<IpNetwork>,
    /// These stay what they are.
    pub refused: Vec<Busy>,
}

/// A block that cannot be taken out of its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// Which one.
    pub network: IpNetwork,
    /// How many of its addresses are in use.
    pub assigned: usize,
    /// How many came back less than the cool-down ago.
    pub cooling: usize,
}

/// A pool that is served.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pool: Pool,
    /// Blocks of it that nothing is given of.
    withdrawn: BTreeSet<IpNetwork>,
    /// Where each network stands in the pool.
    places: HashMap<IpNetwork, usize>,
    /// Prefix lengths that there are, of each version of IP.
    lengths: BTreeSet<(IpFamily, u8)>,
}

/// How much is in use.
struct Usage {
    of_block: Vec<usize>,
    of_device: BTreeMap<u32, usize>,
}

impl Served {
    /// Blocks that are named twice count once. Those that were withdrawn stay so as long as the pool has them.
    pub(super) fn new(mut pool: Pool, before: Option<&Self>) -> Self {
        let mut seen = HashSet::new();
        for block in &mut pool.blocks {
            block.network = masked(block.network);
        }
        pool.blocks.retain(|block| seen.insert(block.network));
        let networks = pool.blocks.iter().map(|block| block.network);
        let places = networks
            .clone()
            .enumerate()
            .map(|(place, network)| (network, place));
        let withdrawn = before.map(|before| before.withdrawn.clone()).unwrap_or_default();
        Self {
            withdrawn: withdrawn
                .into_iter()
                .filter(|network| seen.contains(network))
                .collect(),
            places: places.collect(),
            lengths: networks
                .map(|network| (IpFamily::from(network.ip()), network.prefix()))
                .collect(),
            pool,
        }
    }

    /// Whether the same is given.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.pool == other.pool && self.withdrawn == other.withdrawn
    }

    pub(super) fn mtu(&self) -> Mtu {
        self.pool.mtu
    }

    pub(super) fn growth(&self) -> &Growth {
        &self.pool.growth
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pool.blocks.is_empty()
    }

    /// What blocks there are, for who asks for an address of another one.
    pub(super) fn networks(&self) -> impl Iterator<Item = IpNetwork> {
        self.pool.blocks.iter().map(|block| block.network)
    }

    /// Whether there is an address of each version of IP that the pool has, all of them its own.
    pub(super) fn has(&self, addresses: &ByFamily<IpAddr>) -> bool {
        addresses.families() == self.families()
            && addresses
                .values()
                .all(|address| self.place_of(*address).is_some())
    }

    /// Addresses for an interface, one of each version of IP: those that it has, as far as it does not ask for others; those
    /// that are asked for; else the best ones. As many as interfaces came before it and still wait are left to them.
    pub(super) fn choose_each(
        &self,
        addresses: &Addresses,
        wished: &[IpAddr],
        key: &AttachmentKey,
        taken: &HashSet<IpAddr>,
        ahead: usize,
        now: Now,
    ) -> Result<ByFamily<IpAddr>, Refused> {
        let families = self.families();
        if let Some(stray) = wished.iter().find(|wished| !self.is_usable(**wished)) {
            return Err(Refused::NotOfThisNode(*stray));
        }
        if families.is_empty() {
            return Err(Refused::NoneNow);
        }
        let usage = self.usage(addresses);
        families.try_map(|family, ()| {
            let is_free = |address: IpAddr| {
                !addresses.is_in_use(address)
                    && !taken.contains(&address)
                    && !self.is_withheld(address)
                    && !self.cools(addresses, address, now)
            };
            let free: Vec<(usize, IpAddr)> = self
                .usable(family)
                .filter(|(_, address)| is_free(*address))
                .collect();
            let wished = wished.iter().find(|wished| IpFamily::from(**wished) == family);
            let own = addresses
                .get(key)
                .and_then(|before| before.addresses().get(family).copied());
            if let Some(own) =
                own.filter(|own| self.place_of(*own).is_some() && wished.is_none_or(|wished| wished == own))
            {
                return Ok(own);
            }
            if let Some(wished) = wished {
                if addresses.is_in_use(*wished) || taken.contains(wished) {
                    return Err(Refused::InUse(*wished));
                }
                if !is_free(*wished) {
                    return Err(Refused::NoneNow);
                }
            }
            if free.len() <= ahead {
                return Err(Refused::NoneNow);
            }
            let rank = |(place, address): &(usize, IpAddr)| {
                let device_index = self.pool.blocks.get(*place).map_or(0, |block| block.device_index);
                (
                    Reverse(usage.of_block.get(*place).copied()),
                    device_index != 0,
                    Reverse(usage.of_device.get(&device_index).copied()),
                    addresses.turn_of(*address),
                    device_index,
                    *address,
                )
            };
            let best = free.into_iter().min_by_key(rank).map(|(_, address)| address);
            wished.copied().or(best).ok_or(Refused::NoneNow)
        })
    }

    /// When the next address has cooled down.
    pub(super) fn next_cool(&self, addresses: &Addresses, now: Now) -> Option<Instant> {
        let cooling = addresses.came_back().filter(|address| {
            self.place_of(*address).is_some() && !self.is_withheld(*address) && !addresses.is_in_use(*address)
        });
        cooling
            .filter_map(|address| addresses.cools_until(address, self.pool.cool_down, now))
            .min()
    }

    /// What there is, block by block.
    pub(super) fn counts(&self, addresses: &Addresses, now: Now) -> Vec<Count> {
        let usage = self.usage(addresses);
        let mut cooling = vec![0; self.pool.blocks.len()];
        let cools = |address: &IpAddr| !addresses.is_in_use(*address) && self.cools(addresses, *address, now);
        for address in addresses.came_back().filter(cools) {
            if let Some(count) = self.place_of(address).and_then(|place| cooling.get_mut(place)) {
                *count += 1;
            }
        }
        let blocks = self.pool.blocks.iter().zip(usage.of_block).zip(cooling);
        let count = |((block, assigned), cooling): ((&Block, usize), usize)| Count {
            block: *block,
            assigned,
            cooling,
            free: addresses_of(block.network)
                .count()
                .saturating_sub(assigned + cooling),
            is_withdrawn: self.withdrawn.contains(&block.network),
        };
        blocks.map(count).collect()
    }

    /// Addresses that pods have outside of all blocks.
    pub(super) fn stranded(&self, addresses: &Addresses) -> Vec<Stranded> {
        let of = |assigned: &Assigned| {
            let key = assigned.key.clone();
            let outside = assigned
                .each_address()
                .filter(|address| self.place_of(*address).is_none());
            outside
                .map(|address| Stranded {
                    address,
                    key: key.clone(),
                })
                .collect::<Vec<_>>()
        };
        addresses.iter().flat_map(of).collect()
    }

    /// Takes blocks out of what is given, but for those that are not free. One that the pool does not have is out of it
    /// already.
    pub(super) fn withdraw(&mut self, networks: &[IpNetwork], addresses: &Addresses, now: Now) -> Withdrawal {
        let mut withdrawal = Withdrawal::default();
        for network in networks.iter().copied().map(masked) {
            let assigned = addresses
                .in_use()
                .filter(|address| network.contains(*address))
                .count();
            let came_back = addresses.came_back().filter(|address| network.contains(*address));
            let cooling = came_back
                .filter(|address| self.cools(addresses, *address, now))
                .count();
            if assigned + cooling > 0 {
                withdrawal.refused.push(Busy {
                    network,
                    assigned,
                    cooling,
                });
                continue;
            }
            if self.places.contains_key(&network) {
                self.withdrawn.insert(network);
            }
            withdrawal.withdrawn.push(network);
        }
        withdrawal
    }

    /// Gives of these blocks again.
    pub(super) fn restore(&mut self, networks: &[IpNetwork]) {
        for network in networks {
            self.withdrawn.remove(&masked(*network));
        }
    }

    /// Whether it has to be remembered that an address came back: in a block the longest free one is given first, and
    /// one that cools down may come again in a block.
    pub(super) fn remembers(&self, addresses: &Addresses, address: IpAddr, now: Now) -> bool {
        self.place_of(address).is_some() || self.cools(addresses, address, now)
    }

    fn cools(&self, addresses: &Addresses, address: IpAddr, now: Now) -> bool {
        addresses.cools_until(address, self.pool.cool_down, now).is_some()
    }

    fn families(&self) -> ByFamily<()> {
        self.lengths.iter().map(|(family, _)| (*family, ())).collect()
    }

    /// The addresses of a version of IP that pods may have, each with the place of its block.
    fn usable(&self, family: IpFamily) -> impl Iterator<Item = (usize, IpAddr)> {
        let blocks = self.pool.blocks.iter().enumerate();
        let blocks = blocks.filter(move |(_, block)| IpFamily::from(block.network.ip()) == family);
        let each = blocks
            .flat_map(|(place, block)| addresses_of(block.network).map(move |address| (place, address)));
        // Of blocks that overlap the widest has the address.
        each.filter(|(place, address)| self.place_of(*address) == Some(*place))
    }

    /// Whether a pod may have an address if it asks for it.
    fn is_usable(&self, address: IpAddr) -> bool {
        let place = self.place_of(address);
        let block = place.and_then(|place| self.pool.blocks.get(place));
        block.is_some_and(|block| address != block.network.network() || !has_routers_address(block.network))
    }

    /// Where the block of an address stands in the pool.
    fn place_of(&self, address: IpAddr) -> Option<usize> {
        let family = IpFamily::from(address);
        let lengths = self.lengths.iter().filter(|(of, _)| *of == family);
        lengths
            .filter_map(|(_, length)| IpNetwork::new(address, *length).ok())
            .find_map(|network| {
                let place = self.places.get(&masked(network));
                place.copied()
            })
    }

    /// Whether an address is of a block that is withdrawn.
    fn is_withheld(&self, address: IpAddr) -> bool {
        self.withdrawn.iter().any(|network| network.contains(address))
    }

    fn usage(&self, addresses: &Addresses) -> Usage {
        let mut usage = Usage {
            of_block: vec![0; self.pool.blocks.len()],
            of_device: BTreeMap::new(),
        };
        for place in addresses.in_use().filter_map(|address| self.place_of(address)) {
            if let (Some(count), Some(block)) = (usage.of_block.get_mut(place), self.pool.blocks.get(place)) {
                *count += 1;
                *usage.of_device.entry(block.device_index).or_default() += 1;
            }
        }
        usage
    }
}

/// The addresses of a block that pods may have, in order.
fn addresses_of(block: IpNetwork) -> impl Iterator<Item = IpAddr> {
    let first = number(block.network());
    let last = number(block.broadcast()) - first;
    (u128::from(has_routers_address(block))..=last.min(MOST))
        .filter_map(move |place| address(block.is_ipv4(), first + place))
}

/// Whether the first address of a block is that of its routers. A block of two has none (RFC 6164), nor has one of one.
fn has_routers_address(block: IpNetwork) -> bool {
    block.is_ipv6() && block.prefix() < 127
}

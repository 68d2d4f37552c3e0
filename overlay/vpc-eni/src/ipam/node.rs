//! What this node's interfaces have: EC2's word, with what was changed since.
//!
//! EC2 is eventually consistent: what it says shortly after a change may be older than the change. So our own changes
//! count more than a look within a minute; and what a look misses is doubted first, when no pod is given it any more,
//! and believed lost when a second look misses it, too.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnetwork::IpNetwork;
use tokio::time::Instant;

use crate::ec2::{Addresses, Attached, Eni, EniId, SecurityGroupId, Tags};

/// How long EC2 may speak of what was before a change ("Ensure idempotency", "Eventual consistency" in the EC2 API's
/// developer guide give no figure; minutes are not heard of).
pub const SETTLES: Duration = Duration::from_secs(60);

/// How far two looks are apart that must both miss something.
pub const DOUBT: Duration = Duration::from_secs(30);

/// The interfaces by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    enis: BTreeMap<EniId, Held>,
    /// What had just been given back when this program started.
    leaving: BTreeMap<EniId, BTreeSet<IpNetwork>>,
    /// Interfaces that went from here, and when.
    departed: BTreeMap<EniId, Instant>,
}

/// An interface that this node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What it is and has.
    pub eni: Eni,
    /// Since when it is known here.
    pub since: Instant,
    /// When this program changed it last.
    changed: Option<Instant>,
    /// When a look missed it first.
    missed: Option<Instant>,
    /// Blocks of it that a look missed, and when first.
    doubted: BTreeMap<IpNetwork, Instant>,
    /// Blocks that it gave back, and when.
    gone: BTreeMap<IpNetwork, Instant>,
}

/// What a look brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looked {
    /// EC2 says something else than what is known here, and one of both is old: another look is due after [`DOUBT`].
    pub doubts: bool,
    /// Interfaces that are not this node's any more.
    pub lost_interfaces: Vec<EniId>,
    /// Blocks that are not this node's any more.
    pub lost_blocks: Vec<(EniId, IpNetwork)>,
}

/// A reply that cannot be: an instance always has its primary interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("EC2's list of the instance's interfaces is without the primary one: it is not believed")]
pub struct WithoutPrimary;

impl Held {
    fn new(eni: Eni, now: Instant) -> Self {
        Self {
            eni,
            since: now,
            changed: None,
            missed: None,
            doubted: BTreeMap::new(),
            gone: BTreeMap::new(),
        }
    }

    /// The index of its device; an interface of this node is attached.
    #[must_use]
    pub fn device_index(&self) -> u32 {
        self.eni
            .attachment
            .as_ref()
            .map_or(u32::MAX, |attached| attached.device_index)
    }

    /// All that it has for pods.
    #[must_use]
    pub fn blocks(&self) -> BTreeSet<IpNetwork> {
        blocks_of(&self.eni)
    }

    /// What pods may be given of it.
    #[must_use]
    pub fn offered(&self) -> BTreeSet<IpNetwork> {
        if self.missed.is_some() {
            return BTreeSet::new();
        }
        let blocks = self.blocks().into_iter();
        blocks.filter(|block| !self.doubted.contains_key(block)).collect()
    }

    /// Whether a look missed something of it that is not given up yet.
    #[must_use]
    pub fn is_doubted(&self) -> bool {
        self.missed.is_some() || !self.doubted.is_empty()
    }

    fn is_settled(&self, now: Instant) -> bool {
        self.changed.is_none_or(|changed| now >= changed + SETTLES)
    }

    fn set_blocks(&mut self, blocks: BTreeSet<IpNetwork>) {
        let Addresses {
            secondary,
            prefixes,
            prefixes_v6,
        } = blocks.into_iter().collect();
        self.eni.secondary = secondary;
        self.eni.prefixes = prefixes;
        self.eni.prefixes_v6 = prefixes_v6;
    }

    /// Takes what a look found of it.
    fn take(&mut self, found: Eni, now: Instant, looked: &mut Looked) {
        self.missed = None;
        self.gone.retain(|_, since| now < *since + SETTLES);
        let (known, told) = (self.blocks(), blocks_of(&found));
        self.doubted
            .retain(|block, _| known.contains(block) && !told.contains(block));
        let mut blocks = told.clone();
        // An old word of what has gone.
        blocks.retain(|block| !self.gone.contains_key(block));
        looked.doubts |= blocks.len() < told.len();
        for block in known.difference(&told) {
            let missed_first = *self.doubted.entry(*block).or_insert(now);
            if !self.is_settled(now) {
                // It may have come too lately to be told of: a later look knows.
                self.doubted.remove(block);
                looked.doubts = true;
                blocks.insert(*block);
            } else if now < missed_first + DOUBT {
                looked.doubts = true;
                blocks.insert(*block);
            } else {
                self.doubted.remove(block);
                looked.lost_blocks.push((self.eni.id.clone(), *block));
            }
        }
        self.eni = found;
        self.set_blocks(blocks);
    }
}

impl Node {
    /// A node of which nothing is known but what had just been given back, or was about to be, when the last program
    /// ended.
    #[must_use]
    pub fn new(
        leaving: impl IntoIterator<Item = (EniId, Vec<IpNetwork>)>,
        departed: impl IntoIterator<Item = EniId>,
        now: Instant,
    ) -> Self {
        let mut node = Self {
            departed: departed.into_iter().map(|eni| (eni, now)).collect(),
            ..Self::default()
        };
        for (eni, blocks) in leaving {
            node.leaving.entry(eni).or_default().extend(blocks);
        }
        node
    }

    /// The interfaces, by their device index.
    #[must_use]
    pub fn interfaces(&self) -> Vec<&Held> {
        let mut interfaces: Vec<&Held> = self.enis.values().collect();
        interfaces.sort_by_key(|held| held.device_index());
        interfaces
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, eni: &EniId) -> Option<&Held> {
        self.enis.get(eni)
    }

    /// The one with device index 0.
    #[must_use]
    pub fn primary(&self) -> Option<&Held> {
        self.enis.values().find(|held| held.device_index() == 0)
    }

    /// Takes what EC2 says that the instance has.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn take(&mut self, mut found: Vec<Eni>, now: Instant) -> Result<Looked, WithoutPrimary> {
        self.departed.retain(|_, since| now < *since + SETTLES);
        // An old word of what has gone.
        let all = found.len();
        found.retain(|eni| !self.departed.contains_key(&eni.id));
        let is_primary = |eni: &Eni| {
            let attached = eni.attachment.as_ref();
            attached.is_some_and(|attached| attached.device_index == 0)
        };
        if !found.iter().any(is_primary) {
            return Err(WithoutPrimary);
        }
        let mut looked = Looked {
            doubts: found.len() < all,
            ..Looked::default()
        };
        let names: BTreeSet<EniId> = found.iter().map(|eni| eni.id.clone()).collect();
        for eni in found {
            let id = eni.id.clone();
            match self.enis.get_mut(&id) {
                Some(held) => held.take(eni, now, &mut looked),
                None => {
                    let mut held = Held::new(eni, now);
                    let leaving = self.leaving.remove(&id).unwrap_or_default();
                    held.gone = leaving.into_iter().map(|block| (block, now)).collect();
                    let mut blocks = held.blocks();
                    blocks.retain(|block| !held.gone.contains_key(block));
                    looked.doubts |= blocks.len() < held.blocks().len();
                    held.set_blocks(blocks);
                    self.enis.insert(id, held);
                }
            }
        }
        for (id, held) in self.enis.iter_mut().filter(|(id, _)| !names.contains(*id)) {
            let missed_first = *held.missed.get_or_insert(now);
            if now < held.since + SETTLES {
                held.missed = None;
                looked.doubts = true;
            } else if now < missed_first + DOUBT {
                looked.doubts = true;
            } else {
                looked.lost_interfaces.push(id.clone());
            }
        }
        for lost in &looked.lost_interfaces {
            self.enis.remove(lost);
        }
        Ok(looked)
    }

    /// An interface was attached.
    pub fn attached(&mut self, mut eni: Eni, to: Attached, now: Instant) {
        eni.attachment = Some(to);
        let mut held = Held::new(eni, now);
        held.changed = Some(now);
        self.enis.insert(held.eni.id.clone(), held);
    }

    /// An interface is detached.
    pub fn detached(&mut self, eni: &EniId, now: Instant) {
        self.enis.remove(eni);
        self.departed.insert(eni.clone(), now);
    }

    /// An interface was to be detached and is not: the next look finds it.
    pub fn stays(&mut self, eni: &EniId) {
        self.departed.remove(eni);
    }

    /// An interface has other security groups.
    pub fn regrouped(&mut self, eni: &EniId, groups: Vec<SecurityGroupId>) {
        if let Some(held) = self.enis.get_mut(eni) {
            held.eni.groups = groups;
        }
    }

    /// An interface has more tags, or others of the same keys.
    pub fn tagged(&mut self, eni: &EniId, tags: Tags) {
        if let Some(held) = self.enis.get_mut(eni) {
            held.eni.tags.extend(tags);
        }
    }

    /// Addresses came.
    pub fn came(&mut self, eni: &EniId, addresses: &Addresses, now: Instant) {
        if let Some(held) = self.enis.get_mut(eni) {
            let mut blocks = held.blocks();
            for block in addresses.blocks() {
                held.gone.remove(&block);
                blocks.insert(block);
            }
            held.set_blocks(blocks);
            held.changed = Some(now);
        }
    }

    /// Blocks went, or will.
    pub fn went(&mut self, eni: &EniId, gone: &[IpNetwork], now: Instant) {
        if let Some(held) = self.enis.get_mut(eni) {
            let mut blocks = held.blocks();
            for block in gone {
                blocks.remove(block);
                held.doubted.remove(block);
                held.gone.insert(*block, now);
            }
            held.set_blocks(blocks);
        }
    }

    /// Blocks that were to go have not gone.
    pub fn stayed(&mut self, eni: &EniId, stayed: &[IpNetwork]) {
        if let Some(held) = self.enis.get_mut(eni) {
            held.gone.retain(|block, _| !stayed.contains(block));
            let mut blocks = held.blocks();
            blocks.extend(stayed);
            held.set_blocks(blocks);
        }
    }
}

pub(super) fn blocks_of(eni: &Eni) -> BTreeSet<IpNetwork> {
    let addresses = Addresses {
        secondary: eni.secondary.clone(),
        prefixes: eni.prefixes.clone(),
        prefixes_v6: eni.prefixes_v6.clone(),
    };
    addresses.blocks().collect()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::MacAddr;

    use super::*;
    use crate::ec2::AttachmentId;

    fn eni(index: u32, addresses: &[u8]) -> Eni {
        Eni {
            id: EniId(format!("eni-{index}")),
            subnet: "subnet-1".into(),
            mac: MacAddr::locally_administered([10, 0, 0, 0, 0, index as u8]),
            description: String::new(),
            tags: BTreeMap::new(),
            groups: Vec::new(),
            primary: Ipv4Addr::new(10, 0, index as u8, 4),
            secondary: addresses
                .iter()
                .map(|last| Ipv4Addr::new(10, 0, index as u8, *last))
                .collect(),
            prefixes: Vec::new(),
            prefixes_v6: Vec::new(),
            kind: "interface".to_owned(),
            attachment: Some(attached(index)),
        }
    }

    fn attached(index: u32) -> Attached {
        Attached {
            id: AttachmentId(format!("eni-attach-{index}")),
            instance: "i-1".into(),
            device_index: index,
            card_index: 0,
            delete_on_termination: true,
        }
    }

    fn block(index: u32, last: u8) -> IpNetwork {
        IpNetwork::from(std::net::IpAddr::V4(Ipv4Addr::new(10, 0, index as u8, last)))
    }

    /// A node with two interfaces that have been there for long.
    fn node(now: Instant) -> Node {
        let mut node = Node::new([], [], now);
        let found = vec![eni(0, &[5, 6]), eni(1, &[5, 6])];
        node.take(found, now).expect("the primary one is there");
        node
    }

    /// What it offers after looks that find this after so many seconds, and what of each look is doubtful.
    #[track_caller]
    fn check(
        mut node: Node,
        began: Instant,
        looks: &[(u64, &[Eni])],
        doubts: &[bool],
        offered: &[IpNetwork],
    ) {
        let doubtful = looks.iter().map(|(seconds, found)| {
            let now = began + Duration::from_secs(*seconds);
            node.take(found.to_vec(), now)
                .expect("the primary one is there")
                .doubts
        });
        assert_eq!(doubtful.collect::<Vec<_>>(), doubts);
        let now: Vec<_> = node.interfaces().into_iter().flat_map(Held::offered).collect();
        assert_eq!(now, offered);
    }

    #[test]
    fn what_a_look_misses_is_doubted_for_half_a_minute_and_then_lost() {
        let began = Instant::now();
        let (all, less): (&[Eni], &[Eni]) = (
            &[eni(0, &[5, 6]), eni(1, &[5, 6])],
            &[eni(0, &[5]), eni(1, &[5, 6])],
        );
        let rest = [block(0, 5), block(1, 5), block(1, 6)];
        let each = [block(0, 5), block(0, 6), block(1, 5), block(1, 6)];
        check(node(began), began, &[(100, less)], &[true], &rest);
        check(
            node(began),
            began,
            &[(100, less), (129, less)],
            &[true, true],
            &rest,
        );
        check(
            node(began),
            began,
            &[(100, less), (129, all)],
            &[true, false],
            &each,
        );
        check(
            node(began),
            began,
            &[(100, less), (130, less)],
            &[true, false],
            &rest,
        );
        let one: &[Eni] = &[eni(0, &[5, 6])];
        let primary = [block(0, 5), block(0, 6)];
        check(node(began), began, &[(100, one)], &[true], &primary);
        check(
            node(began),
            began,
            &[(100, one), (129, all)],
            &[true, false],
            &each,
        );
        check(
            node(began),
            began,
            &[(100, one), (130, one)],
            &[true, false],
            &primary,
        );
        // Too young to be told of everywhere.
        check(node(began), began, &[(59, one)], &[true], &each);

        let mut lost = node(began);
        let at = |seconds| began + Duration::from_secs(seconds);
        lost.take(less.to_vec(), at(100)).expect("primary");
        let looked = lost.take(less.to_vec(), at(130)).expect("primary");
        assert_eq!(looked.lost_blocks, [(EniId::from("eni-0"), block(0, 6))]);
        lost.take(one.to_vec(), at(200)).expect("primary");
        assert_eq!(lost.get(&"eni-1".into()).map(Held::is_doubted), Some(true));
        let looked = lost.take(one.to_vec(), at(230)).expect("primary");
        assert_eq!(
            (looked.lost_interfaces, lost.get(&"eni-1".into())),
            (vec!["eni-1".into()], None)
        );
    }

    #[test]
    fn our_own_changes_count_more_than_a_look_within_a_minute() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let old: &[Eni] = &[eni(0, &[5, 6]), eni(1, &[5, 6])];
        let each = [block(0, 5), block(0, 6), block(1, 5), block(1, 6)];

        let mut came = node(began);
        came.came(&"eni-1".into(), &[block(1, 7)].into_iter().collect(), at(100));
        let more = [block(0, 5), block(0, 6), block(1, 5), block(1, 6), block(1, 7)];
        check(came.clone(), began, &[(159, old)], &[true], &more);
        check(came, began, &[(160, old)], &[true], &each);

        let mut went = node(began);
        went.went(&"eni-1".into(), &[block(1, 6)], at(100));
        check(went.clone(), began, &[(159, old)], &[true], &each[..3]);
        check(went.clone(), began, &[(160, old)], &[false], &each);
        went.stayed(&"eni-1".into(), &[block(1, 6)]);
        check(went, began, &[(101, old)], &[false], &each);

        let mut detached = node(began);
        detached.detached(&"eni-1".into(), at(100));
        check(detached.clone(), began, &[(159, old)], &[true], &each[..2]);
        check(detached, began, &[(160, old)], &[false], &each);

        let mut attached_one = node(began);
        attached_one.attached(eni(2, &[5]), attached(2), at(100));
        let more = [block(0, 5), block(0, 6), block(1, 5), block(1, 6), block(2, 5)];
        check(attached_one.clone(), began, &[(159, old)], &[true], &more);
        check(attached_one, began, &[(160, old)], &[true], &each);
    }

    #[test]
    fn what_the_last_program_gave_back_is_not_offered_for_a_minute() {
        let began = Instant::now();
        let old: &[Eni] = &[eni(0, &[5, 6]), eni(1, &[5])];
        let node = Node::new([("eni-0".into(), vec![block(0, 6)])], ["eni-1".into()], began);
        check(node.clone(), began, &[(0, old)], &[true], &[block(0, 5)]);
        let all = [block(0, 5), block(0, 6), block(1, 5)];
        check(node, began, &[(0, old), (60, old)], &[true, false], &all);
    }
}

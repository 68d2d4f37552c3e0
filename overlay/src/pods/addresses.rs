//! Which address is whose: pure bookkeeping over the records of the log.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use model::wiring::{Bandwidth, PortMapping, Wishes};
use model::{ByFamily, IpFamily, MacAddr, ObjectName};
use serde::{Deserialize, Serialize};

use super::clock::{Now, When};
use crate::pool::{address, number};

/// One interface of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// An interface and the addresses it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Which interface.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Its IPv4 address. The names are those of the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address: Option<Ipv4Addr>,
    /// Its IPv6 address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) address_v6: Option<Ipv6Addr>,
    /// Path of its network namespace.
    pub netns: String,
    /// The pod, where the runtime told.
    pub pod: Option<ObjectName>,
    /// Its MAC address, where the runtime asked for one, or another plugin gave it one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// How fast packets may come to it and leave it.
    #[serde(default, skip_serializing_if = "Bandwidth::is_unlimited")]
    pub bandwidth: Bandwidth,
    /// Name of its device on the node's side, where that does not follow from the key alone
    /// ([`wiring::ifname_by_key`](super::wiring::ifname_by_key)). It stays what it was when the pod was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host_ifname: Option<String>,
    /// MAC address of that device, where another plugin wired the pod: inside, it is the gateway's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) host_mac: Option<MacAddr>,
    /// The boot of the machine that it was made in (`/proc/sys/kernel/random/boot_id`): after another boot it is
    /// gone, unless its namespace is there.
    pub boot: String,
}

impl Assigned {
    pub(crate) fn new(key: AttachmentKey, addresses: &ByFamily<IpAddr>) -> Self {
        let mut assigned = Self {
            key,
            address: None,
            address_v6: None,
            netns: String::new(),
            pod: None,
            mac: None,
            port_mappings: Vec::new(),
            bandwidth: Bandwidth::default(),
            host_ifname: None,
            host_mac: None,
            boot: String::new(),
        };
        for address in addresses.values() {
            match address {
                IpAddr::V4(address) => assigned.address = Some(*address),
                IpAddr::V6(address) => assigned.address_v6 = Some(*address),
            }
        }
        assigned
    }

    /// Whether it is what a runtime asks for.
    pub(super) fn grants(&self, wishes: &Wishes) -> bool {
        let Wishes {
            ips,
            mac,
            port_mappings,
            bandwidth,
        } = wishes;
        let addresses = self.addresses();
        let has = |ip: &IpAddr| addresses.values().any(|address| address == ip);
        ips.iter().all(has)
            && self.mac == *mac
            && self.port_mappings == *port_mappings
            && self.bandwidth == *bandwidth
    }

    /// Its addresses, one of each version of IP at most, and one at least.
    #[must_use]
    pub fn addresses(&self) -> ByFamily<IpAddr> {
        ByFamily {
            v4: self.address.map(IpAddr::V4),
            v6: self.address_v6.map(IpAddr::V6),
        }
    }

    /// The same, IPv4's first.
    pub(crate) fn each_address(&self) -> impl Iterator<Item = IpAddr> {
        let ByFamily { v4, v6 } = self.addresses();
        v4.into_iter().chain(v6)
    }
}

/// A line of the log. Fields may come: a version that does not know one reads the line without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Record {
    /// Addresses were given.
    Add(Assigned),
    /// An address came back, and with it the other one of its interface. Kept over rewrites: it is the order in which
    /// addresses are given again.
    Free {
        address: IpAddr,
        /// When, in milliseconds since 1970 by the node's clock; older logs have no time.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        at: Option<u64>,
    },
}

/// That an address came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CameBack {
    /// In the order of all that came back.
    turn: u64,
    when: When,
}

/// All addresses given, and when free ones came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    by_key: BTreeMap<AttachmentKey, Assigned>,
    by_address: HashMap<IpAddr, AttachmentKey>,
    /// Free addresses that came back; never used ones are not here, and go first.
    freed: HashMap<IpAddr, CameBack>,
    turn: u64,
    /// In use by interfaces without a record.
    held: HashSet<IpAddr>,
}

impl Addresses {
    pub(super) fn replay(records: impl IntoIterator<Item = Record>) -> Self {
        let mut addresses = Self::default();
        for record in records {
            match record {
                Record::Add(assigned) => addresses.assign(assigned, When::UNKNOWN),
                Record::Free { address, at } => addresses.free(address, When::logged(at)),
            }
        }
        addresses
    }

    /// Finds out by the clock how long ago addresses came back that the log tells of. The log's time is by a clock that
    /// may have been set since: what it puts into the future, and what has no time, came back now, so that no address
    /// cools down for longer than it would have to. Returns whether there was such a one.
    pub(super) fn compare_clocks(&mut self, now: Now) -> bool {
        let mut is_corrected = false;
        for freed in self.freed.values_mut() {
            is_corrected |= freed.when.compare(now);
        }
        is_corrected
    }

    /// The records that lead to this state, as few as possible.
    pub(super) fn records(&self) -> Vec<Record> {
        let mut freed: Vec<_> = self.freed.iter().collect();
        freed.sort_by_key(|(_, freed)| freed.turn);
        let free = freed.into_iter().map(|(address, freed)| Record::Free {
            address: *address,
            at: freed.when.logged_at(),
        });
        free.chain(self.by_key.values().cloned().map(Record::Add))
            .collect()
    }

    /// How many records those are.
    pub(super) fn record_count(&self) -> usize {
        self.freed.len() + self.by_key.len()
    }

    pub(super) fn get(&self, key: &AttachmentKey) -> Option<&Assigned> {
        self.by_key.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Assigned> {
        self.by_key.values()
    }

    /// The interface that has a port of the node which another one asks for.
    pub(super) fn holder_of_port(
        &self,
        wished: &[PortMapping],
        key: &AttachmentKey,
    ) -> Option<(&Assigned, PortMapping)> {
        let others = self.by_key.values().filter(|assigned| assigned.key != *key);
        let mut pairs =
            others.flat_map(|other| other.port_mappings.iter().map(move |theirs| (other, theirs)));
        pairs.find_map(|(other, theirs)| {
            let wished = wished.iter().find(|wished| wished.collides_with(theirs))?;
            Some((other, *wished))
        })
    }

    /// The free address of a subnet that came back longest ago, or was never given. The first two, the network's own
    /// and the node's (`FLANNEL_SUBNET`), and the last one, IPv4's broadcast address, are never given.
    fn choose(&self, subnet: IpNetwork, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
        let is_used = |address: &IpAddr| {
            self.by_address.contains_key(address) || self.held.contains(address) || taken.contains(address)
        };
        let free = usable(subnet).filter(|address| !is_used(address));
        let never_given = free.clone().find(|address| !self.freed.contains_key(address));
        never_given.or_else(|| free.min_by_key(|address| self.turn_of(*address)))
    }

    /// Addresses of a node's subnets for an interface, one of each: those that are asked for, else free ones, and none of
    /// those that pods have which somebody else wired.
    pub(super) fn choose_each(
        &self,
        subnets: &ByFamily<IpNetwork>,
        wished: &[IpAddr],
        key: &AttachmentKey,
        taken: &HashSet<IpAddr>,
    ) -> Result<ByFamily<IpAddr>, Refused> {
        let stray = wished
            .iter()
            .find(|wished| subnets.get(IpFamily::from(**wished)).is_none());
        if let Some(stray) = stray {
            return Err(Refused::NotOfThisNode(*stray));
        }
        subnets.try_map(|family, subnet| {
            let Some(wished) = wished.iter().find(|wished| IpFamily::from(**wished) == family) else {
                return self.choose(*subnet, taken).ok_or(Refused::Exhausted(*subnet));
            };
            let holder = self.by_address.get(wished);
            if !is_usable(*subnet, *wished) {
                Err(Refused::NotOfThisNode(*wished))
            } else if holder.is_some_and(|holder| holder != key)
                || self.held.contains(wished)
                || taken.contains(wished)
            {
                Err(Refused::InUse(*wished))
            } else {
                Ok(*wished)
            }
        })
    }

    /// When an address came back, in the order of all that did; 0 for one that was never given.
    pub(super) fn turn_of(&self, address: IpAddr) -> u64 {
        self.freed.get(&address).map_or(0, |freed| freed.turn)
    }

    /// When an address may be given again that came back less than `cool_down` ago.
    pub(super) fn cools_until(&self, address: IpAddr, cool_down: Duration, now: Now) -> Option<Instant> {
        let until = self.freed.get(&address)?.when.steady()?.checked_add(cool_down)?;
        (until > now.steady).then_some(until)
    }

    /// Whether an interface has an address, be it with or without a record.
    pub(super) fn is_in_use(&self, address: IpAddr) -> bool {
        self.by_address.contains_key(&address) || self.held.contains(&address)
    }

    /// Every address in use, with and without a record.
    pub(super) fn in_use(&self) -> impl Iterator<Item = IpAddr> {
        let strangers = self
            .held
            .iter()
            .filter(|held| !self.by_address.contains_key(held));
        self.by_address.keys().chain(strangers).copied()
    }

    /// Every address that came back.
    pub(super) fn came_back(&self) -> impl Iterator<Item = IpAddr> {
        self.freed.keys().copied()
    }

    /// Forgets of addresses that they came back, unless they are to be kept.
    pub(super) fn keep_freed(&mut self, is_kept: impl Fn(&Self, IpAddr) -> bool) {
        let kept: HashMap<IpAddr, CameBack> = self
            .freed
            .iter()
            .filter(|(address, _)| is_kept(self, **address))
            .map(|(address, freed)| (*address, *freed))
            .collect();
        self.freed = kept;
    }

    /// Whether the device of another interface has this name.
    pub(super) fn is_called(&self, ifname: &str, key: &AttachmentKey) -> bool {
        let mut others = self.by_key.values().filter(|other| other.key != *key);
        others.any(|other| other.host_ifname.as_deref() == Some(ifname))
    }

    /// Gives addresses; those that an interface had before come back, at that time.
    pub(super) fn assign(&mut self, assigned: Assigned, when: When) {
        let addresses = assigned.addresses();
        for address in addresses.values() {
            self.freed.remove(address);
            // A crash between two records may leave an older holder: the later record is the truth.
            if let Some(holder) = self.by_address.get(address).cloned()
                && holder != assigned.key
                && let Some(before) = self.by_key.remove(&holder)
            {
                self.free_addresses(&before, &addresses, when);
            }
        }
        for address in addresses.values() {
            self.by_address.insert(*address, assigned.key.clone());
        }
        if let Some(before) = self.by_key.insert(assigned.key.clone(), assigned) {
            self.free_addresses(&before, &addresses, when);
        }
    }

    /// Replaces what is in use by interfaces without a record. Whether that is news.
    pub(super) fn hold(&mut self, held: HashSet<IpAddr>) -> bool {
        let is_news = self.held != held;
        self.held = held;
        is_news
    }

    pub(super) fn free(&mut self, address: IpAddr, when: When) {
        let holder = self.by_address.get(&address).cloned();
        match holder.and_then(|key| self.by_key.remove(&key)) {
            Some(assigned) => self.free_addresses(&assigned, &ByFamily::default(), when),
            None => self.free_address(address, when),
        }
    }

    /// Frees the addresses of an interface, but for those that stay in use.
    fn free_addresses(&mut self, assigned: &Assigned, in_use: &ByFamily<IpAddr>, when: When) {
        for address in assigned.addresses().values() {
            if !in_use.values().any(|used| used == address) {
                self.free_address(*address, when);
            }
        }
    }

    fn free_address(&mut self, address: IpAddr, when: When) {
        self.by_address.remove(&address);
        self.turn += 1;
        let came_back = CameBack {
            turn: self.turn,
            when,
        };
        self.freed.insert(address, came_back);
    }

    /// Takes back an assignment that did not become durable, as if it had never been.
    pub(super) fn retract(&mut self, assigned: &Assigned) {
        if self.by_key.get(&assigned.key) == Some(assigned) {
            self.by_key.remove(&assigned.key);
            for address in assigned.addresses().values() {
                self.by_address.remove(address);
            }
        }
    }
}

/// Whether an address of a subnet may be given to who asks for it.
fn is_usable(subnet: IpNetwork, address: IpAddr) -> bool {
    let place = number(address).checked_sub(number(subnet.network()));
    let last = number(subnet.broadcast()) - number(subnet.network());
    subnet.contains(address) && place.is_some_and(|place| (2..last).contains(&place))
}

/// Why an interface gets no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// A subnet has no free one.
    Exhausted(IpNetwork),
    /// What was asked for is not in a subnet of this node, or one of those that are never given.
    NotOfThisNode(IpAddr),
    /// Another interface has what was asked for.
    InUse(IpAddr),
    /// A pool has no address for it yet.
    NoneNow,
}

/// How many addresses of a subnet are used: more than a node has pods, and few enough to go around, since each that came
/// back is remembered.
pub(super) const MOST: u128 = 1 << 12;

/// The addresses of a subnet that may be given, in order.
fn usable(subnet: IpNetwork) -> impl Iterator<Item = IpAddr> + Clone {
    let first = number(subnet.network());
    let last = number(subnet.broadcast()) - first;
    (2..last.min(MOST)).filter_map(move |place| address(subnet.is_ipv4(), first + place))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `addresses` names one of each version of IP.
    fn assigned(container: &str, addresses: &str) -> Assigned {
        let key = AttachmentKey {
            container_id: container.to_owned(),
            ifname: "eth0".to_owned(),
        };
        Assigned::new(key, &addresses.split_whitespace().map(address).collect())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("address")
    }

    fn holders(addresses: &Addresses) -> Vec<&str> {
        addresses
            .iter()
            .map(|assigned| assigned.key.container_id.as_str())
            .collect()
    }

    #[test]
    fn addresses_are_given_in_order_then_the_longest_free_first_until_none_is_left() {
        let subnet = "10.244.1.0/29".parse().expect("subnet");
        let mut addresses = Addresses::default();
        let mut given = Vec::new();
        while let Some(next) = addresses.choose(subnet, &HashSet::new()) {
            addresses.assign(assigned(&next.to_string(), &next.to_string()), When::UNKNOWN);
            given.push(next);
        }
        assert_eq!(
            given,
            [
                "10.244.1.2",
                "10.244.1.3",
                "10.244.1.4",
                "10.244.1.5",
                "10.244.1.6"
            ]
            .map(address)
        );
        for text in ["10.244.1.5", "10.244.1.3"] {
            addresses.free(address(text), When::UNKNOWN);
        }
        assert_eq!(
            addresses.choose(subnet, &HashSet::new()),
            Some(address("10.244.1.5"))
        );
        addresses.assign(assigned("new", "10.244.1.5"), When::UNKNOWN);
        addresses.free(address("10.244.1.5"), When::UNKNOWN);
        assert_eq!(
            addresses.choose(subnet, &HashSet::new()),
            Some(address("10.244.1.3"))
        );
    }

    #[test]
    fn a_rewritten_log_leads_to_the_same_choices() {
        let subnet = "10.244.1.0/29".parse().expect("subnet");
        let mut addresses = Addresses::default();
        for last in 2..7 {
            addresses.assign(
                assigned(&format!("c{last}"), &format!("10.244.1.{last}")),
                When::UNKNOWN,
            );
        }
        for last in [4, 2, 6] {
            addresses.free(address(&format!("10.244.1.{last}")), When::UNKNOWN);
        }
        let mut again = Addresses::replay(addresses.records());
        for _ in 0..3 {
            let chosen = addresses.choose(subnet, &HashSet::new());
            assert_eq!(again.choose(subnet, &HashSet::new()), chosen);
            let next = assigned(&format!("n{chosen:?}"), &chosen.expect("free").to_string());
            addresses.assign(next.clone(), When::UNKNOWN);
            again.assign(next, When::UNKNOWN);
        }
        assert_eq!(again.choose(subnet, &HashSet::new()), None);
    }

    #[test]
    fn a_later_record_wins_over_an_older_holder_of_the_address() {
        let addresses = Addresses::replay([
            Record::Add(assigned("old", "10.244.1.2")),
            Record::Add(assigned("new", "10.244.1.2")),
        ]);
        assert_eq!(holders(&addresses), ["new"]);
    }

    #[test]
    fn both_addresses_of_an_interface_come_and_go_together() {
        let subnets: ByFamily<IpNetwork> = ["10.244.1.0/29", "fd05:0:0:1::/64"]
            .map(|text| text.parse::<IpNetwork>().expect("subnet"))
            .into_iter()
            .collect();
        let mut addresses = Addresses::default();
        for container in ["a", "b"] {
            let each = addresses
                .choose_each(&subnets, &[], &assigned(container, "").key, &HashSet::new())
                .expect("free");
            addresses.assign(Assigned::new(assigned(container, "").key, &each), When::UNKNOWN);
        }
        let b = addresses
            .get(&assigned("b", "").key)
            .expect("assigned")
            .addresses();
        assert_eq!(
            b.values().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.244.1.3", "fd05:0:0:1::3"]
        );
        addresses.free(address("10.244.1.2"), When::UNKNOWN);
        assert_eq!(holders(&addresses), ["b"]);
        for (subnet, freed) in [(subnets.v4, "10.244.1.2"), (subnets.v6, "fd05:0:0:1::2")] {
            assert!(addresses.freed.contains_key(&address(freed)), "{subnet:?}");
        }
        assert_eq!(Addresses::replay(addresses.records()).freed, addresses.freed);
        // The later record has one address of each of two older holders.
        addresses.assign(assigned("c", "10.244.1.4 fd05:0:0:1::4"), When::UNKNOWN);
        addresses.assign(assigned("d", "10.244.1.3 fd05:0:0:1::4"), When::UNKNOWN);
        assert_eq!(holders(&addresses), ["d"]);
        assert_eq!(addresses.by_address.len(), 2);
        let full = (5..7).map(|last| assigned(&format!("n{last}"), &format!("10.244.1.{last}")));
        full.for_each(|assigned| addresses.assign(assigned, When::UNKNOWN));
        addresses.assign(assigned("m", "10.244.1.2"), When::UNKNOWN);
        addresses.assign(assigned("o", "10.244.1.4"), When::UNKNOWN);
        assert_eq!(
            addresses.choose_each(&subnets, &[], &assigned("p", "").key, &HashSet::new()),
            Err(Refused::Exhausted(subnets.v4.expect("dual stack")))
        );
    }

    #[test]
    fn an_address_that_is_asked_for_is_given_to_one_and_only_if_it_is_of_this_node() {
        let subnets: ByFamily<IpNetwork> = ["10.244.1.0/29", "fd05:0:0:1::/64"]
            .map(|text| text.parse::<IpNetwork>().expect("subnet"))
            .into_iter()
            .collect();
        let mut addresses = Addresses::default();
        addresses.assign(assigned("a", "10.244.1.4 fd05:0:0:1::4"), When::UNKNOWN);
        let told = |wished: &str, container: &str| {
            let wished: Vec<IpAddr> = wished.split_whitespace().map(address).collect();
            match addresses.choose_each(&subnets, &wished, &assigned(container, "").key, &HashSet::new()) {
                Ok(each) => each
                    .values()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(" "),
                Err(refused) => format!("{refused:?}"),
            }
        };
        let rows = [
            ("", "b", "10.244.1.2 fd05:0:0:1::2"),
            ("10.244.1.5", "b", "10.244.1.5 fd05:0:0:1::2"),
            ("fd05:0:0:1:9::9", "b", "10.244.1.2 fd05::1:9:0:0:9"),
            ("10.244.1.4", "a", "10.244.1.4 fd05:0:0:1::2"),
            ("10.244.1.4", "b", "InUse(10.244.1.4)"),
            ("10.244.2.4", "b", "NotOfThisNode(10.244.2.4)"),
            ("10.244.1.1", "b", "NotOfThisNode(10.244.1.1)"),
            ("10.244.1.7", "b", "NotOfThisNode(10.244.1.7)"),
            ("fd05:0:0:2::4", "b", "NotOfThisNode(fd05:0:0:2::4)"),
        ];
        for (wished, container, wanted) in rows {
            assert_eq!(told(wished, container), wanted, "{wished} for {container}");
        }
    }

    #[test]
    fn what_an_interface_without_a_record_has_is_given_to_nobody() {
        let subnets: ByFamily<IpNetwork> = ["10.244.1.0/29".parse::<IpNetwork>().expect("subnet")]
            .into_iter()
            .collect();
        let mut addresses = Addresses::default();
        addresses.hold(["10.244.1.2", "10.244.1.4"].map(address).into());
        let key = &assigned("b", "").key;
        let chosen = addresses
            .choose_each(&subnets, &[], key, &HashSet::new())
            .expect("free");
        assert_eq!(chosen.v4, Some(address("10.244.1.3")));
        let wished = address("10.244.1.4");
        assert_eq!(
            addresses.choose_each(&subnets, &[wished], key, &HashSet::new()),
            Err(Refused::InUse(wished))
        );
        // Likewise what pods have that somebody else wired.
        let taken: HashSet<IpAddr> = [address("10.244.1.3"), address("10.244.1.5")].into();
        let chosen = addresses.choose_each(&subnets, &[], key, &taken).expect("free");
        assert_eq!(chosen.v4, Some(address("10.244.1.6")));
        let theirs = address("10.244.1.5");
        assert_eq!(
            addresses.choose_each(&subnets, &[theirs], key, &taken),
            Err(Refused::InUse(theirs))
        );
        addresses.hold(HashSet::new());
        let chosen = addresses
            .choose_each(&subnets, &[wished], key, &HashSet::new())
            .expect("free");
        assert_eq!(chosen.v4, Some(wished));
    }

    #[test]
    fn a_log_from_before_there_was_ipv6_is_read() {
        let line = r#"{"op":"add","container_id":"a","ifname":"eth0","address":"10.244.1.2","netns":"n","pod":null,"boot":"b"}"#;
        let record: Record = serde_json::from_str(line).expect("readable");
        let wanted = Assigned {
            netns: "n".to_owned(),
            boot: "b".to_owned(),
            ..assigned("a", "10.244.1.2")
        };
        assert_eq!(record, Record::Add(wanted));
        assert_eq!(
            serde_json::to_string(&record).expect("plain data"),
            line,
            "and by that version"
        );
    }
}

//! Which address is whose: pure bookkeeping over the records of the log.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use model::ObjectName;
use serde::{Deserialize, Serialize};

/// One interface of one container.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentKey {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`.
    pub ifname: String,
}

/// An interface and the address it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assigned {
    /// Which interface.
    #[serde(flatten)]
    pub key: AttachmentKey,
    /// Its address.
    pub address: Ipv4Addr,
    /// Path of its network namespace.
    pub netns: String,
    /// The pod, where the runtime told.
    pub pod: Option<ObjectName>,
    /// The boot of the machine that it was made in (`/proc/sys/kernel/random/boot_id`): after another boot it is
    /// gone, unless its namespace is there.
    pub boot: String,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase")]
pub(super) enum Record {
    /// An address was given.
    Add(Assigned),
    /// An address came back. Kept over rewrites: it is the order in which addresses are given again.
    Free { address: Ipv4Addr },
}

/// All addresses given, and when free ones came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    by_key: BTreeMap<AttachmentKey, Assigned>,
    by_address: HashMap<Ipv4Addr, AttachmentKey>,
    /// Turn at which a free address came back; never used ones are not here, and go first.
    freed: HashMap<Ipv4Addr, u64>,
    turn: u64,
}

impl Addresses {
    pub(super) fn replay(records: impl IntoIterator<Item = Record>) -> Self {
        let mut addresses = Self::default();
        for record in records {
            match record {
                Record::Add(assigned) => addresses.assign(assigned),
                Record::Free { address } => addresses.free(address),
            }
        }
        addresses
    }

    /// The records that lead to this state, as few as possible.
    pub(super) fn records(&self) -> Vec<Record> {
        let mut freed: Vec<_> = self.freed.iter().collect();
        freed.sort_by_key(|(_, turn)| **turn);
        let free = freed
            .into_iter()
            .map(|(address, _)| Record::Free { address: *address });
        free.chain(self.by_key.values().cloned().map(Record::Add))
            .collect()
    }

    pub(super) fn get(&self, key: &AttachmentKey) -> Option<&Assigned> {
        self.by_key.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Assigned> {
        self.by_key.values()
    }

    /// The free address of a subnet that came back longest ago, or was never given. The first two, the network's own
    /// and the node's (`FLANNEL_SUBNET`), and the broadcast address are never given.
    pub(super) fn choose(&self, subnet: Ipv4Network) -> Option<Ipv4Addr> {
        subnet
            .iter()
            .skip(2)
            .filter(|address| *address != subnet.broadcast() && !self.by_address.contains_key(address))
            .min_by_key(|address| self.freed.get(address).copied().unwrap_or(0))
    }

    pub(super) fn assign(&mut self, assigned: Assigned) {
        self.freed.remove(&assigned.address);
        // A crash between two records may leave an older holder: the later record is the truth.
        if let Some(holder) = self.by_address.insert(assigned.address, assigned.key.clone())
            && holder != assigned.key
        {
            self.by_key.remove(&holder);
        }
        if let Some(before) = self.by_key.insert(assigned.key.clone(), assigned.clone())
            && before.address != assigned.address
        {
            self.free_address(before.address);
        }
    }

    pub(super) fn free(&mut self, address: Ipv4Addr) {
        if let Some(key) = self.by_address.get(&address) {
            self.by_key.remove(&key.clone());
        }
        self.free_address(address);
    }

    fn free_address(&mut self, address: Ipv4Addr) {
        self.by_address.remove(&address);
        self.turn += 1;
        self.freed.insert(address, self.turn);
    }

    /// Takes back an assignment that did not become durable, as if it had never been.
    pub(super) fn retract(&mut self, assigned: &Assigned) {
        if self.by_key.get(&assigned.key) == Some(assigned) {
            self.by_key.remove(&assigned.key);
            self.by_address.remove(&assigned.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assigned(container: &str, address: &str) -> Assigned {
        Assigned {
            key: AttachmentKey {
                container_id: container.to_owned(),
                ifname: "eth0".to_owned(),
            },
            address: address.parse().expect("address"),
            netns: String::new(),
            pod: None,
            boot: String::new(),
        }
    }

    fn address(text: &str) -> Ipv4Addr {
        text.parse().expect("address")
    }

    #[test]
    fn addresses_are_given_in_order_then_the_longest_free_first_until_none_is_left() {
        let subnet = "10.244.1.0/29".parse().expect("subnet");
        let mut addresses = Addresses::default();
        let mut given = Vec::new();
        while let Some(next) = addresses.choose(subnet) {
            addresses.assign(assigned(&next.to_string(), &next.to_string()));
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
            addresses.free(address(text));
        }
        assert_eq!(addresses.choose(subnet), Some(address("10.244.1.5")));
        addresses.assign(assigned("new", "10.244.1.5"));
        addresses.free(address("10.244.1.5"));
        assert_eq!(addresses.choose(subnet), Some(address("10.244.1.3")));
    }

    #[test]
    fn a_rewritten_log_leads_to_the_same_choices() {
        let subnet = "10.244.1.0/29".parse().expect("subnet");
        let mut addresses = Addresses::default();
        for last in 2..7 {
            addresses.assign(assigned(&format!("c{last}"), &format!("10.244.1.{last}")));
        }
        for last in [4, 2, 6] {
            addresses.free(Ipv4Addr::new(10, 244, 1, last));
        }
        let mut again = Addresses::replay(addresses.records());
        for _ in 0..3 {
            let chosen = addresses.choose(subnet);
            assert_eq!(again.choose(subnet), chosen);
            let next = assigned(&format!("n{chosen:?}"), &chosen.expect("free").to_string());
            addresses.assign(next.clone());
            again.assign(next);
        }
        assert_eq!(again.choose(subnet), None);
    }

    #[test]
    fn a_later_record_wins_over_an_older_holder_of_the_address() {
        let addresses = Addresses::replay([
            Record::Add(assigned("old", "10.244.1.2")),
            Record::Add(assigned("new", "10.244.1.2")),
        ]);
        assert_eq!(
            addresses
                .iter()
                .map(|a| a.key.container_id.as_str())
                .collect::<Vec<_>>(),
            ["new"]
        );
    }
}

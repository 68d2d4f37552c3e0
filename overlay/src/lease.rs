//! Which subnet a node claims: pure, from what is there and what it had.

use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use model::NodeName;
use sha2::{Digest, Sha256};

use crate::flannel::{NetworkConfig, Record};

/// A lease in etcd, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The lease.
    pub record: Record,
    /// Its key's revision: a write compares it.
    pub mod_revision: i64,
    /// It has no time to live: an operator reserved it (flannel, `Documentation/reservations.md`), and it stays so.
    pub reserved: bool,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// This node.
    pub node: NodeName,
    /// Its address.
    pub public_ip: Ipv4Addr,
    /// The subnet it had before, by its own files.
    pub previous: Option<Ipv4Network>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Write over this lease, which is ours.
    Keep(Held),
    /// Create one of these, in this order of preference.
    Create(Vec<Ipv4Network>),
    /// Another node has our address.
    Duplicate {
        /// Who.
        holder: NodeName,
        /// Its subnet.
        subnet: Ipv4Network,
    },
}

/// How many subnets are tried before the leases are listed again.
const CANDIDATES: usize = 10;

/// Chooses a subnet. Order: the lease that carries our name; one with our address that carries no name (flannel's own,
/// or a reservation); the one we had before; any free one, beginning at a place that depends on the node's name, so
/// that nodes that start together seldom race. Free means: overlapping no lease, whatever its length.
#[must_use]
pub fn choose(config: &NetworkConfig, held: &[Held], claimant: &Claimant) -> Choice {
    let fits = |held: &&Held| config.admits(held.record.lease.subnet);
    let ours = |held: &&Held| held.record.node.as_ref() == Some(&claimant.node);
    let with_our_address = |held: &&Held| held.record.lease.public_ip == claimant.public_ip;
    let another = held.iter().filter(with_our_address).find_map(|held| {
        let holder = held
            .record
            .node
            .clone()
            .filter(|holder| *holder != claimant.node)?;
        Some(Choice::Duplicate {
            holder,
            subnet: held.record.lease.subnet,
        })
    });
    if let Some(duplicate) = another {
        return duplicate;
    }
    let unnamed = |held: &&Held| held.record.node.is_none() && with_our_address(held);
    let kept = held
        .iter()
        .filter(fits)
        .find(ours)
        .or_else(|| held.iter().filter(fits).find(unnamed));
    if let Some(kept) = kept {
        return Choice::Keep(kept.clone());
    }
    let free = |subnet: &Ipv4Network| {
        config.admits(*subnet) && !held.iter().any(|held| overlap(held.record.lease.subnet, *subnet))
    };
    let previous = claimant.previous.filter(free);
    let others =
        candidates(config, &claimant.node).filter(|subnet| free(subnet) && Some(*subnet) != previous);
    Choice::Create(previous.into_iter().chain(others).take(CANDIDATES).collect())
}

/// Whether two networks share an address.
#[must_use]
pub fn overlap(a: Ipv4Network, b: Ipv4Network) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// All subnets of the network once, beginning at a place that the node's name decides.
fn candidates(config: &NetworkConfig, node: &NodeName) -> impl Iterator<Item = Ipv4Network> + use<> {
    let length = config.subnet_len;
    let size = 1_u64 << (32 - u32::from(length));
    let (first, last) = (
        u64::from(u32::from(config.subnet_min)),
        u64::from(u32::from(config.subnet_max)),
    );
    let count = (last - first) / size + 1;
    let digest: [u8; 32] = Sha256::digest(node.0.as_bytes()).into();
    let [a, b, c, d, ..] = digest;
    let start = u64::from(u32::from_be_bytes([a, b, c, d])) % count;
    (0..count).filter_map(move |step| {
        let address = u32::try_from(first + (start + step) % count * size).ok()?;
        Ipv4Network::new(address.into(), length).ok()
    })
}

#[cfg(test)]
mod tests {
    use model::MacAddr;
    use model::lease::{Encap, Lease};

    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).expect("valid")
    }

    fn small() -> NetworkConfig {
        config(r#"{"Network":"10.5.0.0/22","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#)
    }

    fn held(subnet: &str, public_ip: &str, node: Option<&str>) -> Held {
        let encap = Encap::Vxlan {
            vni: model::Vni(1),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        };
        let lease = Lease {
            subnet: subnet.parse().expect("subnet"),
            subnet_v6: None,
            public_ip: public_ip.parse().expect("address"),
            public_ip_v6: None,
            encap,
            encap_v6: None,
        };
        let mut record = Record::new(lease, NodeName::from("x"));
        record.node = node.map(NodeName::from);
        Held {
            record,
            mod_revision: 7,
            reserved: false,
        }
    }

    fn told(choice: Choice) -> String {
        match choice {
            Choice::Keep(held) => format!("keep {}", held.record.lease.subnet),
            Choice::Duplicate { holder, subnet } => format!("duplicate of {holder} at {subnet}"),
            Choice::Create(subnets) => {
                let mut subnets: Vec<String> = subnets.iter().map(Ipv4Network::to_string).collect();
                if let Some(rest) = subnets.get_mut(1..) {
                    rest.sort();
                }
                format!("create {}", subnets.join(" "))
            }
        }
    }

    #[test]
    fn a_node_keeps_what_is_its_own_and_else_takes_what_is_free() {
        let me = || Claimant {
            node: "me".into(),
            public_ip: "172.30.0.11".parse().expect("address"),
            previous: None,
        };
        let had = |subnet: &str| Claimant {
            previous: Some(subnet.parse().expect("subnet")),
            ..me()
        };
        let rows = [
            (
                "nothing is taken",
                vec![],
                had("10.5.2.0/24"),
                "create 10.5.2.0/24 10.5.1.0/24 10.5.3.0/24",
            ),
            (
                "ours by address, flannel's",
                vec![held("10.5.3.0/24", "172.30.0.11", None)],
                me(),
                "keep 10.5.3.0/24",
            ),
            (
                "ours by name, moved",
                vec![held("10.5.3.0/24", "172.30.0.99", Some("me"))],
                me(),
                "keep 10.5.3.0/24",
            ),
            (
                "another node has our address",
                vec![held("10.5.3.0/24", "172.30.0.11", Some("it"))],
                me(),
                "duplicate of it at 10.5.3.0/24",
            ),
            (
                "what we had is another's now",
                vec![
                    held("10.5.2.0/24", "172.30.0.12", Some("it")),
                    held("10.5.1.0/24", "172.30.0.13", None),
                ],
                had("10.5.2.0/24"),
                "create 10.5.3.0/24",
            ),
            (
                "a lease of another length overlaps two",
                vec![held("10.5.2.0/23", "172.30.0.12", None)],
                me(),
                "create 10.5.1.0/24",
            ),
            (
                "ours is outside of the network",
                vec![
                    held("10.9.2.0/24", "172.30.0.11", Some("me")),
                    held("10.5.1.0/24", "172.30.0.12", None),
                ],
                had("10.5.3.0/24"),
                "create 10.5.3.0/24 10.5.2.0/24",
            ),
            (
                "all are taken",
                vec![held("10.5.0.0/22", "172.30.0.12", None)],
                me(),
                "create ",
            ),
        ];
        for (name, leases, claimant, wanted) in rows {
            assert_eq!(told(choose(&small(), &leases, &claimant)), wanted, "{name}");
            let reversed: Vec<Held> = leases.into_iter().rev().collect();
            assert_eq!(
                told(choose(&small(), &reversed, &claimant)),
                wanted,
                "{name}, reversed"
            );
        }
    }

    #[test]
    fn nodes_begin_their_search_at_different_places() {
        let config = config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let first = |name: &str| candidates(&config, &name.into()).next();
        let starts: std::collections::BTreeSet<_> = (0..16).map(|n| first(&format!("node-{n}"))).collect();
        assert!(starts.len() > 12, "{starts:?}");
        assert_eq!(candidates(&config, &"a".into()).count(), 255);
    }
}

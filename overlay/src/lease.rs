//! Which subnets a node claims: pure, from what is there and what it had.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::lease::Lease;
use model::{ByFamily, IpFamily, NodeName};
use sha2::{Digest, Sha256};

use crate::flannel::{NetworkConfig, Record};
use crate::pool::{Pool, is_within, overlap};

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
    /// Its addresses, one for each version of IP that the network has.
    pub public_ips: ByFamily<IpAddr>,
    /// The subnets it had before, by its own files.
    pub previous: ByFamily<IpNetwork>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Write over this lease, which is ours.
    Keep(Held),
    /// Create one of these, in this order of preference.
    Create {
        /// Their subnets, one for each version of IP that the network has.
        candidates: Vec<ByFamily<IpNetwork>>,
        /// Our lease so far, which the network's configuration does not admit any more: it goes with the creation.
        instead_of: Option<Held>,
    },
    /// Another node has our address.
    Duplicate {
        /// Who.
        holder: NodeName,
        /// The address.
        public_ip: IpAddr,
        /// What it is leased.
        lease: Lease,
    },
    /// Every subnet is taken.
    Exhausted {
        /// Of this network.
        network: IpNetwork,
    },
}

/// How many subnets are tried before the leases are listed again.
const CANDIDATES: usize = 10;

/// How many subnets of a network are looked at. An IPv4 network has no more that are of use; an IPv6 network may have
/// 2^64, and a lease that lies about its size could hide them all.
const LOOKED_AT: usize = 1 << 20;

/// Chooses subnets. Order: the lease that carries our name; one with our address that carries no name (flannel's own,
/// or a reservation); those we had before; any free ones, beginning at a place that depends on the node's name, so
/// that nodes that start together seldom race. Free means: overlapping no lease, whatever its length.
#[must_use]
pub fn choose(config: &NetworkConfig, held: &[Held], claimant: &Claimant) -> Choice {
    if let Some(duplicate) = held.iter().find_map(|held| duplicate(held, claimant)) {
        return duplicate;
    }
    let named = |held: &&Held| held.record.node.as_ref() == Some(&claimant.node);
    let unnamed = |held: &&Held| held.record.node.is_none() && shared_address(held, claimant).is_some();
    let ours: Vec<&Held> = held
        .iter()
        .filter(named)
        .chain(held.iter().filter(unnamed))
        .collect();
    let fits = |held: &&&Held| config.admits(&held.record.lease.subnets());
    if let Some(kept) = ours.iter().find(fits) {
        return Choice::Keep((*kept).clone());
    }
    // A reservation is the operator's to take back.
    let instead_of = ours.into_iter().find(|held| !held.reserved);
    let others: Vec<Lease> = held
        .iter()
        .filter(|held| Some(*held) != instead_of)
        .map(|held| held.record.lease.clone())
        .collect();
    let had = instead_of
        .map(|held| held.record.lease.subnets())
        .unwrap_or_default();
    let free = config.pools.try_map(|family, pool| {
        let previous = [claimant.previous, had]
            .into_iter()
            .find_map(|had| had.get(family).copied());
        let free = free(family, pool, &others, previous, &claimant.node);
        if free.is_empty() {
            Err(pool.network)
        } else {
            Ok(free)
        }
    });
    match free {
        Err(network) => Choice::Exhausted { network },
        Ok(free) => Choice::Create {
            candidates: (0..CANDIDATES).map_while(|n| nth_of_each(&free, n)).collect(),
            instead_of: instead_of.cloned(),
        },
    }
}

/// Whether a lease of another node of ours has our address.
fn duplicate(held: &Held, claimant: &Claimant) -> Option<Choice> {
    let holder = held
        .record
        .node
        .as_ref()
        .filter(|holder| **holder != claimant.node)?;
    Some(Choice::Duplicate {
        holder: holder.clone(),
        public_ip: shared_address(held, claimant)?,
        lease: held.record.lease.clone(),
    })
}

fn shared_address(held: &Held, claimant: &Claimant) -> Option<IpAddr> {
    let theirs = held.record.lease.public_ips();
    let mut ours = claimant.public_ips.iter();
    ours.find(|(family, ours)| theirs.get(*family) == Some(*ours))
        .map(|(_, ours)| *ours)
}

/// Free subnets of one version of IP, the preferred first, `CANDIDATES` at most. A lease that is not in the network
/// takes nothing of it.
fn free(
    family: IpFamily,
    pool: &Pool,
    others: &[Lease],
    previous: Option<IpNetwork>,
    node: &NodeName,
) -> Vec<IpNetwork> {
    let taken: Vec<IpNetwork> = others
        .iter()
        .filter_map(|lease| lease.sites.get(family))
        .map(|site| site.subnet)
        .filter(|subnet| is_within(*subnet, pool.network))
        .collect();
    let is_free = |subnet: &IpNetwork| !taken.iter().any(|taken| overlap(*taken, *subnet));
    let previous = previous.filter(|previous| pool.admits(*previous) && is_free(previous));
    let all = pool.subnets_from(seed(node)).take(LOOKED_AT);
    let others = all.filter(|subnet| Some(*subnet) != previous && is_free(subnet));
    previous.into_iter().chain(others).take(CANDIDATES).collect()
}

fn seed(node: &NodeName) -> u128 {
    let digest: [u8; 32] = Sha256::digest(node.0.as_bytes()).into();
    digest
        .iter()
        .take(16)
        .fold(0, |seed, byte| seed << 8 | u128::from(*byte))
}

/// The `n`th of each list; `None` where one has none.
fn nth_of_each(free: &ByFamily<Vec<IpNetwork>>, n: usize) -> Option<ByFamily<IpNetwork>> {
    free.try_map(|_, subnets| subnets.get(n).copied().ok_or(())).ok()
}

#[cfg(test)]
mod tests {
    use model::MacAddr;
    use model::lease::{Encap, Site};

    use super::*;

    fn config(text: &str) -> NetworkConfig {
        NetworkConfig::parse(text).expect("valid")
    }

    fn small() -> NetworkConfig {
        config(r#"{"Network":"10.5.0.0/22","SubnetLen":24,"Backend":{"Type":"vxlan"}}"#)
    }

    fn dual() -> NetworkConfig {
        config(
            r#"{"Network":"10.5.0.0/22","SubnetLen":24,"EnableIPv6":true,"IPv6Network":"fd05::/48",
                "Backend":{"Type":"vxlan"}}"#,
        )
    }

    fn subnets(text: &str) -> ByFamily<IpNetwork> {
        let subnet = |text: &str| text.parse::<IpNetwork>().expect("a subnet");
        text.split_whitespace().map(subnet).collect()
    }

    fn addresses(text: &str) -> ByFamily<IpAddr> {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        text.split_whitespace().map(address).collect()
    }

    /// `subnets` and `public_ips` name one of each version of IP.
    fn held(subnets: &str, public_ips: &str, node: Option<&str>) -> Held {
        let public_ips = addresses(public_ips);
        let encap = Encap::Vxlan {
            vni: model::Vni(1),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        };
        let sites = self::subnets(subnets).map(|family, subnet| Site {
            subnet: *subnet,
            public_ip: *public_ips.get(family).expect("an address of each version"),
            encap,
        });
        let mut record = Record::new(Lease { sites }, NodeName::from("x"));
        record.node = node.map(NodeName::from);
        Held {
            record,
            mod_revision: 7,
            reserved: false,
        }
    }

    fn told(choice: Choice) -> String {
        match choice {
            Choice::Keep(held) => format!("keep {}", held.record.lease),
            Choice::Duplicate {
                holder,
                public_ip,
                lease,
            } => {
                format!("{public_ip} is {holder}'s at {lease}")
            }
            Choice::Exhausted { network } => format!("nothing free in {network}"),
            Choice::Create {
                candidates,
                instead_of,
            } => {
                let text = |subnets: &ByFamily<IpNetwork>| {
                    subnets
                        .values()
                        .map(IpNetwork::to_string)
                        .collect::<Vec<_>>()
                        .join("&")
                };
                let mut candidates: Vec<String> = candidates.iter().map(text).collect();
                if let Some(rest) = candidates.get_mut(1..) {
                    rest.sort();
                }
                let instead = instead_of.map(|held| format!(" instead of {}", held.record.lease));
                format!("create {}{}", candidates.join(" "), instead.unwrap_or_default())
            }
        }
    }

    #[track_caller]
    fn check(name: &str, config: &NetworkConfig, leases: Vec<Held>, claimant: &Claimant, wanted: &str) {
        assert_eq!(told(choose(config, &leases, claimant)), wanted, "{name}");
        let reversed: Vec<Held> = leases.into_iter().rev().collect();
        assert_eq!(
            told(choose(config, &reversed, claimant)),
            wanted,
            "{name}, reversed"
        );
    }

    #[test]
    fn a_node_keeps_what_is_its_own_and_else_takes_what_is_free() {
        let had = |previous: &str| Claimant {
            node: "me".into(),
            public_ips: addresses("172.30.0.11"),
            previous: subnets(previous),
        };
        let me = || had("");
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
                "172.30.0.11 is it's at 10.5.3.0/24",
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
                "create 10.5.3.0/24 10.5.2.0/24 instead of 10.9.2.0/24",
            ),
            (
                "all are taken",
                vec![held("10.5.0.0/22", "172.30.0.12", None)],
                me(),
                "nothing free in 10.5.0.0/22",
            ),
            (
                "a lease that lies takes nothing",
                vec![held("0.0.0.0/0", "172.30.0.12", None)],
                had("10.5.2.0/24"),
                "create 10.5.2.0/24 10.5.1.0/24 10.5.3.0/24",
            ),
        ];
        for (name, leases, claimant, wanted) in rows {
            check(name, &small(), leases, &claimant, wanted);
        }
    }

    #[test]
    fn a_dual_stack_node_claims_a_subnet_of_each_version_together() {
        let both = || Claimant {
            node: "me".into(),
            public_ips: addresses("172.30.0.11 fd77::11"),
            previous: subnets("10.5.2.0/24 fd05:0:0:7::/64"),
        };
        let others_v4 = "172.30.0.12 fd77::12";
        let only_one_left = vec![
            held("10.5.1.0/24 fd05:0:0:1::/64", others_v4, Some("it")),
            held("10.5.3.0/24 fd05:0:0:7::/64", "172.30.0.13 fd77::13", None),
        ];
        let Choice::Create { candidates, .. } = choose(&dual(), &only_one_left, &both()) else {
            panic!("nothing is ours");
        };
        let [only] = candidates.as_slice() else {
            panic!("{candidates:?}: one IPv4 subnet is free");
        };
        assert_eq!(only.v4, subnets("10.5.2.0/24").v4);
        assert_ne!(only.v6, subnets("fd05:0:0:7::/64").v6, "is another's");

        let ours = held("10.5.2.0/24 fd05:0:0:7::/64", "172.30.0.11 fd77::11", None);
        check(
            "flannel's",
            &dual(),
            vec![ours],
            &both(),
            "keep 10.5.2.0/24 and fd05:0:0:7::/64",
        );
        let theirs = held("10.5.2.0/24 fd05:0:0:9::/64", "172.30.0.12 fd77::11", Some("it"));
        let wanted = "fd77::11 is it's at 10.5.2.0/24 and fd05:0:0:9::/64";
        check("one address is another's", &dual(), vec![theirs], &both(), wanted);
    }

    #[test]
    fn a_node_keeps_its_ipv4_subnet_when_its_network_gets_ipv6_and_loses_it() {
        let claimant = |public_ips| Claimant {
            node: "me".into(),
            public_ips: addresses(public_ips),
            previous: subnets(""),
        };
        let before = held("10.5.3.0/24", "172.30.0.11", Some("me"));
        let Choice::Create {
            candidates,
            instead_of,
        } = choose(
            &dual(),
            std::slice::from_ref(&before),
            &claimant("172.30.0.11 fd77::11"),
        )
        else {
            panic!("it has no IPv6 subnet yet");
        };
        let first = candidates.first().expect("both are free");
        assert_eq!((first.v4, first.v6.is_some()), (subnets("10.5.3.0/24").v4, true));
        assert_eq!(instead_of, Some(before));

        let after = held("10.5.3.0/24 fd05:0:0:7::/64", "172.30.0.11 fd77::11", Some("me"));
        let wanted = "create 10.5.3.0/24 10.5.1.0/24 10.5.2.0/24 instead of 10.5.3.0/24 and fd05:0:0:7::/64";
        check(
            "back",
            &small(),
            vec![after.clone()],
            &claimant("172.30.0.11"),
            wanted,
        );
        let reserved = Held {
            reserved: true,
            ..after
        };
        let wanted = "create 10.5.2.0/24 10.5.1.0/24";
        check(
            "reserved",
            &small(),
            vec![reserved],
            &claimant("172.30.0.11"),
            wanted,
        );
    }

    #[test]
    fn nodes_begin_their_search_at_different_places() {
        let config = config(
            r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00::/8","Backend":{"Type":"vxlan"}}"#,
        );
        for pool in config.pools.values() {
            let first = |name: &str| pool.subnets_from(seed(&name.into())).next();
            let starts: std::collections::BTreeSet<_> =
                (0..16).map(|n| first(&format!("node-{n}"))).collect();
            assert!(starts.len() > 12, "{starts:?}");
        }
        let v4 = config.pools.v4.expect("it has IPv4");
        let all: std::collections::BTreeSet<_> = v4.subnets_from(seed(&"a".into())).collect();
        assert_eq!(all.len(), 255);
    }
}

//! The rules by which amazon-vpc-cni-k8s has pods leave by the primary interface (pkg/networkutils there): its own table
//! of nftables, since v1.23, and what it has in iptables' tables `nat` and `mangle`.
//!
//! They go once ours are there. Two translations would agree only as long as both have the same networks and settings,
//! which nobody keeps so. Connections that they translated go on: connection tracking knows them, and their mark is the
//! same as ours.

use netlink::nft::{Batch, Family, Nft, Table};

use crate::error::Error;

/// Its table of nftables.
const OWN_TABLE: &str = "aws-cni";

/// Where it has rules by iptables.
const SHARED_TABLES: [&str; 2] = ["nat", "mangle"];

/// Begin of its chains' names: older versions have one for each network of the VPC.
const CHAINS: [&str; 2] = ["AWS-SNAT-CHAIN-", "AWS-CONNMARK-CHAIN-"];

/// What its rules in chains that are not its own say of themselves.
const COMMENTS: [&str; 4] = [
    "AWS SNAT CHAIN",
    "AWS, outbound connections",
    "AWS, CONNMARK",
    "AWS, primary ENI",
];

/// The tables of x_tables in this thread's network namespace.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// Takes them away, as far as nf_tables has them; returns how many rules, chains and tables that were.
///
/// # Errors
/// When the kernel does not tell, or refuses.
pub fn remove_rules(nft: &mut Nft) -> Result<usize, Error> {
    let mut removed = usize::from(nft.remove(&Table::new(Family::Ip, OWN_TABLE))?);
    for name in SHARED_TABLES {
        let table = Table::new(Family::Ip, name);
        if !nft.has_table(&table)? {
            continue;
        }
        let chains = nft.chains(&table)?.into_iter().map(|chain| chain.name);
        let chains: Vec<String> = chains.filter(|chain| is_own(chain)).collect();
        let rules = nft.rules(&table)?.into_iter();
        let says = |comment: &Option<String>| {
            let comment = comment.as_deref();
            comment.is_some_and(|comment| COMMENTS.contains(&comment))
        };
        let rules: Vec<_> = rules
            .filter(|rule| !is_own(&rule.chain) && says(&rule.comment))
            .collect();
        let mut batch = Batch::new(&table);
        for rule in &rules {
            batch.delete_rule(&rule.chain, rule.handle);
        }
        for chain in &chains {
            batch.flush_chain(chain);
        }
        for chain in &chains {
            batch.delete_chain(chain);
        }
        nft.commit(&batch)?;
        removed += rules.len() + chains.len();
    }
    Ok(removed)
}

fn is_own(chain: &str) -> bool {
    CHAINS.iter().any(|begin| chain.starts_with(begin))
}

/// Whether legacy iptables has one of these tables here: what is in it cannot be seen, or changed, by nf_tables.
#[must_use]
pub fn has_legacy_tables() -> bool {
    let names = std::fs::read_to_string(LEGACY_TABLES).unwrap_or_default();
    names.lines().any(|name| SHARED_TABLES.contains(&name))
}

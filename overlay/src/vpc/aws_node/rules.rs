//! The rules by which amazon-vpc-cni-k8s has pods leave by the primary interface (pkg/networkutils there): its own table
//! of nftables, since v1.23, and what it has in iptables' tables `nat` and `mangle`.
//!
//! They go once ours are there. Two translations would agree only as long as both have the same networks and settings,
//! which nobody keeps so. Connections that they translated go on: connection tracking knows them, and their mark is the
//! same as ours.

use std::collections::BTreeSet;

use netlink::nft::{self, Batch, Family, Nft, RuleInfo, Table};

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

/// What there is of them in a table of iptables.
struct Found {
    table: Table,
    chains: Vec<String>,
    /// In chains that are not its own.
    rules: Vec<RuleInfo>,
}

fn find(nft: &mut Nft) -> Result<Vec<Found>, nft::Error> {
    let mut found = Vec::new();
    for name in SHARED_TABLES {
        let table = Table::new(Family::Ip, name);
        if !nft.has_table(&table)? {
            continue;
        }
        let chains = nft.chains(&table)?.into_iter().map(|chain| chain.name);
        let chains: Vec<String> = chains.filter(|chain| is_own(chain)).collect();
        let says = |comment: &Option<String>| {
            let comment = comment.as_deref();
            comment.is_some_and(|comment| COMMENTS.contains(&comment))
        };
        let rules = nft.rules(&table)?.into_iter();
        let rules = rules
            .filter(|rule| !is_own(&rule.chain) && says(&rule.comment))
            .collect();
        found.push(Found { table, chains, rules });
    }
    Ok(found)
}

/// Which chains and tables there are, as nft names them, as far as nf_tables has them.
///
/// # Errors
/// When the kernel does not tell.
pub fn rules_left(nft: &mut Nft) -> Result<Vec<String>, nft::Error> {
    let own = Table::new(Family::Ip, OWN_TABLE);
    let mut left: Vec<String> = nft
        .has_table(&own)?
        .then(|| format!("table {own}"))
        .into_iter()
        .collect();
    for Found { table, chains, rules } in find(nft)? {
        let others: BTreeSet<String> = rules.into_iter().map(|rule| rule.chain).collect();
        let of_others = others
            .iter()
            .map(|chain| format!("rules of chain {table} {chain}"));
        left.extend(
            chains
                .iter()
                .map(|chain| format!("chain {table} {chain}"))
                .chain(of_others),
        );
    }
    Ok(left)
}

/// Takes them away, as far as nf_tables has them; returns how many rules, chains and tables that were.
///
/// # Errors
/// When the kernel does not tell, or refuses.
pub fn remove_rules(nft: &mut Nft) -> Result<usize, Error> {
    let mut removed = usize::from(nft.remove(&Table::new(Family::Ip, OWN_TABLE))?);
    for Found { table, chains, rules } in find(nft)? {
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

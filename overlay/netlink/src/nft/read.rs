//! What the kernel has. A list during which another transaction ran is read again.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use super::object::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_USE, ELEMENTS_LIST, ELEMENTS_SET,
    ELEMENTS_TABLE, HOOK_NUMBER, LIST_ELEMENT, NF_ACCEPT, SET_TABLE, SetNumbers, TABLE_NAME,
};
use super::rule::{RULE_CHAIN, RULE_EXPRESSIONS, RULE_TABLE, RULE_USERDATA, comment_of};
use super::{Chain, Element, Error, Hook, Nft, Operation, Table};
use crate::nfnetlink::{Message, attribute, attributes, be32, flag, text};

pub(super) const RULE_HANDLE: u16 = 3;

/// Transactions by others during each of that many readings in a row are given up on.
const ATTEMPTS: usize = 10;

/// How long the kernel is given to finish a resize before the next reading.
const RESIZE_PAUSE: Duration = Duration::from_millis(20);

/// A rule as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// The chain that it stands in.
    pub chain: String,
    /// The kernel's number for it in its table, as `nft -a` shows it.
    pub handle: u64,
    /// The comment; [`Rule::fingerprint`](super::Rule::fingerprint) for rules made here, and what `-m comment` says in
    /// those of `iptables-nft`.
    pub comment: Option<String>,
}

/// A base chain, of whichever owner, that may drop or change what passes through this host, or is to or from it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// Family of its table, as `nft` names it.
    pub family: &'static str,
    /// Name of its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whether it sees packets to and from the node itself alone, and none that pass through.
    pub is_of_node: bool,
}

/// `NF_INET_INGRESS`: a device's packets before everything else, in tables of family inet.
const INET_INGRESS: u32 = 5;

/// Families whose chains see what passes through, by number: `NFPROTO_*`.
const PASSING_FAMILIES: [(u8, &str); 4] = [(1, "inet"), (2, "ip"), (5, "netdev"), (10, "ip6")];

impl Nft {
    /// Base chains of all tables that forwarded packets meet, or those to and from the node itself, and that do
    /// something: they have a rule, or drop what no rule accepts.
    pub fn filters(&mut self) -> Result<Vec<Filter>, Error> {
        let mut found = Vec::new();
        for (number, family) in PASSING_FAMILIES {
            let of_family = self.list("chains", Operation::GetChain, number, None, |payload| {
                let Some(hook) = attribute(payload, CHAIN_HOOK) else {
                    return Some(Vec::new());
                };
                let number = attribute(hook, HOOK_NUMBER).and_then(be32)?;
                let hooks = [Hook::Prerouting, Hook::Forward, Hook::Postrouting];
                let of_device = family == "netdev" || number == INET_INGRESS;
                let passes = of_device || hooks.iter().any(|hook| *hook as u32 == number);
                let local = [Hook::Input, Hook::Output];
                let is_of_node = !of_device && local.iter().any(|hook| *hook as u32 == number);
                let policy = attribute(payload, CHAIN_POLICY).and_then(be32);
                // Of a base chain, only rules make use (`nft_chain` in net/netfilter/nf_tables_api.c).
                let rules = attribute(payload, CHAIN_USE).and_then(be32);
                let acts = rules != Some(0) || policy.is_some_and(|policy| policy != NF_ACCEPT);
                if !(passes || is_of_node) || !acts {
                    return Some(Vec::new());
                }
                Some(vec![Filter {
                    family,
                    table: text(attribute(payload, CHAIN_TABLE)?),
                    chain: text(attribute(payload, CHAIN_NAME)?),
                    is_of_node,
                }])
            })?;
            found.extend(of_family);
        }
        Ok(found)
    }

    /// Whether the table is there.
    pub fn has_table(&mut self, table: &Table) -> Result<bool, Error> {
        let names = self.list(
            "tables",
            Operation::GetTable,
            table.family as u8,
            None,
            |payload| Some(vec![text(attribute(payload, TABLE_NAME)?)]),
        )?;
        Ok(names.contains(&table.name))
    }

    /// Chains of the table.
    pub fn chains(&mut self, table: &Table) -> Result<Vec<Chain>, Error> {
        self.list(
            "chains",
            Operation::GetChain,
            table.family as u8,
            None,
            |payload| {
                let owner = text(attribute(payload, CHAIN_TABLE)?);
                let chain = (owner == table.name).then(|| Chain::decode(payload));
                Some(chain.flatten().into_iter().collect())
            },
        )
    }

    /// Rules of the table, in order within each chain.
    pub fn rules(&mut self, table: &Table) -> Result<Vec<RuleInfo>, Error> {
        let filter = |message: &mut Message| {
            message.text(RULE_TABLE, &table.name);
        };
        self.list(
            "rules",
            Operation::GetRule,
            table.family as u8,
            Some(&filter),
            |payload| {
                if text(attribute(payload, RULE_TABLE)?) != table.name {
                    return Some(Vec::new());
                }
                Some(vec![RuleInfo {
                    chain: text(attribute(payload, RULE_CHAIN)?),
                    handle: attribute(payload, RULE_HANDLE)
                        .and_then(|bytes| Some(u64::from_be_bytes(bytes.try_into().ok()?)))
                        .unwrap_or_default(),
                    comment: attribute(payload, RULE_USERDATA)
                        .and_then(comment_of)
                        .or_else(|| xt_comment(attribute(payload, RULE_EXPRESSIONS)?)),
                }])
            },
        )
    }

    /// How many packets the rules of a table have counted ([`Rule::count`](super::Rule::count)), by the rule's own
    /// comment, without the fingerprint; rules of one comment are one. Empty where the table is absent.
    pub fn counts(&mut self, table: &Table) -> Result<BTreeMap<String, u64>, Error> {
        let filter = |message: &mut Message| {
            message.text(RULE_TABLE, &table.name);
        };
        let family = table.family as u8;
        let counted = self.list("rules", Operation::GetRule, family, Some(&filter), |payload| {
            if text(attribute(payload, RULE_TABLE)?) != table.name {
                return Some(Vec::new());
            }
            let comment = attribute(payload, RULE_USERDATA).and_then(comment_of);
            let expressions = attribute(payload, RULE_EXPRESSIONS).unwrap_or_default();
            let packets = attributes(expressions).filter_map(|(_, expression)| packets_of(expression));
            Some(packets.map(|count| (comment.clone(), count)).collect())
        })?;
        let mut counts = BTreeMap::new();
        for (comment, packets) in counted {
            let comment = comment.unwrap_or_default();
            let own = comment.rsplit_once(" #").map_or(comment.as_str(), |(own, _)| own);
            *counts.entry(own.to_owned()).or_default() += packets;
        }
        Ok(counts)
    }

    /// Sets and maps of the table.
    pub(super) fn sets(&mut self, table: &Table) -> Result<Vec<SetNumbers>, Error> {
        let filter = |message: &mut Message| {
            message.text(SET_TABLE, &table.name);
        };
        self.list(
            "sets",
            Operation::GetSet,
            table.family as u8,
            Some(&filter),
            |payload| {
                if text(attribute(payload, SET_TABLE)?) != table.name {
                    return Some(Vec::new());
                }
                Some(vec![SetNumbers::decode(payload)?])
            },
        )
    }

    /// Elements of a set or map, sorted. An absent table or set is an error with errno `ENOENT`.
    ///
    /// While the kernel resizes a set's hash table, which goes on for some milliseconds after a large transaction, a
    /// list shows some elements twice and leaves as many others out (`nft_rhash_walk` resumes by position, and
    /// positions change). Such a list is read again.
    pub fn elements(&mut self, table: &Table, set: &str) -> Result<Vec<Element>, Error> {
        let filter = |message: &mut Message| {
            message.text(ELEMENTS_TABLE, &table.name).text(ELEMENTS_SET, set);
        };
        let what = "elements";
        for attempt in 1.. {
            let mut found = self.list(
                what,
                Operation::GetElement,
                table.family as u8,
                Some(&filter),
                |payload| {
                    let Some(list) = attribute(payload, ELEMENTS_LIST) else {
                        return Some(Vec::new());
                    };
                    let elements = attributes(list).filter(|(kind, _)| *kind == LIST_ELEMENT);
                    elements.map(|(_, element)| Element::decode(element)).collect()
                },
            )?;
            found.sort_unstable();
            if found.is_sorted_by(|a, b| a < b) {
                return Ok(found);
            }
            if attempt == ATTEMPTS {
                break;
            }
            std::thread::sleep(RESIZE_PAUSE);
        }
        Err(Error::List {
            what,
            source: io::ErrorKind::Interrupted.into(),
        })
    }

    pub(super) fn list<T>(
        &mut self,
        what: &'static str,
        operation: Operation,
        family: u8,
        filter: Option<&dyn Fn(&mut Message)>,
        decode: impl Fn(&[u8]) -> Option<Vec<T>>,
    ) -> Result<Vec<T>, Error> {
        let mut request = Message::new(operation.kind(), flag::DUMP, family, 0);
        if let Some(filter) = filter {
            filter(&mut request);
        }
        let mut attempt = 0;
        loop {
            let mut found = Vec::new();
            attempt += 1;
            let result = self.connection.dump(&request, &mut |payload| {
                found.extend(decode(payload).ok_or_else(crate::nfnetlink::malformed)?);
                Ok(())
            });
            match result {
                Ok(()) => return Ok(found),
                Err(source) if source.kind() == io::ErrorKind::Interrupted && attempt < ATTEMPTS => {}
                Err(source) => return Err(Error::List { what, source }),
            }
        }
    }
}

/// What `-m comment` of `iptables-nft` says: a match of x_tables whose data is the text (`struct xt_comment_info`).
fn xt_comment(expressions: &[u8]) -> Option<String> {
    let comment = |expression: &[u8]| {
        let data = attribute(expression, EXPRESSION_DATA)?;
        let is_match = text(attribute(expression, EXPRESSION_NAME)?) == "match";
        let is_comment = is_match && text(attribute(data, MATCH_NAME)?) == "comment";
        let info = attribute(data, MATCH_INFO).filter(|_| is_comment)?;
        info.split(|byte| *byte == 0).next().map(text)
    };
    attributes(expressions).find_map(|(_, expression)| comment(expression))
}

/// What a `counter` has counted; `None` for any other expression.
fn packets_of(expression: &[u8]) -> Option<u64> {
    if text(attribute(expression, EXPRESSION_NAME)?) != "counter" {
        return None;
    }
    let packets = attribute(attribute(expression, EXPRESSION_DATA)?, COUNTER_PACKETS)?;
    Some(u64::from_be_bytes(packets.try_into().ok()?))
}

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const COUNTER_PACKETS: u16 = 2;
/// `enum nft_match_attributes`.
const MATCH_NAME: u16 = 1;
const MATCH_INFO: u16 = 3;

//! The rules of whoever made them, read so far that a packet can be led through them in thought.
//!
//! [`Nft::ruleset`] reads chains, rules and the sets that rules look into; [`Part`] is the alphabet of what is
//! understood of a rule. What is not understood keeps its name ([`Part::Other`]), so that whoever follows a packet knows
//! that there is something unknown. [`walk`] follows one.
//!
//! Sources: `enum nft_*_attributes` in `include/uapi/linux/netfilter/nf_tables.h`, and `nft_*.c` beside
//! `net/netfilter/nf_tables_core.c`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::object::{
    CHAIN_HOOK, CHAIN_NAME, CHAIN_POLICY, CHAIN_TABLE, CHAIN_TYPE, DATA_VALUE, DATA_VERDICT, ELEMENTS_LIST,
    ELEMENTS_SET, ELEMENTS_TABLE, HOOK_NUMBER, HOOK_PRIORITY, LIST_ELEMENT, NF_ACCEPT, SET_FLAG_CONCAT,
    SET_FLAG_INTERVAL, SET_FLAGS, SET_NAME, SET_TABLE,
};
use super::read::RULE_HANDLE;
use super::rule::{RULE_CHAIN, RULE_EXPRESSIONS, RULE_TABLE};
use super::{Element, Error, Nft, Operation, Verdict};
use crate::nfnetlink::{Message, attribute, attributes, be32, text};

pub mod walk;

/// Families whose base chains packets of IP meet at the five hooks, and at devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum RuleFamily {
    /// Both versions of IP (`NFPROTO_INET`).
    Inet = 1,
    /// IPv4 (`NFPROTO_IPV4`).
    Ip = 2,
    /// What passes a device, whatever it is (`NFPROTO_NETDEV`).
    Netdev = 5,
    /// IPv6 (`NFPROTO_IPV6`).
    Ip6 = 10,
}

impl RuleFamily {
    const ALL: [Self; 4] = [Self::Inet, Self::Ip, Self::Ip6, Self::Netdev];

    /// As nft names it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Netdev => "netdev",
        }
    }
}

/// What a device has received, before all else but programs of tc there (`NF_INET_INGRESS`).
pub const INGRESS: u32 = 5;
/// What is about to leave by a device (`NF_NETDEV_EGRESS`, which has the number 1 in its own family).
pub const EGRESS: u32 = 6;

/// A chain: family of its table as nft names it, table, name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChainName {
    /// Of its table.
    pub family: RuleFamily,
    /// Name of its table.
    pub table: String,
    /// Its name.
    pub chain: String,
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.family.word(), self.table, self.chain)
    }
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Which chain.
    pub name: ChainName,
    /// `enum nf_inet_hooks`, by number; those of devices are [`INGRESS`] and [`EGRESS`], whatever the family.
    pub hook: u32,
    /// Order among chains of the hook; lower is earlier.
    pub priority: i32,
    /// Whether it is of type nat: only the first packet of a connection meets it.
    pub is_nat: bool,
    /// Whether what no rule decides is dropped.
    pub drops: bool,
    /// The devices whose packets meet it, at a hook of devices; a `*` at the end stands for any end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<String>,
}

impl Base {
    /// Whether packets of a device meet it, at a hook of devices.
    #[must_use]
    pub fn is_of(&self, device: &str) -> bool {
        self.devices
            .iter()
            .any(|pattern| match pattern.strip_suffix('*') {
                Some(begin) => device.starts_with(begin),
                None => pattern == device,
            })
    }
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadRule {
    /// Its number in its table, as `nft -a` shows it.
    pub handle: u64,
    /// What it does, in order.
    pub parts: Vec<Part>,
}

/// A set or map that rules look into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadSet {
    /// Whether elements are ends of intervals.
    pub has_intervals: bool,
    /// Whether keys have several fields.
    pub is_concatenated: bool,
    /// Its elements in the order of their keys, and whether each ends an interval (`NFT_SET_ELEM_INTERVAL_END`). None: it
    /// has something that is not understood.
    pub elements: Option<Vec<(Element, bool)>>,
}

/// All that others' packets and ours meet at the hooks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// Base chains, in the order in which a packet meets those of one hook.
    pub bases: Vec<Base>,
    /// Rules of each chain that has any, in order.
    #[serde(with = "pairs")]
    pub rules: BTreeMap<ChainName, Vec<ReadRule>>,
    /// Sets that rules look into, by family, table and name.
    #[serde(with = "pairs")]
    pub sets: BTreeMap<(RuleFamily, String, String), ReadSet>,
}

/// A map whose keys are no text, as a list of its entries.
mod pairs {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub(super) fn deserialize<'de, K, V, D>(deserializer: D) -> Result<BTreeMap<K, V>, D::Error>
    where
        K: Deserialize<'de> + Ord,
        V: Deserialize<'de>,
        D: Deserializer<'de>,
    {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}

/// A value between the parts of a rule: its first byte among 64 (`NFT_REG32_00` to `NFT_REG32_15`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "usize")]
pub struct Slot(pub usize);

impl TryFrom<usize> for Slot {
    type Error = String;

    fn try_from(place: usize) -> Result<Self, String> {
        let is_there = place < 64 && place.is_multiple_of(4);
        is_there
            .then_some(Self(place))
            .ok_or_else(|| format!("no register begins at byte {place}"))
    }
}

impl Slot {
    /// `NFT_REG_1` and on are 16 bytes each, `NFT_REG32_00` and on 4 bytes of the same.
    fn of(register: u32) -> Option<Self> {
        match register {
            1..=4 => Some(Self((register as usize - 1) * 16)),
            8..=23 => Some(Self((register as usize - 8) * 4)),
            _ => None,
        }
    }
}

/// What one expression of a rule does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// `meta` reads: `enum nft_meta_keys`.
    Meta {
        /// Which.
        key: u32,
        /// Where to.
        to: Slot,
    },
    /// `ct` reads: `enum nft_ct_keys`.
    Conntrack {
        /// Which.
        key: u32,
        /// Where to.
        to: Slot,
    },
    /// Bytes of a header: `enum nft_payload_bases`.
    Payload {
        /// Which header.
        base: u32,
        /// First byte.
        offset: u32,
        /// How many.
        len: u32,
        /// Where to.
        to: Slot,
    },
    /// Ends the rule unless it holds: `enum nft_cmp_ops`.
    Compare {
        /// What is compared.
        from: Slot,
        /// How.
        operation: u32,
        /// With what.
        value: Vec<u8>,
    },
    /// Ends the rule unless the value is in the range, or is outside of it.
    Range {
        /// What is compared.
        from: Slot,
        /// Whether it must be outside.
        is_inverted: bool,
        /// The first value of the range.
        first: Vec<u8>,
        /// The last one.
        last: Vec<u8>,
    },
    /// `to = from & mask ^ xor`.
    Bitwise {
        /// What is changed.
        from: Slot,
        /// Where to.
        to: Slot,
        /// Bits that are kept.
        mask: Vec<u8>,
        /// Bits that are turned over.
        xor: Vec<u8>,
    },
    /// A fixed value.
    Immediate {
        /// Where to.
        to: Slot,
        /// Its bytes.
        value: Vec<u8>,
    },
    /// Looks for a key in a set, or for its value in a map.
    Lookup {
        /// Its name.
        set: String,
        /// Where the key begins.
        from: Slot,
        /// Where the value goes; none where there is none.
        to: Option<Slot>,
        /// Whether the value is the verdict.
        is_verdict: bool,
        /// Whether the key must not be there.
        is_inverted: bool,
    },
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// Refuses the packet.
    Reject,
    /// Changes source or destination.
    Translates,
    /// Neither matches nor decides: counts, logs, says something.
    Passive,
    /// Gives the packet another mark.
    SetsMark,
    /// Leaves the packet's connection untracked, or tracks it in another way.
    Untracks,
    /// `-m conntrack --ctstate`: holds where one of the bits is the connection's state, or none is.
    XtState {
        /// The bits.
        states: u16,
        /// Whether none must be.
        is_inverted: bool,
    },
    /// What is not understood, by its name.
    Other(String),
}

impl Nft {
    /// Base chains at the five hooks and at devices, and what packets meet behind them, of tables for which `is_wanted` is true.
    pub fn ruleset(&mut self, is_wanted: impl Fn(&str) -> bool) -> Result<Ruleset, Error> {
        let mut ruleset = Ruleset::default();
        for family in RuleFamily::ALL {
            let bases = self.list("chains", Operation::GetChain, family as u8, None, |payload| {
                Some(Base::decode(family, payload).into_iter().collect())
            })?;
            ruleset
                .bases
                .extend(bases.into_iter().filter(|base| is_wanted(&base.name.table)));
            let tables: BTreeSet<_> = ruleset
                .bases
                .iter()
                .filter(|base| base.name.family == family)
                .map(|base| base.name.table.clone())
                .collect();
            for table in tables {
                self.read_table(&mut ruleset, family, &table)?;
            }
        }
        // At one priority the kernel has the chains in the order in which they were made, which it does not tell.
        ruleset.bases.sort_by_key(|base| (base.hook, base.priority));
        Ok(ruleset)
    }

    fn read_table(&mut self, ruleset: &mut Ruleset, family: RuleFamily, table: &str) -> Result<(), Error> {
        let of_table = |message: &mut Message| {
            message.text(RULE_TABLE, table);
        };
        let rules = self.list(
            "rules",
            Operation::GetRule,
            family as u8,
            Some(&of_table),
            |payload| {
                if text(attribute(payload, RULE_TABLE)?) != table {
                    return Some(Vec::new());
                }
                Some(vec![(
                    text(attribute(payload, RULE_CHAIN)?),
                    ReadRule::decode(payload),
                )])
            },
        )?;
        let mut looked_into = BTreeSet::new();
        for (chain, rule) in rules {
            for part in &rule.parts {
                if let Part::Lookup { set, .. } = part {
                    looked_into.insert(set.clone());
                }
            }
            let name = ChainName {
                family,
                table: table.to_owned(),
                chain,
            };
            ruleset.rules.entry(name).or_default().push(rule);
        }
        if looked_into.is_empty() {
            return Ok(());
        }
        let of_table = |message: &mut Message| {
            message.text(SET_TABLE, table);
        };
        let sets = self.list(
            "sets",
            Operation::GetSet,
            family as u8,
            Some(&of_table),
            |payload| {
                if text(attribute(payload, SET_TABLE)?) != table {
                    return Some(Vec::new());
                }
                let flags = attribute(payload, SET_FLAGS).and_then(be32).unwrap_or(0);
                Some(vec![(text(attribute(payload, SET_NAME)?), flags)])
            },
        )?;
        for (set, flags) in sets.into_iter().filter(|(set, _)| looked_into.contains(set)) {
            let elements = self.read_elements(family as u8, table, &set)?;
            let read = ReadSet {
                has_intervals: flags & SET_FLAG_INTERVAL != 0,
                is_concatenated: flags & SET_FLAG_CONCAT != 0,
                elements,
            };
            ruleset.sets.insert((family, table.to_owned(), set), read);
        }
        Ok(())
    }

    fn read_elements(
        &mut self,
        family: u8,
        table: &str,
        set: &str,
    ) -> Result<Option<Vec<(Element, bool)>>, Error> {
        let of_set = |message: &mut Message| {
            message.text(ELEMENTS_TABLE, table).text(ELEMENTS_SET, set);
        };
        let found = self.list(
            "elements",
            Operation::GetElement,
            family,
            Some(&of_set),
            |payload| {
                let list = attribute(payload, ELEMENTS_LIST).unwrap_or_default();
                let elements = attributes(list).filter(|(kind, _)| *kind == LIST_ELEMENT);
                let read = elements.map(|(_, element)| {
                    let flags = attribute(element, ELEMENT_FLAGS).and_then(be32).unwrap_or(0);
                    Some((Element::decode(element)?, flags & INTERVAL_END != 0))
                });
                Some(read.collect())
            },
        )?;
        let mut elements: Option<Vec<_>> = found.into_iter().collect();
        if let Some(elements) = &mut elements {
            // Where an interval begins at the end of another one, the end comes first.
            elements.sort_by(|(a, a_ends), (b, b_ends)| a.key.cmp(&b.key).then(b_ends.cmp(a_ends)));
        }
        Ok(elements)
    }
}

impl Base {
    fn decode(family: RuleFamily, payload: &[u8]) -> Option<Self> {
        let hook = attribute(payload, CHAIN_HOOK)?;
        let number = attribute(hook, HOOK_NUMBER).and_then(be32)?;
        let listed = attributes(attribute(hook, HOOK_DEVICES).unwrap_or_default());
        let mut devices: Vec<String> = listed
            .filter_map(|(kind, name)| match kind {
                DEVICE_NAME => Some(text(name)),
                DEVICE_PREFIX => Some(format!("{}*", text(name))),
                _ => None,
            })
            .collect();
        // The same again, where it is one.
        if let (true, Some(device)) = (devices.is_empty(), attribute(hook, HOOK_DEVICE)) {
            devices.push(text(device));
        }
        Some(Self {
            name: ChainName {
                family,
                table: text(attribute(payload, CHAIN_TABLE)?),
                chain: text(attribute(payload, CHAIN_NAME)?),
            },
            hook: if family == RuleFamily::Netdev {
                number + INGRESS
            } else {
                number
            },
            devices,
            priority: attribute(hook, HOOK_PRIORITY).and_then(be32)?.cast_signed(),
            is_nat: attribute(payload, CHAIN_TYPE).is_some_and(|kind| text(kind) == "nat"),
            drops: attribute(payload, CHAIN_POLICY)
                .and_then(be32)
                .is_some_and(|policy| policy != NF_ACCEPT),
        })
    }
}

impl ReadRule {
    fn decode(payload: &[u8]) -> Self {
        let handle = attribute(payload, RULE_HANDLE)
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        let list = attribute(payload, RULE_EXPRESSIONS).unwrap_or_default();
        let expressions = attributes(list).filter(|(kind, _)| *kind == LIST_ELEMENT);
        let parts = expressions.map(|(_, expression)| {
            let name = attribute(expression, EXPRESSION_NAME)
                .map(text)
                .unwrap_or_default();
            let data = attribute(expression, EXPRESSION_DATA).unwrap_or_default();
            Part::decode(&name, data).unwrap_or(Part::Other(name))
        });
        Self {
            handle,
            parts: parts.collect(),
        }
    }
}

impl Part {
    /// None: it has a form that is not understood.
    fn decode(name: &str, data: &[u8]) -> Option<Self> {
        let number = |kind| attribute(data, kind).and_then(be32);
        let slot = |kind| number(kind).and_then(Slot::of);
        let value = |kind| attribute(attribute(data, kind)?, DATA_VALUE).map(<[u8]>::to_vec);
        Some(match name {
            // A source register: it writes.
            "meta" | "ct" if number(if name == "meta" { 3 } else { 4 }).is_some() => {
                let is_mark = name == "meta" && number(2) == Some(META_MARK);
                if is_mark { Self::SetsMark } else { Self::Passive }
            }
            "meta" => Self::Meta {
                key: number(2)?,
                to: slot(1)?,
            },
            "ct" => Self::Conntrack {
                key: number(2)?,
                to: slot(1)?,
            },
            "payload" if number(5).is_none() => Self::Payload {
                base: number(2)?,
                offset: number(3)?,
                len: number(4)?,
                to: slot(1)?,
            },
            "cmp" => Self::Compare {
                from: slot(1)?,
                operation: number(2)?,
                value: value(3)?,
            },
            "range" => Self::Range {
                from: slot(1)?,
                is_inverted: number(2)? == 1,
                first: value(3)?,
                last: value(4)?,
            },
            // Shifts and the like have another operation.
            "bitwise" if number(6).unwrap_or(0) == 0 => Self::Bitwise {
                from: slot(1)?,
                to: slot(2)?,
                mask: value(4)?,
                xor: value(5)?,
            },
            "immediate" => match attribute(attribute(data, 2)?, DATA_VERDICT) {
                Some(verdict) => Self::Verdict(Verdict::decode(verdict)?),
                None => Self::Immediate {
                    to: slot(1)?,
                    value: value(2)?,
                },
            },
            "lookup" => Self::Lookup {
                set: text(attribute(data, 1)?),
                from: slot(2)?,
                to: slot(3),
                is_verdict: number(3) == Some(0),
                is_inverted: number(5).unwrap_or(0) & 1 != 0,
            },
            "reject" => Self::Reject,
            "nat" | "masq" | "redir" => Self::Translates,
            "notrack" => Self::Untracks,
            "counter" | "log" | "last" => Self::Passive,
            "match" => xt_match(&text(attribute(data, 1)?), number(2)?, attribute(data, 3)?)?,
            "target" => xt_target(&text(attribute(data, 1)?))?,
            _ => return None,
        })
    }
}

/// A match of `x_tables`, as `iptables-nft` leaves them within rules.
fn xt_match(name: &str, revision: u32, info: &[u8]) -> Option<Part> {
    match (name, revision) {
        ("comment", _) => Some(Part::Passive),
        ("conntrack", 2 | 3) => {
            // `struct xt_conntrack_mtinfo3`: eight addresses of 16 bytes, two times of 4, five numbers of 2, then:
            let number = |at: usize| Some(u16::from_ne_bytes(*info.get(at..)?.first_chunk()?));
            let (wanted, inverted, states) = (number(146)?, number(148)?, number(150)?);
            let is_known = wanted == XT_CONNTRACK_STATE && states & !XT_PLAIN_STATES == 0;
            is_known.then_some(Part::XtState {
                states,
                is_inverted: inverted & XT_CONNTRACK_STATE != 0,
            })
        }
        _ => None,
    }
}

/// A target of `x_tables`.
fn xt_target(name: &str) -> Option<Part> {
    Some(match name {
        "REJECT" => Part::Reject,
        "DNAT" | "SNAT" | "MASQUERADE" | "REDIRECT" | "NETMAP" => Part::Translates,
        "LOG" | "NFLOG" | "CHECKSUM" | "TCPMSS" | "AUDIT" | "TRACE" => Part::Passive,
        "MARK" | "CONNMARK" => Part::SetsMark,
        "CT" | "NOTRACK" => Part::Untracks,
        _ => return None,
    })
}

/// `NFTA_HOOK_DEV`, `NFTA_HOOK_DEVS`, `NFTA_DEVICE_NAME`, and `NFTA_DEVICE_PREFIX` (Linux 6.16).
const HOOK_DEVICE: u16 = 3;
const HOOK_DEVICES: u16 = 4;
const DEVICE_NAME: u16 = 1;
const DEVICE_PREFIX: u16 = 2;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const ELEMENT_FLAGS: u16 = 3;
const INTERVAL_END: u32 = 1;
const META_MARK: u32 = 3;
/// `XT_CONNTRACK_STATE`.
const XT_CONNTRACK_STATE: u16 = 1;
/// `XT_CONNTRACK_STATE_INVALID` and the bits of the connection's four states: those of `nf_conntrack_common.h` too.
const XT_PLAIN_STATES: u16 = 0b1_1111;

//! What a table consists of.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::nfnetlink::{Message, attribute, attributes, be32, text};

/// Which packets a table sees. What is built for a family (keys, sets, rules) is written once for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 (`NFPROTO_IPV4`).
    Ip = 2,
    /// IPv6 (`NFPROTO_IPV6`).
    Ip6 = 10,
}

impl Family {
    /// An address's.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Ip,
            IpAddr::V6(_) => Self::Ip6,
        }
    }

    /// Type of the family's addresses in sets and maps.
    #[must_use]
    pub const fn address(self) -> DataType {
        match self {
            Self::Ip => DataType::Ipv4Addr,
            Self::Ip6 => DataType::Ipv6Addr,
        }
    }
}

/// A table: family and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its name, at most 255 bytes.
    pub name: String,
}

impl Table {
    /// The table of that family and name.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self {
            family,
            name: name.into(),
        }
    }
}

/// As nft names it: `ip causeway-guard`.
impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        };
        write!(f, "{family} {}", self.name)
    }
}

/// Where packets enter a base chain; `enum nf_inet_hooks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum Hook {
    /// Before routing.
    Prerouting = 0,
    /// To a local socket.
    Input = 1,
    /// Passing through.
    Forward = 2,
    /// From a local socket.
    Output = 3,
    /// About to leave.
    Postrouting = 4,
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// Sees every packet.
    Filter,
    /// Sees the first packet of each connection, and may translate it.
    Nat,
}

impl ChainKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// How a base chain hangs in the packet path. The policy is always accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseChain {
    /// Type.
    pub kind: ChainKind,
    /// Hook.
    pub hook: Hook,
    /// Order among chains of the same hook; lower is earlier.
    pub priority: i32,
}

impl BaseChain {
    /// `type filter hook prerouting priority raw` (-300): before connection tracking.
    pub const PREROUTING_RAW: Self = Self::new(ChainKind::Filter, Hook::Prerouting, -300);
    /// `type filter hook output priority raw` (-300): before connection tracking.
    pub const OUTPUT_RAW: Self = Self::new(ChainKind::Filter, Hook::Output, -300);
    /// `type nat hook prerouting priority dstnat` (-100).
    pub const PREROUTING_NAT: Self = Self::new(ChainKind::Nat, Hook::Prerouting, -100);
    /// `type nat hook output priority dstnat` (-100).
    pub const OUTPUT_NAT: Self = Self::new(ChainKind::Nat, Hook::Output, -100);
    /// `type nat hook postrouting priority srcnat` (100).
    pub const POSTROUTING_NAT: Self = Self::new(ChainKind::Nat, Hook::Postrouting, 100);

    /// A base chain of these properties.
    #[must_use]
    pub const fn new(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { kind, hook, priority }
    }
}

/// A chain of rules.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Chain {
    /// Its name within the table.
    pub name: String,
    /// `None`: entered only by jump or goto.
    pub base: Option<BaseChain>,
}

impl Chain {
    /// A chain that other chains jump to.
    pub fn regular(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            base: None,
        }
    }

    /// A chain that packets enter from the hook.
    pub fn base(name: impl Into<String>, base: BaseChain) -> Self {
        Self {
            name: name.into(),
            base: Some(base),
        }
    }

    pub(super) fn encode(&self, message: &mut Message) {
        message.text(CHAIN_NAME, &self.name);
        if let Some(base) = self.base {
            message.nested(CHAIN_HOOK, |hook| {
                hook.be32(HOOK_NUMBER, base.hook as u32);
                hook.be32(HOOK_PRIORITY, base.priority.cast_unsigned());
            });
            message.be32(CHAIN_POLICY, NF_ACCEPT);
            message.text(CHAIN_TYPE, base.kind.name());
        }
    }

    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let name = text(attribute(payload, CHAIN_NAME)?);
        let Some(hook) = attribute(payload, CHAIN_HOOK) else {
            return Some(Self::regular(name));
        };
        let kind = match text(attribute(payload, CHAIN_TYPE)?).as_str() {
            "nat" => ChainKind::Nat,
            _ => ChainKind::Filter,
        };
        let priority = attribute(hook, HOOK_PRIORITY).and_then(be32)?.cast_signed();
        let hook = match attribute(hook, HOOK_NUMBER).and_then(be32)? {
            0 => Hook::Prerouting,
            1 => Hook::Input,
            2 => Hook::Forward,
            3 => Hook::Output,
            4 => Hook::Postrouting,
            _ => return None,
        };
        Some(Self::base(name, BaseChain::new(kind, hook, priority)))
    }
}

/// What happens to a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Leaves this base chain.
    Accept,
    /// Is dropped.
    Drop,
    /// Goes through a chain and comes back.
    Jump(String),
    /// Goes through a chain and does not come back.
    Goto(String),
    /// Goes back to where the chain was entered from.
    Return,
}

impl Verdict {
    pub(super) fn encode(&self, message: &mut Message) {
        let (code, chain) = match self {
            Self::Drop => (NF_DROP.cast_signed(), None),
            Self::Accept => (NF_ACCEPT.cast_signed(), None),
            Self::Jump(chain) => (NFT_JUMP, Some(chain)),
            Self::Goto(chain) => (NFT_GOTO, Some(chain)),
            Self::Return => (NFT_RETURN, None),
        };
        message.nested(DATA_VERDICT, |verdict| {
            verdict.be32(VERDICT_CODE, code.cast_unsigned());
            if let Some(chain) = chain {
                verdict.text(VERDICT_CHAIN, chain);
            }
        });
    }

    pub(super) fn decode(verdict: &[u8]) -> Option<Self> {
        let code = attribute(verdict, VERDICT_CODE).and_then(be32)?.cast_signed();
        let chain = || attribute(verdict, VERDICT_CHAIN).map(text);
        Some(match code {
            0 => Self::Drop,
            1 => Self::Accept,
            NFT_JUMP => Self::Jump(chain()?),
            NFT_GOTO => Self::Goto(chain()?),
            NFT_RETURN => Self::Return,
            _ => return None,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
            Self::Return => f.write_str("return"),
        }
    }
}

/// Type of a field in a set's key or a map's data. The kernel only looks at its length; the number is for `nft`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DataType {
    /// `ipv4_addr`, 4 bytes.
    Ipv4Addr,
    /// `ipv6_addr`, 16 bytes.
    Ipv6Addr,
    /// `ether_addr`, 6 bytes.
    EtherAddr,
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`, 2 bytes.
    InetService,
    /// `mark`, 4 bytes in host order; also used for numbers such as a slot.
    Mark,
    /// `ifname`, 16 bytes.
    InterfaceName,
}

impl DataType {
    /// How many 4-byte registers a value takes.
    #[must_use]
    pub const fn registers(self) -> u8 {
        match self {
            Self::Ipv6Addr | Self::InterfaceName => 4,
            Self::EtherAddr => 2,
            Self::Ipv4Addr | Self::InetProto | Self::InetService | Self::Mark => 1,
        }
    }

    /// Number in libnftables' `enum datatypes`, and length in bytes.
    const fn number_and_len(self) -> (u32, u32) {
        match self {
            Self::Ipv4Addr => (7, 4),
            Self::Ipv6Addr => (8, 16),
            Self::EtherAddr => (9, 6),
            Self::InetProto => (12, 1),
            Self::InetService => (13, 2),
            Self::Mark => (19, 4),
            Self::InterfaceName => (41, 16),
        }
    }

    /// Type number and length of a concatenation: six bits for each field's number; each field padded to a register.
    fn concatenated(fields: &[Self]) -> (u32, u32) {
        if let [single] = fields {
            return single.number_and_len();
        }
        fields.iter().fold((0, 0), |(numbers, lens), field| {
            let (number, len) = field.number_and_len();
            (numbers << 6 | number, lens + len.next_multiple_of(4))
        })
    }
}

/// What a set holds beside its keys.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// Keys alone.
    Set,
    /// A value for each key.
    Map(Vec<DataType>),
    /// A verdict for each key.
    VerdictMap,
}

/// What the keys of a set are, and who writes them. Decides which of the kernel's structures holds the set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Contents {
    /// Exact keys, written by transactions (a hash table).
    #[default]
    Exact,
    /// Keys of two fields or more, each field a range from [`Element::key`] to [`Element::end`]; written by
    /// transactions (`nft_set_pipapo`). Ranges must not overlap: the kernel refuses one that does with `EEXIST`;
    /// one that is there already is fine. (`nft` takes numbers in such keys for big-endian and prints them so.)
    Ranges,
    /// Exact keys that packets write ([`Rule::update_element`](super::Rule::update_element)) and that expire. Beyond
    /// `limit` elements packets add none, and rules that try end there. Expired and deleted ones count until the
    /// kernel collects them, about once a second.
    ByPackets {
        /// How many elements there may be.
        limit: NonZeroU32,
    },
}

impl Contents {
    const fn flags(self) -> u32 {
        match self {
            Self::Exact => 0,
            Self::Ranges => SET_FLAG_INTERVAL | SET_FLAG_CONCAT,
            Self::ByPackets { .. } => SET_FLAG_TIMEOUT | SET_FLAG_EVAL,
        }
    }
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// Its name within the table.
    pub name: String,
    /// Fields of the key.
    pub key: Vec<DataType>,
    /// What lies beside the keys.
    pub kind: SetKind,
    /// What the keys are.
    pub contents: Contents,
}

impl Set {
    /// A set or map of exact keys that transactions write.
    pub fn new(name: impl Into<String>, key: &[DataType], kind: SetKind) -> Self {
        Self {
            name: name.into(),
            key: key.to_vec(),
            kind,
            contents: Contents::Exact,
        }
    }

    /// The same with other contents.
    #[must_use]
    pub fn with_contents(self, contents: Contents) -> Self {
        Self { contents, ..self }
    }

    pub(super) fn encode(&self, message: &mut Message, id: u32) {
        message.text(SET_NAME, &self.name);
        let numbers = self.numbers();
        message.be32(SET_FLAGS, numbers.flags);
        message
            .be32(SET_KEY_TYPE, numbers.key.0)
            .be32(SET_KEY_LEN, numbers.key.1);
        if let Some((number, len)) = numbers.data {
            message.be32(SET_DATA_TYPE, number);
            if number != VERDICT_TYPE {
                message.be32(SET_DATA_LEN, len);
            }
        }
        numbers.description.encode(message);
        message.be32(SET_ID, id);
    }

    pub(super) fn numbers(&self) -> SetNumbers {
        let data = match &self.kind {
            SetKind::Set => None,
            SetKind::Map(fields) => Some(DataType::concatenated(fields)),
            SetKind::VerdictMap => Some((VERDICT_TYPE, 0)),
        };
        let map = if data.is_some() { SET_FLAG_MAP } else { 0 };
        SetNumbers {
            name: self.name.clone(),
            flags: map | self.contents.flags(),
            key: DataType::concatenated(&self.key),
            data,
            description: self.description(),
        }
    }

    fn description(&self) -> SetDescription {
        let mut description = SetDescription::default();
        match self.contents {
            Contents::Exact => {}
            Contents::Ranges => {
                let lens = self.key.iter().map(|field| field.number_and_len().1);
                description.field_lens = lens.collect();
            }
            Contents::ByPackets { limit } => description.size = Some(limit.get()),
        }
        description
    }
}

/// A set as the kernel describes it: enough to tell whether it is the one that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetNumbers {
    pub name: String,
    flags: u32,
    key: (u32, u32),
    data: Option<(u32, u32)>,
    description: SetDescription,
}

impl SetNumbers {
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let number = |kind| attribute(payload, kind).and_then(be32);
        let data = number(SET_DATA_TYPE).map(|data| {
            let len = if data == VERDICT_TYPE {
                None
            } else {
                number(SET_DATA_LEN)
            };
            (data, len.unwrap_or(0))
        });
        Some(Self {
            name: text(attribute(payload, SET_NAME)?),
            flags: number(SET_FLAGS).unwrap_or(0),
            key: (number(SET_KEY_TYPE)?, number(SET_KEY_LEN)?),
            data,
            description: SetDescription::decode(attribute(payload, SET_DESCRIPTION).unwrap_or_default()),
        })
    }
}

/// `NFTA_SET_DESC`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SetDescription {
    /// How many elements there may be.
    size: Option<u32>,
    /// Bytes of each field of a key of ranges. (The kernel's header says bits; `nft_set_desc_concat_parse` and
    /// `nft_pipapo_init` count bytes.)
    field_lens: Vec<u32>,
}

impl SetDescription {
    fn encode(&self, message: &mut Message) {
        if *self == Self::default() {
            return;
        }
        message.nested(SET_DESCRIPTION, |description| {
            if let Some(size) = self.size {
                description.be32(DESCRIPTION_SIZE, size);
            }
            if !self.field_lens.is_empty() {
                description.nested(DESCRIPTION_CONCAT, |fields| {
                    for len in &self.field_lens {
                        fields.nested(LIST_ELEMENT, |field| {
                            field.be32(FIELD_LEN, *len);
                        });
                    }
                });
            }
        });
    }

    fn decode(description: &[u8]) -> Self {
        let fields = attributes(attribute(description, DESCRIPTION_CONCAT).unwrap_or_default());
        Self {
            size: attribute(description, DESCRIPTION_SIZE).and_then(be32),
            field_lens: fields
                .filter_map(|(_, field)| be32(attribute(field, FIELD_LEN)?))
                .collect(),
        }
    }
}

/// What lies beside a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ElementData {
    /// Nothing: a plain set.
    None,
    /// A value, each field padded to 4 bytes.
    Value(Vec<u8>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set: the key's fields one behind the other, each padded to 4 bytes (a single field is not padded).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// The key; in a set of [`Contents::Ranges`], the first value of each field.
    pub key: Vec<u8>,
    /// The last value of each field, inclusive; only in a set of [`Contents::Ranges`]. A field that is no range has
    /// the same value here.
    pub end: Option<Vec<u8>>,
    /// What lies beside it.
    pub data: ElementData,
}

impl Element {
    /// An element with an exact key.
    #[must_use]
    pub const fn new(key: Vec<u8>, data: ElementData) -> Self {
        Self { key, end: None, data }
    }

    /// An element whose key's fields are ranges, both ends inclusive.
    #[must_use]
    pub const fn range(first: Vec<u8>, last: Vec<u8>, data: ElementData) -> Self {
        Self {
            key: first,
            end: Some(last),
            data,
        }
    }

    pub(super) fn encode(&self, list: &mut Message) {
        list.nested(LIST_ELEMENT, |element| {
            element.nested(ELEMENT_KEY, |key| {
                key.bytes(DATA_VALUE, &self.key);
            });
            if let Some(end) = &self.end {
                element.nested(ELEMENT_KEY_END, |key| {
                    key.bytes(DATA_VALUE, end);
                });
            }
            match &self.data {
                ElementData::None => {}
                ElementData::Value(value) => {
                    element.nested(ELEMENT_DATA, |data| {
                        data.bytes(DATA_VALUE, value);
                    });
                }
                ElementData::Verdict(verdict) => {
                    element.nested(ELEMENT_DATA, |data| verdict.encode(data));
                }
            }
        });
    }

    pub(super) fn decode(element: &[u8]) -> Option<Self> {
        let value = |kind| attribute(attribute(element, kind)?, DATA_VALUE).map(<[u8]>::to_vec);
        let data = match attribute(element, ELEMENT_DATA) {
            None => ElementData::None,
            Some(data) => match (attribute(data, DATA_VALUE), attribute(data, DATA_VERDICT)) {
                (Some(value), _) => ElementData::Value(value.to_vec()),
                (None, Some(verdict)) => ElementData::Verdict(Verdict::decode(verdict)?),
                (None, None) => return None,
            },
        };
        Some(Self {
            key: value(ELEMENT_KEY)?,
            end: value(ELEMENT_KEY_END),
            data,
        })
    }
}

pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_USE: u16 = 6;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;
pub(super) const SET_TABLE: u16 = 1;
pub(super) const SET_NAME: u16 = 2;
pub(super) const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_DESCRIPTION: u16 = 9;
const SET_ID: u16 = 10;
pub(super) const SET_FLAG_INTERVAL: u32 = 0x4;
const SET_FLAG_MAP: u32 = 0x8;
const SET_FLAG_TIMEOUT: u32 = 0x10;
const SET_FLAG_EVAL: u32 = 0x20;
pub(super) const SET_FLAG_CONCAT: u32 = 0x80;
const DESCRIPTION_SIZE: u16 = 1;
const DESCRIPTION_CONCAT: u16 = 2;
const FIELD_LEN: u16 = 1;
pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
const ELEMENT_KEY_END: u16 = 10;
pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_DATA_VERDICT`.
const VERDICT_TYPE: u32 = 0xffff_ff00;
const NF_DROP: u32 = 0;
pub(super) const NF_ACCEPT: u32 = 1;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;

//! What a table consists of.

use std::fmt;

use crate::nfnetlink::{Message, attribute, be32, text};

/// Which packets a table sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// IPv4 and IPv6 (`NFPROTO_INET`).
    Inet = 1,
    /// IPv4 (`NFPROTO_IPV4`).
    Ip = 2,
    /// IPv6 (`NFPROTO_IPV6`).
    Ip6 = 10,
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

    fn decode(verdict: &[u8]) -> Option<Self> {
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
    /// `inet_proto`, 1 byte.
    InetProto,
    /// `inet_service`, 2 bytes.
    InetService,
    /// `mark`, 4 bytes in host order; also used for numbers such as a slot.
    Mark,
}

impl DataType {
    /// Number in libnftables' `enum datatypes`, and length in bytes.
    const fn number_and_len(self) -> (u32, u32) {
        match self {
            Self::Ipv4Addr => (7, 4),
            Self::Ipv6Addr => (8, 16),
            Self::InetProto => (12, 1),
            Self::InetService => (13, 2),
            Self::Mark => (19, 4),
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

/// A set or map. Keys are exact (hashed), not intervals.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Set {
    /// Its name within the table.
    pub name: String,
    /// Fields of the key.
    pub key: Vec<DataType>,
    /// What lies beside the keys.
    pub kind: SetKind,
}

impl Set {
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
        message.be32(SET_ID, id);
    }

    pub(super) fn numbers(&self) -> SetNumbers {
        let data = match &self.kind {
            SetKind::Set => None,
            SetKind::Map(fields) => Some(DataType::concatenated(fields)),
            SetKind::VerdictMap => Some((VERDICT_TYPE, 0)),
        };
        SetNumbers {
            name: self.name.clone(),
            flags: if data.is_some() { SET_FLAG_MAP } else { 0 },
            key: DataType::concatenated(&self.key),
            data,
        }
    }
}

/// A set as the kernel describes it: enough to tell whether it is the one that is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SetNumbers {
    pub name: String,
    flags: u32,
    key: (u32, u32),
    data: Option<(u32, u32)>,
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
        })
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
    /// The key.
    pub key: Vec<u8>,
    /// What lies beside it.
    pub data: ElementData,
}

impl Element {
    pub(super) fn encode(&self, list: &mut Message) {
        list.nested(LIST_ELEMENT, |element| {
            element.nested(ELEMENT_KEY, |key| {
                key.bytes(DATA_VALUE, &self.key);
            });
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
        let key = attribute(attribute(element, ELEMENT_KEY)?, DATA_VALUE)?.to_vec();
        let data = match attribute(element, ELEMENT_DATA) {
            None => ElementData::None,
            Some(data) => match (attribute(data, DATA_VALUE), attribute(data, DATA_VERDICT)) {
                (Some(value), _) => ElementData::Value(value.to_vec()),
                (None, Some(verdict)) => ElementData::Verdict(Verdict::decode(verdict)?),
                (None, None) => return None,
            },
        };
        Some(Self { key, data })
    }
}

pub(super) const LIST_ELEMENT: u16 = 1;
pub(super) const TABLE_NAME: u16 = 1;
pub(super) const CHAIN_TABLE: u16 = 1;
pub(super) const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
pub(super) const SET_TABLE: u16 = 1;
const SET_NAME: u16 = 2;
const SET_FLAGS: u16 = 3;
const SET_KEY_TYPE: u16 = 4;
const SET_KEY_LEN: u16 = 5;
const SET_DATA_TYPE: u16 = 6;
const SET_DATA_LEN: u16 = 7;
const SET_ID: u16 = 10;
const SET_FLAG_MAP: u32 = 0x8;
pub(super) const ELEMENTS_TABLE: u16 = 1;
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS_LIST: u16 = 3;
const ELEMENT_KEY: u16 = 1;
const ELEMENT_DATA: u16 = 2;
pub(super) const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;
/// `NFT_DATA_VERDICT`.
const VERDICT_TYPE: u32 = 0xffff_ff00;
const NF_DROP: u32 = 0;
const NF_ACCEPT: u32 = 1;
const NFT_JUMP: i32 = -3;
const NFT_GOTO: i32 = -4;
const NFT_RETURN: i32 = -5;

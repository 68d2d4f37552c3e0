//! The alphabet of rules: what the kernel runs, one after the other, on values in registers.

use std::time::Duration;

use super::super::object::{DATA_VALUE, DataType, Family, LIST_ELEMENT, Verdict};
use crate::nfnetlink::Message;

/// One of the sixteen 4-byte registers (`NFT_REG32_00` and on) that expressions pass values through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

impl Register {
    /// The first register: where single values go.
    pub const FIRST: Self = Self(0);

    /// The register of that index, 0 to 15. The kernel refuses rules with others (`ERANGE`).
    #[must_use]
    pub const fn new(index: u8) -> Self {
        Self(index)
    }

    /// The register behind a value of that type that begins in this one.
    #[must_use]
    pub const fn after(self, value: DataType) -> Self {
        self.skip(value.registers())
    }

    /// The register that comes `count` later.
    #[must_use]
    pub const fn skip(self, count: u8) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The register that stands `count` before.
    #[must_use]
    pub const fn back(self, count: u8) -> Self {
        Self(self.0.saturating_sub(count))
    }

    const fn number(self) -> u32 {
        8 + self.0 as u32
    }
}

/// What `meta` reads or writes; `enum nft_meta_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MetaKey {
    /// The packet's mark.
    Mark = 3,
    /// Name of the device that it came in by; 16 bytes, empty for packets of this machine.
    InInterfaceName = 6,
    /// Name of the device that it goes out by.
    OutInterfaceName = 7,
    /// IP protocol, behind extension headers.
    Protocol = 16,
}

/// What `ct` reads or writes; `enum nft_ct_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ConntrackKey {
    /// How the packet stands to its connection, one bit: new is 8.
    State = 0,
    /// Status bits of the connection.
    Status = 2,
    /// The connection's mark.
    Mark = 3,
}

/// Which header `payload` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PacketHeader {
    /// Ethernet.
    Link = 0,
    /// IPv4 or IPv6.
    Network = 1,
    /// TCP, UDP, SCTP.
    Transport = 2,
}

/// How `cmp` compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Comparison {
    /// Equal.
    Equal = 0,
    /// Not equal.
    NotEqual = 1,
}

/// Whose routing type `fib` looks up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FibAddress {
    /// The source address (`NFTA_FIB_F_SADDR`).
    Source = 1,
    /// The destination address (`NFTA_FIB_F_DADDR`).
    Destination = 2,
}

/// Where a lookup puts what it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookupTarget {
    /// Nowhere: the rule goes on if the key is in the set.
    Found,
    /// Nowhere: the rule goes on if the key is not in the set.
    NotFound,
    /// Into registers, beginning with this one.
    Value(Register),
    /// It is the verdict.
    Verdict,
}

/// How a packet is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// Port unreachable, of ICMP or ICMPv6: the table's family.
    PortUnreachable(Family),
    /// A TCP reset; only for TCP.
    TcpReset,
}

/// Which port a connection gets whose source is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourcePorts {
    /// The one that it has, unless that is in use.
    Kept,
    /// One that follows from its ends and a secret (`random`).
    Random,
    /// One that is drawn (`fully-random`).
    FullyRandom,
}

/// An element of a set of [`Contents::ByPackets`](crate::nft::Contents::ByPackets), as a rule sees it: its parts lie
/// in registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicElement {
    /// Set or map.
    pub set: String,
    /// First register of the key.
    pub key: Register,
    /// First register of the value: needed for a map, whatever is done (`nft_dynset_init` refuses the rule without,
    /// `EINVAL`), and not allowed for a set.
    pub data: Option<Register>,
    /// How long the element lives, in whole milliseconds; `None` is for ever.
    pub timeout: Option<Duration>,
}

/// What a rule does to an element; `enum nft_dynset_ops`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DynamicOperation {
    /// Adds it unless it is there.
    Add = 0,
    /// Adds it, or begins its time anew; the value of one that is there stays.
    Update = 1,
    /// Deletes it if it is there; the rule goes on in any case.
    Delete = 2,
}

/// The alphabet of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// `meta`: reads.
    Meta(MetaKey, Register),
    /// `meta … set`: writes.
    SetMeta(MetaKey, Register),
    /// `ct`: reads.
    Conntrack(ConntrackKey, Register),
    /// `ct … set`: writes; of an untracked packet, nothing.
    SetConntrack(ConntrackKey, Register),
    /// Bytes of a header.
    Payload {
        /// Which.
        header: PacketHeader,
        /// First byte.
        offset: u32,
        /// How many.
        len: u32,
        /// Where to.
        to: Register,
    },
    /// Ends the rule unless the comparison holds.
    Compare(Register, Comparison, Vec<u8>),
    /// `register = register & mask ^ xor`.
    Bitwise {
        /// In place.
        register: Register,
        /// Bits that are kept.
        mask: Vec<u8>,
        /// Bits that are turned over.
        xor: Vec<u8>,
    },
    /// Looks a key up that begins in a register.
    Lookup {
        /// Set or map.
        set: String,
        /// First register of the key.
        key: Register,
        /// What becomes of the result.
        target: LookupTarget,
    },
    /// Adds, refreshes or deletes an element. Adding to a full set ends the rule.
    Dynamic(DynamicOperation, DynamicElement),
    /// `numgen random mod N offset O`, a host-order number from O to O+N-1.
    Random {
        /// N, at least 1.
        modulus: u32,
        /// O.
        offset: u32,
        /// Where to.
        to: Register,
    },
    /// `fib … type`: the kind of route, `RTN_*`, in host order.
    FibType(FibAddress, Register),
    /// `fib … . iif oif`: index of the device by which the address is reached, in host order; 0 unless that is the one
    /// by which the packet came in.
    FibSameDevice(FibAddress, Register),
    /// A fixed value.
    Immediate(Register, Vec<u8>),
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// `dnat to address : port`, from registers.
    DestinationNat {
        /// Family of the address.
        family: Family,
        /// First register of the address.
        address: Register,
        /// Register of the port.
        port: Register,
    },
    /// `snat to address`, from a register.
    SourceNat {
        /// Family of the address.
        family: Family,
        /// First register of the address.
        address: Register,
        /// Which port the connection gets.
        ports: SourcePorts,
    },
    /// `masquerade random,fully`: the source port is drawn at random, so that two nodes' or CPUs' simultaneous choices
    /// do not collide.
    Masquerade,
    /// `notrack`: connection tracking, which comes later, leaves the packet alone.
    Untracked,
    /// Refuses the packet.
    Reject(Reject),
    /// Counts packets and bytes.
    Counter,
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta(..) | Self::SetMeta(..) => "meta",
            Self::Conntrack(..) | Self::SetConntrack(..) => "ct",
            Self::Payload { .. } => "payload",
            Self::Compare(..) => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Lookup { .. } => "lookup",
            Self::Dynamic(..) => "dynset",
            Self::Random { .. } => "numgen",
            Self::FibType(..) | Self::FibSameDevice(..) => "fib",
            Self::Immediate(..) | Self::Verdict(_) => "immediate",
            Self::DestinationNat { .. } | Self::SourceNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Untracked => "notrack",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
        }
    }

    pub(super) fn encode(&self, message: &mut Message) {
        message.nested(LIST_ELEMENT, |element| {
            element.text(EXPRESSION_NAME, self.name());
            element.nested(EXPRESSION_DATA, |data| self.encode_data(data));
        });
    }

    /// Attribute numbers are those of the `enum nft_*_attributes` of each expression.
    fn encode_data(&self, data: &mut Message) {
        let value = |data: &mut Message, kind, bytes: &[u8]| {
            data.nested(kind, |nested| {
                nested.bytes(DATA_VALUE, bytes);
            });
        };
        match self {
            Self::Meta(key, to) => {
                data.be32(1, to.number()).be32(2, *key as u32);
            }
            Self::SetMeta(key, from) => {
                data.be32(2, *key as u32).be32(3, from.number());
            }
            Self::Conntrack(key, to) => {
                data.be32(1, to.number()).be32(2, *key as u32);
            }
            Self::SetConntrack(key, from) => {
                data.be32(2, *key as u32).be32(4, from.number());
            }
            Self::Payload {
                header,
                offset,
                len,
                to,
            } => {
                data.be32(1, to.number())
                    .be32(2, *header as u32)
                    .be32(3, *offset)
                    .be32(4, *len);
            }
            Self::Compare(from, comparison, bytes) => {
                data.be32(1, from.number()).be32(2, *comparison as u32);
                value(data, 3, bytes);
            }
            Self::Bitwise { register, mask, xor } => {
                // invariant: masks are at most 16 bytes.
                let len = u32::try_from(mask.len()).unwrap_or(0);
                data.be32(1, register.number())
                    .be32(2, register.number())
                    .be32(3, len);
                value(data, 4, mask);
                value(data, 5, xor);
            }
            Self::Lookup { set, key, target } => {
                data.text(1, set).be32(2, key.number());
                match target {
                    LookupTarget::Found => {}
                    LookupTarget::NotFound => {
                        data.be32(5, LOOKUP_INVERTED);
                    }
                    LookupTarget::Value(to) => {
                        data.be32(3, to.number());
                    }
                    LookupTarget::Verdict => {
                        data.be32(3, VERDICT_REGISTER);
                    }
                }
            }
            Self::Dynamic(operation, element) => element.encode(*operation, data),
            Self::Random { modulus, offset, to } => {
                data.be32(1, to.number())
                    .be32(2, *modulus)
                    .be32(3, NUMGEN_RANDOM)
                    .be32(4, *offset);
            }
            Self::FibType(address, to) => {
                data.be32(1, to.number())
                    .be32(2, FIB_RESULT_TYPE)
                    .be32(3, *address as u32);
            }
            Self::FibSameDevice(address, to) => {
                data.be32(1, to.number())
                    .be32(2, FIB_RESULT_OIF)
                    .be32(3, *address as u32 | FIB_FLAG_IIF);
            }
            Self::Immediate(to, bytes) => {
                data.be32(1, to.number());
                value(data, 2, bytes);
            }
            Self::Verdict(verdict) => {
                data.be32(1, VERDICT_REGISTER);
                data.nested(2, |nested| verdict.encode(nested));
            }
            Self::DestinationNat {
                family,
                address,
                port,
            } => {
                data.be32(1, NAT_DESTINATION).be32(2, *family as u32);
                data.be32(3, address.number()).be32(5, port.number());
            }
            Self::SourceNat {
                family,
                address,
                ports,
            } => {
                data.be32(1, NAT_SOURCE).be32(2, *family as u32);
                data.be32(3, address.number());
                match ports {
                    SourcePorts::Kept => {}
                    SourcePorts::Random => {
                        data.be32(7, NAT_RANGE_PROTO_RANDOM);
                    }
                    SourcePorts::FullyRandom => {
                        data.be32(7, NAT_RANGE_PROTO_RANDOM_FULLY);
                    }
                }
            }
            Self::Masquerade => {
                data.be32(1, NAT_RANGE_PROTO_RANDOM_FULLY);
            }
            Self::Untracked => {}
            Self::Reject(Reject::TcpReset) => {
                data.be32(1, 1);
            }
            Self::Reject(Reject::PortUnreachable(family)) => {
                let code = match family {
                    Family::Ip => ICMP_PORT_UNREACHABLE,
                    Family::Ip6 => ICMPV6_PORT_UNREACHABLE,
                };
                data.be32(1, 0).bytes(2, &[code]);
            }
            Self::Counter => {
                data.be64(1, 0).be64(2, 0);
            }
        }
    }
}

impl DynamicElement {
    fn encode(&self, operation: DynamicOperation, data: &mut Message) {
        data.text(1, &self.set)
            .be32(3, operation as u32)
            .be32(4, self.key.number());
        if let Some(from) = self.data {
            data.be32(5, from.number());
        }
        if let Some(timeout) = self.timeout {
            data.be64(6, u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
        }
    }
}

const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const VERDICT_REGISTER: u32 = 0;
const LOOKUP_INVERTED: u32 = 1;
const NUMGEN_RANDOM: u32 = 1;
const FIB_RESULT_OIF: u32 = 1;
const FIB_RESULT_TYPE: u32 = 3;
const FIB_FLAG_IIF: u32 = 1 << 3;
const NAT_SOURCE: u32 = 0;
const NAT_DESTINATION: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM`.
const NAT_RANGE_PROTO_RANDOM: u32 = 1 << 2;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
const ICMP_PORT_UNREACHABLE: u8 = 3;
const ICMPV6_PORT_UNREACHABLE: u8 = 4;

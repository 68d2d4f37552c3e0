//! Rules: matches, then a statement.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::object::{DATA_VALUE, Verdict};
use crate::nfnetlink::Message;

/// One of the sixteen 4-byte registers (`NFT_REG32_00` and on) that expressions pass values through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(u8);

impl Register {
    /// The first register: where single values go.
    pub const FIRST: Self = Self(0);

    /// The register of that index, 0 to 15.
    #[must_use]
    pub const fn new(index: u8) -> Self {
        Self(index)
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
    /// Name of the device that it came in by.
    InInterfaceName = 6,
    /// Name of the device that it goes out by.
    OutInterfaceName = 7,
    /// IP protocol, behind extension headers.
    Protocol = 16,
}

/// What `ct` reads; `enum nft_ct_keys`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ConntrackKey {
    /// State bits of the packet.
    State = 0,
    /// Status bits of the connection.
    Status = 2,
}

/// Which header `payload` reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum PacketHeader {
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
    /// ICMP or ICMPv6 port unreachable, by the packet's family.
    PortUnreachable(IcmpVersion),
    /// A TCP reset; only for TCP.
    TcpReset,
}

/// Which ICMP a table's family speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpVersion {
    /// ICMP (tables of family ip).
    V4,
    /// ICMPv6 (tables of family ip6).
    V6,
}

/// The alphabet of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expression {
    /// `meta`: reads.
    Meta(MetaKey, Register),
    /// `meta … set`: writes.
    SetMeta(MetaKey, Register),
    /// `ct`.
    Conntrack(ConntrackKey, Register),
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
    /// `numgen random mod N`, a host-order number from 0 to N-1.
    Random(u32, Register),
    /// `fib … type`: the kind of route, `RTN_*`, in host order.
    FibType(FibAddress, Register),
    /// A fixed value.
    Immediate(Register, Vec<u8>),
    /// Ends the rule with a verdict.
    Verdict(Verdict),
    /// `dnat to address : port`, from registers.
    DestinationNat {
        /// First register of the address.
        address: Register,
        /// Its family: 2 = IPv4, 10 = IPv6.
        family: u32,
        /// Register of the port.
        port: Register,
    },
    /// `masquerade random,fully`: the source port is drawn at random, so that two nodes' or CPUs' simultaneous choices
    /// do not collide.
    Masquerade,
    /// Refuses the packet.
    Reject(Reject),
    /// Counts packets and bytes.
    Counter,
}

impl Expression {
    fn name(&self) -> &'static str {
        match self {
            Self::Meta(..) | Self::SetMeta(..) => "meta",
            Self::Conntrack(..) => "ct",
            Self::Payload { .. } => "payload",
            Self::Compare(..) => "cmp",
            Self::Bitwise { .. } => "bitwise",
            Self::Lookup { .. } => "lookup",
            Self::Random(..) => "numgen",
            Self::FibType(..) => "fib",
            Self::Immediate(..) | Self::Verdict(_) => "immediate",
            Self::DestinationNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject(_) => "reject",
            Self::Counter => "counter",
        }
    }

    fn encode(&self, message: &mut Message) {
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
            Self::Random(modulus, to) => {
                data.be32(1, to.number()).be32(2, *modulus).be32(3, NUMGEN_RANDOM);
            }
            Self::FibType(address, to) => {
                data.be32(1, to.number())
                    .be32(2, FIB_RESULT_TYPE)
                    .be32(3, *address as u32);
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
                address,
                family,
                port,
            } => {
                data.be32(1, NAT_DESTINATION).be32(2, *family);
                data.be32(3, address.number()).be32(5, port.number());
            }
            Self::Masquerade => {
                data.be32(1, NAT_RANGE_PROTO_RANDOM_FULLY);
            }
            Self::Reject(Reject::TcpReset) => {
                data.be32(1, 1);
            }
            Self::Reject(Reject::PortUnreachable(version)) => {
                let code = match version {
                    IcmpVersion::V4 => ICMP_PORT_UNREACHABLE,
                    IcmpVersion::V6 => ICMPV6_PORT_UNREACHABLE,
                };
                data.be32(1, 0).bytes(2, &[code]);
            }
            Self::Counter => {
                data.be64(1, 0).be64(2, 0);
            }
        }
    }
}

/// A field of a key that a rule builds from the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyField {
    /// Source address, IPv4.
    SourceAddress4,
    /// Destination address, IPv4.
    DestinationAddress4,
    /// IP protocol.
    Protocol,
    /// TCP, UDP or SCTP destination port.
    DestinationPort,
    /// A number from 0 to N-1, drawn for each packet.
    Random(u32),
}

impl KeyField {
    fn load(self, to: Register) -> Expression {
        let payload = |header, offset, len| Expression::Payload {
            header,
            offset,
            len,
            to,
        };
        match self {
            Self::SourceAddress4 => payload(PacketHeader::Network, 12, 4),
            Self::DestinationAddress4 => payload(PacketHeader::Network, 16, 4),
            Self::Protocol => Expression::Meta(MetaKey::Protocol, to),
            Self::DestinationPort => payload(PacketHeader::Transport, 2, 2),
            Self::Random(modulus) => Expression::Random(modulus, to),
        }
    }
}

/// A rule: a comment, and expressions in order. Addresses must be of the table's family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    comment: String,
    expressions: Vec<Expression>,
}

impl Rule {
    /// A rule that does nothing yet. The comment is shown by `nft list` and may have 110 bytes.
    pub fn new(comment: impl Into<String>) -> Self {
        Self {
            comment: comment.into(),
            expressions: Vec::new(),
        }
    }

    /// Adds an expression.
    #[must_use]
    pub fn with(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    /// `saddr network`.
    #[must_use]
    pub fn source(self, network: IpNetwork) -> Self {
        self.address(network, Comparison::Equal, FibAddress::Source)
    }

    /// `saddr != network`.
    #[must_use]
    pub fn not_source(self, network: IpNetwork) -> Self {
        self.address(network, Comparison::NotEqual, FibAddress::Source)
    }

    /// `daddr network`.
    #[must_use]
    pub fn destination(self, network: IpNetwork) -> Self {
        self.address(network, Comparison::Equal, FibAddress::Destination)
    }

    /// `daddr != network`.
    #[must_use]
    pub fn not_destination(self, network: IpNetwork) -> Self {
        self.address(network, Comparison::NotEqual, FibAddress::Destination)
    }

    /// `meta mark & mask == value`.
    #[must_use]
    pub fn mark(self, value: u32, mask: u32) -> Self {
        self.mark_compared(Comparison::Equal, value, mask)
    }

    /// `meta mark & mask != value`.
    #[must_use]
    pub fn not_mark(self, value: u32, mask: u32) -> Self {
        self.mark_compared(Comparison::NotEqual, value, mask)
    }

    /// `meta mark set mark | bits`.
    #[must_use]
    pub fn set_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, bits)
    }

    /// `meta mark set mark & ~bits`.
    #[must_use]
    pub fn clear_mark_bits(self, bits: u32) -> Self {
        self.change_mark(!bits, 0)
    }

    /// `meta l4proto number`.
    #[must_use]
    pub fn protocol(self, number: u8) -> Self {
        self.with(Expression::Meta(MetaKey::Protocol, Register::FIRST))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::Equal,
                vec![number],
            ))
    }

    /// `iifname name`.
    #[must_use]
    pub fn in_interface(self, name: &str) -> Self {
        self.interface(MetaKey::InInterfaceName, Comparison::Equal, name)
    }

    /// `oifname name`.
    #[must_use]
    pub fn out_interface(self, name: &str) -> Self {
        self.interface(MetaKey::OutInterfaceName, Comparison::Equal, name)
    }

    /// `oifname != name`.
    #[must_use]
    pub fn not_out_interface(self, name: &str) -> Self {
        self.interface(MetaKey::OutInterfaceName, Comparison::NotEqual, name)
    }

    /// `fib saddr type local`: sent by this machine.
    #[must_use]
    pub fn source_is_local(self) -> Self {
        self.fib_type_local(FibAddress::Source)
    }

    /// `fib daddr type local`: to one of this machine's addresses.
    #[must_use]
    pub fn destination_is_local(self) -> Self {
        self.fib_type_local(FibAddress::Destination)
    }

    /// `ct state new`.
    #[must_use]
    pub fn new_connection(self) -> Self {
        self.conntrack_bits(ConntrackKey::State, CT_STATE_NEW)
    }

    /// `ct status dnat`: the connection's destination was translated.
    #[must_use]
    pub fn destination_was_translated(self) -> Self {
        self.conntrack_bits(ConntrackKey::Status, CT_STATUS_DST_NAT)
    }

    /// `fields… @set`: goes on if the key is in the set.
    #[must_use]
    pub fn in_set(self, fields: &[KeyField], set: &str) -> Self {
        self.lookup(fields, set, LookupTarget::Found)
    }

    /// `fields… vmap @map`: the map gives the verdict; goes on if the key is not there.
    #[must_use]
    pub fn verdict_from(self, fields: &[KeyField], map: &str) -> Self {
        self.lookup(fields, map, LookupTarget::Verdict)
    }

    /// `dnat ip to fields… map @map`, whose data are an IPv4 address and a port.
    #[must_use]
    pub fn destination_nat4_from(self, fields: &[KeyField], map: &str) -> Self {
        let address = Register::new(0);
        self.lookup(fields, map, LookupTarget::Value(address))
            .with(Expression::DestinationNat {
                address,
                family: libc::AF_INET.cast_unsigned(),
                port: Register::new(1),
            })
    }

    /// `masquerade random,fully`.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.with(Expression::Masquerade)
    }

    /// `reject with …`.
    #[must_use]
    pub fn reject(self, how: Reject) -> Self {
        self.with(Expression::Reject(how))
    }

    /// `counter`.
    #[must_use]
    pub fn count(self) -> Self {
        self.with(Expression::Counter)
    }

    /// `accept`.
    #[must_use]
    pub fn accept(self) -> Self {
        self.with(Expression::Verdict(Verdict::Accept))
    }

    /// `drop`.
    #[must_use]
    pub fn drop(self) -> Self {
        self.with(Expression::Verdict(Verdict::Drop))
    }

    /// `return`.
    #[must_use]
    pub fn returns(self) -> Self {
        self.with(Expression::Verdict(Verdict::Return))
    }

    /// `jump chain`.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.with(Expression::Verdict(Verdict::Jump(chain.to_owned())))
    }

    /// `goto chain`.
    #[must_use]
    pub fn goto(self, chain: &str) -> Self {
        self.with(Expression::Verdict(Verdict::Goto(chain.to_owned())))
    }

    fn address(self, network: IpNetwork, comparison: Comparison, which: FibAddress) -> Self {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let bytes = octets(network.network());
        let offset = match (network.is_ipv4(), which) {
            (true, FibAddress::Source) => 12,
            (true, FibAddress::Destination) => 16,
            (false, FibAddress::Source) => 8,
            (false, FibAddress::Destination) => 24,
        };
        let mut rule = self.with(Expression::Payload {
            header: PacketHeader::Network,
            offset,
            len: if network.is_ipv4() { 4 } else { 16 },
            to: Register::FIRST,
        });
        if usize::from(network.prefix()) < bytes.len() * 8 {
            rule = rule.with(Expression::Bitwise {
                register: Register::FIRST,
                mask: octets(network.mask()),
                xor: vec![0; bytes.len()],
            });
        }
        rule.with(Expression::Compare(Register::FIRST, comparison, bytes))
    }

    fn mark_compared(self, comparison: Comparison, value: u32, mask: u32) -> Self {
        let mut rule = self.with(Expression::Meta(MetaKey::Mark, Register::FIRST));
        if mask != u32::MAX {
            rule = rule.with(bitwise32(mask, 0));
        }
        rule.with(Expression::Compare(
            Register::FIRST,
            comparison,
            value.to_ne_bytes().to_vec(),
        ))
    }

    fn change_mark(self, keep: u32, turn: u32) -> Self {
        self.with(Expression::Meta(MetaKey::Mark, Register::FIRST))
            .with(bitwise32(keep, turn))
            .with(Expression::SetMeta(MetaKey::Mark, Register::FIRST))
    }

    fn interface(self, key: MetaKey, comparison: Comparison, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(IFNAMSIZ, 0);
        self.with(Expression::Meta(key, Register::FIRST))
            .with(Expression::Compare(Register::FIRST, comparison, bytes))
    }

    fn fib_type_local(self, address: FibAddress) -> Self {
        let local = u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec();
        self.with(Expression::FibType(address, Register::FIRST))
            .with(Expression::Compare(Register::FIRST, Comparison::Equal, local))
    }

    fn conntrack_bits(self, key: ConntrackKey, bits: u32) -> Self {
        self.with(Expression::Conntrack(key, Register::FIRST))
            .with(bitwise32(bits, 0))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::NotEqual,
                vec![0; 4],
            ))
    }

    fn lookup(mut self, fields: &[KeyField], set: &str, target: LookupTarget) -> Self {
        for (index, field) in (0..).zip(fields) {
            self = self.with(field.load(Register::new(index)));
        }
        self.with(Expression::Lookup {
            set: set.to_owned(),
            key: Register::FIRST,
            target,
        })
    }

    /// The comment as the kernel keeps it: the text and a fingerprint of the expressions, so that a rule that an
    /// older version wrote, or that somebody replaced, is told from the wanted one without decoding it.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let mut body = Message::new(0, 0, 0, 0);
        for expression in &self.expressions {
            expression.encode(&mut body);
        }
        let hash = body.body().iter().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        });
        format!("{} #{hash:08x}", self.comment)
    }

    pub(super) fn encode(&self, message: &mut Message) {
        message.nested(RULE_EXPRESSIONS, |list| {
            for expression in &self.expressions {
                expression.encode(list);
            }
        });
        message.bytes(RULE_USERDATA, &comment_userdata(&self.fingerprint()));
    }
}

fn bitwise32(mask: u32, xor: u32) -> Expression {
    Expression::Bitwise {
        register: Register::FIRST,
        mask: mask.to_ne_bytes().to_vec(),
        xor: xor.to_ne_bytes().to_vec(),
    }
}

/// libnftnl's user data: `[type:1 = comment][len:1]` and the text with its NUL; 128 bytes at most.
fn comment_userdata(comment: &str) -> Vec<u8> {
    let mut text = comment.as_bytes().to_vec();
    text.truncate(COMMENT_MAX - 1);
    text.push(0);
    // invariant: truncated just above.
    let len = u8::try_from(text.len()).unwrap_or(u8::MAX);
    let mut userdata = vec![UDATA_COMMENT, len];
    userdata.extend(text);
    userdata
}

/// The comment in a rule's user data.
pub(super) fn comment_of(userdata: &[u8]) -> Option<String> {
    let mut rest = userdata;
    while let [kind, len, tail @ ..] = rest {
        let value = tail.get(..usize::from(*len))?;
        if *kind == UDATA_COMMENT {
            return Some(crate::nfnetlink::text(value));
        }
        rest = tail.get(usize::from(*len)..)?;
    }
    None
}

const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;
const UDATA_COMMENT: u8 = 0;
const COMMENT_MAX: usize = 128;
const VERDICT_REGISTER: u32 = 0;
const LOOKUP_INVERTED: u32 = 1;
const NUMGEN_RANDOM: u32 = 1;
const FIB_RESULT_TYPE: u32 = 3;
const NAT_DESTINATION: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 1 << 4;
const ICMP_PORT_UNREACHABLE: u8 = 3;
const ICMPV6_PORT_UNREACHABLE: u8 = 4;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 1 << 3;
/// `IPS_DST_NAT`.
const CT_STATUS_DST_NAT: u32 = 1 << 5;
const IFNAMSIZ: usize = 16;

//! Rules: matches, then a statement.
//!
//! A rule is a row of [`Expression`]s that pass values through sixteen registers of 4 bytes; the first one that does
//! not hold ends it. The methods with a name from the `nft` language use the first registers for themselves. The
//! others, which take a [`Register`], let a rule keep values from step to step:
//!
//! ```
//! use netlink::nft::rule::{KeyField, Register};
//! use netlink::nft::{Family, Rule};
//! let (client, service) = (Register::FIRST, Register::FIRST.after(Family::Ip6.address()));
//! let endpoint = service.skip(1);
//! Rule::new("the endpoint that the client had")
//!     .load(KeyField::SourceAddress(Family::Ip6), client)
//!     .load_all(&[KeyField::Protocol, KeyField::DestinationPort], service)
//!     .value_from("service-ids", service, service)
//!     .value_from("affinity", client, endpoint)
//!     .destination_nat(Family::Ip6, endpoint);
//! ```
//!
//! # Session affinity
//! Packets keep clients in a map of [`Contents::ByPackets`](super::Contents::ByPackets). Three rules, the first that
//! gets to its `dnat` wins, build a row of registers `client service list address port`:
//! ```text
//! affinity   client . service                  : list . address . port    filled by packets
//! eligible   service . list . address . port                              where clients may stay
//! endpoints  service . slot                    : list . address . port    what is picked from
//!
//! kept    affinity → list, number → list, service found in eligible, update affinity, dnat
//! picked  random → list, endpoints → list, number → list, delete and update affinity, dnat
//! full    random → list, endpoints → list, dnat
//! ```
//! - An element that is there keeps its value in an update: the second rule deletes it first.
//! - Adding to a full map ends the rule: without the third one such packets would not be translated at all.
//! - The program `nft` (1.0.6) aborts in listing a rule that uses a value out of a map within a key or as the value of
//!   an element: in the register where the value begins it sees something of length zero
//!   (`netlink_parse_concat_expr`). So such values begin one register early, with a number that is overwritten after
//!   the lookup. In the registers behind, `nft` sees what was there before, which must be as long as what is there
//!   now: a key that is looked up earlier is built there. `tests/affinity.rs` has the rules in full.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::object::{DataType, Family, Verdict};
use crate::nfnetlink::Message;

mod expression;

pub use expression::{
    Comparison, ConntrackKey, DynamicElement, DynamicOperation, Expression, FibAddress, LookupTarget,
    MetaKey, PacketHeader, Register, Reject, SourcePorts,
};

/// A field of a key that a rule builds from the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyField {
    /// Source address, of the table's family.
    SourceAddress(Family),
    /// Destination address, of the table's family.
    DestinationAddress(Family),
    /// IP protocol.
    Protocol,
    /// TCP, UDP or SCTP source port.
    SourcePort,
    /// TCP, UDP or SCTP destination port.
    DestinationPort,
    /// Name of the device that the packet came in by.
    InInterface,
    /// Source of the Ethernet frame; only where the packet came in by such a device.
    SourceMac,
    /// A fixed number, in host order.
    Number(u32),
    /// A number from `offset` to `offset + modulus - 1`, in host order, drawn for each packet.
    Random {
        /// How many numbers there are, at least 1.
        modulus: u32,
        /// The first of them.
        offset: u32,
    },
}

impl KeyField {
    /// Type of the field in a set's key.
    #[must_use]
    pub const fn data_type(self) -> DataType {
        match self {
            Self::SourceAddress(family) | Self::DestinationAddress(family) => family.address(),
            Self::Protocol => DataType::InetProto,
            Self::SourcePort | Self::DestinationPort => DataType::InetService,
            Self::InInterface => DataType::InterfaceName,
            Self::SourceMac => DataType::EtherAddr,
            Self::Number(_) | Self::Random { .. } => DataType::Mark,
        }
    }

    fn load(self, to: Register) -> Expression {
        let payload = |header, offset, len| Expression::Payload {
            header,
            offset,
            len,
            to,
        };
        // RFC 791 §3.1, RFC 8200 §3
        match self {
            Self::SourceAddress(Family::Ip) => payload(PacketHeader::Network, 12, 4),
            Self::DestinationAddress(Family::Ip) => payload(PacketHeader::Network, 16, 4),
            Self::SourceAddress(Family::Ip6) => payload(PacketHeader::Network, 8, 16),
            Self::DestinationAddress(Family::Ip6) => payload(PacketHeader::Network, 24, 16),
            Self::Protocol => Expression::Meta(MetaKey::Protocol, to),
            Self::SourcePort => payload(PacketHeader::Transport, 0, 2),
            Self::DestinationPort => payload(PacketHeader::Transport, 2, 2),
            Self::InInterface => Expression::Meta(MetaKey::InInterfaceName, to),
            Self::SourceMac => payload(PacketHeader::Link, 6, 6),
            Self::Number(number) => Expression::Immediate(to, number.to_ne_bytes().to_vec()),
            Self::Random { modulus, offset } => Expression::Random { modulus, offset, to },
        }
    }
}

/// Which devices a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Interface<'a> {
    /// The one of that name.
    Named(&'a str),
    /// All whose names begin so, at least one byte; `"veth*"` in the `nft` language.
    Prefixed(&'a str),
}

impl Interface<'_> {
    /// The bytes that are compared: a whole name has its zeros, up to the length of the kernel's name field.
    #[must_use]
    pub fn pattern(self) -> Vec<u8> {
        match self {
            Self::Prefixed(prefix) => prefix.as_bytes().to_vec(),
            Self::Named(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(IFNAMSIZ, 0);
                bytes
            }
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
        self.address(network, Comparison::Equal, KeyField::SourceAddress)
    }

    /// `saddr != network`.
    #[must_use]
    pub fn not_source(self, network: IpNetwork) -> Self {
        self.address(network, Comparison::NotEqual, KeyField::SourceAddress)
    }

    /// `daddr network`.
    #[must_use]
    pub fn destination(self, network: IpNetwork) -> Self {
        self.address(network, Comparison::Equal, KeyField::DestinationAddress)
    }

    /// `daddr != network`.
    #[must_use]
    pub fn not_destination(self, network: IpNetwork) -> Self {
        self.address(network, Comparison::NotEqual, KeyField::DestinationAddress)
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

    /// `ct mark & bits == bits`.
    #[must_use]
    pub fn connection_mark(self, bits: u32) -> Self {
        self.with(Expression::Conntrack(ConntrackKey::Mark, Register::FIRST))
            .with(bitwise32(bits, 0))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::Equal,
                bits.to_ne_bytes().to_vec(),
            ))
    }

    /// `ct mark set ct mark | bits`.
    #[must_use]
    pub fn set_connection_mark_bits(self, bits: u32) -> Self {
        self.with(Expression::Conntrack(ConntrackKey::Mark, Register::FIRST))
            .with(bitwise32(!bits, bits))
            .with(Expression::SetConntrack(ConntrackKey::Mark, Register::FIRST))
    }

    /// `ct state new`: no answer has been seen.
    #[must_use]
    pub fn connection_is_new(self) -> Self {
        self.with(Expression::Conntrack(ConntrackKey::State, Register::FIRST))
            .with(bitwise32(CT_STATE_NEW, 0))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::NotEqual,
                vec![0; 4],
            ))
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

    /// `iifname interface`.
    #[must_use]
    pub fn in_interface(self, interface: Interface<'_>) -> Self {
        self.interface(MetaKey::InInterfaceName, Comparison::Equal, interface)
    }

    /// `iifname != interface`; holds for packets of this machine, too.
    #[must_use]
    pub fn not_in_interface(self, interface: Interface<'_>) -> Self {
        self.interface(MetaKey::InInterfaceName, Comparison::NotEqual, interface)
    }

    /// `oifname interface`.
    #[must_use]
    pub fn out_interface(self, interface: Interface<'_>) -> Self {
        self.interface(MetaKey::OutInterfaceName, Comparison::Equal, interface)
    }

    /// `sport port`, of what [`Rule::protocol`] says.
    #[must_use]
    pub fn source_port(self, port: u16) -> Self {
        self.port(KeyField::SourcePort, port)
    }

    /// `dport port`, of what [`Rule::protocol`] says.
    #[must_use]
    pub fn destination_port(self, port: u16) -> Self {
        self.port(KeyField::DestinationPort, port)
    }

    fn port(self, field: KeyField, port: u16) -> Self {
        let port = port.to_be_bytes().to_vec();
        self.load(field, Register::FIRST)
            .with(Expression::Compare(Register::FIRST, Comparison::Equal, port))
    }

    /// `fib saddr . iif oif missing`: an answer would not leave by the device that the packet came in by (RFC 3704
    /// §2.2, strict reverse path forwarding).
    #[must_use]
    pub fn no_route_back(self) -> Self {
        self.with(Expression::FibSameDevice(FibAddress::Source, Register::FIRST))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::Equal,
                vec![0; 4],
            ))
    }

    /// `fib saddr type local`: sent by this machine.
    #[must_use]
    pub fn source_is_local(self) -> Self {
        self.fib_type_local(FibAddress::Source, Comparison::Equal)
    }

    /// `fib daddr type local`: to one of this machine's addresses.
    #[must_use]
    pub fn destination_is_local(self) -> Self {
        self.fib_type_local(FibAddress::Destination, Comparison::Equal)
    }

    /// `fib daddr type != local`.
    #[must_use]
    pub fn destination_is_not_local(self) -> Self {
        self.fib_type_local(FibAddress::Destination, Comparison::NotEqual)
    }

    /// `ct status dnat`: the connection's destination was translated.
    #[must_use]
    pub fn destination_was_translated(self) -> Self {
        self.with(Expression::Conntrack(ConntrackKey::Status, Register::FIRST))
            .with(bitwise32(CT_STATUS_DST_NAT, 0))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::NotEqual,
                vec![0; 4],
            ))
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

    /// `dnat to fields… map @map`, whose data are an address of the family and a port.
    #[must_use]
    pub fn destination_nat_from(self, fields: &[KeyField], map: &str, family: Family) -> Self {
        self.lookup(fields, map, LookupTarget::Value(Register::FIRST))
            .destination_nat(family, Register::FIRST)
    }

    /// Puts a field into a register, and the following ones when it takes several.
    #[must_use]
    pub fn load(self, field: KeyField, to: Register) -> Self {
        self.with(field.load(to))
    }

    /// Puts fields into registers one behind the other, as the keys of sets have them.
    #[must_use]
    pub fn load_all(self, fields: &[KeyField], first: Register) -> Self {
        let place = |(rule, to): (Self, Register), field: &KeyField| {
            (rule.load(*field, to), to.after(field.data_type()))
        };
        fields.iter().fold((self, first), place).0
    }

    /// Goes on if the key that begins in a register is in the set.
    #[must_use]
    pub fn found_in(self, set: &str, key: Register) -> Self {
        self.lookup_at(set, key, LookupTarget::Found)
    }

    /// Goes on if the key that begins in a register is not in the set.
    #[must_use]
    pub fn not_found_in(self, set: &str, key: Register) -> Self {
        self.lookup_at(set, key, LookupTarget::NotFound)
    }

    /// Goes on if the key that begins in a register is in the map; the value is put into the registers from `to` on,
    /// which may be those of the key.
    #[must_use]
    pub fn value_from(self, map: &str, key: Register, to: Register) -> Self {
        self.lookup_at(map, key, LookupTarget::Value(to))
    }

    /// Adds an element unless it is there. Ends the rule if the set is full.
    #[must_use]
    pub fn add_element(self, element: DynamicElement) -> Self {
        self.with(Expression::Dynamic(DynamicOperation::Add, element))
    }

    /// Adds an element, or begins its time anew; then its value stays the old one: delete it first where that may
    /// differ. Ends the rule if the element is new and the set is full.
    #[must_use]
    pub fn update_element(self, element: DynamicElement) -> Self {
        self.with(Expression::Dynamic(DynamicOperation::Update, element))
    }

    /// Deletes an element if it is there.
    #[must_use]
    pub fn delete_element(self, element: DynamicElement) -> Self {
        self.with(Expression::Dynamic(DynamicOperation::Delete, element))
    }

    /// `dnat to address:port`, both from registers: the port lies behind the address.
    #[must_use]
    pub fn destination_nat(self, family: Family, address: Register) -> Self {
        self.with(Expression::DestinationNat {
            family,
            address,
            port: address.after(family.address()),
        })
    }

    /// `snat to address`.
    #[must_use]
    pub fn source_nat(self, address: IpAddr, ports: SourcePorts) -> Self {
        let octets = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        self.with(Expression::Immediate(Register::FIRST, octets))
            .with(Expression::SourceNat {
                family: Family::of(address),
                address: Register::FIRST,
                ports,
            })
    }

    /// `masquerade random,fully`.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.with(Expression::Masquerade)
    }

    /// `notrack`: in a chain before connection tracking.
    #[must_use]
    pub fn untracked(self) -> Self {
        self.with(Expression::Untracked)
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

    fn address(self, network: IpNetwork, comparison: Comparison, field: fn(Family) -> KeyField) -> Self {
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let bytes = octets(network.network());
        let family = match network {
            IpNetwork::V4(_) => Family::Ip,
            IpNetwork::V6(_) => Family::Ip6,
        };
        let mut rule = self.load(field(family), Register::FIRST);
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

    fn fib_type_local(self, address: FibAddress, comparison: Comparison) -> Self {
        let local = u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec();
        self.with(Expression::FibType(address, Register::FIRST))
            .with(Expression::Compare(Register::FIRST, comparison, local))
    }

    fn interface(self, key: MetaKey, comparison: Comparison, interface: Interface<'_>) -> Self {
        self.with(Expression::Meta(key, Register::FIRST))
            .with(Expression::Compare(
                Register::FIRST,
                comparison,
                interface.pattern(),
            ))
    }

    fn lookup(self, fields: &[KeyField], set: &str, target: LookupTarget) -> Self {
        self.load_all(fields, Register::FIRST)
            .lookup_at(set, Register::FIRST, target)
    }

    fn lookup_at(self, set: &str, key: Register, target: LookupTarget) -> Self {
        self.with(Expression::Lookup {
            set: set.to_owned(),
            key,
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

pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_TABLE: u16 = 1;
pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_USERDATA: u16 = 7;
const UDATA_COMMENT: u8 = 0;
const COMMENT_MAX: usize = 128;
/// `IPS_DST_NAT`.
const CT_STATUS_DST_NAT: u32 = 1 << 5;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`.
const CT_STATE_NEW: u32 = 1 << 3;
const IFNAMSIZ: usize = 16;

//! Rules: matches, then a statement.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::object::Verdict;
use crate::nfnetlink::Message;

mod expression;

pub use expression::{
    Comparison, ConntrackKey, Expression, FibAddress, IcmpVersion, LookupTarget, MetaKey, PacketHeader,
    Register, Reject,
};

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

    /// `oifname name`.
    #[must_use]
    pub fn out_interface(self, name: &str) -> Self {
        let mut bytes = name.as_bytes().to_vec();
        bytes.resize(IFNAMSIZ, 0);
        self.with(Expression::Meta(MetaKey::OutInterfaceName, Register::FIRST))
            .with(Expression::Compare(Register::FIRST, Comparison::Equal, bytes))
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

    fn fib_type_local(self, address: FibAddress) -> Self {
        let local = u32::from(libc::RTN_LOCAL).to_ne_bytes().to_vec();
        self.with(Expression::FibType(address, Register::FIRST))
            .with(Expression::Compare(Register::FIRST, Comparison::Equal, local))
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

const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;
const UDATA_COMMENT: u8 = 0;
const COMMENT_MAX: usize = 128;
/// `IPS_DST_NAT`.
const CT_STATUS_DST_NAT: u32 = 1 << 5;
const IFNAMSIZ: usize = 16;

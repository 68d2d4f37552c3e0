//! Rules of policy routing: which packets look up which table (`ip rule`).

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_route::route::{RouteHeader, RouteProtocol};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage, RuleUidRange};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Operation, Result};
use crate::kernel::Netlink;

/// The table of this host's own addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;

/// A rule. A packet that is all that it asks for is its.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rule {
    /// It is for IPv6.
    pub is_v6: bool,
    /// Rules are asked in the order of it.
    pub priority: u32,
    /// What becomes of its packets.
    pub action: Action,
    /// It is for all packets but those that are what it asks for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub inverted: bool,
    /// Where they come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<IpNetwork>,
    /// Where they go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<IpNetwork>,
    /// The device that they came in by; `lo` for this host's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrives_by: Option<String>,
    /// The device that their socket is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaves_by: Option<String>,
    /// Their mark and which of its bits count; `(0, 0)`: whatever they have.
    #[serde(default)]
    pub mark: (u32, u32),
    /// Users whose sockets send them, first and last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<(u32, u32)>,
    /// Their type of service; 0: whatever they have.
    #[serde(default)]
    pub tos: u8,
    /// They belong to a VRF, whose table it is.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_vrf: bool,
    /// Routes whose prefixes are not longer than this are passed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suppressed_bits: Option<u32>,
    /// Who made it: the owner's mark (`FRA_PROTOCOL`); 0 where nobody said.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub protocol: u8,
    /// It asks, or does, more than is told here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

/// What becomes of the packets of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// They look up this table.
    LookUp(u32),
    /// The next rule is the first of this priority.
    GoTo(u32),
    /// Nothing.
    Nothing,
    /// They are dropped in silence.
    Blackhole,
    /// They are refused with "network unreachable".
    Unreachable,
    /// They are refused with "prohibited".
    Prohibit,
    /// Another of the kernel's numbers.
    Other(u8),
}

impl Rule {
    /// A rule of IPv4 for every packet.
    #[must_use]
    pub const fn new(priority: u32, action: Action) -> Self {
        Self {
            is_v6: false,
            priority,
            action,
            inverted: false,
            source: None,
            destination: None,
            arrives_by: None,
            leaves_by: None,
            mark: (0, 0),
            users: None,
            tos: 0,
            of_vrf: false,
            suppressed_bits: None,
            protocol: 0,
            more: false,
        }
    }

    /// Whether another rule asks and does the same, whoever made them.
    #[must_use]
    pub fn is_equal_but_for_its_maker(&self, other: &Self) -> bool {
        let of = |rule: &Self, protocol| Self {
            protocol,
            ..rule.clone()
        };
        *self == of(other, self.protocol)
    }

    /// The table that is looked up; none where the rule does something else.
    #[must_use]
    pub const fn table(&self) -> Option<u32> {
        match self.action {
            Action::LookUp(table) => Some(table),
            _ => None,
        }
    }

    /// It is for every packet, and nothing that its table says is passed over.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        let Self {
            is_v6: _,
            priority: _,
            action: _,
            protocol: _,
            inverted,
            source,
            destination,
            arrives_by,
            leaves_by,
            mark,
            users,
            tos,
            of_vrf,
            suppressed_bits,
            more,
        } = self;
        let asks_ends = source.is_some() || destination.is_some();
        let asks_devices = arrives_by.is_some() || leaves_by.is_some() || *of_vrf;
        let asks_else = *mark != (0, 0) || users.is_some() || *tos != 0 || *more;
        !(*inverted || asks_ends || asks_devices || asks_else || suppressed_bits.is_some())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.priority)?;
        if self.inverted {
            write!(f, " not")?;
        }
        if let Some(source) = self.source {
            write!(f, " from {source}")?;
        }
        if let Some(destination) = self.destination {
            write!(f, " to {destination}")?;
        }
        if let Some(device) = &self.arrives_by {
            write!(f, " iif {device}")?;
        }
        if let Some(device) = &self.leaves_by {
            write!(f, " oif {device}")?;
        }
        if self.mark != (0, 0) {
            write!(f, " fwmark {:#x}/{:#x}", self.mark.0, self.mark.1)?;
        }
        if self.users.is_some() || self.tos != 0 || self.of_vrf || self.suppressed_bits.is_some() || self.more
        {
            write!(f, " and more")?;
        }
        match self.action {
            Action::LookUp(table) => write!(f, " table {table}")?,
            Action::GoTo(priority) => write!(f, " goto {priority}")?,
            Action::Nothing => write!(f, " nop")?,
            Action::Blackhole => write!(f, " blackhole")?,
            Action::Unreachable => write!(f, " unreachable")?,
            Action::Prohibit => write!(f, " prohibit")?,
            Action::Other(number) => write!(f, " action {number}")?,
        }
        write!(f, " protocol {}", self.protocol)
    }
}

impl Netlink {
    /// The rules of IPv4.
    ///
    /// # Errors
    /// When the kernel has no policy routing, or does not answer.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        self.rules_of(AddressFamily::Inet)
    }

    /// The rules of IPv6.
    ///
    /// # Errors
    /// When the kernel has no IPv6, or does not answer.
    pub fn rules_v6(&mut self) -> Result<Vec<Rule>> {
        self.rules_of(AddressFamily::Inet6)
    }

    /// The rules of a version of IP, in the order in which they are asked.
    pub(crate) fn rules_of(&mut self, family: AddressFamily) -> Result<Vec<Rule>> {
        let mut request = RuleMessage::default();
        request.header.family = family;
        let messages = self.socket.dump(Message::GetRule(request));
        let messages = messages.map_err(Error::of(Operation::ListRules, ""))?;
        Ok(messages
            .into_iter()
            .filter_map(|message| match message {
                Message::NewRule(message) => Some(decode(&message)),
                _ => None,
            })
            .collect())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
fn is_zero(protocol: &u8) -> bool {
    *protocol == 0
}

/// The message that adds a rule, or that finds it. `None` for one that asks or does [`more`](Rule::more): what of it is
/// known would be another rule.
pub(crate) fn encode(rule: &Rule) -> Option<RuleMessage> {
    let Rule {
        is_v6,
        priority,
        action,
        inverted,
        source,
        destination,
        arrives_by,
        leaves_by,
        mark,
        users,
        tos,
        of_vrf,
        suppressed_bits,
        protocol,
        more: false,
    } = rule
    else {
        return None;
    };
    let mut message = RuleMessage::default();
    let header = &mut message.header;
    header.family = if *is_v6 {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    header.src_len = source.map_or(0, |network| network.prefix());
    header.dst_len = destination.map_or(0, |network| network.prefix());
    header.tos = *tos;
    header.flags.set(RuleFlags::Invert, *inverted);
    let attributes = &mut message.attributes;
    header.action = match action {
        Action::LookUp(table) => {
            // The header has room for the first 256 tables (`frh_get_table`).
            header.table = u8::try_from(*table).unwrap_or(0);
            attributes.push(RuleAttribute::Table(*table));
            RuleAction::ToTable
        }
        Action::GoTo(target) => {
            attributes.push(RuleAttribute::Goto(*target));
            RuleAction::Goto
        }
        // A VRF's table is its device's.
        Action::Nothing if *of_vrf => RuleAction::ToTable,
        Action::Nothing => RuleAction::Nop,
        Action::Blackhole => RuleAction::Blackhole,
        Action::Unreachable => RuleAction::Unreachable,
        Action::Prohibit => RuleAction::Prohibit,
        Action::Other(number) => RuleAction::Other(*number),
    };
    attributes.push(RuleAttribute::Priority(*priority));
    attributes.extend(source.map(|network| RuleAttribute::Source(network.network())));
    attributes.extend(destination.map(|network| RuleAttribute::Destination(network.network())));
    attributes.extend(arrives_by.clone().map(RuleAttribute::Iifname));
    attributes.extend(leaves_by.clone().map(RuleAttribute::Oifname));
    if *mark != (0, 0) {
        attributes.push(RuleAttribute::FwMark(mark.0));
        attributes.push(RuleAttribute::FwMask(mark.1));
    }
    attributes.extend(users.map(|(start, end)| RuleAttribute::UidRange(RuleUidRange { start, end })));
    if *of_vrf {
        attributes.push(RuleAttribute::L3MDev(true));
    }
    attributes.extend(suppressed_bits.map(RuleAttribute::SuppressPrefixLen));
    attributes.push(RuleAttribute::Protocol(RouteProtocol::from(*protocol)));
    Some(message)
}

pub(crate) fn decode(message: &RuleMessage) -> Rule {
    let header = &message.header;
    let mut rule = Rule {
        is_v6: header.family == AddressFamily::Inet6,
        inverted: header.flags.contains(RuleFlags::Invert),
        tos: header.tos,
        ..Rule::new(0, Action::Nothing)
    };
    let mut table = u32::from(header.table);
    let mut target = 0;
    let network = |address: IpAddr, bits| IpNetwork::new(address, bits).ok();
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Goto(priority) => target = *priority,
            RuleAttribute::Source(address) => rule.source = network(*address, header.src_len),
            RuleAttribute::Destination(address) => rule.destination = network(*address, header.dst_len),
            RuleAttribute::Iifname(name) => rule.arrives_by = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.leaves_by = Some(name.clone()),
            RuleAttribute::FwMark(mark) => rule.mark.0 = *mark,
            RuleAttribute::FwMask(mask) => rule.mark.1 = *mask,
            RuleAttribute::UidRange(users) => rule.users = Some((users.start, users.end)),
            RuleAttribute::L3MDev(is_on) => rule.of_vrf = *is_on,
            RuleAttribute::Protocol(protocol) => rule.protocol = u8::from(*protocol),
            // The kernel's way to say that nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            RuleAttribute::SuppressPrefixLen(bits) => rule.suppressed_bits = Some(*bits),
            _ => rule.more = true,
        }
    }
    let unspecified = u32::from(RouteHeader::RT_TABLE_UNSPEC);
    rule.action = match header.action {
        RuleAction::ToTable if table == unspecified => Action::Nothing,
        RuleAction::ToTable => Action::LookUp(table),
        RuleAction::Goto => Action::GoTo(target),
        RuleAction::Nop => Action::Nothing,
        RuleAction::Blackhole => Action::Blackhole,
        RuleAction::Unreachable => Action::Unreachable,
        RuleAction::Prohibit => Action::Prohibit,
        other => Action::Other(other.into()),
    };
    rule
}

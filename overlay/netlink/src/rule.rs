//! Rules of policy routing: which packets look up which table (`ip rule`).

use netlink_packet_route::route::RouteHeader;
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use crate::error::{Error, Operation, Result};
use crate::kernel::Netlink;

/// The table of this host's own addresses (`RT_TABLE_LOCAL`).
pub const TABLE_LOCAL: u32 = 255;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Rules are asked in the order of it.
    pub priority: u32,
    /// The table that is looked up; none where the rule does something else.
    pub table: Option<u32>,
    /// It is for every packet.
    pub is_for_all: bool,
}

impl Netlink {
    /// The rules of IPv4.
    ///
    /// # Errors
    /// When the kernel has no policy routing, or does not answer.
    pub fn rules(&mut self) -> Result<Vec<Rule>> {
        let mut request = RuleMessage::default();
        request.header.family = AddressFamily::Inet;
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

fn decode(message: &RuleMessage) -> Rule {
    let mut rule = Rule {
        priority: 0,
        table: Some(u32::from(message.header.table)),
        is_for_all: message.header.tos == 0,
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = Some(*table),
            // Who made it, and the kernel's way to say that nothing is suppressed.
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => rule.is_for_all = false,
        }
    }
    let looks_up = message.header.action == RuleAction::ToTable;
    rule.table = rule
        .table
        .filter(|table| looks_up && *table != u32::from(RouteHeader::RT_TABLE_UNSPEC));
    rule
}

//! The fixed part of the proxy's table for one version of IP.
//!
//! A packet's walk, for the first packet of a connection (nat chains see no other):
//! ```text
//! from outside or a pod   prerouting ─┐
//! from this node          output ─────┴► services
//!   services      address, protocol, port in service-ips?           → its verdict
//!                 address in cluster-ips (no such port)?            → refuse
//!                 to this node, not loopback, port in node-ports?   → its verdict
//!                 in a network of ClusterIPs, not this node's?      → drop
//!   verdict       goto a template chain, refuse, or drop
//!   template      [client in source ranges, else drop]
//!                 [mark who is masqueraded]
//!                 [the endpoint that the client has, if it may keep it]
//!                 draw a slot, dnat to endpoints[id, slot]
//!   refuse        reset or ICMP port unreachable
//! about to leave          postrouting: hairpin and marked connections are masqueraded
//! ```
//! Before connection tracking, what goes to the node's own DNS server while it answers, and what comes from there, is
//! left untracked: it meets none of this, and costs no entry.
//!
//! Loopback is left to the socket hook: translating it needs `route_localnet`, which opens loopback services of the
//! node to its neighbours (CVE-2020-8558).

use std::collections::BTreeSet;

use ipnetwork::IpNetwork;
use model::IpFamily;
use netlink::nft::rule::{KeyField, Reject};
use netlink::nft::{BaseChain, Chain, Family, Layout, Rule, Table};

use super::elements::Name;
use super::template::Template;
use crate::datapath::loopback;
use crate::plan::NodeContext;

/// The bit that asks postrouting to masquerade; kube-proxy's, which other components know to leave alone.
pub const MASQUERADE_MARK: u32 = 0x4000;

pub(super) const SERVICES: &str = "services";
/// The chain that refuses.
pub const REFUSE: &str = "refuse";
const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS_PORT: u16 = 53;

/// What names a node port.
pub(super) const TO_NODE_PORT: [KeyField; 2] = [KeyField::Protocol, KeyField::DestinationPort];

/// What names a frontend by address.
pub(super) fn to_address(family: Family) -> Vec<KeyField> {
    vec![
        KeyField::DestinationAddress(family),
        KeyField::Protocol,
        KeyField::DestinationPort,
    ]
}

/// The table that this proxy owns.
#[must_use]
pub fn table(family: Family) -> Table {
    Table::new(family, "causeway-proxy")
}

/// nftables' word for a version of IP.
#[must_use]
pub const fn nft_family(family: IpFamily) -> Family {
    match family {
        IpFamily::V4 => Family::Ip,
        IpFamily::V6 => Family::Ip6,
    }
}

/// The reverse.
#[must_use]
pub const fn ip_family(family: Family) -> IpFamily {
    match family {
        Family::Ip => IpFamily::V4,
        Family::Ip6 => IpFamily::V6,
    }
}

/// The sets alone.
#[must_use]
pub fn sets(family: Family) -> Layout {
    let mut layout = Layout::new(table(family));
    for name in Name::ALL {
        layout.add_set(name.set(family));
    }
    layout
}

/// Everything that does not depend on Services, and the template chains that are in use.
#[must_use]
pub fn layout(family: Family, context: &NodeContext, templates: &BTreeSet<Template>) -> Layout {
    let mut layout = sets(family);
    let jump = || [Rule::new("to Services").jump(SERVICES)];
    layout.add_chain(Chain::base("prerouting", BaseChain::PREROUTING_NAT), jump());
    layout.add_chain(Chain::base("output", BaseChain::OUTPUT_NAT), jump());
    layout.add_chain(
        Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
        postrouting(family),
    );
    // Every packet of the node passes such a chain, so that it is there only where it is needed.
    let untracked = untracked(family, context);
    if !untracked.is_empty() {
        layout.add_chain(
            Chain::base("arriving", BaseChain::PREROUTING_RAW),
            untracked.clone(),
        );
        layout.add_chain(Chain::base("leaving", BaseChain::OUTPUT_RAW), untracked);
    }
    layout.add_chain(Chain::regular(SERVICES), services(family, context));
    layout.add_chain(
        Chain::regular(REFUSE),
        [
            Rule::new("TCP").protocol(TCP).reject(Reject::TcpReset),
            Rule::new("everything else").reject(Reject::PortUnreachable(family)),
        ],
    );
    for template in templates {
        let (chain, rules) = template.chain(family, context);
        layout.add_chain(chain, rules);
    }
    layout
}

/// Questions to the node's own DNS while it answers, and its answers: late ones must not make flows either, or who asks
/// again from the same port would be led back here.
fn untracked(family: Family, context: &NodeContext) -> Vec<Rule> {
    let addresses = context.local_dns.iter().map(|address| IpNetwork::from(*address));
    let of_family = addresses.filter(|address| IpFamily::from(address.ip()) == ip_family(family));
    let rules = |address: IpNetwork| {
        let question = Rule::new(format!("question to {address}")).destination(address);
        let answer = Rule::new(format!("answer of {address}")).source(address);
        [UDP, TCP].map(|protocol| {
            let question = question.clone().protocol(protocol).destination_port(DNS_PORT);
            let answer = answer.clone().protocol(protocol).source_port(DNS_PORT);
            let question = context.dns_answers.then(|| question.untracked());
            question.into_iter().chain([answer.untracked()])
        })
    };
    of_family.flat_map(rules).flatten().collect()
}

fn services(family: Family, context: &NodeContext) -> Vec<Rule> {
    let mut rules = vec![
        Rule::new("by address").verdict_from(&to_address(family), Name::ServiceIps.text()),
        Rule::new("no such port")
            .in_set(&[KeyField::DestinationAddress(family)], Name::ClusterIps.text())
            .goto(REFUSE),
    ];
    for network in context.node_port_networks(ip_family(family)) {
        // The routing table is asked last: it is what costs the most, and almost no packet is for a node port.
        let rule = Rule::new(format!("by node port on {network}"))
            .in_set(&TO_NODE_PORT, Name::NodePortIds.text())
            .not_destination(loopback(ip_family(family)));
        let rule = if network.prefix() == 0 {
            rule
        } else {
            rule.destination(network)
        };
        rules.push(
            rule.destination_is_local()
                .verdict_from(&TO_NODE_PORT, Name::NodePorts.text()),
        );
    }
    for network in context.service_networks(ip_family(family)) {
        rules.push(
            Rule::new(format!("no such ClusterIP in {network}"))
                .destination(network)
                .destination_is_not_local()
                .drop(),
        );
    }
    rules
}

fn postrouting(family: Family) -> [Rule; 4] {
    let hairpin = [
        KeyField::SourceAddress(family),
        KeyField::DestinationAddress(family),
        KeyField::Protocol,
        KeyField::DestinationPort,
    ];
    [
        Rule::new("an endpoint that met itself")
            .destination_was_translated()
            .in_set(&hairpin, Name::Hairpin.text())
            .masquerade(),
        Rule::new("not marked")
            .not_mark(MASQUERADE_MARK, MASQUERADE_MARK)
            .returns(),
        Rule::new("once").clear_mark_bits(MASQUERADE_MARK),
        Rule::new("marked").masquerade(),
    ]
}

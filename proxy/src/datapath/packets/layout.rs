//! The fixed part of the proxy's table, and the template chains.
//!
//! A packet's walk, for the first packet of a connection (nat chains see no other):
//! ```text
//! from outside or a pod   prerouting ─┐
//! from this node          output ─────┴► services
//!   services      address, protocol, port in service-ips?      → its verdict
//!                 address in cluster-ips (no such port)?       → refuse
//!                 to this node, not 127/8, port in node-ports? → its verdict
//!   verdict       goto cluster-ip-N      N endpoints: draw a slot, dnat to endpoints[address, protocol, port, slot]
//!                 goto node-port-N       the same for a node port
//!                 goto node-port-local-N-M   policy Local: N endpoints in the cluster, M of them here
//!                 goto refuse            reset or ICMP port unreachable
//!                 drop
//! about to leave          postrouting: hairpin and marked connections are masqueraded
//! ```
//! A chain is a template for all Services with that many endpoints: there are tens of them, not tens of thousands.
//! 127.0.0.0/8 is left to the socket hook: translating it needs `route_localnet`, which opens loopback services of the
//! node to its neighbours (CVE-2020-8558).

use std::collections::BTreeSet;

use netlink::nft::rule::{IcmpVersion, KeyField, Reject};
use netlink::nft::{BaseChain, Chain, Family, Layout, Rule, Table};

use super::elements::Name;
use crate::plan::NodeContext;

/// The bit that asks postrouting to masquerade; kube-proxy's, which other components know to leave alone.
pub const MASQUERADE_MARK: u32 = 0x4000;

const SERVICES: &str = "services";
/// The chain that refuses.
pub const REFUSE: &str = "refuse";
const TCP: u8 = 6;

const TO_SERVICE: [KeyField; 3] = [
    KeyField::DestinationAddress4,
    KeyField::Protocol,
    KeyField::DestinationPort,
];
const TO_NODE_PORT: [KeyField; 2] = [KeyField::Protocol, KeyField::DestinationPort];

/// The table that this proxy owns.
#[must_use]
pub fn table() -> Table {
    Table::new(Family::Ip, "causeway-proxy")
}

/// A chain that picks one of N endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Template {
    /// Traffic to an address of a Service.
    ClusterIp {
        /// Endpoints.
        endpoints: u32,
    },
    /// Traffic to a node port, policy Cluster.
    NodePort {
        /// Endpoints.
        endpoints: u32,
    },
    /// Traffic to a node port, policy Local.
    NodePortLocal {
        /// Endpoints in the cluster, for clients in pods and on this node.
        endpoints: u32,
        /// Endpoints on this node, for clients outside.
        local: u32,
    },
}

impl Template {
    /// The chain's name.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::ClusterIp { endpoints } => format!("cluster-ip-{endpoints}"),
            Self::NodePort { endpoints } => format!("node-port-{endpoints}"),
            Self::NodePortLocal { endpoints, local } => format!("node-port-local-{endpoints}-{local}"),
        }
    }

    /// The template of a chain of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let template = if let Some(rest) = name.strip_prefix("node-port-local-") {
            let (endpoints, local) = rest.split_once('-')?;
            Self::NodePortLocal {
                endpoints: endpoints.parse().ok()?,
                local: local.parse().ok()?,
            }
        } else if let Some(rest) = name.strip_prefix("node-port-") {
            Self::NodePort {
                endpoints: rest.parse().ok()?,
            }
        } else {
            Self::ClusterIp {
                endpoints: name.strip_prefix("cluster-ip-")?.parse().ok()?,
            }
        };
        // `+1` and `01` parse as numbers too, but are not ours.
        (template.name() == name).then_some(template)
    }

    /// The chain and its rules.
    #[must_use]
    pub fn chain(&self, context: &NodeContext) -> (Chain, Vec<Rule>) {
        let pods = context.pod_network;
        let rules = match self {
            Self::ClusterIp { endpoints } => vec![
                Rule::new("clients outside the pod network")
                    .not_source(pods)
                    .set_mark_bits(MASQUERADE_MARK),
                pick(
                    Rule::new("one of the endpoints"),
                    &TO_SERVICE,
                    *endpoints,
                    Name::Endpoints,
                ),
            ],
            Self::NodePort { endpoints } => vec![
                Rule::new("every client").set_mark_bits(MASQUERADE_MARK),
                pick(
                    Rule::new("one of the endpoints"),
                    &TO_NODE_PORT,
                    *endpoints,
                    Name::NodePortEndpoints,
                ),
            ],
            Self::NodePortLocal { endpoints, local } => {
                let any = |rule| pick(rule, &TO_NODE_PORT, *endpoints, Name::NodePortEndpoints);
                let outside = match local {
                    0 => Rule::new("clients outside: no endpoint is here").drop(),
                    local => {
                        let rule = Rule::new("clients outside: an endpoint on this node");
                        pick(rule, &TO_NODE_PORT, *local, Name::NodePortLocalEndpoints)
                    }
                };
                vec![
                    any(Rule::new("pods: any endpoint").source(pods)),
                    Rule::new("this node")
                        .source_is_local()
                        .set_mark_bits(MASQUERADE_MARK),
                    any(Rule::new("this node: any endpoint").source_is_local()),
                    outside,
                ]
            }
        };
        (Chain::regular(self.name()), rules)
    }
}

fn pick(rule: Rule, key: &[KeyField], count: u32, map: Name) -> Rule {
    let mut key = key.to_vec();
    key.push(KeyField::Random(count));
    rule.destination_nat4_from(&key, map.text())
}

/// Everything that does not depend on Services, and the template chains that are in use.
#[must_use]
pub fn layout(context: &NodeContext, templates: &BTreeSet<Template>) -> Layout {
    let mut layout = Layout::new(table());
    for name in Name::ALL {
        layout.add_set(name.set());
    }
    let jump = || [Rule::new("to Services").jump(SERVICES)];
    layout.add_chain(Chain::base("prerouting", BaseChain::PREROUTING_NAT), jump());
    layout.add_chain(Chain::base("output", BaseChain::OUTPUT_NAT), jump());
    layout.add_chain(
        Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
        postrouting(),
    );
    layout.add_chain(Chain::regular(SERVICES), services());
    layout.add_chain(
        Chain::regular(REFUSE),
        [
            Rule::new("TCP").protocol(TCP).reject(Reject::TcpReset),
            Rule::new("everything else").reject(Reject::PortUnreachable(IcmpVersion::V4)),
        ],
    );
    for template in templates {
        let (chain, rules) = template.chain(context);
        layout.add_chain(chain, rules);
    }
    layout
}

fn services() -> [Rule; 3] {
    let loopback = "127.0.0.0/8".parse().expect("invariant: a network");
    [
        Rule::new("by address").verdict_from(&TO_SERVICE, Name::ServiceIps.text()),
        Rule::new("no such port")
            .in_set(&[KeyField::DestinationAddress4], Name::ClusterIps.text())
            .goto(REFUSE),
        Rule::new("by node port")
            .not_destination(loopback)
            .destination_is_local()
            .verdict_from(&TO_NODE_PORT, Name::NodePorts.text()),
    ]
}

fn postrouting() -> [Rule; 4] {
    let hairpin = [
        KeyField::SourceAddress4,
        KeyField::DestinationAddress4,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_names_read_back_and_foreign_names_do_not() {
        for template in [
            Template::ClusterIp { endpoints: 3 },
            Template::NodePort { endpoints: 10 },
            Template::NodePortLocal {
                endpoints: 5,
                local: 0,
            },
        ] {
            assert_eq!(Template::parse(&template.name()), Some(template));
        }
        for foreign in [
            "",
            "services",
            "cluster-ip-",
            "cluster-ip-03",
            "cluster-ip-+3",
            "node-port-local-3",
            "node-port-3-1",
        ] {
            assert_eq!(Template::parse(foreign), None, "{foreign:?}");
        }
    }
}

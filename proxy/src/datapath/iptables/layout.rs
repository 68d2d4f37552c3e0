//! What does not belong to one Service: jumps from the built-in chains, fixed chains, and how the chains that list
//! all Services are put together.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName};

use super::names::{
    CANARY, DNS, EXTERNAL_SERVICES, FORWARD, MARK_MASQ, MARK_OUTSIDE, NODE_PORTS, POSTROUTING,
    PROXY_FIREWALL, SERVICES, is_of_port,
};
use super::render::{Rendered, Top};
use super::rule::Rule;
use super::ruleset::{Jump, Rules, Table};
use crate::datapath::loopback;
use crate::plan::{LocalTraffic, NodeContext};

/// The bit that asks for masquerade, as a value and a mask; kube-proxy's, which other components know to leave alone.
const MARK: &str = "0x4000/0x4000";

/// Chains in mangle by which kubelet tells which variant the host uses (KEP-3178).
pub const KUBELETS: [&str; 2] = ["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"];

/// Chains that list all Services.
const LISTS: [(Table, &str); 6] = [
    (Table::Nat, SERVICES),
    (Table::Nat, NODE_PORTS),
    (Table::Filter, SERVICES),
    (Table::Filter, EXTERNAL_SERVICES),
    (Table::Filter, NODE_PORTS),
    (Table::Filter, PROXY_FIREWALL),
];

/// Whether a chain is the proxy's.
#[must_use]
pub fn is_own_chain(table: Table, chain: &str) -> bool {
    match table {
        Table::Raw => chain == DNS,
        Table::Mangle => chain == CANARY,
        Table::Nat => {
            [SERVICES, NODE_PORTS, POSTROUTING, MARK_MASQ, MARK_OUTSIDE, CANARY].contains(&chain)
                || is_of_port(chain)
        }
        Table::Filter => [
            SERVICES,
            EXTERNAL_SERVICES,
            NODE_PORTS,
            FORWARD,
            PROXY_FIREWALL,
            CANARY,
        ]
        .contains(&chain),
    }
}

/// Whether a chain is the kernel's.
#[must_use]
pub fn is_built_in(chain: &str) -> bool {
    ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"].contains(&chain)
}

/// Jumps from built-in chains in the order in which they are put first: a packet meets the last ones first.
///
/// kube-proxy's, and one more: from OUTPUT to `KUBE-EXTERNAL-SERVICES`, so that a client on this node too is refused
/// at a load balancer's address whose Service has no endpoint, instead of being sent around it.
#[must_use]
pub fn jumps() -> Vec<Jump> {
    const NEW: &str = "-m conntrack --ctstate NEW";
    let portals = "kubernetes service portals";
    let external = "kubernetes externally-visible service portals";
    let health = "kubernetes health check service ports";
    let firewall = "kubernetes load balancer firewall";
    [
        (Table::Nat, "PREROUTING", SERVICES, "", portals),
        (Table::Nat, "OUTPUT", SERVICES, "", portals),
        (
            Table::Nat,
            "POSTROUTING",
            POSTROUTING,
            "",
            "kubernetes postrouting rules",
        ),
        (Table::Filter, "INPUT", EXTERNAL_SERVICES, NEW, external),
        (Table::Filter, "INPUT", NODE_PORTS, "", health),
        (Table::Filter, "INPUT", PROXY_FIREWALL, NEW, firewall),
        (Table::Filter, "FORWARD", EXTERNAL_SERVICES, NEW, external),
        (Table::Filter, "FORWARD", SERVICES, NEW, portals),
        (
            Table::Filter,
            "FORWARD",
            FORWARD,
            "",
            "kubernetes forwarding rules",
        ),
        (Table::Filter, "FORWARD", PROXY_FIREWALL, NEW, firewall),
        (Table::Filter, "OUTPUT", EXTERNAL_SERVICES, NEW, external),
        (Table::Filter, "OUTPUT", SERVICES, NEW, portals),
        (Table::Filter, "OUTPUT", PROXY_FIREWALL, NEW, firewall),
    ]
    .into_iter()
    .map(|(table, from, to, state, why)| Jump {
        table,
        from: from.to_owned(),
        rule: Rule::new(&format!("{state} -m comment --comment \"{why}\" -j {to}")),
    })
    .collect()
}

/// What rules depend on besides plans.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Version of IP.
    pub family: IpFamily,
    /// How pods' packets are matched.
    pub pods: Pods,
    /// Matches for the addresses on which node ports are served.
    node_ports: Vec<String>,
    /// A rule that keeps loopback out of the matches, where they do not exclude it themselves.
    loopback: Option<Rule>,
    /// Rules that drop what is sent to addresses of Services that none has.
    no_such_cluster_ip: Vec<Rule>,
    /// Whether conntrack lets packets outside of a connection's window through (`nf_conntrack_tcp_be_liberal`).
    pub liberal: bool,
}

/// How pods' packets are matched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pods {
    /// Not at all.
    Unknown,
    /// Everyone is one.
    Everyone,
    /// By a match that can be negated.
    Matching(String),
    /// By several networks.
    Networks(Vec<IpNetwork>),
}

impl Pods {
    fn of(context: &NodeContext, family: IpFamily) -> Self {
        match &context.local_traffic {
            LocalTraffic::Unknown => Self::Unknown,
            LocalTraffic::Interface(name) => Self::Matching(format!("-i {name}")),
            LocalTraffic::InterfacePrefix(prefix) => Self::Matching(format!("-i {prefix}+")),
            LocalTraffic::Networks(_) => {
                let networks: Vec<_> = context.pod_networks(family).collect();
                match networks.as_slice() {
                    [] => Self::Unknown,
                    networks if networks.iter().any(|network| network.prefix() == 0) => Self::Everyone,
                    [network] => Self::Matching(format!("-s {network}")),
                    _ => Self::Networks(networks),
                }
            }
        }
    }

    /// Matches of pods' packets, one of which is true.
    #[must_use]
    pub fn matches(&self) -> Vec<String> {
        match self {
            Self::Unknown => Vec::new(),
            Self::Everyone => vec![String::new()],
            Self::Matching(text) => vec![text.clone()],
            Self::Networks(networks) => networks.iter().map(|network| format!("-s {network}")).collect(),
        }
    }

    /// A match for others' packets, with the chain that marks those; none when there are no others.
    #[must_use]
    pub fn mark_others(&self) -> Option<(String, &'static str)> {
        match self {
            Self::Unknown => Some((String::new(), MARK_MASQ)),
            Self::Everyone => None,
            Self::Matching(text) => Some((format!("! {text}"), MARK_MASQ)),
            Self::Networks(_) => Some((String::new(), MARK_OUTSIDE)),
        }
    }
}

impl Surroundings {
    /// Of a node.
    #[must_use]
    pub fn new(context: &NodeContext, family: IpFamily, liberal: bool) -> Self {
        let loopback = loopback(family);
        let networks = context.node_port_networks(family);
        let is_in = |inner: &IpNetwork, outer: &IpNetwork| {
            outer.prefix() <= inner.prefix() && outer.contains(inner.network())
        };
        let networks = || networks.iter().filter(|network| !is_in(network, &loopback));
        let of_node = |match_: String| format!("{match_} -m addrtype --dst-type LOCAL");
        let around = |network: &&IpNetwork| network.prefix() > 0 && is_in(&loopback, network);
        Self {
            family,
            pods: Pods::of(context, family),
            node_ports: networks()
                .map(|network| match network.prefix() {
                    0 => of_node(format!("! -d {loopback}")),
                    _ => of_node(format!("-d {network}")),
                })
                .collect(),
            no_such_cluster_ip: context
                .service_networks(family)
                .map(|network| {
                    Rule::new(&format!(
                        "-d {network} -m comment --comment \"no such ClusterIP\" -m addrtype ! --dst-type LOCAL -j DROP"
                    ))
                })
                .collect(),
            loopback: networks()
                .find(around)
                .map(|_| Rule::new(&format!("-d {loopback} -j RETURN"))),
            liberal,
        }
    }

    /// Matches for the addresses on which node ports are served. Loopback is not among them: it needs
    /// `route_localnet`, which opens the node's loopback to its neighbours (CVE-2020-8558).
    #[must_use]
    pub fn node_ports(&self) -> &[String] {
        &self.node_ports
    }

    /// What is the same whatever the Services.
    #[must_use]
    pub fn fixed_chains(&self) -> Vec<(Table, &'static str, Rules)> {
        let empty = || Rules::from([]);
        let rules = |texts: &[&str]| texts.iter().map(|text| Rule::new(text)).collect();
        let outside = match &self.pods {
            Pods::Networks(networks) => {
                let inside = networks.iter().map(|network| format!("-s {network} -j RETURN"));
                let mark = [format!("-j {MARK_MASQ}")];
                let rules = inside.chain(mark).map(|text| Rule::new(&text)).collect();
                Some((Table::Nat, MARK_OUTSIDE, rules))
            }
            Pods::Unknown | Pods::Everyone | Pods::Matching(_) => None,
        };
        let mut chains = vec![
            (Table::Mangle, CANARY, empty()),
            (Table::Nat, CANARY, empty()),
            (Table::Filter, CANARY, empty()),
            (
                Table::Nat,
                MARK_MASQ,
                rules(&[&format!("-j MARK --set-xmark {MARK}")]),
            ),
            // The mark is taken off again, so that a packet that goes through another stack on this node, as through
            // a tunnel, is not masqueraded twice.
            (
                Table::Nat,
                POSTROUTING,
                rules(&[
                    &format!("-m mark ! --mark {MARK} -j RETURN"),
                    "-j MARK --set-xmark 0x4000/0x0",
                    "-m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully",
                ]),
            ),
            (Table::Filter, FORWARD, self.forward()),
        ];
        chains.extend(outside);
        chains
    }

    /// A packet that conntrack cannot place would reach the client with the endpoint's address, and be answered with a
    /// reset that ends a healthy connection (kubernetes#74839).
    fn forward(&self) -> Rules {
        let invalid = "-m conntrack --ctstate INVALID -j DROP";
        let others = [
            &*format!("-m comment --comment \"kubernetes forwarding rules\" -m mark --mark {MARK} -j ACCEPT"),
            "-m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate \
             RELATED,ESTABLISHED -j ACCEPT",
        ]
        .map(Rule::new);
        let invalid = (!self.liberal).then(|| Rule::new(invalid));
        invalid.into_iter().chain(others).collect()
    }

    /// The chains that list all Services.
    #[must_use]
    pub fn lists(&self, services: &BTreeMap<ObjectName, Rendered>) -> Vec<(Table, &'static str, Rules)> {
        let of = |top: Top| {
            services
                .values()
                .flat_map(move |service| service.top(top))
                .cloned()
        };
        let loopback = || self.loopback.iter().cloned();
        let to_node_ports = self.node_ports.iter().map(|match_| {
            let why = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";
            Rule::new(&format!(
                "{match_} -m comment --comment \"{why}\" -j {NODE_PORTS}"
            ))
        });
        // The most of what comes here is on its way to an endpoint; it matches nothing below.
        let translated = Rule::new("-m conntrack --ctstate DNAT -j RETURN");
        let rules: [Rules; LISTS.len()] = [
            of(Top::ByAddress)
                .chain(loopback())
                .chain(to_node_ports)
                .collect(),
            of(Top::ByNodePort).collect(),
            std::iter::once(translated)
                .chain(of(Top::Internal))
                .chain(of(Top::OtherPorts))
                .chain(self.no_such_cluster_ip.iter().cloned())
                .collect(),
            loopback().chain(of(Top::External)).collect(),
            of(Top::HealthChecks).collect(),
            of(Top::Firewall).collect(),
        ];
        LISTS
            .into_iter()
            .zip(rules)
            .map(|((table, chain), rules)| (table, chain, rules))
            .collect()
    }
}

/// The chains that list all Services.
pub fn list_names() -> impl Iterator<Item = (Table, &'static str)> {
    LISTS.into_iter()
}

//! What plans look like as rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName, Protocol};

use super::layout::Surroundings;
use super::render::{Rendered, Top, render};
use super::rule::{Rule, comment};
use super::ruleset::Table;
use crate::plan::{
    Action, Admits, Frontend, FrontendAddress, FrontendKey, HealthCheck, List, LocalTraffic, Masquerade,
    NodeContext, NodePortAddresses, PortKey, PortPlan, ServicePlan, SharedSet, Target,
};

const LAST: &str = "kubernetes service nodeports; NOTE: this must be the last rule in this chain";

/// What each case becomes, under its title.
const GOLDEN: &str = include_str!("golden.txt");

pub(super) const TO_CLUSTER: Action = Action::Spread {
    list: List::Cluster,
    masquerade: Masquerade::OutsidePods,
};
const EVERYONE: Action = Action::Spread {
    list: List::Cluster,
    masquerade: Masquerade::Everyone,
};

pub(super) fn node() -> NodeContext {
    NodeContext::new("here".into(), ["10.244.0.0/16", "fd00:244::/48"].map(network))
}

pub(super) fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

pub(super) fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("not zero")
}

fn targets(texts: &[&str]) -> SharedSet<Target> {
    let parse = |text: &&str| text.parse::<SocketAddr>().expect("an endpoint");
    let target = |address: SocketAddr| Target {
        address: address.ip(),
        port: number(address.port()),
    };
    texts.iter().map(parse).map(target).collect()
}

/// A port of `ns/web`, named `http` unless told otherwise; its frontends are told as `address:port`, or `port` for a
/// node port.
pub(super) struct Case {
    key: PortKey,
    pub(super) port: PortPlan,
    plan: ServicePlan,
}

impl Case {
    pub(super) fn new(protocol: Protocol) -> Self {
        Self {
            key: PortKey {
                family: IpFamily::V4,
                name: "http".into(),
                protocol,
            },
            port: PortPlan::default(),
            plan: ServicePlan::default(),
        }
    }

    pub(super) fn frontend(mut self, at: &str, action: Action, admits: Admits) -> Self {
        let (address, port) = match at.parse::<SocketAddr>() {
            Ok(at) => (FrontendAddress::Service(at.ip()), at.port()),
            Err(_) => (
                FrontendAddress::EveryNodeAddress(self.key.family),
                at.parse().expect("a port"),
            ),
        };
        let key = FrontendKey {
            address,
            port: number(port),
            protocol: self.key.protocol,
        };
        self.port.frontends.insert(key, Frontend { action, admits });
        self
    }

    pub(super) fn cluster_ip(mut self, at: &str, action: Action) -> Self {
        let address: SocketAddr = at.parse().expect("an address");
        self.key.family = address.ip().into();
        self.plan.cluster_ips = [address.ip()].into();
        self.frontend(at, action, Admits::Everyone)
    }

    pub(super) fn lists(mut self, cluster: &[&str], local: &[&str]) -> Self {
        self.port.cluster = targets(cluster);
        self.port.local = targets(local);
        self
    }

    pub(super) fn plan(&self) -> ServicePlan {
        let mut plan = self.plan.clone();
        plan.ports.insert(self.key.clone(), self.port.clone());
        plan
    }

    #[track_caller]
    fn check(&self, node: &NodeContext, name: &str) {
        let surroundings = Surroundings::new(node, self.key.family, false);
        let rendered = render(&ObjectName::new("ns", "web"), &self.plan(), &surroundings);
        let found = lines(&rendered).join("\n");
        let sections = GOLDEN.split("# ").filter_map(|section| section.split_once('\n'));
        let expected = sections
            .filter(|(title, _)| *title == name)
            .map(|(_, rules)| rules.trim_end());
        assert_eq!(expected.collect::<Vec<_>>(), [&found], "# {name}\n{found}\n");
    }
}

/// Lists of all Services first, then the Service's own chains.
fn lines(rendered: &Rendered) -> Vec<String> {
    let tops = [
        (Top::ByAddress, "nat KUBE-SERVICES"),
        (Top::ByNodePort, "nat KUBE-NODEPORTS"),
        (Top::Internal, "filter KUBE-SERVICES"),
        (Top::OtherPorts, "filter KUBE-SERVICES"),
        (Top::External, "filter KUBE-EXTERNAL-SERVICES"),
        (Top::HealthChecks, "filter KUBE-NODEPORTS"),
        (Top::Firewall, "filter KUBE-PROXY-FIREWALL"),
    ];
    let tops = tops.iter().flat_map(|(top, chain)| {
        rendered
            .top(*top)
            .iter()
            .map(move |rule| format!("{chain} {rule}"))
    });
    let own = rendered
        .chains
        .iter()
        .flat_map(|(chain, rules)| rules.iter().map(move |rule| format!("{chain} {rule}")));
    tops.chain(own).collect()
}

#[test]
fn a_cluster_ip_spreads_evenly_and_masquerades_who_is_no_pod() {
    let case = Case::new(Protocol::Tcp).cluster_ip("10.96.0.1:80", TO_CLUSTER);
    let case = case.lists(&["10.244.1.2:8080", "10.244.1.3:8080", "10.244.2.2:8080"], &[]);
    case.check(&node(), "cluster IP, three endpoints");
}

#[test]
fn ipv6_udp_has_brackets_and_its_own_icmp() {
    let mut case = Case::new(Protocol::Udp).cluster_ip("[fd00:96::1]:53", TO_CLUSTER);
    case = case.lists(&["[fd00:244::2]:5353"], &[]);
    case.check(&node(), "IPv6, UDP");
}

#[test]
fn affinity_tries_the_endpoint_that_the_client_has_first() {
    let mut case = Case::new(Protocol::Tcp).cluster_ip("10.96.0.1:80", TO_CLUSTER);
    case.port.affinity = Some(Duration::from_secs(10_800));
    let case = case.lists(&["10.244.1.2:8080", "10.244.1.3:8080"], &[]);
    case.check(&node(), "affinity");
}

#[test]
fn external_frontends_masquerade_everyone_and_admit_by_source_at_balancers_only() {
    let mut case = Case::new(Protocol::Tcp)
        .cluster_ip("10.96.0.1:80", TO_CLUSTER)
        .frontend("198.51.100.1:80", EVERYONE, Admits::Sources)
        .frontend("198.51.100.2:80", EVERYONE, Admits::Everyone)
        .frontend("30080", EVERYONE, Admits::Everyone);
    case.port.sources = SharedSet::from(["192.0.2.0/24", "198.51.100.1/32"].map(network));
    case.lists(&["10.244.1.2:8080"], &[])
        .check(&node(), "balancer with source ranges, node port");
}

#[test]
fn split_keeps_the_short_cuts_of_pods_and_of_the_node() {
    let case = || {
        Case::new(Protocol::Sctp)
            .cluster_ip("10.96.0.1:80", TO_CLUSTER)
            .frontend("198.51.100.1:80", Action::Split, Admits::Everyone)
            .frontend("30080", Action::Split, Admits::Everyone)
    };
    let mut with_local = case().lists(&["10.244.1.2:8080", "10.244.2.2:8080"], &["10.244.1.2:8080"]);
    with_local.plan.health = Some(HealthCheck {
        port: number(31_000),
        ready_here: 1,
    });
    with_local.check(&node(), "split, endpoint here");
    case()
        .lists(&["10.244.2.2:8080"], &[])
        .check(&node(), "split, no endpoint here");
}

#[test]
fn what_has_no_endpoint_is_refused_where_it_would_be_served() {
    let mut node = node();
    node.node_port_addresses =
        NodePortAddresses::Networks(BTreeSet::from(["172.30.0.0/16", "127.0.0.0/8"].map(network)));
    let mut case = Case::new(Protocol::Tcp)
        .cluster_ip("10.96.0.1:80", Action::Refuse)
        .frontend("198.51.100.1:80", Action::Refuse, Admits::Sources)
        .frontend("30080", Action::Refuse, Admits::Everyone);
    case.port.sources = [network("192.0.2.0/24")].into();
    case.check(&node, "refused");
}

#[test]
fn policy_local_without_an_endpoint_here_is_dropped() {
    let case = Case::new(Protocol::Tcp).cluster_ip("10.96.0.1:80", Action::Drop);
    case.lists(&["10.244.2.2:8080"], &[])
        .check(&node(), "internal policy Local");
}

#[test]
fn pods_are_told_by_device_or_by_several_networks_or_not_at_all() {
    let local = Action::Spread {
        list: List::Local,
        masquerade: Masquerade::OutsidePods,
    };
    let case = Case::new(Protocol::Tcp)
        .cluster_ip("10.96.0.1:80", local)
        .frontend("30080", Action::Split, Admits::Everyone)
        .lists(&["10.244.1.2:80"], &["10.244.1.2:80"]);
    let mut node = node();
    node.local_traffic = LocalTraffic::InterfacePrefix("veth".into());
    case.check(&node, "pods by device");
    node.local_traffic = LocalTraffic::Networks(["10.1.0.0/16", "10.2.0.0/16"].map(network).into());
    case.check(&node, "pods by networks");
    node.local_traffic = LocalTraffic::Unknown;
    case.check(&node, "pods unknown");
}

/// kube-proxy: nat 5 + S × (2 + 3 E), filter 4, and S more when E = 0 (`pkg/proxy/iptables/number_generated_rules_test.go`).
/// nat is the same here. filter has 4 too, but others: no rule against foreign packets to loopback, since there is no
/// `route_localnet` to need it, and a short cut for translated packets; and S more always, since a port that a
/// ClusterIP does not have is refused.
#[test]
fn rules_grow_as_kube_proxys_do() {
    for services in [0_u8, 1, 7] {
        for endpoints in [0_u8, 1, 5] {
            let counts = count(services, endpoints);
            let (services, endpoints) = (usize::from(services), usize::from(endpoints));
            let refused = if endpoints == 0 { services } else { 0 };
            let nat = if endpoints == 0 {
                5
            } else {
                5 + services * (2 + 3 * endpoints)
            };
            assert_eq!(
                counts,
                (nat, 4 + 2 * services + refused),
                "{services} × {endpoints}"
            );
        }
    }
}

/// Rules in nat and filter with that many Services of that many endpoints each.
fn count(services: u8, endpoints: u8) -> (usize, usize) {
    let surroundings = Surroundings::new(&node(), IpFamily::V4, false);
    let all: BTreeMap<_, _> = (0..services)
        .map(|service| {
            let action = if endpoints == 0 {
                Action::Refuse
            } else {
                TO_CLUSTER
            };
            let list: Vec<_> = (0..endpoints)
                .map(|endpoint| format!("10.244.{service}.{endpoint}:80"))
                .collect();
            let list: Vec<_> = list.iter().map(String::as_str).collect();
            let case = Case::new(Protocol::Tcp)
                .cluster_ip(&format!("10.96.0.{service}:80"), action)
                .lists(&list, &[]);
            let name = ObjectName::new("ns", format!("s{service}"));
            let rendered = render(&name, &case.plan(), &surroundings);
            (name, rendered)
        })
        .collect();
    let lists = surroundings
        .lists(&all)
        .into_iter()
        .map(|(table, _, rules)| (table, rules.len()));
    let fixed = surroundings.fixed_chains().into_iter();
    let fixed = fixed.map(|(table, _, rules)| (table, rules.len()));
    let own = all
        .values()
        .flat_map(|service| service.chains.values())
        .map(|rules| (Table::Nat, rules.len()));
    let all: Vec<_> = lists.chain(fixed).chain(own).collect();
    let of = |wanted: Table| {
        all.iter()
            .filter(|(table, _)| *table == wanted)
            .map(|(_, rules)| rules)
            .sum()
    };
    (of(Table::Nat), of(Table::Filter))
}

#[test]
fn loopback_is_no_address_for_node_ports() {
    let rules = |networks: &[&str]| {
        let mut node = node();
        let networks = networks.iter().map(|text| network(text)).collect();
        node.node_port_addresses = NodePortAddresses::Networks(networks);
        let lists = Surroundings::new(&node, IpFamily::V4, false).lists(&BTreeMap::new());
        let services = lists
            .into_iter()
            .find(|(table, chain, _)| (*table, *chain) == (Table::Nat, "KUBE-SERVICES"));
        let (_, _, rules) = services.expect("the chain");
        let text = |rule: &Rule| rule.to_string().replace(&comment(LAST), "…");
        rules.iter().map(text).collect::<Vec<_>>()
    };
    let served =
        |destination: &str| format!("{destination} … -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS");
    assert_eq!(rules(&["0.0.0.0/0"]), [served("! -d 127.0.0.0/8")]);
    assert_eq!(rules(&["127.0.0.1/32", "10.0.0.0/8"]), [served("-d 10.0.0.0/8")]);
    let around = ["-d 127.0.0.0/8 -j RETURN".to_owned(), served("-d 64.0.0.0/2")];
    assert_eq!(rules(&["64.0.0.0/2"]), around);
}

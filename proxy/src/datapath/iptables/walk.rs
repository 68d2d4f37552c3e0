//! Rendered rules, walked as the kernel walks them, against the oracle of all datapaths.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName, Protocol};

use super::golden::{Case, TO_CLUSTER, network, node, number};
use super::layout::Surroundings;
use super::render::render;
use super::ruleset::{Rules, Table};
use crate::plan::{
    Action, Admits, List, LocalTraffic, Masquerade, NodeContext, NodePortAddresses, ServicePlan, SharedSet,
    Target,
};
use crate::verdict::{Packet, Verdict, decide};

/// A packet on its way through the tables.
#[derive(Clone, Copy, Debug)]
struct Walker<'a> {
    chains: &'a BTreeMap<(Table, String), Rules>,
    node: &'a NodeContext,
    packet: &'a Packet,
    table: Table,
}

/// Where a chain may end; draws by lot end everywhere that they may.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Return { marked: bool },
    To { target: Target, marked: bool },
    Refuse,
    Drop,
}

impl Walker<'_> {
    fn walk(&self, chain: &str, mut marked: bool) -> BTreeSet<End> {
        let mut ends = BTreeSet::new();
        let rules = self.chains.get(&(self.table, chain.to_owned()));
        for rule in rules.unwrap_or_else(|| panic!("{chain} is not there")).iter() {
            let parts = rule.parts();
            if !parts.iter().all(|part| self.matches(part)) {
                continue;
            }
            let value = |name: &str| {
                parts
                    .iter()
                    .find(|part| part.1 == name)
                    .map(|part| part.2.clone())
            };
            let by_lot = value("--probability").is_some();
            match rule.target().expect("a target").as_str() {
                "RETURN" => {
                    ends.insert(End::Return { marked });
                    return ends;
                }
                "MARK" => marked = true,
                "REJECT" => return [End::Refuse].into(),
                "DROP" => return [End::Drop].into(),
                "DNAT" => {
                    let to: SocketAddr = value("--to-destination")
                        .expect("an address")
                        .parse()
                        .expect("one");
                    let target = Target {
                        address: to.ip(),
                        port: number(to.port()),
                    };
                    return [End::To { target, marked }].into();
                }
                chain => {
                    let below = self.walk(chain, marked);
                    let returned = |end: &End| matches!(end, End::Return { .. });
                    ends.extend(below.iter().filter(|end| !returned(end)).cloned());
                    let Some(End::Return { marked: now }) = below.into_iter().find(returned) else {
                        if by_lot {
                            continue;
                        }
                        return ends;
                    };
                    marked = now;
                }
            }
        }
        ends.insert(End::Return { marked });
        ends
    }

    fn matches(&self, (negated, name, value): &(bool, String, String)) -> bool {
        let Packet {
            source,
            device,
            destination,
            port,
            protocol,
        } = self.packet;
        let is_in = |address: IpAddr| value.parse::<IpNetwork>().expect("a network").contains(address);
        let is_local = |address: &IpAddr| address.is_loopback() || self.node.addresses.contains(address);
        let device = device.as_deref().unwrap_or_default();
        let holds = match name.as_str() {
            "-s" => is_in(*source),
            "-d" => is_in(*destination),
            "-i" => match value.strip_suffix('+') {
                Some(prefix) => device.starts_with(prefix),
                None => device == value,
            },
            "-p" => *value == protocol.to_string().to_lowercase(),
            "--dport" => *value == port.to_string(),
            "--dst-type" => is_local(destination),
            "--src-type" => is_local(source),
            // What comes to filter here was not translated.
            "--ctstate" => value == "NEW",
            // No client was here before.
            "--rcheck" => false,
            "-m" | "-j" | "--comment" | "--mode" | "--probability" | "--name" | "--reap" | "--rsource"
            | "--seconds" | "--set" | "--set-xmark" | "--to-destination" | "--reject-with" => return true,
            other => panic!("{other} is not known here"),
        };
        holds != *negated
    }
}

fn walk(chains: &BTreeMap<(Table, String), Rules>, node: &NodeContext, packet: &Packet) -> Verdict {
    let walker = |table| Walker {
        chains,
        node,
        packet,
        table,
    };
    let ends = walker(Table::Nat).walk("KUBE-SERVICES", false);
    let mut to = Vec::new();
    let mut masquerade = BTreeSet::new();
    for end in &ends {
        match end {
            End::To { target, marked } => {
                to.push(*target);
                masquerade.insert(*marked);
            }
            End::Return { .. } => return filter(&walker(Table::Filter)),
            End::Refuse | End::Drop => panic!("nat does neither"),
        }
    }
    assert_eq!(masquerade.len(), 1, "all or nobody: {ends:?}");
    to.sort();
    to.dedup();
    Verdict::Forward {
        to,
        masquerade: masquerade.contains(&true),
    }
}

fn filter(walker: &Walker<'_>) -> Verdict {
    for chain in ["KUBE-PROXY-FIREWALL", "KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES"] {
        match walker.walk(chain, false).first() {
            Some(End::Refuse) => return Verdict::Refuse,
            Some(End::Drop) => return Verdict::Drop,
            _ => {}
        }
    }
    Verdict::Pass
}

const SERVICES: u8 = 12;
const NODE_PORT: u16 = 30_000;
const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 30, 0, 1));

fn nodes() -> Vec<NodeContext> {
    let mut by_network = node();
    by_network.addresses = vec![ADDRESS];
    let with = |local_traffic| NodeContext {
        local_traffic,
        ..by_network.clone()
    };
    let several = LocalTraffic::Networks(["10.243.0.0/16", "10.244.0.0/16"].map(network).into());
    let everyone = LocalTraffic::Networks([network("0.0.0.0/0")].into());
    let limited = |networks: &[&str]| NodeContext {
        node_port_addresses: NodePortAddresses::Networks(networks.iter().map(|text| network(text)).collect()),
        ..by_network.clone()
    };
    vec![
        with(several),
        with(everyone),
        with(LocalTraffic::InterfacePrefix("veth".into())),
        with(LocalTraffic::Interface("veth1".into())),
        with(LocalTraffic::Unknown),
        limited(&["10.0.0.0/8"]),
        limited(&["172.30.0.0/16", "127.0.0.0/8"]),
        limited(&["96.0.0.0/3", "172.0.0.0/8"]),
        NodeContext {
            node_port_addresses: NodePortAddresses::Primary,
            ..by_network.clone()
        },
        NodeContext {
            service_networks: ["10.96.0.0/12", "fd00:96::/112"].map(network).into(),
            ..by_network.clone()
        },
        NodeContext {
            // The node's own address is among them.
            service_networks: ["172.30.0.0/16"].map(network).into(),
            ..by_network.clone()
        },
        by_network,
    ]
}

/// Services with every action at a ClusterIP and at external frontends, with and without source ranges.
fn plans() -> BTreeMap<ObjectName, Arc<ServicePlan>> {
    let spread = |list, masquerade| Action::Spread { list, masquerade };
    let internal = [
        TO_CLUSTER,
        spread(List::Cluster, Masquerade::Nobody),
        spread(List::Cluster, Masquerade::Everyone),
        spread(List::Local, Masquerade::OutsidePods),
        Action::Drop,
        Action::Refuse,
    ];
    let external = [
        spread(List::Cluster, Masquerade::Everyone),
        Action::Split,
        Action::Refuse,
    ];
    let mut plans = BTreeMap::new();
    let pairs = internal.into_iter().zip(external.into_iter().cycle());
    let cases = pairs.flat_map(|pair| [(pair, true), (pair, false)]);
    for (index, ((internal, external), is_here)) in (0_u8..SERVICES).zip(cases) {
        let local: &[&str] = if is_here { &["10.244.1.2:80"] } else { &[] };
        let internal = match internal {
            // The plan drops instead.
            Action::Spread {
                list: List::Local, ..
            } if !is_here => Action::Drop,
            internal => internal,
        };
        let mut case = Case::new(Protocol::Tcp)
            .cluster_ip(&format!("10.96.0.{index}:80"), internal)
            .frontend(&format!("198.51.100.{index}:80"), external, Admits::Sources)
            .frontend(&format!("198.51.101.{index}:80"), external, Admits::Everyone)
            .frontend(
                &(NODE_PORT + u16::from(index)).to_string(),
                external,
                Admits::Everyone,
            )
            .lists(&["10.244.1.2:80", "10.244.2.2:80", "10.244.2.3:80"], local);
        case.port.sources = SharedSet::from(["192.0.2.0/24", "10.244.0.0/16"].map(network));
        plans.insert(ObjectName::new("ns", format!("s{index}")), Arc::new(case.plan()));
    }
    plans
}

fn packets() -> Vec<Packet> {
    let sources: [(IpAddr, Option<&str>); 4] = [
        ([10, 244, 3, 2].into(), Some("veth1")),
        ([192, 0, 2, 7].into(), Some("uplink")),
        ([203, 0, 113, 7].into(), Some("uplink")),
        (ADDRESS, None),
    ];
    let mut to: Vec<(IpAddr, u16)> = vec![
        (ADDRESS, 80),
        ([10, 244, 1, 2].into(), 80),
        ([10, 96, 9, 9].into(), 80),
    ];
    for index in 0..SERVICES {
        to.push(([10, 96, 0, index].into(), 80));
        to.push(([10, 96, 0, index].into(), 81));
        to.push(([198, 51, 100, index].into(), 80));
        to.push(([198, 51, 101, index].into(), 80));
        to.push((ADDRESS, NODE_PORT + u16::from(index)));
        to.push(([127, 0, 0, 1].into(), NODE_PORT + u16::from(index)));
        to.push(([172, 30, 0, 2].into(), NODE_PORT + u16::from(index)));
    }
    let packet = |(source, device): (IpAddr, Option<&str>), (destination, port): (IpAddr, u16)| Packet {
        source,
        device: device.map(str::to_owned),
        destination,
        port: number(port),
        protocol: Protocol::Tcp,
    };
    to.iter()
        .flat_map(|to| sources.map(|from| packet(from, *to)))
        .collect()
}

#[test]
fn rules_do_with_every_packet_what_the_oracle_says() {
    let plans = plans();
    for node in nodes() {
        let surroundings = Surroundings::new(&node, IpFamily::V4, false);
        let rendered: BTreeMap<_, _> = plans
            .iter()
            .map(|(name, plan)| (name.clone(), render(name, plan, &surroundings)))
            .collect();
        let mut chains: BTreeMap<(Table, String), Rules> = BTreeMap::new();
        for (table, chain, rules) in surroundings.fixed_chains() {
            chains.insert((table, chain.to_owned()), rules);
        }
        for (table, chain, rules) in surroundings.lists(&rendered) {
            chains.insert((table, chain.to_owned()), rules);
        }
        for (chain, rules) in rendered.values().flat_map(|service| &service.chains) {
            chains.insert((Table::Nat, chain.clone()), Rules::clone(rules));
        }
        let wrong: Vec<_> = packets()
            .into_iter()
            .map(|packet| {
                (
                    walk(&chains, &node, &packet),
                    decide(&plans, &node, &packet).verdict,
                    packet,
                )
            })
            .filter(|(found, expected, _)| found != expected)
            .collect();
        assert_eq!(
            wrong,
            [],
            "{:?} {:?}",
            node.local_traffic,
            node.node_port_addresses
        );
    }
}

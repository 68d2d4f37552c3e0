//! From the node's place in the VPC and its pods to what the kernel shall have: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;

use ipnetwork::{IpNetwork, Ipv4Network};
use model::wiring::ROUTE_PROTOCOL;
use model::{MacAddr, Mtu};
use netlink::nft::rule::SourcePorts;
use netlink::route::TABLE_MAIN;
use netlink::rule::{Action, Rule};

use super::{Interface, Interfaces, Random, Snat, Ways};
use crate::pool::masked;
use crate::reconcile::PodRoute;

/// What has this bit leaves by the primary interface: of packets, and of connections. amazon-vpc-cni-k8s's.
pub const MARK: u32 = 0x80;

/// Priorities of rules, amazon-vpc-cni-k8s's: to a pod of this node; marked; to external services; from a pod of an
/// interface that is not the primary one; from such an interface's own address, right before the main table.
const TO_POD: u32 = 512;
/// See above.
pub const MARKED: u32 = 1024;
pub(super) const TO_EXTERNAL_SERVICE: u32 = 1535;
const FROM_POD: u32 = 1536;
const FROM_INTERFACE: u32 = 32765;

/// Tables that are the kernel's: from `RT_TABLE_DEFAULT` to `RT_TABLE_LOCAL`.
const KERNELS_TABLES: RangeInclusive<u32> = 253..=255;

/// A subnet with a gateway, another host and a broadcast address.
const LONGEST_SUBNET_BITS: u8 = 30;

/// What the kernel shall have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Rules of policy routing, all of them ours.
    pub rules: BTreeSet<Rule>,
    /// Interfaces but the primary one.
    pub uplinks: BTreeMap<MacAddr, Uplink>,
    /// What packets' ends and marks become; `None`: nothing, nobody needs it.
    pub translation: Option<Translation>,
    /// Interfaces whose devices must take packets that would not be answered by the same way (RFC 3704 §2.4).
    pub loose: BTreeSet<MacAddr>,
    /// Pods of which it is not known by which interface they leave: what rules they have stay.
    pub undecided: BTreeSet<IpAddr>,
    /// The interfaces are known: what is not in the plan may be deleted.
    pub is_complete: bool,
}

/// An interface by which pods leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Its own address, which its device has.
    pub address: Ipv4Addr,
    /// Where its routing table's default route goes.
    pub gateway: Ipv4Addr,
    /// Its routing table.
    pub table: u32,
    /// Its device's MTU.
    pub mtu: Mtu,
    /// What pods get addresses of: its device has none of them.
    pub blocks: BTreeSet<IpNetwork>,
}

/// How connections of pods leave by the primary interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The primary interface.
    pub primary: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Whether connections that come in by it get the mark.
    pub node_ports: bool,
    /// What is translated; `None`: nothing.
    pub snat: Option<SourceNat>,
}

/// What leaves with another address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceNat {
    /// Where pods keep their addresses.
    pub inside: BTreeSet<Ipv4Network>,
    /// Which port a connection gets.
    pub ports: SourcePorts,
}

/// What is not in the plan as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// An interface or a pod.
    pub object: String,
    /// Why.
    pub reason: String,
}

/// By which interface the pods of a block leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Home {
    Primary,
    Uplink(u32),
}

/// Plans a node. Interfaces and pods in another order make the same plan.
#[must_use]
pub fn plan(ways: &Ways, pods: &[PodRoute]) -> (Plan, Vec<Rejected>) {
    let mut rejected = Vec::new();
    let mut plan = Plan {
        rules: rules_for_all(ways),
        is_complete: ways.interfaces.is_some(),
        ..Plan::default()
    };
    for pod in pods {
        plan.rules.insert(to(TO_POD, IpNetwork::from(pod.address)));
    }
    let Some(interfaces) = &ways.interfaces else {
        return (plan, rejected);
    };
    plan.uplinks = uplinks(interfaces, ways.mtu, &mut rejected);
    for uplink in plan.uplinks.values() {
        let address = IpNetwork::from(IpAddr::V4(uplink.address));
        plan.rules.insert(from(FROM_INTERFACE, address, uplink.table));
    }
    let homes = homes(interfaces, &plan.uplinks);
    for pod in pods {
        match home(pod.address, &homes) {
            Ok(Home::Primary) => {}
            Ok(Home::Uplink(table)) => {
                plan.rules
                    .insert(from(FROM_POD, IpNetwork::from(pod.address), table));
            }
            Err(reason) => {
                plan.undecided.insert(pod.address);
                rejected.push(Rejected {
                    object: format!("pod address {}", pod.address),
                    reason: reason.to_owned(),
                });
            }
        }
    }
    plan.translation = translation(ways, interfaces);
    if is_marked(ways) {
        // An answer out of the world to a pod of another interface comes in by this one.
        plan.loose.insert(interfaces.primary.mac);
    }
    if !ways.external_services.is_empty() {
        // What pods are answered by their own interfaces they have asked by the primary one.
        plan.loose.extend(plan.uplinks.keys());
    }
    rejected.sort_by(|a, b| (&a.object, &a.reason).cmp(&(&b.object, &b.reason)));
    (plan, rejected)
}

/// Whether a rule is of those that a plan has, whoever made it.
pub(super) fn is_of_a_plan(rule: &Rule) -> bool {
    let one_host = |network: &IpNetwork| *network == IpNetwork::from(network.ip());
    let planned = match (rule.priority, rule.source, rule.destination, rule.table()) {
        (TO_POD, None, Some(pod), _) if one_host(&pod) => to(TO_POD, pod),
        (TO_EXTERNAL_SERVICE, None, Some(network), _) => to(TO_EXTERNAL_SERVICE, network),
        (MARKED, None, None, _) => marked(),
        (FROM_POD | FROM_INTERFACE, Some(source), None, Some(table)) if one_host(&source) => {
            from(rule.priority, source, table)
        }
        _ => return false,
    };
    planned.is_equal_but_for_its_maker(rule)
}

impl Plan {
    /// What all pods need, whatever their interface is: it does not change as blocks come and go.
    pub(super) fn for_all(ways: &Ways) -> Self {
        let (mut plan, _) = plan(ways, &[]);
        plan.uplinks.clear();
        plan.rules.retain(|rule| rule.priority != FROM_INTERFACE);
        plan
    }

    /// The rules of a pod alone.
    pub(super) fn rules_of(&self, pod: IpAddr) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| is_of_pod(rule, pod))
    }
}

/// Whether a rule is of the kind that a plan has for a pod, and for this one.
pub(super) fn is_of_pod(rule: &Rule, pod: IpAddr) -> bool {
    let pod = Some(IpNetwork::from(pod));
    match rule.priority {
        TO_POD => rule.destination == pod,
        FROM_POD => rule.source == pod,
        _ => false,
    }
}

/// Whose packets a rule sends to an interface's table: a pod's address.
pub(super) fn pod_of(rule: &Rule) -> Option<IpAddr> {
    let source = rule.source.filter(|_| rule.priority == FROM_POD)?;
    Some(source.ip())
}

fn is_marked(ways: &Ways) -> bool {
    ways.node_ports || matches!(ways.snat, Snat::Here { .. })
}

fn rules_for_all(ways: &Ways) -> BTreeSet<Rule> {
    let services = ways.external_services.iter();
    let mut rules: BTreeSet<Rule> = services
        .map(|network| to(TO_EXTERNAL_SERVICE, masked(*network)))
        .collect();
    if is_marked(ways) {
        rules.insert(marked());
    }
    rules
}

fn rule(priority: u32, table: u32) -> Rule {
    Rule {
        protocol: ROUTE_PROTOCOL,
        ..Rule::new(priority, Action::LookUp(table))
    }
}

fn to(priority: u32, destination: IpNetwork) -> Rule {
    Rule {
        is_v6: destination.is_ipv6(),
        destination: Some(destination),
        ..rule(priority, TABLE_MAIN)
    }
}

fn from(priority: u32, source: IpNetwork, table: u32) -> Rule {
    Rule {
        is_v6: source.is_ipv6(),
        source: Some(source),
        ..rule(priority, table)
    }
}

fn marked() -> Rule {
    Rule {
        mark: (MARK, MARK),
        ..rule(MARKED, TABLE_MAIN)
    }
}

fn uplinks(interfaces: &Interfaces, mtu: Mtu, rejected: &mut Vec<Rejected>) -> BTreeMap<MacAddr, Uplink> {
    let mut sorted: Vec<&Interface> = interfaces.others.iter().collect();
    sorted.sort_by_key(|interface| (interface.device_index, interface.mac));
    let mut uplinks: BTreeMap<MacAddr, Uplink> = BTreeMap::new();
    for interface in sorted {
        let uplink = uplink(interface, mtu).and_then(|uplink| {
            if interface.mac == interfaces.primary.mac || uplinks.contains_key(&interface.mac) {
                return Err("has another interface's MAC address".to_owned());
            }
            if uplinks.values().any(|other| other.table == uplink.table) {
                return Err(format!(
                    "has another interface's device index {}",
                    interface.device_index
                ));
            }
            Ok(uplink)
        });
        match uplink {
            Ok(uplink) => {
                uplinks.insert(interface.mac, uplink);
            }
            Err(reason) => rejected.push(Rejected {
                object: format!("interface {}", interface.mac),
                reason,
            }),
        }
    }
    uplinks
}

fn uplink(interface: &Interface, mtu: Mtu) -> Result<Uplink, String> {
    let Interface {
        mac: _,
        address,
        subnet,
        device_index,
        blocks,
    } = interface;
    if subnet.prefix() > LONGEST_SUBNET_BITS {
        return Err(format!(
            "is in the subnet {subnet}, which has no room for a gateway"
        ));
    }
    if !subnet.contains(*address) {
        return Err(format!(
            "has the address {address}, which is not of its subnet {subnet}"
        ));
    }
    let table = device_index.saturating_add(1);
    if *device_index == 0 || KERNELS_TABLES.contains(&table) {
        return Err(format!(
            "has the device index {device_index}, whose table is not an interface's"
        ));
    }
    Ok(Uplink {
        address: *address,
        gateway: Ipv4Addr::from(u32::from(subnet.network()).saturating_add(1)),
        table,
        mtu,
        blocks: blocks.iter().copied().map(masked).collect(),
    })
}

/// Which block leads where. Those of an interface that is not served lead nowhere.
fn homes(interfaces: &Interfaces, uplinks: &BTreeMap<MacAddr, Uplink>) -> Vec<(IpNetwork, Home)> {
    let primary = interfaces.primary.blocks.iter();
    let mut homes: Vec<_> = primary.map(|block| (masked(*block), Home::Primary)).collect();
    for uplink in uplinks.values() {
        homes.extend(
            uplink
                .blocks
                .iter()
                .map(|block| (*block, Home::Uplink(uplink.table))),
        );
    }
    homes
}

fn home(address: IpAddr, homes: &[(IpNetwork, Home)]) -> Result<Home, &'static str> {
    let mut of_pod = homes.iter().filter(|(block, _)| block.contains(address));
    let Some((_, home)) = of_pod.next() else {
        return Err("is of no interface that is served: it leaves as it did");
    };
    if of_pod.any(|(_, other)| other != home) {
        return Err("is of several interfaces: it leaves as it did");
    }
    if address.is_ipv6() && *home != Home::Primary {
        // Its gateway is told by router advertisements alone.
        return Err("is of IPv6 and of another interface than the primary one: it leaves as it did");
    }
    Ok(*home)
}

fn translation(ways: &Ways, interfaces: &Interfaces) -> Option<Translation> {
    let snat = match &ways.snat {
        Snat::External => None,
        Snat::Here { excluded, random } => {
            let subnets = interfaces.others.iter().chain([&interfaces.primary]);
            let subnets = subnets.map(|interface| IpNetwork::V4(interface.subnet));
            let networks = ways.vpc_networks.iter().chain(excluded).copied().chain(subnets);
            let inside = networks.filter_map(|network| match masked(network) {
                IpNetwork::V4(network) => Some(network),
                IpNetwork::V6(_) => None, // nothing of IPv6 is translated
            });
            Some(SourceNat {
                inside: inside.collect(),
                ports: match random {
                    Random::Prng => SourcePorts::FullyRandom,
                    Random::HashRandom => SourcePorts::Random,
                    Random::None => SourcePorts::Kept,
                },
            })
        }
    };
    is_marked(ways).then_some(Translation {
        primary: interfaces.primary.mac,
        address: interfaces.primary.address,
        node_ports: ways.node_ports,
        snat,
    })
}

#[cfg(test)]
mod tests;

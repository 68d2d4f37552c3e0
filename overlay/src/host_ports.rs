//! Ports of the node that lead to pods (CNI capability `portMappings`; Kubernetes' `hostPort`): a table of our own in
//! nftables for each version of IP.
//!
//! Packet walk: to an address of this node and a mapped port, from outside, from a pod or from the node itself, behind
//! the rules for Services (priority -90, theirs -100): the destination becomes the pod's address and port, the source
//! stays. Only who would get the answer past this node has its source translated: a pod that reaches itself, and the
//! node's own 127.0.0.1.
//!
//! Only the node's own addresses count (CVE-2025-67499: a port alone took everybody's traffic), and the way from
//! 127.0.0.1 to pods is none from pods to 127.0.0.1 (CVE-2020-8558).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnetwork::IpNetwork;
use model::wiring::{ENI_IFNAME_PREFIX, HOST_IFNAME_PREFIX, PortMapping};
use model::{IpFamily, Protocol, with_causes};
use netlink::conntrack::{Conntrack, Flow};
use netlink::nft::DataType::{InetProto, InetService};
use netlink::nft::object::ChainKind;
use netlink::nft::rule::{Interface, KeyField};
use netlink::nft::{BaseChain, Chain, Element, ElementData, Hook, Layout, Nft, Rule, Set, SetKind, Table};
use netlink::{Kernel, sysctl};

use crate::error::Error;
use crate::owned_table::{OwnedTable, nft_family, octets};
use crate::pods::Assigned;
use crate::pods::wiring::host_ifname;
use crate::reconcile::Outcome;

/// The tables that are ours.
const TABLE: &str = "causeway-hostports";

/// Ports of every address of the node, and ports of one.
const EVERYWHERE: &str = "everywhere";
const AT_ADDRESS: &str = "at-address";
/// Pods that may reach themselves: source and destination.
const OWN: &str = "own";

/// Behind the rules for Services.
const DESTINATION_NAT: i32 = -90;
/// Before the rules of what leaves the pod network.
const SOURCE_NAT: i32 = 90;

/// A port of the node, and where it leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct HostPort {
    protocol: Protocol,
    port: u16,
    /// At which address; absent: every one.
    at: Option<IpAddr>,
}

/// Where ports lead, of one version of IP.
type HostPorts = BTreeMap<HostPort, SocketAddr>;

/// The table of a version of IP.
pub(crate) fn table(family: IpFamily) -> Table {
    Table::new(nft_family(family), TABLE)
}

/// Which ports lead where. Of two pods that ask for one port, which the book of addresses does not allow, the first in
/// the order of keys has it, and the other is told of.
fn plan(family: IpFamily, pods: &[Assigned]) -> (HostPorts, Vec<String>) {
    let mut ports = HostPorts::new();
    let mut conflicts = Vec::new();
    for pod in pods {
        let addresses = pod.addresses();
        let Some(address) = addresses.get(family) else {
            continue;
        };
        for mapping in &pod.port_mappings {
            let PortMapping {
                host_port,
                container_port,
                protocol,
                host_ip,
            } = *mapping;
            if host_ip.is_some_and(|host_ip| IpFamily::from(host_ip) != family) {
                continue;
            }
            let at = host_ip.filter(|host_ip| !host_ip.is_unspecified());
            let port = HostPort {
                protocol,
                port: host_port.get(),
                at,
            };
            let target = SocketAddr::new(*address, container_port.get());
            let first = *ports.entry(port).or_insert(target);
            if first != target {
                let place = at.map_or_else(String::new, |at| format!(" of {at}"));
                conflicts.push(format!(
                    "host port {host_port}/{protocol}{place} leads to {first}, and is asked for by {address} too"
                ));
            }
        }
    }
    (ports, conflicts)
}

/// Where datagrams of mapped ports may still go although they should not: until that was looked for.
#[derive(Default)]
struct Strays {
    /// Ports of which something changed.
    ports: BTreeSet<u16>,
    /// Where a mapping that is gone led.
    targets: BTreeSet<SocketAddr>,
}

impl Strays {
    /// Whether a flow to an address of the node, answered from there, goes where it should not.
    fn have(&self, to: SocketAddr, answered_from: SocketAddr, ports: &HostPorts) -> bool {
        let untranslated = to == answered_from;
        let departed =
            self.targets.contains(&answered_from) && !ports.values().any(|target| *target == answered_from);
        self.ports.contains(&to.port()) && (untranslated || departed)
    }
}

/// The mapped ports of one node.
#[derive(Default)]
pub(crate) struct Keeper {
    strays: BTreeMap<IpFamily, Strays>,
    /// What was in the kernel after the last pass that succeeded.
    last: BTreeMap<IpFamily, HostPorts>,
}

impl Keeper {
    /// Makes the kernel's table and settings for a version of IP what the pods' mappings ask for.
    pub(crate) fn keep(
        &mut self,
        nft: &mut Nft,
        kernel: &mut impl Kernel,
        family: IpFamily,
        pods: &[Assigned],
        outcome: &mut Outcome,
    ) {
        let (ports, conflicts) = plan(family, pods);
        outcome.problems.extend(conflicts);
        // The way from the loopback address is there only while the rules are that close it to pods.
        if family == IpFamily::V4 {
            for pod in pods.iter().filter(|pod| !is_led_to(pod, &ports)) {
                set_loopback(pod, "0", outcome);
            }
        }
        let kept = if ports.is_empty() {
            // No table where nobody needs one.
            nft.remove(&table(family)).map(|_| Vec::new())
        } else {
            let table = OwnedTable::new(layout(family), elements(&ports));
            table.keep(nft).map(|written| {
                outcome.writes += written.changes;
                written.elements
            })
        };
        match kept {
            Ok(changed) => self.note_changes(family, &ports, &changed),
            Err(error) => return problem(outcome, &error),
        }
        if family == IpFamily::V4 {
            for pod in pods.iter().filter(|pod| is_led_to(pod, &ports)) {
                set_loopback(pod, "1", outcome);
            }
        }
        if let Err(error) = self.forget_strays(kernel, family, &ports) {
            problem(outcome, &error);
        }
    }

    /// Notes which ports' flows are to be looked at: of elements that were written, and of mappings that went with the
    /// whole table.
    fn note_changes(&mut self, family: IpFamily, ports: &HostPorts, changed: &[(&'static str, Element)]) {
        let strays = self.strays.entry(family).or_default();
        let changed = changed.iter().filter(|(set, _)| *set != OWN);
        strays
            .ports
            .extend(changed.filter_map(|(_, element)| udp_port_of(&element.key)));
        let last = self.last.insert(family, ports.clone()).unwrap_or_default();
        let gone = last
            .iter()
            .filter(|(port, target)| ports.get(port) != Some(target));
        for (port, target) in gone.filter(|(port, _)| port.protocol == Protocol::Udp) {
            strays.ports.insert(port.port);
            strays.targets.insert(*target);
        }
    }

    /// Datagrams keep going where their flow began, for as long as they come (`nf_conntrack_udp_timeout`): flows to the
    /// node that were not translated when their port was not mapped yet, and those to a pod whose port it was, are
    /// forgotten. Others' translations stay.
    fn forget_strays(
        &mut self,
        kernel: &mut impl Kernel,
        family: IpFamily,
        ports: &HostPorts,
    ) -> Result<(), Error> {
        let Some(strays) = self.strays.get(&family).filter(|strays| !strays.ports.is_empty()) else {
            return Ok(());
        };
        let addresses = kernel.addresses(None)?;
        let of_node: BTreeSet<IpAddr> = addresses.iter().map(|address| address.network.ip()).collect();
        let udp = Protocol::Udp.number();
        let mut conntrack = Conntrack::open()?;
        let is_stray = |flow: &Flow| {
            let to = flow.original.destination;
            of_node.contains(&to.ip()) && strays.have(to, flow.reply.source, ports)
        };
        for flow in conntrack.flows(|glance| glance.protocol == udp, is_stray)? {
            conntrack.delete(&flow)?;
        }
        self.strays.remove(&family);
        Ok(())
    }
}

/// The port of a key, if it is of UDP: the key ends with `[protocol:1][pad:3][port:2 be][pad:2]`.
fn udp_port_of(key: &[u8]) -> Option<u16> {
    let [protocol, _, _, _, high, low, _, _] = *key.last_chunk::<8>()?;
    (protocol == Protocol::Udp.number()).then(|| u16::from_be_bytes([high, low]))
}

fn problem(outcome: &mut Outcome, error: &dyn std::error::Error) {
    outcome
        .problems
        .push(format!("host ports: {}", with_causes(error)));
}

/// Whether a port of the node leads to the pod.
fn is_led_to(pod: &Assigned, ports: &HostPorts) -> bool {
    let addresses = pod.addresses();
    let mut targets = ports.values().map(|target| target.ip());
    targets.any(|target| addresses.values().any(|address| *address == target))
}

/// Whether the node's 127.0.0.1 may reach the pod. A device that is not there yet brings us back by its event.
fn set_loopback(pod: &Assigned, value: &str, outcome: &mut Outcome) {
    let setting = format!("net/ipv4/conf/{}/route_localnet", host_ifname(pod));
    match sysctl::ensure(&setting, value) {
        Ok(written) => outcome.writes += usize::from(written),
        Err(error) if error.is_absent() => {}
        Err(error) => problem(outcome, &error),
    }
}

fn layout(family: IpFamily) -> Layout {
    let nft = nft_family(family);
    let address = nft.address();
    let target = SetKind::Map(vec![address, InetService]);
    let mut layout = Layout::new(table(family));
    layout.add_set(Set::new(EVERYWHERE, &[InetProto, InetService], target.clone()));
    layout.add_set(Set::new(AT_ADDRESS, &[address, InetProto, InetService], target));
    layout.add_set(Set::new(OWN, &[address, address], SetKind::Set));

    let (protocol, port) = (KeyField::Protocol, KeyField::DestinationPort);
    let mut leads = Vec::new();
    if family == IpFamily::V6 {
        // What it sends cannot leave the node: it is refused as if there were no such port.
        leads.push(
            Rule::new("not of IPv6's loopback address")
                .destination(loopback(family))
                .returns(),
        );
    }
    let at_address = [KeyField::DestinationAddress(nft), protocol, port];
    leads.push(
        Rule::new("of one address of this node")
            .destination_is_local()
            .destination_nat_from(&at_address, AT_ADDRESS, nft),
    );
    leads.push(
        Rule::new("of every address of this node")
            .destination_is_local()
            .destination_nat_from(&[protocol, port], EVERYWHERE, nft),
    );
    layout.add_chain(Chain::regular("ports"), leads);
    for (name, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        let base = BaseChain::new(ChainKind::Nat, hook, DESTINATION_NAT);
        layout.add_chain(Chain::base(name, base), [Rule::new("host ports").jump("ports")]);
    }
    let own = [KeyField::SourceAddress(nft), KeyField::DestinationAddress(nft)];
    let mut source = vec![
        Rule::new("a pod that reaches itself")
            .destination_was_translated()
            .in_set(&own, OWN)
            .masquerade(),
    ];
    // Packets from IPv6's loopback address are never routed; those of IPv4 are where `route_localnet` says so.
    if family == IpFamily::V4 {
        let loopback = loopback(family);
        source.push(
            Rule::new("this node by its loopback address")
                .destination_was_translated()
                .source(loopback)
                .masquerade(),
        );
        let closed = [HOST_IFNAME_PREFIX, ENI_IFNAME_PREFIX].map(|prefix| {
            Rule::new("pods do not reach the node's loopback addresses")
                .in_interface(Interface::Prefixed(prefix))
                .destination(loopback)
                .count()
                .drop()
        });
        layout.add_chain(Chain::base("loopback", BaseChain::PREROUTING_RAW), closed);
    }
    let base = BaseChain::new(ChainKind::Nat, Hook::Postrouting, SOURCE_NAT);
    layout.add_chain(Chain::base("postrouting", base), source);
    layout
}

fn loopback(family: IpFamily) -> IpNetwork {
    let (address, prefix) = match family {
        IpFamily::V4 => (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
        IpFamily::V6 => (IpAddr::V6(Ipv6Addr::LOCALHOST), 128),
    };
    IpNetwork::new(address, prefix).expect("invariant: both are prefix lengths of their version")
}

fn elements(ports: &HostPorts) -> BTreeMap<&'static str, BTreeSet<Element>> {
    let mut everywhere = BTreeSet::new();
    let mut at_address = BTreeSet::new();
    let mut own = BTreeSet::new();
    for (port, target) in ports {
        let mut value = octets(target.ip());
        value.extend(padded_port(target.port()));
        let mut key = port.at.map(octets).unwrap_or_default();
        key.extend([port.protocol.number(), 0, 0, 0]);
        key.extend(padded_port(port.port));
        let element = Element::new(key, ElementData::Value(value));
        match port.at {
            None => everywhere.insert(element),
            Some(_) => at_address.insert(element),
        };
        let both_ways = [octets(target.ip()), octets(target.ip())].concat();
        own.insert(Element::new(both_ways, ElementData::None));
    }
    BTreeMap::from([(EVERYWHERE, everywhere), (AT_ADDRESS, at_address), (OWN, own)])
}

/// A port in a key or value: its two bytes, and two of padding.
fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU16;

    use super::*;
    use crate::pods::AttachmentKey;

    fn pod(container: &str, addresses: &str, mappings: &[(u16, u16, Protocol, Option<&str>)]) -> Assigned {
        let key = AttachmentKey {
            container_id: container.to_owned(),
            ifname: "eth0".to_owned(),
        };
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let mut pod = Assigned::new(key, &addresses.split_whitespace().map(address).collect());
        let port = |number| NonZeroU16::new(number).expect("a port");
        let mapping =
            |(host_port, container_port, protocol, host_ip): &(u16, u16, Protocol, Option<&str>)| {
                PortMapping {
                    host_port: port(*host_port),
                    container_port: port(*container_port),
                    protocol: *protocol,
                    host_ip: host_ip.map(address),
                }
            };
        pod.port_mappings = mappings.iter().map(mapping).collect();
        pod
    }

    #[test]
    fn ports_lead_to_the_pods_address_of_each_version_and_the_first_pod_has_a_contested_one() {
        use Protocol::{Tcp, Udp};
        let pods = [
            pod(
                "a",
                "10.5.1.2 fd05::2",
                &[
                    (80, 8080, Tcp, None),
                    (80, 8081, Udp, None),
                    (81, 9, Tcp, Some("172.30.0.11")),
                ],
            ),
            pod(
                "b",
                "10.5.1.3",
                &[(80, 1, Tcp, None), (81, 9, Tcp, Some("fd77::11"))],
            ),
        ];
        let told = |family| {
            let (ports, conflicts) = plan(family, &pods);
            let ports = ports.iter().map(|(port, target)| {
                let at = port.at.map_or_else(|| "*".to_owned(), |at| at.to_string());
                format!("{at} {}/{} to {target}", port.port, port.protocol)
            });
            (ports.collect::<Vec<_>>(), conflicts)
        };
        let v4 = [
            "* 80/TCP to 10.5.1.2:8080",
            "172.30.0.11 81/TCP to 10.5.1.2:9",
            "* 80/UDP to 10.5.1.2:8081",
        ];
        let conflict = "host port 80/TCP leads to 10.5.1.2:8080, and is asked for by 10.5.1.3 too";
        assert_eq!(
            told(IpFamily::V4),
            (v4.map(str::to_owned).into(), vec![conflict.to_owned()])
        );
        let v6 = ["* 80/TCP to [fd05::2]:8080", "* 80/UDP to [fd05::2]:8081"];
        assert_eq!(told(IpFamily::V6), (v6.map(str::to_owned).into(), vec![]));
    }

    #[test]
    fn a_flow_is_astray_where_nothing_translated_it_or_the_pod_that_it_goes_to_has_the_port_no_more() {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let port = HostPort {
            protocol: Protocol::Udp,
            port: 53,
            at: None,
        };
        let ports = HostPorts::from([(port, address("10.5.1.3:53"))]);
        let strays = Strays {
            ports: [53].into(),
            targets: [address("10.5.1.2:53"), address("10.5.1.3:53")].into(),
        };
        for (to, answered_from, astray) in [
            ("172.30.0.11:53", "172.30.0.11:53", true),
            ("172.30.0.11:53", "10.5.1.2:53", true),
            ("172.30.0.11:53", "10.5.1.3:53", false),
            ("172.30.0.11:53", "10.5.9.9:53", false),
            ("172.30.0.11:54", "172.30.0.11:54", false),
        ] {
            assert_eq!(
                strays.have(address(to), address(answered_from), &ports),
                astray,
                "{to} {answered_from}"
            );
        }
    }

    #[test]
    fn the_loopback_address_leads_to_pods_that_have_an_ipv4_port_alone() {
        use Protocol::Tcp;
        let pods = [
            pod("a", "10.5.1.2 fd05::2", &[(80, 80, Tcp, Some("fd77::11"))]),
            pod("b", "10.5.1.3", &[(81, 80, Tcp, None)]),
            pod("c", "10.5.1.4", &[]),
        ];
        let (ports, _) = plan(IpFamily::V4, &pods);
        assert_eq!(pods.map(|pod| is_led_to(&pod, &ports)), [false, true, false]);
    }
}

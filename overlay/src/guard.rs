//! Nobody sends in another's name: a table of our own in nftables for each version of IP.
//!
//! Packet walk, of what a pod sends (its device's name begins with `cw`, or with `eni` where such pods of ours are left of
//! a time when the node had addresses of a VPC):
//! - before anything else: its source must be what the node's routes lead to by this very device (which are its own
//!   addresses, and for IPv6 link-local ones, which no router passes on), and the frame's source the pod's MAC address.
//!   The route comes with the pod (`cni_plugin::wire`), so there is no moment in between; the MAC addresses come with
//!   the next pass, and are not looked at before. For IPv6 a pod is no router (RFC 6105).
//! - to this node, and through it: nothing to the tunnel's UDP port, wherever it is addressed to. What is sent there
//!   enters the pod network on another node as that node's own.
//!
//! What another node sends through the tunnel is looked at as it comes in, still wrapped: a lease must give the inner
//! source to the node of the outer one, or it is that node's own address. The fast path looks at sources itself
//! (`ebpf/programs/src/fast_path`).
//!
//! Where nobody else has rules, wrapped packets are not tracked: nothing translates them, each connection of a pod would be
//! one more, and every packet would be looked up twice. A firewall may admit them by their state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::wiring::{ENI_IFNAME_PREFIX, HOST_IFNAME_PREFIX};
use model::{IpFamily, with_causes};
use netlink::nft::object::ChainKind;
use netlink::nft::rule::{Comparison, Expression, Interface, KeyField, PacketHeader, Register};
use netlink::nft::{
    BaseChain, Chain, Contents, Element, ElementData, Hook, Layout, Nft, Rule, Set, SetKind, Table,
};

use crate::owned_table::{OwnedTable, nft_family, octets};
use crate::plan::{Half, Remote};
use crate::reconcile::{Outcome, PodRoute};

/// The tables that are ours.
const TABLE: &str = "causeway-guard";

/// Devices of pods, and the MAC address of each.
const POD_DEVICES: &str = "pod-devices";
const POD_MACS: &str = "pod-macs";
/// Which inner sources a node may send, by the outer one.
const SITES: &str = "sites";

const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// Messages by which a router speaks (RFC 4861 §4.2, §4.5).
const ROUTERS_SAY: [(&str, u8); 2] = [("advertisements", 134), ("redirects", 137)];

/// Where things lie behind the UDP header's begin: UDP 8, VXLAN 8 (RFC 7348 §5), Ethernet 14.
const VNI_AT: u32 = 8 + 4;
const ETHERTYPE_AT: u32 = 8 + 8 + 12;
const INNER_AT: u32 = 8 + 8 + 14;

/// The table of a version of IP that drops what pods send in another's name; it is there with `antiSpoofing` alone.
#[must_use]
pub fn table(family: IpFamily) -> Table {
    Table::new(nft_family(family), TABLE)
}

/// What is known of the node's surroundings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    /// All leases.
    pub(crate) leases: bool,
    /// All rules that packets meet here are ours.
    pub(crate) rules: bool,
}

/// The table of a version of IP as it shall be. `half` is absent where pods have no address of it: their devices may
/// speak it all the same. Unless all leases are known, no node that was one becomes a stranger.
pub(crate) fn plan(family: IpFamily, half: Option<&Half>, pods: &[PodRoute], known: Known) -> OwnedTable {
    let elements = BTreeMap::from([
        (
            POD_DEVICES,
            pods.iter().map(|pod| element(device_key(pod))).collect(),
        ),
        (POD_MACS, pods.iter().map(|pod| element(mac_key(pod))).collect()),
        (SITES, half.map(sites).unwrap_or_default()),
    ]);
    let table = OwnedTable::new(layout(family, half, prefixes_of(pods), known.rules), elements);
    if known.leases { table } else { table.growing(SITES) }
}

/// What the names of pods' devices begin with. Another network plugin calls its devices `eni…` too: unless a pod of ours
/// is called so, they are none of our business.
fn prefixes_of(pods: &[PodRoute]) -> &'static [&'static str] {
    let has_eni = pods
        .iter()
        .any(|pod| pod.host_ifname.starts_with(ENI_IFNAME_PREFIX));
    if has_eni {
        &[HOST_IFNAME_PREFIX, ENI_IFNAME_PREFIX]
    } else {
        &[HOST_IFNAME_PREFIX]
    }
}

/// Makes the kernel's table of a version of IP what it shall be; where nothing is `known`, nobody wants one.
pub(crate) fn keep(
    nft: &mut Nft,
    family: IpFamily,
    half: Option<&Half>,
    pods: &[PodRoute],
    known: Option<Known>,
    outcome: &mut Outcome,
) {
    let kept = match known {
        Some(known) => plan(family, half, pods, known)
            .keep(nft)
            .map(|written| written.changes),
        None => nft.remove(&table(family)).map(usize::from),
    };
    match kept {
        Ok(writes) => outcome.writes += writes,
        Err(error) => outcome
            .problems
            .push(format!("anti-spoofing: {}", with_causes(&error))),
    }
}

fn layout(family: IpFamily, half: Option<&Half>, prefixes: &[&str], untracked: bool) -> Layout {
    use netlink::nft::DataType::{EtherAddr, InterfaceName};
    let address = nft_family(family).address();
    let mut layout = Layout::new(table(family));
    layout.add_set(Set::new(POD_DEVICES, &[InterfaceName], SetKind::Set));
    layout.add_set(Set::new(POD_MACS, &[InterfaceName, EtherAddr], SetKind::Set));
    layout.add_set(Set::new(SITES, &[address, address], SetKind::Set).with_contents(Contents::Ranges));

    // `priority filter`.
    let base = |hook| BaseChain::new(ChainKind::Filter, hook, 0);
    let device = half.and_then(|half| half.device.as_ref());
    let port = device.map(|device| device.port);
    let mut prerouting: Vec<Rule> = prefixes
        .iter()
        .flat_map(|prefix| from_pods(family, prefix))
        .collect();
    let mut output = Vec::new();
    if let Some(device) = device.filter(|_| untracked) {
        let wrapped = Rule::new("tunnelled packets are not tracked")
            .protocol(UDP)
            .destination_port(device.port);
        prerouting.push(wrapped.clone().destination_is_local().untracked());
        output.push(wrapped.source(IpNetwork::from(device.local)).untracked());
    }
    layout.add_chain(Chain::base("prerouting", BaseChain::PREROUTING_RAW), prerouting);
    layout.add_chain(Chain::base("output", BaseChain::OUTPUT_RAW), output);
    let to_tunnel = |comment: &str| -> Vec<Rule> {
        let rule = |prefix: &&str, port| {
            of_pods(prefix, comment)
                .protocol(UDP)
                .destination_port(port)
                .count()
                .drop()
        };
        let to_port = |port| prefixes.iter().map(move |prefix| rule(prefix, port));
        port.into_iter().flat_map(to_port).collect()
    };
    let mut input = to_tunnel("pods do not reach the tunnel");
    if let Some(device) = device {
        let [_, vni @ ..] = device.vni.0.to_be_bytes();
        let rule = Rule::new("the tunnel")
            .protocol(UDP)
            .destination_port(device.port)
            .with(tunnelled(VNI_AT, 3, Register::FIRST))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::Equal,
                vni.to_vec(),
            ))
            .jump("tunnel");
        input.push(rule);
    }
    layout.add_chain(Chain::base("input", base(Hook::Input)), input);
    let forward = to_tunnel("pods do not reach other nodes' tunnels");
    layout.add_chain(Chain::base("forward", base(Hook::Forward)), forward);
    layout.add_chain(Chain::regular("tunnel"), tunnel(family));
    layout
}

fn of_pods(prefix: &str, comment: &str) -> Rule {
    Rule::new(comment).in_interface(Interface::Prefixed(prefix))
}

fn from_pods(family: IpFamily, prefix: &str) -> Vec<Rule> {
    let device = Register::FIRST;
    let mut rules = vec![
        of_pods(prefix, "a pod's source is its own address")
            .no_route_back()
            .count()
            .drop(),
        of_pods(prefix, "a pod's frames are from its own MAC address")
            .load(KeyField::InInterface, device)
            .found_in(POD_DEVICES, device)
            .load_all(&[KeyField::InInterface, KeyField::SourceMac], device)
            .not_found_in(POD_MACS, device)
            .count()
            .drop(),
    ];
    if family == IpFamily::V6 {
        rules.extend(ROUTERS_SAY.map(|(what, kind)| {
            of_pods(prefix, &format!("a pod is no router: {what}"))
                .protocol(ICMPV6)
                .with(tunnelled(0, 1, Register::FIRST))
                .with(Expression::Compare(
                    Register::FIRST,
                    Comparison::Equal,
                    vec![kind],
                ))
                .count()
                .drop()
        }));
    }
    rules
}

fn tunnel(family: IpFamily) -> Vec<Rule> {
    let (ethertype, source_at, len): (u16, u32, u32) = match family {
        IpFamily::V4 => (0x0800, 12, 4),
        IpFamily::V6 => (0x86dd, 8, 16),
    };
    let outer = Register::FIRST;
    let inner = outer.after(nft_family(family).address());
    vec![
        Rule::new("nothing but this version of IP")
            .with(tunnelled(ETHERTYPE_AT, 2, Register::FIRST))
            .with(Expression::Compare(
                Register::FIRST,
                Comparison::NotEqual,
                ethertype.to_be_bytes().to_vec(),
            ))
            .count()
            .drop(),
        Rule::new("from the node that has the inner source")
            .load(KeyField::SourceAddress(nft_family(family)), outer)
            .with(tunnelled(INNER_AT + source_at, len, inner))
            .found_in(SITES, outer)
            .returns(),
        Rule::new("in another node's name").count().drop(),
    ]
}

/// Bytes from the begin of the transport header on.
fn tunnelled(offset: u32, len: u32, to: Register) -> Expression {
    Expression::Payload {
        header: PacketHeader::Transport,
        offset,
        len,
        to,
    }
}

fn element(key: Vec<u8>) -> Element {
    Element::new(key, ElementData::None)
}

/// A device's name with its zeros, as the kernel keeps it: 16 bytes.
fn device_key(pod: &PodRoute) -> Vec<u8> {
    Interface::Named(&pod.host_ifname).pattern()
}

fn mac_key(pod: &PodRoute) -> Vec<u8> {
    let mut key = device_key(pod);
    key.extend(pod.pod_mac.0);
    // The field is padded to whole registers.
    key.extend([0; 2]);
    key
}

/// Which sources each other node may send: its subnets, and its own address.
fn sites(half: &Half) -> BTreeSet<Element> {
    let of_node = half.remotes.iter().flat_map(|(subnet, remote)| {
        let (Remote::Tunnel { public_ip, .. } | Remote::Gateway { public_ip }) = remote;
        [(*public_ip, *subnet), (*public_ip, IpNetwork::from(*public_ip))]
    });
    // The kernel refuses ranges that overlap: of a node that has two such leases the shorter prefix says it all.
    let mut sorted: Vec<(IpAddr, IpNetwork)> = of_node.collect();
    sorted.sort_by_key(|(public_ip, network)| (*public_ip, network.prefix(), network.network()));
    let mut kept: Vec<(IpAddr, IpNetwork)> = Vec::new();
    for (public_ip, network) in sorted {
        let before = kept.iter().rev().take_while(|(other, _)| *other == public_ip);
        if !before
            .into_iter()
            .any(|(_, wider)| wider.contains(network.network()))
        {
            kept.push((public_ip, network));
        }
    }
    let range = |(public_ip, network): (IpAddr, IpNetwork)| {
        let key = |inner| [octets(public_ip), octets(inner)].concat();
        Element::range(
            key(network.network()),
            key(network.broadcast()),
            ElementData::None,
        )
    };
    kept.into_iter().map(range).collect()
}

#[cfg(test)]
mod tests {
    use model::MacAddr;

    use super::*;

    #[test]
    fn devices_that_another_plugin_calls_as_pods_of_a_vpc_are_let_alone_unless_pods_of_ours_are_called_so() {
        let rows: [(&[&str], &[&str]); 4] = [
            (&[], &["cw"]),
            (&["cw0123456789ab"], &["cw"]),
            (&["eni0d7763386da"], &["cw", "eni"]),
            (&["cw0123456789ab", "eni0d7763386da"], &["cw", "eni"]),
        ];
        for (devices, expected) in rows {
            let pod = |device: &&str| PodRoute {
                address: [10, 0, 0, 1].into(),
                host_ifname: (*device).to_owned(),
                pod_mac: MacAddr([2, 0, 0, 0, 0, 1]),
                is_limited: false,
            };
            let pods: Vec<PodRoute> = devices.iter().map(pod).collect();
            assert_eq!(prefixes_of(&pods), expected, "{devices:?}");
        }
        for family in [IpFamily::V4, IpFamily::V6] {
            let rules = from_pods(family, "eni");
            let of_device = |rule: &Rule| format!("{rule:?}").contains(&format!("{:?}", b"eni"));
            assert!(rules.iter().all(of_device), "{rules:?}");
        }
    }
}

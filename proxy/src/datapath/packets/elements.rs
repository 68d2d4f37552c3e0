//! Services and endpoints as elements of the table's maps. Each field of a key takes whole 4-byte registers.
//!
//! ```text
//! service-ips                address . protocol . port              : verdict
//! node-ports                 protocol . port                        : verdict
//! endpoints                  address . protocol . port . slot       : address . port
//! node-port-endpoints        protocol . port . slot                 : address . port
//! node-port-local-endpoints  protocol . port . slot                 : address . port
//! hairpin                    address . address . protocol . port
//! cluster-ips                address
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use model::{IpFamily, Protocol};
use netlink::nft::{DataType, ElementData, Set, SetKind, Verdict};

use super::layout::{REFUSE, Template};
use super::{Edits, Mirror};
use crate::plan::{Action, FrontendAddress, FrontendKey, List, PortPlan, ServicePlan, Target};

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// Services by address.
    ServiceIps,
    /// Services by node port.
    NodePorts,
    /// Endpoints of addresses.
    Endpoints,
    /// Endpoints of node ports, for cluster-wide traffic.
    NodePortEndpoints,
    /// Endpoints of node ports on this node.
    NodePortLocalEndpoints,
    /// Endpoints on this node, to recognise one that was sent to itself.
    Hairpin,
    /// Addresses of Services.
    ClusterIps,
}

impl Name {
    /// All of them; verdicts first, so that within a transaction nothing is looked up that is gone.
    pub const ALL: [Self; 7] = [
        Self::ServiceIps,
        Self::NodePorts,
        Self::Endpoints,
        Self::NodePortEndpoints,
        Self::NodePortLocalEndpoints,
        Self::Hairpin,
        Self::ClusterIps,
    ];

    /// Its name in the table.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::ServiceIps => "service-ips",
            Self::NodePorts => "node-ports",
            Self::Endpoints => "endpoints",
            Self::NodePortEndpoints => "node-port-endpoints",
            Self::NodePortLocalEndpoints => "node-port-local-endpoints",
            Self::Hairpin => "hairpin",
            Self::ClusterIps => "cluster-ips",
        }
    }

    /// Its definition.
    #[must_use]
    pub fn set(self) -> Set {
        use DataType::{InetProto, InetService, Ipv4Addr as Address, Mark};
        let target = || SetKind::Map(vec![Address, InetService]);
        let (key, kind) = match self {
            Self::ServiceIps => (vec![Address, InetProto, InetService], SetKind::VerdictMap),
            Self::NodePorts => (vec![InetProto, InetService], SetKind::VerdictMap),
            Self::Endpoints => (vec![Address, InetProto, InetService, Mark], target()),
            Self::NodePortEndpoints | Self::NodePortLocalEndpoints => {
                (vec![InetProto, InetService, Mark], target())
            }
            Self::Hairpin => (vec![Address, Address, InetProto, InetService], SetKind::Set),
            Self::ClusterIps => (vec![Address], SetKind::Set),
        };
        Set {
            name: self.text().to_owned(),
            key,
            kind,
        }
    }
}

/// Adds the elements of a frontend to `edits`. Endpoints keep the slots that they have in `mirror` where they can, so
/// that one that leaves costs two elements, however many there are.
pub(super) fn desired(key: FrontendKey, action: Action, plan: &PortPlan, mirror: &Mirror, edits: &mut Edits) {
    let Some(base) = base(key) else { return };
    let (verdict, lists) = verdict(action, plan, base.map == Name::NodePorts);
    edits.insert((base.map, base.key.clone()), Some(ElementData::Verdict(verdict)));
    for (name, targets) in base.endpoint_maps().iter().zip(lists) {
        let present = slots(mirror, *name, &base.key);
        let wanted: Vec<_> = targets.iter().filter_map(target_data).collect();
        let count = wanted.len();
        for (slot, data) in (0_u32..).zip(assign(&present, wanted)) {
            edits.insert((*name, slot_key(&base.key, slot)), Some(data));
        }
        for slot in present.keys().filter(|slot| **slot as usize >= count) {
            edits.insert((*name, slot_key(&base.key, *slot)), None);
        }
    }
}

/// Adds the absence of all elements of a frontend to `edits`.
pub(super) fn absent(key: FrontendKey, mirror: &Mirror, edits: &mut Edits) {
    let Some(base) = base(key) else { return };
    edits.insert((base.map, base.key.clone()), None);
    for name in base.endpoint_maps() {
        for slot in slots(mirror, *name, &base.key).keys() {
            edits.insert((*name, slot_key(&base.key, *slot)), None);
        }
    }
}

/// Elements that are not a frontend's own: hairpin pairs and addresses.
pub(super) fn shared_keys(plan: &ServicePlan) -> BTreeSet<(Name, Vec<u8>)> {
    let mut keys = BTreeSet::new();
    for (port_key, port) in plan.ports.iter().filter(|(_, port)| !port.frontends.is_empty()) {
        for target in &port.on_this_node {
            let IpAddr::V4(address) = target.address else {
                continue;
            };
            let octets = address.octets();
            let tail = transport_key(port_key.protocol, target.port);
            keys.insert((Name::Hairpin, [octets.as_slice(), &octets, &tail].concat()));
        }
        for frontend in port.frontends.keys() {
            if let FrontendAddress::Service(IpAddr::V4(address)) = frontend.address {
                keys.insert((Name::ClusterIps, address.octets().to_vec()));
            }
        }
    }
    keys
}

/// The frontend that an element belongs to; none for shared elements and for what nobody here wrote.
pub(super) fn frontend_of(name: Name, key: &[u8]) -> Option<FrontendKey> {
    let (address, transport) = match name {
        Name::ServiceIps | Name::Endpoints => {
            let (octets, rest) = key.split_first_chunk::<4>()?;
            (FrontendAddress::Service(Ipv4Addr::from(*octets).into()), rest)
        }
        Name::NodePorts | Name::NodePortEndpoints | Name::NodePortLocalEndpoints => {
            (FrontendAddress::EveryNodeAddress(IpFamily::V4), key)
        }
        Name::Hairpin | Name::ClusterIps => return None,
    };
    let [number, _, _, _, high, low, ..] = transport else {
        return None;
    };
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = protocols
        .into_iter()
        .find(|protocol| protocol.number() == *number)?;
    Some(FrontendKey {
        address,
        port: NonZeroU16::new(u16::from_be_bytes([*high, *low]))?,
        protocol,
    })
}

/// A frontend's key in the maps.
struct Base {
    map: Name,
    key: Vec<u8>,
}

impl Base {
    /// The maps with its endpoints: the list for everyone, then, for node ports, the one for clients outside.
    const fn endpoint_maps(&self) -> &'static [Name] {
        match self.map {
            Name::NodePorts => &[Name::NodePortEndpoints, Name::NodePortLocalEndpoints],
            _ => &[Name::Endpoints],
        }
    }
}

fn base(key: FrontendKey) -> Option<Base> {
    let transport = transport_key(key.protocol, key.port);
    match key.address {
        FrontendAddress::Service(IpAddr::V4(address)) => {
            let key = [address.octets().as_slice(), &transport].concat();
            Some(Base {
                map: Name::ServiceIps,
                key,
            })
        }
        FrontendAddress::EveryNodeAddress(IpFamily::V4) => Some(Base {
            map: Name::NodePorts,
            key: transport.to_vec(),
        }),
        // The plan makes no IPv6 frontends.
        FrontendAddress::Service(IpAddr::V6(_)) | FrontendAddress::EveryNodeAddress(IpFamily::V6) => None,
    }
}

/// The verdict, and the lists for the frontend's endpoint maps in their order.
fn verdict(action: Action, plan: &PortPlan, node_port: bool) -> (Verdict, [&[Target]; 2]) {
    let goto = |template: Template| Verdict::Goto(template.name());
    let count = |targets: &[Target]| u32::try_from(targets.len()).unwrap_or(u32::MAX);
    match action {
        Action::Refuse => (Verdict::Goto(REFUSE.to_owned()), [&[], &[]]),
        Action::Drop => (Verdict::Drop, [&[], &[]]),
        Action::Spread { list, .. } => {
            let targets = match list {
                List::Cluster => plan.cluster.as_slice(),
                List::Local => plan.local.as_slice(),
            };
            let endpoints = count(targets);
            let template = if node_port {
                Template::NodePort { endpoints }
            } else {
                Template::ClusterIp { endpoints }
            };
            (goto(template), [targets, &[]])
        }
        Action::Split => {
            let (endpoints, local) = (count(&plan.cluster), count(&plan.local));
            (
                goto(Template::NodePortLocal { endpoints, local }),
                [&plan.cluster, &plan.local],
            )
        }
    }
}

/// Gives each wanted endpoint a slot from 0 up: the one it has, where that is below the count; the others fill holes.
fn assign(present: &BTreeMap<u32, ElementData>, wanted: Vec<ElementData>) -> Vec<ElementData> {
    let count = wanted.len();
    let mut homeless: BTreeSet<_> = wanted.into_iter().collect();
    let mut slots: Vec<Option<ElementData>> = vec![None; count];
    for (slot, data) in present {
        if let Some(place) = slots.get_mut(*slot as usize)
            && homeless.remove(data)
        {
            *place = Some(data.clone());
        }
    }
    let mut homeless = homeless.into_iter();
    slots
        .into_iter()
        .filter_map(|slot| slot.or_else(|| homeless.next()))
        .collect()
}

fn slots(mirror: &Mirror, name: Name, base: &[u8]) -> BTreeMap<u32, ElementData> {
    let Some(elements) = mirror.get(&name) else {
        return BTreeMap::new();
    };
    let keys = elements
        .range(base.to_vec()..)
        .take_while(|(key, _)| key.starts_with(base));
    keys.filter_map(|(key, data)| {
        let slot = key.get(base.len()..)?.first_chunk()?;
        Some((u32::from_ne_bytes(*slot), data.clone()))
    })
    .collect()
}

fn slot_key(base: &[u8], slot: u32) -> Vec<u8> {
    [base, &slot.to_ne_bytes()].concat()
}

fn transport_key(protocol: Protocol, port: NonZeroU16) -> [u8; 8] {
    let [high, low] = port.get().to_be_bytes();
    [protocol.number(), 0, 0, 0, high, low, 0, 0]
}

fn target_data(target: &Target) -> Option<ElementData> {
    let IpAddr::V4(address) = target.address else {
        return None;
    };
    let [a, b, c, d] = address.octets();
    let [high, low] = target.port.get().to_be_bytes();
    Some(ElementData::Value(vec![a, b, c, d, high, low, 0, 0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(names: &str) -> Vec<ElementData> {
        names.bytes().map(|name| ElementData::Value(vec![name])).collect()
    }

    fn check(present: &str, wanted: &str, expected: &str) {
        let present = (0..).zip(data(present)).collect();
        assert_eq!(
            assign(&present, data(wanted)),
            data(expected),
            "{wanted} into {present:?}"
        );
    }

    #[test]
    fn endpoints_keep_their_slots_and_newcomers_fill_holes() {
        check("", "abc", "abc");
        check("abc", "abc", "abc");
        check("abc", "cab", "abc");
        check("abc", "ab", "ab");
        check("abcd", "bcd", "dbc");
        check("abc", "abcd", "abcd");
        check("abc", "axc", "axc");
        check("abc", "xy", "xy");
        check("abc", "", "");
        check("aa", "ab", "ab");
    }
}

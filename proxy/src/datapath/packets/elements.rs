//! Services and endpoints as elements of the table's maps. Each field of a key takes whole 4-byte registers; an IPv6
//! address takes four.
//!
//! ```text
//! service-ips     address . protocol . port      : verdict
//! service-ids     address . protocol . port      : 0 . id
//! node-ports      protocol . port                : verdict
//! node-port-ids   protocol . port                : 0 . id
//! endpoints       id . slot                      : 0 . address . port
//! eligible        id . list . address . port
//! sources         id . address range
//! affinity        address . id                   : list . address . port      written by packets
//! hairpin         address . address . protocol . port
//! cluster-ips     address
//! ```
//! An id stands for a port of a Service in one version of IP: all its frontends share endpoints and clients' affinity.
//! The zeros keep `nft list` from failing: see [`netlink::nft::rule`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::num::{NonZeroU16, NonZeroU32};

use ipnetwork::IpNetwork;
use model::{IpFamily, Protocol};
use netlink::nft::{Contents, DataType, Element, ElementData, Family, Set, SetKind, Verdict};
use smallvec::SmallVec;

use super::layout::REFUSE;
use super::packed_map::PackedMap;
use super::template::{Choice, Template, Via};
use super::{Edits, Mirror};
use crate::plan::{
    Action, Admits, Frontend, FrontendAddress, FrontendKey, List, PortPlan, ServicePlan, Target,
};

/// Slots of the list of endpoints on this node begin here.
pub const LOCAL_SLOTS: u32 = 1 << 15;
/// Clients whose endpoint is remembered. Beyond that, new ones are spread as if there were no affinity.
const MOST_CLIENTS: NonZeroU32 = NonZeroU32::new(1 << 18).expect("invariant: not zero");
const LISTS: [List; 2] = [List::Cluster, List::Local];

/// A key: for ranges, first and last value one behind the other. Those of IPv4 take no heap.
pub type Key = SmallVec<[u8; 16]>;

type Packed = SmallVec<[u8; 32]>;

/// What lies beside a key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    /// Nothing: a plain set.
    None,
    /// A value; those of IPv4 take no heap.
    Value(SmallVec<[u8; 16]>),
    /// A verdict.
    Verdict(Box<Verdict>),
}

impl From<ElementData> for Data {
    fn from(data: ElementData) -> Self {
        match data {
            ElementData::None => Self::None,
            ElementData::Value(bytes) => Self::Value(SmallVec::from_slice(&bytes)),
            ElementData::Verdict(verdict) => Self::Verdict(Box::new(verdict)),
        }
    }
}

impl From<&Data> for ElementData {
    fn from(data: &Data) -> Self {
        match data {
            Data::None => Self::None,
            Data::Value(bytes) => Self::Value(bytes.to_vec()),
            Data::Verdict(verdict) => Self::Verdict((**verdict).clone()),
        }
    }
}

impl Data {
    /// As [`Elements`] have it: what it is, and its content.
    fn pack(&self) -> Packed {
        let (kind, content): (u8, &[u8]) = match self {
            Self::None => (0, &[]),
            Self::Value(bytes) => (1, bytes),
            Self::Verdict(verdict) => match verdict.as_ref() {
                Verdict::Accept => (2, &[]),
                Verdict::Drop => (3, &[]),
                Verdict::Return => (4, &[]),
                Verdict::Jump(chain) => (5, chain.as_bytes()),
                Verdict::Goto(chain) => (6, chain.as_bytes()),
            },
        };
        join(&[&[kind], content])
    }

    fn unpack(packed: &[u8]) -> Self {
        let (kind, content) = packed.split_first().unwrap_or((&0, &[]));
        let chain = || String::from_utf8_lossy(content).into_owned();
        Self::Verdict(Box::new(match kind {
            0 => return Self::None,
            1 => return Self::Value(SmallVec::from_slice(content)),
            2 => Verdict::Accept,
            3 => Verdict::Drop,
            4 => Verdict::Return,
            5 => Verdict::Jump(chain()),
            _ => Verdict::Goto(chain()),
        }))
    }
}

/// The elements of one set, as the kernel has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements(PackedMap);

impl Elements {
    pub(super) fn get(&self, key: &[u8]) -> Option<Data> {
        self.0.get(key).map(Data::unpack)
    }

    pub(crate) fn insert(&mut self, key: &[u8], data: &Data) {
        self.0.insert(key, &data.pack());
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.0.remove(key);
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|(key, _)| key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Data)> {
        self.0.iter().map(|(key, data)| (key, Data::unpack(data)))
    }

    pub(super) fn data(&self) -> impl Iterator<Item = Data> {
        self.0.iter().map(|(_, data)| Data::unpack(data))
    }

    /// Those whose keys begin with an id.
    pub(super) fn of_id(&self, id: u32) -> impl Iterator<Item = (&[u8], Data)> {
        let elements = self.0.starting_with(id.to_ne_bytes());
        elements.map(|(key, data)| (key, Data::unpack(data)))
    }
}

/// A set or map of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// What happens to packets to a Service's address.
    ServiceIps,
    /// What happens to packets to a node port.
    NodePorts,
    /// Ids of frontends by address.
    ServiceIds,
    /// Ids of frontends by node port.
    NodePortIds,
    /// Endpoints of an id, by slot.
    Endpoints,
    /// Endpoints that clients of an id may keep.
    Eligible,
    /// Clients that an id admits.
    Sources,
    /// Endpoints on this node, to recognise one that was sent to itself.
    Hairpin,
    /// Addresses of Services.
    ClusterIps,
    /// Endpoints that clients have.
    Affinity,
}

impl Name {
    /// All of them; verdicts first, so that within a transaction nothing is looked up that is gone.
    pub const ALL: [Self; 10] = [
        Self::ServiceIps,
        Self::NodePorts,
        Self::ServiceIds,
        Self::NodePortIds,
        Self::Endpoints,
        Self::Eligible,
        Self::Sources,
        Self::Hairpin,
        Self::ClusterIps,
        Self::Affinity,
    ];

    /// Those whose elements the proxy writes.
    pub fn written() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter().filter(|name| *name != Self::Affinity)
    }

    /// Its name in the table.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::ServiceIps => "service-ips",
            Self::NodePorts => "node-ports",
            Self::ServiceIds => "service-ids",
            Self::NodePortIds => "node-port-ids",
            Self::Endpoints => "endpoints",
            Self::Eligible => "eligible",
            Self::Sources => "sources",
            Self::Hairpin => "hairpin",
            Self::ClusterIps => "cluster-ips",
            Self::Affinity => "affinity",
        }
    }

    /// The one that has this name.
    pub(crate) fn named(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|name| name.text() == text)
    }

    /// Its definition.
    #[must_use]
    pub fn set(self, family: Family) -> Set {
        use DataType::{InetProto, InetService, Mark};
        let address = family.address();
        let target = || SetKind::Map(vec![Mark, address, InetService]);
        let id = || SetKind::Map(vec![Mark, Mark]);
        let (key, kind): (&[_], _) = match self {
            Self::ServiceIps => (&[address, InetProto, InetService], SetKind::VerdictMap),
            Self::NodePorts => (&[InetProto, InetService], SetKind::VerdictMap),
            Self::ServiceIds => (&[address, InetProto, InetService], id()),
            Self::NodePortIds => (&[InetProto, InetService], id()),
            Self::Endpoints => (&[Mark, Mark], target()),
            Self::Eligible => (&[Mark, Mark, address, InetService], SetKind::Set),
            Self::Sources => (&[Mark, address], SetKind::Set),
            Self::Hairpin => (&[address, address, InetProto, InetService], SetKind::Set),
            Self::ClusterIps => (&[address], SetKind::Set),
            Self::Affinity => (&[address, Mark], target()),
        };
        Set::new(self.text(), key, kind).with_contents(match self {
            Self::Sources => Contents::Ranges,
            Self::Affinity => Contents::ByPackets { limit: MOST_CLIENTS },
            _ => Contents::Exact,
        })
    }

    /// The element of what the mirror has.
    pub(super) fn element(self, key: &[u8], data: &Data) -> Element {
        let data = data.into();
        match self {
            Self::Sources => {
                let (first, last) = key.split_at(key.len() / 2);
                Element::range(first.to_vec(), last.to_vec(), data)
            }
            _ => Element::new(key.to_vec(), data),
        }
    }

    /// Keys of these maps begin with an id.
    pub(super) const OF_ID: [Self; 3] = [Self::Endpoints, Self::Eligible, Self::Sources];
}

/// The mirror's key of an element that was read.
pub(super) fn mirror_key(element: &Element) -> Key {
    join(&[&element.key, element.end.as_deref().unwrap_or_default()])
}

/// Adds the elements of one port of a Service to `edits`. Endpoints keep the slots that they have in `mirror` where
/// they can, so that one that leaves costs two elements, however many there are.
pub(super) fn desired(id: u32, plan: &PortPlan, mirror: &Mirror, edits: &mut Edits) {
    for (key, frontend) in &plan.frontends {
        let place = place(*key);
        edits.insert(
            (place.verdicts, place.key.clone()),
            Some(Data::Verdict(Box::new(verdict(*frontend, place.via, plan)))),
        );
        let id = Data::Value(words(&[0, id]));
        edits.insert((place.ids, place.key), Some(id));
    }
    let mut present = of_id(mirror, id);
    for list in LISTS.into_iter().filter(|list| leads_to(plan, *list)) {
        let first = first_slot(list);
        let wanted: Vec<_> = plan.list(list).iter().map(target_data).collect();
        let slots = slots(mirror, id, first);
        for (slot, data) in (first..).zip(assign(&slots, first, wanted)) {
            let key = words(&[id, slot]);
            present.remove(&(Name::Endpoints, key.clone()));
            edits.insert((Name::Endpoints, key), Some(data));
        }
        let sticky = plan.list(list).iter().filter(|_| plan.affinity.is_some());
        for target in sticky {
            let key = join(&[&words(&[id, first]), &target_bytes(target)]);
            present.remove(&(Name::Eligible, key.clone()));
            edits.insert((Name::Eligible, key), Some(Data::None));
        }
    }
    let filters = |frontend: &Frontend| frontend.admits == Admits::Sources;
    let filtered = plan.frontends.values().any(filters);
    for range in plan.sources.iter().filter(|_| filtered) {
        let (first, last) = bounds(range);
        let key = join(&[&words(&[id]), &first, &words(&[id]), &last]);
        present.remove(&(Name::Sources, key.clone()));
        edits.insert((Name::Sources, key), Some(Data::None));
    }
    edits.extend(present.into_iter().map(|key| (key, None)));
}

/// Adds the absence of a frontend to `edits`.
pub(super) fn absent(key: FrontendKey, edits: &mut Edits) {
    let place = place(key);
    edits.insert((place.verdicts, place.key.clone()), None);
    edits.insert((place.ids, place.key), None);
}

/// Adds the absence of all that belongs to an id, its frontends aside, to `edits`.
pub(super) fn absent_id(id: u32, mirror: &Mirror, edits: &mut Edits) {
    edits.extend(of_id(mirror, id).into_iter().map(|key| (key, None)));
}

/// Elements that are not a port's own: hairpin pairs and addresses.
pub(super) fn shared_keys(plan: &ServicePlan, family: IpFamily) -> BTreeSet<(Name, Key)> {
    let mut keys = BTreeSet::new();
    let ports = plan.ports.iter();
    for (port_key, port) in ports.filter(|(key, port)| key.family == family && !port.frontends.is_empty()) {
        for target in &port.on_this_node {
            let address = octets(target.address);
            let transport = transport_key(port_key.protocol, target.port);
            keys.insert((Name::Hairpin, join(&[&address, &address, &transport])));
        }
    }
    let addresses = plan.cluster_ips.iter();
    let addresses = addresses.filter(|address| IpFamily::from(**address) == family);
    keys.extend(addresses.map(|address| (Name::ClusterIps, octets(*address))));
    keys
}

/// The frontend that an element belongs to; none for elements that are no frontend's, and for what nobody here wrote.
pub(super) fn frontend_of(family: IpFamily, name: Name, key: &[u8]) -> Option<FrontendKey> {
    let (address, transport) = match (name, family) {
        (Name::ServiceIps | Name::ServiceIds, IpFamily::V4) => {
            let (octets, rest) = key.split_first_chunk::<4>()?;
            (FrontendAddress::Service((*octets).into()), rest)
        }
        (Name::ServiceIps | Name::ServiceIds, IpFamily::V6) => {
            let (octets, rest) = key.split_first_chunk::<16>()?;
            (FrontendAddress::Service((*octets).into()), rest)
        }
        (Name::NodePorts | Name::NodePortIds, _) => (FrontendAddress::EveryNodeAddress(family), key),
        _ => return None,
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

/// The id of a frontend, as the mirror has it.
pub(super) fn id_of(key: FrontendKey, mirror: &Mirror) -> Option<u32> {
    let place = place(key);
    id_in(&mirror.get(&place.ids)?.get(&place.key)?)
}

/// All ids that frontends have in the mirror, with how many frontends have them.
pub(super) fn ids(mirror: &Mirror) -> BTreeMap<u32, usize> {
    let maps = [Name::ServiceIds, Name::NodePortIds];
    let elements = maps.iter().filter_map(|name| mirror.get(name));
    let mut ids = BTreeMap::new();
    for id in elements.flat_map(Elements::data).filter_map(|data| id_in(&data)) {
        *ids.entry(id).or_default() += 1;
    }
    ids
}

/// The id with which a key begins.
pub(super) fn leading_id(key: &[u8]) -> Option<u32> {
    key.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

pub(super) fn id_in(data: &Data) -> Option<u32> {
    match data {
        Data::Value(bytes) => leading_id(bytes.get(4..)?),
        Data::None | Data::Verdict(_) => None,
    }
}

/// Where a frontend stands.
pub(super) struct Place {
    pub(super) verdicts: Name,
    pub(super) ids: Name,
    pub(super) via: Via,
    pub(super) key: Key,
}

pub(super) fn place(key: FrontendKey) -> Place {
    let transport = transport_key(key.protocol, key.port);
    match key.address {
        FrontendAddress::Service(address) => Place {
            verdicts: Name::ServiceIps,
            ids: Name::ServiceIds,
            via: Via::Address,
            key: join(&[&octets(address), &transport]),
        },
        FrontendAddress::EveryNodeAddress(_) => Place {
            verdicts: Name::NodePorts,
            ids: Name::NodePortIds,
            via: Via::NodePort,
            key: transport,
        },
    }
}

pub(super) fn verdict(frontend: Frontend, via: Via, plan: &PortPlan) -> Verdict {
    let filtered = frontend.admits == Admits::Sources;
    let count = |list| u32::try_from(plan.list(list).len()).unwrap_or(u32::MAX);
    let sticky = plan.affinity.map_or(0, |timeout| timeout.as_secs());
    let sticky_seconds = u32::try_from(sticky).unwrap_or(u32::MAX);
    let choice = match frontend.action {
        Action::Drop => return Verdict::Drop,
        Action::Refuse if !filtered => return Verdict::Goto(REFUSE.to_owned()),
        Action::Refuse => Choice::Refuse,
        Action::Spread { list, masquerade } => Choice::Spread {
            list,
            endpoints: count(list),
            masquerade,
            sticky_seconds,
        },
        Action::Split => Choice::Split {
            endpoints: count(List::Cluster),
            local: count(List::Local),
            sticky_seconds,
        },
    };
    let template = Template {
        via,
        filtered,
        choice,
    };
    Verdict::Goto(template.to_string())
}

/// Whether any frontend picks from the list.
pub(super) fn leads_to(plan: &PortPlan, wanted: List) -> bool {
    plan.frontends.values().any(|frontend| match frontend.action {
        Action::Refuse | Action::Drop => false,
        Action::Spread { list, .. } => list == wanted,
        Action::Split => true,
    })
}

/// Where the slots of a list begin.
pub const fn first_slot(list: List) -> u32 {
    match list {
        List::Cluster => 0,
        List::Local => LOCAL_SLOTS,
    }
}

/// Gives every wanted endpoint a slot: the one it has, if that stays within bounds, else one that became free.
fn assign(present: &BTreeMap<u32, Data>, first: u32, wanted: Vec<Data>) -> Vec<Data> {
    let count = wanted.len();
    let mut homeless: BTreeSet<_> = wanted.into_iter().collect();
    let mut slots: Vec<Option<Data>> = vec![None; count];
    for (slot, data) in present {
        if let Some(place) = slots.get_mut(slot.saturating_sub(first) as usize)
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

/// The present slots of a list.
fn slots(mirror: &Mirror, id: u32, first: u32) -> BTreeMap<u32, Data> {
    let Some(elements) = mirror.get(&Name::Endpoints) else {
        return BTreeMap::new();
    };
    let elements = elements.of_id(id);
    elements
        .filter_map(|(key, data)| Some((leading_id(key.get(4..)?)?, data)))
        .filter(|(slot, _)| slot & LOCAL_SLOTS == first)
        .collect()
}

/// Keys of everything that belongs to an id.
fn of_id(mirror: &Mirror, id: u32) -> BTreeSet<(Name, Key)> {
    let maps = Name::OF_ID.iter();
    maps.filter_map(|name| Some((*name, mirror.get(name)?)))
        .flat_map(|(name, elements)| {
            elements
                .of_id(id)
                .map(move |(key, _)| (name, Key::from_slice(key)))
        })
        .collect()
}

fn join<const N: usize>(parts: &[&[u8]]) -> SmallVec<[u8; N]> {
    let mut joined = SmallVec::new();
    for part in parts {
        joined.extend_from_slice(part);
    }
    joined
}

fn words(numbers: &[u32]) -> Key {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn octets(address: IpAddr) -> Key {
    match address {
        IpAddr::V4(address) => Key::from_slice(&address.octets()),
        IpAddr::V6(address) => Key::from_slice(&address.octets()),
    }
}

/// First and last address of a network.
fn bounds(network: &IpNetwork) -> (Key, Key) {
    let (first, last): (IpAddr, IpAddr) = match network {
        IpNetwork::V4(v4) => (v4.network().into(), v4.broadcast().into()),
        IpNetwork::V6(v6) => (v6.network().into(), v6.broadcast().into()),
    };
    (octets(first), octets(last))
}

fn transport_key(protocol: Protocol, port: NonZeroU16) -> Key {
    let [high, low] = port.get().to_be_bytes();
    Key::from_slice(&[protocol.number(), 0, 0, 0, high, low, 0, 0])
}

fn target_bytes(target: &Target) -> Key {
    let [high, low] = target.port.get().to_be_bytes();
    join(&[&octets(target.address), &[high, low, 0, 0]])
}

fn target_data(target: &Target) -> Data {
    Data::Value(join(&[&words(&[0]), &target_bytes(target)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(names: &str) -> Vec<Data> {
        names
            .bytes()
            .map(|name| Data::Value(SmallVec::from_slice(&[name])))
            .collect()
    }

    #[track_caller]
    fn check(present: &str, wanted: &str, expected: &str) {
        for first in [0, LOCAL_SLOTS] {
            let present = (first..).zip(data(present)).collect();
            assert_eq!(
                assign(&present, first, data(wanted)),
                data(expected),
                "{wanted} into {present:?}"
            );
        }
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

//! One Service as DNS sees it: the snapshot's own objects, in the order in which they are searched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use model::{EndpointSlice, Few, Protocol, Service, ServiceKind, Slices, Text};

use super::dashed::address_of_dashed;
use super::endpoint::{Endpoint, EndpointNames, Label, Port, identity};
use super::grammar::PortName;
use super::lower;
use crate::name::Name;

/// A Service with its ready endpoints. It shares the snapshot's objects: there are as many of it as of them.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceRecords {
    /// First label of its name, lower case.
    label: Text,
    service: Arc<Service>,
    /// `None` = it has none.
    slices: Option<Arc<Slices>>,
    /// What its name stands for.
    pub kind: Kind,
    /// The IPv4 addresses of its name.
    pub v4: Few<Ipv4Addr>,
    /// The IPv6 addresses of its name.
    pub v6: Few<Ipv6Addr>,
    order: Order,
    /// What most Services do not have.
    rarities: Option<Box<Rarities>>,
}

// One of ten thousand Services, which every query reads.
const _: () = assert!(size_of::<ServiceRecords>() <= 96);

/// What the name of a Service stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Addresses of its own.
    ClusterIp,
    /// Its endpoints.
    Headless,
    /// Another name.
    Alias,
    /// An ExternalName that is an address or no name at all: CoreDNS answers NXDOMAIN for it.
    Nothing,
}

/// Where the ready endpoints stand in the slices, sorted by address, hostname and pod, each once.
#[derive(Debug, PartialEq, Eq)]
enum Order {
    /// So many, as the first slice lists them.
    Listed(usize),
    /// These.
    Sorted(Box<[Position]>),
}

/// Where an endpoint stands in a Service's slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Position {
    slice: u32,
    index: u32,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Rarities {
    /// What it is an alias of.
    alias: Option<Name>,
    /// The places of endpoints with a hostname, sorted by it.
    by_hostname: Box<[u32]>,
    /// The places of those without a hostname whose pods have names, sorted by them.
    by_pod: Box<[u32]>,
    /// Where endpoints stand again that several slices list (one moved while the slices were rewritten, or a slice
    /// per port set), sorted by place.
    again: Box<[(u32, Position)]>,
}

/// The endpoints of one name, sorted by address. Going through them allocates nothing.
#[derive(Clone, Copy, Debug)]
pub struct Called<'t> {
    records: &'t ServiceRecords,
    places: Places<'t>,
}

#[derive(Clone, Copy, Debug)]
enum Places<'t> {
    /// These.
    Listed(&'t [u32]),
    /// Those from the first place up to the one behind the last that are called by their address.
    Dashed(usize, usize, EndpointNames),
}

impl<'t> Called<'t> {
    /// Where each of them stands in the Service's list.
    pub fn places(self) -> impl Iterator<Item = usize> + Clone + 't {
        let (listed, range, names): (&[u32], _, _) = match self.places {
            Places::Listed(listed) => (listed, 0..0, EndpointNames::Dashed),
            Places::Dashed(first, behind, names) => (&[], first..behind, names),
        };
        let is_dashed = move |place: &usize| self.records.endpoint(*place).own_name(names).is_none();
        let listed = listed.iter().map(|place| *place as usize);
        listed.chain(range.filter(is_dashed))
    }

    /// The Service.
    #[must_use]
    pub fn records(self) -> &'t ServiceRecords {
        self.records
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = Endpoint<'t>> + Clone {
        self.places().map(move |place| self.records.endpoint(place))
    }
}

impl ServiceRecords {
    /// The records of a Service and its slices.
    #[must_use]
    pub fn new(service: &Arc<Service>, slices: Option<&Arc<Slices>>) -> Self {
        let (kind, alias) = match &service.kind {
            ServiceKind::ClusterIp { .. } => (Kind::ClusterIp, None),
            ServiceKind::Headless => (Kind::Headless, None),
            ServiceKind::ExternalName(target) => match alias(target) {
                Some(target) => (Kind::Alias, Some(target)),
                None => (Kind::Nothing, None),
            },
        };
        let has_endpoints = matches!(kind, Kind::ClusterIp | Kind::Headless);
        let mut records = Self {
            label: lower(&service.name.name),
            service: Arc::clone(service),
            slices: slices.filter(|_| has_endpoints).cloned(),
            kind,
            v4: Few::none(),
            v6: Few::none(),
            order: Order::Listed(0),
            rarities: None,
        };
        let again = records.put_in_order();
        let rarities = Rarities {
            alias,
            by_hostname: records.places_by(Endpoint::hostname),
            by_pod: records.places_by(Endpoint::pod_name),
            again,
        };
        records.rarities = (rarities != Rarities::default()).then(|| Box::new(rarities));
        let own = match kind {
            Kind::ClusterIp => records.addresses().to_vec(),
            _ => records.endpoint_addresses(),
        };
        records.v4 = own.iter().filter_map(|ip| as_v4(*ip)).collect();
        records.v6 = own.iter().filter_map(|ip| as_v6(*ip)).collect();
        records
    }

    /// Finds the ready endpoints, and returns which of them are listed again, and where.
    fn put_in_order(&mut self) -> Box<[(u32, Position)]> {
        let slices = (0u32..).zip(self.slices.iter().flat_map(|slices| slices.iter()));
        let listed = slices.flat_map(|(slice, of)| {
            let endpoints = (0u32..).zip(&of.endpoints);
            let ready = endpoints.filter(|(_, entry)| entry.conditions().ready);
            ready.map(move |(index, entry)| (identity(entry), Position { slice, index }))
        });
        let mut listed: Vec<_> = listed.collect();
        // Of those that are the same the first slice's comes first.
        listed.sort_by_key(|(identity, _)| *identity);
        let (mut positions, mut again) = (Vec::with_capacity(listed.len()), Vec::new());
        let mut last = None;
        for (identity, position) in &listed {
            if last.replace(identity) == Some(identity) {
                again.push((positions.len() as u32 - 1, *position));
            } else {
                positions.push(*position);
            }
        }
        let as_listed = |(place, position): (u32, &Position)| position.slice == 0 && position.index == place;
        self.order = if (0u32..).zip(&positions).all(as_listed) {
            Order::Listed(positions.len())
        } else {
            Order::Sorted(positions.into())
        };
        again.into()
    }

    /// First label of its name, lower case.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        self.label.as_bytes()
    }

    /// The addresses of its own, the primary family first.
    #[must_use]
    pub fn addresses(&self) -> &[IpAddr] {
        match &self.service.kind {
            ServiceKind::ClusterIp { addresses } => addresses,
            ServiceKind::Headless | ServiceKind::ExternalName(_) => &[],
        }
    }

    /// Whether an address is its own.
    #[must_use]
    pub fn owns(&self, address: IpAddr) -> bool {
        let is_of_name = match address {
            IpAddr::V4(v4) => self.v4.contains(&v4),
            IpAddr::V6(v6) => self.v6.contains(&v6),
        };
        self.kind == Kind::ClusterIp && is_of_name
    }

    /// What it is another name of.
    #[must_use]
    pub fn alias(&self) -> Option<&Name> {
        self.rarities.as_ref()?.alias.as_ref()
    }

    /// Its own ports.
    pub fn ports(&self) -> impl Iterator<Item = Port<'_>> + Clone {
        self.service.ports.iter().map(Port::from)
    }

    /// How many ready endpoints it has.
    #[must_use]
    pub fn endpoint_count(&self) -> usize {
        match &self.order {
            Order::Listed(count) => *count,
            Order::Sorted(positions) => positions.len(),
        }
    }

    /// Its ready endpoints, sorted by address.
    pub fn endpoints(&self) -> impl Iterator<Item = Endpoint<'_>> + Clone {
        (0..self.endpoint_count()).map(|place| self.endpoint(place))
    }

    /// The endpoint at a place of its list.
    ///
    /// # Panics
    /// Behind the end of the list.
    #[must_use]
    pub fn endpoint(&self, place: usize) -> Endpoint<'_> {
        let position = match &self.order {
            Order::Listed(_) => Position {
                slice: 0,
                index: place as u32,
            },
            Order::Sorted(positions) => positions[place],
        };
        let slice = self.slice_at(position);
        let entry = slice.endpoints.get(position.index as usize);
        Endpoint {
            records: self,
            place,
            slice,
            entry: entry.expect("invariant: positions are those of the slices that are kept beside them"),
        }
    }

    fn slice_at(&self, position: Position) -> &EndpointSlice {
        let slices = self.slices.as_ref();
        let slice = slices.and_then(|slices| slices.nth(position.slice as usize));
        slice.expect("invariant: positions are those of the slices that are kept beside them")
    }

    /// The slices behind the first one that list the endpoint at a place.
    pub(super) fn slices_again(&self, place: usize) -> impl Iterator<Item = &EndpointSlice> + Clone {
        let again: &[_] = self.rarities.as_ref().map_or(&[], |rarities| &rarities.again);
        let first = again.partition_point(|(other, _)| (*other as usize) < place);
        let of_place = again[first..]
            .iter()
            .take_while(move |(other, _)| *other as usize == place);
        of_place.map(|(_, position)| self.slice_at(*position))
    }

    /// Whether the Service's name exists. A headless Service without a ready endpoint has none (DNS specification
    /// §2.4.1: "the answer should be NXDOMAIN").
    #[must_use]
    pub fn exists(&self) -> bool {
        match self.kind {
            Kind::ClusterIp | Kind::Alias => true,
            Kind::Headless => self.endpoint_count() > 0,
            Kind::Nothing => false,
        }
    }

    /// The endpoints that are called `label`.
    #[must_use]
    pub fn endpoints_called(&self, label: &[u8], names: EndpointNames) -> Called<'_> {
        let by_hostname = self.with_hostname(Label(label));
        if by_hostname.iter().next().is_some() {
            return by_hostname;
        }
        if let Some(address) = address_of_dashed(label) {
            let by_address = self.dashed_at(address, names);
            if by_address.iter().next().is_some() {
                return by_address;
            }
        }
        match names {
            EndpointNames::Pod => self.with_pod(Label(label)),
            EndpointNames::Dashed => by_hostname,
        }
    }

    /// The endpoints that are called as the one at `place` is, this one among them.
    #[must_use]
    pub fn namesakes(&self, place: usize, names: EndpointNames) -> Called<'_> {
        let endpoint = self.endpoint(place);
        match (endpoint.hostname(), endpoint.pod_name(), names) {
            (Some(hostname), ..) => self.with_hostname(hostname),
            (None, Some(pod), EndpointNames::Pod) => self.with_pod(pod),
            _ => self.dashed_at(endpoint.address(), names),
        }
    }

    fn with_hostname(&self, label: Label<'_>) -> Called<'_> {
        let places: &[u32] = self
            .rarities
            .as_ref()
            .map_or(&[], |rarities| &rarities.by_hostname);
        self.listed(places, label, Endpoint::hostname)
    }

    fn with_pod(&self, label: Label<'_>) -> Called<'_> {
        let places: &[u32] = self.rarities.as_ref().map_or(&[], |rarities| &rarities.by_pod);
        self.listed(places, label, Endpoint::pod_name)
    }

    /// Of `places`, sorted by a name, those with this one.
    fn listed<'t>(
        &'t self,
        places: &'t [u32],
        label: Label<'_>,
        name: impl Fn(Endpoint<'t>) -> Option<Label<'t>>,
    ) -> Called<'t> {
        let name = |place: &u32| name(self.endpoint(*place as usize));
        let first = places.partition_point(|place| name(place) < Some(label));
        let behind = places.partition_point(|place| name(place) <= Some(label));
        Called {
            records: self,
            places: Places::Listed(&places[first..behind]),
        }
    }

    fn dashed_at(&self, address: IpAddr, names: EndpointNames) -> Called<'_> {
        let (first, behind) = self.range_at(address);
        Called {
            records: self,
            places: Places::Dashed(first, behind, names),
        }
    }

    /// Where those at an address begin and end, which stand together.
    fn range_at(&self, address: IpAddr) -> (usize, usize) {
        let first = self.places_before(|other| other < address);
        let behind = self.places_before(|other| other <= address);
        (first, behind)
    }

    /// How many places there are with an address that is before something.
    fn places_before(&self, is_before: impl Fn(IpAddr) -> bool) -> usize {
        let (mut before, mut end) = (0, self.endpoint_count());
        while before < end {
            let middle = before + (end - before) / 2;
            if is_before(self.endpoint(middle).address()) {
                before = middle + 1;
            } else {
                end = middle;
            }
        }
        before
    }

    /// The endpoints at an address, one of each name.
    pub fn names_at(&self, address: IpAddr, names: EndpointNames) -> impl Iterator<Item = Endpoint<'_>> {
        let (first, behind) = self.range_at(address);
        let is_first = move |endpoint: &Endpoint<'_>| {
            let mut before = (first..endpoint.place).map(|place| self.endpoint(place));
            !before.any(|other| other.own_name(names) == endpoint.own_name(names))
        };
        (first..behind).map(|place| self.endpoint(place)).filter(is_first)
    }

    /// The endpoints that serve a port, sorted by address.
    pub fn serving<'t>(&'t self, port: PortName<'t>) -> impl Iterator<Item = Endpoint<'t>> + Clone {
        let serves = move |endpoint: &Endpoint<'_>| port.of(endpoint.ports()).next().is_some();
        self.endpoints().filter(serves)
    }

    /// Every address that leads back to this Service by PTR, sorted, each once.
    #[must_use]
    pub fn reversible_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = self.endpoint_addresses();
        addresses.extend(self.addresses());
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// The addresses of its endpoints, sorted, each once.
    fn endpoint_addresses(&self) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = self.endpoints().map(Endpoint::address).collect();
        addresses.dedup();
        addresses
    }

    /// Whether some port of that protocol has a name, so that `_tcp.service` has names below it.
    #[must_use]
    pub fn has_named_port(&self, protocol: Protocol) -> bool {
        let named = |port: Port<'_>| port.protocol == protocol && !port.name.is_empty();
        match self.kind {
            Kind::ClusterIp => self.ports().any(named),
            Kind::Headless => self.endpoints().any(|endpoint| endpoint.ports().any(named)),
            Kind::Alias | Kind::Nothing => false,
        }
    }

    /// Where the endpoints that have a name stand, sorted by it; those of one name by address.
    fn places_by<'t>(&'t self, name: impl Fn(Endpoint<'t>) -> Option<Label<'t>>) -> Box<[u32]> {
        let named = (0u32..).zip(self.endpoints());
        let named = named.filter_map(|(place, endpoint)| Some((name(endpoint)?, place)));
        let mut named: Vec<(Label<'t>, u32)> = named.collect();
        named.sort_unstable();
        named.into_iter().map(|(_, place)| place).collect()
    }
}

fn alias(target: &str) -> Option<Name> {
    match (target.parse::<IpAddr>(), Name::parse(target)) {
        (Err(_), Ok(name)) if name.label_count() > 0 => Some(name),
        _ => None,
    }
}

fn as_v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

fn as_v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(v6) => Some(v6),
        IpAddr::V4(_) => None,
    }
}

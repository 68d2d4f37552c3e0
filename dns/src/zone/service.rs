//! One Service as DNS sees it: addresses encoded ahead, endpoints sorted for search.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use model::{EndpointSlice, Protocol, Service, ServiceKind};

use super::grammar::PortName;
use crate::answer::{a_cell, aaaa_cell};
use crate::name::{MAX_LABEL, Name};

/// A Service with its ready endpoints.
#[derive(Debug, PartialEq, Eq)]
pub struct ServiceRecords {
    /// What its name stands for.
    pub kind: Kind,
    /// A records of the Service's name.
    pub a: Vec<[u8; 16]>,
    /// AAAA records of the Service's name.
    pub aaaa: Vec<[u8; 28]>,
    /// The Service's own ports.
    pub ports: Vec<Port>,
    /// Ready endpoints, sorted by address.
    pub endpoints: Vec<Endpoint>,
    /// Where the endpoints with a hostname stand in `endpoints`, sorted by it.
    by_hostname: Box<[u32]>,
    /// Where those without a hostname stand whose pods have names, sorted by them.
    by_pod: Box<[u32]>,
}

/// What the name of a Service stands for.
#[derive(Debug, PartialEq, Eq)]
pub enum Kind {
    /// Addresses of its own, the primary family first.
    ClusterIp(Vec<IpAddr>),
    /// Its endpoints.
    Headless,
    /// Another name.
    Alias(Name),
    /// An ExternalName that is an address or no name at all: CoreDNS answers NXDOMAIN for it.
    Nothing,
}

/// A named port, as in `_http._tcp`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// Lower case; empty = the port has no name.
    pub name: Box<[u8]>,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// A ready endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// `hostname`, lower case.
    pub hostname: Option<Box<[u8]>>,
    /// Name of its pod, lower case, where short enough for a label.
    pub pod: Option<Box<[u8]>>,
    /// The ports that it serves.
    pub ports: Arc<[Port]>,
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
        let endpoints = &self.records.endpoints;
        let is_dashed = move |place: &usize| endpoints[*place].name_is_dashed(names);
        let listed = listed.iter().map(|place| *place as usize);
        listed.chain(range.filter(is_dashed))
    }

    /// The Service.
    #[must_use]
    pub fn records(self) -> &'t ServiceRecords {
        self.records
    }

    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = &'t Endpoint> + Clone {
        self.places().map(move |place| &self.records.endpoints[place])
    }
}

/// How an endpoint without a hostname is called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EndpointNames {
    /// By its address, `10-244-1-7`.
    #[default]
    Dashed,
    /// By its pod where that has a name of fewer than 64 bytes (option `endpoint_pod_names`).
    Pod,
}

impl ServiceRecords {
    /// Builds the records of a Service and its slices.
    #[must_use]
    pub fn new<'s>(service: &Service, slices: impl Iterator<Item = &'s EndpointSlice>) -> Self {
        let kind = match &service.kind {
            ServiceKind::ClusterIp { addresses } => Kind::ClusterIp(addresses.clone()),
            ServiceKind::Headless => Kind::Headless,
            ServiceKind::ExternalName(target) => external_name(target),
        };
        let endpoints = match kind {
            Kind::ClusterIp(_) | Kind::Headless => ready_endpoints(slices),
            Kind::Alias(_) | Kind::Nothing => Vec::new(),
        };
        let own: Vec<IpAddr> = match &kind {
            Kind::ClusterIp(addresses) => addresses.clone(),
            _ => distinct_addresses(&endpoints),
        };
        let ports = service
            .ports
            .iter()
            .map(|port| Port::new(&port.name, port.protocol, port.port.get()));
        Self {
            by_hostname: places_by(&endpoints, Endpoint::hostname),
            by_pod: places_by(&endpoints, Endpoint::pod_name),
            kind,
            a: own.iter().filter_map(|ip| as_v4(*ip)).map(a_cell).collect(),
            aaaa: own.iter().filter_map(|ip| as_v6(*ip)).map(aaaa_cell).collect(),
            ports: ports.collect(),
            endpoints,
        }
    }

    /// Whether the Service's name exists. A headless Service without a ready endpoint has none (DNS specification
    /// §2.4.1: "the answer should be NXDOMAIN").
    #[must_use]
    pub fn exists(&self) -> bool {
        match self.kind {
            Kind::ClusterIp(_) | Kind::Alias(_) => true,
            Kind::Headless => !self.endpoints.is_empty(),
            Kind::Nothing => false,
        }
    }

    /// The endpoints that are called `label`.
    #[must_use]
    pub fn endpoints_called(&self, label: &[u8], names: EndpointNames) -> Called<'_> {
        let by_hostname = self.listed(&self.by_hostname, label, Endpoint::hostname);
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
            EndpointNames::Pod => self.listed(&self.by_pod, label, Endpoint::pod_name),
            EndpointNames::Dashed => self.listed(&[], label, Endpoint::hostname),
        }
    }

    /// The endpoints that are called as the one at `place` is, this one among them.
    #[must_use]
    pub fn namesakes(&self, place: usize, names: EndpointNames) -> Called<'_> {
        let endpoint = &self.endpoints[place];
        match (endpoint.hostname(), endpoint.pod_name(), names) {
            (Some(hostname), ..) => self.listed(&self.by_hostname, hostname, Endpoint::hostname),
            (None, Some(pod), EndpointNames::Pod) => self.listed(&self.by_pod, pod, Endpoint::pod_name),
            _ => self.dashed_at(endpoint.address, names),
        }
    }

    /// Of `places`, sorted by a name, those with this one.
    fn listed<'t>(
        &'t self,
        places: &'t [u32],
        label: &[u8],
        name: impl Fn(&Endpoint) -> Option<&[u8]>,
    ) -> Called<'t> {
        let name = |place: &u32| name(&self.endpoints[*place as usize]);
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
        let first = self
            .endpoints
            .partition_point(|endpoint| endpoint.address < address);
        let behind = self
            .endpoints
            .partition_point(|endpoint| endpoint.address <= address);
        (first, behind)
    }

    /// The endpoints at an address, one of each name.
    pub fn names_at(&self, address: IpAddr, names: EndpointNames) -> impl Iterator<Item = &Endpoint> {
        let (first, behind) = self.range_at(address);
        let endpoints = &self.endpoints[first..behind];
        let is_first = move |(index, endpoint): &(usize, &Endpoint)| {
            let before = endpoints.iter().take(*index);
            !before
                .into_iter()
                .any(|other| other.own_name(names) == endpoint.own_name(names))
        };
        endpoints
            .iter()
            .enumerate()
            .filter(is_first)
            .map(|(_, endpoint)| endpoint)
    }

    /// The endpoints that serve a port, sorted by address.
    pub fn serving<'t>(&'t self, port: PortName<'t>) -> impl Iterator<Item = &'t Endpoint> + Clone {
        let serves = move |endpoint: &&Endpoint| port.of(&endpoint.ports).next().is_some();
        self.endpoints.iter().filter(serves)
    }

    /// Every address that leads back to this Service by PTR, each once.
    #[must_use]
    pub fn reversible_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = distinct_addresses(&self.endpoints);
        if let Kind::ClusterIp(own) = &self.kind {
            addresses.extend(own);
        }
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    /// Whether some port of that protocol has a name, so that `_tcp.service` has names below it.
    #[must_use]
    pub fn has_named_port(&self, protocol: Protocol) -> bool {
        let named = |port: &Port| port.protocol == protocol && !port.name.is_empty();
        match self.kind {
            Kind::ClusterIp(_) => self.ports.iter().any(named),
            Kind::Headless => self
                .endpoints
                .iter()
                .any(|endpoint| endpoint.ports.iter().any(named)),
            Kind::Alias(_) | Kind::Nothing => false,
        }
    }
}

impl PortName<'_> {
    /// The ports with this name.
    pub fn of<'p>(self, ports: &'p [Port]) -> impl Iterator<Item = &'p Port> + Clone
    where
        Self: 'p,
    {
        ports.iter().filter(move |own| own.is(self.name, self.protocol))
    }
}

impl Port {
    fn new(name: &str, protocol: Protocol, number: u16) -> Self {
        Self {
            name: lower(name),
            protocol,
            number,
        }
    }

    /// Whether this is the port that `_name._protocol` asks for.
    #[must_use]
    pub fn is(&self, name: &[u8], protocol: Protocol) -> bool {
        self.protocol == protocol && !self.name.is_empty() && *self.name == *name
    }
}

impl Endpoint {
    fn hostname(&self) -> Option<&[u8]> {
        self.hostname.as_deref()
    }

    /// The pod's name, where no hostname goes before it.
    fn pod_name(&self) -> Option<&[u8]> {
        self.pod.as_deref().filter(|_| self.hostname.is_none())
    }

    /// What it is called, where that is not its address.
    #[must_use]
    pub fn own_name(&self, names: EndpointNames) -> Option<&[u8]> {
        match names {
            EndpointNames::Dashed => self.hostname(),
            EndpointNames::Pod => self.hostname().or(self.pod_name()),
        }
    }

    /// Writes the first label of its name in wire form.
    pub fn put_label(&self, names: EndpointNames, out: &mut Vec<u8>) {
        match self.own_name(names) {
            Some(name) => {
                out.push(name.len() as u8);
                out.extend_from_slice(name);
            }
            None => put_dashed(self.address, out),
        }
    }

    fn name_is_dashed(&self, names: EndpointNames) -> bool {
        self.own_name(names).is_none()
    }
}

/// Where the endpoints that have a name stand, sorted by it; those of one name by address.
fn places_by(endpoints: &[Endpoint], name: impl Fn(&Endpoint) -> Option<&[u8]>) -> Box<[u32]> {
    let named = (0u32..)
        .zip(endpoints)
        .filter(|(_, endpoint)| name(endpoint).is_some());
    let mut places: Vec<u32> = named.map(|(place, _)| place).collect();
    places.sort_by_key(|place| name(&endpoints[*place as usize]));
    places.into()
}

fn external_name(target: &str) -> Kind {
    match (target.parse::<IpAddr>(), Name::parse(target)) {
        (Err(_), Ok(name)) if name.label_count() > 0 => Kind::Alias(name),
        _ => Kind::Nothing,
    }
}

/// Ready endpoints sorted by address. What several slices say of the same endpoint (one moved while the slices were
/// rewritten, or a slice per port set) becomes one entry with the ports of all.
fn ready_endpoints<'s>(slices: impl Iterator<Item = &'s EndpointSlice>) -> Vec<Endpoint> {
    type Identity = (IpAddr, Option<Box<[u8]>>, Option<Box<[u8]>>);
    let mut merged: BTreeMap<Identity, Arc<[Port]>> = BTreeMap::new();
    for slice in slices {
        let ports = slice
            .ports
            .iter()
            .map(|port| Port::new(&port.name, port.protocol, port.port.get()));
        let ports: Arc<[Port]> = ports.collect();
        for endpoint in slice
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.conditions.ready)
        {
            let label = |text: &str| (1..=MAX_LABEL).contains(&text.len()).then(|| lower(text));
            let hostname = endpoint.hostname().and_then(label);
            let pod = endpoint.pod.as_deref().and_then(label);
            merged
                .entry((endpoint.address, hostname, pod))
                .and_modify(|known| *known = union(known, &ports))
                .or_insert_with(|| Arc::clone(&ports));
        }
    }
    let entries = merged.into_iter();
    entries
        .map(|((address, hostname, pod), ports)| Endpoint {
            address,
            hostname,
            pod,
            ports,
        })
        .collect()
}

fn union(known: &Arc<[Port]>, more: &Arc<[Port]>) -> Arc<[Port]> {
    if more.iter().all(|port| known.contains(port)) {
        return Arc::clone(known);
    }
    let fresh = more.iter().filter(|port| !known.contains(port));
    known.iter().chain(fresh).cloned().collect()
}

fn distinct_addresses(endpoints: &[Endpoint]) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    addresses.dedup();
    addresses
}

fn as_v4(address: IpAddr) -> Option<std::net::Ipv4Addr> {
    if let IpAddr::V4(v4) = address {
        Some(v4)
    } else {
        None
    }
}

fn as_v6(address: IpAddr) -> Option<Ipv6Addr> {
    if let IpAddr::V6(v6) = address {
        Some(v6)
    } else {
        None
    }
}

fn lower(text: &str) -> Box<[u8]> {
    text.to_ascii_lowercase().into_bytes().into()
}

/// Writes an address as a label: `10-244-1-7`, `fd00--1`; a label may not end in a dash, so that `fd00::` is `fd00--0`.
fn put_dashed(address: IpAddr, out: &mut Vec<u8>) {
    let length_at = out.len();
    out.push(0);
    // Writing into memory does not fail.
    let _infallible = io::Write::write_fmt(out, format_args!("{address}"));
    for byte in out.iter_mut().skip(length_at + 1) {
        if matches!(*byte, b'.' | b':') {
            *byte = b'-';
        }
    }
    if out.ends_with(b"-") {
        out.push(b'0');
    }
    out[length_at] = (out.len() - length_at - 1) as u8;
}

/// The address that an endpoint with this label has, where it is called by that.
#[must_use]
pub fn address_of_dashed(label: &[u8]) -> Option<IpAddr> {
    address_of_pod_label(label).filter(|address| is_dashed(*address, label))
}

/// Whether `label` is what [`put_dashed`] makes of the address, found without making it.
fn is_dashed(address: IpAddr, label: &[u8]) -> bool {
    let mut rest = Unmatched(label);
    if write!(rest, "{address}").is_err() {
        return false;
    }
    let matched = label.strip_suffix(rest.0).unwrap_or(label);
    match matched.ends_with(b"-") {
        true => rest.0 == b"0",
        false => rest.0.is_empty(),
    }
}

/// What of a label was not yet met by an address that is written into it.
struct Unmatched<'l>(&'l [u8]);

impl fmt::Write for Unmatched<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let expected = if matches!(byte, b'.' | b':') { b'-' } else { byte };
            match self.0.split_first() {
                Some((first, rest)) if *first == expected => self.0 = rest,
                _ => return Err(fmt::Error),
            }
        }
        Ok(())
    }
}

/// The address that a pod's label spells, in any spelling (`--1` is `::1`).
#[must_use]
pub fn address_of_pod_label(label: &[u8]) -> Option<IpAddr> {
    let dashes = label.iter().filter(|byte| **byte == b'-').count();
    let has_gap = label.windows(2).any(|pair| pair == b"--");
    let separator = match (dashes, has_gap) {
        (0, _) => return None,
        (3, false) => b'.',
        _ => b':',
    };
    let mut text = [0; MAX_LABEL];
    let text = text.get_mut(..label.len())?;
    for (to, from) in text.iter_mut().zip(label) {
        *to = if *from == b'-' { separator } else { *from };
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_become_labels_and_back() {
        for (address, label) in [
            ("10.244.1.7", "10-244-1-7"),
            ("fd00::1", "fd00--1"),
            ("fd00::", "fd00--0"),
            ("::1", "--1"),
            ("1:2:3:4:5:6:7:8", "1-2-3-4-5-6-7-8"),
            ("1:2::3", "1-2--3"),
        ] {
            let address: IpAddr = address.parse().expect("address");
            let mut wire = Vec::new();
            put_dashed(address, &mut wire);
            let expected = [&[label.len() as u8], label.as_bytes()].concat();
            assert_eq!(wire, expected, "{label}");
            assert_eq!(address_of_dashed(label.as_bytes()), Some(address), "{label}");
        }
        for other in [
            "",
            "web",
            "10-244-1",
            "10-244-1-256",
            "fd00--00",
            "fd00--",
            "fd00--1-",
            "1-2-3-4-5-6-7-8-",
            "fd00-0--1",
            "10-244-1-7-",
            "-",
            "010-1-1-1",
            "1-2-3-4-5",
        ] {
            assert_eq!(address_of_dashed(other.as_bytes()), None, "{other}");
        }
    }
}

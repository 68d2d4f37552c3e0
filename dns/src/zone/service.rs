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
    /// Where the endpoints with a hostname stand in `endpoints`.
    by_hostname: BTreeMap<Box<[u8]>, Vec<u32>>,
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

/// The endpoints of one name. Going through them allocates nothing.
#[derive(Clone, Copy, Debug)]
pub enum Called<'t> {
    /// Those in the list whose places are given.
    Hostname(&'t [Endpoint], &'t [u32]),
    /// Those that are called by their address, at one address.
    Dashed(&'t [Endpoint], EndpointNames),
    /// Those of the pod with this name.
    Pod(&'t [Endpoint], &'t [u8]),
}

impl<'t> Called<'t> {
    /// Each of them.
    pub fn iter(self) -> impl Iterator<Item = &'t Endpoint> + Clone {
        let (list, indices, names): (&[Endpoint], &[u32], _) = match self {
            Self::Hostname(list, indices) => (list, indices, None),
            Self::Dashed(list, names) => (list, &[], Some(names)),
            Self::Pod(list, _) => (list, &[], None),
        };
        let by_place = indices.iter().filter_map(move |index| list.get(*index as usize));
        let by_address = names
            .into_iter()
            .flat_map(move |names| list.iter().filter(move |endpoint| endpoint.name_is_dashed(names)));
        let pod = match self {
            Self::Pod(_, label) => Some(label),
            Self::Hostname(..) | Self::Dashed(..) => None,
        };
        let by_pod = pod.into_iter().flat_map(move |label| {
            let is_called = move |endpoint: &&Endpoint| {
                endpoint.hostname.is_none() && endpoint.pod.as_deref() == Some(label)
            };
            list.iter().filter(is_called)
        });
        by_place.chain(by_address).chain(by_pod)
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
        let mut by_hostname: BTreeMap<Box<[u8]>, Vec<u32>> = BTreeMap::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            if let Some(hostname) = &endpoint.hostname {
                by_hostname
                    .entry(hostname.clone())
                    .or_default()
                    .push(index as u32);
            }
        }
        Self {
            kind,
            a: own.iter().filter_map(|ip| as_v4(*ip)).map(a_cell).collect(),
            aaaa: own.iter().filter_map(|ip| as_v6(*ip)).map(aaaa_cell).collect(),
            ports: ports.collect(),
            endpoints,
            by_hostname,
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

    /// The endpoints that are called `label`, sorted by address.
    #[must_use]
    pub fn endpoints_called<'t>(&'t self, label: &'t [u8], names: EndpointNames) -> Called<'t> {
        if let Some(indices) = self.by_hostname.get(label) {
            return Called::Hostname(&self.endpoints, indices);
        }
        let at_address = address_of_dashed(label).map(|address| self.range_at(address));
        let is_named = |endpoint: &&Endpoint| endpoint.name_is_dashed(names);
        if at_address.is_some_and(|endpoints| endpoints.iter().any(|endpoint| is_named(&endpoint))) {
            return Called::Dashed(at_address.unwrap_or_default(), names);
        }
        match names {
            EndpointNames::Pod => Called::Pod(&self.endpoints, label),
            EndpointNames::Dashed => Called::Dashed(&[], names),
        }
    }

    /// Those at an address, which stand together.
    fn range_at(&self, address: IpAddr) -> &[Endpoint] {
        let first = self
            .endpoints
            .partition_point(|endpoint| endpoint.address < address);
        let behind = self
            .endpoints
            .partition_point(|endpoint| endpoint.address <= address);
        self.endpoints.get(first..behind).unwrap_or_default()
    }

    /// The endpoints at an address, one of each name.
    pub fn names_at(&self, address: IpAddr, names: EndpointNames) -> impl Iterator<Item = &Endpoint> {
        let endpoints = self.range_at(address);
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
    pub fn of<'p>(self, ports: &'p [Port]) -> impl Iterator<Item = &'p Port>
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
    /// What it is called, where that is not its address.
    #[must_use]
    pub fn own_name(&self, names: EndpointNames) -> Option<&[u8]> {
        match names {
            EndpointNames::Dashed => self.hostname.as_deref(),
            EndpointNames::Pod => self.hostname.as_deref().or(self.pod.as_deref()),
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

//! The `kubernetes` plugin: answers the cluster zone and reverse zones from a [`Table`], by the Kubernetes DNS
//! specification 1.1.0 and, where that is silent, as CoreDNS does.
//!
//! Three answers differ from CoreDNS on purpose, because its NXDOMAIN there denies names that exist (RFC 8020 §2,
//! RFC 2308 §2): `_tcp.service` above its ports, `namespace.svc TXT` in an empty namespace, `dns-version A`.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::answer::{Owner, Section, Writer, code_only, join, owner_at, put_soa};
use crate::name::Name;
use crate::question::{Query, rcode, rtype};
use crate::zone::service::address_of_pod_label;
use crate::zone::{Asked, Endpoint, EndpointNames, Kind, PortName, ServiceRecords, Table};

/// The version of the specification, as `dns-version TXT` tells it.
const SCHEMA_VERSION: &[u8] = b"\x051.1.0";
const SCHEMA_VERSION_TTL: u32 = 28_800;
/// Negative answers carry at most this TTL on their SOA.
const MAX_NEGATIVE_TTL: u32 = 300;

/// Options of the plugin, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The zones that are answered; at least one of them is not reversed.
    pub zones: Vec<Name>,
    /// TTL of every record but `dns-version`, in seconds, 0 to 3600. Default 5.
    pub ttl: u32,
    /// What pods' names answer. Default: nothing.
    pub pods: PodMode,
    /// For which names an NXDOMAIN passes the query on to the next plugin.
    pub fallthrough: Fallthrough,
    /// How endpoints without a hostname are called.
    pub endpoint_names: EndpointNames,
    /// The agent's socket. Default `/run/causeway/dns.sock`.
    pub feed: PathBuf,
    /// The directory where the last good snapshot is kept. Default: that of the socket.
    pub state: PathBuf,
}

/// What `a-b-c-d.namespace.pod` answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PodMode {
    /// NXDOMAIN, always.
    #[default]
    Disabled,
    /// The address that the name spells, in any namespace that exists.
    Insecure,
    /// The same, where a pod of that namespace has the address.
    Verified,
}

/// The names for which an NXDOMAIN is passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fallthrough(pub Vec<Name>);

/// What became of a query.
#[derive(Debug)]
pub enum Verdict {
    /// The answer is written.
    Answered,
    /// The name is in none of the zones, or does not exist and may be known to the next plugin.
    NotOurs,
    /// An alias for this name, which has to be looked up first.
    Follow(Name),
}

/// What an answer depends on besides the names.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The most bytes that the client takes.
    pub limit: usize,
    /// Which of several addresses comes first.
    pub rotation: usize,
}

impl Fallthrough {
    fn covers(&self, query: &Query<'_>) -> bool {
        self.0.iter().any(|zone| query.labels_before(zone).is_some())
    }
}

/// A name that was looked up.
enum Found<'t> {
    /// It does not exist.
    Missing,
    /// The objects that could tell have not been listed yet.
    Undecided,
    /// It exists and has no records, or only above other names.
    Empty,
    Apex,
    Version,
    NameServer,
    /// A Service's own name.
    Service(&'t ServiceRecords),
    /// A port of a Service that has addresses.
    ServicePort(&'t [IpAddr], Vec<u16>),
    /// Endpoints by name, or those that serve a port.
    Endpoints(Vec<&'t Endpoint>, Option<PortName<'t>>),
    Pod(IpAddr),
    Alias(&'t Name),
    /// An address that leads to these names.
    Pointer(Vec<Vec<u8>>),
}

/// One SRV record to be.
struct Target<'t> {
    endpoint: Option<&'t Endpoint>,
    address: IpAddr,
    port: u16,
}

/// One answer in the making.
struct Answer<'a, 't> {
    options: &'a Options,
    table: &'t Table,
    query: &'a Query<'a>,
    /// Labels in front of the zone.
    before: usize,
    shape: Shape,
}

impl Options {
    /// The file of the last good snapshot: called like the socket, so that two feeds may share a directory.
    #[must_use]
    pub fn snapshot_file(&self) -> PathBuf {
        let name = self.feed.file_stem().unwrap_or("dns".as_ref());
        self.state.join(name).with_extension("snapshot")
    }

    /// Answers from `table` into `out`, or says why not.
    pub fn answer(&self, table: &Table, query: &Query<'_>, shape: Shape, out: &mut Vec<u8>) -> Verdict {
        let Some((zone, before)) = self.zone_of(query) else {
            return Verdict::NotOurs;
        };
        if matches!(query.qtype, rtype::AXFR | rtype::IXFR) {
            code_only(out, query, rcode::REFUSED);
            return Verdict::Answered;
        }
        let answer = Answer {
            options: self,
            table,
            query,
            before,
            shape,
        };
        let found = if before > 0 && zone.is_reverse() {
            answer.find_reverse()
        } else {
            answer.find()
        };
        answer.write(found, out)
    }

    /// The longest of the zones that the name is in, and how many labels stand in front of it.
    fn zone_of(&self, query: &Query<'_>) -> Option<(&Name, usize)> {
        let zones = self.zones.iter();
        zones
            .filter_map(|zone| Some((zone, query.labels_before(zone)?)))
            .min_by_key(|(_, before)| *before)
    }

    /// The zone that PTR and SRV records point into.
    fn primary_zone(&self) -> &Name {
        let forward = self.zones.iter().find(|zone| !zone.is_reverse());
        forward.expect("invariant: the Corefile's check refuses reverse zones alone")
    }
}

impl<'a, 't> Answer<'a, 't>
where
    'a: 't,
{
    fn find(&self) -> Found<'t> {
        let table = self.table;
        match Asked::of(self.query, self.before) {
            Asked::Apex => Found::Apex,
            Asked::DnsVersion => Found::Version,
            Asked::NameServer => Found::NameServer,
            Asked::KindRoot | Asked::NameServerParent => Found::Empty,
            Asked::ServiceNamespace(namespace) => empty_if(table.has_namespace(namespace)),
            Asked::PodNamespace(namespace) => {
                empty_if(self.options.pods != PodMode::Disabled && table.has_namespace(namespace))
            }
            Asked::Pod { namespace, label } => self.find_pod(namespace, label),
            Asked::Service { namespace, service } => match table.service(namespace, service) {
                Some(records) => match &records.kind {
                    Kind::Alias(target) => Found::Alias(target),
                    _ if records.exists() => Found::Service(records),
                    _ => Found::Missing,
                },
                None => Found::Missing,
            },
            Asked::Below {
                namespace,
                service,
                label,
            } => match table.service(namespace, service) {
                Some(records) => self.find_below(records, label),
                None => Found::Missing,
            },
            Asked::Port {
                namespace,
                service,
                port,
            } => match table.service(namespace, service) {
                Some(records) => find_port(records, port),
                None => Found::Missing,
            },
            Asked::Unknown => Found::Missing,
        }
    }

    fn find_pod(&self, namespace: &[u8], label: &[u8]) -> Found<'t> {
        let Some(address) = address_of_pod_label(label) else {
            return Found::Missing;
        };
        let known = match self.options.pods {
            PodMode::Disabled => false,
            PodMode::Insecure => self.table.has_namespace(namespace),
            PodMode::Verified => self.table.has_pod(namespace, address),
        };
        match known {
            true => Found::Pod(address),
            false if self.options.pods == PodMode::Verified && !self.table.pods_synced => Found::Undecided,
            false => Found::Missing,
        }
    }

    fn find_below(&self, records: &'t ServiceRecords, label: &[u8]) -> Found<'t> {
        let endpoints = records.endpoints_called(label, self.options.endpoint_names);
        if !endpoints.is_empty() {
            return Found::Endpoints(endpoints, None);
        }
        let protocol = crate::zone::grammar::protocol(label);
        empty_if(protocol.is_some_and(|protocol| records.has_named_port(protocol)))
    }

    fn find_reverse(&self) -> Found<'t> {
        let Some(address) = reversed_address(self.query) else {
            return Found::Missing;
        };
        let zone = self.options.primary_zone();
        let mut names = Vec::new();
        for owner in self.table.reversed(address, self.options.endpoint_names) {
            let service: [&[u8]; 3] = [owner.service, owner.namespace, b"svc"];
            if owner.endpoints.is_empty() {
                names.push(join(&service, zone));
            }
            for endpoint in &owner.endpoints {
                names.push(join(&[&[&**endpoint], &service[..]].concat(), zone));
            }
        }
        if names.is_empty() {
            Found::Missing
        } else {
            Found::Pointer(names)
        }
    }

    fn write(&self, found: Found<'t>, out: &mut Vec<u8>) -> Verdict {
        let missing = matches!(found, Found::Missing);
        if missing && self.options.fallthrough.covers(self.query) {
            return Verdict::NotOurs;
        }
        if missing || matches!(found, Found::Undecided) {
            // Not being in the table proves nothing before the lists are complete.
            let code = if missing && self.table.synced {
                rcode::NXDOMAIN
            } else {
                rcode::SERVFAIL
            };
            self.negative(code, out);
            return Verdict::Answered;
        }
        if let Found::Alias(target) = found
            && matches!(self.query.qtype, rtype::A | rtype::AAAA)
        {
            return Verdict::Follow(target.clone());
        }
        let mut writer = Writer::start(out, self.query, self.shape.limit);
        let empty = writer.position();
        self.records(&found, &mut writer);
        if writer.position() > empty || writer.is_truncated() {
            writer.finish(rcode::NOERROR, true);
        } else {
            self.negative(rcode::NOERROR, out);
        }
        Verdict::Answered
    }

    fn records(&self, found: &Found<'t>, writer: &mut Writer<'_, '_>) {
        let ttl = self.options.ttl;
        match (found, self.query.qtype) {
            (Found::Service(records), rtype::A) => writer.cells(&records.a, self.shape.rotation, ttl),
            (Found::Service(records), rtype::AAAA) => writer.cells(&records.aaaa, self.shape.rotation, ttl),
            (Found::Service(records), rtype::SRV) => self.srv(writer, service_targets(records)),
            (Found::ServicePort(addresses, _), rtype::A | rtype::AAAA) => {
                self.addresses(writer, addresses.iter().copied());
            }
            (Found::ServicePort(addresses, ports), rtype::SRV) => {
                self.srv(writer, own_targets(addresses, ports.iter().copied()));
            }
            (Found::Endpoints(endpoints, _), rtype::A | rtype::AAAA) => {
                self.addresses(writer, endpoints.iter().map(|endpoint| endpoint.address));
            }
            (Found::Endpoints(endpoints, port), rtype::SRV) => {
                let targets = endpoints
                    .iter()
                    .flat_map(|endpoint| endpoint_targets(endpoint, *port));
                self.srv(writer, targets.collect());
            }
            (Found::Pod(address), rtype::A | rtype::AAAA) => {
                self.addresses(writer, std::iter::once(*address));
            }
            (Found::Alias(target), rtype::CNAME) => {
                writer.name(Section::Answer, Owner::QUESTION, rtype::CNAME, ttl, target.wire());
            }
            (Found::Pointer(names), rtype::PTR) => {
                for name in names {
                    writer.name(Section::Answer, Owner::QUESTION, rtype::PTR, ttl, name);
                }
            }
            (Found::Version, rtype::TXT) => {
                let put = |out: &mut Vec<u8>| out.extend_from_slice(SCHEMA_VERSION);
                writer.record(
                    Section::Answer,
                    Owner::QUESTION,
                    rtype::TXT,
                    SCHEMA_VERSION_TTL,
                    put,
                );
            }
            (Found::Apex, rtype::SOA) => self.soa(writer, Section::Answer),
            (Found::Apex, rtype::NS) => self.name_servers(writer),
            (Found::NameServer, rtype::A | rtype::AAAA) => {
                self.addresses(writer, self.reachable_addresses());
            }
            _ => {}
        }
    }

    /// Addresses of the family asked for, each once, rotated.
    fn addresses(&self, writer: &mut Writer<'_, '_>, addresses: impl Iterator<Item = IpAddr>) {
        let wants_v4 = self.query.qtype == rtype::A;
        let mut addresses: Vec<IpAddr> = addresses
            .filter(|address| address.is_ipv4() == wants_v4)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let count = addresses.len().max(1);
        addresses.rotate_left(self.shape.rotation % count);
        for address in addresses {
            writer.address(Section::Answer, Owner::QUESTION, address, self.options.ttl);
        }
    }

    /// SRV records of equal weight and, as far as there is room, their targets' addresses. A target is written out:
    /// RFC 2782 forbids compressing it. Weight is 100 divided by address and port pairs, as in CoreDNS.
    fn srv(&self, writer: &mut Writer<'_, '_>, mut targets: Vec<Target<'t>>) {
        let weight = (100 / targets.len().max(1)).max(1) as u16;
        let count = targets.len().max(1);
        targets.rotate_left(self.shape.rotation % count);
        let names: Vec<Vec<u8>> = targets.iter().map(|target| self.target_name(target)).collect();
        let mut seen: Vec<(&[u8], u16)> = Vec::new();
        let mut places: Vec<(&[u8], usize)> = Vec::new();
        for (target, name) in targets.iter().zip(&names) {
            if seen.contains(&(name, target.port)) {
                continue;
            }
            seen.push((name, target.port));
            let fits = writer.record(
                Section::Answer,
                Owner::QUESTION,
                rtype::SRV,
                self.options.ttl,
                |out| {
                    for word in [0, weight, target.port] {
                        out.extend_from_slice(&word.to_be_bytes());
                    }
                    out.extend_from_slice(name);
                },
            );
            if !fits {
                return;
            }
            places.push((name, writer.position() - name.len()));
        }
        let mut added: Vec<(&[u8], IpAddr)> = Vec::new();
        for (target, name) in targets.iter().zip(&names) {
            let place = places.iter().find(|(known, _)| known == name);
            if let (Some((_, at)), false) = (place, added.contains(&(name, target.address))) {
                added.push((name, target.address));
                writer.address(
                    Section::Additional,
                    owner_at(*at, name),
                    target.address,
                    self.options.ttl,
                );
            }
        }
    }

    /// `service.namespace.svc.ZONE`, with the endpoint's label in front where there is one. The zone's labels in front
    /// of the question are the Service's: `_port._protocol` and endpoints' labels are cut off.
    fn target_name(&self, target: &Target<'_>) -> Vec<u8> {
        let service = self.query.suffix(self.before - 3);
        let mut name = Vec::with_capacity(service.len() + 20);
        if let Some(endpoint) = target.endpoint {
            let label = endpoint.label(self.options.endpoint_names);
            name.push(label.len() as u8);
            name.extend_from_slice(&label);
        }
        name.extend_from_slice(service);
        name
    }

    fn name_servers(&self, writer: &mut Writer<'_, '_>) {
        let zone = Name::from_lower_wire(self.query.suffix(self.before));
        let mut servers: Vec<(Vec<u8>, Vec<IpAddr>)> = Vec::new();
        for address in self.reachable_addresses() {
            for owner in self.table.reversed(address, self.options.endpoint_names) {
                let name = join(&[owner.service, owner.namespace, b"svc"], &zone);
                let known = servers.iter().position(|(known, _)| *known == name);
                match known.and_then(|index| servers.get_mut(index)) {
                    Some((_, addresses)) => addresses.push(address),
                    None => servers.push((name, vec![address])),
                }
            }
        }
        if servers.is_empty() {
            servers.push((
                join(&[b"ns", b"dns"], &zone),
                self.reachable_addresses().collect(),
            ));
        }
        for (name, _) in &servers {
            writer.name(
                Section::Answer,
                Owner::QUESTION,
                rtype::NS,
                self.options.ttl,
                name,
            );
        }
        for (name, addresses) in &servers {
            for address in addresses {
                writer.address(
                    Section::Additional,
                    Owner::Literal(name),
                    *address,
                    self.options.ttl,
                );
            }
        }
    }

    fn reachable_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.table.local_addresses.iter().copied()
    }

    fn negative(&self, code: u16, out: &mut Vec<u8>) {
        let mut writer = Writer::start(out, self.query, self.shape.limit);
        self.soa(&mut writer, Section::Authority);
        writer.finish(code, true);
    }

    fn soa(&self, writer: &mut Writer<'_, '_>, section: Section) {
        let ttl = self.options.ttl;
        let zone_at = self.query.packet_offset(self.before);
        put_soa(
            writer,
            section,
            zone_at,
            self.table.serial,
            ttl.min(MAX_NEGATIVE_TTL),
            ttl,
        );
    }
}

fn empty_if<'t>(exists: bool) -> Found<'t> {
    if exists { Found::Empty } else { Found::Missing }
}

fn find_port<'t>(records: &'t ServiceRecords, port: PortName<'t>) -> Found<'t> {
    match &records.kind {
        Kind::ClusterIp(addresses) => {
            let ports = records
                .ports
                .iter()
                .filter(|own| own.is(port.name, port.protocol));
            let ports: Vec<u16> = ports.map(|own| own.number).collect();
            if ports.is_empty() {
                Found::Missing
            } else {
                Found::ServicePort(addresses, ports)
            }
        }
        Kind::Headless => {
            let serves =
                |endpoint: &&Endpoint| endpoint.ports.iter().any(|own| own.is(port.name, port.protocol));
            let endpoints: Vec<_> = records.endpoints.iter().filter(serves).collect();
            if endpoints.is_empty() {
                Found::Missing
            } else {
                Found::Endpoints(endpoints, Some(port))
            }
        }
        Kind::Alias(_) | Kind::Nothing => Found::Missing,
    }
}

/// SRV on a Service's own name: every port of it, named or not.
fn service_targets(records: &ServiceRecords) -> Vec<Target<'_>> {
    match &records.kind {
        Kind::ClusterIp(addresses) => own_targets(addresses, records.ports.iter().map(|port| port.number)),
        _ => records
            .endpoints
            .iter()
            .flat_map(|endpoint| endpoint_targets(endpoint, None))
            .collect(),
    }
}

fn own_targets<'t>(addresses: &[IpAddr], ports: impl Iterator<Item = u16>) -> Vec<Target<'t>> {
    let pairs = ports.flat_map(|port| addresses.iter().map(move |address| (port, *address)));
    pairs
        .map(|(port, address)| Target {
            endpoint: None,
            address,
            port,
        })
        .collect()
}

fn endpoint_targets<'t>(
    endpoint: &'t Endpoint,
    port: Option<PortName<'t>>,
) -> impl Iterator<Item = Target<'t>> {
    let wanted = move |own: &&crate::zone::Port| port.is_none_or(|port| own.is(port.name, port.protocol));
    let ports = endpoint.ports.iter().filter(wanted);
    ports.map(|own| Target {
        endpoint: Some(endpoint),
        address: endpoint.address,
        port: own.number,
    })
}

/// The address that a name in `in-addr.arpa` or `ip6.arpa` spells in full.
fn reversed_address(query: &Query<'_>) -> Option<IpAddr> {
    let labels = query.label_count();
    match labels.checked_sub(2).map(|zone| query.suffix(zone))? {
        b"\x07in-addr\x04arpa\0" if labels == 6 => {
            let mut octets = [0u8; 4];
            for (index, octet) in octets.iter_mut().enumerate() {
                *octet = plain_number(query.label(3 - index))?;
            }
            Some(IpAddr::from(octets))
        }
        b"\x03ip6\x04arpa\0" if labels == 34 => {
            let mut octets = [0u8; 16];
            for (index, octet) in octets.iter_mut().enumerate() {
                *octet = nibble(query.label(31 - 2 * index))? << 4 | nibble(query.label(30 - 2 * index))?;
            }
            Some(IpAddr::from(octets))
        }
        _ => None,
    }
}

/// A decimal octet without leading zeros.
fn plain_number(label: &[u8]) -> Option<u8> {
    let text = std::str::from_utf8(label).ok()?;
    text.parse::<u8>()
        .ok()
        .filter(|number| number.to_string() == text)
}

fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit] => char::from(*digit).to_digit(16).map(|digit| digit as u8),
        _ => None,
    }
}

#[cfg(test)]
mod tests;

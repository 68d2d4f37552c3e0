//! The records of names that were found, and the denials of those that were not.

use std::net::IpAddr;

use super::{Answer, Found, MAX_NEGATIVE_TTL, SCHEMA_VERSION, SCHEMA_VERSION_TTL};
use crate::answer::{Owner, Section, Writer, join, owner_at, put_soa};
use crate::name::Name;
use crate::question::rtype;
use crate::zone::{Endpoint, EndpointNames, Kind, PortName, Reversed, ServiceRecords};

/// One SRV record to be.
struct Target<'t> {
    endpoint: Option<&'t Endpoint>,
    address: IpAddr,
    port: u16,
}

impl<'t> Answer<'_, 't> {
    pub(super) fn records(&self, found: &Found<'t>, writer: &mut Writer<'_, '_>) {
        let ttl = self.options.ttl;
        match (found, self.query.qtype) {
            (Found::Service(records), rtype::A) => writer.cells(&records.a, self.shape.rotation, ttl),
            (Found::Service(records), rtype::AAAA) => writer.cells(&records.aaaa, self.shape.rotation, ttl),
            (Found::Service(records), rtype::SRV) => self.srv(writer, service_targets(records)),
            (Found::ServicePort(_, addresses, _), rtype::A | rtype::AAAA) => {
                self.addresses(writer, addresses.iter().copied());
            }
            (Found::ServicePort(records, addresses, port), rtype::SRV) => {
                let ports = port.of(&records.ports).map(|port| port.number);
                self.srv(writer, own_targets(addresses, ports));
            }
            (Found::Endpoints(called), rtype::A | rtype::AAAA) => {
                self.addresses(writer, called.iter().map(|endpoint| endpoint.address));
            }
            (Found::Endpoints(called), rtype::SRV) => {
                let targets = called
                    .iter()
                    .flat_map(|endpoint| endpoint_targets(endpoint, None));
                self.srv(writer, targets.collect());
            }
            (Found::EndpointPort(records, port), rtype::A | rtype::AAAA) => {
                self.addresses(writer, records.serving(*port).map(|endpoint| endpoint.address));
            }
            (Found::EndpointPort(records, port), rtype::SRV) => {
                let endpoints = records.endpoints.iter();
                let targets = endpoints.flat_map(|endpoint| endpoint_targets(endpoint, Some(*port)));
                self.srv(writer, targets.collect());
            }
            (Found::Pod(address), rtype::A | rtype::AAAA) => {
                self.addresses(writer, std::iter::once(*address));
            }
            (Found::Alias(target), rtype::CNAME) => {
                writer.name(Section::Answer, Owner::QUESTION, rtype::CNAME, ttl, target.wire());
            }
            (Found::Pointer(address), rtype::PTR) => self.pointers(*address, |write_name| {
                writer.record(Section::Answer, Owner::QUESTION, rtype::PTR, ttl, write_name);
            }),
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

    /// Addresses of the family asked for, each once, rotated. They come sorted, so that equal ones stand together.
    fn addresses(&self, writer: &mut Writer<'_, '_>, addresses: impl Iterator<Item = IpAddr> + Clone) {
        let wants_v4 = self.query.qtype == rtype::A;
        let wanted = addresses.filter(|address| address.is_ipv4() == wants_v4);
        let distinct = wanted.scan(None, |last, address| {
            let is_new = last.replace(address) != Some(address);
            Some(is_new.then_some(address))
        });
        let distinct = distinct.flatten();
        let first = self.shape.rotation % distinct.clone().count().max(1);
        for address in distinct.clone().skip(first).chain(distinct.take(first)) {
            writer.address(Section::Answer, Owner::QUESTION, address, self.options.ttl);
        }
    }

    /// Hands out the names that the address leads back to, each as what writes it.
    pub(super) fn pointers(&self, address: IpAddr, mut take: impl FnMut(&dyn Fn(&mut Vec<u8>))) {
        let (zone, names) = (self.options.primary_zone(), self.options.endpoint_names);
        for owner in self.reversed(address) {
            if !owner.is_endpoint {
                take(&|out| put_name(None, &owner, zone, out));
                continue;
            }
            for endpoint in owner.records.names_at(address, names) {
                take(&|out| put_name(Some((endpoint, names)), &owner, zone, out));
            }
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
            endpoint.put_label(self.options.endpoint_names, &mut name);
        }
        name.extend_from_slice(service);
        name
    }

    /// The names of the Services that lead to this machine, as they answer themselves; where there is none, `ns.dns`.
    fn name_servers(&self, writer: &mut Writer<'_, '_>) {
        let zone = Name::from_lower_wire(self.query.suffix(self.before));
        let names = self.options.endpoint_names;
        let mut servers: Vec<(Vec<u8>, Vec<IpAddr>)> = Vec::new();
        for address in self.reachable_addresses() {
            for owner in self.table.reversed(address) {
                let mut name = Vec::new();
                if let Kind::ClusterIp(own) = &owner.records.kind {
                    put_name(None, &owner, &zone, &mut name);
                    add_server(&mut servers, name, own);
                    continue;
                }
                for endpoint in owner.records.names_at(address, names) {
                    name.clear();
                    put_name(Some((endpoint, names)), &owner, &zone, &mut name);
                    add_server(&mut servers, name.clone(), &[address]);
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

    fn reachable_addresses(&self) -> impl Iterator<Item = IpAddr> + Clone {
        self.table.local_addresses.iter().copied()
    }

    pub(super) fn negative(&self, code: u16, out: &mut Vec<u8>) {
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

/// `[endpoint.]service.namespace.svc.ZONE`
fn put_name(
    endpoint: Option<(&Endpoint, EndpointNames)>,
    owner: &Reversed<'_>,
    zone: &Name,
    out: &mut Vec<u8>,
) {
    if let Some((endpoint, names)) = endpoint {
        endpoint.put_label(names, out);
    }
    for label in [owner.service, owner.namespace, b"svc"] {
        out.push(label.len() as u8);
        out.extend_from_slice(label);
    }
    out.extend_from_slice(zone.wire());
}

fn add_server(servers: &mut Vec<(Vec<u8>, Vec<IpAddr>)>, name: Vec<u8>, addresses: &[IpAddr]) {
    match servers.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => {
            let fresh = addresses.iter().filter(|address| !known.contains(address));
            let fresh: Vec<IpAddr> = fresh.copied().collect();
            known.extend(fresh);
        }
        None => servers.push((name, addresses.to_vec())),
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

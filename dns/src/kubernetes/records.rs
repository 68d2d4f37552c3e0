//! The records of names that were found, and the denials of those that were not.

use std::net::IpAddr;

use super::{Answer, Found, MAX_NEGATIVE_TTL, SCHEMA_VERSION, SCHEMA_VERSION_TTL};
use crate::answer::{Owner, Section, Writer, join, put_soa};
use crate::name::Name;
use crate::question::{Record, rtype};
use crate::zone::{Endpoint, EndpointNames, Kind, Port, PortName, Reversed, ServiceRecords};

impl<'t> Answer<'_, 't> {
    pub(super) fn records(&self, found: &Found<'t>, writer: &mut Writer<'_, '_>) {
        let (ttl, names) = (self.options.ttl, self.options.endpoint_names);
        match (found, self.query.qtype) {
            (Found::Service(records), rtype::A) => writer.addresses(&records.v4, self.shape.rotation, ttl),
            (Found::Service(records), rtype::AAAA) => writer.addresses(&records.v6, self.shape.rotation, ttl),
            // Every port of it, named or not.
            (Found::Service(records), rtype::SRV) => match records.kind {
                Kind::ClusterIp => self.own_srv(writer, records.addresses(), records.ports()),
                _ => self.srv(
                    writer,
                    &Targets::of(records, 0..records.endpoint_count(), None, names),
                ),
            },
            (Found::ServicePort(records, _), rtype::A | rtype::AAAA) => {
                self.addresses(writer, records.addresses().iter().copied());
            }
            (Found::ServicePort(records, port), rtype::SRV) => {
                self.own_srv(writer, records.addresses(), port.of(records.ports()));
            }
            (Found::Endpoints(called), rtype::A | rtype::AAAA) => {
                self.addresses(writer, called.iter().map(Endpoint::address));
            }
            (Found::Endpoints(called), rtype::SRV) => {
                self.srv(
                    writer,
                    &Targets::of(called.records(), called.places(), None, names),
                );
            }
            (Found::EndpointPort(records, port), rtype::A | rtype::AAAA) => {
                self.addresses(writer, records.serving(*port).map(Endpoint::address));
            }
            (Found::EndpointPort(records, port), rtype::SRV) => {
                let all = 0..records.endpoint_count();
                self.srv(writer, &Targets::of(records, all, Some(*port), names));
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

    /// Addresses of the family asked for, each once, rotated. They come sorted.
    fn addresses(&self, writer: &mut Writer<'_, '_>, addresses: impl Iterator<Item = IpAddr> + Clone) {
        let wants_v4 = self.query.qtype == rtype::A;
        let wanted = addresses.filter(|address| address.is_ipv4() == wants_v4);
        let distinct = each_once(wanted);
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

    /// SRV records of endpoints, of equal weight, and, as far as there is room, the addresses of their names.
    fn srv<P>(&self, writer: &mut Writer<'_, '_>, targets: &Targets<'t, P>)
    where
        P: Iterator<Item = usize> + Clone,
    {
        let weight = weight(targets.pairs());
        let mut at = writer.position();
        for target in targets.distinct(self.shape.rotation) {
            if !self.srv_record(writer, weight, target.port, Some(target.endpoint)) {
                return;
            }
        }
        for target in targets.distinct(self.shape.rotation) {
            // What it leads to was written above, one record for each.
            let Some((name_at, next)) = srv_target_at(writer, at) else {
                return;
            };
            at = next;
            let addresses = target
                .has_addresses
                .then(|| targets.addresses(target.endpoint.place));
            for address in addresses.into_iter().flatten() {
                if !writer.address(Section::Additional, Owner::At(name_at), address, self.options.ttl) {
                    return;
                }
            }
        }
    }

    /// SRV records of a Service's own name, and its addresses.
    fn own_srv<'p>(
        &self,
        writer: &mut Writer<'_, '_>,
        addresses: &[IpAddr],
        ports: impl Iterator<Item = Port<'p>> + Clone,
    ) {
        let weight = weight(ports.clone().count() * addresses.len());
        let first_at = writer.position();
        for (index, port) in ports.clone().enumerate() {
            let is_told = ports.clone().take(index).any(|told| told.number == port.number);
            if !addresses.is_empty() && !is_told && !self.srv_record(writer, weight, port.number, None) {
                return;
            }
        }
        let Some((name_at, _)) = srv_target_at(writer, first_at) else {
            return;
        };
        let first = self.shape.rotation % addresses.len().max(1);
        for address in addresses[first..].iter().chain(&addresses[..first]) {
            if !writer.address(
                Section::Additional,
                Owner::At(name_at),
                *address,
                self.options.ttl,
            ) {
                return;
            }
        }
    }

    /// Whether it fitted. The target is written out: RFC 2782 forbids compressing it. It is
    /// `service.namespace.svc.ZONE`, with the endpoint's label in front where there is one. The zone's labels in front
    /// of the question are the Service's: `_port._protocol` and endpoints' labels are cut off.
    fn srv_record(
        &self,
        writer: &mut Writer<'_, '_>,
        weight: u16,
        port: u16,
        endpoint: Option<Endpoint<'_>>,
    ) -> bool {
        writer.record(
            Section::Answer,
            Owner::QUESTION,
            rtype::SRV,
            self.options.ttl,
            |out| {
                for word in [0, weight, port] {
                    out.extend_from_slice(&word.to_be_bytes());
                }
                if let Some(endpoint) = endpoint {
                    endpoint.put_label(self.options.endpoint_names, out);
                }
                out.extend_from_slice(self.query.suffix(self.before - 3));
            },
        )
    }

    /// The names of the Services that lead to this machine, as they answer themselves; where there is none, `ns.dns`.
    fn name_servers(&self, writer: &mut Writer<'_, '_>) {
        let zone = Name::from_lower_wire(self.query.suffix(self.before));
        let names = self.options.endpoint_names;
        let mut servers: Vec<(Vec<u8>, Vec<IpAddr>)> = Vec::new();
        for address in self.reachable_addresses() {
            for owner in self.table.reversed(address) {
                let mut name = Vec::new();
                if owner.records.kind == Kind::ClusterIp {
                    put_name(None, &owner, &zone, &mut name);
                    add_server(&mut servers, name, owner.records.addresses());
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
    endpoint: Option<(Endpoint<'_>, EndpointNames)>,
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

/// 100 divided by address and port pairs, as in CoreDNS.
fn weight(pairs: usize) -> u16 {
    (100 / pairs.max(1)).max(1) as u16
}

/// Where the target of the SRV record at `at` stands, and where the next record starts.
fn srv_target_at(writer: &Writer<'_, '_>, at: usize) -> Option<(usize, usize)> {
    let (record, next) = Record::read(writer.written(), at)?;
    Some((record.data_at + 6, next))
}

/// Endpoints, and those of their ports that SRV records tell. Going through them allocates nothing.
struct Targets<'t, P> {
    records: &'t ServiceRecords,
    /// Where they stand in the Service's list, those of one name in its order.
    places: P,
    /// Only this port.
    port: Option<PortName<'t>>,
    names: EndpointNames,
}

/// One SRV record to be.
struct Target<'t> {
    endpoint: Endpoint<'t>,
    port: u16,
    /// Its name's addresses are told with this one of the name's records.
    has_addresses: bool,
}

impl<'t, P> Targets<'t, P>
where
    P: Iterator<Item = usize> + Clone,
{
    fn of(records: &'t ServiceRecords, places: P, port: Option<PortName<'t>>, names: EndpointNames) -> Self {
        Self {
            records,
            places,
            port,
            names,
        }
    }

    /// How many endpoints' ports there are.
    fn pairs(&self) -> usize {
        let ports = self.places.clone().map(|place| self.ports(place).count());
        ports.sum()
    }

    fn ports(&self, place: usize) -> impl Iterator<Item = Port<'t>> + Clone {
        let port = self.port;
        let ports = self.records.endpoint(place).ports();
        ports.filter(move |own| port.is_none_or(|port| own.is(port.name, port.protocol)))
    }

    fn serves(&self, place: usize, number: u16) -> bool {
        self.ports(place).any(|port| port.number == number)
    }

    /// Each name with each port once, the endpoint at `rotation` first. What several endpoints of a name have is told
    /// with the first of them.
    fn distinct(&self, rotation: usize) -> impl Iterator<Item = Target<'t>> {
        let first = rotation % self.places.clone().count().max(1);
        let order = self
            .places
            .clone()
            .skip(first)
            .chain(self.places.clone().take(first));
        order.flat_map(move |place| {
            let endpoint = self.records.endpoint(place);
            let namesakes = self.records.namesakes(place, self.names).places();
            let elders = namesakes.take_while(move |elder| *elder < place);
            let has_elder = elders.clone().any(|elder| self.ports(elder).next().is_some());
            let told = self.ports(place).enumerate().filter(move |(index, port)| {
                let is_told = self
                    .ports(place)
                    .take(*index)
                    .any(|told| told.number == port.number);
                !is_told && !elders.clone().any(|elder| self.serves(elder, port.number))
            });
            told.map(move |(index, port)| Target {
                endpoint,
                port: port.number,
                has_addresses: index == 0 && !has_elder,
            })
        })
    }

    /// The addresses of the name of the endpoint at `place`.
    fn addresses(&self, place: usize) -> impl Iterator<Item = IpAddr> {
        let namesakes = self.records.namesakes(place, self.names).places();
        let serving = namesakes.filter(|place| self.ports(*place).next().is_some());
        each_once(serving.map(|place| self.records.endpoint(place).address()))
    }
}

/// Each of the addresses once; equal ones stand together.
fn each_once(addresses: impl Iterator<Item = IpAddr> + Clone) -> impl Iterator<Item = IpAddr> + Clone {
    let new = addresses.scan(None, |last, address| {
        let is_new = last.replace(address) != Some(address);
        Some(is_new.then_some(address))
    });
    new.flatten()
}

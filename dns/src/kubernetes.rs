//! The `kubernetes` plugin: answers the cluster zone and reverse zones from a [`Table`], by the Kubernetes DNS
//! specification 1.1.0 and, where that is silent, as CoreDNS does.
//!
//! Four answers differ from CoreDNS on purpose, because its NXDOMAIN there denies names that exist (RFC 8020 §2,
//! RFC 2308 §2): `_tcp.service` above its ports, `namespace.svc TXT` in an empty namespace, `dns-version A`, and
//! `0.10.in-addr.arpa` above the addresses that lead back to names.

mod explain;
mod objects;
mod records;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::answer::{Writer, code_only};
use crate::name::Name;
use crate::question::{Query, rcode, rtype};
use crate::zone::grammar::{protocol, reversed_address};
use crate::zone::{
    Asked, Called, EndpointNames, Kind, PortName, Reversed, ServiceRecords, Table, address_of_pod_label,
    addresses_below,
};

pub use objects::{Access, Agent, ApiServer, Objects, TlsFiles};

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
    /// Which namespaces have names. Default: all.
    pub exposed: Exposed,
    /// Whether endpoints have names, and headless Services with them. Default yes; `noendpoints` says no.
    pub endpoints: bool,
    /// Whether a Service with an address has a name while it has no ready endpoint. Default yes;
    /// `ignore empty_service` says no.
    pub empty_services: bool,
    /// Where the cluster's objects come from.
    pub objects: Objects,
    /// The directory where the last good snapshot is kept. Default: that of the agent's socket.
    pub state: PathBuf,
    /// How long the server waits at its start for an API server to tell everything, while the kernel keeps what
    /// clients ask. Default 5 s.
    pub startup_timeout: Duration,
}

impl Options {
    /// The defaults, for these zones.
    #[must_use]
    pub fn new(zones: Vec<Name>) -> Self {
        Self {
            zones,
            ttl: 5,
            pods: PodMode::default(),
            fallthrough: Fallthrough::default(),
            endpoint_names: EndpointNames::Dashed,
            exposed: Exposed::default(),
            endpoints: true,
            empty_services: true,
            objects: Objects::Api(ApiServer::default()),
            state: PathBuf::new(),
            startup_timeout: Duration::from_secs(5),
        }
    }
}

/// The namespaces in which names exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Exposed {
    /// All.
    #[default]
    All,
    /// These, in lower case (`namespaces`).
    Named(BTreeSet<Box<[u8]>>),
    /// Those whose Namespace object the API server lists for us (`namespace_labels`).
    Listed,
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
    ServicePort(&'t ServiceRecords, PortName<'t>),
    /// Endpoints by name.
    Endpoints(Called<'t>),
    /// Endpoints that serve a port of a headless Service.
    EndpointPort(&'t ServiceRecords, PortName<'t>),
    Pod(IpAddr),
    Alias(&'t Name),
    /// An address that leads back to names.
    Pointer(IpAddr),
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
    /// The file of the last good snapshot.
    #[must_use]
    pub fn snapshot_file(&self) -> PathBuf {
        self.state
            .join(self.objects.file_stem())
            .with_extension("snapshot")
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
        match Asked::of(self.query, self.before) {
            Asked::Apex => Found::Apex,
            Asked::DnsVersion => Found::Version,
            Asked::NameServer => Found::NameServer,
            Asked::KindRoot | Asked::NameServerParent => Found::Empty,
            Asked::ServiceNamespace(namespace) => empty_if(self.has_namespace(namespace)),
            Asked::PodNamespace(namespace) => {
                empty_if(self.options.pods != PodMode::Disabled && self.has_namespace(namespace))
            }
            Asked::Pod { namespace, label } => self.find_pod(namespace, label),
            Asked::Service { namespace, service } => match self.service(namespace, service) {
                Some(records) => records.alias().map_or(Found::Service(records), Found::Alias),
                None => Found::Missing,
            },
            Asked::Below {
                namespace,
                service,
                label,
            } => match self.service(namespace, service) {
                Some(records) => self.find_below(records, label),
                None => Found::Missing,
            },
            Asked::Port {
                namespace,
                service,
                port,
            } => match self.service(namespace, service) {
                Some(records) => find_port(records, port),
                None => Found::Missing,
            },
            Asked::Unknown => Found::Missing,
        }
    }

    fn has_namespace(&self, namespace: &[u8]) -> bool {
        match &self.options.exposed {
            Exposed::All => self.table.has_namespace(namespace),
            Exposed::Named(names) => names.contains(namespace) && self.table.has_namespace(namespace),
            Exposed::Listed => self.table.lists_namespace(namespace),
        }
    }

    /// A Service that has names.
    fn service(&self, namespace: &[u8], service: &[u8]) -> Option<&'t ServiceRecords> {
        let records = self.table.service(namespace, service);
        records.filter(|records| self.has_names(records) && self.has_namespace(namespace))
    }

    fn has_names(&self, records: &ServiceRecords) -> bool {
        match records.kind {
            Kind::ClusterIp => self.options.empty_services || records.endpoint_count() > 0,
            Kind::Headless => self.options.endpoints && records.exists(),
            Kind::Alias | Kind::Nothing => records.exists(),
        }
    }

    fn find_pod(&self, namespace: &[u8], label: &[u8]) -> Found<'t> {
        let Some(address) = address_of_pod_label(label) else {
            return Found::Missing;
        };
        let known = match self.options.pods {
            PodMode::Disabled => false,
            PodMode::Insecure => self.has_namespace(namespace),
            PodMode::Verified => self.has_namespace(namespace) && self.table.has_pod(namespace, address),
        };
        match known {
            true => Found::Pod(address),
            false if self.options.pods == PodMode::Verified && !self.table.pods_synced => Found::Undecided,
            false => Found::Missing,
        }
    }

    fn find_below(&self, records: &'t ServiceRecords, label: &'t [u8]) -> Found<'t> {
        let called = records.endpoints_called(label, self.options.endpoint_names);
        if self.options.endpoints && called.iter().next().is_some() {
            return Found::Endpoints(called);
        }
        let protocol = protocol(label);
        empty_if(protocol.is_some_and(|protocol| records.has_named_port(protocol)))
    }

    fn find_reverse(&self) -> Found<'t> {
        let Some(address) = reversed_address(self.query) else {
            let below = addresses_below(self.query);
            return empty_if(below.is_some_and(|range| self.table.any_reversed(&range)));
        };
        if self.reversed(address).next().is_some() {
            Found::Pointer(address)
        } else {
            Found::Missing
        }
    }

    /// The Services to whose names the address leads back.
    fn reversed(&self, address: IpAddr) -> impl Iterator<Item = Reversed<'t>> {
        let found = self.table.reversed(address);
        found.filter(|owner| {
            let is_shown = self.options.endpoints || !owner.is_endpoint;
            is_shown && self.has_namespace(owner.namespace)
        })
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
}

fn empty_if<'t>(exists: bool) -> Found<'t> {
    if exists { Found::Empty } else { Found::Missing }
}

fn find_port<'t>(records: &'t ServiceRecords, port: PortName<'t>) -> Found<'t> {
    match records.kind {
        Kind::ClusterIp if port.of(records.ports()).next().is_some() => Found::ServicePort(records, port),
        Kind::Headless if records.serving(port).next().is_some() => Found::EndpointPort(records, port),
        Kind::ClusterIp | Kind::Headless | Kind::Alias | Kind::Nothing => Found::Missing,
    }
}

#[cfg(test)]
mod tests;

//! One ready endpoint of a Service as DNS sees it: what it is called, and the ports that it serves.

use std::net::IpAddr;

use model::{EndpointPort, EndpointRef, EndpointSlice, Protocol, ServicePort};

use super::dashed::put_dashed;
use super::grammar::PortName;
use super::service::ServiceRecords;
use crate::name::MAX_LABEL;

/// A named port, as in `_http._tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port<'t> {
    /// Empty = the port has no name.
    pub name: &'t str,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

/// A ready endpoint.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'t> {
    pub(super) records: &'t ServiceRecords,
    /// Where it stands in the Service's list.
    pub place: usize,
    pub(super) slice: &'t EndpointSlice,
    pub(super) entry: EndpointRef<'t>,
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

/// A label as it is written, which equals the same one in another case.
#[derive(Clone, Copy, Debug)]
pub struct Label<'t>(pub(super) &'t [u8]);

impl<'t> Label<'t> {
    /// What a text says that is short enough.
    fn of(text: &'t str) -> Option<Self> {
        (1..=MAX_LABEL)
            .contains(&text.len())
            .then_some(Self(text.as_bytes()))
    }

    fn lower(self) -> impl Iterator<Item = u8> {
        self.0.iter().map(u8::to_ascii_lowercase)
    }
}

impl Ord for Label<'_> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.lower().cmp(other.lower())
    }
}

impl PartialOrd for Label<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Label<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.0.eq_ignore_ascii_case(other.0)
    }
}

impl Eq for Label<'_> {}

impl PortName<'_> {
    /// The ports with this name.
    pub fn of<'p>(
        self,
        ports: impl Iterator<Item = Port<'p>> + Clone,
    ) -> impl Iterator<Item = Port<'p>> + Clone {
        ports.filter(move |own| own.is(self.name, self.protocol))
    }
}

impl<'t> From<&'t ServicePort> for Port<'t> {
    fn from(port: &'t ServicePort) -> Self {
        Self {
            name: &port.name,
            protocol: port.protocol,
            number: port.port.get(),
        }
    }
}

impl<'t> From<&'t EndpointPort> for Port<'t> {
    fn from(port: &'t EndpointPort) -> Self {
        Self {
            name: &port.name,
            protocol: port.protocol,
            number: port.port.get(),
        }
    }
}

impl Port<'_> {
    /// Whether this is the port that `_name._protocol` asks for.
    #[must_use]
    pub fn is(&self, name: &[u8], protocol: Protocol) -> bool {
        let own = self.name.as_bytes();
        self.protocol == protocol && !own.is_empty() && own.eq_ignore_ascii_case(name)
    }
}

impl<'t> Endpoint<'t> {
    /// Its address.
    #[must_use]
    pub fn address(self) -> IpAddr {
        self.entry.address
    }

    /// The ports that it serves, each once.
    pub fn ports(self) -> impl Iterator<Item = Port<'t>> + Clone {
        let again = self.records.slices_again(self.place);
        let slices = std::iter::once(self.slice).chain(again);
        slices.clone().enumerate().flat_map(move |(nth, slice)| {
            let before = slices.clone().take(nth);
            let ports = slice.ports.iter();
            let fresh = ports.filter(move |port| !before.clone().any(|slice| slice.ports.contains(port)));
            fresh.map(Port::from)
        })
    }

    pub(super) fn hostname(self) -> Option<Label<'t>> {
        identity(self.entry).1
    }

    /// The pod's name, where no hostname goes before it.
    pub(super) fn pod_name(self) -> Option<Label<'t>> {
        let (_, hostname, pod) = identity(self.entry);
        pod.filter(|_| hostname.is_none())
    }

    /// Name of its pod, where that is known.
    #[must_use]
    pub fn pod(self) -> Option<&'t str> {
        self.entry.pod
    }

    /// What it is called, where that is not its address.
    #[must_use]
    pub fn own_name(self, names: EndpointNames) -> Option<Label<'t>> {
        match names {
            EndpointNames::Dashed => self.hostname(),
            EndpointNames::Pod => self.hostname().or(self.pod_name()),
        }
    }

    /// Writes the first label of its name in wire form, lower case.
    pub fn put_label(self, names: EndpointNames, out: &mut Vec<u8>) {
        match self.own_name(names) {
            Some(name) => {
                out.push(name.0.len() as u8);
                out.extend(name.lower());
            }
            None => put_dashed(self.address(), out),
        }
    }
}

/// What is the same of an endpoint in whatever slice it stands: address, hostname and pod, as far as they are labels.
pub(super) fn identity(endpoint: EndpointRef<'_>) -> (IpAddr, Option<Label<'_>>, Option<Label<'_>>) {
    let hostname = endpoint.hostname().and_then(Label::of);
    let pod = endpoint.pod.and_then(Label::of);
    (endpoint.address, hostname, pod)
}

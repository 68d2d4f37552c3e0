//! What of the cluster a name stands for, or why it stands for nothing, in words.

use std::fmt::Write as _;

use super::{Answer, Exposed, Found, Options, PodMode, Shape};
use crate::name::Name;
use crate::question::Query;
use crate::zone::grammar::reversed_address;
use crate::zone::{Asked, Endpoint, Kind, PortName, Table, address_of_pod_label};

/// Of many endpoints so many are named.
const NAMED: usize = 5;

impl Options {
    /// What the name stands for. `None` = it is in none of the zones.
    #[must_use]
    pub fn explain(&self, table: &Table, query: &Query<'_>) -> Option<String> {
        let (zone, before) = self.zone_of(query)?;
        let answer = Answer {
            options: self,
            table,
            query,
            before,
            shape: Shape {
                limit: 0,
                rotation: 0,
            },
        };
        let is_reverse = before > 0 && zone.is_reverse();
        let (found, mut text) = if is_reverse {
            let found = answer.find_reverse();
            let text = answer.describe_reversed(&found);
            (found, text)
        } else {
            let found = answer.find();
            let text = match &found {
                Found::Missing => answer.reason(),
                found => answer.describe(found),
            };
            (found, text)
        };
        if matches!(found, Found::Missing | Found::Undecided) && !table.synced {
            text.push_str("; not all objects are known yet");
        }
        if matches!(found, Found::Missing) && self.fallthrough.covers(query) {
            text.push_str("; the query falls through to the next plugin");
        }
        Some(text)
    }
}

impl Answer<'_, '_> {
    fn describe(&self, found: &Found<'_>) -> String {
        let service = || match Asked::of(self.query, self.before) {
            Asked::Service { namespace, service }
            | Asked::Below {
                namespace, service, ..
            }
            | Asked::Port {
                namespace, service, ..
            } => named(namespace, service),
            _ => String::new(),
        };
        match found {
            Found::Missing | Found::Undecided => "not known".to_owned(),
            Found::Empty => "holds only other names".to_owned(),
            Found::Apex => "the zone itself".to_owned(),
            Found::Version => "the version of the specification".to_owned(),
            Found::NameServer => "this server's own addresses".to_owned(),
            Found::Service(records) => match records.kind {
                Kind::ClusterIp => format!("{} with {}", service(), list(records.addresses())),
                _ => format!("headless {}: {}", service(), endpoints(records.endpoints())),
            },
            Found::ServicePort(records, port) => {
                let ports: Vec<u16> = port.of(records.ports()).map(|port| port.number).collect();
                let addresses = list(records.addresses());
                format!("port {} of {} with {addresses}", list(&ports), service())
            }
            Found::Endpoints(called) => format!("{} of {}", endpoints(called.iter()), service()),
            Found::EndpointPort(records, port) => {
                format!("{} of {}", endpoints(records.serving(*port)), service())
            }
            Found::Pod(address) if self.options.pods == PodMode::Insecure => {
                format!("{address}, as every address in a namespace that exists (pods insecure)")
            }
            Found::Pod(address) => format!("a pod with {address}"),
            Found::Alias(target) => format!("{}, an ExternalName for {target}", service()),
            Found::Pointer(address) => {
                let mut names = Vec::new();
                self.pointers(*address, |write_name| {
                    let mut name = Vec::new();
                    write_name(&mut name);
                    names.push(Name::from_lower_wire(&name).to_string());
                });
                list(&names)
            }
        }
    }

    fn describe_reversed(&self, found: &Found<'_>) -> String {
        match (found, reversed_address(self.query)) {
            (Found::Missing, Some(address)) => format!("no Service and no ready endpoint has {address}"),
            (Found::Missing, None) => "spells no address, and stands above none that is known".to_owned(),
            (Found::Pointer(_), Some(address)) => format!("{address} is {}", self.describe(found)),
            _ => self.describe(found),
        }
    }

    /// Why a name does not exist.
    fn reason(&self) -> String {
        match Asked::of(self.query, self.before) {
            Asked::ServiceNamespace(namespace) | Asked::PodNamespace(namespace)
                if !self.has_namespace(namespace) =>
            {
                self.no_namespace(namespace)
            }
            Asked::PodNamespace(_) => "pods have no names (pods disabled)".to_owned(),
            Asked::Pod { namespace, label } => self.no_pod(namespace, label),
            Asked::Service { namespace, service } => self.no_service(namespace, service),
            Asked::Below {
                namespace,
                service,
                label,
            } => match self.service(namespace, service) {
                None => self.no_service(namespace, service),
                Some(_) => format!(
                    "{} has no ready endpoint that is called {:?}",
                    named(namespace, service),
                    text(label)
                ),
            },
            Asked::Port {
                namespace,
                service,
                port,
            } => match self.service(namespace, service) {
                None => self.no_service(namespace, service),
                Some(_) => format!("{} has no port {}", named(namespace, service), port_name(port)),
            },
            _ => "not a name of the specification".to_owned(),
        }
    }

    fn no_namespace(&self, namespace: &[u8]) -> String {
        let name = text(namespace);
        match (&self.options.exposed, self.table.has_namespace(namespace)) {
            (Exposed::All, _) | (_, false) => format!("there is no namespace {name:?}"),
            (Exposed::Named(_), true) => format!("the namespace {name:?} is not among those that have names"),
            (Exposed::Listed, true) => format!("the namespace {name:?} does not match namespace_labels"),
        }
    }

    fn no_service(&self, namespace: &[u8], service: &[u8]) -> String {
        if !self.has_namespace(namespace) {
            return self.no_namespace(namespace);
        }
        let name = named(namespace, service);
        match self.table.service(namespace, service).map(|records| records.kind) {
            None => format!("there is no {name}"),
            Some(Kind::Headless) if !self.options.endpoints => {
                format!("headless {name}, which has no names (noendpoints)")
            }
            Some(Kind::Headless) => format!("headless {name} has no ready endpoint"),
            Some(Kind::ClusterIp) => format!("{name} has no ready endpoint (ignore empty_service)"),
            Some(Kind::Nothing) => format!("{name} has an externalName that is no name"),
            Some(Kind::Alias) => format!("nothing is below the alias {name}"),
        }
    }

    fn no_pod(&self, namespace: &[u8], label: &[u8]) -> String {
        if self.options.pods == PodMode::Disabled {
            return "pods have no names (pods disabled)".to_owned();
        }
        if !self.has_namespace(namespace) {
            return self.no_namespace(namespace);
        }
        match address_of_pod_label(label) {
            None => format!("{:?} spells no address", text(label)),
            Some(address) => format!("no running pod of {:?} has {address}", text(namespace)),
        }
    }
}

fn text(label: &[u8]) -> String {
    String::from_utf8_lossy(label).into_owned()
}

fn named(namespace: &[u8], service: &[u8]) -> String {
    format!("Service {}/{}", text(namespace), text(service))
}

fn port_name(port: PortName<'_>) -> String {
    let protocol = port.protocol.to_string().to_ascii_lowercase();
    format!("_{}._{protocol}", text(port.name))
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    if items.is_empty() {
        return "no address yet".to_owned();
    }
    items.join(", ")
}

/// `endpoints 10.244.1.5 (pod web-0), 10.244.2.7 and 3 more`.
fn endpoints<'e>(mut endpoints: impl Iterator<Item = Endpoint<'e>>) -> String {
    let one = |endpoint: Endpoint<'_>| -> String {
        let address = endpoint.address();
        match endpoint.pod() {
            Some(pod) => format!("{address} (pod {pod})"),
            None => address.to_string(),
        }
    };
    let first: Vec<String> = endpoints.by_ref().take(NAMED).map(one).collect();
    let mut text = format!("endpoints {}", first.join(", "));
    let more = endpoints.count();
    if more > 0 {
        let _infallible = write!(text, " and {more} more");
    }
    text
}

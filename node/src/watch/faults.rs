//! What is wrong with an object from the API, field by field.
//!
//! The API server validates what it stores, but EndpointSlices are written by anyone with the right to, older
//! servers validated less, and a data plane must not take over an address that is not a pod's. So every text that
//! becomes an address, port or protocol is read here, and what cannot be used is left out alone and told.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;

use ipnetwork::IpNetwork;
use model::{Kind, ObjectName, Protocol};

/// A part of an object that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Kind of the object.
    pub kind: Kind,
    /// The object. The namespace is empty for kinds that have none.
    pub object: ObjectName,
    /// Path of the field, for example `spec.ports[1].port`; empty when the whole object is not used.
    pub field: String,
    /// Why, for example `70000 is not a port number (1 to 65535)`.
    pub reason: String,
}

impl Rejected {
    /// The object's kind and name. A name is refused for its characters too: none of them may reach a terminal.
    #[must_use]
    pub fn object_text(&self) -> String {
        let ObjectName { namespace, name } = &self.object;
        let kind = self.kind.name();
        let name = name.escape_debug();
        if namespace.is_empty() {
            format!("{kind} {name}")
        } else {
            format!("{kind} {}/{name}", namespace.escape_debug())
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.object_text())?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.reason)
    }
}

/// Collects what is wrong with one object while it is converted.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// Reasons by the field that they are about, in order of appearance.
    found: Vec<(String, String)>,
}

impl Faults {
    /// Notes a fault.
    pub(super) fn add(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.found.push((field.into(), reason.into()));
    }

    /// The faults of `object`, complete.
    pub(super) fn into_rejected(self, kind: Kind, object: &ObjectName) -> Vec<Rejected> {
        let rejected = |(field, reason)| Rejected {
            kind,
            object: object.clone(),
            field,
            reason,
        };
        self.found.into_iter().map(rejected).collect()
    }

    /// Any address in its canonical text. Leading zeros are refused: readers disagree whether they mean octal
    /// (KEP-4858).
    pub(super) fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let Ok(address) = text.parse::<IpAddr>() else {
            self.add(field, format!("{text:?} is not an IP address"));
            return None;
        };
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            self.add(field, format!("{address} is an IPv4-mapped IPv6 address"));
            return None;
        }
        Some(address)
    }

    /// An address that traffic may be sent to on behalf of others. The node's own loopback, link-local, multicast
    /// and unspecified addresses are refused, as `ValidateEndpointIP` and `ValidateNonSpecialIP` of the API server
    /// do: else whoever may write an object could reach services that listen on the node for the node alone.
    pub(super) fn reachable_address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        let address = self.address(field, text)?;
        let special = match address {
            _ if address.is_unspecified() => "the unspecified address",
            _ if address.is_loopback() => "a loopback address",
            _ if address.is_multicast() => "a multicast address",
            IpAddr::V4(v4) if v4.is_link_local() => "a link-local address",
            IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
            IpAddr::V6(v6) if v6.is_unicast_link_local() => "a link-local address",
            _ => return Some(address),
        };
        self.add(field, format!("{address} is {special}"));
        None
    }

    /// A network. Spaces around it are allowed, as the API server does for `loadBalancerSourceRanges`.
    pub(super) fn network(&mut self, field: &str, text: &str) -> Option<IpNetwork> {
        let network = text.trim();
        let parsed = if network.contains('/') {
            network.parse().ok()
        } else {
            None
        };
        if parsed.is_none() {
            self.add(field, format!("{text:?} is not a network like 10.0.0.0/8"));
        }
        parsed
    }

    /// A port number, 1 to 65535.
    pub(super) fn port(&mut self, field: &str, number: i32) -> Option<NonZeroU16> {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        if port.is_none() {
            self.add(field, format!("{number} is not a port number (1 to 65535)"));
        }
        port
    }

    /// A port number where zero and absence both mean that there is none.
    pub(super) fn optional_port(&mut self, field: &str, number: Option<i32>) -> Option<NonZeroU16> {
        match number {
            None | Some(0) => None,
            Some(number) => self.port(field, number),
        }
    }

    /// A protocol. Absent means TCP (`core/v1` ServicePort, `discovery/v1` EndpointPort).
    pub(super) fn protocol(&mut self, field: &str, text: Option<&str>) -> Option<Protocol> {
        match text {
            None | Some("" | "TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some("SCTP") => Some(Protocol::Sctp),
            Some(other) => {
                self.add(field, format!("{other:?} is not TCP, UDP or SCTP"));
                None
            }
        }
    }
}

/// The objects that are not used, or not whole, at this moment.
#[derive(Debug, Default)]
pub(super) struct RejectedObjects {
    by_object: BTreeMap<(Kind, ObjectName), Vec<Rejected>>,
}

impl RejectedObjects {
    /// Takes what is wrong with an object now and returns whether that is news. Each new set of faults is logged
    /// once, and so is their end.
    pub(super) fn update(&mut self, kind: Kind, object: &ObjectName, rejected: Vec<Rejected>) -> bool {
        let key = (kind, object.clone());
        let known = self.by_object.get(&key).map_or(&[][..], Vec::as_slice);
        if known == rejected {
            return false;
        }
        for fault in &rejected {
            tracing::warn!(fault = %fault, "part of an object is not used");
        }
        if rejected.is_empty() {
            tracing::info!(?kind, %object, "object is valid again");
            self.by_object.remove(&key);
        } else {
            self.by_object.insert(key, rejected);
        }
        true
    }

    /// Forgets the objects of a kind that a complete list does not name, and returns whether there were any.
    pub(super) fn retain_listed(&mut self, kind: Kind, listed: &BTreeSet<ObjectName>) -> bool {
        let known = self.by_object.len();
        self.by_object
            .retain(|(of_kind, object), _| *of_kind != kind || listed.contains(object));
        self.by_object.len() != known
    }

    /// Forgets an object that is gone, and returns whether anything was wrong with it.
    pub(super) fn forget(&mut self, kind: Kind, object: &ObjectName) -> bool {
        self.by_object.remove(&(kind, object.clone())).is_some()
    }

    /// Everything that is not used, sorted by object.
    pub(super) fn all(&self) -> Vec<Rejected> {
        self.by_object.values().flatten().cloned().collect()
    }
}

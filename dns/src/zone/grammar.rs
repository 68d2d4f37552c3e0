//! Which thing a name in the cluster zone asks for, by its labels alone.
//!
//! Right to left behind the zone: `svc` or `pod`, namespace, service, then nothing, an endpoint, or protocol and port.

use std::net::IpAddr;

use model::Protocol;

use crate::question::Query;

/// What a name in the zone stands for, if it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'q> {
    /// The zone itself.
    Apex,
    /// `dns-version`.
    DnsVersion,
    /// `dns`: holds nothing but `ns.dns`.
    NameServerParent,
    /// `ns.dns`, the zone's name server as its SOA record calls it.
    NameServer,
    /// `svc` or `pod`.
    KindRoot,
    /// `namespace.svc`.
    ServiceNamespace(&'q [u8]),
    /// `namespace.pod`.
    PodNamespace(&'q [u8]),
    /// `address.namespace.pod`.
    Pod {
        /// The namespace.
        namespace: &'q [u8],
        /// The address with dashes.
        label: &'q [u8],
    },
    /// `service.namespace.svc`.
    Service {
        /// The namespace.
        namespace: &'q [u8],
        /// The Service.
        service: &'q [u8],
    },
    /// `label.service.namespace.svc`: an endpoint, or `_tcp`, which only holds names.
    Below {
        /// The namespace.
        namespace: &'q [u8],
        /// The Service.
        service: &'q [u8],
        /// The first label.
        label: &'q [u8],
    },
    /// `_port._protocol.service.namespace.svc`.
    Port {
        /// The namespace.
        namespace: &'q [u8],
        /// The Service.
        service: &'q [u8],
        /// Port and protocol.
        port: PortName<'q>,
    },
    /// Nothing that the specification knows.
    Unknown,
}

/// `_http._tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortName<'q> {
    /// The port's name.
    pub name: &'q [u8],
    /// The protocol.
    pub protocol: Protocol,
}

impl<'q> Asked<'q> {
    /// Reads the labels in front of the zone, of which there are `before`.
    #[must_use]
    pub fn of(query: &'q Query<'_>, before: usize) -> Self {
        let label = |from_right: usize| query.label(before - from_right);
        match before {
            0 => return Self::Apex,
            1 => {
                return match label(1) {
                    b"svc" | b"pod" => Self::KindRoot,
                    b"dns-version" => Self::DnsVersion,
                    b"dns" => Self::NameServerParent,
                    _ => Self::Unknown,
                };
            }
            2 if label(1) == b"dns" && label(2) == b"ns" => return Self::NameServer,
            _ => {}
        }
        let namespace = label(2);
        match (label(1), before) {
            (b"svc", 2) => Self::ServiceNamespace(namespace),
            (b"svc", 3) => Self::Service {
                namespace,
                service: label(3),
            },
            (b"svc", 4) => Self::Below {
                namespace,
                service: label(3),
                label: label(4),
            },
            (b"svc", 5) => match protocol(label(4)) {
                Some(protocol) => {
                    let port = PortName {
                        name: without_underscore(label(5)),
                        protocol,
                    };
                    Self::Port {
                        namespace,
                        service: label(3),
                        port,
                    }
                }
                None => Self::Unknown,
            },
            (b"pod", 2) => Self::PodNamespace(namespace),
            (b"pod", 3) => Self::Pod {
                namespace,
                label: label(3),
            },
            _ => Self::Unknown,
        }
    }
}

/// The protocol that a label names; the underscore may be missing, as with CoreDNS.
#[must_use]
pub fn protocol(label: &[u8]) -> Option<Protocol> {
    match without_underscore(label) {
        b"tcp" => Some(Protocol::Tcp),
        b"udp" => Some(Protocol::Udp),
        b"sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

fn without_underscore(label: &[u8]) -> &[u8] {
    label.strip_prefix(b"_").unwrap_or(label)
}

/// The address that a name in `in-addr.arpa` or `ip6.arpa` spells in full.
#[must_use]
pub fn reversed_address(query: &Query<'_>) -> Option<IpAddr> {
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
pub(super) fn plain_number(label: &[u8]) -> Option<u8> {
    let is_plain = label.iter().all(u8::is_ascii_digit) && (label.len() == 1 || !label.starts_with(b"0"));
    let text = std::str::from_utf8(label).ok().filter(|_| is_plain)?;
    text.parse().ok()
}

pub(super) fn nibble(label: &[u8]) -> Option<u8> {
    match label {
        [digit] => char::from(*digit).to_digit(16).map(|digit| digit as u8),
        _ => None,
    }
}

//! Who sends, and to whom, as people write it for `causeway trace` and `causeway explain`: `SRC -> DST[:PORT][/PROTO]`,
//! `SRC to DST…` or `SRC DST…`.
//!
//! An end is `pod/NAME`, `pod/NAMESPACE/NAME`, `svc/NAME`, `svc/NAMESPACE/NAME`, `svc/NAME.NAMESPACE`, `node/NAME`, an
//! address, a DNS name, a `NAME` or `NAME.NAMESPACE` that one object alone bears, or `any`; without a namespace that of
//! `--namespace` is meant, else `default`. [`Ends`] knows the form alone.
//!
//! - [`meant`]: whom an end means: where commands that look at packets look names up.
//! - [`agents`]: what agents of this machine are asked.
//! - [`pods`]: what they have written down, so that nobody need answer for that.
//! - [`known`]: what addresses and network namespaces are called while packets are looked at.
//! - [`nearest`]: what may have been meant by a name that names nothing.

pub mod agents;
pub mod known;
pub mod meant;
pub mod nearest;
pub mod pods;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;

use model::ObjectName;
use trace::hop::Protocol;

/// The namespace of names that have none.
pub const NAMESPACE: &str = "default";

/// Why a text is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormError {
    /// There are not two ends.
    #[error("{0:?}: say who sends and to whom, as in: pod/client pod/server:8080/tcp")]
    Both(String),
    /// The sender has a port or a protocol.
    #[error("{0:?} sends: port and protocol stand behind the one to whom it sends")]
    Sender(String),
    /// It has no form that is known.
    #[error(
        "{0:?} is no pod/NAME, pod/NAMESPACE/NAME, svc/NAME:PORT, node/NAME, NAME, address, DNS name, or any"
    )]
    Form(String),
    /// Where the port begins cannot be told.
    #[error(
        "{0:?}: an address of IPv6 with a port is written [ADDRESS]:PORT, and brackets stand nowhere else"
    )]
    Brackets(String),
    /// It is no number, and only ports of Services have names.
    #[error(
        "{port:?} in {end:?} is no port: a number from 1 to 65535 is one, or the name of a Service's port"
    )]
    Port {
        /// As it was written.
        port: String,
        /// All of the end.
        end: String,
    },
    /// The protocol knows no ports.
    #[error("{end:?}: {protocol} has no ports")]
    NoPorts {
        /// All of the end.
        end: String,
        /// Which.
        protocol: Protocol,
    },
}

/// Both ends. Displays in a form that reads back as the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Who sends.
    pub source: Subject,
    /// To whom.
    pub destination: Name,
}

/// An end with what stands behind it. Displays in a form that reads back as the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Whom it speaks of.
    pub subject: Subject,
    /// The port, where one was written. It has a name only where the subject is a Service.
    pub port: Option<Port>,
    /// The protocol, where one was written.
    pub protocol: Option<Protocol>,
}

/// Whom an end speaks of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Anybody.
    Any,
    /// A pod.
    Pod(ObjectName),
    /// A Service.
    Service(ObjectName),
    /// A node.
    Node(String),
    /// An address.
    Address(IpAddr),
    /// A name without a kind: of the one object that bears it, else one that a resolver knows.
    Dns(String),
}

/// A port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// By number.
    Number(NonZeroU16),
    /// By `name` of a Service's port.
    Name(String),
}

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Pod,
    Service,
    Node,
}

impl Ends {
    /// Reads both ends, whether they are one word for the shell or several. Names without a namespace are of this one.
    ///
    /// # Errors
    /// When there are not two, or one has no form that is known.
    pub fn parse(namespace: &str, words: &[String]) -> Result<Self, FormError> {
        let text = words.join(" ");
        let spaced = text.replace("->", " -> ");
        let (source, destination) = match spaced.split_whitespace().collect::<Vec<_>>().as_slice() {
            [source, "->" | "to", destination] => (*source, *destination),
            [source, destination] if !["->", "to"].contains(destination) => (*source, *destination),
            _ => return Err(FormError::Both(text)),
        };
        let Name {
            subject,
            port: None,
            protocol: None,
        } = Name::parse_in(namespace, source)?
        else {
            return Err(FormError::Sender(source.to_owned()));
        };
        Ok(Self {
            source: subject,
            destination: Name::parse_in(namespace, destination)?,
        })
    }
}

impl Name {
    /// Reads one end.
    ///
    /// # Errors
    /// When it has no form that is known.
    pub fn parse(text: &str) -> Result<Self, FormError> {
        Self::parse_in(NAMESPACE, text)
    }

    /// The same; a name without a namespace is of this one.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_in(namespace: &str, text: &str) -> Result<Self, FormError> {
        let (rest, protocol) = split_protocol(text);
        let (place, port) = split_port(rest).ok_or_else(|| FormError::Brackets(text.to_owned()))?;
        let subject = Subject::parse(namespace, place).ok_or_else(|| FormError::Form(text.to_owned()))?;
        let wrong_port = |port: &str| FormError::Port {
            port: port.to_owned(),
            end: text.to_owned(),
        };
        let port = port
            .map(|port| Port::parse(port, &subject).ok_or_else(|| wrong_port(port)))
            .transpose()?;
        match protocol.filter(|protocol| port.is_some() && !has_ports(*protocol)) {
            Some(protocol) => Err(FormError::NoPorts {
                end: text.to_owned(),
                protocol,
            }),
            None => Ok(Self {
                subject,
                port,
                protocol,
            }),
        }
    }

    /// The port's number, where one was written.
    #[must_use]
    pub fn number(&self) -> Option<NonZeroU16> {
        match self.port {
            Some(Port::Number(number)) => Some(number),
            Some(Port::Name(_)) | None => None,
        }
    }
}

impl Subject {
    fn parse(namespace: &str, text: &str) -> Option<Self> {
        if let Ok(address) = text.parse() {
            return Some(Self::Address(address));
        }
        let words: Vec<&str> = text.split('/').collect();
        if !words.iter().all(|word| is_name(word)) {
            return None;
        }
        let (kind, name) = match words.as_slice() {
            ["any"] => return Some(Self::Any),
            [host] => return dns(namespace, host),
            [kind, name] => match (Kind::named(kind)?, service_named(name)) {
                // A Service's name has no dot of its own (RFC 1035 §2.3.1).
                (Kind::Service, Some(service)) => (Kind::Service, service),
                (Kind::Service, None) if name.contains('.') => return None,
                (kind, _) => (kind, ObjectName::new(namespace, *name)),
            },
            [kind, namespace, name] => (Kind::named(kind)?, ObjectName::new(*namespace, *name)),
            _ => return None,
        };
        match (kind, words.len()) {
            (Kind::Pod, _) => Some(Self::Pod(name)),
            (Kind::Service, _) => Some(Self::Service(name)),
            // Nodes are in no namespace.
            (Kind::Node, 2) => Some(Self::Node(name.name.to_string())),
            (Kind::Node, _) => None,
        }
    }
}

impl Port {
    /// A name has a letter (RFC 6335 §5.1), so that it is not mistaken for a number.
    fn parse(text: &str, subject: &Subject) -> Option<Self> {
        if let Ok(number) = text.parse() {
            return Some(Self::Number(number));
        }
        let is_name = has_letter(text) && is_name(text);
        (is_name && matches!(subject, Subject::Service(_))).then(|| Self::Name(text.to_owned()))
    }
}

impl Kind {
    /// As kubectl calls them, too.
    fn named(text: &str) -> Option<Self> {
        match text {
            "pod" | "pods" | "po" => Some(Self::Pod),
            "svc" | "service" | "services" => Some(Self::Service),
            "node" | "nodes" | "no" => Some(Self::Node),
            _ => None,
        }
    }
}

/// What names of objects, hosts and ports are made of.
fn is_name(word: &str) -> bool {
    let is_part = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '.' | '_');
    !word.is_empty() && word.chars().all(is_part)
}

/// `NAME.NAMESPACE.svc`, with or without the cluster's domain, is a Service. A word is of that namespace; a number, or a
/// kind whose name was forgotten, is none.
fn dns(namespace: &str, host: &str) -> Option<Subject> {
    let labels: Vec<&str> = host.trim_end_matches('.').split('.').collect();
    match labels.as_slice() {
        [_, _, "svc", ..] => service_named(host).map(Subject::Service),
        [word] if Kind::named(word).is_some() || !has_letter(word) => None,
        [word] if namespace != NAMESPACE && *word != "localhost" => {
            Some(Subject::Dns(format!("{word}.{namespace}")))
        }
        _ => Some(Subject::Dns(host.to_owned())),
    }
}

fn has_letter(word: &str) -> bool {
    word.contains(|character: char| character.is_ascii_alphabetic())
}

/// A Service as DNS has it: `NAME.NAMESPACE`, `NAME.NAMESPACE.svc` and what follows.
fn service_named(name: &str) -> Option<ObjectName> {
    let labels: Vec<&str> = name.trim_end_matches('.').split('.').collect();
    match labels.as_slice() {
        [name, namespace] | [name, namespace, "svc", ..] => Some(ObjectName::new(*namespace, *name)),
        _ => None,
    }
}

const fn has_ports(protocol: Protocol) -> bool {
    !matches!(protocol, Protocol::ICMP | Protocol::ICMP_V6)
}

/// Takes `/tcp` from the end, unless it may be a name. Numbers are none of ours here: `10.0.0.0/24` is no address.
fn split_protocol(text: &str) -> (&str, Option<Protocol>) {
    let split = text.rsplit_once('/');
    let is_word = |word: &str| {
        word.chars().all(|character| character.is_ascii_alphanumeric())
            && !word.starts_with(|character: char| character.is_ascii_digit())
    };
    let split = split.filter(|(_, last)| is_word(last));
    match split.and_then(|(rest, last)| Some((rest, Protocol::named(last)?))) {
        Some((rest, protocol)) if !is_cut_short(rest, protocol) => (rest, Some(protocol)),
        _ => (text, None),
    }
}

/// Whether a name is missing at the end, or stands there by what may be a namespace: `pod/shop/udp` is the pod `udp`,
/// `pod/shop:53/udp` and `pod/default/shop/udp` are the pod `shop`. ICMP, which has no ports to tell it by, is no name.
fn is_cut_short(rest: &str, protocol: Protocol) -> bool {
    match rest.split('/').collect::<Vec<_>>().as_slice() {
        [kind] => Kind::named(kind).is_some(),
        [kind, name] => {
            let is_namespaced = matches!(Kind::named(kind), Some(Kind::Pod | Kind::Service));
            is_namespaced && has_ports(protocol) && !name.contains(':')
        }
        _ => false,
    }
}

/// Takes `:80` or `:http` from the end. None where brackets are missing or stand wrong.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        address.parse::<Ipv6Addr>().ok()?;
        return match port {
            "" => Some((address, None)),
            port => Some((address, Some(port.strip_prefix(':')?))),
        };
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some((text, None));
    }
    match text.rsplit_once(':') {
        None => Some((text, None)),
        Some((place, port)) => (!place.contains([':', ']'])).then_some((place, Some(port))),
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} -> {}", self.source, self.destination)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.subject, &self.port) {
            (subject, None) => write!(f, "{subject}")?,
            (Subject::Address(address @ IpAddr::V6(_)), Some(port)) => write!(f, "[{address}]:{port}")?,
            (subject, Some(port)) => write!(f, "{subject}:{port}")?,
        }
        match self.protocol {
            Some(protocol) => write!(f, "/{protocol}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Service(name) => write!(f, "svc/{name}"),
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Address(address) => write!(f, "{address}"),
            Self::Dns(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests;

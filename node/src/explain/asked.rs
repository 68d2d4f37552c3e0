//! What is asked: both ends of a packet, looked up.

use std::net::{IpAddr, ToSocketAddrs};
use std::num::NonZeroU16;

use model::{NodeName, Protocol};

use super::names::{Known, Name, NameError, Place, Subject};
use super::{End, Question};

/// What both ends are, with addresses of one version of IP.
pub(super) struct Ends {
    pub(super) source: End,
    pub(super) destination: End,
    pub(super) protocol: Protocol,
    pub(super) port: Option<NonZeroU16>,
    /// The node that the source is on.
    pub(super) source_node: Option<NodeName>,
}

/// What is asked.
///
/// # Errors
/// When a name names nothing, or several things.
pub(super) fn ends(question: &Question, known: &Known<'_>) -> Result<Ends, NameError> {
    let source = sender(&question.source, known)?;
    let destination = place(&question.destination, known)?;
    let pair = destination.addresses.iter().find_map(|to| {
        let mut from = source.addresses.iter();
        Some((*from.find(|from| from.is_ipv4() == to.is_ipv4())?, *to))
    });
    let Some((from, to)) = pair else {
        return Err(NameError::NotHere {
            name: question.destination.clone(),
            reason: format!(
                "{} and {} have no version of IP in common",
                source.name, destination.name
            ),
        });
    };
    let end = |place: &Place, address| End {
        name: place.name.clone(),
        address,
        port: place.port.map(NonZeroU16::get),
        node: place.node.as_ref().map(ToString::to_string),
    };
    Ok(Ends {
        source: End {
            port: None,
            ..end(&source, from)
        },
        destination: end(&destination, to),
        protocol: destination.protocol.unwrap_or(Protocol::Tcp),
        port: destination.port,
        source_node: source.node,
    })
}

/// Who sends.
fn sender(text: &str, known: &Known<'_>) -> Result<Place, NameError> {
    let name = known.object(Name::parse(text)?)?;
    let is_service = match &name.subject {
        Subject::Service(_) => true,
        Subject::Address(address) => known.service_at(*address, &name).is_some(),
        _ => false,
    };
    if is_service {
        return Err(NameError::NotHere {
            name: text.to_owned(),
            reason: "a Service sends nothing; name a pod, a node or an address".to_owned(),
        });
    }
    place(text, known)
}

/// What a name names; names that are no object's are asked of the node's resolver.
fn place(text: &str, known: &Known<'_>) -> Result<Place, NameError> {
    let name = known.object(Name::parse(text)?)?;
    let Subject::Dns(dns) = &name.subject else {
        return known.destination(&name);
    };
    let not_here = |reason: String| NameError::NotHere {
        name: dns.clone(),
        reason,
    };
    let resolved = (dns.as_str(), 0).to_socket_addrs();
    let resolved = resolved.map_err(|error| {
        not_here(match known.no_object(&name, dns) {
            unknown @ NameError::Unknown { .. } => {
                format!("{unknown}, and the node's resolver says: {error}")
            }
            _ => format!("the node's resolver says: {error}"),
        })
    })?;
    let addresses: Vec<IpAddr> = resolved.map(|address| address.ip()).collect();
    let Some(first) = addresses.first() else {
        return Err(not_here("it has no address".to_owned()));
    };
    let by_address = Name {
        subject: Subject::Address(*first),
        ..name.clone()
    };
    Ok(Place {
        name: format!("name {dns}"),
        addresses,
        ..known.place(&by_address)?
    })
}

//! A Service as an end: which of its endpoints packets went to, and who chose it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::hop::{Hop, HopKind};
use crate::story::Packet;

/// A Service that packets are sent to. Those to its endpoints are meant too: where the socket hook translates, they bear
/// nothing else from the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What it is called, for example `svc/default/web:80`.
    pub name: String,
    /// Where it is asked for; none where it is headless.
    pub frontends: Vec<SocketAddr>,
    /// Who answers.
    pub endpoints: Vec<SocketAddr>,
}

/// Which endpoint it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Choice {
    /// What the Service is called.
    pub name: String,
    /// How many endpoints it has, of the version of IP that it is asked by.
    pub endpoints: usize,
    /// That which was chosen; none where no packet went to one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub endpoint: Option<SocketAddr>,
    /// The Service's own address, where somebody answered there whom no packet was translated for: a node's DNS server.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub itself: Option<SocketAddr>,
    /// Who chose; none where nobody did, or the client itself.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub by: Option<ChosenBy>,
}

/// Who chooses an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ChosenBy {
    /// The client's socket was sent there before a packet existed.
    SocketHook,
    /// Packets are translated on their way.
    PacketRules,
}

impl Service {
    /// What the requests among these packets tell.
    pub(crate) fn choice(&self, packets: &[Packet]) -> Choice {
        let requests = packets.iter().filter(|packet| !packet.is_reply);
        let hops: Vec<&Hop> = requests
            .flat_map(|packet| &packet.hops)
            .map(|step| &step.hop)
            .collect();
        let endpoint = hops.iter().find_map(|hop| self.endpoint(hop));
        // What the node itself sends its rules have translated before it is seen.
        let asked = |hop: &&Hop| {
            let tracked = hop.connection.map(|connection| connection.original.destination);
            tracked.filter(|frontend| self.frontends.contains(frontend))
        };
        let first = hops
            .first()
            .map(|hop| asked(hop).unwrap_or(hop.header.flow.destination));
        let is_asked_for =
            |endpoint: &&SocketAddr| first.is_none_or(|first| first.is_ipv4() == endpoint.is_ipv4());
        let by = endpoint.filter(|_| !self.frontends.is_empty()).map(|endpoint| {
            if first == Some(endpoint) && !self.frontends.contains(&endpoint) {
                ChosenBy::SocketHook
            } else {
                ChosenBy::PacketRules
            }
        });
        // Who refuses what is sent to a Service's address serves nobody there.
        let answers = packets
            .iter()
            .filter(|packet| packet.is_reply && !packet.refuses());
        let first_of_answers = answers.filter_map(|packet| packet.hops.first());
        let mut sources = first_of_answers
            .filter(|step| step.hop.kind == HopKind::Sent)
            .map(|step| step.hop.header.flow.source);
        Choice {
            name: self.name.clone(),
            endpoints: self.endpoints.iter().filter(is_asked_for).count(),
            endpoint,
            itself: match endpoint {
                Some(_) => None,
                None => sources.find(|source| self.frontends.contains(source)),
            },
            by,
        }
    }

    /// The endpoint that a hop shows: the packet goes there, or its connection is answered from there.
    fn endpoint(&self, hop: &Hop) -> Option<SocketAddr> {
        let answering = hop.connection.map(|connection| connection.reply.source);
        let shown = [Some(hop.header.flow.destination), answering];
        shown
            .into_iter()
            .flatten()
            .find(|address| self.endpoints.contains(address))
    }
}

impl std::fmt::Display for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(address) = self.itself {
            return write!(
                f,
                "{} -> answered at {address} itself, and not by an endpoint",
                self.name
            );
        }
        let endpoints = match self.endpoints {
            0 => return write!(f, "{} -> no endpoint", self.name),
            1 => "1 endpoint".to_owned(),
            more => format!("{more} endpoints"),
        };
        match self.endpoint {
            None => write!(f, "{} -> none of {endpoints} seen", self.name)?,
            Some(endpoint) => write!(f, "{} -> 1 of {endpoints}, {endpoint}", self.name)?,
        }
        match self.by {
            Some(ChosenBy::SocketHook) => f.write_str(", by socket hook"),
            Some(ChosenBy::PacketRules) => f.write_str(", by packet rules"),
            None => Ok(()),
        }
    }
}

//! A flow in the words of Hubble (its `flow.proto`), so that what reads those reads these: a record for what was handed
//! on, and one for each way in which packets were dropped. What Hubble has no word for stands beside it.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::Serialize;

use super::{Amount, Lost, Passed};
use crate::drops::text;
use crate::hop::{Protocol, tcp_flags};
use crate::places::{Names, PodName};

/// A flow, or packets of one that were dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When the last packet was seen.
    #[serde(serialize_with = "text")]
    pub time: Timestamp,
    /// What became of the packets.
    pub verdict: Verdict,
    /// The addresses.
    #[serde(rename = "IP")]
    pub ip: Ip,
    /// The ports.
    pub l4: Layer4,
    /// Who sends.
    pub source: End,
    /// Who receives.
    pub destination: End,
    /// `L3_L4`.
    #[serde(rename = "Type")]
    pub kind: &'static str,
    /// This machine.
    pub node_name: String,
    /// The Service whose address the one that began sends to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_service: Option<Object>,
    /// Whether it goes to who began.
    pub is_reply: bool,
    /// The kernel's name for why packets were dropped (not one of Hubble's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_reason_desc: Option<String>,
    /// In a few words.
    #[serde(rename = "Summary")]
    pub summary: String,
    /// The kernel's function that dropped packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_place: Option<String>,
    /// Where that was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drop_netns: Option<String>,
    /// When the first packet was seen.
    #[serde(serialize_with = "text")]
    pub first_time: Timestamp,
    /// How many there were.
    pub packets: u64,
    /// Their bytes from the IP header on.
    pub bytes: u64,
    /// The Service's address that the one that began sends to, where a packet was translated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_address: Option<SocketAddr>,
}

/// What became of packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// They were handed on.
    Forwarded,
    /// They were dropped.
    Dropped,
}

/// The addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "names of Hubble's")]
pub struct Ip {
    pub source: IpAddr,
    pub destination: IpAddr,
    #[serde(rename = "ipVersion")]
    pub version: &'static str,
}

/// What layer 4 says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "names of Hubble's")]
pub enum Layer4 {
    #[serde(rename = "TCP")]
    Tcp {
        source_port: u16,
        destination_port: u16,
        flags: serde_json::Map<String, serde_json::Value>,
    },
    #[serde(rename = "UDP")]
    Udp { source_port: u16, destination_port: u16 },
    #[serde(rename = "ICMPv4")]
    IcmpV4 {},
    #[serde(rename = "ICMPv6")]
    IcmpV6 {},
    #[serde(rename = "SCTP")]
    Sctp {},
    /// A protocol that Hubble has no word for, by its number.
    #[serde(rename = "protocol")]
    Other(u8),
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct End {
    /// The pod's namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// What the network namespace is called, where it was seen and is no pod's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<String>,
}

/// An object of Kubernetes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
}

/// The records of what passed in one direction of a connection; `service` names an address and port of a Service.
#[must_use]
pub fn of(
    passed: &Passed,
    node: &str,
    names: &Names,
    service: impl Fn(SocketAddr, Protocol) -> Option<Object>,
) -> Vec<Record> {
    let Passed { flow, .. } = passed;
    let began_to = passed.service.unwrap_or(if passed.is_reply {
        flow.source
    } else {
        flow.destination
    });
    let forwarded = passed.forwarded();
    let base = Record {
        time: passed.last,
        verdict: Verdict::Forwarded,
        ip: Ip {
            source: flow.source.ip(),
            destination: flow.destination.ip(),
            version: if flow.source.is_ipv4() { "IPv4" } else { "IPv6" },
        },
        l4: layer4(passed),
        source: end(flow.source.ip(), passed.sender, names),
        destination: end(flow.destination.ip(), passed.receiver, names),
        kind: "L3_L4",
        node_name: node.to_owned(),
        destination_service: service(began_to, flow.protocol),
        is_reply: passed.is_reply,
        drop_reason_desc: None,
        summary: summary(passed),
        drop_place: None,
        drop_netns: None,
        first_time: passed.first,
        packets: forwarded.packets,
        bytes: forwarded.bytes,
        service_address: passed.service,
    };
    let dropped = passed.drops.iter().map(|lost| dropped(&base, lost, names));
    let forwarded = (forwarded.packets > 0).then(|| base.clone());
    forwarded.into_iter().chain(dropped).collect()
}

fn dropped(base: &Record, lost: &Lost, names: &Names) -> Record {
    let Amount { packets, bytes } = lost.amount;
    Record {
        time: lost.last,
        verdict: Verdict::Dropped,
        drop_reason_desc: Some(lost.reason.clone()),
        drop_place: Some(lost.place.clone()),
        drop_netns: Some(names.of_netns(lost.netns)),
        packets,
        bytes,
        ..base.clone()
    }
}

fn layer4(passed: &Passed) -> Layer4 {
    let (source_port, destination_port) = (passed.flow.source.port(), passed.flow.destination.port());
    match passed.flow.protocol {
        Protocol::TCP => Layer4::Tcp {
            source_port,
            destination_port,
            flags: tcp_flags(passed.tcp_flags)
                .split(',')
                .filter(|flag| !flag.is_empty())
                .map(|flag| (flag.to_owned(), true.into()))
                .collect(),
        },
        Protocol::UDP => Layer4::Udp {
            source_port,
            destination_port,
        },
        Protocol::ICMP => Layer4::IcmpV4 {},
        Protocol::ICMP_V6 => Layer4::IcmpV6 {},
        Protocol::SCTP => Layer4::Sctp {},
        Protocol(number) => Layer4::Other(number),
    }
}

fn end(address: IpAddr, netns: u32, names: &Names) -> End {
    // A pod's namespace is called by its name; a pod of another machine is known by its address.
    let of_netns = (netns != 0).then(|| names.of_netns(netns));
    let pod = of_netns.as_deref().and_then(PodName::of);
    let pod = pod.or_else(|| PodName::of(names.pods.get(&address)?));
    match pod {
        Some(PodName { namespace, name }) => End {
            namespace: Some(namespace.to_owned()),
            pod_name: Some(name.to_owned()),
            netns: None,
        },
        None => End {
            netns: of_netns,
            ..End::default()
        },
    }
}

fn summary(passed: &Passed) -> String {
    match passed.flow.protocol {
        Protocol::TCP => format!("TCP Flags: {}", tcp_flags(passed.tcp_flags).replace(',', ", ")),
        Protocol::UDP => "UDP".to_owned(),
        Protocol::ICMP => "ICMPv4".to_owned(),
        Protocol::ICMP_V6 => "ICMPv6".to_owned(),
        protocol => protocol.to_string(),
    }
}

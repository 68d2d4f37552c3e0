//! Clusters for the tests, written short: `web(&[…])` and friends.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::IpAddr;
use std::num::NonZeroU16;

use model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Extras, IpFamily, Kind, ObjectName, Protocol,
    Service, ServiceKind, ServicePort, Snapshot,
};
use proxy::plan::{FrontendAddress, FrontendKey, Target};
use proxy::{NodeContext, Settings};

pub const READY: Conditions = Conditions::READY;
pub const UNREADY: Conditions = Conditions {
    ready: false,
    serving: false,
    terminating: false,
};
pub const LEAVING: Conditions = Conditions {
    ready: false,
    serving: true,
    terminating: true,
};
pub const GONE: Conditions = Conditions {
    ready: false,
    serving: false,
    terminating: true,
};

/// What the proxy of the node `here` is told: pods by their networks, everything else by default.
pub fn settings() -> Settings {
    Settings::new(
        "here".into(),
        [network("10.244.0.0/16"), network("fd00:244::/48")],
    )
}

/// The node that plans are for.
pub fn context() -> NodeContext {
    settings().context(None)
}

pub fn network(text: &str) -> ipnetwork::IpNetwork {
    text.parse().expect("a network")
}

pub fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("not zero")
}

pub fn target(text: &str) -> Target {
    let address: std::net::SocketAddr = text.parse().expect("an address and port");
    Target {
        address: address.ip(),
        port: number(address.port()),
    }
}

pub fn vip(address: &str, port: u16, protocol: Protocol) -> FrontendKey {
    FrontendKey {
        address: FrontendAddress::Service(ip(address)),
        port: number(port),
        protocol,
    }
}

pub fn node_port(port: u16, protocol: Protocol) -> FrontendKey {
    let address = FrontendAddress::EveryNodeAddress(model::IpFamily::V4);
    FrontendKey {
        address,
        port: number(port),
        protocol,
    }
}

/// A Service with one port `http` (TCP 80).
pub fn service(service: &str, address: &str) -> Service {
    let kind = ServiceKind::ClusterIp {
        addresses: [ip(address)].into(),
    };
    Service {
        ports: [port("http", Protocol::Tcp, 80, None)].into(),
        ..Service::new(name(service), kind)
    }
}

pub fn port(name: &str, protocol: Protocol, port: u16, node_port: Option<u16>) -> ServicePort {
    ServicePort {
        name: name.into(),
        protocol,
        port: number(port),
        node_port: node_port.map(number),
        app_protocol: None,
    }
}

/// The slice with these hints, in the order of its endpoints.
pub fn with_hints(
    slice: EndpointSlice,
    hints: impl IntoIterator<Item = Option<Box<Extras>>>,
) -> EndpointSlice {
    let endpoints = slice.endpoints.iter().zip(hints);
    EndpointSlice {
        endpoints: endpoints
            .map(|(endpoint, extras)| Endpoint {
                extras,
                ..endpoint.into()
            })
            .collect(),
        ..slice
    }
}

/// A slice of a Service with one port `http` (TCP 8080): addresses, nodes (`here` or others), conditions.
pub fn slice(slice: &str, service: &str, endpoints: &[(&str, &str, Conditions)]) -> EndpointSlice {
    let endpoint = |(address, node, conditions): &(&str, &str, Conditions)| Endpoint {
        conditions: *conditions,
        node: Some((*node).into()),
        ..Endpoint::new(ip(address))
    };
    EndpointSlice {
        name: name(slice),
        service: service.into(),
        family: endpoints
            .first()
            .map_or(IpFamily::V4, |(address, _, _)| ip(address).into()),
        endpoints: endpoints.iter().map(endpoint).collect(),
        ports: [EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: number(8080),
        }]
        .into(),
        last_change: None,
    }
}

pub fn node(name: &str, zone: Option<&str>) -> model::Node {
    model::Node {
        zone: zone.map(Into::into),
        ..model::Node::new(name)
    }
}

pub fn synced() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        snapshot.apply(Change::Synced(kind));
    }
    snapshot
}

pub fn snapshot(changes: impl IntoIterator<Item = Change>) -> Snapshot {
    let mut snapshot = synced();
    for change in changes {
        snapshot.apply(change);
    }
    snapshot
}

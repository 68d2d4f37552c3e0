//! Objects for tests.

use std::net::IpAddr;
use std::num::NonZeroU16;

use model::{
    Endpoint, EndpointPort, EndpointSlice, Endpoints, IpFamily, ObjectName, Protocol, Service, ServiceKind,
    ServicePort,
};
use proxy::plan::{FrontendAddress, FrontendKey};

pub fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("no port is 0")
}

/// A frontend for TCP.
pub fn frontend(address: &str, number: u16) -> FrontendKey {
    let address: IpAddr = address.parse().expect("an address");
    FrontendKey {
        address: FrontendAddress::Service(address),
        port: port(number),
        protocol: Protocol::Tcp,
    }
}

/// A Service at 10.96.0.7, TCP port 80.
pub fn service(service: &str) -> Service {
    let kind = ServiceKind::ClusterIp {
        addresses: [[10, 96, 0, 7].into()].into(),
    };
    Service {
        ports: [ServicePort {
            name: "http".into(),
            ..ServicePort::new(Protocol::Tcp, port(80))
        }]
        .into(),
        ..Service::new(name(service), kind)
    }
}

pub fn headless(name: &str) -> Service {
    Service {
        kind: ServiceKind::Headless,
        ..service(name)
    }
}

pub fn with_node_port(name: &str, number: u16) -> Service {
    let mut service = service(name);
    for each in &mut service.ports {
        each.node_port = Some(port(number));
    }
    service
}

/// A ready endpoint on another node.
pub fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        node: Some("node-2".into()),
        ..Endpoint::new(address.parse().expect("an address"))
    }
}

/// A slice without endpoints, for TCP port 8080.
pub fn slice(slice: &str, service: &str) -> EndpointSlice {
    EndpointSlice {
        name: name(slice),
        service: service.into(),
        family: IpFamily::V4,
        endpoints: Endpoints::default(),
        ports: [EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: port(8080),
        }]
        .into(),
        last_change: None,
    }
}

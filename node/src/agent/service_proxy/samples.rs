//! Objects for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::num::NonZeroU16;

use model::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, IpFamily, ObjectName, Protocol, Service, ServiceKind,
    ServicePort, SessionAffinity, TrafficPolicy,
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
    Service {
        name: name(service),
        kind: ServiceKind::ClusterIp {
            addresses: vec![[10, 96, 0, 7].into()],
        },
        ports: vec![ServicePort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: port(80),
            node_port: None,
            app_protocol: None,
        }],
        external_addresses: Vec::new(),
        load_balancer: Vec::new(),
        source_ranges: Vec::new(),
        external_policy: TrafficPolicy::Cluster,
        internal_policy: TrafficPolicy::Cluster,
        health_check_node_port: None,
        affinity: SessionAffinity::None,
        traffic_distribution: None,
        publish_not_ready: false,
        proxy_labels: BTreeMap::new(),
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
        address: address.parse().expect("an address"),
        conditions: Conditions::READY,
        node: Some("node-2".into()),
        zone: None,
        hostname: None,
        pod: None,
        hinted_zones: Vec::new(),
        hinted_nodes: Vec::new(),
    }
}

/// A slice without endpoints, for TCP port 8080.
pub fn slice(slice: &str, service: &str) -> EndpointSlice {
    EndpointSlice {
        name: name(slice),
        service: service.to_owned(),
        family: IpFamily::V4,
        endpoints: Vec::new(),
        ports: vec![EndpointPort {
            name: "http".to_owned(),
            protocol: Protocol::Tcp,
            port: port(8080),
        }],
        last_change: None,
    }
}

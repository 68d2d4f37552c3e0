//! Cluster states for the tests, written short.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, IpFamily, Kind, ObjectName, Protocol, Service,
    ServiceKind, ServicePort, SessionAffinity, Snapshot, TrafficPolicy,
};

/// The Service's address.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Its TCP port and node port.
pub const TCP: (u16, u16) = (80, 30080);
/// Its UDP port and node port.
pub const UDP: (u16, u16) = (53, 30053);
/// Where endpoints listen, for both.
pub const TARGET_PORT: u16 = 8080;
/// The node under test.
pub const THIS_NODE: &str = "node-1";

/// An endpoint that is ready.
pub const READY: Conditions = Conditions::READY;
/// An endpoint that is not.
pub const UNREADY: Conditions = Conditions {
    ready: false,
    serving: false,
    terminating: false,
};
/// An endpoint whose pod is being deleted and still serves.
pub const LEAVING: Conditions = Conditions {
    ready: false,
    serving: true,
    terminating: true,
};

/// The one Service of the tests, and what it looks like.
#[derive(Clone, Debug)]
pub struct State {
    /// Address, node, conditions.
    pub endpoints: Vec<(Ipv4Addr, &'static str, Conditions)>,
    /// `internalTrafficPolicy`.
    pub internal: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external: TrafficPolicy,
}

impl State {
    /// The snapshot in which nothing else exists.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = empty();
        snapshot.apply(Change::Service(self.service()));
        snapshot.apply(Change::EndpointSlice(self.slice()));
        snapshot
    }

    fn service(&self) -> Service {
        service(
            "web",
            IpAddr::V4(VIP),
            vec![port(Protocol::Tcp, TCP), port(Protocol::Udp, UDP)],
            self,
        )
    }

    fn slice(&self) -> EndpointSlice {
        let endpoint = |(address, node, conditions): &(Ipv4Addr, &str, Conditions)| Endpoint {
            address: IpAddr::V4(*address),
            conditions: *conditions,
            node: Some((*node).into()),
            zone: None,
            hostname: None,
            pod: None,
            hinted_zones: Vec::new(),
            hinted_nodes: Vec::new(),
        };
        let port = |protocol: Protocol| EndpointPort {
            name: protocol.to_string(),
            protocol,
            port: number(TARGET_PORT),
        };
        EndpointSlice {
            name: ObjectName::new("default", "web-1"),
            service: "web".to_owned(),
            family: IpFamily::V4,
            endpoints: self.endpoints.iter().map(endpoint).collect(),
            ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
            last_change: None,
        }
    }
}

/// A snapshot with complete lists and nothing in them.
pub fn empty() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        snapshot.apply(Change::Synced(kind));
    }
    snapshot
}

fn port(protocol: Protocol, (port, node_port): (u16, u16)) -> ServicePort {
    ServicePort {
        name: protocol.to_string(),
        protocol,
        port: number(port),
        node_port: Some(number(node_port)),
        app_protocol: None,
    }
}

fn service(name: &str, address: IpAddr, ports: Vec<ServicePort>, state: &State) -> Service {
    Service {
        name: ObjectName::new("default", name),
        kind: ServiceKind::ClusterIp {
            addresses: vec![address],
        },
        ports,
        external_addresses: Vec::new(),
        load_balancer: Vec::new(),
        source_ranges: Vec::new(),
        external_policy: state.external,
        internal_policy: state.internal,
        health_check_node_port: None,
        affinity: SessionAffinity::None,
        traffic_distribution: None,
        publish_not_ready: false,
        proxy_labels: BTreeMap::new(),
    }
}

fn number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("not zero")
}

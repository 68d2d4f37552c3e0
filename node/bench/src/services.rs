//! Services for a proxy to serve, as many as are wanted.

use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;

use model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Kind, ObjectName, Protocol, Service,
    ServiceKind, ServicePort, Snapshot,
};

/// The first Service's address; others follow it.
pub const FIRST: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The first address of endpoints that nobody asks for.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);

const PROTOCOLS: [(Protocol, &str); 2] = [(Protocol::Tcp, "tcp"), (Protocol::Udp, "udp")];

/// So many ClusterIP Services, one at least, each with a port of TCP and one of UDP and one endpoint; the first one's is
/// the server.
#[must_use]
pub fn snapshot(count: u32, server: Ipv4Addr, port: NonZeroU16) -> Snapshot {
    let mut state = Snapshot::default();
    for number in 0..count.max(1) {
        let name = format!("web-{number:05}");
        let nth = |first: Ipv4Addr| Ipv4Addr::from(u32::from(first) + number);
        let endpoint = if number == 0 { server } else { nth(NOBODY) };
        state.apply(Change::Service(service(&name, nth(FIRST).into(), port)));
        state.apply(Change::EndpointSlice(slice(&name, endpoint.into(), port)));
    }
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        state.apply(Change::Synced(kind));
    }
    state
}

fn service(name: &str, address: IpAddr, port: NonZeroU16) -> Service {
    let kind = ServiceKind::ClusterIp {
        addresses: [address].into(),
    };
    let mut service = Service::new(ObjectName::new("default", name), kind);
    service.ports = PROTOCOLS
        .map(|(protocol, name)| ServicePort {
            name: name.into(),
            ..ServicePort::new(protocol, port)
        })
        .into();
    service
}

fn slice(service: &str, address: IpAddr, port: NonZeroU16) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", service),
        service: service.into(),
        family: IpFamily::V4,
        endpoints: vec![Endpoint::new(address)].into(),
        ports: PROTOCOLS
            .map(|(protocol, name)| EndpointPort {
                name: name.into(),
                protocol,
                port,
            })
            .into(),
        last_change: None,
    }
}

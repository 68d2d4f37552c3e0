//! What a cluster takes in memory: the objects as the feed keeps them, and the table that is made of them.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;

use dns::feed::trim_of;
use dns::kubernetes::Objects;
use dns::zone::Table;
use model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, ObjectName, Pools, Protocol, Service,
    ServiceKind, ServicePort, Snapshot,
};

const HTTP: NonZeroU16 = NonZeroU16::new(80).expect("a port");

fn service(number: u32) -> Service {
    let address = Ipv4Addr::from(0x0a60_0000 + number);
    let kind = ServiceKind::ClusterIp {
        addresses: [address.into()].into(),
    };
    let mut service = Service::new(name(number, ""), kind);
    service.ports = [ServicePort {
        name: "http".into(),
        ..ServicePort::new(Protocol::Tcp, HTTP)
    }]
    .into();
    service
}

fn slice(number: u32, endpoints: u32) -> EndpointSlice {
    let endpoint = |index| Endpoint {
        node: Some("node-1".into()),
        zone: Some("zone-1".into()),
        pod: Some(format!("web-{number}-5b95d558d7-{index:05}").into()),
        ..Endpoint::new(Ipv4Addr::from(0x0a80_0000 + number * endpoints + index).into())
    };
    EndpointSlice {
        name: name(number, "-x7k2p"),
        service: format!("web-{number}").into(),
        family: IpFamily::V4,
        endpoints: (0..endpoints).map(endpoint).collect(),
        ports: [EndpointPort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: HTTP,
        }]
        .into(),
        last_change: None,
    }
}

fn name(number: u32, suffix: &str) -> ObjectName {
    ObjectName::new(format!("team-{}", number % 20), format!("web-{number}{suffix}"))
}

/// Bytes that are resident and belong to nobody else.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = line
        .and_then(|line| line.trim().strip_suffix(" kB"))
        .expect("a size");
    1024 * kib.parse::<u64>().expect("a number")
}

/// Megabytes that a cluster takes. It is never freed: what follows finds no room of it.
fn taken(services: u32, endpoints: u32) -> u64 {
    let trim = trim_of(&Objects::Agent("/none".into()));
    let before = resident();
    let (mut pools, mut snapshot) = (Pools::default(), Snapshot::default());
    for number in 0..services {
        let of_one = [
            Change::Service(service(number)),
            Change::EndpointSlice(slice(number, endpoints)),
        ];
        for mut change in of_one {
            trim(&mut change);
            change.pack(&mut pools);
            snapshot.apply(change);
        }
    }
    let table = Table::default().updated(&Snapshot::default(), &snapshot, 1);
    assert_eq!(table.service_count(), services as usize);
    let taken = resident() - before;
    std::mem::forget((snapshot, table));
    taken / 1_000_000
}

/// Measured: 8.9 and 12.7 MB.
#[test]
fn a_large_cluster_takes_less_than_its_bound() {
    for (services, endpoints, most) in [(10_000, 1, 10), (8_200, 18, 15)] {
        let taken = taken(services, endpoints);
        assert!(
            taken < most,
            "{services} Services of {endpoints} endpoints: {taken} MB"
        );
    }
}

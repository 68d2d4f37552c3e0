//! States of the cluster for a proxy without an agent: `web` as in [`crate::world`], and others beside it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;

use model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, IpFamily, Kind, ObjectName, Protocol, Service,
    ServiceKind, ServicePort, Snapshot,
};
use proxy::{Config, DatapathKind, Settings};

use crate::world::{NODE_PORT, PORT, TARGET_PORT, VIP, VIP_V6, World, server};

pub fn config(world: &World) -> Config {
    Config {
        settings: settings(),
        datapath: match world.datapath {
            "ebpf" => DatapathKind::Ebpf {
                cgroup: world.node.cgroup.path().to_owned(),
                pin_dir: world.pin_dir(),
            },
            _ => DatapathKind::Nftables,
        },
    }
}

pub fn settings() -> Settings {
    let networks = ["10.244.0.0/16", "fd00:244::/32"].map(|network| network.parse().expect("a network"));
    Settings::new("node-1".into(), networks)
}

/// `web` on these servers, and so many others on the first of them.
pub fn snapshot(web: &[u16], others: u16) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for kind in [Kind::Service, Kind::EndpointSlice, Kind::Node] {
        snapshot.apply(Change::Synced(kind));
    }
    let vips = [VIP, VIP_V6].map(|vip| vip.parse().expect("an address"));
    put(&mut snapshot, "web", vips, Some(NODE_PORT), web);
    for number in 1..=others {
        put(
            &mut snapshot,
            &format!("other-{number}"),
            other_vips(number),
            None,
            &web[..1],
        );
    }
    snapshot
}

/// Addresses of the others.
pub fn other_vips(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 1, number);
    [Ipv4Addr::new(10, 96, 100 + high, low).into(), v6.into()]
}

fn put(snapshot: &mut Snapshot, name: &str, vips: [IpAddr; 2], node_port: Option<u16>, endpoints: &[u16]) {
    let kind = ServiceKind::ClusterIp {
        addresses: vips.into(),
    };
    let ports = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
    let mut service = Service::new(ObjectName::new("default", name), kind);
    service.ports = ports
        .map(|(name, protocol)| ServicePort {
            name: name.into(),
            protocol,
            port: port(PORT),
            node_port: node_port.map(port),
            app_protocol: None,
        })
        .into();
    snapshot.apply(Change::Service(service));
    for (family, index) in [(IpFamily::V4, 0), (IpFamily::V6, 1)] {
        let endpoints = endpoints.iter().map(|number| Endpoint {
            address: server(*number)[index],
            conditions: Conditions::READY,
            node: Some("node-1".into()),
            zone: None,
            pod: None,
            extras: None,
        });
        let slice = EndpointSlice {
            name: ObjectName::new("default", format!("{name}-{family:?}").to_lowercase()),
            service: name.into(),
            family,
            endpoints: endpoints.collect(),
            ports: ports
                .map(|(name, protocol)| EndpointPort {
                    name: name.into(),
                    protocol,
                    port: port(TARGET_PORT),
                })
                .into(),
            last_change: None,
        };
        snapshot.apply(Change::EndpointSlice(slice));
    }
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).expect("no port is 0")
}

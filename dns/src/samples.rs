//! A cluster for tests: one object for each rule of the specification.

#[cfg(test)]
mod logs;

use std::num::NonZeroU16;

use model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Extras, IpFamily, Kind, Namespace, ObjectName,
    Pod, Protocol, Service, ServiceKind, ServicePort, Snapshot,
};

#[cfg(test)]
pub use logs::{captured, logged};

fn port_number(port: u16) -> NonZeroU16 {
    NonZeroU16::new(port).expect("a port")
}

fn service(namespace: &str, name: &str, kind: ServiceKind, ports: &[(&str, u16)]) -> Service {
    let ports = ports.iter().map(|(name, port)| ServicePort {
        name: (*name).into(),
        protocol: if name.starts_with("dns-udp") {
            Protocol::Udp
        } else {
            Protocol::Tcp
        },
        port: port_number(*port),
        node_port: None,
        app_protocol: None,
    });
    Service {
        ports: ports.collect(),
        ..Service::new(ObjectName::new(namespace, name), kind)
    }
}

pub fn cluster_ip(namespace: &str, name: &str, addresses: &[&str], ports: &[(&str, u16)]) -> Service {
    let addresses = addresses
        .iter()
        .map(|address| address.parse().expect("address"))
        .collect();
    service(namespace, name, ServiceKind::ClusterIp { addresses }, ports)
}

pub fn headless(namespace: &str, name: &str, ports: &[(&str, u16)]) -> Service {
    service(namespace, name, ServiceKind::Headless, ports)
}

pub fn external(namespace: &str, name: &str, target: &str) -> Service {
    service(namespace, name, ServiceKind::ExternalName(target.to_owned()), &[])
}

/// `endpoints`: address, hostname, pod; a `!` in front of the address means that it is not ready.
pub fn slice(
    namespace: &str,
    name: &str,
    service: &str,
    ports: &[(&str, u16)],
    endpoints: &[(&str, Option<&str>, Option<&str>)],
) -> EndpointSlice {
    let endpoints = endpoints.iter().map(|(address, hostname, pod)| Endpoint {
        address: address.trim_start_matches('!').parse().expect("address"),
        conditions: Conditions {
            ready: !address.starts_with('!'),
            ..Conditions::READY
        },
        node: None,
        zone: None,
        pod: pod.map(Into::into),
        extras: Extras {
            hostname: hostname.map(Into::into),
            ..Extras::default()
        }
        .some(),
    });
    let endpoints: Vec<Endpoint> = endpoints.collect();
    let is_v6 = endpoints.iter().any(|endpoint| endpoint.address.is_ipv6());
    EndpointSlice {
        name: ObjectName::new(namespace, name),
        service: service.into(),
        family: if is_v6 { IpFamily::V6 } else { IpFamily::V4 },
        endpoints: endpoints.into(),
        ports: ports
            .iter()
            .map(|(name, port)| EndpointPort {
                name: (*name).into(),
                protocol: if name.starts_with("dns-udp") {
                    Protocol::Udp
                } else {
                    Protocol::Tcp
                },
                port: port_number(*port),
            })
            .collect(),
        last_change: None,
    }
}

fn pod(namespace: &str, name: &str, addresses: &[&str]) -> Pod {
    Pod {
        name: ObjectName::new(namespace, name),
        node: None,
        addresses: addresses
            .iter()
            .map(|address| address.parse().expect("address"))
            .collect(),
        host_network: false,
    }
}

/// The objects that the query tables ask about.
pub fn changes() -> Vec<Change> {
    let http: &[(&str, u16)] = &[("http", 80)];
    let mut changes: Vec<Change> = ["testns", "otherns", "emptyns", "kube-system"]
        .into_iter()
        .map(|name| Change::Namespace(Namespace { name: name.into() }))
        .collect();
    changes.extend(
        [
            cluster_ip("testns", "svc1", &["10.0.0.1"], http),
            cluster_ip(
                "testns",
                "two-ports",
                &["10.0.0.2"],
                &[("http", 80), ("https", 443)],
            ),
            cluster_ip("testns", "unnamed", &["10.0.0.3"], &[("", 8080)]),
            cluster_ip("testns", "svc6", &["1234:abcd::1"], http),
            cluster_ip("testns", "dual", &["10.0.0.4", "1234:abcd::4"], http),
            cluster_ip("testns", "no-endpoints", &["10.0.0.5"], http),
            cluster_ip(
                "kube-system",
                "kube-dns",
                &["10.0.0.10"],
                &[("dns-udp", 53), ("dns-tcp", 53)],
            ),
            headless("testns", "hdls1", http),
            headless("testns", "hdls-portless", &[]),
            headless("testns", "hdls-unready", http),
            headless("testns", "hdls-two-ports", &[("http", 80), ("https", 443)]),
            headless("testns", "hdls-dual", http),
            external("testns", "external", "ext.interwebs.test"),
            external("testns", "external-internal", "svc1.testns.svc.cluster.local"),
            external("testns", "external-ip", "10.9.8.7"),
            external("testns", "loop-a", "loop-b.testns.svc.cluster.local"),
            external("testns", "loop-b", "loop-a.testns.svc.cluster.local"),
            cluster_ip("otherns", "svc1", &["10.0.1.1"], http),
            cluster_ip("no-namespace-object", "early", &["10.0.2.1"], http),
        ]
        .map(Change::Service),
    );
    changes.extend(
        [
            slice(
                "testns",
                "svc1-a",
                "svc1",
                http,
                &[("172.0.0.1", None, Some("svc1-pod"))],
            ),
            slice(
                "testns",
                "hdls1-a",
                "hdls1",
                http,
                &[
                    ("172.0.0.2", None, None),
                    ("172.0.0.3", None, Some("web-0")),
                    ("172.0.0.4", Some("dup-name"), None),
                    ("172.0.0.5", Some("dup-name"), None),
                    ("!172.0.0.6", None, None),
                ],
            ),
            slice(
                "testns",
                "hdls1-b",
                "hdls1",
                http,
                &[("172.0.0.3", None, Some("web-0"))],
            ),
            slice(
                "testns",
                "hdls1-6",
                "hdls1",
                http,
                &[("5678:abcd::1", None, None), ("5678:abcd::", None, None)],
            ),
            slice(
                "testns",
                "portless",
                "hdls-portless",
                &[],
                &[("172.0.0.20", None, None)],
            ),
            slice(
                "testns",
                "unready",
                "hdls-unready",
                http,
                &[("!172.0.0.30", None, None)],
            ),
            slice(
                "testns",
                "two-ports",
                "hdls-two-ports",
                &[("http", 80), ("https", 443)],
                &[("172.0.0.40", Some("a"), None), ("172.0.0.41", Some("B"), None)],
            ),
            slice(
                "testns",
                "dual-4",
                "hdls-dual",
                http,
                &[("172.0.0.50", Some("host"), None)],
            ),
            slice(
                "testns",
                "dual-6",
                "hdls-dual",
                http,
                &[("5678:abcd::50", Some("host"), None)],
            ),
            slice("otherns", "svc1-a", "svc1", http, &[("172.0.0.1", None, None)]),
        ]
        .map(Change::EndpointSlice),
    );
    changes.extend(
        [
            pod("testns", "web-0", &["172.0.0.3"]),
            pod("testns", "dual-pod", &["172.0.0.50", "5678:abcd::50"]),
        ]
        .map(Change::Pod),
    );
    changes.extend([Kind::Service, Kind::EndpointSlice, Kind::Namespace, Kind::Pod].map(Change::Synced));
    changes
}

/// A headless Service `big` of `testns` with 200 endpoints, in what [`snapshot`] has.
pub fn crowded() -> Snapshot {
    let ports = [("http", 80)];
    let addresses: Vec<String> = (0..200).map(|number| format!("172.16.0.{number}")).collect();
    let endpoints = addresses.iter().map(|address| (address.as_str(), None, None));
    let endpoints: Vec<_> = endpoints.collect();
    let mut snapshot = snapshot();
    snapshot.apply(Change::Service(headless("testns", "big", &ports)));
    let slice = slice("testns", "big", "big", &ports, &endpoints);
    snapshot.apply(Change::EndpointSlice(slice));
    snapshot
}

/// The cluster, complete.
pub fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for change in changes() {
        snapshot.apply(change);
    }
    snapshot
}

//! What addresses are called, for commands that see packets.

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use model::{ObjectName, Protocol, Snapshot};
use serde::{Deserialize, Serialize};

use super::report::Sources;
use crate::explain::names::addresses_of;

/// What to ask.
pub const PATH: &str = "/names";

/// What the agent knows addresses by.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// Services.
    pub services: Vec<NamedService>,
    /// Pods of all nodes, as far as they are endpoints of Services.
    pub pods: Vec<NamedPod>,
}

/// A Service.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedService {
    /// Its name.
    pub name: ObjectName,
    /// Its own addresses, each with each of its ports.
    pub frontends: Vec<NamedEndpoint>,
    /// Who takes what is sent there.
    pub endpoints: Vec<NamedEndpoint>,
}

/// Where something is sent.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The port's protocol.
    pub protocol: Protocol,
}

/// A pod.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NamedPod {
    /// Its address.
    pub address: IpAddr,
    /// Its name.
    pub name: ObjectName,
}

/// Answers, on a thread that may take its time: it looks at everything.
///
/// # Errors
/// When that thread ends without an answer.
pub async fn answer(State(sources): State<Sources>) -> Result<Json<Named>, StatusCode> {
    let snapshot = sources.snapshots.borrow().clone();
    let named = tokio::task::spawn_blocking(move || Named::of(&snapshot)).await;
    named.map(Json).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

impl Named {
    fn of(snapshot: &Snapshot) -> Self {
        let mut named = Self::default();
        for (name, service) in snapshot.services.iter() {
            let frontends = addresses_of(service).flat_map(|address| {
                let ports = service.ports.iter();
                ports.map(move |port| NamedEndpoint {
                    address,
                    port: port.port.get(),
                    protocol: port.protocol,
                })
            });
            let mut endpoints = Vec::new();
            for slice in snapshot
                .slices
                .get(name)
                .into_iter()
                .flat_map(|slices| slices.iter())
            {
                for endpoint in &slice.endpoints {
                    let pod = endpoint.pod;
                    named.pods.extend(pod.map(|pod| NamedPod {
                        address: endpoint.address,
                        name: ObjectName::new(slice.name.namespace.clone(), pod),
                    }));
                    endpoints.extend(slice.ports.iter().map(|port| NamedEndpoint {
                        address: endpoint.address,
                        port: port.port.get(),
                        protocol: port.protocol,
                    }));
                }
            }
            named.services.push(NamedService {
                name: name.clone(),
                frontends: frontends.collect(),
                endpoints,
            });
        }
        // A pod is an endpoint of several.
        named.pods.sort_unstable();
        named.pods.dedup();
        named
    }
}

#[cfg(test)]
mod tests {
    use model::{
        Change, Endpoint, EndpointPort, EndpointSlice, Few, IpFamily, Service, ServiceKind, ServicePort,
    };

    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn services_have_their_addresses_and_endpoints_and_pods_are_there_once() {
        let mut snapshot = Snapshot::default();
        for (name, cluster) in [("web", Some("10.96.0.7")), ("peers", None)] {
            let kind = cluster.map_or(ServiceKind::Headless, |cluster| ServiceKind::ClusterIp {
                addresses: Few::from(vec![address(cluster)]),
            });
            let mut service = Service::new(ObjectName::new("shop", name), kind);
            let port = ServicePort::new(Protocol::Tcp, 80.try_into().expect("no zero"));
            service.ports = [port].into_iter().collect();
            snapshot.apply(Change::Service(service));
            snapshot.apply(Change::EndpointSlice(EndpointSlice {
                name: ObjectName::new("shop", format!("{name}-1").as_str()),
                service: name.into(),
                family: IpFamily::V4,
                endpoints: vec![Endpoint {
                    pod: Some("web-7f".into()),
                    ..Endpoint::new(address("10.244.2.3"))
                }]
                .into(),
                ports: [EndpointPort {
                    name: "http".into(),
                    protocol: Protocol::Tcp,
                    port: 8080.try_into().expect("no zero"),
                }]
                .into_iter()
                .collect(),
                last_change: None,
            }));
        }
        let at = |text, port| NamedEndpoint {
            address: address(text),
            port,
            protocol: Protocol::Tcp,
        };
        let service = |name, frontends| NamedService {
            name: ObjectName::new("shop", name),
            frontends,
            endpoints: vec![at("10.244.2.3", 8080)],
        };
        let mut named = Named::of(&snapshot);
        named.services.sort_by(|one, other| one.name.cmp(&other.name));
        let expected = Named {
            services: vec![
                service("peers", Vec::new()),
                service("web", vec![at("10.96.0.7", 80)]),
            ],
            pods: vec![NamedPod {
                address: address("10.244.2.3"),
                name: ObjectName::new("shop", "web-7f"),
            }],
        };
        assert_eq!(named, expected);
        let json = serde_json::to_string(&named).expect("JSON");
        assert_eq!(serde_json::from_str::<Named>(&json).expect("read back"), expected);
    }
}

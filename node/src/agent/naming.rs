//! What addresses are called, for commands that see packets.

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use model::{ObjectName, Protocol, ServiceKind, Snapshot};
use serde::{Deserialize, Serialize};

use super::report::Sources;

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
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Who takes what is sent there.
    pub endpoints: Vec<NamedEndpoint>,
}

/// An endpoint of a Service.
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

/// Answers.
pub async fn answer(State(sources): State<Sources>) -> Json<Named> {
    let snapshot = sources.snapshots.borrow().clone();
    Json(Named::of(&snapshot))
}

impl Named {
    fn of(snapshot: &Snapshot) -> Self {
        let mut named = Self::default();
        for (name, service) in snapshot.services.iter() {
            let cluster = match &service.kind {
                ServiceKind::ClusterIp { addresses } => addresses.iter().copied().collect(),
                ServiceKind::Headless | ServiceKind::ExternalName(_) => Vec::new(),
            };
            let others = service.load_balancer.iter().map(|ingress| ingress.address);
            let others = service.external_addresses.iter().copied().chain(others);
            let mut endpoints = Vec::new();
            for slice in snapshot
                .slices
                .get(name)
                .into_iter()
                .flat_map(|slices| slices.iter())
            {
                for endpoint in &slice.endpoints {
                    let pod = endpoint.pod.as_deref();
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
                addresses: cluster.into_iter().chain(others).collect(),
                endpoints,
            });
        }
        // A pod is an endpoint of several.
        named.pods.sort_unstable();
        named.pods.dedup();
        named
    }
}

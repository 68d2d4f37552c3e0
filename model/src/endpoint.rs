//! EndpointSlices: where a Service's traffic may go.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{IpFamily, NodeName, ObjectName, Protocol};

/// `endpoints[].conditions`, with Kubernetes' defaults for absent ones filled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Conditions {
    /// May take new traffic. Absent = true.
    pub ready: bool,
    /// Would be ready were it not for `terminating`. Absent = `ready`.
    pub serving: bool,
    /// Its pod is being deleted. Absent = false.
    pub terminating: bool,
}

impl Conditions {
    /// A healthy endpoint.
    pub const READY: Self = Self {
        ready: true,
        serving: true,
        terminating: false,
    };
}

/// One entry of `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// `addresses[0]`; the API says that consumers use only the first.
    pub address: IpAddr,
    /// `conditions`.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<NodeName>,
    /// `zone`.
    pub zone: Option<String>,
    /// `hostname`, DNS only.
    pub hostname: Option<String>,
    /// `targetRef` where it is a Pod.
    pub pod: Option<ObjectName>,
    /// `hints.forZones`.
    pub hinted_zones: Vec<String>,
    /// `hints.forNodes`.
    pub hinted_nodes: Vec<NodeName>,
}

impl Endpoint {
    /// A healthy endpoint of which nothing else is known.
    #[must_use]
    pub const fn new(address: IpAddr) -> Self {
        Self {
            address,
            conditions: Conditions::READY,
            node: None,
            zone: None,
            hostname: None,
            pod: None,
            hinted_zones: Vec::new(),
            hinted_nodes: Vec::new(),
        }
    }
}

/// One entry of `ports`. An entry without a number ("all ports") is not programmable and never gets here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointPort {
    /// `name`; joins with the name of the Service's port.
    pub name: String,
    /// `protocol`.
    pub protocol: Protocol,
    /// `port`, on the endpoint's address.
    pub port: NonZeroU16,
}

/// A moment by the wall clock of whoever wrote it down: the time since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixTime(pub Duration);

/// An EndpointSlice (`discovery/v1`). Two that differ only in `last_change` are equal: it is measured by, and no part
/// of what the slice says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`: the Service in the same namespace that it belongs to.
    pub service: String,
    /// `addressType`. Slices of type FQDN are not a matter of a data plane and never get here.
    pub family: IpFamily,
    /// `endpoints`, in the object's order.
    pub endpoints: Vec<Endpoint>,
    /// `ports`.
    pub ports: Vec<EndpointPort>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`: when the pod or Service changed that this slice
    /// was written for. Absent where nothing of that kind was the reason. Not in JSON.
    #[serde(skip)]
    pub last_change: Option<UnixTime>,
}

impl PartialEq for EndpointSlice {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            name,
            service,
            family,
            endpoints,
            ports,
            last_change: _,
        } = self;
        *name == other.name
            && *service == other.service
            && *family == other.family
            && *endpoints == other.endpoints
            && *ports == other.ports
    }
}

impl Eq for EndpointSlice {}

impl EndpointSlice {
    /// The Service that this slice belongs to.
    #[must_use]
    pub fn service_name(&self) -> ObjectName {
        ObjectName::new(self.name.namespace.clone(), self.service.clone())
    }
}

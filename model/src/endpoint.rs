//! EndpointSlices: where a Service's traffic may go.

use std::net::IpAddr;
use std::num::NonZeroU16;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Few, IpFamily, NodeName, ObjectName, Pools, Protocol, Text};

mod list;
mod wire;

pub(crate) use list::Attributes;
pub use list::{EndpointRef, Endpoints, Iter};

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

/// What most endpoints do not have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Extras {
    /// `hostname`, DNS only.
    pub hostname: Option<Box<str>>,
    /// `hints.forZones`: whom the endpoint shall serve, where topology is followed.
    pub hinted_zones: Vec<Text>,
    /// `hints.forNodes`, likewise.
    pub hinted_nodes: Vec<NodeName>,
}

impl Extras {
    /// Hints alone, if there are any.
    #[must_use]
    pub fn hints(zones: Vec<Text>, nodes: Vec<NodeName>) -> Option<Box<Self>> {
        let extras = Self {
            hostname: None,
            hinted_zones: zones,
            hinted_nodes: nodes,
        };
        extras.some()
    }

    /// These, unless they are none.
    #[must_use]
    pub fn some(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

/// One entry of `endpoints`, by itself. Where they are kept they are [`Endpoints`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses[0]`; the API says that consumers use only the first.
    pub address: IpAddr,
    /// `conditions`.
    pub conditions: Conditions,
    /// `nodeName`.
    pub node: Option<NodeName>,
    /// `zone`.
    pub zone: Option<Text>,
    /// Name of the `targetRef` where it is a Pod, which is in the slice's namespace.
    pub pod: Option<Box<str>>,
    /// The rest, if there is any.
    pub extras: Option<Box<Extras>>,
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
            pod: None,
            extras: None,
        }
    }
}

/// One entry of `ports`. An entry without a number ("all ports") is not programmable and never gets here.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EndpointPort {
    /// `name`; joins with the name of the Service's port.
    pub name: Text,
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
#[serde(into = "wire::Slice", from = "wire::Slice")]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`: the Service in the same namespace that it belongs to.
    pub service: Text,
    /// `addressType`. Slices of type FQDN are not a matter of a data plane and never get here.
    pub family: IpFamily,
    /// `endpoints`, in the object's order.
    pub endpoints: Endpoints,
    /// `ports`.
    pub ports: Few<EndpointPort>,
    /// Annotation `endpoints.kubernetes.io/last-change-trigger-time`: when the pod or Service changed that this slice
    /// was written for. Absent where nothing of that kind was the reason. In JSON to the millisecond.
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

    /// Makes it take no more memory than it must, for a slice that is to be kept: what many slices say is in memory
    /// once, and lists have no room to grow.
    pub fn pack(&mut self, pools: &mut Pools) {
        pools.share(&mut self.name.namespace);
        pools.share(&mut self.service);
        self.ports.iter_mut().for_each(|port| pools.share(&mut port.name));
        self.endpoints.pack(pools);
    }
}

//! EndpointSlices in JSON, which does not follow how they lie in memory: the agent and the DNS process that it feeds
//! may be of different builds.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Conditions, EndpointPort, EndpointSlice, Extras, UnixTime};
use crate::{Few, IpFamily, NodeName, ObjectName, Text};

#[derive(Serialize, Deserialize)]
pub(super) struct Slice {
    name: ObjectName,
    service: Text,
    family: IpFamily,
    endpoints: Vec<Endpoint>,
    ports: Few<EndpointPort>,
    /// In milliseconds since 1970. Absent from what older builds wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_change: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct Endpoint {
    address: IpAddr,
    conditions: Conditions,
    node: Option<NodeName>,
    zone: Option<Text>,
    hostname: Option<Box<str>>,
    pod: Option<ObjectName>,
    hinted_zones: Vec<Text>,
    hinted_nodes: Vec<NodeName>,
}

impl From<EndpointSlice> for Slice {
    fn from(slice: EndpointSlice) -> Self {
        let EndpointSlice {
            name,
            service,
            family,
            endpoints,
            ports,
            last_change,
        } = slice;
        let endpoints = endpoints.iter().map(super::Endpoint::from);
        Self {
            endpoints: endpoints
                .map(|endpoint| Endpoint::new(endpoint, &name.namespace))
                .collect(),
            name,
            service,
            family,
            ports,
            last_change: last_change.map(|UnixTime(time)| time.as_millis() as u64),
        }
    }
}

impl From<Slice> for EndpointSlice {
    fn from(slice: Slice) -> Self {
        let Slice {
            name,
            service,
            family,
            endpoints,
            ports,
            last_change,
        } = slice;
        let endpoints = endpoints.into_iter();
        Self {
            name,
            service,
            family,
            endpoints: endpoints.map(Endpoint::into_model).collect(),
            ports,
            last_change: last_change.map(|millis| UnixTime(Duration::from_millis(millis))),
        }
    }
}

impl Endpoint {
    fn new(endpoint: super::Endpoint, namespace: &Text) -> Self {
        let super::Endpoint {
            address,
            conditions,
            node,
            zone,
            pod,
            extras,
        } = endpoint;
        let Extras {
            hostname,
            hinted_zones,
            hinted_nodes,
        } = extras.map(|extras| *extras).unwrap_or_default();
        Self {
            address,
            conditions,
            node,
            zone,
            hostname,
            pod: pod.map(|name| ObjectName::new(namespace.clone(), &*name)),
            hinted_zones,
            hinted_nodes,
        }
    }

    fn into_model(self) -> super::Endpoint {
        let Self {
            address,
            conditions,
            node,
            zone,
            hostname,
            pod,
            hinted_zones,
            hinted_nodes,
        } = self;
        let extras = Extras {
            hostname,
            hinted_zones,
            hinted_nodes,
        };
        super::Endpoint {
            address,
            conditions,
            node,
            zone,
            pod: pod.map(|pod| (*pod.name).into()),
            extras: extras.some(),
        }
    }
}

//! `discovery/v1` EndpointSlices.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1 as discovery;
use model::{
    Change, Conditions, Endpoint, EndpointPort, EndpointSlice, Extras, IpFamily, Kind, NodeName, ObjectName,
    Text, UnixTime,
};

use super::faults::Faults;
use super::object::{Converted, Watchable};

/// The Service that a slice belongs to.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// When the pod or Service changed for which the slice was written, RFC 3339.
const LAST_CHANGE: &str = "endpoints.kubernetes.io/last-change-trigger-time";

impl Watchable for discovery::EndpointSlice {
    const KIND: Kind = Kind::EndpointSlice;

    fn convert(self, name: &ObjectName, faults: &mut Faults) -> Converted {
        let Self {
            address_type,
            endpoints,
            metadata,
            ports,
        } = self;
        let labels = metadata.labels.unwrap_or_default();
        let Some(service) = labels.get(SERVICE_NAME).filter(|service| !service.is_empty()) else {
            return Converted::Irrelevant;
        };
        let family = match address_type.as_str() {
            "IPv4" => IpFamily::V4,
            "IPv6" => IpFamily::V6,
            "FQDN" => return Converted::Irrelevant,
            other => {
                faults.add("addressType", format!("{other:?} is not IPv4, IPv6 or FQDN"));
                return Converted::Invalid;
            }
        };
        let last_change = metadata.annotations.unwrap_or_default().remove(LAST_CHANGE);
        let entries = endpoints.into_iter().enumerate();
        let endpoints =
            entries.filter_map(|(index, entry)| endpoint(index, entry, family, &name.namespace, faults));
        let ports = ports.unwrap_or_default().into_iter().enumerate();
        Converted::Put(Box::new(Change::EndpointSlice(EndpointSlice {
            name: name.clone(),
            service: service.as_str().into(),
            family,
            endpoints: endpoints.collect(),
            ports: ports
                .filter_map(|(index, entry)| endpoint_port(index, entry, faults))
                .collect(),
            last_change: last_change.and_then(|text| moment(&text, faults)),
        })))
    }
}

fn moment(text: &str, faults: &mut Faults) -> Option<UnixTime> {
    let moment = text.parse::<jiff::Timestamp>().ok();
    let since_1970 = moment.and_then(|moment| moment.as_duration().try_into().ok());
    if since_1970.is_none() {
        let field = format!("metadata.annotations[{LAST_CHANGE}]");
        faults.add(field, format!("{text:?} is not a time of this epoch"));
    }
    since_1970.map(UnixTime)
}

fn endpoint(
    index: usize,
    endpoint: discovery::Endpoint,
    family: IpFamily,
    namespace: &str,
    faults: &mut Faults,
) -> Option<Endpoint> {
    let discovery::Endpoint {
        addresses,
        conditions,
        deprecated_topology: _,
        hints,
        hostname,
        node_name,
        target_ref,
        zone,
    } = endpoint;
    let discovery::EndpointHints { for_nodes, for_zones } = hints.unwrap_or_default();
    let extras = Extras {
        hostname: hostname.map(String::into_boxed_str),
        hinted_zones: zone_names(for_zones.unwrap_or_default()),
        hinted_nodes: node_names(for_nodes.unwrap_or_default()),
    };
    Some(Endpoint {
        address: endpoint_address(index, &addresses, family, faults)?,
        conditions: effective_conditions(conditions.unwrap_or_default()),
        node: node_name.map(|name| NodeName(name.into())),
        zone: zone.map(Text::from),
        pod: target_ref.and_then(|target| pod_name(target, namespace)),
        extras: extras.some(),
    })
}

fn endpoint_address(
    index: usize,
    addresses: &[String],
    family: IpFamily,
    faults: &mut Faults,
) -> Option<IpAddr> {
    let Some(first) = addresses.first() else {
        faults.add(format!("endpoints[{index}].addresses"), "is empty");
        return None;
    };
    let field = format!("endpoints[{index}].addresses[0]");
    let address = faults.reachable_address(&field, first)?;
    if address.is_ipv4() != (family == IpFamily::V4) {
        faults.add(field, format!("{address} is not of the slice's address type"));
        return None;
    }
    Some(address)
}

/// Defaults of absent conditions: `discovery/v1` EndpointConditions.
fn effective_conditions(conditions: discovery::EndpointConditions) -> Conditions {
    let discovery::EndpointConditions {
        ready,
        serving,
        terminating,
    } = conditions;
    let ready = ready.unwrap_or(true);
    Conditions {
        ready,
        serving: serving.unwrap_or(ready),
        terminating: terminating.unwrap_or(false),
    }
}

/// A pod of another namespace is none of this slice's.
fn pod_name(target: ObjectReference, slice_namespace: &str) -> Option<Box<str>> {
    let ObjectReference {
        api_version: _,
        field_path: _,
        kind,
        name,
        namespace,
        resource_version: _,
        uid: _,
    } = target;
    let is_here = namespace.is_none_or(|namespace| namespace == slice_namespace);
    let is_pod = is_here && kind.as_deref() == Some("Pod");
    name.filter(|_| is_pod).map(String::into_boxed_str)
}

fn zone_names(zones: Vec<discovery::ForZone>) -> Vec<Text> {
    zones
        .into_iter()
        .map(|discovery::ForZone { name }| name.into())
        .collect()
}

fn node_names(nodes: Vec<discovery::ForNode>) -> Vec<NodeName> {
    nodes
        .into_iter()
        .map(|discovery::ForNode { name }| NodeName(name.into()))
        .collect()
}

fn endpoint_port(index: usize, port: discovery::EndpointPort, faults: &mut Faults) -> Option<EndpointPort> {
    let discovery::EndpointPort {
        app_protocol: _,
        name,
        port,
        protocol,
    } = port;
    // No number means all ports, which no proxy can program.
    let port = faults.port(&format!("ports[{index}].port"), port?);
    let protocol = faults.protocol(&format!("ports[{index}].protocol"), protocol.as_deref());
    Some(EndpointPort {
        name: name.unwrap_or_default().into(),
        protocol: protocol?,
        port: port?,
    })
}

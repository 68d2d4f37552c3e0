//! The pods of a Service, as endpoints.

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{pods, selector};

/// The label of a node that names its zone; an empty one names none.
pub(crate) const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// One port of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Port {
    /// The name of the Service's port.
    pub name: String,
    pub protocol: String,
    /// On the pod's address.
    pub number: i32,
    pub app_protocol: Option<String>,
}

/// One pod that belongs to a Service.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PodEndpoint {
    pub addresses: Vec<IpAddr>,
    /// Its Ready condition holds.
    pub serving: bool,
    /// It is being deleted.
    pub terminating: bool,
    pub node: Option<String>,
    pub zone: Option<String>,
    /// Where it has a DNS name of its own under the Service.
    pub hostname: Option<String>,
    pub target: ObjectReference,
    /// Sorted. Ports that the pod does not have are missing.
    pub ports: Vec<Port>,
    /// When it last became ready or unready, or was told to go.
    pub changed_at: Option<Timestamp>,
}

/// Where a Service's traffic is to go by preference (KEP-4444, KEP-3015).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preference {
    /// Nowhere in particular.
    None,
    /// To an endpoint in the client's zone.
    SameZone,
    /// To one on the client's node, or else in its zone.
    SameNode,
}

/// The older ways to ask for hints, which take precedence over the field.
const TOPOLOGY_ANNOTATIONS: [&str; 2] = [
    "service.kubernetes.io/topology-aware-hints",
    "service.kubernetes.io/topology-mode",
];

/// A Service with its pods.
#[derive(Debug)]
pub(crate) struct ServicePods<'a> {
    pub service: &'a Service,
    pub endpoints: Vec<PodEndpoint>,
}

/// Whether it is ours to find its endpoints: it selects pods, and is not just a DNS alias.
pub(crate) fn selects_pods(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    spec.type_.as_deref() != Some("ExternalName")
        && spec.selector.as_ref().is_some_and(|labels| !labels.is_empty())
}

/// Whether the Service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

/// Whether unready pods count as ready.
pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        == Some(true)
}

/// The Service's `trafficDistribution`. It does not count next to an annotation that asks for hints in proportion to
/// the zones' CPUs, which are not given here.
pub(crate) fn preference(service: &Service) -> Preference {
    let annotations = service.metadata.annotations.as_ref();
    let annotation = TOPOLOGY_ANNOTATIONS.iter().find_map(|key| annotations?.get(*key));
    if annotation.is_some_and(|mode| matches!(mode.as_str(), "Auto" | "auto")) {
        return Preference::None;
    }
    let spec = service.spec.as_ref();
    match spec.and_then(|spec| spec.traffic_distribution.as_deref()) {
        Some("PreferClose" | "PreferSameZone") => Preference::SameZone,
        Some("PreferSameNode") => Preference::SameNode,
        _ => Preference::None,
    }
}

/// Whether the Service is reached by IPv4 addresses, and by IPv6 addresses, the primary family first.
pub(crate) fn families(service: &Service) -> Vec<&'static str> {
    let spec = service.spec.as_ref();
    let listed = spec.and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    let mut families: Vec<_> = listed
        .iter()
        .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
        .collect();
    if families.is_empty() {
        let address = spec
            .and_then(|spec| spec.cluster_ip.as_ref())
            .and_then(|ip| ip.parse().ok());
        families.push(address.as_ref().map_or("IPv4", family));
    }
    families
}

/// `IPv4` or `IPv6`.
pub(crate) fn family(address: &IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

impl<'a> ServicePods<'a> {
    /// Finds the Service's endpoints among the pods of its namespace. Pods without an address, and those that
    /// have run to their end, are none.
    pub fn observe(
        service: &'a Service,
        pods: &[Arc<Pod>],
        zone_of: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let wanted = service
            .spec
            .as_ref()
            .and_then(|spec| spec.selector.clone())
            .unwrap_or_default();
        let no_labels = selector::Labels::new();
        let selected = pods.iter().filter(|pod| {
            selector::includes(&wanted, pod.metadata.labels.as_ref().unwrap_or(&no_labels))
                && !pods::is_finished(pod)
        });
        let endpoints = selected.map(|pod| endpoint(service, pod, zone_of));
        Self {
            service,
            endpoints: endpoints
                .filter(|endpoint| !endpoint.addresses.is_empty())
                .collect(),
        }
    }
}

fn endpoint(service: &Service, pod: &Pod, zone_of: &dyn Fn(&str) -> Option<String>) -> PodEndpoint {
    let node = pods::node(pod).map(str::to_owned);
    let mut ports: Vec<Port> = service_ports(service)
        .iter()
        .filter_map(|port| resolve(port, pod))
        .collect();
    ports.sort();
    PodEndpoint {
        addresses: pods::addresses(pod),
        serving: pods::is_ready(pod),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        zone: node.as_deref().and_then(zone_of),
        node,
        hostname: hostname(service, pod),
        target: ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        },
        ports,
        changed_at: pods::changed_at(pod),
    }
}

fn service_ports(service: &Service) -> &[ServicePort] {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.ports.as_deref())
        .unwrap_or_default()
}

/// A pod that names this Service as its subdomain gets a DNS name of its own (dns specification, 2.4.1).
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let belongs = spec.subdomain.is_some() && spec.subdomain == service.metadata.name;
    spec.hostname
        .clone()
        .filter(|hostname| belongs && !hostname.is_empty())
}

/// The port of `pod` that a port of the Service leads to.
fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        number,
        app_protocol: port.app_protocol.clone(),
    })
}

/// A port that a container names; sidecars, init containers that keep running, count as well.
fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let is_sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let sidecars = spec.init_containers.iter().flatten().filter(is_sidecar);
    let mut ports = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|port| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    found.map(|port| port.container_port)
}

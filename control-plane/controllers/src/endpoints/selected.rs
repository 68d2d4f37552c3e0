//! EndpointSlices of the Services that select pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointSlice, ForNode, ForZone,
};

use super::observed::{
    PodEndpoint, Preference, ServicePods, families, family, is_headless, preference, publishes_not_ready,
};
use super::slices::{self, Groups, MANAGED_BY_LABEL, Plan, SERVICE_LABEL, Subject};
use crate::ownership;
use crate::selector::Labels;

/// Upstream's name: consumers know it.
pub(crate) const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Compares a Service's pods with its `existing` slices. What is written tells that it changed at `changed_at`.
pub(crate) fn plan(
    service: &Service,
    pods: &ServicePods<'_>,
    existing: &[Arc<EndpointSlice>],
    changed_at: Option<Timestamp>,
) -> Plan {
    let subject = Subject {
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone().unwrap_or_default(),
        owner: ownership::controller_ref(service),
        labels: labels(service),
        changed_at,
        keeps_one: true,
    };
    let families = families(service)
        .into_iter()
        .map(|family| (family, groups(pods, family)));
    slices::plan(&subject, families.collect(), existing)
}

fn groups(pods: &ServicePods<'_>, wanted: &str) -> Groups {
    let mut groups: Groups = BTreeMap::new();
    for pod in &pods.endpoints {
        for address in pod.addresses.iter().filter(|address| family(address) == wanted) {
            let identity = (*address, pod.target.uid.clone());
            groups
                .entry(pod.ports.clone())
                .or_default()
                .insert(identity, endpoint(pod, *address, pods.service));
        }
    }
    groups
}

fn endpoint(pod: &PodEndpoint, address: IpAddr, service: &Service) -> Endpoint {
    let ready = publishes_not_ready(service) || (pod.serving && !pod.terminating);
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(pod.serving),
            terminating: Some(pod.terminating),
        }),
        hostname: pod.hostname.clone(),
        node_name: pod.node.clone(),
        zone: pod.zone.clone(),
        target_ref: Some(pod.target.clone()),
        deprecated_topology: None,
        hints: hints(pod, preference(service)).filter(|_| ready),
    }
}

/// A ready endpoint is for the clients of its own zone, and of its own node where that is preferred.
fn hints(pod: &PodEndpoint, preference: Preference) -> Option<EndpointHints> {
    let (by_zone, by_node) = match preference {
        Preference::None => (false, false),
        Preference::SameZone => (true, false),
        Preference::SameNode => (true, true),
    };
    let zone = pod.zone.clone().filter(|_| by_zone);
    let node = pod.node.clone().filter(|_| by_node);
    let hints = EndpointHints {
        for_nodes: node.map(|name| vec![ForNode { name }]),
        for_zones: zone.map(|name| vec![ForZone { name }]),
    };
    (hints != EndpointHints::default()).then_some(hints)
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(
        SERVICE_LABEL.to_owned(),
        service.metadata.name.clone().unwrap_or_default(),
    );
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    labels
}

#[cfg(test)]
#[path = "selected_tests.rs"]
mod tests;

//! EndpointSlices of the Services that select pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use super::observed::{PodEndpoint, ServicePods, families, family, is_headless, publishes_not_ready};
use super::slices::{self, Groups, MANAGED_BY_LABEL, Plan, SERVICE_LABEL, Subject};
use crate::ownership;
use crate::selector::Labels;

/// Upstream's name: consumers know it.
pub(crate) const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Compares a Service's pods with its `existing` slices.
pub(crate) fn plan(service: &Service, pods: &ServicePods<'_>, existing: &[Arc<EndpointSlice>]) -> Plan {
    let subject = Subject {
        namespace: service.metadata.namespace.clone(),
        name: service.metadata.name.clone().unwrap_or_default(),
        owner: ownership::controller_ref(service),
        labels: labels(service),
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
            let endpoint = endpoint(pod, *address, publishes_not_ready(pods.service));
            groups
                .entry(pod.ports.clone())
                .or_default()
                .insert(identity, endpoint);
        }
    }
    groups
}

fn endpoint(pod: &PodEndpoint, address: IpAddr, publishes_not_ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_not_ready || (pod.serving && !pod.terminating)),
            serving: Some(pod.serving),
            terminating: Some(pod.terminating),
        }),
        hostname: pod.hostname.clone(),
        node_name: pod.node.clone(),
        zone: pod.zone.clone(),
        target_ref: Some(pod.target.clone()),
        deprecated_topology: None,
        hints: None,
    }
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

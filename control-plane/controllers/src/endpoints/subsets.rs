//! The older Endpoints object: the same pods, grouped by ports into subsets. Consumers of our own read
//! slices;
//! `kubectl describe service` and old programs read these.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::observed::{PodEndpoint, Port, ServicePods, families, family, is_headless, publishes_not_ready};
use crate::selector::Labels;

const MANAGED_BY_LABEL: &str = "endpoints.kubernetes.io/managed-by";
const MANAGED_BY: &str = "endpoint-controller";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Whether this controller writes the object: what users made by hand for a Service without selector is
/// theirs.
pub(crate) fn is_ours(endpoints: &Endpoints) -> bool {
    let labels = endpoints.metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY_LABEL))
        .is_some_and(|by| by == MANAGED_BY)
}

/// The object as it should be, if it is not so already.
pub(crate) fn plan(
    service: &Service,
    pods: &ServicePods<'_>,
    existing: Option<&Endpoints>,
) -> Option<Endpoints> {
    let subsets = subsets(service, pods);
    let labels = labels(service);
    let same = existing.is_some_and(|existing| {
        existing.subsets.clone().unwrap_or_default() == subsets
            && existing.metadata.labels.as_ref() == Some(&labels)
    });
    if same {
        return None;
    }
    let meta = existing
        .map(|existing| existing.metadata.clone())
        .unwrap_or_default();
    Some(Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            ..meta
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    })
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS_LABEL);
    if is_headless(service) {
        labels.insert(HEADLESS_LABEL.to_owned(), String::new());
    }
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    labels
}

/// Only addresses of the primary family: the object cannot tell families apart. Terminating pods are left out
/// at once, unless unready ones are published as well.
fn subsets(service: &Service, pods: &ServicePods<'_>) -> Vec<EndpointSubset> {
    let publishes_not_ready = publishes_not_ready(service);
    let families = families(service);
    let mut groups: BTreeMap<&[Port], (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for pod in &pods.endpoints {
        let without_ports = pod.ports.is_empty() && !is_headless(service);
        if without_ports || (pod.terminating && !publishes_not_ready) {
            continue;
        }
        let Some(address) = pod
            .addresses
            .iter()
            .find(|address| families.first() == Some(&family(address)))
        else {
            continue;
        };
        let (ready, not_ready) = groups.entry(&pod.ports).or_default();
        let list = if pod.serving || publishes_not_ready {
            ready
        } else {
            not_ready
        };
        list.push(endpoint_address(pod, address.to_string()));
    }
    groups
        .into_iter()
        .map(|(ports, (ready, not_ready))| subset(ports, ready, not_ready))
        .collect()
}

fn endpoint_address(pod: &PodEndpoint, ip: String) -> EndpointAddress {
    EndpointAddress {
        ip,
        hostname: pod.hostname.clone(),
        node_name: pod.node.clone(),
        target_ref: Some(pod.target.clone()),
    }
}

fn subset(
    ports: &[Port],
    mut ready: Vec<EndpointAddress>,
    mut not_ready: Vec<EndpointAddress>,
) -> EndpointSubset {
    for addresses in [&mut ready, &mut not_ready] {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
    }
    let ports: Vec<_> = ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()).filter(|name| !name.is_empty()),
            port: port.number,
            protocol: Some(port.protocol.clone()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    EndpointSubset {
        addresses: (!ready.is_empty()).then_some(ready),
        not_ready_addresses: (!not_ready.is_empty()).then_some(not_ready),
        ports: (!ports.is_empty()).then_some(ports),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::sync::Arc;

    fn pod(name: &str, ip: &str, ready: bool, deleting: bool) -> Value {
        json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "labels": { "app": "web" },
                "deletionTimestamp": deleting.then_some("2026-01-01T00:00:00Z"),
            },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": {
                "phase": "Running", "podIP": ip,
                "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }],
            },
        })
    }

    #[track_caller]
    fn check(publish: bool, expected: Value) {
        let service: Service = serde_json::from_value(json!({
            "metadata": { "name": "web", "namespace": "default" },
            "spec": {
                "clusterIP": "10.96.0.5", "selector": { "app": "web" }, "publishNotReadyAddresses": publish,
                "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
            },
        }))
        .unwrap();
        let pods: Vec<_> = [
            pod("b", "10.244.0.2", true, false),
            pod("a", "10.244.0.1", true, false),
            pod("c", "10.244.0.3", false, false),
            pod("d", "10.244.0.4", true, true),
        ]
        .into_iter()
        .map(|pod| Arc::new(serde_json::from_value(pod).unwrap()))
        .collect();
        let pods = ServicePods::observe(&service, &pods, &|_| None);
        let wanted = plan(&service, &pods, None).unwrap();
        let lists: Vec<_> = wanted
            .subsets
            .iter()
            .flatten()
            .map(|subset| {
                let ips = |list: &Option<Vec<EndpointAddress>>| {
                    list.iter()
                        .flatten()
                        .map(|address| address.ip.clone())
                        .collect::<Vec<_>>()
                };
                let ports: Vec<_> = subset.ports.iter().flatten().map(|port| port.port).collect();
                json!([ips(&subset.addresses), ips(&subset.not_ready_addresses), ports])
            })
            .collect();
        assert_eq!(Value::from(lists), expected);
        assert_eq!(plan(&service, &pods, Some(&wanted)), None);
    }

    #[test]
    fn ready_and_unready_pods_are_listed_apart_and_terminating_ones_not_at_all() {
        check(
            false,
            json!([[["10.244.0.1", "10.244.0.2"], ["10.244.0.3"], [8080]]]),
        );
    }

    #[test]
    fn with_publish_not_ready_addresses_all_pods_are_ready() {
        check(
            true,
            json!([[
                ["10.244.0.1", "10.244.0.2", "10.244.0.3", "10.244.0.4"],
                [],
                [8080]
            ]]),
        );
    }
}

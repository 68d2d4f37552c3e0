//! EndpointSlices of the Endpoints that users make by hand, for Services without selector: consumers of slices see
//! them, too (KEP-752, "EndpointSliceMirroring").

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointSlice};

use super::observed::{Port, family, selects_pods};
use super::slices::{self, Groups, MANAGED_BY_LABEL, Plan, SERVICE_LABEL, Subject};
use super::subsets;
use crate::ownership;

/// Upstream's name.
pub(crate) const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
/// Who writes slices as well as Endpoints says so.
const SKIP_LABEL: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Endpoints were once used for the election of leaders.
const LEADER_ANNOTATION: &str = "control-plane.alpha.kubernetes.io/leader";

/// Whether the slices of these Endpoints are to be made from them.
pub(crate) fn is_mirrored(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let meta = &endpoints.metadata;
    let skips = meta
        .labels
        .as_ref()
        .and_then(|labels| labels.get(SKIP_LABEL))
        .is_some_and(|skip| skip == "true");
    let elects = meta
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(LEADER_ANNOTATION));
    let by_hand = service.is_some_and(|service| !selects_pods(service));
    by_hand && !skips && !elects && !subsets::is_ours(endpoints) && meta.deletion_timestamp.is_none()
}

/// Compares Endpoints with the slices that mirror them.
pub(crate) fn plan(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Plan {
    let name = endpoints.metadata.name.clone().unwrap_or_default();
    let mut labels = endpoints.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_LABEL.to_owned(), name.clone());
    labels.insert(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
    let subject = Subject {
        namespace: endpoints.metadata.namespace.clone(),
        name,
        owner: ownership::controller_ref(endpoints),
        labels,
        changed_at: None,
        keeps_one: false,
    };
    let families = ["IPv4", "IPv6"].map(|family| (family, groups(endpoints, family)));
    slices::plan(&subject, families.into(), existing)
}

fn groups(endpoints: &Endpoints, wanted: &str) -> Groups {
    let mut groups: Groups = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        for (address, endpoint) in endpoints_of(subset).filter(|(address, _)| family(address) == wanted) {
            let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
            groups
                .entry(ports(subset))
                .or_default()
                .insert((address, uid), endpoint);
        }
    }
    groups
}

fn ports(subset: &EndpointSubset) -> Vec<Port> {
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        number: port.port,
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = subset.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

fn endpoints_of(subset: &EndpointSubset) -> impl Iterator<Item = (IpAddr, Endpoint)> {
    let ready = subset.addresses.iter().flatten().map(|address| (address, true));
    let not_ready = subset
        .not_ready_addresses
        .iter()
        .flatten()
        .map(|address| (address, false));
    let parsed = ready
        .chain(not_ready)
        .filter_map(|(address, ready)| Some((address.ip.parse().ok()?, address, ready)));
    parsed.map(|(ip, address, ready): (IpAddr, &EndpointAddress, bool)| {
        let endpoint = Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(ready),
                ..EndpointConditions::default()
            }),
            hostname: address.hostname.clone(),
            node_name: address.node_name.clone(),
            target_ref: address.target_ref.clone(),
            ..Endpoint::default()
        };
        (ip, endpoint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(endpoints: Value, spec: Option<Value>, expected: bool) {
        let endpoints = serde_json::from_value(endpoints).unwrap();
        let service: Option<Service> =
            spec.map(|spec| serde_json::from_value(json!({ "spec": spec })).unwrap());
        assert_eq!(is_mirrored(&endpoints, service.as_ref()), expected);
    }

    #[test]
    fn only_what_users_made_for_services_without_selector_is_mirrored() {
        let labelled = |key: &str, value: &str| json!({ "metadata": { "labels": { key: value } } });
        check(json!({ "metadata": {} }), Some(json!({})), true);
        check(json!({ "metadata": {} }), None, false);
        check(
            json!({ "metadata": {} }),
            Some(json!({ "selector": { "a": "1" } })),
            false,
        );
        check(labelled(SKIP_LABEL, "true"), Some(json!({})), false);
        check(
            labelled("endpoints.kubernetes.io/managed-by", "endpoint-controller"),
            Some(json!({})),
            false,
        );
        check(
            json!({ "metadata": { "annotations": { LEADER_ANNOTATION: "x" } } }),
            Some(json!({})),
            false,
        );
    }

    #[test]
    fn subsets_become_slices_by_ports_and_family() {
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": { "name": "db", "namespace": "default", "uid": "e" },
            "subsets": [
                {
                    "addresses": [{ "ip": "192.0.2.1" }], "notReadyAddresses": [{ "ip": "2001:db8::1" }],
                    "ports": [{ "port": 5432 }],
                },
                { "addresses": [{ "ip": "192.0.2.2" }], "ports": [{ "port": 5433 }] },
            ],
        }))
        .unwrap();
        let plan = plan(&endpoints, &[]);
        let told: Vec<_> = plan
            .create
            .iter()
            .map(|slice| {
                let endpoint = &slice.endpoints[0];
                let ready = endpoint.conditions.as_ref().unwrap().ready.unwrap();
                (
                    slice.address_type.as_str(),
                    endpoint.addresses[0].as_str(),
                    ready,
                    slice.ports.as_ref().unwrap()[0].port,
                )
            })
            .collect();
        let expected = [
            ("IPv4", "192.0.2.1", true, Some(5432)),
            ("IPv4", "192.0.2.2", true, Some(5433)),
            ("IPv6", "2001:db8::1", false, Some(5432)),
        ];
        assert_eq!(told, expected);
    }
}

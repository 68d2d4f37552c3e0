//! Objects as a cluster has them, with the fields that a DNS server does not read.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tests::fake_api::FakeApi;

/// Namespaces that Services are spread over.
const NAMESPACES: u32 = 20;
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);

/// That many Services with so many endpoints each.
pub fn fill(api: &FakeApi, services: u32, endpoints: u32) {
    for number in 0..NAMESPACES {
        api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace(number)}}));
    }
    for number in 0..services {
        api.put(service(number));
        api.put(slice(number, endpoints));
    }
}

/// The name of a Service in full, without the last dot.
pub fn name(number: u32) -> String {
    format!("web-{number}.{}.svc.cluster.local", namespace(number))
}

/// Its address.
pub fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(SERVICES) + number)
}

fn namespace(number: u32) -> String {
    format!("team-{}", number % NAMESPACES)
}

fn uid(number: u32) -> String {
    format!("7c8e2f4e-53c1-4b0f-9b39-{number:012}")
}

pub fn service(number: u32) -> Value {
    let (name, address) = (format!("web-{number}"), address(number));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name, "namespace": namespace(number), "uid": uid(number),
            "creationTimestamp": "2025-01-01T00:00:00Z", "labels": {"app": name},
        },
        "spec": {
            "clusterIP": address, "clusterIPs": [address], "type": "ClusterIP",
            "internalTrafficPolicy": "Cluster", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "http"}],
            "selector": {"app": name}, "sessionAffinity": "None",
        },
        "status": {"loadBalancer": {}},
    })
}

fn slice(number: u32, endpoints: u32) -> Value {
    let name = format!("web-{number}");
    let endpoint = |index| {
        let pod = number * endpoints + index;
        json!({
            "addresses": [Ipv4Addr::from(u32::from(PODS) + pod)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("node-{}", pod % 1000), "zone": format!("zone-{}", pod % 3),
            "targetRef": {
                "kind": "Pod", "namespace": namespace(number), "uid": uid(pod),
                "name": format!("{name}-5b95d558d7-{index:05}"),
            },
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-x7k2p"), "generateName": format!("{name}-"),
            "namespace": namespace(number), "uid": uid(number), "creationTimestamp": "2025-01-01T00:00:00Z",
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2025-01-01T00:00:00Z"},
            "labels": {
                "app": name, "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": name, "uid": uid(number),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "addressType": "IPv4",
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
    })
}

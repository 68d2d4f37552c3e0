//! What the type of a Service, and the policies next to it, entail (`pkg/api/service`).

use serde_json::Value;

use crate::object::Fields;

/// It has a ClusterIP, or says that it wants none; an alias of a DNS name has neither.
pub fn needs_cluster_ip(service: &Value) -> bool {
    service.text("spec.type") != "ExternalName"
}

/// Nodes open a port for each of its ports.
pub fn needs_node_ports(service: &Value) -> bool {
    matches!(service.text("spec.type"), "NodePort" | "LoadBalancer")
}

/// It is of type `LoadBalancer`.
pub fn is_load_balancer(service: &Value) -> bool {
    service.text("spec.type") == "LoadBalancer"
}

/// Traffic reaches it from outside of the cluster, so that it has an external traffic policy.
pub fn is_externally_accessible(service: &Value) -> bool {
    let by_external_ips =
        service.text("spec.type") == "ClusterIP" && !service.list("spec.externalIPs").is_empty();
    needs_node_ports(service) || by_external_ips
}

/// Nodes tell a load balancer on a port of its own whether they have endpoints.
pub fn needs_health_check(service: &Value) -> bool {
    is_load_balancer(service) && service.text("spec.externalTrafficPolicy") == "Local"
}

/// It has names in DNS instead of an address.
pub fn is_headless(service: &Value) -> bool {
    matches!(service.list("spec.clusterIPs"), [only] if only == "None")
}

/// It selects pods; without a selector somebody else writes its endpoints.
pub fn has_selector(service: &Value) -> bool {
    let selector = service.at("spec.selector").as_object();
    selector.is_some_and(|labels| !labels.is_empty())
}

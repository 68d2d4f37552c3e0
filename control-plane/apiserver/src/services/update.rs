//! What an update leaves unsaid: a client that knows nothing of a field may neither lose what was allocated, nor be
//! refused because a change of type made a field void (`pkg/registry/core/service`).

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};

use super::kind::{
    is_externally_accessible, is_load_balancer, needs_cluster_ip, needs_health_check, needs_node_ports,
};
use crate::object::{self, Fields};

/// Completes a changed Service from the one before; both have their defaults.
pub fn carry_over(new: &mut Value, old: &Value) {
    keep_allocated(new, old);
    align_cluster_ips(new, Some(old));
    drop_void(new, old);
}

/// Gives back addresses and ports that were left out.
fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        if new.text("spec.clusterIP").is_empty() {
            object::copy_field(old.at("spec"), &mut new["spec"], "clusterIP");
        }
        if new.list("spec.clusterIPs").is_empty() && same(new, old, "spec.clusterIP") {
            object::copy_field(old.at("spec"), &mut new["spec"], "clusterIPs");
        }
    }
    if needs_node_ports(old) && needs_node_ports(new) {
        keep_node_ports(new, old);
    }
    if needs_health_check(old) && needs_health_check(new) && health_check_port(new) == 0 {
        object::copy_field(old.at("spec"), &mut new["spec"], "healthCheckNodePort");
    }
}

/// A port keeps its node port by its name, unless another port was given that number now.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let numbers = node_ports(new);
    let by_name: BTreeMap<String, i64> = old
        .list("spec.ports")
        .iter()
        .filter_map(|port| Some((port.text("name").to_owned(), port.int("nodePort")?)))
        .filter(|(_, number)| !numbers.contains(number))
        .collect();
    for port in ports_mut(new).filter(|port| port.int("nodePort").unwrap_or(0) == 0) {
        if let Some(number) = by_name.get(port.text("name")) {
            port["nodePort"] = (*number).into();
        }
    }
}

/// `clusterIP` and `clusterIPs` say the same, for clients that know only the older field.
pub fn align_cluster_ips(new: &mut Value, old: Option<&Value>) {
    let single = new.text("spec.clusterIP").to_owned();
    let Some(old) = old else {
        if !single.is_empty() && new.list("spec.clusterIPs").is_empty() {
            new["spec"]["clusterIPs"] = json!([single]);
        }
        return;
    };
    if new.list("spec.clusterIPs").is_empty() && same(new, old, "spec.clusterIP") {
        object::copy_field(old.at("spec"), &mut new["spec"], "clusterIPs");
    }
    if same(new, old, "spec.clusterIP") || !same(new, old, "spec.clusterIPs") {
        return;
    }
    if single.is_empty() {
        object::remove(&mut new["spec"], "clusterIPs");
    } else {
        new["spec"]["clusterIPs"] = json!([single]);
    }
}

/// Drops what no longer applies, was perhaps not the user's choice, and was not changed in the same breath.
fn drop_void(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if same(new, old, "spec.clusterIP") && same(new, old, "spec.clusterIPs") {
            drop_spec(new, &["clusterIP", "clusterIPs"]);
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            drop_unchanged(new, old, field);
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) && node_ports(new).is_subset(&node_ports(old)) {
        for port in ports_mut(new) {
            object::remove(port, "nodePort");
        }
    }
    if needs_health_check(old) && !needs_health_check(new) {
        drop_unchanged(new, old, "healthCheckNodePort");
    }
    if is_load_balancer(old) && !is_load_balancer(new) {
        drop_unchanged(new, old, "allocateLoadBalancerNodePorts");
        drop_unchanged(new, old, "loadBalancerClass");
    }
    if is_externally_accessible(old) && !is_externally_accessible(new) {
        drop_unchanged(new, old, "externalTrafficPolicy");
    }
    if !is_load_balancer(new) && new.at("status").is_object() {
        new["status"]["loadBalancer"] = json!({});
    }
}

fn drop_unchanged(new: &mut Value, old: &Value, field: &str) {
    if new.at("spec").at(field) == old.at("spec").at(field) {
        drop_spec(new, &[field]);
    }
}

fn drop_spec(service: &mut Value, fields: &[&str]) {
    for field in fields {
        object::remove(&mut service["spec"], field);
    }
}

fn same(new: &Value, old: &Value, path: &str) -> bool {
    match (new.at(path), old.at(path)) {
        (Value::Array(_), _) | (_, Value::Array(_)) => new.list(path) == old.list(path),
        _ => new.text(path) == old.text(path),
    }
}

fn health_check_port(service: &Value) -> i64 {
    service.int("spec.healthCheckNodePort").unwrap_or(0)
}

fn node_ports(service: &Value) -> HashSet<i64> {
    let ports = service.list("spec.ports").iter();
    ports
        .filter_map(|port| port.int("nodePort").filter(|number| *number != 0))
        .collect()
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    let ports = service["spec"].get_mut("ports").and_then(Value::as_array_mut);
    ports.into_iter().flatten()
}

//! Services: defaults (`pkg/apis/core/v1/defaults.go`) and rules (`ValidateService`). Addresses and ports are given out
//! elsewhere, at the moment of writing.

mod cluster_ips;
mod load_balancer;

use std::collections::HashSet;

use serde_json::{Value, json};

use super::container::{items, validate_port_number, validate_target_port};
use super::field::{Errors, Path};
use super::ip::{validate_ip, validate_not_special};
use super::names::{NameRule, validate_labels, validate_qualified_name};
use crate::object::{self, Fields, default_to};
use crate::services::{is_externally_accessible, is_headless, is_load_balancer};

pub(crate) use cluster_ips::validate_cluster_ips;
pub(super) use load_balancer::{default_ip_modes, validate_status};

/// Three hours, upstream's default.
const AFFINITY_SECONDS: i64 = 10_800;
/// A day.
const MAX_AFFINITY_SECONDS: i64 = 86_400;
/// Two annotations of one meaning.
const TOPOLOGY_MODE: &str = "service.kubernetes.io/topology-mode";
const TOPOLOGY_HINTS: &str = "service.kubernetes.io/topology-aware-hints";

/// `SetDefaults_Service`.
pub(super) fn defaults(service: &mut Value) {
    if !service.at("spec").is_object() {
        service["spec"] = json!({});
    }
    let spec = &mut service["spec"];
    default_to(spec, "sessionAffinity", "None");
    default_to(spec, "type", "ClusterIP");
    default_affinity_timeout(spec);
    for port in items(spec, "ports") {
        default_to(port, "protocol", "TCP");
        if matches!(port.at("targetPort"), Value::Null)
            || port.at("targetPort") == 0
            || port.at("targetPort") == ""
        {
            port["targetPort"] = port["port"].clone();
        }
    }
    if matches!(spec.text("type"), "ClusterIP" | "NodePort" | "LoadBalancer") {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if is_externally_accessible(service) {
        default_to(&mut service["spec"], "externalTrafficPolicy", "Cluster");
    }
    if is_load_balancer(service) && service.at("spec.allocateLoadBalancerNodePorts").is_null() {
        service["spec"]["allocateLoadBalancerNodePorts"] = true.into();
    }
    default_ip_modes(service);
}

fn default_affinity_timeout(spec: &mut Value) {
    match spec.text("sessionAffinity") {
        "None" => {
            object::remove(spec, "sessionAffinityConfig");
        }
        "ClientIP" if spec.at("sessionAffinityConfig.clientIP.timeoutSeconds").is_null() => {
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": AFFINITY_SECONDS } });
        }
        _ => {}
    }
}

/// A new Service has no load balancer yet.
pub(super) fn prepare_create(service: &mut Value) {
    service["status"] = json!({ "loadBalancer": {} });
}

/// `ValidateService`.
pub(super) fn validate(service: &Value, errors: &mut Errors) {
    let at = Path::new("spec");
    let spec = service.at("spec");
    let kind = spec.text("type");
    validate_topology_annotations(service, errors);
    if spec.list("ports").is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.required(&at.child("ports"), "");
    }
    if kind == "ExternalName" {
        validate_external_name(spec, &at, errors);
    } else if is_headless(service) && kind != "ClusterIP" {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.invalid(&at.child("clusterIPs").index(0), "None", detail);
    }
    validate_ports(spec, &at.child("ports"), errors);
    validate_labels(spec.at("selector"), &at.child("selector"), errors);
    validate_affinity(spec, &at, errors);
    validate_cluster_ips(service, errors);
    for (index, ip) in spec.list("externalIPs").iter().enumerate() {
        let at = at.child("externalIPs").index(index);
        if let Some(ip) = validate_ip(ip.as_str().unwrap_or_default(), &at, errors) {
            validate_not_special(ip, &at, errors);
        }
    }
    let kinds = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&kind) {
        errors.not_supported(&at.child("type"), kind, kinds);
    }
    validate_port_pairs(spec, &at.child("ports"), errors);
    load_balancer::validate(service, errors);
    validate_external_policy(service, errors);
    load_balancer::validate_health_check_port(service, errors);
    let internal = spec.text("internalTrafficPolicy");
    if !matches!(internal, "" | "Cluster" | "Local") {
        errors.not_supported(
            &at.child("internalTrafficPolicy"),
            internal,
            &["Cluster", "Local"],
        );
    }
    validate_distribution(spec, &at, errors);
}

fn validate_topology_annotations(service: &Value, errors: &mut Errors) {
    let annotations = service.at("metadata.annotations");
    if let (Some(mode), Some(hints)) = (annotations.get(TOPOLOGY_MODE), annotations.get(TOPOLOGY_HINTS))
        && mode != hints
    {
        let at = Path::new("metadata").child("annotations").key(TOPOLOGY_MODE);
        let detail = format!("must match annotations[{TOPOLOGY_HINTS}] when both are specified");
        errors.invalid(&at, mode.clone(), detail);
    }
}

fn validate_external_name(spec: &Value, at: &Path, errors: &mut Errors) {
    let detail = "may not be set for ExternalName services";
    for field in ["clusterIPs", "ipFamilies"] {
        if !spec.list(field).is_empty() {
            errors.forbidden(&at.child(field), detail);
        }
    }
    if !spec.text("ipFamilyPolicy").is_empty() {
        errors.forbidden(&at.child("ipFamilyPolicy"), detail);
    }
    let name = spec.text("externalName");
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        errors.required(&at.child("externalName"), "");
    } else if let Some(complaint) = NameRule::Subdomain.complaint(name) {
        errors.invalid(&at.child("externalName"), name, complaint);
    }
}

fn validate_ports(spec: &Value, at: &Path, errors: &mut Errors) {
    let ports = spec.list("ports");
    let mut names = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = at.index(index);
        let (name, protocol) = (port.text("name"), port.text("protocol"));
        if name.is_empty() && ports.len() > 1 {
            errors.required(&at.child("name"), "");
        } else if !name.is_empty() {
            // RFC 1123 labels, unlike the names of containers' ports.
            if let Some(complaint) = NameRule::Label.complaint(name) {
                errors.invalid(&at.child("name"), name, complaint);
            }
            if !names.insert(name) {
                errors.duplicate(&at.child("name"), name);
            }
        }
        validate_port_number(port.int("port").unwrap_or(0), &at.child("port"), errors);
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.not_supported(&at.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        }
        validate_target_port(port.at("targetPort"), &at.child("targetPort"), errors);
        if let Some(protocol) = port.at("appProtocol").as_str() {
            validate_qualified_name(protocol, &at.child("appProtocol"), errors);
        }
    }
}

/// A number may be used once per protocol, as a port and as a node port.
fn validate_port_pairs(spec: &Value, at: &Path, errors: &mut Errors) {
    let (mut numbers, mut node_ports) = (HashSet::new(), HashSet::new());
    for (index, port) in spec.list("ports").iter().enumerate() {
        let at = at.index(index);
        let (number, protocol) = (port.int("port").unwrap_or(0), port.text("protocol"));
        let node_port = port.int("nodePort").unwrap_or(0);
        if node_port != 0 && spec.text("type") == "ClusterIP" {
            let detail = "may not be used when `type` is 'ClusterIP'";
            errors.forbidden(&at.child("nodePort"), detail);
        }
        if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.duplicate(&at.child("nodePort"), node_port);
        }
        if !numbers.insert((protocol, number)) {
            errors.duplicate(&at, json!({ "port": number, "protocol": protocol }));
        }
    }
}

fn validate_affinity(spec: &Value, at: &Path, errors: &mut Errors) {
    let affinity = spec.text("sessionAffinity");
    if !matches!(affinity, "ClientIP" | "None") {
        errors.not_supported(&at.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    }
    let seconds = spec.int("sessionAffinityConfig.clientIP.timeoutSeconds");
    if let Some(seconds) = seconds.filter(|_| affinity == "ClientIP")
        && !(1..=MAX_AFFINITY_SECONDS).contains(&seconds)
    {
        let at = at
            .child("sessionAffinityConfig")
            .child("clientIP")
            .child("timeoutSeconds");
        // The text is upstream's; the limit itself is allowed.
        let detail = format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}");
        errors.invalid(&at, seconds, detail);
    }
}

fn validate_external_policy(service: &Value, errors: &mut Errors) {
    let at = Path::new("spec").child("externalTrafficPolicy");
    match service.text("spec.externalTrafficPolicy") {
        "" => {}
        policy if !is_externally_accessible(service) => {
            let detail = "may only be set for externally-accessible services";
            errors.invalid(&at, policy, detail);
        }
        "Cluster" | "Local" => {}
        other => errors.not_supported(&at, other, &["Cluster", "Local"]),
    }
}

fn validate_distribution(spec: &Value, at: &Path, errors: &mut Errors) {
    let Some(preference) = spec.at("trafficDistribution").as_str() else {
        return;
    };
    let known = &["PreferClose", "PreferSameNode", "PreferSameZone"];
    if !known.contains(&preference) {
        errors.not_supported(&at.child("trafficDistribution"), preference, known);
    }
}

/// `ValidateServiceUpdate`.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    cluster_ips::validate_cluster_ips_update(new, old, errors);
    load_balancer::validate_update(new, old, errors);
}

#[cfg(test)]
#[path = "service/tests.rs"]
mod tests;

//! Services: defaults (`pkg/apis/core/v1/defaults.go`) and rules (`ValidateService`). Addresses and ports are given out
//! elsewhere, at the moment of writing.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::container::{items, port_name_complaint, validate_port_number, validate_target_port};
use super::field::{Errors, Path};
use super::names::{is_subdomain, validate_labels};
use crate::object::{Fields, default_to};

/// `SetDefaults_Service`.
pub(super) fn defaults(service: &mut Value) {
    if !service.at("spec").is_object() {
        service["spec"] = json!({});
    }
    let spec = &mut service["spec"];
    default_to(spec, "sessionAffinity", "None");
    default_to(spec, "type", "ClusterIP");
    if spec.text("sessionAffinity") == "None" {
        crate::object::remove(spec, "sessionAffinityConfig");
    } else if spec.at("sessionAffinityConfig.clientIP.timeoutSeconds").is_null() {
        spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 10800 } });
    }
    let kind = spec.text("type").to_owned();
    for port in items(spec, "ports") {
        default_to(port, "protocol", "TCP");
        if matches!(port.at("targetPort"), Value::Null)
            || port.at("targetPort") == 0
            || port.at("targetPort") == ""
        {
            port["targetPort"] = port["port"].clone();
        }
    }
    if matches!(kind.as_str(), "NodePort" | "LoadBalancer") {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" && spec.at("allocateLoadBalancerNodePorts").is_null() {
        spec["allocateLoadBalancerNodePorts"] = true.into();
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
    let kinds = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    if !kinds.contains(&kind) {
        errors.not_supported(&at.child("type"), kind, kinds);
    }
    let cluster_ip = spec.text("clusterIP");
    if kind == "ExternalName" {
        validate_external_name(spec, &at, errors);
    } else if cluster_ip == "None" && kind != "ClusterIP" {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.invalid(&at.child("clusterIPs").index(0), "None", detail);
    }
    if !matches!(cluster_ip, "" | "None") && cluster_ip.parse::<IpAddr>().is_err() {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        errors.invalid(&at.child("clusterIPs").index(0), cluster_ip, detail);
    }
    if spec.list("ports").is_empty() && cluster_ip != "None" && kind != "ExternalName" {
        errors.required(&at.child("ports"), "");
    }
    validate_ports(spec, &at.child("ports"), errors);
    validate_labels(spec.at("selector"), &at.child("selector"), errors);
    validate_policies(spec, &at, errors);
    for (index, ip) in spec.list("externalIPs").iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if text.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(&at.child("externalIPs").index(index), text, detail);
        }
    }
}

fn validate_external_name(spec: &Value, at: &Path, errors: &mut Errors) {
    if !spec.text("clusterIP").is_empty() {
        let detail = "may not be set for ExternalName services";
        errors.forbidden(&at.child("clusterIP"), detail);
    }
    let name = spec.text("externalName").trim_end_matches('.');
    if name.is_empty() {
        errors.required(&at.child("externalName"), "");
    } else if !is_subdomain(name) {
        let complaint = super::NameRule::Subdomain.complaint(name).unwrap_or_default();
        errors.invalid(&at.child("externalName"), name, complaint);
    }
}

fn validate_ports(spec: &Value, at: &Path, errors: &mut Errors) {
    let ports = spec.list("ports");
    let (mut names, mut numbers, mut node_ports) = (HashSet::new(), HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let at = at.index(index);
        let (name, protocol) = (port.text("name"), port.text("protocol"));
        if name.is_empty() && ports.len() > 1 {
            errors.required(&at.child("name"), "");
        } else if let Some(complaint) = service_port_name_complaint(name) {
            errors.invalid(&at.child("name"), name, complaint);
        } else if !name.is_empty() && !names.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        let number = port.int("port").unwrap_or(0);
        validate_port_number(number, &at.child("port"), errors);
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.not_supported(&at.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]);
        }
        validate_target_port(port.at("targetPort"), &at.child("targetPort"), errors);
        if !numbers.insert((protocol, number)) {
            errors.duplicate(&at, json!({ "port": number, "protocol": protocol }));
        }
        let node_port = port.int("nodePort").unwrap_or(0);
        if node_port != 0 && !matches!(spec.text("type"), "NodePort" | "LoadBalancer") {
            errors.forbidden(
                &at.child("nodePort"),
                "may not be used when `type` is 'ClusterIP'",
            );
        }
        if node_port != 0 && !node_ports.insert((protocol, node_port)) {
            errors.duplicate(&at.child("nodePort"), node_port);
        }
    }
}

/// Port names of Services are RFC 1123 labels, unlike those of containers.
fn service_port_name_complaint(name: &str) -> Option<String> {
    super::NameRule::Label
        .complaint(name)
        .filter(|_| !name.is_empty() && port_name_complaint(name).is_some())
}

fn validate_policies(spec: &Value, at: &Path, errors: &mut Errors) {
    let affinity = spec.text("sessionAffinity");
    if !matches!(affinity, "ClientIP" | "None") {
        errors.not_supported(&at.child("sessionAffinity"), affinity, &["ClientIP", "None"]);
    }
    if let Some(seconds) = spec.int("sessionAffinityConfig.clientIP.timeoutSeconds")
        && !(1..=86_400).contains(&seconds)
    {
        let at = at
            .child("sessionAffinityConfig")
            .child("clientIP")
            .child("timeoutSeconds");
        errors.invalid(
            &at,
            seconds,
            "must be greater than 0 and less than or equal to 86400",
        );
    }
    for field in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        let value = spec.text(field);
        if !matches!(value, "" | "Cluster" | "Local") {
            errors.not_supported(&at.child(field), value, &["Cluster", "Local"]);
        }
    }
    let external =
        matches!(spec.text("type"), "NodePort" | "LoadBalancer") || !spec.list("externalIPs").is_empty();
    if !spec.text("externalTrafficPolicy").is_empty() && !external {
        let detail = "may only be set for externally-accessible services";
        errors.invalid(
            &at.child("externalTrafficPolicy"),
            spec.at("externalTrafficPolicy").clone(),
            detail,
        );
    }
    let preference = spec.text("trafficDistribution");
    if !matches!(
        preference,
        "" | "PreferClose" | "PreferSameZone" | "PreferSameNode"
    ) {
        let known = &["PreferClose", "PreferSameNode", "PreferSameZone"];
        errors.not_supported(&at.child("trafficDistribution"), preference, known);
    }
}

/// The address stays while the Service has one (`ValidateServiceClusterIPsRelatedFields`).
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let (kind, was) = (new.text("spec.type"), old.text("spec.type"));
    let (now, before) = (new.text("spec.clusterIP"), old.text("spec.clusterIP"));
    if kind != "ExternalName" && was != "ExternalName" && !before.is_empty() && now != before {
        let detail = match now {
            "" => "primary clusterIP can not be unset",
            _ => "may not change once set",
        };
        errors.invalid(&Path::new("spec").child("clusterIPs").index(0), now, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(spec: Value, expected: &[&str]) {
        let mut service = json!({ "spec": spec });
        defaults(&mut service);
        let mut errors = Errors::default();
        validate(&service, &mut errors);
        let told: Vec<String> = match errors.into_result() {
            Ok(()) => Vec::new(),
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        };
        assert_eq!(told, expected);
    }

    #[test]
    fn services_are_judged_in_the_words_of_upstream() {
        check(json!({ "ports": [{ "port": 80 }] }), &[]);
        check(json!({ "clusterIP": "None" }), &[]);
        check(
            json!({ "type": "ExternalName", "externalName": "example.com" }),
            &[],
        );
        check(json!({}), &["spec.ports: Required value"]);
        check(
            json!({ "ports": [{ "port": 0, "targetPort": 1 }] }),
            &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
        );
        check(
            json!({ "ports": [{ "port": 1 }, { "port": 2 }] }),
            &[
                "spec.ports[0].name: Required value",
                "spec.ports[1].name: Required value",
            ],
        );
        check(
            json!({ "ports": [{ "name": "a", "port": 1 }, { "name": "a", "port": 2 }] }),
            &["spec.ports[1].name: Duplicate value: \"a\""],
        );
        check(
            json!({ "type": "Nodeport", "ports": [{ "port": 1 }] }),
            &[
                "spec.type: Unsupported value: \"Nodeport\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            ],
        );
        check(
            json!({ "ports": [{ "port": 1, "nodePort": 30001 }] }),
            &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        );
    }
}

//! What only Services of type `LoadBalancer` have, status included.

use serde_json::Value;

use super::super::container::items;
use super::super::field::{Errors, Path};
use super::super::ip::{validate_cidr, validate_ip};
use super::super::names::{NameRule, validate_qualified_name};
use crate::object::{Fields, default_to};
use crate::services::{is_load_balancer, needs_health_check};

const ONLY_HERE: &str = "may only be used when `type` is 'LoadBalancer'";
/// The older way to write `loadBalancerSourceRanges`.
const SOURCE_RANGES_ANNOTATION: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

/// Source ranges, node port allocation, class.
pub(super) fn validate(service: &Value, errors: &mut Errors) {
    validate_source_ranges(service, errors);
    let at = Path::new("spec");
    let is_other = !is_load_balancer(service);
    if is_other && !service.at("spec.allocateLoadBalancerNodePorts").is_null() {
        errors.forbidden(&at.child("allocateLoadBalancerNodePorts"), ONLY_HERE);
    }
    if let Some(class) = service.at("spec.loadBalancerClass").as_str() {
        let at = at.child("loadBalancerClass");
        if is_other {
            errors.forbidden(&at, ONLY_HERE);
        } else {
            validate_qualified_name(class, &at, errors);
        }
    }
}

/// Values may be padded with spaces, which the annotation brought with it.
fn validate_source_ranges(service: &Value, errors: &mut Errors) {
    let ranges = service.list("spec.loadBalancerSourceRanges");
    let annotation = service.at("metadata.annotations").get(SOURCE_RANGES_ANNOTATION);
    if !ranges.is_empty() {
        // Upstream spells this path with a capital letter.
        let at = Path::new("spec").child("LoadBalancerSourceRanges");
        if !is_load_balancer(service) {
            errors.forbidden(&at, ONLY_HERE);
        }
        for (index, range) in ranges.iter().enumerate() {
            let text = range.as_str().unwrap_or_default().trim();
            validate_cidr(text, &at.index(index), errors);
        }
    } else if let Some(text) = annotation.and_then(Value::as_str) {
        let at = Path::new("metadata").child("annotations");
        let at = at.key(SOURCE_RANGES_ANNOTATION);
        if !is_load_balancer(service) {
            errors.forbidden(&at, ONLY_HERE);
        }
        let ranges = text.split(',').map(str::trim);
        for range in ranges.filter(|_| !text.trim().is_empty()) {
            validate_cidr(range, &at, errors);
        }
    }
}

/// The port on which nodes answer a load balancer's health checks; a missing one is allocated later.
pub(super) fn validate_health_check_port(service: &Value, errors: &mut Errors) {
    let at = Path::new("spec").child("healthCheckNodePort");
    match service.int("spec.healthCheckNodePort").unwrap_or(0) {
        0 => {}
        number if needs_health_check(service) => {
            super::super::container::validate_port_number(number, &at, errors);
        }
        number => {
            let detail =
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.invalid(&at, number, detail);
        }
    }
}

/// Class and health check port stay while the Service remains what needs them.
pub(super) fn validate_update(new: &Value, old: &Value, errors: &mut Errors) {
    let at = Path::new("spec");
    let (class, before) = (new.at("spec.loadBalancerClass"), old.at("spec.loadBalancerClass"));
    if is_load_balancer(new) && is_load_balancer(old) && class != before {
        errors.invalid(
            &at.child("loadBalancerClass"),
            class.clone(),
            "may not change once set",
        );
    }
    let port = |service: &Value| service.int("spec.healthCheckNodePort");
    if needs_health_check(new) && needs_health_check(old) && port(new) != port(old) {
        errors.forbidden(&at.child("healthCheckNodePort"), "field is immutable");
    }
}

/// A load balancer that says nothing keeps the address of what it sends (KEP-1860).
pub(crate) fn default_ip_modes(service: &mut Value) {
    if !is_load_balancer(service) {
        return;
    }
    let Some(balancer) = service.get_mut("status").and_then(|s| s.get_mut("loadBalancer")) else {
        return;
    };
    for ingress in items(balancer, "ingress").filter(|one| !one.text("ip").is_empty()) {
        default_to(ingress, "ipMode", "VIP");
    }
}

/// `ValidateLoadBalancerStatus`.
pub(crate) fn validate_status(service: &Value, errors: &mut Errors) {
    let at = Path::new("status").child("loadBalancer").child("ingress");
    let all = service.list("status.loadBalancer.ingress");
    if !all.is_empty() && !is_load_balancer(service) {
        errors.forbidden(&at, "may only be used when `spec.type` is LoadBalancer");
        return;
    }
    for (index, ingress) in all.iter().enumerate() {
        validate_ingress(ingress, &at.index(index), errors);
    }
}

fn validate_ingress(ingress: &Value, at: &Path, errors: &mut Errors) {
    let (ip, mode, host) = (
        ingress.text("ip"),
        ingress.at("ipMode").as_str(),
        ingress.text("hostname"),
    );
    if !ip.is_empty() {
        validate_ip(ip, &at.child("ip"), errors);
    }
    match mode {
        Some(_) if ip.is_empty() => {
            errors.forbidden(&at.child("ipMode"), "may not be specified when `ip` is not set");
        }
        Some("Proxy" | "VIP") | None => {}
        Some(other) => errors.not_supported(&at.child("ipMode"), other, &["Proxy", "VIP"]),
    }
    if host.is_empty() {
        return;
    }
    if let Some(complaint) = NameRule::Subdomain.complaint(host) {
        errors.invalid(&at.child("hostname"), host, complaint);
    }
    if host.parse::<std::net::IpAddr>().is_ok() {
        let detail = "must be a DNS name, not an IP address";
        errors.invalid(&at.child("hostname"), host, detail);
    }
}

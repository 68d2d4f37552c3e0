//! What the data plane and the nodes exchange: EndpointSlices, Leases, and the networking group.

use std::net::IpAddr;

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde_json::Value;

use super::field::{Errors, Path};
use super::ip::validate_not_special;
use super::workloads::clear_status;
use super::{NameRule, Resource, container};
use crate::object::{self, Fields, default_to};
use crate::table::{core as table, networking as networking_table};

const NETWORKING: (&str, &str) = ("networking.k8s.io", "v1");

pub(super) fn rows() -> Vec<Resource> {
    vec![
        Resource::new::<coordination::Lease>(("coordination.k8s.io", "v1"), "Lease", "leases")
            .printed(table::LEASE, table::lease),
        Resource::new::<discovery::EndpointSlice>(
            ("discovery.k8s.io", "v1"),
            "EndpointSlice",
            "endpointslices",
        )
        .with_generation()
        .printed(table::ENDPOINT_SLICE, table::endpoint_slice)
        .defaulted(endpoint_slice_defaults)
        .validated(validate_endpoint_slice, validate_endpoint_slice_update),
        Resource::new::<networking::IngressClass>(NETWORKING, "IngressClass", "ingressclasses")
            .cluster_scoped()
            .with_generation(),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<networking::Ingress>(NETWORKING, "Ingress", "ingresses")
        }
        .printed(networking_table::INGRESS, networking_table::ingress)
        .short(&["ing"])
        .with_status()
        .with_generation(),
        Resource::new::<networking::IPAddress>(NETWORKING, "IPAddress", "ipaddresses")
            .cluster_scoped()
            .short(&["ip"])
            .named(NameRule::PathSegment),
        Resource::new::<networking::NetworkPolicy>(NETWORKING, "NetworkPolicy", "networkpolicies")
            .printed(networking_table::NETWORK_POLICY, networking_table::network_policy)
            .short(&["netpol"])
            .with_generation(),
        Resource {
            prepare_create: clear_status,
            ..Resource::new::<networking::ServiceCIDR>(NETWORKING, "ServiceCIDR", "servicecidrs")
        }
        .cluster_scoped()
        .with_status(),
    ]
}

fn endpoint_slice_defaults(slice: &mut Value) {
    for port in container::items(slice, "ports") {
        default_to(port, "protocol", "TCP");
        if port.at("name").is_null() {
            port["name"] = "".into();
        }
    }
    object::metadata(slice);
}

fn validate_endpoint_slice(slice: &Value, errors: &mut Errors) {
    let kind = slice.text("addressType");
    let kinds = &["FQDN", "IPv4", "IPv6"];
    if kind.is_empty() {
        errors.required(&Path::new("addressType"), "");
    } else if !kinds.contains(&kind) {
        errors.not_supported(&Path::new("addressType"), kind, kinds);
    }
    for (index, endpoint) in slice.list("endpoints").iter().enumerate() {
        let at = Path::new("endpoints").index(index).child("addresses");
        if endpoint.list("addresses").is_empty() {
            errors.required(&at, "must contain at least 1 address");
        }
        for (index, address) in endpoint.list("addresses").iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            validate_endpoint_address(kind, text, &at.index(index), errors);
        }
    }
    for (index, port) in slice.list("ports").iter().enumerate() {
        let at = Path::new("ports").index(index);
        container::one_of(port, "protocol", &["SCTP", "TCP", "UDP"], &at, errors);
        if let Some(number) = port.at("port").as_i64() {
            container::validate_port_number(number, &at.child("port"), errors);
        }
    }
}

/// An address of the slice's kind, and none that would lead traffic of others to a node itself (CVE-2021-25737).
fn validate_endpoint_address(kind: &str, text: &str, at: &Path, errors: &mut Errors) {
    let address: Option<IpAddr> = match kind {
        "IPv4" => text.parse().ok().map(IpAddr::V4),
        "IPv6" => text.parse().ok().map(IpAddr::V6),
        _ => return,
    };
    match address {
        Some(address) => validate_not_special(address, at, errors),
        None => errors.invalid(at, text, format!("must be an {kind} address")),
    }
}

fn validate_endpoint_slice_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.immutable(
        &Path::new("addressType"),
        new.at("addressType"),
        old.at("addressType"),
    );
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(kind: &str, address: &str, port: Value, expected: &[&str]) {
        let slice = json!({
            "addressType": kind,
            "endpoints": [{"addresses": [address]}],
            "ports": [{"protocol": "TCP", "port": port}],
        });
        let mut errors = Errors::default();
        validate_endpoint_slice(&slice, &mut errors);
        let found = errors.into_result().err().unwrap_or_default();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn endpoints_are_of_the_slices_kind_and_lead_to_no_node_itself() {
        let at = "endpoints[0].addresses[0]: Invalid value:";
        for (kind, good) in [("IPv4", "10.244.1.1"), ("IPv6", "fd00::1"), ("FQDN", "a.example")] {
            check(kind, good, json!(8080), &[]);
        }
        check("IPv4", "10.244.1.1", Value::Null, &[]);
        check(
            "IPv4",
            "fd00::1",
            json!(8080),
            &[&format!("{at} \"fd00::1\": must be an IPv4 address")],
        );
        let loopback = "may not be in the loopback range (127.0.0.0/8, ::1/128)";
        for (kind, address) in [("IPv4", "127.0.0.1"), ("IPv6", "::1")] {
            let expected = format!("{at} {address:?}: {loopback}");
            check(kind, address, json!(8080), &[&expected]);
        }
        let expected = format!("{at} \"0.0.0.0\": may not be unspecified (0.0.0.0)");
        check("IPv4", "0.0.0.0", json!(8080), &[&expected]);
        for port in [0, 65_536] {
            let expected =
                format!("ports[0].port: Invalid value: {port}: must be between 1 and 65535, inclusive");
            check("IPv4", "10.244.1.1", json!(port), &[&expected]);
        }
    }
}

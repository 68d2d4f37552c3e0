//! What the data plane and the nodes exchange: EndpointSlices, Leases, and the networking group.

use k8s_openapi::api::coordination::v1 as coordination;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::networking::v1 as networking;
use serde_json::Value;

use super::field::{Errors, Path};
use super::workloads::clear_status;
use super::{NameRule, Resource, container};
use crate::object::{self, Fields, default_to};
use crate::table::core as table;

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
        .short(&["ing"])
        .with_status()
        .with_generation(),
        Resource::new::<networking::IPAddress>(NETWORKING, "IPAddress", "ipaddresses")
            .cluster_scoped()
            .short(&["ip"])
            .named(NameRule::PathSegment),
        Resource::new::<networking::NetworkPolicy>(NETWORKING, "NetworkPolicy", "networkpolicies")
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
            let good = match kind {
                "IPv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => true,
            };
            if !good {
                errors.invalid(&at.index(index), text, format!("must be an {kind} address"));
            }
        }
    }
}

fn validate_endpoint_slice_update(new: &Value, old: &Value, errors: &mut Errors) {
    errors.immutable(
        &Path::new("addressType"),
        new.at("addressType"),
        old.at("addressType"),
    );
}

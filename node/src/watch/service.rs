//! `core/v1` Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use model::service::{LoadBalancerIngress, PROXY_LABELS};
use model::{
    Change, IpFamily, Kind, ObjectName, Service, ServiceKind, ServicePort, SessionAffinity, Text,
    TrafficPolicy,
};

use super::faults::Faults;
use super::object::{Converted, Watchable};

/// Kubernetes' default for `sessionAffinityConfig.clientIP.timeoutSeconds`: 3 hours.
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

impl Watchable for core::Service {
    const KIND: Kind = Kind::Service;

    fn convert(self, name: &ObjectName, faults: &mut Faults) -> Converted {
        let Self {
            metadata,
            spec,
            status,
        } = self;
        let Some(spec) = spec else {
            faults.add("spec", "is missing");
            return Converted::Invalid;
        };
        match service(name, metadata, spec, status, faults) {
            Some(service) => Converted::Put(Box::new(Change::Service(service))),
            None => Converted::Invalid,
        }
    }
}

/// The Service, or nothing where a field that decides what it is cannot be read.
fn service(
    name: &ObjectName,
    metadata: ObjectMeta,
    spec: core::ServiceSpec,
    status: Option<core::ServiceStatus>,
    faults: &mut Faults,
) -> Option<Service> {
    let core::ServiceSpec {
        allocate_load_balancer_node_ports: _,
        cluster_ip,
        cluster_ips,
        external_ips,
        external_name,
        external_traffic_policy,
        health_check_node_port,
        internal_traffic_policy,
        ip_families: _,
        ip_family_policy: _,
        load_balancer_class: _,
        load_balancer_ip: _,
        load_balancer_source_ranges,
        ports,
        publish_not_ready_addresses,
        selector: _,
        session_affinity,
        session_affinity_config,
        traffic_distribution,
        type_,
    } = spec;
    // `clusterIPs` is absent on objects of servers before 1.20 only.
    let cluster_ips = cluster_ips.unwrap_or_else(|| cluster_ip.into_iter().collect());
    Some(Service {
        name: name.clone(),
        kind: kind(type_.as_deref(), &cluster_ips, external_name, faults)?,
        ports: service_ports(ports.unwrap_or_default(), faults).into(),
        external_addresses: external_addresses(&external_ips.unwrap_or_default(), faults).into(),
        load_balancer: load_balancer(status, faults).into(),
        source_ranges: source_ranges(&load_balancer_source_ranges.unwrap_or_default(), faults)?.into(),
        external_policy: policy("spec.externalTrafficPolicy", external_traffic_policy, faults),
        internal_policy: policy("spec.internalTrafficPolicy", internal_traffic_policy, faults),
        health_check_node_port: faults.optional_port("spec.healthCheckNodePort", health_check_node_port),
        affinity: affinity(session_affinity.as_deref(), session_affinity_config, faults),
        traffic_distribution: traffic_distribution.map(Text::from),
        publish_not_ready: publish_not_ready_addresses.unwrap_or(false),
        proxy_labels: proxy_labels(metadata),
    })
}

fn kind(
    type_: Option<&str>,
    cluster_ips: &[String],
    external_name: Option<String>,
    faults: &mut Faults,
) -> Option<ServiceKind> {
    match type_ {
        Some("ExternalName") => {
            let name = external_name.filter(|name| !name.is_empty());
            if name.is_none() {
                faults.add("spec.externalName", "is missing");
            }
            name.map(ServiceKind::ExternalName)
        }
        None | Some("" | "ClusterIP" | "NodePort" | "LoadBalancer") => {
            if cluster_ips.first().is_some_and(|address| address == "None") {
                return Some(ServiceKind::Headless);
            }
            let addresses = cluster_addresses(cluster_ips, faults).into();
            Some(ServiceKind::ClusterIp { addresses })
        }
        Some(other) => {
            faults.add("spec.type", format!("{other:?} is not a type of Service"));
            None
        }
    }
}

/// At most one address per family. None at all is a Service whose address is not allocated yet.
fn cluster_addresses(texts: &[String], faults: &mut Faults) -> Vec<IpAddr> {
    let mut families = BTreeSet::new();
    let mut addresses = Vec::new();
    for (index, text) in texts.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let field = format!("spec.clusterIPs[{index}]");
        let Some(address) = faults.reachable_address(&field, text) else {
            continue;
        };
        if families.insert(IpFamily::from(address)) {
            addresses.push(address);
        } else {
            faults.add(field, format!("{address} is the second address of its family"));
        }
    }
    addresses
}

fn service_ports(ports: Vec<core::ServicePort>, faults: &mut Faults) -> Vec<ServicePort> {
    let mut seen = BTreeSet::new();
    let mut converted = Vec::new();
    for (index, port) in ports.into_iter().enumerate() {
        let field = format!("spec.ports[{index}]");
        let Some(port) = service_port(&field, port, faults) else {
            continue;
        };
        if seen.insert((port.protocol, port.port)) {
            converted.push(port);
        } else {
            faults.add(field, format!("{}/{} is there already", port.port, port.protocol));
        }
    }
    converted
}

fn service_port(field: &str, port: core::ServicePort, faults: &mut Faults) -> Option<ServicePort> {
    let core::ServicePort {
        app_protocol,
        name,
        node_port,
        port,
        protocol,
        target_port: _,
    } = port;
    let protocol = faults.protocol(&format!("{field}.protocol"), protocol.as_deref());
    let port = faults.port(&format!("{field}.port"), port);
    Some(ServicePort {
        name: name.unwrap_or_default().into(),
        protocol: protocol?,
        port: port?,
        node_port: faults.optional_port(&format!("{field}.nodePort"), node_port),
        app_protocol: app_protocol.map(Text::from),
    })
}

fn external_addresses(texts: &[String], faults: &mut Faults) -> Vec<IpAddr> {
    let addresses = texts.iter().enumerate();
    addresses
        .filter_map(|(index, text)| faults.reachable_address(&format!("spec.externalIPs[{index}]"), text))
        .collect()
}

fn load_balancer(status: Option<core::ServiceStatus>, faults: &mut Faults) -> Vec<LoadBalancerIngress> {
    let Some(core::ServiceStatus {
        conditions: _,
        load_balancer: Some(core::LoadBalancerStatus { ingress }),
    }) = status
    else {
        return Vec::new();
    };
    let mut converted = Vec::new();
    for (index, entry) in ingress.unwrap_or_default().into_iter().enumerate() {
        let core::LoadBalancerIngress {
            hostname: _,
            ip,
            ip_mode,
            ports: _,
        } = entry;
        let Some(ip) = ip.filter(|ip| !ip.is_empty()) else {
            continue;
        };
        let field = format!("status.loadBalancer.ingress[{index}].ip");
        converted.extend(
            faults
                .reachable_address(&field, &ip)
                .map(|address| LoadBalancerIngress {
                    address,
                    proxied: ip_mode.as_deref() == Some("Proxy"),
                }),
        );
    }
    converted
}

/// All ranges or nothing: a range left out could let everyone in.
fn source_ranges(texts: &[String], faults: &mut Faults) -> Option<Vec<IpNetwork>> {
    let ranges = texts.iter().enumerate();
    let ranges: Vec<_> = ranges
        .map(|(index, text)| faults.network(&format!("spec.loadBalancerSourceRanges[{index}]"), text))
        .collect();
    ranges.into_iter().collect()
}

fn policy(field: &str, text: Option<String>, faults: &mut Faults) -> TrafficPolicy {
    match text.as_deref() {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            faults.add(field, format!("{other:?} is not Cluster or Local"));
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(
    text: Option<&str>,
    config: Option<core::SessionAffinityConfig>,
    faults: &mut Faults,
) -> SessionAffinity {
    match text {
        None | Some("" | "None") => return SessionAffinity::None,
        Some("ClientIP") => {}
        Some(other) => {
            faults.add(
                "spec.sessionAffinity",
                format!("{other:?} is not None or ClientIP"),
            );
            return SessionAffinity::None;
        }
    }
    let client_ip = config.and_then(|core::SessionAffinityConfig { client_ip }| client_ip);
    let seconds = client_ip.and_then(|core::ClientIPConfig { timeout_seconds }| timeout_seconds);
    let timeout = match seconds {
        None => DEFAULT_AFFINITY,
        Some(seconds @ 1..=86_400) => Duration::from_secs(u64::from(seconds.unsigned_abs())),
        Some(other) => {
            let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            faults.add(field, format!("{other} is not 1 to 86400"));
            DEFAULT_AFFINITY
        }
    };
    SessionAffinity::ClientIp { timeout }
}

fn proxy_labels(metadata: ObjectMeta) -> BTreeMap<String, String> {
    let labels = metadata.labels.into_iter().flatten();
    // Into a new map: one that was emptied keeps half a kilobyte.
    labels
        .filter(|(label, _)| PROXY_LABELS.contains(&label.as_str()))
        .collect()
}

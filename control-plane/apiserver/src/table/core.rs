//! Columns of the core group, and of discovery, coordination and events.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, age, labels, number, or_none, since, text, wide};
use crate::object::{self, Fields};

/// Namespaces.
pub const NAMESPACE: &[Column] = &[text("Name"), text("Status"), text("Age")];

/// Cells under [`NAMESPACE`].
pub fn namespace(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        object::name(object).into(),
        object.text("status.phase").into(),
        age(object, now),
    ]
}

/// Nodes.
pub const NODE: &[Column] = &[
    text("Name"),
    text("Status"),
    text("Roles"),
    text("Age"),
    text("Version"),
    wide("Internal-IP"),
    wide("External-IP"),
    wide("OS-Image"),
    wide("Kernel-Version"),
    wide("Container-Runtime"),
];

/// Cells under [`NODE`].
pub fn node(object: &Value, now: Timestamp) -> Vec<Value> {
    let address = |kind: &str| {
        let found = object
            .list("status.addresses")
            .iter()
            .find(|one| one.text("type") == kind);
        or_none(found.map_or("", |one| one.text("address")))
    };
    let info = |field: &str| {
        let value = object.at("status.nodeInfo").text(field);
        Value::from(if value.is_empty() { "<unknown>" } else { value })
    };
    vec![
        object::name(object).into(),
        node_status(object).into(),
        node_roles(object),
        age(object, now),
        object.text("status.nodeInfo.kubeletVersion").into(),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn node_status(node: &Value) -> String {
    let ready = node
        .list("status.conditions")
        .iter()
        .find(|one| one.text("type") == "Ready");
    let ready = match ready.map(|one| one.text("status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    let cordoned = if node.flag("spec.unschedulable") {
        ",SchedulingDisabled"
    } else {
        ""
    };
    format!("{ready}{cordoned}")
}

fn node_roles(node: &Value) -> Value {
    let labels = node.at("metadata.labels").as_object();
    let roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None if key == "kubernetes.io/role" => value.as_str(),
                None => None,
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    or_none(roles.join(","))
}

/// What nodes use.
pub const NODE_METRICS: &[Column] = &[text("Name"), text("cpu"), text("memory"), text("Window")];

/// Cells under [`NODE_METRICS`].
pub fn node_metrics(object: &Value, _now: Timestamp) -> Vec<Value> {
    let used = |what: &str| object.at("usage").text(what).into();
    vec![
        object::name(object).into(),
        used("cpu"),
        used("memory"),
        object.text("window").into(),
    ]
}

/// What pods use.
pub const POD_METRICS: &[Column] = NODE_METRICS;

/// Cells under [`POD_METRICS`]: of all containers together.
pub fn pod_metrics(object: &Value, _now: Timestamp) -> Vec<Value> {
    let sum = |what: &str, unit: &str| {
        let all = object.list("containers").iter();
        let numbers =
            all.filter_map(|one| one.at("usage").text(what).strip_suffix(unit)?.parse::<u64>().ok());
        format!("{}{unit}", numbers.sum::<u64>())
    };
    vec![
        object::name(object).into(),
        sum("cpu", "n").into(),
        sum("memory", "Ki").into(),
        object.text("window").into(),
    ]
}

/// Services.
pub const SERVICE: &[Column] = &[
    text("Name"),
    text("Type"),
    text("Cluster-IP"),
    text("External-IP"),
    text("Port(s)"),
    text("Age"),
    wide("Selector"),
];

/// Cells under [`SERVICE`].
pub fn service(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = object
        .list("spec.ports")
        .iter()
        .map(|port| {
            let (number, protocol) = (port.int("port").unwrap_or(0), port.text("protocol"));
            match port.int("nodePort").unwrap_or(0) {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    vec![
        object::name(object).into(),
        object.text("spec.type").into(),
        or_none(object.text("spec.clusterIP")),
        external_ip(object),
        or_none(ports.join(",")),
        age(object, now),
        labels(object.at("spec.selector")),
    ]
}

/// What a load balancer answers on comes first, sorted, then the addresses that the user brought.
fn external_ip(service: &Value) -> Value {
    let brought = service.list("spec.externalIPs").iter().filter_map(Value::as_str);
    let kind = service.text("spec.type");
    if kind == "ExternalName" {
        return service.text("spec.externalName").into();
    }
    let mut shown = Vec::new();
    if kind == "LoadBalancer" {
        let ingress = service.list("status.loadBalancer.ingress").iter();
        let answering: BTreeSet<&str> = ingress
            .filter_map(|one| {
                let either = [one.text("ip"), one.text("hostname")];
                either.into_iter().find(|text| !text.is_empty())
            })
            .collect();
        shown.extend(answering);
    }
    shown.extend(brought);
    if kind == "LoadBalancer" && shown.is_empty() {
        return "<pending>".into();
    }
    or_none(shown.join(","))
}

/// Endpoints.
pub const ENDPOINTS: &[Column] = &[text("Name"), text("Endpoints"), text("Age")];

/// Cells under [`ENDPOINTS`].
pub fn endpoints(object: &Value, now: Timestamp) -> Vec<Value> {
    let mut shown = Vec::new();
    for subset in object.list("subsets") {
        for address in subset.list("addresses") {
            let ip = address.text("ip");
            let joined = |port: &Value| match ip.contains(':') {
                true => format!("[{ip}]:{}", port.int("port").unwrap_or(0)),
                false => format!("{ip}:{}", port.int("port").unwrap_or(0)),
            };
            match subset.list("ports") {
                [] => shown.push(ip.to_owned()),
                ports => shown.extend(ports.iter().map(joined)),
            }
        }
    }
    vec![
        object::name(object).into(),
        first_three(&shown, " + "),
        age(object, now),
    ]
}

/// EndpointSlices.
pub const ENDPOINT_SLICE: &[Column] = &[
    text("Name"),
    text("AddressType"),
    text("Ports"),
    text("Endpoints"),
    text("Age"),
];

/// Cells under [`ENDPOINT_SLICE`].
pub fn endpoint_slice(object: &Value, now: Timestamp) -> Vec<Value> {
    let ports: Vec<String> = object
        .list("ports")
        .iter()
        .map(|port| port.int("port").map_or("*".to_owned(), |n| n.to_string()))
        .collect();
    let addresses: Vec<String> = object
        .list("endpoints")
        .iter()
        .flat_map(|endpoint| endpoint.list("addresses"))
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect();
    let unset = |value: Value| {
        if value == "<none>" {
            "<unset>".into()
        } else {
            value
        }
    };
    vec![
        object::name(object).into(),
        object.text("addressType").into(),
        unset(first_three(&ports, " + ")),
        unset(first_three(&addresses, " + ")),
        age(object, now),
    ]
}

fn first_three(all: &[String], plus: &str) -> Value {
    match all {
        [] => or_none(""),
        [a, b, c, rest @ ..] if !rest.is_empty() => format!("{a},{b},{c}{plus}{} more...", rest.len()).into(),
        few => few.join(",").into(),
    }
}

/// ConfigMaps.
pub const CONFIG_MAP: &[Column] = &[text("Name"), number("Data"), text("Age")];

/// Cells under [`CONFIG_MAP`].
pub fn config_map(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        object::name(object).into(),
        (size(object, "data") + size(object, "binaryData")).into(),
        age(object, now),
    ]
}

/// Secrets.
pub const SECRET: &[Column] = &[text("Name"), text("Type"), number("Data"), text("Age")];

/// Cells under [`SECRET`].
pub fn secret(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        object::name(object).into(),
        object.text("type").into(),
        size(object, "data").into(),
        age(object, now),
    ]
}

/// ServiceAccounts.
pub const SERVICE_ACCOUNT: &[Column] = &[text("Name"), number("Secrets"), text("Age")];

/// Cells under [`SERVICE_ACCOUNT`].
pub fn service_account(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        object::name(object).into(),
        object.list("secrets").len().into(),
        age(object, now),
    ]
}

fn size(object: &Value, field: &str) -> usize {
    object.at(field).as_object().map_or(0, serde_json::Map::len)
}

/// Leases.
pub const LEASE: &[Column] = &[text("Name"), text("Holder"), text("Age")];

/// Cells under [`LEASE`].
pub fn lease(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        object::name(object).into(),
        object.text("spec.holderIdentity").into(),
        age(object, now),
    ]
}

/// Events.
pub const EVENT: &[Column] = &[
    text("Last Seen"),
    text("Type"),
    text("Reason"),
    text("Object"),
    wide("Subobject"),
    wide("Source"),
    text("Message"),
    wide("First Seen"),
    wide("Count"),
    wide("Name"),
];

/// Cells under [`EVENT`]; `object` is the stored form, or the newer view of it.
pub fn event(object: &Value, now: Timestamp) -> Vec<Value> {
    let either = |core: &str, view: &str| match object.text(core) {
        "" => object.text(view).to_owned(),
        told => told.to_owned(),
    };
    let first = [
        either("firstTimestamp", "deprecatedFirstTimestamp"),
        object.text("eventTime").to_owned(),
    ];
    let first = first
        .into_iter()
        .find(|time| !time.is_empty())
        .unwrap_or_default();
    let last = [
        object.text("series.lastObservedTime").to_owned(),
        either("lastTimestamp", "deprecatedLastTimestamp"),
    ];
    let last = last
        .into_iter()
        .find(|time| !time.is_empty())
        .unwrap_or_else(|| first.clone());
    let regarding = if object.at("involvedObject").is_object() {
        object.at("involvedObject")
    } else {
        object.at("regarding")
    };
    let count = [
        object.int("series.count"),
        object.int("count"),
        object.int("deprecatedCount"),
    ];
    let count = count.into_iter().flatten().next().unwrap_or(1);
    vec![
        since(&last, now).into(),
        object.text("type").into(),
        object.text("reason").into(),
        format!(
            "{}/{}",
            regarding.text("kind").to_lowercase(),
            regarding.text("name")
        )
        .into(),
        regarding.text("fieldPath").into(),
        event_source(object).into(),
        either("message", "note").trim().into(),
        since(&first, now).into(),
        count.to_string().into(),
        object::name(object).into(),
    ]
}

fn event_source(event: &Value) -> String {
    let component = [
        event.text("source.component"),
        event.text("reportingComponent"),
        event.text("reportingController"),
    ];
    let component = component
        .into_iter()
        .find(|one| !one.is_empty())
        .unwrap_or_default();
    match event.text("source.host") {
        "" => component.to_owned(),
        host => format!("{component}, {host}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check_service(spec: Value, ingress: Value, expected: Value) {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let object = json!({
            "metadata": { "name": "web", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": spec, "status": { "loadBalancer": { "ingress": ingress } },
        });
        assert_eq!(json!(service(&object, now)), expected);
    }

    #[test]
    fn services_show_ports_with_their_node_ports() {
        check_service(
            json!({
                "type": "NodePort", "clusterIP": "10.96.1.1", "selector": { "app": "web" },
                "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30080 }, { "port": 53, "protocol": "UDP" }],
            }),
            json!([]),
            json!([
                "web",
                "NodePort",
                "10.96.1.1",
                "<none>",
                "80:30080/TCP,53/UDP",
                "60s",
                "app=web"
            ]),
        );
    }

    #[test]
    fn services_show_where_they_are_reached_from_outside() {
        let (ip, other, host) = (
            json!({ "ip": "192.0.2.9" }),
            json!({ "ip": "192.0.2.1", "ipMode": "VIP" }),
            json!({ "hostname": "lb.example.com" }),
        );
        for (kind, external_ips, ingress, shown) in [
            ("LoadBalancer", json!([]), json!([]), "<pending>"),
            ("LoadBalancer", json!(["198.51.100.1"]), json!([]), "198.51.100.1"),
            (
                "LoadBalancer",
                json!(["198.51.100.1"]),
                json!([ip, host, other, ip]),
                "192.0.2.1,192.0.2.9,lb.example.com,198.51.100.1",
            ),
            ("ClusterIP", json!([]), json!([]), "<none>"),
            (
                "ClusterIP",
                json!(["198.51.100.2", "198.51.100.1"]),
                json!([]),
                "198.51.100.2,198.51.100.1",
            ),
            ("NodePort", json!(["198.51.100.1"]), json!([]), "198.51.100.1"),
        ] {
            check_service(
                json!({ "type": kind, "clusterIP": "10.96.1.1", "externalIPs": external_ips }),
                ingress,
                json!(["web", kind, "10.96.1.1", shown, "<none>", "60s", "<none>"]),
            );
        }
        check_service(
            json!({ "type": "ExternalName", "externalName": "example.com" }),
            json!([]),
            json!([
                "web",
                "ExternalName",
                "<none>",
                "example.com",
                "<none>",
                "60s",
                "<none>"
            ]),
        );
    }
}

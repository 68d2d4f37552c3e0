//! Columns of `networking.k8s.io`.

use jiff::Timestamp;
use serde_json::Value;

use super::{Column, age, or_none, selector, text};
use crate::object::{self, Fields};

/// How many hosts are told by name (`formatHosts`).
const HOSTS: usize = 3;

/// Ingresses.
pub const INGRESS: &[Column] = &[
    text("Name"),
    text("Class"),
    text("Hosts"),
    text("Address"),
    text("Ports"),
    text("Age"),
];

/// Cells under [`INGRESS`].
pub fn ingress(object: &Value, now: Timestamp) -> Vec<Value> {
    let points = object.list("status.loadBalancer.ingress").iter();
    let addresses = points.map(|point| match point.text("ip") {
        "" => point.text("hostname"),
        ip => ip,
    });
    let ports = match object.list("spec.tls") {
        [] => "80",
        _ => "80, 443",
    };
    vec![
        object::name(object).into(),
        or_none(object.text("spec.ingressClassName")),
        hosts(object.list("spec.rules")).into(),
        addresses.collect::<Vec<_>>().join(",").into(),
        ports.into(),
        age(object, now),
    ]
}

fn hosts(rules: &[Value]) -> String {
    let named: Vec<&str> = rules
        .iter()
        .map(|rule| rule.text("host"))
        .filter(|host| !host.is_empty())
        .collect();
    match named.get(HOSTS..) {
        _ if named.is_empty() => "*".to_owned(),
        Some(more @ [_, ..]) => format!("{} + {} more...", named[..HOSTS].join(","), more.len()),
        _ => named.join(","),
    }
}

/// NetworkPolicies.
pub const NETWORK_POLICY: &[Column] = &[text("Name"), text("Pod-Selector"), text("Age")];

/// Cells under [`NETWORK_POLICY`].
pub fn network_policy(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        object::name(object).into(),
        selector(object.at("spec.podSelector")),
        age(object, now),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn ingresses_tell_hosts_addresses_and_ports() {
        let rules = |names: &[&str]| -> Value { names.iter().map(|name| json!({ "host": name })).collect() };
        let rows = [
            (json!({}), json!({}), ["<none>", "*", "", "80"]),
            (
                json!({ "ingressClassName": "c", "rules": rules(&["a", "b", "c"]), "tls": [{}] }),
                json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }, { "hostname": "lb" }] } }),
                ["c", "a,b,c", "192.0.2.1,lb", "80, 443"],
            ),
            (
                json!({ "rules": rules(&["a", "", "b", "c", "d", "e"]) }),
                json!({}),
                ["<none>", "a,b,c + 2 more...", "", "80"],
            ),
        ];
        for (spec, status, expected) in rows {
            let object = json!({ "metadata": { "name": "x" }, "spec": spec, "status": status });
            let cells = ingress(&object, Timestamp::UNIX_EPOCH);
            assert_eq!(cells[1..5], expected.map(Value::from), "{object}");
        }
    }
}

//! `core/v1` Pods, of which names and addresses are read: a whole pod is a hundred times as much.

use std::borrow::Cow;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use model::{Change, Kind, NodeName, ObjectName, Pod};
use serde::Deserialize;

use super::faults::Faults;
use super::object::{Converted, Watchable};

/// What is read of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodAddresses {
    metadata: ObjectMeta,
    spec: Spec,
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    node_name: Option<String>,
    host_network: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Status {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

impl Watchable for PodAddresses {
    const KIND: Kind = Kind::Pod;
    /// As CoreDNS asks: a pod that has ended keeps its address in its status, and another may have it by then.
    const FIELDS: Option<&'static str> =
        Some("status.phase!=Succeeded,status.phase!=Failed,status.phase!=Unknown");

    fn convert(self, name: &ObjectName, faults: &mut Faults) -> Converted {
        let Self {
            metadata,
            spec: Spec {
                node_name,
                host_network,
            },
            status:
                Status {
                    phase,
                    pod_ip,
                    pod_ips,
                },
        } = self;
        let has_ended = matches!(phase.as_str(), "Succeeded" | "Failed" | "Unknown");
        if has_ended || metadata.deletion_timestamp.is_some() {
            return Converted::Irrelevant;
        }
        // `podIPs` is absent on objects of servers before 1.16 only.
        let texts = match pod_ips.is_empty() {
            true => vec![pod_ip],
            false => pod_ips.into_iter().map(|PodIp { ip }| ip).collect(),
        };
        let texts = texts.iter().enumerate().filter(|(_, text)| !text.is_empty());
        let addresses: Vec<_> = texts
            .filter_map(|(index, text)| faults.reachable_address(&format!("status.podIPs[{index}].ip"), text))
            .collect();
        if addresses.is_empty() {
            return Converted::Irrelevant;
        }
        Converted::Put(Box::new(Change::Pod(Pod {
            name: name.clone(),
            node: node_name.map(|name| NodeName(name.into())),
            addresses,
            host_network,
        })))
    }
}

impl Resource for PodAddresses {
    type DynamicType = ();
    type Scope = <core::Pod as Resource>::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        core::Pod::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        core::Pod::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        core::Pod::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        core::Pod::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::watch::object::Watched;

    #[test]
    fn a_pod_is_its_addresses_for_as_long_as_they_are_its_own() {
        let ip = |address: &str| json!({"ip": address});
        let running = |more: Value| {
            let mut status = json!({"phase": "Running"});
            for (key, value) in more.as_object().expect("an object") {
                status[key] = value.clone();
            }
            status
        };
        let rows: [(Value, &[&str]); 8] = [
            (
                running(json!({"podIP": "10.244.1.5", "podIPs": [ip("10.244.1.5")]})),
                &["10.244.1.5"],
            ),
            (
                running(json!({"podIP": "10.244.1.5", "podIPs": [ip("10.244.1.5"), ip("fd00::5")]})),
                &["10.244.1.5", "fd00::5"],
            ),
            (running(json!({"podIP": "10.244.1.5"})), &["10.244.1.5"]),
            (
                running(json!({"podIP": "10.244.1.5", "podIPs": [ip("nonsense"), ip("fd00::5")]})),
                &["fd00::5"],
            ),
            (running(json!({})), &[]),
            (json!({"phase": "Succeeded", "podIP": "10.244.1.5"}), &[]),
            (json!({"phase": "Failed", "podIP": "10.244.1.5"}), &[]),
            (json!({}), &[]),
        ];
        for (status, expected) in rows {
            let pod = json!({
                "metadata": {"namespace": "default", "name": "web-0"},
                "spec": {"nodeName": "node-1", "hostNetwork": true, "containers": "whatever"},
                "status": status,
            });
            let watched: Watched<PodAddresses> =
                serde_json::from_str(&pod.to_string()).expect("never too bad");
            let addresses = expected
                .iter()
                .map(|text| text.parse().expect("address"))
                .collect();
            let expected = match expected {
                [] => Converted::Irrelevant,
                _ => Converted::Put(Box::new(Change::Pod(Pod {
                    name: ObjectName::new("default", "web-0"),
                    node: Some("node-1".into()),
                    addresses,
                    host_network: true,
                }))),
            };
            assert_eq!(watched.converted, expected, "{status}");
        }
        let leaving = json!({
            "metadata": {"namespace": "default", "name": "x", "deletionTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running", "podIP": "10.244.1.5"},
        });
        let watched: Watched<PodAddresses> =
            serde_json::from_str(&leaving.to_string()).expect("never too bad");
        assert_eq!(watched.converted, Converted::Irrelevant);
    }
}

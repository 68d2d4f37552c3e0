//! The resources that the server has, how paths name them, and how clients find them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::state::Key;

/// A resource that the server has.
pub(super) struct Resource {
    pub(super) group_version: &'static str,
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
}

/// All of them.
pub(super) const RESOURCES: [Resource; 19] = [
    resource("v1", "pods", "Pod", true),
    resource("v1", "nodes", "Node", false),
    resource("v1", "services", "Service", true),
    resource("v1", "endpoints", "Endpoints", true),
    resource("v1", "namespaces", "Namespace", false),
    resource("v1", "serviceaccounts", "ServiceAccount", true),
    resource("v1", "configmaps", "ConfigMap", true),
    resource("v1", "events", "Event", true),
    resource("apps/v1", "replicasets", "ReplicaSet", true),
    resource("apps/v1", "deployments", "Deployment", true),
    resource("apps/v1", "daemonsets", "DaemonSet", true),
    resource("apps/v1", "controllerrevisions", "ControllerRevision", true),
    resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
    resource("apps/v1", "statefulsets", "StatefulSet", true),
    resource("batch/v1", "jobs", "Job", true),
    resource("batch/v1", "cronjobs", "CronJob", true),
    resource("policy/v1", "poddisruptionbudgets", "PodDisruptionBudget", true),
    resource("coordination.k8s.io/v1", "leases", "Lease", true),
    resource(
        "rbac.authorization.k8s.io/v1",
        "clusterroles",
        "ClusterRole",
        false,
    ),
];

const fn resource(
    group_version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Resource {
    Resource {
        group_version,
        plural,
        kind,
        namespaced,
    }
}

/// What a path names.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) resource: &'static Resource,
    pub(super) namespace: String,
    pub(super) name: Option<String>,
    pub(super) part: Option<String>,
}

impl Target {
    pub(super) fn parse(path: &str) -> Option<Self> {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let group_version = match parts[..] {
            ["api", ..] => parts.drain(..2).nth(1)?.to_owned(),
            _ => parts.drain(..3).skip(1).collect::<Vec<_>>().join("/"),
        };
        let (namespace, rest) = match parts[..] {
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", &parts[..]),
            ["namespaces", namespace, ..] => (namespace, &parts[2..]),
            _ => ("", &parts[..]),
        };
        let mut resources = RESOURCES.iter();
        let resource =
            resources.find(|r| r.group_version == group_version && Some(&r.plural) == rest.first())?;
        Some(Self {
            resource,
            namespace: namespace.to_owned(),
            name: rest.get(1).map(|name| (*name).to_owned()),
            part: rest.get(2).map(|part| (*part).to_owned()),
        })
    }

    pub(super) fn selects(&self, key: &Key, query: &BTreeMap<String, String>) -> bool {
        let by_name = query
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("metadata.name="));
        key.0 == self.resource.plural
            && (self.namespace.is_empty() || key.1 == self.namespace)
            && by_name.is_none_or(|name| key.2 == name)
    }
}

/// Only the classic form: a request for the aggregated one gets it, too, as from a server that does not know
/// better.
pub(super) fn discovery(path: &str) -> Option<Value> {
    let path = path.trim_matches('/');
    let groups = || {
        RESOURCES
            .iter()
            .filter_map(|resource| resource.group_version.split_once('/'))
    };
    match path {
        "api" => Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })),
        "apis" => {
            let mut names: Vec<_> = groups().collect();
            names.dedup();
            let groups: Vec<_> = names
                .into_iter()
                .map(|(group, version)| {
                    let version = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
                    json!({ "name": group, "versions": [version], "preferredVersion": version })
                })
                .collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        _ => {
            let group_version = path.strip_prefix("apis/").or_else(|| path.strip_prefix("api/"))?;
            let resources: Vec<_> = RESOURCES
                .iter()
                .filter(|resource| resource.group_version == group_version)
                .map(|resource| {
                    json!({
                        "name": resource.plural, "singularName": "", "kind": resource.kind,
                        "namespaced": resource.namespaced,
                        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                    })
                })
                .collect();
            let list = json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
            });
            (!resources.is_empty()).then_some(list)
        }
    }
}

//! What is put up in the cluster: a namespace, three pods on each node, Services. Pure.

use serde_json::{Value, json};

use super::cells::Family;

/// The label of everything that is put up.
pub const LABEL: &str = "causeway.dev/connectivity";

/// The annotation that says who put a namespace up.
pub const HOLDER: &str = "causeway.dev/held-by";

/// Where servers take HTTP.
pub const HTTP_PORT: u16 = 8080;
/// Where servers take datagrams.
pub const UDP_PORT: u16 = 8081;
/// Where their Services take both.
pub const SERVICE_PORT: u16 = 80;

/// A role of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// It answers.
    Server,
    /// It asks.
    Client,
    /// It asks from the node's own network.
    Host,
}

impl Role {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Server, Self::Client, Self::Host];

    const fn word(self) -> &'static str {
        match self {
            Self::Server => "server",
            Self::Client => "client",
            Self::Host => "host",
        }
    }
}

/// The name of a pod on the n-th node, from 0 on.
#[must_use]
pub fn pod_name(role: Role, site: usize) -> String {
    format!("{}-{}", role.word(), site + 1)
}

/// The name of a server's Service of one version of IP.
#[must_use]
pub fn service_name(site: usize, family: Family) -> String {
    format!(
        "{}-{}",
        pod_name(Role::Server, site),
        family.to_string().to_lowercase()
    )
}

/// The same of the headless one.
#[must_use]
pub fn headless_name(site: usize, family: Family) -> String {
    format!("{}-headless", service_name(site, family))
}

/// The namespace: pods may use the node's network in it.
#[must_use]
pub fn namespace(name: &str, holder: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name,
            "labels": {LABEL: "true", "pod-security.kubernetes.io/enforce": "privileged"},
            "annotations": {HOLDER: holder},
        },
    })
}

/// A pod. It is bound to its node by name: no scheduler has a say, and no taint.
#[must_use]
pub fn pod(role: Role, site: usize, node: &str, image: &str) -> Value {
    let arguments = match role {
        Role::Server => vec![
            "serve".to_owned(),
            "--http".to_owned(),
            format!(":{HTTP_PORT}"),
            "--udp".to_owned(),
            format!(":{UDP_PORT}"),
        ],
        Role::Client | Role::Host => vec!["sleep".to_owned(), "infinity".to_owned()],
    };
    let name = pod_name(role, site);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {LABEL: "true", "pod": name}},
        "spec": {
            "nodeName": node,
            "hostNetwork": role == Role::Host,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{
                "name": "testserver", "image": image, "imagePullPolicy": "IfNotPresent", "args": arguments,
            }],
        },
    })
}

/// A server's Service of one version of IP, with node ports; or the headless one.
#[must_use]
pub fn service(site: usize, family: Family, is_headless: bool) -> Value {
    let name = if is_headless {
        headless_name(site, family)
    } else {
        service_name(site, family)
    };
    let mut spec = json!({
        "selector": {"pod": pod_name(Role::Server, site)},
        "ipFamilyPolicy": "SingleStack",
        "ipFamilies": [family.to_string()],
        "ports": [
            {"name": "http", "protocol": "TCP", "port": SERVICE_PORT, "targetPort": HTTP_PORT},
            {"name": "echo", "protocol": "UDP", "port": SERVICE_PORT, "targetPort": UDP_PORT},
        ],
    });
    if is_headless {
        spec["clusterIP"] = json!("None");
    } else {
        spec["type"] = json!("NodePort");
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": {LABEL: "true"}},
        "spec": spec,
    })
}

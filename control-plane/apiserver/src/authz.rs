//! Who may do what without a role: administrators everything, a node's kubelet and agent what is that node's. Everybody
//! else, and everything else, is a matter of [`crate::rbac`].

use serde_json::Value;

use crate::authn::User;
use crate::object::Fields;
use crate::request::{RequestInfo, ResourcePath, Target};
use crate::status::Failure;

/// The group of the data plane's agents.
pub const AGENTS: &str = "system:causeway-agents";

const READ: [&str; 3] = ["get", "list", "watch"];

/// The group whose members nothing is refused.
pub const ADMINISTRATORS: &str = "system:masters";

/// True when it needs no role.
pub fn allowed(user: &User, request: &RequestInfo) -> bool {
    if user.is_in(ADMINISTRATORS) {
        return true;
    }
    match &request.target {
        Target::Other(segments) => is_probe(&request.verb, segments),
        Target::Resource(path) => {
            node_of(user).is_some_and(|node| node_may(node, &request.verb, path))
                || user.is_in(AGENTS) && agent_may(user, &request.verb, path)
        }
    }
}

/// True for whoever may do things that no role tells of.
pub fn needs_no_role(user: &User) -> bool {
    node_of(user).is_some() || user.is_in(AGENTS)
}

/// The namespace whose roles count, empty for the cluster. A Namespace is in itself.
pub fn scope(request: &RequestInfo) -> &str {
    let Target::Resource(path) = &request.target else {
        return "";
    };
    let itself = path
        .name
        .as_ref()
        .filter(|_| path.group.is_empty() && path.resource == "namespaces");
    path.namespace.as_ref().or(itself).map_or("", String::as_str)
}

/// 403 in upstream's words.
pub fn refusal(user: &User, request: &RequestInfo) -> Failure {
    let who = &user.name;
    match &request.target {
        Target::Other(segments) => Failure::forbidden(format!(
            "forbidden: User \"{who}\" cannot {} path \"/{}\"",
            request.verb,
            segments.join("/")
        )),
        Target::Resource(path) => {
            let resource = match &path.subresource {
                Some(subresource) => format!("{}/{subresource}", path.resource),
                None => path.resource.clone(),
            };
            let subject = match path.group.as_str() {
                "" => path.resource.clone(),
                group => format!("{}.{group}", path.resource),
            };
            let named = path
                .name
                .as_deref()
                .map(|name| format!(" \"{name}\""))
                .unwrap_or_default();
            let scope = match scope(request) {
                "" => "at the cluster scope".to_owned(),
                namespace => format!("in the namespace \"{namespace}\""),
            };
            Failure::forbidden(format!(
                "{subject}{named} is forbidden: User \"{who}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
                request.verb, path.group
            ))
        }
    }
}

/// What is asked before the roles are read (`--authorization-always-allow-paths`).
fn is_probe(verb: &str, segments: &[String]) -> bool {
    let first = segments.first().map(String::as_str);
    verb == "get" && matches!(first, Some("healthz" | "livez" | "readyz" | "version"))
}

/// The node that a kubelet (or a node's own agent) speaks for.
fn node_of(user: &User) -> Option<&str> {
    user.is_in("system:nodes")
        .then(|| user.name.strip_prefix("system:node:"))
        .flatten()
}

/// `system:node`, narrowed to the own Node and Lease. That a Pod is on the node, and that a pod on the node needs a
/// Secret, is checked where the objects are at hand.
fn node_may(node: &str, verb: &str, path: &ResourcePath) -> bool {
    let own = path.name.as_deref() == Some(node);
    let reads = READ.contains(&verb);
    match (
        path.group.as_str(),
        path.resource.as_str(),
        path.subresource.as_deref(),
    ) {
        ("", "nodes", None) => reads || verb == "create" || own && matches!(verb, "update" | "patch"),
        ("", "nodes", Some("status")) => own && matches!(verb, "get" | "update" | "patch"),
        ("coordination.k8s.io", "leases", None) => {
            path.namespace.as_deref() == Some("kube-node-lease")
                && (verb == "create" || own && matches!(verb, "get" | "update" | "patch" | "delete"))
        }
        ("", "pods", None) => reads || verb == "delete",
        ("", "pods", Some("status")) => matches!(verb, "get" | "update" | "patch"),
        ("", "services" | "namespaces" | "serviceaccounts", None) => reads,
        ("", "configmaps" | "secrets", None) => verb == "get",
        ("discovery.k8s.io", "endpointslices", None) => reads,
        ("" | "events.k8s.io", "events", None) => matches!(verb, "create" | "patch" | "update"),
        ("", "serviceaccounts", Some("token")) => verb == "create",
        ("authentication.k8s.io", "tokenreviews", None) => verb == "create",
        _ => false,
    }
}

/// What the data plane reads of the cluster, and the little that it writes.
fn agent_may(user: &User, verb: &str, path: &ResourcePath) -> bool {
    let reads = READ.contains(&verb);
    // The agent's certificate names its node: `system:causeway-agent:<node>`.
    let own = user.name.rsplit_once(':').map(|(_, node)| node) == path.name.as_deref();
    match (
        path.group.as_str(),
        path.resource.as_str(),
        path.subresource.as_deref(),
    ) {
        ("", "services" | "nodes" | "namespaces" | "pods" | "endpoints", None) => {
            reads || path.resource == "nodes" && own && verb == "patch"
        }
        ("", "nodes", Some("status")) => own && verb == "patch",
        ("discovery.k8s.io", "endpointslices", None) => reads,
        ("networking.k8s.io", "servicecidrs" | "networkpolicies", None) => reads,
        ("" | "events.k8s.io", "events", None) => matches!(verb, "create" | "patch"),
        _ => false,
    }
}

/// True for a kubelet that is nothing more than that.
pub fn is_held_to_its_node(user: &User) -> bool {
    node_of(user).is_some() && !user.is_in(ADMINISTRATORS)
}

/// A kubelet may make no Node but its own (NodeRestriction); the name is in the body.
pub fn node_is_foreign_to(user: &User, name: &str) -> bool {
    is_held_to_its_node(user) && node_of(user) != Some(name)
}

/// A kubelet may delete, and change the status of, pods on its own node only (NodeRestriction).
pub fn pod_is_foreign_to(user: &User, pod: &Value) -> bool {
    is_held_to_its_node(user) && node_of(user) != Some(pod.text("spec.nodeName"))
}

/// Why a kubelet may not change a pod so: it is another node's, or it would get other labels, by which Services choose
/// their endpoints (NodeRestriction).
pub fn pod_change_refusal(user: &User, current: &Value, changed: &Value) -> Option<String> {
    let node = &user.name;
    if pod_is_foreign_to(user, current) {
        return Some(format!(
            "node {node} can only change pods with spec.nodeName set to itself"
        ));
    }
    let relabels = current.at("metadata.labels") != changed.at("metadata.labels");
    (relabels && is_held_to_its_node(user)).then(|| format!("node {node} cannot change the labels of a pod"))
}

/// Why a kubelet may not change its own Node so: by taints and by the labels that are kept for it a node draws pods, and
/// with them their Secrets (NodeRestriction).
pub fn node_change_refusal(user: &User, current: &Value, changed: &Value) -> Option<String> {
    const KEPT: &str = "node-restriction.kubernetes.io/";
    let kept = |node: &Value| -> Vec<(String, Value)> {
        let labels = node.at("metadata.labels").as_object().into_iter().flatten();
        let kept = labels.filter(|(key, _)| key.contains(KEPT));
        kept.map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let what = if current.list("spec.taints") != changed.list("spec.taints") {
        "taints"
    } else if kept(current) != kept(changed) {
        "labels below node-restriction.kubernetes.io"
    } else {
        return None;
    };
    is_held_to_its_node(user).then(|| format!("node {} cannot change its {what}", user.name))
}

/// Whether a pod (or a part of its spec) names a Secret: in volumes, variables, or to pull images with. A kubelet may
/// read those of its pods (`plugin/pkg/auth/authorizer/node`).
pub fn refers_to_secret(part: &Value, secret: &str) -> bool {
    match part {
        Value::Object(fields) => fields.iter().any(|(field, value)| match field.as_str() {
            "secret" => [value.text("secretName"), value.text("name")].contains(&secret),
            "secretRef" | "secretKeyRef" => value.text("name") == secret,
            "imagePullSecrets" => value
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one.text("name") == secret)),
            _ => refers_to_secret(value, secret),
        }),
        Value::Array(items) => items.iter().any(|item| refers_to_secret(item, secret)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::request::Query;

    fn user(name: &str, groups: &[&str]) -> User {
        let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        groups.push("system:authenticated".to_owned());
        User {
            name: name.to_owned(),
            groups,
            uid: None,
        }
    }

    #[track_caller]
    fn check(user: &User, method: &Method, path: &str, expected: bool) {
        let info = RequestInfo::parse(method, path, &Query::default());
        assert_eq!(allowed(user, &info), expected, "{} {method} {path}", user.name);
    }

    #[test]
    fn the_built_in_rules_allow_no_more_than_each_part_needs() {
        let admin = user("admin", &["system:masters"]);
        let node = user("system:node:n1", &["system:nodes"]);
        let agent = user("system:causeway-agent:n1", &[AGENTS]);
        let account = user(
            "system:serviceaccount:default:default",
            &["system:serviceaccounts"],
        );
        let nobody = User::anonymous();
        for (who, method, path, expected) in [
            (&admin, Method::DELETE, "/api/v1/nodes/n1", true),
            (&node, Method::PATCH, "/api/v1/nodes/n1/status", true),
            (&node, Method::PATCH, "/api/v1/nodes/n2/status", false),
            (
                &node,
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n1",
                true,
            ),
            (
                &node,
                Method::PUT,
                "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/n2",
                false,
            ),
            (&node, Method::GET, "/api/v1/pods", true),
            (&node, Method::GET, "/api/v1/secrets", false),
            (&node, Method::GET, "/api/v1/namespaces/a/secrets", false),
            (&node, Method::GET, "/api/v1/namespaces/a/secrets/b", true),
            (
                &node,
                Method::POST,
                "/apis/apps/v1/namespaces/a/deployments",
                false,
            ),
            (&agent, Method::GET, "/api/v1/services", true),
            (&agent, Method::GET, "/api/v1/secrets", false),
            (
                &agent,
                Method::GET,
                "/apis/networking.k8s.io/v1/networkpolicies",
                true,
            ),
            (
                &agent,
                Method::DELETE,
                "/apis/networking.k8s.io/v1/namespaces/a/networkpolicies/b",
                false,
            ),
            (&agent, Method::PATCH, "/api/v1/nodes/n1/status", true),
            (&agent, Method::PATCH, "/api/v1/nodes/n2/status", false),
            (&account, Method::GET, "/apis", false),
            (&account, Method::GET, "/api/v1/pods", false),
            (&nobody, Method::GET, "/readyz", true),
            (&nobody, Method::GET, "/apis", false),
        ] {
            check(who, &method, path, expected);
        }
    }

    #[test]
    fn a_kubelet_draws_no_pods_to_its_node() {
        let node = user("system:node:n1", &["system:nodes"]);
        let admin = user("admin", &[ADMINISTRATORS]);
        let of = |taints: Value, labels: Value| serde_json::json!({ "metadata": { "labels": labels }, "spec": { "taints": taints } });
        let (none, taint) = (
            serde_json::json!(null),
            serde_json::json!([{ "key": "a", "effect": "NoSchedule" }]),
        );
        let label = serde_json::json!({ "node-restriction.kubernetes.io/a": "b" });
        for (before, after, expected) in [
            (
                of(none.clone(), none.clone()),
                of(none.clone(), serde_json::json!({ "a": "b" })),
                None,
            ),
            (
                of(none.clone(), none.clone()),
                of(serde_json::json!([]), none.clone()),
                None,
            ),
            (
                of(taint, none.clone()),
                of(none.clone(), none.clone()),
                Some("taints"),
            ),
            (
                of(none.clone(), none.clone()),
                of(none, label),
                Some("labels below node-restriction.kubernetes.io"),
            ),
        ] {
            let told = expected.map(|what| format!("node system:node:n1 cannot change its {what}"));
            assert_eq!(node_change_refusal(&node, &before, &after), told);
            assert_eq!(node_change_refusal(&admin, &before, &after), None);
        }
    }

    #[test]
    fn a_pod_refers_to_secrets_by_volume_variable_and_pull_secret() {
        let pod = serde_json::json!({ "spec": {
            "imagePullSecrets": [{ "name": "pull" }],
            "volumes": [
                { "name": "not-a-secret", "secret": { "secretName": "volume" } },
                { "name": "p", "projected": { "sources": [{ "secret": { "name": "projected" } }] } },
            ],
            "containers": [{ "name": "c",
                "envFrom": [{ "secretRef": { "name": "all" } }],
                "env": [{ "name": "E", "valueFrom": { "secretKeyRef": { "name": "one", "key": "k" } } }],
            }],
        } });
        for name in ["pull", "volume", "projected", "all", "one"] {
            assert!(refers_to_secret(&pod, name), "{name}");
        }
        for name in ["not-a-secret", "c", "E", "k", "p"] {
            assert!(!refers_to_secret(&pod, name), "{name}");
        }
    }

    #[test]
    fn refusals_read_as_upstream_writes_them() {
        let info = RequestInfo::parse(&Method::GET, "/api/v1/namespaces/default/pods", &Query::default());
        let told = refusal(&user("x", &[]), &info).message;
        let expected = "pods is forbidden: User \"x\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
        assert_eq!(told, expected);
    }
}

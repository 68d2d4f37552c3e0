//! The roles and bindings that every cluster has, by the names that people and manifests know
//! (`plugin/pkg/auth/authorizer/rbac/bootstrappolicy`). They are made when they are missing, and get the rules that a
//! newer server adds, unless the annotation `rbac.authorization.kubernetes.io/autoupdate` says `false`.
//!
//! What a node's kubelet and agent may do depends on the node that they speak for, which no role can say:
//! [`crate::authz`].

use serde_json::{Value, json};

use super::{GROUP, Rule};
use crate::object::Fields;

const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: &[&str] = &["get", "list", "watch"];
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const CREATE: &[&str] = &["create"];
const HEALTH: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];

/// Kind and object, the roles before the bindings.
pub fn objects() -> Vec<(&'static str, Value)> {
    let roles = own_roles().into_iter().chain(aggregated_roles());
    let roles = roles.map(|role| ("ClusterRole", role));
    roles
        .chain(
            bindings()
                .into_iter()
                .map(|binding| ("ClusterRoleBinding", binding)),
        )
        .collect()
}

/// The role as it is now with the rules of `first` that it lacks; `None` when it lacks none, or may not be changed.
pub fn completed(role: &Value, first: &Value) -> Option<Value> {
    let annotations = role.at("metadata.annotations").get(AUTO_UPDATE);
    let stays =
        annotations.and_then(Value::as_str) == Some("false") || role.at("aggregationRule").is_object();
    let (held, wanted) = (Rule::read_all(role), Rule::read_all(first));
    let missing = super::missing(&held.iter().collect::<Vec<_>>(), &wanted);
    if stays || missing.is_empty() {
        return None;
    }
    let mut completed = role.clone();
    completed["rules"] = json!([held, missing].concat());
    Some(completed)
}

fn on(group: &str, resources: &[&str], verbs: &[&str]) -> Value {
    json!({ "verbs": verbs, "apiGroups": [group], "resources": resources })
}

fn paths(paths: &[&str]) -> Value {
    json!({ "verbs": ["get"], "nonResourceURLs": paths })
}

fn named(kind: &str, name: &str) -> Value {
    json!({
        "apiVersion": format!("{GROUP}/v1"), "kind": kind,
        "metadata": { "name": name, "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
            "annotations": { AUTO_UPDATE: "true" } },
    })
}

fn role(name: &str, rules: &[Value]) -> Value {
    let mut role = named("ClusterRole", name);
    role["rules"] = rules.into();
    role
}

/// Labels a role as one whose rules belong to another.
fn part_of(mut role: Value, whole: &str) -> Value {
    role["metadata"]["labels"][aggregation_label(whole)] = "true".into();
    role
}

fn aggregation_label(whole: &str) -> String {
    format!("{GROUP}/aggregate-to-{whole}")
}

fn own_roles() -> Vec<Value> {
    vec![
        role(
            "cluster-admin",
            &[
                on("*", &["*"], &["*"]),
                json!({ "verbs": ["*"], "nonResourceURLs": ["*"] }),
            ],
        ),
        role(
            "system:discovery",
            &[paths(
                &[
                    HEALTH,
                    &["/api", "/api/*", "/apis", "/apis/*", "/openapi", "/openapi/*"],
                ]
                .concat(),
            )],
        ),
        role("system:public-info-viewer", &[paths(HEALTH)]),
        role(
            "system:monitoring",
            &[paths(&[
                "/healthz",
                "/healthz/*",
                "/livez",
                "/livez/*",
                "/metrics",
                "/metrics/slis",
                "/readyz",
                "/readyz/*",
            ])],
        ),
        role(
            "system:service-account-issuer-discovery",
            &[paths(&["/.well-known/openid-configuration", "/openid/v1/jwks"])],
        ),
        role(
            "system:basic-user",
            &[
                on(
                    "authorization.k8s.io",
                    &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
                    CREATE,
                ),
                on("authentication.k8s.io", &["selfsubjectreviews"], CREATE),
            ],
        ),
        role(
            "system:auth-delegator",
            &[
                on("authentication.k8s.io", &["tokenreviews"], CREATE),
                on("authorization.k8s.io", &["subjectaccessreviews"], CREATE),
            ],
        ),
        role(
            "system:kubelet-api-admin",
            &[
                on("", &["nodes"], &["get", "list", "watch", "proxy"]),
                on(
                    "",
                    &["nodes/log", "nodes/metrics", "nodes/proxy", "nodes/stats"],
                    &["*"],
                ),
            ],
        ),
        role(
            "system:node-proxier",
            &[
                on("", &["services", "endpoints"], &["list", "watch"]),
                on("", &["nodes"], READ),
                on("discovery.k8s.io", &["endpointslices"], &["list", "watch"]),
                on("networking.k8s.io", &["servicecidrs"], &["list", "watch"]),
                on("", &["events"], &["create", "patch", "update"]),
                on("events.k8s.io", &["events"], &["create", "patch", "update"]),
            ],
        ),
    ]
}

/// `view`, `edit` and `admin`: each is what is labelled as a part of it, and the one before is.
fn aggregated_roles() -> Vec<Value> {
    let whole = |name: &str| {
        let mut role = named("ClusterRole", name);
        role["aggregationRule"] =
            json!({ "clusterRoleSelectors": [{ "matchLabels": { aggregation_label(name): "true" } }] });
        role
    };
    vec![
        whole("admin"),
        part_of(whole("edit"), "admin"),
        part_of(whole("view"), "edit"),
        part_of(role("system:aggregate-to-admin", &administering()), "admin"),
        part_of(role("system:aggregate-to-edit", &editing()), "edit"),
        part_of(role("system:aggregate-to-view", &viewing()), "view"),
        // metrics-server's.
        part_of(
            role(
                "system:aggregated-metrics-reader",
                &[on("metrics.k8s.io", &["nodes", "pods"], READ)],
            ),
            "view",
        ),
    ]
}

fn administering() -> Vec<Value> {
    vec![
        on("authorization.k8s.io", &["localsubjectaccessreviews"], CREATE),
        on(GROUP, &["roles", "rolebindings"], &[READ, WRITE].concat()),
    ]
}

fn editing() -> Vec<Value> {
    let streams = ["pods/attach", "pods/exec", "pods/portforward", "pods/proxy"];
    vec![
        on("", &[&streams[..], &["secrets", "services/proxy"]].concat(), READ),
        on("", &[&["pods"], &streams[..]].concat(), WRITE),
        on("", &["pods/eviction", "serviceaccounts/token"], CREATE),
        on("", &["serviceaccounts"], &["impersonate"]),
        on(
            "",
            &[
                "configmaps",
                "events",
                "persistentvolumeclaims",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "secrets",
                "serviceaccounts",
                "services",
                "services/proxy",
            ],
            WRITE,
        ),
        on(
            "apps",
            &[
                "daemonsets",
                "deployments",
                "deployments/rollback",
                "deployments/scale",
                "replicasets",
                "replicasets/scale",
                "statefulsets",
                "statefulsets/scale",
            ],
            WRITE,
        ),
        on("autoscaling", &["horizontalpodautoscalers"], WRITE),
        on("batch", &["cronjobs", "jobs"], WRITE),
        on("networking.k8s.io", &["ingresses", "networkpolicies"], WRITE),
        on("policy", &["poddisruptionbudgets"], WRITE),
        on("coordination.k8s.io", &["leases"], &[READ, WRITE].concat()),
    ]
}

fn viewing() -> Vec<Value> {
    vec![
        on(
            "",
            &[
                "bindings",
                "configmaps",
                "endpoints",
                "events",
                "limitranges",
                "namespaces",
                "namespaces/status",
                "persistentvolumeclaims",
                "persistentvolumeclaims/status",
                "pods",
                "pods/log",
                "pods/status",
                "replicationcontrollers",
                "replicationcontrollers/scale",
                "replicationcontrollers/status",
                "resourcequotas",
                "resourcequotas/status",
                "serviceaccounts",
                "services",
                "services/status",
            ],
            READ,
        ),
        on(
            "apps",
            &[
                "controllerrevisions",
                "daemonsets",
                "daemonsets/status",
                "deployments",
                "deployments/scale",
                "deployments/status",
                "replicasets",
                "replicasets/scale",
                "replicasets/status",
                "statefulsets",
                "statefulsets/scale",
                "statefulsets/status",
            ],
            READ,
        ),
        on(
            "autoscaling",
            &["horizontalpodautoscalers", "horizontalpodautoscalers/status"],
            READ,
        ),
        on(
            "batch",
            &["cronjobs", "cronjobs/status", "jobs", "jobs/status"],
            READ,
        ),
        on("discovery.k8s.io", &["endpointslices"], READ),
        on(
            "networking.k8s.io",
            &["ingresses", "ingresses/status", "networkpolicies"],
            READ,
        ),
        on(
            "policy",
            &["poddisruptionbudgets", "poddisruptionbudgets/status"],
            READ,
        ),
    ]
}

fn bindings() -> Vec<Value> {
    let bind = |role: &str, subjects: &[(&str, &str)]| {
        let subject = |(kind, name): &(&str, &str)| json!({ "apiGroup": GROUP, "kind": kind, "name": name });
        let mut binding = named("ClusterRoleBinding", role);
        binding["roleRef"] = json!({ "apiGroup": GROUP, "kind": "ClusterRole", "name": role });
        binding["subjects"] = subjects.iter().map(subject).collect();
        binding
    };
    const ANYONE: (&str, &str) = ("Group", "system:authenticated");
    vec![
        bind("cluster-admin", &[("Group", "system:masters")]),
        bind("system:basic-user", &[ANYONE]),
        bind("system:discovery", &[ANYONE]),
        bind("system:monitoring", &[("Group", "system:monitoring")]),
        bind("system:node-proxier", &[("User", "system:kube-proxy")]),
        bind(
            "system:public-info-viewer",
            &[ANYONE, ("Group", "system:unauthenticated")],
        ),
        bind(
            "system:service-account-issuer-discovery",
            &[("Group", "system:serviceaccounts")],
        ),
    ]
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::super::Policy;
    use super::super::tests::check;
    use super::*;
    use crate::authn::User;

    #[test]
    fn everyone_discovers_and_nobody_does_more() {
        let objects = objects();
        let of = |kind: &'static str| objects.iter().filter(move |(of, _)| *of == kind);
        let values = |kind| of(kind).map(|(_, object)| object);
        let policy = Policy::new(values("ClusterRole"), values("ClusterRoleBinding"));
        let user = |name: &str, group: &str| User {
            name: name.to_owned(),
            groups: vec![group.to_owned(), "system:authenticated".to_owned()],
            uid: None,
        };
        let account = user("system:serviceaccount:a:b", "system:serviceaccounts");
        let (admin, nobody) = (user("root", "system:masters"), User::anonymous());
        let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        for (who, method, path, expected) in [
            (&account, Method::GET, "/apis", true),
            (&account, Method::GET, "/api/v1", true),
            (&account, Method::GET, "/openapi/v3", true),
            (&account, Method::GET, "/openid/v1/jwks", true),
            (&account, Method::GET, "/metrics", false),
            (&account, Method::GET, "/api/v1/pods", false),
            (&account, Method::POST, reviews, true),
            (&nobody, Method::POST, reviews, false),
            (&nobody, Method::GET, "/version", true),
            (&nobody, Method::GET, "/apis", false),
            (&admin, Method::DELETE, "/api/v1/nodes/n", true),
            (&admin, Method::GET, "/metrics", true),
        ] {
            check(&policy, who, &method, path, expected);
        }
    }

    #[test]
    fn a_role_gets_the_rules_that_it_lacks_and_keeps_its_own() {
        let first = role("r", &[on("", &["pods", "services"], &["get", "list"])]);
        let mut mine = role("r", &[on("", &["pods"], &["get", "delete"])]);
        let completed = completed(&mine, &first).expect("it lacks some");
        let rules: Vec<String> = Rule::read_all(&completed).iter().map(Rule::to_string).collect();
        let expected = [
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["get" "delete"]}"#,
            r#"{APIGroups:[""], Resources:["pods"], Verbs:["list"]}"#,
            r#"{APIGroups:[""], Resources:["services"], Verbs:["get" "list"]}"#,
        ];
        assert_eq!(rules, expected);
        assert_eq!(super::completed(&completed, &first), None);
        mine["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
        assert_eq!(super::completed(&mine, &first), None);
    }
}

//! Role-based access control (`rbac.authorization.k8s.io`): what roles and their bindings allow, by upstream's rules
//! (`plugin/pkg/auth/authorizer/rbac`, `pkg/registry/rbac/validation`).
//!
//! ```text
//! Role, ClusterRole ── rules ──┐
//! RoleBinding, ClusterRoleBinding ── subjects, role ──► Policy ── allows(user, request)?
//!                                                              └─ covers(rule)? before somebody gives it away
//! ```

pub mod first;
mod rule;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::authn::User;
use crate::authz::scope;
use crate::object::{self, Fields};
use crate::request::RequestInfo;
use crate::resources::Registry;
use crate::storage::Storage;
use crate::watch_cache::Caches;

pub use rule::{Rule, missing};

/// The API group of roles and bindings, which users and groups as subjects name too.
pub const GROUP: &str = "rbac.authorization.k8s.io";

/// What all roles and bindings together allow.
#[derive(Debug, Default)]
pub struct Policy {
    roles: HashMap<RoleName, Arc<[Rule]>>,
    /// Those of ClusterRoleBindings under the empty name.
    bindings: HashMap<String, Vec<Binding>>,
}

/// Namespace and name of a Role; a ClusterRole has no namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RoleName {
    /// Empty for a ClusterRole.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl RoleName {
    /// The role that a binding of a namespace refers to; a Role is one of the same namespace.
    pub fn of_binding(binding: &Value, namespace: &str) -> Self {
        let namespace = match binding.text("roleRef.kind") {
            "ClusterRole" => "",
            _ => namespace,
        };
        RoleName {
            namespace: namespace.to_owned(),
            name: binding.text("roleRef.name").to_owned(),
        }
    }
}

#[derive(Debug)]
struct Binding {
    subjects: Vec<Subject>,
    rules: Arc<[Rule]>,
}

#[derive(Debug)]
enum Subject {
    User(String),
    Group(String),
}

impl Subject {
    /// `None` for what names nobody.
    fn read(subject: &Value, namespace: &str) -> Option<Self> {
        let name = subject.text("name");
        match subject.text("kind") {
            "User" => Some(Subject::User(name.to_owned())),
            "Group" => Some(Subject::Group(name.to_owned())),
            "ServiceAccount" => {
                let own = subject.text("namespace");
                let namespace = if own.is_empty() { namespace } else { own };
                let user = format!("system:serviceaccount:{namespace}:{name}");
                (!namespace.is_empty()).then_some(Subject::User(user))
            }
            _ => None,
        }
    }

    fn is(&self, user: &User) -> bool {
        match self {
            Subject::User(name) => *name == user.name,
            Subject::Group(group) => user.is_in(group),
        }
    }
}

impl Policy {
    /// Reads roles and bindings, each kind with and without a namespace together.
    pub fn new<'a>(
        roles: impl IntoIterator<Item = &'a Value>,
        bindings: impl IntoIterator<Item = &'a Value>,
    ) -> Self {
        let mut policy = Policy::default();
        for role in roles {
            let name = RoleName {
                namespace: object::namespace(role).to_owned(),
                name: object::name(role).to_owned(),
            };
            policy.roles.insert(name, Rule::read_all(role).into());
        }
        for binding in bindings {
            let namespace = object::namespace(binding);
            let subjects = binding.list("subjects").iter();
            let subjects = subjects.filter_map(|subject| Subject::read(subject, namespace));
            let rules = policy.roles.get(&RoleName::of_binding(binding, namespace));
            let read = Binding {
                subjects: subjects.collect(),
                rules: rules.cloned().unwrap_or_default(),
            };
            policy
                .bindings
                .entry(namespace.to_owned())
                .or_default()
                .push(read);
        }
        policy
    }

    /// The rules of a role; `None` when there is no such role.
    pub fn role(&self, name: &RoleName) -> Option<&[Rule]> {
        self.roles.get(name).map(AsRef::as_ref)
    }

    /// What a user may do: in the whole cluster, and in a namespace.
    pub fn rules_of<'a>(&'a self, user: &'a User, namespace: &str) -> impl Iterator<Item = &'a Rule> {
        let cluster = self.bindings.get("");
        let inside = self.bindings.get(namespace).filter(|_| !namespace.is_empty());
        let all = cluster.into_iter().chain(inside).flatten();
        let own = all.filter(|binding| binding.subjects.iter().any(|subject| subject.is(user)));
        own.flat_map(|binding| binding.rules.iter())
    }

    /// True when a rule of the user's allows the request.
    pub fn allows(&self, user: &User, request: &RequestInfo) -> bool {
        self.rules_of(user, scope(request))
            .any(|rule| rule.allows(request))
    }
}

/// The [`Policy`] of what the caches hold, made anew when one of them changed.
#[derive(Debug, Default)]
pub struct Authorizer {
    made: Mutex<Option<Made>>,
}

#[derive(Debug)]
struct Made {
    of: Vec<u64>,
    policy: Arc<Policy>,
}

impl Authorizer {
    /// The newest policy.
    pub fn policy(&self, registry: &Registry, caches: &Caches, storage: &Storage) -> Arc<Policy> {
        let kinds = ["ClusterRole", "Role", "ClusterRoleBinding", "RoleBinding"];
        let snapshots = kinds.map(|kind| caches.of(storage, registry.kind(GROUP, kind)).snapshot());
        let of: Vec<u64> = snapshots.iter().map(|(_, position)| *position).collect();
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = made.as_ref().filter(|made| made.of == of) {
            return Arc::clone(&known.policy);
        }
        let objects = |places: [usize; 2]| {
            let items = places.into_iter().flat_map(|place| &snapshots[place].0);
            items.map(|item| &item.object)
        };
        let policy = Arc::new(Policy::new(objects([0, 1]), objects([2, 3])));
        *made = Some(Made {
            of,
            policy: Arc::clone(&policy),
        });
        policy
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::json;

    use super::*;
    use crate::request::Query;

    fn user(name: &str, groups: &[&str]) -> User {
        User {
            name: name.to_owned(),
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            uid: None,
        }
    }

    fn rule(verbs: &[&str], group: &str, resources: &[&str], names: &[&str]) -> Value {
        json!({ "verbs": verbs, "apiGroups": [group], "resources": resources, "resourceNames": names })
    }

    fn policy() -> Policy {
        let role = |namespace: &str, name: &str, rules: Value| json!({ "metadata": { "namespace": namespace, "name": name }, "rules": rules });
        let binding = |namespace: &str, kind: &str, role: &str, subject: Value| {
            json!({ "metadata": { "namespace": namespace, "name": "b" }, "subjects": [subject],
                "roleRef": { "kind": kind, "name": role } })
        };
        let roles = [
            role(
                "",
                "all",
                json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] },
                { "verbs": ["*"], "nonResourceURLs": ["*"] }]),
            ),
            role(
                "",
                "reader",
                json!([rule(&["get", "list"], "", &["pods", "namespaces"], &[])]),
            ),
            role(
                "",
                "logs",
                json!([{ "verbs": ["get"], "nonResourceURLs": ["/logs", "/logs/*"] }]),
            ),
            role(
                "a",
                "one",
                json!([
                    rule(&["create", "get", "list"], "", &["configmaps"], &["x"]),
                    rule(&["patch"], "apps", &["deployments/scale"], &[]),
                    rule(&["get"], "*", &["*/status"], &[]),
                ]),
            ),
        ];
        let bindings = [
            binding(
                "",
                "ClusterRole",
                "all",
                json!({ "kind": "Group", "name": "admins" }),
            ),
            binding("", "ClusterRole", "logs", json!({ "kind": "User", "name": "u" })),
            binding(
                "a",
                "ClusterRole",
                "reader",
                json!({ "kind": "User", "name": "u" }),
            ),
            binding(
                "a",
                "Role",
                "one",
                json!({ "kind": "ServiceAccount", "name": "s" }),
            ),
            binding("b", "Role", "one", json!({ "kind": "User", "name": "u" })),
            binding(
                "a",
                "ClusterRole",
                "absent",
                json!({ "kind": "User", "name": "u" }),
            ),
            binding(
                "",
                "ClusterRole",
                "all",
                json!({ "kind": "ServiceAccount", "name": "s" }),
            ),
        ];
        Policy::new(&roles, &bindings)
    }

    #[track_caller]
    pub(super) fn check(policy: &Policy, user: &User, method: &Method, target: &str, expected: bool) {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let info = RequestInfo::parse(method, path, &Query::parse(Some(query)));
        let allowed = policy.allows(user, &info);
        assert_eq!(allowed, expected, "{} {method} {target}", user.name);
    }

    #[test]
    fn what_no_rule_allows_is_refused() {
        let policy = policy();
        let (admin, one) = (user("root", &["admins"]), user("u", &[]));
        let account = user("system:serviceaccount:a:s", &[]);
        let selected =
            |term: &str| format!("/api/v1/namespaces/a/configmaps?fieldSelector=a=b,metadata.name{term}");
        let deployment = "/apis/apps/v1/namespaces/a/deployments/d";
        for (who, method, path, expected) in [
            (&admin, Method::DELETE, "/api/v1/nodes/n", true),
            (&admin, Method::POST, "/api/v1/namespaces/a/pods/p/exec", true),
            (&admin, Method::GET, "/metrics", true),
            (&one, Method::GET, "/logs", true),
            (&one, Method::GET, "/logs/a/b", true),
            (&one, Method::GET, "/metrics", false),
            (&one, Method::GET, "/api/v1/namespaces/a/pods", true),
            (&one, Method::GET, "/api/v1/namespaces/a/pods/p", true),
            (&one, Method::GET, "/api/v1/namespaces/a/pods/p/log", false),
            (&one, Method::DELETE, "/api/v1/namespaces/a/pods/p", false),
            (&one, Method::GET, "/api/v1/namespaces/b/pods", false),
            (&one, Method::GET, "/api/v1/pods", false),
            (&one, Method::GET, "/api/v1/namespaces/a", true),
            (&one, Method::GET, "/api/v1/namespaces/b", false),
            (&one, Method::GET, "/apis/apps/v1/namespaces/a/pods", false),
            (&account, Method::GET, "/api/v1/namespaces/a/configmaps/x", true),
            (&account, Method::GET, "/api/v1/namespaces/a/configmaps/y", false),
            (&account, Method::GET, "/api/v1/namespaces/a/configmaps", false),
            (&account, Method::GET, &selected("=x"), true),
            (&account, Method::GET, &selected("==x"), true),
            (&account, Method::GET, &selected("!=x"), false),
            (&account, Method::GET, &selected("=y"), false),
            (&account, Method::POST, &selected("=x"), false),
            (&account, Method::GET, deployment, false),
            (&account, Method::GET, &format!("{deployment}/status"), true),
            (&account, Method::PATCH, &format!("{deployment}/scale"), true),
            (&account, Method::GET, &format!("{deployment}/scale"), false),
            (&account, Method::GET, "/api/v1/namespaces/b/configmaps/x", false),
        ] {
            check(&policy, who, &method, path, expected);
        }
    }

    #[test]
    fn rules_of_a_user_are_those_of_the_cluster_and_of_the_namespace() {
        let policy = policy();
        let one = user("u", &[]);
        let count = |namespace| policy.rules_of(&one, namespace).count();
        assert_eq!((count(""), count("a"), count("b"), count("c")), (1, 2, 1, 1));
    }
}

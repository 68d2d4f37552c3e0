//! `SelfSubjectRulesReview`: what one may do at all (`kubectl auth can-i --list`).

use serde_json::{Value, json};

use super::Api;
use crate::authn::User;
use crate::authz;
use crate::request::{RequestInfo, ResourcePath, Target};

impl Api {
    /// What a user may do in a namespace, by asking about everything that is served; rules for objects of certain names
    /// are not found so (`incomplete`).
    pub(super) fn rules(&self, user: &User, namespace: &str) -> Value {
        if may(user, namespace, "*", "*", "*", None) {
            let everything = json!([{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }]);
            let paths = json!([{ "verbs": ["*"], "nonResourceURLs": ["*"] }]);
            return json!({ "resourceRules": everything, "nonResourceRules": paths, "incomplete": false });
        }
        let mut rules = Vec::new();
        for row in self.registry.rows() {
            let below = row.subresources().into_iter();
            let below = below.map(|one| (Some(one.name), one.verbs));
            for (subresource, verbs) in std::iter::once((None, row.verbs())).chain(below) {
                let allowed =
                    |verb: &&'static str| may(user, namespace, verb, row.group, row.plural, subresource);
                let verbs: Vec<&'static str> = verbs.iter().copied().filter(allowed).collect();
                let below = subresource.map(|name| format!("/{name}")).unwrap_or_default();
                let name = format!("{}{below}", row.plural);
                if !verbs.is_empty() {
                    rules.push(json!({ "verbs": verbs, "apiGroups": [row.group], "resources": [name] }));
                }
            }
        }
        json!({ "resourceRules": rules, "nonResourceRules": path_rules(user), "incomplete": true })
    }
}

fn may(
    user: &User,
    namespace: &str,
    verb: &'static str,
    group: &str,
    resource: &str,
    subresource: Option<&str>,
) -> bool {
    let path = ResourcePath {
        group: group.to_owned(),
        resource: resource.to_owned(),
        namespace: Some(namespace.to_owned()),
        subresource: subresource.map(str::to_owned),
        ..ResourcePath::default()
    };
    let target = Target::Resource(path);
    authz::allowed(user, &RequestInfo { verb, target })
}

fn path_rules(user: &User) -> Value {
    let allowed = |path: &&str| authz::allowed(user, &path_request("get", path));
    let paths: Vec<&str> = PATHS.into_iter().filter(allowed).collect();
    match paths.as_slice() {
        [] => json!([]),
        paths => json!([{ "verbs": ["get"], "nonResourceURLs": paths }]),
    }
}

/// Paths that are no resources, as `system:discovery` and `system:public-info-viewer` list them.
const PATHS: [&str; 9] = [
    "/api",
    "/api/*",
    "/apis",
    "/apis/*",
    "/healthz",
    "/livez",
    "/openapi/*",
    "/readyz",
    "/version",
];

fn path_request(verb: &'static str, path: &str) -> RequestInfo {
    let segments = path.split('/').filter(|part| !part.is_empty());
    RequestInfo {
        verb,
        target: Target::Other(segments.map(str::to_owned).collect()),
    }
}

//! Reviews: questions about who one is and what one may do. Nothing is stored.

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::decode::check_kind;
use super::{Api, Call};
use crate::authn::User;
use crate::object::Fields;
use crate::request::{RequestInfo, ResourcePath, Target};
use crate::status::{Failure, Result};
use crate::{authz, negotiate};

impl Api {
    pub(super) async fn review(&self, verb: &str, call: &Call) -> Result<Response<Body>> {
        if verb != "create" {
            return Err(Failure::method_not_allowed());
        }
        let mut review = negotiate::decode_body(&call.headers, &call.body)?;
        check_kind(call.resource, &mut review)?;
        review["status"] = match call.resource.kind {
            "SelfSubjectReview" => json!({ "userInfo": call.user.info() }),
            "TokenReview" => match self.token_user(review.text("spec.token")).await? {
                Some(user) => {
                    json!({ "authenticated": true, "user": user.info(), "audiences": [self.tokens.issuer()] })
                }
                None => json!({ "authenticated": false, "error": "invalid bearer token" }),
            },
            "SelfSubjectRulesReview" => self.rules(&call.user, review.text("spec.namespace")),
            kind => {
                let user = match kind {
                    "SelfSubjectAccessReview" => call.user.clone(),
                    _ => subject(review.at("spec")),
                };
                check_access_review(call, &review)?;
                json!({ "allowed": authz::allowed(&user, &asked(review.at("spec"))) })
            }
        };
        Ok(negotiate::respond(201, &review, call.wanted.yaml))
    }

    /// What a user may do in a namespace, by asking about everything that is served; rules for objects of certain names
    /// are not found so (`incomplete`).
    fn rules(&self, user: &User, namespace: &str) -> Value {
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

/// Whom a SubjectAccessReview is about.
fn subject(spec: &Value) -> User {
    let groups = spec.list("groups").iter();
    User {
        name: spec.text("user").to_owned(),
        groups: groups
            .filter_map(|group| group.as_str().map(str::to_owned))
            .collect(),
        uid: None,
    }
}

/// `ValidateSubjectAccessReview` and its like.
fn check_access_review(call: &Call, review: &Value) -> Result<()> {
    let spec = review.at("spec");
    let kind = call.resource.kind;
    let invalid = |why: &str| Failure::invalid_options(&format!("{kind}.authorization.k8s.io"), why);
    let (resource, path) = (spec.at("resourceAttributes"), spec.at("nonResourceAttributes"));
    if resource.is_object() == path.is_object() {
        return Err(invalid(
            "spec.resourceAttributes: Invalid value: \"null\": exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ));
    }
    if kind != "SelfSubjectAccessReview" && spec.text("user").is_empty() && spec.list("groups").is_empty() {
        return Err(invalid(
            "spec.user: Invalid value: \"\": at least one of user or group must be specified",
        ));
    }
    if let Some(namespace) = call.namespace() {
        let given = resource.text("namespace");
        if given != namespace {
            return Err(invalid(&format!(
                "spec.resourceAttributes.namespace: Invalid value: {given:?}: must match metadata.namespace"
            )));
        }
    }
    Ok(())
}

/// The request that an access review is about.
fn asked(spec: &Value) -> RequestInfo {
    let text = |value: &Value, field: &str| value.text(field).to_owned();
    let given = |value: &Value, field: &str| Some(text(value, field)).filter(|text| !text.is_empty());
    let verb = |name: &str| {
        const VERBS: [&str; 8] = [
            "get",
            "list",
            "watch",
            "create",
            "update",
            "patch",
            "delete",
            "deletecollection",
        ];
        VERBS.into_iter().find(|verb| *verb == name).unwrap_or("unknown")
    };
    let path = spec.at("nonResourceAttributes");
    if path.is_object() {
        return path_request(verb(path.text("verb")), path.text("path"));
    }
    let resource = spec.at("resourceAttributes");
    let target = ResourcePath {
        group: text(resource, "group"),
        version: text(resource, "version"),
        resource: text(resource, "resource"),
        namespace: given(resource, "namespace"),
        name: given(resource, "name"),
        subresource: given(resource, "subresource"),
    };
    RequestInfo {
        verb: verb(resource.text("verb")),
        target: Target::Resource(target),
    }
}

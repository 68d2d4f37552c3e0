//! Reviews: questions about who one is and what one may do. Nothing is stored.

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::decode::check_kind;
use super::{Api, Call};
use crate::authn::User;
use crate::object::Fields;
use crate::rbac::Rule;
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
            "TokenReview" => {
                let audiences = texts(review.list("spec.audiences"));
                match self.bearer(review.text("spec.token"), &audiences).await? {
                    Some(bearer) => {
                        let user = User::from_bearer(&bearer).info();
                        json!({ "authenticated": true, "user": user, "audiences": bearer.audiences })
                    }
                    None => json!({ "authenticated": false, "error": "invalid bearer token" }),
                }
            }
            "SelfSubjectRulesReview" => self.rules(&call.user, review.text("spec.namespace")).await?,
            kind => {
                let user = match kind {
                    "SelfSubjectAccessReview" => call.user.clone(),
                    _ => subject(review.at("spec")),
                };
                check_access_review(call, &review)?;
                let allowed = self.may(&user, &asked(review.at("spec"))).await?;
                json!({ "allowed": allowed })
            }
        };
        Ok(negotiate::respond(201, &review, call.wanted.yaml))
    }

    /// What roles allow a user in a namespace.
    async fn rules(&self, user: &User, namespace: &str) -> Result<Value> {
        let policy = self.policy().await?;
        let rules = policy.rules_of(user, namespace);
        let (on_objects, on_paths): (Vec<&Rule>, Vec<&Rule>) =
            rules.partition(|rule| rule.non_resource_urls.is_empty());
        Ok(json!({ "resourceRules": on_objects, "nonResourceRules": on_paths,
            "incomplete": authz::needs_no_role(user) }))
    }
}

/// Whom a SubjectAccessReview is about.
fn subject(spec: &Value) -> User {
    User {
        name: spec.text("user").to_owned(),
        groups: texts(spec.list("groups")),
        uid: None,
    }
}

fn texts(values: &[Value]) -> Vec<String> {
    let texts = values.iter().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
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
    let path = spec.at("nonResourceAttributes");
    if path.is_object() {
        let segments = path
            .text("path")
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        return RequestInfo {
            verb: text(path, "verb").into(),
            target: Target::Other(segments),
        };
    }
    let resource = spec.at("resourceAttributes");
    let target = ResourcePath {
        group: text(resource, "group"),
        version: text(resource, "version"),
        resource: text(resource, "resource"),
        namespace: given(resource, "namespace"),
        name: given(resource, "name"),
        subresource: given(resource, "subresource"),
        selected: None,
    };
    RequestInfo {
        verb: text(resource, "verb").into(),
        target: Target::Resource(target),
    }
}

//! Reviews: questions about who one is and what one may do. Nothing is stored.

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::{Api, Call};
use crate::object::Fields;
use crate::request::{RequestInfo, ResourcePath, Target};
use crate::status::{Failure, Result};
use crate::{authz, negotiate, object};

impl Api {
    pub(super) async fn review(&self, verb: &str, call: &Call) -> Result<Response<Body>> {
        if verb != "create" {
            return Err(Failure::method_not_allowed());
        }
        let mut review = negotiate::decode_body(&call.headers, &call.body)?;
        object::default_to(&mut review, "apiVersion", call.resource.api_version());
        object::default_to(&mut review, "kind", call.resource.kind);
        review["status"] = match call.resource.kind {
            "SelfSubjectReview" => json!({ "userInfo": call.user.info() }),
            "TokenReview" => match self.token_user(review.text("spec.token")).await? {
                Some(user) => {
                    json!({ "authenticated": true, "user": user.info(), "audiences": [self.tokens.issuer()] })
                }
                None => json!({ "authenticated": false, "error": "invalid bearer token" }),
            },
            "SelfSubjectRulesReview" => self.rules(&call.user, review.text("spec.namespace")),
            _ => {
                let allowed = authz::allowed(&call.user, &asked(review.at("spec")));
                json!({ "allowed": allowed })
            }
        };
        Ok(negotiate::respond(201, &review, call.wanted.yaml))
    }
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
        let segments = path
            .text("path")
            .split('/')
            .filter(|part| !part.is_empty())
            .map(str::to_owned)
            .collect();
        return RequestInfo {
            verb: verb(path.text("verb")),
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
    };
    RequestInfo {
        verb: verb(resource.text("verb")),
        target: Target::Resource(target),
    }
}

//! `metav1.Status`: the one error that leaves this server. The texts are Kubernetes' own (apimachinery
//! `pkg/api/errors`), because people and programs match on them.

use serde_json::{Value, json};

use crate::resources::Resource;
use crate::resources::field::FieldError;

/// A refusal: HTTP code, machine-readable reason and the text for people.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// HTTP status code.
    pub code: u16,
    /// `metav1.StatusReason`.
    pub reason: &'static str,
    /// The text that kubectl prints after `Error from server (Reason):`.
    pub message: String,
    details: Option<Box<Value>>,
    continue_token: Option<Box<str>>,
}

/// What every handler returns.
pub type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Failure {
            code,
            reason,
            message: message.into(),
            details: None,
            continue_token: None,
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.details = Some(Box::new(named_details(resource.group, resource.plural, name)));
        self
    }

    /// 400: the request itself makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Failure::new(400, "BadRequest", message)
    }

    /// What a kubelet refused, in its own words.
    pub fn by_kubelet(code: http::StatusCode, message: impl Into<String>) -> Self {
        let reason = match code.as_u16() {
            400 => "BadRequest",
            404 => "NotFound",
            501 => "NotImplemented",
            _ => "InternalError",
        };
        Failure::new(code.as_u16(), reason, message)
    }

    /// 401: no credential, or one that is not ours.
    pub fn unauthorized() -> Self {
        Failure::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 with the given text.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Failure::new(403, "Forbidden", message)
    }

    /// 403 from admission: `pods "x" is forbidden: why`.
    pub fn forbidden_object(resource: &Resource, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("{} \"{name}\" is forbidden: {why}", resource.qualified());
        Failure::new(403, "Forbidden", message).about(resource, name)
    }

    /// 404: `pods "x" not found`.
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified());
        Failure::new(404, "NotFound", message).about(resource, name)
    }

    /// 404: `podmetrics.metrics.k8s.io "ns/x" not found`, for an object that is there and of which nothing is known yet.
    /// By their kind: metrics-server's paths say pods and nodes (its `pkg/api/pod.go`).
    pub fn no_figures(of: &Resource, namespace: Option<&str>, name: &str) -> Self {
        let kind = of.kind.to_ascii_lowercase();
        let name = namespace.map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"));
        let mut failure = Failure::new(
            404,
            "NotFound",
            format!("{kind}.{} \"{name}\" not found", of.group),
        );
        failure.details = Some(Box::new(named_details(of.group, &kind, &name)));
        failure
    }

    /// 404 for a path that names nothing we serve.
    pub fn no_such_path() -> Self {
        let mut failure = Failure::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        );
        failure.details = Some(Box::new(json!({})));
        failure
    }

    /// 405: the resource is there, the verb is not.
    pub fn method_not_allowed() -> Self {
        Failure::new(
            405,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        )
    }

    /// 405: there is a resource of that name, which is always empty.
    pub fn not_served(plural: &str) -> Self {
        let message = format!("this server has no {plural} yet");
        Failure::new(405, "MethodNotAllowed", message)
    }

    /// 406: nothing in `Accept` can be served.
    pub fn not_acceptable() -> Self {
        let accepted = "application/json, application/yaml";
        Failure::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    /// 409: a create met an object of the same name.
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified());
        Failure::new(409, "AlreadyExists", message).about(resource, name)
    }

    /// 409 with a reason of its own.
    pub fn conflict(resource: &Resource, name: &str, why: impl std::fmt::Display) -> Self {
        let subject = resource.qualified();
        let message = format!("Operation cannot be fulfilled on {subject} \"{name}\": {why}");
        Failure::new(409, "Conflict", message).about(resource, name)
    }

    /// 409: the resourceVersion in the request is not the stored one.
    pub fn modified(resource: &Resource, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Failure::conflict(resource, name, why)
    }

    /// 409: others own what a server-side apply changes (`NewApplyConflict`).
    pub fn apply_conflict(message: &str, causes: Vec<Value>) -> Self {
        let mut failure = Failure::new(409, "Conflict", message);
        failure.details = Some(Box::new(json!({ "causes": causes })));
        failure
    }

    /// 500 without a reason: what upstream answers to a configuration that is no part of its kind.
    pub fn unapplicable(message: impl Into<String>) -> Self {
        Failure::new(500, "", message)
    }

    /// 410: the wanted revision is no longer in memory.
    pub fn expired(message: impl Into<String>) -> Self {
        Failure::new(410, "Expired", message)
    }

    /// 410 for a list that is continued too late: `token` reads the rest as it is now (`handleCompactedErrorForPaging`).
    pub fn continue_expired(token: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start \
            a new list without the continue parameter, or use the continue token in this response to retrieve the \
            remainder of the results. Continuing with the provided token results in an inconsistent list - objects \
            that were created, modified, or deleted between the time the first chunk was returned and now may show \
            up in the list.";
        Failure {
            continue_token: Some(token.into()),
            ..Failure::expired(message)
        }
    }

    /// 413: body larger than the server reads.
    pub fn too_large(limit: usize) -> Self {
        Failure::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// 413: body of more values than the server holds.
    pub fn too_many_values(limit: usize) -> Self {
        Failure::new(
            413,
            "RequestEntityTooLarge",
            format!("Request entity too large: limit is {limit} values"),
        )
    }

    /// 413: a JSON patch of more operations than are carried out.
    pub fn too_many_operations(limit: usize, got: usize) -> Self {
        let message = format!("The allowed maximum operations in a JSON patch is {limit}, got {got}");
        Failure::new(413, "RequestEntityTooLarge", message)
    }

    /// 415: a body in an encoding that is not read.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Failure::new(415, "UnsupportedMediaType", message)
    }

    /// 422: the object breaks rules; every broken rule is a cause.
    pub fn invalid(resource: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let subject = match resource.group {
            "" => resource.kind.to_owned(),
            group => format!("{}.{group}", resource.kind),
        };
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let told = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors.iter().map(FieldError::cause).collect();
        let mut failure = Failure::new(422, "Invalid", format!("{subject} \"{name}\" is invalid: {told}"));
        failure.details = Some(Box::new(
            json!({ "name": name, "group": resource.group, "kind": resource.kind, "causes": causes }),
        ));
        failure
    }

    /// 422: the options of a request break rules: `DeleteOptions.meta.k8s.io "" is invalid: why`. `kind` has its group.
    pub fn invalid_options(kind: &str, why: impl std::fmt::Display) -> Self {
        Failure::unprocessable(format!("{kind} \"\" is invalid: {why}"))
    }

    /// 422 for a patch that cannot be applied.
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Failure::new(422, "Invalid", message)
    }

    /// 429: a disruption budget keeps the pod; the texts are `EvictionREST`'s.
    pub fn disruption_refused(why: impl Into<String>) -> Self {
        let message = "Cannot evict pod as it would violate the pod's disruption budget.";
        let mut failure = Failure::new(429, "TooManyRequests", message);
        let cause = json!({ "reason": "DisruptionBudget", "message": why.into() });
        failure.details = Some(Box::new(json!({ "causes": [cause] })));
        failure
    }

    /// 429: others take all that there is for requests (`WithMaxInFlightLimit`).
    pub fn too_many_requests() -> Self {
        let mut failure = Failure::new(
            429,
            "TooManyRequests",
            "Too many requests, please try again later.",
        );
        failure.details = Some(Box::new(json!({ "retryAfterSeconds": 1 })));
        failure
    }

    /// 500: which of several budgets counts is nowhere said (`EvictionREST`).
    pub fn several_budgets() -> Self {
        let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        Failure::new(500, "InternalError", message)
    }

    /// 500: our own fault, or etcd's.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Failure::new(500, "InternalError", format!("Internal error occurred: {cause}"))
    }

    /// 500: what the store refused, in its own words.
    pub fn by_store(message: impl Into<String>) -> Self {
        Failure::new(500, "InternalError", message)
    }

    /// 503: the store, or the node behind a proxied request, does not answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Failure::new(503, "ServiceUnavailable", message)
    }

    /// 504: the request did not arrive in time.
    pub fn timed_out() -> Self {
        let message = "Timeout: request did not complete within the allotted timeout";
        Failure::new(504, "Timeout", message)
    }

    /// 504: the client knows a revision that we have not reached.
    pub fn revision_too_large(wanted: i64, current: i64) -> Self {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let mut failure = Failure::new(504, "Timeout", message);
        failure.details = Some(Box::new(json!({
            "retryAfterSeconds": 1,
            "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
        })));
        failure
    }

    /// After how many seconds the client may ask again, for the header of that name.
    pub fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }

    /// The wire form.
    pub fn to_json(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = (**details).clone();
        }
        if let Some(token) = &self.continue_token {
            status["metadata"]["continue"] = (**token).into();
        }
        status
    }
}

/// The answer to a delete that removed the object.
pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = named_details(resource.group, resource.plural, name);
    details["uid"] = uid.into();
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// The answer to an action that returns no object (`pods/binding`).
pub fn created() -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 })
}

fn named_details(group: &str, plural: &str, name: &str) -> Value {
    let mut details = json!({ "name": name, "kind": plural });
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details
}

//! What is particular to Pods and ServiceAccounts: binding, logs, streams, tokens.

use axum::body::Body;
use http::{Method, Response};
use serde_json::{Value, json};

use super::write::{Part, check_preconditions};
use super::{Api, Call, now};
use crate::object::{self, Fields};
use crate::status::{self, Failure, Result};
use crate::tokens::{Bound, BoundKind};
use crate::{authz, kubelet, negotiate};

impl Api {
    /// `pods/binding`: the scheduler's decision (`BindingREST.setPodHostAndAnnotations`).
    pub(super) async fn bind(&self, call: &Call) -> Result<Response<Body>> {
        let binding = negotiate::decode_body(&call.headers, &call.body)?;
        let node = binding.text("target.name").to_owned();
        if node.is_empty() {
            return Err(Failure::unprocessable(format!(
                "Binding \"{}\" is invalid: target.name: Required value",
                call.name()
            )));
        }
        let mut refusal = None;
        self.change_raw(call, |pod| {
            check_preconditions(call.resource, &binding, pod)?;
            if object::is_terminating(pod) {
                refusal = Some(format!(
                    "pod {} is being deleted, cannot be assigned to a host",
                    call.name()
                ));
            } else if !pod.text("spec.nodeName").is_empty() {
                refusal = Some(format!(
                    "pod {} is already assigned to node \"{}\"",
                    call.name(),
                    pod.text("spec.nodeName")
                ));
            }
            if let Some(why) = &refusal {
                return Err(Failure::conflict(call.resource, call.name(), why));
            }
            let mut bound = pod.clone();
            bound["spec"]["nodeName"] = node.as_str().into();
            set_condition(&mut bound, "PodScheduled", "True");
            Ok(bound)
        })
        .await?;
        Ok(negotiate::respond(201, &status::created(), false))
    }

    /// A change of a Pod that bypasses what clients may change.
    async fn change_raw(
        &self,
        call: &Call,
        mut change: impl FnMut(&Value) -> Result<Value>,
    ) -> Result<Value> {
        use crate::storage::{Commit, Outcome};
        let key = self.storage.key(call.resource, call.namespace(), call.name());
        for _ in 0..16 {
            let current = self.stored(call).await?;
            let mut changed = change(&current)?;
            if call.dry_run() {
                return Ok(changed);
            }
            let expect = vec![(key.clone(), object::revision(&current))];
            let commit = Commit {
                expect,
                puts: vec![(key.clone(), changed.clone())],
                ..Commit::default()
            };
            if let Outcome::Written(revision) = self.storage.commit(commit).await? {
                object::set_revision(&mut changed, revision);
                return Ok(changed);
            }
        }
        Err(Failure::modified(call.resource, call.name()))
    }

    /// `pods/log`, from the kubelet's `/containerLogs`.
    pub(super) async fn log(&self, call: &Call) -> Result<Response<Body>> {
        let pod = self.stored(call).await?;
        let container = chosen_container(&pod, call.query.get("container"))?;
        let node = self.node_of(&pod).await?;
        let mut options = Vec::new();
        for option in [
            "follow",
            "previous",
            "sinceSeconds",
            "sinceTime",
            "timestamps",
            "tailLines",
            "limitBytes",
        ] {
            if let Some(value) = call.query.get(option) {
                options.push(format!("{option}={}", query_escaped(value)));
            }
        }
        let (namespace, name) = (object::namespace(&pod), object::name(&pod));
        let path = format!(
            "/containerLogs/{namespace}/{name}/{container}?{}",
            options.join("&")
        );
        let answer = self
            .kubelets
            .forward(&node, Method::GET, &path, &http::HeaderMap::new())
            .await?;
        if !answer.status().is_success() {
            return Err(kubelet::refusal(answer).await);
        }
        Ok(kubelet::pass_on(answer))
    }

    /// `pods/exec`, `attach` and `portforward`: the kubelet's streams, spliced.
    pub(super) async fn stream(
        &self,
        call: &Call,
        subresource: &str,
        client: Option<kubelet::Client>,
    ) -> Result<Response<Body>> {
        let Some(client) = client.filter(|_| call.headers.contains_key("upgrade")) else {
            return Err(Failure::bad_request("Upgrade request required"));
        };
        let pod = self.stored(call).await?;
        let node = self.node_of(&pod).await?;
        let (namespace, name) = (object::namespace(&pod), object::name(&pod));
        let query = call.query.raw();
        let path = match subresource {
            "portforward" => format!("/portForward/{namespace}/{name}?{query}"),
            _ => {
                let container = chosen_container(&pod, call.query.get("container"))?;
                format!("/{subresource}/{namespace}/{name}/{container}?{query}")
            }
        };
        let answer = self
            .kubelets
            .forward(&node, call.method.clone(), &path, &call.headers)
            .await?;
        Ok(kubelet::splice(client, answer))
    }

    pub(super) async fn node_of(&self, pod: &Value) -> Result<Value> {
        let node = pod.text("spec.nodeName");
        if node.is_empty() {
            return Err(Failure::bad_request(format!(
                "pod {} does not have a host assigned",
                object::name(pod)
            )));
        }
        let nodes = self.registry.kind("", "Node");
        self.look_up(nodes, None, node)
            .await?
            .ok_or_else(|| Failure::not_found(nodes, node))
    }

    /// `serviceaccounts/token`: a signed token, bound to a Pod, a Secret or a Node when the request says so.
    pub(super) async fn issue_token(&self, call: &Call) -> Result<Response<Body>> {
        let mut request = negotiate::decode_body(&call.headers, &call.body)?;
        if !request.is_object() {
            return Err(Failure::bad_request("the body of the request is not an object"));
        }
        let account = self.stored(call).await?;
        check_expiration(&request)?;
        let reference = request.at("spec.boundObjectRef");
        let bound = match reference.text("kind") {
            "" => None,
            kind => {
                // A token that outlives what it was to be bound to would be worse than none.
                let kind = BoundKind::named(reference.text("apiVersion"), kind).ok_or_else(|| {
                    Failure::bad_request(format!(
                        "cannot bind token for object of type {}, Kind={kind}",
                        reference.text("apiVersion")
                    ))
                })?;
                Some((kind, self.bound_object(call, kind, reference).await?))
            }
        };
        // A node gets tokens only for pods that run on it (NodeRestriction).
        let is_own_pod = bound.as_ref().is_some_and(|(kind, pod)| {
            *kind == BoundKind::Pod
                && !authz::pod_is_foreign_to(&call.user, pod)
                && pod.text("spec.serviceAccountName") == call.name()
        });
        if authz::is_held_to_its_node(&call.user) && !is_own_pod {
            let why = "node requested token not bound to a pod on it";
            return Err(Failure::forbidden_object(call.resource, call.name(), why));
        }
        if let Some((BoundKind::Pod, pod)) = &bound
            && pod.text("spec.serviceAccountName") != call.name()
        {
            return Err(Failure::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                call.name()
            )));
        }
        let bound = bound.map(|(kind, object)| Bound {
            kind,
            name: object::name(&object).to_owned(),
            uid: object::uid(&object).to_owned(),
        });
        object::default_to(&mut request, "apiVersion", "authentication.k8s.io/v1");
        object::default_to(&mut request, "kind", "TokenRequest");
        object::section(&mut request, "spec");
        let answer = self
            .tokens
            .issue(&account, &request, bound.as_ref(), now())
            .map_err(Failure::internal)?;
        Ok(negotiate::respond(201, &answer, call.wanted.yaml))
    }

    /// What a token is to be bound to, which has the uid that was said.
    async fn bound_object(&self, call: &Call, kind: BoundKind, reference: &Value) -> Result<Value> {
        let resource = self.registry.kind("", kind.kind());
        let namespace = call.namespace().filter(|_| kind.is_namespaced());
        let name = reference.text("name");
        let found = self.look_up(resource, namespace, name).await?;
        let found = found.ok_or_else(|| Failure::not_found(resource, name))?;
        let wanted = reference.text("uid");
        if !wanted.is_empty() && wanted != object::uid(&found) {
            let why = format!(
                "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(Failure::conflict(resource, name, why));
        }
        Ok(found)
    }

    /// `deployments/scale` and its like.
    pub(super) async fn change_replicas(&self, call: &Call, replicas: i64) -> Result<Value> {
        self.change(call, Part::Object, |current| {
            let mut changed = current.clone();
            changed["spec"]["replicas"] = replicas.into();
            Ok(changed)
        })
        .await
    }
}

/// `ValidateTokenRequest`.
fn check_expiration(request: &Value) -> Result<()> {
    let Some(seconds) = request.int("spec.expirationSeconds") else {
        return Ok(());
    };
    let why = match seconds {
        ..600 => "may not specify a duration less than 10 minutes",
        4_294_967_297.. => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    let told = format!("spec.expirationSeconds: Invalid value: {seconds}: {why}");
    Err(Failure::invalid_options(
        "TokenRequest.authentication.k8s.io",
        told,
    ))
}

fn chosen_container(pod: &Value, wanted: Option<&str>) -> Result<String> {
    let names = |field: &str| -> Vec<&str> {
        let containers = pod.list(field).iter();
        containers.map(|container| container.text("name")).collect()
    };
    let (main, init) = (names("spec.containers"), names("spec.initContainers"));
    let pod_name = object::name(pod);
    match wanted {
        Some(name) if main.contains(&name) || init.contains(&name) => Ok(name.to_owned()),
        Some(name) => Err(Failure::bad_request(format!(
            "container {name} is not valid for pod {pod_name}"
        ))),
        None => match main.as_slice() {
            [only] => Ok((*only).to_owned()),
            all => Err(Failure::bad_request(format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                all.join(" ")
            ))),
        },
    }
}

fn set_condition(pod: &mut Value, kind: &str, status: &str) {
    let condition = json!({
        "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": object::time(now()),
    });
    let status = object::section(pod, "status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Value::Array(conditions) = conditions {
        conditions.retain(|one| one.text("type") != kind);
        conditions.push(condition);
    }
}

fn query_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                escaped.push(char::from(byte))
            }
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

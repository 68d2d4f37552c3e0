//! delete and deletecollection: graceful for Pods, held back by finalizers, immediate for the rest.

use axum::body::Body;
use http::Response;
use jiff::SignedDuration;
use serde_json::{Value, json};

use super::options::DeleteOptions;
use super::page::Listed;
use super::{Api, Call, now};
use crate::object::{self, Fields};
use crate::resources::{Resource, pod_is_finished};
use crate::services;
use crate::status::{self, Failure, Result};
use crate::storage::{Commit, Outcome};
use crate::{authz, negotiate};

const ATTEMPTS: usize = 16;

/// What became of an object.
enum Deleted {
    /// It is marked, and goes later.
    Marked(Value),
    /// It is gone.
    Gone(Value),
}

impl Api {
    pub(super) async fn delete(&self, call: &Call) -> Result<Response<Body>> {
        let options = DeleteOptions::of(call)?;
        let resource = call.resource.stored_row(self.registry);
        match self
            .delete_one(call, resource, call.name(), call.namespace(), &options)
            .await?
        {
            Deleted::Marked(object) => Ok(self.respond_object(call, 200, object)),
            // These kinds answer with the last state (`ReturnDeletedObject`).
            Deleted::Gone(object) if matches!(resource.kind, "Pod" | "Service" | "ServiceAccount") => {
                Ok(self.respond_object(call, 200, object))
            }
            Deleted::Gone(object) => {
                let status = status::deleted(resource, call.name(), object::uid(&object));
                Ok(negotiate::respond(200, &status, call.wanted.yaml))
            }
        }
    }

    pub(super) async fn delete_collection(&self, call: &Call) -> Result<Response<Body>> {
        let options = DeleteOptions::of(call)?;
        let resource = call.resource.stored_row(self.registry);
        let Listed { objects, metadata } = self.selected(call).await?;
        let mut items = Vec::new();
        for object in objects {
            let namespace = Some(object::namespace(&object)).filter(|namespace| !namespace.is_empty());
            match self
                .delete_one(call, resource, object::name(&object), namespace, &options)
                .await
            {
                Ok(Deleted::Marked(object) | Deleted::Gone(object)) => {
                    items.push(call.resource.outward(object))
                }
                // Somebody else was faster.
                Err(failure) if failure.code == 404 => {}
                Err(failure) => return Err(failure),
            }
        }
        let list = json!({
            "kind": format!("{}List", call.resource.kind), "apiVersion": call.resource.api_version(),
            "metadata": metadata, "items": items,
        });
        Ok(negotiate::respond(200, &list, call.wanted.yaml))
    }

    async fn delete_one(
        &self,
        call: &Call,
        resource: &Resource,
        name: &str,
        namespace: Option<&str>,
        options: &DeleteOptions,
    ) -> Result<Deleted> {
        let key = self.storage.key(resource, namespace, name);
        for _ in 0..ATTEMPTS {
            let current = self
                .storage
                .get(&key)
                .await?
                .ok_or_else(|| Failure::not_found(resource, name))?;
            check_preconditions(resource, name, options, &current)?;
            if resource.kind == "Pod" && authz::pod_is_foreign_to(&call.user, &current) {
                let why = format!(
                    "node {} can only delete pods with spec.nodeName set to itself",
                    call.user.name
                );
                return Err(Failure::forbidden_object(resource, name, why));
            }
            if is_permanent(resource, name) {
                let why = "this namespace may not be deleted";
                return Err(Failure::forbidden_object(resource, name, why));
            }
            let grace = grace_seconds(resource, &current, options);
            let finalizers = match resource.kind {
                // Nothing is owned by an Event (`rest.Unsupported`).
                "Event" => current.list("metadata.finalizers").to_vec(),
                _ => options.dependents.finalizers(&current),
            };
            let held_back = !finalizers.is_empty()
                || resource.kind == "Namespace" && !current.list("spec.finalizers").is_empty();
            if grace == 0 && !held_back {
                if options.dry_run {
                    return Ok(Deleted::Gone(current));
                }
                if self.remove(resource, namespace, &current).await? {
                    return Ok(Deleted::Gone(current));
                }
                continue;
            }
            let marked = marked(resource, &current, grace, finalizers);
            if marked == current {
                return Ok(Deleted::Marked(current));
            }
            if options.dry_run {
                return Ok(Deleted::Marked(marked));
            }
            let commit = Commit {
                expect: vec![(key.clone(), object::revision(&current))],
                puts: vec![(key.clone(), marked.clone())],
                ..Commit::default()
            };
            if let Outcome::Written(revision) = self.storage.commit(commit).await? {
                let mut marked = marked;
                object::set_revision(&mut marked, revision);
                return Ok(Deleted::Marked(marked));
            }
        }
        Err(Failure::modified(resource, name))
    }

    /// Removes an object in the state seen, and gives back what a Service held. False when it has changed since.
    pub(super) async fn remove(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        seen: &Value,
    ) -> Result<bool> {
        let key = self.storage.key(resource, namespace, object::name(seen));
        let mut deletes = vec![key.clone()];
        if resource.kind == "Service" {
            deletes.extend(
                services::holdings(seen)
                    .iter()
                    .map(|holding| self.holding_key(holding)),
            );
        }
        let expect = vec![(key, object::revision(seen))];
        let outcome = self
            .storage
            .commit(Commit {
                expect,
                deletes,
                ..Commit::default()
            })
            .await?;
        Ok(matches!(outcome, Outcome::Written(_)))
    }
}

/// Namespaces that the cluster cannot be without (NamespaceLifecycle).
fn is_permanent(resource: &Resource, name: &str) -> bool {
    resource.kind == "Namespace" && matches!(name, "default" | "kube-system" | "kube-public")
}

fn check_preconditions(
    resource: &Resource,
    name: &str,
    options: &DeleteOptions,
    current: &Value,
) -> Result<()> {
    if let Some(uid) = options.uid.as_deref().filter(|uid| *uid != object::uid(current)) {
        let found = object::uid(current);
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
        return Err(Failure::conflict(resource, name, why));
    }
    let found = current.text("metadata.resourceVersion");
    if let Some(revision) = options.revision.as_deref().filter(|revision| *revision != found) {
        let why = format!(
            "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {found}"
        );
        return Err(Failure::conflict(resource, name, why));
    }
    Ok(())
}

/// Only Pods that a kubelet may be running get time (`podStrategy.CheckGracefulDelete`).
/// Far beyond any that is meant, and no moment that cannot be written.
const LONGEST_GRACE: i64 = i32::MAX as i64;

fn grace_seconds(resource: &Resource, pod: &Value, options: &DeleteOptions) -> i64 {
    if resource.kind != "Pod" || pod.text("spec.nodeName").is_empty() || pod_is_finished(pod) {
        return 0;
    }
    let wanted = options
        .grace_seconds
        .or(pod.int("spec.terminationGracePeriodSeconds"))
        .unwrap_or(30);
    // A negative grace period means one second (`rest.BeforeDelete`).
    if wanted < 0 { 1 } else { wanted.min(LONGEST_GRACE) }
}

/// The object with its deletion recorded; as it was when an earlier deletion already says as much.
fn marked(resource: &Resource, current: &Value, grace: i64, finalizers: Vec<Value>) -> Value {
    let mut marked = current.clone();
    let metadata = object::metadata(&mut marked);
    metadata.remove("finalizers");
    if !finalizers.is_empty() {
        metadata.insert("finalizers".to_owned(), finalizers.into());
    }
    let before = current.int("metadata.deletionGracePeriodSeconds").unwrap_or(0);
    if object::is_terminating(current) && grace >= before {
        return marked;
    }
    let deadline = now() + SignedDuration::from_secs(grace);
    metadata.insert("deletionTimestamp".to_owned(), object::time(deadline));
    metadata.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
    if resource.kind == "Namespace" {
        marked["status"]["phase"] = "Terminating".into();
        // Namespaces carry no grace period.
        object::metadata(&mut marked).remove("deletionGracePeriodSeconds");
    }
    marked
}

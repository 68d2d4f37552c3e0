//! create, update and patch: decode, default, admit, validate, say whose the fields are, and one transaction.

use std::time::Duration;

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::apply::normal;
use super::author::{Author, put_managed, take_managed};
use super::decode::{check_kind, check_namespace_field, decode};
use super::{Api, Call, SYNC_LIMIT, now};
use crate::managed::{self, Given, Operation};
use crate::object::{self, Fields};
use crate::patch::{Patch, SERVER_SIDE_APPLY};
use crate::resources::field::{Errors, FieldError};
use crate::resources::{Resource, Serves, View, validate_metadata, validate_metadata_update};
use crate::services::{self, Claim, Holding};
use crate::status::{Failure, Result};
use crate::storage::{Commit, Outcome};
use crate::values::Read;
use crate::{admission, authz, negotiate, rbac};

/// Attempts of a write that nobody pinned to a resourceVersion.
const ATTEMPTS: usize = 16;
/// Attempts to find a free address or port.
const ALLOCATIONS: usize = 32;
const EVENT_TTL: Duration = Duration::from_secs(3600);

/// What of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All but the status.
    Object,
    /// Status and metadata.
    Status,
    /// `spec.finalizers` of a Namespace.
    Finalizers,
}

impl Api {
    pub(super) async fn create(&self, call: &Call) -> Result<Response<Body>> {
        let Read {
            mut value,
            duplicates,
        } = negotiate::read_body(&call.headers, &call.body)?;
        let mut warnings = Vec::new();
        self.settle_name(call, &mut value)?;
        let object = decode(call, value, &duplicates, &mut warnings)?;
        let author = Author::Updater(call.manager(self.registry, Operation::Update));
        let stored = self.create_decoded(call, object, author).await?;
        let mut response = self.respond_object(call, 201, stored);
        negotiate::add_warnings(&mut response, &warnings);
        Ok(response)
    }

    /// Everything that a request to create does after decoding.
    pub(super) async fn create_decoded(&self, call: &Call, object: Value, author: Author) -> Result<Value> {
        if call.resource.kind == "Node" && authz::node_is_foreign_to(&call.user, object::name(&object)) {
            let why = format!("node {} is not allowed to make other nodes", call.user.name);
            return Err(Failure::forbidden_object(
                call.resource,
                object::name(&object),
                why,
            ));
        }
        self.check_grant(call, None, &object).await?;
        self.insert(call.resource, call.namespace(), object, author, call.dry_run())
            .await
    }

    /// Namespace from the path, name from `generateName` when there is none.
    fn settle_name(&self, call: &Call, object: &mut Value) -> Result<()> {
        if !object.is_object() {
            return Err(Failure::bad_request("the body of the request is not an object"));
        }
        check_kind(call.resource, object)?;
        check_namespace_field(call, object)?;
        let metadata = object::metadata(object);
        let prefix = metadata
            .get("generateName")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let unnamed = metadata.get("name").is_none_or(object::is_unset);
        if unnamed && !prefix.is_empty() {
            let room = 63 - 5;
            let cut: String = prefix.chars().take(room).collect();
            metadata.insert(
                "name".to_owned(),
                format!("{cut}{}", admission::random_suffix()).into(),
            );
        }
        Ok(())
    }

    /// Makes a cluster-scoped object that every cluster has, unless it is there; one of the first roles gets the rules
    /// that it lacks. Returns once memory has it: rights are looked up there.
    pub(crate) async fn ensure(&self, group: &str, kind: &str, object: Value) -> Result<()> {
        let resource = self.registry.kind(group, kind);
        let name = object::name(&object).to_owned();
        match self.look_up(resource, None, &name).await? {
            Some(current) if kind == "ClusterRole" => self.complete_role(resource, &current, &object).await?,
            Some(_) => {}
            None => match self.insert(resource, None, object, Author::Nobody, false).await {
                Err(failure) if failure.reason != "AlreadyExists" => return Err(failure),
                _ => {}
            },
        }
        self.await_in_memory(resource, &name).await
    }

    async fn complete_role(&self, resource: &'static Resource, current: &Value, first: &Value) -> Result<()> {
        let Some(completed) = rbac::first::completed(current, first) else {
            return Ok(());
        };
        let write = Write {
            resource,
            namespace: None,
            old: Some(current),
            dry_run: false,
        };
        let written = self.commit_object(&write, completed).await?;
        written
            .map(drop)
            .ok_or_else(|| Failure::modified(resource, object::name(first)))
    }

    async fn await_in_memory(&self, resource: &Resource, name: &str) -> Result<()> {
        let key = self.storage.key(resource, None, name);
        let cache = self.caches.of(&self.storage, resource);
        let mut changes = cache.subscribe();
        let seen = async {
            while cache.get(&key).is_none() {
                // The cache outlives this call, and with it who sends.
                let _changed = changes.changed().await;
            }
        };
        let seen = tokio::time::timeout(SYNC_LIMIT, seen).await;
        seen.map_err(|_| Failure::unavailable("what was written has not been read back yet"))
    }

    /// Everything a create does after decoding.
    async fn insert(
        &self,
        served: &'static Resource,
        namespace: Option<&str>,
        object: Value,
        author: Author,
        dry_run: bool,
    ) -> Result<Value> {
        let resource = served.stored_row(self.registry);
        let name = object::name(&object).to_owned();
        if let Some(namespace) = namespace {
            admission::check_namespace(self, resource, namespace, &name).await?;
        }
        let mut errors = Errors::default();
        if served.serves == Serves::View(View::Event) {
            (served.validate)(&object, &mut errors);
        }
        let mut object = inward(served, resource, object)?;
        stamp_new(resource, &mut object);
        (resource.defaults)(&mut object);
        self.features.drop_disabled(resource.kind, &mut object, None);
        let owners = author.of_new(resource, &object);
        (resource.prepare_create)(&mut object);
        if resource.kind == "Pod" {
            admission::add_service_account(self, resource, &mut object).await?;
        }
        if resource.kind == "Service" {
            services::align_cluster_ips(&mut object, None);
            services::settle_families(&mut object, None, &self.ranges.cidrs)
                .map_err(|errors| Failure::invalid(resource, &name, &errors))?;
        }
        validate_metadata(resource, &object, &mut errors);
        (resource.validate)(&object, &mut errors);
        errors
            .into_result()
            .map_err(|errors| Failure::invalid(resource, &name, &errors))?;
        owners.write(&mut object);
        let write = Write {
            resource,
            namespace,
            old: None,
            dry_run,
        };
        self.commit_object(&write, object)
            .await?
            .ok_or_else(|| Failure::already_exists(resource, &name))
    }

    pub(super) async fn update(&self, call: &Call, part: Part) -> Result<Response<Body>> {
        let Read {
            mut value,
            duplicates,
        } = negotiate::read_body(&call.headers, &call.body)?;
        check_kind(call.resource, &mut value)?;
        check_namespace_field(call, &mut value)?;
        check_name(call, &value)?;
        let mut warnings = Vec::new();
        let body = decode(call, value, &duplicates, &mut warnings)?;
        let stored = self.change(call, part, |_| Ok(body.clone())).await?;
        let mut response = self.respond_object(call, 200, stored);
        negotiate::add_warnings(&mut response, &warnings);
        Ok(response)
    }

    pub(super) async fn patch(&self, call: &Call, part: Part) -> Result<Response<Body>> {
        let content_type = negotiate::content_type(&call.headers);
        if content_type == SERVER_SIDE_APPLY {
            return self.apply(call, part).await;
        }
        let Read {
            value: patch,
            duplicates,
        } = Patch::parse(content_type, &call.body)?;
        let mut warnings = Vec::new();
        let stored = self
            .change(call, part, |current| {
                warnings.clear();
                let mut patched = patch.apply(current)?;
                check_kind(call.resource, &mut patched)?;
                decode(call, patched, &duplicates, &mut warnings)
            })
            .await?;
        let mut response = self.respond_object(call, 200, stored);
        negotiate::add_warnings(&mut response, &warnings);
        Ok(response)
    }

    /// Reads, changes, writes back; again when somebody else was faster and the change does not insist on a
    /// resourceVersion. Who asks owns what differs afterwards.
    pub(super) async fn change(
        &self,
        call: &Call,
        part: Part,
        mut change: impl FnMut(&Value) -> Result<Value>,
    ) -> Result<Value> {
        let manager = call.manager(self.registry, Operation::Update);
        self.change_stored(call, part, |current| {
            let mut current = current.clone();
            if part != Part::Object {
                // Only a write of the object itself may say whose its fields are.
                take_managed(&mut current);
            }
            let changed = change(&call.resource.outward(current))?;
            let changed = inward(call.resource, call.resource.stored_row(self.registry), changed)?;
            Ok((changed, Author::Updater(manager.clone())))
        })
        .await
    }

    /// The same in the form that is stored, by whoever the change says.
    pub(super) async fn change_stored(
        &self,
        call: &Call,
        part: Part,
        mut change: impl FnMut(&Value) -> Result<(Value, Author)>,
    ) -> Result<Value> {
        for _ in 0..ATTEMPTS {
            let current = self.stored(call).await?;
            let (changed, author) = change(&current)?;
            check_preconditions(call.resource, &changed, &current)?;
            if let Some(written) = self.replace(call, part, current, changed, author).await? {
                return Ok(written);
            }
        }
        Err(Failure::modified(call.resource, call.name()))
    }

    /// `None` when the object was changed by somebody else in between.
    async fn replace(
        &self,
        call: &Call,
        part: Part,
        mut current: Value,
        mut changed: Value,
        author: Author,
    ) -> Result<Option<Value>> {
        let resource = call.resource.stored_row(self.registry);
        let recorded = take_managed(&mut current);
        let said = take_managed(&mut changed);
        let mut errors = Errors::default();
        if part == Part::Object && said != recorded {
            managed::validate(&said, &mut errors);
            errors
                .into_result()
                .map_err(|errors| Failure::invalid(resource, call.name(), &errors))?;
        }
        let given = Given::read(&said, part == Part::Object);
        if resource.kind == "Pod"
            && let Some(why) = authz::pod_change_refusal(&call.user, &current, &changed)
        {
            return Err(Failure::forbidden_object(resource, call.name(), why));
        }
        if resource.kind == "Node"
            && let Some(why) = authz::node_change_refusal(&call.user, &current, &changed)
        {
            return Err(Failure::forbidden_object(resource, call.name(), why));
        }
        self.check_grant(call, Some(&current), &changed).await?;
        let mut new = prepared_update(resource, part, changed, &current);
        self.features
            .drop_disabled(resource.kind, &mut new, Some(&current));
        if resource.kind == "Service" && part == Part::Object {
            services::settle_families(&mut new, Some(&current), &self.ranges.cidrs)
                .map_err(|errors| Failure::invalid(resource, call.name(), &errors))?;
        }
        let mut errors = Errors::default();
        validate_metadata(resource, &new, &mut errors);
        validate_metadata_update(&new, &current, &mut errors);
        match part {
            Part::Object => {
                (resource.validate)(&new, &mut errors);
                (resource.validate_update)(&new, &current, &mut errors);
            }
            Part::Status => (resource.validate_status)(&new, &mut errors),
            Part::Finalizers => {}
        }
        errors
            .into_result()
            .map_err(|errors| Failure::invalid(resource, call.name(), &errors))?;
        if is_done_for(&new) {
            let removed = call.dry_run() || self.remove(resource, call.namespace(), &current).await?;
            return Ok(removed.then_some(new));
        }
        let owners = author.after(&recorded, given, &current, &new);
        if new == current && owners.as_ref().is_none_or(|owners| *owners == recorded) {
            put_managed(&mut current, recorded);
            return Ok(Some(current));
        }
        put_managed(&mut new, owners.unwrap_or(recorded));
        let write = Write {
            resource,
            namespace: call.namespace(),
            old: Some(&current),
            dry_run: call.dry_run(),
        };
        self.commit_object(&write, new).await
    }

    /// Writes an object, together with what a Service holds. `None` when the object's key is not as expected.
    async fn commit_object(&self, write: &Write<'_>, object: Value) -> Result<Option<Value>> {
        let resource = write.resource;
        let name = object::name(&object).to_owned();
        let invalid = |errors: Vec<FieldError>| Failure::invalid(resource, &name, &errors);
        let key = self.storage.key(resource, write.namespace, &name);
        let expected = write.old.map_or(0, object::revision);
        let held = write
            .old
            .filter(|_| resource.kind == "Service")
            .map(services::holdings)
            .unwrap_or_default();
        let mut taken = if resource.kind == "Service" {
            self.taken()
        } else {
            services::Taken::default()
        };
        for _ in 0..ALLOCATIONS {
            let mut next = object.clone();
            let mut claims = Vec::new();
            let mut commit = Commit::default();
            if resource.kind == "Service" {
                claims = services::allocate(&mut next, write.old, &self.ranges, &taken).map_err(invalid)?;
                commit = self.service_commit(&next, &held, &claims);
            }
            if write.dry_run {
                return Ok(Some(next));
            }
            commit.expect.push((key.clone(), expected));
            commit.puts.push((key.clone(), next.clone()));
            commit.ttl = (resource.kind == "Event").then_some(EVENT_TTL);
            match self.storage.commit(commit).await? {
                Outcome::Written(revision) => {
                    object::set_revision(&mut next, revision);
                    return Ok(Some(next));
                }
                Outcome::Refused(keys) if keys.contains(&key) => return Ok(None),
                Outcome::Refused(keys) => {
                    for claim in claims
                        .iter()
                        .filter(|claim| keys.contains(&self.holding_key(&claim.holding)))
                    {
                        if let Some(errors) = claim.collision.clone() {
                            return Err(invalid(errors));
                        }
                        match &claim.holding {
                            Holding::Address(ip) => drop(taken.addresses.insert(*ip)),
                            Holding::Port(port) => drop(taken.ports.insert(*port)),
                        }
                    }
                }
            }
        }
        Err(Failure::internal(
            "failed to allocate an address or port for the service",
        ))
    }

    fn service_commit(&self, service: &Value, held: &[Holding], claims: &[Claim]) -> Commit {
        let kept = services::holdings(service);
        let mut commit = Commit::default();
        for claim in claims {
            let key = self.holding_key(&claim.holding);
            let value = match &claim.holding {
                Holding::Address(ip) => services::ip_address_object(*ip, service, object::time(now())),
                Holding::Port(_) => json!({ "metadata": {
                    "namespace": object::namespace(service), "name": object::name(service),
                } }),
            };
            commit.expect.push((key.clone(), 0));
            commit.puts.push((key, value));
        }
        let released = held.iter().filter(|holding| !kept.contains(holding));
        commit.deletes = released.map(|holding| self.holding_key(holding)).collect();
        commit
    }

    /// The key that reserves an address or a port.
    pub(super) fn holding_key(&self, holding: &Holding) -> String {
        match holding {
            Holding::Address(ip) => {
                let addresses = self.registry.kind("networking.k8s.io", "IPAddress");
                self.storage.key(addresses, None, &ip.to_string())
            }
            Holding::Port(port) => format!("{}core/servicenodeports/{port}", self.storage.root()),
        }
    }
}

/// The name in the body is the one on the URL, where there is one.
pub(super) fn check_name(call: &Call, object: &Value) -> Result<()> {
    let given = object::name(object);
    if given.is_empty() || given == call.name() {
        return Ok(());
    }
    Err(Failure::bad_request(format!(
        "the name of the object ({given}) does not match the name on the URL ({})",
        call.name()
    )))
}

/// A write about to be committed.
struct Write<'a> {
    resource: &'a Resource,
    namespace: Option<&'a str>,
    old: Option<&'a Value>,
    dry_run: bool,
}

/// uid, creation time and first generation are the server's to give.
fn stamp_new(resource: &Resource, object: &mut Value) {
    let metadata = object::metadata(object);
    for field in [
        "resourceVersion",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "generation",
    ] {
        metadata.remove(field);
    }
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert("creationTimestamp".to_owned(), object::time(now()));
    if resource.has_generation {
        metadata.insert("generation".to_owned(), 1.into());
    }
}

/// A resourceVersion or uid in the body must be the stored one; an absent one is unconditional.
pub(super) fn check_preconditions(resource: &Resource, changed: &Value, current: &Value) -> Result<()> {
    let name = object::name(current);
    let given = changed.text("metadata.resourceVersion");
    if !matches!(given, "" | "0") && given != current.text("metadata.resourceVersion") {
        return Err(Failure::modified(resource, name));
    }
    let uid = object::uid(changed);
    if !uid.is_empty() && uid != object::uid(current) {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            object::uid(current)
        );
        return Err(Failure::conflict(resource, name, why));
    }
    Ok(())
}

/// The new object with everything that this part may not change taken from the current one.
fn prepared_update(resource: &Resource, part: Part, changed: Value, current: &Value) -> Value {
    let mut new = changed;
    match part {
        Part::Object => {
            if resource.has_status {
                object::copy_field(current, &mut new, "status");
            }
            (resource.prepare_update)(&mut new, current);
            if resource.kind == "Namespace" {
                object::copy_field(current.at("spec"), &mut new["spec"], "finalizers");
            }
            (resource.defaults)(&mut new);
            if resource.kind == "Service" {
                services::carry_over(&mut new, current);
            }
        }
        Part::Status => {
            let (status, metadata) = (new.at("status").clone(), new.at("metadata").clone());
            new = current.clone();
            new["metadata"] = metadata;
            new["status"] = status;
            (resource.prepare_status)(&mut new);
        }
        Part::Finalizers => {
            let finalizers = new.at("spec.finalizers").clone();
            new = current.clone();
            new["spec"]["finalizers"] = if finalizers.is_null() {
                json!([])
            } else {
                finalizers
            };
        }
    }
    for field in [
        "namespace",
        "name",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ] {
        object::copy_field(current.at("metadata"), &mut new["metadata"], field);
    }
    if resource.has_generation && part == Part::Object && new.at("spec") != current.at("spec") {
        let generation = current.int("metadata.generation").unwrap_or(0) + 1;
        new["metadata"]["generation"] = generation.into();
    }
    new
}

/// Deletion was asked for, and nothing holds the object any more.
fn is_done_for(object: &Value) -> bool {
    object::is_terminating(object)
        && object.list("metadata.finalizers").is_empty()
        && object.list("spec.finalizers").is_empty()
        && object.int("metadata.deletionGracePeriodSeconds").unwrap_or(0) == 0
}

/// To the stored form, by its type: a view may bring what its own type does not know, as text in annotations.
fn inward(served: &Resource, resource: &Resource, object: Value) -> Result<Value> {
    let mut object = served.inward(object);
    if !matches!(served.serves, Serves::View(_)) {
        return Ok(object);
    }
    let managed = take_managed(&mut object);
    let mut object = normal(resource, object)?;
    put_managed(&mut object, managed);
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::Registry;

    #[test]
    fn annotations_of_old_autoscalers_hold_what_the_new_type_knows() {
        let registry = Registry::new();
        let rows = registry.rows();
        let old = rows
            .iter()
            .find(|row| row.serves == Serves::View(View::Autoscaler));
        let old = old.expect("the row of version 1");
        let of = |metrics: &str| {
            let annotations = json!({ "autoscaling.alpha.kubernetes.io/metrics": metrics });
            json!({ "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
                "metadata": { "name": "a", "annotations": annotations, "managedFields": [{}] },
                "spec": { "maxReplicas": 3, "scaleTargetRef": { "kind": "Deployment", "name": "web" } } })
        };
        let stored = registry.kind("autoscaling", "HorizontalPodAutoscaler");
        let kept = inward(old, stored, of(r#"[{"type":"Resource","x":1}]"#)).expect("an autoscaler");
        assert_eq!(kept.at("spec.metrics"), &json!([{ "type": "Resource" }]));
        assert_eq!(kept.at("metadata.managedFields"), &json!([{}]));
        let refused = inward(old, stored, of(r#"[{"type":7}]"#)).map_err(|failure| failure.code);
        assert_eq!(refused, Err(400));
    }
}

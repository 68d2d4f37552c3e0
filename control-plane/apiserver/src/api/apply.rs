//! Server-side apply: a configuration becomes a part of an object, and its author the owner of what it names
//! (KEP-555; apiserver `pkg/endpoints/handlers/patch.go`, apimachinery `pkg/util/managedfields`).

#[cfg(test)]
mod tests;

use axum::body::Body;
use http::Response;
use serde_json::{Value, json};

use super::author::{Author, timestamp};
use super::decode::{check_kind, check_namespace_field};
use super::scale::scale_of;
use super::write::{Part, check_name};
use super::{Api, Call};
use crate::authz;
use crate::managed::{self, Conflict, Conflicts, Difference, FieldSet, ManagedFields, Manager, Operation};
use crate::negotiate::{self, MAX_VALUES};
use crate::object::{self, Fields};
use crate::patch::apply::{list_errors, merged, prune};
use crate::request::{RequestInfo, Target};
use crate::resources::{Resource, unknown_fields};
use crate::status::{Failure, Result};
use crate::values::{self, MAX_TOLD, Read};

/// The manager as whom `kubectl apply --server-side` applies by default.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// As long as all annotations may be together.
const MAX_ANNOTATION_BYTES: usize = 256 << 10;
/// Somebody else may make or remove the object in between.
const ATTEMPTS: usize = 4;

/// An applied configuration, in the form that is stored.
struct Configuration {
    object: Value,
    fields: FieldSet,
    manager: Manager,
    force: bool,
}

impl Api {
    /// 201 when it made the object, which takes the right to create, too.
    pub(super) async fn apply(&self, call: &Call, part: Part) -> Result<Response<Body>> {
        let resource = call.resource.stored_row(self.registry);
        let mut warnings = Vec::new();
        let config = self.configuration(call, part, &mut warnings)?;
        for _ in 0..ATTEMPTS {
            let changed = self
                .change_stored(call, part, |current| apply_to(resource, current, &config))
                .await;
            let (code, stored) = match changed {
                Err(failure) if failure.reason == "NotFound" && part == Part::Object => {
                    match self.create_applied(call, resource, &config).await {
                        Err(failure) if failure.reason == "AlreadyExists" => continue,
                        created => (201, created?),
                    }
                }
                changed => (200, changed?),
            };
            let mut response = self.respond_object(call, code, stored);
            negotiate::add_warnings(&mut response, &warnings);
            return Ok(response);
        }
        Err(Failure::modified(resource, call.name()))
    }

    fn configuration(&self, call: &Call, part: Part, warnings: &mut Vec<String>) -> Result<Configuration> {
        let served = call.resource;
        let mut object = read(call, warnings)?;
        check_type(served, &object)?;
        check_kind(served, &mut object)?;
        check_namespace_field(call, &mut object)?;
        check_name(call, &object)?;
        object["metadata"]["name"] = call.name().into();
        if !object.at("metadata.managedFields").is_null() {
            return Err(Failure::bad_request("metadata.managedFields must be nil"));
        }
        check_fields(served, &object)?;
        let mut object = served.inward(object);
        // What this path does not write, its applier does not own.
        match part {
            Part::Object if served.has_status => drop(object::remove(&mut object, "status")),
            Part::Object => {}
            Part::Status | Part::Finalizers => {
                let kept = ["apiVersion", "kind", "metadata", "status"];
                if let Some(fields) = object.as_object_mut() {
                    fields.retain(|field, _| kept.contains(&field.as_str()));
                }
            }
        }
        Ok(Configuration {
            fields: managed::fields_of(&object),
            object,
            manager: call.manager(self.registry, Operation::Apply),
            force: call.query.flag("force"),
        })
    }

    /// `replicas` of a workload, applied to its scale.
    pub(super) async fn apply_scale(&self, call: &Call) -> Result<Response<Body>> {
        let resource = call.resource.stored_row(self.registry);
        let mut warnings = Vec::new();
        let scale = read(call, &mut warnings)?;
        if (scale.text("apiVersion"), scale.text("kind")) != ("autoscaling/v1", "Scale") {
            return Err(Failure::bad_request(
                "the body of the request is no Scale of autoscaling/v1",
            ));
        }
        check_name(call, &scale)?;
        let mut object = json!({
            "apiVersion": resource.api_version(), "kind": resource.kind,
            "metadata": { "name": call.name(), "namespace": call.namespace() },
        });
        match scale.at("spec.replicas") {
            Value::Null => {}
            replicas if replicas.as_u64().is_some() => object["spec"] = json!({ "replicas": replicas }),
            other => {
                return Err(Failure::unapplicable(format!(
                    "failed to create typed patch object ({}/{}; autoscaling/v1, Kind=Scale): .spec.replicas: \
                     expected numeric (int or float), got {other}",
                    call.namespace().unwrap_or_default(),
                    call.name()
                )));
            }
        }
        let config = Configuration {
            fields: managed::fields_of(&object),
            object,
            manager: call.manager(self.registry, Operation::Apply),
            force: call.query.flag("force"),
        };
        let stored = self
            .change_stored(call, Part::Object, |current| apply_to(resource, current, &config))
            .await?;
        let mut response = negotiate::respond(200, &scale_of(&stored), call.wanted.yaml);
        negotiate::add_warnings(&mut response, &warnings);
        Ok(response)
    }

    async fn create_applied(
        &self,
        call: &Call,
        resource: &'static Resource,
        config: &Configuration,
    ) -> Result<Value> {
        let create = RequestInfo {
            verb: "create".into(),
            target: Target::Resource(call.path.clone()),
        };
        if !self.may(&call.user, &create).await? {
            return Err(authz::refusal(&call.user, &create));
        }
        if !matches!(config.object.text("metadata.resourceVersion"), "" | "0") {
            return Err(Failure::modified(resource, call.name()));
        }
        let owners = ManagedFields::default().after_apply(
            config.fields.clone(),
            &Difference::default(),
            &config.manager,
            &timestamp(),
        );
        let object = normal(resource, config.object.clone())?;
        let object = call.resource.outward(object);
        self.create_decoded(call, object, Author::Applier(owners)).await
    }
}

/// The object after the configuration was applied, and who owns what of it then.
fn apply_to(resource: &Resource, current: &Value, config: &Configuration) -> Result<(Value, Author)> {
    let now = timestamp();
    let mut live = current.clone();
    object::metadata(&mut live).remove("managedFields");
    let mut owners = ManagedFields::of(current);
    if owners.is_empty() {
        owners = ManagedFields::before_first_apply(&live, &config.manager.api_version, &now);
    }
    let mut object = merged(&live, &config.object);
    if let Some(before) = owners.owned_by(&config.manager) {
        let mut kept = owners.owned_by_others(&config.manager);
        kept.add(&config.fields);
        // Who the object is belongs to nobody, and stays.
        kept.add(&FieldSet::of_path(&["f:metadata", "f:name"]));
        prune(&mut object, before, &kept);
    }
    let mut object = normal(resource, object)?;
    let difference = Difference::between(&live, &object);
    if !config.force {
        let conflicts = conflicts(&live, &owners, &difference, &config.manager);
        if conflicts.count > 0 {
            return Err(Failure::apply_conflict(
                &managed::conflict_message(&conflicts),
                conflicts.told.iter().map(cause).collect(),
            ));
        }
    }
    if config.manager.name == KUBECTL {
        renew_last_applied(&mut object, &config.object);
    }
    let owners = owners.after_apply(config.fields.clone(), &difference, &config.manager, &now);
    Ok((object, Author::Applier(owners)))
}

/// What others own of what the apply changes. Who came from client-side apply to `kubectl apply --server-side` has no
/// conflict over what they applied before (`lastAppliedManager`).
fn conflicts(live: &Value, owners: &ManagedFields, difference: &Difference, manager: &Manager) -> Conflicts {
    let all = owners.conflicts(&difference.written, manager, &FieldSet::default());
    let annotation = live.at("metadata.annotations").get(LAST_APPLIED);
    let last = annotation.and_then(Value::as_str);
    let last = last.and_then(|text| serde_json::from_str::<Value>(text).ok());
    match last.filter(|last| manager.name == KUBECTL && all.count > 0 && last.is_object()) {
        Some(last) => owners.conflicts(&difference.written, manager, &managed::fields_of(&last)),
        None => all,
    }
}

/// Client-side apply goes on from here when somebody goes back to it (`lastAppliedUpdater`).
fn renew_last_applied(object: &mut Value, config: &Value) {
    let Some(annotation) = object.pointer_mut("/metadata/annotations") else {
        return;
    };
    let Some(annotation) = annotation.get_mut(LAST_APPLIED) else {
        return;
    };
    let mut applied = config.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    let text = applied.to_string();
    if text.len() < MAX_ANNOTATION_BYTES {
        *annotation = format!("{text}\n").into();
    }
}

fn cause(conflict: &Conflict) -> Value {
    let Conflict { manager, path } = conflict;
    json!({ "reason": "FieldManagerConflict", "message": format!("conflict with {manager}"), "field": path })
}

/// As it would be read from the store.
pub(super) fn normal(resource: &Resource, object: Value) -> Result<Value> {
    (resource.decode)(object).map_err(|why| {
        let (kind, version) = (resource.kind, resource.api_version());
        let version = negotiate::short_version(&version);
        Failure::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"
        ))
    })
}

/// JSON is read as such: it is no YAML where it has escaped slashes and surrogates.
fn read(call: &Call, warnings: &mut Vec<String>) -> Result<Value> {
    let refused = |error: values::Error| match error {
        values::Error::TooManyValues => Failure::too_many_values(MAX_VALUES),
        error => Failure::bad_request(format!("error decoding YAML: {error}")),
    };
    let read = match values::read_json(&call.body, MAX_VALUES) {
        Err(values::Error::Json(_)) => values::read_yaml(&call.body, MAX_VALUES),
        read => read,
    };
    let Read { value, duplicates } = read.map_err(refused)?;
    if !value.is_object() {
        return Err(Failure::bad_request(
            "error decoding YAML: the body of the request is not an object",
        ));
    }
    let told: Vec<String> = duplicates
        .iter()
        .map(|path| format!("duplicate field \"{path}\""))
        .collect();
    match call.query.get("fieldValidation") {
        Some("Strict") if !told.is_empty() => Err(Failure::bad_request(format!(
            "error strict decoding YAML: {}",
            told.join(", ")
        ))),
        Some("Ignore") => Ok(value),
        _ => {
            warnings.extend(told);
            Ok(value)
        }
    }
}

/// A configuration says itself what it is: what is left out is not filled in.
fn check_type(resource: &Resource, object: &Value) -> Result<()> {
    if object.text("kind").is_empty() {
        return Err(Failure::bad_request(format!(
            "Object 'Kind' is missing in '{}'",
            shortened(&object.to_string())
        )));
    }
    let (given, expected) = (object.text("apiVersion"), resource.api_version());
    if given != expected {
        return Err(Failure::bad_request(format!(
            "Incorrect version specified in apply patch. Specified patch version: {given}, expected: {expected}"
        )));
    }
    Ok(())
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Types, unknown fields and lists: 500 and these words are upstream's, too.
fn check_fields(resource: &Resource, object: &Value) -> Result<()> {
    let mut errors = Vec::new();
    match (resource.decode)(object.clone()) {
        Err(why) => errors.push(why),
        Ok(kept) => {
            let unknown = unknown_fields(object, &kept).into_iter().take(MAX_TOLD);
            errors.extend(unknown.map(|path| format!(".{path}: field not declared in schema")));
            errors.extend(list_errors(object));
        }
    }
    let told = match errors.as_slice() {
        [] => return Ok(()),
        [only] => only.clone(),
        many => format!("errors:\n  {}", many.join("\n  ")),
    };
    let (namespace, name) = (object::namespace(object), object::name(object));
    Err(Failure::unapplicable(format!(
        "failed to create typed patch object ({namespace}/{name}; {}/{}, Kind={}): {told}",
        resource.group, resource.version, resource.kind
    )))
}

//! The objects that the server holds, and what writes do to them.

use std::collections::BTreeMap;
use std::time::Instant;

use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::target::{RESOURCES, Target};

/// A document, or a refusal with its status code.
pub(super) type Answer = Result<Value, (StatusCode, Value)>;

/// Plural, namespace, name.
pub(super) type Key = (String, String, String);

#[derive(Default)]
pub(super) struct State {
    pub(super) version: u64,
    pub(super) uids: u64,
    pub(super) writes: u64,
    pub(super) objects: BTreeMap<Key, Value>,
    pub(super) log: Vec<Logged>,
}

#[derive(Clone)]
pub(super) struct Logged {
    pub(super) version: u64,
    pub(super) at: Instant,
    pub(super) key: Key,
    pub(super) event: &'static str,
    pub(super) object: Value,
}

impl State {
    pub(super) fn write(&mut self, method: &Method, target: &Target, body: Value, strategic: bool) -> Answer {
        let plural = target.resource.plural;
        let Some(name) = &target.name else {
            return match *method {
                Method::POST => self.create(plural, &target.namespace, body),
                Method::DELETE => self.delete_all(plural, &target.namespace, &body),
                _ => Err(status(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "MethodNotAllowed",
                    "no such verb",
                )),
            };
        };
        let key = key(plural, &target.namespace, name);
        match (method.as_str(), target.part.as_deref()) {
            ("POST", Some("binding")) => self.bind(&key, &body),
            ("PUT", part) => self.replace(&key, &body, part),
            ("PATCH", _) => self.patch(&key, &body, strategic),
            ("DELETE", None) => self.delete(&key, &body),
            _ => Err(status(
                StatusCode::METHOD_NOT_ALLOWED,
                "MethodNotAllowed",
                "no such verb",
            )),
        }
    }

    pub(super) fn create(&mut self, plural: &str, namespace: &str, mut object: Value) -> Answer {
        let home_key = key("namespaces", "", namespace);
        let home = self.objects.get(&home_key);
        // Namespaces that no test made are there.
        let has_ended = |logged: &Logged| logged.event == "DELETED" && logged.key == home_key;
        if home.is_none() && self.log.iter().any(has_ended) {
            return Err(not_found("namespaces", namespace));
        }
        if home.is_some_and(|home| home.pointer("/metadata/deletionTimestamp").is_some()) {
            let mut refusal = status(
                StatusCode::FORBIDDEN,
                "Forbidden",
                "the namespace is being terminated",
            );
            refusal.1["details"] = json!({ "causes": [{ "reason": "NamespaceTerminating" }] });
            return Err(refusal);
        }
        let key = key(plural, namespace, text(&object, "/metadata/name"));
        if self.objects.contains_key(&key) {
            return Err(status(StatusCode::CONFLICT, "AlreadyExists", "already exists"));
        }
        self.uids += 1;
        let resource = RESOURCES
            .iter()
            .find(|resource| resource.plural == plural)
            .unwrap();
        object["apiVersion"] = json!(resource.group_version);
        object["kind"] = json!(resource.kind);
        let meta = &mut object["metadata"];
        meta["uid"] = json!(self.uids.to_string());
        meta["creationTimestamp"] = json!(now());
        meta["generation"] = json!(1);
        if resource.namespaced {
            meta["namespace"] = json!(namespace);
        }
        if plural == "namespaces" {
            object["spec"]["finalizers"] = json!(["kubernetes"]);
        }
        Ok(self.store(key, object, "ADDED"))
    }

    fn replace(&mut self, key: &Key, body: &Value, part: Option<&str>) -> Answer {
        let stored = self
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| not_found(&key.0, &key.2))?;
        check_version(&stored, body)?;
        let mut object = stored.clone();
        match part {
            Some("status") => object["status"] = body["status"].clone(),
            Some("finalize") => object["spec"] = body["spec"].clone(),
            _ => {
                let (uid, created) = (
                    stored["metadata"]["uid"].clone(),
                    stored["metadata"]["creationTimestamp"].clone(),
                );
                object = body.clone();
                object["metadata"]["uid"] = uid;
                object["metadata"]["creationTimestamp"] = created;
            }
        }
        Ok(self.update(key, &stored, object))
    }

    pub(super) fn patch(&mut self, key: &Key, patch: &Value, strategic: bool) -> Answer {
        let stored = self
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| not_found(&key.0, &key.2))?;
        check_version(&stored, patch)?;
        let mut object = stored.clone();
        merge(&mut object, patch, strategic);
        object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        Ok(self.update(key, &stored, object))
    }

    fn bind(&mut self, key: &Key, binding: &Value) -> Answer {
        let stored = self
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| not_found(&key.0, &key.2))?;
        if !text(&stored, "/spec/nodeName").is_empty()
            || stored["metadata"]["uid"] != binding["metadata"]["uid"]
        {
            return Err(status(StatusCode::CONFLICT, "Conflict", "already bound"));
        }
        let mut object = stored.clone();
        object["spec"]["nodeName"] = binding["target"]["name"].clone();
        self.update(key, &stored, object);
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
    }

    fn delete_all(&mut self, plural: &str, namespace: &str, options: &Value) -> Answer {
        let keys: Vec<Key> = self
            .objects
            .keys()
            .filter(|key| key.0 == plural && key.1 == namespace)
            .cloned()
            .collect();
        for key in keys {
            self.delete(&key, options)?;
        }
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
    }

    pub(super) fn delete(&mut self, key: &Key, options: &Value) -> Answer {
        let stored = self
            .objects
            .get(key)
            .cloned()
            .ok_or_else(|| not_found(&key.0, &key.2))?;
        check_version(&stored, &json!({ "metadata": options["preconditions"] }))?;
        let mut object = stored.clone();
        let finalizer = match options["propagationPolicy"].as_str() {
            Some("Foreground") => Some("foregroundDeletion"),
            Some("Orphan") => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer.filter(|_| stored.pointer("/metadata/deletionTimestamp").is_none())
        {
            let finalizers = object["metadata"]["finalizers"].take();
            let mut finalizers = finalizers.as_array().cloned().unwrap_or_default();
            finalizers.push(json!(finalizer));
            object["metadata"]["finalizers"] = json!(finalizers);
        }
        let graceful = key.0 == "pods"
            && !text(&stored, "/spec/nodeName").is_empty()
            && options["gracePeriodSeconds"] != json!(0);
        if graceful || is_held(&object) {
            if object.pointer("/metadata/deletionTimestamp").is_none() {
                object["metadata"]["deletionTimestamp"] = json!(now());
            }
            return Ok(self.update(key, &stored, object));
        }
        self.remove(key);
        Ok(json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
    }

    fn update(&mut self, key: &Key, stored: &Value, mut object: Value) -> Value {
        object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        if object["spec"] != stored["spec"] {
            let generation = stored["metadata"]["generation"].as_u64().unwrap_or(1);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        if object == *stored {
            return object;
        }
        let is_deleting = object.pointer("/metadata/deletionTimestamp").is_some();
        let ends_itself = key.0 != "pods" || stored.pointer("/metadata/finalizers/0").is_some();
        if is_deleting && ends_itself && !is_held(&object) {
            self.remove(key);
            return object;
        }
        self.store(key.clone(), object, "MODIFIED")
    }

    fn store(&mut self, key: Key, mut object: Value, event: &'static str) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key.clone(), object.clone());
        self.log.push(Logged {
            version: self.version,
            at: Instant::now(),
            key,
            event,
            object: object.clone(),
        });
        object
    }

    fn remove(&mut self, key: &Key) {
        let Some(mut object) = self.objects.remove(key) else {
            return;
        };
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.log.push(Logged {
            version: self.version,
            at: Instant::now(),
            key: key.clone(),
            event: "DELETED",
            object,
        });
    }
}

/// Whether finalizers keep it.
fn is_held(object: &Value) -> bool {
    let held = |path| {
        object
            .pointer(path)
            .and_then(Value::as_array)
            .is_some_and(|list| !list.is_empty())
    };
    held("/metadata/finalizers") || (object["kind"] == "Namespace" && held("/spec/finalizers"))
}

fn check_version(stored: &Value, asked: &Value) -> Result<(), (StatusCode, Value)> {
    for field in ["resourceVersion", "uid"] {
        let wanted = &asked["metadata"][field];
        if wanted.is_string() && *wanted != stored["metadata"][field] {
            return Err(status(
                StatusCode::CONFLICT,
                "Conflict",
                "the object has been modified",
            ));
        }
    }
    Ok(())
}

/// RFC 7386, and where `strategic`, lists of objects with a `type` merged by it.
fn merge(into: &mut Value, patch: &Value, strategic: bool) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in fields {
        match (&mut into[key], value) {
            (_, Value::Null) => drop(into.as_object_mut().unwrap().remove(key)),
            (Value::Array(known), Value::Array(news))
                if strategic && news.iter().all(|new| new["type"].is_string()) =>
            {
                for new in news {
                    match known.iter_mut().find(|known| known["type"] == new["type"]) {
                        Some(known) => merge(known, new, strategic),
                        None => known.push(new.clone()),
                    }
                }
            }
            (known, value) => merge(known, value, strategic),
        }
    }
}

pub(super) fn key(plural: &str, namespace: &str, name: &str) -> Key {
    (plural.to_owned(), namespace.to_owned(), name.to_owned())
}

/// The text at a JSON pointer, or nothing.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

pub(super) fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(super) fn status(code: StatusCode, reason: &str, message: &str) -> (StatusCode, Value) {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
        "code": code.as_u16(), "reason": reason, "message": message,
    });
    (code, body)
}

pub(super) fn not_found(plural: &str, name: &str) -> (StatusCode, Value) {
    status(
        StatusCode::NOT_FOUND,
        "NotFound",
        &format!("{plural} {name:?} not found"),
    )
}

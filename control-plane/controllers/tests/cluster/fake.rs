//! An API server in memory, as far as controllers use one: objects with uids, generations and resource
//! versions, list and watch, patches, graceful deletion and finalizers, bindings, classic discovery. Its
//! watches may lag, and its writes may fail, so that controllers can be seen to bear that.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;

type Answer = Result<Value, (StatusCode, Value)>;
type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// A resource that the server has.
struct Resource {
    group_version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
}

const RESOURCES: [Resource; 12] = [
    resource("v1", "pods", "Pod", true),
    resource("v1", "nodes", "Node", false),
    resource("v1", "services", "Service", true),
    resource("v1", "endpoints", "Endpoints", true),
    resource("v1", "namespaces", "Namespace", false),
    resource("v1", "serviceaccounts", "ServiceAccount", true),
    resource("v1", "configmaps", "ConfigMap", true),
    resource("v1", "events", "Event", true),
    resource("apps/v1", "replicasets", "ReplicaSet", true),
    resource("apps/v1", "deployments", "Deployment", true),
    resource("discovery.k8s.io/v1", "endpointslices", "EndpointSlice", true),
    resource("coordination.k8s.io/v1", "leases", "Lease", true),
];

const fn resource(
    group_version: &'static str,
    plural: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Resource {
    Resource {
        group_version,
        plural,
        kind,
        namespaced,
    }
}

/// Plural, namespace, name.
pub type Key = (String, String, String);

/// How the server misbehaves.
#[derive(Clone, Copy, Default)]
pub struct Faults {
    /// Watches tell everything this much later.
    pub lag: Duration,
    /// Every n-th write fails.
    pub fail_every: Option<u64>,
}

/// The server.
pub struct FakeApi {
    state: Mutex<State>,
    version: watch::Sender<u64>,
    faults: Faults,
}

#[derive(Default)]
struct State {
    version: u64,
    uids: u64,
    writes: u64,
    objects: BTreeMap<Key, Value>,
    log: Vec<Logged>,
}

#[derive(Clone)]
struct Logged {
    version: u64,
    at: Instant,
    key: Key,
    event: &'static str,
    object: Value,
}

impl FakeApi {
    pub fn new(faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            version: watch::Sender::new(0),
            faults,
        })
    }

    /// A client of this server.
    pub fn client(self: &Arc<Self>) -> Client {
        let api = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = Arc::clone(&api);
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Client::new(service, "default")
    }

    /// The object, if it is there.
    pub fn get(&self, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state().objects.get(&key(plural, namespace, name)).cloned()
    }

    /// All objects of one resource.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        let state = self.state();
        state
            .objects
            .iter()
            .filter(|(key, _)| key.0 == plural)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// Names of all objects of one resource that ever were.
    pub fn ever(&self, plural: &str) -> Vec<String> {
        let state = self.state();
        let added = state
            .log
            .iter()
            .filter(|logged| logged.event == "ADDED" && logged.key.0 == plural);
        added.map(|logged| logged.key.2.clone()).collect()
    }

    /// How many writes were tried.
    pub fn writes(&self) -> u64 {
        self.state().writes
    }

    /// Creates an object, as a user would.
    #[track_caller]
    pub fn create(&self, plural: &str, object: Value) {
        let namespace = text(&object, "/metadata/namespace").to_owned();
        self.edit(|state| state.create(plural, &namespace, object))
            .unwrap();
    }

    /// Patches an object by a merge patch, as a user would, or its status, as a kubelet would.
    #[track_caller]
    pub fn patch(&self, plural: &str, namespace: &str, name: &str, patch: Value) {
        self.edit(|state| state.patch(&key(plural, namespace, name), &patch, false))
            .unwrap();
    }

    /// Deletes an object.
    #[track_caller]
    pub fn delete(&self, plural: &str, namespace: &str, name: &str, options: Value) {
        self.edit(|state| state.delete(&key(plural, namespace, name), &options))
            .unwrap();
    }

    /// Waits until `holds`, at most 20 s.
    #[track_caller]
    pub fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) -> impl Future<Output = ()> {
        let mut version = self.version.subscribe();
        let caller = std::panic::Location::caller();
        async move {
            let waiting = async {
                while !holds(self) {
                    let _ = version.changed().await;
                }
            };
            let waited = tokio::time::timeout(Duration::from_secs(20), waiting).await;
            assert!(waited.is_ok(), "{caller}: never happened: {what}");
        }
    }

    /// Waits until nothing has been written for a while.
    pub async fn quiet(&self) {
        let mut version = self.version.subscribe();
        let quiet = Duration::from_millis(300) + 2 * self.faults.lag;
        while tokio::time::timeout(quiet, version.changed()).await.is_ok() {}
    }

    /// Plays the kubelets: bound pods run and are ready as `is_healthy` says, ending pods end.
    pub async fn run_kubelets(self: Arc<Self>, is_healthy: impl Fn(&Value) -> bool) {
        let mut version = self.version.subscribe();
        loop {
            for pod in self.all("pods") {
                let (namespace, name) = (text(&pod, "/metadata/namespace"), text(&pod, "/metadata/name"));
                if text(&pod, "/spec/nodeName").is_empty() {
                    continue;
                }
                if pod.pointer("/metadata/deletionTimestamp").is_some() {
                    let _ = self.edit(|state| {
                        state.delete(&key("pods", namespace, name), &json!({ "gracePeriodSeconds": 0 }))
                    });
                } else if text(&pod, "/status/phase") != "Running" {
                    let ready = if is_healthy(&pod) { "True" } else { "False" };
                    let number: u64 = text(&pod, "/metadata/uid").parse().unwrap_or(0);
                    let ip = format!("10.244.{}.{}", number / 250, number % 250 + 1);
                    let status = json!({
                        "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
                        "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": now() }],
                    });
                    let _ = self.edit(|state| {
                        state.patch(&key("pods", namespace, name), &json!({ "status": status }), false)
                    });
                }
            }
            if version.changed().await.is_err() {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn edit(&self, edit: impl FnOnce(&mut State) -> Answer) -> Answer {
        let mut state = self.state();
        let answer = edit(&mut state);
        let version = state.version;
        drop(state);
        self.version
            .send_if_modified(|known| std::mem::replace(known, version) != version);
        answer
    }

    async fn serve(self: Arc<Self>, request: Request<Body>) -> Response<AnswerBody> {
        let (parts, body) = request.into_parts();
        let body = body
            .collect()
            .await
            .map(|body| body.to_bytes())
            .unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let query: BTreeMap<String, String> = parts.uri.query().map(parse_query).unwrap_or_default();
        if let Some(document) = discovery(parts.uri.path()) {
            return answer(Ok(document));
        }
        let Some(target) = Target::parse(parts.uri.path()) else {
            return answer(Err(not_found("path", "?")));
        };
        if parts.method == Method::GET {
            if query
                .get("watch")
                .is_some_and(|watch| watch == "true" || watch == "1")
            {
                return self.watch(&target, &query);
            }
            return answer(self.read(&target, &query));
        }
        let strategic = parts
            .headers
            .get(http::header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/strategic"));
        let fail_every = self.faults.fail_every;
        answer(self.edit(|state| {
            state.writes += 1;
            if fail_every.is_some_and(|every| state.writes % every == 0) {
                return Err(status(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "InternalError",
                    "injected",
                ));
            }
            state.write(&parts.method, &target, body, strategic)
        }))
    }

    fn read(&self, target: &Target, query: &BTreeMap<String, String>) -> Answer {
        let state = self.state();
        if let Some(name) = &target.name {
            let found = state
                .objects
                .get(&key(target.resource.plural, &target.namespace, name))
                .cloned();
            return found.ok_or_else(|| not_found(target.resource.plural, name));
        }
        let selected = state.objects.iter().filter(|(key, _)| target.selects(key, query));
        Ok(json!({
            "apiVersion": target.resource.group_version, "kind": format!("{}List", target.resource.kind),
            "metadata": { "resourceVersion": state.version.to_string() },
            "items": selected.map(|(_, object)| object.clone()).collect::<Vec<_>>(),
        }))
    }

    fn watch(self: Arc<Self>, target: &Target, query: &BTreeMap<String, String>) -> Response<AnswerBody> {
        let from: u64 = query
            .get("resourceVersion")
            .and_then(|version| version.parse().ok())
            .unwrap_or(0);
        let (plural, query) = (target.clone(), query.clone());
        let versions = self.version.subscribe();
        let lines = stream::unfold(
            (self, plural, query, versions, from),
            |(api, target, query, mut versions, from)| {
                Box::pin(async move {
                    loop {
                        let next = {
                            let state = api.state();
                            let mut news = state.log.iter().filter(|logged| logged.version > from);
                            news.find(|logged| target.selects(&logged.key, &query)).cloned()
                        };
                        if let Some(next) = next {
                            tokio::time::sleep_until((next.at + api.faults.lag).into()).await;
                            let line = json!({ "type": next.event, "object": next.object });
                            let frame = Frame::data(Bytes::from(format!("{line}\n")));
                            return Some((
                                Ok::<_, Infallible>(frame),
                                (api, target, query, versions, next.version),
                            ));
                        }
                        versions.changed().await.ok()?;
                    }
                })
            },
        );
        Response::new(BodyExt::boxed_unsync(StreamBody::new(lines)))
    }
}

/// What a path names.
#[derive(Clone)]
struct Target {
    resource: &'static Resource,
    namespace: String,
    name: Option<String>,
    part: Option<String>,
}

impl Target {
    fn parse(path: &str) -> Option<Self> {
        let mut parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let group_version = match parts[..] {
            ["api", ..] => parts.drain(..2).nth(1)?.to_owned(),
            _ => parts.drain(..3).skip(1).collect::<Vec<_>>().join("/"),
        };
        let (namespace, rest) = match parts[..] {
            ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => ("", &parts[..]),
            ["namespaces", namespace, ..] => (namespace, &parts[2..]),
            _ => ("", &parts[..]),
        };
        let mut resources = RESOURCES.iter();
        let resource =
            resources.find(|r| r.group_version == group_version && Some(&r.plural) == rest.first())?;
        Some(Self {
            resource,
            namespace: namespace.to_owned(),
            name: rest.get(1).map(|name| (*name).to_owned()),
            part: rest.get(2).map(|part| (*part).to_owned()),
        })
    }

    fn selects(&self, key: &Key, query: &BTreeMap<String, String>) -> bool {
        let by_name = query
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("metadata.name="));
        key.0 == self.resource.plural
            && (self.namespace.is_empty() || key.1 == self.namespace)
            && by_name.is_none_or(|name| key.2 == name)
    }
}

impl State {
    fn write(&mut self, method: &Method, target: &Target, body: Value, strategic: bool) -> Answer {
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

    fn create(&mut self, plural: &str, namespace: &str, mut object: Value) -> Answer {
        let home = self.objects.get(&key("namespaces", "", namespace));
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

    fn patch(&mut self, key: &Key, patch: &Value, strategic: bool) -> Answer {
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

    fn delete(&mut self, key: &Key, options: &Value) -> Answer {
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

fn key(plural: &str, namespace: &str, name: &str) -> Key {
    (plural.to_owned(), namespace.to_owned(), name.to_owned())
}

/// The text at a JSON pointer, or nothing.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=").replace("%2F", "/")))
        .collect()
}

fn status(code: StatusCode, reason: &str, message: &str) -> (StatusCode, Value) {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
        "code": code.as_u16(), "reason": reason, "message": message,
    });
    (code, body)
}

fn not_found(plural: &str, name: &str) -> (StatusCode, Value) {
    status(
        StatusCode::NOT_FOUND,
        "NotFound",
        &format!("{plural} {name:?} not found"),
    )
}

fn answer(answer: Answer) -> Response<AnswerBody> {
    let (code, body) = answer.map_or_else(|refusal| refusal, |body| (StatusCode::OK, body));
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = code;
    response
}

/// Only the classic form: a request for the aggregated one gets it, too, as from a server that does not know
/// better.
fn discovery(path: &str) -> Option<Value> {
    let path = path.trim_matches('/');
    let groups = || {
        RESOURCES
            .iter()
            .filter_map(|resource| resource.group_version.split_once('/'))
    };
    match path {
        "api" => Some(json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] })),
        "apis" => {
            let mut names: Vec<_> = groups().collect();
            names.dedup();
            let groups: Vec<_> = names
                .into_iter()
                .map(|(group, version)| {
                    let version = json!({ "groupVersion": format!("{group}/{version}"), "version": version });
                    json!({ "name": group, "versions": [version], "preferredVersion": version })
                })
                .collect();
            Some(json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups }))
        }
        _ => {
            let group_version = path.strip_prefix("apis/").or_else(|| path.strip_prefix("api/"))?;
            let resources: Vec<_> = RESOURCES
                .iter()
                .filter(|resource| resource.group_version == group_version)
                .map(|resource| {
                    json!({
                        "name": resource.plural, "singularName": "", "kind": resource.kind,
                        "namespaced": resource.namespaced,
                        "verbs": ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
                    })
                })
                .collect();
            let list = json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources,
            });
            (!resources.is_empty()).then_some(list)
        }
    }
}

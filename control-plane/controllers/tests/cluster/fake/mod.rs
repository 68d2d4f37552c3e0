//! An API server in memory, as far as controllers use one: objects with uids, generations and resource
//! versions, list and watch, patches, graceful deletion and finalizers, bindings, classic discovery. Its
//! watches may lag, and its writes may fail, so that controllers can be seen to bear that.

mod state;
mod target;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

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

pub use state::text;
use state::{Answer, State, key, not_found, now, status};
use target::{Target, discovery};

type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

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

fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=").replace("%2F", "/")))
        .collect()
}

fn answer(answer: Answer) -> Response<AnswerBody> {
    let (code, body) = answer.map_or_else(|refusal| refusal, |body| (StatusCode::OK, body));
    let body = Full::new(Bytes::from(body.to_string()));
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = code;
    response
}

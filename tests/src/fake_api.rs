//! A small Kubernetes API server that is fed with plain JSON objects and misbehaves on demand.
//!
//! It serves what a watcher needs and nothing else: `GET` of an object, lists with pages, watches with bookmarks and
//! initial events, for any kind, in the whole cluster or in one namespace. It validates nothing, so that hostile
//! objects can be served too.
//!
//! ```no_run
//! use serde_json::json;
//! let api = tests::fake_api::FakeApi::start().expect("loopback is there");
//! api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}}));
//! api.compact(); // every watch that is open, or resumed from before, gets 410 Gone
//! api.cut();     // every connection breaks off in the middle
//! ```
//!
//! The server runs on a thread of its own, so that tests without async code can use it, and stops when it is dropped.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the server does with `sendInitialEvents=true` (KEP-3157).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StreamingLists {
    /// Sends the initial events and marks their end.
    #[default]
    Served,
    /// Answers 422, as a server does that knows the parameter and has the feature off.
    Refused,
    /// Overlooks the parameter, as servers before Kubernetes 1.27 do.
    Unknown,
}

/// How the server behaves. Changes apply to requests, and to events of open watches, from then on.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// What streaming lists meet.
    pub streaming_lists: StreamingLists,
    /// Waited before each answer and before each watch event.
    pub delay: Duration,
    /// Open watches stay open and say nothing.
    pub silent: bool,
    /// Status codes that the next requests get instead of an answer, in order.
    pub fail_next: Vec<u16>,
    /// `retryAfterSeconds` in those answers.
    pub retry_after: u32,
    /// Upper limit of a page, whatever the client asks for.
    pub largest_page: Option<usize>,
}

/// A running server.
#[derive(Debug)]
pub struct FakeApi {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// Counts changes of any kind, so that watches and the accept loop look again.
    changed: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Store {
    revision: u64,
    /// Objects by collection (`/api/v1/services`), then by namespace and name.
    collections: BTreeMap<String, BTreeMap<(String, String), Value>>,
    history: Vec<HistoryEntry>,
    /// History up to this revision is gone.
    compacted: u64,
    /// Rests of lists that were begun, by continue token.
    pages: HashMap<String, (u64, Vec<Value>)>,
    behaviour: Behaviour,
    /// Raised to end every connection.
    cuts: u64,
    /// Raised to send a bookmark on every watch.
    bookmarks: u64,
    down: bool,
    stopped: bool,
    requests: Vec<String>,
}

#[derive(Clone, Debug)]
struct HistoryEntry {
    revision: u64,
    collection: String,
    namespace: String,
    kind: &'static str,
    object: Value,
}

impl FakeApi {
    /// Serves on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When no port can be bound or no thread started.
    pub fn start() -> io::Result<Self> {
        Self::start_on(TcpListener::bind("127.0.0.1:0")?)
    }

    /// Serves on a listener, which may have been bound in another network namespace.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start_on(listener: TcpListener) -> io::Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            store: Mutex::default(),
            changed: watch::Sender::new(0),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let serving = shared.clone();
        let thread = std::thread::Builder::new()
            .name("fake-api".into())
            .spawn(move || {
                runtime.block_on(serve(listener, serving));
            })?;
        Ok(Self {
            address,
            shared,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that leads here.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path) -> io::Result<()> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": self.url()}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "users": [{"name": "fake", "user": {}}],
        });
        std::fs::write(path, config.to_string())
    }

    /// Creates or replaces an object, and returns its resource version.
    ///
    /// # Panics
    /// When the object has no `apiVersion`, `kind` or `metadata.name`.
    pub fn put(&self, mut object: Value) -> u64 {
        let (collection, key) = place(&object);
        self.edit(|store| {
            store.revision += 1;
            object["metadata"]["resourceVersion"] = store.revision.to_string().into();
            let objects = store.collections.entry(collection.clone()).or_default();
            let replaced = objects.insert(key.clone(), object.clone()).is_some();
            let kind = if replaced { "MODIFIED" } else { "ADDED" };
            store.record(collection, key.0, kind, object);
            store.revision
        })
    }

    /// Deletes the object of the same kind, namespace and name, and returns whether there was one.
    ///
    /// # Panics
    /// When the object has no `apiVersion`, `kind` or `metadata.name`.
    pub fn delete(&self, object: &Value) -> bool {
        let (collection, key) = place(object);
        self.edit(|store| {
            let objects = store.collections.entry(collection.clone()).or_default();
            let Some(mut object) = objects.remove(&key) else {
                return false;
            };
            store.revision += 1;
            object["metadata"]["resourceVersion"] = store.revision.to_string().into();
            store.record(collection, key.0, "DELETED", object);
            true
        })
    }

    /// Deletes the object and tells no watch, as if the history in between were lost. Only a list shows it.
    ///
    /// # Panics
    /// When the object has no `apiVersion`, `kind` or `metadata.name`.
    pub fn delete_unseen(&self, object: &Value) {
        let (collection, key) = place(object);
        self.edit(|store| {
            store.revision += 1;
            store.collections.entry(collection).or_default().remove(&key);
        });
    }

    /// Forgets the history: open watches get an event `410 Gone`, and so does each that resumes from before.
    pub fn compact(&self) {
        self.edit(|store| {
            store.revision += 1;
            store.compacted = store.revision;
            store.history.clear();
            store.pages.clear();
        });
    }

    /// Breaks off every connection, without an end of the answer.
    pub fn cut(&self) {
        self.edit(|store| store.cuts += 1);
    }

    /// Sends a bookmark on every watch that allows them.
    pub fn bookmark(&self) {
        self.edit(|store| store.bookmarks += 1);
    }

    /// Ends every connection and closes new ones at once until [`come_up`](Self::come_up).
    pub fn go_down(&self) {
        self.edit(|store| {
            store.down = true;
            store.cuts += 1;
        });
    }

    /// Accepts connections again.
    pub fn come_up(&self) {
        self.edit(|store| store.down = false);
    }

    /// Changes the behaviour.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        self.edit(|store| change(&mut store.behaviour));
    }

    /// Path and query of each request so far.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.shared.store().requests.clone()
    }

    fn edit<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.shared.store());
        self.shared.changed.send_modify(|count| *count += 1);
        result
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.edit(|store| store.stopped = true);
        if let Some(thread) = self.thread.take() {
            // A panic of the server was printed by its own thread.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    fn record(&mut self, collection: String, namespace: String, kind: &'static str, object: Value) {
        self.history.push(HistoryEntry {
            revision: self.revision,
            collection,
            namespace,
            kind,
            object,
        });
    }
}

/// Collection and key of an object.
fn place(object: &Value) -> (String, (String, String)) {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let api_version = text(&object["apiVersion"]).expect("object has an apiVersion");
    let kind = text(&object["kind"]).expect("object has a kind").to_lowercase();
    let name = text(&object["metadata"]["name"]).expect("object has a name");
    let namespace = text(&object["metadata"]["namespace"]).unwrap_or_default();
    let root = if api_version.contains('/') { "apis" } else { "api" };
    let plural = if kind.ends_with('s') {
        kind
    } else {
        format!("{kind}s")
    };
    (format!("/{root}/{api_version}/{plural}"), (namespace, name))
}

/// Accepts connections, and ends them all whenever a cut is asked for. While the server is down each new one is
/// closed at once: the listener itself stays, since it may belong to another network namespace than this thread.
async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("invariant: the listener is a socket");
    let mut changed = shared.changed.subscribe();
    let router = axum::Router::new().fallback(answer).with_state(shared.clone());
    let mut connections = JoinSet::new();
    let mut cuts = 0;
    loop {
        let (stopped, cuts_now) = {
            let store = shared.store();
            (store.stopped, store.cuts)
        };
        if stopped {
            return;
        }
        if cuts_now != cuts {
            cuts = cuts_now;
            connections.shutdown().await;
        }
        tokio::select! {
            _ = changed.changed() => {}
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                if shared.store().down {
                    continue;
                }
                let service = TowerToHyperService::new(router.clone());
                connections.spawn(async move {
                    let builder = auto::Builder::new(TokioExecutor::new());
                    // A client that went away is no matter of the server.
                    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        }
    }
}

/// A request, as far as it matters.
struct Query {
    collection: String,
    namespace: Option<String>,
    name: Option<String>,
    parameters: HashMap<String, String>,
}

impl Query {
    /// Splits `/api/v1/namespaces/NS/services/NAME` and its like. `namespaces` itself is a collection too.
    fn parse(uri: &Uri) -> Option<Self> {
        let parts: Vec<&str> = uri.path().split('/').filter(|part| !part.is_empty()).collect();
        let (version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => (format!("/api/{version}"), rest),
            ["apis", group, version, rest @ ..] => (format!("/apis/{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural, rest @ ..] => (Some(*namespace), *plural, rest.first()),
            [plural, rest @ ..] => (None, *plural, rest.first()),
            [] => return None,
        };
        let pairs = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='));
        Some(Self {
            collection: format!("{version}/{plural}"),
            namespace: namespace.map(str::to_owned),
            name: name.map(|name| (*name).to_owned()),
            parameters: pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect(),
        })
    }

    fn is(&self, parameter: &str) -> bool {
        self.parameters
            .get(parameter)
            .is_some_and(|value| value == "true" || value == "1")
    }

    fn number(&self, parameter: &str) -> Option<u64> {
        self.parameters.get(parameter)?.parse().ok()
    }

    fn includes(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
    }

    fn objects(&self, store: &Store) -> Vec<Value> {
        let Some(objects) = store.collections.get(&self.collection) else {
            return Vec::new();
        };
        let included = objects
            .iter()
            .filter(|((namespace, _), _)| self.includes(namespace));
        included.map(|(_, object)| object.clone()).collect()
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let uri = request.uri().clone();
    let (delay, failure, retry_after) = {
        let mut store = shared.store();
        store.requests.push(uri.to_string());
        let failures = &mut store.behaviour.fail_next;
        let failure = if failures.is_empty() {
            None
        } else {
            Some(failures.remove(0))
        };
        (store.behaviour.delay, failure, store.behaviour.retry_after)
    };
    tokio::time::sleep(delay).await;
    if let Some(code) = failure {
        return status(code, "failed on demand", retry_after);
    }
    if uri.path() == "/version" {
        return axum::Json(json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0-fake"}))
            .into_response();
    }
    let Some(query) = Query::parse(&uri) else {
        return status(404, "no such path", 0);
    };
    if query.is("watch") {
        return watch_response(shared, query);
    }
    match &query.name {
        Some(name) => get_object(&shared.store(), &query, name),
        None => list(&mut shared.store(), &query),
    }
}

fn get_object(store: &Store, query: &Query, name: &str) -> Response {
    let key = (query.namespace.clone().unwrap_or_default(), name.to_owned());
    let object = store
        .collections
        .get(&query.collection)
        .and_then(|objects| objects.get(&key));
    match object {
        Some(object) => axum::Json(object.clone()).into_response(),
        None => status(404, "no such object", 0),
    }
}

fn list(store: &mut Store, query: &Query) -> Response {
    let (revision, mut items) = match query.parameters.get("continue") {
        None => (store.revision, query.objects(store)),
        Some(token) => match store.pages.remove(token) {
            Some(rest) => rest,
            None => return status(410, "the continue token is too old", 0),
        },
    };
    let asked = query
        .number("limit")
        .and_then(|limit| usize::try_from(limit).ok());
    let limit = [asked, store.behaviour.largest_page]
        .into_iter()
        .flatten()
        .filter(|limit| *limit > 0)
        .min();
    let rest = items.split_off(limit.unwrap_or(usize::MAX).min(items.len()));
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if !rest.is_empty() {
        let token = format!("{revision}-{}-{}", query.collection.replace('/', "."), rest.len());
        metadata["continue"] = token.clone().into();
        store.pages.insert(token, (revision, rest));
    }
    // As the real one does: the list says the kind, its items do not.
    for item in items.iter_mut().filter_map(Value::as_object_mut) {
        item.remove("kind");
        item.remove("apiVersion");
    }
    axum::Json(json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
        .into_response()
}

fn status(code: u16, message: &str, retry_after: u32) -> Response {
    let body = axum::Json(status_object(code, message, retry_after));
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, body).into_response()
}

fn status_object(code: u16, message: &str, retry_after: u32) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code, "details": {"retryAfterSeconds": retry_after},
    })
}

/// The state of one open watch.
struct Watch {
    query: Query,
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    /// Lines that are ready to be sent.
    ready: Vec<Value>,
    /// Everything up to this revision was sent or is ready.
    seen: u64,
    bookmarks: u64,
    over: bool,
}

fn watch_response(shared: Arc<Shared>, query: Query) -> Response {
    let watch = match Watch::begin(shared, query) {
        Ok(watch) => watch,
        Err(refusal) => return *refusal,
    };
    let deadline = watch.query.number("timeoutSeconds").map(Duration::from_secs);
    let lines = futures::stream::unfold(watch, |mut watch| async {
        let line = watch.next().await?;
        Some((line, watch))
    });
    let end = tokio::time::sleep(deadline.unwrap_or(Duration::from_secs(3600)));
    let lines = lines
        .take_until(end)
        .map(|line| Ok::<_, Infallible>(Bytes::from(format!("{line}\n"))));
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(lines),
    )
        .into_response()
}

impl Watch {
    fn begin(shared: Arc<Shared>, query: Query) -> Result<Self, Box<Response>> {
        let changed = shared.changed.subscribe();
        let (seen, ready, bookmarks) = {
            let store = shared.store();
            let initial = match store.behaviour.streaming_lists {
                _ if !query.is("sendInitialEvents") => false,
                StreamingLists::Served => true,
                StreamingLists::Unknown => false,
                StreamingLists::Refused => {
                    let message = "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless \
                                   the WatchList feature gate is enabled";
                    return Err(Box::new(status(422, message, 0)));
                }
            };
            let from = query.number("resourceVersion").unwrap_or(0);
            // Without a version the watch begins with everything there is, and so it does with initial events.
            if initial || from == 0 {
                let objects = query.objects(&store).into_iter();
                let mut ready: Vec<Value> = objects.map(|object| event("ADDED", object)).collect();
                if initial {
                    ready.push(bookmark(store.revision, true));
                }
                (store.revision, ready, store.bookmarks)
            } else {
                (from, Vec::new(), store.bookmarks)
            }
        };
        Ok(Self {
            query,
            shared,
            changed,
            ready,
            seen,
            bookmarks,
            over: false,
        })
    }

    /// The next line, or nothing when the watch is over.
    async fn next(&mut self) -> Option<Value> {
        loop {
            let (delay, silent) = {
                let behaviour = &self.shared.store().behaviour;
                (behaviour.delay, behaviour.silent)
            };
            if !silent {
                if !self.ready.is_empty() {
                    tokio::time::sleep(delay).await;
                    return Some(self.ready.remove(0));
                }
                if self.over {
                    return None;
                }
                if self.collect() {
                    continue;
                }
            }
            self.changed.changed().await.ok()?;
        }
    }

    /// Makes ready what happened since, and returns whether anything did.
    fn collect(&mut self) -> bool {
        let store = self.shared.store();
        if self.seen < store.compacted {
            self.over = true;
            let gone = status_object(410, "too old resource version", 0);
            self.ready.push(event("ERROR", gone));
            return true;
        }
        let history = store.history.iter().filter(|entry| entry.revision > self.seen);
        let ours = history.filter(|entry| {
            entry.collection == self.query.collection && self.query.includes(&entry.namespace)
        });
        self.ready
            .extend(ours.map(|entry| event(entry.kind, entry.object.clone())));
        self.seen = store.revision;
        if store.bookmarks != self.bookmarks {
            self.bookmarks = store.bookmarks;
            if self.query.is("allowWatchBookmarks") {
                self.ready.push(bookmark(store.revision, false));
            }
        }
        !self.ready.is_empty()
    }
}

fn event(kind: &str, object: Value) -> Value {
    json!({"type": kind, "object": object})
}

fn bookmark(revision: u64, ends_initial_events: bool) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if ends_initial_events {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    event(
        "BOOKMARK",
        json!({"kind": "Bookmark", "apiVersion": "v1", "metadata": metadata}),
    )
}

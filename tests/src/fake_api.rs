//! A small Kubernetes API server that is fed with plain JSON objects and misbehaves on demand.
//!
//! It serves what a watcher needs and little else: `GET` of an object, lists with pages, watches with bookmarks and
//! initial events, for any kind, in the whole cluster or in one namespace, by labels that are equal; pods by
//! their first address; `POST`, and `PATCH` by a merge. It validates nothing, so that hostile objects can be served too.
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

mod http;
pub(crate) mod tls;
mod watching;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::sync::watch;

pub use tls::{Authority, Identity};

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
    /// How fast each answer comes, a watch's too. 0 = as fast as it can.
    pub bytes_per_second: usize,
    /// Every watch ends as soon as it has begun, with no error.
    pub hasty_ends: bool,
    /// Open watches stay open and say nothing.
    pub silent: bool,
    /// Status codes that the next requests get instead of an answer, in order.
    pub fail_next: Vec<u16>,
    /// `retryAfterSeconds` in those answers.
    pub retry_after: u32,
    /// Those answers are a line of text, and say when to come back in the header `Retry-After`, as an API server does
    /// that has too many requests in flight.
    pub refuses_by_text: bool,
    /// The bearer token without which each request gets 401.
    pub token: Option<String>,
    /// Kinds that the server does not know, for example `servicecidrs`.
    pub absent: Vec<&'static str>,
    /// Kinds that nobody may look at.
    pub forbidden: Vec<&'static str>,
    /// Upper limit of a page, whatever the client asks for.
    pub largest_page: Option<usize>,
    /// Lists come whole, whatever limit the client asks for.
    pub no_pages: bool,
    /// Watches have no bookmarks, but for the one that ends a streaming list.
    pub no_bookmarks: bool,
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
    collections: BTreeMap<String, BTreeMap<(String, String), Arc<Object>>>,
    /// In the order of revisions.
    history: Vec<HistoryEntry>,
    /// History up to this revision is gone.
    compacted: u64,
    /// Rests of lists that were begun, by continue token.
    pages: HashMap<String, (u64, Vec<Arc<Object>>)>,
    behaviour: Behaviour,
    /// Raised to end every connection.
    cuts: u64,
    /// Raised to send a bookmark on every watch.
    bookmarks: u64,
    down: bool,
    stopped: bool,
    /// None = plain HTTP.
    tls: Option<Arc<ServerConfig>>,
    requests: Vec<String>,
}

/// An object, and its JSON: many thousands are sent at once where an agent starts, which shall not wait for us.
#[derive(Debug)]
struct Object {
    value: Value,
    json: String,
}

impl From<Value> for Object {
    fn from(value: Value) -> Self {
        Self {
            json: value.to_string(),
            value,
        }
    }
}

#[derive(Clone, Debug)]
struct HistoryEntry {
    revision: u64,
    collection: String,
    namespace: String,
    kind: &'static str,
    object: Arc<Object>,
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
                runtime.block_on(http::serve(listener, serving));
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
    pub fn put(&self, object: Value) -> u64 {
        let (collection, key) = place(&object);
        self.edit(|store| {
            store.insert(collection, key, object);
            store.revision
        })
    }

    /// All objects of a collection, for example `/api/v1/events`, in the order of their names.
    #[must_use]
    pub fn objects(&self, collection: &str) -> Vec<Value> {
        let store = self.shared.store();
        let objects = store.collections.get(collection).into_iter().flatten();
        objects.map(|(_, object)| object.value.clone()).collect()
    }

    /// Deletes the object of the same kind, namespace and name, and returns whether there was one.
    ///
    /// # Panics
    /// When the object has no `apiVersion`, `kind` or `metadata.name`.
    pub fn delete(&self, object: &Value) -> bool {
        let (collection, key) = place(object);
        self.edit(|store| {
            let objects = store.collections.entry(collection.clone()).or_default();
            let Some(object) = objects.remove(&key) else {
                return false;
            };
            store.revision += 1;
            let mut object = object.value.clone();
            object["metadata"]["resourceVersion"] = store.revision.to_string().into();
            store.record(collection, key.0, "DELETED", Arc::new(object.into()));
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

    /// Speaks TLS on connections from now on, and asks clients for a certificate of an authority if one is given.
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub fn speak_tls(&self, server: &Identity, clients: Option<&Authority>) -> anyhow::Result<()> {
        let config = tls::config(server, clients)?;
        self.edit(|store| {
            store.tls = Some(config);
            store.cuts += 1;
        });
        Ok(())
    }

    /// Changes the behaviour.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        self.edit(|store| change(&mut store.behaviour));
    }

    /// Whether the server does not know a kind.
    #[must_use]
    pub fn lacks(&self, kind: &str) -> bool {
        self.shared.store().behaviour.absent.contains(&kind)
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
    /// Creates or replaces an object, and returns it as it is then.
    fn insert(&mut self, collection: String, key: (String, String), mut object: Value) -> Arc<Object> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let object = Arc::new(Object::from(object));
        let objects = self.collections.entry(collection.clone()).or_default();
        let replaced = objects.insert(key.clone(), object.clone()).is_some();
        let kind = if replaced { "MODIFIED" } else { "ADDED" };
        self.record(collection, key.0, kind, object.clone());
        object
    }

    fn record(&mut self, collection: String, namespace: String, kind: &'static str, object: Arc<Object>) {
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
    let plural = if let Some(stem) = kind.strip_suffix('y') {
        format!("{stem}ies")
    } else if kind.ends_with('s') {
        kind
    } else {
        format!("{kind}s")
    };
    (format!("/{root}/{api_version}/{plural}"), (namespace, name))
}

//! watch: initial state if asked for, then changes from the cache's window, as lines of JSON.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::Response;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior};

use super::read::parse_revision;
use super::{Api, Call, now};
use crate::features::Feature;
use crate::negotiate::{self, Shape};
use crate::object::{self};
use crate::resources::{Resource, Serves};
use crate::selectors::Selection;
use crate::status::{Failure, Result};
use crate::table;
use crate::watch_cache::{Batch, Cache, Change, Item};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// What waits for a slow client: lines, and their bytes (or one line that is longer). Beyond that the client's place in
/// the window is all that is kept, and when that is gone, so is the client.
const QUEUE: usize = 64;
const QUEUE_BYTES: usize = 256 << 10;

/// What the client asked for.
struct Wish {
    resource: &'static Resource,
    selection: Selection,
    shape: Shape,
    include: table::Include,
    bookmarks: bool,
}

/// Where a watch starts.
struct Start {
    /// Current state to be sent first.
    initial: Vec<Arc<Item>>,
    /// Place in the cache's window.
    position: u64,
    /// Changes up to here are known to the client.
    after: i64,
    /// The initial state ends with a marked bookmark.
    mark_end: bool,
}

/// How far a watch is.
struct Place {
    /// In the cache's window.
    position: AtomicU64,
    /// Everything up to this revision was sent.
    told: AtomicI64,
}

impl Place {
    fn at(start: &Start) -> Self {
        Place {
            position: AtomicU64::new(start.position),
            told: AtomicI64::new(start.after),
        }
    }
}

/// The client went away.
struct Gone;

/// Lines on their way to the client.
struct Lines {
    queue: mpsc::Sender<(Bytes, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

impl Lines {
    fn new() -> (Self, Body) {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let body = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<(Bytes, _)>| {
            let (line, _room) = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(line), receiver))
        });
        let room = Arc::new(Semaphore::new(QUEUE_BYTES));
        (Lines { queue, room }, Body::from_stream(body))
    }

    /// Waits until the client has read enough.
    async fn send(&self, line: Bytes) -> Result<(), Gone> {
        let room = tokio::select! {
            room = self.room.clone().acquire_many_owned(room_of(&line)) => room.map_err(|_| Gone)?,
            () = self.queue.closed() => return Err(Gone),
        };
        self.queue.send((line, room)).await.map_err(|_| Gone)
    }

    /// A last line, for a client that reads.
    fn try_send(&self, line: Bytes) {
        if let Ok(room) = self.room.clone().try_acquire_many_owned(room_of(&line))
            && self.queue.try_send((line, room)).is_err()
        {
            tracing::trace!("the end of a watch was not told");
        }
    }
}

fn room_of(line: &Bytes) -> u32 {
    u32::try_from(line.len().min(QUEUE_BYTES)).unwrap_or(u32::MAX)
}

impl Api {
    pub(super) async fn watch(self: Arc<Self>, call: Call) -> Result<Response<Body>> {
        self.check_initial_events(&call)?;
        let wish = Wish {
            resource: call.resource,
            selection: self.selection(&call)?,
            shape: call.wanted.shape,
            include: negotiate::include_object(call.query.get("includeObject")),
            bookmarks: call.query.flag("allowWatchBookmarks") && self.features.has(Feature::WatchBookmark),
        };
        let timeout = call
            .query
            .int("timeoutSeconds")
            .and_then(|seconds| u64::try_from(seconds).ok());
        let timeout = timeout
            .filter(|seconds| *seconds > 0)
            .map_or(DEFAULT_TIMEOUT, Duration::from_secs);
        let cache = self.caches.of(&self.storage, call.resource);
        let (lines, body) = Lines::new();
        let start = self.watch_start(&call, &cache).await;
        tokio::spawn(async move {
            let start = match start {
                Ok(start) => start,
                Err(failure) => return lines.try_send(error_line(&failure)),
            };
            let place = Place::at(&start);
            // A client that does not read keeps this from going on: it ends all the same.
            tokio::select! {
                finished = self.run_watch(&wish, &cache, start, &place, &lines) => if finished.is_err() {
                    tracing::trace!("watch ended by its client");
                },
                () = cache.overtakes(&place.position) => lines.try_send(too_old()),
                () = self.shutdown.cancelled() => {}
                () = tokio::time::sleep(timeout) => {
                    // A last bookmark, so that the client resumes as late as possible.
                    if wish.bookmarks {
                        lines.try_send(wish.bookmark(place.told.load(Ordering::Acquire), false));
                    }
                }
            }
        });
        Ok(negotiate::bytes(200, "application/json", body))
    }

    /// The server refuses the request before the watch begins, so that clients list instead
    /// (`ValidateListOptions` of apimachinery).
    fn check_initial_events(&self, call: &Call) -> Result<()> {
        if call.query.get("sendInitialEvents").is_none() {
            return Ok(());
        }
        let invalid =
            |why: &str| Failure::unprocessable(format!("ListOptions.meta.k8s.io \"\" is invalid: {why}"));
        if !self.features.has(Feature::WatchList) {
            return Err(invalid(
                "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
            ));
        }
        if wants_initial_events(call) && call.query.get("resourceVersionMatch") != Some("NotOlderThan") {
            return Err(invalid(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
        Ok(())
    }

    /// Reads `resourceVersion` and `sendInitialEvents` (KEP-3157).
    async fn watch_start(&self, call: &Call, cache: &Cache) -> Result<Start> {
        let given = call.query.get("resourceVersion");
        let mark_end = wants_initial_events(call);
        let revision = given.map(parse_revision).transpose()?.unwrap_or(0);
        // A revision that etcd has not reached is of a store that was there before a restore: its client would wait, and
        // hear nothing, until the new store is as old.
        if revision > self.caches.progress() && revision > self.storage.current_revision().await? {
            return Err(Failure::expired(format!(
                "resource version {revision} is of another store"
            )));
        }
        if revision > 0 && !mark_end {
            let position = cache.position_after(revision).map_err(|oldest| {
                Failure::expired(format!("too old resource version: {revision} ({oldest})"))
            })?;
            return Ok(Start {
                initial: Vec::new(),
                position,
                after: revision,
                mark_end,
            });
        }
        if given.is_some() && revision <= self.caches.progress() {
            let after = self.caches.progress();
            let (initial, position) = cache.snapshot();
            return Ok(Start {
                initial,
                position,
                after,
                mark_end,
            });
        }
        // Nothing less than the newest state will do: by etcd's word, then changes after that revision.
        let prefix = self.storage.scope_prefix(call.resource, call.namespace());
        let _room = self.bounds.objects(cache.count(&prefix)).await?;
        let (pairs, after) = self.storage.list_pairs(&prefix, None).await?;
        if after < revision {
            return Err(Failure::revision_too_large(revision, after));
        }
        let position = cache
            .position_after(after)
            .map_err(|oldest| Failure::expired(format!("too old resource version: {after} ({oldest})")))?;
        // As memory has nearly all of them, a slow client holds no copies of its own.
        let shared = |(key, object): (String, Value)| {
            let revision = object::revision(&object);
            let known = cache.get(&key).filter(|item| item.revision == revision);
            known.unwrap_or_else(|| Item::new(object, revision))
        };
        Ok(Start {
            initial: pairs.into_iter().map(shared).collect(),
            position,
            after,
            mark_end,
        })
    }

    async fn run_watch(
        &self,
        wish: &Wish,
        cache: &Cache,
        start: Start,
        place: &Place,
        lines: &Lines,
    ) -> Result<(), Gone> {
        for item in start.initial {
            let object = wish.resource.outward(item.object.clone());
            if wish.selection.matches(wish.resource, &object) {
                lines.send(wish.line("ADDED", &object)).await?;
            }
        }
        if start.mark_end {
            lines.send(wish.bookmark(start.after, true)).await?;
        }
        let mut position = start.position;
        let mut changed = cache.subscribe();
        let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            changed.mark_unchanged();
            // Read before the window, so that everything up to here has been sent when the bookmark is.
            let progress = self.caches.progress().max(start.after);
            loop {
                match cache.changes_from(position) {
                    Batch::Gone => return lines.send(too_old()).await,
                    Batch::Changes(changes, _) if changes.is_empty() => break,
                    Batch::Changes(changes, next) => {
                        for change in changes.iter().filter(|change| change.revision > start.after) {
                            if let Some(line) = wish.change_line(change) {
                                lines.send(line).await?;
                            }
                        }
                        position = next;
                        place.position.store(position, Ordering::Release);
                    }
                }
            }
            place.told.store(progress, Ordering::Release);
            tokio::select! {
                woken = changed.changed() => if woken.is_err() { return Ok(()) },
                _ = bookmarks.tick(), if wish.bookmarks => lines.send(wish.bookmark(progress, false)).await?,
                () = lines.queue.closed() => return Err(Gone),
            }
        }
    }
}

impl Wish {
    /// The event that a change is under the selector: an object that leaves the selection is DELETED.
    fn change_line(&self, change: &Change) -> Option<Bytes> {
        let selected = |item: &Option<Arc<Item>>| {
            item.as_ref().is_some_and(|item| match self.resource.serves {
                Serves::View(_) => {
                    let view = self.resource.outward(item.object.clone());
                    self.selection.matches(self.resource, &view)
                }
                _ => self.selection.matches(self.resource, &item.object),
            })
        };
        match (selected(&change.before), selected(&change.after)) {
            (false, false) => None,
            (was, true) => {
                let item = change.after.as_ref()?;
                Some(self.item_line(if was { "MODIFIED" } else { "ADDED" }, item))
            }
            (true, false) => {
                let mut object = change.before.as_ref()?.object.clone();
                object::set_revision(&mut object, change.revision);
                Some(self.line("DELETED", &self.resource.outward(object)))
            }
        }
    }

    /// Whole objects are encoded once for all watchers.
    fn item_line(&self, kind: &str, item: &Item) -> Bytes {
        match (self.shape, self.resource.serves) {
            (Shape::Object, Serves::Objects) => {
                let head = format!("{{\"type\":\"{kind}\",\"object\":");
                [head.as_bytes(), item.json(), b"}\n"].concat().into()
            }
            _ => self.line(kind, &self.resource.outward(item.object.clone())),
        }
    }

    fn line(&self, kind: &str, object: &Value) -> Bytes {
        let shaped = match self.shape {
            Shape::Object => object.clone(),
            Shape::Metadata => table::partial_metadata(object, "v1"),
            Shape::Table(version) => {
                let metadata = json!({ "resourceVersion": object["metadata"]["resourceVersion"] });
                table::table(self.resource, [object], metadata, (version, self.include), now())
            }
        };
        event_line(kind, &shaped)
    }

    fn bookmark(&self, revision: i64, ends_initial_events: bool) -> Bytes {
        let mut object = json!({
            "kind": self.resource.kind, "apiVersion": self.resource.api_version(),
            "metadata": { "resourceVersion": revision.to_string(), "creationTimestamp": null },
        });
        if ends_initial_events {
            object["metadata"]["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        match self.shape {
            Shape::Object => event_line("BOOKMARK", &object),
            Shape::Metadata => event_line("BOOKMARK", &table::partial_metadata(&object, "v1")),
            Shape::Table(version) => {
                let metadata = json!({ "resourceVersion": revision.to_string() });
                let rows = ends_initial_events.then_some(&object);
                let table = table::table(self.resource, rows, metadata, (version, self.include), now());
                event_line("BOOKMARK", &table)
            }
        }
    }
}

fn wants_initial_events(call: &Call) -> bool {
    call.query.get("sendInitialEvents").is_some() && call.query.flag("sendInitialEvents")
}

fn event_line(kind: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

fn error_line(failure: &Failure) -> Bytes {
    event_line("ERROR", &failure.to_json())
}

fn too_old() -> Bytes {
    error_line(&Failure::expired("too old resource version"))
}

//! watch: initial state if asked for, then changes from the cache's window, as lines of JSON.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use futures::stream;
use http::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};

use super::read::parse_revision;
use super::{Api, Call, now};
use crate::negotiate::{self, Shape};
use crate::object::{self};
use crate::resources::{Resource, Serves};
use crate::selectors::Selection;
use crate::status::{Failure, Result};
use crate::table;
use crate::watch_cache::{Batch, Cache, Change, Item};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(45 * 60);
const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
/// Lines that wait for a slow client; beyond that the client's place in the window is all that is kept.
const QUEUE: usize = 64;

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
    initial: Option<Vec<Value>>,
    /// Place in the cache's window.
    position: u64,
    /// Changes up to here are known to the client.
    after: i64,
    /// The initial state ends with a marked bookmark.
    mark_end: bool,
}

/// The client went away.
struct Gone;

impl Api {
    pub(super) async fn watch(self: Arc<Self>, call: Call) -> Result<Response<Body>> {
        let wish = Wish {
            resource: call.resource,
            selection: self.selection(&call)?,
            shape: call.wanted.shape,
            include: negotiate::include_object(call.query.get("includeObject")),
            bookmarks: call.query.flag("allowWatchBookmarks"),
        };
        let timeout = call
            .query
            .int("timeoutSeconds")
            .and_then(|seconds| u64::try_from(seconds).ok());
        let timeout = timeout
            .filter(|seconds| *seconds > 0)
            .map_or(DEFAULT_TIMEOUT, Duration::from_secs);
        let cache = self.caches.of(&self.storage, call.resource);
        let (lines, receiver) = mpsc::channel::<Bytes>(QUEUE);
        let start = self.watch_start(&call, &cache).await;
        tokio::spawn(async move {
            let finished = match start {
                Ok(start) => self.run_watch(&wish, &cache, start, timeout, &lines).await,
                Err(failure) => lines.send(error_line(&failure)).await.map_err(|_| Gone),
            };
            if finished.is_err() {
                tracing::trace!("watch ended by its client");
            }
        });
        let body = stream::unfold(receiver, async |mut receiver| {
            let line = receiver.recv().await?;
            Some((Ok::<_, std::convert::Infallible>(line), receiver))
        });
        Ok(negotiate::bytes(200, "application/json", Body::from_stream(body)))
    }

    /// Reads `resourceVersion`, `resourceVersionMatch` and `sendInitialEvents` (KEP-3157).
    async fn watch_start(&self, call: &Call, cache: &Cache) -> Result<Start> {
        let given = call.query.get("resourceVersion");
        let mark_end = call.query.flag("sendInitialEvents") && call.query.get("sendInitialEvents").is_some();
        if mark_end && call.query.get("resourceVersionMatch") != Some("NotOlderThan") {
            return Err(Failure::unprocessable(
                "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            ));
        }
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
                initial: None,
                position,
                after: revision,
                mark_end,
            });
        }
        if given.is_some() && revision <= self.caches.progress() {
            let after = self.caches.progress();
            let (items, position) = cache.snapshot();
            let initial = items.iter().map(|item| item.object.clone()).collect();
            return Ok(Start {
                initial: Some(initial),
                position,
                after,
                mark_end,
            });
        }
        // Nothing less than the newest state will do: by etcd's word, then changes after that revision.
        let (initial, after) = self
            .storage
            .list(&self.storage.scope_prefix(call.resource, call.namespace()))
            .await?;
        if after < revision {
            return Err(Failure::revision_too_large(revision, after));
        }
        let position = cache
            .position_after(after)
            .map_err(|oldest| Failure::expired(format!("too old resource version: {after} ({oldest})")))?;
        Ok(Start {
            initial: Some(initial),
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
        timeout: Duration,
        lines: &mpsc::Sender<Bytes>,
    ) -> Result<(), Gone> {
        for object in start.initial.into_iter().flatten() {
            let object = wish.resource.outward(object);
            if wish.selection.matches(wish.resource, &object) {
                send(lines, wish.line("ADDED", &object)).await?;
            }
        }
        if start.mark_end {
            send(lines, wish.bookmark(start.after, true)).await?;
        }
        let mut position = start.position;
        let mut changed = cache.subscribe();
        let mut bookmarks = tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = tokio::time::sleep(timeout);
        tokio::pin!(end);
        loop {
            changed.mark_unchanged();
            // Read before the window, so that everything up to here has been sent when the bookmark is.
            let progress = self.caches.progress().max(start.after);
            loop {
                match cache.changes_from(position) {
                    Batch::Gone => {
                        return send(lines, error_line(&Failure::expired("too old resource version"))).await;
                    }
                    Batch::Changes(changes, _) if changes.is_empty() => break,
                    Batch::Changes(changes, next) => {
                        for change in changes.iter().filter(|change| change.revision > start.after) {
                            if let Some(line) = wish.change_line(change) {
                                send(lines, line).await?;
                            }
                        }
                        position = next;
                    }
                }
            }
            tokio::select! {
                woken = changed.changed() => if woken.is_err() { return Ok(()) },
                _ = bookmarks.tick(), if wish.bookmarks => send(lines, wish.bookmark(progress, false)).await?,
                () = lines.closed() => return Err(Gone),
                () = self.shutdown.cancelled() => return Ok(()),
                () = &mut end => {
                    // A last bookmark, so that the client resumes as late as possible.
                    if wish.bookmarks {
                        send(lines, wish.bookmark(progress, false)).await?;
                    }
                    return Ok(());
                }
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

fn event_line(kind: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

fn error_line(failure: &Failure) -> Bytes {
    event_line("ERROR", &failure.to_json())
}

async fn send(lines: &mpsc::Sender<Bytes>, line: Bytes) -> Result<(), Gone> {
    lines.send(line).await.map_err(|_| Gone)
}

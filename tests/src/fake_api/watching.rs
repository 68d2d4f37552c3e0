//! Watches.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::http::{Query, pause, status, status_object};
use super::{Shared, StreamingLists};

/// The state of one open watch.
struct Watch {
    query: Query,
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    /// Lines that are ready to be sent.
    ready: VecDeque<Value>,
    /// Everything up to this revision was sent or is ready.
    seen: u64,
    bookmarks: u64,
    over: bool,
}

pub(super) fn watch_response(shared: Arc<Shared>, query: Query) -> Response {
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
                let mut ready: VecDeque<Value> = objects.map(|object| event("ADDED", object)).collect();
                if initial {
                    ready.push_back(bookmark(store.revision, true));
                }
                (store.revision, ready, store.bookmarks)
            } else {
                (from, VecDeque::new(), store.bookmarks)
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
            let (delay, silent, hasty_end) = {
                let behaviour = &self.shared.store().behaviour;
                (behaviour.delay, behaviour.silent, behaviour.hasty_ends)
            };
            if hasty_end {
                return None;
            }
            if !silent {
                if let Some(line) = self.ready.pop_front() {
                    pause(delay).await;
                    return Some(line);
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
            self.ready.push_back(event("ERROR", gone));
            return true;
        }
        let seen = store.history.partition_point(|entry| entry.revision <= self.seen);
        let ours = store.history.iter().skip(seen).filter(|entry| {
            entry.collection == self.query.collection && self.query.includes(&entry.namespace)
        });
        // An object that is not selected (any more) is as good as deleted.
        let selected = ours.map(|entry| match self.query.selects(&entry.object) {
            true => event(entry.kind, entry.object.clone()),
            false => event("DELETED", entry.object.clone()),
        });
        self.ready.extend(selected);
        self.seen = store.revision;
        if store.bookmarks != self.bookmarks {
            self.bookmarks = store.bookmarks;
            if self.query.is("allowWatchBookmarks") && !store.behaviour.no_bookmarks {
                self.ready.push_back(bookmark(store.revision, false));
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

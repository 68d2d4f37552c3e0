//! Watches.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde_json::json;
use tokio::sync::watch;

use super::http::{Query, pause, status, status_object};
use super::{Object, Shared, StreamingLists};

/// Lines that are sent together where many are ready.
const TOGETHER: usize = 64;

/// What happened to an object. As the real server's it is sent with its type first, which readers begin by.
struct Line {
    kind: &'static str,
    object: Arc<Object>,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, object } = self;
        writeln!(f, r#"{{"type":"{kind}","object":{}}}"#, object.json)
    }
}

/// The state of one open watch.
struct Watch {
    query: Query,
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    /// Lines that are ready to be sent.
    ready: VecDeque<Line>,
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
    let lines = lines.take_until(end).ready_chunks(TOGETHER);
    let lines = lines.map(|lines| {
        let lines: String = lines.iter().map(Line::to_string).collect();
        Ok::<_, Infallible>(Bytes::from(lines))
    });
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
                let added = |object| Line {
                    kind: "ADDED",
                    object,
                };
                let mut ready: VecDeque<_> = objects.map(added).collect();
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
    async fn next(&mut self) -> Option<Line> {
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
            self.ready.push_back(Line {
                kind: "ERROR",
                object: Arc::new(status_object(410, "too old resource version", 0).into()),
            });
            return true;
        }
        let seen = store.history.partition_point(|entry| entry.revision <= self.seen);
        let ours = store.history.iter().skip(seen).filter(|entry| {
            entry.collection == self.query.collection && self.query.includes(&entry.namespace)
        });
        // An object that is not selected (any more) is as good as deleted.
        let selected = ours.map(|entry| Line {
            kind: match self.query.selects(&entry.object.value) {
                true => entry.kind,
                false => "DELETED",
            },
            object: entry.object.clone(),
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

fn bookmark(revision: u64, ends_initial_events: bool) -> Line {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if ends_initial_events {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = json!({"kind": "Bookmark", "apiVersion": "v1", "metadata": metadata});
    Line {
        kind: "BOOKMARK",
        object: Arc::new(object.into()),
    }
}

//! `etcdserverpb.Watch`.
//!
//! A watch is a cursor into the history, not a queue: it reads on when the client has taken what it sent before, so
//! that a slow client costs no memory and catches up from where it is. If a compaction passes it, it is cancelled.
//! A stream carries many watches; they take turns.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Bound,
    time::Duration,
};

use etcd_client::{
    EventType, WatchFilterType,
    proto::{PbEvent, PbWatchRequest, PbWatchRequestUnion, PbWatchResponse, PbWatchService},
};
use prost::Message;
use tokio::{sync::mpsc, time::MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Service, scope, status};
use crate::{
    disk::{key_value, tombstone},
    engine::Watched,
    mvcc::{KeyRange, Revision, WatchedEvent},
    scope::Scope,
};

/// Responses that wait in the connection for the client to read them.
const UNREAD_RESPONSES: usize = 4;

/// A response ends with the revision in which its events reach this size.
const RESPONSE_BYTES: usize = 1 << 20;

/// A client that can take a revision in fragments gets them of this size at most: what any client accepts.
const FRAGMENT_BYTES: usize = 1536 * 1024;

/// Requests are not read while so many responses wait.
const OUTBOX: usize = 64;

/// What stands in a response for no watch: one that could not be made, or the progress of all.
const NO_WATCH: i64 = -1;

#[tonic::async_trait]
impl PbWatchService for Service {
    type WatchStream = ReceiverStream<Result<PbWatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<PbWatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let session = Session::new(self.clone(), scope(&request));
        let (responses, stream) = mpsc::channel(UNREAD_RESPONSES);
        tokio::spawn(session.run(request.into_inner(), responses));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One stream with its watches.
struct Session {
    service: Service,
    scope: Scope,
    watches: BTreeMap<i64, Watch>,
    next_id: i64,
    /// The watch that had its turn last.
    last_served: i64,
    progress_requested: bool,
    outbox: VecDeque<PbWatchResponse>,
}

#[derive(Debug)]
struct Watch {
    keys: KeyRange,
    /// The first revision that it has not seen.
    next: Revision,
    prev_kv: bool,
    puts: bool,
    deletes: bool,
    fragment: bool,
    progress_notify: bool,
    /// Whether anything was sent since the last progress tick.
    told: bool,
}

impl Session {
    fn new(service: Service, scope: Scope) -> Self {
        Self {
            service,
            scope,
            watches: BTreeMap::new(),
            next_id: 0,
            last_served: NO_WATCH,
            progress_requested: false,
            outbox: VecDeque::new(),
        }
    }

    async fn run(
        mut self,
        mut requests: Streaming<PbWatchRequest>,
        responses: mpsc::Sender<Result<PbWatchResponse, Status>>,
    ) {
        let shutdown = self.service.shutdown.clone();
        let mut published = self.service.engine.follow();
        let mut progress = progress_timer(self.service.progress_interval);
        let mut requests_open = true;
        loop {
            published.mark_unchanged();
            if self.outbox.is_empty() {
                self.advance();
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = responses.closed() => return,
                slot = responses.reserve(), if !self.outbox.is_empty() => {
                    let Ok(slot) = slot else { return };
                    if let Some(response) = self.outbox.pop_front() {
                        slot.send(Ok(response));
                    }
                }
                request = requests.message(), if requests_open && self.outbox.len() < OUTBOX => match request {
                    Ok(Some(request)) => self.take(request),
                    // The client has no more requests, but still wants events.
                    Ok(None) => requests_open = false,
                    Err(_) => return,
                },
                changed = published.changed(), if self.outbox.is_empty() => {
                    if changed.is_err() { return }
                }
                _ = progress.tick() => self.report_idle(),
            }
        }
    }

    fn take(&mut self, request: PbWatchRequest) {
        match request.request_union {
            Some(PbWatchRequestUnion::CreateRequest(request)) => {
                // etcd's own reading: no key means the smallest key there is.
                let key = if request.key.is_empty() {
                    vec![0]
                } else {
                    request.key
                };
                let filters = |filter: WatchFilterType| request.filters.contains(&(filter as i32));
                let watch = Watch {
                    keys: KeyRange::from_protocol(key, request.range_end),
                    next: request.start_revision,
                    prev_kv: request.prev_kv,
                    puts: !filters(WatchFilterType::NoPut),
                    deletes: !filters(WatchFilterType::NoDelete),
                    fragment: request.fragment,
                    progress_notify: request.progress_notify,
                    told: false,
                };
                self.create(request.watch_id, watch);
            }
            Some(PbWatchRequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(PbWatchRequestUnion::ProgressRequest(_)) => self.progress_requested = true,
            None => {}
        }
    }

    fn create(&mut self, asked_id: i64, mut watch: Watch) {
        let now = self.service.engine.revision();
        if let Some(reason) = self.refusal(asked_id, &watch) {
            let response = self.response(NO_WATCH, now);
            self.outbox.push_back(PbWatchResponse {
                created: true,
                canceled: true,
                cancel_reason: reason,
                ..response
            });
            return;
        }
        let id = if asked_id == 0 { self.free_id() } else { asked_id };
        if watch.next <= 0 {
            watch.next = now + 1;
        }
        self.watches.insert(id, watch);
        let response = self.response(id, now);
        self.outbox.push_back(PbWatchResponse {
            created: true,
            ..response
        });
    }

    /// A watch that is not there is cancelled already: no answer, as with etcd.
    fn cancel(&mut self, id: i64) {
        if self.watches.remove(&id).is_some() {
            let response = self.response(id, self.service.engine.revision());
            self.outbox.push_back(PbWatchResponse {
                canceled: true,
                ..response
            });
        }
    }

    fn refusal(&self, asked_id: i64, watch: &Watch) -> Option<String> {
        if !self.scope.permits(&watch.keys) {
            // etcd puts the status as Go prints it.
            let text = status::permission_denied();
            return Some(format!(
                "rpc error: code = PermissionDenied desc = {}",
                text.message()
            ));
        }
        if watch.keys.is_empty() {
            return Some("mvcc: watcher range is empty".into());
        }
        let taken = asked_id != 0 && self.watches.contains_key(&asked_id);
        taken.then(|| "mvcc: duplicate watch ID provided on the WatchStream".into())
    }

    fn free_id(&mut self) -> i64 {
        while self.watches.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Lets the watches, in turn, read on until one has something to send. When none has, all have seen everything:
    /// the moment at which progress may be reported.
    fn advance(&mut self) {
        let after = (Bound::Excluded(self.last_served), Bound::Unbounded);
        let turn: Vec<i64> = self
            .watches
            .range(after)
            .chain(self.watches.range(..=self.last_served))
            .map(|(id, _)| *id)
            .collect();
        let mut seen = Revision::MAX;
        for id in turn {
            let published = self.serve(id);
            if !self.outbox.is_empty() {
                self.last_served = id;
                return;
            }
            seen = seen.min(published);
        }
        if std::mem::take(&mut self.progress_requested) {
            let seen = if seen == Revision::MAX {
                self.service.engine.revision()
            } else {
                seen
            };
            self.outbox.push_back(self.response(NO_WATCH, seen));
        }
    }

    /// Lets one watch read on until it has something to send, or has seen everything up to the revision that is
    /// returned.
    fn serve(&mut self, id: i64) -> Revision {
        loop {
            let Some(watch) = self.watches.get_mut(&id) else {
                return Revision::MAX;
            };
            let Watched {
                batch,
                published,
                compacted,
            } = self
                .service
                .engine
                .watch(&watch.keys, watch.next, RESPONSE_BYTES, watch.prev_kv);
            let Ok(batch) = batch else {
                self.cancel_compacted(id, compacted);
                return published;
            };
            watch.next = batch.next;
            let events: Vec<PbEvent> = batch
                .events
                .iter()
                .filter(|event| watch.wants(event))
                .map(message)
                .collect();
            if !events.is_empty() {
                watch.told = true;
                let (fragment, revision) = (watch.fragment, watch.next - 1);
                self.send_events(id, revision, events, fragment);
                return published;
            }
            if batch.next > published {
                return published;
            }
        }
    }

    /// etcd leaves the header's revision out here.
    fn cancel_compacted(&mut self, id: i64, compacted: Option<Revision>) {
        self.watches.remove(&id);
        let response = self.response(id, 0);
        let compact_revision = compacted.unwrap_or_default();
        self.outbox.push_back(PbWatchResponse {
            canceled: true,
            compact_revision,
            ..response
        });
    }

    fn send_events(&mut self, id: i64, revision: Revision, events: Vec<PbEvent>, fragment: bool) {
        let response = self.response(id, revision);
        let parts = if fragment {
            fragments(events, FRAGMENT_BYTES)
        } else {
            vec![events]
        };
        let last = parts.len() - 1;
        for (index, events) in parts.into_iter().enumerate() {
            self.outbox.push_back(PbWatchResponse {
                events,
                fragment: index < last,
                ..response.clone()
            });
        }
    }

    /// Tells the watches that asked for it, and that were told nothing since the last time, how far they are.
    fn report_idle(&mut self) {
        let mut idle = Vec::new();
        for (id, watch) in &mut self.watches {
            if watch.progress_notify && !watch.told {
                idle.push((*id, watch.next - 1));
            }
            watch.told = false;
        }
        let published = self.service.engine.revision();
        for (id, seen) in idle {
            // One that starts in the future has seen nothing; one that lags behind will have events to tell.
            if self.outbox.len() < OUTBOX && seen == published {
                self.outbox.push_back(self.response(id, seen));
            }
        }
    }

    fn response(&self, watch_id: i64, revision: Revision) -> PbWatchResponse {
        PbWatchResponse {
            header: Some(self.service.header(revision)),
            watch_id,
            ..PbWatchResponse::default()
        }
    }
}

impl Watch {
    fn wants(&self, watched: &WatchedEvent) -> bool {
        if watched.event.entry.is_some() {
            self.puts
        } else {
            self.deletes
        }
    }
}

fn message(watched: &WatchedEvent) -> PbEvent {
    let WatchedEvent { event, prev } = watched;
    let (kind, kv) = match &event.entry {
        Some(entry) => (EventType::Put, key_value(entry)),
        None => (EventType::Delete, tombstone(event)),
    };
    PbEvent {
        r#type: kind as i32,
        kv: Some(kv),
        prev_kv: prev.as_deref().map(key_value),
    }
}

/// Cuts the events into parts of at most `limit` bytes, with at least one event in each.
fn fragments(events: Vec<PbEvent>, limit: usize) -> Vec<Vec<PbEvent>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for event in events {
        let size = event.encoded_len();
        if bytes > 0 && bytes + size > limit {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        parts
            .last_mut()
            .expect("invariant: there is always a part")
            .push(event);
    }
    parts
}

fn progress_timer(interval: Duration) -> tokio::time::Interval {
    let mut timer = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

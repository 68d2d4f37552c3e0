//! Where the objects come from, the agent's socket or a watch of an API server, and the last good snapshot of them, in
//! memory and on disk.
//!
//! ```text
//! agent ─ unix socket, JSON lines ─► Intake (Begin … End) ─┬► Snapshot ─► Table, published by one pointer swap
//! API server ─ watch of this process ─► Watched ───────────┘    └─► file, written beside and renamed
//! ```
//! Whatever happens to either, the answers stay: a cut connection leaves the last snapshot in use, and a restarted DNS
//! process answers from the file before they are back.
//!
//! Tour: [`Follower`] follows a source and publishes what it has; `intake` makes snapshots of messages, `trim` takes off
//! what is never read, `file` keeps the last snapshot.

mod file;
mod intake;
mod trim;

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures::StreamExt;
use model::feed::{Message, SAID_EVERY, Serving, VERSION, is_complete};
use model::{Change, Kind, ServiceKind, Slices, Snapshot, UnixTime};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio_util::codec::{FramedRead, LinesCodec, LinesCodecError};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;

use crate::kubernetes::{ApiServer, Objects};
use crate::metrics::Histogram;
use crate::zone::Table;
pub use file::forget;
use file::{load, save_changes};
use intake::{Intake, message};
pub use trim::{Trim, trim_of};

/// The longest line that is read; an EndpointSlice of 1000 endpoints is under 400 KiB.
const MAX_LINE: usize = 16 << 20;
/// Changes are collected for so long before a table is made of them.
const COALESCE: Duration = Duration::from_millis(20);
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// The agent takes the address away from a server that it does not hear for a while.
const LAST_RETRY: Duration = Duration::from_secs(1);

/// Why the feed ended, or a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// The socket is not there, or nobody listens.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The agent went away.
    #[error("the agent closed the connection")]
    Closed,
    /// The agent does not take in what it is told.
    #[error("cannot write to the agent")]
    Write(#[source] io::Error),
    /// The connection failed, or a line is too long.
    #[error("cannot read from the agent")]
    Read(#[from] LinesCodecError),
    /// A line is no message.
    #[error("line {line} is no message of the feed")]
    Malformed {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The other side speaks a newer layout.
    #[error("the feed has version {found}, this program knows up to {VERSION}: update the DNS process")]
    Version {
        /// The version there.
        found: u32,
    },
    /// A change or an end came before any beginning.
    #[error("the feed does not start with a beginning")]
    NoBegin,
    /// The file ends in the middle of a snapshot.
    #[error("the snapshot is not complete")]
    Incomplete,
    /// An API server is to be followed, and this program watches none.
    #[error("{objects}: this program watches no API server")]
    NoWatcher {
        /// What was to be followed.
        objects: String,
    },
    /// The file cannot be read or written.
    #[error("cannot use the state file {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A watch of an API server, which somebody else keeps.
#[derive(Clone)]
pub struct Watched {
    /// What is known of the cluster; objects as [`trim_of`] leaves them.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// For how long the API server has not been heard; `None` while it is.
    pub silence: Silence,
    /// Ends the watch when nobody has it any more.
    pub hold: Arc<DropGuard>,
}

/// Where a server answers.
pub type Served = BTreeSet<SocketAddr>;

/// For how long an API server has not been heard.
pub type Silence = Arc<dyn Fn() -> Option<Duration> + Send + Sync>;

/// Gives the watch of an API server; the same one each time that it is asked for the same server.
pub type Watcher = dyn Fn(&ApiServer) -> Watched + Send + Sync;

/// Where answers come from, as the serving threads see it.
pub struct Source {
    /// The table of the last good snapshot.
    pub table: ArcSwap<Table>,
    connected: AtomicBool,
    /// Where an API server is watched: whether it is heard.
    silence: Option<Silence>,
    /// When the snapshot was last known to be the agent's, in milliseconds of Unix time; 0 = never.
    fresh_at: AtomicU64,
    /// Tables made so far.
    pub published: AtomicU64,
    /// How long after a change of its pods a headless Service answered with it.
    pub programming: Histogram,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            table: ArcSwap::default(),
            connected: AtomicBool::new(false),
            silence: None,
            fresh_at: AtomicU64::new(0),
            published: AtomicU64::new(0),
            programming: Histogram::of_changes(),
        }
    }
}

impl Source {
    /// How long ago the snapshot was last known to be current; zero while connected, `None` when there is none.
    #[must_use]
    pub fn age(&self) -> Option<Duration> {
        if self.connected.load(Ordering::Relaxed) {
            let silent = self.silence.as_ref().and_then(|silence| silence());
            return Some(silent.unwrap_or_default());
        }
        match self.fresh_at.load(Ordering::Relaxed) {
            0 => None,
            millis => Some(Duration::from_millis(
                unix_millis(SystemTime::now()).saturating_sub(millis),
            )),
        }
    }

    /// Whether a complete snapshot came over a connection that is still open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        let is_silent = self.silence.as_ref().is_some_and(|silence| silence().is_some());
        self.connected.load(Ordering::Relaxed) && !is_silent
    }

    /// Whether names that are not in the table are denied.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        self.table.load().synced
    }
}

fn unix_millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64)
}

/// Who is followed.
enum Origin {
    /// The agent that listens at this socket.
    Agent(PathBuf),
    /// An API server, and whether its EndpointSlices are watched.
    Api { watched: Watched, endpoints: bool },
}

/// Follows one source of objects for as long as the server runs.
pub struct Follower {
    origin: Origin,
    trim: Trim,
    state: PathBuf,
    source: Arc<Source>,
    /// The snapshot that the published table was made of; none yet where another follower made it.
    published: Snapshot,
    /// Whether the table is another follower's still.
    is_taken_over: bool,
    /// Since when changes are followed.
    began: SystemTime,
    saved: watch::Sender<Snapshot>,
}

impl Follower {
    /// A follower of `objects` that keeps its snapshot in the file `state`. Reads that file.
    ///
    /// # Errors
    /// [`FeedError::NoWatcher`] when an API server is to be followed and there is nobody to watch it.
    pub fn new(objects: &Objects, state: PathBuf, watcher: Option<&Watcher>) -> Result<Self, FeedError> {
        let origin = match objects {
            Objects::Agent(agent) => Origin::Agent(agent.socket.clone()),
            Objects::Api(server) => {
                let watcher = watcher.ok_or_else(|| FeedError::NoWatcher {
                    objects: objects.to_string(),
                })?;
                Origin::Api {
                    watched: watcher(server),
                    endpoints: server.endpoints,
                }
            }
        };
        let silence = match &origin {
            Origin::Agent(_) => None,
            Origin::Api { watched, .. } => Some(watched.silence.clone()),
        };
        let source = Source {
            silence,
            ..Source::default()
        };
        let mut follower = Self {
            origin,
            trim: trim_of(objects),
            state,
            source: Arc::new(source),
            published: Snapshot::default(),
            is_taken_over: false,
            began: SystemTime::now(),
            saved: watch::Sender::new(Snapshot::default()),
        };
        follower.restore();
        Ok(follower)
    }

    /// What the serving threads read.
    #[must_use]
    pub fn source(&self) -> Arc<Source> {
        Arc::clone(&self.source)
    }

    /// Begins with what a follower of the same objects knows: that is newer than what is kept on disk.
    pub fn take_over(&mut self, running: &Source) {
        let table = running.table.load_full();
        if table.synced {
            let fresh_at = running.fresh_at.load(Ordering::Relaxed);
            self.source.fresh_at.store(fresh_at, Ordering::Relaxed);
            self.source.table.store(table);
            self.published = Snapshot::default();
            self.is_taken_over = true;
        }
    }

    fn restore(&mut self) {
        match load(&self.state, self.trim) {
            Ok(None) => {}
            Ok(Some((snapshot, written))) => {
                self.source
                    .fresh_at
                    .store(unix_millis(written), Ordering::Relaxed);
                self.publish(&snapshot);
                let services = self.source.table.load().service_count();
                tracing::info!(state = %self.state.display(), services, "answering from the last good snapshot");
            }
            Err(error) => {
                let error = model::with_causes(&error);
                tracing::warn!(error, "last good snapshot not usable, starting without it");
            }
        }
    }

    /// Follows until `shutdown`, and tells an agent where this server answers.
    pub async fn run(mut self, served: watch::Receiver<Served>, shutdown: CancellationToken) {
        let saver = tokio::spawn(save_changes(
            self.state.clone(),
            self.saved.subscribe(),
            shutdown.clone(),
        ));
        match &self.origin {
            Origin::Agent(socket) => self.follow_agents(socket.clone(), served, &shutdown).await,
            Origin::Api { watched, endpoints } => {
                let (snapshots, endpoints) = (watched.snapshots.clone(), *endpoints);
                let followed = self.follow_watch(snapshots, endpoints);
                shutdown.run_until_cancelled(followed).await;
            }
        }
        drop(self);
        if let Err(error) = saver.await {
            tracing::error!(%error, "saving the snapshot failed");
        }
    }

    /// Publishes what the watch knows, until it ends.
    async fn follow_watch(&mut self, mut snapshots: watch::Receiver<Arc<Snapshot>>, endpoints: bool) {
        loop {
            let mut snapshot = Snapshot::clone(&snapshots.borrow_and_update());
            if !endpoints {
                // Nobody asks for them: of those that there are, none is missing.
                snapshot.apply(Change::Synced(Kind::EndpointSlice));
            }
            if is_complete(&snapshot) {
                self.publish_fresh(&snapshot);
            } else if !is_complete(&self.published) && !self.is_taken_over {
                // Names that are known already answer; those that are not yet are not denied.
                self.publish(&snapshot);
            }
            if snapshots.changed().await.is_err() {
                return;
            }
            tokio::time::sleep(COALESCE).await;
        }
    }

    async fn follow_agents(
        &mut self,
        socket: PathBuf,
        served: watch::Receiver<Served>,
        shutdown: &CancellationToken,
    ) {
        let mut retry = FIRST_RETRY;
        let mut reported = false;
        loop {
            let followed = tokio::select! {
                () = shutdown.cancelled() => break,
                followed = self.follow(&socket, served.clone()) => followed,
            };
            if self.source.connected.swap(false, Ordering::Relaxed) {
                self.source
                    .fresh_at
                    .store(unix_millis(SystemTime::now()), Ordering::Relaxed);
                (retry, reported) = (FIRST_RETRY, false);
            }
            if !std::mem::replace(&mut reported, true) {
                let error = model::with_causes(&followed);
                tracing::warn!(
                    error,
                    "no feed from the agent; answering from what is known and trying again"
                );
            }
            // Jitter, so that the processes of many nodes do not come back in step.
            let wait = retry.mul_f64(rand::random_range(0.5..1.0));
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = tokio::time::sleep(wait) => {}
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }

    /// Follows one connection to its end; there is no good end.
    async fn follow(&mut self, socket: &Path, served: watch::Receiver<Served>) -> FeedError {
        let (read, write) = match UnixStream::connect(socket).await {
            Ok(stream) => stream.into_split(),
            Err(source) => {
                let path = socket.to_owned();
                return FeedError::Connect { path, source };
            }
        };
        // What takes long here keeps nobody from hearing of us.
        let heard = Arc::new(Notify::new());
        let telling = AbortOnDropHandle::new(tokio::spawn(tell(write, served, Arc::clone(&heard))));
        tokio::select! {
            error = self.read(read, &heard) => error,
            told = telling => told.unwrap_or(FeedError::Closed),
        }
    }

    /// Reads a connection; `heard` learns of an agent that hears.
    async fn read(&mut self, stream: OwnedReadHalf, heard: &Notify) -> FeedError {
        let mut lines = FramedRead::new(stream, LinesCodec::new_with_max_length(MAX_LINE));
        let mut intake = Intake::new(self.trim);
        let mut line_number = 0;
        let mut due = None;
        loop {
            let line = match due {
                None => lines.next().await,
                Some(at) => match tokio::time::timeout_at(at, lines.next()).await {
                    Ok(line) => line,
                    Err(_) => {
                        due = None;
                        self.publish_fresh(&intake.current);
                        continue;
                    }
                },
            };
            line_number += 1;
            let taken = match line {
                None => Err(FeedError::Closed),
                Some(Err(error)) => Err(error.into()),
                Some(Ok(line)) => message(&line, line_number).and_then(|message| {
                    if matches!(message, Message::Begin { hears: true, .. }) {
                        heard.notify_one();
                    }
                    intake.take(message)
                }),
            };
            match taken {
                Ok(true) if due.is_none() => due = Some(tokio::time::Instant::now() + COALESCE),
                Ok(_) => {}
                Err(error) => {
                    if due.is_some() {
                        self.publish_fresh(&intake.current);
                    }
                    return error;
                }
            }
        }
    }

    /// Makes a snapshot of the agent the one that is answered from. One that is not complete yet never takes the
    /// place of one that is: an agent that has just started knows little, which is not the same as little being there.
    fn publish_fresh(&mut self, snapshot: &Snapshot) {
        if is_complete(&self.published) && !is_complete(snapshot) {
            return;
        }
        let changes = headless_changes(&self.published, snapshot);
        self.publish(snapshot);
        // Said when it is true: whoever hears of it may ask at once.
        if !self.source.connected.swap(true, Ordering::Relaxed) {
            tracing::info!(
                services = snapshot.services.len(),
                "the cluster's objects are complete"
            );
        }
        self.note_programmed(&changes);
        self.saved.send_replace(snapshot.clone());
    }

    /// What happened before the changes were followed is not measured: nobody was there to see it.
    fn note_programmed(&self, changes: &[UnixTime]) {
        let since_epoch = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (began, now) = (since_epoch(self.began), since_epoch(SystemTime::now()));
        for UnixTime(change) in changes.iter().filter(|UnixTime(change)| *change >= began) {
            // The clock of whoever wrote the moment down may be ahead of ours.
            self.source.programming.record(now.saturating_sub(*change));
        }
    }

    fn publish(&mut self, snapshot: &Snapshot) {
        let now = (unix_millis(SystemTime::now()) / 1000) as u32;
        let taken_over = std::mem::take(&mut self.is_taken_over);
        let known = if taken_over {
            Arc::default()
        } else {
            self.source.table.load_full()
        };
        let mut table = known.updated(&self.published, snapshot, now);
        table.local_addresses = crate::serve::local_addresses();
        self.source.table.store(Arc::new(table));
        self.source.published.fetch_add(1, Ordering::Relaxed);
        self.published = snapshot.clone();
    }
}

/// Tells an agent that hears where this server answers, for as long as that is known.
async fn tell(
    mut stream: OwnedWriteHalf,
    mut served: watch::Receiver<Served>,
    heard: Arc<Notify>,
) -> FeedError {
    heard.notified().await;
    loop {
        let serving = Serving {
            addresses: served.borrow_and_update().clone(),
        };
        let told = match serde_json::to_vec(&serving) {
            Ok(line) => stream.write_all(&[line.as_slice(), b"\n"].concat()).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = told {
            return FeedError::Write(error);
        }
        let changed = tokio::time::timeout(SAID_EVERY, served.changed()).await;
        if let Ok(Err(_ended)) = changed {
            return FeedError::Closed;
        }
    }
}

/// When the pods changed for which slices of headless Services were written.
fn headless_changes(older: &Snapshot, newer: &Snapshot) -> Vec<UnixTime> {
    let empty = Slices::default();
    let slices = |snapshot: &Snapshot, service| snapshot.slices.get(service).cloned();
    let mut changes = Vec::new();
    for service in newer.slices.keys_changed_since(&older.slices) {
        let known = newer.services.get(service);
        if known.is_some_and(|service| matches!(service.kind, ServiceKind::Headless)) {
            let (old, new) = (slices(older, service), slices(newer, service));
            let written = new.as_deref().unwrap_or(&empty);
            let written = written.changed_since(old.as_deref().unwrap_or(&empty));
            changes.extend(written.filter_map(|slice| slice.last_change));
        }
    }
    changes
}

#[cfg(test)]
mod tests;

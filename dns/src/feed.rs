//! Where the objects come from, the agent's socket or a watch of an API server, and the last good snapshot of them, in
//! memory and on disk.
//!
//! ```text
//! agent ─ unix socket, JSON lines ─► Intake (Begin … End) ─┬► Snapshot ─► Table, published by one pointer swap
//! API server ─ watch of this process ─► Watched ───────────┘    └─► file, written beside and renamed
//! ```
//! Whatever happens to either, the answers stay: a cut connection leaves the last snapshot in use, and a restarted DNS
//! process answers from the file before they are back.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use futures::StreamExt;
use model::feed::{Message, SAID_EVERY, Serving, VERSION, is_complete};
use model::{Change, Extras, Kind, ServiceKind, Slices, Snapshot, Texts, UnixTime};
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

/// The longest line that is read; an EndpointSlice of 1000 endpoints is under 400 KiB.
const MAX_LINE: usize = 16 << 20;
/// Changes are collected for so long before a table is made of them.
const COALESCE: Duration = Duration::from_millis(20);
/// The file is written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);
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

/// Messages to snapshots: what was known before a `Begin` stays until its `End`.
#[derive(Debug)]
struct Intake {
    trim: Trim,
    /// What the objects say alike.
    texts: Texts,
    current: Snapshot,
    arriving: Option<Snapshot>,
    /// Whether this connection has delivered a whole snapshot.
    complete: bool,
}

impl Intake {
    fn new(trim: Trim) -> Self {
        Self {
            trim,
            texts: Texts::default(),
            current: Snapshot::default(),
            arriving: None,
            complete: false,
        }
    }

    /// Takes one message, and returns whether `current` changed.
    fn take(&mut self, message: Message) -> Result<bool, FeedError> {
        match message {
            Message::Begin { version, .. } if version > VERSION => Err(FeedError::Version { found: version }),
            Message::Begin { .. } => {
                self.arriving = Some(Snapshot::default());
                Ok(false)
            }
            Message::End => {
                self.current = self.arriving.take().ok_or(FeedError::NoBegin)?;
                self.complete = true;
                Ok(true)
            }
            // DNS does not speak of nodes; not keeping them is memory saved.
            Message::Change(Change::Node(_) | Change::DeleteNode(_)) => Ok(false),
            Message::Change(mut change) => {
                (self.trim)(&mut change);
                change.pack(&mut self.texts);
                match &mut self.arriving {
                    Some(arriving) => {
                        arriving.apply(change);
                        Ok(false)
                    }
                    None if self.complete => Ok(self.current.apply(change)),
                    None => Err(FeedError::NoBegin),
                }
            }
        }
    }
}

/// Takes something off an object.
pub type Trim = fn(&mut Change);

/// What takes off what is never read of these objects: at 100,000 endpoints that is most of the memory.
#[must_use]
pub fn trim_of(objects: &Objects) -> Trim {
    if objects.pod_names() {
        slim
    } else {
        slim_without_pod_names
    }
}

fn slim_without_pod_names(change: &mut Change) {
    if let Change::EndpointSlice(slice) = change {
        slice
            .endpoints
            .iter_mut()
            .for_each(|endpoint| endpoint.pod = None);
    }
    slim(change);
}

fn slim(change: &mut Change) {
    match change {
        Change::EndpointSlice(slice) => {
            slice.endpoints.retain(|endpoint| endpoint.conditions.ready);
            slice.endpoints.shrink_to_fit();
            // In this order they are searched; a table keeps no other one of its own then.
            slice.endpoints.sort_by_key(|endpoint| endpoint.address);
            for endpoint in &mut slice.endpoints {
                endpoint.node = None;
                endpoint.zone = None;
                let hostname = endpoint.extras.take().and_then(|extras| extras.hostname);
                let extras = Extras {
                    hostname,
                    ..Extras::default()
                };
                endpoint.extras = extras.some();
            }
        }
        Change::Pod(pod) => pod.node = None,
        _ => {}
    }
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
        if !self.source.connected.swap(true, Ordering::Relaxed) {
            tracing::info!(
                services = snapshot.services.len(),
                "the cluster's objects are complete"
            );
        }
        let changes = headless_changes(&self.published, snapshot);
        self.publish(snapshot);
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

fn message(line: &str, number: u64) -> Result<Message, FeedError> {
    serde_json::from_str(line).map_err(|source| FeedError::Malformed { line: number, source })
}

/// Writes the newest snapshot whenever there is a new one, at most once in a while, and once more at the end.
async fn save_changes(state: PathBuf, mut snapshots: watch::Receiver<Snapshot>, shutdown: CancellationToken) {
    let mut reported = false;
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        let path = state.clone();
        let saved = tokio::task::spawn_blocking(move || save(&path, &snapshot)).await;
        match saved {
            Ok(Ok(())) => reported = false,
            Ok(Err(error)) if !std::mem::replace(&mut reported, true) => {
                let error = model::with_causes(&error);
                tracing::warn!(
                    error,
                    "snapshot not saved; a restart will have to wait for the agent"
                );
            }
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(%error, "saving the snapshot failed"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(SAVE_INTERVAL) => {}
        }
    }
}

/// Writes a snapshot in the feed's own form, beside the file and then over it.
fn save(path: &Path, snapshot: &Snapshot) -> Result<(), FeedError> {
    let beside = path.with_extension("snapshot.new");
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = BufWriter::new(File::create(&beside)?);
        let begin = std::iter::once(Message::Begin {
            version: VERSION,
            hears: false,
        });
        let messages = begin
            .chain(snapshot.as_changes().map(Message::Change))
            .chain([Message::End]);
        for message in messages {
            serde_json::to_writer(&mut file, &message)?;
            file.write_all(b"\n")?;
        }
        file.into_inner()?.sync_data()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|source| FeedError::File {
        path: path.to_owned(),
        source,
    })
}

/// Reads a snapshot and the time of its writing. `None` = there is none yet.
fn load(path: &Path, trim: Trim) -> Result<Option<(Snapshot, SystemTime)>, FeedError> {
    let at = |source| FeedError::File {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    let written = file
        .metadata()
        .and_then(|metadata| metadata.modified())
        .map_err(at)?;
    let mut intake = Intake::new(trim);
    for (index, line) in BufReader::new(file).lines().enumerate() {
        intake.take(message(&line.map_err(at)?, index as u64 + 1)?)?;
    }
    if intake.complete {
        Ok(Some((intake.current, written)))
    } else {
        Err(FeedError::Incomplete)
    }
}

/// Takes the snapshots away that servers kept in a directory, and what a crash left of one. Other files stay. Returns
/// how many there were.
///
/// # Errors
/// When the directory cannot be read, or one of them stays.
pub fn forget(directory: &Path) -> Result<usize, FeedError> {
    let at = |path: &Path, source| FeedError::File {
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(at(directory, error)),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|error| at(directory, error))?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.ends_with(".snapshot") || name.ends_with(".snapshot.new") {
            std::fs::remove_file(&path).map_err(|error| at(&path, error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use model::Namespace;

    fn namespace(name: &str) -> Message {
        Message::Change(Change::Namespace(Namespace { name: name.into() }))
    }

    #[test]
    fn what_was_known_stays_until_the_next_snapshot_is_complete() {
        let begin = || Message::Begin {
            version: VERSION,
            hears: false,
        };
        let mut intake = Intake::new(slim);
        let mut names = Vec::new();
        for message in [
            begin(),
            namespace("a"),
            Message::End,
            begin(),
            namespace("b"),
            Message::End,
            namespace("c"),
        ] {
            intake.take(message).expect("message");
            let known: Vec<&str> = intake
                .current
                .namespaces
                .iter()
                .map(|(name, _)| name.as_ref())
                .collect();
            names.push(known.join(","));
        }
        assert_eq!(&names[..6], ["", "", "a", "a", "a", "b"]);
        assert_eq!(intake.current.namespaces.len(), 2);
    }

    #[test]
    fn a_feed_that_breaks_the_protocol_is_refused() {
        let mut intake = Intake::new(slim);
        let newer = intake.take(Message::Begin {
            version: VERSION + 1,
            hears: false,
        });
        assert!(matches!(newer, Err(FeedError::Version { .. })), "{newer:?}");
        for message in [Message::End, namespace("a")] {
            let refused = Intake::new(slim).take(message);
            assert!(matches!(refused, Err(FeedError::NoBegin)), "{refused:?}");
        }
        assert!(matches!(
            message("{\"nonsense\": 1}", 3),
            Err(FeedError::Malformed { line: 3, .. })
        ));
    }

    #[test]
    fn what_is_never_read_is_taken_off_and_pods_keep_their_names_where_endpoints_are_called_by_these() {
        let listed = [
            ("10.1.0.3", None, Some("c")),
            ("!10.1.0.4", None, Some("d")),
            ("10.1.0.1", Some("a"), None),
        ];
        let slice = |endpoints: &[_]| samples::slice("a", "s-1", "s", &[("http", 80)], endpoints);
        let mut full = slice(&listed);
        for endpoint in &mut full.endpoints {
            endpoint.node = Some("node-1".into());
            endpoint.zone = Some("zone-1".into());
            let extras = endpoint.extras.get_or_insert_default();
            extras.hinted_zones.push("zone-1".into());
        }
        let agent = || Objects::Agent("/none".into());
        let first = ("10.1.0.1", Some("a"), None);
        for (objects, expected) in [
            (agent(), [first, ("10.1.0.3", None, None)]),
            (agent().with_pod_names(), [first, ("10.1.0.3", None, Some("c"))]),
        ] {
            let mut change = Change::EndpointSlice(full.clone());
            trim_of(&objects)(&mut change);
            assert_eq!(change, Change::EndpointSlice(slice(&expected)), "{objects:?}");
        }
    }

    #[test]
    fn a_saved_snapshot_is_read_back_and_a_cut_one_is_not() {
        let folder = std::env::temp_dir().join(format!("cwt-dns-feed-{}", std::process::id()));
        let path = folder.join("dns.snapshot");
        let mut snapshot = Snapshot::default();
        for mut change in samples::changes() {
            slim(&mut change);
            snapshot.apply(change);
        }
        assert!(matches!(load(&path, slim), Ok(None)));
        save(&path, &snapshot).expect("saved");
        let (loaded, _) = load(&path, slim).expect("loaded").expect("there");
        assert_eq!(loaded, snapshot);
        assert!(loaded.is_synced(Kind::Service));

        let text = std::fs::read_to_string(&path).expect("read");
        let cut = text.strip_suffix("\"end\"\n").expect("ends with the end");
        std::fs::write(&path, cut).expect("written");
        assert!(matches!(load(&path, slim), Err(FeedError::Incomplete)));

        for name in ["dns.snapshot.new", "snapshot", "notes.txt"] {
            std::fs::write(folder.join(name), "").expect("written");
        }
        assert_eq!(forget(&folder).expect("readable"), 2);
        let left = std::fs::read_dir(&folder).expect("readable").flatten();
        let left: BTreeSet<_> = left.map(|entry| entry.file_name()).collect();
        assert_eq!(left, BTreeSet::from(["snapshot".into(), "notes.txt".into()]));
        std::fs::remove_dir_all(&folder).expect("removed");
        assert_eq!(forget(&folder).expect("nothing"), 0);
    }

    #[test]
    fn who_takes_over_begins_with_what_the_other_knows_and_keeps_none_of_it_that_is_gone() {
        let state = std::env::temp_dir().join(format!("cwt-dns-taken-{}", std::process::id()));
        let follower =
            || Follower::new(&Objects::Agent("/none".into()), state.clone(), None).expect("an agent");
        let (mut running, mut next) = (follower(), follower());
        next.take_over(&running.source());
        assert!(!next.source().is_synced(), "there is nothing to take over yet");
        let mut snapshot = samples::snapshot();
        running.publish_fresh(&snapshot);
        next.take_over(&running.source());
        let known = next.source().table.load_full();
        assert!(known.synced && known.service(b"testns", b"svc1").is_some());
        snapshot.apply(Change::DeleteService(model::ObjectName::new("testns", "svc1")));
        next.publish_fresh(&snapshot);
        let table = next.source().table.load_full();
        assert!(table.synced && table.service(b"testns", b"svc1").is_none());
        assert_eq!(table.service_count() + 1, known.service_count());
    }

    #[test]
    fn changes_of_headless_services_are_measured_from_what_the_feed_tells_and_from_the_beginning_on() {
        let at = |time: Duration, mut slice: model::EndpointSlice| {
            slice.last_change = Some(UnixTime(time));
            let told = serde_json::to_string(&Change::EndpointSlice(slice)).expect("told");
            serde_json::from_str::<Change>(&told).expect("read")
        };
        let since_epoch = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
        let (long_ago, soon) = (
            Duration::from_millis(5250),
            since_epoch() + Duration::from_secs(60),
        );
        let slice =
            |name, service, address| samples::slice("a", name, service, &[], &[(address, None, None)]);
        let older = [
            Change::Service(samples::headless("a", "h", &[])),
            Change::Service(samples::cluster_ip("a", "c", &["10.0.0.1"], &[])),
        ];
        let newer = [
            at(long_ago, slice("h-1", "h", "10.1.0.1")),
            at(soon, slice("h-2", "h", "10.1.0.2")),
            at(soon, slice("c-1", "c", "10.1.0.3")),
            Change::EndpointSlice(slice("h-3", "h", "10.1.0.4")),
        ];
        let mut snapshot = Snapshot::default();
        for change in older {
            snapshot.apply(change);
        }
        let before = snapshot.clone();
        for change in newer {
            snapshot.apply(change);
        }
        let changes = headless_changes(&before, &snapshot);
        let millis = |time: Duration| UnixTime(Duration::from_millis(time.as_millis() as u64));
        assert_eq!(changes, [millis(long_ago), millis(soon)]);
        assert_eq!(headless_changes(&snapshot, &snapshot), []);

        let state = std::env::temp_dir().join(format!("cwt-dns-none-{}", std::process::id()));
        let follower = Follower::new(&Objects::Agent("/none".into()), state, None).expect("no API server");
        follower.note_programmed(&changes);
        let mut text = crate::metrics::Exposition::default();
        text.histograms("took", "", [&follower.source.programming].into_iter());
        let first = text.text.lines().next();
        assert_eq!(first, Some("took_bucket{le=\"0.001\"} 1"), "{}", text.text);
        assert!(text.text.ends_with("took_count 1\n"), "{}", text.text);
    }
}

//! One key space, many readers, one writer.
//!
//! Writes go through a bounded channel to the writer's thread, which runs those that came in while the last commit was
//! syncing, commits them as one, and only then answers (group commit). In between, the new revisions are in memory but
//! not *published*: readers and watches go by the published revision, so that nobody sees what a crash could undo.
//! Readers share a lock with the writer, who holds it only while it changes memory, never while it syncs.

mod writer;

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    config::Clock,
    disk::{self, Changes, Disk},
    mvcc::{
        Applied, Error as MvccError, EventBatch, Grant, KeyRange, Keyspace, LeaseId, Leases, Op, Range,
        RangeResult, Revision,
    },
    scope::Scope,
};
use writer::{Batch, Command, Writer};

/// Writes that wait for their turn; more wait in their connections.
const QUEUE: usize = 1024;

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key space refuses it.
    #[error(transparent)]
    Refused(#[from] MvccError),
    /// What was asked about was taken back, since the disk is full.
    #[error("the disk is full")]
    TakenBack,
    /// The writer has ended: a shutdown, or a disk that fails.
    #[error("the store is stopped")]
    Stopped,
}

/// The store's memory, its writer, and its identity. Cheap to share.
#[derive(Debug)]
pub struct Engine {
    state: Arc<RwLock<State>>,
    commands: mpsc::Sender<Command>,
    published: watch::Receiver<Revision>,
    clock: Arc<dyn Clock>,
    path: PathBuf,
    /// The number of the cluster.
    pub cluster_id: u64,
    /// The number of its one member.
    pub member_id: u64,
}

#[derive(Debug)]
struct State {
    keyspace: Keyspace,
    leases: Leases,
    /// The newest revision that is durable.
    published: Revision,
    /// Whether the alarm is on: only what makes no new keys is taken.
    no_space: bool,
}

/// The writer's thread; it ends after [`Engine::stop`], when every engine is dropped, or with an error of the disk.
pub type WriterThread = JoinHandle<Result<(), disk::Error>>;

/// A lease as a client sees it.
#[derive(Debug, PartialEq, Eq)]
pub struct LeaseView {
    /// The seconds that it was given.
    pub granted_seconds: i64,
    /// The seconds that remain.
    pub remaining_seconds: i64,
    /// The keys on it, in order.
    pub keys: Vec<bytes::Bytes>,
}

impl Engine {
    /// Builds the state from the disk and starts the writer. Leases begin their time again: while the store was down
    /// nobody could renew them.
    pub fn start(
        disk: Disk,
        contents: disk::Contents,
        clock: Arc<dyn Clock>,
        quota_bytes: u64,
    ) -> io::Result<(Self, WriterThread)> {
        let disk::Contents {
            cluster_id,
            member_id,
            compacted,
            no_space,
            events,
            leases: granted,
        } = contents;
        let (keyspace, stale) = Keyspace::restore(compacted, events);
        let mut leases = Leases::default();
        for (id, grant) in granted {
            // A number cannot be on disk twice, nor with more seconds than it was once granted.
            let _ = leases.grant(id, grant, clock.now());
        }
        for entry in keyspace.live() {
            if let Some(id) = entry.lease {
                leases.attach(id, entry.key.clone());
            }
        }
        leases.settle();
        let published = keyspace.revision();
        let state = Arc::new(RwLock::new(State {
            keyspace,
            leases,
            published,
            no_space,
        }));
        let (commands, queue) = mpsc::channel(QUEUE);
        let (publisher, published) = watch::channel(published);
        let path = disk.path().to_owned();
        let writer = Writer {
            state: Arc::clone(&state),
            disk,
            queue,
            publisher,
            clock: Arc::clone(&clock),
            cluster_id,
            member_id,
            quota_bytes,
            stale,
            batch: Batch::default(),
            refused_until: None,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())?;
        Ok((
            Self {
                state,
                commands,
                published,
                clock,
                path,
                cluster_id,
                member_id,
            },
            thread,
        ))
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state
            .read()
            .expect("invariant: nothing panics while it changes the state")
    }

    /// The newest revision that is durable.
    pub fn revision(&self) -> Revision {
        self.read().published
    }

    /// Follows the newest durable revision.
    pub fn follow(&self) -> watch::Receiver<Revision> {
        self.published.clone()
    }

    /// Reads a range at the newest durable revision, or at an older one.
    pub fn range(&self, range: &Range) -> Result<RangeResult, Error> {
        let state = self.read();
        Ok(state.keyspace.range(range, state.published)?)
    }

    /// What a watch finds at its cursor, the newest durable revision, and on an error the last compaction.
    pub fn watch(&self, keys: &KeyRange, from: Revision, budget: usize, prev_kv: bool) -> Watched {
        let state = self.read();
        let batch = state.keyspace.watch(keys, from, state.published, budget, prev_kv);
        Watched {
            batch,
            published: state.published,
            compacted: state.keyspace.compacted(),
        }
    }

    /// A number that depends on every entry at `revision` (the newest if absent), with the revision and the last
    /// compaction.
    pub fn hash(&self, revision: Option<Revision>) -> Result<Hash, Error> {
        let state = self.read();
        // What a compaction left at its own revision depends on when it is asked.
        if revision.is_some_and(|asked| state.keyspace.compacted() >= Some(asked)) {
            return Err(MvccError::Compacted.into());
        }
        let range = Range {
            revision,
            ..Range::all(KeyRange::from_protocol(vec![0], vec![0]))
        };
        let found = state.keyspace.range(&range, state.published)?;
        let revision = revision.unwrap_or(state.published);
        Ok(Hash {
            hash: hash_entries(&found),
            revision,
            compacted: state.keyspace.compacted(),
        })
    }

    /// Runs the operation of a client that may touch its keys; the answer comes when it is durable. Refused if it
    /// names a lease that the client may not touch.
    pub async fn apply(&self, op: Op, scope: Scope) -> Result<Applied, Error> {
        self.ask(|reply| Command::Apply { op, scope, reply }).await
    }

    /// Grants a lease (with a number of the store's choice if absent) and returns its number and seconds.
    pub async fn grant(&self, id: Option<LeaseId>, asked: Grant) -> Result<(LeaseId, i64), Error> {
        self.ask(|reply| Command::Grant { id, asked, reply }).await
    }

    /// Ends a lease and returns the revision that deleted its keys; refused if the client may not touch it.
    pub async fn revoke(&self, id: LeaseId, scope: Scope) -> Result<Revision, Error> {
        self.ask(|reply| Command::Revoke { id, scope, reply }).await
    }

    /// Ends the leases whose time is over, a revision each, and returns how many.
    pub async fn expire_leases(&self) -> Result<usize, Error> {
        let due = !self.read().leases.expired(self.clock.now()).is_empty();
        if due {
            self.ask(|reply| Command::ExpireLeases { reply }).await
        } else {
            Ok(0)
        }
    }

    /// Forgets what is not visible at `revision` or later; `physical` waits until the disk has forgotten it too.
    pub async fn compact(&self, revision: Revision, physical: bool) -> Result<Revision, Error> {
        self.ask(|reply| Command::Compact {
            revision,
            physical,
            reply,
        })
        .await
    }

    /// Shrinks the file.
    pub async fn defragment(&self) -> Result<(), Error> {
        self.ask(|reply| Command::Defragment { reply }).await
    }

    /// Whether the alarm is on: there was no space, and only what makes no new keys is taken until it is cleared.
    pub fn no_space(&self) -> bool {
        self.read().no_space
    }

    /// Raises or clears the alarm, and says whether that changed anything.
    pub async fn set_no_space(&self, raised: bool) -> Result<bool, Error> {
        self.ask(|reply| Command::SetNoSpace { raised, reply }).await
    }

    /// Everything, as it is durable.
    pub async fn snapshot(&self) -> Result<disk::Contents, Error> {
        self.ask(|reply| Command::Snapshot { reply }).await
    }

    /// A file beside the store's own, for a moment; another each time.
    pub fn temporary_file(&self) -> PathBuf {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        self.path.with_file_name(disk::copy_name(number))
    }

    /// Ends the writer after the writes that came before.
    pub async fn stop(&self) {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Command::Stop { reply }).await.is_ok() {
            let _ = answer.await;
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, MvccError>>) -> Command,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| Error::Stopped)?;
        Ok(answer.await.map_err(|_| Error::Stopped)??)
    }

    /// Starts a lease's time again; nothing for a lease that is not there. Refused if the client may not touch it.
    pub async fn renew(&self, id: LeaseId, scope: &Scope) -> Result<Option<i64>, Error> {
        let now = self.clock.now();
        let (renewed, seen) = {
            let mut state = write(&self.state);
            scope.check_lease(id, &state.leases)?;
            (state.leases.renew(id, now), state.keyspace.revision())
        };
        if renewed.is_none() {
            self.durable(seen).await?;
        }
        Ok(renewed)
    }

    /// The lease, if it is there; refused if the client may not touch it.
    pub async fn lease(&self, id: LeaseId, scope: &Scope) -> Result<Option<LeaseView>, Error> {
        let (lease, seen) = {
            let state = self.read();
            scope.check_lease(id, &state.leases)?;
            let times = state.leases.time_to_live(id, self.clock.now());
            let lease = times.map(|(granted_seconds, remaining_seconds)| LeaseView {
                granted_seconds,
                remaining_seconds,
                keys: state.leases.keys(id).cloned().collect(),
            });
            (lease, state.keyspace.revision())
        };
        self.durable(seen).await?;
        Ok(lease)
    }

    /// All leases that the client may touch, the next to end first.
    pub async fn leases(&self, scope: &Scope) -> Result<Vec<LeaseId>, Error> {
        let (leases, seen) = {
            let state = self.read();
            let own = state
                .leases
                .ids()
                .filter(|id| scope.permits_lease(*id, &state.leases));
            (own.collect(), state.keyspace.revision())
        };
        self.durable(seen).await?;
        Ok(leases)
    }

    /// Waits until `revision` is durable, or is taken back. Keys are read as they are on disk, leases as they are in
    /// memory: without the wait, a client that finds its lease gone could still read the keys that went with it.
    async fn durable(&self, revision: Revision) -> Result<(), Error> {
        let mut published = self.follow();
        let decided =
            |published: &Revision| *published >= revision || self.read().keyspace.revision() < revision;
        let published = *published.wait_for(decided).await.map_err(|_| Error::Stopped)?;
        if published >= revision {
            Ok(())
        } else {
            Err(Error::TakenBack)
        }
    }

    /// The bytes that the file takes on disk.
    pub fn disk_bytes(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

/// What [`Engine::watch`] found.
#[derive(Debug)]
pub struct Watched {
    /// The events, or why there are none.
    pub batch: Result<EventBatch, MvccError>,
    /// The newest durable revision.
    pub published: Revision,
    /// The last compaction.
    pub compacted: Option<Revision>,
}

/// What [`Engine::hash`] found.
#[derive(Debug)]
pub struct Hash {
    /// Over keys, values and revisions.
    pub hash: u32,
    /// Of which revision.
    pub revision: Revision,
    /// The last compaction.
    pub compacted: Option<Revision>,
}

fn write(state: &RwLock<State>) -> RwLockWriteGuard<'_, State> {
    state
        .write()
        .expect("invariant: nothing panics while it changes the state")
}

/// FNV-1a, 32 bits. It tells two states of this store apart; it is not the number that another server would give.
fn hash_entries(found: &RangeResult) -> u32 {
    found.entries.iter().fold(0x811c_9dc5, |hash, entry| {
        let revision = entry.mod_revision.to_be_bytes();
        let bytes = entry.key.iter().chain(&entry.value).chain(&revision);
        bytes.fold(hash, |hash, byte| {
            (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193)
        })
    })
}

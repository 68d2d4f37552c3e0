//! The writer: its thread owns the disk, and is the only one to change the keys.
//!
//! When the disk is full, what was not committed is taken back and refused, reads go on, and later writes try again.

use std::{
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use super::{Changes, State, write};
use crate::{
    config::Clock,
    disk::{self, Disk},
    mvcc::{Applied, Error, EventId, Grant, LeaseId, Op, Revision},
    scope::Scope,
};

/// So many writes are committed together at most.
const BATCH: usize = 512;

/// So many superfluous events are removed from the disk with one commit at most.
const STALE_PER_COMMIT: usize = 2048;

/// After the disk was full, it is tried again after this time.
const FULL_PAUSE: Duration = Duration::from_secs(1);

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What the writer is asked for.
#[derive(Debug)]
pub(super) enum Command {
    Apply {
        op: Op,
        scope: Scope,
        reply: Reply<Applied>,
    },
    Grant {
        id: Option<LeaseId>,
        asked: Grant,
        reply: Reply<(LeaseId, i64)>,
    },
    Revoke {
        id: LeaseId,
        scope: Scope,
        reply: Reply<Revision>,
    },
    ExpireLeases {
        reply: Reply<usize>,
    },
    Compact {
        revision: Revision,
        physical: bool,
        reply: Reply<Revision>,
    },
    Defragment {
        reply: Reply<()>,
    },
    SetNoSpace {
        raised: bool,
        reply: Reply<bool>,
    },
    Snapshot {
        reply: Reply<disk::Contents>,
    },
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// Sends an answer, or why there is none; held back until what it tells of is durable, or taken back.
type Answer = Box<dyn FnOnce(Result<(), Error>) + Send>;

pub(super) struct Writer {
    pub(super) state: Arc<RwLock<State>>,
    pub(super) disk: Disk,
    pub(super) queue: mpsc::Receiver<Command>,
    pub(super) publisher: watch::Sender<Revision>,
    pub(super) clock: Arc<dyn Clock>,
    /// Whose contents a snapshot is.
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
    /// No key is put while the file is larger.
    pub(super) quota_bytes: u64,
    /// Superfluous events that are still on disk.
    pub(super) stale: Vec<EventId>,
    pub(super) batch: Batch,
    /// The disk was full; it is not tried before this.
    pub(super) refused_until: Option<Instant>,
}

/// Writes that are in memory but not on disk.
#[derive(Default)]
pub(super) struct Batch {
    changes: Changes,
    answers: Vec<Answer>,
}

impl Writer {
    pub(super) fn run(mut self) -> Result<(), disk::Error> {
        while let Some(command) = self.next_command()? {
            let mut next = Some(command);
            while let Some(command) = next {
                if let Command::Stop { reply } = command {
                    self.commit()?;
                    drop(self);
                    let _ = reply.send(());
                    return Ok(());
                }
                self.take(command)?;
                next = if self.batch.answers.len() < BATCH {
                    self.queue.try_recv().ok()
                } else {
                    None
                };
            }
            self.commit()?;
        }
        Ok(())
    }

    /// Waits for a command; clears the disk while there is none.
    fn next_command(&mut self) -> Result<Option<Command>, disk::Error> {
        while !self.stale.is_empty() && self.disk.is_open() {
            match self.queue.try_recv() {
                Ok(command) => return Ok(Some(command)),
                Err(mpsc::error::TryRecvError::Empty) => self.commit()?,
                Err(mpsc::error::TryRecvError::Disconnected) => return Ok(None),
            }
        }
        Ok(self.queue.blocking_recv())
    }

    fn take(&mut self, command: Command) -> Result<(), disk::Error> {
        match command {
            Command::Apply { op, scope, reply } => {
                let applied = self.apply(&op, &scope);
                self.answer(reply, applied);
            }
            Command::Grant { id, asked, reply } => {
                let granted = self.grant(id, asked);
                self.answer(reply, granted);
            }
            Command::Revoke { id, scope, reply } => {
                let revoked = self.revoke(id, &scope);
                self.answer(reply, revoked);
            }
            Command::ExpireLeases { reply } => {
                let expired = write(&self.state).leases.expired(self.clock.now());
                let ended = expired
                    .into_iter()
                    .filter(|id| self.revoke(*id, &Scope::All).is_ok())
                    .count();
                self.answer(reply, Ok(ended));
            }
            Command::Compact {
                revision,
                physical,
                reply,
            } => {
                let compacted = self.compact(revision, physical)?;
                self.answer(reply, compacted);
            }
            Command::Defragment { reply } => {
                self.commit()?;
                let done = no_space(self.disk.defragment())?;
                self.answer(reply, done);
            }
            Command::SetNoSpace { raised, reply } => {
                let changed = self.set_no_space(raised)?;
                self.answer(reply, changed);
            }
            Command::Snapshot { reply } => {
                self.commit()?;
                let durable = self.durable_contents();
                self.answer(reply, Ok(durable));
            }
            Command::Stop { .. } => {}
        }
        Ok(())
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, Error>) {
        // A client that went away does not want its answer.
        self.batch
            .answers
            .push(Box::new(move |durable| drop(reply.send(durable.and(result)))));
    }

    fn apply(&mut self, op: &Op, scope: &Scope) -> Result<Applied, Error> {
        if let Some(bytes) = op.put_bytes() {
            self.check_space(bytes)?;
        }
        let State { keyspace, leases, .. } = &mut *write(&self.state);
        scope.check_leases_of(op, leases)?;
        keyspace.apply(op, leases)
    }

    /// Raises the alarm when the file with so many bytes more would be larger than it may be.
    fn check_space(&mut self, bytes: u64) -> Result<(), Error> {
        let state = &mut *write(&self.state);
        if !state.no_space && self.disk.bytes().saturating_add(bytes) > self.quota_bytes {
            tracing::warn!(
                quota_bytes = self.quota_bytes,
                "the store is as large as it may be, no key is put until it is compacted, defragmented and disarmed"
            );
            state.no_space = true;
            self.batch.changes.no_space = Some(true);
        }
        if state.no_space {
            Err(Error::NoSpace)
        } else {
            Ok(())
        }
    }

    /// Durable first, then in memory. Says whether it changed anything.
    fn set_no_space(&mut self, raised: bool) -> Result<Result<bool, Error>, disk::Error> {
        self.commit()?;
        let saved = self.save(&Changes {
            no_space: Some(raised),
            ..Changes::default()
        });
        let saved = no_space(saved)?;
        Ok(saved.map(|()| std::mem::replace(&mut write(&self.state).no_space, raised) != raised))
    }

    fn durable_contents(&self) -> disk::Contents {
        let state = self
            .state
            .read()
            .expect("invariant: nothing panics while it changes the state");
        let mut events: Vec<_> = state.keyspace.events().cloned().collect();
        events.sort_unstable_by_key(|event| event.id);
        disk::Contents {
            cluster_id: self.cluster_id,
            member_id: self.member_id,
            compacted: state.keyspace.compacted(),
            no_space: state.no_space,
            events,
            leases: state.leases.grants().collect(),
        }
    }

    fn grant(&mut self, id: Option<LeaseId>, asked: Grant) -> Result<(LeaseId, i64), Error> {
        self.check_space(0)?;
        let leases = &mut write(&self.state).leases;
        let id = id.unwrap_or_else(|| {
            let drawn = std::iter::repeat_with(|| LeaseId::from_protocol(rand::random_range(1..i64::MAX)));
            drawn
                .flatten()
                .find(|id| !leases.contains(*id))
                .expect("invariant: an endless iterator has a next item")
        });
        let granted = leases.grant(id, asked, self.clock.now())?;
        self.batch.changes.leases.push((id, Some(granted)));
        Ok((id, granted.seconds))
    }

    fn revoke(&mut self, id: LeaseId, scope: &Scope) -> Result<Revision, Error> {
        let State { keyspace, leases, .. } = &mut *write(&self.state);
        scope.check_lease(id, leases)?;
        let revision = keyspace.revoke(id, leases)?;
        self.batch.changes.leases.push((id, None));
        Ok(revision)
    }

    /// Durable first, then in memory: a read that is refused stays refused after a crash. Everything before it is
    /// published first, so that no reader stands behind the compaction.
    fn compact(
        &mut self,
        revision: Revision,
        physical: bool,
    ) -> Result<Result<Revision, Error>, disk::Error> {
        self.commit()?;
        if let Err(refused) = write(&self.state).keyspace.check_compaction(revision) {
            return Ok(Err(refused));
        }
        let saved = self.save(&Changes {
            compacted: Some(revision),
            ..Changes::default()
        });
        if let Err(refused) = no_space(saved)? {
            return Ok(Err(refused));
        }
        let mut state = write(&self.state);
        let compacted = state.keyspace.compact(revision);
        let now = state.published;
        drop(state);
        self.stale.extend(compacted.into_iter().flatten());
        while physical && !self.stale.is_empty() && self.disk.is_open() {
            self.commit()?;
        }
        Ok(Ok(now))
    }

    /// Makes everything in the batch durable, publishes it, and answers.
    fn commit(&mut self) -> Result<(), disk::Error> {
        let Batch { mut changes, answers } = std::mem::take(&mut self.batch);
        let (durable, newest) = {
            let state = self
                .state
                .read()
                .expect("invariant: nothing panics while it changes the state");
            changes.events = state.keyspace.events_after(state.published).cloned().collect();
            (state.published, state.keyspace.revision())
        };
        changes.stale = self
            .stale
            .split_off(self.stale.len().saturating_sub(STALE_PER_COMMIT));
        if !changes.is_empty()
            && let Err(refused) = no_space(self.save(&changes))?
        {
            self.stale.append(&mut changes.stale);
            self.take_back(durable);
            answers.into_iter().for_each(|answer| answer(Err(refused)));
            return Ok(());
        }
        {
            let mut state = write(&self.state);
            state.leases.settle();
            state.published = newest;
        }
        if newest > durable {
            self.publisher.send_replace(newest);
        }
        answers.into_iter().for_each(|answer| answer(Ok(())));
        Ok(())
    }

    /// Writes the changes to the disk, which may have been full before.
    fn save(&mut self, changes: &Changes) -> Result<(), disk::Error> {
        let now = Instant::now();
        if self.refused_until.is_some_and(|until| now < until) {
            return Err(disk::Error::Full(std::io::ErrorKind::StorageFull.into()));
        }
        let saved = match self.disk.is_open() {
            true => Ok(()),
            false => self.disk.reopen(),
        };
        let saved = saved.and_then(|()| self.disk.commit(changes));
        match &saved {
            Ok(()) if self.refused_until.take().is_some() => {
                tracing::info!("the disk has space again, writes are taken");
            }
            Err(disk::Error::Full(error)) => {
                if self.refused_until.replace(now + FULL_PAUSE).is_none() {
                    tracing::error!(%error, "the disk is full, writes are refused");
                }
            }
            Ok(()) | Err(_) => {}
        }
        saved
    }

    /// What is not durable has never been. Who waits for it is woken.
    fn take_back(&mut self, durable: Revision) {
        {
            let State { keyspace, leases, .. } = &mut *write(&self.state);
            keyspace.take_back(durable, leases);
        }
        self.publisher.send_replace(durable);
    }
}

/// A full disk is an answer; another error of the disk is the store's end.
fn no_space<T>(result: Result<T, disk::Error>) -> Result<Result<T, Error>, disk::Error> {
    match result {
        Ok(done) => Ok(Ok(done)),
        Err(disk::Error::Full(_)) => Ok(Err(Error::NoSpace)),
        Err(error) => Err(error),
    }
}

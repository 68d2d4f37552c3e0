//! The writer: its thread owns the disk, and is the only one to change the keys.

use std::sync::{Arc, RwLock};

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
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// Sends an answer; held back until what it tells of is durable.
type Answer = Box<dyn FnOnce() + Send>;

pub(super) struct Writer {
    state: Arc<RwLock<State>>,
    disk: Disk,
    queue: mpsc::Receiver<Command>,
    publisher: watch::Sender<Revision>,
    clock: Arc<dyn Clock>,
    /// Superfluous events that are still on disk.
    stale: Vec<EventId>,
    batch: Batch,
}

/// Writes that are in memory but not on disk.
#[derive(Default)]
struct Batch {
    changes: Changes,
    answers: Vec<Answer>,
}

impl Writer {
    pub(super) fn new(
        state: Arc<RwLock<State>>,
        disk: Disk,
        queue: mpsc::Receiver<Command>,
        publisher: watch::Sender<Revision>,
        clock: Arc<dyn Clock>,
        stale: Vec<EventId>,
    ) -> Self {
        Self {
            state,
            disk,
            queue,
            publisher,
            clock,
            stale,
            batch: Batch::default(),
        }
    }

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
        while !self.stale.is_empty() {
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
                let applied = {
                    let State { keyspace, leases, .. } = &mut *write(&self.state);
                    let permitted = scope.check_leases_of(&op, leases);
                    permitted.and_then(|()| keyspace.apply(&op, leases))
                };
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
                self.disk.defragment()?;
                self.answer(reply, Ok(()));
            }
            Command::Stop { .. } => {}
        }
        Ok(())
    }

    fn answer<T: Send + 'static>(&mut self, reply: Reply<T>, result: Result<T, Error>) {
        // A client that went away does not want its answer.
        self.batch
            .answers
            .push(Box::new(move || drop(reply.send(result))));
    }

    fn grant(&mut self, id: Option<LeaseId>, asked: Grant) -> Result<(LeaseId, i64), Error> {
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
        self.disk.commit(&Changes {
            compacted: Some(revision),
            ..Changes::default()
        })?;
        let mut state = write(&self.state);
        let compacted = state.keyspace.compact(revision);
        let now = state.published;
        drop(state);
        self.stale.extend(compacted.into_iter().flatten());
        while physical && !self.stale.is_empty() {
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
        if !changes.is_empty() {
            self.disk.commit(&changes)?;
        }
        if newest > durable {
            write(&self.state).published = newest;
            self.publisher.send_replace(newest);
        }
        answers.into_iter().for_each(|answer| answer());
        Ok(())
    }
}

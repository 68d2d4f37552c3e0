//! Queues of keys, as Go's package `concurrency` of etcd keeps them (`client/v3/concurrency`): who waits has a key
//! below `NAME/`, named by its lease, and whose key was made first has its turn. Clients that keep them by themselves
//! (`etcdctl lock`, `etcdctl elect`) stand in the same queues.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{runtime::Handle, sync::watch};
use tonic::Status;

use super::{Service, kv::mismatch, status};
use crate::{
    engine::Error,
    mvcc::{
        Applied, Compare, Delete, Entry, Grant, KeyRange, LeaseChange, LeaseId, Op, OpResult, Order, Put,
        Range, Relation, Revision, Sort, SortBy, Target, Txn,
    },
    scope::Scope,
};

/// Of the lease that who brings none is given (`defaultSessionTTL`).
const LEASE_SECONDS: i64 = 60;

/// A place in a queue.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its key.
    pub key: Bytes,
    /// The revision in which the key was made.
    pub created: Revision,
}

/// A queue that was entered.
#[derive(Debug)]
pub struct Entered {
    /// Where.
    pub place: Place,
    /// The value that the key had before, if it was there.
    pub known: Option<Bytes>,
    /// The revision afterwards.
    pub revision: Revision,
}

/// The keys of a queue.
pub fn keys_of(name: &[u8]) -> KeyRange {
    KeyRange::below([name, b"/"].concat())
}

/// The key that was made first, as of a revision; the newest if absent.
pub fn first_of(keys: &KeyRange, revision: Option<Revision>) -> Range {
    Range {
        revision,
        limit: Some(1),
        sort: by_creation(Order::Ascending),
        ..Range::all(keys.clone())
    }
}

fn by_creation(order: Order) -> Option<Sort> {
    Some(Sort {
        by: SortBy::CreateRevision,
        order: Some(order),
    })
}

impl Service {
    /// The lease that the client brings, or a new one.
    pub async fn lease_or_new(&self, lease: i64, scope: &Scope) -> Result<LeaseId, Status> {
        if let Some(lease) = LeaseId::from_protocol(lease) {
            return Ok(lease);
        }
        let asked = Grant {
            seconds: LEASE_SECONDS,
            holder: scope.holder(),
        };
        Ok(self.engine.grant(None, asked).await?.0)
    }

    /// Makes the lease's key in the queue, if it is not there.
    pub async fn enter(
        &self,
        scope: &Scope,
        name: &[u8],
        lease: LeaseId,
        value: Bytes,
    ) -> Result<Entered, Status> {
        let key = Bytes::from([name, format!("/{:x}", lease.get()).as_bytes()].concat());
        let put = Put {
            key: key.clone(),
            value: Some(value),
            lease: LeaseChange::Set(Some(lease)),
            prev_kv: false,
        };
        let txn = Txn {
            compares: vec![made_in(&key, 0)],
            success: vec![Op::Put(put)],
            failure: vec![Op::Range(Range::all(KeyRange::single(key.clone())))],
        };
        let (_, results, revision) = self.transact(scope, txn).await?;
        let known = match results.first() {
            Some(OpResult::Range(found)) => found.entries.first().cloned(),
            _ => None,
        };
        Ok(Entered {
            place: Place {
                key,
                created: known.as_ref().map_or(revision, |known| known.create_revision),
            },
            known: known.map(|known| known.value.clone()),
            revision,
        })
    }

    /// Waits for the turn of a place, which is left when nobody waits any more; returns the revision that shows it.
    pub async fn turn(&self, scope: &Scope, name: &[u8], place: &Place) -> Result<Revision, Status> {
        let mut waiting = Waiting {
            service: self,
            scope,
            place: Some(place),
        };
        let before = Range {
            create_revisions: 0..=place.created - 1,
            limit: Some(1),
            sort: by_creation(Order::Descending),
            ..Range::all(keys_of(name))
        };
        loop {
            let found = self.engine.range(&before)?;
            let Some(before) = found.entries.first() else {
                waiting.place = None;
                return Ok(found.revision);
            };
            self.until_gone(before).await?;
        }
    }

    /// Changes what is there for a place, if it is still held. Says whether, and the revision afterwards.
    pub async fn if_held(&self, scope: &Scope, place: &Place, op: Op) -> Result<(bool, Revision), Status> {
        let txn = Txn {
            compares: vec![made_in(&place.key, place.created)],
            success: vec![op],
            failure: Vec::new(),
        };
        let (held, _, revision) = self.transact(scope, txn).await?;
        Ok((held, revision))
    }

    /// Deletes the key of a place, if it is still held, and returns the revision afterwards.
    pub async fn leave(&self, scope: &Scope, place: &Place) -> Result<Revision, Status> {
        let delete = Delete {
            keys: KeyRange::single(place.key.clone()),
            prev_kv: false,
        };
        Ok(self.if_held(scope, place, Op::Delete(delete)).await?.1)
    }

    /// Whether the comparisons held, what the operations answered, and the revision afterwards.
    async fn transact(&self, scope: &Scope, txn: Txn) -> Result<(bool, Vec<OpResult>, Revision), Status> {
        let Applied { result, revision } = self.write(scope.clone(), Op::Txn(txn)).await?;
        match result {
            OpResult::Txn { succeeded, results } => Ok((succeeded, results, revision)),
            _ => Err(mismatch()),
        }
    }

    async fn until_gone(&self, entry: &Entry) -> Result<(), Status> {
        let mut published = self.engine.follow();
        let range = Range::all(KeyRange::single(entry.key.clone()));
        loop {
            published.mark_unchanged();
            let found = self.engine.range(&range)?;
            let is_there = |now: &&Arc<Entry>| now.create_revision == entry.create_revision;
            if found.entries.first().filter(is_there).is_none() {
                return Ok(());
            }
            self.changed(&mut published).await?;
        }
    }

    /// Waits for the next revision.
    pub async fn changed(&self, published: &mut watch::Receiver<Revision>) -> Result<(), Status> {
        tokio::select! {
            () = self.shutdown.cancelled() => Err(Error::Stopped.into()),
            changed = published.changed() => changed.map_err(|_| Error::Stopped.into()),
        }
    }

    /// Refuses a client that may not touch the queue.
    pub fn check_queue(scope: &Scope, name: &[u8]) -> Result<(), Status> {
        match scope.permits(&keys_of(name)) {
            true => Ok(()),
            false => Err(status::permission_denied()),
        }
    }
}

/// A key that was made in this revision; 0 for one that is not there.
fn made_in(key: &Bytes, created: Revision) -> Compare {
    Compare {
        keys: KeyRange::single(key.clone()),
        relation: Relation::Equal,
        target: Target::CreateRevision(created),
    }
}

/// Leaves a place for a client that does not wait any more.
struct Waiting<'a> {
    service: &'a Service,
    scope: &'a Scope,
    place: Option<&'a Place>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let (Some(place), Ok(runtime)) = (self.place.cloned(), Handle::try_current()) else {
            return;
        };
        let (service, scope) = (self.service.clone(), self.scope.clone());
        runtime.spawn(async move {
            if let Err(error) = service.leave(&scope, &place).await {
                tracing::debug!(%error, "a place in a queue is left to its lease");
            }
        });
    }
}

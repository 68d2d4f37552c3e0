//! The multi-version key space, pure: no I/O, no clock, no locks.
//!
//! Every write gets the next *revision*; nothing is overwritten. [`Keyspace`] maps each key to its versions, so that a
//! read names a revision and sees the keys as they were then, and keeps the same events in the order of their
//! revisions, so that a watch is no more than a cursor. [`Keyspace::apply`] runs an [`Op`] (a put, a delete, a range,
//! or a transaction of them), [`Keyspace::compact`] forgets the versions that nothing may ask for any more.
//! The rules are etcd's (`etcd.io/docs/v3.5/learning/api`), including those that only its source states.

mod check;
mod history;
mod key_range;
mod keyspace;
mod lease;
mod op;
mod txn;

pub use check::check_txn;
pub use history::{Entry, Event, EventId};
pub use key_range::KeyRange;
pub use keyspace::{EventBatch, Keyspace, WatchedEvent};
pub use lease::{Grant, Holder, LeaseId, Leases};
pub use op::{
    Applied, Compare, Delete, LeaseChange, Op, OpResult, Order, Put, Range, RangeResult, Relation, Sort,
    SortBy, Target, Txn,
};

/// Counts the write transactions since the store was made; the empty store is at 1.
pub type Revision = i64;

/// Why the key space refuses an operation; the texts and codes that clients match on are in `grpc::status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The revision asked for is older than the last compaction.
    #[error("the required revision has been compacted")]
    Compacted,
    /// The revision asked for is not there yet.
    #[error("the required revision is a future revision")]
    FutureRevision,
    /// A put that keeps the value or the lease names a key that does not exist.
    #[error("the key is not found")]
    KeyNotFound,
    /// No lease has this number.
    #[error("the requested lease is not found")]
    LeaseNotFound,
    /// A lease with the number that was asked for exists.
    #[error("the lease already exists")]
    LeaseExists,
    /// The time to live is longer than any may be.
    #[error("the time to live is too large")]
    LeaseTtlTooLarge,
    /// One transaction would write a key twice.
    #[error("a key is given twice in one transaction")]
    DuplicateKey,
    /// The disk, or what the store may use of it, is full.
    #[error("there is no space for it")]
    NoSpace,
    /// The client may not touch the lease.
    #[error("the lease is not the client's to touch")]
    LeaseDenied,
    /// A transaction has more operations than one may have.
    #[error("too many operations in one transaction")]
    TooManyOps,
}

#[cfg(test)]
mod tests;

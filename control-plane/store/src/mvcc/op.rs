//! The operations on the key space and their results.

use std::{ops::RangeInclusive, sync::Arc};

use bytes::Bytes;

use super::{Entry, KeyRange, LeaseId, Revision};

/// One operation; a transaction holds others.
#[derive(Debug, Clone)]
pub enum Op {
    /// Read keys.
    Range(Range),
    /// Write a key.
    Put(Put),
    /// Delete keys.
    Delete(Delete),
    /// Compare, then run one of two lists, all as one revision.
    Txn(Txn),
}

impl Op {
    /// The bytes of keys and values that the operation could put, whatever its comparisons say; nothing where it puts
    /// no key.
    pub fn put_bytes(&self) -> Option<u64> {
        match self {
            Self::Put(put) => {
                let bytes = put.key.len() + put.value.as_ref().map_or(0, Bytes::len);
                Some(u64::try_from(bytes).unwrap_or(u64::MAX))
            }
            Self::Txn(txn) => {
                let ops = txn.success.iter().chain(&txn.failure);
                ops.filter_map(Self::put_bytes).reduce(u64::saturating_add)
            }
            Self::Range(_) | Self::Delete(_) => None,
        }
    }
}

/// Read keys at one revision.
#[derive(Debug, Clone)]
pub struct Range {
    /// Which.
    pub keys: KeyRange,
    /// As of when; the newest revision if absent.
    pub revision: Option<Revision>,
    /// At most so many; all if absent.
    pub limit: Option<usize>,
    /// The order of the answer; by key if absent.
    pub sort: Option<Sort>,
    /// Leave the values out.
    pub keys_only: bool,
    /// Only count.
    pub count_only: bool,
    /// Keep the entries whose `mod_revision` lies within.
    pub mod_revisions: RangeInclusive<Revision>,
    /// Keep the entries whose `create_revision` lies within.
    pub create_revisions: RangeInclusive<Revision>,
}

impl Range {
    /// All of `keys`, newest revision, by key.
    pub fn all(keys: KeyRange) -> Self {
        Self {
            keys,
            revision: None,
            limit: None,
            sort: None,
            keys_only: false,
            count_only: false,
            mod_revisions: 0..=Revision::MAX,
            create_revisions: 0..=Revision::MAX,
        }
    }

    pub(super) fn filters(&self) -> bool {
        let all = 0..=Revision::MAX;
        self.mod_revisions != all || self.create_revisions != all
    }
}

/// How a range is sorted. Without an order of its own (`order` absent) the limit is taken before the sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sort {
    /// By what.
    pub by: SortBy,
    /// Which way.
    pub order: Option<Order>,
}

/// By what a range is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SortBy {
    Key,
    Version,
    CreateRevision,
    ModRevision,
    Value,
}

/// Which way a range is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Ascending,
    Descending,
}

/// Write a key.
#[derive(Debug, Clone)]
pub struct Put {
    /// Which.
    pub key: Bytes,
    /// The value; the present one is kept if absent.
    pub value: Option<Bytes>,
    /// What becomes of the key's lease.
    pub lease: LeaseChange,
    /// Return the version before.
    pub prev_kv: bool,
}

/// What a put does to the key's lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseChange {
    /// The key hangs on this lease, or on none.
    Set(Option<LeaseId>),
    /// The key stays on the lease that it is on.
    Keep,
}

/// Delete keys.
#[derive(Debug, Clone)]
pub struct Delete {
    /// Which.
    pub keys: KeyRange,
    /// Return what was deleted.
    pub prev_kv: bool,
}

/// If all comparisons hold run `success`, else `failure`.
#[derive(Debug, Clone, Default)]
pub struct Txn {
    /// The comparisons; they see the keys as they were before the transaction, in nested transactions too.
    pub compares: Vec<Compare>,
    /// What to do if all hold.
    pub success: Vec<Op>,
    /// What to do if one does not.
    pub failure: Vec<Op>,
}

/// A comparison of every key of a range with a given value.
#[derive(Debug, Clone)]
pub struct Compare {
    /// Which keys.
    pub keys: KeyRange,
    /// What the keys' field must be, in relation to the given value.
    pub relation: Relation,
    /// Which field, and the given value.
    pub target: Target,
}

/// How the key's field relates to the given value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    Equal,
    Greater,
    Less,
    NotEqual,
}

/// The field that is compared, with the given value. A key that does not exist counts as all zeros, except that no
/// comparison of its value holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Version(i64),
    CreateRevision(Revision),
    ModRevision(Revision),
    Value(Bytes),
    Lease(i64),
}

/// What an operation did, and the revision that the key space is at afterwards.
#[derive(Debug, PartialEq, Eq)]
pub struct Applied {
    /// The answer.
    pub result: OpResult,
    /// The revision afterwards; one more than before if anything was written.
    pub revision: Revision,
}

/// The answer to an operation.
#[derive(Debug, PartialEq, Eq)]
pub enum OpResult {
    /// To a range.
    Range(RangeResult),
    /// To a put.
    Put {
        /// The revision within the transaction.
        revision: Revision,
        /// The version before, if it was asked for.
        prev: Option<Arc<Entry>>,
    },
    /// To a delete.
    Delete {
        /// The revision within the transaction.
        revision: Revision,
        /// How many keys were deleted.
        deleted: usize,
        /// Their last versions, if they were asked for.
        prev: Vec<Arc<Entry>>,
    },
    /// To a transaction.
    Txn {
        /// Whether the comparisons held.
        succeeded: bool,
        /// The answers to the operations of the list that ran.
        results: Vec<OpResult>,
    },
}

/// The answer to a range.
#[derive(Debug, PartialEq, Eq)]
pub struct RangeResult {
    /// The newest revision when the range was read (not the one that was asked for).
    pub revision: Revision,
    /// What was found, in order, cut at the limit.
    pub entries: Vec<Arc<Entry>>,
    /// How many keys the range holds, without limit and filters.
    pub count: usize,
    /// Whether the limit cut something off.
    pub more: bool,
    /// Whether the values are to be left out.
    pub keys_only: bool,
}

//! The versions of one key.

use std::sync::Arc;

use bytes::Bytes;

use super::{LeaseId, Revision};

/// One version of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    /// The revision that created the key (after its last deletion).
    pub create_revision: Revision,
    /// The revision that wrote this version.
    pub mod_revision: Revision,
    /// 1 for the version that created the key, then one more with each put.
    pub version: i64,
    /// The lease whose end deletes the key.
    pub lease: Option<LeaseId>,
}

/// The place of an event in the order of all events: the revision, then the place within its transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct EventId {
    /// The transaction.
    pub revision: Revision,
    /// The place in it, from 0.
    pub sub: u32,
}

/// What happened to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub id: EventId,
    /// To which key.
    pub key: Bytes,
    /// The version that was put, or nothing where the key was deleted.
    pub entry: Option<Arc<Entry>>,
}

/// All versions of one key that a read may still name, oldest first.
#[derive(Debug, Default)]
pub(super) struct History {
    events: Vec<Event>,
}

impl History {
    pub(super) fn push(&mut self, event: Event) {
        self.events.push(event);
    }

    /// Takes the newest event back.
    pub(super) fn pop(&mut self) {
        self.events.pop();
    }

    /// All events, oldest first.
    pub(super) fn events(&self) -> &[Event] {
        &self.events
    }

    /// The key as it was after `revision`.
    pub(super) fn at(&self, revision: Revision) -> Option<&Arc<Entry>> {
        let seen = self.events.partition_point(|event| event.id.revision <= revision);
        self.events.get(..seen)?.last()?.entry.as_ref()
    }

    /// Drops what nothing can see at `compacted` or later, and says which events that were. A deletion in exactly that
    /// revision stays: a watch may start there.
    pub(super) fn trim(&mut self, compacted: Revision) -> impl Iterator<Item = EventId> + '_ {
        let passed = self
            .events
            .partition_point(|event| event.id.revision <= compacted);
        let last_passed = self.events.get(..passed).and_then(<[_]>::last);
        let still_seen =
            last_passed.is_some_and(|last| last.entry.is_some() || last.id.revision == compacted);
        self.events
            .drain(..passed - usize::from(still_seen))
            .map(|event| event.id)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

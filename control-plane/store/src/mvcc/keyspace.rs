//! The keys, their versions, and the events in order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    Entry, Error, Event, EventId, KeyRange, Leases, Order, Range, RangeResult, Revision, Sort, SortBy,
    history::History,
};

/// A watch looks at no more revisions than this at once, so that readers and the writer get their turn.
const REVISIONS_PER_LOOK: usize = 4096;

/// All keys in all revisions from the last compaction on.
#[derive(Debug)]
pub struct Keyspace {
    pub(super) keys: BTreeMap<Bytes, History>,
    log: VecDeque<Vec<Event>>,
    /// The revision of the first element of `log`, if there is one.
    log_start: Revision,
    revision: Revision,
    compacted: Option<Revision>,
}

/// An event for a watch, with the version before it if the watch asks for that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedEvent {
    /// The event.
    pub event: Event,
    /// The version before, if asked for, and if it is not compacted.
    pub prev: Option<Arc<Entry>>,
}

/// What a watch finds from its cursor on: whole revisions, as many as its budget allows.
#[derive(Debug, PartialEq, Eq)]
pub struct EventBatch {
    /// The events, in order.
    pub events: Vec<WatchedEvent>,
    /// The cursor afterwards.
    pub next: Revision,
}

impl Default for Keyspace {
    fn default() -> Self {
        Self {
            keys: BTreeMap::new(),
            log: VecDeque::new(),
            log_start: 2,
            revision: 1,
            compacted: None,
        }
    }
}

impl Keyspace {
    /// Builds the key space again from what was kept: the last compaction, and every event in order. Also returns the
    /// events that the compaction had made superfluous, which a crash may have left behind.
    pub fn restore(
        compacted: Option<Revision>,
        events: impl IntoIterator<Item = Event>,
    ) -> (Self, Vec<EventId>) {
        let log_start = compacted.unwrap_or(0).max(2);
        let revision = compacted.unwrap_or(0).max(1);
        let mut keyspace = Self {
            log_start,
            revision,
            compacted,
            ..Self::default()
        };
        keyspace
            .log
            .resize_with(keyspace.log_index(revision + 1), Vec::new);
        for event in events {
            let key = event.key.clone();
            if event.id.revision >= log_start {
                let index = keyspace.log_index(event.id.revision);
                keyspace
                    .log
                    .resize_with(keyspace.log.len().max(index + 1), Vec::new);
                keyspace
                    .log
                    .get_mut(index)
                    .expect("invariant: the log was just made long enough")
                    .push(event.clone());
                keyspace.revision = event.id.revision;
            }
            keyspace.keys.entry(key).or_default().push(event);
        }
        let stale = compacted.map_or_else(Vec::new, |revision| keyspace.trim_all(revision));
        (keyspace, stale)
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The revision of the last compaction; older ones cannot be read.
    pub fn compacted(&self) -> Option<Revision> {
        self.compacted
    }

    /// The entries that exist at the newest revision, by key.
    pub fn live(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.keys.values().filter_map(|history| history.at(self.revision))
    }

    /// Reads a range. `now` is the newest revision that the reader may see.
    pub fn range(&self, range: &Range, now: Revision) -> Result<RangeResult, Error> {
        let revision = self.readable(range.revision, now)?;
        Ok(self.range_at(range, revision, now))
    }

    /// The revision that a read is at, if it may be read.
    pub(super) fn readable(&self, asked: Option<Revision>, now: Revision) -> Result<Revision, Error> {
        let revision = asked.unwrap_or(now);
        if revision > now {
            return Err(Error::FutureRevision);
        }
        if self.compacted.is_some_and(|compacted| revision < compacted) {
            return Err(Error::Compacted);
        }
        Ok(revision)
    }

    pub(super) fn range_at(&self, range: &Range, revision: Revision, now: Revision) -> RangeResult {
        let keys_only = range.keys_only;
        if range.count_only {
            let count = self.entries(&range.keys, revision).count();
            return RangeResult {
                revision: now,
                entries: Vec::new(),
                count,
                more: false,
                keys_only,
            };
        }
        // The limit may be taken at once only if no later step reorders or drops entries.
        let ordered = range.sort.is_some_and(|sort| sort.order.is_some());
        let fetch = range
            .limit
            .filter(|_| !ordered && !range.filters())
            .map_or(usize::MAX, |limit| limit + 1);
        let mut entries = Vec::new();
        let mut count = 0;
        for entry in self.entries(&range.keys, revision) {
            count += 1;
            if entries.len() < fetch {
                entries.push(Arc::clone(entry));
            }
        }
        entries.retain(|entry| {
            range.mod_revisions.contains(&entry.mod_revision)
                && range.create_revisions.contains(&entry.create_revision)
        });
        if let Some(sort) = range.sort {
            sort_entries(&mut entries, sort);
        }
        let more = range.limit.is_some_and(|limit| entries.len() > limit);
        entries.truncate(range.limit.unwrap_or(usize::MAX));
        RangeResult {
            revision: now,
            entries,
            count,
            more,
            keys_only,
        }
    }

    /// The entries of the range as they were after `revision`, by key.
    pub(super) fn entries<'a>(&'a self, keys: &KeyRange, revision: Revision) -> Entries<'a> {
        let single = keys.as_single().and_then(|key| self.keys.get(key));
        let span = (keys.as_single().is_none() && !keys.is_empty())
            .then(|| self.keys.range::<[u8], _>(keys.bounds()));
        Entries {
            single,
            span,
            revision,
        }
    }

    /// The key as it was after `revision`.
    pub(super) fn entry(&self, key: &[u8], revision: Revision) -> Option<&Arc<Entry>> {
        self.keys.get(key)?.at(revision)
    }

    /// Ends a write transaction: its events become the next revision.
    pub(super) fn close_revision(&mut self, events: Vec<Event>) {
        if !events.is_empty() {
            self.revision += 1;
            self.log.push_back(events);
        }
    }

    /// The events of the revisions after `revision`, in order.
    pub fn events_after(&self, revision: Revision) -> impl Iterator<Item = &Event> {
        let skip = self.log_index(revision + 1);
        self.log.iter().skip(skip).flatten()
    }

    /// Every event that a store needs to be as this one is, key by key.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.keys.values().flat_map(History::events)
    }

    /// Undoes the revisions after `revision` (which is not before the last compaction) and what was granted and ended
    /// since the leases were settled: as if they had never been.
    pub fn take_back(&mut self, revision: Revision, leases: &mut Leases) {
        leases.take_back();
        let kept = self.log_index(revision + 1).min(self.log.len());
        let undone: Vec<Event> = self.log.split_off(kept).into_iter().flatten().collect();
        self.revision = revision;
        for event in &undone {
            if let Some(history) = self.keys.get_mut(&event.key) {
                history.pop();
                if history.is_empty() {
                    self.keys.remove(&event.key);
                }
            }
            if let Some(id) = event.entry.as_ref().and_then(|entry| entry.lease) {
                leases.detach(id, &event.key);
            }
        }
        for event in undone {
            if let Some(id) = self.entry(&event.key, revision).and_then(|entry| entry.lease) {
                leases.attach(id, event.key);
            }
        }
    }

    /// What a watch of `keys` at cursor `from` finds up to `now`. It looks at whole revisions, and stops early when it
    /// has found `budget` bytes or has looked at enough; the cursor says how far it came.
    pub fn watch(
        &self,
        keys: &KeyRange,
        from: Revision,
        now: Revision,
        budget: usize,
        prev_kv: bool,
    ) -> Result<EventBatch, Error> {
        if self.compacted.is_some_and(|compacted| from < compacted) {
            return Err(Error::Compacted);
        }
        // Nothing ever happened before the log's start, and an empty store has no log.
        let mut batch = EventBatch {
            events: Vec::new(),
            next: from.max(self.log_start),
        };
        let mut found = 0;
        let skip = self.log_index(from);
        for (revision, events) in (self.log_start..)
            .zip(&self.log)
            .skip(skip)
            .take(REVISIONS_PER_LOOK)
        {
            if revision > now || found >= budget {
                return Ok(batch);
            }
            for event in events.iter().filter(|event| keys.contains(&event.key)) {
                found += event.key.len() + event.entry.as_ref().map_or(0, |entry| entry.value.len());
                let prev = if prev_kv { self.before(event) } else { None };
                batch.events.push(WatchedEvent {
                    event: event.clone(),
                    prev,
                });
            }
            batch.next = revision + 1;
        }
        Ok(batch)
    }

    fn before(&self, event: &Event) -> Option<Arc<Entry>> {
        let revision = self.readable(Some(event.id.revision - 1), self.revision).ok()?;
        self.entry(&event.key, revision).cloned()
    }

    /// Whether the key space may be compacted at `revision`.
    pub fn check_compaction(&self, revision: Revision) -> Result<(), Error> {
        if self.compacted.is_some_and(|compacted| revision <= compacted) {
            return Err(Error::Compacted);
        }
        if revision > self.revision {
            return Err(Error::FutureRevision);
        }
        Ok(())
    }

    /// Forgets every version that is not visible at `revision` or later, and says which events that were. The work is
    /// proportional to what was written since the last compaction.
    pub fn compact(&mut self, revision: Revision) -> Result<Vec<EventId>, Error> {
        self.check_compaction(revision)?;
        self.compacted = Some(revision);
        let mut stale = Vec::new();
        while self.log_start < revision {
            let Some(events) = self.log.pop_front() else { break };
            self.log_start += 1;
            for event in events {
                self.trim_key(&event.key, revision, &mut stale);
            }
        }
        let last = self.log.front().cloned().unwrap_or_default();
        for event in last {
            self.trim_key(&event.key, revision, &mut stale);
        }
        Ok(stale)
    }

    fn trim_key(&mut self, key: &Bytes, revision: Revision, stale: &mut Vec<EventId>) {
        let Some(history) = self.keys.get_mut(key) else {
            return;
        };
        stale.extend(history.trim(revision));
        if history.is_empty() {
            self.keys.remove(key);
        }
    }

    fn trim_all(&mut self, revision: Revision) -> Vec<EventId> {
        let mut stale = Vec::new();
        self.keys.retain(|_, history| {
            stale.extend(history.trim(revision));
            !history.is_empty()
        });
        stale
    }

    fn log_index(&self, revision: Revision) -> usize {
        usize::try_from(revision - self.log_start).unwrap_or(0)
    }
}

/// The entries of a range at one revision.
pub(super) struct Entries<'a> {
    single: Option<&'a History>,
    span: Option<std::collections::btree_map::Range<'a, Bytes, History>>,
    revision: Revision,
}

impl<'a> Iterator for Entries<'a> {
    type Item = &'a Arc<Entry>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(history) = self.single.take() {
            return history.at(self.revision);
        }
        let revision = self.revision;
        self.span.as_mut()?.find_map(|(_, history)| history.at(revision))
    }
}

fn sort_entries(entries: &mut [Arc<Entry>], sort: Sort) {
    entries.sort_by(|a, b| {
        let ordering = match sort.by {
            SortBy::Key => a.key.cmp(&b.key),
            SortBy::Version => a.version.cmp(&b.version),
            SortBy::CreateRevision => a.create_revision.cmp(&b.create_revision),
            SortBy::ModRevision => a.mod_revision.cmp(&b.mod_revision),
            SortBy::Value => a.value.cmp(&b.value),
        };
        match sort.order {
            Some(Order::Descending) => ordering.reverse(),
            Some(Order::Ascending) | None => ordering,
        }
    });
}

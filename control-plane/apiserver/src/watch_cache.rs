//! The newest state and the recent events of every resource, in memory. One etcd watch over the whole prefix feeds all
//! caches, so that any write under the prefix is progress for all of them: bookmarks need none of etcd's progress
//! requests, which Debian's etcd 3.4 does not answer.
//!
//! Watchers read the event window at their own pace by position. One that is too slow finds its position gone and is
//! told 410 Expired; nothing is buffered for it. The window is bounded in changes and in bytes.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use etcd_client::{EventType, WatchOptions};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::object;
use crate::resources::{Registry, Resource};
use crate::storage::{self, Storage, StorageError};

/// Events kept per resource, and how much of JSON they may hold; in memory it takes some five times that.
const WINDOW: usize = 4096;
const WINDOW_BYTES: usize = 16 << 20;
/// So many are kept although they hold more, within `MOST_BYTES`: one writer of large objects must not push the
/// watchers of others out.
const LEAST: usize = 256;
const MOST_BYTES: usize = 2 * WINDOW_BYTES;
const RETRY: Duration = Duration::from_millis(500);

/// One version of an object, and its JSON once anyone asked for it.
#[derive(Debug)]
pub struct Item {
    /// The object, `resourceVersion` set.
    pub object: Value,
    /// Its revision.
    pub revision: i64,
    json: OnceLock<Bytes>,
}

impl Item {
    pub(crate) fn new(object: Value, revision: i64) -> Arc<Self> {
        Arc::new(Item {
            object,
            revision,
            json: OnceLock::new(),
        })
    }

    /// The object as JSON, encoded once for all watchers.
    pub fn json(&self) -> &Bytes {
        self.json.get_or_init(|| Bytes::from(self.object.to_string()))
    }
}

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Change {
    /// The state before; absent when the object was created.
    pub before: Option<Arc<Item>>,
    /// The state after; absent when the object was deleted.
    pub after: Option<Arc<Item>>,
    /// The revision of the change.
    pub revision: i64,
    /// Length of what was written.
    bytes: usize,
}

/// What a watcher finds at its position.
pub enum Batch {
    /// The next changes and the position after them.
    Changes(Vec<Change>, u64),
    /// The position has left the window, or the cache was reloaded.
    Gone,
}

/// The cache of one resource.
pub struct Cache {
    inner: RwLock<Inner>,
    position: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    objects: BTreeMap<String, Arc<Item>>,
    window: VecDeque<Change>,
    /// What the window's changes hold.
    bytes: usize,
    /// Position of the first change in the window; positions never repeat.
    first: u64,
    /// Every change after this revision is in the window.
    complete_after: i64,
}

impl Inner {
    fn shorten(&mut self) {
        while self.window.len() > WINDOW
            || self.bytes > MOST_BYTES
            || self.bytes > WINDOW_BYTES && self.window.len() > LEAST
        {
            let Some(dropped) = self.window.pop_front() else {
                return;
            };
            self.first += 1;
            self.bytes -= dropped.bytes;
            self.complete_after = dropped.revision;
        }
    }
}

impl Cache {
    fn new() -> Self {
        Cache {
            inner: RwLock::default(),
            position: watch::Sender::new(0),
        }
    }

    /// The newest known state of all objects.
    pub fn items(&self) -> Vec<Arc<Item>> {
        self.read().objects.values().cloned().collect()
    }

    /// How many objects there are whose etcd keys begin with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        let inner = self.read();
        let from = inner.objects.range(prefix.to_owned()..);
        from.take_while(|(key, _)| key.starts_with(prefix)).count()
    }

    /// The state of all objects and the position of the first change after it, taken together.
    pub fn snapshot(&self) -> (Vec<Arc<Item>>, u64) {
        let inner = self.read();
        (
            inner.objects.values().cloned().collect(),
            inner.first + inner.window.len() as u64,
        )
    }

    /// One object by its etcd key.
    pub fn get(&self, key: &str) -> Option<Arc<Item>> {
        self.read().objects.get(key).cloned()
    }

    /// The position of the first change after `revision`; `Err` with the oldest possible revision when the window no
    /// longer reaches back to it.
    pub fn position_after(&self, revision: i64) -> Result<u64, i64> {
        let inner = self.read();
        if revision < inner.complete_after {
            return Err(inner.complete_after);
        }
        let skipped = inner.window.partition_point(|change| change.revision <= revision);
        Ok(inner.first + skipped as u64)
    }

    /// Up to 256 changes from `position` on.
    pub fn changes_from(&self, position: u64) -> Batch {
        let inner = self.read();
        let Some(offset) = position.checked_sub(inner.first) else {
            return Batch::Gone;
        };
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        if offset > inner.window.len() {
            return Batch::Gone;
        }
        let changes: Vec<Change> = inner.window.iter().skip(offset).take(256).cloned().collect();
        let next = position + changes.len() as u64;
        Batch::Changes(changes, next)
    }

    /// Ends when a watcher's place has left the window.
    pub async fn overtakes(&self, place: &AtomicU64) {
        let mut changed = self.subscribe();
        loop {
            changed.mark_unchanged();
            if place.load(Ordering::Acquire) < self.read().first {
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Wakes when there are changes after a position.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.position.subscribe()
    }

    /// Starts over from a full list; watchers find their positions gone, since what happened meanwhile is unknown.
    fn reload(&self, objects: BTreeMap<String, Arc<Item>>, revision: i64) {
        let mut inner = self.write();
        let past_all = inner.first + inner.window.len() as u64 + 1;
        *inner = Inner {
            objects,
            window: VecDeque::new(),
            bytes: 0,
            first: past_all,
            complete_after: revision,
        };
        drop(inner);
        self.position.send_replace(past_all);
    }

    /// `bytes`: the length of what was written.
    fn apply(&self, key: String, object: Option<Value>, revision: i64, bytes: usize) {
        let mut inner = self.write();
        let after = object.map(|object| Item::new(object, revision));
        let before = match &after {
            Some(item) => inner.objects.insert(key, item.clone()),
            None => inner.objects.remove(&key),
        };
        inner.window.push_back(Change {
            before,
            after,
            revision,
            bytes,
        });
        inner.bytes += bytes;
        inner.shorten();
        let end = inner.first + inner.window.len() as u64;
        drop(inner);
        self.position.send_replace(end);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All caches and the task that feeds them.
pub struct Caches {
    by_prefix: HashMap<String, Arc<Cache>>,
    progress: AtomicI64,
    synced: watch::Sender<bool>,
}

impl Caches {
    /// Empty caches for every stored resource.
    pub fn new(registry: &Registry, storage: &Storage) -> Self {
        let prefixes = registry
            .stored()
            .map(|resource| storage.resource_prefix(resource));
        let by_prefix = prefixes.map(|prefix| (prefix, Arc::new(Cache::new()))).collect();
        Caches {
            by_prefix,
            progress: AtomicI64::new(0),
            synced: watch::Sender::new(false),
        }
    }

    /// The cache of a stored resource.
    pub fn of(&self, storage: &Storage, resource: &Resource) -> Arc<Cache> {
        let found = self.by_prefix.get(&storage.resource_prefix(resource));
        found
            .expect("invariant: there is a cache for every stored resource")
            .clone()
    }

    /// Every change up to this revision has been applied to all caches.
    pub fn progress(&self) -> i64 {
        self.progress.load(Ordering::Acquire)
    }

    /// Waits for the first full load, at most `limit`; false when it did not come.
    pub async fn wait_synced(&self, limit: Duration) -> bool {
        let mut synced = self.synced.subscribe();
        tokio::time::timeout(limit, synced.wait_for(|synced| *synced))
            .await
            .is_ok_and(|waited| waited.is_ok())
    }

    /// Follows etcd until shutdown; every failure is retried.
    pub async fn feed(&self, storage: Storage, shutdown: CancellationToken) {
        let follow = async {
            loop {
                if let Err(error) = self.load_and_follow(&storage).await {
                    tracing::warn!(%error, "watch of the store broke, trying again");
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = follow => {}
        }
    }

    /// Loads everything, then applies changes; a broken stream is resumed where it ended until etcd has compacted it.
    async fn load_and_follow(&self, storage: &Storage) -> Result<(), StorageError> {
        self.load(storage).await?;
        loop {
            match self.follow(storage).await {
                Ok(Ended::Resumable) => tokio::time::sleep(RETRY).await,
                Ok(Ended::Compacted) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "watch of the store broke, resuming");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn load(&self, storage: &Storage) -> Result<(), StorageError> {
        let (pairs, revision) = storage.list_pairs(&storage.root(), None).await?;
        let mut loaded: HashMap<&str, BTreeMap<String, Arc<Item>>> = HashMap::new();
        for (key, object) in pairs {
            if let Some((prefix, _)) = self.cache_of_key(storage, &key) {
                let at = object::revision(&object);
                loaded
                    .entry(prefix)
                    .or_default()
                    .insert(key, Item::new(object, at));
            }
        }
        for (prefix, cache) in &self.by_prefix {
            cache.reload(loaded.remove(prefix.as_str()).unwrap_or_default(), revision);
        }
        self.progress.store(revision, Ordering::Release);
        self.synced.send_replace(true);
        tracing::info!(revision, "caches loaded");
        Ok(())
    }

    async fn follow(&self, storage: &Storage) -> Result<Ended, StorageError> {
        // A store that was restored from a backup has gone back in time: a watch would wait for the lost revisions.
        if storage.current_revision().await? < self.progress() {
            return Ok(Ended::Compacted);
        }
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(self.progress() + 1);
        let mut client = storage.watch_client();
        let mut stream = client
            .watch(storage.root(), Some(options))
            .await
            .map_err(StorageError::Call)?;
        while let Some(response) = stream.message().await.map_err(StorageError::Call)? {
            if response.compact_revision() > 0 {
                return Ok(Ended::Compacted);
            }
            if response.canceled() {
                return Ok(Ended::Resumable);
            }
            let mut reached = self.progress();
            for event in response.events() {
                let Some(kv) = event.kv() else { continue };
                reached = reached.max(kv.mod_revision());
                self.apply(storage, event.event_type(), kv);
            }
            self.progress.store(reached, Ordering::Release);
        }
        Ok(Ended::Resumable)
    }

    fn apply(&self, storage: &Storage, event: EventType, kv: &etcd_client::KeyValue) {
        let key = storage::key_of(kv);
        let Some((_, cache)) = self.cache_of_key(storage, &key) else {
            return;
        };
        match event {
            EventType::Delete => cache.apply(key, None, kv.mod_revision(), 0),
            EventType::Put => match storage::decode(kv) {
                Ok(object) => cache.apply(key, Some(object), kv.mod_revision(), kv.value().len()),
                Err(error) => tracing::error!(%error, "stored object is not readable, skipped"),
            },
        }
    }

    /// `<root><group>/<plural>/…` belongs to the cache of `<root><group>/<plural>/`.
    fn cache_of_key(&self, storage: &Storage, key: &str) -> Option<(&str, &Arc<Cache>)> {
        let root = storage.root().len();
        let mut slashes = key.get(root..)?.match_indices('/').map(|(at, _)| at);
        let end = root + slashes.nth(1)? + 1;
        let (prefix, cache) = self.by_prefix.get_key_value(&key[..end])?;
        Some((prefix.as_str(), cache))
    }
}

enum Ended {
    Resumable,
    Compacted,
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use serde_json::json;

    use super::*;

    const SIZE: usize = 1 << 10;

    fn change(cache: &Cache, name: &str, revision: i64) {
        cache.apply(
            name.to_owned(),
            Some(json!({ "metadata": { "name": name } })),
            revision,
            SIZE,
        );
    }

    fn revisions(batch: Batch) -> Option<Vec<i64>> {
        match batch {
            Batch::Changes(changes, _) => Some(changes.iter().map(|change| change.revision).collect()),
            Batch::Gone => None,
        }
    }

    #[test]
    fn a_watch_starts_after_its_revision_or_is_refused() {
        let cache = Cache::new();
        cache.reload(BTreeMap::new(), 10);
        change(&cache, "a", 12);
        change(&cache, "b", 15);
        for (after, expected) in [
            (9, Err(10)),
            (10, Ok(vec![12, 15])),
            (12, Ok(vec![15])),
            (13, Ok(vec![15])),
            (15, Ok(vec![])),
            (99, Ok(vec![])),
        ] {
            let found = cache
                .position_after(after)
                .map(|position| revisions(cache.changes_from(position)));
            assert_eq!(found, expected.map(Some), "after {after}");
        }
    }

    #[test]
    fn a_slow_watcher_is_told_that_its_place_is_gone() {
        let cache = Cache::new();
        cache.reload(BTreeMap::new(), 0);
        let slow = cache.position_after(0).expect("the window is empty");
        for revision in 1..=(WINDOW as i64 + 1) {
            change(&cache, "a", revision);
        }
        assert_eq!(revisions(cache.changes_from(slow)), None);
        assert_eq!(cache.position_after(0), Err(1));
    }

    #[tokio::test]
    async fn large_changes_leave_the_window_sooner_and_overtake_who_stands_there() {
        let cache = Cache::new();
        cache.reload(BTreeMap::new(), 0);
        let place = AtomicU64::new(cache.position_after(0).expect("the window is empty"));
        let fitting = 16;
        for revision in 1..=fitting {
            cache.apply("a".to_owned(), None, revision, MOST_BYTES / 16);
        }
        let all: Vec<i64> = (1..=fitting).collect();
        assert_eq!(
            revisions(cache.changes_from(place.load(Ordering::Acquire))),
            Some(all)
        );
        assert!(cache.overtakes(&place).now_or_never().is_none());
        change(&cache, "b", fitting + 1);
        assert_eq!(cache.position_after(0), Err(1));
        cache.overtakes(&place).await;
    }

    #[test]
    fn fewer_large_changes_are_kept_than_small_ones_but_some_are() {
        for (size, expected) in [
            (SIZE, WINDOW),
            (WINDOW_BYTES / 1024, 1024),
            (WINDOW_BYTES / 128, LEAST),
            (WINDOW_BYTES / 16, 32),
        ] {
            let cache = Cache::new();
            for revision in 1..=2 * WINDOW as i64 {
                cache.apply("a".to_owned(), None, revision, size);
            }
            assert_eq!(cache.read().window.len(), expected, "changes of {size} bytes");
        }
    }

    #[test]
    fn objects_are_counted_below_a_prefix() {
        let cache = Cache::new();
        for (name, revision) in [
            ("/pods/a/x", 1),
            ("/pods/a/y", 2),
            ("/pods/ab/x", 3),
            ("/pods/b/x", 4),
        ] {
            change(&cache, name, revision);
        }
        let counts = ["/pods/", "/pods/a/", "/pods/b/", "/pods/c/"].map(|prefix| cache.count(prefix));
        assert_eq!(counts, [4, 2, 1, 0]);
    }

    #[test]
    fn a_reload_ends_all_watches() {
        let cache = Cache::new();
        cache.reload(BTreeMap::new(), 1);
        let position = cache.position_after(1).expect("nothing happened since");
        cache.reload(BTreeMap::new(), 5);
        assert_eq!(revisions(cache.changes_from(position)), None);
    }
}

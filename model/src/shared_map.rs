//! A map whose copies share structure.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Shards of a map; a change copies one of them. At 10,000 entries a shard holds about ten.
const SHARDS: usize = 1024;

/// Sorted by key, with no room to spare: an edit copies it anyway.
type Shard<K, V> = Arc<[(K, Arc<V>)]>;

/// A map that is cheap to copy and cheap to compare with an older copy of itself.
///
/// A copy costs `SHARDS` pointer copies; an edit copies the one shard it falls in; the comparison of two copies skips
/// every shard that both share. So work is proportional to what changed, and a reader that missed some states still
/// learns exactly what differs from the state it knows.
///
/// Iteration order is deterministic (same keys, same order, on every machine) but not sorted.
pub struct SharedMap<K, V> {
    shards: Arc<[Shard<K, V>]>,
    len: usize,
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self {
            shards: Arc::clone(&self.shards),
            len: self.len,
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        let empty: Shard<K, V> = Arc::default();
        Self {
            shards: std::iter::repeat_n(empty, SHARDS).collect(),
            len: 0,
        }
    }
}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.shards.iter().flat_map(|shard| shard.iter());
        f.debug_map()
            .entries(entries.map(|(key, value)| (key, value)))
            .finish()
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len
            && self
                .shards
                .iter()
                .zip(other.shards.iter())
                .all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + Hash + Clone, V: PartialEq> SharedMap<K, V> {
    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&Arc<V>> {
        value_in(&self.shards[shard_of(key)], key)
    }

    /// Puts `value` at `key` and returns whether that changed anything.
    pub fn insert(&mut self, key: K, value: V) -> bool {
        self.insert_shared(key, Arc::new(value))
    }

    /// The same for a value that is also somewhere else.
    pub fn insert_shared(&mut self, key: K, value: Arc<V>) -> bool {
        if self.get(&key).is_some_and(|old| *old == value) {
            return false;
        }
        let [before, behind] = self.around(&key);
        let shard: Shard<K, V> = [before, &[(key.clone(), value)], behind].concat().into();
        self.replace(&key, shard);
        true
    }

    /// Takes `key` out and returns what was there.
    pub fn remove(&mut self, key: &K) -> Option<Arc<V>> {
        let old = self.get(key)?.clone();
        let shard = self.around(key).concat().into();
        self.replace(key, shard);
        Some(old)
    }

    /// All entries, in an order that depends on the keys alone.
    pub fn iter(&self) -> impl Iterator<Item = (&K, &Arc<V>)> {
        let entries = self.shards.iter().flat_map(|shard| shard.iter());
        entries.map(|(key, value)| (key, value))
    }

    /// Keys whose value here is not the value in `older`: added, changed and removed ones.
    pub fn keys_changed_since<'a>(&'a self, older: &'a Self) -> Vec<&'a K> {
        let mut changed = Vec::new();
        for (new, old) in self
            .shards
            .iter()
            .zip(older.shards.iter())
            .filter(|(a, b)| !Arc::ptr_eq(a, b))
        {
            changed.extend(
                new.iter()
                    .filter(|(key, value)| !same(value_in(old, key), value))
                    .map(|(key, _)| key),
            );
            let old_keys = old.iter().map(|(key, _)| key);
            changed.extend(old_keys.filter(|key| value_in(new, key).is_none()));
        }
        changed
    }

    /// What of a key's shard is before the key, and what behind it.
    fn around(&self, key: &K) -> [&[(K, Arc<V>)]; 2] {
        let shard = &self.shards[shard_of(key)];
        let (before, _) = shard.split_at(shard.partition_point(|(other, _)| other < key));
        let (_, behind) = shard.split_at(shard.partition_point(|(other, _)| other <= key));
        [before, behind]
    }

    fn replace(&mut self, key: &K, shard: Shard<K, V>) {
        let place = &mut Arc::make_mut(&mut self.shards)[shard_of(key)];
        self.len = self.len + shard.len() - place.len();
        *place = shard;
    }
}

fn value_in<'a, K: Ord, V>(shard: &'a [(K, Arc<V>)], key: &K) -> Option<&'a Arc<V>> {
    let place = shard.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
    shard.get(place).map(|(_, value)| value)
}

fn same<V: PartialEq>(old: Option<&Arc<V>>, new: &Arc<V>) -> bool {
    old.is_some_and(|old| Arc::ptr_eq(old, new) || old == new)
}

fn shard_of(key: &impl Hash) -> usize {
    let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
    key.hash(&mut hasher);
    // invariant: the remainder is below SHARDS, which fits in usize.
    (hasher.finish() % SHARDS as u64) as usize
}

/// FNV-1a, 64 bits: the same on every run and machine, which `DefaultHasher` does not promise. Names in a cluster
/// come from its own API server; a flood of colliding names costs the flooder's cluster a longer shard, no more.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, u32)]) -> SharedMap<String, u32> {
        let mut map = SharedMap::default();
        for (key, value) in entries {
            map.insert((*key).to_owned(), *value);
        }
        map
    }

    #[test]
    fn an_edited_copy_leaves_the_original_and_tells_exactly_what_differs() {
        let before = map(&[("kept", 1), ("changed", 2), ("removed", 3)]);
        let mut after = before.clone();
        after.insert("changed".to_owned(), 20);
        after.insert("added".to_owned(), 4);
        assert_eq!(after.remove(&"removed".to_owned()).as_deref(), Some(&3));

        assert_eq!(before, map(&[("kept", 1), ("changed", 2), ("removed", 3)]));
        let mut keys = after.keys_changed_since(&before);
        keys.sort();
        assert_eq!(keys, ["added", "changed", "removed"]);
        assert_eq!(after.keys_changed_since(&after.clone()), Vec::<&String>::new());
    }

    #[test]
    fn putting_the_same_value_back_is_no_change() {
        let before = map(&[("a", 1), ("b", 2)]);
        let mut after = before.clone();
        assert!(!after.insert("a".to_owned(), 1));
        after.remove(&"b".to_owned());
        after.insert("b".to_owned(), 2);
        assert_eq!(after.keys_changed_since(&before), Vec::<&String>::new());
        assert_eq!(after, before);
    }

    #[test]
    fn length_follows_inserts_overwrites_and_removals() {
        let mut map = map(&[("a", 1), ("a", 2), ("b", 1)]);
        assert_eq!(map.len(), 2);
        assert_eq!(map.remove(&"nothing".to_owned()), None);
        map.remove(&"a".to_owned());
        map.remove(&"b".to_owned());
        assert!(map.is_empty());
    }
}

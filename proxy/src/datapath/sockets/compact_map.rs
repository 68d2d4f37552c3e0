//! A sorted map for very many small entries, such as one for each endpoint of a cluster.

use std::ops::RangeInclusive;

/// Entries of a run, at most.
const LONGEST_RUN: usize = 64;

/// Entries lie one behind the other in sorted runs that have no room to spare, where the nodes of a `BTreeMap` are half
/// empty after keys came in order. An edit copies one run.
#[derive(Clone, Debug)]
pub(super) struct CompactMap<K, V> {
    /// Never empty ones.
    runs: Vec<Box<[(K, V)]>>,
}

impl<K, V> Default for CompactMap<K, V> {
    fn default() -> Self {
        Self { runs: Vec::new() }
    }
}

impl<K: Ord + Copy, V: Copy> CompactMap<K, V> {
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        let run = self.runs.get(self.run_of(key))?;
        let place = run.binary_search_by_key(key, |(key, _)| *key).ok()?;
        run.get(place).map(|(_, value)| value)
    }

    /// Adds an entry, or replaces the one with that key.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let number = self.run_of(&key);
        let [before, after] = self.around(number, &key);
        // Where keys come in order, full runs stay behind.
        if before.len() >= LONGEST_RUN && after.is_empty() {
            self.runs.insert(number + 1, [(key, value)].into());
            return;
        }
        let run = [before, &[(key, value)], after].concat();
        self.replace(number, run);
    }

    /// The value of an entry, to be changed where it is.
    pub(super) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let number = self.run_of(key);
        let run = self.runs.get_mut(number)?;
        let place = run.binary_search_by_key(key, |(key, _)| *key).ok()?;
        run.get_mut(place).map(|(_, value)| value)
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&mut self, key: &K) {
        let number = self.run_of(key);
        let [before, after] = self.around(number, key);
        let run = [before, after].concat();
        self.replace(number, run);
    }

    /// All entries, sorted by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.runs.iter().flat_map(|run| run.iter())
    }

    /// The entries with keys in the range, sorted by key.
    pub(super) fn range(&self, keys: RangeInclusive<K>) -> impl Iterator<Item = &(K, V)> {
        let (first, last) = keys.into_inner();
        let number = self.run_of(&first);
        let [before, _] = self.around(number, &first);
        let runs = self.runs.iter().skip(number).flat_map(|run| run.iter());
        runs.skip(before.len()).take_while(move |(key, _)| *key <= last)
    }

    pub(super) fn last_key(&self) -> Option<&K> {
        self.runs.last()?.last().map(|(key, _)| key)
    }

    /// The run that has the key, if any has.
    fn run_of(&self, key: &K) -> usize {
        let run = self
            .runs
            .partition_point(|run| run.first().is_some_and(|(first, _)| first <= key));
        run.saturating_sub(1)
    }

    /// What of a run is before a key, and what behind it.
    fn around(&self, number: usize, key: &K) -> [&[(K, V)]; 2] {
        let run = self.runs.get(number).map_or(&[][..], AsRef::as_ref);
        let (before, from_key) = run.split_at(run.partition_point(|(other, _)| other < key));
        let behind = match from_key {
            [(other, _), behind @ ..] if other == key => behind,
            _ => from_key,
        };
        [before, behind]
    }

    fn replace(&mut self, number: usize, run: Vec<(K, V)>) {
        match self.runs.get_mut(number) {
            Some(place) if (1..=LONGEST_RUN).contains(&run.len()) => *place = run.into(),
            _ => {
                let is_long = run.len() > LONGEST_RUN;
                let (run, rest) = run.split_at(if is_long { run.len() / 2 } else { run.len() });
                let runs = [run, rest].into_iter().filter(|run| !run.is_empty());
                let place = number..self.runs.len().min(number + 1);
                self.runs.splice(place, runs.map(Box::from));
            }
        }
    }
}

impl<K: Ord + Copy, V: Copy> FromIterator<(K, V)> for CompactMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[track_caller]
    fn check(compact: &CompactMap<u32, u32>, model: &BTreeMap<u32, u32>) {
        assert!(
            compact
                .iter()
                .copied()
                .eq(model.iter().map(|(key, value)| (*key, *value)))
        );
        assert!(
            compact
                .runs
                .iter()
                .all(|run| !run.is_empty() && run.len() <= LONGEST_RUN)
        );
        assert_eq!(compact.last_key(), model.keys().next_back());
        for key in 0..2100 {
            assert_eq!(compact.get(&key), model.get(&key), "{key}");
        }
        for range in [0..=0, 5..=70, 1000..=2000, 2047..=3000, 3000..=4000] {
            let wanted = model.range(range.clone()).map(|(key, value)| (*key, *value));
            assert!(compact.range(range.clone()).copied().eq(wanted), "{range:?}");
        }
    }

    #[test]
    fn what_is_put_in_and_taken_out_in_any_order_is_there_and_is_not() {
        let in_order: Vec<u32> = (0..2048).collect();
        let scattered: Vec<u32> = in_order.iter().map(|step| step * 1021 % 2048).collect();
        for keys in [in_order, scattered] {
            let mut compact: CompactMap<u32, u32> = keys.iter().map(|key| (*key, 0)).collect();
            let mut model = BTreeMap::new();
            for key in &keys {
                match compact.get_mut(key) {
                    Some(value) if key % 2 == 0 => *value = key * 2,
                    _ => compact.insert(*key, key * 2),
                }
                assert_eq!(compact.get_mut(&5000), None);
                model.insert(*key, key * 2);
            }
            check(&compact, &model);
            for key in keys.iter().filter(|key| *key % 3 > 0) {
                compact.remove(key);
                compact.remove(&5000);
                model.remove(key);
            }
            check(&compact, &model);
            keys.iter().for_each(|key| compact.remove(key));
            check(&compact, &BTreeMap::new());
        }
    }

    #[test]
    fn keys_that_come_in_order_leave_full_runs() {
        let compact: CompactMap<u32, ()> = (0..640).map(|key| (key, ())).collect();
        assert_eq!(compact.runs.len(), 10);
    }
}

//! A sorted map from bytes to bytes, for very many short entries.
//!
//! What the kernel has is held for every endpoint of a cluster: 20 bytes of content each. A tree of vectors would take
//! five times that. Here entries lie one behind the other in runs of about a kilobyte; an edit copies one run.

/// Bytes of a run beyond which it becomes two.
const LONGEST_RUN: usize = 1024;

/// See the module. Keys have at most 255 bytes, values at most 65535.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PackedMap {
    /// Never empty ones; each entry is `[length of key:1][length of value:2 be] key value`.
    runs: Vec<Box<[u8]>>,
}

impl PackedMap {
    /// The value of a key.
    pub(super) fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let run = self.runs.get(self.run_of(key))?;
        Entries(run)
            .find(|(other, _)| *other >= key)
            .filter(|(other, _)| *other == key)
            .map(|(_, value)| value)
    }

    /// Adds an entry, or replaces the one with that key.
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        // The kernel's limits, since others may add elements too: a key has 64 bytes (NFT_DATA_VALUE_MAXLEN), that of a
        // range twice as many; the longest value is a verdict, a byte and the name of a chain (NFT_NAME_MAXLEN, 256).
        let key_length = u8::try_from(key.len()).expect("invariant: the kernel's keys are shorter");
        let value_length = u16::try_from(value.len()).expect("invariant: names of chains are shorter");
        let [high, low] = value_length.to_be_bytes();
        let number = self.run_of(key);
        let run = self.runs.get(number).map_or(&[][..], AsRef::as_ref);
        let (before, after) = around(run, key);
        let run = [before, &[key_length, high, low], key, value, after].concat();
        self.replace(number, run);
    }

    /// Removes an entry, if it is there.
    pub(super) fn remove(&mut self, key: &[u8]) {
        let number = self.run_of(key);
        if let Some(run) = self.runs.get(number) {
            let (before, after) = around(run, key);
            let run = [before, after].concat();
            self.replace(number, run);
        }
    }

    /// All entries, sorted by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.runs.iter().flat_map(|run| Entries(run))
    }

    /// The entries whose keys begin with `prefix`, sorted by key.
    pub(super) fn starting_with<P: AsRef<[u8]>>(
        &self,
        prefix: P,
    ) -> impl Iterator<Item = (&[u8], &[u8])> + use<'_, P> {
        let runs = self.runs.get(self.run_of(prefix.as_ref())..).unwrap_or_default();
        let entries = runs.iter().flat_map(|run| Entries(run));
        let mut from_prefix = entries.peekable();
        while from_prefix.next_if(|(key, _)| *key < prefix.as_ref()).is_some() {}
        from_prefix.take_while(move |(key, _)| key.starts_with(prefix.as_ref()))
    }

    /// The run that has the key, if any has.
    fn run_of(&self, key: &[u8]) -> usize {
        let run = self
            .runs
            .partition_point(|run| Entries(run).next().is_some_and(|(first, _)| first <= key));
        run.saturating_sub(1)
    }

    fn replace(&mut self, number: usize, run: Vec<u8>) {
        match self.runs.get_mut(number) {
            Some(place) if (1..=LONGEST_RUN).contains(&run.len()) => *place = run.into(),
            _ => {
                let (run, rest) = if run.len() > LONGEST_RUN {
                    halves(&run)
                } else {
                    (&run[..], &[][..])
                };
                let runs = [run, rest].into_iter().filter(|run| !run.is_empty());
                let place = number..self.runs.len().min(number + 1);
                self.runs.splice(place, runs.map(Box::from));
            }
        }
    }
}

/// The entries of a run.
#[derive(Clone)]
struct Entries<'a>(&'a [u8]);

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let ([key_length, high, low], rest) = self.0.split_first_chunk()?;
        let value_length = u16::from_be_bytes([*high, *low]);
        let (key, rest) = rest.split_at_checked(usize::from(*key_length))?;
        let (value, rest) = rest.split_at_checked(usize::from(value_length))?;
        self.0 = rest;
        Some((key, value))
    }
}

/// What of a run is before a key, and what behind it.
fn around<'a>(run: &'a [u8], key: &[u8]) -> (&'a [u8], &'a [u8]) {
    let mut from_key = Entries(run);
    while from_key.clone().next().is_some_and(|(other, _)| other < key) {
        from_key.next();
    }
    let before = run.len() - from_key.0.len();
    let mut behind = from_key.clone();
    let is_there = behind.next().is_some_and(|(other, _)| other == key);
    let behind = if is_there { behind } else { from_key };
    (run.split_at(before).0, behind.0)
}

/// A run in two, of about the same size.
fn halves(run: &[u8]) -> (&[u8], &[u8]) {
    let mut rest = Entries(run);
    while rest.0.len() > run.len() / 2 && rest.next().is_some() {}
    run.split_at(run.len() - rest.0.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    #[track_caller]
    fn check(packed: &PackedMap, model: &Model) {
        let owned = |(key, value): (&[u8], &[u8])| (key.to_vec(), value.to_vec());
        assert_eq!(packed.iter().map(owned).collect::<Model>(), *model);
        assert!(packed.iter().map(|(key, _)| key).is_sorted());
        assert!(
            packed
                .runs
                .iter()
                .all(|run| !run.is_empty() && run.len() <= LONGEST_RUN)
        );
        for (key, value) in model {
            assert_eq!(packed.get(key), Some(value.as_slice()));
        }
        for prefix in [&[][..], &[0], &[1, 2], &[7]] {
            let wanted = model.iter().filter(|(key, _)| key.starts_with(prefix));
            let wanted: Model = wanted.map(|(key, value)| (key.clone(), value.clone())).collect();
            assert_eq!(
                packed.starting_with(prefix).map(owned).collect::<Model>(),
                wanted,
                "{prefix:?}"
            );
        }
    }

    #[test]
    fn what_is_put_in_and_taken_out_in_any_order_is_there_and_is_not() {
        let (mut packed, mut model) = (PackedMap::default(), Model::new());
        // Every number below 2^11 once, scattered.
        let scattered = || (0..2048_u32).map(|step| step * 1021 % 2048);
        for number in scattered() {
            let (key, value) = (number.to_be_bytes()[2..].to_vec(), vec![7; number as usize % 9]);
            packed.insert(&key, &[1]);
            packed.insert(&key, &value);
            model.insert(key, value);
        }
        check(&packed, &model);
        assert_eq!(packed.get(&[9]), None);
        for number in scattered().filter(|number| number % 3 > 0) {
            let key = &number.to_be_bytes()[2..];
            packed.remove(key);
            packed.remove(&[9]);
            model.remove(key);
        }
        check(&packed, &model);
        for key in model.keys() {
            packed.remove(key);
        }
        assert_eq!(packed, PackedMap::default());
    }

    #[test]
    fn the_longest_names_of_chains_have_room() {
        let (mut packed, mut model) = (PackedMap::default(), Model::new());
        // A verdict's kind, and a name that nftables allows; three of them are more than a run.
        for (key, length) in [([1], 255), ([2], 256), ([3], 256), ([4], 256), ([5], 257)] {
            packed.insert(&key, &vec![7; length]);
            model.insert(key.to_vec(), vec![7; length]);
        }
        check(&packed, &model);
    }

    #[test]
    fn a_run_that_is_cut_off_ends_where_it_is() {
        let run = [&[1, 0, 1, 7, 7][..], &[1, 0, 9, 8, 7, 7, 7, 7, 7]].concat();
        assert_eq!(halves(&run), run.split_at(5));
    }
}

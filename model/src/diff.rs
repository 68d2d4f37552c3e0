//! Desired against actual: the one comparison that every reconciler uses.

use std::collections::BTreeMap;

/// What must be done to make `actual` into `desired`, each part sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diff<K, V> {
    /// Keys that are desired and absent.
    pub add: Vec<(K, V)>,
    /// Keys whose value differs: key, actual value, desired value.
    pub change: Vec<(K, V, V)>,
    /// Keys that are there and not desired.
    pub remove: Vec<(K, V)>,
}

impl<K: Ord + Clone, V: PartialEq + Clone> Diff<K, V> {
    /// Compares the two states.
    #[must_use]
    pub fn between(actual: &BTreeMap<K, V>, desired: &BTreeMap<K, V>) -> Self {
        let mut diff = Self {
            add: Vec::new(),
            change: Vec::new(),
            remove: Vec::new(),
        };
        for (key, want) in desired {
            match actual.get(key) {
                None => diff.add.push((key.clone(), want.clone())),
                Some(have) if have != want => diff.change.push((key.clone(), have.clone(), want.clone())),
                Some(_) => {}
            }
        }
        let unwanted = actual.iter().filter(|(key, _)| !desired.contains_key(key));
        diff.remove
            .extend(unwanted.map(|(key, have)| (key.clone(), have.clone())));
        diff
    }

    /// Whether the two states are equal.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.change.is_empty() && self.remove.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applying_a_diff_gives_the_desired_state_and_equal_states_differ_in_nothing() {
        let states = [
            BTreeMap::new(),
            BTreeMap::from([(1, 'a')]),
            BTreeMap::from([(1, 'b'), (2, 'a')]),
            BTreeMap::from([(2, 'a'), (3, 'c')]),
        ];
        for actual in &states {
            assert!(Diff::between(actual, actual).is_empty());
            for desired in &states {
                let diff = Diff::between(actual, desired);
                let mut state = actual.clone();
                for (key, have) in diff.remove {
                    assert_eq!(state.remove(&key), Some(have));
                }
                state.extend(diff.add);
                state.extend(diff.change.into_iter().map(|(key, _, want)| (key, want)));
                assert_eq!(&state, desired);
            }
        }
    }
}

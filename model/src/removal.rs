//! What an uninstallation did, for people and programs.

use std::collections::BTreeMap;
use std::error::Error;

use serde::Serialize;

use crate::with_causes;

/// What was taken away, what was left on purpose, and what could not be taken away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// How many of each kind, in the plural, were taken away; kinds of which there were none are absent.
    pub removed: BTreeMap<&'static str, usize>,
    /// What is still there on purpose, and why, one line each.
    pub left: Vec<String>,
    /// What is still there against our will, and why, one line each.
    pub failed: Vec<String>,
}

impl Removal {
    /// Adds how many of a kind were taken away, or why not: `true` is one.
    pub fn add<E: Error + 'static>(&mut self, kind: &'static str, result: Result<impl Into<usize>, E>) {
        match result.map(Into::into) {
            Ok(0) => {}
            Ok(count) => *self.removed.entry(kind).or_default() += count,
            Err(error) => self.failed.push(format!("{kind}: {}", with_causes(&error))),
        }
    }

    /// Adds each of a kind, so that those that failed hide none that were taken away.
    pub fn add_each<E: Error + 'static>(
        &mut self,
        kind: &'static str,
        results: impl IntoIterator<Item = Result<impl Into<usize>, E>>,
    ) {
        for result in results {
            self.add(kind, result);
        }
    }

    /// Adds what another part did.
    pub fn merge(&mut self, other: Self) {
        let Self {
            removed,
            left,
            failed,
        } = other;
        for (kind, count) in removed {
            *self.removed.entry(kind).or_default() += count;
        }
        self.left.extend(left);
        self.failed.extend(failed);
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn parts_add_up_and_a_kind_of_which_there_was_none_is_not_told() {
        let mut all = Removal::default();
        all.add("tables", Ok::<_, io::Error>(false));
        assert_eq!(all, Removal::default());
        all.add("tables", Ok::<_, io::Error>(true));
        let mut other = Removal::default();
        other.add("tables", Ok::<_, io::Error>(2_usize));
        let failure = || Err(io::Error::from_raw_os_error(1));
        other.add_each("files", [Ok(true), failure(), Ok(true), Ok(false), failure()]);
        all.merge(other);
        let expected = Removal {
            removed: [("tables", 3), ("files", 2)].into(),
            left: Vec::new(),
            failed: vec!["files: Operation not permitted (os error 1)".to_owned(); 2],
        };
        assert_eq!(all, expected);
    }
}

//! How far back history goes when the store compacts by itself.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{config::AutoCompaction, mvcc::Revision};

/// The longest time between two looks.
const LOOK: Duration = Duration::from_secs(10);

/// What was the newest revision when, as far back as it is needed.
#[derive(Debug)]
pub struct Retention {
    policy: AutoCompaction,
    seen: VecDeque<(Instant, Revision)>,
}

impl Retention {
    /// Nothing seen yet.
    pub fn new(policy: AutoCompaction) -> Self {
        Self {
            policy,
            seen: VecDeque::new(),
        }
    }

    /// How often to look; never, if the policy is off.
    pub fn interval(&self) -> Option<Duration> {
        match self.policy {
            AutoCompaction::Off => None,
            AutoCompaction::Revisions(_) => Some(LOOK),
            AutoCompaction::Age(age) => Some((age / 10).clamp(Duration::from_millis(1), LOOK)),
        }
    }

    /// The revision to compact at, now that `newest` is the newest.
    pub fn look(&mut self, now: Instant, newest: Revision) -> Option<Revision> {
        match self.policy {
            AutoCompaction::Off => None,
            AutoCompaction::Revisions(kept) => {
                Some(newest - Revision::from(kept)).filter(|revision| *revision > 0)
            }
            AutoCompaction::Age(age) => {
                self.seen.push_back((now, newest));
                let old = self
                    .seen
                    .partition_point(|(when, _)| now.saturating_duration_since(*when) >= age);
                self.seen.drain(..old).next_back().map(|(_, revision)| revision)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_keeps_so_many_revisions() {
        let now = Instant::now();
        let mut retention = Retention::new(AutoCompaction::Revisions(100));
        let targets = [50, 100, 101, 350].map(|newest| retention.look(now, newest));
        assert_eq!(targets, [None, None, Some(1), Some(250)]);
    }

    #[test]
    fn an_age_keeps_what_was_written_within_it() {
        let start = Instant::now();
        let mut retention = Retention::new(AutoCompaction::Age(Duration::from_secs(60)));
        let rows = [
            (0, 10, None),
            (30, 20, None),
            (60, 30, Some(10)),
            (80, 40, None),
            (125, 50, Some(30)),
        ];
        for (seconds, newest, expected) in rows {
            let target = retention.look(start + Duration::from_secs(seconds), newest);
            assert_eq!(target, expected, "after {seconds} s");
        }
    }
}

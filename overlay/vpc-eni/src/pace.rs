//! When to ask EC2 again: later each time that it did not work, and not in step with other nodes.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

/// The first wait after a failure.
const FIRST: Duration = Duration::from_millis(500);

/// The longest one. EC2 gives an account's calls back at so many a second: who asks every half minute at most takes
/// nothing away from others.
const LAST: Duration = Duration::from_secs(30);

/// What is waited for, by its subject.
#[derive(Debug)]
pub struct Pace<K> {
    waits: HashMap<K, Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    failures: u32,
    until: Instant,
}

impl<K> Default for Pace<K> {
    fn default() -> Self {
        Self {
            waits: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash> Pace<K> {
    /// A call failed: the next one waits longer than this one did, half of it by chance.
    pub fn failed(&mut self, subject: K, now: Instant) -> Duration {
        let wait = self.waits.entry(subject).or_insert(Wait {
            failures: 0,
            until: now,
        });
        let longest = FIRST.saturating_mul(1 << wait.failures.min(16)).min(LAST);
        let length = longest.mul_f64(rand::rng().random_range(0.5..=1.0));
        wait.failures += 1;
        wait.until = now + length;
        length
    }

    /// Nothing is asked before so long.
    pub fn hold(&mut self, subject: K, now: Instant, length: Duration) {
        let failures = self.waits.get(&subject).map_or(0, |wait| wait.failures);
        let until = now + length;
        self.waits.insert(subject, Wait { failures, until });
    }

    /// Forgets subjects that are no more.
    pub fn retain(&mut self, keep: impl Fn(&K) -> bool) {
        self.waits.retain(|subject, _| keep(subject));
    }

    /// It worked.
    pub fn worked(&mut self, subject: &K) {
        self.waits.remove(subject);
    }

    /// Whether it may be asked now.
    #[must_use]
    pub fn allows(&self, subject: &K, now: Instant) -> bool {
        self.waits.get(subject).is_none_or(|wait| wait.until <= now)
    }

    /// When the next wait that is not over ends.
    #[must_use]
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let waits = self.waits.values().map(|wait| wait.until);
        waits.filter(|until| *until > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_half_a_minute_and_end_with_the_first_success() {
        let mut pace = Pace::default();
        let now = Instant::now();
        for most in [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000] {
            let wait = pace.failed("x", now);
            let most = Duration::from_millis(most);
            assert!((most / 2..=most).contains(&wait), "{wait:?} of {most:?}");
            assert_eq!((pace.allows(&"x", now), pace.allows(&"y", now)), (false, true));
            assert_eq!(
                (pace.next(now), pace.allows(&"x", now + wait)),
                (Some(now + wait), true)
            );
        }
        pace.worked(&"x");
        assert_eq!((pace.allows(&"x", now), pace.next(now)), (true, None));
        assert!(pace.failed("x", now) <= FIRST);
    }
}

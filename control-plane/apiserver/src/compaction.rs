//! Which history etcd may forget.

use std::time::{Duration, Instant};

/// Upstream's `--etcd-compaction-interval`: history of one interval at least is kept, of two at most.
const INTERVAL: Duration = Duration::from_secs(300);

/// When there are more revisions than this, only the newer half of so many is kept, however short the time in which
/// they were written: the bundled store holds them in memory. The number is ours: of objects of 2 KiB it is 200 MiB.
/// Upstream knows intervals only. A list in parts that is continued later than that begins anew.
const MOST_REVISIONS: i64 = 100_000;

/// How often to look.
pub const LOOK: Duration = Duration::from_secs(10);

/// What was the newest revision when, and what is forgotten.
#[derive(Debug)]
pub struct Compaction {
    interval_began: Instant,
    newest_then: i64,
    forgotten: i64,
}

impl Compaction {
    /// Nothing known yet.
    pub fn new(now: Instant) -> Self {
        Self {
            interval_began: now,
            newest_then: 0,
            forgotten: 0,
        }
    }

    /// The revision to compact at, now that `newest` is the newest.
    pub fn look(&mut self, now: Instant, newest: i64) -> Option<i64> {
        // A store that was restored from a backup has gone back in time.
        self.forgotten = self.forgotten.min(newest);
        self.newest_then = self.newest_then.min(newest);
        let mut target = 0;
        if now.saturating_duration_since(self.interval_began) >= INTERVAL {
            target = self.newest_then;
            (self.interval_began, self.newest_then) = (now, newest);
        }
        if newest - self.forgotten > MOST_REVISIONS {
            target = target.max(newest - MOST_REVISIONS / 2);
        }
        if target <= self.forgotten {
            return None;
        }
        self.forgotten = target;
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_kept_but_no_more_than_so_many_revisions() {
        let start = Instant::now();
        let mut compaction = Compaction::new(start);
        let rows = [
            (0, 10, None),
            (290, 500, None),
            (300, 600, None),
            (450, 700, None),
            (600, 800, Some(600)),
            (610, 100_601, Some(50_601)),
            (620, 150_000, None),
            (630, 150_602, Some(100_602)),
            (900, 150_700, None),
            (1200, 150_800, Some(150_700)),
            (1210, 20, None),
            (1500, 30, None),
            (1800, 30, Some(30)),
            (2100, 30, None),
        ];
        for (seconds, newest, expected) in rows {
            let target = compaction.look(start + Duration::from_secs(seconds), newest);
            assert_eq!(target, expected, "after {seconds} s");
        }
    }
}

//! How often what changed is programmed.

use std::time::{Duration, Instant};

/// Passes over what changed: the first at once, and each other one at the earliest `period` after the one before it
/// began. What changes in between is one pass.
#[derive(Clone, Copy, Debug)]
pub struct Pacing {
    period: Duration,
    began: Option<Instant>,
}

impl Pacing {
    /// No pass has begun yet.
    #[must_use]
    pub const fn new(period: Duration) -> Self {
        Self { period, began: None }
    }

    /// Another period, from the pass that began last.
    pub fn set_period(&mut self, period: Duration) {
        self.period = period;
    }

    /// When the next pass may begin: `now`, or later.
    #[must_use]
    pub fn next(&self, now: Instant) -> Instant {
        self.began.map_or(now, |began| now.max(began + self.period))
    }

    /// A pass begins.
    pub fn begin(&mut self, now: Instant) {
        self.began = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Changes come at these times, in milliseconds; passes begin at those.
    #[track_caller]
    fn check(period: u64, changes: &[u64], expected: &[u64]) {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut pacing = Pacing::new(Duration::from_millis(period));
        let mut passes: Vec<u64> = Vec::new();
        for change in changes {
            // A pass that began after the change has it; what waits for a pass waits with what came before it.
            if passes.last().is_some_and(|last| last >= change) {
                continue;
            }
            let pass = pacing.next(at(*change));
            pacing.begin(pass);
            let pass = pass.duration_since(start).as_millis();
            passes.push(u64::try_from(pass).expect("short"));
        }
        assert_eq!(passes, expected, "for changes at {changes:?}");
    }

    #[test]
    fn a_change_that_comes_alone_is_programmed_at_once_and_a_burst_in_one_pass_for_each_period() {
        check(10, &[5], &[5]);
        check(10, &[0, 1, 2, 9], &[0, 10]);
        check(10, &[0, 10, 20], &[0, 10, 20]);
        check(10, &[0, 3, 11, 12, 25, 100], &[0, 10, 20, 30, 100]);
        check(1000, &[0, 1, 999, 1000, 1001], &[0, 1000, 2000]);
    }

    #[test]
    fn without_a_period_every_change_is_programmed_at_once() {
        check(0, &[0, 1, 2, 2, 3], &[0, 1, 2, 3]);
    }
}

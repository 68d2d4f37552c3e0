//! How long to wait before trying again.

use std::time::Duration;

use rand::Rng;

/// Exponential back-off with jitter: each delay is twice the one before, up to a limit, and then shortened by a
/// random part of up to half, so that the agents of a cluster do not return to a server all at once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `first` and never exceeds `limit`.
    #[must_use]
    pub const fn new(first: Duration, limit: Duration) -> Self {
        Self {
            first,
            limit,
            next: first,
        }
    }

    /// The delay before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (self.next * 2).min(self.limit);
        delay.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_with_at_most_half_taken_off() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        for full in [1, 2, 4, 5, 5] {
            let full = Duration::from_secs(full);
            let delay = backoff.next_delay();
            assert!(
                full / 2 <= delay && delay <= full,
                "{delay:?} is not half to all of {full:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_delay() <= Duration::from_secs(1));
    }

    #[test]
    fn fifty_agents_come_back_to_a_server_over_ten_seconds_or_more() {
        let outage = Duration::from_secs(120);
        let back = |_| {
            let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
            let mut at = Duration::ZERO;
            while at < outage {
                at += backoff.next_delay();
            }
            at
        };
        let mut back: Vec<_> = (0..50).map(back).collect();
        back.sort_unstable();
        let [first, .., last] = back[..] else {
            unreachable!("there are fifty")
        };
        // All fifty by chance within ten of thirty seconds: once in 10^20 runs.
        assert!(last - first >= Duration::from_secs(10), "{back:?}");
        assert!(last - outage <= Duration::from_secs(30), "{back:?}");
    }
}

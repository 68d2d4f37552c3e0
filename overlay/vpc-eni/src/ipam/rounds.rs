//! When it is time for what nothing hints at: as often as it was said, and at other seconds than on other nodes, of which
//! a thousand may have started together.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use crate::ec2::InstanceId;

/// A node's times.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    began: Instant,
    /// What tells this node from others.
    number: u64,
}

impl Rounds {
    pub(super) fn new(instance: &InstanceId, began: Instant) -> Self {
        let mut hasher = DefaultHasher::new();
        instance.hash(&mut hasher);
        Self {
            began,
            number: hasher.finish(),
        }
    }

    /// The next time of something that is done so often: at the same offset in each period. It is at most a period away,
    /// so that something that was done at another time is not left for longer.
    pub(super) fn next(self, every: Duration, now: Instant) -> Instant {
        let period = u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1);
        let offset = self.number % period;
        let passed = now.saturating_duration_since(self.began).as_millis();
        let passed = u64::try_from(passed).unwrap_or(u64::MAX);
        let periods = passed.checked_sub(offset).map_or(0, |passed| passed / period + 1);
        self.began + Duration::from_millis(offset.saturating_add(periods.saturating_mul(period)))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const PERIOD: Duration = Duration::from_secs(1_200);

    fn rounds(number: u64) -> Rounds {
        Rounds {
            began: Instant::now(),
            number,
        }
    }

    #[test]
    fn a_round_comes_once_in_each_period() {
        let rounds = rounds(1_200_000 * 5 + 300_000);
        for (now, next) in [
            (0, 300_000),
            (299_999, 300_000),
            (300_000, 1_500_000),
            (300_001, 1_500_000),
            (1_499_999, 1_500_000),
            (1_500_000, 2_700_000),
            (120_000_000, 120_300_000),
        ] {
            let at = |milliseconds| rounds.began + Duration::from_millis(milliseconds);
            assert_eq!(rounds.next(PERIOD, at(now)), at(next), "{now}");
        }
    }

    #[test]
    fn a_thousand_nodes_that_start_together_are_spread_over_the_period() {
        let began = Instant::now();
        let mut seconds: BTreeMap<u64, usize> = BTreeMap::new();
        for node in 0..1_000 {
            let rounds = Rounds::new(&InstanceId(format!("i-{node:017x}")), began);
            let next = rounds.next(PERIOD, began) - began;
            assert!(next <= PERIOD, "{next:?}");
            *seconds.entry(next.as_secs()).or_default() += 1;
        }
        let most = seconds.values().max().copied().unwrap_or_default();
        // By chance no second has many more than the one that each has on average.
        assert!(most <= 8, "{most} in one second of {}", seconds.len());
        // The next program of the same node is as far from the others as this one.
        let again = Rounds::new(&InstanceId::from("i-00000000000000001"), began);
        let first = Rounds::new(&InstanceId::from("i-00000000000000001"), began);
        assert_eq!(again.next(PERIOD, began), first.next(PERIOD, began));
    }
}

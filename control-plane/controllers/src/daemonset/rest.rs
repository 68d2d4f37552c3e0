//! How long a failed pod stays before it is replaced: a node whose pods fail at once gets a new one ever more seldom.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Upstream's `failedPodsBackoff`.
const FIRST: Duration = Duration::from_secs(1);
const LAST: Duration = Duration::from_mins(15);

struct Rest {
    since: Instant,
    delay: Duration,
}

/// Rests by the uid of a DaemonSet and the name of a node.
#[derive(Default)]
pub(crate) struct Rests(Mutex<BTreeMap<(String, String), Rest>>);

impl Rests {
    /// How long each node of a DaemonSet still rests.
    pub fn left(&self, set: &str, now: Instant) -> BTreeMap<String, Duration> {
        let rests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_set = rests.iter().filter(|((uid, _), _)| uid == set);
        of_set
            .filter_map(|((_, node), rest)| {
                let left = rest.delay.checked_sub(now.duration_since(rest.since))?;
                (!left.is_zero()).then(|| (node.clone(), left))
            })
            .collect()
    }

    /// Notes that a failed pod was replaced. What has been well for twice the longest rest begins anew.
    pub fn note(&self, set: &str, node: &str, now: Instant) {
        let mut rests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rests.retain(|_, rest| now.duration_since(rest.since) <= 2 * LAST);
        let rest = rests.entry((set.to_owned(), node.to_owned()));
        let rest = rest.and_modify(|rest| rest.delay = (2 * rest.delay).min(LAST));
        rest.or_insert(Rest {
            since: now,
            delay: FIRST,
        })
        .since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_pod_stays_longer_each_time_until_the_node_was_well_for_long() {
        let (rests, mut now) = (Rests::default(), Instant::now());
        let left = |rests: &Rests, now| rests.left("ds", now).get("n1").copied();
        assert_eq!(left(&rests, now), None);
        for secs in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            rests.note("ds", "n1", now);
            assert_eq!(left(&rests, now), Some(Duration::from_secs(secs)));
            assert_eq!(rests.left("other", now), BTreeMap::new());
            now += Duration::from_secs(secs);
            assert_eq!(left(&rests, now), None);
        }
        now += 2 * LAST;
        rests.note("ds", "n1", now);
        assert_eq!(left(&rests, now), Some(FIRST));
    }
}

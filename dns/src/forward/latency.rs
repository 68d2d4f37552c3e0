//! How long an upstream takes, and so how long its answer is waited for before somebody else is asked as well.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Sooner nobody is asked as well: a first answer of many takes as long as the upstream's own upstreams.
const LEAST: Duration = Duration::from_millis(200);
/// Later than this it is a matter of being dead, not of being slow.
pub(super) const MOST: Duration = Duration::from_millis(500);

/// The mean of what was seen and the mean deviation from it, both moving, as TCP has them (RFC 6298 §2).
#[derive(Debug, Default)]
pub(super) struct Latency(Mutex<Option<Seen>>);

#[derive(Clone, Copy, Debug)]
struct Seen {
    mean: Duration,
    deviation: Duration,
}

impl Latency {
    /// Takes in what one answer took, or how long it has been waited for in vain.
    pub(super) fn note(&self, took: Duration) {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *seen = Some(match *seen {
            None => Seen {
                mean: took,
                deviation: took / 2,
            },
            Some(Seen { mean, deviation }) => Seen {
                mean: (mean * 7 + took) / 8,
                deviation: (deviation * 3 + mean.abs_diff(took)) / 4,
            },
        });
    }

    /// What few answers take longer than. Of an upstream that was never asked: [`MOST`].
    pub(super) fn patience(&self) -> Duration {
        let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.map_or(MOST, |Seen { mean, deviation }| {
            (mean + deviation * 4).clamp(LEAST, MOST)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_what_is_usual_and_stays_within_its_bounds() {
        let millis = Duration::from_millis;
        for (what, answers, least, most) in [
            ("never asked", &[][..], 500, 500),
            ("fast", &[1; 50], 200, 200),
            ("even", &[300; 50], 300, 302),
            ("one of five slow", &[1, 1, 1, 1, 200].repeat(10)[..], 250, 499),
            ("fast, then slow", &[[1; 50], [400; 50]].concat()[..], 395, 410),
            ("hopeless", &[4000; 3], 500, 500),
        ] {
            let latency = Latency::default();
            for took in answers {
                latency.note(millis(*took));
            }
            let patience = latency.patience();
            assert!(
                (millis(least)..=millis(most)).contains(&patience),
                "{what}: {patience:?}"
            );
        }
    }
}

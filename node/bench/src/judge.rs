//! What samples come to, in a word.

use serde::{Deserialize, Serialize};

use crate::results::{Arm, Experiment, Metric};
use crate::stats::{Estimate, ratio};

/// How an arm stands to the one that it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It takes less.
    Less,
    /// It takes more.
    More,
    /// No difference is seen: there may be one that is smaller than the noise.
    Same,
}

/// What is claimed of an arm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// Its ratio to the other arm.
    pub ratio: Estimate,
    /// What that is called.
    pub verdict: Verdict,
}

/// Less than this is nobody's: arms that are the same differ by almost a per cent from one building to the next, whatever
/// the number of rounds (`tests/recorded.json`: processor time of `udp-rr`).
const LEAST: f64 = 0.01;

/// A ratio is a difference where its interval is without 1, and where it is further from 1 than the interval of equal arms
/// reaches: `again` is the ratio of an arm to itself, measured once more in the same rounds.
#[must_use]
pub fn judge(ratio: &Estimate, again: Option<&Estimate>) -> Verdict {
    let by_chance = again.map_or(LEAST, |again| again.reach(1.0).max(LEAST));
    if ratio.holds(1.0) || (ratio.middle - 1.0).abs() <= by_chance {
        return Verdict::Same;
    }
    if ratio.middle < 1.0 {
        Verdict::Less
    } else {
        Verdict::More
    }
}

impl Experiment {
    /// The ratio of the pair of equal arms, where there is one.
    #[must_use]
    pub fn again(&self, metric: Metric) -> Option<Estimate> {
        let again = self.arms.iter().find(|arm| arm.again.is_some())?;
        let of = self.arm(again.again.as_deref()?)?;
        ratio(again.samples.get(&metric)?, of.samples.get(&metric)?)
    }

    /// How an arm stands to another one of these rounds.
    #[must_use]
    pub fn judged(&self, arm: &Arm, base: &Arm, metric: Metric) -> Option<Judged> {
        let ratio = ratio(arm.samples.get(&metric)?, base.samples.get(&metric)?)?;
        let verdict = judge(&ratio, self.again(metric).as_ref());
        Some(Judged { ratio, verdict })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn estimate(low: f64, middle: f64, high: f64) -> Estimate {
        Estimate { middle, low, high }
    }

    #[test]
    fn a_difference_is_what_neither_chance_nor_equal_arms_explain() {
        let quiet = estimate(0.998, 1.001, 1.004);
        let loud = estimate(0.93, 1.01, 1.08);
        for (ratio, again, verdict) in [
            (estimate(1.04, 1.06, 1.08), Some(quiet), Verdict::More),
            (estimate(0.90, 0.92, 0.94), Some(quiet), Verdict::Less),
            (estimate(0.99, 1.06, 1.08), Some(quiet), Verdict::Same),
            (estimate(1.001, 1.003, 1.005), Some(quiet), Verdict::Same),
            (estimate(1.04, 1.06, 1.08), Some(loud), Verdict::Same),
            (estimate(1.08, 1.10, 1.12), Some(loud), Verdict::More),
            (estimate(1.04, 1.06, 1.08), None, Verdict::More),
            (estimate(1.0, 1.06, 1.08), None, Verdict::Same),
            (estimate(1.001, 1.009, 1.012), None, Verdict::Same),
        ] {
            assert_eq!(judge(&ratio, again.as_ref()), verdict, "{ratio:?} {again:?}");
        }
    }
}

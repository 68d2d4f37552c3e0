//! What samples say, and how sure that is.
//!
//! Arms are compared in pairs, round by round, since a machine's other work changes from round to round by more than the
//! arms differ. The median of the ratios is the estimate; its interval comes from samples drawn of the rounds themselves
//! (the percentile bootstrap, Efron 1979), which asks for no shape of their distribution.

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom as _;
use serde::{Deserialize, Serialize};

/// How often the rounds are drawn anew.
const DRAWS: usize = 1_000;

/// The same rounds always get the same interval.
const SEED: u64 = 0x0ca5_e3a7;

/// How many of a hundred intervals are to hold the truth.
const SURE: f64 = 0.95;

/// An estimate, and where it is by chance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The estimate.
    pub middle: f64,
    /// Of 95 % of intervals the lower end.
    pub low: f64,
    /// Their upper end.
    pub high: f64,
}

impl Estimate {
    /// Whether the interval holds a value.
    #[must_use]
    pub fn holds(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// How far the interval reaches from a value, at most.
    #[must_use]
    pub fn reach(&self, value: f64) -> f64 {
        (self.low - value).abs().max((self.high - value).abs())
    }
}

/// The value below which a share of the samples is (nearest rank); `None` of no samples.
#[must_use]
pub fn quantile(samples: &[f64], share: f64) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let rank = (share.clamp(0.0, 1.0) * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

/// The middle of the samples, or of the two in the middle; `None` of no samples.
#[must_use]
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    middle_of(&mut sorted)
}

fn middle_of(samples: &mut [f64]) -> Option<f64> {
    let half = samples.len() / 2;
    if samples.is_empty() {
        return None;
    }
    let is_even = samples.len().is_multiple_of(2);
    let (below, upper, _) = samples.select_nth_unstable_by(half, f64::total_cmp);
    let lower = below.iter().copied().max_by(f64::total_cmp);
    Some(match lower.filter(|_| is_even) {
        Some(lower) => f64::midpoint(lower, *upper),
        None => *upper,
    })
}

/// The median, with its interval; `None` of no samples.
#[must_use]
pub fn estimate(samples: &[f64]) -> Option<Estimate> {
    let middle = median(samples)?;
    let mut random = SmallRng::seed_from_u64(SEED);
    let medians = (0..DRAWS).filter_map(|_| drawn_median(samples, &mut random));
    interval(middle, medians.collect())
}

/// The median of as many samples as there are, drawn of them with replacement.
fn drawn_median(samples: &[f64], random: &mut SmallRng) -> Option<f64> {
    let mut drawn: Vec<f64> = samples
        .iter()
        .filter_map(|_| samples.choose(random).copied())
        .collect();
    middle_of(&mut drawn)
}

fn interval(middle: f64, drawn: Vec<f64>) -> Option<Estimate> {
    let beyond = (1.0 - SURE) / 2.0;
    Some(Estimate {
        middle,
        low: quantile(&drawn, beyond)?,
        high: quantile(&drawn, 1.0 - beyond)?,
    })
}

/// How one arm stands to another, by the rounds that both have: 1.1 is a tenth more. `None` without such rounds.
#[must_use]
pub fn ratio(of: &[f64], to: &[f64]) -> Option<Estimate> {
    let pairs = of.iter().zip(to).filter(|(_, to)| **to > 0.0);
    let ratios: Vec<f64> = pairs.map(|(of, to)| of / to).collect();
    estimate(&ratios)
}

/// How the median of samples stands to that of others that were not measured in the same rounds.
#[must_use]
pub fn ratio_of_medians(of: &[f64], to: &[f64]) -> Option<Estimate> {
    let middle = median(of)? / median(to).filter(|to| *to > 0.0)?;
    let mut random = SmallRng::seed_from_u64(SEED);
    let drawn = (0..DRAWS).filter_map(|_| {
        let (of, to) = (drawn_median(of, &mut random)?, drawn_median(to, &mut random)?);
        (to > 0.0).then(|| of / to)
    });
    interval(middle, drawn.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples_and_the_median_is_the_middle() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(
            [0.0, 0.01, 0.25, 0.26, 0.5, 0.99, 1.0].map(|share| quantile(&samples, share)),
            [1.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0].map(Some)
        );
        assert_eq!(median(&samples), Some(2.5));
        assert_eq!(median(&samples[..3]), Some(3.0));
        assert_eq!(median(&samples[..1]), Some(4.0));
        assert_eq!(
            (median(&[]), quantile(&[], 0.5), estimate(&[])),
            (None, None, None)
        );
    }

    #[test]
    fn an_interval_holds_the_estimate_and_is_the_same_each_time() {
        let samples = [1.0, 1.1, 0.9, 1.05, 0.95, 1.2, 0.8, 1.0];
        let first = estimate(&samples).expect("samples");
        assert_eq!(estimate(&samples), Some(first));
        assert!(
            first.low <= first.middle && first.middle <= first.high,
            "{first:?}"
        );
        let alike = estimate(&[2.0; 12]).expect("samples");
        assert_eq!((alike.low, alike.middle, alike.high), (2.0, 2.0, 2.0));
    }

    #[test]
    fn a_drift_that_takes_both_arms_is_no_difference() {
        let to: Vec<f64> = (1..=12).map(f64::from).collect();
        let of: Vec<f64> = to.iter().map(|time| time * 1.25).collect();
        let ratio = ratio(&of, &to).expect("rounds");
        assert_eq!((ratio.low, ratio.middle, ratio.high), (1.25, 1.25, 1.25));
    }

    #[test]
    fn medians_of_two_runs_are_compared_without_pairs() {
        let to = [1.0, 2.0, 3.0];
        let found = ratio_of_medians(&[4.0, 4.0, 4.0, 4.0], &to).expect("samples");
        assert_eq!(found.middle, 2.0);
        assert!(found.low < 2.0 && found.high > 2.0, "{found:?}");
        assert_eq!(ratio_of_medians(&[], &to), None);
        assert_eq!(ratio_of_medians(&to, &[0.0]), None);
    }

    #[test]
    fn rounds_that_one_arm_lacks_and_times_of_nothing_are_left_out() {
        let found = ratio(&[2.0, 9.0, 4.0, 100.0], &[1.0, 0.0, 2.0]).expect("rounds");
        assert_eq!(found.middle, 2.0);
        assert_eq!(ratio(&[1.0], &[]), None);
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }
}

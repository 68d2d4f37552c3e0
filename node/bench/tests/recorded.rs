//! How often the judge is wrong, on samples that were recorded: 200 rounds of three arms that are the same (`routed`), on
//! two processors while a build ran beside them (2026-12-01, Linux 6.18).

use std::collections::BTreeMap;

use bench::judge::{Verdict, judge};
use bench::stats::ratio;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use rand::seq::index::sample;

/// As many as a run has by default, and as few as find a tenth by p01 alone.
const ROUNDS: usize = 48;
const FEW: usize = 12;

/// Runs that are made of the recorded rounds.
const RUNS: usize = 100;

/// Three arms, by metric and experiment.
type Recorded = BTreeMap<String, BTreeMap<String, [Vec<f64>; 3]>>;

fn recorded() -> Recorded {
    serde_json::from_str(include_str!("recorded.json")).expect("three arms each")
}

/// The share of runs of so many rounds in which an arm that takes so many times as long as it did is said to take more, or
/// less.
fn claimed([base, arm, again]: &[Vec<f64>; 3], rounds: usize, times: f64) -> f64 {
    let mut random = SmallRng::seed_from_u64(12);
    let claims = (0..RUNS).filter(|_| {
        let rounds = sample(&mut random, base.len(), rounds);
        let of = |samples: &[f64], times: f64| -> Vec<f64> {
            rounds.iter().map(|round| times * samples[round]).collect()
        };
        let base = of(base, 1.0);
        let found = ratio(&of(arm, times), &base).expect("rounds");
        let chance = ratio(&of(again, 1.0), &base).expect("rounds");
        judge(&found, Some(&chance)) != Verdict::Same
    });
    claims.count() as f64 / RUNS as f64
}

#[test]
fn of_equal_arms_a_difference_is_claimed_in_one_of_twenty_runs_at_most() {
    for (experiment, metrics) in recorded() {
        for (metric, arms) in metrics {
            for rounds in [FEW, ROUNDS] {
                let wrong = claimed(&arms, rounds, 1.0);
                assert!(wrong <= 0.05, "{experiment} {metric}, {rounds} rounds: {wrong}");
            }
        }
    }
}

#[test]
fn a_tenth_more_or_less_is_seen_in_nineteen_of_twenty_runs() {
    for (experiment, metrics) in recorded() {
        for (metric, arms) in metrics {
            let rounds = if metric == "p01" { FEW } else { ROUNDS };
            for times in [1.1, 1.0 / 1.1] {
                let seen = claimed(&arms, rounds, times);
                assert!(seen >= 0.95, "{experiment} {metric} {times}: {seen}");
            }
        }
    }
}

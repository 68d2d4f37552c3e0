//! What changed between two runs, beyond noise.
//!
//! Two runs share no rounds. What they share is the arm that each compares with: the ratios to it are compared where both
//! have it, so that a machine that was slower as a whole changed nothing.

use crate::judge::{Verdict, judge};
use crate::results::{Experiment, Metric, Results};
use crate::stats::{Estimate, ratio_of_medians};

/// Something that both runs have.
#[derive(Clone, Debug, PartialEq)]
pub struct Changed {
    /// Of which experiment.
    pub experiment: String,
    /// Which arm.
    pub arm: String,
    /// By which metric.
    pub metric: Metric,
    /// The second run's to the first one's.
    pub ratio: Estimate,
    /// What that is called.
    pub verdict: Verdict,
}

/// All that both have, and what one of them lacks, in words.
#[must_use]
pub fn compare(before: &Results, after: &Results) -> (Vec<Changed>, Vec<String>) {
    let (mut changed, mut lacking) = (Vec::new(), Vec::new());
    for old in &before.experiments {
        let found = after.experiments.iter().find(|new| new.name == old.name);
        let Some(new) = found else {
            lacking.push(format!("{}: the second run has it not", old.name));
            continue;
        };
        for arm in &old.arms {
            if new.arm(&arm.name).is_none() {
                lacking.push(format!("{} {}: the second run has it not", old.name, arm.name));
            }
            changed.extend(of_arm(old, new, &arm.name));
        }
        let fresh = new.arms.iter().filter(|arm| old.arm(&arm.name).is_none());
        lacking.extend(fresh.map(|arm| format!("{} {}: the first run has it not", old.name, arm.name)));
    }
    let is_new = |new: &&Experiment| before.experiments.iter().all(|old| old.name != new.name);
    let fresh = after.experiments.iter().filter(is_new);
    lacking.extend(fresh.map(|new| format!("{}: the first run has it not", new.name)));
    (changed, lacking)
}

fn of_arm<'a>(
    old: &'a Experiment,
    new: &'a Experiment,
    arm: &'a str,
) -> impl Iterator<Item = Changed> + use<'a> {
    let metrics = Metric::ALL.into_iter().filter(|metric| metric.is_headline());
    metrics.filter_map(move |metric| {
        let to_base = |experiment: &Experiment| -> Option<Vec<f64>> {
            let base = experiment.arms.first()?.samples.get(&metric)?;
            let own = experiment.arm(arm)?.samples.get(&metric)?;
            let pairs = own.iter().zip(base).filter(|(_, base)| **base > 0.0);
            Some(pairs.map(|(own, base)| own / base).collect())
        };
        let is_base = old.arms.first().is_some_and(|base| base.name == arm);
        if is_base {
            return None;
        }
        let ratio = ratio_of_medians(&to_base(new)?, &to_base(old)?)?;
        let noise = [old.again(metric), new.again(metric)].into_iter().flatten();
        let loudest = noise.max_by(|a, b| a.reach(1.0).total_cmp(&b.reach(1.0)));
        Some(Changed {
            experiment: old.name.clone(),
            arm: arm.to_owned(),
            metric,
            verdict: judge(&ratio, loudest.as_ref()),
            ratio,
        })
    })
}

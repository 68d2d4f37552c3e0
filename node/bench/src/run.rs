//! A run: arms are built, and measured round by round.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};

use crate::load::{Block, Operation};
use crate::machine::Wanted;
use crate::results::{Arm, Experiment, Metric};
use crate::rounds::order;
use crate::ways::{Built, Way};

/// The way that is measured once more, to see what chance does.
const AGAIN: Way = Way::Routed;

/// Measures an operation by every way. `each` hears of it after each round; `is_over` ends it between two blocks, and
/// the rounds that are complete by then stay.
///
/// # Errors
/// When a way cannot be built, or a worker ends.
pub fn run(
    operation: Operation,
    rounds: usize,
    program: &[String],
    is_over: &dyn Fn() -> bool,
    mut each: impl FnMut(&Experiment) -> Result<()>,
) -> Result<Experiment> {
    let arm = |way: Way, again: bool| Arm {
        name: if again {
            format!("{} again", way.name())
        } else {
            way.name().to_owned()
        },
        about: way.about().to_owned(),
        again: again.then(|| way.name().to_owned()),
        ours: way.is_ours(),
        peer: false,
        samples: Metric::ALL.map(|metric| (metric, Vec::new())).into(),
    };
    let ways: Vec<(Way, bool)> = Way::ALL
        .map(|way| (way, false))
        .into_iter()
        .chain([(AGAIN, true)])
        .collect();
    let mut experiment = Experiment {
        name: operation.to_string(),
        about: operation.about().to_owned(),
        arms: ways.iter().map(|(way, again)| arm(*way, *again)).collect(),
        rounds: Vec::new(),
        absent: Vec::new(),
    };
    let mut built: Vec<Built> = ways
        .iter()
        .map(|(way, _)| {
            way.build(program)
                .with_context(|| format!("build {}", way.name()))
        })
        .collect::<Result<_>>()?;
    for _ in 0..rounds {
        let before = Wanted::now();
        let Some(blocks) = round(operation, &mut built, is_over)? else {
            break;
        };
        for (arm, blocks) in experiment.arms.iter_mut().zip(&blocks) {
            add(&mut arm.samples, blocks);
        }
        experiment.rounds.push(before.until(&Wanted::now()));
        each(&experiment)?;
    }
    Ok(experiment)
}

/// The blocks of each arm; nothing where it was ended.
fn round(
    operation: Operation,
    arms: &mut [Built],
    is_over: &dyn Fn() -> bool,
) -> Result<Option<Vec<Vec<Block>>>> {
    let mut blocks = vec![Vec::new(); arms.len()];
    for number in order(arms.len()) {
        if is_over() {
            return Ok(None);
        }
        if let (Some(arm), Some(blocks)) = (arms.get_mut(number), blocks.get_mut(number)) {
            blocks.push(arm.measure(operation)?);
        }
    }
    Ok(Some(blocks))
}

/// A round's value is the mean of its two blocks.
fn add(samples: &mut BTreeMap<Metric, Vec<f64>>, blocks: &[Block]) {
    for (metric, samples) in samples {
        let sum: f64 = blocks.iter().map(|block| block.get(*metric)).sum();
        samples.push(sum / blocks.len().max(1) as f64);
    }
}

//! Keeps every controller running: one that ends or panics is logged and started again, and none stops
//! another.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{Context, Error};

/// What a controller runs as. It ends only by a failure.
pub(crate) type Run = fn(Arc<Context>) -> Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A controller that ran this long is healthy: its next failure counts as the first.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Runs all of `parts` until `shutdown`.
pub(crate) async fn supervise(
    parts: Vec<(&'static str, Run)>,
    context: Arc<Context>,
    shutdown: CancellationToken,
) {
    let mut keepers = JoinSet::new();
    for (name, run) in parts {
        keepers.spawn(keep(name, run, context.clone(), shutdown.clone()));
    }
    while keepers.join_next().await.is_some() {}
}

async fn keep(name: &'static str, run: Run, context: Arc<Context>, shutdown: CancellationToken) {
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let mut task = tokio::spawn(run(context.clone()));
        let outcome = tokio::select! {
            () = shutdown.cancelled() => {
                task.abort();
                return;
            }
            outcome = &mut task => outcome,
        };
        match outcome {
            Ok(Ok(())) => tracing::error!(controller = name, "ended although it should run for ever"),
            Ok(Err(error)) => tracing::error!(controller = name, %error, "failed"),
            Err(panic) => tracing::error!(controller = name, %panic, "panicked"),
        }
        failures = if started.elapsed() > HEALTHY_AFTER {
            1
        } else {
            failures + 1
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(restart_delay(failures)) => {}
        }
    }
}

/// Between half and all of 100 ms, 200 ms … 30 s.
fn restart_delay(failures: u32) -> Duration {
    let ceiling = Duration::from_millis(100)
        .saturating_mul(1 << (failures - 1).min(12))
        .min(Duration::from_secs(30));
    ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
}

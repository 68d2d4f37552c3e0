//! Keeps every controller running: one that ends or panics is logged and started again, and none stops
//! another.

use std::time::Duration;

use futures::future::BoxFuture;
use rand::Rng as _;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Error;

/// Starts a controller, which ends only by a failure.
pub(crate) type Start = Box<dyn Fn() -> BoxFuture<'static, Result<(), Error>> + Send + Sync>;

/// A controller that ran this long is healthy: its next failure counts as the first.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);

/// Runs all of `parts` until `shutdown`.
pub(crate) async fn supervise(parts: Vec<(&'static str, Start)>, shutdown: CancellationToken) {
    let mut keepers = JoinSet::new();
    for (name, start) in parts {
        keepers.spawn(keep(name, start, shutdown.clone()));
    }
    while keepers.join_next().await.is_some() {}
}

async fn keep(name: &'static str, start: Start, shutdown: CancellationToken) {
    let mut failures = 0;
    loop {
        let started = Instant::now();
        let mut task = tokio::spawn(start());
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    fn counted(starts: &Arc<AtomicU32>, run: fn() -> BoxFuture<'static, Result<(), Error>>) -> Start {
        let starts = Arc::clone(starts);
        Box::new(move || {
            starts.fetch_add(1, SeqCst);
            run()
        })
    }

    #[tokio::test]
    async fn a_controller_that_fails_or_panics_is_started_again_and_stops_no_other() {
        let [panicking, failing, healthy] = [(); 3].map(|()| Arc::new(AtomicU32::new(0)));
        let shutdown = CancellationToken::new();
        let supervised = tokio::spawn(supervise(
            vec![
                (
                    "panicking",
                    counted(&panicking, || Box::pin(async { panic!("on purpose") })),
                ),
                (
                    "failing",
                    counted(&failing, || Box::pin(async { Err(Error::NoPods) })),
                ),
                ("healthy", counted(&healthy, || Box::pin(std::future::pending()))),
            ],
            shutdown.clone(),
        ));
        let restarted = async {
            while panicking.load(SeqCst) < 3 || failing.load(SeqCst) < 3 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), restarted)
            .await
            .unwrap();
        assert_eq!(healthy.load(SeqCst), 1);
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), supervised)
            .await
            .unwrap()
            .unwrap();
    }
}

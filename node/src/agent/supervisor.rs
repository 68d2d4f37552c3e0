//! Parts of the agent run beside each other: what fails is kept, shown and tried again, and stops nothing else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;

const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// A part that ran this long before it failed starts over with the shortest delay.
const STEADY: Duration = Duration::from_secs(60);

/// How a part is doing.
#[derive(Clone, Debug)]
pub enum Health {
    /// It has not yet said that it works.
    Starting,
    /// It works.
    Working,
    /// It does not, since then, for this reason.
    Failing {
        /// When it last worked, or was started.
        since: Instant,
        /// The latest error, with its causes.
        error: String,
    },
}

/// A part and how it is doing.
#[derive(Clone, Debug)]
pub struct PartStatus {
    /// How it is doing.
    pub health: Health,
    /// How often it was started again.
    pub restarts: u64,
}

/// All parts, by name.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    parts: Arc<Mutex<BTreeMap<&'static str, PartStatus>>>,
}

/// One part's own hand on its status.
#[derive(Clone, Debug)]
pub struct Part {
    name: &'static str,
    parts: Parts,
}

impl Parts {
    /// How each part is doing.
    #[must_use]
    pub fn all(&self) -> BTreeMap<&'static str, PartStatus> {
        self.lock().clone()
    }

    /// The hand on the status of a part, which is now starting.
    pub(super) fn part(&self, name: &'static str) -> Part {
        let part = Part {
            name,
            parts: self.clone(),
        };
        part.set(|_| Health::Starting);
        part
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, PartStatus>> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Part {
    /// Says that the part works.
    pub fn works(&self) {
        let before = self.set(|_| Health::Working);
        match before {
            Health::Failing { since, .. } => {
                let seconds = since.elapsed().as_secs();
                tracing::info!(part = self.name, failed_for_s = seconds, "part works again");
            }
            Health::Starting => tracing::info!(part = self.name, "part works"),
            Health::Working => {}
        }
    }

    /// Says that the part does not work. The first failure of a row is a warning, each other one a detail.
    pub fn fails(&self, error: &str) {
        let before = self.set(|before| Health::Failing {
            since: match before {
                Health::Failing { since, .. } => *since,
                Health::Starting | Health::Working => Instant::now(),
            },
            error: error.to_owned(),
        });
        match before {
            Health::Failing { error: known, .. } if known == error => {
                tracing::debug!(part = self.name, error, "part still fails");
            }
            _ => tracing::warn!(part = self.name, error, "part fails, trying again"),
        }
    }

    /// Says the one or the other.
    pub fn tell(&self, outcome: Result<(), &str>) {
        match outcome {
            Ok(()) => self.works(),
            Err(error) => self.fails(error),
        }
    }

    fn set(&self, health: impl FnOnce(&Health) -> Health) -> Health {
        let mut parts = self.parts.lock();
        let status = parts.entry(self.name).or_insert(PartStatus {
            health: Health::Starting,
            restarts: 0,
        });
        let next = health(&status.health);
        std::mem::replace(&mut status.health, next)
    }

    fn restarted(&self) {
        if let Some(status) = self.parts.lock().get_mut(self.name) {
            status.restarts += 1;
        }
    }
}

/// Starts parts, and starts them again.
pub struct Supervisor {
    parts: Parts,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Supervisor {
    /// Runs parts until shutdown.
    #[must_use]
    pub fn new(shutdown: CancellationToken) -> Self {
        Self {
            parts: Parts::default(),
            shutdown,
            tasks: JoinSet::new(),
        }
    }

    /// How the parts are doing.
    #[must_use]
    pub fn parts(&self) -> Parts {
        self.parts.clone()
    }

    /// Starts a part. `run` is called anew after each failure, and is handed its status and the sign to end.
    pub fn start<F, Run>(&mut self, name: &'static str, mut run: F)
    where
        F: FnMut(Part, CancellationToken) -> Run + Send + 'static,
        Run: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let part = self.parts.part(name);
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move {
            let mut backoff = Backoff::new(FIRST_DELAY, LONGEST_DELAY);
            loop {
                let started = Instant::now();
                let running = AbortOnDropHandle::new(tokio::spawn(run(part.clone(), shutdown.clone())));
                let result = running.await;
                if shutdown.is_cancelled() {
                    return;
                }
                part.fails(&match result {
                    Ok(Ok(())) => "ended without being told".to_owned(),
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(broken) => format!("broke off: {broken}"),
                });
                if started.elapsed() >= STEADY {
                    backoff.reset();
                }
                tokio::select! {
                    () = tokio::time::sleep(backoff.next_delay()) => part.restarted(),
                    () = shutdown.cancelled() => return,
                }
            }
        });
    }

    /// Waits until every part has ended, which they do at shutdown.
    pub async fn join(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[tokio::test]
    async fn parts_that_fail_or_panic_are_started_again_and_stop_no_other() {
        static FAILED: AtomicU32 = AtomicU32::new(0);
        static PANICKED: AtomicU32 = AtomicU32::new(0);
        let shutdown = CancellationToken::new();
        let mut supervisor = Supervisor::new(shutdown.clone());
        let parts = supervisor.parts();
        supervisor.start("steady", |part, shutdown| async move {
            part.works();
            shutdown.cancelled().await;
            Ok(())
        });
        supervisor.start("fails", |_, _| async {
            FAILED.fetch_add(1, Ordering::Relaxed);
            anyhow::bail!("no luck")
        });
        supervisor.start("panics once", |part, shutdown| async move {
            assert!(
                PANICKED.fetch_add(1, Ordering::Relaxed) > 0,
                "the first run panics"
            );
            part.works();
            shutdown.cancelled().await;
            Ok(())
        });
        let health = |name| parts.all().get(name).map(|status| status.health.clone());
        let settled = || {
            FAILED.load(Ordering::Relaxed) >= 2
                && matches!(health("steady"), Some(Health::Working))
                && matches!(health("panics once"), Some(Health::Working))
                && matches!(health("fails"), Some(Health::Failing { error, .. }) if error == "no luck")
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !settled() {
            assert!(Instant::now() < deadline, "not settled: {:?}", parts.all());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(parts.all()["steady"].restarts, 0);
        shutdown.cancel();
        supervisor.join().await;
    }
}

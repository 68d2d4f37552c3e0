//! A queue of keys for one controller: each key at most once, never two at work on the same key, retries with
//! exponential back-off and jitter.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::Rng as _;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::Error;

/// First delay after a failure; it doubles with each one that follows.
const FIRST_RETRY: Duration = Duration::from_millis(10);
/// No retry waits longer than this: after an outage of the API server everything goes on within this time.
const LAST_RETRY: Duration = Duration::from_secs(10);

/// What names a piece of work.
pub(crate) trait Key: Clone + Ord + Debug + Send + Sync + 'static {}
impl<T: Clone + Ord + Debug + Send + Sync + 'static> Key for T {}

/// The queue.
pub(crate) struct Queue<K> {
    inner: Mutex<Inner<K>>,
    wake: Notify,
}

struct Inner<K> {
    /// In the order of arrival.
    ready: VecDeque<K>,
    /// Keys in `ready`, and keys at work that came again meanwhile.
    dirty: BTreeSet<K>,
    at_work: BTreeSet<K>,
    /// Earliest moment at which a key becomes ready.
    later: BTreeMap<K, Instant>,
    failures: BTreeMap<K, u32>,
}

impl<K: Key> Queue<K> {
    /// An empty queue.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(Inner {
                ready: VecDeque::new(),
                dirty: BTreeSet::new(),
                at_work: BTreeSet::new(),
                later: BTreeMap::new(),
                failures: BTreeMap::new(),
            }),
            wake: Notify::new(),
        })
    }

    /// Work to be done now.
    pub fn add(&self, key: K) {
        let mut inner = self.inner();
        if inner.dirty.insert(key.clone()) && !inner.at_work.contains(&key) {
            inner.ready.push_back(key);
            self.wake.notify_one();
        }
    }

    /// Work to be done after `delay`, or earlier if the key is due earlier already.
    pub fn add_after(&self, key: K, delay: Duration) {
        let due = Instant::now() + delay;
        let mut inner = self.inner();
        let entry = inner.later.entry(key).or_insert(due);
        *entry = (*entry).min(due);
        self.wake.notify_one();
    }

    /// The next key. The caller calls [`Queue::finish`] with it.
    pub async fn next(&self) -> K {
        loop {
            let due = {
                let mut inner = self.inner();
                let now = Instant::now();
                inner.ripen(now);
                if let Some(key) = inner.ready.pop_front() {
                    inner.dirty.remove(&key);
                    inner.at_work.insert(key.clone());
                    return key;
                }
                inner.later.values().min().copied()
            };
            match due {
                None => self.wake.notified().await,
                Some(due) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(due) => {}
                },
            }
        }
    }

    /// Ends the work on a key, whatever came of it.
    pub fn finish(&self, key: K, outcome: &Result<Next, Error>) {
        let retry = {
            let mut inner = self.inner();
            inner.at_work.remove(&key);
            if inner.dirty.contains(&key) {
                inner.ready.push_back(key.clone());
                self.wake.notify_one();
            }
            match outcome {
                Ok(next) => {
                    inner.failures.remove(&key);
                    match next {
                        Next::OnChange => None,
                        Next::After(delay) => Some(*delay),
                    }
                }
                Err(_) => {
                    let failures = inner.failures.entry(key.clone()).or_default();
                    *failures += 1;
                    Some(retry_delay(*failures))
                }
            }
        };
        if let Some(delay) = retry {
            self.add_after(key, delay);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Key> Inner<K> {
    fn ripen(&mut self, now: Instant) {
        let ripe: Vec<K> = self
            .later
            .iter()
            .filter(|(_, due)| **due <= now)
            .map(|(key, _)| key.clone())
            .collect();
        for key in ripe {
            self.later.remove(&key);
            if self.dirty.insert(key.clone()) && !self.at_work.contains(&key) {
                self.ready.push_back(key);
            }
        }
    }
}

/// Between half and all of 10 ms, 20 ms, 40 ms … 10 s.
fn retry_delay(failures: u32) -> Duration {
    let ceiling = FIRST_RETRY
        .saturating_mul(1 << (failures - 1).min(16))
        .min(LAST_RETRY);
    ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
}

/// When to look at a key again, unless something changes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Only when something changes.
    OnChange,
    /// After this time.
    After(Duration),
}

/// Observes one key's objects, decides, and acts.
pub(crate) trait Reconcile: Send + Sync + 'static {
    /// What is reconciled.
    type Key: Key;
    /// For logs.
    const NAME: &'static str;

    /// Brings the key's objects one step nearer to what they should be.
    fn reconcile(&self, key: &Self::Key) -> impl Future<Output = Result<Next, Error>> + Send;
}

/// Works off `queue` for ever, up to `workers` keys at a time.
pub(crate) async fn drive<R: Reconcile>(queue: &Queue<R::Key>, reconciler: &R, workers: usize) {
    let mut running = FuturesUnordered::new();
    loop {
        tokio::select! {
            key = queue.next(), if running.len() < workers => running.push(async {
                let outcome = reconciler.reconcile(&key).await;
                (key, outcome)
            }),
            Some((key, outcome)) = running.next() => {
                match &outcome {
                    Err(error) if error.is_conflict() => {
                        tracing::debug!(controller = R::NAME, ?key, %error, "lost a race, will retry");
                    }
                    Err(error) => tracing::warn!(controller = R::NAME, ?key, %error, "reconcile failed"),
                    Ok(_) => {}
                }
                queue.finish(key, &outcome);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn next(queue: &Queue<&'static str>) -> Option<&'static str> {
        queue.next().now_or_never()
    }

    #[tokio::test]
    async fn a_key_waits_once_however_often_it_is_added() {
        let queue = Queue::new();
        queue.add("a");
        queue.add("b");
        queue.add("a");
        assert_eq!(
            [next(&queue), next(&queue), next(&queue)],
            [Some("a"), Some("b"), None]
        );
    }

    #[tokio::test]
    async fn a_key_that_comes_while_it_is_worked_on_runs_again_afterwards_and_not_beside() {
        let queue = Queue::new();
        queue.add("a");
        assert_eq!(next(&queue), Some("a"));
        queue.add("a");
        assert_eq!(next(&queue), None);
        queue.finish("a", &Ok(Next::OnChange));
        assert_eq!(next(&queue), Some("a"));
    }

    #[tokio::test]
    async fn a_delayed_key_comes_when_it_is_due_and_the_earlier_of_two_delays_counts() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(90));
        queue.add_after("a", Duration::from_millis(20));
        queue.add_after("b", Duration::from_millis(40));
        assert_eq!(queue.next().await, "a");
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(queue.next().await, "b");
        assert!(start.elapsed() >= Duration::from_millis(40));
    }

    #[test]
    fn retries_back_off_to_ten_seconds_and_are_jittered() {
        for (failures, ceiling_ms) in [
            (1, 10),
            (2, 20),
            (5, 160),
            (10, 5_120),
            (11, 10_000),
            (4_000_000, 10_000),
        ] {
            let delay = retry_delay(failures);
            let ceiling = Duration::from_millis(ceiling_ms);
            assert!(
                ceiling / 2 <= delay && delay <= ceiling,
                "{failures} failures: {delay:?}"
            );
        }
    }
}

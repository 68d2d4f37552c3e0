//! When addresses came back: by a clock that a restart cannot turn back, and by one that the log can tell of.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// By the clock that nobody sets, and that begins anew with the machine (`CLOCK_MONOTONIC`).
    pub steady: Instant,
    /// By the clock that people and NTP set.
    pub wall: SystemTime,
}

impl Now {
    /// By this machine's clocks.
    #[must_use]
    pub fn read() -> Self {
        Self {
            steady: Instant::now(),
            wall: SystemTime::now(),
        }
    }

    /// So much later, by both clocks.
    #[must_use]
    pub fn after(self, passed: Duration) -> Self {
        Self {
            steady: self.steady + passed,
            wall: self.wall + passed,
        }
    }

    /// Milliseconds since 1970; a clock before that shows its begin.
    fn wall_millis(self) -> u64 {
        let since = self.wall.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// What tells the time; tests have their own, so that nothing has to wait.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Now + Send + Sync>);

impl Clock {
    /// One that this function reads.
    pub fn new(read: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    /// What it shows.
    #[must_use]
    pub fn now(&self) -> Now {
        (self.0)()
    }
}

impl Default for Clock {
    /// This machine's.
    fn default() -> Self {
        Self::new(Now::read)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.now()).finish()
    }
}

/// When something was, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct When {
    /// In milliseconds since 1970, as the log tells it.
    at: Option<u64>,
    /// By the steady clock; none where it is longer ago than that reaches, or was not compared with it yet.
    steady: Option<Instant>,
}

impl When {
    /// Nobody knows.
    pub(super) const UNKNOWN: Self = Self {
        at: None,
        steady: None,
    };

    /// As a log tells it.
    pub(super) fn logged(at: Option<u64>) -> Self {
        Self { at, steady: None }
    }

    pub(super) fn logged_at(self) -> Option<u64> {
        self.at
    }

    pub(super) fn steady(self) -> Option<Instant> {
        self.steady
    }

    /// Finds out by the clocks how long ago it was. The log's time is by a clock that may have been set since: what it
    /// puts into the future, and what nobody knows, is taken for now. Returns whether that had to be.
    pub(super) fn compare(&mut self, now: Now) -> bool {
        let wall = now.wall_millis();
        let known = self.at.filter(|at| *at <= wall);
        let at = known.unwrap_or(wall);
        *self = Self {
            at: Some(at),
            steady: now.steady.checked_sub(Duration::from_millis(wall - at)),
        };
        known.is_none()
    }
}

impl From<Now> for When {
    fn from(now: Now) -> Self {
        Self {
            at: Some(now.wall_millis()),
            steady: Some(now.steady),
        }
    }
}

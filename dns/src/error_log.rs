//! The `errors` plugin: what went wrong with queries, each on a line, or many of a kind on one.

use std::error::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;

use crate::name::Name;
use crate::pattern::Pattern;
use crate::question::Query;

/// Errors of one kind, told together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consolidation {
    /// How long after the first one they are told.
    pub period: Duration,
    /// Which errors, by their text.
    pub errors: Pattern,
    /// How loudly. Default: as an error.
    pub level: Level,
    /// Whether the first one is told at once as well. Default: it is not.
    pub show_first: bool,
}

/// How loudly something is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// For who looks for mistakes in this program.
    Debug,
    /// A change.
    Info,
    /// Something to look at.
    Warning,
    /// Something that failed.
    Error,
}

/// The error log of a server block.
#[derive(Debug)]
pub struct ErrorLog {
    kinds: Vec<Kind>,
}

#[derive(Debug)]
struct Kind {
    consolidation: Consolidation,
    /// Errors since they were last told.
    count: AtomicU64,
    first: Notify,
}

impl ErrorLog {
    /// A log; an error that fits several consolidations belongs to the first.
    #[must_use]
    pub fn new(consolidations: Vec<Consolidation>) -> Self {
        let kinds = consolidations.into_iter().map(|consolidation| Kind {
            consolidation,
            count: AtomicU64::new(0),
            first: Notify::new(),
        });
        Self {
            kinds: kinds.collect(),
        }
    }

    /// Tells of an error, now or together with others.
    pub fn report(&self, query: &Query<'_>, error: &dyn Error) {
        let text = model::with_causes(error).to_string();
        let kind = self
            .kinds
            .iter()
            .find(|kind| kind.consolidation.errors.matches(&text));
        let tell_now = kind.is_none_or(|kind| {
            let is_first = kind.count.fetch_add(1, Ordering::Relaxed) == 0;
            if is_first {
                kind.first.notify_one();
            }
            is_first && kind.consolidation.show_first
        });
        if tell_now {
            let name = Name::from_lower_wire(query.name());
            tracing::warn!(%name, qtype = query.qtype, error = %text, "query failed");
        }
    }

    /// Tells of errors that are told together, when their time has come; never ends.
    pub async fn follow(&self) {
        futures::future::join_all(self.kinds.iter().map(Kind::follow)).await;
        std::future::pending().await
    }
}

/// What was counted is told at the latest when the block is no more.
impl Drop for ErrorLog {
    fn drop(&mut self) {
        self.kinds.iter().for_each(Kind::tell);
    }
}

impl Kind {
    async fn follow(&self) {
        loop {
            self.first.notified().await;
            tokio::time::sleep(self.consolidation.period).await;
            self.tell();
        }
    }

    fn tell(&self) {
        let count = self.count.swap(0, Ordering::Relaxed);
        if count == 0 {
            return;
        }
        let (pattern, seconds) = (
            self.consolidation.errors.as_str(),
            self.consolidation.period.as_secs_f64(),
        );
        match self.consolidation.level {
            Level::Debug => tracing::debug!(count, pattern, seconds, "queries failed alike"),
            Level::Info => tracing::info!(count, pattern, seconds, "queries failed alike"),
            Level::Warning => tracing::warn!(count, pattern, seconds, "queries failed alike"),
            Level::Error => tracing::error!(count, pattern, seconds, "queries failed alike"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::forward::Failure;
    use crate::question::{query_packet, rtype};
    use crate::samples::{captured, logged};

    const NOBODY: &str = " WARN query failed name=a.example. qtype=1 error=no upstream: the list of name servers is empty, \
                          or all of them lead back here\n";

    fn consolidation(pattern: &str, level: Level, show_first: bool) -> Consolidation {
        Consolidation {
            period: Duration::from_millis(20),
            errors: Pattern::parse(pattern).expect("a pattern"),
            level,
            show_first,
        }
    }

    fn report(log: &ErrorLog, error: &Failure, times: usize) {
        let packet = query_packet(1, Name::parse("a.example").expect("name").wire(), rtype::A);
        let query = Query::parse(&packet).expect("query");
        for _ in 0..times {
            log.report(&query, error);
        }
    }

    #[tokio::test]
    async fn errors_alike_are_told_once_their_time_has_come_and_others_at_once() {
        let (text, guard) = captured();
        let log = ErrorLog::new(vec![
            consolidation("^no upstream: ", Level::Warning, false),
            consolidation("^no upstream", Level::Error, false),
        ]);
        // Runs the log until it tells something.
        let told = async || {
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                let found = text.take();
                if !found.is_empty() {
                    return found;
                }
                assert!(Instant::now() < deadline, "nothing is told");
                tokio::select! {
                    () = log.follow() => {}
                    () = tokio::time::sleep(Duration::from_millis(100)) => {}
                }
            }
        };
        report(&log, &Failure::NoUpstream, 3);
        report(&log, &Failure::TooMany { limit: 1 }, 1);
        let at_once = " WARN query failed name=a.example. qtype=1 error=too many queries are under way: this \
                       client has its share of 1\n";
        assert_eq!(text.take(), at_once);
        for count in [3, 2] {
            let together =
                format!(" WARN queries failed alike count={count} pattern=\"^no upstream: \" seconds=0.02\n");
            assert_eq!(told().await, together);
            report(&log, &Failure::NoUpstream, 2);
        }
        drop(guard);
    }

    #[test]
    fn the_first_may_be_told_at_once_and_the_rest_is_told_at_the_end() {
        let text = logged(|| {
            let log = ErrorLog::new(vec![consolidation("no upstream", Level::Info, true)]);
            report(&log, &Failure::NoUpstream, 4);
        });
        let together = " INFO queries failed alike count=4 pattern=\"no upstream\" seconds=0.02\n";
        assert_eq!(text, format!("{NOBODY}{together}"));
        let plain = logged(|| report(&ErrorLog::new(Vec::new()), &Failure::NoUpstream, 2));
        assert_eq!(plain, NOBODY.repeat(2));
    }
}

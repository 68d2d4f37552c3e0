//! The proxy's thread: takes the newest snapshot, tries again what failed, and repairs what others changed.
//!
//! - [`settings`]: the proxy's own configuration, of the agent's.
//! - [`pacing`]: how often what changed is programmed.
//! - [`keeper`]: the proxy, and what of it is not settled; tells how far it has come, by [`backlog`], [`failing`],
//!   [`rejected`] and [`no_local`].

mod backlog;
mod failing;
mod keeper;
mod no_local;
mod pacing;
mod rejected;
#[cfg(test)]
pub mod samples;
mod settings;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use model::{Snapshot, with_causes};
use proxy::Proxy;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub use backlog::Changes;
pub use failing::FailingServices;
#[cfg(test)]
pub use failing::Tried;
pub use no_local::Policy;
#[cfg(test)]
pub use rejected::LookedAt;
pub use rejected::RejectedParts;
pub use settings::settings;

use super::progress::ProxyProgress;
use super::supervisor::Part;
use crate::backoff::Backoff;
use crate::config::Config;
use crate::watch::{Events, Status};
use keeper::{Audit, Keeper};
use pacing::Pacing;
use settings::planning;

/// Between two looks at attachments, pins and chains.
const AUDIT_STRUCTURE: Duration = Duration::from_secs(10);

/// Between two looks at everything.
const AUDIT_ALL: Duration = Duration::from_secs(300);

/// After a repair others get this much time before the next, so that two who disagree do not burn the CPU.
const BETWEEN_REPAIRS: Duration = Duration::from_millis(500);

/// Delays before what failed is tried again.
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// How soon the thread that waits for drift sees the sign to end.
const TICK: Duration = Duration::from_secs(1);

/// What the thread is started with.
#[derive(Clone)]
pub struct Proxying {
    /// What the agent is told, now.
    pub config: watch::Receiver<Arc<Config>>,
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Whether this node's DNS server answers at [`proxy::Settings::local_dns`].
    pub dns_answers: watch::Receiver<bool>,
    /// Somebody wants everything to be looked at.
    pub audits: Arc<Notify>,
    /// Where it is told how far it has come.
    pub progress: Arc<ProxyProgress>,
    /// Where it is told what users shall see of Services.
    pub events: Events,
    /// How the watches are doing, with the span of the newest change.
    pub watches: Status,
    /// Whose is the waiting.
    pub runtime: Handle,
}

/// Runs the proxy until shutdown. Blocks; only waiting for events is the runtime's.
///
/// # Errors
/// When no cgroup v2 hierarchy is mounted, or the kernel's interfaces cannot be opened. What fails later is tried again
/// here.
pub fn run(proxying: Proxying, part: &Part, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let Proxying {
        config: mut told,
        snapshots,
        dns_answers,
        audits,
        progress,
        events,
        watches,
        runtime,
    } = proxying;
    let first = told.borrow_and_update().clone();
    let config = settings(&first, &progress.families)?.context("invariant: there shall be a proxy")?;
    let proxy = Proxy::open(&config).context("open the proxy's datapath")?;
    let drift = watch_drift(&proxy, shutdown.clone())?;
    let pacing = Pacing::new(first.proxy.min_sync_period);
    let mut schedule = Schedule::new(snapshots, dns_answers, told, pacing, drift);
    schedule.audits = audits;
    let mut keeper = Keeper::new(proxy, &progress, part, events, watches);
    keeper.set_dns_answers(schedule.dns_answers());
    keeper.read_counters();
    let mut leftovers = Leftovers::new(config, first.proxy.pin_dir.clone());
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        match runtime.block_on(schedule.next(shutdown)) {
            Event::Shutdown => {
                // The next process cannot know of frontends that are gone by now.
                if keeper.has_stale_flows() {
                    keeper.forget_flows();
                }
                return Ok(());
            }
            Event::Queued => keeper.queue(&schedule.newest()),
            Event::Sync => keeper.sync(&schedule.pass()),
            Event::Dns => {
                keeper.set_dns_answers(schedule.dns_answers());
                keeper.sync(&schedule.pass());
            }
            Event::Settings => {
                let told = schedule.told();
                schedule.pacing.set_period(told.proxy.min_sync_period);
                keeper.set_settings(planning(&told, &progress.families)?);
                keeper.sync(&schedule.pass());
            }
            Event::Flows => {
                let pause = keeper.forget_flows();
                schedule.flows_not_before = Instant::now() + pause;
            }
            Event::Retry => {
                schedule.retry_at = None;
                keeper.retry(&schedule.pass());
            }
            Event::Structure => {
                schedule.structure_at = Instant::now() + AUDIT_STRUCTURE;
                keeper.read_counters();
                keeper.audit(Audit::Structure);
            }
            Event::All => {
                schedule.all_at = Instant::now() + AUDIT_ALL;
                keeper.audit(Audit::Everything);
            }
            Event::Drift => {
                schedule.repair_not_before = Instant::now() + BETWEEN_REPAIRS;
                keeper.audit(Audit::Everything);
            }
        }
        if keeper.is_programmed() {
            leftovers.remove();
        }
        schedule.settle(&keeper, &mut backoff);
    }
}

/// What a datapath left in the kernel that ran here before this one. It serves until this one does.
struct Leftovers {
    config: proxy::Config,
    pin_dir: PathBuf,
    /// When it is tried again to remove them; never once they are gone.
    remove_at: Option<Instant>,
}

impl Leftovers {
    fn new(config: proxy::Config, pin_dir: PathBuf) -> Self {
        Self {
            config,
            pin_dir,
            remove_at: Some(Instant::now()),
        }
    }

    fn remove(&mut self) {
        let now = Instant::now();
        if self.remove_at.is_none_or(|at| now < at) {
            return;
        }
        match Proxy::remove_other_datapaths(&self.config, &self.pin_dir) {
            Ok(()) => self.remove_at = None,
            Err(error) => {
                tracing::warn!(
                    error = with_causes(&error),
                    "what another datapath left here is still in force, trying again"
                );
                self.remove_at = Some(now + AUDIT_ALL);
            }
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A snapshot came.
    Queued,
    /// It is its turn.
    Sync,
    /// This node's DNS answers, or does not any more.
    Dns,
    /// The agent is told something else.
    Settings,
    /// Flows that may lead nowhere are to be looked at.
    Flows,
    Retry,
    Drift,
    Structure,
    All,
    Shutdown,
}

struct Schedule {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    dns_answers: watch::Receiver<bool>,
    told: watch::Receiver<Arc<Config>>,
    pacing: Pacing,
    /// A snapshot came and waits for its turn.
    queued: bool,
    /// There may be stale flows, and the next look for them waits until then.
    stale_flows: bool,
    flows_not_before: Instant,
    drift: Arc<Notify>,
    audits: Arc<Notify>,
    structure_at: Instant,
    all_at: Instant,
    repair_not_before: Instant,
    retry_at: Option<Instant>,
}

impl Schedule {
    fn new(
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        dns_answers: watch::Receiver<bool>,
        told: watch::Receiver<Arc<Config>>,
        pacing: Pacing,
        drift: Arc<Notify>,
    ) -> Self {
        // The snapshot that is there already counts as new.
        snapshots.mark_changed();
        let now = Instant::now();
        Self {
            snapshots,
            dns_answers,
            told,
            pacing,
            queued: false,
            stale_flows: false,
            flows_not_before: now,
            drift,
            audits: Arc::default(),
            structure_at: now + AUDIT_STRUCTURE,
            all_at: now + AUDIT_ALL,
            repair_not_before: now,
            retry_at: None,
        }
    }

    fn newest(&mut self) -> Arc<Snapshot> {
        self.snapshots.borrow_and_update().clone()
    }

    fn dns_answers(&mut self) -> bool {
        *self.dns_answers.borrow_and_update()
    }

    fn told(&mut self) -> Arc<Config> {
        self.told.borrow_and_update().clone()
    }

    /// What is not settled yet is tried again.
    fn settle(&mut self, keeper: &Keeper<'_>, backoff: &mut Backoff) {
        self.stale_flows = keeper.has_stale_flows();
        if keeper.is_settled() {
            self.retry_at = None;
            backoff.reset();
        } else if self.retry_at.is_none() {
            self.retry_at = Some(Instant::now() + backoff.next_delay());
        }
    }

    /// A pass over the newest snapshot begins.
    fn pass(&mut self) -> Arc<Snapshot> {
        self.queued = false;
        self.pacing.begin(Instant::now().into_std());
        self.newest()
    }

    /// What is due. A retry is a sync too, and goes first, as do flows: under a stream of changes there is always a
    /// sync due.
    fn due(&self, now: Instant) -> Option<Event> {
        let sync_at = Instant::from_std(self.pacing.next(now.into_std()));
        let is_due = |at: Instant| at <= now;
        let retry = self.retry_at.is_some_and(|at| is_due(at.max(sync_at)));
        let due = [
            (self.stale_flows && is_due(self.flows_not_before), Event::Flows),
            (retry, Event::Retry),
            (self.queued && is_due(sync_at), Event::Sync),
            (is_due(self.structure_at), Event::Structure),
            (is_due(self.all_at), Event::All),
        ];
        due.into_iter()
            .find_map(|(is_due, event)| is_due.then_some(event))
    }

    /// What is due comes before snapshots that are: to take one in may be slow, and they may come without an end.
    async fn next(&mut self, shutdown: &CancellationToken) -> Event {
        let now = Instant::now();
        let due = self.due(now);
        if let Some(event) = due.filter(|_| !shutdown.is_cancelled()) {
            return event;
        }
        let retry_at = self.retry_at;
        let sync_at = Instant::from_std(self.pacing.next(now.into_std()));
        let (drift, not_before) = (self.drift.clone(), self.repair_not_before);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            () = async {
                // A timer that is past may still take a turn of the clock.
                if now < not_before {
                    sleep_until(not_before).await;
                }
                drift.notified().await;
            } => Event::Drift,
            () = self.audits.notified() => Event::All,
            Ok(()) = self.dns_answers.changed() => Event::Dns,
            Ok(()) = self.told.changed() => Event::Settings,
            changed = self.snapshots.changed() => match changed {
                Ok(()) => {
                    self.queued = true;
                    Event::Queued
                }
                Err(_) => Event::Shutdown,
            },
            () = sleep_until(sync_at), if self.queued => Event::Sync,
            () = sleep_until(self.flows_not_before), if self.stale_flows => Event::Flows,
            () = sleep_until(retry_at.unwrap_or(sync_at).max(sync_at)), if retry_at.is_some() => Event::Retry,
            () = sleep_until(self.structure_at) => Event::Structure,
            () = sleep_until(self.all_at) => Event::All,
        }
    }
}

/// Waits for changes by others on a thread of its own.
fn watch_drift(proxy: &Proxy, shutdown: CancellationToken) -> anyhow::Result<Arc<Notify>> {
    let notify = Arc::new(Notify::new());
    let Some(mut drift) = proxy.watch_drift().context("watch for changes by others")? else {
        return Ok(notify);
    };
    let told = notify.clone();
    let wait = move || {
        // The proxy that opened the watch may be gone before the agent is: it then holds the only other reference.
        while !shutdown.is_cancelled() && Arc::strong_count(&told) > 1 {
            match drift.wait(TICK) {
                Ok(true) => told.notify_one(),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(
                        error = with_causes(&error),
                        "changes by others are only seen by audits from now on"
                    );
                    return;
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("proxy-drift".to_owned())
        .spawn(wait)
        .context("start a thread")?;
    Ok(notify)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATER: Duration = Duration::from_secs(3600);

    /// A schedule where a snapshot came and nothing else is due, and who publishes its snapshots.
    fn schedule() -> (Schedule, watch::Sender<Arc<Snapshot>>) {
        let (publish, snapshots) = watch::channel(Arc::default());
        let (_, dns_answers) = watch::channel(true);
        let config = serde_yaml_ng::from_str::<Config>("{nodeName: n, proxy: {datapath: none}}");
        let (_, told) = watch::channel(Arc::new(config.expect("valid")));
        let schedule = Schedule::new(
            snapshots,
            dns_answers,
            told,
            Pacing::new(Duration::ZERO),
            Arc::default(),
        );
        (schedule, publish)
    }

    #[tokio::test]
    async fn what_is_due_comes_before_snapshots_that_come_without_an_end() {
        type Due = fn(&mut Schedule, Instant);
        let rows: [(Due, Event); 11] = [
            (|_, _| (), Event::Queued),
            (|schedule, _| schedule.queued = true, Event::Sync),
            (|schedule, now| schedule.retry_at = Some(now), Event::Retry),
            (|schedule, now| schedule.structure_at = now, Event::Structure),
            (|schedule, now| schedule.all_at = now, Event::All),
            (|schedule, _| schedule.drift.notify_one(), Event::Drift),
            (
                |schedule, now| (schedule.queued, schedule.retry_at) = (true, Some(now)),
                Event::Retry,
            ),
            (
                |schedule, now| (schedule.queued, schedule.structure_at) = (true, now),
                Event::Sync,
            ),
            (
                |schedule, now| {
                    (schedule.stale_flows, schedule.queued, schedule.retry_at) = (true, true, Some(now));
                },
                Event::Flows,
            ),
            (
                |schedule, now| {
                    (schedule.stale_flows, schedule.queued) = (true, true);
                    schedule.flows_not_before = now + LATER;
                },
                Event::Sync,
            ),
            (
                |schedule, now| {
                    schedule.drift.notify_one();
                    schedule.repair_not_before = now + LATER;
                },
                Event::Queued,
            ),
        ];
        for (make_due, expected) in rows {
            let (mut schedule, _publish) = schedule();
            make_due(&mut schedule, Instant::now());
            assert_eq!(schedule.next(&CancellationToken::new()).await, expected);
        }
    }

    #[tokio::test]
    async fn a_sync_and_a_retry_wait_for_their_turn_and_the_end_for_nothing() {
        let (mut schedule, _publish) = schedule();
        schedule.pacing = Pacing::new(LATER);
        schedule.pass();
        (schedule.queued, schedule.retry_at) = (true, Some(Instant::now()));
        assert_eq!(schedule.due(Instant::now()), None);
        assert_eq!(schedule.due(Instant::now() + LATER), Some(Event::Retry));
        schedule.structure_at = Instant::now();
        let shutdown = CancellationToken::new();
        assert_eq!(schedule.next(&shutdown).await, Event::Structure);
        schedule.structure_at = Instant::now() + LATER;
        schedule.flows_not_before = Instant::now() + Duration::from_millis(20);
        (schedule.stale_flows, schedule.queued, schedule.retry_at) = (true, false, None);
        schedule.newest();
        assert_eq!(schedule.next(&shutdown).await, Event::Flows);
        shutdown.cancel();
        assert_eq!(schedule.next(&shutdown).await, Event::Shutdown);
    }
}

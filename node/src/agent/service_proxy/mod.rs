//! The proxy's thread: takes the newest snapshot, tries again what failed, and repairs what others changed.
//!
//! - [`settings`]: the proxy's own configuration, of the agent's.
//! - [`pacing`]: how often what changed is programmed.
//! - [`keeper`]: the proxy, and what of it is not settled; tells how far it has come, by [`backlog`], [`rejected`] and
//!   [`no_local`].

mod backlog;
mod keeper;
mod no_local;
mod pacing;
mod rejected;
#[cfg(test)]
mod samples;
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
pub use no_local::Policy;
pub use settings::settings;

use super::progress::ProxyProgress;
use super::supervisor::Part;
use crate::backoff::Backoff;
use keeper::{Audit, Keeper};
use pacing::Pacing;

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
    /// What the proxy is told.
    pub config: proxy::Config,
    /// Where a socket hook that ran here before has its pins.
    pub pin_dir: PathBuf,
    /// At least so much time from one pass over what changed to the next.
    pub min_sync_period: Duration,
    /// The cluster.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Where it is told how far it has come.
    pub progress: Arc<ProxyProgress>,
    /// Whose is the waiting.
    pub runtime: Handle,
}

/// Runs the proxy until shutdown. Blocks; only waiting for events is the runtime's.
///
/// # Errors
/// When the kernel's interfaces cannot be opened. What fails later is tried again here.
pub fn run(proxying: Proxying, part: &Part, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let Proxying {
        config,
        pin_dir,
        min_sync_period,
        snapshots,
        progress,
        runtime,
    } = proxying;
    let proxy = Proxy::open(&config).context("open the proxy's datapath")?;
    let drift = watch_drift(&proxy, shutdown.clone())?;
    let mut schedule = Schedule::new(snapshots, Pacing::new(min_sync_period), drift);
    let mut keeper = Keeper::new(proxy, &progress, part);
    keeper.read_counters();
    let mut leftovers = Leftovers::new(config, pin_dir);
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        match runtime.block_on(schedule.next(shutdown)) {
            Event::Shutdown => return Ok(()),
            Event::Queued => keeper.queue(&schedule.newest()),
            Event::Sync => keeper.sync(&schedule.pass()),
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
        if keeper.is_settled() {
            schedule.retry_at = None;
            backoff.reset();
        } else if schedule.retry_at.is_none() {
            schedule.retry_at = Some(Instant::now() + backoff.next_delay());
        }
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
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A snapshot came.
    Queued,
    /// It is its turn.
    Sync,
    Retry,
    Drift,
    Structure,
    All,
    Shutdown,
}

struct Schedule {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    pacing: Pacing,
    /// A snapshot came and waits for its turn.
    queued: bool,
    drift: Arc<Notify>,
    structure_at: Instant,
    all_at: Instant,
    repair_not_before: Instant,
    retry_at: Option<Instant>,
}

impl Schedule {
    fn new(mut snapshots: watch::Receiver<Arc<Snapshot>>, pacing: Pacing, drift: Arc<Notify>) -> Self {
        // The snapshot that is there already counts as new.
        snapshots.mark_changed();
        let now = Instant::now();
        Self {
            snapshots,
            pacing,
            queued: false,
            drift,
            structure_at: now + AUDIT_STRUCTURE,
            all_at: now + AUDIT_ALL,
            repair_not_before: now,
            retry_at: None,
        }
    }

    fn newest(&mut self) -> Arc<Snapshot> {
        self.snapshots.borrow_and_update().clone()
    }

    /// A pass over the newest snapshot begins.
    fn pass(&mut self) -> Arc<Snapshot> {
        self.queued = false;
        self.pacing.begin(Instant::now().into_std());
        self.newest()
    }

    async fn next(&mut self, shutdown: &CancellationToken) -> Event {
        let retry_at = self.retry_at;
        let sync_at = Instant::from_std(self.pacing.next(Instant::now().into_std()));
        let (drift, not_before) = (self.drift.clone(), self.repair_not_before);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            changed = self.snapshots.changed() => match changed {
                Ok(()) => {
                    self.queued = true;
                    Event::Queued
                }
                Err(_) => Event::Shutdown,
            },
            () = sleep_until(sync_at), if self.queued => Event::Sync,
            () = async {
                sleep_until(not_before).await;
                drift.notified().await;
            } => Event::Drift,
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

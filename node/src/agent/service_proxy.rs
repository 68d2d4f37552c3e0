//! The proxy's thread: takes the newest snapshot, tries again what failed, and repairs what others changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use model::{Snapshot, with_causes};
use proxy::{AuditReport, DatapathKind, Proxy, SyncReport};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::progress::ProxyProgress;
use super::supervisor::Part;
use crate::backoff::Backoff;
use crate::config::{Config, Datapath};

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

/// Runs the proxy until shutdown. Blocks; only waiting for events is the runtime's.
///
/// # Errors
/// When the kernel's interfaces cannot be opened. What fails later is tried again here.
pub fn run(
    config: &proxy::Config,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    progress: &ProxyProgress,
    part: &Part,
    runtime: &Handle,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let proxy = Proxy::open(config).context("open the proxy's datapath")?;
    let mut schedule = Schedule::new(snapshots, watch_drift(&proxy, shutdown.clone())?);
    let mut keeper = Keeper::new(proxy, progress, part);
    keeper.read_counters();
    let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY);
    loop {
        match runtime.block_on(schedule.next(shutdown)) {
            Event::Shutdown => return Ok(()),
            Event::Snapshot => keeper.sync(&schedule.newest()),
            Event::Retry => {
                schedule.retry_at = None;
                keeper.retry(&schedule.newest());
            }
            Event::Structure => {
                schedule.structure_at = Instant::now() + AUDIT_STRUCTURE;
                keeper.read_counters();
                keeper.audit(Proxy::audit_structure);
            }
            Event::All => {
                schedule.all_at = Instant::now() + AUDIT_ALL;
                keeper.audit(Proxy::audit);
            }
            Event::Drift => {
                schedule.repair_not_before = Instant::now() + BETWEEN_REPAIRS;
                keeper.audit(Proxy::audit);
            }
        }
        if keeper.is_settled() {
            schedule.retry_at = None;
            backoff.reset();
        } else if schedule.retry_at.is_none() {
            schedule.retry_at = Some(Instant::now() + backoff.next_delay());
        }
    }
}

/// What to do next.
#[derive(Clone, Copy, Debug)]
enum Event {
    Snapshot,
    Retry,
    Drift,
    Structure,
    All,
    Shutdown,
}

struct Schedule {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    drift: Arc<Notify>,
    structure_at: Instant,
    all_at: Instant,
    repair_not_before: Instant,
    retry_at: Option<Instant>,
}

impl Schedule {
    fn new(mut snapshots: watch::Receiver<Arc<Snapshot>>, drift: Arc<Notify>) -> Self {
        // The snapshot that is there already counts as new.
        snapshots.mark_changed();
        let now = Instant::now();
        Self {
            snapshots,
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

    async fn next(&mut self, shutdown: &CancellationToken) -> Event {
        let retry_at = self.retry_at;
        let (drift, not_before) = (self.drift.clone(), self.repair_not_before);
        tokio::select! {
            biased;
            () = shutdown.cancelled() => Event::Shutdown,
            changed = self.snapshots.changed() => match changed {
                Ok(()) => Event::Snapshot,
                Err(_) => Event::Shutdown,
            },
            () = async {
                sleep_until(not_before).await;
                drift.notified().await;
            } => Event::Drift,
            () = sleep_until(retry_at.unwrap_or(self.structure_at)), if retry_at.is_some() => Event::Retry,
            () = sleep_until(self.structure_at) => Event::Structure,
            () = sleep_until(self.all_at) => Event::All,
        }
    }
}

/// The proxy, and what of it is not settled. An audit that finds nothing settles no sync that failed, nor the reverse:
/// the fixed structure may be whole while a Service is not in the kernel.
struct Keeper<'a> {
    proxy: Proxy,
    progress: &'a ProxyProgress,
    part: &'a Part,
    sync_failed: bool,
    audit_failed: bool,
}

impl<'a> Keeper<'a> {
    fn new(proxy: Proxy, progress: &'a ProxyProgress, part: &'a Part) -> Self {
        Self {
            proxy,
            progress,
            part,
            sync_failed: false,
            audit_failed: false,
        }
    }

    /// Whether there is nothing to try again.
    fn is_settled(&self) -> bool {
        !self.sync_failed && !self.audit_failed
    }

    /// Brings a snapshot into the kernel.
    fn sync(&mut self, snapshot: &Snapshot) {
        let started = std::time::Instant::now();
        let report = self.proxy.sync(snapshot);
        if !report.waiting_for.is_empty() {
            tracing::debug!(waiting_for = ?report.waiting_for, "proxy waits for complete lists");
            return;
        }
        self.progress.queue();
        log_sync(&report);
        let failure = first_failure(&report);
        self.sync_failed = failure.is_some();
        match failure {
            Some(error) => self.failed(&error),
            None => {
                self.progress.done(started.elapsed());
                if self.is_settled() {
                    self.part.works();
                }
            }
        }
    }

    /// Compares with the kernel, as far as `audit` goes, and repairs.
    fn audit(&mut self, audit: fn(&mut Proxy) -> AuditReport) {
        let AuditReport {
            repaired,
            writes,
            failures,
        } = audit(&mut self.proxy);
        let differences = repaired.len() as u64 + writes;
        if differences > 0 {
            self.progress.repairs.fetch_add(differences, Ordering::Relaxed);
            tracing::warn!(structure = ?repaired, writes, "somebody changed what the proxy programmed, repaired");
        }
        let failed_before = std::mem::replace(&mut self.audit_failed, !failures.is_empty());
        match failures.first() {
            Some((Some(service), error)) => {
                self.failed(&format!("repair {service}: {}", with_causes(error)));
            }
            Some((None, error)) => self.failed(&format!("repair: {}", with_causes(error))),
            None if failed_before && self.is_settled() => self.part.works(),
            None => {}
        }
    }

    /// Tries again what failed.
    fn retry(&mut self, snapshot: &Snapshot) {
        if self.audit_failed {
            self.audit(Proxy::audit);
        }
        // A repair that failed left its Services to the next sync.
        self.sync(snapshot);
    }

    fn read_counters(&self) {
        match self.proxy.counters() {
            Ok(verdicts) => self.progress.set_verdicts(verdicts),
            Err(error) => tracing::debug!(error = with_causes(&error), "hook's counters cannot be read"),
        }
    }

    fn failed(&self, error: &str) {
        self.progress.failed();
        self.part.fails(error);
    }
}

fn log_sync(report: &SyncReport) {
    for fault in &report.rejected {
        tracing::warn!(service = %fault.service, reason = ?fault.reason, "part of a Service is not served");
    }
    for (service, error) in &report.failures {
        tracing::debug!(%service, error = with_causes(error), "Service is not in the kernel yet");
    }
    if !report.applied.is_empty() || report.writes > 0 {
        tracing::debug!(
            services = report.applied.len(),
            writes = report.writes,
            stale_flows = report.stale_flows,
            plan_us = report.durations.plan.as_micros(),
            apply_us = report.durations.apply.as_micros(),
            "Services programmed"
        );
    }
}

/// The first thing that a sync could not do, and how much else.
fn first_failure(report: &SyncReport) -> Option<String> {
    let services = report
        .failures
        .iter()
        .map(|(service, error)| format!("{service}: {}", with_causes(error)));
    let mut errors = report
        .common_failures
        .iter()
        .map(|error| with_causes(error))
        .chain(services);
    let first = errors.next()?;
    Some(match errors.count() {
        0 => first,
        more => format!("{first} (and {more} more)"),
    })
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

/// The proxy's own configuration, of the agent's. None where there shall be no proxy.
///
/// # Errors
/// When no cgroup v2 hierarchy is mounted.
pub fn settings(config: &Config) -> anyhow::Result<Option<proxy::Config>> {
    let datapath = match config.proxy.datapath {
        Datapath::None => return Ok(None),
        Datapath::Nftables => DatapathKind::Nftables,
        Datapath::Ebpf => DatapathKind::Ebpf {
            cgroup: match &config.proxy.cgroup {
                Some(cgroup) => cgroup.clone(),
                None => cgroup2_mount(Path::new("/proc/self/mounts"))?,
            },
            pin_dir: config.proxy.pin_dir.clone(),
        },
    };
    let public_ip = config.network.as_ref().and_then(|network| network.public_ip);
    Ok(Some(proxy::Config {
        node: config.node_name.clone(),
        datapath,
        pod_network: config
            .pod_network()
            .context("invariant: checked when the file was read")?,
        local_dns: config.dns.address,
        node_addresses: public_ip.into_iter().map(Into::into).collect(),
    }))
}

/// Where cgroup v2 is mounted: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside v1.
fn cgroup2_mount(mounts: &Path) -> anyhow::Result<PathBuf> {
    let text = std::fs::read_to_string(mounts).with_context(|| format!("read {}", mounts.display()))?;
    let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find_map(|fields| match fields.as_slice() {
        [_, directory, "cgroup2", ..] => Some(PathBuf::from(*directory)),
        _ => None,
    });
    found.context("no cgroup v2 hierarchy is mounted; proxy.datapath ebpf needs one")
}

#[cfg(test)]
mod tests {
    use model::{Change, Kind};
    use proxy::NodeContext;
    use proxy::datapath::fake::FakeDatapath;

    use super::*;
    use crate::agent::supervisor::{Health, Parts};

    #[test]
    fn a_sync_that_failed_is_tried_again_although_audits_find_nothing() {
        let fake = FakeDatapath::default();
        fake.with(|fake| fake.fail_sweep = true);
        let context = NodeContext {
            name: "node-1".into(),
            pod_network: "10.244.0.0/16".parse().expect("valid"),
            local_dns: None,
        };
        let proxy = Proxy::with_datapath(context, Box::new(fake));
        let (progress, parts) = (ProxyProgress::default(), Parts::default());
        let part = parts.part("proxy");
        let mut keeper = Keeper::new(proxy, &progress, &part);
        let mut snapshot = Snapshot::default();
        for kind in [Kind::Service, Kind::EndpointSlice] {
            snapshot.apply(Change::Synced(kind));
        }
        keeper.sync(&snapshot);
        keeper.audit(Proxy::audit_structure);
        assert!(!keeper.is_settled(), "nothing made good what failed");
        keeper.retry(&snapshot);
        assert!(keeper.is_settled());
        assert!(matches!(parts.all()["proxy"].health, Health::Working));
    }
}

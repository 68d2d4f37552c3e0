//! The proxy's thread: takes the newest snapshot, tries again what failed, and repairs what others changed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context;
use model::Snapshot;
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
    let mut proxy = Proxy::open(config).context("open the proxy's datapath")?;
    let drift = watch_drift(&proxy, shutdown.clone())?;
    let now = runtime.block_on(async { Instant::now() });
    let mut schedule = Schedule {
        snapshots,
        drift,
        structure_at: now + AUDIT_STRUCTURE,
        all_at: now + AUDIT_ALL,
        repair_not_before: now,
        retry_at: None,
    };
    // The snapshot that is there already counts as new.
    schedule.snapshots.mark_changed();
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
    loop {
        let event = runtime.block_on(schedule.next(shutdown));
        let failure = match event {
            Event::Shutdown => return Ok(()),
            Event::Snapshot | Event::Retry => {
                let newest = schedule.snapshots.borrow_and_update().clone();
                sync(&mut proxy, &newest, progress, part)
            }
            Event::Structure => {
                schedule.structure_at = Instant::now() + AUDIT_STRUCTURE;
                match proxy.counters() {
                    Ok(verdicts) => progress.set_verdicts(verdicts),
                    Err(error) => {
                        tracing::debug!(error = error.with_causes(), "hook's counters cannot be read")
                    }
                }
                audited(&proxy.audit_structure(), progress)
            }
            Event::All => {
                schedule.all_at = Instant::now() + AUDIT_ALL;
                audited(&proxy.audit(), progress)
            }
            Event::Drift => {
                schedule.repair_not_before = Instant::now() + BETWEEN_REPAIRS;
                audited(&proxy.audit(), progress)
            }
        };
        match failure {
            Some(error) => {
                progress.failed();
                part.fails(&error);
                schedule.retry_at = Some(Instant::now() + backoff.next_delay());
            }
            None => {
                schedule.retry_at = None;
                backoff.reset();
            }
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

/// Brings a snapshot into the kernel and returns what failed, all of which is tried again.
fn sync(proxy: &mut Proxy, snapshot: &Snapshot, progress: &ProxyProgress, part: &Part) -> Option<String> {
    let started = std::time::Instant::now();
    let SyncReport {
        waiting_for,
        applied,
        rejected,
        failures,
        common_failures,
        writes,
        stale_flows,
        durations,
    } = proxy.sync(snapshot);
    if !waiting_for.is_empty() {
        tracing::debug!(?waiting_for, "proxy waits for complete lists");
        return None;
    }
    progress.queue();
    for fault in rejected {
        tracing::warn!(service = %fault.service, reason = ?fault.reason, "part of a Service is not served");
    }
    for (service, error) in &failures {
        tracing::debug!(%service, error = error.with_causes(), "Service is not in the kernel yet");
    }
    if !applied.is_empty() || writes > 0 {
        let (services, plan_us, apply_us) = (
            applied.len(),
            durations.plan.as_micros(),
            durations.apply.as_micros(),
        );
        tracing::debug!(
            services,
            writes,
            stale_flows,
            plan_us,
            apply_us,
            "Services programmed"
        );
    }
    let services = failures
        .iter()
        .map(|(service, error)| format!("{service}: {}", error.with_causes()));
    let mut errors = common_failures
        .iter()
        .map(proxy::Error::with_causes)
        .chain(services);
    let Some(first) = errors.next() else {
        progress.done(started.elapsed());
        part.works();
        return None;
    };
    Some(match errors.count() {
        0 => first,
        more => format!("{first} (and {more} more)"),
    })
}

/// Takes what an audit found, and returns what it could not repair.
fn audited(report: &AuditReport, progress: &ProxyProgress) -> Option<String> {
    if report.is_clean() {
        return None;
    }
    let repaired = report.repaired.len() as u64 + report.writes;
    progress.repairs.fetch_add(repaired, Ordering::Relaxed);
    if repaired > 0 {
        let AuditReport { repaired, writes, .. } = report;
        tracing::warn!(structure = ?repaired, writes, "somebody changed what the proxy programmed, repaired");
    }
    report.failures.first().map(|(service, error)| match service {
        Some(service) => format!("repair {service}: {}", error.with_causes()),
        None => format!("repair: {}", error.with_causes()),
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
                        error = error.with_causes(),
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

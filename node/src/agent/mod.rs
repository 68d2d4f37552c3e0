//! The agent of a node.
//!
//! ```text
//! watch ─ Arc<Snapshot> ─┬► proxy (a thread of its own)         overlay ─ lease, device ─► cni (unix socket)
//!                        └► dns feed (unix socket)
//! ```
//!
//! Each is a part under one [`supervisor`]: its failure is shown on `/healthz` and in the metrics, tried again, and
//! stops no other. None of them undoes anything at its end: what is in the kernel serves on until the next agent
//! reads it back.

mod dns_address;
mod dns_feed;
mod metrics;
mod progress;
mod report;
mod socket;
mod supervisor;
mod thread;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use model::Snapshot;
use nix::fcntl::{Flock, FlockArg};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, Datapath};
use crate::watch::{self as api, ApiSource};
use report::Sources;
use supervisor::Supervisor;
use thread::on_thread;

/// Runs every part that the configuration asks for, until shutdown.
///
/// # Errors
/// Only when nothing can run at all: failures of parts are theirs.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let _only_one = own_state_dir(&config.state_dir)?;
    tracing::info!(node = %config.node_name, version = env!("CARGO_PKG_VERSION"), "agent starts");
    let (snapshots, snapshot) = watch::channel(Arc::<Snapshot>::default());
    let mut supervisor = Supervisor::new(shutdown);
    let sources = Sources {
        node: config.node_name.clone(),
        parts: supervisor.parts(),
        snapshots: snapshot.clone(),
        watches: api::Status::default(),
        proxy: (config.proxy.datapath != Datapath::None).then(Arc::default),
        feed_readers: Arc::default(),
        cni_requests: Arc::default(),
        checks: Arc::default(),
    };
    start_watch(&mut supervisor, &config, snapshots, &sources);
    start_dns(&mut supervisor, &config, &sources);
    start_reports(&mut supervisor, &config, &sources);
    supervisor.join().await;
    tracing::info!("agent ends, what it programmed stays");
    Ok(())
}

/// Makes the state directory and holds it: two agents would undo each other's work.
fn own_state_dir(path: &Path) -> anyhow::Result<Flock<File>> {
    std::fs::create_dir_all(path).with_context(|| format!("make the state directory {}", path.display()))?;
    let lock = path.join("agent.lock");
    let file = File::create(&lock).with_context(|| format!("open {}", lock.display()))?;
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    held.map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {} (does another agent run?)", lock.display()))
}

fn start_watch(
    supervisor: &mut Supervisor,
    config: &Config,
    snapshots: watch::Sender<Arc<Snapshot>>,
    sources: &Sources,
) {
    let kubernetes = &config.kubernetes;
    let source = ApiSource {
        kubeconfig: kubernetes.kubeconfig.clone(),
        host: kubernetes.service_host.clone(),
        port: kubernetes.service_port,
    };
    let status = sources.watches.clone();
    supervisor.start("watch", move |part, shutdown| {
        let run = api::run(source.clone(), snapshots.clone(), status.clone(), shutdown);
        async move {
            part.works();
            run.await;
            Ok(())
        }
    });
}

fn start_dns(supervisor: &mut Supervisor, config: &Config, sources: &Sources) {
    let path = config.dns.feed_socket.clone();
    let (snapshots, readers) = (sources.snapshots.clone(), sources.feed_readers.clone());
    supervisor.start("dns-feed", move |part, shutdown| {
        dns_feed::serve(path.clone(), snapshots.clone(), readers.clone(), part, shutdown)
    });
    let Some(address) = config.dns.address else { return };
    let state_dir = config.state_dir.clone();
    supervisor.start("dns-address", move |part, shutdown| {
        let state_dir = state_dir.clone();
        on_thread("dns-address", move || {
            dns_address::keep(address, &state_dir, &part, &shutdown)
        })
    });
}

fn start_reports(supervisor: &mut Supervisor, config: &Config, sources: &Sources) {
    let (address, health) = (config.health_bind, sources.clone());
    supervisor.start("health", move |part, shutdown| {
        report::serve_health(address, health.clone(), part, shutdown)
    });
    let (address, metrics) = (config.metrics_bind, sources.clone());
    supervisor.start("metrics", move |part, shutdown| {
        report::serve_metrics(address, metrics.clone(), part, shutdown)
    });
}

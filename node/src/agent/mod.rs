//! The agent of a node.
//!
//! ```text
//! watch ─ Arc<Snapshot> ─┬► proxy (a thread of its own) ─► health check ports
//!                        └► dns feed (unix socket)            overlay ─ lease, device ─► cni (unix socket)
//! ```
//!
//! Each is a part under one [`supervisor`]: its failure is shown on `/healthz` and in the metrics, tried again, and
//! stops no other. None of them undoes anything at its end: what is in the kernel serves on until the next agent
//! reads it back.

pub mod cleanup;
mod cni;
pub mod config_file;
mod dns_address;
mod dns_feed;
mod examining;
mod explaining;
mod findings;
mod first_sync;
mod health_check_ports;
pub mod history;
mod ip_families;
mod pod_network;
mod progress;
mod proxy_metrics;
mod report;
mod service_proxy;
mod socket;
mod supervisor;
mod sysctls;
mod thread;
mod vpc_eni;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use model::{IpFamily, Snapshot};
use nix::fcntl::{Flock, FlockArg};
use overlay::fast_path::State;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{self, Config, Datapath, LeasesIn};
use crate::doctor::ways;
use crate::telemetry::Export;
use crate::watch::{self as api, ApiSource, Events, NetworkPolicies, OwnNode, StartupTaint, Wanted};
pub use cni::conflist::NAME as CONFLIST;
use config_file::{ConfigStatus, Following, Loaded};
use dns_feed::Feed;
use first_sync::FirstSync;
use history::History;
use pod_network::{Pods, Told};
use progress::ProxyProgress;
use report::Sources;
use service_proxy::Proxying;
use supervisor::Supervisor;
use sysctls::Sysctls;
use thread::on_thread;

/// Runs every part that the configuration asks for, until shutdown.
///
/// # Errors
/// Only when nothing can run at all: failures of parts are theirs.
pub async fn run(loaded: Loaded, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = loaded.config.clone();
    let _only_one = own_state_dir(&config.state_dir)?;
    tracing::info!(node = %config.node_name, version = env!("CARGO_PKG_VERSION"), "agent starts");
    let (snapshots, snapshot) = watch::channel(Arc::<Snapshot>::default());
    let mut supervisor = Supervisor::new(shutdown);
    let (tunnel, tunnels) = watch::channel(None);
    let (fast_path, ways) = watch::channel(State::default());
    let (network, networks) = watch::channel(None);
    let pods = config
        .gives_addresses()
        .then(|| Pods::in_directory(config.state_dir.clone()));
    let (ready, readiness) = watch::channel(false);
    let (vpc_told, vpc_status) = vpc_eni::channel(&config);
    let (answered, dns_answers) = watch::channel(dns_feed::was_answered(&config.state_dir));
    let told = Told {
        tunnel,
        network,
        fast_path,
        ready,
    };
    let traces = loaded.traces.clone();
    let (following, followed) = following(loaded);
    let proxy = proxy_progress(&config);
    let sysctl_repairs = Arc::default();
    let sources = Sources {
        sysctls: Sysctls::of(
            followed.clone(),
            proxy
                .as_ref()
                .map_or_else(|| [IpFamily::V4].into(), |proxy| proxy.families.clone()),
            snapshot.clone(),
            tunnels,
            Arc::clone(&sysctl_repairs),
        ),
        config: followed,
        config_status: following.status.clone(),
        node: config.node_name.clone(),
        parts: supervisor.parts(),
        snapshots: snapshot.clone(),
        history: History::default(),
        // Without a proxy a change ends where it is told.
        watches: match proxy {
            Some(_) => api::Status::with_taker(),
            None => api::Status::default(),
        },
        api_calls: api::Calls::default(),
        traces,
        policies: reported_policies(&config),
        datapath: config.proxy.datapath,
        first_sync: FirstSync {
            snapshots: snapshot.clone(),
            proxy: proxy.as_ref().map(|proxy| proxy.served.subscribe()),
            pods: config.gives_addresses().then(|| readiness.clone()),
        },
        proxy,
        pods,
        network: networks,
        fast_path: ways,
        vpc_eni: vpc_status,
        pin_dir: config.proxy.pin_dir.clone(),
        feed_readers: Arc::default(),
        dns_answers: config.dns.address.map(|_| dns_answers.clone()),
        cni_requests: Arc::default(),
        led_outside: Arc::new(ways::LedOut::begun()),
        proven_ways: Arc::default(),
        sysctl_repairs,
        proxy_audits: Arc::default(),
        checks: Arc::default(),
    };
    supervisor.start("config", move |part, shutdown| {
        following.clone().follow(part, shutdown)
    });
    let events = start_watch(&mut supervisor, &config, snapshots, &sources);
    start_history(&mut supervisor, &sources);
    start_sysctls(&mut supervisor, &sources);
    start_policies(&mut supervisor, &config, events.clone(), &sources);
    start_startup_taint(&mut supervisor, &config, &sources);
    if let Some(told_by_vpc) = vpc_told {
        vpc_eni::start(
            &mut supervisor,
            &config,
            told.ready.clone(),
            told_by_vpc,
            &sources,
        );
    }
    start_network(&mut supervisor, &config, told, readiness, &sources);
    start_proxy(&mut supervisor, events, dns_answers, &sources);
    start_dns(&mut supervisor, &config, answered, &sources);
    start_telemetry(&mut supervisor, &config, &sources)?;
    start_reports(&mut supervisor, &config, &sources);
    supervisor.join().await;
    tracing::info!("agent ends, what it programmed stays");
    Ok(())
}

/// What follows the configuration's file, and what is told by it.
fn following(loaded: Loaded) -> (Following, watch::Receiver<Arc<Config>>) {
    let Loaded {
        config,
        fingerprint,
        file,
        log_level,
        traces: _,
    } = loaded;
    let (taken, followed) = watch::channel(Arc::new(config));
    let following = Following {
        file,
        config: taken,
        status: Arc::new(ConfigStatus::new(fingerprint)),
        log_level,
    };
    (following, followed)
}

/// The lock's name in the state directory.
const LOCK: &str = "agent.lock";

/// Makes the state directory and holds it: two agents would undo each other's work.
fn own_state_dir(path: &Path) -> anyhow::Result<Flock<File>> {
    socket::make_directory(path).with_context(|| format!("make the state directory {}", path.display()))?;
    let lock = path.join(LOCK);
    let file = File::create(&lock).with_context(|| format!("open {}", lock.display()))?;
    let held = Flock::lock(file, FlockArg::LockExclusiveNonblock);
    held.map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {} (does another agent run?)", lock.display()))
}

fn api_source(config: &Config, sources: &Sources) -> ApiSource {
    let kubernetes = &config.kubernetes;
    ApiSource {
        credentials: kubernetes.kubeconfig.clone().into(),
        host: kubernetes.service_host.clone(),
        port: kubernetes.service_port,
        calls: sources.api_calls.clone(),
    }
}

fn start_watch(
    supervisor: &mut Supervisor,
    config: &Config,
    snapshots: watch::Sender<Arc<Snapshot>>,
    sources: &Sources,
) -> Events {
    let source = api_source(config, sources);
    let (events, notices) = Events::queue();
    let (writing, node) = (source.clone(), config.node_name.clone());
    supervisor.start("events", move |part, shutdown| {
        part.works();
        let told = move |outcome: Result<(), &str>| part.tell(outcome);
        let write = notices
            .clone()
            .write(writing.clone(), node.clone(), told, shutdown);
        async move {
            write.await;
            Ok(())
        }
    });
    let (status, told) = (sources.watches.clone(), events.clone());
    supervisor.start("watch", move |part, shutdown| {
        let run = api::run(
            source.clone(),
            Wanted::by_agents(),
            snapshots.clone(),
            status.clone(),
            told.clone(),
            shutdown,
        );
        async move {
            part.works();
            run.await;
            Ok(())
        }
    });
    events
}

fn start_sysctls(supervisor: &mut Supervisor, sources: &Sources) {
    let Some(sysctls) = sources.sysctls.clone() else {
        return;
    };
    supervisor.start("sysctls", move |part, shutdown| {
        sysctls::keep(sysctls.clone(), part, shutdown)
    });
}

/// Where NetworkPolicies are told of. None where the agent has no pod network, or something else enforces them.
fn reported_policies(config: &Config) -> Option<NetworkPolicies> {
    let of_overlay = config.network.as_ref().map(|network| network.network_policies);
    let of_vpc = config.vpc_eni.as_ref().map(|vpc| vpc.network_policies);
    let is_wanted = of_overlay.or(of_vpc)? == config::NetworkPolicies::Report;
    is_wanted.then(NetworkPolicies::default)
}

fn start_history(supervisor: &mut Supervisor, sources: &Sources) {
    let (history, snapshots) = (sources.history.clone(), sources.snapshots.clone());
    supervisor.start("history", move |part, shutdown| {
        history.clone().follow(snapshots.clone(), part, shutdown)
    });
}

fn start_policies(supervisor: &mut Supervisor, config: &Config, events: Events, sources: &Sources) {
    let Some(policies) = sources.policies.clone() else {
        return;
    };
    let api = api_source(config, sources);
    supervisor.start("network-policies", move |part, shutdown| {
        let (policies, events, api) = (policies.clone(), events.clone(), api.clone());
        async move {
            let watch = policies.watch(&api, events, |outcome| part.tell(outcome));
            shutdown.run_until_cancelled(watch).await;
            Ok(())
        }
    });
}

fn start_startup_taint(supervisor: &mut Supervisor, config: &Config, sources: &Sources) {
    let Some(key) = config.node.startup_taint.clone() else {
        return;
    };
    let taint = StartupTaint {
        node: config.node_name.clone(),
        key,
        snapshots: sources.snapshots.clone(),
    };
    let first_sync = sources.first_sync.clone();
    let api = api_source(config, sources);
    supervisor.start("startup-taint", move |part, shutdown| {
        let (taint, first_sync, api) = (taint.clone(), first_sync.clone(), api.clone());
        async move {
            part.works();
            let remove = async {
                first_sync.await_all().await;
                taint.keep_off(&api, |outcome| part.tell(outcome)).await;
            };
            shutdown.run_until_cancelled(remove).await;
            Ok(())
        }
    });
}

fn start_network(
    supervisor: &mut Supervisor,
    config: &Config,
    told: Told,
    readiness: watch::Receiver<bool>,
    sources: &Sources,
) {
    let (Some(network), Some(pods)) = (&config.network, sources.pods.clone()) else {
        remove_fast_path(config);
        if config.vpc_eni.is_none() {
            remove_cni(config);
        }
        return;
    };
    let (announced, announcement) = watch::channel(None);
    let nodes = overlay::Nodes {
        snapshots: sources.snapshots.clone(),
        announced,
    };
    let Some(settings) = pod_network::settings(config, network, nodes) else {
        return;
    };
    if network.leases == LeasesIn::Kubernetes {
        let own = OwnNode {
            name: config.node_name.clone(),
            snapshots: sources.snapshots.clone(),
            announcement,
            ready: readiness,
        };
        let api = api_source(config, sources);
        supervisor.start("node-object", move |part, shutdown| {
            let (own, api) = (own.clone(), api.clone());
            async move {
                let keep = own.keep(&api, |outcome| part.tell(outcome));
                shutdown.run_until_cancelled(keep).await;
                Ok(())
            }
        });
    }
    let overlay_pods = pods.clone();
    supervisor.start("overlay", move |part, shutdown| {
        let (settings, pods) = (settings.clone(), overlay_pods.clone());
        pod_network::run(settings, pods, told.clone(), part, shutdown)
    });
    start_cni(supervisor, config, pods, sources);
}

fn start_cni(supervisor: &mut Supervisor, config: &Config, pods: Pods, sources: &Sources) {
    if !config.connects_pods() {
        remove_cni(config);
        return;
    }
    let (cni, requests) = (config.cni.clone(), sources.cni_requests.clone());
    let history = sources.history.clone();
    supervisor.start("cni", move |part, shutdown| {
        let (cni, pods, requests) = (cni.clone(), pods.clone(), requests.clone());
        let history = history.clone();
        async move { cni::serve(cni, pods.open().await?, requests, history, part, shutdown).await }
    });
}

/// What a former pod network left.
fn remove_fast_path(config: &Config) {
    if let Err(error) = ebpf::FastPath::remove(&config.proxy.pin_dir) {
        tracing::warn!(
            error = model::with_causes(&error),
            "the fast path of a former pod network cannot be removed"
        );
    }
}

/// What an earlier configuration left, by which pods were connected.
fn remove_cni(config: &Config) {
    remove_socket(&config.cni.socket);
    if let Err(error) = cni::conflist::remove(&config.cni.conf_dir) {
        tracing::warn!(
            error = format!("{error:#}"),
            "the container runtime still finds our conflist, which nobody serves"
        );
    }
}

/// Where the proxy tells how far it has come. None where there shall be no proxy.
fn proxy_progress(config: &Config) -> Option<Arc<ProxyProgress>> {
    let wanted = config.proxy.datapath != Datapath::None;
    wanted.then(|| Arc::new(ProxyProgress::new(ip_families::of_this_node())))
}

fn start_proxy(
    supervisor: &mut Supervisor,
    events: Events,
    dns_answers: watch::Receiver<bool>,
    sources: &Sources,
) {
    let Some(progress) = &sources.proxy else {
        return;
    };
    let proxying = Proxying {
        config: sources.config.clone(),
        snapshots: sources.snapshots.clone(),
        dns_answers,
        audits: sources.proxy_audits.clone(),
        progress: progress.clone(),
        events,
        watches: sources.watches.clone(),
        runtime: Handle::current(),
    };
    supervisor.start("proxy", move |part, shutdown| {
        let proxying = proxying.clone();
        on_thread("proxy", move || service_proxy::run(proxying, &part, &shutdown))
    });
    let progress = progress.clone();
    supervisor.start("health-check-ports", move |part, shutdown| {
        health_check_ports::serve(progress.clone(), part, shutdown)
    });
}

fn start_dns(supervisor: &mut Supervisor, config: &Config, answered: watch::Sender<bool>, sources: &Sources) {
    if !config.dns.enabled {
        remove_dns_address(&config.state_dir);
        remove_socket(&config.dns.feed_socket);
        return;
    }
    let feed = Feed {
        path: config.dns.feed_socket.clone(),
        snapshots: sources.snapshots.clone(),
        readers: sources.feed_readers.clone(),
        address: config.dns.address,
        state_dir: config.state_dir.clone(),
        answered,
    };
    supervisor.start("dns-feed", move |part, shutdown| {
        dns_feed::serve(feed.clone(), part, shutdown)
    });
    let Some(address) = config.dns.address else {
        remove_dns_address(&config.state_dir);
        return;
    };
    let state_dir = config.state_dir.clone();
    supervisor.start("dns-address", move |part, shutdown| {
        let state_dir = state_dir.clone();
        on_thread("dns-address", move || {
            dns_address::keep(address, &state_dir, &part, &shutdown)
        })
    });
}

/// The one that an earlier configuration gave to `lo`.
fn remove_dns_address(state_dir: &Path) {
    match dns_address::remove(state_dir) {
        Ok(true) => tracing::info!("DNS address of the configuration before taken from lo"),
        Ok(false) => {}
        Err(error) => tracing::warn!(
            error = format!("{error:#}"),
            "an earlier DNS address, if there was one, stays on lo"
        ),
    }
}

/// The one of an agent that crashed, or of an earlier configuration. Another agent's, whose state is elsewhere, stays.
fn remove_socket(path: &Path) {
    if socket::is_served(path) {
        return;
    }
    if let Err(error) = socket::remove(path) {
        tracing::warn!(
            socket = %path.display(),
            error = model::with_causes(&error),
            "a socket that nobody serves stays"
        );
    }
}

fn start_telemetry(supervisor: &mut Supervisor, config: &Config, sources: &Sources) -> anyhow::Result<()> {
    let url = config.telemetry.traces().map_err(anyhow::Error::msg)?;
    let (Some(url), Some(traces)) = (url, sources.traces.clone()) else {
        return Ok(());
    };
    let export = Export {
        url,
        ca_file: config.telemetry.ca_file.clone(),
        node: config.node_name.0.to_string(),
    };
    supervisor.start("telemetry", move |part, shutdown| {
        let (traces, export) = (traces.clone(), export.clone());
        async move {
            traces
                .export(export, |outcome| part.tell(outcome), shutdown)
                .await
        }
    });
    Ok(())
}

fn start_reports(supervisor: &mut Supervisor, config: &Config, sources: &Sources) {
    let health = sources.clone();
    supervisor.start("health", move |part, shutdown| {
        report::serve_health(health.clone(), part, shutdown)
    });
    let metrics = sources.clone();
    supervisor.start("metrics", move |part, shutdown| {
        report::serve_metrics(metrics.clone(), part, shutdown)
    });
    let (state_dir, all) = (config.state_dir.clone(), sources.clone());
    supervisor.start("findings", move |part, shutdown| {
        let (state_dir, sources) = (state_dir.clone(), all.clone());
        async move { findings::serve(&state_dir, sources, part, shutdown).await }
    });
}

//! `causeway status`, and the waits of `up`.

use std::collections::BTreeMap;
use std::fmt::{Debug, Write as _};
use std::future::Future;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, Config};
use model::with_causes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StateDirArg;
use crate::layout::StateDir;
use crate::owner::{self, Owner};
use crate::settings::Settings;
use crate::silence;
use crate::supervise::{self, Processes};

/// Between two questions whether the API server is there; it has no way to tell us.
const POLL: Duration = Duration::from_millis(20);

/// Flags of `status`.
#[derive(Clone, Debug, clap::Args)]
pub struct StatusArgs {
    #[command(flatten)]
    state_dir: StateDirArg,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What `status` prints.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    state_dir: String,
    kubeconfig: String,
    settings: Settings,
    supervisor_running: bool,
    processes: Processes,
    /// Programs that run and do nothing, by name, and why.
    silent: BTreeMap<String, String>,
    api_ready: bool,
    /// Why nodes and pods are not known.
    api_error: Option<String>,
    nodes: Vec<NodeReport>,
    /// Of `pods`; none where it is not known.
    pods_running: Option<usize>,
    /// Pods that have not finished; none where it is not known.
    pods: Option<usize>,
}

#[derive(Debug, Serialize)]
struct NodeReport {
    name: String,
    ready: bool,
    reason: String,
    /// When its kubelet last said so.
    #[serde(skip)]
    heartbeat: Option<Timestamp>,
}

impl Report {
    fn is_good(&self) -> bool {
        self.supervisor_running
            && self.api_ready
            && self.processes.values().all(|process| process.pid.is_some())
            && self.silent.is_empty()
            && self.pods.is_some()
            && self.nodes.len() == usize::from(self.settings.nodes)
            && self.nodes.iter().all(|node| node.ready)
    }
}

/// Prints what runs; the exit code says whether all is well.
pub fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let state = args.state_dir.open()?;
    let supervisor_running = match owner::find()? {
        Owner::Running(dir) if dir == state.root() => true,
        Owner::Remains(dir) if dir == state.root() => false,
        Owner::Nobody => bail!("no cluster is up; causeway up makes one"),
        Owner::Running(dir) | Owner::Remains(dir) => {
            bail!(
                "no cluster is up in {}; the one on this machine is in {}",
                state.root().display(),
                dir.display()
            )
        }
    };
    // To others everything would seem to be down.
    ensure!(
        nix::unistd::geteuid().is_root(),
        "must run as root: what runs of the cluster in {} is root's to see",
        state.root().display()
    );
    let Some(settings) = Settings::load(&state.settings())? else {
        bail!("{} is missing", state.settings().display());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(collect(&state, settings, supervisor_running));
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print!("{}", text(&report)),
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

async fn collect(state: &StateDir, settings: Settings, supervisor_running: bool) -> Report {
    let processes = running_processes(state);
    let mut report = Report {
        state_dir: state.root().display().to_string(),
        kubeconfig: state.admin_kubeconfig().display().to_string(),
        settings,
        supervisor_running,
        silent: silence::of(state, &processes).await,
        processes,
        api_ready: false,
        api_error: None,
        nodes: Vec::new(),
        pods_running: None,
        pods: None,
    };
    report.api_error = ask_api(state, &mut report).await.err();
    report
}

/// What the API server says of nodes and pods. An error is for people.
async fn ask_api(state: &StateDir, report: &mut Report) -> Result<(), String> {
    let told = |error: anyhow::Error| with_causes(error.as_ref());
    let client = client(&state.admin_kubeconfig()).await.map_err(told)?;
    let nodes = silence::in_time(list::<Node>(client.clone())).await?;
    report.api_ready = true;
    report.nodes = nodes.iter().map(node_report).collect();
    let pods = silence::in_time(list::<Pod>(client)).await?;
    let phases = pods
        .iter()
        .map(|pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()));
    let unfinished: Vec<_> = phases
        .filter(|phase| !matches!(phase, Some("Succeeded" | "Failed")))
        .collect();
    let running = unfinished.iter().filter(|phase| **phase == Some("Running"));
    report.pods = Some(unfinished.len());
    report.pods_running = Some(running.count());
    Ok(())
}

async fn list<K>(client: Client) -> Result<Vec<K>, kube::Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let all = Api::<K>::all(client).list(&ListParams::default()).await?;
    Ok(all.items)
}

/// What the supervisor last wrote, less what ended since: a supervisor that is gone writes nothing any more.
fn running_processes(state: &StateDir) -> Processes {
    let mut processes = supervise::read_processes(&state.processes()).unwrap_or_default();
    for process in processes.values_mut() {
        process.pid = process.pid.filter(|&pid| is_ours(pid));
    }
    processes
}

/// A pid may be free or somebody else's by now, or a zombie's that nobody reaps (proc_pid_stat(5)).
fn is_ours(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let Some((pid_and_name, rest)) = stat.rsplit_once(") ") else {
        return false;
    };
    pid_and_name.contains("(causeway") && !rest.starts_with('Z')
}

fn node_report(node: &Node) -> NodeReport {
    let mut conditions = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.find(|condition| condition.type_ == "Ready");
    NodeReport {
        name: node.metadata.name.clone().unwrap_or_default(),
        ready: ready.is_some_and(|condition| condition.status == "True"),
        reason: ready
            .and_then(|condition| condition.message.clone())
            .unwrap_or_default(),
        heartbeat: ready
            .and_then(|condition| condition.last_heartbeat_time.as_ref())
            .map(|time| time.0),
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let mark = |good: bool| if good { "✓" } else { "✗" };
    let _ = writeln!(out, "cluster in {}", report.state_dir);
    let _ = writeln!(out, "  {} supervisor", mark(report.supervisor_running));
    let _ = writeln!(
        out,
        "  {} API server  https://{}",
        mark(report.api_ready),
        report.settings.api_address()
    );
    for (name, process) in &report.processes {
        let pid = process
            .pid
            .map_or_else(|| "not running".to_owned(), |pid| format!("pid {pid}"));
        let silence = report.silent.get(name);
        let is_good = process.pid.is_some() && silence.is_none();
        let _ = write!(out, "  {} {name:<20} {pid}", mark(is_good));
        if let Some(silence) = silence {
            let _ = write!(out, ", {silence}");
        }
        if process.restarts > 0 {
            let _ = write!(out, ", {} restarts", process.restarts);
        }
        let exit = process.last_exit.as_ref().filter(|_| process.pid.is_none());
        let _ = writeln!(
            out,
            "{}",
            exit.map(|exit| format!(" ({exit})")).unwrap_or_default()
        );
    }
    for node in &report.nodes {
        let state = if node.ready { "Ready" } else { node.reason.as_str() };
        let _ = writeln!(out, "  {} {:<20} {state}", mark(node.ready), node.name);
    }
    if let Some(error) = &report.api_error {
        let _ = writeln!(out, "  ? the API server does not tell: {error}");
    }
    let _ = match (report.pods_running, report.pods) {
        (Some(running), Some(pods)) => writeln!(out, "  pods running: {running} of {pods}"),
        _ => writeln!(out, "  pods running: unknown"),
    };
    let _ = writeln!(out, "\n  export KUBECONFIG={}", report.kubeconfig);
    out
}

/// A client for the cluster.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let kubeconfig =
        Kubeconfig::read_from(kubeconfig).with_context(|| format!("reading {}", kubeconfig.display()))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Waits until the API server says that it is ready.
pub async fn wait_for_api(state: &StateDir, timeout: Duration) -> anyhow::Result<()> {
    let client = client(&state.admin_kubeconfig()).await?;
    let request = || http::Request::get("/readyz").body(Vec::new());
    let mut supervisor = SupervisorWatch::default();
    within(timeout, "the API server did not get ready", async {
        loop {
            if client.request_text(request()?).await.is_ok() {
                return Ok(());
            }
            supervisor.ensure_alive(state)?;
            tokio::time::sleep(POLL).await;
        }
    })
    .await
}

/// What nodes shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Their kubelets have told of them.
    Registered,
    /// Pods can run on them.
    Ready,
}

/// Waits until every node is what is wanted, by a heartbeat not older than `since`: what a kept store still says of the
/// time before does not count.
pub async fn wait_for_nodes(
    state: &StateDir,
    settings: &Settings,
    wanted: Wanted,
    since: SystemTime,
    timeout: Duration,
) -> anyhow::Result<()> {
    // Heartbeats are told in whole seconds.
    let since = Timestamp::from_second(Timestamp::try_from(since)?.as_second())?;
    let nodes: Api<Node> = Api::all(client(&state.admin_kubeconfig()).await?);
    let mut missing: BTreeMap<String, String> = settings
        .node_names()
        .map(|name| (name, "not registered".to_owned()))
        .collect();
    let mut events = std::pin::pin!(watcher(nodes, watcher::Config::default()).default_backoff());
    let mut supervisor = SupervisorWatch::default();
    let all_ready = async {
        while let Some(event) = events.next().await {
            let node = match event {
                Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node)) => node,
                Ok(_) => continue,
                Err(_) => {
                    supervisor.ensure_alive(state)?;
                    continue;
                }
            };
            let report = node_report(&node);
            let good = report.ready || wanted == Wanted::Registered;
            if good && report.heartbeat.is_some_and(|heartbeat| heartbeat >= since) {
                missing.remove(&report.name);
            } else {
                missing.insert(report.name, report.reason);
            }
            if missing.is_empty() {
                break;
            }
        }
        Ok(())
    };
    if let Ok(result) = tokio::time::timeout(timeout, all_ready).await {
        return result;
    }
    let missing: Vec<_> = missing
        .iter()
        .map(|(name, why)| format!("{name}: {why}"))
        .collect();
    let wanted = match wanted {
        Wanted::Registered => "registered",
        Wanted::Ready => "Ready",
    };
    bail!(
        "not {wanted} after {} s: {}",
        timeout.as_secs(),
        missing.join("; ")
    )
}

/// Tells whether there is still something to wait for. The supervisor takes its lock some time after its start: it
/// counts as gone only once it was seen.
#[derive(Default)]
struct SupervisorWatch {
    seen: bool,
}

impl SupervisorWatch {
    fn ensure_alive(&mut self, state: &StateDir) -> anyhow::Result<()> {
        let alive = matches!(owner::find()?, Owner::Running(dir) if dir == state.root());
        if self.seen && !alive {
            bail!("the supervisor ended while the cluster came up");
        }
        self.seen |= alive;
        Ok(())
    }
}

async fn within<T>(
    timeout: Duration,
    what: &str,
    wait: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(timeout, wait).await {
        Ok(result) => result,
        Err(_) => bail!("{what} within {} s", timeout.as_secs()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_living_process_of_ours_counts_as_running() {
        assert!(is_ours(std::process::id()), "this test is named after its crate");
        assert!(!is_ours(1), "another's process");
        assert!(!is_ours(u32::MAX), "no process");
    }
}

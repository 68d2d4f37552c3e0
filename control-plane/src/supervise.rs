//! The supervisor: starts the control plane and each node's daemons, and starts again what ends.
//!
//! It stands where systemd stands on a real machine. Its own death ends nothing: its children go on, and the next
//! `up` takes the cluster down to its state and brings it up again.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// First wait before a restart; doubles to [`MAX_BACKOFF`], and starts over after [`STABLE`].
const MIN_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);
const STABLE: Duration = Duration::from_secs(30);
/// How long a child may take to end after SIGTERM.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A program to keep running.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unit {
    /// Its name: log file and status line.
    pub name: String,
    /// Absolute path and arguments.
    pub command: Vec<String>,
    /// Where its output goes.
    pub log: PathBuf,
}

/// What is known of a supervised program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its pid while it runs.
    pub pid: Option<u32>,
    /// How often it was started again.
    pub restarts: u32,
    /// How it ended last, in words.
    pub last_exit: Option<String>,
}

/// Supervised programs by name.
pub type Processes = BTreeMap<String, Process>;

/// Reads what the supervisor last wrote.
pub fn read_processes(path: &Path) -> anyhow::Result<Processes> {
    let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

/// Runs all units until SIGTERM or SIGINT, then stops them, all at once. `logs` is the directory of their logs.
pub async fn supervise(units: Vec<Unit>, status: PathBuf, logs: PathBuf) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let table = Arc::new(Table {
        path: status,
        processes: Mutex::default(),
    });
    let mut tasks: Vec<_> = units
        .into_iter()
        .map(|unit| tokio::spawn(keep_running(unit, Arc::clone(&table), shutdown.clone())))
        .collect();
    tasks.push(tokio::spawn(crate::logs::keep_short(logs, shutdown.clone())));
    wait_for_signal().await?;
    info!("stopping");
    shutdown.cancel();
    for task in tasks {
        task.await?;
    }
    Ok(())
}

/// Returns when this process is asked to end.
pub async fn wait_for_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn keep_running(unit: Unit, table: Arc<Table>, shutdown: CancellationToken) {
    let mut backoff = MIN_BACKOFF;
    loop {
        let began = Instant::now();
        match start(&unit) {
            Ok(child) => {
                info!(unit = unit.name, pid = child.id(), "started");
                table.update(&unit.name, |process| process.pid = child.id());
                let exit = run_to_end(child, &shutdown).await;
                warn_unless_stopping(&unit, &exit, &shutdown);
                table.update(&unit.name, |process| {
                    process.pid = None;
                    process.last_exit = Some(exit);
                });
            }
            Err(error) => {
                warn!(unit = unit.name, error = format!("{error:#}"), "cannot start");
                table.update(&unit.name, |process| {
                    process.last_exit = Some(format!("{error:#}"))
                });
            }
        }
        if began.elapsed() > STABLE {
            backoff = MIN_BACKOFF;
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
        table.update(&unit.name, |process| process.restarts += 1);
    }
}

fn warn_unless_stopping(unit: &Unit, exit: &str, shutdown: &CancellationToken) {
    if shutdown.is_cancelled() {
        info!(unit = unit.name, exit, "stopped");
    } else {
        warn!(unit = unit.name, exit, "ended, will be started again");
    }
}

fn start(unit: &Unit) -> anyhow::Result<Child> {
    let [program, arguments @ ..] = unit.command.as_slice() else {
        anyhow::bail!("no program given")
    };
    let log = open_log(&unit.log)?;
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {program}"))
}

/// Appends, so that a restart does not take away the reason of the end before it.
pub fn open_log(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

async fn run_to_end(mut child: Child, shutdown: &CancellationToken) -> String {
    tokio::select! {
        exit = child.wait() => return describe(exit),
        () = shutdown.cancelled() => {}
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
    }
    match tokio::time::timeout(STOP_TIMEOUT, child.wait()).await {
        Ok(exit) => describe(exit),
        Err(_) => {
            let _ = child.kill().await;
            "killed: did not end in time".to_owned()
        }
    }
}

fn describe(exit: std::io::Result<std::process::ExitStatus>) -> String {
    match exit {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

struct Table {
    path: PathBuf,
    processes: Mutex<Processes>,
}

impl Table {
    fn update(&self, name: &str, edit: impl FnOnce(&mut Process)) {
        let mut processes = self.processes.lock().unwrap_or_else(PoisonError::into_inner);
        edit(processes.entry(name.to_owned()).or_default());
        if let Err(error) = self.write(&processes) {
            warn!(
                error = format!("{error:#}"),
                "cannot write the table of processes"
            );
        }
    }

    fn write(&self, processes: &Processes) -> anyhow::Result<()> {
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, serde_json::to_vec_pretty(processes)?)?;
        fs::rename(&temporary, &self.path)?;
        Ok(())
    }
}

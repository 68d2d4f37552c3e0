//! Containers on this node, each behind its shim.
//!
//! The kubelet starts a shim and reads one line from it; after that it knows the container by its directory alone, so
//! that a kubelet that was restarted knows as much as the one that started it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::cgroup::Cgroup;
use crate::disk::{self, DiskError, OnPath};
use crate::process::{ProcessIdentity, Signal};
use crate::shim::state::{ContainerDir, ContainerRequest, Exit, Report, Started};

/// How long a shim may take to make a container.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// How long the kernel may take to end what was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);
/// Exit code of a container whose end nobody saw, as Kubernetes reports it (`ContainerStatusUnknown`).
pub const UNKNOWN_EXIT_CODE: i32 = 137;

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The node failed to prepare it.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The shim or the container could not be made; the text says why.
    #[error("{0}")]
    Refused(String),
}

/// A container that runs, or ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// What it was made of.
    pub request: ContainerRequest,
    /// When and as which process it started.
    pub started: Started,
    directory: ContainerDir,
    shim: ProcessIdentity,
}

/// The containers of one node.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(crate) shim: PathBuf,
    directory: PathBuf,
}

impl Runtime {
    /// Containers are kept below `directory`, each run by the program `shim`.
    pub fn open(shim: &Path, directory: &Path) -> Result<Self, DiskError> {
        disk::make_dir(directory)?;
        Ok(Self {
            shim: shim.to_owned(),
            directory: directory.to_owned(),
        })
    }

    /// The directory of a container.
    pub fn container_dir(&self, id: &str) -> ContainerDir {
        ContainerDir(self.directory.join(id))
    }

    /// Starts a container. When that fails nothing of it is left.
    pub async fn start(
        &self,
        request: ContainerRequest,
        oci_config: &Value,
    ) -> Result<Container, StartError> {
        let directory = self.container_dir(&request.id);
        disk::make_dir(directory.path())?;
        disk::write_json_for_now(&directory.oci_config(), oci_config)?;
        disk::write_json(&directory.request(), &request)?;
        let outcome = tokio::time::timeout(START_DEADLINE, self.run_shim(&directory)).await;
        let report = match outcome {
            Ok(report) => report?,
            Err(_) => Report::Failed("the shim did not start the container in time".to_owned()),
        };
        match (report, disk::read_json(&directory.shim())?) {
            (Report::Started(started), Some(shim)) => Ok(Container {
                request,
                started,
                directory,
                shim,
            }),
            (Report::Started(_), None) => {
                self.destroy_aside(&request).await?;
                Err(StartError::Refused("the shim left no identity".to_owned()))
            }
            (Report::Failed(reason), _) => {
                self.destroy_aside(&request).await?;
                Err(StartError::Refused(reason))
            }
        }
    }

    async fn run_shim(&self, directory: &ContainerDir) -> Result<Report, DiskError> {
        let log = directory.shim_log();
        let stderr = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .on("open", &log)?;
        let mut child = Command::new(&self.shim)
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .on("execute", &self.shim)?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .await
                .on("read from", &self.shim)?;
        }
        Ok(serde_json::from_str(&line).unwrap_or_else(|_| {
            let said = fs::read_to_string(&log).unwrap_or_default();
            Report::Failed(format!("the shim ended without a report: {}", said.trim_end()))
        }))
    }

    /// Every container that an earlier kubelet started, running or not, oldest first. What was never started is
    /// removed, and so is one whose files are damaged: the pod's worker starts it anew.
    pub fn adopt(&self) -> Result<Vec<Container>, DiskError> {
        let mut containers = Vec::new();
        for entry in fs::read_dir(&self.directory).on("read", &self.directory)? {
            let directory = ContainerDir(entry.on("read", &self.directory)?.path());
            let request: Option<ContainerRequest> = disk::read_json_if_whole(&directory.request())?;
            let started: Option<Started> = disk::read_json_if_whole(&directory.started())?;
            let shim: Option<ProcessIdentity> = disk::read_json_if_whole(&directory.shim())?;
            match (request, started, shim) {
                (Some(request), Some(started), Some(shim)) => {
                    containers.push(Container {
                        request,
                        started,
                        directory,
                        shim,
                    });
                }
                (request, started, shim) => {
                    shim.map(|shim| shim.kill_and_wait(KILL_DEADLINE));
                    started.map(|started| started.init.kill_and_wait(KILL_DEADLINE));
                    let destroyed = request.map_or(Ok(()), |request| self.destroy(&request));
                    if let Err(error) = destroyed.and(disk::remove_tree(directory.path())) {
                        tracing::warn!(%error, "remains of a container, left to the next start of the kubelet");
                    }
                }
            }
        }
        containers.sort_by_key(|container| container.request.created_at);
        Ok(containers)
    }

    /// Removes what is on disk of a container that has ended. Its cgroup may belong to its successor by now.
    pub fn forget(&self, request: &ContainerRequest) -> Result<(), DiskError> {
        let directory = self.container_dir(&request.id);
        let shim: Option<ProcessIdentity> = disk::read_json(&directory.shim())?;
        shim.map(|shim| shim.end_or_kill(KILL_DEADLINE));
        disk::remove_tree(directory.path())
    }

    /// As [`Runtime::destroy`], on a thread that may block.
    pub async fn destroy_aside(&self, request: &ContainerRequest) -> Result<(), DiskError> {
        let (runtime, request) = (self.clone(), request.clone());
        let directory = self.container_dir(&request.id);
        tokio::task::spawn_blocking(move || runtime.destroy(&request))
            .await
            .unwrap_or_else(|lost| Err(lost).on("destroy the container in", directory.path()))
    }

    /// Kills what is left of a container and forgets it. Blocks until its processes are gone.
    pub fn destroy(&self, request: &ContainerRequest) -> Result<(), DiskError> {
        let cgroup = Cgroup::at(&request.cgroup)?;
        cgroup.kill_all(KILL_DEADLINE);
        let shim: Option<ProcessIdentity> =
            disk::read_json_if_whole(&self.container_dir(&request.id).shim())?;
        if let Some(shim) = shim {
            // It sees its container end and takes it apart; it must not write into a directory that is being removed.
            shim.end_or_kill(KILL_DEADLINE);
        }
        let removed = cgroup.remove();
        disk::remove_tree(self.container_dir(&request.id).path()).and(removed)
    }
}

impl Container {
    /// How it ended; `None` while it runs.
    pub fn exit(&self) -> Result<Option<Exit>, DiskError> {
        disk::read_json(&self.directory.exit())
    }

    /// Waits for its end.
    pub async fn ended(&self) -> Exit {
        self.shim.ended().await;
        if let Ok(Some(exit)) = self.exit() {
            return exit;
        }
        // The shim was killed: nobody reads the output or will see the exit code, so the container goes too.
        self.started.init.signal(Signal::KILL);
        self.started.init.ended().await;
        let exit = Exit {
            code: UNKNOWN_EXIT_CODE,
            signal: None,
            oom_killed: false,
            finished_at: Timestamp::now(),
        };
        if let Err(error) = disk::write_json(&self.directory.exit(), &exit) {
            tracing::error!(%error, "exit not recorded");
        }
        exit
    }

    /// Sends a signal to its process 1; false when that is gone.
    pub fn signal(&self, signal: Signal) -> bool {
        self.started.init.signal(signal)
    }
}

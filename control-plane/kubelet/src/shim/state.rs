//! What the kubelet and a shim tell each other on disk, in the container's directory:
//!
//! | file | written by | holds |
//! |---|---|---|
//! | `request.json` | kubelet | [`ContainerRequest`] |
//! | `config.json` | kubelet | the OCI specification |
//! | `shim.json` | shim | its own identity |
//! | `started.json` | shim | [`Started`] |
//! | `exit.json` | shim | [`Exit`], the last thing it writes |
//! | `shim.log` | shim | its own messages |

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::pod::sub_path::SubPath;
use crate::process::ProcessIdentity;

/// What a container is made of. It also carries what the kubelet needs to know it again after a restart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerRequest {
    /// Container id, the name of its directory.
    pub id: String,
    /// Namespace of the pod.
    pub pod_namespace: String,
    /// Name of the pod.
    pub pod_name: String,
    /// Uid of the pod.
    pub pod_uid: String,
    /// Name of the container in the pod.
    pub container: String,
    /// How many containers of this name the pod had before: `restartCount`.
    pub attempt: u32,
    /// Image reference, as the pod names it.
    pub image: String,
    /// Id of the image.
    pub image_id: String,
    /// Directory with the image's files, the lower layer.
    pub image_rootfs: PathBuf,
    /// cgroup v2 directory of the container.
    pub cgroup: PathBuf,
    /// It has a terminal.
    #[serde(default)]
    pub terminal: bool,
    /// Its standard input.
    #[serde(default)]
    pub stdin: Stdin,
    /// The log file that the shim writes.
    pub log: PathBuf,
    /// File that the container sees as its termination message.
    pub termination_log: PathBuf,
    /// Its last words are the end of its log, when it has written none (`FallbackToLogsOnError`).
    #[serde(default)]
    pub falls_back_to_log: bool,
    /// It stands in a PID namespace with others: those of its pod, or the node.
    #[serde(default, alias = "hostPid")]
    pub shares_pids: bool,
    /// Parts of volumes, which the shim mounts at [`ContainerDir::sub_path`] for the OCI specification to name.
    #[serde(default)]
    pub sub_paths: Vec<SubPath>,
    /// When the kubelet asked for it.
    pub created_at: Timestamp,
}

/// A container's standard input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stdin {
    /// Ends at once.
    #[default]
    Closed,
    /// Ends when the first who was attached leaves (`stdinOnce`).
    Once,
    /// Stays open whoever is attached.
    Kept,
}

/// A container that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Started {
    /// Process 1 of the container.
    pub init: ProcessIdentity,
    /// When.
    pub started_at: Timestamp,
}

/// A container that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Exit {
    /// Exit code; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed one of its processes for want of memory.
    pub oom_killed: bool,
    /// When.
    pub finished_at: Timestamp,
}

/// The shim's one line on its standard output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// The container runs.
    Started(Started),
    /// It could not be made.
    Failed(String),
}

/// What became of a command that was to run in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ExecOutcome {
    /// It ran. The exit code; 128 + signal when a signal ended it.
    Exited(i32),
    /// It could not be started; why not.
    NotStarted(String),
}

/// Paths in the directory of one command that runs in a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecDir(pub PathBuf);

impl ExecDir {
    /// The process of the OCI specification.
    pub fn process(&self) -> PathBuf {
        self.0.join("process.json")
    }

    /// The socket that is given the master of the command's terminal; absent where it has none.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    /// What the runtime has to say. It goes with the directory: a probe's commands are many.
    pub fn log(&self) -> PathBuf {
        self.0.join("helper.log")
    }

    /// The identity of its process, once it runs.
    pub fn started(&self) -> PathBuf {
        self.0.join("started.json")
    }

    /// The outcome.
    pub fn outcome(&self) -> PathBuf {
        self.0.join("outcome.json")
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Paths in a container's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerDir(pub PathBuf);

impl ContainerDir {
    /// The request.
    pub fn request(&self) -> PathBuf {
        self.0.join("request.json")
    }

    /// The OCI specification; its directory is the bundle.
    pub fn oci_config(&self) -> PathBuf {
        self.0.join("config.json")
    }

    /// The shim's identity.
    pub fn shim(&self) -> PathBuf {
        self.0.join("shim.json")
    }

    /// The start.
    pub fn started(&self) -> PathBuf {
        self.0.join("started.json")
    }

    /// The end.
    pub fn exit(&self) -> PathBuf {
        self.0.join("exit.json")
    }

    /// The shim's own log.
    pub fn shim_log(&self) -> PathBuf {
        self.0.join("shim.log")
    }

    /// Where the root file system is mounted in the shim's mount namespace.
    pub fn rootfs(&self) -> PathBuf {
        self.0.join("rootfs")
    }

    /// Where the `index`th part of a volume is mounted in the shim's mount namespace.
    pub fn sub_path(&self, index: usize) -> PathBuf {
        self.0.join("subpaths").join(index.to_string())
    }

    /// The container's own layer.
    pub fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    /// overlayfs's work directory.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }

    /// The socket at which the shim listens for whoever attaches.
    pub fn attach(&self) -> PathBuf {
        self.0.join("attach.sock")
    }

    /// The socket that is given the container's terminal.
    pub fn console(&self) -> PathBuf {
        self.0.join("console.sock")
    }

    /// Commands that run in the container, a directory each.
    pub fn execs(&self) -> PathBuf {
        self.0.join("exec")
    }

    /// libcontainer's state.
    pub fn runtime(&self) -> PathBuf {
        self.0.join("libcontainer")
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

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
    /// The log file that the shim writes.
    pub log: PathBuf,
    /// File that the container sees as its termination message.
    pub termination_log: PathBuf,
    /// It stands in the node's PID namespace.
    #[serde(default)]
    pub host_pid: bool,
    /// When the kubelet asked for it.
    pub created_at: Timestamp,
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

    /// The container's own layer.
    pub fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }

    /// overlayfs's work directory.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
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

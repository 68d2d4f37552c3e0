//! Removing everything that a kubelet made, without the kubelet: for `causeway down`, and for `up` after a crash.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};

use crate::cgroup::Cgroup;
use crate::disk::{self, DiskError};
use crate::sandbox::Sandbox;
use crate::shim::state::ContainerRequest;

/// How long the kernel may take to end what was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Kills the containers of a node and removes its mounts, network namespaces, cgroups (v1 and v2) and pod files.
///
/// `state_dir` is the kubelet's; `cgroup` the node's v2 directory. Images and whatever else is below the state
/// directory stay. Everything is tried; the first failure is reported. What is not there is no failure.
pub fn cleanup(state_dir: &Path, cgroup: &Path) -> Result<(), DiskError> {
    let node = Cgroup::at(cgroup)?;
    node.child("pods").kill_all(KILL_DEADLINE);
    let mut outcome = Ok(());
    let mut keep = |result: Result<(), DiskError>| {
        if let (Ok(()), Err(error)) = (&outcome, result) {
            outcome = Err(error);
        }
    };
    for directory in entries(&state_dir.join("containers")) {
        let request: Option<ContainerRequest> =
            disk::read_json(&directory.join("request.json")).ok().flatten();
        let shim: Option<crate::process::ProcessIdentity> =
            disk::read_json(&directory.join("shim.json")).ok().flatten();
        if let Some(request) = &request
            && let Ok(cgroup) = Cgroup::at(&request.cgroup)
        {
            cgroup.kill_all(KILL_DEADLINE);
        }
        shim.map(|shim| shim.end_or_kill(KILL_DEADLINE));
        keep(disk::remove_tree(&directory));
    }
    for directory in entries(&state_dir.join("pods")) {
        let sandbox: Option<Sandbox> = disk::read_json(&directory.join("sandbox.json")).ok().flatten();
        if let Some(error) = sandbox.and_then(|sandbox| sandbox.forget_namespace().err()) {
            tracing::warn!(%error, "network namespace of a pod not removed");
        }
    }
    keep(unmount_below(state_dir));
    for name in ["pods", "log"] {
        keep(disk::remove_tree(&state_dir.join(name)));
    }
    keep(node.child("pods").remove());
    keep(node.remove_v1());
    node.prune_v1();
    outcome
}

fn entries(directory: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

/// Detaches what is mounted below, innermost first.
fn unmount_below(directory: &Path) -> Result<(), DiskError> {
    use crate::disk::OnPath as _;
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let targets = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(Path::new);
    let mut below: Vec<&Path> = targets.filter(|target| target.starts_with(directory)).collect();
    below.sort_by_key(|target| std::cmp::Reverse(target.components().count()));
    for target in below {
        umount2(target, MntFlags::MNT_DETACH).on("unmount", target)?;
    }
    Ok(())
}

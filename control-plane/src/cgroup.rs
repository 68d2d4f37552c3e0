//! The cluster's part of the cgroup v2 tree: `<mount>/causeway/…`.
//!
//! Every process of the cluster stands in it, so that ending the cluster is ending this subtree: no pid file can be
//! stale, no process can be missed.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Name of the cluster's subtree.
const ROOT: &str = "causeway";

/// The cluster's cgroup v2 subtree.
#[derive(Clone, Debug)]
pub struct Cgroup {
    root: PathBuf,
}

impl Cgroup {
    /// Finds the cgroup v2 mount (`/sys/fs/cgroup`, or `…/unified` where v1 is mounted beside it).
    pub fn find() -> anyhow::Result<Self> {
        let mounts = mounts()?;
        let mount = v2_mount(&mounts)
            .ok_or_else(|| anyhow!("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup"))?;
        Ok(Self {
            root: Path::new(mount).join(ROOT),
        })
    }

    /// The control plane's cgroup.
    pub fn control_plane(&self) -> PathBuf {
        self.root.join("control-plane")
    }

    /// The supervisor's cgroup.
    pub fn supervisor(&self) -> PathBuf {
        self.root.join("supervisor")
    }

    /// A node's subtree: `system` for its daemons, `pods` for its pods.
    pub fn node(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The cgroup of a node's daemons.
    pub fn node_system(&self, name: &str) -> PathBuf {
        self.node(name).join("system")
    }

    /// Makes a cgroup and its parents, with the controllers that limits need switched on where they exist.
    pub fn create(&self, path: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(path).with_context(|| format!("creating the cgroup {}", path.display()))?;
        let inner = path
            .ancestors()
            .skip(1)
            .take_while(|dir| dir.starts_with(&self.root));
        for dir in inner.collect::<Vec<_>>().into_iter().rev() {
            enable_controllers(dir);
        }
        Ok(())
    }

    /// Kills everything in the subtree and removes it. A cluster that is not there is no error.
    pub fn destroy(&self, deadline: Duration) -> anyhow::Result<()> {
        if self.root.exists() {
            self.kill(deadline)?;
            remove_tree(&self.root).with_context(|| format!("removing {}", self.root.display()))?;
        }
        // Where version 1 does the limits, the container runtime made the same paths in its hierarchies.
        for root in v1_mounts(&mounts()?)
            .map(|mount| Path::new(mount).join(ROOT))
            .filter(|root| root.exists())
        {
            remove_tree(&root).with_context(|| format!("removing {}", root.display()))?;
        }
        Ok(())
    }

    fn kill(&self, deadline: Duration) -> anyhow::Result<()> {
        fs::write(self.root.join("cgroup.kill"), "1").context("killing the cluster's processes")?;
        self.wait_until_empty(deadline)
    }

    /// The kernel signals a change of `cgroup.events` as an exceptional condition (cgroup v2 documentation,
    /// "[Un]populated Notification").
    fn wait_until_empty(&self, deadline: Duration) -> anyhow::Result<()> {
        let give_up = Instant::now() + deadline;
        let events = File::open(self.root.join("cgroup.events")).context("opening cgroup.events")?;
        // Each wait is for a change since this very file was read last.
        while is_populated(&events).context("reading cgroup.events")? {
            let left = give_up.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "processes in {} do not end", self.root.display());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout)
                .context("waiting on cgroup.events")?;
        }
        Ok(())
    }
}

fn is_populated(mut events: &File) -> io::Result<bool> {
    let mut text = String::new();
    events.rewind()?;
    events.read_to_string(&mut text)?;
    Ok(text.lines().any(|line| line == "populated 1"))
}

/// Switches on, for the children of `dir`, each controller that limits are made of. One that this machine lacks, or
/// drives by cgroup v1, is left out: limits then work by v1 or not at all, and the kubelet says so.
fn enable_controllers(dir: &Path) {
    for controller in ["cpu", "memory", "pids", "io"] {
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(dir)
}

fn mounts() -> anyhow::Result<String> {
    fs::read_to_string("/proc/self/mounts").context("reading /proc/self/mounts")
}

fn v2_mount(mounts: &str) -> Option<&str> {
    mounts_of(mounts, "cgroup2").next()
}

fn v1_mounts(mounts: &str) -> impl Iterator<Item = &str> {
    mounts_of(mounts, "cgroup")
}

fn mounts_of<'a>(mounts: &'a str, wanted: &'a str) -> impl Iterator<Item = &'a str> {
    mounts.lines().filter_map(move |line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == wanted).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_v2_mount_is_found_beside_v1_alone_and_nowhere() {
        let hybrid =
            "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let unified = "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(v2_mount(hybrid), Some("/sys/fs/cgroup/unified"));
        assert_eq!(v2_mount(unified), Some("/sys/fs/cgroup"));
        assert_eq!(v2_mount("proc /proc proc rw 0 0\n"), None);
        assert_eq!(v1_mounts(hybrid).collect::<Vec<_>>(), ["/sys/fs/cgroup/cpu"]);
    }
}

//! The cgroup v2 hierarchy: where it is mounted, where processes stand in it, and how to stand elsewhere for a moment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// What this process sees mounted.
pub const MOUNTS: &str = "/proc/self/mounts";

/// Where the hierarchy is mounted, by a table of mounts: `/sys/fs/cgroup`, or `/sys/fs/cgroup/unified` beside version 1.
///
/// # Errors
/// When it cannot be read, or has none.
pub fn mount_point(mounts: &Path) -> anyhow::Result<PathBuf> {
    let text = fs::read_to_string(mounts).with_context(|| format!("read {}", mounts.display()))?;
    let mut lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = lines.find_map(|fields| match fields.as_slice() {
        [_, directory, "cgroup2", ..] => Some(PathBuf::from(*directory)),
        _ => None,
    });
    found.context("no cgroup v2 hierarchy is mounted")
}

/// The directory of a process's cgroup (`self`: this one's); `None` where it cannot be seen, or is gone.
#[must_use]
pub fn of_process(mount_point: &Path, process: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    // cgroups(7): the hierarchy of version 2 has number 0 and no names.
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let directory = mount_point.join(path);
    // Outside of the own cgroup namespace paths begin with `..`.
    (!path.starts_with("..") && directory.is_dir()).then_some(directory)
}

/// This process stands in another cgroup for as long as this lives: sockets that are made meanwhile belong to that one for
/// good (`cgroup_sk_alloc`, kernel/cgroup/cgroup.c), whoever uses them later.
#[derive(Debug)]
pub struct Visit {
    home: PathBuf,
}

impl Visit {
    /// Goes there.
    ///
    /// # Errors
    /// When the own cgroup is not known, or the kernel refuses it.
    pub fn to(mount_point: &Path, cgroup: &Path) -> io::Result<Self> {
        let home = of_process(mount_point, "self");
        let home =
            home.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the own cgroup is not known"))?;
        join(cgroup)?;
        Ok(Self { home })
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        if let Err(error) = join(&self.home) {
            // It ends soon, and is then nowhere.
            tracing::warn!(error = %error, cgroup = %self.home.display(), "this process cannot go back to its cgroup");
        }
    }
}

fn join(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), "0")
}

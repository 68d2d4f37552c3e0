//! cgroup v2 directories for tests, wherever the machine mounts the hierarchy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{is_stale, unique_name};

/// A cgroup directory, removed on drop.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a directory below the root of the cgroup v2 hierarchy.
    ///
    /// # Errors
    /// When cgroup v2 is not mounted, or rights are missing.
    pub fn new(label: &str) -> Result<Self> {
        let root = mount_point()?;
        remove_stale(&root);
        let path = root.join(unique_name(label));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Processes that were just killed still count for a moment (EBUSY).
        let deadline = Instant::now() + Duration::from_secs(2);
        while let Err(error) = remove(&self.path) {
            if Instant::now() >= deadline {
                eprintln!("left behind: {}: {error}", self.path.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Where cgroup v2 is mounted, by `/proc/mounts`.
///
/// # Errors
/// When it is not.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find_map(|fields| match fields.as_slice() {
            [_, path, "cgroup2", ..] => Some(PathBuf::from(path)),
            _ => None,
        })
        .context("cgroup v2 is not mounted")
}

/// Removes a cgroup and those below it, deepest first.
fn remove(path: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn remove_stale(root: &Path) {
    let Ok(entries) = fs::read_dir(root) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_str().is_some_and(is_stale) {
            let _ = remove(&entry.path()); // another test may be at it
        }
    }
}

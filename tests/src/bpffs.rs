//! BPF file systems for tests.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::unique_name;

/// A BPF file system of its own, unmounted on drop.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts one in the directory for temporary files.
    ///
    /// # Errors
    /// When rights are missing.
    pub fn mount(label: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(unique_name(label));
        std::fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mount a BPF file system")?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let unmounted = umount2(&self.path, MntFlags::MNT_DETACH);
        if unmounted.is_err() || std::fs::remove_dir(&self.path).is_err() {
            eprintln!("left behind: {}", self.path.display());
        }
    }
}

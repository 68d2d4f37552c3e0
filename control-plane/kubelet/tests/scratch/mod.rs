//! A store of images in a directory of a test's own.

use std::fs;
use std::path::{Path, PathBuf};

use kubelet::images::ImageStore;

/// Owners of files are set, which only root may.
pub fn may_run(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: needs root");
    }
    root
}

/// The directory, removed when dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let path = Path::new("/var/tmp").join(format!("cwt-images-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("created");
        Self(path)
    }

    pub fn store(&self) -> ImageStore {
        ImageStore::at(&self.0.join("images")).expect("a store")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).expect("removable");
    }
}

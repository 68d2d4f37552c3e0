//! Directories for tests, removed on drop.

use std::path::{Path, PathBuf};

use crate::unique_name;

/// A directory of its own.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes one in the directory for temporary files.
    ///
    /// # Panics
    /// When that is not writable.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(unique_name(label));
        std::fs::create_dir_all(&path).expect("temporary directory is writable");
        Self(path)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file, and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    #[must_use]
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("temporary directory is writable");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0); // gone is gone
    }
}

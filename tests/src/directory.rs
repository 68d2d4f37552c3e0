//! Directories for tests.

use std::path::PathBuf;

use crate::unique_name;

/// A directory of a test's own, removed when it is dropped.
#[derive(Debug)]
pub struct Directory(pub PathBuf);

impl Directory {
    /// Makes one in the directory for temporary files.
    ///
    /// # Panics
    /// When that cannot be written.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let path = std::env::temp_dir().join(unique_name(label));
        std::fs::create_dir_all(&path).expect("temporary directory is writable");
        Self(path)
    }

    /// Writes a file in it and returns its path.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("temporary directory is writable");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Nothing is to be done about one that stays.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

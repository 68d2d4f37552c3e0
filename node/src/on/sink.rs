//! Where a result goes.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::capture::file::create;

/// Standard output, or a file of this machine.
pub enum Sink<S> {
    /// Whoever shows it says whether anybody reads.
    Shown(S),
    /// A file, once there is something for it.
    File {
        /// Its place.
        path: PathBuf,
        /// The file.
        file: Option<File>,
    },
}

impl<S: FnMut(&[u8]) -> bool> Sink<S> {
    /// A file, where one is named; else `show`.
    pub fn new(file: Option<&Path>, show: S) -> Self {
        match file {
            Some(path) => Self::File {
                path: path.to_owned(),
                file: None,
            },
            None => Self::Shown(show),
        }
    }

    /// Takes more of the result. Returns whether there is anybody who wants more.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn put(&mut self, bytes: &[u8]) -> anyhow::Result<bool> {
        match self {
            Self::Shown(show) => Ok(show(bytes)),
            Self::File { path, file } => {
                let written = match file {
                    Some(file) => file.write_all(bytes),
                    None => create(path).and_then(|opened| file.insert(opened).write_all(bytes)),
                };
                written.with_context(|| format!("write {}", path.display()))?;
                Ok(true)
            }
        }
    }

    /// The file that was written, if one was.
    pub fn written(&self) -> Option<&Path> {
        match self {
            Self::File { path, file: Some(_) } => Some(path),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use ::tests::directory::Directory;

    use super::*;

    #[test]
    fn a_file_is_made_with_its_first_bytes_and_for_its_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = Directory::new("sink");
        let path = directory.path().join("a.pcapng");
        let mut sink = Sink::new(Some(&path), |_: &[u8]| panic!("it is not shown"));
        assert_eq!((sink.written(), path.exists()), (None, false));
        for bytes in [&b"one"[..], b"two"] {
            assert!(sink.put(bytes).expect("written"));
        }
        assert_eq!(sink.written(), Some(&*path));
        assert_eq!(fs::read(&path).expect("there"), b"onetwo");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let nowhere = directory.path().join("no/a.pcapng");
        let mut sink = Sink::new(Some(&nowhere), |_: &[u8]| true);
        let error = sink.put(b"one").expect_err("no directory").to_string();
        assert_eq!(error, format!("write {}", nowhere.display()));
    }

    #[test]
    fn who_reads_no_more_is_heard() {
        let mut reads = vec![false, true];
        let mut sink = Sink::new(None, |_: &[u8]| reads.pop().expect("asked twice"));
        assert!(sink.put(b"one").expect("shown"));
        assert!(!sink.put(b"two").expect("shown"));
        assert_eq!(sink.written(), None);
    }
}

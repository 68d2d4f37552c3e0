//! Files that are whole or absent: written beside their place, then renamed into it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The operation of [`DiskError`] for a file that was read, but does not hold what it should.
const DECODE: &str = "decode";

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", path.display())]
pub struct DiskError {
    /// What was tried.
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    #[source]
    /// Why it failed.
    pub source: io::Error,
}

/// Adds the operation and its object to an I/O error.
pub trait OnPath<T> {
    /// Names what was tried on which path.
    fn on(self, operation: &'static str, path: &Path) -> Result<T, DiskError>;
}

impl<T, E: Into<io::Error>> OnPath<T> for Result<T, E> {
    fn on(self, operation: &'static str, path: &Path) -> Result<T, DiskError> {
        self.map_err(|source| DiskError {
            operation,
            path: path.to_owned(),
            source: source.into(),
        })
    }
}

/// Replaces a file in one step: a reader sees the old or the new contents, also after the machine has stopped at once.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<(), DiskError> {
    replace(path, contents, Lasting::Yes)
}

/// As [`write_whole`], for what means nothing any more once the machine has stopped: nothing waits for the disk.
pub fn write_for_now(path: &Path, contents: &[u8]) -> Result<(), DiskError> {
    replace(path, contents, Lasting::No)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lasting {
    Yes,
    No,
}

fn replace(path: &Path, contents: &[u8], lasting: Lasting) -> Result<(), DiskError> {
    let beside = path.with_added_extension("new");
    let mut file = File::create(&beside).on("create", &beside)?;
    file.write_all(contents).on("write", &beside)?;
    if lasting == Lasting::Yes {
        file.sync_all().on("sync", &beside)?;
    }
    fs::rename(&beside, path).on("rename into place", path)
}

/// Replaces a JSON file in one step.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), DiskError> {
    write_whole(path, &json(path, value)?)
}

/// As [`write_for_now`], a JSON file.
pub fn write_json_for_now(path: &Path, value: &impl Serialize) -> Result<(), DiskError> {
    write_for_now(path, &json(path, value)?)
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, DiskError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::from);
    text.on("encode", path)
}

/// Reads a JSON file; `None` when it is not there.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DiskError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(io::Error::from)
            .on(DECODE, path)
            .map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).on("read", path),
    }
}

/// As [`read_json`]; a file that cannot be decoded is told in the log and taken for absent. One damaged file must not
/// keep a node's other containers and images from their kubelet.
pub fn read_json_if_whole<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, DiskError> {
    match read_json(path) {
        Err(error) if error.operation == DECODE => {
            tracing::error!(path = %path.display(), error = %error.source, "damaged file, taken for absent");
            Ok(None)
        }
        outcome => outcome,
    }
}

/// Creates a directory and its parents.
pub fn make_dir(path: &Path) -> Result<(), DiskError> {
    fs::create_dir_all(path).on("create directory", path)
}

/// Creates a directory and its parents, and closes it to all but its owner: Secrets and tokens lie below.
pub fn make_private_dir(path: &Path) -> Result<(), DiskError> {
    make_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).on("chmod", path)
}

/// Removes a tree; absence is success.
pub fn remove_tree(path: &Path) -> Result<(), DiskError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("remove", path),
        _ => Ok(()),
    }
}

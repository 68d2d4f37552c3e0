//! Who has a cluster on this machine. There is one at a time: it takes a bridge, a cgroup subtree and an nftables
//! table by fixed names, so that `down` finds them whatever happened before. [`OWNER`] is locked as long as the
//! supervisor lives.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use model::bundled::OWNER;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Held by whoever is changing the cluster. The directory itself, so that no lock file stays behind.
const CHANGE_LOCK: &str = "/run";

/// Takes the right to change this machine's cluster, until the returned lock is dropped.
pub fn begin_change() -> anyhow::Result<Flock<File>> {
    let file = File::open(CHANGE_LOCK);
    match try_lock(file.with_context(|| format!("opening {CHANGE_LOCK}"))?)? {
        Some(lock) => Ok(lock),
        None => bail!("another causeway up or down is at work on this machine: wait for its end"),
    }
}

/// What is on this machine.
#[derive(Debug)]
pub enum Owner {
    /// Nothing.
    Nobody,
    /// A cluster whose supervisor lives.
    Running(PathBuf),
    /// What a cluster left whose supervisor is gone.
    Remains(PathBuf),
}

/// Looks.
pub fn find() -> anyhow::Result<Owner> {
    let state_dir = match fs::read_to_string(OWNER) {
        Ok(text) => PathBuf::from(text.trim_end()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Owner::Nobody),
        Err(error) => return Err(error).with_context(|| format!("reading {OWNER}")),
    };
    match try_lock(File::open(OWNER)?)? {
        Some(_lock) => Ok(Owner::Remains(state_dir)),
        None => Ok(Owner::Running(state_dir)),
    }
}

/// Writes down that this machine's cluster is that of `state_dir`.
pub fn record(state_dir: &Path) -> anyhow::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(OWNER)
        .with_context(|| format!("writing {OWNER}"))?;
    writeln!(file, "{}", state_dir.display()).with_context(|| format!("writing {OWNER}"))
}

/// Taken by the supervisor for as long as it lives.
pub fn hold() -> anyhow::Result<Flock<File>> {
    match try_lock(File::open(OWNER).with_context(|| format!("opening {OWNER}"))?)? {
        Some(lock) => Ok(lock),
        None => bail!("another supervisor runs already"),
    }
}

/// Forgets it.
pub fn forget() -> anyhow::Result<()> {
    match fs::remove_file(OWNER) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {OWNER}"))
        }
        _ => Ok(()),
    }
}

fn try_lock(file: File) -> anyhow::Result<Option<Flock<File>>> {
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(lock)),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, errno)) => Err(errno).context("locking"),
    }
}

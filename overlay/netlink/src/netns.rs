//! Network namespaces: made, pinned under `/run/netns` as `ip netns` does, opened, entered.

use std::fmt;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::error::{Cause, Error, Operation, Result};

/// Where named namespaces are pinned (`ip-netns(8)`).
pub const PIN_DIRECTORY: &str = "/run/netns";

const THREAD_NAMESPACE: &str = "/proc/thread-self/ns/net";

/// An open network namespace. Clones share the file; two values are equal when they are the same namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    file: Arc<File>,
    label: String,
    device: u64,
    inode: u64,
}

impl Namespace {
    /// The namespace of the calling thread.
    ///
    /// # Errors
    /// When `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        Self::open(THREAD_NAMESPACE)
    }

    /// Opens a namespace by any path to it: a pin, or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When nothing is there.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |error: std::io::Error| Error::of(Operation::OpenNamespace, path.display())(error);
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        Ok(Self {
            file: Arc::new(file),
            label: path.display().to_string(),
            device: metadata.dev(),
            inode: metadata.ino(),
        })
    }

    /// Opens a namespace pinned under [`PIN_DIRECTORY`].
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn named(name: &str) -> Result<Self> {
        Self::open(pin_path(name))
    }

    /// Makes a namespace and pins it under [`PIN_DIRECTORY`], where `ip netns` sees it.
    ///
    /// # Errors
    /// When the name is taken (`EEXIST`), or rights are missing.
    pub fn create(name: &str) -> Result<Self> {
        let path = pin_path(name);
        let failed = |error: std::io::Error| Error::of(Operation::CreateNamespace, name)(error);
        fs::create_dir_all(PIN_DIRECTORY).map_err(failed)?;
        File::create_new(&path).map_err(failed)?;
        Self::create_at(&path).inspect_err(|_| {
            // Nothing is mounted on the file: an empty pin would block the name.
            let _ = fs::remove_file(&path);
        })
    }

    /// Makes a namespace and pins it on an existing file, wherever that is.
    ///
    /// # Errors
    /// When the file is missing or rights are.
    pub fn create_at(path: &Path) -> Result<Self> {
        let made = thread::scope(|scope| {
            scope
                .spawn(|| -> Result<(), Cause> {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    mount(
                        Some(THREAD_NAMESPACE),
                        path,
                        None::<&str>,
                        MsFlags::MS_BIND,
                        None::<&str>,
                    )?;
                    Ok(())
                })
                .join()
        });
        made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(Error::of(Operation::CreateNamespace, path.display()))?;
        Self::open(path)
    }

    /// Unpins a named namespace. It lives on while a process or an open file holds it.
    ///
    /// # Errors
    /// When there is none of that name (see [`Error::is_absent`]).
    pub fn delete(name: &str) -> Result<()> {
        let path = pin_path(name);
        // A file that nothing is mounted on (EINVAL) is the rest of an interrupted creation.
        match umount2(&path, MntFlags::MNT_DETACH) {
            Ok(()) | Err(nix::errno::Errno::EINVAL) => {}
            Err(errno) => return Err(Error::of(Operation::DeleteNamespace, name)(errno)),
        }
        fs::remove_file(&path).map_err(Error::of(Operation::DeleteNamespace, name))
    }

    /// Names pinned under [`PIN_DIRECTORY`], sorted.
    ///
    /// # Errors
    /// When the directory cannot be read; a missing one is an empty list.
    pub fn pinned() -> Result<Vec<String>> {
        let entries = match fs::read_dir(PIN_DIRECTORY) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::of(Operation::OpenNamespace, PIN_DIRECTORY)(error)),
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        Ok(names)
    }

    /// Those that are pinned there and can be opened. What a container runtime forgot is a file without a namespace, and
    /// none of them.
    #[must_use]
    pub fn all_pinned() -> Vec<Self> {
        let names = Self::pinned().unwrap_or_default().into_iter();
        let paths = names.map(|name| Path::new(PIN_DIRECTORY).join(name));
        let is_pin = |path: &PathBuf| statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC);
        paths
            .filter(is_pin)
            .filter_map(|path| Self::open(path).ok())
            .collect()
    }

    /// Runs a closure on a thread of its own inside the namespace, and waits for it. Namespaces belong to threads, so
    /// the caller's is never touched; a panic of the closure is the caller's panic.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let result = thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)?;
                    Ok(work())
                })
                .join()
        });
        result
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            .map_err(|errno: nix::errno::Errno| Error::of(Operation::EnterNamespace, self)(errno))
    }

    /// Moves the calling thread into the namespace for good.
    ///
    /// # Errors
    /// When rights are missing.
    pub fn enter(&self) -> Result<()> {
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(Error::of(Operation::EnterNamespace, self))
    }
}

fn pin_path(name: &str) -> PathBuf {
    Path::new(PIN_DIRECTORY).join(name)
}

impl PartialEq for Namespace {
    fn eq(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

impl Eq for Namespace {}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for Namespace {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

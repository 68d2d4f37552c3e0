//! Whether the pod network is ready: a CNI configuration lies in its directory. Told by inotify, at once.

use std::path::{Path, PathBuf};

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cni::NetworkConfig;
use crate::disk::{self, DiskError, OnPath};
use crate::readiness::readable;

/// Watches the directory until the shutdown; the sender holds whether a valid configuration is there.
pub async fn watch_network(
    directory: PathBuf,
    ready: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), DiskError> {
    disk::make_dir(&directory)?;
    let inotify =
        Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).on("make inotify for", &directory)?;
    let changes = AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_MOVED_FROM
        | AddWatchFlags::IN_DELETE;
    inotify.add_watch(&directory, changes).on("watch", &directory)?;
    let inotify = readable(InotifyFd(inotify)).on("wait for", &directory)?;
    loop {
        let now = is_ready(&directory);
        ready.send_if_modified(|before| std::mem::replace(before, now) != now);
        tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            guard = inotify.readable() => {
                let mut guard = guard.on("wait for", &directory)?;
                while inotify.get_ref().0.read_events().is_ok_and(|events| !events.is_empty()) {}
                guard.clear_ready();
            }
        }
    }
}

fn is_ready(directory: &Path) -> bool {
    match NetworkConfig::first_in(directory) {
        Ok(config) => config.is_some(),
        Err(error) => {
            tracing::warn!(%error, "CNI configuration not readable");
            false
        }
    }
}

/// An inotify whose descriptor the poller can take.
#[derive(Debug)]
pub(crate) struct InotifyFd(pub(crate) Inotify);

impl std::os::fd::AsRawFd for InotifyFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        std::os::fd::AsFd::as_fd(&self.0).as_raw_fd()
    }
}

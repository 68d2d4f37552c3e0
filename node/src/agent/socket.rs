//! Unix sockets that other processes of the node find by path. They are root's alone.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use axum::serve::Listener;
use nix::unistd::geteuid;
use overlay::files::{remove_if_there, successor};
use tokio::net::UnixListener;
use tokio::net::unix::SocketAddr;

/// Of sockets, and of directories that are made for them.
const MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;

/// The pause after `accept(2)` failed. What it lacks, open files (`EMFILE`, `ENFILE`) or memory (`ENOMEM`, `ENOBUFS`),
/// is there again once others have ended.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// Makes a directory that only its owner may look into, and those above it that are missing. One that is there stays
/// as it is.
///
/// # Errors
/// When it cannot be made.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(path)
}

/// A socket at which only root is listened to.
#[derive(Debug)]
pub struct RootSocket {
    listener: UnixListener,
}

impl RootSocket {
    /// The next peer that is root, or the user that this process runs as. Others are sent away: the mode of a socket
    /// is not all that stands between them, since it can be changed, and was another before this process made it so.
    ///
    /// # Errors
    /// When `accept(2)` fails.
    pub async fn accept(&self) -> io::Result<tokio::net::UnixStream> {
        loop {
            let (stream, _) = self.listener.accept().await?;
            let user = stream.peer_cred().map(|peer| peer.uid());
            match user {
                Ok(user) if user == 0 || user == geteuid().as_raw() => return Ok(stream),
                Ok(user) => tracing::warn!(user, "user who is not root sent away from a socket of the agent"),
                Err(error) => tracing::debug!(%error, "peer left before it was asked who it is"),
            }
        }
    }
}

impl Listener for RootSocket {
    type Io = tokio::net::UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let accepted = RootSocket::accept(self).await;
            match accepted.and_then(|stream| Ok((stream.peer_addr()?, stream))) {
                Ok((address, stream)) => return (stream, address),
                Err(error) => tracing::debug!(%error, "no peer can be accepted"),
            }
            tokio::time::sleep(ACCEPT_RETRY).await;
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.listener.local_addr()
    }
}

/// Listens at `path`, in the place of a predecessor's socket. There is no moment without a socket at the path.
///
/// # Errors
/// When directory or socket cannot be made.
pub fn listen(path: &Path) -> io::Result<RootSocket> {
    if let Some(directory) = path.parent() {
        make_directory(directory)?;
    }
    let fresh = successor(path);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, Permissions::from_mode(MODE))?;
    std::fs::rename(&fresh, path)?;
    Ok(RootSocket { listener })
}

/// Removes a socket that nobody listens on any more, and what a crash left of its successor. Whether there was either.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> Result<bool, overlay::Error> {
    let fresh = remove_one(&successor(path))?;
    let old = remove_one(path)?;
    Ok(fresh || old)
}

fn remove_one(path: &Path) -> Result<bool, overlay::Error> {
    let is_socket = std::fs::metadata(path).is_ok_and(|data| data.file_type().is_socket());
    Ok(is_socket && remove_if_there(path)?)
}

/// Whether somebody listens on a socket.
#[must_use]
pub fn is_served(path: &Path) -> bool {
    UnixStream::connect(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_goes_with_the_successor_that_a_crash_left_and_a_file_stays() {
        let directory = std::env::temp_dir().join(format!("cwt-socket-{}", std::process::id()));
        let path = directory.join("cni.sock");
        assert!(!is_served(&path));
        let listener = listen(&path).expect("writable");
        assert!(is_served(&path));
        let mode = |path: &Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&directory)), (0o600, 0o700));
        drop(listener);
        assert!(!is_served(&path), "nobody listens");
        assert!(remove(&path).expect("removable"));
        assert!(!remove(&path).expect("nothing"));
        drop(UnixListener::bind(successor(&path)).expect("writable"));
        std::fs::write(&path, "").expect("writable");
        assert!(remove(&path).expect("removable"));
        assert!(!successor(&path).exists());
        assert!(path.exists(), "it is no socket");
        std::fs::remove_dir_all(directory).expect("there");
    }
}

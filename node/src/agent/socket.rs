//! Unix sockets that other processes of the node find by path.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;

use overlay::files::{remove_if_there, successor};
use tokio::net::UnixListener;

/// Only root, and root's group.
const MODE: u32 = 0o660;

/// Listens at `path`, in the place of a predecessor's socket. There is no moment without a socket at the path, and
/// none at which others than root may connect.
///
/// # Errors
/// When directory or socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let fresh = successor(path);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(MODE))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
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

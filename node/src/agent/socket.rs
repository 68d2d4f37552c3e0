//! Unix sockets that other processes of the node find by path.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use overlay::uninstall::remove_file;
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
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(MODE))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Removes a socket that nobody listens on any more. Whether there was one.
///
/// # Errors
/// When it cannot be removed.
pub fn remove(path: &Path) -> Result<bool, overlay::Error> {
    let is_socket = std::fs::metadata(path).is_ok_and(|data| data.file_type().is_socket());
    if is_socket { remove_file(path) } else { Ok(false) }
}

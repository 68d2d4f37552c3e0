//! What somebody is told who is not root: the same words everywhere.

use std::io;

/// Somebody would have to be root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must run as root: {0}")]
pub struct NotRoot(pub String);

/// Refuses who is not root.
///
/// # Errors
/// With this reason, where that is so.
pub fn need_root(why: &str) -> Result<(), NotRoot> {
    match is_root() {
        true => Ok(()),
        false => Err(NotRoot(why.to_owned())),
    }
}

/// Whether this process is root's.
#[must_use]
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Whether an error is one that root would not have.
#[must_use]
pub fn is_denied(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied && !is_root()
}

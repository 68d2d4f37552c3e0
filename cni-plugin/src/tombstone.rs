//! What was deleted while the agent was away: a file for each interface, in a directory beside the agent's socket,
//! which the agent replays when it is back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::protocol::AttachmentKey;

/// The directory that goes with a socket.
#[must_use]
pub fn directory(socket: &Path) -> PathBuf {
    socket.with_extension("deleted")
}

/// Leaves word that an interface is gone.
///
/// # Errors
/// When the file cannot be written.
pub fn leave(directory: &Path, key: &AttachmentKey) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    // The name only has to be the same for the same key: container ids may be long.
    let name = hex::encode(Sha256::digest(format!("{}/{}", key.container_id, key.ifname)));
    let fresh = directory.join(format!(".{name}.{}", std::process::id()));
    fs::write(&fresh, serde_json::to_vec(key)?)?;
    fs::rename(&fresh, directory.join(name))
}

/// Hands every interface that is gone to `release`, and forgets those that it released.
///
/// # Errors
/// The first failure of `release`, after all were tried; a directory that is not there is no failure.
pub fn replay<E: From<io::Error>>(
    directory: &Path,
    mut release: impl FnMut(&AttachmentKey) -> Result<(), E>,
) -> Result<usize, E> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error.into()),
    };
    let mut released = 0;
    let mut first_failure = None;
    for path in entries.flatten().map(|entry| entry.path()) {
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let key = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<AttachmentKey>(&bytes).ok());
        let (false, Some(key)) = (hidden, key) else {
            continue;
        };
        match release(&key).and_then(|()| Ok(fs::remove_file(&path)?)) {
            Ok(()) => released += 1,
            Err(error) => first_failure = first_failure.or(Some(error)),
        }
    }
    first_failure.map_or(Ok(released), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tombstone_is_replayed_until_it_was_released() {
        let directory = std::env::temp_dir().join(format!("cwt-tombstones-{}", std::process::id()));
        let key = AttachmentKey {
            container_id: "c".repeat(64),
            ifname: "eth0".to_owned(),
        };
        leave(&directory, &key).expect("leave");
        leave(&directory, &key).expect("leave again");
        let refused = replay(&directory, |_| Err(io::Error::other("not now")));
        assert_eq!(refused.expect_err("refused").to_string(), "not now");
        let mut seen = Vec::new();
        let count = replay(&directory, |key| {
            seen.push(key.clone());
            Ok::<_, io::Error>(())
        });
        assert_eq!((count.expect("replay"), seen), (1, vec![key]));
        assert_eq!(replay(&directory, |_| Ok::<_, io::Error>(())).expect("empty"), 0);
        fs::remove_dir_all(&directory).expect("clean");
        assert_eq!(replay(&directory, |_| Ok::<_, io::Error>(())).expect("absent"), 0);
    }
}

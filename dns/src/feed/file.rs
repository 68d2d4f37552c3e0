//! The last good snapshot on disk, in the feed's own form.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use model::Snapshot;
use model::feed::{Message, VERSION};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::FeedError;
use super::intake::{Intake, message};
use super::trim::Trim;

/// The file is written at most this often.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Writes the newest snapshot whenever there is a new one, at most once in a while, and once more at the end.
pub(super) async fn save_changes(
    state: PathBuf,
    mut snapshots: watch::Receiver<Snapshot>,
    shutdown: CancellationToken,
) {
    let mut reported = false;
    while snapshots.changed().await.is_ok() {
        let snapshot = snapshots.borrow_and_update().clone();
        let path = state.clone();
        let saved = tokio::task::spawn_blocking(move || save(&path, &snapshot)).await;
        match saved {
            Ok(Ok(())) => reported = false,
            Ok(Err(error)) if !std::mem::replace(&mut reported, true) => {
                let error = model::with_causes(&error);
                tracing::warn!(
                    error,
                    "snapshot not saved; a restart will have to wait for the agent"
                );
            }
            Ok(Err(_)) => {}
            Err(error) => tracing::error!(%error, "saving the snapshot failed"),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(SAVE_INTERVAL) => {}
        }
    }
}

/// Writes a snapshot in the feed's own form, beside the file and then over it.
pub(super) fn save(path: &Path, snapshot: &Snapshot) -> Result<(), FeedError> {
    let beside = path.with_extension("snapshot.new");
    let write = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let mut file = BufWriter::new(File::create(&beside)?);
        let begin = std::iter::once(Message::Begin {
            version: VERSION,
            hears: false,
        });
        let messages = begin
            .chain(snapshot.as_changes().map(Message::Change))
            .chain([Message::End]);
        for message in messages {
            serde_json::to_writer(&mut file, &message)?;
            file.write_all(b"\n")?;
        }
        file.into_inner()?.sync_data()?;
        std::fs::rename(&beside, path)
    };
    write().map_err(|source| FeedError::File {
        path: path.to_owned(),
        source,
    })
}

/// Reads a snapshot and the time of its writing. `None` = there is none yet.
pub(super) fn load(path: &Path, trim: Trim) -> Result<Option<(Snapshot, SystemTime)>, FeedError> {
    let at = |source| FeedError::File {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    let written = file
        .metadata()
        .and_then(|metadata| metadata.modified())
        .map_err(at)?;
    let mut intake = Intake::new(trim);
    for (index, line) in BufReader::new(file).lines().enumerate() {
        intake.take(message(&line.map_err(at)?, index as u64 + 1)?)?;
    }
    if intake.complete {
        Ok(Some((intake.current, written)))
    } else {
        Err(FeedError::Incomplete)
    }
}

/// Takes the snapshots away that servers kept in a directory, and what a crash left of one. Other files stay. Returns
/// how many there were.
///
/// # Errors
/// When the directory cannot be read, or one of them stays.
pub fn forget(directory: &Path) -> Result<usize, FeedError> {
    let at = |path: &Path, source| FeedError::File {
        path: path.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(at(directory, error)),
    };
    let mut removed = 0;
    for entry in entries {
        let path = entry.map_err(|error| at(directory, error))?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name.ends_with(".snapshot") || name.ends_with(".snapshot.new") {
            std::fs::remove_file(&path).map_err(|error| at(&path, error))?;
            removed += 1;
        }
    }
    Ok(removed)
}

//! A snapshot on its way: a file of its own, sent in parts, and gone when they are.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use etcd_client::proto::PbSnapshotResponse;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tonic::Status;

use crate::disk::{self, Contents};

/// The bytes of one part.
const PART_BYTES: usize = 64 * 1024;

/// Why a snapshot ends early.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Disk(#[from] disk::Error),
    #[error("cannot read the copy")]
    Read(#[from] io::Error),
    #[error("the client is gone")]
    Gone,
}

/// Writes the contents to a file at `path`, sends it, and removes it. Blocks.
pub fn send(path: &Path, contents: &Contents, parts: &mpsc::Sender<Result<PbSnapshotResponse, Status>>) {
    let sent = disk::write_copy(path, contents)
        .map_err(Error::from)
        .and_then(|()| send_file(path, parts));
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(%error, path = %path.display(), "cannot remove the snapshot's file");
    }
    match sent {
        Ok(()) | Err(Error::Gone) => {}
        Err(error) => {
            tracing::warn!(%error, "snapshot ended early");
            let _ = parts.blocking_send(Err(Status::internal(format!("etcdserver: snapshot: {error}"))));
        }
    }
}

fn send_file(path: &Path, parts: &mpsc::Sender<Result<PbSnapshotResponse, Status>>) -> Result<(), Error> {
    let mut file = File::open(path)?;
    let mut remaining = file.metadata()?.len();
    let mut hash = Sha256::new();
    while remaining > 0 {
        let mut blob = Vec::with_capacity(PART_BYTES);
        let read = io::Read::by_ref(&mut file)
            .take(u64::try_from(PART_BYTES).unwrap_or(u64::MAX))
            .read_to_end(&mut blob)?;
        if read == 0 {
            return Err(Error::Read(io::ErrorKind::UnexpectedEof.into()));
        }
        remaining = remaining.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        hash.update(&blob);
        send_part(blob, remaining, parts)?;
    }
    send_part(hash.finalize().to_vec(), 0, parts)
}

fn send_part(
    blob: Vec<u8>,
    remaining: u64,
    parts: &mpsc::Sender<Result<PbSnapshotResponse, Status>>,
) -> Result<(), Error> {
    let part = PbSnapshotResponse {
        remaining_bytes: remaining,
        blob,
        ..PbSnapshotResponse::default()
    };
    parts.blocking_send(Ok(part)).map_err(|_| Error::Gone)
}

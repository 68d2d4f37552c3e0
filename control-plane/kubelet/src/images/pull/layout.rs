//! What a registry sent, as the archive that it is taken from (OCI image layout).

use std::io;

use serde_json::json;
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;

use super::registry::MANIFESTS;
use crate::images::archive::sha256;

/// An OCI layout in a tar archive, as it grows.
pub(super) struct Layout {
    file: File,
}

impl Layout {
    pub(super) fn new(file: File) -> Self {
        Self { file }
    }

    pub(super) async fn into_file(self) -> std::fs::File {
        self.file.into_std().await
    }

    /// The head of a member, whose bytes are written next, and then its end.
    pub(super) async fn begin(&mut self, path: &str, size_bytes: u64) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_path(path)?;
        header.set_size(size_bytes);
        header.set_mode(0o644);
        header.set_cksum();
        self.file.write_all(header.as_bytes()).await
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).await
    }

    /// Members end at a multiple of 512 bytes.
    pub(super) async fn end(&mut self, size_bytes: u64) -> io::Result<()> {
        let missing = usize::try_from(size_bytes.wrapping_neg() % 512).unwrap_or(0);
        self.file.write_all(&vec![0; missing]).await
    }

    async fn member(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        self.begin(path, bytes.len() as u64).await?;
        self.file.write_all(bytes).await?;
        self.end(bytes.len() as u64).await
    }

    /// The manifest, and what names it.
    pub(super) async fn finish(&mut self, manifest: &[u8]) -> io::Result<()> {
        let digest = sha256(manifest);
        let descriptor = json!({ "mediaType": MANIFESTS[0], "digest": digest, "size": manifest.len() });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string();
        let path = format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
        self.member(&path, manifest).await?;
        self.member("index.json", index.as_bytes()).await?;
        self.file.write_all(&[0; 1024]).await?;
        self.file.flush().await
    }
}

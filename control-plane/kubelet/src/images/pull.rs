//! Pulling images from registries (OCI distribution specification 1.1, "Pulling"; the tokens of docker's registries).
//!
//! What a registry sends is written as an OCI layout into a file without a name, each blob checked against its digest
//! and its announced size on the way, and then taken like any other [`Archive`]. Registries on loopback are asked in
//! plain HTTP, all others by TLS.

mod layout;
mod login;
mod place;
mod registry;

use std::collections::BTreeSet;
use std::io;

use http::StatusCode;
use tokio::fs::File;

pub use login::Login;

use super::archive::{Archive, unnamed_file};
use super::layer::DEFAULT_LIMIT;
use super::{Image, ImageError, ImageStore, normalized};
use layout::Layout;
use place::Place;
use registry::Registry;

/// Why an image was not pulled, in containerd's words, which people search for.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// No manifest.
    #[error("failed to resolve reference \"{reference}\": {why}")]
    Resolve {
        /// The image.
        reference: String,
        /// Why not.
        why: FetchError,
    },
    /// A configuration or a layer.
    #[error("failed to pull \"{reference}\": {what}: {why}")]
    Blob {
        /// The image.
        reference: String,
        /// The digest.
        what: String,
        /// Why not.
        why: FetchError,
    },
    /// This machine did not keep what came.
    #[error("failed to pull \"{reference}\": write to disk: {source}")]
    Disk {
        /// The image.
        reference: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What came is no image that can be taken.
    #[error("failed to unpack \"{reference}\": {}", told(.source))]
    Unpack {
        /// The image.
        reference: String,
        /// Why not.
        #[source]
        source: ImageError,
    },
}

fn told(error: &ImageError) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No answer.
    #[error("failed to do request: GET \"{url}\": {why}")]
    Request {
        /// What was asked for.
        url: String,
        /// What failed.
        why: String,
    },
    /// It is not there.
    #[error("{0}: not found")]
    NotFound(String),
    /// Who asks may not have it.
    #[error(
        "pull access denied, repository does not exist or may require authorization: server answered {0}"
    )]
    Denied(StatusCode),
    /// Who gives tokens for the registry answers neither with one nor with a refusal.
    #[error(
        "failed to authorize: failed to fetch token: unexpected status from GET request to {url}: {status}"
    )]
    Token {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// Another answer.
    #[error("unexpected status from GET request to {url}: {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// Other bytes than were announced.
    #[error("{0}")]
    Unexpected(String),
    /// The disk of this machine.
    #[error("write to disk: {0}")]
    Disk(#[from] io::Error),
}

/// Pulls an image for this machine's architecture, and names it as it was asked for.
pub async fn pull(store: &ImageStore, reference: &str, logins: &[Login]) -> Result<Image, PullError> {
    let full = normalized(reference);
    let resolve = |why| PullError::Resolve {
        reference: full.clone(),
        why,
    };
    let unpack = |source| PullError::Unpack {
        reference: full.clone(),
        source,
    };
    let place = Place::of(&full).ok_or_else(|| resolve(FetchError::NotFound(full.clone())))?;
    let mut registry = Registry::new();
    let logins = login::fitting(logins, place.registry, place.repository);
    let (manifest, bytes) = registry.manifest_by_any(&place, &logins).await.map_err(resolve)?;
    let disk = |source: io::Error| PullError::Disk {
        reference: full.clone(),
        source,
    };
    // What is there costs no more than its manifest.
    let id = manifest.config.as_ref().map(|config| config.digest.clone());
    let (known, name) = (store.clone(), full.clone());
    let named = tokio::task::spawn_blocking(move || known.give_name(&id.unwrap_or_default(), &name));
    let named = named.await.map_err(|lost| disk(io::Error::other(lost)))?;
    if let Some(image) = named.map_err(|error| unpack(error.into()))? {
        return Ok(image);
    }
    let file = unnamed_file(&store.directory).map_err(unpack)?;
    let mut layout = Layout::new(File::from_std(file));
    let mut written = BTreeSet::new();
    for blob in manifest.config.iter().chain(&manifest.layers) {
        if !written.insert(blob.digest.clone()) {
            continue;
        }
        let fetched = registry.blob(&place, blob, &mut layout).await;
        fetched.map_err(|why| PullError::Blob {
            reference: full.clone(),
            what: blob.digest.clone(),
            why,
        })?;
    }
    layout.finish(&bytes).await.map_err(disk)?;
    let file = layout.into_file().await;
    let (store, name) = (store.clone(), full.clone());
    let taken = tokio::task::spawn_blocking(move || {
        let archive = Archive::of(file)?;
        let images = archive.images()?;
        let image = images.first().ok_or_else(|| ImageError::Absent(name.clone()))?;
        store.import(&archive, image, Some(&name), DEFAULT_LIMIT)
    });
    match taken.await {
        Ok(taken) => taken.map_err(unpack),
        Err(lost) => Err(disk(io::Error::other(lost))),
    }
}

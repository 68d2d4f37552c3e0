//! The documents of images, as docker (`docker save`) and OCI (image specification 1.1) write them.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::archive::architecture;

/// An entry of docker's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerImage {
    pub(super) config: String,
    pub(super) repo_tags: Option<Vec<String>>,
    pub(super) layers: Vec<String>,
}

/// OCI's descriptor.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: String,
    /// In bytes; 0 where it is not said.
    #[serde(default)]
    pub(super) size: u64,
    #[serde(default)]
    pub(super) annotations: Option<BTreeMap<String, String>>,
    pub(super) platform: Option<Platform>,
}

/// Whose machines an image is for.
#[derive(Clone, Deserialize)]
pub(super) struct Platform {
    architecture: String,
    os: String,
}

impl Platform {
    /// Whether it is this machine's.
    pub(super) fn fits(&self) -> bool {
        self.os == "linux" && self.architecture == architecture()
    }
}

/// OCI's index of manifests.
#[derive(Deserialize)]
pub(super) struct Index {
    pub(super) manifests: Vec<Descriptor>,
}

/// OCI's manifest.
#[derive(Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    pub(super) layers: Vec<Descriptor>,
}

/// OCI's image configuration, as far as it is used.
#[derive(Deserialize)]
pub(super) struct Document {
    pub(super) architecture: String,
    pub(super) os: String,
    pub(super) config: Option<ContainerConfig>,
    pub(super) rootfs: RootfsOf,
}

/// What an image's containers are started with.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct ContainerConfig {
    pub(super) user: Option<String>,
    pub(super) env: Option<Vec<String>>,
    pub(super) entrypoint: Option<Vec<String>>,
    pub(super) cmd: Option<Vec<String>>,
    pub(super) working_dir: Option<String>,
}

/// The digests of the uncompressed layers.
#[derive(Deserialize)]
pub(super) struct RootfsOf {
    pub(super) diff_ids: Vec<String>,
}

/// A digest without its algorithm, which is the one that OCI's image specification requires.
pub(super) fn sha256_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    (hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(hex)
}

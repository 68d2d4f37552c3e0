//! The image store: root file systems with an OCI image configuration each, below the node's state directory.
//!
//! ```text
//! images/<id>/rootfs/…      the files, an overlayfs lower layer
//! images/<id>/image.json    names and configuration
//! ```
//! The built-in images are unpacked from the kubelet itself. An import of OCI or docker archives adds directories of
//! the same shape.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{self, DiskError, OnPath};

/// An image's configuration, as far as a container is made from it (OCI image specification, "Image Configuration").
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageConfig {
    /// The program and its first arguments; a pod's `command` replaces it.
    pub entrypoint: Vec<String>,
    /// More arguments; a pod's `args` replace them, its `command` drops them.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory; empty = `/`.
    pub working_dir: String,
    /// `uid[:gid]`; empty = root.
    pub user: String,
}

/// An image that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// `sha256:…` over files and configuration.
    pub id: String,
    /// References that name it, normalized by [`normalized`].
    pub names: Vec<String>,
    /// Its files together, in bytes.
    pub size_bytes: u64,
    /// Its configuration.
    pub config: ImageConfig,
    /// Where its files are. Not stored: the directory may move.
    #[serde(skip)]
    pub rootfs: PathBuf,
}

/// A program that is an image.
struct BuiltIn {
    name: &'static str,
    path: &'static str,
    program: &'static [u8],
    cmd: &'static [&'static str],
    /// Other names of the program, in `/bin`.
    links: &'static [&'static str],
}

const BUILT_IN: [BuiltIn; 2] = [
    BuiltIn {
        name: "causeway/testserver:v1",
        path: "/testserver",
        program: include_bytes!(concat!(env!("OUT_DIR"), "/testserver")),
        cmd: &["serve"],
        links: &[
            "cat", "echo", "env", "false", "hostname", "id", "ls", "pwd", "sleep", "tar", "test", "true",
            "tty",
        ],
    },
    BuiltIn {
        name: "causeway/pause:v1",
        path: "/pause",
        program: include_bytes!(concat!(env!("OUT_DIR"), "/pause")),
        cmd: &[],
        links: &[],
    },
];

/// The images of one node.
#[derive(Clone, Debug)]
pub struct ImageStore {
    directory: PathBuf,
}

impl ImageStore {
    /// Opens the store and unpacks what is built in.
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        disk::make_dir(directory)?;
        let store = Self {
            directory: directory.to_owned(),
        };
        for image in &BUILT_IN {
            store.unpack(image)?;
        }
        Ok(store)
    }

    /// The image of a reference.
    pub fn find(&self, reference: &str) -> Result<Option<Image>, DiskError> {
        let wanted = normalized(reference);
        Ok(self
            .list()?
            .into_iter()
            .find(|image| image.names.contains(&wanted) || image.id == reference))
    }

    /// All images, by id.
    pub fn list(&self) -> Result<Vec<Image>, DiskError> {
        let mut images = Vec::new();
        for entry in fs::read_dir(&self.directory).on("read", &self.directory)? {
            let path = entry.on("read", &self.directory)?.path();
            if let Some(image) = disk::read_json::<Image>(&path.join("image.json"))? {
                images.push(Image {
                    rootfs: path.join("rootfs"),
                    ..image
                });
            }
        }
        images.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(images)
    }

    /// `image.json` is written last, so that an interrupted unpacking is done again.
    fn unpack(&self, built_in: &BuiltIn) -> Result<(), DiskError> {
        let digest = Sha256::new()
            .chain_update(built_in.path)
            .chain_update(built_in.program)
            .chain_update(built_in.links.join(" "))
            .finalize();
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let place = self.directory.join(&hex);
        let description = place.join("image.json");
        if description.exists() {
            return Ok(());
        }
        let rootfs = place.join("rootfs");
        for directory in ["bin", "etc", "tmp", "proc", "sys", "dev", "run", "var"] {
            disk::make_dir(&rootfs.join(directory))?;
        }
        let mode =
            |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).on("chmod", path);
        mode(&rootfs.join("tmp"), 0o1777)?;
        let program = rootfs.join(built_in.path.trim_start_matches('/'));
        disk::write_whole(&program, built_in.program)?;
        mode(&program, 0o755)?;
        for link in built_in.links {
            let link = rootfs.join("bin").join(link);
            // An unpacking that was interrupted has made some already.
            disk::remove_tree(&link)?;
            symlink(built_in.path, &link).on("link", &link)?;
        }
        disk::write_whole(
            &rootfs.join("etc/passwd"),
            b"root:x:0:0:root:/root:/sbin/nologin\n",
        )?;
        let image = Image {
            id: format!("sha256:{hex}"),
            names: vec![normalized(built_in.name)],
            size_bytes: built_in.program.len() as u64,
            config: ImageConfig {
                entrypoint: vec![built_in.path.to_owned()],
                cmd: built_in.cmd.iter().map(|&word| word.to_owned()).collect(),
                ..ImageConfig::default()
            },
            rootfs,
        };
        disk::write_json(&description, &image)
    }
}

/// A reference in full, as docker reads it: registry `docker.io`, tag `latest` where none is named.
pub fn normalized(reference: &str) -> String {
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    let first = name.split('/').next().unwrap_or_default();
    let has_registry = name.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = match (has_registry, name.contains('/')) {
        (true, _) => name.to_owned(),
        (false, true) => format!("docker.io/{name}"),
        (false, false) => format!("docker.io/library/{name}"),
    };
    let has_tag = full.rsplit('/').next().is_some_and(|last| last.contains(':'));
    match digest {
        Some(digest) => format!("{full}@{digest}"),
        None if has_tag => full,
        None => format!("{full}:latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_as_docker_reads_them() {
        for (reference, expected) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("causeway/testserver:v1", "docker.io/causeway/testserver:v1"),
            ("localhost/x", "localhost/x:latest"),
            ("reg.example:5000/a/b", "reg.example:5000/a/b:latest"),
            ("docker.io/causeway/pause:v1", "docker.io/causeway/pause:v1"),
            ("a/b@sha256:00", "docker.io/a/b@sha256:00"),
        ] {
            assert_eq!(normalized(reference), expected);
        }
    }

    #[test]
    fn built_in_images_are_there_after_each_opening() {
        let directory = std::env::temp_dir().join(format!("cwt-images-{}", std::process::id()));
        for _ in 0..2 {
            let store = ImageStore::open(&directory).expect("the store opens");
            let image = store
                .find("causeway/testserver:v1")
                .expect("readable")
                .expect("built in");
            assert_eq!(image.config.entrypoint, ["/testserver"]);
            assert!(image.rootfs.join("testserver").exists());
            assert_eq!(store.find("nginx").expect("readable"), None);
        }
        disk::remove_tree(&directory).expect("removable");
    }
}

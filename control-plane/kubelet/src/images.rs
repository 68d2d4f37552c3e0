//! The image store: root file systems with an OCI image configuration each, below the node's state directory.
//!
//! ```text
//! images/<id>/rootfs/…      the files, an overlayfs lower layer
//! images/<id>/image.json    names and configuration
//! images/.lock              held by who changes the store: kubelet, `causeway image`
//! ```
//! The built-in images are unpacked from the kubelet itself. [`archive`] reads the archives that others write, [`layer`]
//! unpacks them, [`pull`] asks registries, [`build`] makes images of files of this machine, [`users`] finds who a container runs as.

pub mod archive;
pub mod build;
mod documents;
pub mod layer;
mod members;
pub mod pull;
pub mod users;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::disk::{self, DiskError, OnPath};
use crate::shim::state::{ContainerDir, ContainerRequest};
use archive::{Archive, Archived};
use layer::Limit;

/// Why an image was not imported, built or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A file of this machine.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The archive cannot be read, or is damaged.
    #[error("read the archive")]
    Archive(#[source] io::Error),
    /// The archive is not what it should be.
    #[error("the archive is not usable: {0}")]
    Malformed(String),
    /// Contents are not those that their digest names.
    #[error("contents of {0} are not what their digest says")]
    Digest(String),
    /// A file that no image may have.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// Its path in the archive, or on this machine.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
    /// More bytes or files than any image has.
    #[error("the image is larger than any that is taken")]
    TooLarge,
    /// The archive says no name, and neither did the caller.
    #[error("the archive names no image: give it a name")]
    Unnamed,
    /// A program that needs libraries of the machine.
    #[error("{} is dynamically linked: an image of it would lack its libraries; build it static", .0.display())]
    Dynamic(PathBuf),
    /// A container runs from the image.
    #[error("image {name} is used by container {container} of pod {pod}")]
    InUse {
        /// The image.
        name: String,
        /// A container.
        container: String,
        /// `namespace/name` of its pod.
        pod: String,
    },
    /// No such image.
    #[error("no image {0}")]
    Absent(String),
}

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

/// The image that waits and reaps, and does nothing else.
pub(crate) const PAUSE: &str = "causeway/pause:v1";

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
        name: PAUSE,
        path: "/pause",
        program: include_bytes!(concat!(env!("OUT_DIR"), "/pause")),
        cmd: &[],
        links: &[],
    },
];

/// Directories of this beginning are being made or removed.
const UNFINISHED: &str = ".unfinished-";

/// The images of one node.
#[derive(Clone, Debug)]
pub struct ImageStore {
    directory: PathBuf,
}

impl ImageStore {
    /// Opens the store and unpacks what is built in.
    pub fn open(directory: &Path) -> Result<Self, DiskError> {
        let store = Self::at(directory)?;
        for image in &BUILT_IN {
            store.unpack(image)?;
        }
        Ok(store)
    }

    /// The store of a node that may have no kubelet yet.
    pub fn at(directory: &Path) -> Result<Self, DiskError> {
        disk::make_dir(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
        })
    }

    /// Takes an image from an archive, under the archive's names or under `name`. An image that had one of these names
    /// loses it.
    pub fn import(
        &self,
        archive: &Archive,
        image: &Archived,
        name: Option<&str>,
        limit: Limit,
    ) -> Result<Image, ImageError> {
        let names: Vec<String> = match name {
            Some(name) => vec![normalized(name)],
            None => image.names.iter().map(|name| normalized(name)).collect(),
        };
        if names.is_empty() {
            return Err(ImageError::Unnamed);
        }
        let lock = self.lock()?;
        self.remove_leftovers()?;
        if let Some(known) = self.list()?.into_iter().find(|known| known.id == image.id) {
            return Ok(self.give_names(known, names, &lock)?);
        }
        let hex = image.id.trim_start_matches("sha256:");
        let place = self.directory.join(format!("{UNFINISHED}{hex}"));
        let rootfs = place.join("rootfs");
        disk::make_dir(&rootfs)?;
        let unpacked = archive.unpack(image, &rootfs, limit);
        if unpacked.is_err() {
            disk::remove_tree(&place)?;
        }
        let described = Image {
            id: image.id.clone(),
            names: Vec::new(),
            size_bytes: unpacked?,
            config: image.config.clone(),
            rootfs: self.directory.join(hex).join("rootfs"),
        };
        disk::write_json(&place.join("image.json"), &described)?;
        let target = self.directory.join(hex);
        // An image whose description is damaged is in no list and makes room.
        disk::remove_tree(&target)?;
        fs::rename(&place, &target).on("rename into place", &target)?;
        Ok(self.give_names(described, names, &lock)?)
    }

    /// Gives an image that is there one more name; `None` = it is not there.
    pub fn give_name(&self, id: &str, name: &str) -> Result<Option<Image>, DiskError> {
        let lock = self.lock()?;
        let known = self.list()?.into_iter().find(|known| known.id == id);
        let named = known.map(|known| self.give_names(known, vec![normalized(name)], &lock));
        named.transpose()
    }

    /// Takes a name away, or with its last name or by its id the image. `containers` is the directory of the node's
    /// containers: an image that one of them runs from stays.
    pub fn remove(&self, reference: &str, containers: &Path) -> Result<(), ImageError> {
        let lock = self.lock()?;
        self.remove_leftovers()?;
        let absent = || ImageError::Absent(reference.to_owned());
        let mut image = self.find(reference)?.ok_or_else(absent)?;
        let wanted = normalized(reference);
        image
            .names
            .retain(|name| *name != wanted && image.id != reference);
        if !image.names.is_empty() {
            return Ok(self.describe(&image, &lock)?);
        }
        let place = self.place(&image.id);
        let aside = self
            .directory
            .join(format!("{UNFINISHED}{}", uuid::Uuid::new_v4().simple()));
        // Out of sight first: a container that starts meanwhile is found below, or does not find the image.
        fs::rename(&place, &aside).on("rename", &place)?;
        if let Some(user) = user_of(&image.id, containers)? {
            fs::rename(&aside, &place).on("rename", &aside)?;
            return Err(ImageError::InUse {
                name: reference.to_owned(),
                container: user.container,
                pod: format!("{}/{}", user.pod_namespace, user.pod_name),
            });
        }
        Ok(disk::remove_tree(&aside)?)
    }

    fn lock(&self) -> Result<Flock<File>, DiskError> {
        let path = self.directory.join(".lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .on("open", &path)?;
        Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .on("lock", &path)
    }

    /// What an import or a removal that was killed has left.
    fn remove_leftovers(&self) -> Result<(), DiskError> {
        for entry in fs::read_dir(&self.directory).on("read", &self.directory)? {
            let entry = entry.on("read", &self.directory)?;
            if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
                disk::remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Adds names to an image, and takes them from those that had them. Who has no name left stays, as with docker.
    fn give_names(&self, image: Image, names: Vec<String>, lock: &Flock<File>) -> Result<Image, DiskError> {
        let mut image = image;
        for mut other in self.list()?.into_iter().filter(|other| other.id != image.id) {
            let before = other.names.len();
            other.names.retain(|name| !names.contains(name));
            if other.names.len() != before {
                self.describe(&other, lock)?;
            }
        }
        for name in names {
            if !image.names.contains(&name) {
                image.names.push(name);
            }
        }
        self.describe(&image, lock)?;
        Ok(image)
    }

    fn describe(&self, image: &Image, _lock: &Flock<File>) -> Result<(), DiskError> {
        disk::write_json(&self.place(&image.id).join("image.json"), image)
    }

    fn place(&self, id: &str) -> PathBuf {
        self.directory.join(id.trim_start_matches("sha256:"))
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
            let entry = entry.on("read", &self.directory)?;
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            let path = entry.path();
            if let Some(image) = read_image(&path)? {
                images.push(Image {
                    rootfs: path.join("rootfs"),
                    ..image
                });
            }
        }
        images.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(images)
    }

    /// `image.json` is written last, so that an interrupted unpacking is done again. A kubelet that is started anew does
    /// not wait for the lock: what is built in is there.
    fn unpack(&self, built_in: &BuiltIn) -> Result<(), DiskError> {
        let digest = Sha256::new()
            .chain_update(built_in.path)
            .chain_update(built_in.program)
            .chain_update(built_in.links.join(" "))
            .finalize();
        let hex = hex::encode(digest);
        let place = self.directory.join(&hex);
        if read_image(&place)?.is_some() {
            return Ok(());
        }
        let lock = self.lock()?;
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
            names: Vec::new(),
            size_bytes: built_in.program.len() as u64,
            config: ImageConfig {
                entrypoint: vec![built_in.path.to_owned()],
                cmd: built_in.cmd.iter().map(|&word| word.to_owned()).collect(),
                ..ImageConfig::default()
            },
            rootfs,
        };
        self.give_names(image, vec![normalized(built_in.name)], &lock)
            .map(drop)
    }
}

/// The image in a directory of the store; `None` where its description is absent or damaged.
fn read_image(place: &Path) -> Result<Option<Image>, DiskError> {
    disk::read_json_if_whole(&place.join("image.json"))
}

/// A container that was made from an image and is not removed yet.
fn user_of(id: &str, containers: &Path) -> Result<Option<ContainerRequest>, DiskError> {
    let entries = match fs::read_dir(containers) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries.on("read", containers)?,
    };
    for entry in entries {
        let directory = ContainerDir(entry.on("read", containers)?.path());
        let request: Option<ContainerRequest> = disk::read_json(&directory.request())?;
        if let Some(request) = request.filter(|request| request.image_id == id) {
            return Ok(Some(request));
        }
    }
    Ok(None)
}

/// Whether a name can be that of an image; else why not, in the words of the reference parser that Kubernetes uses
/// (`github.com/distribution/reference`): lower case, and neither empty nor with letters that no name has.
pub fn check_reference(reference: &str) -> Result<(), String> {
    let full = normalized(reference);
    let (name, digest) = full.split_once('@').unwrap_or((&full, ""));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (name, "latest"),
    };
    let repository = path.split_once('/').map_or(path, |(_, repository)| repository);
    if repository.chars().any(|letter| letter.is_ascii_uppercase()) {
        return Err(format!(
            "invalid reference format: repository name ({repository}) must be lowercase"
        ));
    }
    let is_inner = |byte: &u8| matches!(byte, b'.' | b'_' | b'-');
    let is_component = |part: &str| {
        let (first, last) = (part.as_bytes().first(), part.as_bytes().last());
        let known = part
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || is_inner(&byte));
        known && first.is_some_and(|byte| !is_inner(byte)) && last.is_some_and(|byte| !is_inner(byte))
    };
    let is_tag = |tag: &str| {
        let known = tag
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || is_inner(&byte));
        known && !tag.is_empty() && tag.len() <= 128 && !tag.starts_with(['.', '-'])
    };
    let is_digest = |digest: &str| {
        let hex = digest.strip_prefix("sha256:");
        digest.is_empty()
            || hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    if repository.split('/').all(is_component) && is_tag(tag) && is_digest(digest) {
        Ok(())
    } else {
        Err("invalid reference format".to_owned())
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
    fn names_that_no_image_has_are_told_as_kubernetes_tells_them() {
        let bad = "invalid reference format";
        for (reference, expected) in [
            ("nginx", Ok(())),
            ("reg.example:5000/a/b_c:V1.2-x", Ok(())),
            (
                "Nginx",
                Err("invalid reference format: repository name (library/Nginx) must be lowercase"),
            ),
            ("REG.example/a", Ok(())),
            ("a//b", Err(bad)),
            ("a b", Err(bad)),
            ("-a", Err(bad)),
            ("a:", Err(bad)),
            ("a:.x", Err(bad)),
            ("a@sha256:00", Err(bad)),
            ("", Err(bad)),
        ] {
            assert_eq!(
                check_reference(reference),
                expected.map_err(str::to_owned),
                "{reference:?}"
            );
        }
    }

    #[test]
    fn built_in_images_are_there_after_each_opening() {
        let directory = std::env::temp_dir().join(format!("cwt-images-{}", std::process::id()));
        for damages in [false, false, true] {
            if damages {
                for image in ImageStore::at(&directory)
                    .expect("a store")
                    .list()
                    .expect("readable")
                {
                    let place = directory.join(image.id.trim_start_matches("sha256:"));
                    fs::write(place.join("image.json"), b"{").expect("writable");
                }
                let foreign = directory.join("00");
                disk::make_dir(&foreign).expect("a directory");
                fs::write(foreign.join("image.json"), b"").expect("writable");
            }
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

//! Archives of images: what `docker save` writes (`manifest.json`), and OCI layouts (image layout specification) as
//! buildah, podman and skopeo write them, plain or compressed.
//!
//! Nothing in an archive is believed: documents are checked against the digests that name them, and each layer against
//! the digest that the image's configuration has for it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::documents::{ContainerConfig, Descriptor, DockerImage, Document, Index, Manifest, sha256_hex};
use super::layer::{DEFAULT_LIMIT, Limit, Rootfs};
use super::members::{each_member, relative};
use super::{ImageConfig, ImageError};
use crate::disk::OnPath;

/// Most bytes of a document: manifest, index, configuration.
const DOCUMENT_LIMIT: u64 = 4 << 20;
/// Most members of an archive: layers and documents.
const MEMBERS_LIMIT: usize = 10_000;
/// How deep one index may name another: an archive's own, and that of an image for several platforms.
const INDEX_DEPTH: usize = 4;

/// An archive that was opened.
#[derive(Debug)]
pub struct Archive {
    file: File,
    members: BTreeMap<PathBuf, Place>,
}

#[derive(Clone, Debug)]
enum Place {
    Contents {
        position: u64,
        size_bytes: u64,
    },
    /// `docker save` of old names a layer that two images share once, and links to it.
    Link(PathBuf),
}

/// An image in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archived {
    /// `sha256:…` of its configuration, which is its id.
    pub id: String,
    /// How the archive names it; may be empty.
    pub names: Vec<String>,
    /// Its configuration.
    pub config: ImageConfig,
    layers: Vec<Layer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Layer {
    path: PathBuf,
    /// `sha256:…` of the uncompressed tar archive.
    diff_id: String,
}

impl Archive {
    /// Opens an archive. A compressed one is unpacked beside `scratch` first, into a file without a name.
    pub fn open(path: &Path, scratch: &Path) -> Result<Self, ImageError> {
        let file = File::open(path).on("open", path)?;
        let is_file = file.metadata().on("read", path)?.is_file();
        let mut start = Vec::new();
        (&file)
            .take(MAGIC_BYTES)
            .read_to_end(&mut start)
            .on("read", path)?;
        let compression = Compression::of(&start);
        if is_file && compression == Compression::None {
            return Self::index(file);
        }
        let whole = io::Cursor::new(start).chain(file);
        let mut spooled = unnamed_file(scratch)?;
        let mut plain = compression.reader(whole).take(DEFAULT_LIMIT.bytes);
        io::copy(&mut plain, &mut spooled).map_err(ImageError::Archive)?;
        if plain.limit() == 0 {
            return Err(ImageError::TooLarge);
        }
        Self::index(spooled)
    }

    /// One that lies open, uncompressed.
    pub fn of(file: File) -> Result<Self, ImageError> {
        Self::index(file)
    }

    fn index(mut file: File) -> Result<Self, ImageError> {
        file.seek(SeekFrom::Start(0)).map_err(ImageError::Archive)?;
        let mut members = BTreeMap::new();
        let mut archive = tar::Archive::new(&file);
        each_member(&mut archive, |member, _| {
            let place = match member.kind {
                EntryType::Regular | EntryType::Continuous => Place::Contents {
                    position: member.position,
                    size_bytes: member.size_bytes,
                },
                EntryType::Symlink | EntryType::Link => Place::Link(link_target(member)?),
                _ => return Ok(()),
            };
            if members.len() >= MEMBERS_LIMIT {
                return Err(ImageError::TooLarge);
            }
            members.insert(member.path.clone(), place);
            Ok(())
        })?;
        Ok(Self { file, members })
    }

    /// The images in it, for this machine's architecture.
    pub fn images(&self) -> Result<Vec<Archived>, ImageError> {
        if self.members.contains_key(Path::new("manifest.json")) {
            let images: Vec<DockerImage> =
                parse("manifest.json", &self.document(Path::new("manifest.json"))?)?;
            return images.into_iter().map(|image| self.docker_image(image)).collect();
        }
        if !self.members.contains_key(Path::new("index.json")) {
            return Err(ImageError::Malformed(
                "neither manifest.json nor index.json is in it: no archive of docker save, no OCI layout"
                    .to_owned(),
            ));
        }
        let index: Index = parse("index.json", &self.document(Path::new("index.json"))?)?;
        let mut images = Vec::new();
        for descriptor in index.manifests {
            let names = names_of(&descriptor);
            if let Some(manifest) = self.manifest(descriptor, INDEX_DEPTH)? {
                images.push(self.oci_image(&manifest, names)?);
            }
        }
        if images.is_empty() {
            return Err(ImageError::Malformed(format!(
                "it has no image for {}",
                architecture()
            )));
        }
        Ok(images)
    }

    fn docker_image(&self, image: DockerImage) -> Result<Archived, ImageError> {
        let config = self.document(&relative(image.config.as_bytes())?)?;
        let layers: Result<Vec<PathBuf>, ImageError> = image
            .layers
            .iter()
            .map(|path| relative(path.as_bytes()))
            .collect();
        archived(&config, image.repo_tags.unwrap_or_default(), layers?)
    }

    fn oci_image(&self, manifest: &Manifest, names: Vec<String>) -> Result<Archived, ImageError> {
        let config = self.blob(&manifest.config.digest)?;
        let layers: Result<Vec<PathBuf>, ImageError> = manifest
            .layers
            .iter()
            .map(|layer| blob_path(&layer.digest))
            .collect();
        archived(&config, names, layers?)
    }

    /// The manifest that a descriptor leads to, through an index of several platforms; `None` = none for this machine.
    fn manifest(&self, descriptor: Descriptor, depth: usize) -> Result<Option<Manifest>, ImageError> {
        if descriptor
            .platform
            .as_ref()
            .is_some_and(|platform| !platform.fits())
        {
            return Ok(None);
        }
        let blob = self.blob(&descriptor.digest)?;
        let is_index = descriptor.media_type.ends_with(".index.v1+json")
            || descriptor.media_type.ends_with(".manifest.list.v2+json");
        if !is_index {
            return parse(&descriptor.digest, &blob).map(Some);
        }
        let Some(depth) = depth.checked_sub(1) else {
            return Err(ImageError::Malformed(
                "its index names an index without end".to_owned(),
            ));
        };
        let index: Index = parse(&descriptor.digest, &blob)?;
        for descriptor in index.manifests {
            if let Some(manifest) = self.manifest(descriptor, depth)? {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    fn blob(&self, digest: &str) -> Result<Vec<u8>, ImageError> {
        let bytes = self.document(&blob_path(digest)?)?;
        if sha256(&bytes) != digest {
            return Err(ImageError::Digest(digest.to_owned()));
        }
        Ok(bytes)
    }

    fn document(&self, path: &Path) -> Result<Vec<u8>, ImageError> {
        let contents = self.contents(path)?;
        if contents.limit() > DOCUMENT_LIMIT {
            return Err(ImageError::TooLarge);
        }
        let (wanted, mut contents) = (contents.limit(), contents);
        let mut bytes = Vec::new();
        contents.read_to_end(&mut bytes).map_err(ImageError::Archive)?;
        if bytes.len() as u64 != wanted {
            return Err(ImageError::Malformed(format!("{} is cut off", path.display())));
        }
        Ok(bytes)
    }

    fn contents(&self, path: &Path) -> Result<io::Take<&File>, ImageError> {
        let absent = || ImageError::Malformed(format!("{} is not in it", path.display()));
        let place = match self.members.get(path).ok_or_else(absent)? {
            Place::Link(target) => self.members.get(target).ok_or_else(absent)?,
            contents @ Place::Contents { .. } => contents,
        };
        let Place::Contents { position, size_bytes } = place else {
            return Err(ImageError::Malformed(format!(
                "{} is a link to a link",
                path.display()
            )));
        };
        let mut file = &self.file;
        file.seek(SeekFrom::Start(*position))
            .map_err(ImageError::Archive)?;
        Ok(file.take(*size_bytes))
    }

    /// Unpacks an image into an empty directory. Bytes of its files together.
    pub fn unpack(&self, image: &Archived, rootfs: &Path, limit: Limit) -> Result<u64, ImageError> {
        let mut target = Rootfs::new(rootfs, limit)?;
        for layer in &image.layers {
            let mut contents = BufReader::new(self.contents(&layer.path)?);
            let start = contents.fill_buf().map_err(ImageError::Archive)?;
            let compression = Compression::of(start);
            let mut plain = Hashing {
                inner: compression.reader(contents),
                digest: Sha256::new(),
            };
            target.apply(&mut plain)?;
            if format!("sha256:{}", hex::encode(plain.digest.finalize())) != layer.diff_id {
                return Err(ImageError::Digest(layer.diff_id.clone()));
            }
        }
        Ok(target.size_bytes())
    }
}

fn archived(config: &[u8], names: Vec<String>, layers: Vec<PathBuf>) -> Result<Archived, ImageError> {
    let document: Document = parse("its configuration", config)?;
    if document.os != "linux" || document.architecture != architecture() {
        return Err(ImageError::Malformed(format!(
            "the image is for {}/{}, this machine is linux/{}",
            document.os,
            document.architecture,
            architecture()
        )));
    }
    if layers.len() != document.rootfs.diff_ids.len() {
        return Err(ImageError::Malformed(format!(
            "its manifest has {} layers, its configuration {}",
            layers.len(),
            document.rootfs.diff_ids.len()
        )));
    }
    let layers = layers
        .into_iter()
        .zip(document.rootfs.diff_ids)
        .map(|(path, diff_id)| Layer { path, diff_id });
    let ContainerConfig {
        user,
        env,
        entrypoint,
        cmd,
        working_dir,
    } = document.config.unwrap_or_default();
    Ok(Archived {
        id: sha256(config),
        names,
        config: ImageConfig {
            entrypoint: entrypoint.unwrap_or_default(),
            cmd: cmd.unwrap_or_default(),
            env: env.unwrap_or_default(),
            working_dir: working_dir.unwrap_or_default(),
            user: user.unwrap_or_default(),
        },
        layers: layers.collect(),
    })
}

/// containerd's and docker's full name, else the annotation of the specification, which may be no more than a tag.
fn names_of(descriptor: &Descriptor) -> Vec<String> {
    let annotation = |key: &str| descriptor.annotations.as_ref()?.get(key).cloned();
    let name = annotation("io.containerd.image.name").or_else(|| {
        let name = annotation("org.opencontainers.image.ref.name")?;
        name.contains(['/', ':']).then_some(name)
    });
    name.into_iter().collect()
}

fn blob_path(digest: &str) -> Result<PathBuf, ImageError> {
    let hex =
        sha256_hex(digest).ok_or_else(|| ImageError::Malformed(format!("{digest:?} is no sha256 digest")))?;
    Ok(Path::new("blobs/sha256").join(hex))
}

/// A link within the archive: `../LAYER/layer.tar`, from the directory that it stands in.
fn link_target(member: &super::members::Member) -> Result<PathBuf, ImageError> {
    if member.kind == EntryType::Link {
        return relative(&member.link);
    }
    let mut target = member.path.parent().unwrap_or(Path::new("")).to_owned();
    let link = String::from_utf8_lossy(&member.link).into_owned();
    for part in Path::new(&link).components() {
        match part {
            std::path::Component::ParentDir if target.pop() => {}
            std::path::Component::Normal(name) => target.push(name),
            std::path::Component::CurDir => {}
            _ => {
                return Err(ImageError::Refused {
                    path: member.path.clone(),
                    reason: "its link leads out of the archive",
                });
            }
        }
    }
    Ok(target)
}

fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| ImageError::Malformed(format!("{what}: {error}")))
}

/// `sha256:…` of bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// This machine's architecture in the words of images, which are Go's.
pub fn architecture() -> &'static str {
    crate::node::go_architecture()
}

/// A file that is gone when it is closed.
pub fn unnamed_file(directory: &Path) -> Result<File, ImageError> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let opened = File::options()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_TMPFILE.bits())
        .open(directory);
    Ok(opened.on("create a file in", directory)?)
}

/// Bytes that tell a compression.
const MAGIC_BYTES: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compression {
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Compression {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    fn reader<'a>(self, inner: impl Read + 'a) -> Box<dyn Read + 'a> {
        match self {
            Self::None => Box::new(inner),
            Self::Gzip => Box::new(flate2::read::MultiGzDecoder::new(inner)),
            Self::Zstd => Box::new(Frames {
                source: BufReader::new(inner),
                decoder: FrameDecoder::new(),
                is_open: false,
            }),
        }
    }
}

/// All frames of a Zstandard stream, one after the other: who compresses in pieces makes several, and may put notes of
/// its own between them (RFC 8878 §3.1).
struct Frames<R> {
    source: BufReader<R>,
    decoder: FrameDecoder,
    is_open: bool,
}

impl<R: Read> Frames<R> {
    /// Begins the next frame; false at the end of the stream.
    fn open(&mut self) -> io::Result<bool> {
        while !self.is_open {
            if self.source.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.init(&mut self.source) {
                Ok(()) => self.is_open = true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut note = (&mut self.source).take(u64::from(length));
                    io::copy(&mut note, &mut io::sink())?;
                }
                Err(error) => return Err(io::Error::other(error)),
            }
        }
        Ok(true)
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() && self.open()? {
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let wanted = BlockDecodingStrategy::UptoBytes(buffer.len());
                let decoded = self.decoder.decode_blocks(&mut self.source, wanted);
                decoded.map_err(io::Error::other)?;
            }
            match self.decoder.read(buffer)? {
                0 => self.is_open = false,
                length => return Ok(length),
            }
        }
        Ok(0)
    }
}

/// Hashes what is read through it.
struct Hashing<R> {
    inner: R,
    digest: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.digest.update(buffer.get(..length).unwrap_or_default());
        Ok(length)
    }
}

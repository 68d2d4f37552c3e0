//! Images from files of this machine, as an archive that our own import and docker's `load` both read. The same files
//! give the same bytes: names are sorted, times are zero.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::archive::{architecture, sha256};
use super::members::relative;
use super::{ImageConfig, ImageError, normalized};
use crate::disk::OnPath;

/// Directories of every image: where the runtime mounts, and where programs expect to write.
const DIRECTORIES: [(&str, u32); 8] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("var", 0o755),
];
const PASSWD: &[u8] = b"root:x:0:0:root:/root:/sbin/nologin\n";

/// What an image is to be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// How it is called; completed as docker does.
    pub name: String,
    /// A static program; it comes to `/` under its own name.
    pub binary: PathBuf,
    /// More files: on this machine, in the image. Directories come with all that is below.
    pub files: Vec<(PathBuf, String)>,
    /// What a container of it runs. No entrypoint: the program.
    pub config: ImageConfig,
}

/// A file of the image.
enum Source {
    Directory(u32),
    File(PathBuf, u32),
    Bytes(&'static [u8]),
    Link(PathBuf),
}

/// Writes the image as a tar archive: an OCI layout that has docker's `manifest.json` beside it. Its id.
pub fn build(recipe: &Recipe, archive: impl Write) -> Result<String, ImageError> {
    check_static(&recipe.binary)?;
    let program = file_name(&recipe.binary)?;
    let (layer, diff_id) = layer(&sources(recipe, &program)?)?;
    let mut config = recipe.config.clone();
    if config.entrypoint.is_empty() {
        config.entrypoint = vec![format!("/{program}")];
    }
    let name = normalized(&recipe.name);
    let ImageConfig {
        entrypoint,
        cmd,
        env,
        working_dir,
        user,
    } = config;
    let config = json!({
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": entrypoint, "Cmd": cmd, "Env": env, "WorkingDir": working_dir, "User": user,
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
    .to_string()
    .into_bytes();
    let descriptor =
        |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": sha256(bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = json!({
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(':').next(),
    });
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", sha256(bytes).trim_start_matches("sha256:"));
    let docker = json!([{ "Config": blob(&config), "RepoTags": [name], "Layers": [blob(&layer)] }]);
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    let mut members = BTreeMap::from([
        ("index.json".to_owned(), index.to_string().into_bytes()),
        ("manifest.json".to_owned(), docker.to_string().into_bytes()),
        (
            "oci-layout".to_owned(),
            b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec(),
        ),
    ]);
    let id = sha256(&config);
    for bytes in [config, manifest, layer] {
        members.insert(blob(&bytes), bytes);
    }
    let mut tar = tar::Builder::new(archive);
    for (path, bytes) in members {
        let mut header = header(0o644, bytes.len() as u64);
        tar.append_data(&mut header, path, bytes.as_slice())
            .map_err(ImageError::Archive)?;
    }
    tar.into_inner()
        .and_then(|mut archive| archive.flush())
        .map_err(ImageError::Archive)?;
    Ok(id)
}

/// The layer, compressed, and the digest of what it was before.
fn layer(sources: &BTreeMap<PathBuf, Source>) -> Result<(Vec<u8>, String), ImageError> {
    let mut tar = tar::Builder::new(Hashing {
        inner: GzEncoder::new(Vec::new(), Compression::default()),
        digest: Sha256::new(),
    });
    for (path, source) in sources {
        let added = match source {
            Source::Directory(mode) => {
                let mut header = header(*mode, 0);
                header.set_entry_type(tar::EntryType::Directory);
                tar.append_data(&mut header, path, std::io::empty())
            }
            Source::Bytes(bytes) => tar.append_data(&mut header(0o644, bytes.len() as u64), path, *bytes),
            Source::Link(target) => {
                let mut header = header(0o777, 0);
                header.set_entry_type(tar::EntryType::Symlink);
                tar.append_link(&mut header, path, target)
            }
            Source::File(from, mode) => {
                let file = fs::File::open(from).on("open", from)?;
                let size = file.metadata().on("read", from)?.len();
                tar.append_data(&mut header(*mode, size), path, file.take(size))
            }
        };
        added.map_err(ImageError::Archive)?;
    }
    let hashing = tar.into_inner().map_err(ImageError::Archive)?;
    let layer = hashing.inner.finish().map_err(ImageError::Archive)?;
    Ok((
        layer,
        format!("sha256:{}", hex::encode(hashing.digest.finalize())),
    ))
}

fn header(mode: u32, size_bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(size_bytes);
    header
}

fn sources(recipe: &Recipe, program: &str) -> Result<BTreeMap<PathBuf, Source>, ImageError> {
    let mut sources: BTreeMap<PathBuf, Source> = DIRECTORIES
        .into_iter()
        .map(|(path, mode)| (PathBuf::from(path), Source::Directory(mode)))
        .collect();
    sources.insert("etc/passwd".into(), Source::Bytes(PASSWD));
    sources.insert(program.into(), Source::File(recipe.binary.clone(), 0o755));
    for (from, to) in &recipe.files {
        let place = relative(to.as_bytes())?;
        for above in place
            .ancestors()
            .skip(1)
            .filter(|above| !above.as_os_str().is_empty())
        {
            let directory = Source::Directory(0o755);
            sources.entry(above.to_owned()).or_insert(directory);
        }
        add(&mut sources, from, &place)?;
    }
    Ok(sources)
}

fn add(sources: &mut BTreeMap<PathBuf, Source>, from: &Path, to: &Path) -> Result<(), ImageError> {
    let found = fs::symlink_metadata(from).on("read", from)?;
    let mode = found.permissions().mode() & 0o7777;
    let source = if found.is_dir() {
        for entry in fs::read_dir(from).on("read", from)? {
            let entry = entry.on("read", from)?;
            add(sources, &entry.path(), &to.join(entry.file_name()))?;
        }
        Source::Directory(mode)
    } else if found.is_symlink() {
        Source::Link(fs::read_link(from).on("read", from)?)
    } else if found.is_file() {
        Source::File(from.to_owned(), mode)
    } else {
        return Err(ImageError::Refused {
            path: from.to_owned(),
            reason: "it is no file, directory or link",
        });
    };
    sources.insert(to.to_owned(), source);
    Ok(())
}

fn file_name(path: &Path) -> Result<String, ImageError> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| ImageError::Refused {
        path: path.to_owned(),
        reason: "it names no program",
    })
}

/// A program that wants a loader of the machine (`PT_INTERP`, System V ABI, "Program Header") would not start.
fn check_static(program: &Path) -> Result<(), ImageError> {
    let mut bytes = Vec::new();
    let file = fs::File::open(program).on("open", program)?;
    // Program headers come right behind the ELF header, as every linker writes them.
    file.take(1 << 16).read_to_end(&mut bytes).on("read", program)?;
    match interpreter_wanted(&bytes) {
        Some(false) => Ok(()),
        Some(true) => Err(ImageError::Dynamic(program.to_owned())),
        None => Err(ImageError::Refused {
            path: program.to_owned(),
            reason: "it is no 64-bit ELF program",
        }),
    }
}

/// Whether a little-endian 64-bit ELF file has a `PT_INTERP`; `None` = it is none.
fn interpreter_wanted(elf: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let at = |offset: usize, length: usize| elf.get(offset..offset.checked_add(length)?);
    let u16_at = |offset| Some(u16::from_le_bytes(at(offset, 2)?.try_into().ok()?));
    // [magic:4][class:1 = 64 bit][data:1 = little-endian] … e_phoff at 0x20, e_phentsize at 0x36, e_phnum at 0x38
    if at(0, 6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(at(0x20, 8)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(u16_at(0x36)?), usize::from(u16_at(0x38)?));
    let kinds = (0..count).map(|index| {
        let kind = at(table.checked_add(index.checked_mul(size)?)?, 4)?;
        Some(u32::from_le_bytes(kind.try_into().ok()?))
    });
    let kinds: Option<Vec<u32>> = kinds.collect();
    Some(kinds?.contains(&PT_INTERP))
}

/// Hashes what is written through it.
struct Hashing<W> {
    inner: W,
    digest: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.digest.update(bytes.get(..length).unwrap_or_default());
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

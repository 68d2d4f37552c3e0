//! A bundle as a file: a `.tar.gz` of its parts, the manifest first.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use overlay::files::successor;

use super::{Bundle, FORMAT, Manifest, part};

/// Of the file: it has the names and addresses of a whole cluster.
const MODE: u32 = 0o600;
/// The folder that the parts lie in.
const FOLDER: &str = "causeway-bundle";
/// What stands for standard output, or input, in place of a file.
pub const STANDARD: &str = "-";
/// More is not read: a small file can be made to unpack into anything.
const MOST_BYTES: u64 = 2 << 30;

/// Why a file is not written, or not read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// There is one already.
    #[error("{0} exists already: name another with -o, or replace it with --force")]
    Exists(PathBuf),
    /// It is a device, a pipe, a link or a directory: a file in its place would take it from others.
    #[error("{0} is no regular file: name another with -o, or write to standard output with -o -")]
    NoFile(PathBuf),
    /// It cannot be written.
    #[error("write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It cannot be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is no bundle of causeway: {reason}")]
    NoBundle {
        /// The file.
        path: PathBuf,
        /// What tells so.
        reason: String,
    },
    /// Its end is missing.
    #[error("{path} is cut off or damaged: {reason}")]
    CutOff {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// This program is too old for it.
    #[error(
        "{path} was made by causeway {version}, in format {format}, and this one reads formats up to {FORMAT}: use that version"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        format: u32,
        /// What made it.
        version: String,
    },
}

/// Whether a file can be written there, as far as what is there tells.
///
/// # Errors
/// When there is a file that shall not be replaced, or what is no file.
pub fn may_be_written(path: &Path, force: bool) -> Result<(), ArchiveError> {
    match fs::symlink_metadata(path) {
        Ok(there) if !there.is_file() => Err(ArchiveError::NoFile(path.to_owned())),
        Ok(_) if !force => Err(ArchiveError::Exists(path.to_owned())),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Writes a bundle into a file that only its owner reads: as a whole, or not at all.
///
/// # Errors
/// When it is there already, and shall not be replaced, or cannot be written.
pub fn write(bundle: &Bundle, path: &Path, force: bool) -> Result<(), ArchiveError> {
    let failed = |source| ArchiveError::Write {
        path: path.to_owned(),
        source,
    };
    may_be_written(path, force)?;
    let fresh = if force { successor(path) } else { path.to_owned() };
    let mut options = OpenOptions::new();
    options.write(true).mode(MODE);
    if force {
        // What a crash left of another one.
        remove_if_there(&fresh).map_err(failed)?;
    }
    let mut file = options.create_new(true).open(&fresh).map_err(|error| {
        if error.kind() == ErrorKind::AlreadyExists {
            ArchiveError::Exists(path.to_owned())
        } else {
            failed(error)
        }
    })?;
    let written = write_to(bundle, &mut file).and_then(|()| file.sync_all());
    let written = written.and_then(|()| if force { fs::rename(&fresh, path) } else { Ok(()) });
    written.map_err(|error| {
        // Half of one is none.
        let _gone_or_not = fs::remove_file(&fresh);
        failed(error)
    })
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a bundle.
///
/// # Errors
/// When the output takes no more.
pub fn write_to(bundle: &Bundle, output: &mut dyn Write) -> io::Result<()> {
    let compressed = GzEncoder::new(output, Compression::default());
    let mut archive = tar::Builder::new(compressed);
    let made: Option<jiff::Timestamp> = bundle.manifest.made.parse().ok();
    let made = made.and_then(|made| u64::try_from(made.as_second()).ok());
    let manifest = serde_json::to_vec_pretty(&bundle.manifest).map_err(io::Error::other)?;
    let parts = bundle.parts.iter();
    let parts = parts.map(|(name, content)| (name.as_str(), content.as_slice()));
    for (name, content) in [(part::MANIFEST, manifest.as_slice())].into_iter().chain(parts) {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(MODE);
        header.set_mtime(made.unwrap_or_default());
        archive.append_data(&mut header, format!("{FOLDER}/{name}"), content)?;
    }
    archive.into_inner()?.finish()?.flush()
}

/// Reads a bundle, from a file or [`STANDARD`].
///
/// # Errors
/// When it cannot be read, is no bundle, is cut off, or of a format that is not known.
pub fn read(path: &Path) -> Result<Bundle, ArchiveError> {
    let cannot = |source| ArchiveError::Read {
        path: path.to_owned(),
        source,
    };
    let no_bundle = |reason: &str| ArchiveError::NoBundle {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let cut_off = |reason: String| ArchiveError::CutOff {
        path: path.to_owned(),
        reason,
    };
    let mut file: Box<dyn Read> = if path == Path::new(STANDARD) {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(path).map_err(cannot)?)
    };
    let mut magic = Vec::new();
    Read::by_ref(&mut file)
        .take(2)
        .read_to_end(&mut magic)
        .map_err(cannot)?;
    if magic != [0x1f, 0x8b] {
        return Err(no_bundle("it is not compressed by gzip"));
    }
    let compressed = magic.as_slice().chain(file);
    let limited = GzDecoder::new(compressed).take(MOST_BYTES);
    let mut archive = tar::Archive::new(limited);
    let mut parts = BTreeMap::new();
    let mut manifest: Option<Manifest> = None;
    for entry in archive.entries().map_err(cannot)? {
        let mut entry = entry.map_err(|error| match &manifest {
            Some(_) => cut_off(error.to_string()),
            None => no_bundle(&error.to_string()),
        })?;
        let name = entry
            .path()
            .map_err(|error| no_bundle(&error.to_string()))?
            .into_owned();
        let name = name.strip_prefix(FOLDER).ok().and_then(Path::to_str);
        let Some(name) = name.map(str::to_owned) else {
            return Err(no_bundle("it has other files than a bundle's"));
        };
        let mut content = Vec::new();
        entry
            .read_to_end(&mut content)
            .map_err(|error| cut_off(error.to_string()))?;
        match &manifest {
            Some(_) => {
                parts.insert(name, content);
            }
            None if name == part::MANIFEST => manifest = Some(manifest_of(&content, path)?),
            None => return Err(no_bundle("it does not begin with a manifest")),
        }
    }
    // What is behind the last file tells whether all of it came.
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(|error| cut_off(error.to_string()))?;
    let Some(manifest) = manifest else {
        return Err(no_bundle("it has no manifest"));
    };
    for (name, bytes) in &manifest.parts {
        let had = parts.get(name).map(|content: &Vec<u8>| content.len() as u64);
        if had != Some(*bytes) {
            return Err(cut_off(format!("{name} shall have {bytes} bytes")));
        }
    }
    Ok(Bundle { manifest, parts })
}

/// The format is looked at first: a newer one may have other fields.
fn manifest_of(content: &[u8], path: &Path) -> Result<Manifest, ArchiveError> {
    let no_bundle = |error: serde_json::Error| ArchiveError::NoBundle {
        path: path.to_owned(),
        reason: format!("its manifest cannot be read: {error}"),
    };
    let value: serde_json::Value = serde_json::from_slice(content).map_err(no_bundle)?;
    let format = value["format"]
        .as_u64()
        .and_then(|format| u32::try_from(format).ok());
    match format {
        Some(format) if format > FORMAT => Err(ArchiveError::Newer {
            path: path.to_owned(),
            format,
            version: value["version"]
                .as_str()
                .unwrap_or("of another version")
                .to_owned(),
        }),
        _ => serde_json::from_value(value).map_err(no_bundle),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::Machine;
    use super::*;
    use crate::explain::Vantage;

    fn bundle() -> Bundle {
        let parts = BTreeMap::from([
            (part::LOG.to_owned(), b"a line\n".repeat(10_000)),
            (part::STATUS.to_owned(), b"{}".to_vec()),
        ]);
        let sizes = parts
            .iter()
            .map(|(name, content)| (name.clone(), content.len() as u64));
        Bundle {
            manifest: Manifest {
                format: FORMAT,
                version: "0.1.0".to_owned(),
                agent: None,
                made: "2026-11-30T10:15:00Z".to_owned(),
                node: "node-1".to_owned(),
                machine: Machine::default(),
                vantage: Vantage::default(),
                parts: sizes.collect(),
                missing: BTreeMap::from([(part::DOCTOR.to_owned(), "no agent answers".to_owned())]),
                notes: Vec::new(),
            },
            parts,
        }
    }

    struct Place(PathBuf);

    impl Place {
        fn new(label: &str) -> Self {
            let path = std::env::temp_dir().join(format!("cwt-bundle-{label}-{}", std::process::id()));
            let _left = fs::remove_dir_all(&path);
            fs::create_dir(&path).expect("writable");
            Self(path)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("it was made");
        }
    }

    #[test]
    fn what_is_written_is_read_back_by_its_owner_alone_and_never_replaced_unasked() {
        let place = Place::new("file");
        let path = place.0.join("b.tar.gz");
        write(&bundle(), &path, false).expect("written");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(read(&path).expect("read"), bundle());
        let error = write(&bundle(), &path, false)
            .expect_err("it is there")
            .to_string();
        assert!(
            error.ends_with("exists already: name another with -o, or replace it with --force"),
            "{error}"
        );
        fs::write(successor(&path), "left by a crash").expect("written");
        let mut other = bundle();
        other.manifest.node = "node-2".to_owned();
        write(&other, &path, true).expect("replaced");
        assert_eq!(read(&path).expect("read"), other);
        assert_eq!(fs::read_dir(&place.0).expect("there").count(), 1);
    }

    #[test]
    fn what_is_no_regular_file_is_never_replaced() {
        let place = Place::new("link");
        let path = place.0.join("stdout");
        std::os::unix::fs::symlink("/dev/null", &path).expect("linked");
        for force in [false, true] {
            let error = write(&bundle(), &path, force).expect_err("no file").to_string();
            let expected =
                "stdout is no regular file: name another with -o, or write to standard output with -o -";
            assert!(error.ends_with(expected), "{error}");
        }
        assert_eq!(
            fs::read_link(&path).expect("still a link"),
            Path::new("/dev/null")
        );
    }

    #[test]
    fn a_disk_that_is_full_leaves_no_half_of_one() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let taken = bytes.len().min(self.0);
                self.0 -= taken;
                if taken == 0 {
                    Err(ErrorKind::StorageFull.into())
                } else {
                    Ok(taken)
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = write_to(&bundle(), &mut Full(100)).expect_err("no room");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        let full = Path::new("/dev/full/b.tar.gz");
        assert!(matches!(
            write(&bundle(), full, false),
            Err(ArchiveError::Write { .. })
        ));
    }

    #[test]
    fn what_is_no_bundle_or_cut_off_or_newer_is_told_apart() {
        let place = Place::new("bad");
        let path = place.0.join("b.tar.gz");
        let told = |content: &[u8]| {
            fs::write(&path, content).expect("written");
            read(&path)
                .expect_err("not read")
                .to_string()
                .replace(&path.display().to_string(), "FILE")
        };
        assert_eq!(
            told(b""),
            "FILE is no bundle of causeway: it is not compressed by gzip"
        );
        assert_eq!(
            told(b"hello"),
            "FILE is no bundle of causeway: it is not compressed by gzip"
        );
        let mut whole = Vec::new();
        write_to(&bundle(), &mut whole).expect("written");
        for length in [3, 40, whole.len() / 2, whole.len() - 20, whole.len() - 1] {
            let error = told(&whole[..length]);
            let is_told = error.starts_with("FILE is cut off or damaged") || length < 200;
            assert!(is_told && error.starts_with("FILE is "), "{length}: {error}");
        }
        let mut damaged = whole.clone();
        let middle = damaged.len() - 60;
        damaged[middle] ^= 0xff;
        assert!(told(&damaged).starts_with("FILE is cut off or damaged"));
        let mut newer = bundle();
        newer.manifest.format = FORMAT + 1;
        newer.manifest.version = "9.0.0".to_owned();
        let mut bytes = Vec::new();
        write_to(&newer, &mut bytes).expect("written");
        assert_eq!(
            told(&bytes),
            "FILE was made by causeway 9.0.0, in format 2, and this one reads formats up to 1: use that version"
        );
        let mut lacking = bundle();
        lacking.manifest.parts.insert(part::METRICS.to_owned(), 7);
        let mut bytes = Vec::new();
        write_to(&lacking, &mut bytes).expect("written");
        assert_eq!(
            told(&bytes),
            "FILE is cut off or damaged: metrics.txt shall have 7 bytes"
        );
        let mut other = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        other
            .append_data(&mut header, "etc/passwd", &b"hi"[..])
            .expect("written");
        let other = other.into_inner().expect("written").finish().expect("written");
        assert_eq!(
            told(&other),
            "FILE is no bundle of causeway: it has other files than a bundle's"
        );
    }
}

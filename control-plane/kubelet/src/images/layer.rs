//! Layers of an image onto a directory (OCI image specification, "Image Layer Filesystem Changeset").
//!
//! Layers are written by strangers: every path is resolved by the kernel with the image's directory as root
//! (openat2(2), `RESOLVE_IN_ROOT`), so that no link of an earlier member leads a later one out; devices are refused;
//! bytes and files are counted against a limit.

use std::cell::Cell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, fchown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use tar::EntryType;

use super::ImageError;
use super::members::{Member, each_member, relative};
use crate::disk::OnPath;

/// In a layer a file of this name and more takes away a file of the layers below.
const WHITEOUT: &[u8] = b".wh.";
/// Takes away all that the layers below have in its directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names that aufs, the first user of whiteouts, keeps for itself.
const AUFS: &[u8] = b".wh..wh.";

/// Most bytes of all names of one layer, which are held in memory.
const NAMES_LIMIT: usize = 256 << 20;

/// What an image may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of all files and archives together, unpacked.
    pub bytes: u64,
    /// Files, directories and links.
    pub files: u64,
}

/// 32 GiB and a million files: more than any image in use, less than what fills a disk unseen.
pub const DEFAULT_LIMIT: Limit = Limit {
    bytes: 32 << 30,
    files: 1 << 20,
};

/// A directory that layers are unpacked onto.
pub struct Rootfs {
    path: PathBuf,
    root: OwnedFd,
    limit: Limit,
    written_bytes: u64,
    files: Cell<u64>,
    /// What the layer that is being unpacked has in it, directories on the way included.
    written: HashSet<PathBuf>,
    written_names_bytes: usize,
}

/// A name in a directory that is held open: whatever links are on the way there have been followed within the image.
struct Place {
    parent: OwnedFd,
    name: OsString,
}

impl Place {
    /// A path that leads there and nowhere else.
    fn path(&self) -> PathBuf {
        Path::new("/proc/self/fd")
            .join(self.parent.as_raw_fd().to_string())
            .join(&self.name)
    }
}

impl Rootfs {
    /// Onto an empty directory that is there.
    pub fn new(path: &Path, limit: Limit) -> Result<Self, ImageError> {
        let root = nix::fcntl::open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .on("open", path)?;
        Ok(Self {
            path: path.to_owned(),
            root,
            limit,
            written_bytes: 0,
            files: Cell::new(0),
            written: HashSet::new(),
            written_names_bytes: 0,
        })
    }

    /// Bytes of all files that were written.
    pub fn size_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Unpacks a layer, an uncompressed tar archive, over those before.
    pub fn apply(&mut self, layer: impl Read) -> Result<(), ImageError> {
        self.written.clear();
        self.written_names_bytes = 0;
        let limit = self.limit.bytes;
        let mut archive = tar::Archive::new(layer.take(limit));
        each_member(&mut archive, |member, contents| {
            self.count_file()?;
            self.apply_member(member, contents)
        })?;
        // Whoever checks the layer's digest reads on behind the archive's end.
        let mut rest = archive.into_inner();
        io::copy(&mut rest, &mut io::sink()).map_err(ImageError::Archive)?;
        if rest.limit() == 0 {
            return Err(ImageError::TooLarge);
        }
        Ok(())
    }

    fn apply_member(&mut self, member: &Member, contents: &mut dyn Read) -> Result<(), ImageError> {
        let Some(name) = member.path.file_name().map(OsStr::to_owned) else {
            return self.change(&self.path, member);
        };
        let above = member.path.parent().unwrap_or(Path::new("")).to_owned();
        let parent = self.directory(&above)?;
        if name.as_bytes() == OPAQUE {
            return self.clear(&above, &parent);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if name.as_bytes().starts_with(AUFS) {
                return Ok(());
            }
            let hidden = OsStr::from_bytes(hidden).to_owned();
            if matches!(hidden.as_bytes(), b"" | b"." | b"..") {
                return Err(member.refused("it takes away no file"));
            }
            let hidden_path = above.join(&hidden);
            if !self.written.contains(&hidden_path) {
                return self.remove(&Place { parent, name: hidden });
            }
            // Only what the layers below have of it goes.
            return match open_in(
                &self.root,
                &hidden_path,
                OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW,
            ) {
                Ok(opened) => self.clear(&hidden_path, &opened),
                Err(_) => Ok(()),
            };
        }
        let place = Place { parent, name };
        self.make(&place, member, contents)?;
        self.remember(&member.path)
    }

    fn count_file(&self) -> Result<(), ImageError> {
        self.files.set(self.files.get() + 1);
        if self.files.get() > self.limit.files {
            return Err(ImageError::TooLarge);
        }
        Ok(())
    }

    fn remember(&mut self, path: &Path) -> Result<(), ImageError> {
        for path in path.ancestors() {
            if !self.written.insert(path.to_owned()) {
                break;
            }
            self.written_names_bytes += path.as_os_str().len();
        }
        if self.written_names_bytes > NAMES_LIMIT {
            return Err(ImageError::TooLarge);
        }
        Ok(())
    }

    fn make(&mut self, place: &Place, member: &Member, contents: &mut dyn Read) -> Result<(), ImageError> {
        let path = place.path();
        let shown = self.path.join(&member.path);
        let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.is_dir());
        if !(member.kind == EntryType::Directory && is_directory(&path)) {
            self.remove(place)?;
        }
        match member.kind {
            EntryType::Directory => {
                if !is_directory(&path) {
                    fs::create_dir(&path).on("create directory", &shown)?;
                }
                self.change(&path, member)
            }
            EntryType::Regular | EntryType::Continuous => self.write(&path, member, contents),
            EntryType::Symlink => {
                // It may name anything: it is read in the container, whose root is the image.
                symlink(OsStr::from_bytes(&member.link), &path).on("link", &shown)?;
                Ok(lchown(&path, Some(member.uid), Some(member.gid)).on("chown", &shown)?)
            }
            EntryType::Link => {
                let target = self.place(&relative(&member.link)?)?;
                Ok(fs::hard_link(target.path(), &path).on("link", &shown)?)
            }
            EntryType::Fifo => {
                nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).on("create", &shown)?;
                self.change(&path, member)
            }
            EntryType::Char | EntryType::Block => Err(member.refused("it is a device")),
            _ => Err(member.refused("it is of a kind that no image has")),
        }
    }

    fn write(&mut self, path: &Path, member: &Member, contents: &mut dyn Read) -> Result<(), ImageError> {
        let shown = self.path.join(&member.path);
        self.written_bytes = self.written_bytes.saturating_add(member.size_bytes);
        if self.written_bytes > self.limit.bytes {
            return Err(ImageError::TooLarge);
        }
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
            .on("create", &shown)?;
        let copied = io::copy(contents, &mut &file).on("write", &shown)?;
        if copied != member.size_bytes {
            return Err(member.refused("the archive ends before it does"));
        }
        fchown(&file, Some(member.uid), Some(member.gid)).on("chown", &shown)?;
        for (name, value) in member.xattrs.iter().filter(|(name, _)| is_kept(name)) {
            rustix::fs::fsetxattr(&file, name, value, rustix::fs::XattrFlags::empty())
                .map_err(io::Error::from)
                .on("set an attribute of", &shown)?;
        }
        file.set_permissions(fs::Permissions::from_mode(member.mode))
            .on("chmod", &shown)?;
        let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(member.mtime));
        if let Some(time) = time {
            file.set_modified(time).on("set the time of", &shown)?;
        }
        Ok(())
    }

    /// Owner and permissions of a directory or pipe.
    fn change(&self, path: &Path, member: &Member) -> Result<(), ImageError> {
        let shown = self.path.join(&member.path);
        lchown(path, Some(member.uid), Some(member.gid)).on("chown", &shown)?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(member.mode)).on("chmod", &shown)?)
    }

    fn place(&self, path: &Path) -> Result<Place, ImageError> {
        let name = path.file_name().ok_or_else(|| ImageError::Refused {
            path: path.to_owned(),
            reason: "it names no file",
        })?;
        Ok(Place {
            parent: self.directory(path.parent().unwrap_or(Path::new("")))?,
            name: name.to_owned(),
        })
    }

    /// Opens a directory of the image, and makes it where it is not there.
    fn directory(&self, path: &Path) -> Result<OwnedFd, ImageError> {
        match self.open(path) {
            Err(Errno::ENOENT) if !path.as_os_str().is_empty() => {
                let place = self.place(path)?;
                self.count_file()?;
                fs::create_dir(place.path()).on("create directory", &self.path.join(path))?;
                Ok(self.open(path).on("open", &self.path.join(path))?)
            }
            opened => Ok(opened.on("open", &self.path.join(path))?),
        }
    }

    fn open(&self, path: &Path) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        open_in(&self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    fn remove(&self, place: &Place) -> Result<(), ImageError> {
        let path = place.path();
        let removed = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
            _ => fs::remove_file(&path),
        };
        Ok(removed.on("remove", &self.path.join(&place.name))?)
    }

    /// Takes away all below a directory but what this layer has written there.
    fn clear(&self, directory: &Path, opened: &OwnedFd) -> Result<(), ImageError> {
        let path = Path::new("/proc/self/fd").join(opened.as_raw_fd().to_string());
        for entry in fs::read_dir(&path).on("read", &self.path.join(directory))? {
            let entry = entry.on("read", &self.path.join(directory))?;
            let name = entry.file_name();
            let own = directory.join(&name);
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if !self.written.contains(&own) {
                let parent = opened.try_clone().on("open", &self.path.join(directory))?;
                self.remove(&Place { parent, name })?;
            } else if is_directory {
                self.clear(&own, &self.directory(&own)?)?;
            }
        }
        Ok(())
    }
}

impl Member {
    fn refused(&self, reason: &'static str) -> ImageError {
        ImageError::Refused {
            path: self.path.clone(),
            reason,
        }
    }
}

/// Opens a path with `root` as root directory, whatever links are on the way.
pub fn open_in(root: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(root, path, how)
}

/// Opens a file of an image for reading.
pub fn open_file(rootfs: &Path, path: &Path) -> nix::Result<File> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let root = nix::fcntl::openat(AT_FDCWD, rootfs, flags, Mode::empty())?;
    // A pipe in the place of the file must not be waited for.
    open_in(&root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK).map(File::from)
}

/// Attributes that say what a file is. Those of overlayfs would say where else to look.
fn is_kept(xattr: &str) -> bool {
    xattr == "security.capability" || (xattr.starts_with("user.") && !xattr.starts_with("user.overlay"))
}

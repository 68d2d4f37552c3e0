//! The part of a volume that a container sees instead of the whole (`subPath`).
//!
//! Another container may move directories and links of the volume about all the time, so that what was checked is not
//! what is mounted by the same path a moment later (CVE-2021-25741). Here the kernel resolves and checks in one step,
//! and what it opened is what the shim mounts, in the mount namespace that it has for its container.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::{Mode, fstat, mkdirat};
use serde::{Deserialize, Serialize};

use crate::disk::{DiskError, OnPath};

/// A path in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubPath {
    /// The volume on the node.
    pub volume: PathBuf,
    /// Relative to the volume, without `..`.
    pub path: PathBuf,
}

impl SubPath {
    /// Opens it (`O_PATH`), following only links that stay in the volume: another is refused (CVE-2017-1002101). What
    /// is missing becomes a directory with the volume's mode.
    pub fn open(&self) -> Result<OwnedFd, DiskError> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let volume =
            openat(AT_FDCWD, &self.volume, directory, Mode::empty()).on("open volume", &self.volume)?;
        let mut prefix = PathBuf::new();
        let mut found = open_beneath(&volume, Path::new("."), OFlag::O_PATH).on("open", &self.volume)?;
        for part in self.path.components() {
            prefix.push(part);
            found = match open_beneath(&volume, &prefix, OFlag::O_PATH) {
                Err(Errno::ENOENT) => make_directory(&volume, &found, part.as_ref()),
                opened => opened.map_err(io::Error::from),
            }
            .on("open subPath", &self.volume.join(&prefix))?;
        }
        Ok(found)
    }
}

/// Resolved with `volume` as a root that nothing leads out of (openat2(2)).
fn open_beneath(volume: &OwnedFd, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(volume, path, how)
}

/// A directory in `parent`, with the mode of the volume, whatever the umask is. Not one that another has made a link
/// meanwhile.
fn make_directory(volume: &OwnedFd, parent: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::S_IRWXU)?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let made = File::from(open_beneath(parent, name, flags)?);
    let mode = fstat(volume)?.st_mode & 0o7777;
    made.set_permissions(Permissions::from_mode(mode))?;
    Ok(made.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk;
    use std::fs;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::{MetadataExt as _, symlink};

    fn place_of(opened: &OwnedFd) -> PathBuf {
        fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).expect("an open file")
    }

    #[test]
    fn a_link_that_a_container_made_is_not_followed_out_of_the_volume() {
        let base = std::env::temp_dir().join(format!("cwt-sub-path-{}", std::process::id()));
        let (volume, outside) = (base.join("volume"), base.join("outside"));
        for directory in [&volume.join("..1"), &outside] {
            disk::make_dir(directory).expect("a directory");
        }
        fs::set_permissions(&volume, Permissions::from_mode(0o2777)).expect("its own");
        fs::write(outside.join("kept"), b"kept").expect("written");
        fs::write(volume.join("..1/key"), b"value").expect("written");
        for (target, link) in [
            (Path::new("..1"), "..data"),
            (Path::new("..data/key"), "key"),
            (&outside, "out"),
            (Path::new("../outside"), "up"),
            (Path::new("/proc/self/root"), "magic"),
            (Path::new("nowhere"), "dangling"),
        ] {
            symlink(target, volume.join(link)).expect("a link");
        }
        let root = fs::canonicalize(&volume).expect("a directory");
        for (path, expected) in [
            ("key", Some("..1/key")),
            ("..data/key", Some("..1/key")),
            ("", Some("")),
            ("new/deep", Some("new/deep")),
            ("..data/new", Some("..1/new")),
            ("key/below-a-file", None),
            ("out", None),
            ("out/kept", None),
            ("out/new", None),
            ("up/kept", None),
            ("magic", None),
            ("dangling", None),
        ] {
            let sub_path = SubPath {
                volume: volume.clone(),
                path: PathBuf::from(path),
            };
            let seen = sub_path.open().ok().map(|opened| place_of(&opened));
            let expected = expected.map(|path| root.join(path).components().collect::<PathBuf>());
            assert_eq!(seen, expected, "{path}");
        }
        let mode = fs::metadata(volume.join("new/deep")).expect("made").mode();
        assert_eq!(mode & 0o7777, 0o2777);
        let names: Vec<_> = fs::read_dir(&outside).expect("there").flatten().collect();
        let names: Vec<_> = names.iter().map(fs::DirEntry::file_name).collect();
        assert_eq!(names, ["kept"]);
        disk::remove_tree(&base).expect("removable");
    }

    #[test]
    fn what_was_opened_stays_the_same_when_a_link_takes_its_place() {
        let base = std::env::temp_dir().join(format!("cwt-swapped-{}", std::process::id()));
        let (volume, outside) = (base.join("volume"), base.join("outside"));
        for directory in [&volume.join("dir"), &outside] {
            disk::make_dir(directory).expect("a directory");
        }
        let path = PathBuf::from("dir");
        let sub_path = SubPath { volume, path };
        let opened = sub_path.open().expect("a directory");
        let (place, aside) = (sub_path.volume.join("dir"), sub_path.volume.join("aside"));
        fs::rename(&place, &aside).expect("moved");
        symlink(&outside, &place).expect("a link");
        assert_eq!(place_of(&opened), fs::canonicalize(&aside).expect("there"));
        assert!(sub_path.open().is_err());
        disk::remove_tree(&base).expect("removable");
    }
}

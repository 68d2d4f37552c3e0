//! What a directory takes of the disk, whatever a pod makes of it: any depth, any number of names, and changes meanwhile.
//!
//! The walk holds one directory open and remembers of those above only which they are and where it was in them, so that
//! neither open files nor the length of paths nor the stack bound its depth.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, fstat, openat, seek, statat};
use rustix::io::Errno;

use crate::disk::{DiskError, OnPath as _};

/// Names are read again from where the walk went down, so no more of them than this at a time. One takes 280 at most
/// (getdents64(2)).
const NAMES_BYTES: usize = 2048;
/// stat(2) counts in it, whatever the blocks of the file system are.
const BLOCK_BYTES: u64 = 512;

/// A directory that the walk is below of.
struct Above {
    device: u64,
    inode: u64,
    /// Where its names go on.
    cookie: u64,
}

/// Bytes of the disk that a directory takes, with all that is in it; of more than `enough` it is not told how much
/// more. What vanishes meanwhile takes none.
///
/// # Errors
/// A directory that is there and cannot be read, or one that was moved while the walk was in it: how much it takes is
/// not known.
pub fn disk_usage(path: &Path, enough: u64) -> Result<u64, DiskError> {
    measured(path, enough).on("measure", path)
}

fn measured(path: &Path, enough: u64) -> rustix::io::Result<u64> {
    let Some(mut at) = opened(rustix::fs::CWD, path)? else {
        return Ok(0);
    };
    let mut total = taken(&fstat(&at)?);
    let mut above: Vec<Above> = Vec::new();
    while total <= enough {
        if let Some((below, cookie)) = next_directory(&at, &mut total, enough)? {
            let stat = fstat(&at)?;
            above.push(Above {
                device: stat.st_dev,
                inode: stat.st_ino,
                cookie,
            });
            at = below;
            continue;
        }
        let Some(before) = above.pop() else { break };
        at = openat(
            &at,
            "..",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let stat = fstat(&at)?;
        if (stat.st_dev, stat.st_ino) != (before.device, before.inode) {
            return Err(Errno::STALE);
        }
        seek(&at, SeekFrom::Start(before.cookie))?;
    }
    Ok(total)
}

/// Counts names up to the next directory, itself included; and where they go on behind it.
fn next_directory(at: &OwnedFd, total: &mut u64, enough: u64) -> rustix::io::Result<Option<(OwnedFd, u64)>> {
    let mut buffer = [MaybeUninit::uninit(); NAMES_BYTES];
    let mut names = RawDir::new(at, &mut buffer);
    while let Some(entry) = names.next() {
        let entry = match entry {
            // The directory itself was removed.
            Err(Errno::NOENT) => return Ok(None),
            entry => entry?,
        };
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match statat(at, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            stat => stat?,
        };
        *total = total.saturating_add(taken(&stat));
        if *total > enough {
            return Ok(None);
        }
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Some(below) = opened(at, name)?
        {
            return Ok(Some((below, entry.next_entry_cookie())));
        }
    }
    Ok(None)
}

fn taken(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks)
        .unwrap_or(0)
        .saturating_mul(BLOCK_BYTES)
}

/// A directory, and no link to one; `None` = it is not there, or something else by now.
fn opened(at: impl AsFd, name: impl rustix::path::Arg) -> rustix::io::Result<Option<OwnedFd>> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(at, name, how, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        opened => opened.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("cwt-usage-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }

        fn usage(&self) -> u64 {
            disk_usage(&self.0, u64::MAX).expect("measured")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).expect("removable");
        }
    }

    fn is_about_300_kilobytes(grown: u64) -> bool {
        (300_000..400_000).contains(&grown)
    }

    #[test]
    fn what_a_volume_takes_of_the_disk_is_counted_to_its_depths() {
        let base = Scratch::new("of");
        fs::create_dir_all(base.0.join("a/b")).expect("a directory");
        let empty = base.usage();
        fs::write(base.0.join("a/b/file"), vec![1; 300_000]).expect("written");
        symlink("/", base.0.join("a/link")).expect("a link");
        let grown = base.usage() - empty;
        assert!(is_about_300_kilobytes(grown), "{grown}");
        let absent = disk_usage(&base.0.join("absent"), u64::MAX).expect("measured");
        let link = disk_usage(&base.0.join("a/link"), u64::MAX).expect("measured");
        assert_eq!((absent, link), (0, 0));
    }

    #[test]
    fn each_name_counts_once_however_many_there_are() {
        let base = Scratch::new("many");
        for index in 0..300 {
            fs::create_dir(base.0.join(format!("{index:0>200}"))).expect("a directory");
        }
        let empty = base.usage();
        for index in 0..300 {
            fs::write(base.0.join(format!("{index:0>200}/file")), [1; 1000]).expect("written");
        }
        let each = (base.usage() - empty) / 300;
        let alone = Scratch::new("one");
        let before = alone.usage();
        fs::write(alone.0.join("file"), [1; 1000]).expect("written");
        assert_eq!(each, alone.usage() - before);
    }

    /// Deeper than paths may be long, and than files may be open.
    #[test]
    fn no_depth_hides_what_is_in_it() {
        let base = Scratch::new("deep");
        let down = |at: &OwnedFd, name: &str| {
            rustix::fs::mkdirat(at, name, Mode::RWXU).expect("a directory");
            opened(at, name).expect("opened").expect("there")
        };
        let top = opened(rustix::fs::CWD, &base.0).expect("opened").expect("there");
        let name = "d".repeat(200);
        let bottom = (0..3000).fold(top, |at, _| down(&at, &name));
        let empty = base.usage();
        let how = OFlags::WRONLY | OFlags::CREATE;
        let file = openat(&bottom, "file", how, Mode::RWXU).expect("made");
        std::io::Write::write_all(&mut fs::File::from(file), &vec![1; 300_000]).expect("written");
        let grown = base.usage() - empty;
        assert!(is_about_300_kilobytes(grown), "{grown}");
    }

    #[test]
    fn more_than_enough_is_not_counted_to_its_end() {
        let base = Scratch::new("enough");
        for index in 0..10 {
            fs::write(base.0.join(format!("{index}")), vec![1; 300_000]).expect("written");
        }
        let seen = disk_usage(&base.0, 500_000).expect("measured");
        assert!((500_001..1_000_000).contains(&seen), "{seen}");
    }
}

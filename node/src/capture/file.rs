//! The file of a capture. What pods say to each other is nobody else's business.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// For its owner alone.
const MODE: u32 = 0o600;

/// Opens it, empty and for its owner alone where it is a file, whatever was there. A link leads to devices and pipes
/// alone, but for our own streams: who captures is root, and others may write where the file shall be.
///
/// # Errors
/// When it cannot be opened, or cannot be taken from others; then nothing of it is changed.
pub fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.write(true);
    let mut unlinked = options.clone();
    let opened = unlinked
        .create(true)
        .truncate(false)
        .mode(MODE)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    match opened {
        Ok(file) => {
            let metadata = file.metadata()?;
            if metadata.is_file() {
                if metadata.permissions().mode() & 0o7777 != MODE {
                    file.set_permissions(Permissions::from_mode(MODE))?;
                }
                file.set_len(0)?;
            }
            Ok(file)
        }
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            let file = options.open(path)?;
            let is_file = file.metadata()?.is_file();
            if is_file && !is_own_stream(path) {
                return Err(error);
            }
            if is_file {
                file.set_len(0)?;
            }
            Ok(file)
        }
        Err(error) => Err(error),
    }
}

/// Whether it is something that whoever started this has opened.
fn is_own_stream(path: &Path) -> bool {
    let streams = ["/dev/stdout", "/dev/stderr"];
    let directories = ["/dev/fd", "/proc/self/fd"];
    streams.iter().any(|stream| path == Path::new(stream))
        || directories
            .iter()
            .any(|directory| path.parent() == Some(Path::new(directory)))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::fd::AsRawFd as _;
    use std::os::unix::fs::symlink;

    use ::tests::directory::Directory;
    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("there").permissions().mode() & 0o7777
    }

    #[test]
    fn a_file_is_empty_and_for_its_owner_alone() {
        let directory = Directory::new("capture-file");
        let path = directory.path().join("a.pcapng");
        for _ in 0..2 {
            create(&path).expect("opened").write_all(b"new").expect("written");
            assert_eq!(
                (fs::read(&path).expect("there"), mode(&path)),
                (b"new".to_vec(), MODE)
            );
            fs::write(&path, "something longer").expect("written");
            fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        }
    }

    #[test]
    fn a_link_leads_to_no_file() {
        let directory = Directory::new("capture-link");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("other"), "kept").expect("written");
        for target in ["other", "missing"] {
            symlink(path(target), path("link")).expect("a link");
            create(&path("link")).expect_err("a link to a file");
            fs::remove_file(path("link")).expect("a link");
        }
        assert_eq!(fs::read(path("other")).expect("there"), b"kept");
        assert!(!path("missing").exists());
    }

    #[test]
    fn devices_pipes_and_own_streams_are_written() {
        let directory = Directory::new("capture-device");
        let path = |name: &str| directory.path().join(name);
        symlink("/dev/null", path("null")).expect("a link");
        mkfifo(&path("fifo"), Mode::from_bits_truncate(0o644)).expect("a pipe");
        // Who reads is there.
        let reader = File::options()
            .read(true)
            .write(true)
            .open(path("fifo"))
            .expect("a pipe");
        let redirected = File::create(path("redirected")).expect("a file");
        let own = Path::new("/proc/self/fd").join(redirected.as_raw_fd().to_string());
        for path in ["/dev/null".into(), path("null"), path("fifo"), own] {
            create(&path).expect("opened").write_all(b"a").expect("written");
        }
        drop(reader);
        assert_eq!(mode(&path("fifo")), 0o644);
        assert_eq!(fs::read(path("redirected")).expect("there"), b"a");
    }
}

//! What a machine must have before anything is loaded.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ebpf_common::service::NetnsCookie;
use nix::libc;
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use crate::Error;

/// The identity of a cgroup v2 directory: its inode number, which a directory made anew under the same name does not
/// share.
pub fn cgroup_id(cgroup: &Path) -> Result<u64, Error> {
    let not_cgroup2 = || Error::NotCgroup2 {
        path: cgroup.to_path_buf(),
    };
    if !is_on(cgroup, CGROUP2_SUPER_MAGIC) {
        return Err(not_cgroup2());
    }
    std::fs::metadata(cgroup)
        .map(|metadata| metadata.ino())
        .map_err(|_| not_cgroup2())
}

/// Makes the pin directory, which must be on a BPF file system.
pub fn make_pin_dir(dir: &Path) -> Result<(), Error> {
    let existing = dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if !is_on(existing, BPF_FS_MAGIC) {
        return Err(Error::NotBpffs {
            path: dir.to_path_buf(),
            mount: usual_mount(dir),
        });
    }
    std::fs::create_dir_all(dir).map_err(Error::pin("make", dir))
}

/// The cookie of the calling thread's network namespace; [`NetnsCookie::NONE`] where the kernel does not tell it
/// (before Linux 5.14).
pub fn netns_cookie() -> Result<NetnsCookie, Error> {
    // The option is the socket's; any socket will do, and this one sends nothing.
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(Error::Netns)?;
    let mut cookie = NetnsCookie::NONE;
    let mut bytes: libc::socklen_t = size_of::<NetnsCookie>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel writes at most `bytes` bytes, the size of the u64 that it is given
    // (`sk_getsockopt`, net/core/sock.c).
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut bytes,
        )
    };
    if result == 0 {
        return Ok(cookie);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT) => Ok(NetnsCookie::NONE),
        _ => Err(Error::Netns(error)),
    }
}

/// What BPF programs read as the time since boot, suspend included.
#[must_use]
pub fn since_boot() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel writes one timespec, and knows this clock since 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanos.unwrap_or(0))
}

fn usual_mount(dir: &Path) -> PathBuf {
    let usual = Path::new("/sys/fs/bpf");
    if dir.starts_with(usual) {
        usual.into()
    } else {
        dir.into()
    }
}

fn is_on(path: &Path, file_system: FsType) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == file_system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_keeps_its_cookie() {
        let cookie = netns_cookie().expect("a socket");
        assert_ne!(cookie, NetnsCookie::NONE);
        assert_eq!(netns_cookie().expect("a socket"), cookie);
    }

    #[test]
    fn a_missing_file_system_is_named_with_what_to_do() {
        let error = cgroup_id(Path::new("/proc")).expect_err("not a cgroup");
        assert!(error.to_string().contains("cgroup v2 must be mounted"), "{error}");
        let error = make_pin_dir(Path::new("/proc/pins")).expect_err("not a BPF file system");
        assert!(error.to_string().contains("mount -t bpf"), "{error}");
    }
}

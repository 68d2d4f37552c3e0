//! Addresses that `host-local` gave to pods which another plugin wired before this one came, as flannel's does: a file
//! for each, named as the address, in a directory for each network; its lines are the container's id and the
//! interface's name (containernetworking/plugins, `plugins/ipam/host-local/backend/disk`).
//!
//! Those pods live on, and the runtime deletes them by the plugin that it has then. So nobody gets such an address, until
//! this plugin deletes its pod and the file with it.

use std::fs::{self, File, ReadDir};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::protocol::AttachmentKey;

/// Where the directories of the networks are, unless `host-local` was told another place (`dataDir`).
pub const DEFAULT_DIRECTORY: &str = "/var/lib/cni/networks";

/// `host-local` holds it while it works on a network's directory.
const LOCK: &str = "lock";

/// Every address that is given, in ascending order.
///
/// # Errors
/// When a directory cannot be read; one that is not there is no failure.
pub fn given(directory: &Path) -> io::Result<Vec<IpAddr>> {
    let mut given = Vec::new();
    for network in networks(directory)? {
        given.extend(reservations(&network)?.map(|(address, _)| address));
    }
    given.sort_unstable();
    given.dedup();
    Ok(given)
}

/// Gives back what an interface has, as `host-local` does at its DEL. Returns which addresses those were.
///
/// # Errors
/// When a directory cannot be read, or a file be removed.
pub fn give_back(directory: &Path, key: &AttachmentKey) -> io::Result<Vec<IpAddr>> {
    let mut freed = Vec::new();
    for network in networks(directory)? {
        if !reservations(&network)?.any(|(_, path)| is_of(&path, key)) {
            continue;
        }
        let lock = File::options()
            .create(true)
            .append(true)
            .open(network.join(LOCK))?;
        let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        for (address, path) in reservations(&network)? {
            if is_of(&path, key) {
                fs::remove_file(&path)?;
                freed.push(address);
            }
        }
    }
    Ok(freed)
}

/// Whether a file is an interface's. Older versions wrote no interface.
fn is_of(path: &Path, key: &AttachmentKey) -> bool {
    let text = fs::read_to_string(path).unwrap_or_default();
    let mut lines = text.lines().map(str::trim);
    lines.next() == Some(&key.container_id) && lines.next().is_none_or(|ifname| ifname == key.ifname)
}

fn networks(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = entries(directory)?.into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.path()).collect())
}

fn reservations(network: &Path) -> io::Result<impl Iterator<Item = (IpAddr, PathBuf)>> {
    let entries = entries(network)?.into_iter().flatten().flatten();
    Ok(entries.filter_map(|entry| {
        let address = entry.file_name().to_str()?.parse().ok()?;
        Some((address, entry.path()))
    }))
}

fn entries(directory: &Path) -> io::Result<Option<ReadDir>> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(Some(entries)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(container: &str, ifname: &str) -> AttachmentKey {
        AttachmentKey {
            container_id: container.to_owned(),
            ifname: ifname.to_owned(),
        }
    }

    #[test]
    fn files_say_who_has_which_address_and_go_with_their_interface_alone() {
        let directory = std::env::temp_dir().join(format!("cwt-host-local-{}", std::process::id()));
        assert_eq!(given(&directory).expect("absent"), Vec::<IpAddr>::new());
        let files = [
            ("cbr0/10.244.1.9", "c1\r\neth0"),
            ("cbr0/10.244.1.10", "c1\r\nnet1"),
            ("cbr0/10.244.1.11", "c2"),
            ("cbr0/last_reserved_ip.0", "10.244.1.11"),
            ("cbr0/lock", ""),
            ("other/fd00::9", "c1\neth0\n"),
        ];
        for (name, text) in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("of a network")).expect("writable");
            fs::write(path, text).expect("writable");
        }
        let addresses = |texts: &[&str]| -> Vec<IpAddr> {
            texts.iter().map(|text| text.parse().expect("address")).collect()
        };
        let now = || given(&directory).expect("readable");
        assert_eq!(
            now(),
            addresses(&["10.244.1.9", "10.244.1.10", "10.244.1.11", "fd00::9"])
        );
        let rows: [(&str, &str, &[&str]); 4] = [
            ("c3", "eth0", &[]),
            ("c1", "eth0", &["10.244.1.9", "fd00::9"]),
            ("c1", "eth0", &[]),
            ("c2", "eth0", &["10.244.1.11"]),
        ];
        for (container, ifname, expected) in rows {
            let freed = give_back(&directory, &key(container, ifname)).expect("removable");
            assert_eq!(freed, addresses(expected), "{container} {ifname}");
        }
        assert_eq!(now(), addresses(&["10.244.1.10"]));
        assert!(directory.join("cbr0/last_reserved_ip.0").exists());
        fs::remove_dir_all(directory).expect("it was made");
    }
}

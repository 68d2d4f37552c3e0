//! Addresses that `host-local` gave to pods which another plugin wired before this one came, as flannel's does: a file
//! for each, named as the address, in a directory for each network; its lines are the container's id and the
//! interface's name (containernetworking/plugins, `plugins/ipam/host-local/backend/disk`).
//!
//! Those pods live on, and the runtime deletes them by the plugin that it has then. So nobody gets such an address, until
//! this plugin deletes its pod and the file with it.

use std::fs::{self, File};
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
/// When a directory cannot be read, or one of its entries; one that is not there is no failure.
pub fn given(directory: &Path) -> io::Result<Vec<IpAddr>> {
    let mut given = Vec::new();
    for network in networks(directory)? {
        given.extend(reservations(&network)?.into_iter().map(|(address, _)| address));
    }
    given.sort_unstable();
    given.dedup();
    Ok(given)
}

/// Gives back what an interface has, as `host-local` does at its DEL. Returns which addresses those were.
///
/// # Errors
/// When it is not known which networks there are. When a file cannot be read or removed, or the files of a network be
/// listed: the first of them, once all others are looked at.
pub fn give_back(directory: &Path, key: &AttachmentKey) -> io::Result<Vec<IpAddr>> {
    let mut freed = Vec::new();
    let mut failed = Ok(());
    for network in networks(directory)? {
        failed = failed.and(give_back_in(&network, key, &mut freed));
    }
    failed.map(|()| freed)
}

fn give_back_in(network: &Path, key: &AttachmentKey, freed: &mut Vec<IpAddr>) -> io::Result<()> {
    // A file that cannot be read is looked at again below.
    let has_some = |path: &Path| is_of(path, key).unwrap_or(true);
    if !reservations(network)?.iter().any(|(_, path)| has_some(path)) {
        return Ok(());
    }
    let lock = File::options()
        .create(true)
        .append(true)
        .open(network.join(LOCK))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
    let mut failed = Ok(());
    for (address, path) in reservations(network)? {
        let removed = is_of(&path, key).and_then(|is_of| match is_of {
            true => fs::remove_file(&path).map(|()| freed.push(address)),
            false => Ok(()),
        });
        failed = failed.and(removed.map_err(|error| of_path(&path, &error)));
    }
    failed
}

/// Whether a file is an interface's. Older versions wrote no interface. One that is gone is nobody's.
fn is_of(path: &Path, key: &AttachmentKey) -> io::Result<bool> {
    let Some(text) = if_there(fs::read(path))? else {
        return Ok(false);
    };
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().map(str::trim);
    Ok(lines.next() == Some(&key.container_id) && lines.next().is_none_or(|ifname| ifname == key.ifname))
}

/// A network's directory may be a link to where it lies.
fn networks(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut networks = Vec::new();
    for path in entries(directory)? {
        let data = if_there(fs::metadata(&path)).map_err(|error| of_path(&path, &error))?;
        if data.is_some_and(|data| data.is_dir()) {
            networks.push(path);
        }
    }
    Ok(networks)
}

fn reservations(network: &Path) -> io::Result<Vec<(IpAddr, PathBuf)>> {
    let reservations = entries(network)?.into_iter().filter_map(|path| {
        let address = path.file_name()?.to_str()?.parse().ok()?;
        Some((address, path))
    });
    Ok(reservations.collect())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = if_there(fs::read_dir(directory))?.into_iter().flatten();
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn if_there<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

fn of_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
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

    /// A directory of this test alone, with files.
    fn directory_with(name: &str, files: &[(&str, &str)]) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("cwt-host-local-{name}-{}", std::process::id()));
        for (name, text) in files {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().expect("of a network")).expect("writable");
            fs::write(path, text).expect("writable");
        }
        directory
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("address")).collect()
    }

    #[test]
    fn files_say_who_has_which_address_and_go_with_their_interface_alone() {
        let files = [
            ("cbr0/10.244.1.9", "c1\r\neth0"),
            ("cbr0/10.244.1.10", "c1\r\nnet1"),
            ("cbr0/10.244.1.11", "c2"),
            ("cbr0/last_reserved_ip.0", "10.244.1.11"),
            ("cbr0/lock", ""),
            ("other/fd00::9", "c1\neth0\n"),
        ];
        let directory = directory_with("files", &files);
        assert_eq!(
            given(&directory.join("absent")).expect("absent"),
            Vec::<IpAddr>::new()
        );
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

    #[test]
    fn what_cannot_be_read_is_told_and_holds_nothing_else_back() {
        let files = [("a/10.244.1.9", "c1\neth0"), ("b/10.244.1.10", "c1\neth0")];
        let directory = directory_with("unreadable", &files);
        // A directory has no text.
        fs::create_dir(directory.join("a/10.244.1.8")).expect("writable");
        assert_eq!(
            given(&directory).expect("names"),
            addresses(&["10.244.1.8", "10.244.1.9", "10.244.1.10"])
        );
        let error = give_back(&directory, &key("c1", "eth0")).expect_err("one of the files");
        assert!(error.to_string().contains("a/10.244.1.8: "), "{error}");
        assert_eq!(given(&directory).expect("names"), addresses(&["10.244.1.8"]));
        fs::remove_dir_all(directory).expect("it was made");
    }

    #[test]
    fn networks_are_looked_for_behind_links_and_a_link_to_itself_is_an_error() {
        let directory = directory_with("links", &[("moved/cbr0/10.244.1.9", "c1\neth0")]);
        let networks = directory.join("networks");
        fs::create_dir(&networks).expect("writable");
        std::os::unix::fs::symlink("../moved/cbr0", networks.join("cbr0")).expect("writable");
        std::os::unix::fs::symlink("nowhere", networks.join("gone")).expect("writable");
        assert_eq!(given(&networks).expect("readable"), addresses(&["10.244.1.9"]));
        std::os::unix::fs::symlink("round", networks.join("round")).expect("writable");
        let error = given(&networks).expect_err("nobody knows what is behind it");
        assert!(error.to_string().contains("networks/round: "), "{error}");
        fs::remove_dir_all(directory).expect("it was made");
    }
}

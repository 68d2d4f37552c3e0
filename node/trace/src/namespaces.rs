//! The network namespaces of this machine, and the addresses that they have.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use netlink::conntrack::Usage;
use netlink::netns::PIN_DIRECTORY;
use netlink::{Kernel, Namespace, Netlink};

use crate::places::inode;

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its inode number.
    pub inode: u32,
    /// A path that leads to it: a pin, or that of a process.
    pub path: PathBuf,
    /// The namespace.
    pub namespace: Namespace,
    /// The addresses of its devices, loopback's left out.
    pub addresses: Vec<IpAddr>,
    /// What runs a command there: put before it, and empty for the caller's own.
    pub entering: String,
}

/// How full the table of connections is in one of these namespaces; none where nothing is tracked.
#[must_use]
pub fn tracked(namespaces: &[Found], inode: u32) -> Option<Usage> {
    let found = namespaces.iter().find(|found| found.inode == inode)?;
    found.namespace.run(Usage::read).ok()?
}

/// Every namespace that is pinned or that a process of this machine is in. What goes away meanwhile is left out.
#[must_use]
pub fn of_this_machine() -> Vec<Found> {
    let mut paths = BTreeMap::new();
    let pins = pinned().into_iter().map(|(_, path)| path);
    for path in pins.chain(of_processes()) {
        if let Some(inode) = inode(&path) {
            paths.entry(inode).or_insert(path);
        }
    }
    let found = paths.into_iter().filter_map(|(inode, path)| {
        let namespace = Namespace::open(&path).ok()?;
        Some(Found {
            inode,
            addresses: addresses(&namespace).ok()?,
            namespace,
            entering: entering(inode, &path),
            path,
        })
    });
    found.collect()
}

/// What runs a command in the network namespace of a process: put before it, and empty where that is the caller's own, or
/// the process is gone.
#[must_use]
pub fn entering_that_of(pid: i32) -> String {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let Some(own) = inode(&path) else {
        return String::new();
    };
    let pin = pinned().into_iter().map(|(_, pin)| pin);
    let pin = pin.into_iter().find(|pin| inode(pin) == Some(own));
    entering(own, &pin.unwrap_or(path))
}

/// What runs a command in the network namespace that `ip netns` calls so, put before it.
#[must_use]
pub fn entering_pin(name: &str) -> String {
    format!("ip netns exec {name}")
}

/// The same by a namespace's number, and a path that leads to it: a pin, or that of a process.
pub(crate) fn entering(number: u32, path: &Path) -> String {
    if inode("/proc/self/ns/net".as_ref()) == Some(number) {
        return String::new();
    }
    match path.strip_prefix(PIN_DIRECTORY) {
        Ok(name) => entering_pin(&name.to_string_lossy()),
        Err(_) => {
            // `/`, `proc`, its number.
            let process = path.iter().nth(2).unwrap_or_default();
            format!("nsenter -t {} -n", process.display())
        }
    }
}

fn addresses(namespace: &Namespace) -> netlink::Result<Vec<IpAddr>> {
    let addresses = Netlink::open_in(namespace)?.addresses(None)?;
    let addresses = addresses.into_iter().map(|address| address.network.ip());
    Ok(addresses.filter(|address| !address.is_loopback()).collect())
}

/// Those that are pinned, by the names that `ip netns` has for them.
pub(crate) fn pinned() -> Vec<(String, PathBuf)> {
    let names = Namespace::pinned().unwrap_or_default().into_iter();
    let pin = |name: String| {
        let path = Path::new(PIN_DIRECTORY).join(&name);
        (name, path)
    };
    names.map(pin).collect()
}

fn of_processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())
    });
    processes.map(|entry| entry.path().join(Path::new("ns/net")))
}

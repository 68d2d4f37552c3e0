//! Hosts of network namespaces, joined by virtual cables. They vanish with what holds them; those of a program that was
//! killed, with the next one.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use ipnetwork::IpNetwork;
use netlink::{
    Address, Kernel as _, LinkChange, Namespace, Netlink, NewLink, NewLinkKind, Route, VethPeer, sysctl,
};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Begin of the namespaces' names, before the pid of who made them.
const PREFIX: &str = "cwb-";

/// What makes the routes here.
const PROTOCOL_STATIC: u8 = 4;

/// A host.
#[derive(Debug)]
pub struct Host {
    name: String,
    namespace: Namespace,
}

impl Host {
    /// Makes one with its loopback up. The label is for people.
    ///
    /// # Errors
    /// When namespaces cannot be made.
    pub fn new(label: &str) -> Result<Self> {
        let name = unique(label);
        let namespace = Namespace::create(&name)?;
        let host = Self { name, namespace };
        host.bring_up("lo")?;
        Ok(host)
    }

    /// Its namespace.
    #[must_use]
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn kernel(&self) -> Result<Netlink> {
        Ok(Netlink::open_in(&self.namespace)?)
    }

    /// The index of a device.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn index_of(&self, device: &str) -> Result<u32> {
        let link = self.kernel()?.link_named(device)?;
        Ok(link
            .with_context(|| format!("no device {device} in {}", self.name))?
            .index)
    }

    fn bring_up(&self, device: &str) -> Result<()> {
        Ok(self
            .kernel()?
            .change_link(self.index_of(device)?, &LinkChange::up())?)
    }

    /// Writes a kernel setting, for example `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// When there is no such setting.
    pub fn set(&self, setting: &str, value: &str) -> Result<()> {
        Ok(self.namespace.run(|| sysctl::write(setting, value))??)
    }

    /// Gives a device an address.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn give(&self, device: &str, address: Ipv4Addr, prefix: u8) -> Result<()> {
        let network = IpNetwork::new(address.into(), prefix)?;
        let address = Address::global(self.index_of(device)?, network);
        Ok(self.kernel()?.add_address(&address)?)
    }

    /// Sends all that is not for its own networks to a gateway.
    ///
    /// # Errors
    /// When there is no such device.
    pub fn leave_by(&self, device: &str, gateway: Ipv4Addr) -> Result<()> {
        let everywhere = IpNetwork::new(Ipv4Addr::UNSPECIFIED.into(), 0)?;
        let route = Route::via(
            everywhere,
            IpAddr::V4(gateway),
            self.index_of(device)?,
            PROTOCOL_STATIC,
        );
        Ok(self.kernel()?.replace_route(&route)?)
    }

    /// Joins a device of its own and one of another host by a cable, both up.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn connect(&self, device: &str, other: &Self, others: &str) -> Result<()> {
        let peer = VethPeer {
            name: others.to_owned(),
            mac: None,
            mtu: None,
            namespace: Some(other.namespace.clone()),
        };
        let veth = NewLink::new(device, NewLinkKind::Veth(peer));
        self.kernel()?.create_link(&veth)?;
        self.bring_up(device)?;
        other.bring_up(others)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = Namespace::delete(&self.name) {
            eprintln!("left behind: {error}");
        }
    }
}

/// A cgroup of version 2.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes one below the root of the hierarchy.
    ///
    /// # Errors
    /// When none is mounted, or rights are missing.
    pub fn new() -> Result<Self> {
        let path = cgroup_root()?.join(unique("cgroup"));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self { path })
    }

    /// Its directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove_cgroup(&self.path) {
            eprintln!("left behind: {}: {error}", self.path.display());
        }
    }
}

/// Who was just killed counts for a moment (`EBUSY`).
fn remove_cgroup(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(2);
    loop {
        match fs::remove_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            removed => return removed,
        }
    }
}

fn cgroup_root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("read /proc/mounts")?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    });
    root.context("cgroup v2 is not mounted")
}

/// A BPF file system of its own.
#[derive(Debug)]
pub struct Bpffs {
    path: PathBuf,
}

impl Bpffs {
    /// Mounts one in the directory for temporary files.
    ///
    /// # Errors
    /// When rights are missing.
    pub fn mount() -> Result<Self> {
        let path = std::env::temp_dir().join(unique("bpffs"));
        fs::create_dir(&path).with_context(|| format!("make {}", path.display()))?;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), None::<&str>)
            .context("mount a BPF file system")?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if umount2(&self.path, MntFlags::MNT_DETACH).is_err() || fs::remove_dir(&self.path).is_err() {
            eprintln!("left behind: {}", self.path.display());
        }
    }
}

/// A name that tells who made it.
fn unique(label: &str) -> String {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}-{label}", std::process::id())
}

/// Removes what programs left that were killed; returns the names.
///
/// # Errors
/// When it cannot be listed, or does not go.
pub fn sweep() -> Result<Vec<String>> {
    let mut names = Namespace::pinned()?;
    names.retain(|name| is_left(name));
    for name in &names {
        Namespace::delete(name)?;
    }
    for cgroup in left_in(&cgroup_root()?)? {
        remove_cgroup(&cgroup).with_context(|| format!("remove {}", cgroup.display()))?;
        names.push(cgroup.display().to_string());
    }
    for bpffs in left_in(&std::env::temp_dir())? {
        // It may have been made and not mounted.
        let _ = umount2(&bpffs, MntFlags::MNT_DETACH);
        fs::remove_dir(&bpffs).with_context(|| format!("remove {}", bpffs.display()))?;
        names.push(bpffs.display().to_string());
    }
    Ok(names)
}

fn left_in(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("list {}", directory.display()))?;
    let is_one = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(is_left);
    Ok(entries
        .flatten()
        .filter(is_one)
        .map(|entry| entry.path())
        .collect())
}

fn is_left(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists())
}

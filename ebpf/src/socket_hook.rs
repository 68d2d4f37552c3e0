//! The programs at `connect()` and its relatives, their maps, and what stays when their owner dies.
//!
//! ```text
//! <pin_dir>/v1/FRONTENDS4 … STATS            maps
//! <pin_dir>/v1/links/connect4-<cgroup id> …  the attachments to one cgroup
//! ```
//! `v1` is the layout ([`ebpf_common::LAYOUT`]): another layout lives beside it. A new program is attached first and
//! its pin renamed over the old one's, which drops the old link: for a moment both run, and the second sees an address
//! that is no Service's any more.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, ProgramInfo, loaded_programs};
use aya::{Ebpf, EbpfLoader, Pod};
use ebpf_common::net::Ip4;
use ebpf_common::service::{
    Endpoint4, Frontend, FrontendKey4, NetnsCookie, NodeAddress, SlotKey, Translated4,
};
use ebpf_common::stats::Counter;

use crate::{Error, OBJECT, TypedMap, probe};

/// Programs in the order in which they are attached: what shows a Service's address before what hides it.
const PROGRAMS: [&str; 3] = ["getpeername4", "recvmsg4", "connect4"];
const MAPS: [&str; 7] = [
    "FRONTENDS4",
    "SLOTS",
    "ENDPOINTS4",
    "NODES4",
    "NODE_NETNS",
    "SOCKETS4",
    "STATS",
];

/// How many entries the maps take. Entries are allocated as they come, so that room costs 16 bytes of kernel memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Address and port pairs of Services. Default 131,072.
    pub frontends: u32,
    /// Places of endpoints in Services' lists, twice over while a list is replaced. Default 1,048,576.
    pub slots: u32,
    /// Distinct endpoints. Default 262,144.
    pub endpoints: u32,
    /// Addresses of nodes. Default 16,384.
    pub nodes: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: 1 << 17,
            slots: 1 << 20,
            endpoints: 1 << 18,
            nodes: 1 << 14,
        }
    }
}

/// Where the hook sits and what it leaves behind.
#[derive(Clone, Debug)]
pub struct HookConfig {
    /// The cgroup v2 directory whose processes, and those of all cgroups below it, connect through the hook.
    pub cgroup: PathBuf,
    /// Directory on a BPF file system for maps and links; made if absent.
    pub pin_dir: PathBuf,
    /// Sizes of maps that do not exist yet.
    pub capacity: Capacity,
}

/// What [`SocketHook::ensure_attached`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The pinned link runs this very program with these very maps.
    Kept,
    /// There was no link, or one of another program: now there is.
    Made,
}

/// The hook: attached, pinned, and open for writing.
pub struct SocketHook {
    /// Services by address and port.
    pub frontends: TypedMap<FrontendKey4, Frontend>,
    /// Endpoints of Services by position.
    pub slots: TypedMap<SlotKey, u32>,
    /// Endpoints by id.
    pub endpoints: TypedMap<u32, Endpoint4>,
    /// Addresses of nodes.
    pub nodes: TypedMap<Ip4, NodeAddress>,
    node_netns: Array<MapData, NetnsCookie>,
    netns: NetnsCookie,
    stats: PerCpuArray<MapData, u64>,
    programs: Ebpf,
    cgroup: PathBuf,
    directory: PathBuf,
}

impl SocketHook {
    /// Loads the program, reuses or makes the maps, and attaches. Needs root (`CAP_BPF`, `CAP_NET_ADMIN`).
    ///
    /// The calling thread's network namespace is the node's: only sockets in it find node ports on loopback, where a
    /// pod's are the pod's own. A kernel that does not tell namespaces apart serves no node port on loopback.
    pub fn open(config: &HookConfig) -> Result<Self, Error> {
        probe::cgroup_id(&config.cgroup)?;
        let directory = config.pin_dir.join(format!("v{}", ebpf_common::LAYOUT));
        probe::make_pin_dir(&directory.join("links"))?;
        let mut programs = load(&directory, config.capacity)?;
        let node_netns = take_map(
            &mut programs,
            &directory,
            "NODE_NETNS",
            4,
            size_of::<NetnsCookie>(),
        )?;
        let stats = take_map(&mut programs, &directory, "STATS", 4, 8)?;
        take_map(&mut programs, &directory, "SOCKETS4", 4, size_of::<Translated4>())?;
        let mut hook = Self {
            frontends: typed(&mut programs, &directory, "FRONTENDS4")?,
            slots: typed(&mut programs, &directory, "SLOTS")?,
            endpoints: typed(&mut programs, &directory, "ENDPOINTS4")?,
            nodes: typed(&mut programs, &directory, "NODES4")?,
            node_netns: Array::try_from(node_netns).map_err(Error::map("open", "NODE_NETNS"))?,
            netns: probe::netns_cookie()?,
            stats: PerCpuArray::try_from(stats).map_err(Error::map("open", "STATS"))?,
            programs,
            cgroup: config.cgroup.clone(),
            directory,
        };
        hook.ensure_netns()?;
        hook.ensure_attached()?;
        Ok(hook)
    }

    /// Detaches the programs and forgets the maps, whoever put them there. Nothing there is fine.
    pub fn remove(pin_dir: &Path) -> Result<(), Error> {
        let directory = pin_dir.join(format!("v{}", ebpf_common::LAYOUT));
        match std::fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::pin("remove", directory)(error))
            }
            _ => Ok(()),
        }
    }

    /// Attaches the program unless its pinned link is in order. Links to cgroups that are gone are removed.
    pub fn ensure_attached(&mut self) -> Result<Attachment, Error> {
        let links = self.directory.join("links");
        std::fs::create_dir_all(&links).map_err(Error::pin("make", &links))?;
        let cgroup_id = probe::cgroup_id(&self.cgroup)?;
        let pins = PROGRAMS.map(|name| links.join(format!("{name}-{cgroup_id:x}")));
        let mut attachment = Attachment::Kept;
        for (name, pin) in PROGRAMS.into_iter().zip(&pins) {
            if !self.is_current(name, pin)? {
                self.attach(name, pin)?;
                attachment = Attachment::Made;
            }
        }
        remove_other_links(&links, &pins)?;
        Ok(attachment)
    }

    /// Names the node's network namespace where another is named, such as the one of the node's former life. Returns
    /// whether it was another.
    pub fn ensure_netns(&mut self) -> Result<bool, Error> {
        let named = self.node_netns.get(&0, 0);
        if named.map_err(Error::map("read", "NODE_NETNS"))? == self.netns {
            return Ok(false);
        }
        self.node_netns
            .set(0, self.netns, 0)
            .map_err(Error::map("write to", "NODE_NETNS"))?;
        Ok(true)
    }

    /// Pins the maps again where somebody removed their pins.
    pub fn ensure_pinned(&mut self) -> Result<bool, Error> {
        // The maps themselves are open here; only the name by which the next process finds them may be gone.
        let missing = MAPS.iter().any(|name| !self.directory.join(name).exists());
        if !missing {
            return Ok(false);
        }
        let mut ids = BTreeSet::new();
        for name in PROGRAMS {
            let program = self.program(name)?.info().map_err(Error::program(name))?;
            ids.extend(
                program
                    .map_ids()
                    .map_err(Error::program(name))?
                    .unwrap_or_default(),
            );
        }
        for id in ids {
            let info = MapInfo::from_id(id).map_err(Error::map("find", "of the program"))?;
            let Some(name) = MAPS.iter().find(|name| info.name_as_str() == Some(**name)) else {
                continue;
            };
            let path = self.directory.join(name);
            if !path.exists() {
                let map = MapData::from_id(id).map_err(Error::map("open", name))?;
                map.pin(&path)
                    .map_err(|error| Error::pin("pin", &path)(std::io::Error::other(error)))?;
            }
        }
        Ok(true)
    }

    /// Verdicts so far on this node, by name; they outlive the process.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, Error> {
        let read = |(index, name): (u32, &'static str)| {
            let values = self.stats.get(&index, 0).map_err(Error::map("read", "STATS"))?;
            Ok((name, values.iter().sum()))
        };
        (0..Counter::COUNT).zip(Counter::NAMES).map(read).collect()
    }

    /// Entries written to any map since the hook was opened.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.frontends.writes() + self.slots.writes() + self.endpoints.writes() + self.nodes.writes()
    }

    fn program(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, Error> {
        program(&mut self.programs, name)
    }

    /// Whether the pinned link runs this program (same instructions) on these maps.
    fn is_current(&mut self, name: &'static str, pin: &Path) -> Result<bool, Error> {
        let Ok(link) = PinnedLink::from_pin(pin) else {
            return Ok(false);
        };
        let Ok(link) = FdLink::from(link).info() else {
            return Ok(false);
        };
        let wanted = identity(&self.program(name)?.info().map_err(Error::program(name))?);
        let linked = loaded_programs()
            .flatten()
            .find(|program| program.id() == link.program_id());
        Ok(linked.is_some_and(|program| identity(&program) == wanted))
    }

    fn attach(&mut self, name: &'static str, pin: &Path) -> Result<(), Error> {
        let cgroup = self.cgroup.clone();
        let failed = |source| Error::Attach {
            name,
            cgroup: cgroup.clone(),
            source,
        };
        let directory = File::open(&cgroup).map_err(|error| failed(error.into()))?;
        let program = self.program(name)?;
        // "Single" sets no flag, which for links means that several may coexist; the flags proper are refused.
        let id = program
            .attach(directory, CgroupAttachMode::Single)
            .map_err(|error| failed(error.into()))?;
        let link = program.take_link(id).map_err(|error| failed(error.into()))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.into()))?;
        let next = pin.with_file_name(format!("{name}-next"));
        remove_if_there(&next)?;
        link.pin(&next).map_err(|error| failed(error.into()))?;
        std::fs::rename(&next, pin).map_err(Error::pin("put a new link at", pin))
    }
}

impl std::fmt::Debug for SocketHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut hook = f.debug_struct("SocketHook");
        hook.field("cgroup", &self.cgroup)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

fn load(directory: &Path, capacity: Capacity) -> Result<Ebpf, Error> {
    let mut programs = EbpfLoader::new()
        .default_map_pin_directory(directory)
        .map_pin_path("SOCKETS4", directory.join("SOCKETS4"))
        .map_max_entries("FRONTENDS4", capacity.frontends)
        .map_max_entries("SLOTS", capacity.slots)
        .map_max_entries("ENDPOINTS4", capacity.endpoints)
        .map_max_entries("NODES4", capacity.nodes)
        .load(OBJECT)
        .map_err(|error| Error::Load(Box::new(error)))?;
    for name in PROGRAMS {
        program(&mut programs, name)?
            .load()
            .map_err(Error::program(name))?;
    }
    Ok(programs)
}

fn program<'a>(programs: &'a mut Ebpf, name: &'static str) -> Result<&'a mut CgroupSockAddr, Error> {
    let program = programs.program_mut(name).ok_or(Error::Missing { name })?;
    program.try_into().map_err(Error::program(name))
}

/// Instructions (without map addresses) and maps.
fn identity(program: &ProgramInfo) -> (u64, Option<Vec<u32>>) {
    let mut maps = program.map_ids().ok().flatten();
    if let Some(maps) = &mut maps {
        maps.sort_unstable();
    }
    (program.tag(), maps)
}

fn typed<K: Pod + Ord, V: Pod>(
    programs: &mut Ebpf,
    directory: &Path,
    name: &'static str,
) -> Result<TypedMap<K, V>, Error> {
    let map = take_map(programs, directory, name, size_of::<K>(), size_of::<V>())?;
    let map = HashMap::try_from(map).map_err(Error::map("open", name))?;
    Ok(TypedMap::new(name, map))
}

/// Takes a map out of the object; one that was found pinned must have the sizes that this version means.
fn take_map(
    programs: &mut Ebpf,
    directory: &Path,
    name: &'static str,
    key_bytes: usize,
    value_bytes: usize,
) -> Result<Map, Error> {
    let path = directory.join(name);
    let info = MapInfo::from_pin(&path).map_err(Error::map("open", name))?;
    if (info.key_size() as usize, info.value_size() as usize) != (key_bytes, value_bytes) {
        return Err(Error::ForeignMap { name, path });
    }
    programs.take_map(name).ok_or(Error::Missing { name })
}

fn remove_other_links(links: &Path, keep: &[PathBuf]) -> Result<(), Error> {
    let entries = std::fs::read_dir(links).map_err(Error::pin("list", links))?;
    for entry in entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| !keep.contains(path))
    {
        remove_if_there(&entry)?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::pin("remove", path)(error)),
        _ => Ok(()),
    }
}

//! The programs at `connect()` and its relatives, their maps, and what stays when their owner dies.
//!
//! ```text
//! <pin_dir>/v2/FRONTENDS … STATS             maps
//! <pin_dir>/v2/links/connect4-<cgroup id> …  the attachments to one cgroup
//! ```
//! `v2` is the layout ([`ebpf_common::LAYOUT`]). What another one left is taken over ([`crate::takeover`]) where it can
//! be, else it lives beside this one, until it is removed ([`SocketHook::remove_other_layouts`]). A link changes its
//! program in one step: were there two for a moment, the second would forget what the first one did to a socket.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, MapData, MapInfo, PerCpuArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::net::Ip;
use ebpf_common::service::{
    Affinity, AffinityKey, Endpoint, Flow, Frontend, FrontendKey, MemberKey, Membership, NetnsCookie,
    NodeAddress, Reply, SlotKey, SocketPeer, Translated,
};
use ebpf_common::stats::Counter;

use crate::pinned::{
    Identity, MapSizes, check_maps, identity, list, put_link, remove_directory, remove_if_there, sizes,
    take_map, typed,
};
use crate::takeover::Takeover;
use crate::{Error, OBJECT, TypedMap, probe, sys};

/// Programs in the order in which they are attached: what shows a Service's address before what hides it.
const PROGRAMS: [&str; 8] = [
    "getpeername4",
    "getpeername6",
    "recvmsg4",
    "recvmsg6",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
];

/// When the programs go, answers to datagrams that they sent on are shown as the Service's for so long.
const ANSWER_GRACE: Duration = Duration::from_millis(100);

/// Maps with the sizes of their keys and values.
const MAPS: [MapSizes; 11] = [
    sizes::<FrontendKey, Frontend>("FRONTENDS"),
    sizes::<SlotKey, u32>("SLOTS"),
    sizes::<u32, Endpoint>("ENDPOINTS"),
    sizes::<MemberKey, Membership>("MEMBERS"),
    sizes::<Ip, NodeAddress>("NODES"),
    sizes::<u32, NetnsCookie>("NODE_NETNS"),
    sizes::<u32, Translated>("SOCKETS"),
    sizes::<AffinityKey, Affinity>("AFFINITY"),
    sizes::<SocketPeer, Flow>("FLOWS"),
    sizes::<SocketPeer, Reply>("REPLIES"),
    sizes::<u32, u64>("STATS"),
];

/// How many entries the maps take.
///
/// Of those that the host side writes, entries are allocated as they come, so that room costs 16 bytes of kernel
/// memory each, and a full one is [`Error::Full`]. Those that the programs write are allocated at once, about 100
/// bytes for each entry, and a full one forgets what was used least recently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Address and port pairs of Services. Default 131,072.
    pub frontends: u32,
    /// Places of endpoints in Services' lists, twice over while a list is replaced. Default 1,048,576.
    pub slots: u32,
    /// Distinct endpoints. Default 262,144.
    pub endpoints: u32,
    /// Endpoints of Services with session affinity and of UDP, counted for each such Service. Default 262,144.
    pub members: u32,
    /// Addresses of nodes. Default 16,384.
    pub nodes: u32,
    /// Clients of Services with session affinity, counted for each such Service. Default 65,536.
    pub affinity: u32,
    /// Pairs of an unconnected UDP socket and a Service that it sends to. Default 65,536.
    pub flows: u32,
    /// Pairs of a UDP socket and an endpoint that it was sent to. Default 65,536.
    pub replies: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self {
            frontends: 1 << 17,
            slots: 1 << 20,
            endpoints: 1 << 18,
            members: 1 << 18,
            nodes: 1 << 14,
            affinity: 1 << 16,
            flows: 1 << 16,
            replies: 1 << 16,
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
    /// Whether node ports are served on the loopback of the node's network namespace.
    pub loopback: bool,
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
    pub frontends: TypedMap<FrontendKey, Frontend>,
    /// Endpoints of Services by position.
    pub slots: TypedMap<SlotKey, u32>,
    /// Endpoints by id.
    pub endpoints: TypedMap<u32, Endpoint>,
    /// Which endpoints clients of a Service may stay with.
    pub members: TypedMap<MemberKey, Membership>,
    /// Addresses of nodes.
    pub nodes: TypedMap<Ip, NodeAddress>,
    /// UDP sockets and the endpoints that they were sent to; written by the programs.
    pub replies: TypedMap<SocketPeer, Reply>,
    node_netns: Array<MapData, NetnsCookie>,
    netns: NetnsCookie,
    stats: PerCpuArray<MapData, u64>,
    programs: Ebpf,
    cgroup: PathBuf,
    directory: PathBuf,
}

impl SocketHook {
    /// Loads the programs, reuses or makes the maps, and attaches. Needs root (`CAP_BPF`, `CAP_NET_ADMIN`).
    ///
    /// The calling thread's network namespace is the node's: only sockets in it find node ports on loopback, where a
    /// pod's are the pod's own. A kernel that does not tell namespaces apart serves no node port on loopback.
    pub fn open(config: &HookConfig) -> Result<Self, Error> {
        probe::cgroup_id(&config.cgroup)?;
        let directory = layout_dir(&config.pin_dir);
        probe::make_pin_dir(&directory.join("links"))?;
        let takeover = Takeover::begin(&other_layouts(&config.pin_dir)?, &directory, &MAPS)?;
        let mut programs = load(&directory, config.capacity)?;
        check_maps(&directory, &MAPS)?;
        let node_netns = take_map(&mut programs, "NODE_NETNS")?;
        let stats = take_map(&mut programs, "STATS")?;
        let mut hook = Self {
            frontends: typed(&mut programs, &directory, "FRONTENDS")?,
            slots: typed(&mut programs, &directory, "SLOTS")?,
            endpoints: typed(&mut programs, &directory, "ENDPOINTS")?,
            members: typed(&mut programs, &directory, "MEMBERS")?,
            nodes: typed(&mut programs, &directory, "NODES")?,
            replies: typed(&mut programs, &directory, "REPLIES")?,
            node_netns: Array::try_from(node_netns).map_err(Error::map("open", "NODE_NETNS"))?,
            netns: if config.loopback {
                probe::netns_cookie()?
            } else {
                NetnsCookie::NONE
            },
            stats: PerCpuArray::try_from(stats).map_err(Error::map("open", "STATS"))?,
            programs,
            cgroup: config.cgroup.clone(),
            directory,
        };
        hook.ensure_netns()?;
        match takeover {
            Some(takeover) => hook.take_over(&takeover)?,
            None => drop(hook.ensure_attached()?),
        }
        Ok(hook)
    }

    /// Entries that the old programs make while they are copied are copied afterwards.
    fn take_over(&mut self, takeover: &Takeover) -> Result<(), Error> {
        takeover.copy_entries()?;
        let pins = self.pins()?;
        takeover.move_links(pins.iter().filter_map(|pin| pin.file_name()).map(Path::new))?;
        self.ensure_attached()?;
        takeover.copy_entries()
    }

    /// Detaches the programs and forgets the maps, whoever put them there. Whether anything was there.
    pub fn remove(pin_dir: &Path) -> Result<bool, Error> {
        remove_layouts(pin_dir, |_| true).map(|removed| removed > 0)
    }

    /// Detaches what other versions left, whose programs translate by lists that nobody keeps up. For when the lists of
    /// this one are written: until then both run, and the second sees an address that is no Service's any more.
    pub fn remove_other_layouts(pin_dir: &Path) -> Result<(), Error> {
        let current = layout_dir(pin_dir);
        remove_layouts(pin_dir, |layout| layout != current).map(drop)
    }

    /// The programs of this version's layout that no pinned link runs at a cgroup. Nothing is loaded, made or written.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn detached(pin_dir: &Path) -> Result<Vec<&'static str>, Error> {
        let links = list(&layout_dir(pin_dir).join("links"))?;
        let linked = linked_programs(&links);
        let is_attached = |name: &str| {
            let mut pins = linked.keys().filter_map(|pin| pin.file_name()?.to_str());
            pins.any(|pin| pin.split('-').next() == Some(name))
        };
        Ok(PROGRAMS.into_iter().filter(|name| !is_attached(name)).collect())
    }

    /// Attaches the programs whose pinned links are not in order. Links to cgroups that are gone are removed.
    pub fn ensure_attached(&mut self) -> Result<Attachment, Error> {
        let links = self.directory.join("links");
        std::fs::create_dir_all(&links).map_err(Error::pin("make", &links))?;
        let pins = self.pins()?;
        let linked = linked_programs(&pins);
        let mut attachment = Attachment::Kept;
        for (name, pin) in PROGRAMS.into_iter().zip(&pins) {
            let wanted = identity(&self.program(name)?.info().map_err(Error::program(name))?);
            if linked.get(pin) != Some(&wanted) {
                if !linked.contains_key(pin) || !self.replace(name, pin)? {
                    self.attach(name, pin)?;
                }
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
        let missing = MAPS.iter().any(|(name, ..)| !self.directory.join(name).exists());
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
            let named = MAPS.iter().find(|(name, ..)| info.name_as_str() == Some(*name));
            let Some((name, ..)) = named else {
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

    /// The cgroup whose processes connect through the hook.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
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
        self.frontends.writes()
            + self.slots.writes()
            + self.endpoints.writes()
            + self.members.writes()
            + self.nodes.writes()
    }

    fn program(&mut self, name: &'static str) -> Result<&mut CgroupSockAddr, Error> {
        program(&mut self.programs, name)
    }

    /// Where the programs' links to the cgroup are pinned.
    fn pins(&self) -> Result<[PathBuf; PROGRAMS.len()], Error> {
        let cgroup_id = probe::cgroup_id(&self.cgroup)?;
        let links = self.directory.join("links");
        Ok(PROGRAMS.map(|name| links.join(format!("{name}-{cgroup_id:x}"))))
    }

    /// Whether the pinned link runs this program now.
    fn replace(&mut self, name: &'static str, pin: &Path) -> Result<bool, Error> {
        let program = self.program(name)?.fd().map_err(Error::program(name))?;
        Ok(sys::replace_program(pin, program.as_fd()).is_ok())
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
        put_link(link, pin)
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

/// Where this layout's maps and links are pinned.
pub(crate) fn layout_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{}", ebpf_common::LAYOUT))
}

/// Layouts whose maps this one may take over, by their numbers.
fn other_layouts(pin_dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let layouts = list(pin_dir)?.into_iter();
    let numbered = layouts.filter_map(|path| Some((layout_number(&path)?, path)));
    let other = |number: &u32| *number != ebpf_common::LAYOUT && *number >= ebpf_common::GROWS_SINCE;
    let others: BTreeMap<_, _> = numbered.filter(|(number, _)| other(number)).collect();
    Ok(others.into_values().collect())
}

/// Removes the links and maps of those layouts. Returns how many there were.
fn remove_layouts(pin_dir: &Path, unwanted: impl Fn(&Path) -> bool) -> Result<usize, Error> {
    let layouts = list(pin_dir)?.into_iter();
    let layouts: Vec<_> = layouts
        .filter(|path| layout_number(path).is_some() && unwanted(path))
        .collect();
    let mut detached = false;
    for layout in &layouts {
        detached |= detach_senders(&layout.join("links"))?;
    }
    if detached {
        // Nothing tells when the last answer has come.
        std::thread::sleep(ANSWER_GRACE);
    }
    for layout in &layouts {
        remove_directory(layout)?;
    }
    Ok(layouts.len())
}

/// Detaches what hides an address, before what shows it goes with the rest. Whether there was anything. Who may not use
/// bpf(2), as in a container without the capability, ends a link by its pin alone, when nobody else has it open.
fn detach_senders(links: &Path) -> Result<bool, Error> {
    let hides = |pin: &PathBuf| {
        let name = pin.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("sendmsg") || name.starts_with("connect")
    };
    let mut detached = false;
    for pin in list(links)?.iter().filter(|pin| hides(pin)) {
        let _ = sys::detach(pin);
        remove_if_there(pin)?;
        detached = true;
    }
    Ok(detached)
}

fn layout_number(path: &Path) -> Option<u32> {
    let name = path.file_name()?.to_str()?;
    name.strip_prefix('v')?.parse().ok()
}

fn load(directory: &Path, capacity: Capacity) -> Result<Ebpf, Error> {
    let mut programs = EbpfLoader::new()
        .default_map_pin_directory(directory)
        .map_pin_path("SOCKETS", directory.join("SOCKETS"))
        .map_max_entries("FRONTENDS", capacity.frontends)
        .map_max_entries("SLOTS", capacity.slots)
        .map_max_entries("ENDPOINTS", capacity.endpoints)
        .map_max_entries("MEMBERS", capacity.members)
        .map_max_entries("NODES", capacity.nodes)
        .map_max_entries("AFFINITY", capacity.affinity)
        .map_max_entries("FLOWS", capacity.flows)
        .map_max_entries("REPLIES", capacity.replies)
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

/// What each pinned link runs.
fn linked_programs(pins: &[PathBuf]) -> BTreeMap<PathBuf, Identity> {
    let open = |pin: &PathBuf| {
        let link = FdLink::from(PinnedLink::from_pin(pin).ok()?);
        Some((link.info().ok()?, link, pin.clone()))
    };
    let links: Vec<_> = pins.iter().filter_map(open).collect();
    let detached = detached_links();
    let linked: BTreeMap<u32, PathBuf> = links
        .iter()
        .filter(|(info, ..)| !detached.contains(&info.id()))
        .map(|(info, _, pin)| (info.program_id(), pin.clone()))
        .collect();
    // One pass over all programs of the machine: aya opens none by its id.
    loaded_programs()
        .flatten()
        .filter_map(|program| Some((linked.get(&program.id())?.clone(), identity(&program))))
        .collect()
}

/// Ids of the links that this process has open and that lead to no cgroup any more: a link that was detached by force
/// keeps its pin and its program (`bpf_cgroup_link_show_fdinfo`, kernel/bpf/cgroup.c, tells the cgroup's id, then 0).
fn detached_links() -> BTreeSet<u32> {
    let files = std::fs::read_dir("/proc/self/fdinfo")
        .into_iter()
        .flatten()
        .flatten();
    let texts = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let detached = |text: String| {
        let field = |name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<u64>().ok()
        };
        let id = field("link_id:")?;
        (field("cgroup_id:")? == 0).then(|| u32::try_from(id).ok())?
    };
    texts.filter_map(detached).collect()
}

fn remove_other_links(links: &Path, keep: &[PathBuf]) -> Result<(), Error> {
    for other in list(links)?.iter().filter(|path| !keep.contains(path)) {
        remove_if_there(other)?;
    }
    Ok(())
}

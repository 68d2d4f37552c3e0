//! The programs between pods, their maps, and what stays when their owner dies.
//!
//! ```text
//! <pin_dir>/pods/v4/PODS …              maps
//! <pin_dir>/pods/v4/links/<device> …    the attachment to a device: a pod's on the node's side, the tunnel's, the underlay's
//! ```
//! Without the program, or with an entry less, packets take the node's network stack: none of both can break a
//! connection. A wrong entry can: what the program sends nobody looks at again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData, MapError, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::net::Ip;
use ebpf_common::pods::{Hop, LAYOUT, PodCounter, PodFlow, PodFlowKey, Remote, Tunnel};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::pinned::{self, Identity, identity, put_link, remove_if_there};
use crate::{Attachment, Error, FAST_PATH_OBJECT, TypedMap, probe};

/// Where packets come from that a program looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// A pod: the device is its veth's end on the node's side.
    Pod,
    /// Other nodes: the device is the tunnel's.
    Tunnel,
    /// Other nodes, still wrapped: the device is the underlay's.
    Underlay,
}

impl Origin {
    const ALL: [Self; 3] = [Self::Pod, Self::Tunnel, Self::Underlay];

    /// The program's name.
    const fn program(self) -> &'static str {
        match self {
            Self::Pod => "from_pod",
            Self::Tunnel => "from_tunnel",
            Self::Underlay => "from_underlay",
        }
    }
}

/// Pods of one node.
const PODS: u32 = 1 << 12;

/// Subnets of other nodes. Memory is taken for those that are there.
const REMOTES: u32 = 1 << 14;

/// Connections between pods. The map is allocated at once, about 100 bytes for each; a full one forgets
/// what was used least recently.
const FLOWS: u32 = 1 << 16;

/// Maps with the sizes of their keys and values.
const MAPS: [pinned::MapSizes; 6] = [
    pinned::sizes::<Ip, Hop>("PODS"),
    pinned::sizes::<Key<Ip>, Remote>("REMOTES"),
    pinned::sizes::<u32, Tunnel>("TUNNELS"),
    pinned::sizes::<PodFlowKey, PodFlow>("POD_FLOWS"),
    pinned::sizes::<u32, u64>("POD_LEASE"),
    pinned::sizes::<u32, u64>("POD_STATS"),
];

/// The programs: loaded, their maps pinned and open. Attached to the devices that they were attached to.
pub struct FastPath {
    /// Pods of this node by address.
    pub pods: TypedMap<Ip, Hop>,
    /// Subnets of other nodes.
    pub remotes: Remotes,
    tunnels: Array<MapData, Tunnel>,
    lease: Array<MapData, u64>,
    programs: Ebpf,
    identities: BTreeMap<Origin, Identity>,
    links: PathBuf,
}

impl FastPath {
    /// Loads the programs, and reuses or makes the maps. Needs root (`CAP_BPF`, `CAP_NET_ADMIN`) and Linux 6.6.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        // Every network namespace has this device, and older kernels do not know the question.
        SchedClassifier::query_tcx("lo", TcAttachType::Ingress)
            .map_err(|error| Error::NoTcx(error.into()))?;
        let directory = layout_dir(pin_dir);
        let links = links_dir(pin_dir);
        probe::make_pin_dir(&links)?;
        let mut programs = EbpfLoader::new()
            .default_map_pin_directory(&directory)
            .map_max_entries("PODS", PODS)
            .map_max_entries("REMOTES", REMOTES)
            .map_max_entries("POD_FLOWS", FLOWS)
            .load(FAST_PATH_OBJECT)
            .map_err(|error| Error::Load(Box::new(error)))?;
        pinned::check_maps(&directory, &MAPS)?;
        let lease = pinned::take_map(&mut programs, "POD_LEASE")?;
        let pods = pinned::typed(&mut programs, &directory, "PODS")?;
        let remotes = pinned::take_map(&mut programs, "REMOTES")?;
        let tunnels = pinned::take_map(&mut programs, "TUNNELS")?;
        let mut identities = BTreeMap::new();
        for origin in Origin::ALL {
            let name = origin.program();
            let program = program(&mut programs, origin)?;
            program.load().map_err(Error::program(name))?;
            let info = program.info().map_err(Error::program(name))?;
            identities.insert(origin, identity(&info));
        }
        Ok(Self {
            pods,
            remotes: Remotes(LpmTrie::try_from(remotes).map_err(Error::map("open", "REMOTES"))?),
            tunnels: Array::try_from(tunnels).map_err(Error::map("open", "TUNNELS"))?,
            lease: Array::try_from(lease).map_err(Error::map("open", "POD_LEASE"))?,
            programs,
            identities,
            links,
        })
    }

    /// Detaches the programs from every device and forgets the maps, whoever put them there. Whether anything was there.
    pub fn remove(pin_dir: &Path) -> Result<bool, Error> {
        let directory = pin_dir.join("pods");
        let there = directory.exists();
        pinned::remove_directory(&directory)?;
        Ok(there)
    }

    /// Lets connections begin for that long from now on.
    pub fn renew(&mut self, lease: Duration) -> Result<(), Error> {
        let until = probe::since_boot() + lease;
        let until = u64::try_from(until.as_nanos()).unwrap_or(u64::MAX);
        self.lease
            .set(0, until, 0)
            .map_err(Error::map("write to", "POD_LEASE"))
    }

    /// Says what is for the tunnels' devices and what they send, by [`Tunnel::V4`] and [`Tunnel::V6`]. Returns how many
    /// were written.
    pub fn set_tunnels(&mut self, wanted: [Tunnel; Tunnel::COUNT as usize]) -> Result<usize, Error> {
        let mut written = 0;
        for (key, tunnel) in (0..).zip(wanted) {
            let found = self.tunnels.get(&key, 0).map_err(Error::map("read", "TUNNELS"))?;
            if found != tunnel {
                self.tunnels
                    .set(key, tunnel, 0)
                    .map_err(Error::map("write to", "TUNNELS"))?;
                written += 1;
            }
        }
        Ok(written)
    }

    /// Detaches what other versions left, in front of this one's programs. Returns how many there were.
    pub fn remove_other_layouts(&self) -> Result<usize, Error> {
        let Some(current) = self.links.parent() else {
            return Ok(0);
        };
        let layouts = current.parent().map(pinned::list).transpose()?;
        let mut removed = 0;
        for other in layouts.into_iter().flatten().filter(|layout| layout != current) {
            pinned::remove_directory(&other)?;
            removed += 1;
        }
        Ok(removed)
    }

    /// Attaches the program for an origin to a device of the calling thread's network namespace unless this very program
    /// runs there.
    /// `None`: there is no such device any more.
    pub fn ensure_attached(&mut self, device: &str, origin: Origin) -> Result<Option<Attachment>, Error> {
        match self.attach(device, origin) {
            Err(_) if if_nametoindex(device) == Err(Errno::ENODEV) => Ok(None),
            attached => attached.map(Some),
        }
    }

    fn attach(&mut self, device: &str, origin: Origin) -> Result<Attachment, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::AttachDevice {
            name: origin.program(),
            device: device.to_owned(),
            source,
        };
        let attached = SchedClassifier::query_tcx(device, TcAttachType::Ingress);
        let (_, attached) = attached.map_err(|error| failed(error.into()))?;
        let ours = self.identities.get(&origin);
        if attached.iter().any(|program| Some(&identity(program)) == ours) {
            return Ok(Attachment::Kept);
        }
        std::fs::create_dir_all(&self.links).map_err(Error::pin("make", &self.links))?;
        let program = program(&mut self.programs, origin)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(device, TcAttachType::Ingress, options)
            .map_err(|error| failed(error.into()))?;
        let link = program.take_link(id).map_err(|error| failed(error.into()))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.into()))?;
        put_link(link, &self.links.join(pin_name(device)))?;
        Ok(Attachment::Made)
    }

    /// Detaches the programs from devices that are not among these, gone ones included. Returns how many there were.
    pub fn detach_others(&mut self, devices: &BTreeSet<String>) -> Result<usize, Error> {
        let kept_pins: BTreeSet<String> = devices.iter().map(|device| pin_name(device)).collect();
        let mut detached = 0;
        for pin in pinned::list(&self.links)? {
            let kept = pin.file_name().and_then(|name| name.to_str());
            if !kept.is_some_and(|name| kept_pins.contains(name)) {
                remove_if_there(&pin)?;
                detached += 1;
            }
        }
        Ok(detached)
    }
}

/// The subnets of other nodes, shared with the programs: the longest prefix of an address is its node's.
pub struct Remotes(LpmTrie<MapData, Ip, Remote>);

impl Remotes {
    /// Everything that is there, by network address and length of the prefix in `ADDRESS_BITS`.
    pub fn entries(&self) -> Result<BTreeMap<(Ip, u32), Remote>, Error> {
        let read = |entry: Result<(Key<Ip>, Remote), MapError>| {
            let (key, remote) = entry?;
            Ok(((key.data(), key.prefix_len()), remote))
        };
        let entries: Result<_, _> = self.0.iter().map(read).collect();
        entries.map_err(Error::map("read", "REMOTES"))
    }

    /// Writes an entry; a reader sees the old value or the new one.
    pub fn insert(&mut self, (network, length): (Ip, u32), remote: Remote) -> Result<(), Error> {
        let inserted = self.0.insert(&Key::new(length, network), remote, 0);
        inserted.map_err(Error::map("write to", "REMOTES"))
    }

    /// Takes an entry out that is there.
    pub fn remove(&mut self, (network, length): (Ip, u32)) -> Result<(), Error> {
        let removed = self.0.remove(&Key::new(length, network));
        removed.map_err(Error::map("delete from", "REMOTES"))
    }
}

/// What became of packets that pods sent or that came through the tunnel, by name, whoever attached the programs; the
/// counts outlive it. `None` where
/// there is no fast path.
pub fn counters(pin_dir: &Path) -> Result<Option<Vec<(&'static str, u64)>>, Error> {
    let name = "POD_STATS";
    let path = layout_dir(pin_dir).join(name);
    if !path.exists() {
        return Ok(None);
    }
    let map = Map::PerCpuArray(MapData::from_pin(path).map_err(Error::map("open", name))?);
    let stats = PerCpuArray::<_, u64>::try_from(map).map_err(Error::map("open", name))?;
    let read = |(index, name): (u32, &'static str)| {
        let values = stats.get(&index, 0).map_err(Error::map("read", "POD_STATS"))?;
        Ok((name, values.iter().sum()))
    };
    let counters: Result<_, Error> = (0..PodCounter::COUNT).zip(PodCounter::NAMES).map(read).collect();
    counters.map(Some)
}

impl std::fmt::Debug for FastPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FastPath")
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

/// The name of a device's pin: BPF file systems have no dots in names, and devices no colons (`dev_valid_name`).
pub(crate) fn pin_name(device: &str) -> String {
    device.replace('.', ":")
}

/// Where this layout's maps and links are pinned.
pub(crate) fn layout_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("pods").join(format!("v{LAYOUT}"))
}

/// Where the attachments are pinned, by device.
#[must_use]
pub fn links_dir(pin_dir: &Path) -> PathBuf {
    layout_dir(pin_dir).join("links")
}

fn program(programs: &mut Ebpf, origin: Origin) -> Result<&mut SchedClassifier, Error> {
    let name = origin.program();
    let program = programs.program_mut(name).ok_or(Error::Missing { name })?;
    program.try_into().map_err(Error::program(name))
}

//! The program between pods of one node, its maps, and what stays when its owner dies.
//!
//! ```text
//! <pin_dir>/pods/v1/PODS …              maps
//! <pin_dir>/pods/v1/links/<device> …    the attachment to a pod's device on the node's side
//! ```
//! Without the program, or with an entry less, packets take the node's network stack: nothing that is done here can
//! break a connection.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::links::FdLink;
use aya::programs::tc::{TcAttachOptions, TcAttachType};
use aya::programs::{LinkOrder, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::net::Ip;
use ebpf_common::pods::{LAYOUT, Pod, PodCounter, PodFlow, PodFlowKey};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;

use crate::pinned::{self, Identity, identity, put_link, remove_if_there};
use crate::{Attachment, Error, FAST_PATH_OBJECT, TypedMap, probe};

const PROGRAM: &str = "from_pod";

/// Pods of one node.
const PODS: u32 = 1 << 12;

/// Connections between pods of one node. The map is allocated at once, about 100 bytes for each; a full one forgets
/// what was used least recently.
const FLOWS: u32 = 1 << 16;

/// Maps with the sizes of their keys and values.
const MAPS: [pinned::MapSizes; 4] = [
    pinned::sizes::<Ip, Pod>("PODS"),
    pinned::sizes::<PodFlowKey, PodFlow>("POD_FLOWS"),
    pinned::sizes::<u32, u64>("POD_LEASE"),
    pinned::sizes::<u32, u64>("POD_STATS"),
];

/// The program: loaded, its maps pinned and open. Attached to the devices that it was attached to.
pub struct FastPath {
    /// Pods of this node by address.
    pub pods: TypedMap<Ip, Pod>,
    lease: Array<MapData, u64>,
    programs: Ebpf,
    identity: Identity,
    links: PathBuf,
}

impl FastPath {
    /// Loads the program, and reuses or makes the maps. Needs root (`CAP_BPF`, `CAP_NET_ADMIN`) and Linux 6.6.
    pub fn open(pin_dir: &Path) -> Result<Self, Error> {
        // Every network namespace has this device, and older kernels do not know the question.
        SchedClassifier::query_tcx("lo", TcAttachType::Ingress)
            .map_err(|error| Error::NoTcx(error.into()))?;
        let directory = layout_dir(pin_dir);
        let links = directory.join("links");
        probe::make_pin_dir(&links)?;
        let mut programs = EbpfLoader::new()
            .default_map_pin_directory(&directory)
            .map_max_entries("PODS", PODS)
            .map_max_entries("POD_FLOWS", FLOWS)
            .load(FAST_PATH_OBJECT)
            .map_err(|error| Error::Load(Box::new(error)))?;
        pinned::check_maps(&directory, &MAPS)?;
        let lease = pinned::take_map(&mut programs, "POD_LEASE")?;
        let pods = pinned::typed(&mut programs, &directory, "PODS")?;
        let program = program(&mut programs)?;
        program.load().map_err(Error::program(PROGRAM))?;
        let identity = identity(&program.info().map_err(Error::program(PROGRAM))?);
        Ok(Self {
            pods,
            lease: Array::try_from(lease).map_err(Error::map("open", "POD_LEASE"))?,
            programs,
            identity,
            links,
        })
    }

    /// Detaches the program from every device and forgets the maps, whoever put them there. Whether anything was there.
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

    /// Detaches what other versions left, in front of this one's program. Returns how many there were.
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

    /// Attaches the program to a device of the calling thread's network namespace unless this very program runs there.
    /// `None`: there is no such device any more.
    pub fn ensure_attached(&mut self, device: &str) -> Result<Option<Attachment>, Error> {
        match self.attach(device) {
            Err(_) if if_nametoindex(device) == Err(Errno::ENODEV) => Ok(None),
            attached => attached.map(Some),
        }
    }

    fn attach(&mut self, device: &str) -> Result<Attachment, Error> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::AttachDevice {
            name: PROGRAM,
            device: device.to_owned(),
            source,
        };
        let attached = SchedClassifier::query_tcx(device, TcAttachType::Ingress);
        let (_, attached) = attached.map_err(|error| failed(error.into()))?;
        if attached.iter().any(|program| identity(program) == self.identity) {
            return Ok(Attachment::Kept);
        }
        std::fs::create_dir_all(&self.links).map_err(Error::pin("make", &self.links))?;
        let program = program(&mut self.programs)?;
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(device, TcAttachType::Ingress, options)
            .map_err(|error| failed(error.into()))?;
        let link = program.take_link(id).map_err(|error| failed(error.into()))?;
        let link = FdLink::try_from(link).map_err(|error| failed(error.into()))?;
        put_link(link, &self.links.join(device))?;
        Ok(Attachment::Made)
    }

    /// Detaches the program from devices that are not among these, gone ones included. Returns how many there were.
    pub fn detach_others(&mut self, devices: &BTreeSet<String>) -> Result<usize, Error> {
        let mut detached = 0;
        for pin in pinned::list(&self.links)? {
            let kept = pin.file_name().and_then(|name| name.to_str());
            if !kept.is_some_and(|name| devices.contains(name)) {
                remove_if_there(&pin)?;
                detached += 1;
            }
        }
        Ok(detached)
    }
}

/// What became of packets that pods sent, by name, whoever attached the program; the counts outlive it. `None` where
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

/// Where this layout's maps and links are pinned.
fn layout_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join("pods").join(format!("v{LAYOUT}"))
}

fn program(programs: &mut Ebpf) -> Result<&mut SchedClassifier, Error> {
    let program = programs
        .program_mut(PROGRAM)
        .ok_or(Error::Missing { name: PROGRAM })?;
    program.try_into().map_err(Error::program(PROGRAM))
}

//! Who tells what the kernel has: the kernel itself ([`Live`]), or what was read of it once ([`Recorded`]).

use std::net::{IpAddr, ToSocketAddrs};
use std::path::Path;

use ebpf::FastPathMaps;
use model::{IpFamily, with_causes};
use netlink::conntrack::Usage;
use netlink::{Forwarding, Found, Kernel, Link, Lookup, Neighbour, Netlink, Recording, recording};
use proxy::plan::FrontendKey;
use proxy::programmed::{self, Layer, Programmed, Wanted};
use serde::{Deserialize, Serialize};

use super::rules::Others;
use super::ruling::{self, Opening, Told};
use super::{PodHere, passage};

/// Why something of the kernel's is not known.
#[derive(Debug, thiserror::Error)]
pub enum Unseen {
    /// It did not say.
    #[error("the kernel does not answer: {}", with_causes(.0))]
    Kernel(netlink::Error),
    /// It was not written down.
    #[error("{0}")]
    Recording(recording::Undecided),
}

impl From<netlink::Error> for Unseen {
    fn from(error: netlink::Error) -> Self {
        Self::Kernel(error)
    }
}

impl From<recording::Undecided> for Unseen {
    fn from(error: recording::Undecided) -> Self {
        Self::Recording(error)
    }
}

/// What a witness saw.
pub type Seen<T> = Result<T, Unseen>;

/// What is asked of a node's kernel. Reasons why something is not known are for people.
pub trait Witness {
    /// The node's own addresses.
    fn addresses(&mut self) -> Seen<Vec<IpAddr>>;
    /// The device of that name, if there is one.
    fn link_named(&mut self, name: &str) -> Seen<Option<Link>>;
    /// The device of that index, if there is one.
    fn link_at(&mut self, index: u32) -> Seen<Option<Link>>;
    /// What the routing tables make of a packet.
    fn look_up(&mut self, packet: &Lookup) -> Seen<Found>;
    /// Neighbours of a device.
    fn neighbours(&mut self, link: u32) -> Seen<Vec<Neighbour>>;
    /// Forwarding entries of a device.
    fn forwarding(&mut self, link: u32) -> Seen<Vec<Forwarding>>;
    /// How full the table of connections is; none where nothing is tracked.
    fn tracked(&mut self) -> Option<Usage>;
    /// What each layer of the service proxy does at a frontend; the hook's maps are pinned below `pin_dir`.
    fn layers(
        &mut self,
        pin_dir: Option<&Path>,
        key: &FrontendKey,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Layer>, String>;
    /// Who takes a packet that comes by a device, past the network stack.
    fn fast_path(
        &mut self,
        pin_dir: &Path,
        device: &str,
        to: IpAddr,
    ) -> Result<Option<passage::Found>, String>;
    /// What the program at a pod's device makes of a connection's first packet. None: none of ours is there.
    fn ruling(&mut self, pin_dir: &Path, opening: &Opening<'_>) -> Result<Option<Told>, String>;
    /// Rules of others.
    fn others(&mut self) -> Result<Others, String>;
    /// What the node's resolver has for a name.
    fn resolve(&mut self, name: &str) -> Result<Vec<IpAddr>, String>;
}

/// The kernel, in the network namespace of the calling thread.
#[derive(Default)]
pub struct Live {
    netlink: Option<Netlink>,
}

impl Live {
    fn netlink(&mut self) -> netlink::Result<&mut Netlink> {
        if self.netlink.is_none() {
            self.netlink = Some(Netlink::open()?);
        }
        Ok(self.netlink.as_mut().expect("invariant: it was opened"))
    }
}

impl Witness for Live {
    fn addresses(&mut self) -> Seen<Vec<IpAddr>> {
        let addresses = self.netlink()?.addresses(None)?;
        Ok(addresses.iter().map(|address| address.network.ip()).collect())
    }

    fn link_named(&mut self, name: &str) -> Seen<Option<Link>> {
        Ok(self.netlink()?.link_named(name)?)
    }

    fn link_at(&mut self, index: u32) -> Seen<Option<Link>> {
        Ok(self.netlink()?.link_at(index)?)
    }

    fn look_up(&mut self, packet: &Lookup) -> Seen<Found> {
        Ok(self.netlink()?.look_up(packet)?)
    }

    fn neighbours(&mut self, link: u32) -> Seen<Vec<Neighbour>> {
        Ok(self.netlink()?.neighbours(Some(link))?)
    }

    fn forwarding(&mut self, link: u32) -> Seen<Vec<Forwarding>> {
        Ok(self.netlink()?.forwarding(link)?)
    }

    fn tracked(&mut self) -> Option<Usage> {
        Usage::read()
    }

    fn layers(
        &mut self,
        pin_dir: Option<&Path>,
        key: &FrontendKey,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Layer>, String> {
        let read = Programmed::read(pin_dir, [key.family()]);
        let layers = read.and_then(|programmed| programmed.layers(key, wanted));
        layers.map_err(|error| with_causes(&error))
    }

    fn fast_path(
        &mut self,
        pin_dir: &Path,
        device: &str,
        to: IpAddr,
    ) -> Result<Option<passage::Found>, String> {
        let found = match FastPathMaps::open(pin_dir) {
            Ok(Some(maps)) => passage::look(&maps, device, to),
            Ok(None) => Ok(None),
            Err(error) => Err(error),
        };
        found.map_err(|error| with_causes(&error))
    }

    fn ruling(&mut self, pin_dir: &Path, opening: &Opening<'_>) -> Result<Option<Told>, String> {
        let maps = FastPathMaps::open(pin_dir).map_err(|error| with_causes(&error))?;
        let link = self
            .link_named(opening.device)
            .map_err(|error| error.to_string())?;
        match (maps, link) {
            (Some(maps), Some(link)) => ruling::ask(&maps, &link, opening),
            _ => Ok(None),
        }
    }

    fn others(&mut self) -> Result<Others, String> {
        Others::read()
    }

    fn resolve(&mut self, name: &str) -> Result<Vec<IpAddr>, String> {
        let resolved = (name, 0).to_socket_addrs();
        let resolved = resolved.map_err(|error| format!("the node's resolver says: {error}"))?;
        Ok(resolved.map(|address| address.ip()).collect())
    }
}

/// Something that was read, or why it was not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Had<T> {
    /// It was.
    Read(T),
    /// It was not, for this reason.
    Missing(String),
}

impl<T> Had<T> {
    /// What is there.
    ///
    /// # Errors
    /// Why it is not.
    pub fn there(&self) -> Result<&T, String> {
        match self {
            Self::Read(content) => Ok(content),
            Self::Missing(reason) => Err(reason.clone()),
        }
    }
}

impl<T> From<Result<T, String>> for Had<T> {
    fn from(read: Result<T, String>) -> Self {
        match read {
            Ok(content) => Self::Read(content),
            Err(reason) => Self::Missing(reason),
        }
    }
}

/// What is programmed for Services and for pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Programs {
    /// The service proxy's maps and rules.
    pub services: Had<programmed::Recorded>,
    /// The fast path's maps; none where nothing is pinned.
    pub fast_path: Had<Option<passage::Recorded>>,
    /// Rules of others.
    pub others: Had<Others>,
}

impl Programs {
    /// Reads all of it in the network namespace of the calling thread, with the maps that are pinned below `pin_dir`.
    /// `links` are the namespace's devices, `pods` those of this node.
    #[must_use]
    pub fn take(pin_dir: Option<&Path>, links: &[Link], pods: &[PodHere]) -> Self {
        let services = Programmed::read(pin_dir, [IpFamily::V4, IpFamily::V6]);
        let services = services.and_then(|programmed| programmed.record());
        let fast_path = match pin_dir {
            Some(pin_dir) => passage::Recorded::take(pin_dir, links, pods),
            None => Ok(None),
        };
        Self {
            services: services.map_err(|error| with_causes(&error)).into(),
            fast_path: fast_path.map_err(|error| with_causes(&error)).into(),
            others: Others::read().into(),
        }
    }
}

impl Programs {
    /// Why verdicts of programs at pods' devices are not there, where their maps are.
    #[must_use]
    pub fn missing_verdicts(&self) -> Option<String> {
        self.fast_path.there().ok()?.as_ref()?.missing_verdicts()
    }
}

/// What was read of a kernel once.
#[derive(Debug)]
pub struct Recorded<'a> {
    network: &'a Recording,
    programs: &'a Programs,
    services: Result<Programmed, String>,
}

impl<'a> Recorded<'a> {
    /// By a network namespace's devices and routes, and what is programmed there.
    #[must_use]
    pub fn new(network: &'a Recording, programs: &'a Programs) -> Self {
        Self {
            network,
            programs,
            services: programs.services.there().map(Programmed::from),
        }
    }
}

impl Witness for Recorded<'_> {
    fn addresses(&mut self) -> Seen<Vec<IpAddr>> {
        let addresses = self.network.addresses.iter();
        Ok(addresses.map(|address| address.network.ip()).collect())
    }

    fn link_named(&mut self, name: &str) -> Seen<Option<Link>> {
        Ok(self.network.link_named(name).cloned())
    }

    fn link_at(&mut self, index: u32) -> Seen<Option<Link>> {
        Ok(self.network.link_at(index).cloned())
    }

    fn look_up(&mut self, packet: &Lookup) -> Seen<Found> {
        Ok(self.network.look_up(packet)?)
    }

    fn neighbours(&mut self, link: u32) -> Seen<Vec<Neighbour>> {
        let neighbours = self.network.neighbours.iter();
        Ok(neighbours.filter(|entry| entry.link == link).cloned().collect())
    }

    fn forwarding(&mut self, link: u32) -> Seen<Vec<Forwarding>> {
        let forwarding = self.network.forwarding.iter();
        Ok(forwarding.filter(|entry| entry.link == link).cloned().collect())
    }

    fn tracked(&mut self) -> Option<Usage> {
        self.network.tracked
    }

    fn layers(
        &mut self,
        _: Option<&Path>,
        key: &FrontendKey,
        wanted: Wanted<'_>,
    ) -> Result<Vec<Layer>, String> {
        let programmed = self.services.as_ref().map_err(Clone::clone)?;
        programmed
            .layers(key, wanted)
            .map_err(|error| with_causes(&error))
    }

    fn fast_path(&mut self, _: &Path, device: &str, to: IpAddr) -> Result<Option<passage::Found>, String> {
        let maps = self.programs.fast_path.there()?.as_ref();
        Ok(maps.and_then(|maps| maps.look(device, to)))
    }

    fn ruling(&mut self, _: &Path, opening: &Opening<'_>) -> Result<Option<Told>, String> {
        match self.programs.fast_path.there()? {
            Some(maps) => maps.ruling(opening),
            None => Ok(None),
        }
    }

    fn others(&mut self) -> Result<Others, String> {
        self.programs.others.there().cloned()
    }

    /// Whoever asks now is somewhere else, where names may be others'.
    fn resolve(&mut self, _: &str) -> Result<Vec<IpAddr>, String> {
        Err("what the node's resolver has for it is not recorded: give an address".to_owned())
    }
}

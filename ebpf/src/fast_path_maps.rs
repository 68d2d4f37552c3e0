//! The fast path's maps as somebody finds them who only looks: no program is loaded, nothing is made or written.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use aya::programs::links::{FdLink, PinnedLink};
use ebpf_common::net::Ip;
use ebpf_common::pods::{ADDRESS_BITS, Hop, Remote};

use crate::fast_path::{layout_dir, links_dir, pin_name};
use crate::{Error, probe};

/// The maps of a fast path that is pinned, open for single look-ups.
pub struct FastPathMaps {
    pods: HashMap<MapData, Ip, Hop>,
    remotes: LpmTrie<MapData, Ip, Remote>,
    lease: Array<MapData, u64>,
    links: PathBuf,
}

impl FastPathMaps {
    /// Opens what is pinned below `pin_dir` in this version's layout. None where nothing is.
    ///
    /// # Errors
    /// When maps are pinned and cannot be opened: reading them needs `CAP_BPF`.
    pub fn open(pin_dir: &Path) -> Result<Option<Self>, Error> {
        let directory = layout_dir(pin_dir);
        if !directory.join("PODS").exists() {
            return Ok(None);
        }
        let pinned = |name: &'static str| {
            let data = MapData::from_pin(directory.join(name));
            data.map_err(Error::map("open", name))
        };
        Ok(Some(Self {
            pods: HashMap::try_from(Map::HashMap(pinned("PODS")?)).map_err(Error::map("open", "PODS"))?,
            remotes: LpmTrie::try_from(Map::LpmTrie(pinned("REMOTES")?))
                .map_err(Error::map("open", "REMOTES"))?,
            lease: Array::try_from(Map::Array(pinned("POD_LEASE")?))
                .map_err(Error::map("open", "POD_LEASE"))?,
            links: links_dir(pin_dir),
        }))
    }

    /// Whether a program looks at what comes by a device.
    #[must_use]
    pub fn is_attached(&self, device: &str) -> bool {
        self.links.join(pin_name(device)).exists()
    }

    /// The kernel's number for the program whose link is pinned for a device; none where none is.
    ///
    /// # Errors
    /// When the kernel does not say it.
    pub fn program_at(&self, device: &str) -> Result<Option<u32>, Error> {
        let pin = self.links.join(pin_name(device));
        if !pin.exists() {
            return Ok(None);
        }
        let link = PinnedLink::from_pin(&pin).and_then(|link| FdLink::from(link).info());
        let link = link
            .map_err(|error| Error::pin("open the link that is pinned at", &pin)(io::Error::other(error)))?;
        Ok(Some(link.program_id()))
    }

    /// Whether connections may begin at this moment.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn lets_begin(&self) -> Result<bool, Error> {
        let until = self.lease.get(&0, 0).map_err(Error::map("read", "POD_LEASE"))?;
        Ok(u128::from(until) > probe::since_boot().as_nanos())
    }

    /// What `PODS` has for an address.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn pod(&self, address: IpAddr) -> Result<Option<Hop>, Error> {
        there("PODS", self.pods.get(&Ip::from(address), 0))
    }

    /// All that `PODS` has.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all_pods(&self) -> Result<Vec<(IpAddr, Hop)>, Error> {
        let entries = self
            .pods
            .iter()
            .map(|entry| entry.map(|(address, hop)| (address.into(), hop)));
        let entries: Result<_, _> = entries.collect();
        entries.map_err(Error::map("read", "PODS"))
    }

    /// All that `REMOTES` has: the subnet's address, how many of the 128 bits of an address (those of IPv4 are mapped) count
    /// in a look-up, and who takes it.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all_remotes(&self) -> Result<Vec<(IpAddr, u32, Remote)>, Error> {
        let entries = self.remotes.iter().map(|entry| {
            let (key, remote) = entry?;
            Ok((key.data().into(), key.prefix_len(), remote))
        });
        let entries: Result<_, MapError> = entries.collect();
        entries.map_err(Error::map("read", "REMOTES"))
    }

    /// What `REMOTES` has for an address.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn remote(&self, address: IpAddr) -> Result<Option<Remote>, Error> {
        let key = Key::new(ADDRESS_BITS, Ip::from(address));
        there("REMOTES", self.remotes.get(&key, 0))
    }
}

impl std::fmt::Debug for FastPathMaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FastPathMaps")
            .field("links", &self.links)
            .finish_non_exhaustive()
    }
}

fn there<T>(name: &'static str, found: Result<T, MapError>) -> Result<Option<T>, Error> {
    match found {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(Error::map("read", name)(error)),
    }
}

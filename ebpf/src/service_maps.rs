//! The socket hook's maps as somebody finds them who only looks: no program is loaded, nothing is made or written.

use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError};
use ebpf_common::service::{Endpoint, Frontend, FrontendKey, SlotKey};

use crate::Error;
use crate::pinned::list;
use crate::socket_hook::layout_dir;

/// The maps of a hook that is pinned, open for single look-ups.
#[derive(Debug)]
pub struct ServiceMaps {
    frontends: HashMap<MapData, FrontendKey, Frontend>,
    slots: HashMap<MapData, SlotKey, u32>,
    endpoints: HashMap<MapData, u32, Endpoint>,
    links: usize,
    frontends_pin: PathBuf,
}

impl ServiceMaps {
    /// Opens what is pinned below `pin_dir` in this version's layout. None where nothing is.
    ///
    /// # Errors
    /// When maps are pinned and cannot be opened: reading them needs `CAP_BPF`.
    pub fn open(pin_dir: &Path) -> Result<Option<Self>, Error> {
        let directory = layout_dir(pin_dir);
        if !directory.join("FRONTENDS").exists() {
            return Ok(None);
        }
        Ok(Some(Self {
            frontends: open(&directory, "FRONTENDS")?,
            slots: open(&directory, "SLOTS")?,
            endpoints: open(&directory, "ENDPOINTS")?,
            links: list(&directory.join("links"))?.len(),
            frontends_pin: directory.join("FRONTENDS"),
        }))
    }

    /// How many links of programs to cgroups are pinned; none: the maps are there, and nobody asks them.
    #[must_use]
    pub const fn links(&self) -> usize {
        self.links
    }

    /// Where `FRONTENDS` is pinned.
    #[must_use]
    pub fn frontends_pin(&self) -> PathBuf {
        self.frontends_pin.clone()
    }

    /// All keys of `FRONTENDS`.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn frontends(&self) -> Result<Vec<FrontendKey>, Error> {
        let keys: Result<_, _> = self.frontends.keys().collect();
        keys.map_err(Error::map("read", "FRONTENDS"))
    }

    /// What `FRONTENDS` has for a frontend.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn frontend(&self, key: &FrontendKey) -> Result<Option<Frontend>, Error> {
        get(&self.frontends, key, "FRONTENDS")
    }

    /// The endpoint's id that `SLOTS` has at a place of a list.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn slot(&self, key: &SlotKey) -> Result<Option<u32>, Error> {
        get(&self.slots, key, "SLOTS")
    }

    /// All that `FRONTENDS` has.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all_frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, Error> {
        all(&self.frontends, "FRONTENDS")
    }

    /// All that `SLOTS` has.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all_slots(&self) -> Result<Vec<(SlotKey, u32)>, Error> {
        all(&self.slots, "SLOTS")
    }

    /// All that `ENDPOINTS` has, by id.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn all_endpoints(&self) -> Result<Vec<(u32, Endpoint)>, Error> {
        all(&self.endpoints, "ENDPOINTS")
    }

    /// What `ENDPOINTS` has under an id.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn endpoint(&self, id: u32) -> Result<Option<Endpoint>, Error> {
        get(&self.endpoints, &id, "ENDPOINTS")
    }
}

fn open<K: Pod, V: Pod>(directory: &Path, name: &'static str) -> Result<HashMap<MapData, K, V>, Error> {
    let data = MapData::from_pin(directory.join(name)).map_err(Error::map("open", name))?;
    HashMap::try_from(Map::HashMap(data)).map_err(Error::map("open", name))
}

fn all<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, name: &'static str) -> Result<Vec<(K, V)>, Error> {
    let entries: Result<_, _> = map.iter().collect();
    entries.map_err(Error::map("read", name))
}

fn get<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    key: &K,
    name: &'static str,
) -> Result<Option<V>, Error> {
    match map.get(key, 0) {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(Error::map("read", name)(error)),
    }
}

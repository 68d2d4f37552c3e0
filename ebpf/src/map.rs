//! Hash maps of the kernel with types, and a count of writes.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use aya::Pod;
use aya::maps::{HashMap, IterableMap, MapData, MapError};
use aya::sys::SyscallError;
use nix::libc;

use crate::{Error, sys};

/// A hash map shared with BPF programs.
#[derive(Debug)]
pub struct TypedMap<K: Pod, V: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, V>,
    capacity: u32,
    writes: u64,
}

impl<K: Pod + Ord, V: Pod> TypedMap<K, V> {
    pub(crate) fn new(name: &'static str, map: HashMap<MapData, K, V>, capacity: u32) -> Self {
        Self {
            name,
            map,
            capacity,
            writes: 0,
        }
    }

    /// Writes an entry; a reader sees the old value or the new one. A new key in a map without room is
    /// [`Error::Full`]; an entry that is there can always be replaced.
    pub fn insert(&mut self, key: K, value: V) -> Result<(), Error> {
        self.writes += 1;
        self.map
            .insert(key, value, 0)
            .map_err(|error| self.unwritten(error))
    }

    /// Writes entries, each as [`Self::insert`] does, in this order until one fails. Returns how many are written, and
    /// why no more are. Half the work of the same by one.
    pub fn insert_all(&mut self, entries: &[(K, V)]) -> (usize, Result<(), Error>) {
        if entries.is_empty() {
            return (0, Ok(()));
        }
        let map = IterableMap::<K, V>::map(&self.map).fd().as_fd();
        let (written, result) = sys::update_batch(map, entries);
        self.writes += written as u64 + u64::from(result.is_err());
        let result = result.map_err(|io_error| {
            let call = "bpf_map_update_batch";
            self.unwritten(MapError::SyscallError(SyscallError { call, io_error }))
        });
        (written, result)
    }

    fn unwritten(&self, error: MapError) -> Error {
        if is_full(&error) {
            Error::Full {
                map: self.name,
                capacity: self.capacity,
            }
        } else {
            Error::map("write to", self.name)(error)
        }
    }

    /// Takes an entry out; one that is not there is fine.
    pub fn remove(&mut self, key: &K) -> Result<(), Error> {
        self.writes += 1;
        match self.map.remove(key) {
            Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => {
                Ok(())
            }
            Err(MapError::KeyNotFound) => Ok(()),
            result => result.map_err(Error::map("delete from", self.name)),
        }
    }

    /// Everything that is there.
    pub fn entries(&self) -> Result<BTreeMap<K, V>, Error> {
        self.map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(Error::map("read", self.name))
    }

    /// How many entries were written or taken out since the map was opened.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.writes
    }
}

/// Hash maps say `E2BIG` (`alloc_htab_elem`, kernel/bpf/hashtab.c).
fn is_full(error: &MapError) -> bool {
    let MapError::SyscallError(error) = error else {
        return false;
    };
    matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}

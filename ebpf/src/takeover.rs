//! What another layout left is taken over: lists, sockets, flows and attachments, so that an upgrade, or the way back,
//! forgets no flow and leaves no call untranslated.
//!
//! Walk, with `v2` taking over from `v3`:
//! ```text
//! v3/REPLIES   same sizes                → the same map, pinned as v2/REPLIES too
//! v3/FLOWS     values of another size    → a new map; entries are copied, before the programs change and after it
//! v3/links/…                             → v2/links/…, and each link changes its program in one step
//! v3                                     removed when this one's lists are written
//! ```
//! It works because values only grow at their end ([`ebpf_common::GROWS_SINCE`]). Where a map's keys differ nothing is
//! taken over: the programs of both layouts run side by side until this one's lists are written.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{MapData, MapInfo, MapType};
use nix::libc;

use crate::Error;
use crate::pinned::{MapSizes, list};
use crate::sys::RawMap;

/// A layout that is taken over.
#[derive(Debug)]
pub(crate) struct Takeover {
    from: PathBuf,
    to: PathBuf,
    copied: Vec<&'static str>,
}

impl Takeover {
    /// Pins the maps of the same shape, before this layout's programs are loaded. `layouts`: other layouts, the one to
    /// prefer last. `None` where there is nothing that can be taken over as a whole.
    pub(crate) fn begin(layouts: &[PathBuf], to: &Path, maps: &[MapSizes]) -> Result<Option<Self>, Error> {
        let attached = |layout: &&PathBuf| list(&layout.join("links")).is_ok_and(|links| !links.is_empty());
        // One without links was left by a process that ended between moving them and copying again.
        let Some(from) = layouts.iter().rev().find(attached).or(layouts.last()) else {
            return Ok(None);
        };
        let mut takeover = Self {
            from: from.clone(),
            to: to.to_owned(),
            copied: Vec::new(),
        };
        let mut same = Vec::new();
        for &(name, key_bytes, value_bytes) in maps {
            let Some(info) = takeover.left(name)? else {
                continue;
            };
            let fits = (
                info.key_size() as usize == key_bytes,
                info.value_size() as usize == value_bytes,
            );
            match (info.map_type().map_err(Error::map("read", name))?, fits) {
                // How many entries an array has is part of its shape, and belongs to this version's programs.
                (MapType::Array | MapType::PerCpuArray, _) => {}
                (_, (true, true)) => same.push(name),
                (MapType::Hash | MapType::LruHash, (true, false)) => takeover.copied.push(name),
                // The kernel does not list what sockets hold: those that are open show their endpoint from now on.
                (MapType::SkStorage, _) => {}
                _ => return Ok(None),
            }
        }
        for name in same {
            takeover.share(name)?;
        }
        Ok(Some(takeover))
    }

    fn left(&self, name: &'static str) -> Result<Option<MapInfo>, Error> {
        let pin = self.from.join(name);
        if !pin.exists() {
            return Ok(None);
        }
        MapInfo::from_pin(pin).map(Some).map_err(Error::map("open", name))
    }

    fn share(&self, name: &'static str) -> Result<(), Error> {
        let pin = self.to.join(name);
        if pin.exists() {
            return Ok(());
        }
        let map = MapData::from_pin(self.from.join(name)).map_err(Error::map("open", name))?;
        map.pin(&pin)
            .map_err(|error| Error::pin("pin", &pin)(io::Error::other(error)))
    }

    /// Copies the entries of maps whose values have another size, as far as they are not there yet and there is room:
    /// the first sync tells of lists that do not fit.
    pub(crate) fn copy_entries(&self) -> Result<(), Error> {
        self.copied.iter().try_for_each(|name| {
            let open =
                |directory: &Path| MapData::from_pin(directory.join(name)).map_err(Error::map("open", name));
            let (from, to) = (open(&self.from)?, open(&self.to)?);
            copy(&from, &to).map_err(|source| Error::CopyMap { name, source })
        })
    }

    /// Moves the pins of links with these names, where this layout has none: what they run is changed next.
    pub(crate) fn move_links<'a>(&self, names: impl IntoIterator<Item = &'a Path>) -> Result<(), Error> {
        for name in names {
            let (from, to) = (
                self.from.join("links").join(name),
                self.to.join("links").join(name),
            );
            if from.exists() && !to.exists() {
                fs::rename(&from, &to).map_err(Error::pin("move a link to", &to))?;
            }
        }
        Ok(())
    }
}

/// What only the longer value has is zero, or is left out.
fn copy(from: &MapData, to: &MapData) -> io::Result<()> {
    let info = from.info().map_err(io::Error::other)?;
    let (old, new) = (raw(from)?, raw(to)?);
    let mut key: Option<Vec<u8>> = None;
    // A program that takes entries out meanwhile makes the kernel's list begin anew.
    for _ in 0..2 * u64::from(info.max_entries()) {
        let Some(next) = old.key_after(key.as_deref())? else {
            break;
        };
        if let Some(mut value) = old.value(&next)? {
            value.resize(new.value_bytes, 0);
            match new.add(&next, &value) {
                Err(error) if error.raw_os_error() == Some(libc::E2BIG) => break,
                added => added?,
            }
        }
        key = Some(next);
    }
    Ok(())
}

fn raw(map: &MapData) -> io::Result<RawMap<'_>> {
    let info = map.info().map_err(io::Error::other)?;
    Ok(RawMap {
        fd: map.fd().as_fd(),
        key_bytes: info.key_size() as usize,
        value_bytes: info.value_size() as usize,
    })
}

//! What programs, maps and links that are pinned have in common.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use aya::maps::{HashMap, Map, MapInfo};
use aya::programs::ProgramInfo;
use aya::programs::links::FdLink;
use aya::{Ebpf, Pod};

use crate::{Error, TypedMap};

/// A map's name with the sizes of its keys and values, in bytes.
pub(crate) type MapSizes = (&'static str, usize, usize);

pub(crate) const fn sizes<K, V>(name: &'static str) -> MapSizes {
    (name, size_of::<K>(), size_of::<V>())
}

/// What makes a program this one: instructions (without map addresses) and maps.
pub(crate) type Identity = (u64, Option<Vec<u32>>);

pub(crate) fn identity(program: &ProgramInfo) -> Identity {
    let mut maps = program.map_ids().ok().flatten();
    if let Some(maps) = &mut maps {
        maps.sort_unstable();
    }
    (program.tag(), maps)
}

/// Maps that were found pinned must have the sizes that this version means.
pub(crate) fn check_maps(directory: &Path, maps: &[MapSizes]) -> Result<(), Error> {
    for &(name, key_bytes, value_bytes) in maps {
        let path = directory.join(name);
        let info = MapInfo::from_pin(&path).map_err(Error::map("open", name))?;
        if (info.key_size() as usize, info.value_size() as usize) != (key_bytes, value_bytes) {
            return Err(Error::ForeignMap { name, path });
        }
    }
    Ok(())
}

pub(crate) fn typed<K: Pod + Ord, V: Pod>(
    programs: &mut Ebpf,
    directory: &Path,
    name: &'static str,
) -> Result<TypedMap<K, V>, Error> {
    let info = MapInfo::from_pin(directory.join(name)).map_err(Error::map("open", name))?;
    let map = take_map(programs, name)?;
    let map = HashMap::try_from(map).map_err(Error::map("open", name))?;
    Ok(TypedMap::new(name, map, info.max_entries()))
}

pub(crate) fn take_map(programs: &mut Ebpf, name: &'static str) -> Result<Map, Error> {
    programs.take_map(name).ok_or(Error::Missing { name })
}

/// Pins a new link where the link before it is pinned, which goes with its pin: for a moment both run.
pub(crate) fn put_link(link: FdLink, pin: &Path) -> Result<(), Error> {
    let mut next = pin.as_os_str().to_owned();
    next.push("-next");
    let next = PathBuf::from(next);
    remove_if_there(&next)?;
    link.pin(&next)
        .map_err(|error| Error::pin("pin a link at", &next)(std::io::Error::other(error)))?;
    std::fs::rename(&next, pin).map_err(Error::pin("put a new link at", pin))
}

/// The files of a directory; none where there is no such directory.
pub(crate) fn list(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::pin("list", directory)(error)),
        Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
    }
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), Error> {
    gone(std::fs::remove_file(path), path)
}

pub(crate) fn remove_directory(path: &Path) -> Result<(), Error> {
    gone(std::fs::remove_dir_all(path), path)
}

fn gone(result: std::io::Result<()>, path: &Path) -> Result<(), Error> {
    match result {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::pin("remove", path)(error)),
        _ => Ok(()),
    }
}

//! To which Services sockets were connected by the socket hook, told by a program that lives as long as the process that
//! loaded it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::{Ebpf, EbpfLoader};
use ebpf_common::service::Translated;

use crate::SERVICES_OBJECT;
use crate::kernel_types::KernelTypes;
use crate::socket_hook::layout_dir;
use crate::sys;
use crate::tracepoints::{Chosen, TracepointError, attach, load_all, take};

/// The tracepoint, and the program of the same name.
const CHOSEN: [Chosen; 1] = [Chosen {
    tracepoint: "inet_sock_set_state",
    program: "inet_sock_set_state",
}];

/// The map of what a socket hook writes into sockets, where its pins are at `pin_dir`.
#[must_use]
pub fn pinned(pin_dir: &Path) -> PathBuf {
    layout_dir(pin_dir).join("SOCKETS")
}

/// The attached program.
pub struct Connected {
    _programs: Ebpf,
    services: MapData,
}

impl Connected {
    /// Attaches the program for the sockets of one hook: those of its map at `sockets`.
    ///
    /// # Errors
    /// When there is no such map, the kernel lacks something, or this process the right.
    pub fn start(types: &KernelTypes, sockets: &Path) -> Result<Self, TracepointError> {
        // The loader would make one that is not there.
        if !sockets.exists() {
            return Err(TracepointError::Missing("SOCKETS"));
        }
        let btf = types
            .for_loader()
            .map_err(|error| TracepointError::Btf(Box::new(error)))?;
        let mut programs = EbpfLoader::new()
            .btf(Some(&btf))
            .map_pin_path("SOCKETS", sockets)
            .load(SERVICES_OBJECT)
            .map_err(|error| TracepointError::Load(Box::new(error)))?;
        let Map::LruHashMap(services) = take(&mut programs, "SERVICES")? else {
            return Err(TracepointError::Missing("SERVICES"));
        };
        load_all(&mut programs, &CHOSEN, &btf)?;
        for chosen in CHOSEN {
            attach(&mut programs, chosen)?;
        }
        Ok(Self {
            _programs: programs,
            services,
        })
    }

    /// What was connected since the start, by the sockets' cookies.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn services(&self) -> Result<Vec<(u64, Translated)>, TracepointError> {
        sys::entries(self.services.fd().as_fd()).map_err(TracepointError::Counters)
    }
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected").finish_non_exhaustive()
    }
}

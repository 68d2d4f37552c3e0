//! Why the BPF side did not do what was asked.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

/// A failed operation and its object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path of the cgroup is not below a cgroup v2 mount.
    #[error(
        "{path} is not a cgroup v2 directory: cgroup v2 must be mounted, and the node's cgroup made, first"
    )]
    NotCgroup2 {
        /// The path that was given.
        path: PathBuf,
    },
    /// The pin directory is not on a BPF file system.
    #[error("{path} is not on a BPF file system: mount one with `mount -t bpf bpf {mount}`")]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
        /// Where one would be mounted.
        mount: PathBuf,
    },
    /// A directory or pin could not be made, read or removed.
    #[error("{operation} {path}")]
    Pin {
        /// For example `make`.
        operation: &'static str,
        /// What.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The cookie of the network namespace could not be asked for.
    #[error("read the cookie of the network namespace")]
    Netns(#[source] io::Error),
    /// The object or one of its maps was refused.
    #[error("load the BPF object (Linux 5.15 or newer with BPF and cgroup BPF is needed)")]
    Load(#[source] Box<EbpfError>),
    /// The object has no program or map of that name: it is not the one that this program was built with.
    #[error("the BPF object has no {name}")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// The kernel refused a program.
    #[error("load the BPF program {name} (Linux 5.15 or newer with CONFIG_CGROUP_BPF is needed)")]
    Program {
        /// Its name.
        name: &'static str,
        /// The reason.
        #[source]
        source: Box<ProgramError>,
    },
    /// A program could not be attached, or its link not pinned.
    #[error("attach the BPF program {name} to {cgroup}")]
    Attach {
        /// Its name.
        name: &'static str,
        /// Where.
        cgroup: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The kernel does not let programs be attached to devices by links.
    #[error("ask for the BPF programs of a device (Linux 6.6 or newer is needed)")]
    NoTcx(#[source] Box<ProgramError>),
    /// A program could not be attached to a device.
    #[error("attach the BPF program {name} to device {device}")]
    AttachDevice {
        /// Its name.
        name: &'static str,
        /// The device.
        device: String,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pinned map has another shape than this version's.
    #[error("the pinned map {name} has another layout; remove {path} to start afresh")]
    ForeignMap {
        /// Its name.
        name: &'static str,
        /// Its pin.
        path: PathBuf,
    },
    /// The entries of another layout's map could not be copied.
    #[error("copy the entries of map {name} from another layout")]
    CopyMap {
        /// Its name.
        name: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// A map has no room for another entry. Readers in the kernel find what was there before.
    #[error("map {map} is full: it takes {capacity} entries")]
    Full {
        /// Its name.
        map: &'static str,
        /// How many entries it takes; see [`crate::Capacity`].
        capacity: u32,
    },
    /// A map could not be read or written.
    #[error("{operation} map {name}")]
    Map {
        /// For example `write to`.
        operation: &'static str,
        /// Its name.
        name: &'static str,
        /// The reason.
        #[source]
        source: Box<MapError>,
    },
}

impl Error {
    pub(crate) fn map(operation: &'static str, name: &'static str) -> impl FnOnce(MapError) -> Self {
        move |source| Self::Map {
            operation,
            name,
            source: Box::new(source),
        }
    }

    pub(crate) fn pin(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Pin {
            operation,
            path,
            source,
        }
    }

    pub(crate) fn program(name: &'static str) -> impl FnOnce(ProgramError) -> Self {
        move |source| Self::Program {
            name,
            source: Box::new(source),
        }
    }
}

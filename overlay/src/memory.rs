//! What a node remembers over restarts, so that it serves before etcd answers, and while it does not.

use std::fs;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use model::ByFamily;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::files::write_file;
use crate::flannel::{FormatError, Record};

/// The file's name in the agent's state directory.
pub(crate) const FILE: &str = "overlay.json";

/// The last state that was seen in etcd, in etcd's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Memory {
    /// The network's configuration.
    pub(crate) network: Option<String>,
    /// Our own lease.
    pub(crate) own: Option<Entry>,
    /// The other nodes' leases.
    pub(crate) others: Vec<Entry>,
    /// Which etcd it was …
    pub(crate) cluster_id: u64,
    /// … and how far: data that are older have lost something.
    pub(crate) revision: i64,
}

/// A lease: the last part of its key, and its value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    key: String,
    value: String,
}

impl Entry {
    pub(crate) fn new(record: &Record) -> Self {
        Self {
            key: record.key(),
            value: record.to_json(),
        }
    }

    pub(crate) fn record(&self) -> Option<Record> {
        self.read().ok()
    }

    pub(crate) fn read(&self) -> Result<Record, FormatError> {
        Record::remembered(&self.key, &self.value)
    }
}

impl Memory {
    /// The node's addresses by its lease.
    pub(crate) fn public_ips(&self) -> ByFamily<IpAddr> {
        let own = self.own.as_ref().and_then(Entry::record);
        own.map(|own| own.lease.public_ips()).unwrap_or_default()
    }

    /// Reads the file; what cannot be read is forgotten, since etcd has it.
    pub(crate) fn load(directory: &Path) -> Self {
        Self::read(directory).unwrap_or_else(|error| {
            let error = model::with_causes(&error);
            tracing::warn!(error, "remembered overlay state is unreadable, starting without");
            Self::default()
        })
    }

    /// Reads the file; one that is not there holds nothing.
    pub(crate) fn read(directory: &Path) -> Result<Self, Error> {
        let path = path(directory);
        let read = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        };
        read.map_err(|source| Error::ReadFile { path, source })
    }

    /// Writes the file.
    pub(crate) fn save(&self, directory: &Path) -> Result<(), Error> {
        let path = path(directory);
        let failed = |source| Error::WriteFile {
            path: path.clone(),
            source,
        };
        let json = serde_json::to_vec_pretty(self).map_err(|error| failed(error.into()))?;
        write_file(&path, &json).map_err(failed)
    }
}

/// Where it is.
pub(crate) fn path(directory: &Path) -> PathBuf {
    directory.join(FILE)
}

//! What was begun and is not known to have ended: written down before EC2 is asked, so that a program that dies between
//! two calls knows at its next start what to look for.
//!
//! The file is small and changes seldom: it is replaced whole, by a rename that is durable before the call is made.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::ec2::{AttachmentId, EniId, NewEni};

/// The file's name in the agent's state directory.
pub const FILE: &str = "eni-undertakings.json";

/// One change that takes several calls, or of which it is not known yet whether it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "camelCase")]
pub enum Undertaking {
    /// An interface that is made and attached.
    Add {
        /// As it was, or will be, asked for: the same token never makes two.
        new: NewEni,
        /// Once it is made.
        eni: Option<EniId>,
        /// Once it is attached.
        attachment: Option<AttachmentId>,
        /// When it was begun.
        since: SystemTime,
    },
    /// An interface that is detached and deleted.
    Remove {
        /// Which.
        eni: EniId,
        /// As long as it is attached.
        attachment: Option<AttachmentId>,
        /// Whether it is, or was, attached here: it takes one of the instance's places until it is gone.
        was_here: bool,
    },
    /// Addresses that come to an interface, or go.
    Change {
        /// Which.
        eni: EniId,
        /// Those that go: no pod is given one before EC2 has said that they are still there.
        gives_back: Vec<IpNetwork>,
        /// When it was begun.
        since: SystemTime,
    },
    /// Addresses that an interface gave back so lately that EC2 may still speak of them.
    GaveBack {
        /// Which.
        eni: EniId,
        /// What.
        blocks: Vec<IpNetwork>,
        /// When EC2 said so.
        since: SystemTime,
    },
    /// An interface that went from here so lately that EC2 may still speak of it.
    Removed {
        /// Which.
        eni: EniId,
        /// When EC2 said so.
        since: SystemTime,
    },
}

impl Undertaking {
    /// The interface that it is about, once that is known.
    #[must_use]
    pub const fn eni(&self) -> Option<&EniId> {
        match self {
            Self::Add { eni, .. } => eni.as_ref(),
            Self::Remove { eni, .. }
            | Self::Change { eni, .. }
            | Self::GaveBack { eni, .. }
            | Self::Removed { eni, .. } => Some(eni),
        }
    }

    /// Whether it may yet change what this node has. An interface that is attached only has to learn when it goes; one
    /// that was never here takes nothing along.
    #[must_use]
    pub const fn is_underway(&self) -> bool {
        match self {
            Self::Add { attachment, .. } => attachment.is_none(),
            Self::Remove { was_here, .. } => *was_here,
            Self::Change { .. } => true,
            Self::GaveBack { .. } | Self::Removed { .. } => false,
        }
    }

    /// The client token of an interface of which it is not known that it is made.
    #[must_use]
    pub fn unmade_token(&self) -> Option<String> {
        match self {
            Self::Add { new, eni: None, .. } => Some(new.client_token.clone()),
            _ => None,
        }
    }

    /// Since when it is known that something has gone of which EC2 may still speak.
    #[must_use]
    pub const fn gone_since(&self) -> Option<SystemTime> {
        match self {
            Self::GaveBack { since, .. } | Self::Removed { since, .. } => Some(*since),
            Self::Add { .. } | Self::Remove { .. } | Self::Change { .. } => None,
        }
    }
}

/// All that was begun, and the file that says so.
#[derive(Debug)]
pub struct Undertakings {
    path: PathBuf,
    open: Vec<Undertaking>,
}

/// The file could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{verb} {}", path.display())]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl Undertakings {
    /// Reads what an earlier program left open. A file that says nothing sensible is put aside: what it spoke of is
    /// found by the tags of the interfaces.
    ///
    /// # Errors
    /// When there is a file that cannot be read.
    pub fn open(directory: &Path) -> Result<Self, FileError> {
        let path = directory.join(FILE);
        let failed = |verb, source| FileError {
            verb,
            path: path.clone(),
            source,
        };
        fs::create_dir_all(directory).map_err(|source| failed("make the directory of", source))?;
        let open = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                let aside = path.with_extension("damaged");
                let moved = fs::rename(&path, &aside).is_ok();
                tracing::error!(%error, moved, "the record of what was begun at EC2 is damaged");
                Vec::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed("read", error)),
        };
        Ok(Self { path, open })
    }

    /// What is open, oldest first.
    #[must_use]
    pub fn open_ones(&self) -> &[Undertaking] {
        &self.open
    }

    /// Writes one down.
    ///
    /// # Errors
    /// When the file cannot be written: then nothing was begun.
    pub fn begin(&mut self, undertaking: Undertaking) -> Result<(), FileError> {
        let mut open = self.open.clone();
        open.push(undertaking);
        self.replace(open)
    }

    /// Writes down how far one is.
    ///
    /// # Errors
    /// When the file cannot be written: then it says what it said before.
    pub fn advance(&mut self, before: &Undertaking, after: Undertaking) -> Result<(), FileError> {
        let mut open = self.open.clone();
        match open.iter_mut().find(|found| *found == before) {
            Some(found) => *found = after,
            None => open.push(after),
        }
        self.replace(open)
    }

    /// Strikes one out.
    ///
    /// # Errors
    /// When the file cannot be written: then it is still open.
    pub fn end(&mut self, ended: &Undertaking) -> Result<(), FileError> {
        let open = self.open.iter().filter(|open| *open != ended).cloned().collect();
        self.replace(open)
    }

    fn replace(&mut self, open: Vec<Undertaking>) -> Result<(), FileError> {
        self.write(&open).map_err(|source| FileError {
            verb: "write",
            path: self.path.clone(),
            source,
        })?;
        self.open = open;
        Ok(())
    }

    fn write(&self, open: &[Undertaking]) -> io::Result<()> {
        let fresh = self.path.with_extension("new");
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec_pretty(open)?)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        // The rename is durable once the directory is.
        match self.path.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

//! What the kernel was asked, of which object, and what it answered.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A kernel operation; also the key by which [`crate::FakeKernel`] injects faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the variant is the operation")]
pub enum Operation {
    OpenSocket,
    OpenNamespace,
    CreateNamespace,
    DeleteNamespace,
    EnterNamespace,
    ReadSysctl,
    WriteSysctl,
    ReadEvents,
    ListLinks,
    GetLink,
    CreateLink,
    ChangeLink,
    DeleteLink,
    ListAddresses,
    AddAddress,
    DeleteAddress,
    ListRoutes,
    ListRules,
    AddRule,
    TakeOverRule,
    DeleteRule,
    LookUpRoute,
    ReplaceRoute,
    DeleteRoute,
    ListNeighbours,
    ReplaceNeighbour,
    DeleteNeighbour,
    ListForwarding,
    ReplaceForwarding,
    DeleteForwarding,
    ListQdiscs,
    ReplaceQdisc,
    DeleteQdisc,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OpenSocket => "open netlink socket",
            Self::OpenNamespace => "open network namespace",
            Self::CreateNamespace => "create network namespace",
            Self::DeleteNamespace => "delete network namespace",
            Self::EnterNamespace => "enter network namespace",
            Self::ReadSysctl => "read sysctl",
            Self::WriteSysctl => "write sysctl",
            Self::ReadEvents => "read kernel events",
            Self::ListLinks => "list links",
            Self::GetLink => "get link",
            Self::CreateLink => "create link",
            Self::ChangeLink => "change link",
            Self::DeleteLink => "delete link",
            Self::ListAddresses => "list addresses",
            Self::AddAddress => "add address",
            Self::DeleteAddress => "delete address",
            Self::ListRoutes => "list routes",
            Self::ListRules => "list rules of policy routing",
            Self::AddRule => "add rule of policy routing",
            Self::TakeOverRule => "take over rule of policy routing",
            Self::DeleteRule => "delete rule of policy routing",
            Self::LookUpRoute => "look up route",
            Self::ReplaceRoute => "replace route",
            Self::DeleteRoute => "delete route",
            Self::ListNeighbours => "list neighbours",
            Self::ReplaceNeighbour => "replace neighbour",
            Self::DeleteNeighbour => "delete neighbour",
            Self::ListForwarding => "list forwarding entries",
            Self::ReplaceForwarding => "replace forwarding entry",
            Self::DeleteForwarding => "delete forwarding entry",
            Self::ListQdiscs => "list queueing disciplines",
            Self::ReplaceQdisc => "replace root queueing discipline of link",
            Self::DeleteQdisc => "delete root queueing discipline of link",
        })
    }
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused. `hint` is its extended acknowledgement (`NLMSGERR_ATTR_MSG`), mostly empty.
    #[error("{errno}{}{hint}", if hint.is_empty() { "" } else { ": " })]
    Refused {
        /// The error number.
        #[source]
        errno: Errno,
        /// The kernel's own words.
        hint: String,
    },
    /// A file or socket call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The kernel's answer makes no sense to this program.
    #[error("undecodable answer: {0}")]
    Undecodable(String),
}

impl From<Errno> for Cause {
    fn from(errno: Errno) -> Self {
        Self::Refused {
            errno,
            hint: String::new(),
        }
    }
}

/// A failed kernel operation and its object.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {object}: {source}")]
pub struct Error {
    /// What was asked.
    pub operation: Operation,
    /// Of what: a device name, a route, a path.
    pub object: String,
    /// Why it failed.
    #[source]
    pub source: Cause,
}

impl Error {
    /// Names the operation and the object of a failure; made for `map_err`.
    pub fn of<C: Into<Cause>>(operation: Operation, object: impl fmt::Display) -> impl FnOnce(C) -> Self {
        let object = object.to_string();
        move |cause| Self {
            operation,
            object,
            source: cause.into(),
        }
    }

    /// The error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match &self.source {
            Cause::Refused { errno, .. } => Some(*errno),
            Cause::Io(error) => error.raw_os_error().map(Errno::from_raw),
            Cause::Undecodable(_) => None,
        }
    }

    /// The object is not there: for a deletion this is success.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(Errno::ENODEV | Errno::ENOENT | Errno::ESRCH | Errno::ENXIO | Errno::EADDRNOTAVAIL)
        )
    }

    /// The object is there already.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.errno() == Some(Errno::EEXIST)
    }
}

/// Result of a kernel operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Turns "there is no such object" into success.
pub trait AbsentIsFine {
    /// `Ok(())` also where the object was not there.
    fn absent_is_fine(self) -> Result<()>;
}

impl AbsentIsFine for Result<()> {
    fn absent_is_fine(self) -> Result<()> {
        match self {
            Err(error) if error.is_absent() => Ok(()),
            other => other,
        }
    }
}

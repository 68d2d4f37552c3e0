//! Why the kernel does not have what a plan says.

use model::IpFamily;
use netlink::{conntrack, nft, sock_diag};

/// A failed operation on one of the proxy's kernel interfaces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket hook or its maps.
    #[error(transparent)]
    Hook(#[from] ebpf::Error),
    /// The rules of one version of IP.
    #[error("rules of {family}")]
    Rules {
        /// Which.
        family: IpFamily,
        /// What is wrong.
        #[source]
        source: Box<Self>,
    },
    /// The nftables rules.
    #[error(transparent)]
    Nftables(#[from] nft::Error),
    /// Sockets of UDP clients.
    #[error(transparent)]
    Sockets(#[from] sock_diag::Error),
    /// Connection tracking.
    #[error(transparent)]
    Conntrack(#[from] conntrack::Error),
    /// A table of another layout is there, and serves until one of this layout is taken in its place.
    #[error(transparent)]
    OtherLayout(#[from] OtherLayout),
    /// All ids of one kind are in use.
    #[error("no free {what} is left")]
    Exhausted {
        /// Which ids.
        what: &'static str,
    },
    /// A program of iptables.
    #[error("{program} did not do its work on {object}")]
    Program {
        /// Its name.
        program: String,
        /// What it was about.
        object: String,
        /// How it ended, and what it said.
        #[source]
        source: std::io::Error,
    },
    /// A fake was told to fail.
    #[error("told to fail: {0}")]
    Injected(&'static str),
}

/// Rules of another version are there still, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rules of another layout serve, since these were not taken in their place: {0}")]
pub struct OtherLayout(pub String);

impl Error {
    /// Whether a map of the socket hook has no room. The packet rules serve what is not there.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(self, Self::Hook(ebpf::Error::Full { .. }))
    }

    /// Of which rules it is, if it is one of rules.
    #[must_use]
    pub const fn rules_of(&self) -> Option<IpFamily> {
        match self {
            Self::Rules { family, .. } => Some(*family),
            _ => None,
        }
    }

    /// The same, of the rules of this version of IP.
    pub(crate) fn of(self, family: IpFamily) -> Self {
        Self::Rules {
            family,
            source: Box::new(self),
        }
    }
}

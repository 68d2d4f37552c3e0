//! Why the kernel does not have what a plan says.

use netlink::{conntrack, nft, sock_diag};

/// A failed operation on one of the proxy's kernel interfaces.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket hook or its maps.
    #[error(transparent)]
    Hook(#[from] ebpf::Error),
    /// The nftables rules.
    #[error(transparent)]
    Nftables(#[from] nft::Error),
    /// Sockets of UDP clients.
    #[error(transparent)]
    Sockets(#[from] sock_diag::Error),
    /// Connection tracking.
    #[error(transparent)]
    Conntrack(#[from] conntrack::Error),
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

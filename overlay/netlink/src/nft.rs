//! nftables over netlink, without the `nft` program: typed objects, one transaction per [`Batch`], and read-back.
//!
//! Tour:
//! - [`object`]: [`Table`], [`Chain`], [`Set`], [`Element`], [`Verdict`]: what a table consists of. Sets hold exact
//!   keys, ranges, or what packets put into them ([`Contents`]).
//! - [`rule`]: [`Rule`], a chain of matches and statements written fluently; [`rule::Expression`] is its alphabet.
//! - [`batch`]: [`Batch`] collects changes; [`Nft::commit`] applies all or none and names every message that failed.
//! - [`read`]: tables, chains, rules and elements as the kernel has them.
//! - [`ruleset`]: rules of whoever made them, and what becomes of a packet there.
//! - [`layout`]: [`Layout`] is the fixed part of an owned table; [`Nft::ensure`] repairs what differs.
//! - [`monitor`]: who changed our tables behind our back.
//! - [`fake`]: nftables in memory, which refuse transactions when told to.
//!
//! ```no_run
//! use netlink::nft::{BaseChain, Chain, Family, Layout, Nft, Rule, Table};
//! let pods = "10.244.0.0/16".parse().expect("a network");
//! let mut layout = Layout::new(Table::new(Family::Ip, "example"));
//! layout.add_chain(
//!     Chain::base("postrouting", BaseChain::POSTROUTING_NAT),
//!     [
//!         Rule::new("pods to pods keep their address").source(pods).destination(pods).returns(),
//!         Rule::new("pods to the world").source(pods).masquerade(),
//!     ],
//! );
//! let mut nft = Nft::open()?;
//! nft.ensure(&layout)?;
//! # Ok::<(), netlink::nft::Error>(())
//! ```
//!
//! Sources: `include/uapi/linux/netfilter/nf_tables.h`, `net/netfilter/nf_tables_api.c`.

use std::fmt;
use std::io;

use crate::nfnetlink::{self, Message};

pub mod batch;
pub mod fake;
pub mod layout;
pub mod monitor;
pub mod object;
pub mod read;
pub mod rule;
pub mod ruleset;

pub use batch::Batch;
pub use layout::{Layout, Repair};
pub use monitor::Monitor;
pub use object::{
    BaseChain, Chain, Contents, DataType, Element, ElementData, Family, Hook, Set, SetKind, Table, Verdict,
};
pub use read::{Filter, RuleInfo};
pub use rule::Rule;

/// `NFNL_SUBSYS_NFTABLES`.
const SUBSYSTEM: u16 = 10;

/// What a message asks for; `enum nf_tables_msg_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Operation {
    NewTable = 0,
    GetTable = 1,
    DeleteTable = 2,
    NewChain = 3,
    GetChain = 4,
    DeleteChain = 5,
    NewRule = 6,
    GetRule = 7,
    DeleteRule = 8,
    NewSet = 9,
    GetSet = 10,
    NewElement = 12,
    GetElement = 13,
    DeleteElement = 14,
}

impl Operation {
    const ALL: [Self; 14] = [
        Self::NewTable,
        Self::GetTable,
        Self::DeleteTable,
        Self::NewChain,
        Self::GetChain,
        Self::DeleteChain,
        Self::NewRule,
        Self::GetRule,
        Self::DeleteRule,
        Self::NewSet,
        Self::GetSet,
        Self::NewElement,
        Self::GetElement,
        Self::DeleteElement,
    ];

    const fn kind(self) -> u16 {
        SUBSYSTEM << 8 | self as u16
    }

    /// What a message of that kind asks for.
    fn of(kind: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| operation.kind() == kind)
    }
}

/// Whom an [`Nft`] talks to: the kernel, or a fake.
trait Connection: fmt::Debug + Send + Sync {
    /// How events name it.
    fn port(&self) -> u32;

    /// Applies a batch that is not empty: all of it, or nothing.
    fn commit(&mut self, batch: &Batch) -> Result<(), Error>;

    /// Hands the attributes of each answer to a list request to `each`.
    fn dump(&mut self, request: &Message, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>;
}

/// A connection to nftables in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Nft {
    connection: Box<dyn Connection>,
}

impl Nft {
    /// Opens a connection. Needs `CAP_NET_ADMIN` in the namespace as soon as it is used.
    pub fn open() -> Result<Self, Error> {
        let socket = nfnetlink::Socket::open(0).map_err(Error::Open)?;
        Ok(Self {
            connection: Box::new(socket),
        })
    }

    /// How the kernel names this connection in events; see [`Monitor`].
    #[must_use]
    pub fn port(&self) -> u32 {
        self.connection.port()
    }
}

/// Why nftables did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No socket.
    #[error("open a netfilter socket")]
    Open(#[source] io::Error),
    /// A batch did not reach the kernel.
    #[error("send a batch of {bytes} bytes to nftables")]
    Send {
        /// Size of the batch.
        bytes: usize,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The kernel's answer to a batch could not be read.
    #[error("read the answer of nftables")]
    Receive(#[source] io::Error),
    /// The transaction was refused as a whole, because of these messages.
    #[error("nftables refused the transaction: {}", Failures(.0))]
    Refused(Vec<Failure>),
    /// The kernel did not answer to the last message of a batch.
    #[error("nftables did not acknowledge the transaction")]
    NoAnswer,
    /// A list could not be read.
    #[error("list {what} of nftables")]
    List {
        /// What was asked for.
        what: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether the kernel's state is not what the batch took it for: something is absent, is there already with other
    /// contents, or is in use. Reading back and trying again may help.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        [libc::ENOENT, libc::EEXIST, libc::EBUSY]
            .iter()
            .any(|errno| self.is(*errno))
    }

    /// Whether the batch has more bytes than the kernel takes at once from this process; see
    /// [`Batch::len_bytes`]. Without `CAP_NET_ADMIN` in the initial user namespace that is about
    /// `net.core.wmem_default`.
    #[must_use]
    pub fn is_too_large(&self) -> bool {
        matches!(self, Self::Send { source, .. } if source.raw_os_error() == Some(libc::EMSGSIZE))
    }

    /// Whether any message was refused with this errno, for example `ENOENT` for something that is not there.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        match self {
            Self::Refused(failures) => failures
                .iter()
                .any(|failure| failure.error.raw_os_error() == Some(errno)),
            Self::List { source, .. } => source.raw_os_error() == Some(errno),
            _ => false,
        }
    }
}

/// A message of a batch that the kernel refused.
#[derive(Debug)]
pub struct Failure {
    /// Position in the batch.
    pub index: usize,
    /// What it asked for, for example `add elements to map endpoints`.
    pub message: String,
    /// The kernel's reason.
    pub error: io::Error,
}

struct Failures<'a>(&'a [Failure]);

impl fmt::Display for Failures<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, failure) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", failure.message, failure.error)?;
        }
        Ok(())
    }
}

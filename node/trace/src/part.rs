//! What one machine tells while it follows packets: that it does, each hop as it is seen, and its own story at the end.
//! Whoever asked several machines makes one story of their parts ([`Story::joined`]).
//!
//! ```text
//! {"attached": {…}}     from here on every packet of the filter is seen
//! {"hop": {…}}          once for each
//! {"story": {…}}        what they mean on that machine alone
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::hop::{Hop, HopKind};
use crate::service::Service;
use crate::session::Filter;
use crate::story::Story;

/// More hops are not looked at by one machine: a story is of one connection.
pub const MOST_HOPS: usize = 5000;

/// A line of a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Line {
    /// The first one.
    Attached(Box<Attached>),
    /// A hop.
    Hop(Box<Seen>),
    /// The last one.
    Story(Box<Story>),
}

impl Line {
    /// The line's text, with its end.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n", serde_json::json!(self))
    }
}

/// Who follows packets, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The kernel's boot (`/proc/sys/kernel/random/boot_id`): machines that have the same are one, and see the same packets.
    pub kernel: String,
    /// Whose packets.
    pub filter: Filter,
    /// The Service that they are sent to, where one was named.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<Service>,
    /// The addresses of the machine and of its pods.
    pub addresses: Vec<IpAddr>,
    /// Inode numbers of the network namespaces of its node and of that node's pods.
    pub namespaces: BTreeSet<u32>,
}

/// A hop, and what its network namespace is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// That name.
    pub at: String,
    /// What runs a command there on its machine, as [`Names::entering`](crate::Names::entering) has it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entering: Option<String>,
    /// The hop.
    #[serde(flatten)]
    pub hop: Hop,
}

/// All that came of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// Its name: what hops and stories say of that is not asked.
    pub node: String,
    /// None: it did not follow packets.
    pub attached: Option<Attached>,
    /// In any order.
    pub hops: Vec<Seen>,
    /// None: it did not come to that.
    pub story: Option<Story>,
    /// Why something of it is missing.
    pub missing: Option<String>,
}

/// Tells hops of some network namespaces from those of others.
#[derive(Debug)]
pub struct Within<'n> {
    namespaces: &'n BTreeSet<u32>,
    /// Where packets were seen last.
    last: BTreeMap<u64, u32>,
}

impl<'n> Within<'n> {
    /// Those of these namespaces.
    #[must_use]
    pub fn new(namespaces: &'n BTreeSet<u32>) -> Self {
        Self {
            namespaces,
            last: BTreeMap::new(),
        }
    }

    /// Whether the hop is of one of them. One that is at none, as where a socket has had the packet, is where the packet
    /// was before. Hops are asked for in the order in which they were seen.
    pub fn has(&mut self, hop: &Hop) -> bool {
        let at = match hop.netns {
            0 => self.last.get(&hop.packet).copied().unwrap_or(0),
            known => known,
        };
        match hop.kind {
            HopKind::Sent | HopKind::Received => self.last.insert(hop.packet, at),
            HopKind::Dropped { .. } | HopKind::Consumed { .. } => self.last.remove(&hop.packet),
        };
        self.namespaces.contains(&at)
    }
}

/// The running kernel's boot; empty where it does not say.
#[must_use]
pub fn kernel() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

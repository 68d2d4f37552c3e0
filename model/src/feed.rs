//! How the agent hands its snapshot to the DNS process on the same node.
//!
//! A stream of JSON objects over a unix socket, one a line. On each connection the agent first sends
//! [`Message::Begin`], then the whole snapshot as changes, then [`Message::End`]; after that changes as they come.
//! What the reader knew before `Begin` stays in use until `End` replaces it as a whole, so that an agent's restart
//! takes no answer away.

use serde::{Deserialize, Serialize};

use crate::{Change, Kind, Snapshot};

/// One line of the feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Message {
    /// A complete snapshot follows.
    Begin {
        /// The layout of the messages that follow; see [`VERSION`].
        version: u32,
    },
    /// The snapshot that began is complete.
    End,
    /// One edit.
    Change(Change),
}

/// Whether a change is told at all. A reader of another build would not know the others.
#[must_use]
pub fn is_for_dns(change: &Change) -> bool {
    !matches!(
        change,
        Change::ServiceCidr(_) | Change::DeleteServiceCidr(_) | Change::Synced(Kind::ServiceCidr)
    )
}

/// The kinds of objects that decide whether a name exists.
pub const NEEDED: [Kind; 3] = [Kind::Service, Kind::EndpointSlice, Kind::Namespace];

/// Whether DNS can be sure of a name that is not in the snapshot. One that is not complete is neither sent nor takes
/// the place of one that is: it would take every answer away when the agent restarts.
#[must_use]
pub fn is_complete(snapshot: &Snapshot) -> bool {
    NEEDED.iter().all(|kind| snapshot.is_synced(*kind))
}

/// The layout that this build speaks. A reader that sees a newer one keeps what it has and says so.
pub const VERSION: u32 = 1;

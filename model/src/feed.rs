//! How the agent hands its snapshot to the DNS process on the same node.
//!
//! A stream of JSON objects over a unix socket, one a line. On each connection the agent first sends
//! [`Message::Begin`], then the whole snapshot as changes, then [`Message::End`]; after that changes as they come.
//! What the reader knew before `Begin` stays in use until `End` replaces it as a whole, so that an agent's restart
//! takes no answer away.

use serde::{Deserialize, Serialize};

use crate::Change;

/// One line of the feed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every message is a change; one lives at a time"
)]
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

/// The layout that this build speaks. A reader that sees a newer one keeps what it has and says so.
pub const VERSION: u32 = 1;

//! How the agent hands its snapshot to the DNS process on the same node.
//!
//! A stream of JSON objects over a unix socket, one a line. On each connection the agent first sends
//! [`Message::Begin`], then the whole snapshot as changes, then [`Message::End`]; after that changes as they come.
//! What the reader knew before `Begin` stays in use until `End` replaces it as a whole, so that an agent's restart
//! takes no answer away.
//!
//! An agent that hears says so in `Begin`; the reader then says [`Serving`], where it answers, at once, whenever that
//! changes, and each [`SAID_EVERY`]. A reader that has not said it again for [`HOLDS`] answers nowhere; one that has
//! read `Begin` and never says anything is of an earlier build, and answers wherever it may.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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
        /// Whether the agent hears what the reader says.
        #[serde(default)]
        hears: bool,
    },
    /// The snapshot that began is complete.
    End,
    /// One edit.
    Change(Change),
}

/// One line of what the reader says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// Where it answers queries over UDP and TCP.
    pub addresses: BTreeSet<SocketAddr>,
}

impl Serving {
    /// Whether clients that ask at this address and the port of DNS are answered.
    #[must_use]
    pub fn is_at(&self, address: IpAddr) -> bool {
        let is_it = |served: &SocketAddr| {
            let every = served.ip().is_unspecified() && served.is_ipv4() == address.is_ipv4();
            served.port() == PORT && (every || served.ip() == address)
        };
        self.addresses.iter().any(is_it)
    }
}

/// The port of DNS.
const PORT: u16 = 53;

/// How often a reader says where it answers, at least.
pub const SAID_EVERY: Duration = Duration::from_secs(1);

/// How long a reader counts as answering after it last said so.
pub const HOLDS: Duration = Duration::from_secs(3);

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_at_an_address_by_its_name_or_at_every_one_of_its_family() {
        let rows = [
            ("10.96.0.10:53", "10.96.0.10", true),
            ("10.96.0.10:5353", "10.96.0.10", false),
            ("10.96.0.11:53", "10.96.0.10", false),
            ("0.0.0.0:53", "10.96.0.10", true),
            ("0.0.0.0:53", "fd00::10", false),
            ("[::]:53", "10.96.0.10", false),
            ("[::]:53", "fd00::10", true),
            ("[::]:54", "fd00::10", false),
        ];
        for (served, address, expected) in rows {
            let serving = Serving {
                addresses: [served.parse().expect("an address and a port")].into(),
            };
            let found = serving.is_at(address.parse().expect("an address"));
            assert_eq!(found, expected, "{served} {address}");
        }
        assert!(!Serving::default().is_at([10, 96, 0, 10].into()));
    }
}

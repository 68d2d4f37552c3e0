//! What whoever follows leases knows of the network, and tells the rest of the overlay.

use tokio::sync::watch;

use crate::engine::Network;
use crate::error::Error;
use crate::flannel::NetworkConfig;
use crate::memory::{Entry, Memory};
use crate::own::OwnNode;

/// What the follower knows now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Followed {
    pub(crate) network: Option<Network>,
    /// Why leases are not followed right now.
    pub(crate) trouble: Option<String>,
    /// Leases that cannot be understood.
    pub(crate) problems: Vec<String>,
}

impl Followed {
    /// The network as it is told now.
    pub(crate) fn complete(network: Network, problems: Vec<String>) -> Self {
        Self {
            network: Some(network),
            trouble: None,
            problems,
        }
    }
}

/// Tells it, where it is new.
pub(crate) fn publish(published: &watch::Sender<Followed>, next: Followed) {
    published.send_if_modified(|followed| {
        let changed = next != *followed;
        *followed = next;
        changed
    });
}

/// Tells why leases are not followed; what is known of the network stays.
pub(crate) fn tell(published: &watch::Sender<Followed>, error: &Error) {
    let trouble = model::with_causes(error);
    published.send_if_modified(|followed| {
        let news = followed.trouble.as_ref() != Some(&trouble);
        if news {
            tracing::warn!(%trouble, "leases are not followed, trying again");
            followed.trouble = Some(trouble);
        }
        news
    });
}

/// The network as it was remembered, where that is enough to serve. `keeper` has the leases, and has not answered yet.
pub(crate) fn remembered(memory: &Memory, own: &OwnNode, keeper: &str) -> Option<Followed> {
    let config = NetworkConfig::parse(memory.network.as_deref()?).ok()?;
    let lease = memory.own.as_ref().and_then(Entry::record)?.lease;
    if !own.has(&lease) {
        return None;
    }
    tracing::info!(%lease, "serving the remembered subnet until {keeper} answers");
    let others = memory.others.iter().filter_map(Entry::record);
    let network = Network {
        config,
        own: lease,
        others: others.map(|record| record.lease).collect(),
        complete: false,
    };
    Some(Followed {
        network: Some(network),
        trouble: Some(format!("{keeper} has not answered yet")),
        problems: Vec::new(),
    })
}

//! Why an endpoint is in a list, or is not: what the plan says of each, for whoever explains it.

use model::{EndpointRef, EndpointSlice};

use super::Target;

/// An endpoint that a slice lists for a port, and what the plan makes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing<'a> {
    /// The slice that lists it.
    pub slice: &'a EndpointSlice,
    /// The endpoint.
    pub endpoint: EndpointRef<'a>,
    /// Where connections to it go.
    pub target: Target,
    /// Whether it is in the list.
    pub outcome: Result<Chosen, LeftOut>,
}

/// Why an endpoint is in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chosen {
    /// It is ready.
    Ready,
    /// It terminates and still serves, and none of the list is ready (KEP-1669).
    Terminating,
}

/// Why an endpoint is not in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeftOut {
    /// It is not ready.
    NotReady,
    /// It terminates.
    Terminating {
        /// Whether it still serves: then others are ready.
        serving: bool,
    },
    /// It is on another node, or on none that is named, and the list is for endpoints of this node (policy Local).
    NotHere,
    /// The hints of all endpoints keep traffic on their nodes, and its own name other nodes.
    HintedToOtherNode,
    /// The hints of all endpoints keep traffic in their zones, and its own name other zones.
    HintedToOtherZone,
    /// An address that no endpoint can have.
    BadAddress,
    /// It is this node's own DNS server, which does not answer at this moment.
    Silent,
    /// Another entry names the same address and port, and counts in its place.
    Superseded,
    /// The list is full ([`super::MAX_ENDPOINTS`]).
    NoRoom,
}

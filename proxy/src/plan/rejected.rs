//! What could not be honoured.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{IpFamily, ObjectName};

use super::{FrontendKey, MAX_ENDPOINTS};

/// A part of an object that could not be honoured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rejected {
    /// The Service.
    pub service: ObjectName,
    /// Why.
    pub reason: Reason,
}

/// Why a part of an object was left out. The rest of the object works.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Reason {
    /// The node does not serve that version of IP.
    #[error("this node does not serve IP{0:?}")]
    FamilyOff(IpFamily),
    /// `externalIPs` where they are not allowed: whoever may write a Service could take over any address.
    #[error("externalIPs are not allowed on this node (proxy.externalIPs)")]
    ExternalAddressesOff,
    /// An address that no Service can have.
    #[error("{0} cannot be the address of a Service")]
    BadAddress(IpAddr),
    /// An endpoint's address that no pod can have (API validation forbids it too).
    #[error("{0} cannot be the address of an endpoint")]
    BadEndpoint(IpAddr),
    /// A source range with bits behind its prefix; its network is used.
    #[error("the source range {0} has bits set behind its prefix")]
    BadSourceRange(IpNetwork),
    /// More endpoints than one list holds.
    #[error("only {MAX_ENDPOINTS} of {0} endpoints are used")]
    TooManyEndpoints(usize),
    /// Two ports of the Service want the same frontend.
    #[error("{0} is taken by another port of the Service")]
    DuplicateFrontend(FrontendKey),
    /// Another Service has the frontend.
    #[error("{frontend} is taken by {owner}")]
    Taken {
        /// The frontend.
        frontend: FrontendKey,
        /// Who has it.
        owner: ObjectName,
    },
}

impl Reason {
    /// Whether it follows from how this node is set up; all others follow from the cluster's objects, and are the same
    /// on every node.
    #[must_use]
    pub const fn is_of_this_node(&self) -> bool {
        match self {
            Self::FamilyOff(_) | Self::ExternalAddressesOff => true,
            Self::BadAddress(_)
            | Self::BadEndpoint(_)
            | Self::BadSourceRange(_)
            | Self::TooManyEndpoints(_)
            | Self::DuplicateFrontend(_)
            | Self::Taken { .. } => false,
        }
    }
}

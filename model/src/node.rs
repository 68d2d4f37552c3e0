//! A Node, as the data plane sees it.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{NodeName, Text};

/// A Node (`core/v1`), only what a data plane reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `metadata.name`.
    pub name: NodeName,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_addresses: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP, in order.
    pub external_addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Text>,
    /// The node is going away: taint `ToBeDeletedByClusterAutoscaler`, or being deleted.
    pub draining: bool,
}

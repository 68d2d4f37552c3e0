//! A Node, as the data plane sees it.

use std::collections::BTreeMap;
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
    /// Annotations `flannel.alpha.coreos.com/…`, without that prefix: how nodes of flannel's kind tell each other how they
    /// are reached, where leases are in Kubernetes.
    #[serde(default)]
    pub flannel: BTreeMap<Text, Text>,
    /// `status.conditions` has NetworkUnavailable, and it is False.
    #[serde(default)]
    pub network_available: bool,
    /// Keys of `spec.taints`, in order.
    #[serde(default)]
    pub taints: Vec<Text>,
    /// The node is going away: taint `ToBeDeletedByClusterAutoscaler`, or being deleted.
    pub draining: bool,
}

impl Node {
    /// A node of which nothing is known but its name.
    #[must_use]
    pub fn new(name: impl Into<NodeName>) -> Self {
        Self {
            name: name.into(),
            internal_addresses: Vec::new(),
            external_addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            zone: None,
            flannel: BTreeMap::new(),
            network_available: false,
            taints: Vec::new(),
            draining: false,
        }
    }
}

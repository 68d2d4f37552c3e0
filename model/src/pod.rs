//! A Pod, as DNS and the packet tools see it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{NodeName, ObjectName};

/// A Pod (`core/v1`), only its place in the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.nodeName`.
    pub node: Option<NodeName>,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
}

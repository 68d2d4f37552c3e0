//! A node's subnet in the pod network: what flannel keeps under `/coreos.com/network/subnets`.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

use crate::{MacAddr, Vni};

/// How packets to a remote subnet travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Encap {
    /// VXLAN (RFC 7348) to the lease's public address.
    Vxlan {
        /// The network identifier.
        vni: Vni,
        /// MAC address of the remote VTEP.
        vtep_mac: MacAddr,
    },
    /// A plain route through the public address, which must be on-link.
    HostGw,
}

/// A subnet lease: which node owns which pod subnet, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The subnet, for example `10.244.3.0/24`.
    pub subnet: Ipv4Network,
    /// The IPv6 subnet of a dual-stack node.
    pub subnet_v6: Option<Ipv6Network>,
    /// The node's address on the underlay.
    pub public_ip: Ipv4Addr,
    /// The node's IPv6 address on the underlay.
    pub public_ip_v6: Option<Ipv6Addr>,
    /// How to reach the IPv4 subnet.
    pub encap: Encap,
    /// How to reach the IPv6 subnet, where there is one.
    pub encap_v6: Option<Encap>,
}

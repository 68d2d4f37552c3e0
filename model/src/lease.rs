//! A node's subnets in the pod network: what flannel keeps under `/coreos.com/network/subnets`.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{ByFamily, MacAddr, Vni};

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

/// A subnet of one version of IP, and how to reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Site {
    /// The subnet, for example `10.244.3.0/24`.
    pub subnet: IpNetwork,
    /// The node's address on the underlay, of the same version.
    pub public_ip: IpAddr,
    /// How packets travel there.
    pub encap: Encap,
}

/// A subnet lease: which node owns which pod subnets, and how to reach them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Its subnets, one for each version of IP that pods of the node have.
    pub sites: ByFamily<Site>,
}

impl Lease {
    /// The subnets.
    #[must_use]
    pub fn subnets(&self) -> ByFamily<IpNetwork> {
        self.sites.map(|_, site| site.subnet)
    }

    /// The node's addresses on the underlay.
    #[must_use]
    pub fn public_ips(&self) -> ByFamily<IpAddr> {
        self.sites.map(|_, site| site.public_ip)
    }
}

impl fmt::Display for Lease {
    /// Its subnets: `10.244.3.0/24` or `10.244.3.0/24 and fd00:244:3::/64`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, site) in self.sites.values().enumerate() {
            let before = if n == 0 { "" } else { " and " };
            write!(f, "{before}{}", site.subnet)?;
        }
        Ok(())
    }
}

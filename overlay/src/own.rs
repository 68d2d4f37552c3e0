//! This node as its lease tells it, wherever leases are kept.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::lease::{Encap, Lease, Site};
use model::{ByFamily, IpFamily, MacAddr, NodeName};
use netlink::{Kernel, LinkKind, Netlink};
use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::flannel::NetworkConfig;
use crate::underlay;

/// This node on the underlay.
#[derive(Clone, Debug)]
pub(crate) struct OwnNode {
    pub(crate) name: NodeName,
    /// The device that the others send to.
    pub(crate) interface: String,
    /// Its addresses, whether the network needs them or not.
    pub(crate) public_ips: ByFamily<IpAddr>,
}

/// What a lease is made with.
pub(crate) struct Claim<'a> {
    pub(crate) network: &'a NetworkConfig,
    /// Of every version of IP that the network has.
    pub(crate) public_ips: ByFamily<IpAddr>,
    vtep_macs: ByFamily<MacAddr>,
}

impl Claim<'_> {
    /// The lease of these subnets.
    pub(crate) fn lease(&self, subnets: &ByFamily<IpNetwork>) -> Lease {
        let sites = subnets.iter().filter_map(|(family, subnet)| {
            let site = Site {
                subnet: *subnet,
                public_ip: *self.public_ips.get(family)?,
                encap: self.network.encap(*self.vtep_macs.get(family)?),
            };
            Some((family, site))
        });
        Lease {
            sites: sites.collect(),
        }
    }
}

impl OwnNode {
    /// Whether the node has the addresses that a lease names.
    pub(crate) fn has(&self, lease: &Lease) -> bool {
        let mut named = lease.sites.iter();
        named.all(|(family, site)| self.public_ips.get(family) == Some(&site.public_ip))
    }

    /// What this node's lease in the network is made with. `before` is what it had.
    pub(crate) async fn claim<'a>(
        &self,
        network: &'a NetworkConfig,
        before: &ByFamily<Site>,
    ) -> Result<Claim<'a>, Error> {
        let families = network.pools.families();
        Ok(Claim {
            network,
            public_ips: underlay::addresses_for(&families, &self.interface, &self.public_ips)?,
            vtep_macs: self.vtep_macs(network, before).await?,
        })
    }

    /// The tunnels' MAC addresses: that of the device that is there, flannel's too; else the one it had before; else one
    /// that follows from the node's name, the same after every reboot.
    async fn vtep_macs(
        &self,
        network: &NetworkConfig,
        before: &ByFamily<Site>,
    ) -> Result<ByFamily<MacAddr>, Error> {
        let names = network.device_names();
        let find = move || -> Result<_, netlink::Error> {
            let mut kernel = Netlink::open()?;
            names.try_map(|_, name| kernel.link_named(name))
        };
        let links = tokio::task::spawn_blocking(find)
            .await
            .map_err(|_| Error::EngineEnded)??;
        Ok(network.pools.map(|family, _| {
            let device = links.get(family).and_then(Option::as_ref);
            let device = device.filter(|link| matches!(link.kind, LinkKind::Vxlan(_)));
            let of_device = device.and_then(|link| link.mac).map(MacAddr);
            let of_lease = before.get(family).and_then(|site| match site.encap {
                Encap::Vxlan { vtep_mac, .. } => Some(vtep_mac),
                Encap::HostGw => None,
            });
            of_device
                .or(of_lease)
                .unwrap_or_else(|| self.vtep_mac_of_name(family))
        }))
    }

    fn vtep_mac_of_name(&self, family: IpFamily) -> MacAddr {
        let purpose = match family {
            IpFamily::V4 => "vtep",
            IpFamily::V6 => "vtep-v6",
        };
        let digest: [u8; 32] = Sha256::digest(format!("{purpose}\0{}", self.name)).into();
        let [a, b, c, d, e, f, ..] = digest;
        MacAddr::locally_administered([a, b, c, d, e, f])
    }
}

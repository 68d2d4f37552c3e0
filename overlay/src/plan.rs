//! From leases to what the kernel shall have: pure. Each version of IP is planned alone; only the pods' MTU is one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use model::lease::{Encap, Lease, Site};
use model::{ByFamily, IpFamily, MacAddr, Mtu, Vni};
use serde::{Deserialize, Serialize};

use crate::flannel::{Backend, NetworkConfig};
use crate::pool::{is_within, overlap};

/// Bytes that VXLAN adds (RFC 7348 §5): outer IP 20 or 40, UDP 8, VXLAN 8, inner Ethernet 14.
#[must_use]
pub const fn vxlan_overhead(family: IpFamily) -> u32 {
    match family {
        IpFamily::V4 => 50,
        IpFamily::V6 => 70,
    }
}

/// The device that tunnelled packets leave through, as far as a plan needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Its addresses and prefixes: what is on the link.
    pub networks: ByFamily<IpNetwork>,
    /// Its MTU.
    pub mtu: Mtu,
}

/// What the kernel shall have for the pod network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What each version of IP needs.
    pub halves: ByFamily<Half>,
    /// MTU of pods: what fits through every tunnel.
    pub pod_mtu: Mtu,
}

/// What one version of IP needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Half {
    /// The pod network, all nodes' subnets together.
    pub network: IpNetwork,
    /// This node's subnet.
    pub subnet: IpNetwork,
    /// The tunnel device, with VXLAN.
    pub device: Option<Device>,
    /// How each other node's subnet is reached.
    pub remotes: BTreeMap<IpNetwork, Remote>,
}

/// The VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// `flannel.<VNI>`, or `flannel-v6.<VNI>`.
    pub name: String,
    /// Network identifier.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Group-based policy extension.
    pub gbp: bool,
    /// Its MAC address, which the others send to.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: Mtu,
    /// Source address of the tunnel.
    pub local: IpAddr,
    /// Its own address: the subnet's first, `/32` or `/128`. flannel's nodes use theirs as the source to our pods.
    pub address: IpAddr,
}

/// How a subnet is reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remote {
    /// Through the tunnel device: neighbour `vtep` → `mac`, forwarding `mac` → `public_ip`, route via `vtep`.
    Tunnel {
        /// The other VTEP's inner address, the first of its subnet.
        vtep: IpAddr,
        /// The other VTEP's MAC address.
        mac: MacAddr,
        /// Where it is.
        public_ip: IpAddr,
    },
    /// Plainly through the node.
    Gateway {
        /// The node.
        public_ip: IpAddr,
    },
}

impl Remote {
    /// The node's address on the underlay.
    #[must_use]
    pub const fn public_ip(&self) -> IpAddr {
        match self {
            Self::Tunnel { public_ip, .. } | Self::Gateway { public_ip } => *public_ip,
        }
    }
}

/// A lease that is not in the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its subnet.
    pub subnet: IpNetwork,
    /// Why.
    pub reason: String,
}

/// What a version of IP is planned from.
struct Ground<'a> {
    family: IpFamily,
    network: IpNetwork,
    backend: &'a Backend,
    own: Site,
    /// The underlay's address and prefix.
    on_link: IpNetwork,
}

/// Plans a node's part of the network from its own lease and the others'. The same leases in another order make the
/// same plan. Of a version that the network, our lease or the underlay does not have nothing is planned.
#[must_use]
pub fn plan(
    config: &NetworkConfig,
    own: &Lease,
    others: &[Lease],
    underlay: &Underlay,
) -> (Plan, Vec<Rejected>) {
    let mut rejected = Vec::new();
    let grounds = own.sites.iter().filter_map(|(family, site)| {
        Some(Ground {
            family,
            network: config.pools.get(family)?.network,
            backend: &config.backend,
            own: *site,
            on_link: *underlay.networks.get(family)?,
        })
    });
    let halves: ByFamily<Half> = grounds
        .map(|ground| {
            let sites = others.iter().filter_map(|lease| lease.sites.get(ground.family));
            let half = Half {
                network: ground.network,
                subnet: ground.own.subnet,
                device: device(&ground, config, underlay.mtu),
                remotes: remotes(&ground, sites, &mut rejected),
            };
            (ground.family, half)
        })
        .collect();
    // Of the lease, not of the halves: what pods get does not change while a version has lost its address.
    let mtus = own
        .sites
        .iter()
        .filter_map(|(family, site)| tunnel_mtu(family, config, site, underlay.mtu));
    let pod_mtu = mtus.min().unwrap_or(underlay.mtu);
    (Plan { halves, pod_mtu }, rejected)
}

fn remotes<'a>(
    ground: &Ground,
    sites: impl Iterator<Item = &'a Site>,
    rejected: &mut Vec<Rejected>,
) -> BTreeMap<IpNetwork, Remote> {
    let mut sorted: Vec<&Site> = sites.filter(|site| site.subnet != ground.own.subnet).collect();
    sorted.sort_by_key(|site| (site.subnet, site.public_ip));
    let mut remotes = BTreeMap::new();
    // The kernel sends what is for a MAC address to one place.
    let mut places: BTreeMap<MacAddr, &Site> = BTreeMap::new();
    for site in sorted {
        let remote = remote(ground, site).and_then(|remote| match remote {
            Remote::Tunnel { mac, public_ip, .. } => {
                let first = *places.entry(mac).or_insert(site);
                if first.public_ip == public_ip {
                    Ok(remote)
                } else {
                    Err(format!("has the MAC address of {}, {mac}", first.subnet))
                }
            }
            Remote::Gateway { .. } => Ok(remote),
        });
        match remote {
            Ok(remote) => {
                remotes.insert(site.subnet, remote);
            }
            Err(reason) => rejected.push(Rejected {
                subnet: site.subnet,
                reason,
            }),
        }
    }
    remotes
}

/// What fits through the tunnel of a version of IP; `None` without one.
fn tunnel_mtu(family: IpFamily, config: &NetworkConfig, own: &Site, underlay_mtu: Mtu) -> Option<Mtu> {
    match (&config.backend, own.encap) {
        (Backend::Vxlan { mtu, .. }, Encap::Vxlan { .. }) => {
            let outer = mtu.unwrap_or(underlay_mtu.0);
            Some(Mtu(outer.saturating_sub(vxlan_overhead(family))))
        }
        _ => None,
    }
}

fn device(ground: &Ground, config: &NetworkConfig, underlay_mtu: Mtu) -> Option<Device> {
    let (Backend::Vxlan { vni, port, gbp, .. }, Encap::Vxlan { vtep_mac, .. }) =
        (ground.backend, ground.own.encap)
    else {
        return None;
    };
    Some(Device {
        name: config.device_names().get(ground.family)?.clone(),
        vni: *vni,
        port: *port,
        gbp: *gbp,
        mac: vtep_mac,
        mtu: tunnel_mtu(ground.family, config, &ground.own, underlay_mtu)?,
        local: ground.own.public_ip,
        address: ground.own.subnet.network(),
    })
}

fn remote(ground: &Ground, site: &Site) -> Result<Remote, String> {
    let own = &ground.own;
    if overlap(own.subnet, site.subnet) {
        return Err(format!("overlaps our own subnet {}", own.subnet));
    }
    if site.public_ip == own.public_ip {
        return Err(format!("has our own address {}", own.public_ip));
    }
    is_in_network(ground.network, site)?;
    is_of_a_host(site.public_ip)?;
    if let Encap::Vxlan { vtep_mac, .. } = site.encap {
        is_of_one_device(vtep_mac, own)?;
    }
    let on_link = ground.on_link.contains(site.public_ip);
    let gateway = Remote::Gateway {
        public_ip: site.public_ip,
    };
    match (ground.backend, site.encap) {
        (Backend::Vxlan { vni: ours, .. }, Encap::Vxlan { vni, .. }) if *ours != vni => {
            Err(format!("is in VXLAN {}, we are in {}", vni.0, ours.0))
        }
        (
            Backend::Vxlan {
                direct_routing: true, ..
            },
            Encap::Vxlan { .. },
        ) if on_link => Ok(gateway),
        (Backend::Vxlan { .. }, Encap::Vxlan { vtep_mac, .. }) => Ok(Remote::Tunnel {
            vtep: site.subnet.network(),
            mac: vtep_mac,
            public_ip: site.public_ip,
        }),
        (Backend::HostGw, Encap::HostGw) if on_link => Ok(gateway),
        (Backend::HostGw, Encap::HostGw) => Err(format!(
            "{} is not on the link {}, which host-gw needs",
            site.public_ip, ground.on_link
        )),
        (Backend::Vxlan { .. }, Encap::HostGw) => Err("is reached by host-gw, we by vxlan".to_owned()),
        (Backend::HostGw, Encap::Vxlan { .. }) => Err("is reached by vxlan, we by host-gw".to_owned()),
    }
}

/// A route to another subnet could take addresses away that are not pods': the Services', or the whole world's.
fn is_in_network(network: IpNetwork, site: &Site) -> Result<(), String> {
    if !is_within(site.subnet, network) {
        return Err(format!("is not in the network {network}"));
    }
    if network.contains(site.public_ip) {
        return Err(format!(
            "is at {}, which is in the network of pods itself",
            site.public_ip
        ));
    }
    Ok(())
}

fn is_of_a_host(address: IpAddr) -> Result<(), String> {
    let wrong = address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || address == IpAddr::V4(Ipv4Addr::BROADCAST);
    if wrong {
        return Err(format!("is at {address}, which is no host's address"));
    }
    Ok(())
}

fn is_of_one_device(mac: MacAddr, own: &Site) -> Result<(), String> {
    if matches!(own.encap, Encap::Vxlan { vtep_mac, .. } if vtep_mac == mac) {
        return Err(format!("has our own MAC address {mac}"));
    }
    // The lowest bit of the first byte: for a group (IEEE 802).
    let MacAddr([first, ..]) = mac;
    if first & 1 == 1 || mac == MacAddr([0; 6]) {
        return Err(format!("has {mac}, which is no device's MAC address"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A network of both versions; a lease of one makes half a plan of it.
    fn config(backend: &str) -> NetworkConfig {
        NetworkConfig::parse(&format!(
            r#"{{"Network":"10.5.0.0/16","EnableIPv6":true,"IPv6Network":"fd05::/48","Backend":{backend}}}"#
        ))
        .expect("valid")
    }

    fn underlay() -> Underlay {
        let network = |text: &str| text.parse::<IpNetwork>().expect("a network");
        Underlay {
            networks: ["172.30.0.11/24", "fd77::11/64"]
                .map(network)
                .into_iter()
                .collect(),
            mtu: Mtu(1500),
        }
    }

    /// With VXLAN, its MAC address ends as its subnet's third byte says, or its fourth group.
    fn lease(subnet: &str, public_ip: &str, mut encap: Encap) -> Lease {
        let subnet: IpNetwork = subnet.parse().expect("subnet");
        if let Encap::Vxlan { vtep_mac, .. } = &mut encap {
            vtep_mac.0[5] = match subnet.network() {
                IpAddr::V4(address) => address.octets()[2],
                IpAddr::V6(address) => address.octets()[7],
            };
        }
        let site = Site {
            subnet,
            public_ip: public_ip.parse().expect("address"),
            encap,
        };
        Lease {
            sites: [(IpFamily::from(site.public_ip), site)].into_iter().collect(),
        }
    }

    /// One lease of two.
    fn both(v4: &Lease, v6: &Lease) -> Lease {
        Lease {
            sites: ByFamily {
                v4: v4.sites.v4,
                v6: v6.sites.v6,
            },
        }
    }

    fn vxlan(vni: u32) -> Encap {
        Encap::Vxlan {
            vni: Vni(vni),
            vtep_mac: MacAddr([2, 0, 0, 0, 0, 0]),
        }
    }

    fn with_mac(subnet: &str, public_ip: &str, mac: &str) -> Lease {
        let mut lease = lease(subnet, public_ip, vxlan(1));
        let site = lease.sites.v4.as_mut().expect("an IPv4 subnet");
        site.encap = Encap::Vxlan {
            vni: Vni(1),
            vtep_mac: mac.parse().expect("a MAC address"),
        };
        lease
    }

    fn told(backend: &str, own: &Lease, others: &[Lease]) -> (Vec<String>, Vec<String>) {
        let (plan, rejected) = plan(&config(backend), own, others, &underlay());
        let remotes =
            plan.halves
                .values()
                .flat_map(|half| &half.remotes)
                .map(|(subnet, remote)| match remote {
                    Remote::Tunnel { vtep, mac, public_ip } => {
                        format!("{subnet} via {vtep} {mac} at {public_ip}")
                    }
                    Remote::Gateway { public_ip } => format!("{subnet} via {public_ip}"),
                });
        let rejected = rejected
            .iter()
            .map(|rejected| format!("{} {}", rejected.subnet, rejected.reason));
        (remotes.collect(), rejected.collect())
    }

    #[test]
    fn leases_become_remotes_or_are_rejected_with_their_reason_in_any_order() {
        let (vx, gw) = (r#"{"Type":"vxlan"}"#, r#"{"Type":"host-gw"}"#);
        let direct = r#"{"Type":"vxlan","DirectRouting":true}"#;
        let ours = lease("10.5.1.0/24", "172.30.0.11", vxlan(1));
        let ours_gw = lease("10.5.1.0/24", "172.30.0.11", Encap::HostGw);
        let near = lease("10.5.2.0/24", "172.30.0.12", vxlan(1));
        let far = lease("10.5.3.0/24", "172.31.0.13", vxlan(1));
        let near_gw = lease("10.5.2.0/24", "172.30.0.12", Encap::HostGw);
        let far_gw = lease("10.5.3.0/24", "172.31.0.13", Encap::HostGw);
        let tunnel_near = "10.5.2.0/24 via 10.5.2.0 02:00:00:00:00:02 at 172.30.0.12";
        let tunnel_far = "10.5.3.0/24 via 10.5.3.0 02:00:00:00:00:03 at 172.31.0.13";
        type Row<'a> = (&'a str, &'a Lease, Vec<Lease>, Vec<&'a str>, Vec<&'a str>);
        let rows: [Row; 9] = [
            (
                vx,
                &ours,
                vec![ours.clone(), near.clone(), far.clone()],
                vec![tunnel_near, tunnel_far],
                vec![],
            ),
            (
                direct,
                &ours,
                vec![near.clone(), far.clone()],
                vec!["10.5.2.0/24 via 172.30.0.12", tunnel_far],
                vec![],
            ),
            (
                gw,
                &ours_gw,
                vec![near_gw.clone(), far_gw],
                vec!["10.5.2.0/24 via 172.30.0.12"],
                vec!["10.5.3.0/24 172.31.0.13 is not on the link 172.30.0.11/24, which host-gw needs"],
            ),
            (
                vx,
                &ours,
                vec![near_gw],
                vec![],
                vec!["10.5.2.0/24 is reached by host-gw, we by vxlan"],
            ),
            (
                vx,
                &ours,
                vec![
                    lease("10.5.0.0/23", "172.30.0.12", vxlan(1)),
                    lease("10.5.9.0/24", "172.30.0.11", vxlan(1)),
                ],
                vec![],
                vec![
                    "10.5.0.0/23 overlaps our own subnet 10.5.1.0/24",
                    "10.5.9.0/24 has our own address 172.30.0.11",
                ],
            ),
            (
                vx,
                &ours,
                vec![lease("10.5.2.0/24", "172.30.0.12", vxlan(2))],
                vec![],
                vec!["10.5.2.0/24 is in VXLAN 2, we are in 1"],
            ),
            (
                vx,
                &ours,
                vec![
                    lease("10.96.0.0/24", "172.30.0.12", vxlan(1)),
                    lease("0.0.0.0/0", "172.30.0.13", vxlan(1)),
                    lease("10.5.2.0/24", "10.5.9.9", vxlan(1)),
                ],
                vec![],
                vec![
                    "0.0.0.0/0 overlaps our own subnet 10.5.1.0/24",
                    "10.5.2.0/24 is at 10.5.9.9, which is in the network of pods itself",
                    "10.96.0.0/24 is not in the network 10.5.0.0/16",
                ],
            ),
            (
                gw,
                &ours_gw,
                vec![
                    lease("10.5.2.0/24", "127.0.0.1", Encap::HostGw),
                    lease("10.5.3.0/24", "224.0.0.1", Encap::HostGw),
                    lease("10.5.4.0/24", "0.0.0.0", Encap::HostGw),
                    lease("10.5.5.0/24", "255.255.255.255", Encap::HostGw),
                ],
                vec![],
                vec![
                    "10.5.2.0/24 is at 127.0.0.1, which is no host's address",
                    "10.5.3.0/24 is at 224.0.0.1, which is no host's address",
                    "10.5.4.0/24 is at 0.0.0.0, which is no host's address",
                    "10.5.5.0/24 is at 255.255.255.255, which is no host's address",
                ],
            ),
            (
                vx,
                &ours,
                vec![
                    near.clone(),
                    with_mac("10.5.4.0/24", "172.30.0.14", "02:00:00:00:00:02"),
                    // A node that has two subnets for a while.
                    with_mac("10.5.3.0/24", "172.30.0.12", "02:00:00:00:00:02"),
                    with_mac("10.5.5.0/24", "172.30.0.15", "02:00:00:00:00:01"),
                    with_mac("10.5.6.0/24", "172.30.0.16", "01:00:5e:00:00:01"),
                    with_mac("10.5.7.0/24", "172.30.0.17", "00:00:00:00:00:00"),
                ],
                vec![
                    tunnel_near,
                    "10.5.3.0/24 via 10.5.3.0 02:00:00:00:00:02 at 172.30.0.12",
                ],
                vec![
                    "10.5.4.0/24 has the MAC address of 10.5.2.0/24, 02:00:00:00:00:02",
                    "10.5.5.0/24 has our own MAC address 02:00:00:00:00:01",
                    "10.5.6.0/24 has 01:00:5e:00:00:01, which is no device's MAC address",
                    "10.5.7.0/24 has 00:00:00:00:00:00, which is no device's MAC address",
                ],
            ),
        ];
        for (backend, own, others, remotes, rejected) in rows {
            let wanted = (
                remotes.iter().map(|s| s.to_string()).collect(),
                rejected.iter().map(|s| s.to_string()).collect(),
            );
            assert_eq!(told(backend, own, &others), wanted, "{backend} {others:?}");
            let twice_reversed: Vec<Lease> = others.iter().chain(&others).rev().cloned().collect();
            assert_eq!(
                told(backend, own, &twice_reversed).0,
                wanted.0,
                "reversed and repeated"
            );
        }
    }

    #[test]
    fn each_version_of_ip_is_planned_alone() {
        let vx = r#"{"Type":"vxlan","DirectRouting":true}"#;
        let v4 = |third: u8, public_ip: &str| lease(&format!("10.5.{third}.0/24"), public_ip, vxlan(1));
        let v6 =
            |fourth: u8, public_ip: &str| lease(&format!("fd05:0:0:{fourth:x}::/64"), public_ip, vxlan(1));
        let ours = both(&v4(1, "172.30.0.11"), &v6(1, "fd77::11"));
        let others = [
            both(&v4(2, "172.30.0.12"), &v6(2, "fd77::12")),
            both(&v4(3, "172.31.0.13"), &v6(3, "fd78::13")),
            v4(4, "172.31.0.14"),
            both(&v4(5, "172.31.0.15"), &v6(5, "ff02::1")),
            both(&v4(6, "172.31.0.16"), &lease("fd06::/64", "fd78::16", vxlan(1))),
            both(&v4(7, "172.31.0.17"), &v6(7, "fd77::11")),
        ];
        let wanted_remotes = [
            "10.5.2.0/24 via 172.30.0.12",
            "10.5.3.0/24 via 10.5.3.0 02:00:00:00:00:03 at 172.31.0.13",
            "10.5.4.0/24 via 10.5.4.0 02:00:00:00:00:04 at 172.31.0.14",
            "10.5.5.0/24 via 10.5.5.0 02:00:00:00:00:05 at 172.31.0.15",
            "10.5.6.0/24 via 10.5.6.0 02:00:00:00:00:06 at 172.31.0.16",
            "10.5.7.0/24 via 10.5.7.0 02:00:00:00:00:07 at 172.31.0.17",
            "fd05:0:0:2::/64 via fd77::12",
            "fd05:0:0:3::/64 via fd05:0:0:3:: 02:00:00:00:00:03 at fd78::13",
        ];
        let wanted_rejected = [
            "fd05:0:0:5::/64 is at ff02::1, which is no host's address",
            "fd05:0:0:7::/64 has our own address fd77::11",
            "fd06::/64 is not in the network fd05::/48",
        ];
        let (remotes, rejected) = told(vx, &ours, &others);
        assert_eq!(remotes, wanted_remotes);
        assert_eq!(rejected, wanted_rejected);
    }

    #[test]
    fn a_tunnel_takes_its_overhead_off_the_underlays_mtu_or_the_configured_one_and_pods_get_what_fits_all() {
        let v4 = lease("10.5.1.0/24", "172.30.0.11", vxlan(1));
        let v6 = lease("fd05:0:0:1::/64", "fd77::11", vxlan(1));
        let (vx, large) = (r#"{"Type":"vxlan"}"#, r#"{"Type":"vxlan","MTU":9000}"#);
        let rows = [
            (vx, &v4, vec![("flannel.1", "10.5.1.0", 1450)], 1450),
            (large, &v4, vec![("flannel.1", "10.5.1.0", 8950)], 8950),
            (vx, &v6, vec![("flannel-v6.1", "fd05:0:0:1::", 1430)], 1430),
            (
                vx,
                &both(&v4, &v6),
                vec![
                    ("flannel.1", "10.5.1.0", 1450),
                    ("flannel-v6.1", "fd05:0:0:1::", 1430),
                ],
                1430,
            ),
            (
                r#"{"Type":"host-gw"}"#,
                &lease("10.5.1.0/24", "172.30.0.11", Encap::HostGw),
                vec![],
                1500,
            ),
        ];
        for (backend, own, devices, pod_mtu) in rows {
            let (plan, _) = plan(&config(backend), own, &[], &underlay());
            let found = plan.halves.values().filter_map(|half| half.device.as_ref());
            let found: Vec<_> = found
                .map(|device| (device.name.clone(), device.address.to_string(), device.mtu))
                .collect();
            let devices: Vec<_> = devices
                .into_iter()
                .map(|(name, address, mtu)| (name.to_owned(), address.to_owned(), Mtu(mtu)))
                .collect();
            assert_eq!((found, plan.pod_mtu), (devices, Mtu(pod_mtu)), "{backend} {own}");
        }
    }
}

//! From leases to what the kernel shall have: pure.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnetwork::Ipv4Network;
use model::lease::{Encap, Lease};
use model::{MacAddr, Mtu, Vni};

use crate::flannel::{Backend, NetworkConfig};
use crate::lease::overlap;

/// Bytes that VXLAN over IPv4 adds: outer IP 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 §5).
pub const VXLAN_OVERHEAD: u32 = 50;

/// The device that tunnelled packets leave through, as far as a plan needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Underlay {
    /// Its address and prefix: what is on the link.
    pub network: Ipv4Network,
    /// Its MTU.
    pub mtu: Mtu,
}

/// What the kernel shall have for the pod network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The tunnel device, with VXLAN.
    pub device: Option<Device>,
    /// How each other node's subnet is reached.
    pub remotes: BTreeMap<Ipv4Network, Remote>,
    /// MTU of pods.
    pub pod_mtu: Mtu,
}

/// The VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// `flannel.<VNI>`.
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
    pub local: Ipv4Addr,
    /// Its own address: the subnet's first, `/32`. flannel's nodes use theirs as the source to our pods.
    pub address: Ipv4Addr,
}

/// How a subnet is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Through the tunnel device: neighbour `vtep` → `mac`, forwarding `mac` → `public_ip`, route via `vtep`.
    Tunnel {
        /// The other VTEP's inner address, the first of its subnet.
        vtep: Ipv4Addr,
        /// The other VTEP's MAC address.
        mac: MacAddr,
        /// Where it is.
        public_ip: Ipv4Addr,
    },
    /// Plainly through the node.
    Gateway {
        /// The node.
        public_ip: Ipv4Addr,
    },
}

/// A lease that is not in the plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its subnet.
    pub subnet: Ipv4Network,
    /// Why.
    pub reason: String,
}

/// Plans a node's part of the network from its own lease and the others'. The same leases in another order make the
/// same plan.
#[must_use]
pub fn plan(
    config: &NetworkConfig,
    own: &Lease,
    others: &[Lease],
    underlay: &Underlay,
) -> (Plan, Vec<Rejected>) {
    let mut sorted: Vec<&Lease> = others.iter().filter(|lease| lease.subnet != own.subnet).collect();
    sorted.sort_by_key(|lease| (lease.subnet, lease.public_ip));
    let mut remotes = BTreeMap::new();
    let mut rejected = Vec::new();
    // The kernel sends what is for a MAC address to one place.
    let mut places: BTreeMap<MacAddr, &Lease> = BTreeMap::new();
    for lease in sorted {
        let remote = remote(config, own, lease, underlay).and_then(|remote| match remote {
            Remote::Tunnel { mac, public_ip, .. } => {
                let first = *places.entry(mac).or_insert(lease);
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
                remotes.insert(lease.subnet, remote);
            }
            Err(reason) => rejected.push(Rejected {
                subnet: lease.subnet,
                reason,
            }),
        }
    }
    let (device, pod_mtu) = device(config, own, underlay);
    (
        Plan {
            device,
            remotes,
            pod_mtu,
        },
        rejected,
    )
}

fn device(config: &NetworkConfig, own: &Lease, underlay: &Underlay) -> (Option<Device>, Mtu) {
    let (
        Backend::Vxlan {
            vni, port, mtu, gbp, ..
        },
        Encap::Vxlan { vtep_mac, .. },
    ) = (&config.backend, own.encap)
    else {
        return (None, underlay.mtu);
    };
    let mtu = Mtu(mtu.unwrap_or(underlay.mtu.0).saturating_sub(VXLAN_OVERHEAD));
    let device = Device {
        name: format!("flannel.{}", vni.0),
        vni: *vni,
        port: *port,
        gbp: *gbp,
        mac: vtep_mac,
        mtu,
        local: own.public_ip,
        address: own.subnet.network(),
    };
    (Some(device), mtu)
}

fn remote(config: &NetworkConfig, own: &Lease, lease: &Lease, underlay: &Underlay) -> Result<Remote, String> {
    if overlap(own.subnet, lease.subnet) {
        return Err(format!("overlaps our own subnet {}", own.subnet));
    }
    if lease.public_ip == own.public_ip {
        return Err(format!("has our own address {}", own.public_ip));
    }
    is_in_network(config, lease)?;
    is_of_a_host(lease.public_ip)?;
    if let Encap::Vxlan { vtep_mac, .. } = lease.encap {
        is_of_one_device(vtep_mac, own)?;
    }
    let on_link = underlay.network.contains(lease.public_ip);
    let gateway = Remote::Gateway {
        public_ip: lease.public_ip,
    };
    match (&config.backend, lease.encap) {
        (Backend::Vxlan { vni: ours, .. }, Encap::Vxlan { vni, .. }) if *ours != vni => {
            Err(format!("is in VXLAN {}, we are in {}", vni.0, ours.0))
        }
        (
            Backend::Vxlan {
                direct_routing: true, ..
            },
            Encap::Vxlan { .. },
        ) if on_link => Ok(gateway),
        (Backend::Vxlan { .. }, Encap::Vxlan { vtep_mac, .. }) => {
            let vtep = lease.subnet.network();
            Ok(Remote::Tunnel {
                vtep,
                mac: vtep_mac,
                public_ip: lease.public_ip,
            })
        }
        (Backend::HostGw, Encap::HostGw) if on_link => Ok(gateway),
        (Backend::HostGw, Encap::HostGw) => Err(format!(
            "{} is not on the link {}, which host-gw needs",
            lease.public_ip, underlay.network
        )),
        (Backend::Vxlan { .. }, Encap::HostGw) => Err("is reached by host-gw, we by vxlan".to_owned()),
        (Backend::HostGw, Encap::Vxlan { .. }) => Err("is reached by vxlan, we by host-gw".to_owned()),
    }
}

/// A route to another subnet could take addresses away that are not pods': the Services', or the whole world's.
fn is_in_network(config: &NetworkConfig, lease: &Lease) -> Result<(), String> {
    let network = config.network;
    if !network.contains(lease.subnet.network()) || lease.subnet.prefix() < network.prefix() {
        return Err(format!("is not in the network {network}"));
    }
    if network.contains(lease.public_ip) {
        return Err(format!(
            "is at {}, which is in the network of pods itself",
            lease.public_ip
        ));
    }
    Ok(())
}

fn is_of_a_host(address: Ipv4Addr) -> Result<(), String> {
    let wrong =
        address.is_loopback() || address.is_multicast() || address.is_broadcast() || address.is_unspecified();
    if wrong {
        return Err(format!("is at {address}, which is no host's address"));
    }
    Ok(())
}

fn is_of_one_device(mac: MacAddr, own: &Lease) -> Result<(), String> {
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

    fn config(backend: &str) -> NetworkConfig {
        NetworkConfig::parse(&format!(r#"{{"Network":"10.5.0.0/16","Backend":{backend}}}"#)).expect("valid")
    }

    fn underlay() -> Underlay {
        Underlay {
            network: "172.30.0.11/24".parse().expect("network"),
            mtu: Mtu(1500),
        }
    }

    /// With VXLAN, its MAC address ends as its subnet's third byte says.
    fn lease(subnet: &str, public_ip: &str, mut encap: Encap) -> Lease {
        let subnet: Ipv4Network = subnet.parse().expect("subnet");
        if let Encap::Vxlan { vtep_mac, .. } = &mut encap {
            vtep_mac.0[5] = subnet.network().octets()[2];
        }
        Lease {
            subnet,
            subnet_v6: None,
            public_ip: public_ip.parse().expect("address"),
            public_ip_v6: None,
            encap,
            encap_v6: None,
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
        lease.encap = Encap::Vxlan {
            vni: Vni(1),
            vtep_mac: mac.parse().expect("a MAC address"),
        };
        lease
    }

    fn told(backend: &str, own: &Lease, others: &[Lease]) -> (Vec<String>, Vec<String>) {
        let (plan, rejected) = plan(&config(backend), own, others, &underlay());
        let remotes = plan.remotes.iter().map(|(subnet, remote)| match remote {
            Remote::Tunnel { vtep, mac, public_ip } => format!("{subnet} via {vtep} {mac} at {public_ip}"),
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
    fn the_tunnel_takes_fifty_bytes_off_the_underlays_mtu_or_the_configured_one() {
        let own = lease("10.5.1.0/24", "172.30.0.11", vxlan(1));
        let rows = [
            (r#"{"Type":"vxlan"}"#, 1450),
            (r#"{"Type":"vxlan","MTU":9000}"#, 8950),
        ];
        for (backend, mtu) in rows {
            let (plan, _) = plan(&config(backend), &own, &[], &underlay());
            let device = plan.device.expect("vxlan has a device");
            assert_eq!((device.mtu, plan.pod_mtu), (Mtu(mtu), Mtu(mtu)), "{backend}");
            assert_eq!(
                (device.name.as_str(), device.address),
                ("flannel.1", Ipv4Addr::new(10, 5, 1, 0))
            );
        }
        let own = lease("10.5.1.0/24", "172.30.0.11", Encap::HostGw);
        let (plan, _) = plan(&config(r#"{"Type":"host-gw"}"#), &own, &[], &underlay());
        assert_eq!((plan.device, plan.pod_mtu), (None, Mtu(1500)));
    }
}

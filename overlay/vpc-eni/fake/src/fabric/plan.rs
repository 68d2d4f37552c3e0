//! What the router must have, of what the cloud says. Nothing here touches the kernel.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use netlink::route::TABLE_MAIN;
use netlink::{Address, Mac, Neighbour, Route, RouteKind, Scope};
use vpc_eni::ec2::{Eni, EniId, InstanceId};

use crate::cloud::Grounds;

/// Who made the router's routes, in `rtm_protocol`.
pub(super) const PROTOCOL: u8 = 214;

/// What the aliases of devices that the fabric made begin with.
const ALIAS: &str = "fake-vpc ";

/// Where nodes find the router in IPv6, on each port.
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// A VPC's network, as far as it is on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// By interface.
    pub(super) ports: Vec<Port>,
    /// The VPC's blocks: where they are nobody's, nothing goes there.
    pub(super) blocks: BTreeSet<IpNetwork>,
}

impl Plan {
    /// The network with the interfaces of these instances; others are not there.
    pub(super) fn new(grounds: &Grounds, is_here: impl Fn(&InstanceId) -> bool) -> Self {
        let port = |eni: &Eni| {
            let instance = eni.attachment.as_ref().map(|attached| &attached.instance)?;
            is_here(instance).then(|| Port::new(eni, grounds))?
        };
        let v6 = grounds.subnets.values().filter_map(|(_, network)| *network);
        let v4 = grounds.networks.iter().copied().map(IpNetwork::V4);
        Self {
            ports: grounds.devices.iter().filter_map(port).collect(),
            blocks: v4.chain(v6.map(IpNetwork::V6)).collect(),
        }
    }

    /// Routes that lead nowhere: whatever else the router has routes to, nobody's address of the VPC is not there.
    pub(super) fn dead_ends(&self, loopback: Option<u32>) -> impl Iterator<Item = Route> {
        self.blocks.iter().map(move |block| Route {
            destination: *block,
            gateway: None,
            // The kernel tells such routes of IPv6 by the loopback device (`fib6_nh_init`).
            link: loopback.filter(|_| block.is_ipv6()),
            source: None,
            protocol: PROTOCOL,
            scope: Scope::Universe,
            table: TABLE_MAIN,
            metric: Route::usual_metric(*block),
            onlink: false,
            kind: RouteKind::Unreachable,
        })
    }
}

/// An interface with its device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Port {
    pub(super) eni: EniId,
    pub(super) instance: InstanceId,
    pub(super) mac: Mac,
    pub(super) device_index: u32,
    pub(super) subnet: Ipv4Network,
    pub(super) primary: Ipv4Addr,
    /// Secondary addresses and prefixes of both families.
    others: Vec<IpNetwork>,
    has_v6: bool,
}

impl Port {
    fn new(eni: &Eni, grounds: &Grounds) -> Option<Self> {
        let attached = eni.attachment.as_ref()?;
        let (subnet, network_v6) = *grounds.subnets.get(&eni.subnet)?;
        let secondary = eni.secondary.iter().map(|address| single((*address).into()));
        let prefixes = eni.prefixes.iter().copied().map(IpNetwork::V4);
        let prefixes_v6 = eni.prefixes_v6.iter().copied().map(IpNetwork::V6);
        Some(Self {
            eni: eni.id.clone(),
            instance: attached.instance.clone(),
            mac: eni.mac.0,
            device_index: attached.device_index,
            subnet,
            primary: eni.primary,
            others: secondary.chain(prefixes).chain(prefixes_v6).collect(),
            has_v6: network_v6.is_some(),
        })
    }

    /// Whether it is the instance's first.
    pub(super) const fn is_primary(&self) -> bool {
        self.device_index == 0
    }

    /// Whether its subnet has an IPv6 block.
    pub(super) const fn has_v6(&self) -> bool {
        self.has_v6
    }

    /// What the router's end is called: `vpc` and the last twelve digits of the interface's name, 15 bytes, which is
    /// all that a name may have.
    pub(super) fn name(&self) -> String {
        let id = &self.eni.0;
        format!("vpc{}", id.get(id.len().saturating_sub(12)..).unwrap_or_default())
    }

    /// What the router's end is known by.
    pub(super) fn alias(&self) -> String {
        format!("{ALIAS}{}", self.eni)
    }

    /// What the node's end is called.
    pub(super) fn device_name(&self) -> String {
        format!("eth{}", self.device_index)
    }

    /// The router's address in the subnet: the first after the network's own (VPC user guide, "Subnet sizing").
    pub(super) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.subnet.network().to_bits().saturating_add(1))
    }

    /// What it may send from, and what is delivered to it.
    pub(super) fn owned(&self) -> impl Iterator<Item = IpNetwork> {
        std::iter::once(single(self.primary.into())).chain(self.others.iter().copied())
    }

    /// What the router has on its end.
    pub(super) fn addresses(&self, link: u32) -> Vec<Address> {
        let v4 = Address::global(link, single(self.gateway().into()));
        let v6 = Address {
            scope: Scope::Link,
            no_dad: true,
            ..Address::global(link, single(GATEWAY_V6.into()))
        };
        std::iter::once(v4).chain(self.has_v6.then_some(v6)).collect()
    }

    /// Whom the router sends the interface's packets to. The node need not answer for the addresses of its pods: the
    /// VPC knows where they are.
    pub(super) fn neighbours(&self, link: u32) -> Vec<Neighbour> {
        let of = |address: IpAddr| Neighbour::permanent(link, address, self.mac);
        let v6 = self.has_v6.then(|| of(link_local(self.mac).into()));
        std::iter::once(of(self.primary.into())).chain(v6).collect()
    }

    /// How the router finds what the interface owns.
    pub(super) fn routes(&self, link: u32) -> impl Iterator<Item = Route> {
        let primary = single(self.primary.into());
        let others = self.others.iter().map(move |block| match block {
            IpNetwork::V4(_) => Route {
                onlink: true,
                ..Route::via(*block, self.primary.into(), link, PROTOCOL)
            },
            IpNetwork::V6(_) => Route::via(*block, link_local(self.mac).into(), link, PROTOCOL),
        });
        std::iter::once(Route::on_link(primary, link, PROTOCOL)).chain(others)
    }
}

/// Whether a device of this alias is the fabric's.
pub(super) fn is_ours(alias: Option<&str>) -> bool {
    alias.is_some_and(|alias| alias.starts_with(ALIAS))
}

/// The alias of the device that has the internet's addresses.
pub(super) fn internet_alias() -> String {
    format!("{ALIAS}internet")
}

/// The network of an address alone.
pub(super) fn single(address: IpAddr) -> IpNetwork {
    IpNetwork::from(address)
}

/// The address that a device of this MAC address has on its link (RFC 2464 §4 and §5).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let group = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        group(a ^ 2, b),
        group(c, 0xff),
        group(0xfe, d),
        group(e, f),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ports_name_is_as_long_as_a_name_may_be() {
        let rows = [
            ("eni-0000000000000012a", "vpc00000000012a"),
            ("eni-0123456789abcdef0", "vpc56789abcdef0"),
            ("eni-1", "vpceni-1"),
        ];
        for (id, name) in rows {
            let port = Port {
                eni: EniId::from(id),
                instance: InstanceId::from("i-1"),
                mac: [2, 0, 0, 0, 0, 1],
                device_index: 0,
                subnet: "10.0.1.0/24".parse().unwrap(),
                primary: "10.0.1.4".parse().unwrap(),
                others: Vec::new(),
                has_v6: false,
            };
            assert_eq!(port.name(), name);
            assert!(port.name().len() <= 15);
            assert_eq!(port.gateway(), Ipv4Addr::new(10, 0, 1, 1));
        }
    }

    #[test]
    fn the_address_on_the_link_comes_of_the_mac_address() {
        // The example of RFC 2464 §4.
        let address = link_local([0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde]);
        assert_eq!(address, "fe80::3656:78ff:fe9a:bcde".parse::<Ipv6Addr>().unwrap());
    }
}

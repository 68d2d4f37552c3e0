//! Which device and addresses of this node the others send to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use model::lease::Lease;
use model::{ByFamily, Mtu};
use netlink::{Address, Kernel, Link, Scope};

use crate::error::Error;
use crate::plan::Underlay;

/// Any address of the world: the route that is looked up is the default route (RFC 5737, RFC 3849).
const ANYWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// What the configuration says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wish {
    /// The device. Default: that of the addresses, else that of the default route.
    pub(crate) interface: Option<String>,
    /// The addresses. Default: the device's.
    pub(crate) public_ips: ByFamily<IpAddr>,
}

/// The device found, by name and index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) public_ips: ByFamily<IpAddr>,
    pub(crate) underlay: Underlay,
}

impl Found {
    /// The underlay as far as it has the addresses that a lease names, and what it has not.
    pub(crate) fn underlay_of(&self, lease: &Lease) -> (Underlay, Vec<String>) {
        let mut gone = Vec::new();
        let networks = lease.sites.iter().filter_map(|(family, site)| {
            let network = self.underlay.networks.get(family).copied();
            let network = network.filter(|network| network.ip() == site.public_ip);
            if network.is_none() {
                gone.push(format!("device {} has no address {}", self.name, site.public_ip));
            }
            Some((family, network?))
        });
        let underlay = Underlay {
            networks: networks.collect(),
            mtu: self.underlay.mtu,
        };
        (underlay, gone)
    }
}

/// Finds the device: by name, else by a public address, else that of the default route. Of its addresses those of
/// `present` are taken where they are there, else the first ones that last: a second address changes nothing.
pub(crate) fn find(
    kernel: &mut impl Kernel,
    wish: &Wish,
    present: &ByFamily<IpAddr>,
) -> Result<Found, Error> {
    let link = match (&wish.interface, wish.public_ips.values().next()) {
        (Some(name), _) => kernel
            .link_named(name)?
            .ok_or_else(|| missing(format!("there is no device {name}")))?,
        (None, Some(public_ip)) => link_with(kernel, *public_ip)?,
        (None, None) => link_of_default_route(kernel)?,
    };
    let addresses = kernel.addresses(Some(link.index))?;
    let global: Vec<&Address> = addresses
        .iter()
        .filter(|address| address.scope == Scope::Universe)
        .collect();
    let with = |wanted: IpAddr| {
        let mut networks = global.iter().map(|address| address.network);
        networks.find(|network| network.ip() == wanted)
    };
    // A lease lasts, so its address has to.
    let lasting = global.iter().filter(|address| !address.passing);
    wish.public_ips.try_map(|_, wanted| {
        with(*wanted).ok_or_else(|| missing(format!("device {} has no address {wanted}", link.name)))
    })?;
    let preferred = [wish.public_ips, *present];
    let networks: ByFamily<IpNetwork> = preferred
        .iter()
        .flat_map(ByFamily::values)
        .filter_map(|address| with(*address))
        .chain(lasting.map(|address| address.network))
        .collect();
    if networks.is_empty() {
        return Err(missing(format!("device {} has no address", link.name)));
    }
    let underlay = Underlay {
        networks,
        mtu: Mtu(link.mtu),
    };
    Ok(Found {
        index: link.index,
        name: link.name,
        public_ips: networks.map(|_, network| network.ip()),
        underlay,
    })
}

/// The addresses of the versions of IP that the network has.
pub(crate) fn addresses_for(
    families: &ByFamily<()>,
    interface: &str,
    public_ips: &ByFamily<IpAddr>,
) -> Result<ByFamily<IpAddr>, Error> {
    families.try_map(|family, ()| {
        public_ips.get(family).copied().ok_or_else(|| {
            missing(format!(
                "device {interface} has no {family} address, which the network's configuration asks for"
            ))
        })
    })
}

fn link_with(kernel: &mut impl Kernel, public_ip: IpAddr) -> Result<Link, Error> {
    let address = kernel
        .addresses(None)?
        .into_iter()
        .find(|address| address.network.ip() == public_ip);
    let address = address.ok_or_else(|| missing(format!("no device has the address {public_ip}")))?;
    kernel
        .link_at(address.link)?
        .ok_or_else(|| missing("the device went away".to_owned()))
}

fn link_of_default_route(kernel: &mut impl Kernel) -> Result<Link, Error> {
    let mut index = None;
    for anywhere in ANYWHERE {
        let route = match index {
            None => kernel.route_to(anywhere)?,
            Some(_) => break,
        };
        index = route.and_then(|route| route.link);
    }
    let index = index.ok_or_else(|| {
        missing(
            "there is no default route: name the device or the address that other nodes send to".to_owned(),
        )
    })?;
    kernel
        .link_at(index)?
        .ok_or_else(|| missing("the device went away".to_owned()))
}

fn missing(what: String) -> Error {
    Error::Underlay(what)
}

#[cfg(test)]
mod tests {
    use netlink::FakeKernel;

    use super::*;

    fn told(kernel: &mut FakeKernel, wish: &Wish, present: &str) -> String {
        let present: ByFamily<IpAddr> = present
            .split_whitespace()
            .map(|text| text.parse::<IpAddr>().expect("an address"))
            .collect();
        match find(kernel, wish, &present) {
            Ok(found) => {
                let networks = found.underlay.networks.values().map(IpNetwork::to_string);
                format!("{} {}", found.name, networks.collect::<Vec<_>>().join(" "))
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_first_address_of_each_version_is_taken_unless_another_is_asked_for_or_in_use() {
        let mut kernel = FakeKernel::new();
        kernel.plug("eth0", [2, 0, 0, 0, 0, 1], 1500);
        kernel.plug("eth1", [2, 0, 0, 0, 0, 2], 1500);
        kernel.addresses.push(Address {
            passing: true,
            ..Address::global(1, "fd77::1:2:3:4/64".parse().expect("a network"))
        });
        for network in ["172.30.0.11/24", "172.30.0.99/24", "fd77::11/64", "fd77::99/64"] {
            kernel
                .addresses
                .push(Address::global(1, network.parse().expect("a network")));
        }
        kernel.addresses.push(Address {
            scope: Scope::Link,
            ..Address::global(1, "fe80::1/64".parse().expect("a network"))
        });
        let on = |interface: Option<&str>, public_ips: &[&str]| Wish {
            interface: interface.map(str::to_owned),
            public_ips: public_ips
                .iter()
                .map(|text| text.parse::<IpAddr>().expect("an address"))
                .collect(),
        };
        let eth0 = Some("eth0");
        let rows = [
            (on(eth0, &[]), "", "eth0 172.30.0.11/24 fd77::11/64"),
            (
                on(eth0, &[]),
                "172.30.0.99 fd77::99",
                "eth0 172.30.0.99/24 fd77::99/64",
            ),
            (on(eth0, &[]), "172.30.0.77", "eth0 172.30.0.11/24 fd77::11/64"),
            (
                on(eth0, &[]),
                "fd77::1:2:3:4",
                "eth0 172.30.0.11/24 fd77::1:2:3:4/64",
            ),
            (
                on(eth0, &["172.30.0.99"]),
                "172.30.0.11",
                "eth0 172.30.0.99/24 fd77::11/64",
            ),
            (on(None, &["fd77::99"]), "", "eth0 172.30.0.11/24 fd77::99/64"),
            (
                on(eth0, &["172.30.0.12"]),
                "",
                "device eth0 has no address 172.30.0.12",
            ),
            (
                on(None, &["172.30.0.12"]),
                "",
                "no device has the address 172.30.0.12",
            ),
            (on(Some("eth1"), &[]), "", "device eth1 has no address"),
            (on(Some("eth2"), &[]), "", "there is no device eth2"),
        ];
        for (wish, present, wanted) in rows {
            assert_eq!(
                told(&mut kernel, &wish, present),
                wanted,
                "{wish:?}, present {present}"
            );
        }
    }
}

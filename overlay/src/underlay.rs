//! Which device and address of this node the others send to.

use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::{IpNetwork, Ipv4Network};
use model::Mtu;
use netlink::{Kernel, Link, Scope};

use crate::error::Error;
use crate::plan::Underlay;

/// The device found, by name and index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) public_ip: Ipv4Addr,
    pub(crate) underlay: Underlay,
}

/// Finds the device: by name, else by the public address, else that of the default route.
pub(crate) fn find(
    kernel: &mut impl Kernel,
    interface: Option<&str>,
    public_ip: Option<Ipv4Addr>,
) -> Result<Found, Error> {
    let link = match (interface, public_ip) {
        (Some(name), _) => kernel
            .link_named(name)?
            .ok_or_else(|| missing(format!("there is no device {name}")))?,
        (None, Some(public_ip)) => link_with(kernel, public_ip)?,
        (None, None) => link_of_default_route(kernel)?,
    };
    let addresses = kernel.addresses(Some(link.index))?;
    let networks = addresses
        .iter()
        .filter(|address| address.scope == Scope::Universe);
    let mut v4 = networks.filter_map(|address| match address.network {
        IpNetwork::V4(network) => Some(network),
        IpNetwork::V6(_) => None,
    });
    let network: Ipv4Network = match public_ip {
        Some(wanted) => v4
            .find(|network| network.ip() == wanted)
            .ok_or_else(|| missing(format!("device {} has no address {wanted}", link.name)))?,
        None => v4
            .next()
            .ok_or_else(|| missing(format!("device {} has no IPv4 address", link.name)))?,
    };
    let underlay = Underlay {
        network,
        mtu: Mtu(link.mtu),
    };
    Ok(Found {
        index: link.index,
        name: link.name,
        public_ip: network.ip(),
        underlay,
    })
}

fn link_with(kernel: &mut impl Kernel, public_ip: Ipv4Addr) -> Result<Link, Error> {
    let wanted = IpAddr::V4(public_ip);
    let address = kernel
        .addresses(None)?
        .into_iter()
        .find(|address| address.network.ip() == wanted);
    let address = address.ok_or_else(|| missing(format!("no device has the address {public_ip}")))?;
    kernel
        .link_at(address.link)?
        .ok_or_else(|| missing("the device went away".to_owned()))
}

fn link_of_default_route(kernel: &mut impl Kernel) -> Result<Link, Error> {
    // Any address of the world: the route that is looked up is the default route.
    let route = kernel.route_to(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)))?;
    let index = route.and_then(|route| route.link).ok_or_else(|| {
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

//! The addresses of one version of IP, cut into subnets, one for each node: flannel's arithmetic, for both versions.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// A network and the part of it that is given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool {
    /// All pods' addresses.
    pub network: IpNetwork,
    /// Prefix length of a node's subnet.
    pub subnet_len: u8,
    /// First subnet that is given out.
    pub subnet_min: IpAddr,
    /// Last subnet that is given out.
    pub subnet_max: IpAddr,
}

impl Pool {
    /// Whether a subnet is one that this pool would give out.
    #[must_use]
    pub fn admits(&self, subnet: IpNetwork) -> bool {
        subnet.is_ipv4() == self.network.is_ipv4()
            && subnet.prefix() == self.subnet_len
            && (self.subnet_min..=self.subnet_max).contains(&subnet.network())
    }

    /// All subnets that are given out, once each, beginning with the one that `seed` hits.
    pub(crate) fn subnets_from(&self, seed: u128) -> impl Iterator<Item = IpNetwork> + use<> {
        let Self {
            network, subnet_len, ..
        } = *self;
        let size = size_of(network, subnet_len);
        let (first, last) = (number(self.subnet_min), number(self.subnet_max));
        let count = (last - first) / size + 1;
        let start = seed % count;
        (0..count).filter_map(move |step| {
            // Without a sum that could overflow: the step is as far from the end as from the start at most.
            let place = if step < count - start {
                start + step
            } else {
                step - (count - start)
            };
            let address = address(network.is_ipv4(), first + place * size)?;
            IpNetwork::new(address, subnet_len).ok()
        })
    }
}

/// How many addresses a subnet of that length has in the network's version of IP.
pub(crate) fn size_of(network: IpNetwork, subnet_len: u8) -> u128 {
    1 << (bits(network.is_ipv4()) - u32::from(subnet_len))
}

const fn bits(v4: bool) -> u32 {
    if v4 { 32 } else { 128 }
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The address of a number; `None` where the version has none that high.
pub(crate) fn address(v4: bool, number: u128) -> Option<IpAddr> {
    if v4 {
        u32::try_from(number).ok().map(|number| IpAddr::V4(number.into()))
    } else {
        Some(IpAddr::V6(number.into()))
    }
}

/// The network without the host bits that a text may carry.
pub(crate) fn masked(network: IpNetwork) -> IpNetwork {
    IpNetwork::new(network.network(), network.prefix()).unwrap_or(network)
}

/// Whether two networks share an address.
#[must_use]
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// Whether all of `inner` is in `outer`.
pub(crate) fn is_within(inner: IpNetwork, outer: IpNetwork) -> bool {
    outer.contains(inner.network()) && inner.prefix() >= outer.prefix()
}

//! Free addresses and ports. Both pools have a lower band that is left to those who name what they want, and is drawn
//! from last (KEP-3070, KEP-3668).

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use rand::Rng;

/// A random free address (`ipallocator.calculateRangeOffset`).
pub(super) fn free_address(cidr: IpNetwork, taken: &HashSet<IpAddr>) -> Option<IpAddr> {
    let (base, host_bits) = match cidr {
        IpNetwork::V4(net) => (u128::from(u32::from(net.network())), 32 - u32::from(net.prefix())),
        IpNetwork::V6(net) => (u128::from(net.network()), 128 - u32::from(net.prefix())),
    };
    // Without the network's own address; IPv4 loses the broadcast address too.
    let size = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
    let last = if cidr.is_ipv4() {
        size.saturating_sub(2)
    } else {
        size.saturating_sub(1)
    };
    let offset = (size / 16).clamp(16, 256);
    let address = |number: u128| match cidr {
        IpNetwork::V4(_) => u32::try_from(base + number)
            .ok()
            .map(|bits| IpAddr::V4(Ipv4Addr::from(bits))),
        IpNetwork::V6(_) => Some(IpAddr::V6(Ipv6Addr::from(base + number))),
    };
    let bands = [(offset.min(last), last), (1, offset.min(last))];
    bands.into_iter().find_map(|(from, to)| {
        let start = rand::rng().random_range(from..=to.max(from));
        let tries = (to.max(from) - from + 1).min(taken.len() as u128 + 2);
        (0..tries).find_map(|step| {
            let number = from + (start - from + step) % (to.max(from) - from + 1);
            address(number).filter(|ip| !taken.contains(ip))
        })
    })
}

/// A random free port (`portallocator.calculateRangeOffset`).
pub(super) fn free_port((first, last): (u16, u16), taken: impl Fn(i64) -> bool) -> Option<i64> {
    let (first, last) = (i64::from(first), i64::from(last));
    let size = last - first + 1;
    let offset = if size <= 16 { 0 } else { (size / 32).clamp(16, 128) };
    let bands = [(first + offset, size - offset), (first, offset)];
    bands
        .into_iter()
        .filter(|(_, count)| *count > 0)
        .find_map(|(from, count)| {
            let start = rand::rng().random_range(0..count);
            (0..count)
                .map(|step| from + (start + step) % count)
                .find(|number| !taken(*number))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_addresses(cidr: &str, first_high: &str, usable: usize, high: usize) {
        let cidr: IpNetwork = cidr.parse().expect("a network");
        let first_high: IpAddr = first_high.parse().expect("an address");
        let mut taken = HashSet::new();
        for _ in 0..usable {
            let ip = free_address(cidr, &taken).expect("the range is not full");
            assert_eq!(ip < first_high, taken.len() >= high, "{ip} after {}", taken.len());
            taken.insert(ip);
        }
        assert_eq!(free_address(cidr, &taken), None);
    }

    #[test]
    fn addresses_come_from_the_upper_band_until_it_is_full() {
        check_addresses("10.0.0.0/27", "10.0.0.16", 30, 15);
        check_addresses("fd00::/123", "fd00::10", 31, 16);
    }

    #[test]
    fn node_ports_come_from_the_upper_band_until_it_is_full() {
        for (range, offset) in [((30000, 30009), 0), ((30000, 30099), 16), ((20000, 29999), 128)] {
            let (first, last) = (i64::from(range.0), i64::from(range.1));
            let mut taken = HashSet::new();
            for drawn in 0..=last - first {
                let port = free_port(range, |number| taken.contains(&number)).expect("the range is not full");
                assert_eq!(
                    port < first + offset,
                    drawn > last - first - offset,
                    "{port} as {drawn}"
                );
                taken.insert(port);
            }
            assert_eq!(free_port(range, |number| taken.contains(&number)), None);
        }
    }
}

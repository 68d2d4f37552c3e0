//! Every address that leads back to a name, in order: above each of them there are names that hold nothing else.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::question::Query;

/// A sorted set of addresses, 17 bytes each; a copy shares them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses(Arc<[IpAddr]>);

impl Addresses {
    /// The set with some addresses put in (`true`) and some taken out.
    pub(super) fn updated(&self, changes: &BTreeMap<IpAddr, bool>) -> Self {
        let is_known = |address: &IpAddr| self.0.binary_search(address).is_ok();
        if changes.iter().all(|(address, there)| is_known(address) == *there) {
            return self.clone();
        }
        let kept = self.0.iter().filter(|address| !changes.contains_key(*address));
        let put = changes.iter().filter(|(_, there)| **there);
        let mut addresses: Vec<IpAddr> = kept.chain(put.map(|(address, _)| address)).copied().collect();
        addresses.sort_unstable();
        Self(addresses.into())
    }

    /// Whether there is one within.
    pub(super) fn any_within(&self, range: &RangeInclusive<IpAddr>) -> bool {
        let first = self.0.partition_point(|address| address < range.start());
        self.0.get(first).is_some_and(|address| range.contains(address))
    }
}

/// The addresses whose names end in this one, in `in-addr.arpa` or `ip6.arpa`: `0.10.in-addr.arpa` stands above those
/// of 10.0.0.0/16. `None` where the labels spell no beginning of an address, or a whole one.
#[must_use]
pub fn addresses_below(query: &Query<'_>) -> Option<RangeInclusive<IpAddr>> {
    let given = query.label_count().checked_sub(2)?;
    // The label next to the zone comes first.
    let label = |index: usize| query.label(given - 1 - index);
    match query.suffix(given) {
        b"\x07in-addr\x04arpa\0" if (1..4).contains(&given) => {
            let (mut first, mut last) = ([0; 4], [255; 4]);
            for index in 0..given {
                let octet = super::grammar::plain_number(label(index))?;
                (first[index], last[index]) = (octet, octet);
            }
            Some(Ipv4Addr::from(first).into()..=Ipv4Addr::from(last).into())
        }
        b"\x03ip6\x04arpa\0" if (1..32).contains(&given) => {
            let mut prefix = 0_u128;
            for index in 0..given {
                prefix = prefix << 4 | u128::from(super::grammar::nibble(label(index))?);
            }
            let free = 128 - 4 * given;
            let first = prefix << free;
            let last = first | ((1 << free) - 1);
            Some(Ipv6Addr::from(first).into()..=Ipv6Addr::from(last).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::Name;
    use crate::question::{query_packet, rtype};

    fn range(name: &str) -> Option<String> {
        let packet = query_packet(1, Name::parse(name).expect("name").wire(), rtype::PTR);
        let range = addresses_below(&Query::parse(&packet).expect("query"))?;
        Some(format!("{}-{}", range.start(), range.end()))
    }

    #[test]
    fn a_part_of_a_reversed_address_stands_above_a_network() {
        for (name, expected) in [
            ("10.in-addr.arpa", Some("10.0.0.0-10.255.255.255")),
            ("2.1.10.in-addr.arpa", Some("10.1.2.0-10.1.2.255")),
            ("3.2.1.10.in-addr.arpa", None),
            ("x.10.in-addr.arpa", None),
            ("01.10.in-addr.arpa", None),
            ("in-addr.arpa", None),
            (
                "d.f.ip6.arpa",
                Some("fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
            ),
            (
                "0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa",
                Some("fd00::-fd00::f"),
            ),
            ("dd.f.ip6.arpa", None),
            ("10.cluster.local", None),
        ] {
            assert_eq!(range(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn edits_keep_the_set_in_order_and_no_edit_keeps_it_shared() {
        let address = |text: &str| text.parse::<IpAddr>().expect("address");
        let edits = |edits: &[(&str, bool)]| {
            let edits = edits.iter().map(|(text, there)| (address(text), *there));
            edits.collect::<BTreeMap<_, _>>()
        };
        let empty = Addresses::default();
        let two = empty.updated(&edits(&[
            ("fd00::1", true),
            ("10.0.0.7", true),
            ("10.0.0.9", false),
        ]));
        assert_eq!(&*two.0, [address("10.0.0.7"), address("fd00::1")]);
        let same = two.updated(&edits(&[("10.0.0.7", true), ("10.0.0.9", false)]));
        assert!(Arc::ptr_eq(&same.0, &two.0));
        let one = two.updated(&edits(&[("10.0.0.7", false)]));
        assert_eq!(&*one.0, [address("fd00::1")]);

        let within = |first: &str, last: &str| two.any_within(&(address(first)..=address(last)));
        assert!(within("10.0.0.0", "10.0.0.255") && within("10.0.0.7", "10.0.0.7"));
        assert!(!within("10.0.0.8", "10.0.0.255") && !within("10.0.1.0", "10.0.1.255"));
        assert!(within("fd00::", "fd00::f") && !within("fd00::2", "fd00::f"));
    }
}

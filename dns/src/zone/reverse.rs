//! Which Services an address leads back to, in order: above each of them there are names that hold nothing else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use model::ObjectName;

use crate::question::Query;

/// So many entries a piece has at most: an edit copies one, and the list of pieces.
const MOST: usize = 256;
/// With fewer it is joined with the next one when it is edited.
const LEAST: usize = MOST / 4;

/// Addresses, each with the Services that have it, all names in lower case. A copy shares everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Reverse {
    v4: Owners<Ipv4Addr>,
    v6: Owners<Ipv6Addr>,
}

/// Services that got addresses, and that lost them; of one Service none both.
#[derive(Debug, Default)]
pub(super) struct Edits {
    v4: Vec<Edit<Ipv4Addr>>,
    v6: Vec<Edit<Ipv6Addr>>,
}

/// Entry, and whether it is there from now on.
type Edit<A> = (A, ObjectName, bool);

impl Edits {
    pub(super) fn add(&mut self, address: IpAddr, service: ObjectName, is_there: bool) {
        match address {
            IpAddr::V4(v4) => self.v4.push((v4, service, is_there)),
            IpAddr::V6(v6) => self.v6.push((v6, service, is_there)),
        }
    }
}

impl Reverse {
    pub(super) fn updated(&self, edits: Edits) -> Self {
        Self {
            v4: self.v4.updated(edits.v4),
            v6: self.v6.updated(edits.v6),
        }
    }

    /// The Services that have an address, by name.
    pub(super) fn owners(&self, address: IpAddr) -> impl Iterator<Item = &ObjectName> + Clone {
        let (v4, v6) = match address {
            IpAddr::V4(v4) => (Some(self.v4.of(v4)), None),
            IpAddr::V6(v6) => (None, Some(self.v6.of(v6))),
        };
        v4.into_iter().flatten().chain(v6.into_iter().flatten())
    }

    /// Whether there is an address within.
    pub(super) fn any_within(&self, range: &RangeInclusive<IpAddr>) -> bool {
        match (*range.start(), *range.end()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => self.v4.any_within(first, last),
            (IpAddr::V6(first), IpAddr::V6(last)) => self.v6.any_within(first, last),
            _ => false,
        }
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, &ObjectName)> {
        let v4 = self
            .v4
            .after(None)
            .map(|(address, service)| ((*address).into(), service));
        let v6 = self
            .v6
            .after(None)
            .map(|(address, service)| ((*address).into(), service));
        v4.chain(v6)
    }
}

/// The addresses of one version of IP: sorted, in pieces.
#[derive(Clone, Debug)]
struct Owners<A>(Arc<[Piece<A>]>);

/// Some entries, and at least one.
type Piece<A> = Arc<[(A, ObjectName)]>;

impl<A> Default for Owners<A> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<A: Ord + Copy> Owners<A> {
    fn updated(&self, mut edits: Vec<Edit<A>>) -> Self {
        if edits.is_empty() {
            return self.clone();
        }
        edits.sort_unstable();
        let mut edits = edits.as_slice();
        let mut pieces = Vec::with_capacity(self.0.len() + 1);
        let mut open: Vec<(A, ObjectName)> = Vec::new();
        for (number, piece) in self.0.iter().enumerate() {
            let next = self.0.get(number + 1).and_then(|next| next.first());
            let is_here = |(address, service, _): &Edit<A>| {
                next.is_none_or(|next| (address, service) < (&next.0, &next.1))
            };
            let (here, later) = edits.split_at(edits.partition_point(is_here));
            edits = later;
            if here.is_empty() && open.is_empty() {
                pieces.push(Arc::clone(piece));
                continue;
            }
            edit(piece, here, &mut open);
            if open.len() >= LEAST {
                cut(&mut open, &mut pieces);
            }
        }
        // All of them, where there was no piece.
        edit(&[], edits, &mut open);
        cut(&mut open, &mut pieces);
        Self(pieces.into())
    }

    fn of(&self, address: A) -> impl Iterator<Item = &ObjectName> + Clone {
        let entries = self.after(Some(address));
        let own = entries.take_while(move |(other, _)| *other == address);
        own.map(|(_, service)| service)
    }

    fn any_within(&self, first: A, last: A) -> bool {
        let next = self.after(Some(first)).next();
        next.is_some_and(|(address, _)| *address <= last)
    }

    /// The entries from an address on, or all.
    fn after(&self, first: Option<A>) -> impl Iterator<Item = &(A, ObjectName)> + Clone {
        let is_before = move |(address, _): &(A, ObjectName)| Some(*address) < first;
        let number = self
            .0
            .partition_point(|piece| piece.last().is_some_and(is_before));
        let mut pieces = self.0[number..].iter();
        let begun = pieces.next().map_or(&[][..], |piece| {
            let (_, from) = piece.split_at(piece.partition_point(is_before));
            from
        });
        begun.iter().chain(pieces.flat_map(|piece| piece.iter()))
    }
}

/// Adds what becomes of a piece.
fn edit<A: Ord + Copy>(piece: &[(A, ObjectName)], edits: &[Edit<A>], edited: &mut Vec<(A, ObjectName)>) {
    let is_edited = |(address, service): &(A, ObjectName)| {
        let found = edits.binary_search_by(|(edit_address, edit_service, _)| {
            (edit_address, edit_service).cmp(&(address, service))
        });
        found.is_ok()
    };
    let from = edited.len();
    edited.extend(piece.iter().filter(|entry| !is_edited(entry)).cloned());
    let put = edits.iter().filter(|(.., is_there)| *is_there);
    edited.extend(put.map(|(address, service, _)| (*address, service.clone())));
    edited[from..].sort_unstable();
}

/// Makes pieces of like size of what is collected.
fn cut<A>(entries: &mut Vec<(A, ObjectName)>, pieces: &mut Vec<Piece<A>>) {
    let size = entries.len().div_ceil(entries.len().div_ceil(MOST).max(1)).max(1);
    while !entries.is_empty() {
        pieces.push(entries.drain(..size.min(entries.len())).collect());
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

    fn service(name: &str) -> ObjectName {
        ObjectName::new("a", name)
    }

    fn edited(reverse: &Reverse, edits: &[(&str, &str, bool)]) -> Reverse {
        let mut collected = Edits::default();
        for (address, name, is_there) in edits {
            collected.add(address.parse().expect("address"), service(name), *is_there);
        }
        reverse.updated(collected)
    }

    #[test]
    fn an_address_leads_to_all_who_have_it_and_a_range_to_whether_one_is_there() {
        let all = edited(
            &Reverse::default(),
            &[
                ("fd00::1", "six", true),
                ("10.0.0.7", "web", true),
                ("10.0.0.7", "api", true),
                ("10.0.0.9", "gone", false),
            ],
        );
        let owners = |reverse: &Reverse, address: &str| -> Vec<String> {
            let owners = reverse.owners(address.parse().expect("address"));
            owners.map(|service| service.name.to_string()).collect()
        };
        assert_eq!(owners(&all, "10.0.0.7"), ["api", "web"]);
        assert_eq!(owners(&all, "fd00::1"), ["six"]);
        assert!(owners(&all, "10.0.0.9").is_empty());
        let fewer = edited(&all, &[("10.0.0.7", "api", false)]);
        assert_eq!(owners(&fewer, "10.0.0.7"), ["web"]);

        let within = |first: &str, last: &str| {
            let address = |text: &str| text.parse::<IpAddr>().expect("address");
            all.any_within(&(address(first)..=address(last)))
        };
        assert!(within("10.0.0.0", "10.0.0.255") && within("10.0.0.7", "10.0.0.7"));
        assert!(!within("10.0.0.8", "10.0.0.255") && !within("10.0.1.0", "10.0.1.255"));
        assert!(within("fd00::", "fd00::f") && !within("fd00::2", "fd00::f"));
    }

    #[test]
    fn an_edit_copies_the_pieces_it_falls_in_and_small_ones_are_joined() {
        let address = |number: u32| Ipv4Addr::from(0x0a00_0000 + number);
        let edits = |numbers: &mut dyn Iterator<Item = u32>, is_there: bool| -> Vec<Edit<Ipv4Addr>> {
            let edits = numbers.map(|number| (address(number), service("web"), is_there));
            edits.collect()
        };
        let told = |owners: &Owners<Ipv4Addr>| -> Vec<Ipv4Addr> {
            owners.after(None).map(|(address, _)| *address).collect()
        };
        let even = Owners::default().updated(edits(&mut (0..4000).step_by(2).rev(), true));
        assert_eq!(told(&even), (0..4000).step_by(2).map(address).collect::<Vec<_>>());
        assert!(
            even.0
                .iter()
                .all(|piece| piece.len() <= MOST && piece.len() > MOST / 2)
        );

        let one_more = even.updated(edits(&mut [1001].into_iter(), true));
        let shared = |piece: &&Piece<Ipv4Addr>| even.0.iter().any(|old| Arc::ptr_eq(old, piece));
        assert_eq!(one_more.0.iter().filter(shared).count(), even.0.len() - 1);
        let mut expected: Vec<u32> = (0..4000).step_by(2).chain([1001]).collect();
        expected.sort_unstable();
        assert_eq!(
            told(&one_more),
            expected.into_iter().map(address).collect::<Vec<_>>()
        );

        let fewer = even.updated(edits(
            &mut (0..4000).step_by(2).filter(|number| number % 100 != 0),
            false,
        ));
        assert_eq!(
            told(&fewer),
            (0..4000).step_by(100).map(address).collect::<Vec<_>>()
        );
        assert_eq!(fewer.0.len(), 1);
        assert!(
            fewer
                .updated(edits(&mut (0..4000).step_by(100), false))
                .0
                .is_empty()
        );
    }
}

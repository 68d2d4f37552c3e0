//! Lists of endpoints in little memory: there are more endpoints than of anything else.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

use super::{Conditions, Endpoint, Extras};
use crate::{NodeName, Pools, Text};

/// The endpoints of one slice, in the object's order. An entry of IPv4 takes 16 bytes and the name of its pod; what it
/// says otherwise it shares with those that say the same, also in other slices once they are packed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    rows: Rows,
    /// Names of pods, one behind the other.
    pods: Box<str>,
}

#[derive(Clone, PartialEq, Eq)]
enum Rows {
    /// All addresses are of IPv4.
    V4(Box<[Row<Ipv4Addr>]>),
    /// Some are not.
    Any(Box<[Row<IpAddr>]>),
}

#[derive(Clone, PartialEq, Eq)]
struct Row<A> {
    address: A,
    /// Where the name of its pod ends, and that of the next one begins.
    pod_end: u32,
    attributes: Arc<Attributes>,
}

const _: () = assert!(size_of::<Row<Ipv4Addr>>() == 16);

/// What an entry says besides address and pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attributes {
    conditions: Conditions,
    node: Option<NodeName>,
    zone: Option<Text>,
    extras: Option<Box<Extras>>,
}

impl Attributes {
    pub(crate) fn share(&mut self, pools: &mut Pools) {
        let extras = self.extras.as_deref_mut();
        let hinted = extras.map(|extras| (&mut extras.hinted_zones, &mut extras.hinted_nodes));
        let (zones, nodes) = hinted.unzip();
        let zones = zones.into_iter().flatten().chain(&mut self.zone);
        let nodes = nodes.into_iter().flatten().chain(&mut self.node);
        for text in zones.chain(nodes.map(|node| &mut node.0)) {
            pools.share(text);
        }
    }
}

/// One of [`Endpoints`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointRef<'t> {
    /// `addresses[0]`.
    pub address: IpAddr,
    /// Name of its pod, which is in the slice's namespace.
    pub pod: Option<&'t str>,
    attributes: &'t Attributes,
}

impl<'t> EndpointRef<'t> {
    /// `conditions`.
    #[must_use]
    pub fn conditions(self) -> Conditions {
        self.attributes.conditions
    }

    /// `nodeName`.
    #[must_use]
    pub fn node(self) -> Option<&'t NodeName> {
        self.attributes.node.as_ref()
    }

    /// `zone`.
    #[must_use]
    pub fn zone(self) -> Option<&'t Text> {
        self.attributes.zone.as_ref()
    }

    /// `hostname`, DNS only.
    #[must_use]
    pub fn hostname(self) -> Option<&'t str> {
        self.extras()?.hostname.as_deref()
    }

    /// `hints.forZones`.
    #[must_use]
    pub fn hinted_zones(self) -> &'t [Text] {
        self.extras().map_or(&[], |extras| &extras.hinted_zones)
    }

    /// `hints.forNodes`.
    #[must_use]
    pub fn hinted_nodes(self) -> &'t [NodeName] {
        self.extras().map_or(&[], |extras| &extras.hinted_nodes)
    }

    fn extras(self) -> Option<&'t Extras> {
        self.attributes.extras.as_deref()
    }
}

impl From<EndpointRef<'_>> for Endpoint {
    fn from(endpoint: EndpointRef<'_>) -> Self {
        let EndpointRef {
            address,
            pod,
            attributes,
        } = endpoint;
        let Attributes {
            conditions,
            node,
            zone,
            extras,
        } = attributes.clone();
        Self {
            address,
            conditions,
            node,
            zone,
            pod: pod.map(Box::from),
            extras,
        }
    }
}

impl Endpoints {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.rows {
            Rows::V4(rows) => rows.len(),
            Rows::Any(rows) => rows.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The one at a place, from 0.
    #[must_use]
    pub fn get(&self, place: usize) -> Option<EndpointRef<'_>> {
        match &self.rows {
            Rows::V4(rows) => self.endpoint(rows, place),
            Rows::Any(rows) => self.endpoint(rows, place),
        }
    }

    /// Each of them.
    #[must_use]
    pub fn iter(&self) -> Iter<'_> {
        Iter {
            endpoints: self,
            places: 0..self.len(),
        }
    }

    /// Makes them share what they say alike with those of other slices.
    pub(super) fn pack(&mut self, pools: &mut Pools) {
        match &mut self.rows {
            Rows::V4(rows) => pack(rows, pools),
            Rows::Any(rows) => pack(rows, pools),
        }
    }

    fn endpoint<'t, A: Copy + Into<IpAddr>>(
        &'t self,
        rows: &'t [Row<A>],
        place: usize,
    ) -> Option<EndpointRef<'t>> {
        let row = rows.get(place)?;
        let before = place.checked_sub(1).and_then(|place| rows.get(place));
        let pod_begin = before.map_or(0, |before| before.pod_end);
        let pod = self.pods.get(pod_begin as usize..row.pod_end as usize);
        Some(EndpointRef {
            address: row.address.into(),
            pod: pod.filter(|pod| !pod.is_empty()),
            attributes: &row.attributes,
        })
    }
}

fn pack<A>(rows: &mut [Row<A>], pools: &mut Pools) {
    for row in rows {
        pools.share_attributes(&mut row.attributes);
    }
}

impl Default for Rows {
    fn default() -> Self {
        Self::V4(Box::default())
    }
}

impl From<Vec<Row<IpAddr>>> for Rows {
    fn from(rows: Vec<Row<IpAddr>>) -> Self {
        if rows.iter().any(|row| row.address.is_ipv6()) {
            return Self::Any(rows.into());
        }
        // Not collected: that would keep the block of the longer rows.
        let mut shorter = Vec::with_capacity(rows.len());
        shorter.extend(rows.into_iter().filter_map(|row| match row.address {
            IpAddr::V4(address) => Some(Row {
                address,
                pod_end: row.pod_end,
                attributes: row.attributes,
            }),
            IpAddr::V6(_) => None,
        }));
        Self::V4(shorter.into())
    }
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(endpoints: I) -> Self {
        let mut pods = String::new();
        let mut rows: Vec<Row<IpAddr>> = Vec::new();
        for endpoint in endpoints {
            let Endpoint {
                address,
                conditions,
                node,
                zone,
                pod,
                extras,
            } = endpoint;
            let attributes = Attributes {
                conditions,
                node,
                zone,
                extras,
            };
            // Neighbours often say the same.
            let last = rows.last().map(|last| &last.attributes);
            let attributes = match last.filter(|last| ***last == attributes) {
                Some(last) => Arc::clone(last),
                None => Arc::new(attributes),
            };
            pods += pod.as_deref().unwrap_or_default();
            rows.push(Row {
                address,
                pod_end: u32::try_from(pods.len()).unwrap_or(u32::MAX),
                attributes,
            });
        }
        Self {
            rows: rows.into(),
            pods: pods.as_str().into(),
        }
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(endpoints: Vec<Endpoint>) -> Self {
        endpoints.into_iter().collect()
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self).finish()
    }
}

impl<'t> IntoIterator for &'t Endpoints {
    type Item = EndpointRef<'t>;
    type IntoIter = Iter<'t>;

    fn into_iter(self) -> Iter<'t> {
        self.iter()
    }
}

/// Goes through [`Endpoints`].
#[derive(Clone, Debug)]
pub struct Iter<'t> {
    endpoints: &'t Endpoints,
    places: Range<usize>,
}

impl<'t> Iterator for Iter<'t> {
    type Item = EndpointRef<'t>;

    fn next(&mut self) -> Option<Self::Item> {
        self.endpoints.get(self.places.next()?)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.places.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, node: &str, pod: Option<&str>) -> Endpoint {
        Endpoint {
            node: Some(node.into()),
            pod: pod.map(Box::from),
            ..Endpoint::new(address.parse().expect("an address"))
        }
    }

    fn attributes(endpoints: &Endpoints) -> Vec<*const Attributes> {
        let attributes = endpoints.iter().map(|endpoint| endpoint.attributes);
        attributes.map(std::ptr::from_ref).collect()
    }

    #[test]
    fn what_is_put_in_is_there_whatever_the_version_of_ip() {
        let rows: [&[Endpoint]; 5] = [
            &[],
            &[endpoint("10.0.0.1", "a", Some("web-1"))],
            &[
                endpoint("10.0.0.1", "a", None),
                endpoint("10.0.0.2", "a", Some("web-1")),
                endpoint("10.0.0.3", "b", None),
                endpoint("10.0.0.1", "b", Some("web-22")),
            ],
            &[
                endpoint("fd00::1", "a", Some("web-1")),
                endpoint("fd00::2", "a", None),
            ],
            &[
                endpoint("10.0.0.1", "a", Some("web-1")),
                endpoint("::ffff:10.0.0.1", "a", None),
            ],
        ];
        for wanted in rows {
            let endpoints: Endpoints = wanted.iter().cloned().collect();
            let back: Vec<Endpoint> = endpoints.iter().map(Endpoint::from).collect();
            assert_eq!((back.as_slice(), endpoints.len()), (wanted, wanted.len()));
            assert_eq!(endpoints.get(wanted.len()), None);
            let others = rows.iter().filter(|other| **other != wanted);
            for other in others {
                assert_ne!(endpoints, other.iter().cloned().collect());
            }
        }
    }

    #[test]
    fn endpoints_of_all_slices_share_what_they_say_alike_once_they_are_packed() {
        let mut pools = Pools::default();
        let mut lists = [["a", "a", "b"], ["b", "a", "a"]].map(|nodes| -> Endpoints {
            let each = nodes.iter().map(|node| endpoint("10.0.0.1", node, None));
            each.collect()
        });
        let before = lists.clone();
        lists.iter_mut().for_each(|list| list.pack(&mut pools));
        assert_eq!(lists, before);
        let [first, second] = lists.each_ref().map(attributes);
        let (a, b) = (first[0], first[2]);
        assert!(a != b && first == [a, a, b] && second == [b, a, a]);
    }
}

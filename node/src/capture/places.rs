//! The devices that a packet of an end may pass on this machine.
//!
//! An end that is a pod has a device of its own in its namespace, whose other end is on the node; from there packets go
//! by the node's tunnels and by its devices that have addresses: the uplink, a bridge. An end that is the node's has these
//! alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netlink::{Kernel, Link, LinkKind, Netlink};
use trace::Names;
use trace::namespaces::Found;

/// A device where packets are captured.
#[derive(Clone, Debug)]
pub struct Place {
    /// What it is called: node, pod and device.
    pub name: String,
    /// What it is.
    pub description: String,
    /// Its number in its namespace.
    pub device: u32,
    /// The namespace.
    pub found: Found,
}

/// What a namespace has.
struct Host<'f> {
    found: &'f Found,
    links: Vec<Link>,
    /// Devices that have addresses, with these.
    addresses: Vec<(u32, IpAddr)>,
}

impl Host<'_> {
    fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// By which device it sends to an address.
    fn sends_by(&self, address: IpAddr) -> Option<u32> {
        let mut netlink = Netlink::open_in(&self.found.namespace).ok()?;
        netlink.route_to(address).ok()??.link
    }
}

/// Where packets of these ends pass, each device once, in the order in which a packet of the first end meets them. Of
/// several namespaces that have an address, those are left out that are not its `homes`, where there is one.
#[must_use]
pub fn places(
    ends: &[IpAddr],
    namespaces: &[Found],
    names: &Names,
    homes: &BTreeMap<IpAddr, u32>,
) -> Vec<Place> {
    let hosts: Vec<Host<'_>> = namespaces.iter().filter_map(host).collect();
    let mut places = Places {
        names,
        known: BTreeSet::new(),
        places: Vec::new(),
    };
    for address in ends {
        let home = homes.get(address);
        let at_home = |host: &&Host<'_>| home.is_none_or(|home| *home == host.found.inode);
        for host in hosts.iter().filter(at_home) {
            let own = host.addresses.iter().filter(|(_, own)| own == address);
            for (index, _) in own {
                let Some(link) = host.link(*index) else { continue };
                match node_of(host, link, *address, &hosts) {
                    Some((node, other_end)) => places.pod(host, link, node, other_end),
                    None => places.node(host),
                }
            }
        }
    }
    places.places
}

fn host(found: &Found) -> Option<Host<'_>> {
    let mut netlink = Netlink::open_in(&found.namespace).ok()?;
    let addresses = netlink.addresses(None).ok()?;
    Some(Host {
        found,
        links: netlink.links().ok()?,
        addresses: addresses
            .iter()
            .map(|address| (address.link, address.network.ip()))
            .collect(),
    })
}

/// The namespace where the other end of a pod's device is, with that. None: it is no pod's.
///
/// Numbers of devices are those of one namespace, so that several nodes may have a device that looks like it: it is the
/// node that would send to the pod by it.
fn node_of<'h>(
    pod: &Host<'_>,
    link: &Link,
    address: IpAddr,
    hosts: &'h [Host<'h>],
) -> Option<(&'h Host<'h>, &'h Link)> {
    if link.kind != LinkKind::Veth || !link.parent_elsewhere || is_node(&pod.links, &pod.addresses) {
        return None;
    }
    let others = hosts.iter().filter(|host| host.found.inode != pod.found.inode);
    let candidates = others.filter_map(|host| {
        let other = host.link(link.parent?)?;
        let is_its =
            other.kind == LinkKind::Veth && other.parent_elsewhere && other.parent == Some(link.index);
        is_its.then_some((host, other))
    });
    let mut candidates = candidates.filter(|(host, other)| {
        let by = host.sends_by(address);
        by.is_some() && (by == Some(other.index) || by == other.master)
    });
    candidates.next()
}

/// Whether a namespace is a node's, which may hang on a virtual cable itself: it has a tunnel, a bridge, or the other end of
/// a pod's device, which has no address.
fn is_node(links: &[Link], addresses: &[(u32, IpAddr)]) -> bool {
    let has_address = |link: &Link| {
        let mut own = addresses.iter().filter(|(index, _)| *index == link.index);
        own.any(|(_, address)| !is_of_link(*address))
    };
    links.iter().any(|link| match link.kind {
        LinkKind::Vxlan(_) | LinkKind::Bridge => true,
        LinkKind::Veth => link.parent_elsewhere && !has_address(link),
        LinkKind::Physical | LinkKind::Other(_) => false,
    })
}

struct Places<'n> {
    names: &'n Names,
    known: BTreeSet<(u32, u32)>,
    places: Vec<Place>,
}

impl Places<'_> {
    fn pod(&mut self, pod: &Host<'_>, link: &Link, node: &Host<'_>, other_end: &Link) {
        let name = self.names.of_netns(pod.found.inode);
        let name = name.strip_prefix("pod/").unwrap_or(&name);
        let pod_name = format!("{}/{name}", self.node_name(node));
        self.add(pod, link, &pod_name, "the pod's device");
        let node_name = self.node_name(node);
        self.add(node, other_end, &node_name, "the node's end of the pod's device");
        self.node(node);
    }

    /// The tunnels of a node, and its devices that have addresses.
    fn node(&mut self, node: &Host<'_>) {
        let name = self.node_name(node);
        let passes = |link: &&Link| {
            let mut addresses = node.addresses.iter();
            matches!(link.kind, LinkKind::Vxlan(_))
                || addresses.any(|(index, address)| *index == link.index && !is_of_link(*address))
        };
        let links = node.links.iter().filter(|link| link.up && !link.loopback);
        let links = links.filter(passes);
        let mut links: Vec<&Link> = links.collect();
        // The tunnel before what carries it.
        links.sort_by_key(|link| !matches!(link.kind, LinkKind::Vxlan(_)));
        for link in links {
            let description = match &link.kind {
                LinkKind::Vxlan(vxlan) => format!("a VXLAN tunnel, vni {}", vxlan.vni),
                LinkKind::Bridge => "a bridge".to_owned(),
                _ => "a device with an address".to_owned(),
            };
            self.add(node, link, &name, &description);
        }
    }

    /// `causeway up` calls its nodes' namespaces by their names with a word before.
    fn node_name(&self, node: &Host<'_>) -> String {
        let name = self.names.of_netns(node.found.inode);
        name.strip_prefix("causeway-").unwrap_or(&name).to_owned()
    }

    fn add(&mut self, host: &Host<'_>, link: &Link, host_name: &str, description: &str) {
        if !self.known.insert((host.found.inode, link.index)) {
            return;
        }
        self.places.push(Place {
            name: format!("{host_name}/{}", link.name),
            description: description.to_owned(),
            device: link.index,
            found: host.found.clone(),
        });
    }
}

/// Every device that is up has one of IPv6.
fn is_of_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_ends_of_pods_devices_and_a_pod_has_addresses_at_each_of_its_own() {
        let link = |index, kind| Link {
            index,
            name: format!("device{index}"),
            mac: None,
            mtu: 1500,
            up: true,
            running: true,
            loopback: index == 1,
            master: None,
            alias: None,
            parent: None,
            parent_elsewhere: kind == LinkKind::Veth,
            kind,
        };
        let loopback = || link(1, LinkKind::Physical);
        let (own, other) = (|| link(2, LinkKind::Veth), || link(3, LinkKind::Veth));
        let address = |index, text: &str| (index, text.parse().expect("an address"));
        let (first, second) = (address(2, "10.244.1.2"), address(3, "10.99.0.2"));
        let of_link = address(3, "fe80::1");
        let rows = [
            (vec![loopback(), own()], vec![first], false),
            (vec![loopback(), own(), other()], vec![first, second], false),
            (vec![loopback(), own(), other()], vec![first], true),
            (vec![loopback(), own(), other()], vec![first, of_link], true),
            (
                vec![loopback(), own(), link(4, LinkKind::Bridge)],
                vec![first],
                true,
            ),
        ];
        for (links, addresses, expected) in rows {
            assert_eq!(is_node(&links, &addresses), expected, "{links:?} {addresses:?}");
        }
    }
}

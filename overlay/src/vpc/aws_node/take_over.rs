//! Pods that amazon-vpc-cni-k8s connected: who of them lives, by the kernel, and who that is, by the checkpoint.
//!
//! A pod lives as long as its device does, and the device has the address that the node routes by it. One with an entry
//! comes into the book, so that its address is nobody else's and the runtime's DEL finds it. One without, because the
//! file is lost or of another version, becomes a stranger ([`crate::strangers`]): it keeps its address until it goes.
//! Entries without a device are of pods that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use ipnetwork::IpNetwork;
use model::wiring::{ENI_IFNAME_PREFIX, ROUTE_PROTOCOL};
use model::{MacAddr, with_causes};
use netlink::{Kernel, Link, LinkKind, Neighbour, Netlink, Route};

use super::checkpoint::{self, Entry};
use crate::pods::PodError;
use crate::pods::wiring::{host_ifname, host_mac};
use crate::pods::{Adopted, Assigned, PodNetwork};
use crate::reconcile::Mirror;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakenOver {
    /// Pods that came into the book.
    pub pods: usize,
    /// Devices of pods that nobody knows, which keep their addresses.
    pub strangers: Vec<String>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

/// A pod's device on the node's side, with an address that leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device {
    name: String,
    index: u32,
    mac: Option<MacAddr>,
    address: IpAddr,
}

/// Whose a device is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whose {
    Known(Entry, Device),
    Strange(Device),
}

/// Takes over who lives, in the calling thread's network namespace. May be called again: who is known stays so.
///
/// # Errors
/// When the kernel does not tell what there is, or the book cannot be written.
pub fn take_over(directory: &Path, pods: &PodNetwork) -> Result<TakenOver, PodError> {
    let mut taken = TakenOver::default();
    let entries = checkpoint::read(directory).unwrap_or_else(|error| {
        taken.problems.push(with_causes(&error));
        Vec::new()
    });
    let mut kernel = Netlink::open()?;
    let mirror = Mirror::read(&mut kernel, &model::ByFamily::default())?;
    let found = devices(&mirror, &pods.list());
    for whose in identified(entries, found) {
        let (Whose::Known(_, device) | Whose::Strange(device)) = &whose;
        let peer = kernel.peer_of(device.index)?;
        let Some(pod_mac) = peer.and_then(|peer| peer.mac).map(MacAddr) else {
            // It went since.
            continue;
        };
        match whose {
            Whose::Known(entry, device) => {
                let adopted = Adopted {
                    key: entry.key,
                    pod: entry.pod,
                    address: device.address,
                    host_ifname: device.name,
                    host_mac: device.mac,
                    pod_mac: Some(pod_mac),
                };
                taken.pods += usize::from(pods.adopt(&adopted)?);
            }
            Whose::Strange(device) => {
                keep_stranger(&mut kernel, &device, pod_mac)?;
                taken.strangers.push(device.name);
            }
        }
    }
    Ok(taken)
}

/// The devices that pods of another maker have, by the node's routes to one address each.
fn devices(mirror: &Mirror, book: &[Assigned]) -> Vec<Device> {
    let ours: BTreeSet<String> = book.iter().map(host_ifname).collect();
    let our_macs: BTreeSet<MacAddr> = book.iter().map(|pod| host_mac(&pod.key)).collect();
    let is_pods = |link: &&Link| {
        let mac = link.mac.map(MacAddr);
        link.kind == LinkKind::Veth
            && link.name.starts_with(ENI_IFNAME_PREFIX)
            && !ours.contains(&link.name)
            && mac.is_none_or(|mac| !our_macs.contains(&mac))
    };
    let links: BTreeMap<u32, &Link> = mirror
        .links
        .values()
        .filter(is_pods)
        .map(|link| (link.index, link))
        .collect();
    let device = |route: &Route| {
        let link = links.get(&route.link?)?;
        let address = route.destination.ip();
        (IpNetwork::from(address) == route.destination && route.gateway.is_none()).then(|| Device {
            name: link.name.clone(),
            index: link.index,
            mac: link.mac.map(MacAddr),
            address,
        })
    };
    mirror.foreign_routes.iter().filter_map(device).collect()
}

/// Whose each device is: an entry's, when name and address agree.
fn identified(entries: Vec<Entry>, devices: Vec<Device>) -> Vec<Whose> {
    let mut by_address: BTreeMap<IpAddr, Entry> = BTreeMap::new();
    for entry in entries {
        by_address.insert(entry.address, entry);
    }
    let whose = |device: Device| match by_address.remove(&device.address) {
        Some(entry) if entry.host_ifname().is_none_or(|name| name == device.name) => {
            Whose::Known(entry, device)
        }
        _ => Whose::Strange(device),
    };
    devices.into_iter().map(whose).collect()
}

/// A pod whose record is lost is one that our routes lead to ([`crate::strangers`]).
fn keep_stranger(kernel: &mut impl Kernel, device: &Device, pod_mac: MacAddr) -> Result<(), PodError> {
    kernel.replace_neighbour(&Neighbour::permanent(device.index, device.address, pod_mac.0))?;
    let destination = IpNetwork::from(device.address);
    kernel.replace_route(&Route::on_link(destination, device.index, ROUTE_PROTOCOL))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::ObjectName;
    use netlink::FakeKernel;

    use super::*;
    use crate::pods::AttachmentKey;

    const WEB_0: &str = "eni0d7763386da";

    fn entry(id: &str, address: &str, name: &str) -> Entry {
        Entry {
            key: AttachmentKey {
                container_id: id.to_owned(),
                ifname: "eth0".to_owned(),
            },
            address: address.parse().expect("an address"),
            pod: Some(ObjectName::new("default", name)),
        }
    }

    fn device(name: &str, address: &str) -> Device {
        Device {
            name: name.to_owned(),
            index: 1,
            mac: None,
            address: address.parse().expect("an address"),
        }
    }

    #[test]
    fn a_pod_is_known_where_name_and_address_agree_and_one_without_a_device_is_gone() {
        let web = entry("c1", "10.0.0.5", "web-0");
        let gone = entry("c2", "10.0.0.6", "web-1");
        let unnamed = Entry {
            pod: None,
            ..entry("c3", "10.0.0.7", "")
        };
        let rows = [
            (
                vec![web.clone(), gone.clone()],
                vec![device(WEB_0, "10.0.0.5")],
                vec![Whose::Known(web.clone(), device(WEB_0, "10.0.0.5"))],
            ),
            (vec![gone.clone()], vec![], vec![]),
            // Of a pod that has the name of one that is gone.
            (
                vec![web.clone()],
                vec![device(WEB_0, "10.0.0.9")],
                vec![Whose::Strange(device(WEB_0, "10.0.0.9"))],
            ),
            (
                vec![gone],
                vec![device(WEB_0, "10.0.0.6")],
                vec![Whose::Strange(device(WEB_0, "10.0.0.6"))],
            ),
            (
                vec![unnamed.clone()],
                vec![device("eni00000000000", "10.0.0.7")],
                vec![Whose::Known(unnamed, device("eni00000000000", "10.0.0.7"))],
            ),
            (
                vec![],
                vec![device(WEB_0, "10.0.0.5")],
                vec![Whose::Strange(device(WEB_0, "10.0.0.5"))],
            ),
        ];
        for (entries, devices, expected) in rows {
            let row = format!("{entries:?} {devices:?}");
            assert_eq!(identified(entries, devices), expected, "{row}");
        }
    }

    /// Boot's protocol: as the peer makes its routes.
    #[test]
    fn pods_of_another_maker_have_devices_of_its_names_that_routes_of_its_lead_to() {
        let mut kernel = FakeKernel::new();
        let mac = [2, 0, 0, 0, 0, 7];
        let book = Assigned::new(
            AttachmentKey {
                container_id: "ours".to_owned(),
                ifname: "eth0".to_owned(),
            },
            &model::ByFamily::default(),
        );
        let rows = [
            (WEB_0, mac, LinkKind::Veth, "10.0.0.5/32", 3, true),
            (
                "eni00000000001",
                mac,
                LinkKind::Veth,
                "10.0.0.6/32",
                ROUTE_PROTOCOL,
                false,
            ),
            ("eni00000000002", mac, LinkKind::Veth, "10.0.0.0/28", 3, false),
            ("eni00000000003", mac, LinkKind::Physical, "10.0.0.7/32", 3, false),
            ("eth1", mac, LinkKind::Veth, "10.0.0.8/32", 3, false),
            (
                "eni00000000004",
                host_mac(&book.key).0,
                LinkKind::Veth,
                "10.0.0.9/32",
                3,
                false,
            ),
        ];
        let mut expected = Vec::new();
        for (name, mac, kind, destination, protocol, is_theirs) in rows {
            let index = kernel.plug(name, mac, 9001);
            kernel
                .links
                .iter_mut()
                .find(|link| link.index == index)
                .expect("plugged")
                .kind = kind;
            let destination: IpNetwork = destination.parse().expect("a network");
            kernel.routes.push(Route::on_link(destination, index, protocol));
            expected.extend(is_theirs.then(|| Device {
                index,
                mac: Some(MacAddr(mac)),
                ..device(name, &destination.ip().to_string())
            }));
        }
        let mirror = Mirror::read(&mut kernel, &model::ByFamily::default()).expect("works");
        assert_eq!(devices(&mirror, &[book]), expected);
    }
}

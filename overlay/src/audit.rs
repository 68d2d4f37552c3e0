//! Where the kernel is not what the pod network's plan says: a dry run of what every pass of the engine repairs, and of
//! what it leaves to others, such as a pod's device that somebody took down.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{ByFamily, IpFamily, MacAddr, Mtu, ObjectName};
use netlink::nft::{self, Nft};
use netlink::{
    Forwarding, Kernel, Link, LinkChange, LinkKind, Namespace, Neighbour, Netlink, Result, Route, Vxlan,
};

use crate::engine::speaks;
use crate::fast_path::{Passage, passage};
use crate::own_pods::routes_of;
use crate::plan::{Device, Half, Plan, Remote};
use crate::pods::Assigned;
use crate::pods::wiring::host_ifname;
use crate::pool::is_within;
use crate::reconcile::{Devices, Mirror, Objects, device_change, vxlan_settings};
use crate::{guard, masquerade};

/// What every link carries that IPv6 uses (RFC 8200 §5); with less the kernel ends it there.
const LEAST_MTU_V6: u32 = 1280;

/// Something that is not as it shall be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What kind of thing.
    pub part: Part,
    /// Whom it concerns.
    pub whose: Whose,
    /// What it is, as it shall be.
    pub expected: String,
    /// What there is; none where nothing is.
    pub found: Option<String>,
}

/// A kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The tunnel's device.
    Device,
    /// A route.
    Route,
    /// A neighbour's entry.
    Neighbour,
    /// A forwarding entry.
    Forwarding,
    /// A route of somebody else's, to a part of what ours leads to.
    ForeignRoute,
    /// The device and the address that other nodes send to.
    Underlay,
    /// What another node's address on the underlay stands for.
    UnderlayNeighbour,
    /// A pod's device on the node's side.
    PodDevice,
    /// The size of packets that a pod's device takes, which could be larger.
    PodMtu,
}

/// Whom it concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// This node.
    ThisNode,
    /// The node at an address.
    Node(IpAddr),
    /// A pod of this node; its name where the runtime told it.
    Pod {
        /// Its name.
        name: Option<ObjectName>,
        /// Its container.
        container: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = self.found.as_deref().unwrap_or("nothing");
        write!(f, "expected {}, found {found}", self.expected)
    }
}

/// Compares everything, and changes nothing. Pods must be listed after the plan was taken.
///
/// # Errors
/// When the kernel cannot be read.
pub fn differences(kernel: &mut impl Kernel, plan: &Plan, pods: &[Assigned]) -> Result<Vec<Difference>> {
    let links = kernel.links()?;
    let named = |name: &str| links.iter().find(|link| link.name == name);
    let tunnels: ByFamily<u32> = plan
        .halves
        .iter()
        .filter_map(|(family, half)| Some((family, named(&half.device.as_ref()?.name)?.index)))
        .collect();
    let mirror = Mirror::read(kernel, &tunnels)?;
    let addresses = kernel.addresses(None)?;
    let mut found = Vec::new();
    for (family, half) in plan.halves.iter() {
        if let Some(device) = &half.device {
            let with_address = addresses
                .iter()
                .find(|address| address.network.ip() == device.local);
            let below = with_address.and_then(|address| links.iter().find(|link| link.index == address.link));
            found.extend(of_underlay(device.local, below));
            found.extend(of_device(device, below, &mirror));
            if let Some(below) = below {
                let neighbours = kernel.neighbours(Some(below.index))?;
                found.extend(of_neighbours(half, below, &neighbours));
            }
        }
        for (subnet, remote) in &half.remotes {
            found.extend(of_strangers(*subnet, remote, &mirror));
            let underlay = match remote {
                Remote::Tunnel { .. } => 0,
                Remote::Gateway { public_ip } => {
                    let link = kernel.route_to(*public_ip)?.and_then(|route| route.link);
                    link.unwrap_or_default()
                }
            };
            let mut wanted = Objects::default();
            wanted.add_remote(*subnet, remote, Devices { tunnels, underlay }, family);
            found.extend(of_objects(&wanted, &mirror, &Whose::Node(remote.public_ip())));
        }
    }
    for pod in pods {
        found.extend(of_pod(pod, plan, &mirror));
    }
    Ok(found)
}

/// The tables of nftables that the pod network has, each with what is not as it shall be. Writes nothing.
///
/// # Errors
/// When they cannot be read.
pub fn table_differences(
    nft: &mut Nft,
    plan: &Plan,
    pods: &[Assigned],
    anti_spoofing: bool,
) -> std::result::Result<Vec<(String, Vec<String>)>, nft::Error> {
    let rules = passage(nft) == Ok(Passage::Whole);
    let routes: Vec<_> = routes_of(pods).collect();
    let mut found = Vec::new();
    for (family, half) in plan.halves.iter().filter(|(family, _)| speaks(*family)) {
        let masquerades = masquerade::table(family);
        if !nft.has_table(&masquerades)? {
            found.push((masquerades.to_string(), vec!["it is not there".to_owned()]));
        }
        if anti_spoofing {
            let known = guard::Known { leases: true, rules };
            let guards = guard::plan(family, Some(half), &routes, known);
            let differences = guards.differences(nft)?;
            if !differences.is_empty() {
                found.push((guard::table(family).to_string(), differences));
            }
        }
    }
    Ok(found)
}

/// Takes pods' devices up again, and gives both of their ends the network's MTU, unless that is less than the pod's IPv6
/// needs. Everything else is the engine's to repair. Returns the devices.
///
/// `set_in_pod` comes first ([`set_mtu_in_pod`]; it says whether it changed something): a pod that sends more than the
/// node's end takes loses it without a word, while before the node told it what fits. Where it fails the MTU stays.
///
/// # Errors
/// When the kernel refuses; those before it are mended.
pub fn mend_pod_devices(
    kernel: &mut impl Kernel,
    plan: &Plan,
    pods: &[Assigned],
    set_in_pod: impl Fn(&Assigned, Mtu) -> Result<bool>,
) -> Result<Vec<String>> {
    let mut mended = Vec::new();
    for pod in pods {
        let name = host_ifname(pod);
        let Some(link) = kernel.link_named(&name)? else {
            continue;
        };
        let has_v6 = pod.addresses().get(IpFamily::V6).is_some();
        let is_possible = !has_v6 || plan.pod_mtu.0 >= LEAST_MTU_V6;
        let set = is_possible.then(|| set_in_pod(pod, plan.pod_mtu).ok()).flatten();
        let change = LinkChange {
            up: (!link.up).then_some(true),
            mtu: (set.is_some() && link.mtu != plan.pod_mtu.0).then_some(plan.pod_mtu.0),
            ..LinkChange::default()
        };
        if change != LinkChange::default() {
            kernel.change_link(link.index, &change)?;
        }
        if change != LinkChange::default() || set == Some(true) {
            mended.push(name);
        }
    }
    Ok(mended)
}

/// The pod's network namespace.
///
/// # Errors
/// When it cannot be opened: from a container it may be out of sight.
pub fn namespace_of(pod: &Assigned) -> Result<Namespace> {
    // Runtimes name it by the older path, which is a link to the newer one where it is one.
    let path = pod
        .netns
        .strip_prefix("/var")
        .filter(|path| path.starts_with("/run/"));
    Namespace::open(path.unwrap_or(&pod.netns))
}

/// Gives the end in the pod's namespace an MTU; whether it had another.
///
/// # Errors
/// When the namespace cannot be entered: from a container it may be out of sight.
pub fn set_mtu_in_pod(pod: &Assigned, mtu: Mtu) -> Result<bool> {
    let mut inside = Netlink::open_in(&namespace_of(pod)?)?;
    let link = inside.link_named(&pod.key.ifname)?;
    let Some(link) = link.filter(|link| link.mtu != mtu.0) else {
        return Ok(false);
    };
    let change = LinkChange {
        mtu: Some(mtu.0),
        ..LinkChange::default()
    };
    inside.change_link(link.index, &change)?;
    Ok(true)
}

/// Pods that were wired for a larger network keep their MTU, and lose what does not fit.
fn is_too_large(link: &Link, plan: &Plan) -> bool {
    link.mtu > plan.pod_mtu.0
}

/// The address that other nodes send to, and the device that has it.
fn of_underlay(address: IpAddr, link: Option<&Link>) -> Option<Difference> {
    let found = match link {
        Some(link) if link.up && link.running => return None,
        Some(link) if link.up => Some(format!("{} up, and nothing at its other end", link.name)),
        Some(link) => Some(format!("{} down", link.name)),
        None => None,
    };
    let device = link.map_or("a device", |link| link.name.as_str());
    Some(Difference {
        part: Part::Underlay,
        whose: Whose::ThisNode,
        expected: format!("{device} up with {address}, which other nodes send to"),
        found,
    })
}

/// Other nodes whose addresses on the underlay somebody gave to a MAC address by hand.
fn of_neighbours<'a>(
    half: &'a Half,
    below: &'a Link,
    neighbours: &'a [Neighbour],
) -> impl Iterator<Item = Difference> + 'a {
    let nodes = half.remotes.values().map(Remote::public_ip);
    nodes.filter_map(move |node| {
        let by_hand = neighbours
            .iter()
            .find(|found| found.permanent && found.address == node)?;
        let mac = by_hand
            .mac
            .map(|mac| MacAddr(mac).to_string())
            .unwrap_or_default();
        Some(Difference {
            part: Part::UnderlayNeighbour,
            whose: Whose::Node(node),
            expected: format!("who is asked for {node} on {} to answer for it", below.name),
            found: Some(format!("{mac} for it, set by hand")),
        })
    })
}

/// Routes within a subnet that are not ours: the longest prefix wins.
fn of_strangers<'a>(
    subnet: IpNetwork,
    remote: &'a Remote,
    mirror: &'a Mirror,
) -> impl Iterator<Item = Difference> + 'a {
    let within = mirror.foreign_routes.iter().filter(move |route| {
        route.destination.prefix() > subnet.prefix() && is_within(route.destination, subnet)
    });
    within.map(move |route| Difference {
        part: Part::ForeignRoute,
        whose: Whose::Node(remote.public_ip()),
        expected: format!("no other route than the agent's within {subnet}"),
        found: Some(format!("route {route}")),
    })
}

fn of_device(device: &Device, below: Option<&Link>, mirror: &Mirror) -> Option<Difference> {
    let link = mirror.links.get(&device.name);
    let settings = vxlan_settings(device, below.map(|link| link.index));
    let different = |found: &Vxlan| below.is_some() && *found != settings;
    let mut expected = device_text(&device.name, true, device.mtu.0, Some(device.mac));
    let found = match link {
        None => None,
        Some(link) if !matches!(link.kind, LinkKind::Vxlan(_)) => {
            Some("a device that is no tunnel".to_owned())
        }
        Some(link) => {
            let mut found = device_text(&link.name, link.up, link.mtu, link.mac.map(MacAddr));
            match &link.kind {
                LinkKind::Vxlan(vxlan) if different(vxlan) => {
                    expected += &settings_text(&settings);
                    found += &settings_text(vxlan);
                }
                _ if device_change(device, link) == LinkChange::default() => return None,
                _ => {}
            }
            Some(found)
        }
    };
    Some(Difference {
        part: Part::Device,
        whose: Whose::ThisNode,
        expected,
        found,
    })
}

fn settings_text(vxlan: &Vxlan) -> String {
    let local = vxlan
        .local
        .map_or("anywhere".to_owned(), |local| local.to_string());
    let learning = if vxlan.learning { ", learning" } else { "" };
    format!(", VNI {}, port {}, from {local}{learning}", vxlan.vni, vxlan.port)
}

fn device_text(name: &str, up: bool, mtu: u32, mac: Option<MacAddr>) -> String {
    let state = if up { "up" } else { "down" };
    let mac = mac.map(|mac| format!(" with {mac}")).unwrap_or_default();
    format!("{name} {state}, MTU {mtu}{mac}")
}

fn of_pod(pod: &Assigned, plan: &Plan, mirror: &Mirror) -> Vec<Difference> {
    let whose = Whose::Pod {
        name: pod.pod.clone(),
        container: pod.key.container_id.clone(),
    };
    let name = host_ifname(pod);
    let of_device = |found: Option<String>| Difference {
        part: Part::PodDevice,
        whose: whose.clone(),
        expected: format!("{name} up, MTU {} at most", plan.pod_mtu.0),
        found,
    };
    let Some(link) = mirror.links.get(&name) else {
        return vec![of_device(None)];
    };
    let mut found = Vec::new();
    if !link.up || is_too_large(link, plan) {
        found.push(of_device(Some(device_text(&name, link.up, link.mtu, None))));
    }
    if link.mtu < plan.pod_mtu.0 {
        found.push(Difference {
            part: Part::PodMtu,
            whose: whose.clone(),
            expected: format!("{name} with MTU {}", plan.pod_mtu.0),
            found: Some(format!("MTU {}", link.mtu)),
        });
    }
    let mut wanted = Objects::default();
    for route in routes_of(std::slice::from_ref(pod)) {
        wanted.add_pod(&route, link.index);
    }
    found.extend(of_objects(&wanted, mirror, &whose));
    found
}

fn of_objects(wanted: &Objects, mirror: &Mirror, whose: &Whose) -> Vec<Difference> {
    let mut found = Vec::new();
    let mut add = |part, expected: String, there: Option<String>| {
        found.push(Difference {
            part,
            whose: whose.clone(),
            expected,
            found: there,
        });
    };
    for neighbour in wanted.neighbours.difference(&mirror.neighbours) {
        let same = |found: &&Neighbour| (found.link, found.address) == (neighbour.link, neighbour.address);
        let there = mirror.neighbours.iter().find(same);
        let text = |neighbour: &Neighbour| {
            let mac = neighbour.mac.map(|mac| MacAddr(mac).to_string());
            format!("neighbour {} with {}", neighbour.address, mac.unwrap_or_default())
        };
        add(Part::Neighbour, text(neighbour), there.map(text));
    }
    for entry in wanted.forwarding.difference(&mirror.forwarding) {
        let same = |found: &&Forwarding| (found.link, found.mac) == (entry.link, entry.mac);
        let there = mirror.forwarding.iter().find(same);
        let text = |entry: &Forwarding| format!("{} behind {}", MacAddr(entry.mac), entry.destination);
        add(Part::Forwarding, text(entry), there.map(text));
    }
    for route in wanted.routes.values() {
        let there = mirror.route(&route.destination);
        if there != Some(route) {
            let text = |route: &Route| format!("route {route}");
            add(Part::Route, text(route), there.map(text));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use ipnetwork::IpNetwork;
    use model::lease::{Encap, Lease, Site};
    use model::{IpFamily, Vni};
    use netlink::{Address, Error, FakeKernel, NewLink, NewLinkKind, Operation, RouteKind};
    use nix::errno::Errno;

    use super::*;
    use crate::flannel::NetworkConfig;
    use crate::plan::{Underlay, plan};
    use crate::pods::AttachmentKey;
    use crate::reconcile::{Outcome, ensure_device, repair};

    const UNDERLAY: u32 = 1;

    fn plan_of_two() -> Plan {
        let lease = |third: u8, host: u8| {
            let site = Site {
                subnet: format!("10.5.{third}.0/24").parse().expect("a network"),
                public_ip: [172, 30, 0, host].into(),
                encap: Encap::Vxlan {
                    vni: Vni(1),
                    vtep_mac: MacAddr([2, 0, 0, 0, 0, third]),
                },
            };
            Lease {
                sites: [(IpFamily::V4, site)].into_iter().collect(),
            }
        };
        let config = NetworkConfig::parse(r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#);
        let on_link: IpNetwork = "172.30.0.11/24".parse().expect("a network");
        let underlay = Underlay {
            networks: [on_link].into_iter().collect(),
            mtu: Mtu(1500),
        };
        plan(&config.expect("valid"), &lease(1, 11), &[lease(2, 12)], &underlay).0
    }

    fn pod() -> Assigned {
        let key = AttachmentKey {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let address: IpAddr = [10, 5, 1, 5].into();
        let mut pod = Assigned::new(key, &[(IpFamily::V4, address)].into_iter().collect());
        pod.pod = Some(ObjectName::new("default", "web"));
        pod
    }

    /// A kernel that has all of the plan.
    fn whole() -> FakeKernel {
        let mut kernel = FakeKernel::new();
        let eth0 = kernel.plug("eth0", [2, 9, 9, 9, 9, 9], 1500);
        let on_underlay = "172.30.0.11/24".parse().expect("a network");
        kernel.addresses.push(Address::global(eth0, on_underlay));
        let plan = plan_of_two();
        let mut veth = NewLink::new(host_ifname(&pod()), NewLinkKind::Bridge);
        (veth.mtu, veth.up) = (Some(1450), true);
        kernel.create_link(&veth).expect("the name is free");
        let tunnels = plan.halves.map(|_, half| {
            let device = half.device.as_ref().expect("vxlan");
            let made = ensure_device(&mut kernel, device, UNDERLAY, &mut Outcome::default());
            made.expect("it can be made").expect("the name is free")
        });
        let mirror = Mirror::read(&mut kernel, &tunnels).expect("readable");
        let devices = Devices {
            tunnels,
            underlay: UNDERLAY,
        };
        let pods: Vec<_> = routes_of(&[pod()]).collect();
        repair(&mut kernel, &mirror, &plan, devices, &pods, |_| true);
        kernel
    }

    #[track_caller]
    fn check(damage: impl FnOnce(&mut FakeKernel), expected: &[(Part, &str)]) {
        let mut kernel = whole();
        damage(&mut kernel);
        kernel.writes.clear();
        let found = differences(&mut kernel, &plan_of_two(), &[pod()]).expect("readable");
        let told: Vec<_> = found
            .iter()
            .map(|found| (found.part, found.to_string()))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(part, text)| (*part, (*text).to_owned()))
            .collect();
        assert_eq!(told, expected);
        assert!(kernel.writes.is_empty(), "{:?}", kernel.writes);
    }

    fn index(kernel: &mut FakeKernel, name: &str) -> u32 {
        let link = kernel.link_named(name).expect("readable");
        link.expect("it is there").index
    }

    #[test]
    fn what_is_missing_or_another_is_told_and_nothing_is_written() {
        check(|_| (), &[]);
        check(
            |kernel| {
                let tunnel = index(kernel, "flannel.1");
                for entry in kernel.forwarding(tunnel).expect("readable") {
                    kernel.delete_forwarding(&entry).expect("there");
                }
            },
            &[(
                Part::Forwarding,
                "expected 02:00:00:00:00:02 behind 172.30.0.12, found nothing",
            )],
        );
        check(
            |kernel| {
                let tunnel = index(kernel, "flannel.1");
                let other = Neighbour::permanent(tunnel, [10, 5, 2, 0].into(), [2, 0, 0, 0, 0, 9]);
                kernel.replace_neighbour(&other).expect("written");
            },
            &[(
                Part::Neighbour,
                "expected neighbour 10.5.2.0 with 02:00:00:00:00:02, found neighbour 10.5.2.0 with 02:00:00:00:00:09",
            )],
        );
        check(
            |kernel| {
                let tunnel = index(kernel, "flannel.1");
                let change = LinkChange {
                    mtu: Some(1200),
                    ..LinkChange::default()
                };
                kernel.change_link(tunnel, &change).expect("there");
            },
            &[(
                Part::Device,
                "expected flannel.1 up, MTU 1450 with 02:00:00:00:00:01, found flannel.1 up, MTU 1200 with \
                 02:00:00:00:00:01",
            )],
        );
    }

    #[test]
    fn a_tunnel_with_other_settings_is_told_with_them() {
        check(
            |kernel| {
                let tunnel = index(kernel, "flannel.1");
                let link = kernel.links.iter_mut().find(|link| link.index == tunnel);
                if let LinkKind::Vxlan(vxlan) = &mut link.expect("there").kind {
                    vxlan.vni = 7;
                }
            },
            &[(
                Part::Device,
                "expected flannel.1 up, MTU 1450 with 02:00:00:00:00:01, VNI 1, port 8472, from 172.30.0.11, found \
                 flannel.1 up, MTU 1450 with 02:00:00:00:00:01, VNI 7, port 8472, from 172.30.0.11",
            )],
        );
    }

    #[test]
    fn what_lies_below_and_what_others_made_is_told() {
        check(
            |kernel| {
                let eth0 = index(kernel, "eth0");
                let down = LinkChange {
                    up: Some(false),
                    ..LinkChange::default()
                };
                kernel.change_link(eth0, &down).expect("there");
            },
            &[(
                Part::Underlay,
                "expected eth0 up with 172.30.0.11, which other nodes send to, found eth0 down",
            )],
        );
        check(
            |kernel| {
                let eth0 = index(kernel, "eth0");
                let by_hand = Neighbour::permanent(eth0, [172, 30, 0, 12].into(), [2, 0, 0, 0, 0, 9]);
                kernel.replace_neighbour(&by_hand).expect("written");
            },
            &[(
                Part::UnderlayNeighbour,
                "expected who is asked for 172.30.0.12 on eth0 to answer for it, found 02:00:00:00:00:09 for it, set \
                 by hand",
            )],
        );
        check(
            |kernel| {
                let pod = "10.5.2.7/32".parse().expect("a network");
                let mut blackhole = Route::on_link(pod, 0, 3);
                (blackhole.link, blackhole.kind) = (None, RouteKind::Blackhole);
                kernel.replace_route(&blackhole).expect("written");
            },
            &[(
                Part::ForeignRoute,
                "expected no other route than the agent's within 10.5.2.0/24, found route blackhole 10.5.2.7/32 table \
                 254 protocol 3",
            )],
        );
    }

    #[test]
    fn a_pods_device_that_is_down_is_told_and_mended() {
        let mut kernel = whole();
        let name = host_ifname(&pod());
        let device = index(&mut kernel, &name);
        let down = LinkChange {
            up: Some(false),
            mtu: Some(9000),
            ..LinkChange::default()
        };
        kernel.change_link(device, &down).expect("there");
        let plan = plan_of_two();
        let found = differences(&mut kernel, &plan, &[pod()]).expect("readable");
        let first = found.first().expect("told");
        let pod_name = ObjectName::new("default", "web");
        assert!(matches!(&first.whose, Whose::Pod { name: Some(name), .. } if *name == pod_name));
        let expected = format!("expected {name} up, MTU 1450 at most, found {name} down, MTU 9000");
        assert_eq!(first.to_string(), expected);
        // What is not lowered in the pod is not lowered before it.
        for (is_in_sight, mtu) in [(false, 9000), (true, 1450)] {
            let set = |_: &Assigned, _| {
                let absent = Error::of(Operation::OpenNamespace, "pod")(Errno::ENOENT);
                if is_in_sight { Ok(true) } else { Err(absent) }
            };
            let mended = mend_pod_devices(&mut kernel, &plan, &[pod()], set).expect("writable");
            assert_eq!(mended, [name.as_str()]);
            let link = kernel.link_at(device).expect("readable").expect("there");
            assert!(link.up && link.mtu == mtu, "{link:?}");
        }
        let again = mend_pod_devices(&mut kernel, &plan, &[pod()], |_, _| Ok(false)).expect("writable");
        assert!(again.is_empty());
    }

    #[test]
    fn a_pods_mtu_grows_with_the_network_and_stays_where_ipv6_would_end() {
        let name = host_ifname(&pod());
        let mtu_after = |pod: &Assigned, before: u32, plan: &Plan| {
            let mut kernel = whole();
            let device = index(&mut kernel, &name);
            let change = LinkChange {
                mtu: Some(before),
                ..LinkChange::default()
            };
            kernel.change_link(device, &change).expect("there");
            let set = |_: &Assigned, _| Ok(true);
            mend_pod_devices(&mut kernel, plan, std::slice::from_ref(pod), set).expect("writable");
            kernel.link_at(device).expect("readable").expect("there").mtu
        };
        let plan = plan_of_two();
        assert_eq!(mtu_after(&pod(), 1350, &plan), 1450);
        let mut narrow = plan_of_two();
        narrow.pod_mtu = Mtu(1230);
        assert_eq!(mtu_after(&pod(), 1450, &narrow), 1230);
        let both = ["10.5.1.5", "fd05::5"].map(|text| text.parse::<IpAddr>().expect("an address"));
        let mut dual = Assigned::new(pod().key, &both.into_iter().collect());
        dual.pod = pod().pod;
        assert_eq!(mtu_after(&dual, 1450, &narrow), 1450);
        assert_eq!(mtu_after(&dual, 1300, &plan), 1450);
    }
}

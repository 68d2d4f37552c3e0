//! Where the kernel is not what the pod network's plan says: a dry run of what every pass of the engine repairs, and of
//! what it leaves to others, such as a pod's device that somebody took down.

use std::fmt;
use std::net::IpAddr;

use model::{ByFamily, MacAddr, Mtu, ObjectName};
use netlink::{Forwarding, Kernel, Link, LinkChange, LinkKind, Namespace, Neighbour, Netlink, Result, Route};

use crate::engine::routes_of;
use crate::plan::{Device, Plan, Remote};
use crate::pods::Assigned;
use crate::pods::wiring::host_ifname;
use crate::reconcile::{Devices, Mirror, Objects, device_change};

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
    /// A pod's device on the node's side.
    PodDevice,
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
    let mut found = Vec::new();
    for (family, half) in plan.halves.iter() {
        found.extend(half.device.iter().flat_map(|device| of_device(device, &mirror)));
        for (subnet, remote) in &half.remotes {
            let (public_ip, underlay) = match remote {
                Remote::Tunnel { public_ip, .. } => (*public_ip, 0),
                Remote::Gateway { public_ip } => {
                    let link = kernel.route_to(*public_ip)?.and_then(|route| route.link);
                    (*public_ip, link.unwrap_or_default())
                }
            };
            let mut wanted = Objects::default();
            wanted.add_remote(*subnet, remote, Devices { tunnels, underlay }, family);
            found.extend(of_objects(&wanted, &mirror, &Whose::Node(public_ip)));
        }
    }
    for pod in pods {
        found.extend(of_pod(pod, plan, &mirror));
    }
    Ok(found)
}

/// Takes pods' devices up again, and gives both of their ends the network's MTU. Everything else is the engine's to
/// repair. Returns the devices.
///
/// `lower_in_pod` comes first ([`lower_in_pod`]): a pod that sends more than the node's end takes loses it without a
/// word, while before the node told it what fits. Where it fails the MTU stays.
///
/// # Errors
/// When the kernel refuses; those before it are mended.
pub fn mend_pod_devices(
    kernel: &mut impl Kernel,
    plan: &Plan,
    pods: &[Assigned],
    lower_in_pod: impl Fn(&Assigned, Mtu) -> Result<()>,
) -> Result<Vec<String>> {
    let mut mended = Vec::new();
    for pod in pods {
        let name = host_ifname(&pod.key);
        let Some(link) = kernel.link_named(&name)? else {
            continue;
        };
        let lowers = is_too_large(&link, plan) && lower_in_pod(pod, plan.pod_mtu).is_ok();
        let change = LinkChange {
            up: (!link.up).then_some(true),
            mtu: lowers.then_some(plan.pod_mtu.0),
            ..LinkChange::default()
        };
        if change != LinkChange::default() {
            kernel.change_link(link.index, &change)?;
            mended.push(name);
        }
    }
    Ok(mended)
}

/// Gives the end in the pod's namespace an MTU, if its own is larger.
///
/// # Errors
/// When the namespace cannot be entered: from a container it may be out of sight.
pub fn lower_in_pod(pod: &Assigned, mtu: Mtu) -> Result<()> {
    // Runtimes name it by the older path, which is a link to the newer one where it is one.
    let path = pod
        .netns
        .strip_prefix("/var")
        .filter(|path| path.starts_with("/run/"));
    let mut inside = Netlink::open_in(&Namespace::open(path.unwrap_or(&pod.netns))?)?;
    match inside.link_named(&pod.key.ifname)? {
        Some(link) if link.mtu > mtu.0 => inside.change_link(
            link.index,
            &LinkChange {
                mtu: Some(mtu.0),
                ..LinkChange::default()
            },
        ),
        _ => Ok(()),
    }
}

/// Pods that were wired for a larger network keep their MTU, and lose what does not fit.
fn is_too_large(link: &Link, plan: &Plan) -> bool {
    link.mtu > plan.pod_mtu.0
}

fn of_device(device: &Device, mirror: &Mirror) -> Option<Difference> {
    let link = mirror.links.get(&device.name);
    let found = match link {
        None => None,
        Some(link) if !matches!(link.kind, LinkKind::Vxlan(_)) => {
            Some("a device that is no tunnel".to_owned())
        }
        Some(link) if device_change(device, link) == LinkChange::default() => return None,
        Some(link) => Some(device_text(&link.name, link.up, link.mtu, link.mac.map(MacAddr))),
    };
    Some(Difference {
        part: Part::Device,
        whose: Whose::ThisNode,
        expected: device_text(&device.name, true, device.mtu.0, Some(device.mac)),
        found,
    })
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
    let name = host_ifname(&pod.key);
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
    use netlink::{Error, FakeKernel, NewLink, NewLinkKind, Operation};
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
        kernel.plug("eth0", [2, 9, 9, 9, 9, 9], 1500);
        let plan = plan_of_two();
        let mut veth = NewLink::new(host_ifname(&pod().key), NewLinkKind::Bridge);
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
    fn a_pods_device_that_is_down_is_told_and_mended() {
        let mut kernel = whole();
        let name = host_ifname(&pod().key);
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
            let lower = |_: &Assigned, _| {
                let absent = Error::of(Operation::OpenNamespace, "pod")(Errno::ENOENT);
                if is_in_sight { Ok(()) } else { Err(absent) }
            };
            let mended = mend_pod_devices(&mut kernel, &plan, &[pod()], lower).expect("writable");
            assert_eq!(mended, [name.as_str()]);
            let link = kernel.link_at(device).expect("readable").expect("there");
            assert!(link.up && link.mtu == mtu, "{link:?}");
        }
        let again = mend_pod_devices(&mut kernel, &plan, &[pod()], |_, _| Ok(())).expect("writable");
        assert!(again.is_empty());
    }
}

//! Where the kernel is not what the plan of a node in a VPC says: a dry run of what every pass repairs, and of what it
//! leaves to others, such as a pod's device that somebody took down.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::{ByFamily, ObjectName};
use netlink::nft::{self, Nft};
use netlink::route::TABLE_MAIN;
use netlink::rule::Rule;
use netlink::{Kernel, Link, LinkChange, Result, Route, RouteFilter, sysctl};

use super::plan::Plan;
use super::reconcile::{Actual, Change, difference, interface_devices};
use super::translation;
use crate::own_pods::routes_of;
use crate::pods::Assigned;
use crate::pods::wiring::host_ifname;
use crate::reconcile::Mirror;

/// `rp_filter`: a packet is dropped whose source is not routed back by the device that it came in by (RFC 3704 §2.2).
const STRICT: u32 = 1;

/// Something that is not as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// What kind of thing.
    pub part: Part,
    /// What it is about.
    pub whose: Whose,
    /// What is wrong, in words.
    pub said: String,
}

/// A kind of thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A rule of policy routing.
    Rule,
    /// A route of an interface's table, or one that its device's address brought.
    Table,
    /// An interface's device, its MTU and its addresses.
    Device,
    /// What drops packets whose source is routed back by another device.
    ReversePath,
    /// The table of nftables that gives packets the primary interface's address.
    Translation,
    /// The route to a pod.
    PodRoute,
    /// A pod's device on the node's side.
    PodDevice,
}

/// What a difference is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whose {
    /// A rule, as `ip rule` shows it.
    Rule(String),
    /// A routing table.
    Table(u32),
    /// A device of this node.
    Device(String),
    /// The node.
    ThisNode,
    /// A pod, by its name and container.
    Pod(Option<ObjectName>, String),
}

/// Compares all but the tables of nftables.
///
/// # Errors
/// When the kernel cannot be read.
pub fn differences(kernel: &mut impl Kernel, plan: &Plan, pods: &[Assigned]) -> Result<Vec<Difference>> {
    let mirror = Mirror::read(kernel, &ByFamily::default())?;
    let actual = Actual::read(kernel, &mirror, plan)?;
    let found = difference(plan, &actual);
    let device = |index: u32| {
        let link = mirror.links.values().find(|link| link.index == index);
        link.map_or_else(|| format!("device {index}"), |link| link.name.clone())
    };
    let comes = found
        .comes
        .iter()
        .filter_map(|change| told(change, true, &device));
    let goes = found
        .goes
        .iter()
        .filter_map(|change| told(change, false, &device));
    let mut differences: Vec<Difference> = comes.chain(goes).collect();
    let main = kernel.routes(&RouteFilter {
        table: Some(TABLE_MAIN),
        ..RouteFilter::default()
    })?;
    differences.extend(pods.iter().flat_map(|pod| {
        let link = mirror.links.values().find(|link| link.name == host_ifname(pod));
        of_pod(pod, link, &main)
    }));
    differences.sort();
    Ok(differences)
}

/// A change that a pass would make, as what is wrong. One that changes nothing for packets is none.
fn told(change: &Change, comes: bool, device: &impl Fn(u32) -> String) -> Option<Difference> {
    let is = |what: &str| match comes {
        true => format!("{what} is not there"),
        false => format!("{what} is there and shall not be"),
    };
    let (part, whose, said) = match change {
        // The same, but for who made it.
        Change::TakeOverRule(_) => return None,
        Change::AddRule(rule) | Change::DeleteRule(rule) => (Part::Rule, Whose::Rule(text(rule)), is("it")),
        Change::ReplaceRoute(route) | Change::DeleteRoute(route) => {
            (Part::Table, Whose::Table(route.table), is(&route.to_string()))
        }
        Change::AddAddress(address) | Change::DeleteAddress(address) => (
            Part::Device,
            Whose::Device(device(address.link)),
            is(&format!("address {}", address.network.ip())),
        ),
        Change::Link(index, LinkChange { up, mtu, .. }) => {
            let down = up.map(|_| "it is down".to_owned());
            let mtu = mtu.map(|mtu| format!("its MTU shall be {mtu}"));
            let said: Vec<String> = down.into_iter().chain(mtu).collect();
            (Part::Device, Whose::Device(device(*index)), said.join(", "))
        }
    };
    Some(Difference { part, whose, said })
}

/// A rule, whoever makes it.
#[must_use]
pub fn text(rule: &Rule) -> String {
    let text = rule.to_string();
    let maker = format!(" protocol {}", rule.protocol);
    text.strip_suffix(&maker).unwrap_or(&text).to_owned()
}

/// A pod's device, and the routes to it: rule 512 sends what is for the pod to the main table.
fn of_pod(pod: &Assigned, link: Option<&Link>, main: &[Route]) -> Vec<Difference> {
    let whose = || Whose::Pod(pod.pod.clone(), pod.key.container_id.clone());
    let of = |part, said: String| Difference {
        part,
        whose: whose(),
        said,
    };
    let name = host_ifname(pod);
    let Some(link) = link else {
        return vec![of(Part::PodDevice, format!("its device {name} is not there"))];
    };
    let mut differences = Vec::new();
    if !link.up {
        differences.push(of(Part::PodDevice, format!("its device {name} is down")));
    }
    let wanted = routes_of(std::slice::from_ref(pod));
    differences.extend(wanted.filter_map(|wanted| {
        let destination = IpNetwork::from(wanted.address);
        let mut leading = main.iter().filter(|route| route.destination == destination);
        let leads = leading.clone().any(|route| route.link == Some(link.index));
        let found = match leading.next() {
            _ if leads => return None,
            Some(other) => format!(", but {other}"),
            None => String::new(),
        };
        Some(of(
            Part::PodRoute,
            format!("no route of the main table leads to {destination} by {name}{found}"),
        ))
    }));
    differences
}

/// Compares the translation's table.
///
/// # Errors
/// When the tables cannot be read.
pub fn translation(
    kernel: &mut impl Kernel,
    nft: &mut Nft,
    plan: &Plan,
) -> std::result::Result<Vec<Difference>, AuditError> {
    let of_table = |said: String| Difference {
        part: Part::Translation,
        whose: Whose::ThisNode,
        said: format!("table {}: {said}", super::table()),
    };
    let Some(wanted) = &plan.translation else {
        let is_left = plan.is_complete && nft.has_table(&super::table())?;
        let left = is_left.then(|| of_table("it is there and shall not be".to_owned()));
        return Ok(left.into_iter().collect());
    };
    let links = kernel.links()?;
    let devices = interface_devices(links.iter());
    let Some(primary) = devices.get(&wanted.primary) else {
        return Ok(Vec::new());
    };
    let differences = nft.differences(&translation::layout(wanted, &primary.name))?;
    Ok(differences.into_iter().map(of_table).collect())
}

/// Takes pods' devices up again. Everything else is every pass's to repair. Returns the devices.
///
/// # Errors
/// When the kernel refuses; those before it are mended.
pub fn take_up_pod_devices(kernel: &mut impl Kernel, pods: &[Assigned]) -> Result<Vec<String>> {
    let mut mended = Vec::new();
    for name in pods.iter().map(host_ifname) {
        let Some(link) = kernel.link_named(&name)?.filter(|link| !link.up) else {
            continue;
        };
        let up = LinkChange {
            up: Some(true),
            ..LinkChange::default()
        };
        kernel.change_link(link.index, &up)?;
        mended.push(name);
    }
    Ok(mended)
}

/// Why something cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// The kernel's devices.
    #[error(transparent)]
    Kernel(#[from] netlink::Error),
    /// The kernel's tables of rules.
    #[error(transparent)]
    Rules(#[from] nft::Error),
}

/// Devices of interfaces that drop what comes back by them and not by where it left: their value and that of all, the
/// higher of which counts (`rp_filter` in Documentation/networking/ip-sysctl.rst).
///
/// # Errors
/// When the kernel does not tell its devices.
pub fn reverse_paths(kernel: &mut impl Kernel, plan: &Plan) -> Result<Vec<Difference>> {
    let value = |device: &str| {
        let path = format!("net/ipv4/conf/{device}/rp_filter");
        sysctl::read(&path).ok()?.trim().parse::<u32>().ok()
    };
    let links = kernel.links()?;
    let devices = interface_devices(links.iter());
    let loose = plan.loose.iter().filter_map(|mac| devices.get(mac));
    let all = value("all").unwrap_or_default();
    Ok(loose
        .filter(|link| value(&link.name).is_some_and(|own| own.max(all) == STRICT))
        .map(|link| Difference {
            part: Part::ReversePath,
            whose: Whose::Device(link.name.clone()),
            said: format!(
                "net.ipv4.conf.{}.rp_filter is strict (1) and shall be 2",
                link.name
            ),
        })
        .collect())
}

/// Rules that send what comes from a pod to a table, by the plan: none for pods of the primary interface.
#[must_use]
pub fn rule_of(plan: &Plan, pod: IpAddr) -> Option<&Rule> {
    plan.rules
        .iter()
        .find(|rule| super::plan::pod_of(rule) == Some(pod))
}

/// Networks that pods reach by the primary interface although they keep their addresses, by the plan.
pub fn external_services(plan: &Plan) -> impl Iterator<Item = IpNetwork> {
    let rules = plan
        .rules
        .iter()
        .filter(|rule| rule.priority == super::plan::TO_EXTERNAL_SERVICE);
    rules.filter_map(|rule| rule.destination)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use model::{MacAddr, Mtu};
    use netlink::FakeKernel;

    use super::*;
    use crate::pods::AttachmentKey;
    use crate::vpc::{Interface, Interfaces, Snat, Ways, plan};

    const ETH0: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const ETH1: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 9));

    fn interface(mac: MacAddr, number: u8, blocks: &[IpAddr]) -> Interface {
        Interface {
            mac,
            address: Ipv4Addr::new(10, 0, number, 5),
            subnet: format!("10.0.{number}.0/24").parse().expect("a network"),
            device_index: number.into(),
            blocks: blocks.iter().copied().map(IpNetwork::from).collect(),
        }
    }

    fn pod() -> Assigned {
        let key = AttachmentKey {
            container_id: "c1".to_owned(),
            ifname: "eth0".to_owned(),
        };
        let mut pod = Assigned::new(key, &[POD].into_iter().collect());
        pod.pod = Some(ObjectName::new("default", "web"));
        pod
    }

    #[test]
    fn a_kernel_that_has_nothing_lacks_all_of_the_plan_and_one_that_got_it_lacks_nothing() {
        let mut kernel = FakeKernel::new();
        kernel.plug("eth0", ETH0.0, 9001);
        kernel.plug("eth1", ETH1.0, 1500);
        kernel.links[1].up = false;
        let ways = Ways {
            interfaces: Some(Interfaces {
                primary: interface(ETH0, 0, &[]),
                others: vec![interface(ETH1, 1, &[POD])],
            }),
            vpc_networks: vec!["10.0.0.0/16".parse().expect("a network")],
            external_services: Vec::new(),
            snat: Snat::External,
            node_ports: false,
            mtu: Mtu(9001),
        };
        let pod = pod();
        let routes: Vec<_> = routes_of(std::slice::from_ref(&pod)).collect();
        let (plan, _) = plan(&ways, &routes);
        let mut said = |pods: &[Assigned]| -> Vec<String> {
            let found = differences(&mut kernel, &plan, pods).expect("it is read");
            let lines = found
                .iter()
                .map(|Difference { part, whose, said }| format!("{part:?} {whose:?}: {said}"));
            lines.collect()
        };
        let name = host_ifname(&pod);
        let whose = Whose::Pod(pod.pod.clone(), "c1".to_owned());
        let expected = [
            "Rule Rule(\"1536: from 10.0.1.9/32 table 2\"): it is not there".to_owned(),
            "Rule Rule(\"32765: from 10.0.1.5/32 table 2\"): it is not there".to_owned(),
            "Rule Rule(\"512: to 10.0.1.9/32 table 254\"): it is not there".to_owned(),
            "Table Table(2): 0.0.0.0/0 via 10.0.1.1 link 2 table 2 protocol 213 is not there".to_owned(),
            "Table Table(2): 10.0.1.1/32 link 2 table 2 protocol 213 is not there".to_owned(),
            "Device Device(\"eth1\"): address 10.0.1.5 is not there".to_owned(),
            "Device Device(\"eth1\"): it is down, its MTU shall be 9001".to_owned(),
            format!("PodDevice {whose:?}: its device {name} is not there"),
        ];
        assert_eq!(said(std::slice::from_ref(&pod)), expected);
        assert_eq!(said(&[]), expected[..7]);

        let mirror = Mirror::read(&mut kernel, &ByFamily::default()).expect("it is read");
        let actual = Actual::read(&mut kernel, &mirror, &plan).expect("it is read");
        let repaired = crate::vpc::reconcile::repair(&mut kernel, &mirror, &actual, &plan, &[]);
        assert_eq!(repaired.problems, Vec::<String>::new());
        assert_eq!(differences(&mut kernel, &plan, &[]).expect("it is read"), []);
    }

    #[test]
    fn a_pods_device_that_is_down_and_has_no_route_is_told_and_taken_up() {
        let mut kernel = FakeKernel::new();
        let (pods, plan) = ([pod()], Plan::default());
        let name = host_ifname(&pods[0]);
        let index = kernel.plug(&name, ETH1.0, 9001);
        kernel.links[0].up = false;
        let said = |kernel: &mut FakeKernel| -> Vec<String> {
            let found = differences(kernel, &plan, &pods).expect("it is read");
            found.into_iter().map(|difference| difference.said).collect()
        };
        let no_route = format!("no route of the main table leads to 10.0.1.9/32 by {name}");
        let is_down = format!("its device {name} is down");
        assert_eq!(said(&mut kernel), [no_route.clone(), is_down]);
        assert_eq!(take_up_pod_devices(&mut kernel, &pods).expect("it can"), [name]);
        assert_eq!(take_up_pod_devices(&mut kernel, &pods).expect("it can"), [""; 0]);
        let elsewhere = Route::on_link(POD.into(), index + 1, 4);
        kernel.routes.push(elsewhere.clone());
        assert_eq!(said(&mut kernel), [format!("{no_route}, but {elsewhere}")]);
        kernel.routes.push(Route::on_link(POD.into(), index, 213));
        assert_eq!(said(&mut kernel), [""; 0]);
    }
}

//! The router's namespace and the nodes': read, compared, changed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink::nft::Nft;
use netlink::route::TABLE_MAIN;
use netlink::{
    AbsentIsFine, Address, Kernel, Link, LinkChange, LinkKind, Namespace, Netlink, NewLink, NewLinkKind,
    Route, RouteFilter, Scope, VethPeer, sysctl,
};
use vpc_eni::ec2::{EniId, InstanceId};

use super::plan::{self, PROTOCOL, Plan, Port, internet_alias, is_ours, single};
use super::{Problem, filter};

/// What a VPC's links carry at most, in bytes (EC2 user guide, "Jumbo frames").
const MTU_BYTES: u32 = 9001;

/// The device that has the internet's addresses.
const INTERNET: &str = "vpc-internet";

const FORWARDING_V6: &str = "net/ipv6/conf/all/forwarding";

/// Whether a device forwards IPv6 though not all do; from Linux 6.17 on.
const FORWARDING_V6_BY_DEVICE: &str = "net/ipv6/conf/all/force_forwarding";

/// `RTPROT_DHCP`: who makes an instance's default route.
const DHCP: u8 = 16;

/// The router, with a socket in each namespace. It belongs on a thread of the router's namespace, whose settings it
/// writes.
pub(super) struct Router {
    kernel: Netlink,
    nft: Nft,
    nodes: BTreeMap<InstanceId, Node>,
    internet: Vec<IpAddr>,
    /// Devices that others made and that are ports, as they were last.
    adopted: BTreeMap<u32, Port>,
}

struct Node {
    namespace: Namespace,
    kernel: Netlink,
}

/// A port with its device in the router.
struct Wired<'a> {
    port: &'a Port,
    /// The router's end.
    link: Link,
    /// The node's end.
    device: Link,
}

impl Router {
    pub(super) fn open(
        namespace: &Namespace,
        nodes: BTreeMap<InstanceId, Namespace>,
        internet: Vec<IpAddr>,
    ) -> Result<Self, Problem> {
        let nodes = nodes.into_iter().map(|(instance, namespace)| {
            let kernel = Netlink::open_in(&namespace)?;
            Ok((instance, Node { namespace, kernel }))
        });
        Ok(Self {
            kernel: Netlink::open_in(namespace)?,
            nft: namespace.run(Nft::open)??,
            nodes: nodes.collect::<netlink::Result<_>>()?,
            internet,
            adopted: BTreeMap::new(),
        })
    }

    pub(super) fn is_here(&self, instance: &InstanceId) -> bool {
        self.nodes.contains_key(instance)
    }

    /// Makes everything as the plan has it. What fails does not keep the rest from being done.
    ///
    /// In this order, so that nothing passes unchecked: what is not wanted goes, new devices come and are down, the
    /// filter knows them, then they are up and have their routes.
    pub(super) fn apply(&mut self, plan: &Plan) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut wired = Vec::new();
        problems.extend(self.unplug(plan).unwrap_or_else(only));
        for port in &plan.ports {
            match self.plug(port) {
                Ok(found) => wired.push(found),
                Err(problem) => problems.push(problem),
            }
        }
        let names: Vec<_> = wired
            .iter()
            .map(|wired| (wired.link.name.clone(), wired.port))
            .collect();
        if let Err(error) = filter::ensure(&mut self.nft, &names, &plan.blocks) {
            // What is not checked is not connected.
            problems.push(error.into());
            return problems;
        }
        for wired in &wired {
            if let Err(source) = self.bring_up(wired) {
                problems.push(of_interface(&wired.port.eni)(source));
            }
        }
        problems.extend(self.connect_internet(plan).err());
        problems.extend(self.route(plan, &wired).unwrap_or_else(only));
        problems
    }

    /// Takes away all that was made.
    pub(super) fn clear(&mut self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = Vec::new();
        let nothing = Plan::default();
        self.internet.clear();
        problems.extend(self.unplug(&nothing).unwrap_or_else(only));
        problems.extend(self.connect_internet(&nothing).err());
        problems.extend(self.route(&nothing, &[]).unwrap_or_else(only));
        problems.extend(self.stop_forwarding().err());
        problems.extend(filter::remove(&mut self.nft).err().map(Problem::from));
        problems
    }

    /// The router forwards IPv6 no more, if it did not before and had to do it for all devices.
    fn stop_forwarding(&mut self) -> Result<(), Problem> {
        if filter::was_forwarding_off(&mut self.nft)? {
            sysctl::write(FORWARDING_V6, "0")?;
        }
        Ok(())
    }

    /// Removes the pairs of interfaces that have no device any more, or have it elsewhere, and what others' devices have
    /// that are ports no longer.
    fn unplug(&mut self, plan: &Plan) -> Result<Vec<Problem>, Problem> {
        let mut problems = Vec::new();
        let internet = internet_alias();
        let mut links = self.kernel.links()?;
        links.retain(|link| is_ours(link.alias.as_deref()) && link.alias.as_ref() != Some(&internet));
        for link in links {
            let port = plan.ports.iter().find(|port| Some(port.alias()) == link.alias);
            let stays = port.map_or(Ok(false), |port| Ok(self.device_of(port, &link)?.is_some()));
            match stays {
                Ok(true) => {}
                Ok(false) => {
                    let deleted = self.kernel.delete_link(link.index).absent_is_fine();
                    problems.extend(deleted.err().map(Problem::from));
                }
                Err(problem) => problems.push(problem),
            }
        }
        let wanted: BTreeSet<&EniId> = plan.ports.iter().map(|port| &port.eni).collect();
        let left = self.adopted.extract_if(.., |_, port| !wanted.contains(&port.eni));
        for (index, port) in left {
            let addresses = port.addresses(index);
            let neighbours = port.neighbours(index);
            let deleted = addresses
                .iter()
                .map(|address| self.kernel.delete_address(address));
            problems.extend(failures(deleted));
            let deleted = neighbours
                .iter()
                .map(|neighbour| self.kernel.delete_neighbour(neighbour));
            problems.extend(failures(deleted));
        }
        Ok(problems)
    }

    /// The device of a port in its node, where that is the other end of a device of the router's.
    fn device_of(&mut self, port: &Port, link: &Link) -> Result<Option<Link>, Problem> {
        let devices = self.devices(port)?;
        Ok(devices.into_iter().find(|device| are_a_pair(device, link)))
    }

    /// The ends of pairs in the port's node that have its MAC address.
    fn devices(&mut self, port: &Port) -> Result<Vec<Link>, Problem> {
        let node = self.nodes.get_mut(&port.instance);
        let node = node.expect("invariant: the plan has ports of these nodes alone");
        let mut devices = node.kernel.links().map_err(of_interface(&port.eni))?;
        // A bridge or a sub-interface may have the MAC address of the device that it is on.
        devices.retain(|device| {
            device.mac == Some(port.mac) && device.kind == LinkKind::Veth && device.parent_elsewhere
        });
        Ok(devices)
    }

    /// Finds a port's pair, or makes it.
    fn plug<'a>(&mut self, port: &'a Port) -> Result<Wired<'a>, Problem> {
        let links = self.kernel.links()?;
        let mut devices = self.devices(port)?;
        let pair = devices.iter().find_map(|device| {
            let link = links.iter().find(|link| are_a_pair(device, link))?;
            Some((device.clone(), link.clone()))
        });
        if let Some((device, link)) = pair {
            if !is_ours(link.alias.as_deref()) {
                if link.master.is_some() {
                    return Err(foreign(port, device));
                }
                self.adopted.insert(link.index, port.clone());
            }
            return Ok(Wired { port, link, device });
        }
        if let Some(device) = devices.pop() {
            return Err(foreign(port, device));
        }
        let failed = of_interface(&port.eni);
        let node = self.nodes.get(&port.instance);
        let node = node.expect("invariant: the plan has ports of these nodes alone");
        let peer = VethPeer {
            name: port.device_name(),
            mac: Some(port.mac),
            mtu: Some(MTU_BYTES),
            namespace: Some(node.namespace.clone()),
        };
        let new = NewLink {
            mtu: Some(MTU_BYTES),
            alias: Some(port.alias()),
            ..NewLink::new(port.name(), NewLinkKind::Veth(peer))
        };
        let link = self.kernel.create_link(&new).map_err(failed)?;
        tracing::info!(eni = %port.eni, instance = %port.instance, device = port.device_name(), "device attached");
        match self.device_of(port, &link)? {
            Some(device) => Ok(Wired { port, link, device }),
            None => Err(foreign(port, link)),
        }
    }

    /// Sets the router's end up, and before that what the instance does for its first device when it boots: its
    /// address and the way out. Other devices are the node's business.
    fn bring_up(&mut self, wired: &Wired<'_>) -> netlink::Result<()> {
        let Wired { port, link, device } = wired;
        let settings = [
            ("ipv4/conf", "forwarding", "1"),
            // Answers for what other ports lead to, at once.
            ("ipv4/conf", "proxy_arp", "1"),
            ("ipv4/neigh", "proxy_delay", "0"),
            // The filter is stricter, and counts.
            ("ipv4/conf", "rp_filter", "0"),
            ("ipv4/conf", "send_redirects", "0"),
        ];
        // As a router says so of itself (RFC 4861 §4.4), and forwards.
        let settings_v6 = [
            ("ipv6/conf", "forwarding", "1"),
            ("ipv6/conf", "force_forwarding", "1"),
        ];
        let is_v6 = port.has_v6() && forwards_v6_by_device();
        let settings_v6 = settings_v6.into_iter().filter(|_| is_v6);
        for (kind, setting, value) in settings.into_iter().chain(settings_v6) {
            sysctl::ensure(&format!("net/{kind}/{}/{setting}", link.name), value)?;
        }
        if !link.up {
            if port.is_primary() && is_ours(link.alias.as_deref()) {
                self.boot(port, device)?;
            }
            self.kernel.change_link(link.index, &LinkChange::up())?;
        }
        let addresses = self.kernel.addresses(Some(link.index))?;
        for address in port.addresses(link.index) {
            if !addresses.iter().any(|actual| actual.network == address.network) {
                self.kernel.add_address(&address)?;
            }
        }
        let neighbours = self.kernel.neighbours(Some(link.index))?;
        for neighbour in port.neighbours(link.index) {
            if !neighbours.contains(&neighbour) {
                self.kernel.replace_neighbour(&neighbour)?;
            }
        }
        Ok(())
    }

    fn boot(&mut self, port: &Port, device: &Link) -> netlink::Result<()> {
        let node = self.nodes.get_mut(&port.instance);
        let kernel = &mut node
            .expect("invariant: the plan has ports of these nodes alone")
            .kernel;
        let network = IpNetwork::new(port.primary.into(), port.subnet.prefix());
        let network = network.expect("invariant: the prefix is a subnet's");
        kernel.add_address(&Address::global(device.index, network))?;
        kernel.change_link(device.index, &LinkChange::up())?;
        let anywhere = "0.0.0.0/0".parse().expect("invariant: a network");
        kernel.replace_route(&Route::via(anywhere, port.gateway().into(), device.index, DHCP))
    }

    /// The internet's addresses are the router's own, on a device that leads nowhere.
    fn connect_internet(&mut self, plan: &Plan) -> Result<(), Problem> {
        let is_v6 = plan.blocks.iter().any(IpNetwork::is_ipv6);
        if is_v6 && !forwards_v6_by_device() && sysctl::ensure(FORWARDING_V6, "1")? {
            filter::remember_forwarding_was_off(&mut self.nft)?;
        }
        let found = self.kernel.link_named(INTERNET)?;
        let ours = found.filter(|link| is_ours(link.alias.as_deref()));
        let link = match (ours, self.internet.is_empty()) {
            (None, true) => return Ok(()),
            (Some(link), true) => return Ok(self.kernel.delete_link(link.index).absent_is_fine()?),
            (Some(link), false) => link,
            (None, false) => self.kernel.create_link(&NewLink {
                up: true,
                alias: Some(internet_alias()),
                ..NewLink::new(INTERNET, NewLinkKind::Bridge)
            })?,
        };
        let wanted: BTreeSet<IpNetwork> = self.internet.iter().copied().map(single).collect();
        let mut actual = self.kernel.addresses(Some(link.index))?;
        actual.retain(|address| address.scope == Scope::Universe);
        let (there, stale): (Vec<_>, Vec<_>) = actual
            .into_iter()
            .partition(|address| wanted.contains(&address.network));
        for address in &stale {
            self.kernel.delete_address(address).absent_is_fine()?;
        }
        let there: BTreeSet<IpNetwork> = there.iter().map(|address| address.network).collect();
        for network in wanted.difference(&there) {
            self.kernel.add_address(&Address {
                no_dad: true,
                ..Address::global(link.index, *network)
            })?;
        }
        Ok(())
    }

    fn route(&mut self, plan: &Plan, wired: &[Wired<'_>]) -> Result<Vec<Problem>, Problem> {
        let links = self.kernel.links()?;
        let loopback = links.iter().find(|link| link.loopback).map(|link| link.index);
        let wanted: BTreeSet<Route> = wired
            .iter()
            .flat_map(|wired| wired.port.routes(wired.link.index))
            .chain(plan.dead_ends(loopback))
            .collect();
        let of_table = RouteFilter {
            table: Some(TABLE_MAIN),
            ..RouteFilter::default()
        };
        let actual = self.kernel.routes(&of_table)?.into_iter();
        let (actual, others): (BTreeSet<Route>, BTreeSet<Route>) =
            actual.partition(|route| route.protocol == PROTOCOL);
        let mut problems = Vec::new();
        let stale = actual.difference(&wanted);
        problems.extend(failures(stale.map(|route| self.kernel.delete_route(route))));
        for route in wanted.difference(&actual) {
            // The kernel would put it in the other's place.
            let in_its_place =
                |other: &&Route| other.destination == route.destination && other.metric == route.metric;
            if let Some(other) = others.iter().find(in_its_place) {
                problems.push(Problem::Route(other.destination));
                continue;
            }
            let replaced = self.kernel.replace_route(route);
            problems.extend(replaced.err().map(Problem::from));
        }
        Ok(problems)
    }

    pub(super) fn plan(&self, grounds: &crate::cloud::Grounds) -> Plan {
        plan::Plan::new(grounds, |instance| self.is_here(instance))
    }
}

/// Whether the kernel can forward IPv6 from some devices and leave the others alone.
fn forwards_v6_by_device() -> bool {
    sysctl::read(FORWARDING_V6_BY_DEVICE).is_ok()
}

/// Whether two devices, each in a namespace of its own, name each other as their other ends.
fn are_a_pair(device: &Link, link: &Link) -> bool {
    link.kind == LinkKind::Veth
        && link.parent_elsewhere
        && link.parent == Some(device.index)
        && device.parent == Some(link.index)
}

fn foreign(port: &Port, device: Link) -> Problem {
    Problem::Foreign {
        eni: port.eni.clone(),
        device: device.name,
    }
}

fn of_interface(eni: &EniId) -> impl FnOnce(netlink::Error) -> Problem {
    let eni = eni.clone();
    move |source| Problem::Device { eni, source }
}

fn only(problem: Problem) -> Vec<Problem> {
    vec![problem]
}

/// What failed of deletions; what was gone already is fine.
fn failures(deleted: impl Iterator<Item = netlink::Result<()>>) -> impl Iterator<Item = Problem> {
    let failed = deleted.filter_map(|deleted| deleted.absent_is_fine().err());
    failed.map(Problem::from)
}

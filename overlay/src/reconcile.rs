//! Compares the plan with the kernel, and writes the difference.
//!
//! What is ours: the tunnel device and every permanent entry on it; routes that carry our protocol number, and those
//! that flannel made on the device before it was taken over. Nothing else is changed; what stands in the way is told.
//!
//! Order: neighbour, forwarding entry, route when something comes, the reverse when something goes, so that no packet
//! meets a route whose next hop cannot be resolved.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use model::wiring::ROUTE_PROTOCOL;
use model::{ByFamily, IpFamily, MacAddr};
use netlink::{
    AbsentIsFine, Address, Forwarding, Kernel, Link, LinkChange, LinkKind, Neighbour, NewLink, NewLinkKind,
    Result, Route, RouteFilter, Scope, Vxlan,
};

use crate::plan::{Device, Plan, Remote};

/// `RTPROT_BOOT`: what flannel's routes carry.
const FLANNELS_PROTOCOL: u8 = 3;

/// The main routing table.
const MAIN_TABLE: u32 = netlink::route::TABLE_MAIN;

/// How this node reaches an address of one of its own pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRoute {
    /// The pod's address.
    pub address: IpAddr,
    /// Its device on the node's side.
    pub host_ifname: String,
    /// The MAC address of its own device.
    pub pod_mac: MacAddr,
    /// What comes to it has to pass by its device's queue: there is a limit, or nobody knows whether there is.
    pub is_limited: bool,
}

/// What a pass did and what it could not do.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Successful writes.
    pub(crate) writes: usize,
    /// What is wrong now, one line each.
    pub(crate) problems: Vec<String>,
    /// What is as it should not be and will not change by trying again, one line each.
    pub(crate) notes: Vec<String>,
}

impl Outcome {
    pub(crate) fn note(&mut self, result: Result<()>) {
        match result {
            Ok(()) => self.writes += 1,
            Err(error) => self.problem(&error),
        }
    }

    pub(crate) fn problem(&mut self, problem: &dyn fmt::Display) {
        self.problems.push(problem.to_string());
    }
}

/// Makes the tunnel device what it shall be, and returns its index. A device of the same settings is taken over as it
/// is; one of other settings is made anew, since they are fixed at creation.
pub(crate) fn ensure_device(
    kernel: &mut impl Kernel,
    device: &Device,
    underlay: u32,
    outcome: &mut Outcome,
) -> Result<Option<u32>> {
    let settings = vxlan_settings(device, Some(underlay));
    let link = match kernel.link_named(&device.name)? {
        Some(link) if matches!(&link.kind, LinkKind::Vxlan(found) if *found == settings) => link,
        Some(link) if !matches!(link.kind, LinkKind::Vxlan(_)) => {
            outcome.problem(&format_args!(
                "device {} exists and is no VXLAN device, left alone",
                device.name
            ));
            return Ok(None);
        }
        found => {
            if let Some(link) = found {
                kernel.delete_link(link.index).absent_is_fine()?;
                outcome.writes += 1;
            }
            let mut new = NewLink::new(&device.name, NewLinkKind::Vxlan(settings));
            new.mac = Some(device.mac.0);
            new.mtu = Some(device.mtu.0);
            let created = kernel.create_link(&new)?;
            outcome.writes += 1;
            created
        }
    };
    let change = device_change(device, &link);
    if change != LinkChange::default() {
        kernel.change_link(link.index, &change)?;
        outcome.writes += 1;
    }
    ensure_address(kernel, device, link.index, outcome)?;
    Ok(Some(link.index))
}

/// What is fixed when the tunnel device is made.
pub(crate) const fn vxlan_settings(device: &Device, underlay: Option<u32>) -> Vxlan {
    Vxlan {
        vni: device.vni.0,
        local: Some(device.local),
        device: underlay,
        port: device.port,
        learning: false,
        udp_csum: true,
        gbp: device.gbp,
        collect_metadata: false,
    }
}

pub(crate) fn device_change(device: &Device, link: &Link) -> LinkChange {
    LinkChange {
        mac: (link.mac != Some(device.mac.0)).then_some(device.mac.0),
        mtu: (link.mtu != device.mtu.0).then_some(device.mtu.0),
        up: (!link.up).then_some(true),
        ..LinkChange::default()
    }
}

fn ensure_address(kernel: &mut impl Kernel, device: &Device, link: u32, outcome: &mut Outcome) -> Result<()> {
    let network = IpNetwork::from(device.address);
    let wanted = Address {
        // Nobody else has it: the subnet is leased.
        no_dad: network.is_ipv6(),
        ..Address::global(link, network)
    };
    let found = kernel.addresses(Some(link))?;
    if !found.iter().any(|address| address.network == network) {
        outcome.note(kernel.add_address(&wanted));
    }
    // Every device has a link-local address for IPv6.
    let others = found.iter().filter(|found| {
        found.network.is_ipv4() == network.is_ipv4()
            && found.network != network
            && found.scope == Scope::Universe
    });
    for other in others {
        outcome.note(kernel.delete_address(other).absent_is_fine());
    }
    Ok(())
}

/// What the kernel has, as far as it concerns the pod network.
#[derive(Default)]
pub(crate) struct Mirror {
    pub(crate) links: BTreeMap<String, Link>,
    /// Routes of the main table that nobody here made.
    pub(crate) foreign_routes: BTreeSet<Route>,
    routes: Vec<Route>,
    pub(crate) neighbours: BTreeSet<Neighbour>,
    pub(crate) forwarding: BTreeSet<Forwarding>,
}

impl Mirror {
    pub(crate) fn read(kernel: &mut impl Kernel, tunnels: &ByFamily<u32>) -> Result<Self> {
        let in_main = RouteFilter {
            table: Some(MAIN_TABLE),
            ..RouteFilter::default()
        };
        let mut routes = kernel.routes(&in_main)?;
        let foreign = routes.iter().filter(|route| route.protocol != ROUTE_PROTOCOL);
        let foreign_routes = foreign.cloned().collect();
        routes.retain(|route| route.metric == Route::usual_metric(route.destination));
        let mut forwarding = BTreeSet::new();
        for tunnel in tunnels.values() {
            forwarding.extend(kernel.forwarding(*tunnel)?);
        }
        let neighbours = kernel
            .neighbours(None)?
            .into_iter()
            .filter(|neighbour| neighbour.permanent);
        Ok(Self {
            foreign_routes,
            routes,
            neighbours: neighbours.collect(),
            forwarding,
            links: kernel
                .links()?
                .into_iter()
                .map(|link| (link.name.clone(), link))
                .collect(),
        })
    }
}

impl Mirror {
    /// The route for just that destination, whoever made it.
    pub(crate) fn route(&self, destination: &IpNetwork) -> Option<&Route> {
        self.routes.iter().find(|route| route.destination == *destination)
    }

    /// The addresses that the kernel leads to a pod's device, with the MAC address that it has for them. One without
    /// is not served, whoever it is.
    pub(crate) fn pod_routes(&self, link: &Link) -> impl Iterator<Item = PodRoute> {
        let routes = self.routes.iter();
        let ours = routes.filter(|route| route.protocol == ROUTE_PROTOCOL && route.link == Some(link.index));
        ours.filter_map(|route| {
            let address = route.destination.ip();
            let is_host = IpNetwork::from(address) == route.destination;
            let mut neighbours = self.neighbours.iter();
            let neighbour = neighbours.find(|found| found.link == link.index && found.address == address)?;
            let pod_mac = MacAddr(neighbour.mac.filter(|_| is_host)?);
            Some(PodRoute {
                address,
                host_ifname: link.name.clone(),
                pod_mac,
                is_limited: true,
            })
        })
    }
}

/// What the kernel shall have, by device index.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) neighbours: BTreeSet<Neighbour>,
    pub(crate) forwarding: BTreeSet<Forwarding>,
    pub(crate) routes: BTreeMap<IpNetwork, Route>,
}

/// The devices that plan and mirror speak of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Devices {
    pub(crate) tunnels: ByFamily<u32>,
    pub(crate) underlay: u32,
}

impl Devices {
    fn is_tunnel(&self, link: u32) -> bool {
        self.tunnels.values().any(|tunnel| *tunnel == link)
    }
}

/// Writes the difference. Of a version of IP something is deleted only where it `may_delete`: where everything is known
/// that must stay.
///
/// The pods must be listed after the mirror was read: a pod's record is written before its route, so a route that the
/// mirror has and the list has not is stale.
pub(crate) fn repair(
    kernel: &mut impl Kernel,
    mirror: &Mirror,
    plan: &Plan,
    devices: Devices,
    pods: &[PodRoute],
    may_delete: impl Fn(IpFamily) -> bool,
) -> Outcome {
    let wanted = objects(plan, devices, pods, &mirror.links);
    repair_objects(kernel, mirror, &wanted, devices, may_delete)
}

/// The same of this node's pods alone, where nothing else in the main table is ours.
pub(crate) fn repair_pods(
    kernel: &mut impl Kernel,
    mirror: &Mirror,
    pods: &[PodRoute],
    may_delete: bool,
) -> Outcome {
    let devices = Devices {
        tunnels: ByFamily::default(),
        underlay: 0,
    };
    let mut wanted = Objects::default();
    wanted.add_pods(pods, &mirror.links);
    repair_objects(kernel, mirror, &wanted, devices, |_| may_delete)
}

fn repair_objects(
    kernel: &mut impl Kernel,
    mirror: &Mirror,
    wanted: &Objects,
    devices: Devices,
    may_delete: impl Fn(IpFamily) -> bool,
) -> Outcome {
    let mut outcome = Outcome::default();
    for neighbour in wanted.neighbours.difference(&mirror.neighbours) {
        outcome.note(kernel.replace_neighbour(neighbour));
    }
    for entry in wanted.forwarding.difference(&mirror.forwarding) {
        outcome.note(kernel.replace_forwarding(entry));
    }
    for route in wanted.routes.values() {
        repair_route(kernel, route, &mirror.routes, devices, &mut outcome);
    }
    remove_stale(kernel, mirror, wanted, devices, may_delete, &mut outcome);
    outcome
}

/// Deletes all that is ours, as [`repair`] does where nothing is wanted.
pub(crate) fn remove_all(kernel: &mut impl Kernel, mirror: &Mirror, tunnels: ByFamily<u32>) -> Outcome {
    let devices = Devices { tunnels, underlay: 0 };
    let mut outcome = Outcome::default();
    remove_stale(
        kernel,
        mirror,
        &Objects::default(),
        devices,
        |_| true,
        &mut outcome,
    );
    outcome
}

fn repair_route(
    kernel: &mut impl Kernel,
    route: &Route,
    actual: &[Route],
    devices: Devices,
    outcome: &mut Outcome,
) {
    let found = actual.iter().find(|found| found.destination == route.destination);
    match found {
        Some(found) if found == route => {}
        Some(found)
            if !ours(found, devices) && (found.gateway, found.link) != (route.gateway, route.link) =>
        {
            outcome.problem(&format_args!("foreign route in the way, left alone: {found}"));
        }
        _ => outcome.note(kernel.replace_route(route)),
    }
}

fn remove_stale(
    kernel: &mut impl Kernel,
    mirror: &Mirror,
    wanted: &Objects,
    devices: Devices,
    may_delete: impl Fn(IpFamily) -> bool,
    outcome: &mut Outcome,
) {
    let stale = |route: &&Route| {
        ours(route, devices)
            && may_delete(IpFamily::from(route.destination.ip()))
            && !wanted.routes.contains_key(&route.destination)
    };
    for route in mirror.routes.iter().filter(stale) {
        outcome.note(kernel.delete_route(route).absent_is_fine());
    }
    // A replaced entry has the same key as the wanted one: deleting the old value would delete the new one.
    let wanted_macs: BTreeSet<_> = wanted
        .forwarding
        .iter()
        .map(|entry| (entry.link, entry.mac))
        .collect();
    for entry in mirror.forwarding.iter().filter(|entry| {
        may_delete(IpFamily::from(entry.destination)) && !wanted_macs.contains(&(entry.link, entry.mac))
    }) {
        outcome.note(kernel.delete_forwarding(entry).absent_is_fine());
    }
    let wanted_neighbours: BTreeSet<_> = wanted.neighbours.iter().map(|n| (n.link, n.address)).collect();
    let on_tunnel = |neighbour: &&Neighbour| {
        devices.is_tunnel(neighbour.link) && may_delete(IpFamily::from(neighbour.address))
    };
    for neighbour in mirror.neighbours.iter().filter(on_tunnel) {
        if !wanted_neighbours.contains(&(neighbour.link, neighbour.address)) {
            outcome.note(kernel.delete_neighbour(neighbour).absent_is_fine());
        }
    }
}

/// Whether a route is ours to change: it carries our mark, or flannel made it on the device that is ours now.
fn ours(route: &Route, devices: Devices) -> bool {
    let on_tunnel = route.link.is_some_and(|link| devices.is_tunnel(link));
    let flannels = route.protocol == FLANNELS_PROTOCOL && on_tunnel && route.onlink;
    route.protocol == ROUTE_PROTOCOL || flannels
}

fn objects(plan: &Plan, devices: Devices, pods: &[PodRoute], links: &BTreeMap<String, Link>) -> Objects {
    let mut objects = Objects::default();
    for (family, half) in plan.halves.iter() {
        for (subnet, remote) in &half.remotes {
            objects.add_remote(*subnet, remote, devices, family);
        }
    }
    objects.add_pods(pods, links);
    objects
}

impl Objects {
    pub(crate) fn add_remote(
        &mut self,
        subnet: IpNetwork,
        remote: &Remote,
        devices: Devices,
        family: IpFamily,
    ) {
        match (remote, devices.tunnels.get(family)) {
            (Remote::Gateway { public_ip }, _) => {
                let route = Route::via(subnet, *public_ip, devices.underlay, ROUTE_PROTOCOL);
                self.routes.insert(subnet, route);
            }
            (Remote::Tunnel { vtep, mac, public_ip }, Some(tunnel)) => {
                self.neighbours
                    .insert(Neighbour::permanent(*tunnel, *vtep, mac.0));
                self.forwarding
                    .insert(Forwarding::permanent(*tunnel, mac.0, *public_ip));
                let mut route = Route::via(subnet, *vtep, *tunnel, ROUTE_PROTOCOL);
                route.onlink = true;
                self.routes.insert(subnet, route);
            }
            (Remote::Tunnel { .. }, None) => {} // the device could not be made, which is told elsewhere
        }
    }

    fn add_pods(&mut self, pods: &[PodRoute], links: &BTreeMap<String, Link>) {
        for pod in pods {
            // A device that is not there yet, or no more, has no route: its kernel event brings us back.
            if let Some(link) = links.get(&pod.host_ifname) {
                self.add_pod(pod, link.index);
            }
        }
    }

    pub(crate) fn add_pod(&mut self, pod: &PodRoute, link: u32) {
        self.neighbours
            .insert(Neighbour::permanent(link, pod.address, pod.pod_mac.0));
        let destination = IpNetwork::from(pod.address);
        self.routes
            .insert(destination, Route::on_link(destination, link, ROUTE_PROTOCOL));
    }
}

#[cfg(test)]
mod tests;

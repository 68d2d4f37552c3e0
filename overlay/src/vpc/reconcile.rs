//! Compares a plan with the kernel, and writes the difference.
//!
//! What is ours: rules that carry our protocol number and are of a plan's kind; routes that carry it; of the devices of
//! interfaces but the primary one their state, MTU and own address, and that they have no pod's. A rule that says the same
//! as one of ours and was made by somebody else, such as amazon-vpc-cni-k8s before us, becomes ours. What else stands in
//! the way is told.
//!
//! Order: pods' routes, devices and their addresses, the ways to gateways, default routes, rules; then what goes, rules
//! first. So no packet meets a table that does not lead on, and one rule is in another's place at once.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use model::MacAddr;
use model::wiring::ROUTE_PROTOCOL;
use netlink::route::TABLE_MAIN;
use netlink::rule::Rule;
use netlink::{AbsentIsFine, Address, Kernel, Link, LinkChange, LinkKind, Result, Route, RouteFilter};

use super::plan::{Plan, Uplink, is_of_a_plan, is_of_pod, pod_of};
use crate::reconcile::{Mirror, Outcome, PodRoute, repair_pods};

/// `RTPROT_KERNEL`: the route that an address with a prefix brings.
const KERNELS_PROTOCOL: u8 = 2;

/// What the kernel has, beside the main table's routes to pods.
#[derive(Debug, Default)]
pub(super) struct Actual {
    links: BTreeMap<MacAddr, Link>,
    addresses: Vec<Address>,
    rules: Vec<Rule>,
    /// Of the main table those that the kernel made, of others those that are ours, or in an interface's table.
    routes: BTreeSet<Route>,
}

impl Actual {
    pub(super) fn read(kernel: &mut impl Kernel, mirror: &Mirror, plan: &Plan) -> Result<Self> {
        let mut routes: BTreeSet<Route> = kernel
            .routes(&RouteFilter::made_by(ROUTE_PROTOCOL))?
            .into_iter()
            .filter(|route| route.table != TABLE_MAIN)
            .collect();
        for uplink in plan.uplinks.values() {
            let of_table = RouteFilter {
                table: Some(uplink.table),
                ..RouteFilter::default()
            };
            routes.extend(kernel.routes(&of_table)?);
        }
        let main = mirror.foreign_routes.iter();
        routes.extend(main.filter(|route| route.protocol == KERNELS_PROTOCOL).cloned());
        Ok(Self {
            links: interface_devices(mirror.links.values()),
            addresses: kernel.addresses(None)?,
            rules: kernel.all_rules()?,
            routes,
        })
    }

    /// The device of an interface.
    pub(super) fn link(&self, interface: MacAddr) -> Option<&Link> {
        self.links.get(&interface)
    }
}

/// The devices of interfaces, by their MAC addresses, among those that there are. Others may share the address of one:
/// VLANs on it, bridges that it is a port of.
pub fn interface_devices<'a>(links: impl Iterator<Item = &'a Link>) -> BTreeMap<MacAddr, Link> {
    let mut devices: BTreeMap<MacAddr, Link> = BTreeMap::new();
    let own = links.filter(|link| matches!(link.kind, LinkKind::Physical | LinkKind::Veth));
    for link in own {
        let Some(mac) = link.mac.map(MacAddr) else {
            continue;
        };
        let first = devices.entry(mac).or_insert_with(|| link.clone());
        if link.index < first.index {
            *first = link.clone();
        }
    }
    devices
}

/// A write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Link(u32, LinkChange),
    AddAddress(Address),
    DeleteAddress(Address),
    ReplaceRoute(Route),
    DeleteRoute(Route),
    AddRule(Rule),
    TakeOverRule(Rule),
    DeleteRule(Rule),
}

impl Change {
    fn write(&self, kernel: &mut impl Kernel) -> Result<()> {
        match self {
            Self::Link(index, change) => kernel.change_link(*index, change),
            Self::AddAddress(address) => kernel.add_address(address),
            Self::DeleteAddress(address) => kernel.delete_address(address).absent_is_fine(),
            Self::ReplaceRoute(route) => kernel.replace_route(route),
            Self::DeleteRoute(route) => kernel.delete_route(route).absent_is_fine(),
            Self::AddRule(rule) => kernel.add_rule(rule),
            Self::TakeOverRule(rule) => kernel.take_over_rule(rule, ROUTE_PROTOCOL),
            Self::DeleteRule(rule) => kernel.delete_rule(rule).absent_is_fine(),
        }
    }
}

/// What there is to write, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// What makes something be there.
    pub(super) comes: Vec<Change>,
    /// What makes something be gone.
    pub(super) goes: Vec<Change>,
    /// What keeps the plan from being true and is not ours to change, one line each.
    pub(super) problems: Vec<String>,
}

/// Compares.
pub(super) fn difference(plan: &Plan, actual: &Actual) -> Difference {
    let mut difference = Difference::default();
    let mut wanted = BTreeSet::new();
    for (mac, uplink) in &plan.uplinks {
        match actual.link(*mac) {
            Some(link) => {
                difference.device(uplink, link, actual);
                wanted.extend(routes(uplink, link));
            }
            None => difference.problems.push(format!(
                "interface {mac}, {}: there is no such device (yet?), what its pods send is lost",
                uplink.address
            )),
        }
    }
    difference.routes(&wanted, actual);
    difference.rules(plan, actual);
    if plan.is_complete {
        difference.stale(plan, &wanted, actual);
    }
    difference
}

/// The routes of an interface's table, in the order in which they can be made.
fn routes(uplink: &Uplink, link: &Link) -> [Route; 2] {
    let in_table = |route: Route| Route {
        table: uplink.table,
        ..route
    };
    let gateway = IpNetwork::from(IpAddr::V4(uplink.gateway));
    let everywhere =
        IpNetwork::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0).expect("invariant: 0 is a prefix length");
    [
        in_table(Route::on_link(gateway, link.index, ROUTE_PROTOCOL)),
        in_table(Route::via(everywhere, gateway.ip(), link.index, ROUTE_PROTOCOL)),
    ]
}

impl Difference {
    fn device(&mut self, uplink: &Uplink, link: &Link, actual: &Actual) {
        let change = LinkChange {
            up: (!link.up).then_some(true),
            mtu: (link.mtu != uplink.mtu.0).then_some(uplink.mtu.0),
            ..LinkChange::default()
        };
        if change != LinkChange::default() {
            self.comes.push(Change::Link(link.index, change));
        }
        let on_device = || {
            actual
                .addresses
                .iter()
                .filter(|address| address.link == link.index)
        };
        let own = IpNetwork::from(IpAddr::V4(uplink.address));
        // Whatever prefix somebody gave it; without one of a subnet it brings no route.
        if !on_device().any(|address| address.network.ip() == own.ip()) {
            self.comes
                .push(Change::AddAddress(Address::global(link.index, own)));
        }
        let is_of_pods = |address: &&Address| {
            let ip = address.network.ip();
            ip != own.ip() && uplink.blocks.iter().any(|block| block.contains(ip))
        };
        // With it the node would take for itself what is the pod's.
        self.goes
            .extend(on_device().filter(is_of_pods).cloned().map(Change::DeleteAddress));
        let connected = actual.routes.iter().filter(|route| {
            let is_of_subnet = route.table == TABLE_MAIN && route.protocol == KERNELS_PROTOCOL;
            is_of_subnet && route.link == Some(link.index) && route.destination.contains(own.ip())
        });
        // The node's own packets to the subnet leave by the primary interface.
        self.goes.extend(connected.cloned().map(Change::DeleteRoute));
    }

    fn routes(&mut self, wanted: &BTreeSet<Route>, actual: &Actual) {
        // The longest prefix first: a gateway must be reached before something goes by it.
        let mut missing: Vec<&Route> = wanted.difference(&actual.routes).collect();
        missing.sort_by_key(|route| (route.table, Reverse(route.destination.prefix())));
        self.comes
            .extend(missing.into_iter().cloned().map(Change::ReplaceRoute));
    }

    fn rules(&mut self, plan: &Plan, actual: &Actual) {
        for rule in &plan.rules {
            let mut equal = actual
                .rules
                .iter()
                .filter(|other| other.is_equal_but_for_its_maker(rule));
            let is_there = actual.rules.contains(rule);
            match equal.clone().next() {
                _ if is_there => {
                    let double = equal.filter(|other| *other != rule);
                    self.goes.extend(double.cloned().map(Change::DeleteRule));
                }
                None => self.comes.push(Change::AddRule(rule.clone())),
                Some(_) => self.comes.extend(equal.next().cloned().map(Change::TakeOverRule)),
            }
            let of_others = actual
                .rules
                .iter()
                .filter(|other| other.protocol != ROUTE_PROTOCOL);
            let in_the_way = of_others.filter(|other| is_of_a_plan(other) && is_another_way(other, rule));
            self.problems
                .extend(in_the_way.map(|other| format!("foreign rule in the way, left alone: {other}")));
        }
    }

    fn stale(&mut self, plan: &Plan, wanted: &BTreeSet<Route>, actual: &Actual) {
        let is_undecided = |rule: &&Rule| pod_of(rule).is_some_and(|pod| plan.undecided.contains(&pod));
        let ours = actual.rules.iter().filter(|rule| {
            let is_ours = rule.protocol == ROUTE_PROTOCOL && is_of_a_plan(rule);
            is_ours && !plan.rules.contains(rule)
        });
        let (kept, stale): (Vec<&Rule>, Vec<&Rule>) = ours.partition(is_undecided);
        self.goes
            .splice(0..0, stale.into_iter().cloned().map(Change::DeleteRule));
        // An interface that is said to be gone while a pod has its address is most likely there.
        let kept: BTreeSet<u32> = kept.into_iter().filter_map(Rule::table).collect();
        let key = |route: &Route| (route.table, route.destination, route.metric);
        let keys: BTreeSet<_> = wanted.iter().map(key).collect();
        let stale = actual.routes.iter().filter(|route| {
            let is_ours = route.protocol == ROUTE_PROTOCOL && route.table != TABLE_MAIN;
            // One that is replaced has the key of the one that comes.
            is_ours && !kept.contains(&route.table) && !keys.contains(&key(route))
        });
        self.goes.extend(stale.cloned().map(Change::DeleteRoute));
    }
}

fn write(kernel: &mut impl Kernel, changes: &[Change], outcome: &mut Outcome) {
    for change in changes {
        outcome.note(change.write(kernel));
    }
}

/// Whether two rules of a plan's kind send the same packets to different tables.
fn is_another_way(other: &Rule, rule: &Rule) -> bool {
    let same_ends = (other.priority, other.is_v6) == (rule.priority, rule.is_v6)
        && (other.source, other.destination) == (rule.source, rule.destination);
    same_ends && other.table() != rule.table()
}

/// Writes the difference. What fails stops nothing else.
///
/// The pods must be listed after the mirror was read: see [`crate::reconcile::repair`].
pub(super) fn repair(
    kernel: &mut impl Kernel,
    mirror: &Mirror,
    actual: &Actual,
    plan: &Plan,
    pods: &[PodRoute],
) -> Outcome {
    let difference = difference(plan, actual);
    let mut outcome = repair_pods(kernel, mirror, pods, plan.is_complete);
    write(kernel, &difference.comes, &mut outcome);
    write(kernel, &difference.goes, &mut outcome);
    outcome.problems.extend(difference.problems);
    outcome
}

/// Writes the rules of one pod of a plan, and takes away what there is of a pod that had its address: a pass for it
/// alone. What its rules lead to is looked at, and left to passes over everything. How many writes that took; the reason,
/// where its packets are not led as planned and nothing was written.
///
/// # Errors
/// As the kernel says; the rules before the failed one are there.
pub(super) fn lead(kernel: &mut impl Kernel, plan: &Plan, pod: IpAddr) -> Result<Result<usize, String>> {
    if plan.undecided.contains(&pod) {
        return Ok(Err(format!("{pod} is of no interface that is served")));
    }
    let rules: BTreeSet<Rule> = plan.rules_of(pod).cloned().collect();
    let tables = rules.iter().filter_map(Rule::table);
    for uplink in tables.filter_map(|table| plan.uplinks.values().find(|uplink| uplink.table == table)) {
        let of_table = RouteFilter {
            table: Some(uplink.table),
            ..RouteFilter::default()
        };
        let gateway = Some(IpAddr::V4(uplink.gateway));
        // Without its device, or as long as that is down, a table has no route.
        if !kernel
            .routes(&of_table)?
            .iter()
            .any(|route| route.gateway == gateway)
        {
            return Ok(Err(format!(
                "table {} of interface {} has no route to its gateway yet",
                uplink.table, uplink.address
            )));
        }
    }
    let of_pod = Plan {
        rules,
        is_complete: true,
        ..Plan::default()
    };
    let mut actual = Actual {
        rules: kernel.all_rules()?,
        ..Actual::default()
    };
    actual.rules.retain(|rule| is_of_pod(rule, pod));
    let difference = difference(&of_pod, &actual);
    let changes = || difference.comes.iter().chain(&difference.goes);
    for change in changes() {
        change.write(kernel)?;
    }
    // Of rules of one priority the kernel takes the first: somebody else's, where that was there before.
    if !difference.problems.is_empty() {
        return Ok(Err(difference.problems.join("; ")));
    }
    Ok(Ok(changes().count()))
}

/// Deletes all rules that are ours, and all routes but those to pods in the main table.
pub(crate) fn remove_all(kernel: &mut impl Kernel, mirror: &Mirror) -> Result<Outcome> {
    let nothing = Plan {
        is_complete: true,
        ..Plan::default()
    };
    let actual = Actual::read(kernel, mirror, &nothing)?;
    let difference = difference(&nothing, &actual);
    let mut outcome = Outcome::default();
    write(kernel, &difference.goes, &mut outcome);
    Ok(outcome)
}

#[cfg(test)]
mod tests;

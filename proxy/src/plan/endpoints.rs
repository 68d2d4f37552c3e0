//! Which endpoints may take a port's traffic (KEP-1669, KEP-2433, KEP-4444; `pkg/proxy/topology.go` has the same
//! rules).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{Conditions, EndpointRef, EndpointSlice, IpFamily, ServicePort};

use super::addresses::is_possible;
use super::{MAX_ENDPOINTS, NodeContext, PortPlan, Reason, SharedSet, Target};

/// The endpoints that a Service's slices list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a> {
    pub(super) slices: &'a [&'a EndpointSlice],
    /// Those with these addresses are passed over.
    pub(super) silent: &'a [IpAddr],
}

impl<'a> Listed<'a> {
    fn endpoints(self, slice: &'a EndpointSlice) -> impl Iterator<Item = EndpointRef<'a>> {
        let endpoints = slice.endpoints.iter();
        endpoints.filter(move |endpoint| !self.silent.contains(&endpoint.address))
    }
}

/// An endpoint of one port.
#[derive(Clone, Copy, Debug)]
struct Candidate<'a> {
    endpoint: EndpointRef<'a>,
    local: bool,
}

impl Candidate<'_> {
    /// The order in which two entries for one target are preferred: an address that is reused by a new pod is listed
    /// twice for a while, and the pod that is not terminating has it.
    fn rank(&self) -> (bool, bool, bool, bool) {
        let Conditions {
            ready,
            serving,
            terminating,
        } = self.endpoint.conditions();
        (!terminating, ready, serving, self.local)
    }
}

/// Which ready endpoints cluster-wide traffic prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topology {
    SameNode,
    SameZone,
    Anywhere,
}

impl Topology {
    /// Hints count only if every ready endpoint has one and some endpoint is hinted to this place: a list that is
    /// hinted in part is in the middle of a change, and following it would overload the few that have hints.
    fn of<'a>(ready: impl Iterator<Item = EndpointRef<'a>> + Clone, node: &NodeContext) -> Self {
        let followed = |topology: Self, hinted: fn(EndpointRef<'a>) -> bool| {
            ready.clone().all(hinted) && ready.clone().any(|endpoint| topology.admits(endpoint, node))
        };
        if followed(Self::SameNode, |endpoint| !endpoint.hinted_nodes().is_empty()) {
            Self::SameNode
        } else if followed(Self::SameZone, |endpoint| !endpoint.hinted_zones().is_empty()) {
            Self::SameZone
        } else {
            Self::Anywhere
        }
    }

    fn admits(self, endpoint: EndpointRef<'_>, node: &NodeContext) -> bool {
        match self {
            Self::SameNode => endpoint.hinted_nodes().contains(&node.name),
            Self::SameZone => node
                .zone
                .as_ref()
                .is_some_and(|zone| endpoint.hinted_zones().contains(zone)),
            Self::Anywhere => true,
        }
    }
}

/// The lists of a port's plan, without frontends.
pub(super) fn choose(
    port: &ServicePort,
    family: IpFamily,
    listed: &Listed<'_>,
    node: &NodeContext,
    reasons: &mut BTreeSet<Reason>,
) -> PortPlan {
    let candidates = candidates(port, family, listed, node, reasons);
    let ready = candidates
        .values()
        .map(|candidate| candidate.endpoint)
        .filter(|endpoint| endpoint.conditions().ready);
    let topology = Topology::of(ready, node);
    let cluster = usable(candidates.iter(), topology, node, reasons);
    let here = candidates.iter().filter(|(_, candidate)| candidate.local);
    let local = usable(here, Topology::Anywhere, node, reasons);
    let on_this_node = |target: &&Target| candidates.get(target).is_some_and(|candidate| candidate.local);
    let chosen = cluster.iter().chain(&local);
    let on_this_node: SharedSet<_> = chosen.filter(on_this_node).copied().collect();
    let serving = candidates
        .iter()
        .filter(|(_, candidate)| candidate.endpoint.conditions().serving);
    let serving: SharedSet<_> = serving.map(|(target, _)| *target).collect();
    PortPlan {
        on_this_node: on_this_node.or_equal(&[&local, &cluster]),
        serving: serving.or_equal(&[&cluster]),
        cluster,
        local,
        ..PortPlan::default()
    }
}

/// The ready ones of the preferred place; when there is none, all that terminate but still serve.
fn usable<'a>(
    candidates: impl Iterator<Item = (&'a Target, &'a Candidate<'a>)> + Clone,
    topology: Topology,
    node: &NodeContext,
    reasons: &mut BTreeSet<Reason>,
) -> SharedSet<Target> {
    let of = |wanted: &dyn Fn(EndpointRef<'_>) -> bool| -> Vec<Target> {
        let chosen = candidates
            .clone()
            .filter(|(_, candidate)| wanted(candidate.endpoint));
        chosen.map(|(target, _)| *target).collect()
    };
    let mut targets = of(&|endpoint| endpoint.conditions().ready && topology.admits(endpoint, node));
    if targets.is_empty() {
        targets = of(&|endpoint| endpoint.conditions().serving && endpoint.conditions().terminating);
    }
    if targets.len() > MAX_ENDPOINTS {
        reasons.insert(Reason::TooManyEndpoints(targets.len()));
        targets.truncate(MAX_ENDPOINTS);
    }
    targets.into_iter().collect()
}

fn candidates<'a>(
    port: &ServicePort,
    family: IpFamily,
    listed: &Listed<'a>,
    node: &NodeContext,
    reasons: &mut BTreeSet<Reason>,
) -> BTreeMap<Target, Candidate<'a>> {
    let mut candidates: BTreeMap<Target, Candidate<'a>> = BTreeMap::new();
    for slice in listed.slices.iter().filter(|slice| slice.family == family) {
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol);
        for (number, endpoint) in numbers.flat_map(|p| listed.endpoints(slice).map(move |e| (p.port, e))) {
            if IpFamily::from(endpoint.address) != family || !is_possible(endpoint.address) {
                reasons.insert(Reason::BadEndpoint(endpoint.address));
                continue;
            }
            let target = Target {
                address: endpoint.address,
                port: number,
            };
            let candidate = Candidate {
                endpoint,
                local: endpoint.node() == Some(&node.name),
            };
            let entry = candidates.entry(target).or_insert(candidate);
            if candidate.rank() > entry.rank() {
                *entry = candidate;
            }
        }
    }
    candidates
}

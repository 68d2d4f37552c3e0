//! Which endpoints may take a port's traffic (KEP-1669; `pkg/proxy/topology.go` has the same rules).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{Conditions, Endpoint, EndpointSlice, IpFamily, ServicePort};

use super::{MAX_ENDPOINTS, NodeContext, PortPlan, Reason, Target};

/// An endpoint of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    conditions: Conditions,
    local: bool,
}

impl Candidate {
    /// The order in which two entries for one target are preferred: an address that is reused by a new pod is listed
    /// twice for a while, and the pod that is not terminating has it.
    fn rank(&self) -> (bool, bool, bool, bool) {
        let Conditions {
            ready,
            serving,
            terminating,
        } = self.conditions;
        (!terminating, ready, serving, self.local)
    }
}

/// The lists of a port's plan, without frontends.
pub(super) fn choose(
    port: &ServicePort,
    slices: &[&EndpointSlice],
    node: &NodeContext,
    reasons: &mut BTreeSet<Reason>,
) -> PortPlan {
    let candidates = candidates(port, slices, node, reasons);
    let cluster = usable(candidates.iter(), reasons);
    let local = usable(
        candidates.iter().filter(|(_, candidate)| candidate.local),
        reasons,
    );
    let on_this_node = |target: &&Target| candidates.get(target).is_some_and(|candidate| candidate.local);
    PortPlan {
        frontends: BTreeMap::new(),
        on_this_node: cluster
            .iter()
            .chain(&local)
            .filter(on_this_node)
            .copied()
            .collect(),
        serving: candidates
            .iter()
            .filter(|(_, candidate)| candidate.conditions.serving)
            .map(|(target, _)| *target)
            .collect(),
        cluster,
        local,
    }
}

/// The ready ones; when there is none, those that terminate but still serve.
fn usable<'a>(
    candidates: impl Iterator<Item = (&'a Target, &'a Candidate)> + Clone,
    reasons: &mut BTreeSet<Reason>,
) -> Vec<Target> {
    let of = |wanted: fn(&Conditions) -> bool| -> Vec<Target> {
        let chosen = candidates
            .clone()
            .filter(|(_, candidate)| wanted(&candidate.conditions));
        chosen.map(|(target, _)| *target).collect()
    };
    let mut targets = of(|conditions| conditions.ready);
    if targets.is_empty() {
        targets = of(|conditions| conditions.serving && conditions.terminating);
    }
    if targets.len() > MAX_ENDPOINTS {
        reasons.insert(Reason::TooManyEndpoints(targets.len()));
        targets.truncate(MAX_ENDPOINTS);
    }
    targets
}

fn candidates(
    port: &ServicePort,
    slices: &[&EndpointSlice],
    node: &NodeContext,
    reasons: &mut BTreeSet<Reason>,
) -> BTreeMap<Target, Candidate> {
    let mut candidates: BTreeMap<Target, Candidate> = BTreeMap::new();
    for slice in slices.iter().filter(|slice| slice.family == IpFamily::V4) {
        let numbers = slice
            .ports
            .iter()
            .filter(|p| p.name == port.name && p.protocol == port.protocol);
        for (number, endpoint) in numbers.flat_map(|p| slice.endpoints.iter().map(move |e| (p.port, e))) {
            if !is_possible(endpoint.address) {
                reasons.insert(Reason::BadEndpoint(endpoint.address));
                continue;
            }
            let target = Target {
                address: endpoint.address,
                port: number,
            };
            let candidate = candidate(endpoint, node);
            let entry = candidates.entry(target).or_insert(candidate);
            if candidate.rank() > entry.rank() {
                *entry = candidate;
            }
        }
    }
    candidates
}

fn candidate(endpoint: &Endpoint, node: &NodeContext) -> Candidate {
    Candidate {
        conditions: endpoint.conditions,
        local: endpoint.node.as_ref() == Some(&node.name),
    }
}

/// Loopback, multicast, unspecified and link-local addresses would turn a Service against the node itself
/// (`ValidateNonSpecialIP`); the family must be the slice's.
fn is_possible(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
        }
        IpAddr::V6(_) => false,
    }
}

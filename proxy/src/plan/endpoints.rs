//! Which endpoints may take a port's traffic (KEP-1669, KEP-2433, KEP-4444; `pkg/proxy/topology.go` has the same
//! rules).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use model::{Conditions, EndpointRef, EndpointSlice, IpFamily};

use super::addresses::is_possible;
use super::standing::{Chosen, LeftOut, Standing};
use super::{List, MAX_ENDPOINTS, NodeContext, PortKey, PortPlan, Reason, SharedSet, Target};

/// The endpoints that a Service's slices list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listed<'a, 'silent> {
    pub(super) slices: &'a [&'a EndpointSlice],
    /// Those with these addresses are passed over.
    pub(super) silent: &'silent [IpAddr],
}

impl<'a> Listed<'a, '_> {
    /// Those of one port, with the slice that lists them.
    fn of_port(self, key: &PortKey) -> impl Iterator<Item = (&'a EndpointSlice, EndpointRef<'a>, Target)> {
        let slices = self.slices.iter().filter(|slice| slice.family == key.family);
        slices.flat_map(move |slice| {
            let ports = slice.ports.iter();
            let ports = ports.filter(|port| port.name == key.name && port.protocol == key.protocol);
            ports.flat_map(move |port| {
                slice.endpoints.iter().map(move |endpoint| {
                    let target = Target {
                        address: endpoint.address,
                        port: port.port,
                    };
                    (*slice, endpoint, target)
                })
            })
        })
    }

    /// Why nobody can be sent to an endpoint's address, whatever its conditions.
    fn fault(self, endpoint: EndpointRef<'_>, family: IpFamily) -> Option<LeftOut> {
        if self.silent.contains(&endpoint.address) {
            Some(LeftOut::Silent)
        } else if IpFamily::from(endpoint.address) != family || !is_possible(endpoint.address) {
            Some(LeftOut::BadAddress)
        } else {
            None
        }
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

/// Who of a port's endpoints gets into a list.
#[derive(Clone, Copy, Debug)]
struct Sieve<'a> {
    node: &'a NodeContext,
    /// Those of other nodes do not.
    only_here: bool,
    topology: Topology,
    /// None is ready: those that terminate and still serve do.
    none_ready: bool,
}

impl<'a> Sieve<'a> {
    fn new(list: List, candidates: &Candidates<'_>, node: &'a NodeContext) -> Self {
        let ready = candidates.values().map(|candidate| candidate.endpoint);
        let ready = ready.filter(|endpoint| endpoint.conditions().ready);
        let mut sieve = Self {
            node,
            only_here: list == List::Local,
            topology: match list {
                List::Cluster => Topology::of(ready, node),
                List::Local => Topology::Anywhere,
            },
            none_ready: false,
        };
        sieve.none_ready = !candidates
            .values()
            .any(|candidate| sieve.judge(candidate).is_ok());
        sieve
    }

    fn judge(&self, candidate: &Candidate<'_>) -> Result<Chosen, LeftOut> {
        let Conditions {
            ready,
            serving,
            terminating,
        } = candidate.endpoint.conditions();
        if self.only_here && !candidate.local {
            Err(LeftOut::NotHere)
        } else if self.none_ready && serving && terminating {
            Ok(Chosen::Terminating)
        } else if !ready && terminating {
            Err(LeftOut::Terminating { serving })
        } else if !ready {
            Err(LeftOut::NotReady)
        } else if self.topology.admits(candidate.endpoint, self.node) {
            Ok(Chosen::Ready)
        } else if self.topology == Topology::SameNode {
            Err(LeftOut::HintedToOtherNode)
        } else {
            Err(LeftOut::HintedToOtherZone)
        }
    }

    fn targets(&self, candidates: &Candidates<'_>, reasons: &mut BTreeSet<Reason>) -> SharedSet<Target> {
        let chosen = candidates
            .iter()
            .filter(|(_, candidate)| self.judge(candidate).is_ok());
        let mut targets: Vec<Target> = chosen.map(|(target, _)| *target).collect();
        if targets.len() > MAX_ENDPOINTS {
            reasons.insert(Reason::TooManyEndpoints(targets.len()));
            targets.truncate(MAX_ENDPOINTS);
        }
        targets.into_iter().collect()
    }
}

/// The endpoints of a port that packets can be sent to.
type Candidates<'a> = BTreeMap<Target, Candidate<'a>>;

/// The lists of a port's plan, without frontends.
pub(super) fn choose(
    key: &PortKey,
    listed: &Listed<'_, '_>,
    node: &NodeContext,
    reasons: &mut BTreeSet<Reason>,
) -> PortPlan {
    let candidates = candidates(key, listed, node, reasons);
    let cluster = Sieve::new(List::Cluster, &candidates, node).targets(&candidates, reasons);
    let local = Sieve::new(List::Local, &candidates, node).targets(&candidates, reasons);
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

fn candidates<'a>(
    key: &PortKey,
    listed: &Listed<'a, '_>,
    node: &NodeContext,
    reasons: &mut BTreeSet<Reason>,
) -> Candidates<'a> {
    let mut candidates = Candidates::new();
    for (_, endpoint, target) in listed.of_port(key) {
        match listed.fault(endpoint, key.family) {
            None => {}
            Some(LeftOut::BadAddress) => {
                reasons.insert(Reason::BadEndpoint(endpoint.address));
                continue;
            }
            Some(_) => continue,
        }
        let candidate = Candidate {
            endpoint,
            local: endpoint.node() == Some(&node.name),
        };
        let entry = candidates.entry(target).or_insert(candidate);
        if candidate.rank() > entry.rank() {
            *entry = candidate;
        }
    }
    candidates
}

/// What becomes of each endpoint that slices list for a port, in their order.
pub(super) fn standings<'a>(
    key: &PortKey,
    listed: &Listed<'a, '_>,
    node: &NodeContext,
    list: List,
) -> Vec<Standing<'a>> {
    let candidates = candidates(key, listed, node, &mut BTreeSet::new());
    let sieve = Sieve::new(list, &candidates, node);
    let room = sieve.targets(&candidates, &mut BTreeSet::new());
    let mut counted = BTreeSet::new();
    let mut judge = |endpoint: EndpointRef<'a>, target: &Target| {
        if let Some(fault) = listed.fault(endpoint, key.family) {
            return Err(fault);
        }
        let candidate = candidates.get(target);
        // The same target may be listed by several slices: one of the entries stands for it, of equal ones the first.
        let candidate =
            candidate.filter(|candidate| candidate.endpoint == endpoint && counted.insert(*target));
        let chosen = sieve.judge(candidate.ok_or(LeftOut::Superseded)?)?;
        if room.contains(target) {
            Ok(chosen)
        } else {
            Err(LeftOut::NoRoom)
        }
    };
    let listed = listed.of_port(key);
    let judged = listed.map(|(slice, endpoint, target)| Standing {
        slice,
        endpoint,
        target,
        outcome: judge(endpoint, &target),
    });
    judged.collect()
}

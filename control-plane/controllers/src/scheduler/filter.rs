//! Which nodes will do, and why the others will not, in upstream's words and in the order of its plugins.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::{Pod, Taint, Toleration};
use model::NodeName;

use super::affinity;
use super::ledger::{HostPort, NodeState, host_ports};
use super::resources::{self, Amounts};
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, UNSCHEDULABLE, tolerates};

/// Why no node will do: each reason with the number of nodes that it holds for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// Reasons and how many nodes each holds for.
    pub reasons: BTreeMap<String, usize>,
}

impl fmt::Display for Unschedulable {
    /// Upstream's `FitError`: the reasons sorted as texts, their counts included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let mut reasons: Vec<String> = self
            .reasons
            .iter()
            .map(|(reason, count)| format!("{count} {reason}"))
            .collect();
        reasons.sort();
        write!(f, "0/{} nodes are available: {}.", self.nodes, reasons.join(", "))
    }
}

/// The nodes that `pod` fits on.
pub(crate) fn fitting<'a>(
    pod: &Pod,
    nodes: &'a BTreeMap<NodeName, NodeState>,
) -> Result<Vec<(&'a NodeName, &'a NodeState)>, Unschedulable> {
    let asked = Asked {
        pod,
        requests: resources::requests(pod),
        ports: host_ports(pod),
    };
    let near = affinity::Neighbourhood::of(pod, nodes);
    let mut fitting = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (name, node) in nodes {
        let mut obstacles = asked.obstacles(node);
        if obstacles.is_empty() {
            obstacles.extend(near.obstacle(node).map(str::to_owned));
        }
        if obstacles.is_empty() {
            fitting.push((name, node));
        }
        for obstacle in obstacles {
            *reasons.entry(obstacle).or_default() += 1;
        }
    }
    if fitting.is_empty() {
        Err(Unschedulable {
            nodes: nodes.len(),
            reasons,
        })
    } else {
        Ok(fitting)
    }
}

/// What a pod asks of a node.
struct Asked<'a> {
    pod: &'a Pod,
    requests: Amounts,
    ports: Vec<HostPort>,
}

impl Asked<'_> {
    /// The first kind of reason against a node; only a lack of resources may have several.
    fn obstacles(&self, node: &NodeState) -> Vec<String> {
        let spec = self.pod.spec.as_ref();
        let tolerations = spec
            .and_then(|spec| spec.tolerations.as_deref())
            .unwrap_or_default();
        if node.cordoned && !tolerates_all(tolerations, &cordon()) {
            return vec!["node(s) were unschedulable".to_owned()];
        }
        let barring = node
            .taints
            .iter()
            .filter(|taint| matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE));
        if let Some(taint) = barring
            .into_iter()
            .find(|taint| !tolerates_all(tolerations, taint))
        {
            let value = taint.value.as_deref().unwrap_or_default();
            return vec![format!(
                "node(s) had untolerated taint {{{}: {value}}}",
                taint.key
            )];
        }
        if !affinity::selects_node(self.pod, node) {
            return vec!["node(s) didn't match Pod's node affinity/selector".to_owned()];
        }
        let mut taken = node.pods.values().flat_map(|pod| &pod.ports);
        if taken.any(|taken| self.ports.iter().any(|port| port.conflicts(taken))) {
            return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
        }
        self.lacking(node)
    }

    fn lacking(&self, node: &NodeState) -> Vec<String> {
        let mut lacking = Vec::new();
        let count = i128::try_from(node.pods.len()).unwrap_or(i128::MAX);
        if node
            .allocatable
            .get("pods")
            .is_some_and(|most| (count + 1) * 1000 > most.0)
        {
            lacking.push("Too many pods".to_owned());
        }
        for (name, amount) in &self.requests {
            let has = node.allocatable.get(name).copied().unwrap_or_default();
            let taken = node.requested.get(name).copied().unwrap_or_default();
            if amount.0 > has.0 - taken.0 {
                lacking.push(format!("Insufficient {name}"));
            }
        }
        lacking
    }
}

/// The taint that a cordoned node has even before the node controller sets it.
fn cordon() -> Taint {
    Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: NO_SCHEDULE.to_owned(),
        ..Taint::default()
    }
}

fn tolerates_all(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| tolerates(toleration, taint))
}

#[cfg(test)]
#[path = "filter_tests.rs"]
mod tests;

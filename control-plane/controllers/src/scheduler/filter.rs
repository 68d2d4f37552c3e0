//! Which nodes will do, and why the others will not, in upstream's words and in the order of its plugins.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::{Pod, PodSpec, Taint, Toleration};
use model::NodeName;

use super::affinity::{self, Neighbourhood};
use super::ledger::{HostPort, Ledger, NodeState, host_ports};
use super::resources::{self, Amounts};
use super::topology::Evenness;
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, UNSCHEDULABLE, tolerates};

/// A pod of a DaemonSet is for one node, and the others are not looked at.
const NOT_NAMED: &str = "node(s) didn't satisfy plugin(s) [NodeAffinity]";

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
    ledger: &'a Ledger,
    near: &Neighbourhood,
    evenness: &Evenness,
) -> Result<Vec<(&'a NodeName, &'a NodeState)>, Unschedulable> {
    let nodes = ledger.nodes();
    let asked = Asked {
        pod,
        named: pod.spec.as_ref().and_then(affinity::named_nodes),
        requests: resources::requests(pod),
        ports: host_ports(pod),
    };
    let mut fitting = Vec::new();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    for (name, node) in nodes {
        let mut obstacles = asked.obstacles(name, node);
        if obstacles.is_empty() {
            let obstacle = evenness.obstacle(node).or_else(|| near.obstacle(node));
            obstacles.extend(obstacle.map(str::to_owned));
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
    /// The only nodes that it names, where it goes by names alone.
    named: Option<BTreeSet<&'a str>>,
    requests: Amounts,
    ports: Vec<HostPort>,
}

impl Asked<'_> {
    /// The first kind of reason against a node; only a lack of resources may have several.
    fn obstacles(&self, name: &NodeName, node: &NodeState) -> Vec<String> {
        if self.named.as_ref().is_some_and(|named| !named.contains(&*name.0)) {
            return vec![NOT_NAMED.to_owned()];
        }
        let spec = self.pod.spec.as_ref();
        if let Some(barred) = spec.and_then(|spec| is_barred(spec, node)) {
            return vec![barred];
        }
        if !spec.is_none_or(|spec| affinity::selects_node(spec, &node.labels)) {
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

/// Why pods of this `spec` stay away from the node: it is cordoned, or has a taint that they do not tolerate.
pub(crate) fn is_barred(spec: &PodSpec, node: &NodeState) -> Option<String> {
    let tolerations = spec.tolerations.as_deref().unwrap_or_default();
    if node.cordoned && !tolerates_all(tolerations, &cordon()) {
        return Some("node(s) were unschedulable".to_owned());
    }
    let mut barring = node
        .taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), NO_SCHEDULE | NO_EXECUTE));
    let taint = barring.find(|taint| !tolerates_all(tolerations, taint))?;
    let value = taint.value.as_deref().unwrap_or_default();
    Some(format!(
        "node(s) had untolerated taint {{{}: {value}}}",
        taint.key
    ))
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

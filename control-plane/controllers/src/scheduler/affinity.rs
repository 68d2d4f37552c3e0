//! Affinity to nodes and between pods: what is required, and what is only preferred of nodes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Pod, PodAffinityTerm};
use model::{NodeName, ObjectName};

use super::ledger::NodeState;
use crate::cache::name_of;
use crate::selector::{self, Labels};

/// Whether the pod's `nodeSelector` and its required node affinity allow the node.
pub(crate) fn selects_node(pod: &Pod, node: &NodeState) -> bool {
    let Some(spec) = &pod.spec else { return true };
    let selected = spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| selector::includes(wanted, &node.labels));
    let affinity = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    selected
        && required.is_none_or(|required| {
            required
                .node_selector_terms
                .iter()
                .any(|term| matches(term, node))
        })
}

/// The weight of the preferred terms that the node satisfies.
pub(crate) fn preference(pod: &Pod, node: &NodeState) -> i64 {
    let affinity = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref());
    let preferred = affinity.and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    let satisfied = preferred
        .into_iter()
        .flatten()
        .filter(|term| matches(&term.preference, node));
    satisfied.map(|term| i64::from(term.weight)).sum()
}

/// Terms are alternatives, the requirements within one hold together; a term without any matches nothing.
fn matches(term: &NodeSelectorTerm, node: &NodeState) -> bool {
    let mut requirements = term
        .match_expressions
        .iter()
        .flatten()
        .chain(term.match_fields.iter().flatten())
        .peekable();
    requirements.peek().is_some()
        && requirements.all(|r| {
            selector::requirement(
                &r.key,
                &r.operator,
                r.values.as_deref().unwrap_or_default(),
                &node.labels,
            )
        })
}

const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const THEIR_ANTI_AFFINITY: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// A topology domain: the key of a node label and its value.
type Domain = (String, String);

/// What a pod's own rules, and those of the pods that run already, say about every domain.
pub(crate) struct Neighbourhood {
    /// For each required affinity term, where it is satisfied; `None`: by the pod itself, as the first of its
    /// kind.
    wanted: Vec<(String, Option<BTreeSet<Domain>>)>,
    shunned: BTreeSet<Domain>,
    closed: BTreeSet<Domain>,
}

impl Neighbourhood {
    /// Looks at all pods on all nodes, if any rule asks for it.
    pub fn of(pod: &Pod, nodes: &BTreeMap<NodeName, NodeState>) -> Self {
        let name = name_of(pod);
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
        let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
        let near = near.and_then(|near| {
            near.required_during_scheduling_ignored_during_execution
                .as_deref()
        });
        let apart = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
        let apart = apart.and_then(|apart| {
            apart
                .required_during_scheduling_ignored_during_execution
                .as_deref()
        });
        let wanted = near.unwrap_or_default().iter().map(|term| {
            let places = domains(term, &name, nodes);
            let itself = places.is_empty() && concerns(term, &name.namespace, &name, &labels);
            (term.topology_key.clone(), (!itself).then_some(places))
        });
        Self {
            wanted: wanted.collect(),
            shunned: apart
                .unwrap_or_default()
                .iter()
                .flat_map(|term| domains(term, &name, nodes))
                .collect(),
            closed: closed(&name, &labels, nodes),
        }
    }

    /// The first rule that the node would break.
    pub fn obstacle(&self, node: &NodeState) -> Option<&'static str> {
        let domain = |key: &String| node.labels.get(key).map(|value| (key.clone(), value.clone()));
        let is_near = |(key, places): &(String, Option<BTreeSet<Domain>>)| match (domain(key), places) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(domain), Some(places)) => places.contains(&domain),
        };
        let within = |domains: &BTreeSet<Domain>| {
            domains
                .iter()
                .any(|(key, value)| node.labels.get(key) == Some(value))
        };
        if !self.wanted.iter().all(is_near) {
            Some(AFFINITY)
        } else if within(&self.shunned) {
            Some(ANTI_AFFINITY)
        } else if within(&self.closed) {
            Some(THEIR_ANTI_AFFINITY)
        } else {
            None
        }
    }
}

/// The domains in which a pod runs that `term`, a rule of the pod `whose`, speaks of.
fn domains(
    term: &PodAffinityTerm,
    whose: &ObjectName,
    nodes: &BTreeMap<NodeName, NodeState>,
) -> BTreeSet<Domain> {
    let holding = nodes.values().filter(|node| {
        node.pods
            .iter()
            .any(|(name, pod)| name != whose && concerns(term, &whose.namespace, name, &pod.labels))
    });
    holding
        .filter_map(|node| {
            Some((
                term.topology_key.clone(),
                node.labels.get(&term.topology_key)?.clone(),
            ))
        })
        .collect()
}

/// The domains that pods which run already keep free of the newcomer.
fn closed(newcomer: &ObjectName, labels: &Labels, nodes: &BTreeMap<NodeName, NodeState>) -> BTreeSet<Domain> {
    let mut closed = BTreeSet::new();
    for node in nodes.values() {
        for (name, pod) in &node.pods {
            let terms = pod
                .keeps_away
                .iter()
                .filter(|term| concerns(term, &name.namespace, newcomer, labels));
            closed.extend(terms.filter_map(|term| {
                Some((
                    term.topology_key.clone(),
                    node.labels.get(&term.topology_key)?.clone(),
                ))
            }));
        }
    }
    closed
}

/// Whether a rule of a pod in namespace `home` speaks of this pod. A namespace selector is taken to mean all
/// namespaces when it is empty, as documented, and none otherwise: namespaces' labels are not known here.
fn concerns(term: &PodAffinityTerm, home: &str, name: &ObjectName, labels: &Labels) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let everywhere = term.namespace_selector.as_ref().is_some_and(selector::is_empty);
    let at_home = listed.is_empty() && term.namespace_selector.is_none() && name.namespace == home;
    let in_scope = everywhere || at_home || listed.iter().any(|listed| name.namespace == **listed);
    in_scope
        && term
            .label_selector
            .as_ref()
            .is_some_and(|wanted| selector::matches(wanted, labels))
}

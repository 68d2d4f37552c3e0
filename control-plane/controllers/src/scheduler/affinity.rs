//! Affinity to nodes and between pods: what is required, and what is only preferred of nodes.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorTerm, Pod, PodAffinityTerm, PodSpec};
use model::ObjectName;

use super::ledger::{Ledger, NAME_FIELD, NodeState};
use crate::cache::name_of;
use crate::selector::{self, Labels};

/// Whether a pod's `nodeSelector` and its required node affinity allow a node with these labels, its name among them
/// (`node_labels`).
pub(crate) fn selects_node(spec: &PodSpec, labels: &Labels) -> bool {
    let selected = spec
        .node_selector
        .as_ref()
        .is_none_or(|wanted| selector::includes(wanted, labels));
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
                .any(|term| matches(term, labels))
        })
}

/// The only nodes that a pod's required node affinity allows by their names; `None` where it does not go by names
/// alone.
pub(crate) fn named_nodes(spec: &PodSpec) -> Option<BTreeSet<&str>> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .as_ref()?;
    let names = required.node_selector_terms.iter().map(|term| {
        let mut fields = term.match_fields.iter().flatten();
        let by_name = fields.find(|field| field.key == NAME_FIELD && field.operator == "In")?;
        by_name.values.as_deref()
    });
    let names: Option<Vec<&[String]>> = names.collect();
    Some(names?.into_iter().flatten().map(String::as_str).collect())
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
        .filter(|term| matches(&term.preference, &node.labels));
    satisfied.map(|term| i64::from(term.weight)).sum()
}

/// Terms are alternatives, the requirements within one hold together; a term without any matches nothing.
fn matches(term: &NodeSelectorTerm, labels: &Labels) -> bool {
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
                labels,
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
    /// How much each domain is preferred; less than nothing where it is avoided.
    liked: BTreeMap<Domain, i64>,
}

impl Neighbourhood {
    /// Looks at all pods on all nodes.
    pub fn of(pod: &Pod, ledger: &Ledger) -> Self {
        let newcomer = Newcomer {
            name: name_of(pod),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            ledger,
        };
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
        Self {
            wanted: newcomer.wanted(near.unwrap_or_default()),
            shunned: apart
                .unwrap_or_default()
                .iter()
                .flat_map(|term| newcomer.domains(&[term]))
                .collect(),
            closed: newcomer.closed(),
            liked: newcomer.liked(&wishes(pod)),
        }
    }

    /// The first rule that the node would break.
    pub fn obstacle(&self, node: &NodeState) -> Option<&'static str> {
        let is_near = |(key, places): &(String, Option<BTreeSet<Domain>>)| match (domain(node, key), places) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(domain), Some(places)) => places.contains(&domain),
        };
        let within = |domains: &BTreeSet<Domain>| domains.iter().any(|domain| is_in(node, domain));
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

    /// How much pods on and near the node, and the newcomer's wishes, speak for it.
    pub fn liking(&self, node: &NodeState) -> i64 {
        let here = self.liked.iter().filter(|(domain, _)| is_in(node, domain));
        here.map(|(_, weight)| weight).sum()
    }
}

fn domain(node: &NodeState, key: &str) -> Option<Domain> {
    Some((key.to_owned(), node.labels.get(key)?.clone()))
}

fn is_in(node: &NodeState, (key, value): &Domain) -> bool {
    node.labels.get(key) == Some(value)
}

/// What a pod would like to be near to, by weight; less than nothing: far from.
pub(crate) type Wishes = Vec<(PodAffinityTerm, i64)>;

/// A pod's preferred affinity and anti-affinity.
pub(crate) fn wishes(pod: &Pod) -> Wishes {
    let affinity = pod.spec.as_ref().and_then(|spec| spec.affinity.as_ref());
    let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let near = near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref());
    let apart = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let apart = apart.and_then(|apart| {
        apart
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()
    });
    let near = near.into_iter().flatten().map(|wish| (wish, 1));
    let apart = apart.into_iter().flatten().map(|wish| (wish, -1));
    near.chain(apart)
        .map(|(wish, sign)| (wish.pod_affinity_term.clone(), sign * i64::from(wish.weight)))
        .collect()
}

/// What a pod on a node says of newcomers that may come near: its wishes, and that it had to be near their like itself
/// (upstream's `hardPodAffinityWeight`, 1).
pub(crate) fn welcome(pod: &Pod) -> Wishes {
    let affinity = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.pod_affinity.as_ref());
    let required =
        affinity.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref());
    let required = required.into_iter().flatten().map(|term| (term.clone(), 1));
    wishes(pod).into_iter().chain(required).collect()
}

/// A pod that looks for its place.
struct Newcomer<'a> {
    name: ObjectName,
    labels: Labels,
    ledger: &'a Ledger,
}

impl Newcomer<'_> {
    /// Where each of its required affinity terms is satisfied: by pods of which all terms speak.
    fn wanted(&self, terms: &[PodAffinityTerm]) -> Vec<(String, Option<BTreeSet<Domain>>)> {
        let all: Vec<&PodAffinityTerm> = terms.iter().collect();
        let places = self.domains(&all);
        let is_first = places.is_empty() && terms.iter().all(|term| self.speaks_of_itself(term));
        let of_key = |key: &String| {
            let places = places.iter().filter(|(other, _)| other == key);
            (!is_first).then(|| places.cloned().collect())
        };
        terms
            .iter()
            .map(|term| (term.topology_key.clone(), of_key(&term.topology_key)))
            .collect()
    }

    fn speaks_of_itself(&self, term: &PodAffinityTerm) -> bool {
        concerns(term, &self.name.namespace, &self.name, &self.labels, self.ledger)
    }

    /// The domains in which a pod runs that all of `terms` speak of.
    fn domains(&self, terms: &[&PodAffinityTerm]) -> BTreeSet<Domain> {
        if terms.is_empty() {
            return BTreeSet::new();
        }
        let home = &self.name.namespace;
        let speak_of = |name: &ObjectName, labels: &Labels| {
            let mut terms = terms.iter();
            *name != self.name && terms.all(|term| concerns(term, home, name, labels, self.ledger))
        };
        let nodes = self.ledger.nodes().values();
        let holding = nodes.filter(|node| node.pods.iter().any(|(name, pod)| speak_of(name, &pod.labels)));
        holding
            .flat_map(|node| terms.iter().filter_map(|term| domain(node, &term.topology_key)))
            .collect()
    }

    /// The domains that pods which run already keep free of it.
    fn closed(&self) -> BTreeSet<Domain> {
        let mut closed = BTreeSet::new();
        for node in self.ledger.nodes().values() {
            for (name, pod) in &node.pods {
                let terms = pod
                    .keeps_away
                    .iter()
                    .filter(|term| concerns(term, &name.namespace, &self.name, &self.labels, self.ledger));
                closed.extend(terms.filter_map(|term| domain(node, &term.topology_key)));
            }
        }
        closed
    }

    /// What its own wishes, and those of the pods that run already, come to in each domain.
    fn liked(&self, own: &Wishes) -> BTreeMap<Domain, i64> {
        let mut liked = BTreeMap::new();
        let mut like = |node: &NodeState, term: &PodAffinityTerm, weight: i64| {
            if let Some(domain) = domain(node, &term.topology_key) {
                *liked.entry(domain).or_default() += weight;
            }
        };
        for node in self.ledger.nodes().values() {
            for (name, pod) in node.pods.iter().filter(|(name, _)| **name != self.name) {
                let of_it = own
                    .iter()
                    .filter(|(term, _)| concerns(term, &self.name.namespace, name, &pod.labels, self.ledger));
                of_it.for_each(|(term, weight)| like(node, term, *weight));
                let of_us = pod.welcomes.iter().filter(|(term, _)| {
                    concerns(term, &name.namespace, &self.name, &self.labels, self.ledger)
                });
                of_us.for_each(|(term, weight)| like(node, term, *weight));
            }
        }
        liked
    }
}

/// Whether a rule of a pod in namespace `home` speaks of this pod.
fn concerns(term: &PodAffinityTerm, home: &str, name: &ObjectName, labels: &Labels, ledger: &Ledger) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let in_scope = match &term.namespace_selector {
        None if listed.is_empty() => name.namespace == home,
        Some(wanted) if selector::matches(wanted, ledger.namespace_labels(&name.namespace)) => true,
        _ => listed.iter().any(|listed| name.namespace == **listed),
    };
    in_scope
        && term
            .label_selector
            .as_ref()
            .is_some_and(|wanted| selector::matches(wanted, labels))
}

//! How evenly a pod's kind has to be spread over topology domains (`topologySpreadConstraints`).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, PodSpec, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use model::NodeName;

use super::affinity::selects_node;
use super::filter::is_barred;
use super::ledger::NodeState;
use crate::cache::name_of;
use crate::selector::{self, Labels};

const UNEVEN: &str = "node(s) didn't match pod topology spread constraints";
const NO_DOMAIN: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// What a pod's constraints say about every node.
pub(crate) struct Evenness {
    hard: Vec<Rule>,
    soft: Vec<Rule>,
}

/// One constraint, and how many pods of the kind each domain has.
struct Rule {
    key: String,
    max_skew: i64,
    counts: BTreeMap<String, i64>,
    /// The fewest pods of any domain; none while there are fewer domains than there have to be.
    least: i64,
    /// One if the pod is of the kind itself.
    itself: i64,
}

impl Evenness {
    /// Counts, for each constraint of `pod`, the pods in the domains of all nodes that it could use.
    pub fn of(pod: &Pod, nodes: &BTreeMap<NodeName, NodeState>) -> Self {
        let constraints = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.topology_spread_constraints.as_deref())
            .unwrap_or_default();
        let (hard, soft): (Vec<_>, Vec<_>) = constraints
            .iter()
            .partition(|constraint| constraint.when_unsatisfiable != "ScheduleAnyway");
        let rules = |constraints: &[&TopologySpreadConstraint]| {
            constraints
                .iter()
                .map(|constraint| Rule::of(pod, constraint, constraints, nodes))
                .collect()
        };
        Self {
            hard: rules(&hard),
            soft: rules(&soft),
        }
    }

    /// Whether the pod says nothing of its own.
    pub fn is_unsaid(&self) -> bool {
        self.hard.is_empty() && self.soft.is_empty()
    }

    /// The first constraint that the node would break.
    pub fn obstacle(&self, node: &NodeState) -> Option<&'static str> {
        self.hard.iter().find_map(|rule| {
            let Some(domain) = node.labels.get(&rule.key) else {
                return Some(NO_DOMAIN);
            };
            let here = rule.counts.get(domain).copied().unwrap_or(0);
            (here + rule.itself - rule.least > rule.max_skew).then_some(UNEVEN)
        })
    }

    /// How crowded the node's domains are, by the constraints that only advise; `None` where it lacks one of them.
    pub fn crowd(&self, node: &NodeState) -> Option<i64> {
        self.soft.iter().map(|rule| rule.crowd(node)).sum()
    }
}

impl Rule {
    fn of(
        pod: &Pod,
        constraint: &TopologySpreadConstraint,
        all: &[&TopologySpreadConstraint],
        nodes: &BTreeMap<NodeName, NodeState>,
    ) -> Self {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let kind = Kind::of(constraint, &labels);
        let name = name_of(pod);
        let mut counts: BTreeMap<String, i64> = BTreeMap::new();
        for node in nodes.values() {
            let has_all = all
                .iter()
                .all(|constraint| node.labels.contains_key(&constraint.topology_key));
            let Some(domain) = node.labels.get(&constraint.topology_key).filter(|_| has_all) else {
                continue;
            };
            if !pod
                .spec
                .as_ref()
                .is_none_or(|spec| counts_node(constraint, spec, node))
            {
                continue;
            }
            let of_kind = node.pods.iter().filter(|(other, placed)| {
                other.namespace == name.namespace
                    && **other != name
                    && !placed.terminating
                    && kind.has(&placed.labels)
            });
            *counts.entry(domain.clone()).or_default() += i64::try_from(of_kind.count()).unwrap_or(i64::MAX);
        }
        let domains = i64::try_from(counts.len()).unwrap_or(i64::MAX);
        let is_wide = domains >= constraint.min_domains.map_or(1, i64::from);
        Self {
            key: constraint.topology_key.clone(),
            max_skew: i64::from(constraint.max_skew),
            least: if is_wide {
                counts.values().copied().min().unwrap_or(0)
            } else {
                0
            },
            counts,
            itself: i64::from(kind.has(&labels)),
        }
    }

    /// Upstream's score: pods weigh more where there are many domains, and what a constraint tolerates is the same for
    /// all.
    fn crowd(&self, node: &NodeState) -> Option<i64> {
        let here = self.counts.get(node.labels.get(&self.key)?).copied().unwrap_or(0);
        Some(here * weight(self.counts.len()) + (self.max_skew - 1) * 1000)
    }
}

/// A thousand times the natural logarithm of two more than the number of domains.
#[expect(clippy::cast_possible_truncation, reason = "a logarithm of a count is small")]
fn weight(domains: usize) -> i64 {
    let domains = u32::try_from(domains).unwrap_or(u32::MAX).saturating_add(2);
    (f64::from(domains).ln() * 1000.0).round() as i64
}

/// Whether the constraint takes the node into account at all.
fn counts_node(constraint: &TopologySpreadConstraint, spec: &PodSpec, node: &NodeState) -> bool {
    let honors_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let honors_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    (!honors_affinity || selects_node(spec, &node.labels))
        && (!honors_taints || is_barred(spec, node).is_none())
}

/// Which pods a constraint counts.
struct Kind(Option<LabelSelector>);

impl Kind {
    /// Those that its selector matches and that have the pod's own values of `matchLabelKeys`; without a selector none.
    fn of(constraint: &TopologySpreadConstraint, labels: &Labels) -> Self {
        let own = constraint.match_label_keys.iter().flatten().filter_map(|key| {
            Some(LabelSelectorRequirement {
                key: key.clone(),
                operator: "In".to_owned(),
                values: Some(vec![labels.get(key)?.clone()]),
            })
        });
        Self(constraint.label_selector.clone().map(|mut selector| {
            selector.match_expressions.get_or_insert_default().extend(own);
            selector
        }))
    }

    fn has(&self, labels: &Labels) -> bool {
        self.0
            .as_ref()
            .is_some_and(|selector| selector::matches(selector, labels))
    }
}

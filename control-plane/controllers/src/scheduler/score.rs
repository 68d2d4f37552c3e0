//! Which of the nodes that will do is best.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

use k8s_openapi::api::core::v1::Pod;
use model::{NodeName, ObjectName};

use super::affinity::{self, Neighbourhood};
use super::ledger::{NodeState, PlacedPod};
use super::resources::{self, Amounts};
use super::topology::Evenness;
use crate::cache::name_of;
use crate::ownership;
use crate::selector::{self, Labels};
use crate::taints::tolerates;

/// A criterion's best value.
const FULL: i64 = 100;
/// Upstream's weights of the same criteria.
const WEIGHT_ROOM: i64 = 1;
const WEIGHT_SPREAD: i64 = 2;
const WEIGHT_NEIGHBOURS: i64 = 2;
const WEIGHT_PREFERENCE: i64 = 2;
const WEIGHT_TAINTS: i64 = 3;

/// Which pods are the relatives of a pod, from which it should stand apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spread {
    pod: ObjectName,
    owner: Option<String>,
    /// Selectors of the Services that the pod is behind.
    services: Vec<Labels>,
}

impl Spread {
    /// The relatives of `pod`: those of the same controller, and those behind the same `services`.
    pub fn new(pod: &Pod, services: Vec<Labels>) -> Self {
        let owner = ownership::controller_of(&pod.metadata).map(|owner| owner.uid.clone());
        Self {
            pod: name_of(pod),
            owner,
            services,
        }
    }

    fn is_relative(&self, name: &ObjectName, pod: &PlacedPod) -> bool {
        if pod.terminating || name.namespace != self.pod.namespace {
            return false;
        }
        let same_owner = self.owner.is_some() && pod.owner == self.owner;
        same_owner
            || self
                .services
                .iter()
                .any(|wanted| selector::includes(wanted, &pod.labels))
    }

    fn relatives_on(&self, node: &NodeState) -> i64 {
        let relatives = node
            .pods
            .iter()
            .filter(|(name, pod)| self.is_relative(name, pod))
            .count();
        i64::try_from(relatives).unwrap_or(i64::MAX)
    }
}

/// What pods elsewhere, and a pod's own constraints, say about where it should stand.
pub(crate) struct Surroundings<'a> {
    pub spread: &'a Spread,
    pub near: &'a Neighbourhood,
    pub evenness: &'a Evenness,
}

impl Surroundings<'_> {
    /// How well each node keeps the pod apart from its like, in hundredths: by its own constraints, or where it has
    /// none, from its relatives.
    fn apartness(&self, nodes: &[(&NodeName, &NodeState)]) -> Vec<i64> {
        if self.evenness.is_unsaid() {
            let relatives: Vec<i64> = nodes
                .iter()
                .map(|(_, node)| self.spread.relatives_on(node))
                .collect();
            return relatives
                .iter()
                .map(|count| FULL - share(*count, &relatives))
                .collect();
        }
        let crowds: Vec<Option<i64>> = nodes.iter().map(|(_, node)| self.evenness.crowd(node)).collect();
        let (most, least) = (crowds.iter().flatten().max(), crowds.iter().flatten().min());
        let (most, least) = (most.copied().unwrap_or(0), least.copied().unwrap_or(0));
        let apart = crowds.iter().map(|crowd| match crowd {
            None => 0,
            Some(_) if most == 0 => FULL,
            Some(crowd) => FULL * (most + least - crowd) / most,
        });
        apart.collect()
    }
}

/// The best of `nodes`, of which there is at least one.
pub(crate) fn best(
    pod: &Pod,
    nodes: &[(&NodeName, &NodeState)],
    surroundings: &Surroundings<'_>,
    seed: u64,
) -> NodeName {
    let asked = resources::with_assumed(&resources::requests(pod));
    let apart = surroundings.apartness(nodes);
    let likings: Vec<i64> = nodes
        .iter()
        .map(|(_, node)| surroundings.near.liking(node))
        .collect();
    let preferences: Vec<i64> = nodes
        .iter()
        .map(|(_, node)| affinity::preference(pod, node))
        .collect();
    let taints: Vec<i64> = nodes.iter().map(|(_, node)| avoided_taints(pod, node)).collect();
    let scored = nodes.iter().enumerate().map(|(index, (name, node))| {
        let score = WEIGHT_ROOM * room(&asked, node)
            + WEIGHT_SPREAD * apart[index]
            + WEIGHT_NEIGHBOURS * between(likings[index], &likings)
            + WEIGHT_PREFERENCE * share(preferences[index], &preferences)
            + WEIGHT_TAINTS * (FULL - share(taints[index], &taints));
        (score, lot(pod, name, seed), *name)
    });
    scored
        .max()
        .map(|(_, _, name)| name.clone())
        .unwrap_or_else(|| NodeName(model::Text::default()))
}

/// What part of the largest value this one is, in hundredths.
fn share(value: i64, all: &[i64]) -> i64 {
    let most = all.iter().copied().max().unwrap_or(0);
    if most <= 0 { 0 } else { FULL * value / most }
}

/// Where a value lies between the smallest and the largest, in hundredths.
fn between(value: i64, all: &[i64]) -> i64 {
    let (Some(least), Some(most)) = (all.iter().min(), all.iter().max()) else {
        return 0;
    };
    if most == least {
        0
    } else {
        FULL * (value - least) / (most - least)
    }
}

/// How much of the node stays free, CPU and memory alike (upstream's LeastAllocated).
fn room(asked: &Amounts, node: &NodeState) -> i64 {
    let free = |name: &str| {
        let has = node.allocatable.get(name).copied().unwrap_or_default().0;
        let taken = node.used.get(name).copied().unwrap_or_default().0
            + asked.get(name).copied().unwrap_or_default().0;
        if has <= 0 || taken > has {
            0
        } else {
            i64::try_from(i128::from(FULL) * (has - taken) / has).unwrap_or(0)
        }
    };
    i64::midpoint(free("cpu"), free("memory"))
}

/// How many taints ask the pod, without force, to stay away.
fn avoided_taints(pod: &Pod, node: &NodeState) -> i64 {
    let tolerations = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default();
    let soft = node
        .taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule");
    let avoided = soft.filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)));
    i64::try_from(avoided.count()).unwrap_or(i64::MAX)
}

/// Decides among equals: the same for the same pod, different for different pods, so that equals share the
/// load.
fn lot(pod: &Pod, node: &NodeName, seed: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (seed, pod.metadata.uid.as_deref(), &node.0).hash(&mut hasher);
    hasher.finish()
}

//! From one version of a DaemonSet to the next, a few nodes at a time (upstream's `rollingUpdate`).

use std::sync::Arc;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fit::Fit;
use super::places::{Place, Places};
use crate::share::{Rounding, resolve};

/// How many nodes may be in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// How many nodes may have both an old and a new pod.
    pub surge: i32,
    /// How many nodes may have no available pod.
    pub unavailable: i32,
}

impl Limits {
    /// Reads them; shares of `desired` are rounded up.
    pub fn of(set: &DaemonSet, desired: i32) -> Self {
        let rolling = set
            .spec
            .as_ref()
            .and_then(|spec| spec.update_strategy.as_ref()?.rolling_update.clone())
            .unwrap_or_default();
        let number = |value: Option<IntOrString>, default| {
            resolve(&value.unwrap_or(IntOrString::Int(default)), desired, Rounding::Up)
        };
        let is_rolling = is_rolling(set);
        let surge = if is_rolling {
            number(rolling.max_surge, 0)
        } else {
            0
        };
        let unavailable = number(rolling.max_unavailable, 1);
        Self {
            surge,
            // With neither there would be no way from one version to the next.
            unavailable: if surge == 0 {
                unavailable.max(1)
            } else {
                unavailable
            },
        }
    }
}

/// Whether pods of other versions are replaced without being deleted by hand.
pub(crate) fn is_rolling(set: &DaemonSet) -> bool {
    let strategy = set.spec.as_ref().and_then(|spec| spec.update_strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete")
}

/// The nodes that get a pod and the pods that go now, on nodes that otherwise have what they should.
pub(crate) fn step(places: &Places<'_>, limits: Limits) -> (Vec<String>, Vec<Arc<Pod>>) {
    if limits.surge == 0 {
        (Vec::new(), replace(places, limits))
    } else {
        surge(places, limits)
    }
}

/// A node's pods by version.
struct Pair<'a> {
    new: Option<&'a Arc<Pod>>,
    old: Option<&'a Arc<Pod>>,
}

impl<'a> Pair<'a> {
    /// `None` where there are two of a kind, which somebody else has to sort out first.
    fn of(place: &'a Place, places: &Places<'_>) -> Option<Self> {
        let staying = place
            .pods
            .iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let (new, old): (Vec<_>, Vec<_>) = staying.partition(|pod| places.is_updated(pod));
        (new.len() < 2 && old.len() < 2).then(|| Self {
            new: new.first().copied(),
            old: old.first().copied(),
        })
    }
}

/// Nodes that want a pod, and those that have one.
fn concerned<'a>(places: &'a Places<'_>) -> impl Iterator<Item = (&'a String, &'a Place)> {
    let nodes = places.nodes.iter();
    nodes.filter(|(_, place)| place.fit == Some(Fit::Runs) || !place.pods.is_empty())
}

/// Deletes old pods: all that are unavailable, and of the others as many as may become so.
fn replace(places: &Places<'_>, limits: Limits) -> Vec<Arc<Pod>> {
    let mut unavailable = 0;
    let mut going = Vec::new();
    let mut candidates = Vec::new();
    for (_, place) in concerned(places) {
        let pair = Pair::of(place, places);
        match pair.map(|pair| (pair.new, pair.old)) {
            Some((Some(new), None)) => unavailable += i32::from(!places.is_available(new)),
            Some((None, Some(old))) if places.is_available(old) => candidates.push(Arc::clone(old)),
            Some((None, Some(old))) => {
                unavailable += 1;
                going.push(Arc::clone(old));
            }
            _ => unavailable += 1,
        }
    }
    let room = usize::try_from(limits.unavailable - unavailable).unwrap_or(0);
    going.extend(candidates.into_iter().take(room));
    going
}

/// Creates new pods beside old ones: wherever the old one is unavailable, and elsewhere as many as may be; deletes old
/// ones whose successor is available.
fn surge(places: &Places<'_>, limits: Limits) -> (Vec<String>, Vec<Arc<Pod>>) {
    let (mut surging, mut available) = (0, 0);
    let (mut coming, mut candidates) = (Vec::new(), Vec::new());
    let (mut going, mut misplaced) = (Vec::new(), Vec::new());
    for (node, place) in concerned(places) {
        let Some(Pair { new, old }) = Pair::of(place, places) else {
            surging += 1;
            continue;
        };
        available += i32::from(old.or(new).is_some_and(|pod| places.is_available(pod)));
        match (new, old) {
            (_, None) => {}
            (Some(new), Some(old)) if places.is_available(new) => going.push(Arc::clone(old)),
            (Some(_), Some(_)) => surging += 1,
            (None, Some(old)) => match (place.fit == Some(Fit::Runs), places.is_available(old)) {
                (true, true) => candidates.push(node.clone()),
                (true, false) => coming.push(node.clone()),
                // No successor comes here; it goes once another node's pod makes up for it.
                (false, true) => misplaced.push(Arc::clone(old)),
                (false, false) => going.push(Arc::clone(old)),
            },
        }
    }
    let spare = usize::try_from(available - places.desired()).unwrap_or(0);
    going.extend(misplaced.into_iter().take(spare));
    let room = usize::try_from(limits.surge - surging).unwrap_or(0);
    coming.extend(candidates.into_iter().take(room));
    (coming, going)
}

//! Whether pods may be driven off nodes that do not answer. When most of a zone is silent, the fault is likelier in
//! between than in the nodes, and moving all its pods would make it worse (upstream's `handleDisruption`).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;

use super::is_ready;

/// The pause between two nodes of a zone that pods are driven off (`--node-eviction-rate`, 0.1 in a second).
const PAUSE: Duration = Duration::from_secs(10);
/// The same in a large zone of which most is unready (`--secondary-node-eviction-rate`, 0.01 in a second).
const LONG_PAUSE: Duration = Duration::from_secs(100);
/// A zone is large above this number of nodes (`--large-cluster-size-threshold`).
const LARGE: usize = 50;
/// From this share on, in hundredths, a zone counts as mostly unready (`--unhealthy-zone-threshold`).
const MOSTLY: usize = 55;
/// Fewer unready nodes than this are never most of a zone (upstream's `ComputeZoneState`: more than two).
const FEW: usize = 3;

/// Whether a node's silence drives pods off it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// Yes, with this pause between nodes.
    Paced(Duration),
    /// Not where it does not already.
    Held,
    /// No, and where it does, no longer.
    Revoked,
}

#[derive(Clone, Copy, Default)]
struct Zone {
    ready: usize,
    /// Silent ones, and those that say so themselves.
    unready: usize,
}

/// Decides for the nodes of `zone`, which of `nodes` there are.
pub(crate) fn eviction<'a>(zone: &str, nodes: impl Iterator<Item = &'a Node>) -> Eviction {
    let mut zones: BTreeMap<String, Zone> = BTreeMap::new();
    for node in nodes {
        let zone = zones.entry(zone_of(node)).or_default();
        if is_ready(node) {
            zone.ready += 1;
        } else {
            zone.unready += 1;
        }
    }
    if zones.values().all(|zone| zone.ready == 0) {
        return Eviction::Revoked;
    }
    let Zone { ready, unready } = zones.get(zone).copied().unwrap_or_default();
    let size = ready + unready;
    let is_mostly_unready = unready >= FEW && unready * 100 >= size * MOSTLY;
    match (ready, is_mostly_unready) {
        (0, _) | (_, false) => Eviction::Paced(PAUSE),
        _ if size > LARGE => Eviction::Paced(LONG_PAUSE),
        _ => Eviction::Held,
    }
}

/// The name of a node's zone, with its region.
pub(crate) fn zone_of(node: &Node) -> String {
    let label = |key: &str| {
        let labels = node.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(key))
            .map_or("", String::as_str)
    };
    let region = label("topology.kubernetes.io/region");
    format!("{region}/{}", label("topology.kubernetes.io/zone"))
}

/// When pods were last driven off a node of each zone.
#[derive(Default)]
pub(crate) struct Pace(Mutex<BTreeMap<String, Instant>>);

impl Pace {
    /// Takes the zone's turn for a node; where it is not its turn, the answer is how long that takes.
    pub fn take(&self, zone: &str, pause: Duration, now: Instant) -> Result<(), Duration> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = last
            .get(zone)
            .map_or(Duration::ZERO, |at| pause.saturating_sub(now.duration_since(*at)));
        if !wait.is_zero() {
            return Err(wait);
        }
        last.insert(zone.to_owned(), now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Nodes as `zone:ready/silent`; the answer is for zone `a`.
    #[track_caller]
    fn check(zones: &str, expected: Eviction) {
        let mut nodes: Vec<Node> = Vec::new();
        for text in zones.split_whitespace() {
            let (zone, counts) = text.split_once(':').unwrap();
            let (ready, silent) = counts.split_once('/').unwrap();
            for (status, count) in [("True", ready), ("Unknown", silent)] {
                for _ in 0..count.parse().unwrap() {
                    let node = json!({
                        "metadata": { "labels": { "topology.kubernetes.io/zone": zone } },
                        "status": { "conditions": [{ "type": "Ready", "status": status }] },
                    });
                    nodes.push(serde_json::from_value(node).unwrap());
                }
            }
        }
        assert_eq!(eviction("/a", nodes.iter()), expected, "{zones}");
    }

    #[test]
    fn pods_are_driven_off_single_nodes_and_not_off_a_cluster_that_is_cut_off() {
        check("a:2/1", Eviction::Paced(PAUSE));
        check("a:1/2", Eviction::Paced(PAUSE));
        check("a:4/3", Eviction::Paced(PAUSE));
        check("a:2/3", Eviction::Held);
        check("a:45/54", Eviction::Paced(PAUSE));
        check("a:45/55", Eviction::Paced(LONG_PAUSE));
        check("a:0/1", Eviction::Revoked);
        check("a:0/3", Eviction::Revoked);
        check("a:0/3 b:0/2", Eviction::Revoked);
        // One zone is gone, others are well: its pods may go there.
        check("a:0/3 b:1/0", Eviction::Paced(PAUSE));
        check("a:3/0 b:0/3", Eviction::Paced(PAUSE));
    }

    #[test]
    fn nodes_of_one_zone_take_turns() {
        let (pace, start) = (Pace::default(), Instant::now());
        let later = |secs| start + Duration::from_secs(secs);
        assert_eq!(pace.take("a", PAUSE, start), Ok(()));
        assert_eq!(pace.take("a", PAUSE, later(4)), Err(Duration::from_secs(6)));
        assert_eq!(pace.take("b", PAUSE, later(4)), Ok(()));
        assert_eq!(pace.take("a", PAUSE, later(10)), Ok(()));
        assert_eq!(
            pace.take("a", LONG_PAUSE, later(20)),
            Err(Duration::from_secs(90))
        );
    }
}

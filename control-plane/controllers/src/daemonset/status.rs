//! A DaemonSet's status.

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};

use super::fit::Fit;
use super::places::{Places, count};
use crate::pods;
use crate::workload::nonzero;

/// The status that tells of `places`: of several pods on a node the oldest counts.
pub(crate) fn status(set: &DaemonSet, places: &Places<'_>, collisions: Option<i32>) -> DaemonSetStatus {
    let of_nodes = |is_wanted: bool| {
        let nodes = places.nodes.values();
        nodes.filter(move |place| place.fit.is_some_and(|fit| (fit == Fit::Runs) == is_wanted))
    };
    let wanted = || of_nodes(true).filter_map(|place| place.pods.first());
    let ready = || wanted().filter(|pod| pods::is_ready(pod));
    let desired = places.desired();
    let available = count(ready().filter(|pod| places.is_available(pod)).count());
    DaemonSetStatus {
        collision_count: collisions,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
        current_number_scheduled: count(wanted().count()),
        desired_number_scheduled: desired,
        number_available: nonzero(available),
        number_misscheduled: count(of_nodes(false).filter(|place| !place.pods.is_empty()).count()),
        number_ready: count(ready().count()),
        number_unavailable: nonzero(desired - available),
        observed_generation: set.metadata.generation,
        updated_number_scheduled: nonzero(count(wanted().filter(|pod| places.is_updated(pod)).count())),
    }
}

//! What pods have inside against how they were wired. Where their network namespaces are out of sight, as from a
//! container of their own, nothing is told.

use cni_plugin::wire::Sides;
use model::Mtu;
use overlay::audit::namespace_of;
use overlay::pods::Assigned;
use overlay::pods::wiring::plan_pod;

use super::finding;
use super::network::pod_text;
use crate::findings::Finding;

/// One finding for each pod that is not as it was wired, inside.
#[must_use]
pub fn look(mtu: Mtu, pods: &[Assigned]) -> Vec<Finding> {
    pods.iter().filter_map(|pod| of_pod(mtu, pod)).collect()
}

/// A namespace that is gone, or that goes meanwhile, is no difference: its pod ends.
fn of_pod(mtu: Mtu, pod: &Assigned) -> Option<Finding> {
    let plan = plan_pod(pod, mtu);
    let mut sides = Sides::open(&namespace_of(pod).ok()?).ok()?;
    let mut lines = sides.differences_in_pod(&plan).ok()?;
    lines.extend(sides.oddities(&plan).ok()?);
    (!lines.is_empty()).then(|| {
        finding(
            "pod-inside",
            pod_text(pod.pod.as_ref(), &pod.key.container_id),
            lines.join("; "),
            "causeway doctor --fix, or delete the pod; a pod that may change its network (NET_ADMIN) may do so again",
        )
    })
}

/// Gives pods again what they had inside. Returns the devices of those that lacked something.
#[must_use]
pub fn mend(mtu: Mtu, pods: &[Assigned]) -> Vec<String> {
    let mend = |pod: &Assigned| {
        let plan = plan_pod(pod, mtu);
        let mut sides = Sides::open(&namespace_of(pod).ok()?).ok()?;
        let is_whole = sides.differences_in_pod(&plan).ok()?.is_empty();
        (!is_whole && sides.mend_pod(&plan).is_ok()).then_some(plan.host_ifname)
    };
    pods.iter().filter_map(mend).collect()
}

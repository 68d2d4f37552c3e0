//! What controllers ask of a pod.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// `status.phase`.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Whether it has run to its end.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Whether it counts as one of its ReplicaSet's pods: neither finished nor being deleted.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// A condition by its type.
pub(crate) fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

/// Whether the Ready condition holds.
pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Since when it is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// When a ready pod counts as available: after `min_ready` of readiness. `None` for one that is not ready, or
/// is ready since a moment that nobody recorded.
pub(crate) fn available_from(pod: &Pod, min_ready: Duration) -> Option<Timestamp> {
    if min_ready.is_zero() && is_ready(pod) {
        return Some(Timestamp::MIN);
    }
    ready_since(pod)?.checked_add(min_ready).ok()
}

/// When it last became ready or unready, or was told to go, whichever came later.
pub(crate) fn changed_at(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").and_then(|ready| Some(ready.last_transition_time.as_ref()?.0));
    let meta = &pod.metadata;
    let told_to_go = meta.deletion_timestamp.as_ref().and_then(|end| {
        let grace = meta.deletion_grace_period_seconds.unwrap_or(0).max(0);
        let grace = Duration::from_secs(grace.unsigned_abs());
        end.0.checked_sub(grace).ok()
    });
    ready.max(told_to_go)
}

/// The node it is bound to.
pub(crate) fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// All its addresses.
pub(crate) fn addresses(pod: &Pod) -> Vec<std::net::IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut addresses: Vec<_> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(
            status
                .pod_ip
                .iter()
                .filter_map(|ip| ip.parse::<std::net::IpAddr>().ok()),
        );
    }
    addresses
}

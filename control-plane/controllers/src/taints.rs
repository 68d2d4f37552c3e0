//! Taints and tolerations.

use k8s_openapi::api::core::v1::{Taint, Toleration};

/// The node's kubelet says that it is not ready.
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// The node's kubelet says nothing any more.
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The node is cordoned.
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// New pods stay away.
pub(crate) const NO_SCHEDULE: &str = "NoSchedule";
/// Running pods leave as well.
pub(crate) const NO_EXECUTE: &str = "NoExecute";

/// Whether one toleration covers one taint (upstream's `ToleratesTaint`): empty fields cover everything.
pub(crate) fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.as_deref().unwrap_or_default();
    let key = toleration.key.as_deref().unwrap_or_default();
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "Exists" => true,
        "" | "Equal" => {
            toleration.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default()
        }
        _ => false,
    }
}

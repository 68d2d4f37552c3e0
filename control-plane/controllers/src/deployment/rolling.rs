//! How far a rolling update may go: upstream's arithmetic of surge and unavailability.

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::share::{Rounding, resolve};

/// Sizes of one ReplicaSet, as far as the arithmetic needs them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Size {
    /// `spec.replicas`.
    pub replicas: i32,
    /// `status.availableReplicas`.
    pub available: i32,
}

/// What a Deployment asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// `spec.replicas`.
    pub desired: i32,
    /// How many pods there may be beyond that; both together are a number that there is.
    pub surge: i32,
    /// How many of them may be unavailable.
    pub unavailable: i32,
}

impl Limits {
    /// Reads them from the Deployment; outside of rolling updates both are zero.
    pub fn of(deployment: &Deployment) -> Self {
        let default = DeploymentSpec::default();
        let spec = deployment.spec.as_ref().unwrap_or(&default);
        let desired = spec.replicas.unwrap_or(1);
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Self {
                desired,
                surge: 0,
                unavailable: 0,
            };
        }
        let rolling = strategy
            .and_then(|strategy| strategy.rolling_update.clone())
            .unwrap_or_default();
        let quarter = || IntOrString::String("25%".to_owned());
        let surge = resolve(&rolling.max_surge.unwrap_or_else(quarter), desired, Rounding::Up);
        let unavailable = resolve(
            &rolling.max_unavailable.unwrap_or_else(quarter),
            desired,
            Rounding::Down,
        );
        // With neither there would be no way from one version to the next.
        let unavailable = if surge == 0 && unavailable == 0 {
            1
        } else {
            unavailable
        };
        Self {
            desired,
            surge: surge.min(i32::MAX - desired.max(0)),
            unavailable: unavailable.min(desired),
        }
    }

    /// The size of the new ReplicaSet: as large as the surge allows.
    pub fn new_size(self, new: i32, total: i32) -> i32 {
        let room = self.desired + self.surge - total;
        if new >= self.desired {
            self.desired
        } else if room <= 0 {
            new
        } else {
            new + room.min(self.desired - new)
        }
    }

    /// The sizes of the old ReplicaSets, oldest first: unhealthy pods go first, and then healthy ones as long
    /// as enough pods are available.
    pub fn old_sizes(self, old: &[Size], new: Size) -> Vec<i32> {
        let mut sizes: Vec<i32> = old.iter().map(|size| size.replicas).collect();
        let total = sum(sizes.iter().copied().chain([new.replicas]));
        let min_available = self.desired - self.unavailable;
        let mut may_go = total - min_available - (new.replicas - new.available);
        if may_go <= 0 {
            return sizes;
        }
        for (size, known) in sizes.iter_mut().zip(old) {
            let unhealthy = (known.replicas - known.available).clamp(0, may_go);
            *size -= unhealthy;
            may_go -= unhealthy;
        }
        let available = sum(old.iter().chain([&new]).map(|size| size.available));
        let mut may_go = (available - min_available).max(0);
        for size in &mut sizes {
            let healthy = may_go.min(*size);
            *size -= healthy;
            may_go -= healthy;
        }
        sizes
    }
}

/// ReplicaSets that somebody scaled by hand may together be larger than a number can say.
pub(crate) fn sum(sizes: impl Iterator<Item = i32>) -> i32 {
    sizes.fold(0, i32::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn limits(replicas: i32, surge: Value, unavailable: Value, expected: (i32, i32)) {
        let deployment = serde_json::from_value(json!({ "spec": {
            "replicas": replicas, "selector": {}, "template": {},
            "strategy": { "rollingUpdate": { "maxSurge": surge, "maxUnavailable": unavailable } },
        } }))
        .unwrap();
        let limits = Limits::of(&deployment);
        assert_eq!((limits.surge, limits.unavailable), expected);
    }

    #[test]
    fn percentages_round_surge_up_and_unavailability_down() {
        limits(10, json!("25%"), json!("25%"), (3, 2));
        limits(3, json!("25%"), json!("25%"), (1, 0));
        limits(1, json!("25%"), json!("25%"), (1, 0));
        limits(4, json!(1), json!(0), (1, 0));
        limits(2, json!(0), json!(5), (0, 2));
        limits(i32::MAX, json!("25%"), json!("25%"), (0, 536_870_911));
        limits(i32::MAX - 5, json!(9), json!(0), (5, 0));
    }

    #[test]
    fn with_neither_surge_nor_unavailability_one_may_be_unavailable() {
        limits(10, json!(0), json!(0), (0, 1));
        limits(10, json!("0%"), json!("1%"), (0, 1));
    }

    #[track_caller]
    fn grows(desired: i32, surge: i32, old: i32, new: i32, expected: i32) {
        let limits = Limits {
            desired,
            surge,
            unavailable: 0,
        };
        assert_eq!(limits.new_size(new, old + new), expected);
    }

    #[test]
    fn the_new_set_grows_into_the_surge() {
        grows(10, 0, 10, 0, 0);
        grows(10, 2, 10, 0, 2);
        grows(10, 2, 5, 0, 7);
        grows(10, 2, 10, 2, 2);
        grows(10, 2, 0, 0, 10);
        grows(10, 2, 8, 2, 4);
        grows(10, 2, 2, 12, 10);
        grows(i32::MAX, 0, 7, 0, i32::MAX - 7);
    }

    #[track_caller]
    fn shrinks(limits: (i32, i32), old: &[(i32, i32)], new: (i32, i32), expected: &[i32]) {
        let (desired, unavailable) = limits;
        let limits = Limits {
            desired,
            surge: 0,
            unavailable,
        };
        let size = |&(replicas, available)| Size { replicas, available };
        let old: Vec<_> = old.iter().map(size).collect();
        assert_eq!(limits.old_sizes(&old, size(&new)), expected);
    }

    #[test]
    fn old_sets_shrink_unhealthy_pods_first_and_keep_enough_available() {
        // Upstream's TestDeploymentController_reconcileOldReplicaSets and its like, as rows.
        shrinks((10, 0), &[(10, 10)], (0, 0), &[10]);
        shrinks((10, 2), &[(10, 10)], (0, 0), &[8]);
        // eight healthy, two not, the surplus may be made of both
        shrinks((10, 2), &[(10, 8)], (0, 0), &[8]);
        shrinks((10, 2), &[(8, 8)], (2, 0), &[8]);
        shrinks((10, 2), &[(8, 8)], (2, 2), &[6]);
        // the new version is broken: nothing that works is taken down
        shrinks((4, 0), &[(4, 4)], (1, 0), &[4]);
        // unhealthy pods of old versions go although nothing else may
        shrinks((10, 0), &[(3, 0), (10, 10)], (0, 0), &[0, 10]);
        // oldest first
        shrinks((4, 4), &[(1, 1), (3, 3)], (0, 0), &[0, 0]);
        shrinks((4, 2), &[(1, 1), (3, 3)], (0, 0), &[0, 2]);
        // scaled by hand, both: together more than a number can say
        shrinks((4, 0), &[(i32::MAX, 2), (i32::MAX, 2)], (4, 4), &[0, i32::MAX]);
    }
}

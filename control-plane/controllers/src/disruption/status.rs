//! What a PodDisruptionBudget comes to with the pods as they are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pods;
use crate::share::{Rounding, resolve};

/// How long an evicted pod that is still there counts as gone (upstream's `DeletionTimeout`).
const DELETION_TIMEOUT: Duration = Duration::from_mins(2);
const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";

/// Whether only the controllers of the pods know how many there should be: not for a plain `minAvailable`.
pub(crate) fn needs_scales(spec: &PodDisruptionBudgetSpec) -> bool {
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// The status that tells of `pods`, those that the budget selects, and when to look again if nothing changes.
/// `expected` is how many pods there should be, or why that is not known.
pub(crate) fn status(
    budget: &PodDisruptionBudget,
    pods: &[Arc<Pod>],
    expected: Result<i32, String>,
    now: Timestamp,
) -> (PodDisruptionBudgetStatus, Option<Duration>) {
    let stored = budget.status.clone().unwrap_or_default();
    let expected = match expected {
        Ok(expected) => expected,
        Err(why) => return (fail_safe(budget, stored, &why, now), None),
    };
    let spec = budget.spec.clone().unwrap_or_default();
    let (disrupted, again) = disrupted(&stored, pods, now);
    let healthy = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none() && pods::is_ready(pod))
        .filter(|pod| !disrupted.contains_key(pod.metadata.name.as_deref().unwrap_or_default()));
    let healthy = i32::try_from(healthy.count()).unwrap_or(i32::MAX);
    let scaled = |value: &IntOrString| resolve(value, expected, Rounding::Up);
    let desired = match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => expected.saturating_sub(scaled(most)).max(0),
        (None, Some(least)) => scaled(least),
        (None, None) => 0,
    };
    // A budget without pods allows nothing, so that its first pods are safe before they are counted.
    let allowed = if expected > 0 {
        healthy.saturating_sub(desired).max(0)
    } else {
        0
    };
    let (holds, reason) = if allowed > 0 {
        ("True", "SufficientPods")
    } else {
        ("False", "InsufficientPods")
    };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(with_condition(budget, &stored, holds, reason, "", now)),
        current_healthy: healthy,
        desired_healthy: desired,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: allowed,
        expected_pods: expected,
        observed_generation: budget.metadata.generation,
    };
    (status, again)
}

/// Nothing may go while it is not known how many pods there should be.
fn fail_safe(
    budget: &PodDisruptionBudget,
    stored: PodDisruptionBudgetStatus,
    why: &str,
    now: Timestamp,
) -> PodDisruptionBudgetStatus {
    PodDisruptionBudgetStatus {
        conditions: Some(with_condition(budget, &stored, "False", "SyncFailed", why, now)),
        disruptions_allowed: 0,
        observed_generation: budget.metadata.generation,
        ..stored
    }
}

/// The pods that were evicted, are still there and not yet being deleted, and when the first of them counts as having
/// stayed.
fn disrupted(
    stored: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let until = |at: &Time| at.0.checked_add(DELETION_TIMEOUT).unwrap_or(Timestamp::MAX);
    let staying = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let names = staying.filter_map(|pod| pod.metadata.name.clone());
    let known = |name: String| {
        let at = stored.disrupted_pods.as_ref()?.get(&name)?.clone();
        (until(&at) > now).then_some((name, at))
    };
    let disrupted: BTreeMap<_, _> = names.filter_map(known).collect();
    let first = disrupted.values().map(until).min();
    let again = first.map(|at| at.duration_since(now).unsigned_abs() + Duration::from_millis(10));
    (disrupted, again)
}

/// All conditions, with the one for disruptions brought up to date; its time changes with its status alone.
fn with_condition(
    budget: &PodDisruptionBudget,
    stored: &PodDisruptionBudgetStatus,
    status: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    let (known, mut conditions): (Vec<_>, Vec<_>) = stored
        .conditions
        .iter()
        .flatten()
        .cloned()
        .partition(|condition| condition.type_ == DISRUPTION_ALLOWED);
    let since = known
        .into_iter()
        .find(|known| known.status == status)
        .map(|known| known.last_transition_time);
    conditions.push(Condition {
        type_: DISRUPTION_ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or(Time(now)),
    });
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T00:10:00Z";

    /// `a` is ready, `a?` not, `at` is being deleted.
    fn pods(text: &str) -> Vec<Arc<Pod>> {
        let pod = |text: &str| {
            let ready = if text.ends_with('?') { "False" } else { "True" };
            let pod = json!({
                "metadata": {
                    "name": text.trim_end_matches(['?', 't']), "deletionTimestamp": text.ends_with('t').then_some(NOW),
                },
                "status": { "conditions": [{ "type": "Ready", "status": ready }] },
            });
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        text.split_whitespace().map(pod).collect()
    }

    fn budget(spec: Value, status: Value) -> PodDisruptionBudget {
        let budget = json!({ "metadata": { "name": "b", "generation": 2 }, "spec": spec, "status": status });
        serde_json::from_value(budget).unwrap()
    }

    /// Healthy, desired, expected, allowed.
    #[track_caller]
    fn check(spec: Value, text: &str, expected: i32, wanted: [i32; 4]) {
        let budget = budget(spec.clone(), json!(null));
        let (status, again) = status(&budget, &pods(text), Ok(expected), NOW.parse().unwrap());
        let found = [
            status.current_healthy,
            status.desired_healthy,
            status.expected_pods,
            status.disruptions_allowed,
        ];
        assert_eq!(found, wanted, "{spec} with {text}");
        let condition = &status.conditions.unwrap()[0];
        let told = (condition.status.as_str(), condition.reason.as_str());
        let allowed = [("False", "InsufficientPods"), ("True", "SufficientPods")][usize::from(wanted[3] > 0)];
        assert_eq!(
            (told, again, status.observed_generation),
            (allowed, None, Some(2))
        );
    }

    #[test]
    fn a_plain_minimum_stands_as_it_is() {
        check(json!({ "minAvailable": 2 }), "a b c", 3, [3, 2, 3, 1]);
        check(json!({ "minAvailable": 3 }), "a b c", 3, [3, 3, 3, 0]);
        check(json!({ "minAvailable": 5 }), "a b c", 3, [3, 5, 3, 0]);
        check(json!({ "minAvailable": 0 }), "a b c", 3, [3, 0, 3, 3]);
        check(json!({ "minAvailable": 1 }), "a b? c?", 3, [1, 1, 3, 0]);
    }

    #[test]
    fn shares_are_of_what_controllers_want_and_rounded_up() {
        check(json!({ "minAvailable": "50%" }), "a b c", 3, [3, 2, 3, 1]);
        check(json!({ "minAvailable": "50%" }), "a b c", 10, [3, 5, 10, 0]);
        check(json!({ "minAvailable": "100%" }), "a b c", 3, [3, 3, 3, 0]);
        check(json!({ "maxUnavailable": "34%" }), "a b c", 3, [3, 1, 3, 2]);
        check(json!({ "maxUnavailable": "1%" }), "a b c", 3, [3, 2, 3, 1]);
    }

    #[test]
    fn unavailable_pods_count_against_what_may_go() {
        check(json!({ "maxUnavailable": 1 }), "a b c", 3, [3, 2, 3, 1]);
        check(json!({ "maxUnavailable": 1 }), "a b c?", 3, [2, 2, 3, 0]);
        check(json!({ "maxUnavailable": 1 }), "a b ct", 3, [2, 2, 3, 0]);
        check(json!({ "maxUnavailable": 9 }), "a b c", 3, [3, 0, 3, 3]);
        check(json!({ "maxUnavailable": 0 }), "a b c", 3, [3, 3, 3, 0]);
        check(
            json!({ "maxUnavailable": i32::MIN }),
            "a b c",
            3,
            [3, i32::MAX, 3, 0],
        );
        check(
            json!({ "minAvailable": i32::MIN }),
            "a b c",
            3,
            [3, i32::MIN, 3, i32::MAX],
        );
    }

    #[test]
    fn a_budget_without_pods_allows_nothing() {
        check(json!({ "minAvailable": 0 }), "", 0, [0, 0, 0, 0]);
        check(json!({ "maxUnavailable": 1 }), "", 0, [0, 0, 0, 0]);
        check(json!({}), "a", 1, [1, 0, 1, 1]);
    }

    #[test]
    fn an_evicted_pod_counts_as_gone_until_it_is_or_time_is_up() {
        let known = json!({
            "a": "2026-01-01T00:09:00Z", "b": "2026-01-01T00:07:59Z", "c": "2026-01-01T00:09:30Z",
            "gone": "2026-01-01T00:09:00Z",
        });
        let status_before = json!({
            "disruptedPods": known, "currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0,
        });
        let budget = budget(json!({ "minAvailable": 1 }), status_before);
        let (status, again) = status(&budget, &pods("a b ct d"), Ok(4), NOW.parse().unwrap());
        let names: Vec<_> = status.disrupted_pods.unwrap().into_keys().collect();
        assert_eq!((names, status.current_healthy), (vec!["a".to_owned()], 2));
        assert_eq!(again, Some(Duration::from_millis(60_010)));
    }

    #[test]
    fn what_cannot_be_worked_out_allows_nothing_and_says_why() {
        let condition = json!({
            "type": DISRUPTION_ALLOWED, "status": "True", "reason": "SufficientPods", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        let before = json!({
            "conditions": [condition], "currentHealthy": 3, "desiredHealthy": 1, "disruptionsAllowed": 2,
            "expectedPods": 3,
        });
        let budget = budget(json!({ "maxUnavailable": 1 }), before);
        let now = NOW.parse().unwrap();
        let (failed, _) = status(&budget, &pods("a b c"), Err("no scale".to_owned()), now);
        let condition = &failed.conditions.as_ref().unwrap()[0];
        assert_eq!((failed.disruptions_allowed, failed.current_healthy), (0, 3));
        assert_eq!(
            (condition.reason.as_str(), condition.message.as_str()),
            ("SyncFailed", "no scale")
        );
        assert_eq!(condition.last_transition_time, Time(now));
        // The same again keeps its time.
        let again = PodDisruptionBudget {
            status: Some(failed.clone()),
            ..budget
        };
        let later = "2026-01-01T01:00:00Z".parse().unwrap();
        assert_eq!(
            status(&again, &pods("a b c"), Err("no scale".to_owned()), later).0,
            failed
        );
    }
}

//! A ReplicaSet's status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Error;
use crate::workload::nonzero;
use crate::{pods, selector};

/// Why the number of pods is not what it should be.
#[derive(Debug)]
pub(crate) enum Failure {
    Create(Error),
    Delete(Error),
}

/// `spec.minReadySeconds`.
pub(crate) fn min_ready(rs: &ReplicaSet) -> Duration {
    let seconds = rs
        .spec
        .as_ref()
        .and_then(|spec| spec.min_ready_seconds)
        .unwrap_or(0);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

/// The status that tells of the active `pods`.
pub(crate) fn status(
    rs: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let template = rs.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let template_labels = template
        .and_then(|template| template.metadata.as_ref()?.labels.clone())
        .unwrap_or_default();
    let min_ready = min_ready(rs);
    let is_labelled = |pod: &Pod| {
        let no_labels = selector::Labels::new();
        selector::includes(
            &template_labels,
            pod.metadata.labels.as_ref().unwrap_or(&no_labels),
        )
    };
    let is_available = |pod: &Pod| pods::available_from(pod, min_ready).is_some_and(|from| from <= now);
    ReplicaSetStatus {
        replicas: count(pods, |_| true),
        fully_labeled_replicas: nonzero(count(pods, is_labelled)),
        ready_replicas: nonzero(count(pods, pods::is_ready)),
        available_replicas: nonzero(count(pods, is_available)),
        observed_generation: rs.metadata.generation,
        terminating_replicas: rs.status.as_ref().and_then(|status| status.terminating_replicas),
        conditions: conditions(rs, failure, now),
    }
}

fn count(pods: &[Arc<Pod>], counts: impl Fn(&Pod) -> bool) -> i32 {
    i32::try_from(pods.iter().filter(|pod| counts(pod)).count()).unwrap_or(i32::MAX)
}

fn conditions(
    rs: &ReplicaSet,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let stored = rs
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone())
        .unwrap_or_default();
    let (known, mut kept): (Vec<_>, Vec<_>) = stored.into_iter().partition(|c| c.type_ == "ReplicaFailure");
    match (failure, known.into_iter().next()) {
        (None, _) => {}
        (Some(_), Some(known)) => kept.push(known),
        (Some(failure), None) => {
            let (reason, error) = match failure {
                Failure::Create(error) => ("FailedCreate", error),
                Failure::Delete(error) => ("FailedDelete", error),
            };
            kept.push(ReplicaSetCondition {
                type_: "ReplicaFailure".to_owned(),
                status: "True".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(error.reason()),
                last_transition_time: Some(Time(now)),
            });
        }
    }
    (!kept.is_empty()).then_some(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const NOW: &str = "2026-01-01T00:01:00Z";

    fn pod(label: &str, ready_since: Option<&str>) -> Value {
        json!({
            "metadata": { "labels": { "app": label, "extra": "x" } },
            "status": { "conditions": [{
                "type": "Ready",
                "status": if ready_since.is_some() { "True" } else { "False" },
                "lastTransitionTime": ready_since,
            }] },
        })
    }

    #[track_caller]
    fn check(min_ready: i32, pods: Vec<Value>, expected: Value) {
        let rs: ReplicaSet = serde_json::from_value(json!({
            "metadata": { "generation": 4 },
            "spec": {
                "minReadySeconds": min_ready,
                "selector": {},
                "template": { "metadata": { "labels": { "app": "a" } } },
            },
        }))
        .unwrap();
        let pods: Vec<Arc<Pod>> = pods
            .into_iter()
            .map(|pod| Arc::new(serde_json::from_value(pod).unwrap()))
            .collect();
        let status = status(&rs, &pods, None, NOW.parse().unwrap());
        assert_eq!(serde_json::to_value(status).unwrap(), expected);
    }

    #[test]
    fn the_counts_are_those_of_upstream_and_zeros_are_left_out() {
        check(0, vec![], json!({ "observedGeneration": 4, "replicas": 0 }));
        let pods = vec![
            pod("a", None),
            pod("b", Some("2026-01-01T00:00:00Z")),
            pod("a", Some("2026-01-01T00:00:55Z")),
        ];
        check(
            0,
            pods.clone(),
            json!({
                "observedGeneration": 4, "replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2,
                "availableReplicas": 2,
            }),
        );
        check(
            10,
            pods,
            json!({
                "observedGeneration": 4, "replicas": 3, "fullyLabeledReplicas": 2, "readyReplicas": 2,
                "availableReplicas": 1,
            }),
        );
    }

    #[test]
    fn a_failure_shows_as_a_condition_until_it_is_over() {
        let missing = Error::Incomplete {
            kind: "ReplicaSet",
            object: model::ObjectName::new("d", "x"),
            field: "f",
        };
        let rs: ReplicaSet = serde_json::from_value(json!({ "metadata": {} })).unwrap();
        let now = NOW.parse().unwrap();
        let failed = status(&rs, &[], Some(&Failure::Create(missing)), now);
        let reasons: Vec<_> = failed
            .conditions
            .iter()
            .flatten()
            .map(|c| c.reason.clone().unwrap())
            .collect();
        assert_eq!(reasons, ["FailedCreate"]);
        let later = ReplicaSet {
            status: Some(failed),
            ..rs
        };
        assert_eq!(status(&later, &[], None, now).conditions, None);
    }
}

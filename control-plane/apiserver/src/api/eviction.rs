//! `pods/eviction`: a delete that a PodDisruptionBudget may refuse (`EvictionREST.Create`, `kubectl drain`).
//!
//! A controller writes the budgets' status, after the fact; an eviction goes by the pods as they are when it asks. The
//! status that it leaves is the lock: of two evictions at once, one meets the other's.

use axum::body::Body;
use http::{Method, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use super::{Api, Call, now};
use crate::negotiate;
use crate::object::{self, Fields};
use crate::resources::{pod_is_finished, pod_is_ready};
use crate::selectors;
use crate::status::{self, Failure, Result};
use crate::storage::{Commit, Outcome};

const ATTEMPTS: usize = 16;
/// How long an evicted pod that is still there counts as gone (`DeletionTimeout` of the disruption controller).
const DELETION_TIMEOUT: SignedDuration = SignedDuration::from_mins(2);

/// What a budget comes to with the pods as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Budget {
    /// Pods that are selected.
    expected: i64,
    /// Of them, those that are ready and stay.
    healthy: i64,
    /// How many must be.
    desired: i64,
    /// Evicted pods that are still there, and when they were.
    disrupted: Map<String, Value>,
}

impl Budget {
    /// How many pods may go.
    fn allowed(&self) -> i64 {
        (self.healthy - self.desired).max(0)
    }

    /// The status that a disruption controller would have written.
    fn status(&self, generation: i64, now: Timestamp) -> Value {
        let allowed = self.allowed();
        let (holds, reason) = match allowed {
            0 => ("False", "InsufficientPods"),
            _ => ("True", "SufficientPods"),
        };
        let condition = json!({
            "type": "DisruptionAllowed", "status": holds, "reason": reason, "message": "",
            "observedGeneration": generation, "lastTransitionTime": object::time(now),
        });
        json!({
            "observedGeneration": generation, "disruptionsAllowed": allowed, "currentHealthy": self.healthy,
            "desiredHealthy": self.desired, "expectedPods": self.expected, "disruptedPods": self.disrupted,
            "conditions": [condition],
        })
    }
}

impl Api {
    pub(super) async fn evict(&self, call: &Call) -> Result<Response<Body>> {
        let eviction = negotiate::decode_body(&call.headers, &call.body)?;
        let named = object::name(&eviction);
        if !named.is_empty() && named != call.name() {
            let told = format!(
                "name in URL ({}) does not match name in Eviction object ({named})",
                call.name()
            );
            return Err(Failure::bad_request(told));
        }
        let mut options = match eviction.at("deleteOptions") {
            Value::Object(options) => options.clone(),
            _ => Map::new(),
        };
        let preconditions = options.get("preconditions");
        if preconditions.is_some_and(|given| !given.is_object() && !given.is_null()) {
            return Err(Failure::bad_request("deleteOptions.preconditions is no object"));
        }
        let dry_run = call.dry_run() || options.get("dryRun").is_some_and(|values| values != &json!([]));
        let pod = self.stored(call).await?;
        if let Some(revision) = self.take_from_budget(call, &pod, dry_run).await? {
            // It may go because it is not ready; if that changes, the budget has to be asked again.
            let preconditions = options.entry("preconditions").or_insert(Value::Null);
            preconditions["resourceVersion"] = revision.into();
        }
        let delete = Call {
            user: call.user.clone(),
            resource: call.resource,
            path: call.path.clone(),
            query: call.query.clone(),
            headers: http::HeaderMap::new(),
            method: Method::DELETE,
            wanted: call.wanted,
            body: Value::Object(options).to_string().into(),
        };
        self.delete(&delete).await?;
        Ok(negotiate::respond(201, &status::created(), false))
    }

    /// Asks the pod's budget, and takes this disruption from it. The answer is the revision that the pod must still
    /// have when the budget was not asked because the pod is not ready.
    async fn take_from_budget(&self, call: &Call, pod: &Value, dry_run: bool) -> Result<Option<String>> {
        let pending = pod.text("status.phase") == "Pending";
        if pod_is_finished(pod) || pending || object::is_terminating(pod) {
            return Ok(None);
        }
        for _ in 0..ATTEMPTS {
            let Some(budget) = self.budget_of(call, pod).await? else {
                return Ok(None);
            };
            let (worked_out, name) = (self.work_out(&budget).await?, object::name(&budget).to_owned());
            if !pod_is_ready(pod) {
                let healthy = worked_out.desired > 0 && worked_out.healthy >= worked_out.desired;
                if budget.text("spec.unhealthyPodEvictionPolicy") == "AlwaysAllow" || healthy {
                    return Ok(Some(pod.text("metadata.resourceVersion").to_owned()));
                }
            }
            if worked_out.allowed() == 0 {
                return Err(Failure::disruption_refused(format!(
                    "The disruption budget {name} needs {} healthy pods and has {} currently",
                    worked_out.desired, worked_out.healthy
                )));
            }
            if dry_run || self.record_disruption(&budget, worked_out, call.name()).await? {
                return Ok(None);
            }
        }
        Err(Failure::modified(call.resource, call.name()))
    }

    /// The one budget that selects the pod, newest state.
    async fn budget_of(&self, call: &Call, pod: &Value) -> Result<Option<Value>> {
        let row = self.registry.kind("policy", "PodDisruptionBudget");
        let prefix = self.storage.scope_prefix(row, call.namespace());
        let (budgets, _) = self.storage.list(&prefix).await?;
        let mut selecting = budgets.into_iter().filter(|budget| selects(budget, pod));
        let first = selecting.next();
        match selecting.next() {
            Some(_) => Err(Failure::several_budgets()),
            None => Ok(first),
        }
    }

    async fn work_out(&self, budget: &Value) -> Result<Budget> {
        let namespace = object::namespace(budget);
        let prefix = self
            .storage
            .scope_prefix(self.registry.kind("", "Pod"), Some(namespace));
        let (pods, _) = self.storage.list(&prefix).await?;
        let pods: Vec<Value> = pods.into_iter().filter(|pod| selects(budget, pod)).collect();
        let expected = match needs_scales(budget) {
            true => self.expected_by_controllers(&pods).await?,
            false => Some(count(pods.len())),
        };
        Ok(work_out(budget, &pods, expected, now()))
    }

    /// The replicas that the pods' controllers want; `None` when one of them does not say so. Pods without a controller
    /// count for nothing.
    async fn expected_by_controllers(&self, pods: &[Value]) -> Result<Option<i64>> {
        let mut scales = std::collections::BTreeMap::new();
        for pod in pods.iter().filter(|pod| controller_of(pod).is_some()) {
            let Some((uid, replicas)) = self.scale_above(pod).await? else {
                return Ok(None);
            };
            scales.insert(uid, replicas);
        }
        Ok(Some(scales.values().sum()))
    }

    /// The uid and replicas of the topmost controller with a scale above an object (a Deployment above its ReplicaSet).
    async fn scale_above(&self, object: &Value) -> Result<Option<(String, i64)>> {
        let mut found = None;
        let mut below = object.clone();
        while let Some(owner) = controller_of(&below) {
            let group = owner
                .text("apiVersion")
                .split_once('/')
                .map_or("", |(group, _)| group);
            let kind = owner.text("kind");
            let row = self
                .registry
                .stored()
                .find(|row| (row.group, row.kind, row.has_scale) == (group, kind, true));
            let Some(row) = row else { break };
            let above = self
                .look_up(row, Some(object::namespace(object)), owner.text("name"))
                .await?;
            let Some(above) = above.filter(|above| object::uid(above) == owner.text("uid")) else {
                break;
            };
            let replicas = above.int("spec.replicas").unwrap_or(1);
            found = Some((object::uid(&above).to_owned(), replicas));
            below = above;
        }
        Ok(found)
    }

    /// Writes that the pod goes; false when the budget has changed since it was read.
    async fn record_disruption(&self, budget: &Value, mut worked_out: Budget, pod: &str) -> Result<bool> {
        worked_out.healthy -= 1;
        worked_out.disrupted.insert(pod.to_owned(), object::time(now()));
        let mut written = budget.clone();
        written["status"] = worked_out.status(budget.int("metadata.generation").unwrap_or(0), now());
        let row = self.registry.kind("policy", "PodDisruptionBudget");
        let key = self
            .storage
            .key(row, Some(object::namespace(budget)), object::name(budget));
        let commit = Commit {
            expect: vec![(key.clone(), object::revision(budget))],
            puts: vec![(key, written)],
            ..Commit::default()
        };
        Ok(matches!(self.storage.commit(commit).await?, Outcome::Written(_)))
    }
}

/// A budget without a selector selects nothing, with an empty one every pod of its namespace (`policy/v1`).
fn selects(budget: &Value, pod: &Value) -> bool {
    selectors::label_selector_matches(budget.at("spec.selector"), pod.at("metadata.labels"))
}

fn controller_of(object: &Value) -> Option<&Value> {
    object
        .list("metadata.ownerReferences")
        .iter()
        .find(|owner| owner.flag("controller"))
}

/// Only a plain `minAvailable` needs not know how many pods there should be.
fn needs_scales(budget: &Value) -> bool {
    !budget.at("spec.minAvailable").is_number()
}

/// `expected` is `None` where it cannot be known; nothing may go then (`failSafe`).
fn work_out(budget: &Value, pods: &[Value], expected: Option<i64>, now: Timestamp) -> Budget {
    let names: Vec<&str> = pods
        .iter()
        .filter(|pod| !object::is_terminating(pod))
        .map(object::name)
        .collect();
    let since = |at: &Value| at.as_str().and_then(|at| at.parse::<Timestamp>().ok());
    let mut disrupted = budget
        .at("status.disruptedPods")
        .as_object()
        .cloned()
        .unwrap_or_default();
    disrupted.retain(|name, at| {
        names.contains(&name.as_str())
            && since(at).is_some_and(|at| now.duration_since(at) < DELETION_TIMEOUT)
    });
    let healthy = pods.iter().filter(|pod| {
        pod_is_ready(pod) && !object::is_terminating(pod) && !disrupted.contains_key(object::name(pod))
    });
    let healthy = count(healthy.count());
    let (min, max) = (budget.at("spec.minAvailable"), budget.at("spec.maxUnavailable"));
    let desired = match expected {
        Some(expected) if !max.is_null() => (expected - scaled(max, expected)).max(0),
        Some(expected) if !min.is_null() => scaled(min, expected),
        Some(_) => 0,
        None => healthy,
    };
    Budget {
        expected: expected.unwrap_or(0),
        healthy,
        desired,
        disrupted,
    }
}

/// A number, or a share of `total`, rounded up (`GetScaledValueFromIntOrPercent`).
fn scaled(value: &Value, total: i64) -> i64 {
    match value {
        Value::String(text) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            (total.saturating_mul(percent) + 99) / 100
        }
        number => number.as_i64().unwrap_or(0),
    }
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, ready: &str) -> Value {
        json!({ "metadata": { "name": name }, "status": { "conditions": [{ "type": "Ready", "status": ready }] } })
    }

    #[track_caller]
    fn check(spec: Value, expected: Option<i64>, (desired, allowed): (i64, i64)) {
        let pods = ["a", "b", "c", "d"].map(|name| pod(name, if name == "d" { "False" } else { "True" }));
        let found = work_out(&json!({ "spec": spec }), &pods, expected, Timestamp::UNIX_EPOCH);
        assert_eq!(
            (found.healthy, found.desired, found.allowed()),
            (3, desired, allowed),
            "{spec}"
        );
    }

    #[test]
    fn a_budget_allows_what_upstreams_controller_would() {
        check(json!({ "minAvailable": 2 }), Some(4), (2, 1));
        check(json!({ "minAvailable": 3 }), Some(4), (3, 0));
        check(json!({ "minAvailable": 9 }), Some(4), (9, 0));
        check(json!({ "minAvailable": "50%" }), Some(4), (2, 1));
        check(json!({ "minAvailable": "51%" }), Some(4), (3, 0));
        check(json!({ "maxUnavailable": 1 }), Some(4), (3, 0));
        check(json!({ "maxUnavailable": 2 }), Some(4), (2, 1));
        check(json!({ "maxUnavailable": "30%" }), Some(4), (2, 1));
        check(json!({ "maxUnavailable": 9 }), Some(4), (0, 3));
        check(json!({ "maxUnavailable": 2 }), None, (3, 0));
        check(json!({}), Some(4), (0, 3));
    }

    #[test]
    fn an_evicted_pod_counts_as_gone_until_it_is_or_time_is_up() {
        let now: Timestamp = "2024-01-01T00:10:00Z".parse().expect("a time");
        let status = json!({ "disruptedPods": {
            "a": "2024-01-01T00:09:00Z", "b": "2024-01-01T00:07:00Z", "gone": "2024-01-01T00:09:00Z",
        } });
        let budget = json!({ "spec": { "minAvailable": 1 }, "status": status });
        let pods = [pod("a", "True"), pod("b", "True")];
        let found = work_out(&budget, &pods, Some(2), now);
        let disrupted = json!({ "a": "2024-01-01T00:09:00Z" });
        assert_eq!((found.healthy, json!(found.disrupted)), (1, disrupted));
    }
}

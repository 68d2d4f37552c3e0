//! A Deployment's status: the counts, and the conditions that `kubectl rollout status` follows.

use std::ops::Add;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rolling::Limits;
use crate::workload::nonzero;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";

const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Pods of one ReplicaSet, or of several together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// `spec.replicas`.
    pub wanted: i32,
    /// `status.replicas`.
    pub actual: i32,
    pub ready: i32,
    pub available: i32,
}

impl Add for Counts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wanted: self.wanted.saturating_add(other.wanted),
            actual: self.actual.saturating_add(other.actual),
            ready: self.ready.saturating_add(other.ready),
            available: self.available.saturating_add(other.available),
        }
    }
}

/// Whether the Progressing condition is to be judged anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A rollout is, or may be, under way.
    Follow,
    /// Paused, or only scaling: the condition stays.
    Leave,
}

/// Whether nothing is left to do.
pub(crate) fn is_complete(desired: i32, total: Counts, new: Counts) -> bool {
    new.actual == desired && total.actual == desired && total.available == desired
}

/// The first failure that a ReplicaSet reports.
pub(crate) fn failure<'a>(mut sets: impl Iterator<Item = &'a ReplicaSet>) -> Option<ReplicaSetCondition> {
    sets.find_map(|set| {
        let conditions = set.status.as_ref()?.conditions.as_ref()?;
        conditions
            .iter()
            .find(|condition| condition.type_ == REPLICA_FAILURE)
            .cloned()
    })
}

/// Notes that the rollout was paused or resumed.
pub(crate) fn note_pause(spec: &DeploymentSpec, status: &mut DeploymentStatus, now: Timestamp) {
    let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    if deadline(spec).is_none() || reason == Some(TIMED_OUT) {
        return;
    }
    match (spec.paused == Some(true), reason == Some(PAUSED)) {
        (true, false) => set(
            status,
            new(PROGRESSING, "Unknown", PAUSED, "Deployment is paused", now),
        ),
        (false, true) => {
            set(
                status,
                new(
                    PROGRESSING,
                    "Unknown",
                    "DeploymentResumed",
                    "Deployment is resumed",
                    now,
                ),
            );
        }
        _ => {}
    }
}

/// Notes that the current template's ReplicaSet exists already, if nothing was noted yet.
pub(crate) fn note_found(spec: &DeploymentSpec, status: &mut DeploymentStatus, name: &str, now: Timestamp) {
    if deadline(spec).is_some() && condition(status, PROGRESSING).is_none() {
        let message = format!("Found new replica set {name:?}");
        set(
            status,
            new(PROGRESSING, "True", "FoundNewReplicaSet", &message, now),
        );
    }
}

/// Notes that a ReplicaSet was made for the current template.
pub(crate) fn note_created(spec: &DeploymentSpec, status: &mut DeploymentStatus, name: &str, now: Timestamp) {
    if deadline(spec).is_some() {
        let message = format!("Created new replica set {name:?}");
        set(
            status,
            new(PROGRESSING, "True", "NewReplicaSetCreated", &message, now),
        );
    }
}

/// Everything that the status tells of.
pub(crate) struct Report<'a> {
    pub deployment: &'a Deployment,
    pub spec: &'a DeploymentSpec,
    pub limits: Limits,
    /// All ReplicaSets together.
    pub total: Counts,
    /// The one of the current template.
    pub new: Counts,
    pub new_name: Option<String>,
    pub failure: Option<ReplicaSetCondition>,
    pub now: Timestamp,
}

impl Report<'_> {
    /// Turns the stored status, with what was noted in it since, into the current one, and tells when a
    /// deadline makes it stale.
    pub fn write(&self, noted: DeploymentStatus, progress: Progress) -> (DeploymentStatus, Option<Duration>) {
        let before = self.deployment.status.clone().unwrap_or_default();
        let mut status = self.counted(noted);
        self.judge_availability(&mut status);
        if progress == Progress::Leave {
            return (status, None);
        }
        if deadline(self.spec).is_none() {
            remove(&mut status, PROGRESSING);
        } else if !self.was_complete(&status) {
            self.judge_progress(&before, &mut status);
        }
        remove(&mut status, REPLICA_FAILURE);
        if let Some(failure) = &self.failure {
            let reason = failure.reason.as_deref().unwrap_or_default();
            let message = failure.message.as_deref().unwrap_or_default();
            let mut condition = new(REPLICA_FAILURE, &failure.status, reason, message, self.now);
            let known = before
                .conditions
                .iter()
                .flatten()
                .find(|known| is_same(known, &condition));
            if let Some(known) = known {
                condition = known.clone();
            }
            push(&mut status, condition);
        }
        let again = self.time_to_deadline(&status);
        (status, again)
    }

    fn counted(&self, noted: DeploymentStatus) -> DeploymentStatus {
        DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: nonzero(self.total.actual),
            updated_replicas: nonzero(self.new.actual),
            ready_replicas: nonzero(self.total.ready),
            available_replicas: nonzero(self.total.available),
            unavailable_replicas: nonzero((self.total.wanted - self.total.available).max(0)),
            ..noted
        }
    }

    fn judge_availability(&self, status: &mut DeploymentStatus) {
        let enough = self.total.available >= self.limits.desired - self.limits.unavailable;
        let condition = if enough {
            let message = "Deployment has minimum availability.";
            new(AVAILABLE, "True", "MinimumReplicasAvailable", message, self.now)
        } else {
            let message = "Deployment does not have minimum availability.";
            new(
                AVAILABLE,
                "False",
                "MinimumReplicasUnavailable",
                message,
                self.now,
            )
        };
        set(status, condition);
    }

    /// Complete, and noted as such: a later loss of pods is not a failed rollout.
    fn was_complete(&self, status: &DeploymentStatus) -> bool {
        let reason = condition(status, PROGRESSING).and_then(|condition| condition.reason.as_deref());
        reason == Some(DONE) && self.total.actual == self.new.actual
    }

    fn judge_progress(&self, before: &DeploymentStatus, status: &mut DeploymentStatus) {
        let subject = match &self.new_name {
            Some(set) => format!("ReplicaSet {set:?}"),
            None => format!(
                "Deployment {:?}",
                self.deployment.metadata.name.as_deref().unwrap_or_default()
            ),
        };
        if is_complete(self.limits.desired, self.total, self.new) {
            let message = format!("{subject} has successfully progressed.");
            set(status, new(PROGRESSING, "True", DONE, &message, self.now));
        } else if self.progressed_since(before) {
            let message = format!("{subject} is progressing.");
            let mut progressing = new(PROGRESSING, "True", "ReplicaSetUpdated", &message, self.now);
            let known = condition(status, PROGRESSING).filter(|known| known.status == "True");
            if let Some(known) = known {
                progressing.last_transition_time = known.last_transition_time.clone();
            }
            remove(status, PROGRESSING);
            push(status, progressing);
        } else if self.timed_out(status) {
            let message = format!("{subject} has timed out progressing.");
            set(status, new(PROGRESSING, "False", TIMED_OUT, &message, self.now));
        }
    }

    fn progressed_since(&self, before: &DeploymentStatus) -> bool {
        let updated = before.updated_replicas.unwrap_or(0);
        let old = before.replicas.unwrap_or(0) - updated;
        self.new.actual > updated
            || self.total.actual - self.new.actual < old
            || self.total.ready > before.ready_replicas.unwrap_or(0)
            || self.total.available > before.available_replicas.unwrap_or(0)
    }

    fn timed_out(&self, status: &DeploymentStatus) -> bool {
        let Some(progressing) = condition(status, PROGRESSING) else {
            return false;
        };
        match progressing.reason.as_deref() {
            Some(DONE) => false,
            Some(TIMED_OUT) => true,
            _ => self.deadline_of(progressing).is_some_and(|at| at < self.now),
        }
    }

    fn deadline_of(&self, progressing: &DeploymentCondition) -> Option<Timestamp> {
        progressing
            .last_update_time
            .as_ref()?
            .0
            .checked_add(deadline(self.spec)?)
            .ok()
    }

    fn time_to_deadline(&self, status: &DeploymentStatus) -> Option<Duration> {
        let progressing = condition(status, PROGRESSING)?;
        let settled = matches!(progressing.reason.as_deref(), Some(DONE | TIMED_OUT | PAUSED));
        if settled || is_complete(self.limits.desired, self.total, self.new) {
            return None;
        }
        let left = self.deadline_of(progressing)?.duration_since(self.now);
        // A second more, since times are stored in whole seconds.
        Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
    }
}

/// `spec.progressDeadlineSeconds`, where it is one: the largest number means none.
fn deadline(spec: &DeploymentSpec) -> Option<Duration> {
    let seconds = spec
        .progress_deadline_seconds
        .filter(|seconds| *seconds != i32::MAX)?;
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

fn condition<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == type_)
}

fn new(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

fn is_same(one: &DeploymentCondition, other: &DeploymentCondition) -> bool {
    one.type_ == other.type_ && one.status == other.status && one.reason == other.reason
}

/// Sets a condition. One of the same status and reason stays untouched, one of the same status keeps the time
/// of its transition.
fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(known) = self::condition(status, &condition.type_) {
        if is_same(known, &condition) {
            return;
        }
        if known.status == condition.status {
            condition.last_transition_time = known.last_transition_time.clone();
        }
    }
    remove(status, &condition.type_);
    push(status, condition);
}

fn push(status: &mut DeploymentStatus, condition: DeploymentCondition) {
    status.conditions.get_or_insert_default().push(condition);
}

fn remove(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

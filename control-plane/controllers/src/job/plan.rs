//! What a Job calls for now: pods that ended are counted, others come and go, and at the end a condition tells how it
//! ended.
//!
//! No pod is counted twice or forgotten, whoever deletes it and whenever the process ends: pods have a finalizer until
//! the status names them under `uncountedTerminatedPods`, and count for good when they have lost it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::indexes::{self, Indexes};
use crate::events::Severity;
use crate::pods;
use crate::replicaset::victims_first;
use crate::workload::{nonzero, until};

/// What keeps a pod until it is counted.
pub(crate) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// No more pods than this are created or deleted at a time (upstream's `MaxPodCreateDeletePerSync`).
const BURST: usize = 500;
/// The pause before a pod after the first failure; it doubles with each one in a row (upstream's
/// `DefaultJobPodFailureBackOff` and its maximum).
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LAST_PAUSE: Duration = Duration::from_mins(10);

/// What is to be done, in this order.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// The Job's status.
    pub status: JobStatus,
    /// Pods whose finalizer goes once the status is written.
    pub release: Vec<Arc<Pod>>,
    pub delete: Vec<Arc<Pod>>,
    /// Pods to create; with their indexes, if the Job is Indexed.
    pub create: Vec<Option<u32>>,
    /// Severity, reason and message of events.
    pub said: Vec<(Severity, &'static str, String)>,
    /// Its time after its end is over: it goes.
    pub expired: bool,
    /// When to look again if nothing changes.
    pub again: Option<Duration>,
}

/// Whether a pod has not been counted yet.
pub(crate) fn is_tracked(pod: &Pod) -> bool {
    let finalizers = pod.metadata.finalizers.iter().flatten();
    finalizers.into_iter().any(|finalizer| finalizer == TRACKING)
}

/// Decides for a Job with these `pods`, its own.
pub(crate) fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &job.spec else {
        return Plan::default();
    };
    let stored = job.status.clone().unwrap_or_default();
    if let Some(end) = end_of(&stored) {
        let end = end
            .last_transition_time
            .as_ref()
            .map_or(Timestamp::MIN, |time| time.0);
        return after_end(job, spec, end, pods, now);
    }
    let mut draft = Draft {
        spec,
        completions: spec.completions.and_then(|count| u32::try_from(count).ok()),
        is_indexed: spec.completion_mode.as_deref() == Some("Indexed"),
        plan: Plan {
            status: stored,
            ..Plan::default()
        },
        active: Vec::new(),
        terminating: 0,
        now,
    };
    draft.count(pods);
    draft.suspend_or_resume();
    match draft.verdict() {
        Some(verdict) => draft.end(&verdict),
        None if job.metadata.deletion_timestamp.is_none() => draft.keep(pods),
        None => {}
    }
    draft.finish()
}

/// The condition that tells how a Job ended, `Complete` or `Failed`.
pub(crate) fn end_of(status: &JobStatus) -> Option<&JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|one| matches!(one.type_.as_str(), "Complete" | "Failed") && one.status == "True")
}

/// Nothing happens to a Job that has ended, but that it may go after a time.
fn after_end(job: &Job, spec: &JobSpec, end: Timestamp, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let gone_at = spec.ttl_seconds_after_finished.and_then(|seconds| {
        let stays = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        end.checked_add(stays).ok()
    });
    let is_going = job.metadata.deletion_timestamp.is_some();
    Plan {
        status: job.status.clone().unwrap_or_default(),
        release: pods.iter().filter(|pod| is_tracked(pod)).cloned().collect(),
        expired: !is_going && gone_at.is_some_and(|at| at <= now),
        again: gone_at.filter(|at| *at > now).map(|at| until(at, now)),
        ..Plan::default()
    }
}

/// How a Job ends: first its last pods are ended under one condition, then another one says that it is over.
struct Verdict {
    target: &'static str,
    end: &'static str,
    reason: &'static str,
    message: &'static str,
}

const COMPLETE: Verdict = Verdict {
    target: "SuccessCriteriaMet",
    end: "Complete",
    reason: "CompletionsReached",
    message: "Reached expected number of succeeded pods",
};

struct Draft<'a> {
    spec: &'a JobSpec,
    completions: Option<u32>,
    is_indexed: bool,
    plan: Plan,
    /// Pods that run, or may.
    active: Vec<Arc<Pod>>,
    /// How many were told to go and have not ended.
    terminating: i32,
    now: Timestamp,
}

impl Draft<'_> {
    /// Sorts the pods, and takes those that ended into the status.
    fn count(&mut self, pods: &[Arc<Pod>]) {
        let mut uncounted = self
            .plan
            .status
            .uncounted_terminated_pods
            .take()
            .unwrap_or_default();
        let is_kept = |uid: &String| {
            pods.iter()
                .any(|pod| pod.metadata.uid.as_ref() == Some(uid) && is_tracked(pod))
        };
        let settle = |uids: &mut Option<Vec<String>>, total: &mut Option<i32>| {
            let (kept, counted): (Vec<_>, Vec<_>) =
                uids.take().unwrap_or_default().into_iter().partition(is_kept);
            *total = nonzero(total.unwrap_or(0).saturating_add(length(counted.len())));
            kept.into_iter().collect::<BTreeSet<String>>()
        };
        let mut failed = settle(&mut uncounted.failed, &mut self.plan.status.failed);
        let mut succeeded = settle(&mut uncounted.succeeded, &mut self.plan.status.succeeded);
        let mut indexes = self.completed_indexes();
        for pod in pods {
            let is_going = pod.metadata.deletion_timestamp.is_some();
            if !is_going && !pods::is_finished(pod) {
                self.active.push(Arc::clone(pod));
                continue;
            }
            self.terminating += i32::from(!pods::is_finished(pod));
            if !is_tracked(pod) {
                continue;
            }
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            match (pods::phase(pod), self.is_indexed) {
                ("Succeeded", true) => {
                    let count = self.completions.unwrap_or(0);
                    indexes.extend(indexes::of(pod).filter(|index| *index < count));
                }
                ("Succeeded", false) => _ = succeeded.insert(uid),
                // One that was told to go counts as failed, and may be replaced, at once.
                ("Failed", _) => _ = failed.insert(uid),
                _ if self.replaces_only_failed() => continue,
                _ => _ = failed.insert(uid),
            }
            self.plan.release.push(Arc::clone(pod));
        }
        let status = &mut self.plan.status;
        if self.is_indexed {
            status.succeeded = nonzero(length(indexes.count()));
            status.completed_indexes = Some(indexes.text()).filter(|text| !text.is_empty());
        }
        let list = |uids: BTreeSet<String>| (!uids.is_empty()).then(|| uids.into_iter().collect());
        // An empty object says that pods are tracked.
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            failed: list(failed),
            succeeded: list(succeeded),
        });
    }

    fn replaces_only_failed(&self) -> bool {
        self.spec.pod_replacement_policy.as_deref() == Some("Failed")
    }

    fn completed_indexes(&self) -> Indexes {
        let text = self.plan.status.completed_indexes.as_deref().unwrap_or_default();
        Indexes::parse(text, self.completions.unwrap_or(0))
    }

    fn uncounted(&self) -> (i32, i32) {
        let uncounted = self.plan.status.uncounted_terminated_pods.as_ref();
        let count = |uids: Option<&Vec<String>>| length(uids.map_or(0, Vec::len));
        (
            count(uncounted.and_then(|pods| pods.succeeded.as_ref())),
            count(uncounted.and_then(|pods| pods.failed.as_ref())),
        )
    }

    fn succeeded(&self) -> i32 {
        self.plan
            .status
            .succeeded
            .unwrap_or(0)
            .saturating_add(self.uncounted().0)
    }

    fn failed(&self) -> i32 {
        self.plan
            .status
            .failed
            .unwrap_or(0)
            .saturating_add(self.uncounted().1)
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    /// Keeps `startTime`, and tells of a suspension and its end.
    fn suspend_or_resume(&mut self) {
        let condition = self.condition("Suspended").map(|known| known.status == "True");
        match (self.is_suspended(), condition) {
            (true, Some(true)) | (false, None | Some(false)) => {}
            (true, _) => {
                self.plan.status.start_time = None;
                self.set_condition("Suspended", "True", "JobSuspended", "Job suspended");
                self.say(Severity::Normal, "Suspended", "Job suspended");
            }
            (false, Some(true)) => {
                self.set_condition("Suspended", "False", "JobResumed", "Job resumed");
                self.say(Severity::Normal, "Resumed", "Job resumed");
            }
        }
        if !self.is_suspended() {
            let now = whole_second(self.now);
            self.plan.status.start_time.get_or_insert(Time(now));
        }
    }

    /// Whether it is decided how the Job ends.
    fn verdict(&mut self) -> Option<Verdict> {
        let failed = |reason, message| Verdict {
            target: "FailureTarget",
            end: "Failed",
            reason,
            message,
        };
        if self.condition(COMPLETE.target).is_some() {
            return Some(COMPLETE);
        }
        if self
            .condition("FailureTarget")
            .is_some_and(|known| known.reason.as_deref() == Some("DeadlineExceeded"))
        {
            return Some(failed("DeadlineExceeded", DEADLINE));
        }
        if self.condition("FailureTarget").is_some() {
            return Some(failed("BackoffLimitExceeded", BACKOFF));
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if self.failed() > limit || self.restarts_reach(limit) {
            return Some(failed("BackoffLimitExceeded", BACKOFF));
        }
        if let Some(deadline) = self.deadline() {
            if deadline <= self.now {
                return Some(failed("DeadlineExceeded", DEADLINE));
            }
            self.look_again(until(deadline, self.now));
        }
        let is_complete = match self.spec.completions {
            Some(completions) => self.succeeded() >= completions,
            // A work queue: one success, and the others end by themselves.
            None => self.succeeded() > 0 && self.active.is_empty(),
        };
        is_complete.then_some(COMPLETE)
    }

    fn deadline(&self) -> Option<Timestamp> {
        let seconds = self
            .spec
            .active_deadline_seconds
            .filter(|_| !self.is_suspended())?;
        let start = self.plan.status.start_time.as_ref()?.0;
        start
            .checked_add(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
            .ok()
    }

    /// Containers that are restarted in place count as well (upstream's `pastBackoffLimitOnFailure`).
    fn restarts_reach(&self, limit: i32) -> bool {
        let policy = self
            .spec
            .template
            .spec
            .as_ref()
            .and_then(|spec| spec.restart_policy.as_deref());
        if policy != Some("OnFailure") {
            return false;
        }
        let restarts = self.active.iter().flat_map(|pod| restarts(pod));
        restarts.fold(0, i32::saturating_add) >= limit.max(1)
    }

    /// Ends the last pods, then the Job.
    fn end(&mut self, verdict: &Verdict) {
        if self.condition(verdict.target).is_none() {
            self.set_condition(verdict.target, "True", verdict.reason, verdict.message);
        }
        self.plan.delete = std::mem::take(&mut self.active);
        let all_ended = self.plan.delete.is_empty() && self.terminating == 0;
        if !all_ended || self.uncounted() != (0, 0) || !self.plan.release.is_empty() {
            return;
        }
        self.set_condition(verdict.end, "True", verdict.reason, verdict.message);
        if verdict.end == "Complete" {
            self.plan.status.completion_time = Some(Time(whole_second(self.now)));
            self.say(Severity::Normal, "Completed", "Job completed");
        } else {
            self.say(Severity::Warning, verdict.reason, verdict.message);
        }
    }

    /// As many pods as should run.
    fn keep(&mut self, pods: &[Arc<Pod>]) {
        let wanted = self.wanted();
        if self.is_indexed {
            self.drop_doubles();
        }
        if self.active.len() > wanted {
            let mut victims = victims_first(&self.active, &[], self.now);
            victims.truncate((self.active.len() - wanted).min(BURST));
            self.plan.delete.extend(victims);
            return;
        }
        let standing_in = if self.replaces_only_failed() {
            usize::try_from(self.terminating).unwrap_or(0)
        } else {
            0
        };
        let missing = wanted.saturating_sub(self.active.len() + standing_in).min(BURST);
        if missing == 0 {
            return;
        }
        match pause(pods, self.now) {
            Some(pause) => self.look_again(pause),
            None => self.create(missing),
        }
    }

    fn wanted(&self) -> usize {
        if self.is_suspended() {
            return 0;
        }
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        match self.spec.completions {
            Some(completions) => {
                let left = usize::try_from(completions - self.succeeded()).unwrap_or(0);
                parallelism.min(left)
            }
            None if self.succeeded() > 0 => self.active.len(),
            None => parallelism,
        }
    }

    /// Of several active pods of an index the oldest stays; those of an index that is done, or of none, go.
    fn drop_doubles(&mut self) {
        let mut taken = self.completed_indexes();
        let count = self.completions.unwrap_or(0);
        let mut active = std::mem::take(&mut self.active);
        active.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
        let (stay, go): (Vec<_>, Vec<_>) = active
            .into_iter()
            .partition(|pod| indexes::of(pod).is_some_and(|index| index < count && taken.insert(index)));
        self.active = stay;
        self.plan.delete.extend(go);
    }

    fn create(&mut self, missing: usize) {
        if !self.is_indexed {
            self.plan.create = vec![None; missing];
            return;
        }
        let mut taken = self.completed_indexes();
        taken.extend(self.active.iter().filter_map(|pod| indexes::of(pod)));
        let free = taken.missing(self.completions.unwrap_or(0));
        self.plan.create = free.take(missing).map(Some).collect();
    }

    fn finish(mut self) -> Plan {
        let ready = self.active.iter().filter(|pod| pods::is_ready(pod)).count();
        let status = &mut self.plan.status;
        status.active = nonzero(length(self.active.len()));
        status.ready = Some(length(ready));
        status.terminating = Some(self.terminating);
        self.plan
    }

    fn condition(&self, type_: &str) -> Option<&JobCondition> {
        let mut conditions = self.plan.status.conditions.iter().flatten();
        conditions.find(|known| known.type_ == type_)
    }

    fn set_condition(&mut self, type_: &str, status: &str, reason: &str, message: &str) {
        let now = Time(whole_second(self.now));
        let conditions = self.plan.status.conditions.get_or_insert_default();
        conditions.retain(|known| known.type_ != type_);
        conditions.push(JobCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_probe_time: Some(now.clone()),
            last_transition_time: Some(now),
        });
    }

    fn say(&mut self, severity: Severity, reason: &'static str, message: &str) {
        self.plan.said.push((severity, reason, message.to_owned()));
    }

    fn look_again(&mut self, after: Duration) {
        self.plan.again = self.plan.again.into_iter().chain([after]).min();
    }
}

const DEADLINE: &str = "Job was active longer than specified deadline";
const BACKOFF: &str = "Job has reached the specified backoff limit";

/// How long the next pod still has to wait because of failures in a row.
fn pause(pods: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let ended = |phase: &'static str| pods.iter().filter(move |pod| pods::phase(pod) == phase);
    let last_success = ended("Succeeded").filter_map(|pod| ended_at(pod)).max();
    let since = last_success.unwrap_or(Timestamp::MIN);
    let failures: Vec<Timestamp> = ended("Failed")
        .filter_map(|pod| ended_at(pod))
        .filter(|at| *at > since)
        .collect();
    let last = failures.iter().max()?;
    let doublings = u32::try_from(failures.len() - 1).unwrap_or(u32::MAX).min(16);
    let pause = FIRST_PAUSE.saturating_mul(1 << doublings).min(LAST_PAUSE);
    let over = last.checked_add(pause).ok()?;
    (over > now).then(|| until(over, now))
}

/// When a pod's last container ended, or failing that, when it last changed (upstream's `getFinishedTime`).
fn ended_at(pod: &Pod) -> Option<Timestamp> {
    let containers = pod
        .status
        .iter()
        .flat_map(|status| status.container_statuses.iter().flatten());
    let ended = containers.filter_map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        Some(terminated.finished_at.as_ref()?.0)
    });
    ended.max().or_else(|| pods::changed_at(pod))
}

/// How often each of a pod's containers was restarted.
fn restarts(pod: &Pod) -> impl Iterator<Item = i32> {
    let status = pod.status.as_ref();
    let all = [
        status.and_then(|status| status.init_container_statuses.as_ref()),
        status.and_then(|status| status.container_statuses.as_ref()),
    ];
    all.into_iter()
        .flatten()
        .flatten()
        .map(|container| container.restart_count)
}

/// The API keeps whole seconds, and a status must compare equal to the one that is stored.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

fn length(length: usize) -> i32 {
    i32::try_from(length).unwrap_or(i32::MAX)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

//! Jobs played through, and single decisions as rows.

use super::super::indexes::INDEX;
use super::*;
use serde_json::{Value, json};

const START: &str = "2026-01-01T00:00:00Z";

/// A Job and its pods, which end as a test says.
struct World {
    job: Job,
    pods: Vec<Pod>,
    now: Timestamp,
    said: Vec<&'static str>,
    made: usize,
}

impl World {
    fn new(spec: Value) -> Self {
        let mut full = json!({
            "completions": 1, "parallelism": 1, "backoffLimit": 6, "suspend": false, "completionMode": "NonIndexed",
            "template": { "spec": { "containers": [], "restartPolicy": "Never" } },
        });
        full.as_object_mut()
            .unwrap()
            .extend(spec.as_object().unwrap().clone());
        let job = json!({ "metadata": { "name": "work", "uid": "j" }, "spec": full });
        Self {
            job: serde_json::from_value(job).unwrap(),
            pods: Vec::new(),
            now: START.parse().unwrap(),
            said: Vec::new(),
            made: 0,
        }
    }

    fn plan(&self) -> Plan {
        let pods: Vec<_> = self.pods.iter().cloned().map(Arc::new).collect();
        plan(&self.job, &pods, self.now)
    }

    /// Does what is planned, until nothing is; the last plan is the answer.
    fn settle(&mut self) -> Plan {
        for _ in 0..20 {
            let plan = self.plan();
            let is_quiet = plan.release.is_empty() && plan.delete.is_empty() && plan.create.is_empty();
            let is_told = self.job.status.as_ref() == Some(&plan.status);
            self.job.status = Some(plan.status.clone());
            self.said.extend(plan.said.iter().map(|(_, reason, _)| *reason));
            let names =
                |pods: &[Arc<Pod>]| -> Vec<_> { pods.iter().map(|pod| pod.metadata.name.clone()).collect() };
            let (released, deleted) = (names(&plan.release), names(&plan.delete));
            for pod in &mut self.pods {
                if released.contains(&pod.metadata.name) {
                    pod.metadata.finalizers = None;
                }
                if deleted.contains(&pod.metadata.name) {
                    pod.metadata.deletion_timestamp = Some(Time(self.now));
                }
            }
            for index in &plan.create {
                self.add_pod(*index);
            }
            if is_quiet && is_told {
                return plan;
            }
        }
        panic!("never quiet: {:?}", self.plan());
    }

    fn add_pod(&mut self, index: Option<u32>) {
        self.made += 1;
        let name = format!("p{}", self.made);
        let annotations = index.map(|index| json!({ INDEX: index.to_string() }));
        let pod = json!({
            "metadata": {
                "name": name, "uid": name, "annotations": annotations, "finalizers": [TRACKING],
                "creationTimestamp": self.now.to_string(),
            },
            "spec": { "containers": [], "nodeName": "n" }, "status": { "phase": "Running" },
        });
        self.pods.push(serde_json::from_value(pod).unwrap());
    }

    fn pass(&mut self, secs: i64) {
        self.now = Timestamp::from_second(self.now.as_second() + secs).unwrap();
    }

    /// The first pod that runs ends now.
    fn end_one(&mut self, phase: &str) {
        let now = self.now;
        let pod = self
            .pods
            .iter_mut()
            .find(|pod| pods::phase(pod) == "Running")
            .expect("a pod runs");
        let end = json!({ "phase": phase, "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": { "terminated": { "exitCode": 0, "finishedAt": now.to_string() } },
        }] });
        pod.status = serde_json::from_value(end).unwrap();
    }

    /// What the kubelets do with pods that were told to go.
    fn end_deleted(&mut self) {
        for pod in &mut self.pods {
            if pod.metadata.deletion_timestamp.is_some() && pods::phase(pod) == "Running" {
                pod.status.as_mut().unwrap().phase = Some("Failed".to_owned());
            }
        }
    }

    /// `active/succeeded/failed`, and the conditions that hold.
    #[track_caller]
    fn check(&mut self, counts: &str, conditions: &[&str]) {
        self.settle();
        let status = self.job.status.clone().unwrap();
        let count = |count: Option<i32>| count.unwrap_or(0).to_string();
        let found = [
            count(status.active),
            count(status.succeeded),
            count(status.failed),
        ]
        .join("/");
        let held = status
            .conditions
            .iter()
            .flatten()
            .filter(|one| one.status == "True");
        let held: Vec<_> = held.map(|one| one.type_.as_str()).collect();
        assert_eq!((found.as_str(), held.as_slice()), (counts, conditions));
    }
}

#[test]
fn a_job_ends_when_enough_pods_have_succeeded() {
    let mut world = World::new(json!({}));
    world.check("1/0/0", &[]);
    world.end_one("Succeeded");
    world.check("0/1/0", &["SuccessCriteriaMet", "Complete"]);
    let status = world.job.status.clone().unwrap();
    assert_eq!(status.start_time, Some(Time(START.parse().unwrap())));
    assert_eq!(status.completion_time, Some(Time(world.now)));
    assert_eq!(world.said, ["Completed"]);
    assert!(world.pods.iter().all(|pod| !is_tracked(pod)));
    world.check("0/1/0", &["SuccessCriteriaMet", "Complete"]);
    assert_eq!(world.made, 1);
}

#[test]
fn no_more_pods_run_at_once_than_are_asked_for_or_still_needed() {
    let mut world = World::new(json!({ "completions": 5, "parallelism": 2 }));
    world.check("2/0/0", &[]);
    world.end_one("Succeeded");
    world.check("2/1/0", &[]);
    for _ in 0..3 {
        world.end_one("Succeeded");
        world.settle();
    }
    world.check("1/4/0", &[]);
    world.end_one("Succeeded");
    world.check("0/5/0", &["SuccessCriteriaMet", "Complete"]);
    assert_eq!(world.made, 5);
    World::new(json!({ "completions": 5, "parallelism": 0 })).check("0/0/0", &[]);
    World::new(json!({ "completions": 0 })).check("0/0/0", &["SuccessCriteriaMet", "Complete"]);
    let mut shrinking = World::new(json!({ "completions": 5, "parallelism": 4 }));
    shrinking.check("4/0/0", &[]);
    shrinking.job.spec.as_mut().unwrap().parallelism = Some(1);
    // Those that are told to go count as failed.
    shrinking.check("1/0/3", &[]);
}

#[test]
fn a_work_queue_ends_with_its_last_pod_after_the_first_success() {
    let mut world = World::new(json!({ "completions": null, "parallelism": 3 }));
    world.check("3/0/0", &[]);
    world.end_one("Succeeded");
    world.check("2/1/0", &[]);
    world.end_one("Failed");
    world.check("1/1/1", &[]);
    world.end_one("Succeeded");
    world.check("0/2/1", &["SuccessCriteriaMet", "Complete"]);
}

#[test]
fn failures_are_retried_ever_later_and_at_last_no_more() {
    let mut world = World::new(json!({ "backoffLimit": 2 }));
    world.settle();
    for (failed, pause) in [(1, 10), (2, 20)] {
        world.end_one("Failed");
        world.check(&format!("0/0/{failed}"), &[]);
        let again = world.plan().again;
        assert_eq!(
            again,
            Some(Duration::from_secs(pause) + Duration::from_millis(10))
        );
        world.pass(i64::try_from(pause).unwrap());
        world.check(&format!("1/0/{failed}"), &[]);
    }
    world.end_one("Failed");
    world.check("0/0/3", &["FailureTarget", "Failed"]);
    let conditions = world.job.status.as_ref().unwrap().conditions.clone().unwrap();
    let failed = conditions.iter().find(|one| one.type_ == "Failed").unwrap();
    assert_eq!(
        (failed.reason.as_deref(), failed.message.as_deref()),
        (
            Some("BackoffLimitExceeded"),
            Some("Job has reached the specified backoff limit")
        )
    );
    assert_eq!(world.said, ["BackoffLimitExceeded"]);
    assert_eq!(world.job.status.as_ref().unwrap().completion_time, None);
}

#[test]
fn a_success_ends_the_row_of_failures() {
    let mut world = World::new(json!({ "completions": 3 }));
    world.settle();
    world.end_one("Failed");
    world.settle();
    world.pass(10);
    world.settle();
    world.pass(1);
    world.end_one("Succeeded");
    world.check("1/1/1", &[]);
    world.pass(1);
    world.end_one("Failed");
    world.settle();
    assert_eq!(world.plan().again, Some(Duration::from_millis(10_010)));
}

#[test]
fn when_a_job_fails_its_other_pods_end_before_it_is_over() {
    let mut world = World::new(json!({ "completions": 3, "parallelism": 3, "backoffLimit": 0 }));
    world.settle();
    world.end_one("Failed");
    world.check("0/0/3", &["FailureTarget"]);
    assert_eq!(world.job.status.as_ref().unwrap().terminating, Some(2));
    assert!(world.said.is_empty());
    world.end_deleted();
    world.check("0/0/3", &["FailureTarget", "Failed"]);
}

#[test]
fn restarts_in_place_count_against_the_limit() {
    let on_failure = json!({ "spec": { "containers": [], "restartPolicy": "OnFailure" } });
    let with_restarts = |restarts: i32, limit: i32| {
        let mut world = World::new(json!({ "backoffLimit": limit, "template": on_failure }));
        world.settle();
        let status = json!({ "phase": "Running", "containerStatuses": [{
            "name": "c", "image": "", "imageID": "", "ready": true, "restartCount": restarts,
        }] });
        world.pods[0].status = serde_json::from_value(status).unwrap();
        world.settle();
        world.job.status.unwrap().conditions.is_some()
    };
    assert!(!with_restarts(1, 2));
    assert!(with_restarts(2, 2));
    assert!(!with_restarts(0, 0));
    assert!(with_restarts(1, 0));
}

#[test]
fn a_deadline_ends_a_job_however_it_goes() {
    let mut world = World::new(json!({ "activeDeadlineSeconds": 30 }));
    world.check("1/0/0", &[]);
    assert_eq!(world.plan().again, Some(Duration::from_millis(30_010)));
    world.pass(29);
    world.check("1/0/0", &[]);
    world.pass(1);
    world.check("0/0/1", &["FailureTarget"]);
    world.end_deleted();
    world.check("0/0/1", &["FailureTarget", "Failed"]);
    assert_eq!(world.said, ["DeadlineExceeded"]);
}

#[test]
fn a_suspended_job_has_no_pods_and_its_time_begins_anew() {
    let mut world = World::new(json!({ "suspend": true, "activeDeadlineSeconds": 30 }));
    world.check("0/0/0", &["Suspended"]);
    assert_eq!(world.job.status.as_ref().unwrap().start_time, None);
    world.pass(100);
    world.job.spec.as_mut().unwrap().suspend = Some(false);
    world.check("1/0/0", &[]);
    assert_eq!(
        world.job.status.as_ref().unwrap().start_time,
        Some(Time(world.now))
    );
    world.job.spec.as_mut().unwrap().suspend = Some(true);
    world.check("0/0/1", &["Suspended"]);
    assert_eq!(world.said, ["Suspended", "Resumed", "Suspended"]);
}

#[test]
fn each_index_is_done_once() {
    let mut world = World::new(json!({ "completions": 4, "parallelism": 2, "completionMode": "Indexed" }));
    let plan = world.plan();
    assert_eq!(plan.create, [Some(0), Some(1)]);
    world.check("2/0/0", &[]);
    world.end_one("Failed");
    world.check("1/0/1", &[]);
    world.pass(10);
    assert_eq!(world.plan().create, [Some(0)]);
    world.settle();
    world.end_one("Succeeded");
    world.check("2/1/1", &[]);
    assert_eq!(
        world.job.status.as_ref().unwrap().completed_indexes.as_deref(),
        Some("1")
    );
    for _ in 0..3 {
        world.end_one("Succeeded");
        world.settle();
    }
    world.check("0/4/1", &["SuccessCriteriaMet", "Complete"]);
    assert_eq!(
        world.job.status.as_ref().unwrap().completed_indexes.as_deref(),
        Some("0-3")
    );
}

#[test]
fn of_two_pods_of_an_index_the_younger_goes() {
    let mut world = World::new(json!({ "completions": 2, "parallelism": 2, "completionMode": "Indexed" }));
    world.settle();
    world.pass(1);
    world.add_pod(Some(1));
    world.add_pod(Some(7));
    let gone: Vec<_> = world
        .plan()
        .delete
        .iter()
        .filter_map(|pod| pod.metadata.name.clone())
        .collect();
    assert_eq!(gone, ["p3", "p4"]);
}

#[test]
fn a_pod_counts_once_however_often_the_controller_dies_in_between() {
    let mut world = World::new(json!({ "completions": 2 }));
    world.settle();
    world.end_one("Succeeded");
    let plan = world.plan();
    assert_eq!((plan.status.succeeded, plan.release.len()), (None, 1));
    // The status is written, the finalizer is not yet gone.
    world.job.status = Some(plan.status.clone());
    let again = world.plan();
    assert_eq!((again.status.clone(), again.release.len()), (plan.status, 1));
    // The finalizer is gone, and so is the pod.
    world.pods.retain(|pod| pods::phase(pod) == "Running");
    let counted = world.plan().status;
    assert_eq!(counted.succeeded, Some(1));
    let none = UncountedTerminatedPods::default();
    assert_eq!(counted.uncounted_terminated_pods, Some(none));
}

#[test]
fn a_pod_that_is_deleted_is_replaced_at_once_or_when_it_has_ended() {
    let mut world = World::new(json!({ "podReplacementPolicy": "TerminatingOrFailed" }));
    world.settle();
    world.pods[0].metadata.deletion_timestamp = Some(Time(world.now));
    world.settle();
    world.pass(10);
    world.check("1/0/1", &[]);
    let mut patient = World::new(json!({ "podReplacementPolicy": "Failed" }));
    patient.settle();
    patient.pods[0].metadata.deletion_timestamp = Some(Time(patient.now));
    patient.check("0/0/0", &[]);
    patient.end_deleted();
    patient.pass(10);
    patient.check("1/0/1", &[]);
}

#[test]
fn an_ended_job_goes_when_its_time_is_over() {
    let mut world = World::new(json!({ "ttlSecondsAfterFinished": 60 }));
    world.settle();
    world.end_one("Succeeded");
    world.settle();
    world.pass(59);
    let plan = world.plan();
    assert_eq!(
        (plan.expired, plan.again),
        (false, Some(Duration::from_millis(1010)))
    );
    world.pass(1);
    assert!(world.plan().expired);
    world.job.metadata.deletion_timestamp = Some(Time(world.now));
    assert!(!world.plan().expired);
    world.job.metadata.deletion_timestamp = None;
    world.job.spec.as_mut().unwrap().ttl_seconds_after_finished = None;
    assert!(!world.plan().expired);
}

#[test]
fn a_job_that_is_being_deleted_makes_no_pods() {
    let mut world = World::new(json!({}));
    world.job.metadata.deletion_timestamp = Some(Time(world.now));
    world.check("0/0/0", &[]);
    assert_eq!(world.made, 0);
}
